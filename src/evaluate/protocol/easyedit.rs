//! The protocol `easyedit` (Wang et al., 2023): shares of tokens under teacher forcing.

use std::collections::BTreeMap;

use super::ripple::{test, uncounted};
use super::text::fluency;
use super::{Protocol, Value, Values};
use crate::edit::likelihood::Scored;
use crate::evaluate::case::Case;
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::mean;

/// The share of a target's tokens that are the likeliest in their places.
pub(in crate::evaluate) fn token_accuracy(scored: &Scored) -> Option<f64> {
    let places = scored.target.len();
    let right = scored.argmax.iter().zip(&scored.target).filter(|(said, wanted)| said == wanted).count();
    (places > 0).then(|| right as f64 / places as f64)
}

/// The mean by class over the probes of a kind.
fn by_class(case: &Case, kind: Kind, of: impl Fn(&ProbeRow) -> Option<f64>) -> BTreeMap<&str, Option<f64>> {
    let mut classes: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in case.rows.iter().filter(|row| row.kind == kind) {
        if let (Some(class), Some(value)) = (row.class.as_deref(), of(row)) {
            classes.entry(class).or_default().push(value);
        }
    }
    classes.into_iter().map(|(class, values)| (class, mean(values.into_iter()))).collect()
}

/// The values of a case. With m̂ the likeliest tokens in the places of a target's tokens t, given those before them,
///
/// ```text
/// rewrite_acc, rephrase_acc  mean over prompts of |{i: m̂_i after = t_i}| / |t|
/// locality/CLASS             mean over prompts of |{i: m̂_i after = m̂_i before}| / |t|
/// portability/CLASS          mean over prompts of |{i: m̂_i after = t_i}| / |t|
/// fluency                    entropy of what it writes, bits, as ROME's
/// ```
///
/// Half of a name right counts one half: these are not shares of right answers. Locality is about change, not truth. A test of RippleEdits
/// counts where the unedited model's likeliest tokens meet its conditions. Fluency is [`super::text::fluency`].
pub fn values(case: &Case) -> Vec<Value> {
    let mut values = Values::new(Protocol::Easyedit);
    for (name, kind) in [("rewrite_acc", Kind::Rewrite), ("rephrase_acc", Kind::Rephrase)] {
        let rows = case.rows.iter().filter(|row| row.kind == kind);
        values.push(name, mean(rows.filter_map(|row| token_accuracy(&row.after))));
    }
    for (class, value) in by_class(case, Kind::Locality, |row| Some(row.before.agreement(&row.after))) {
        values.push(format!("locality/{class}"), value);
    }
    let uncounted = uncounted(case.rows.iter().filter(|row| !row.before.exact()));
    let counts = |row: &ProbeRow| test(row).is_none_or(|test| !uncounted.contains(&test));
    for (class, value) in by_class(case, Kind::Portability, |row| token_accuracy(&row.after).filter(|_| counts(row))) {
        values.push(format!("portability/{class}"), value);
    }
    values.push("fluency", fluency(case.whole_texts()));
    values.all()
}
