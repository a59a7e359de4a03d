//! The protocol `mquake` (Zhong et al., 2023): whether a model reasons with what it was taught, over free answers.

use super::text::says;
use super::{Protocol, Value, Values};
use crate::data::multi_hop::{MULTI_HOP, SINGLE_HOP};
use crate::evaluate::case::Case;
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::mean;

/// The values of a case that has questions over several facts.
///
/// ```text
/// edit_wise      share of the case's edits whose new answer is said
/// instance_wise  1 where every fact that the question needs is said, as it is after the edits
/// multi_hop      1 where any wording of the question is answered with the new answer
/// ```
///
/// An answer is said where it or one of its other names is among the words of what the model says by itself. The paper shows the model other
/// questions first; here it is asked as it stands.
pub fn values(case: &Case) -> Vec<Value> {
    let asked = |wanted: fn(&ProbeRow) -> bool| {
        let rows = case.answers.iter().filter_map(move |answer| Some((case.rows.get(answer.row)?, answer)));
        rows.filter(move |(row, _)| wanted(row)).map(|(row, answer)| says(&answer.after, row)).collect::<Vec<bool>>()
    };
    let multi_hop = asked(|row| row.test.is_some() && row.class.as_deref() == Some(MULTI_HOP));
    let mut values = Values::new(Protocol::Mquake);
    if !multi_hop.is_empty() {
        let share = |holds: bool| f64::from(u8::from(holds));
        values.push("edit_wise", mean(asked(|row| row.kind == Kind::Rewrite).into_iter().map(share)));
        let hops = asked(|row| row.test.is_some() && row.class.as_deref() == Some(SINGLE_HOP));
        values.push("instance_wise", (!hops.is_empty()).then(|| share(hops.iter().all(|said| *said))));
        values.push("multi_hop", Some(share(multi_hop.contains(&true))));
    }
    values.all()
}
