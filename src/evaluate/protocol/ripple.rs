//! The protocol `ripple` (Cohen et al., 2024): tests of what follows from an edit and what does not, over free answers.

use std::collections::{BTreeMap, BTreeSet};

use super::text::says;
use super::{Protocol, Value, Values};
use crate::data::ripple::CLASSES;
use crate::evaluate::case::{Case, FreeAnswer};
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::mean;

/// A test of a case: its class and its number there.
type Test<'c> = (&'c str, usize);

/// The test that a probe is part of.
pub fn test(row: &ProbeRow) -> Option<Test<'_>> {
    Some((row.class.as_deref()?, row.test?.number))
}

/// The tests of a case that do not count: those of whose conditions one is among `missed`.
pub fn uncounted<'c>(missed: impl Iterator<Item = &'c ProbeRow>) -> BTreeSet<Test<'c>> {
    missed.filter(|row| row.kind == Kind::Condition).filter_map(test).collect()
}

/// The free answers of a case, each with its probe.
pub fn answered(case: &Case) -> impl Iterator<Item = (&ProbeRow, &FreeAnswer)> {
    case.answers.iter().filter_map(|answer| Some((case.rows.get(answer.row)?, answer)))
}

/// The tests that do not count, told by what the unedited model says.
pub fn uncounted_in_answers(case: &Case) -> BTreeSet<Test<'_>> {
    uncounted(answered(case).filter(|(row, answer)| !says(&answer.before, row)).map(|(row, _)| row))
}

/// A value for each kind of test: the share of a case's tests that are passed, of those that count.
///
/// A test counts where the unedited model answers each of its conditions rightly. It is passed where one of its questions is answered
/// rightly (OR) or all are (AND).
pub fn values(case: &Case) -> Vec<Value> {
    let uncounted = uncounted_in_answers(case);
    let mut tests: BTreeMap<Test, (bool, Vec<bool>)> = BTreeMap::new();
    for (row, answer) in answered(case).filter(|(row, _)| row.kind != Kind::Condition) {
        if let (Some(test), Some(part)) = (test(row), row.test) {
            tests.entry(test).or_insert((part.any, vec![])).1.push(says(&answer.after, row));
        }
    }
    let mut values = Values::new(Protocol::Ripple);
    for class in CLASSES {
        let counted = tests.iter().filter(|(test, _)| test.0 == class && !uncounted.contains(test));
        let passed =
            counted.map(|(_, (any, right))| if *any { right.contains(&true) } else { !right.contains(&false) });
        values.push(class.to_lowercase(), mean(passed.map(|passed| f64::from(u8::from(passed)))));
    }
    values.all()
}
