//! Two methods on the same cases: how far apart they are, and whether that is more than chance.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::aggregate::{columns, in_order, made_of_parts, sort};
use super::bootstrap::{Bounds, Mean, Sheet, Statistic, interval};
use super::protocol::{Measured, Protocol, about};
use super::significance::{Test, bootstrap_test, test};

/// A number of one method less that of another, over the cases that both have it for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Whose number it is.
    pub protocol: Protocol,
    /// Its name.
    pub name: String,
    /// The mean difference; of `score` and the figures of `balanced` the difference of the two.
    pub mean: f64,
    /// Where the 95 % percentile interval over draws of the cases begins, as a figure's; nothing where it does not vary and may be any number.
    pub low: Option<f64>,
    /// Where it ends.
    pub high: Option<f64>,
    /// How many cases it is over.
    pub cases: usize,
    /// The chance of a difference as large, either way, if there were none.
    pub p: f64,
    /// The test that says so.
    pub test: Test,
}

/// What a difference is made of.
enum Parts {
    /// The mean of a difference a case.
    Cases(Mean, Vec<f64>),
    /// Two numbers that no single case has.
    Whole(Statistic, Statistic),
}

/// The differences `a − b` of all values that both have, in the order of tables. Cases are matched by id; a case that failed under
/// either is in none.
pub fn paired(a: &[Measured], b: &[Measured], seed: u64) -> Vec<Difference> {
    let (a, b): (Vec<&Measured>, Vec<&Measured>) = matched(a, b).into_iter().unzip();
    let mut sheet = Sheet::new(a.len());
    let mut parts: Vec<(Protocol, String, usize, Parts)> = vec![];
    let (ours, theirs) = (columns(&a), columns(&b));
    for column in &ours {
        let same = |other: &&super::aggregate::Column| (other.protocol, &other.name) == (column.protocol, &column.name);
        let Some(other) = theirs.iter().find(same) else { continue };
        let difference = |(a, b): (&Option<f64>, &Option<f64>)| Some((*a)? - (*b)?).filter(|value| !value.is_nan());
        let differences: Vec<Option<f64>> = column.values.iter().zip(&other.values).map(difference).collect();
        let Some(mean) = Mean::of(&mut sheet, &differences) else { continue };
        let known: Vec<f64> = differences.into_iter().flatten().collect();
        parts.push((column.protocol, column.name.clone(), known.len(), Parts::Cases(mean, known)));
    }
    let theirs = made_of_parts(&mut sheet, &b, &theirs);
    for whole in made_of_parts(&mut sheet, &a, &ours) {
        let same = |other: &&super::aggregate::Named| (other.protocol, &other.name) == (whole.protocol, &whole.name);
        let Some(other) = theirs.iter().find(same) else { continue };
        let cases = whole.cases.min(other.cases);
        parts.push((whole.protocol, whole.name, cases, Parts::Whole(whole.statistic, other.statistic)));
    }
    sort(&mut parts, |(protocol, name, ..)| (*protocol, name));
    let (sums, draws) = (sheet.sums(), sheet.resampled(seed));
    let difference = |(protocol, name, cases, parts): (Protocol, String, usize, Parts)| {
        let at = |sums: &[f64]| match &parts {
            Parts::Cases(mean, _) => mean.at(sums),
            Parts::Whole(a, b) => a.at(sums) - b.at(sums),
        };
        let mean = at(&sums);
        let draws: Vec<f64> = draws.iter().map(|sums| at(sums)).collect();
        let (p, test) = match &parts {
            Parts::Cases(_, differences) => test(differences),
            Parts::Whole(..) => (bootstrap_test(&draws), Test::Bootstrap),
        };
        let bounds = Bounds::of_difference(about(protocol, &name).unit);
        let (low, high) = interval(mean, draws, cases, bounds).unzip();
        Difference { protocol, name, mean, low, high, cases, p, test }
    };
    parts.into_iter().map(difference).collect()
}

/// Cases of the same id in both lists that failed in neither.
fn matched<'a>(a: &'a [Measured], b: &'a [Measured]) -> Vec<(&'a Measured, &'a Measured)> {
    let theirs: HashMap<&str, &Measured> = b.iter().map(|case| (case.id.as_str(), case)).collect();
    let pairs = in_order(a).into_iter().filter_map(|ours| Some((ours, *theirs.get(ours.id.as_str())?)));
    pairs.filter(|(ours, theirs)| !ours.failed && !theirs.failed).collect()
}
