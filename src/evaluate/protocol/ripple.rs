//! The protocol `ripple` (Cohen et al., 2024): tests of what follows from an edit and what does not, over free answers.

use std::collections::BTreeMap;

use super::text::says;
use super::{Protocol, Value, Values};
use crate::data::ripple::CLASSES;
use crate::evaluate::case::{Case, FreeAnswer};
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::mean;

/// A value for each kind of test: the share of a case's tests that are passed, of those that count.
///
/// A test counts where the unedited model answers each of its conditions rightly. It is passed where one of its questions is answered
/// rightly (OR) or all are (AND).
pub fn values(case: &Case) -> Vec<Value> {
    let answered: Vec<(&ProbeRow, &FreeAnswer)> =
        case.answers.iter().filter_map(|answer| Some((case.rows.get(answer.row)?, answer))).collect();
    let mut values = Values::new(Protocol::Ripple);
    for class in CLASSES {
        // By the test's number: whether it counts, and how its questions were answered.
        let mut tests: BTreeMap<usize, (bool, bool, Vec<bool>)> = BTreeMap::new();
        for (row, answer) in answered.iter().filter(|(row, _)| row.class.as_deref() == Some(class)) {
            let Some(part) = row.test else { continue };
            let (counts, any, right) = tests.entry(part.number).or_insert((true, part.any, vec![]));
            match row.kind {
                Kind::Condition => *counts &= says(&answer.before, row),
                _ => {
                    *any = part.any;
                    right.push(says(&answer.after, row));
                }
            }
        }
        let counted = tests.values().filter(|(counts, _, right)| *counts && !right.is_empty());
        let passed = counted.map(|(_, any, right)| if *any { right.contains(&true) } else { !right.contains(&false) });
        values.push(class.to_lowercase(), mean(passed.map(|passed| f64::from(u8::from(passed)))));
    }
    values.all()
}
