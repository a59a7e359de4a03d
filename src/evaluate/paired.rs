//! Two methods on the same cases: how far apart they are, and whether that is more than chance.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::aggregate::{columns, in_order, made_of_parts, sort};
use super::bootstrap::{Bounds, Mean, Sheet, Statistic, interval};
use super::protocol::{Measured, Protocol, about};
use super::significance::{Test, sign_flip_test, test};

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

/// The p-value of a difference alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tested {
    /// Whose number it is.
    pub protocol: Protocol,
    /// Its name.
    pub name: String,
    /// The chance of a difference as large, either way, if there were none.
    pub p: f64,
}

/// What a difference is made of.
enum Made {
    /// The mean of a difference a case.
    Cases(Mean, Vec<f64>),
    /// Two numbers that no single case has.
    Whole(Statistic, Statistic),
}

/// A number that two methods have.
struct SharedNumber {
    protocol: Protocol,
    name: String,
    cases: usize,
    made: Made,
}

impl SharedNumber {
    /// The difference, of sums over the cases.
    fn at(&self, sums: &[f64]) -> f64 {
        match &self.made {
            Made::Cases(mean, _) => mean.at(sums),
            Made::Whole(a, b) => a.at(sums) - b.at(sums),
        }
    }

    /// Its p-value and the test.
    fn test(&self, sheet: &Sheet, seed: u64) -> (f64, Test) {
        match &self.made {
            Made::Cases(_, differences) => test(differences),
            Made::Whole(a, b) => {
                let (ours, theirs) = (a.summands(sheet), b.summands(sheet));
                (sign_flip_test(&ours, &theirs, |sums| a.value_of(sums), seed), Test::SignFlip)
            }
        }
    }
}

/// The numbers that both methods have, in the order of tables, over the cases that both have and in which neither failed.
fn parts(a: &[Measured], b: &[Measured]) -> (Sheet, Vec<SharedNumber>) {
    let (a, b): (Vec<&Measured>, Vec<&Measured>) = matched(a, b).into_iter().unzip();
    let mut sheet = Sheet::new(a.len());
    let mut parts: Vec<SharedNumber> = vec![];
    let (ours, theirs) = (columns(&a), columns(&b));
    for column in &ours {
        let same = |other: &&super::aggregate::Column| (other.protocol, &other.name) == (column.protocol, &column.name);
        let Some(other) = theirs.iter().find(same) else { continue };
        let difference = |(a, b): (&Option<f64>, &Option<f64>)| Some((*a)? - (*b)?).filter(|value| !value.is_nan());
        let differences: Vec<Option<f64>> = column.values.iter().zip(&other.values).map(difference).collect();
        let Some(mean) = Mean::of_column(&mut sheet, &differences) else { continue };
        let known: Vec<f64> = differences.into_iter().flatten().collect();
        let (cases, made) = (known.len(), Made::Cases(mean, known));
        parts.push(SharedNumber { protocol: column.protocol, name: column.name.clone(), cases, made });
    }
    let theirs = made_of_parts(&mut sheet, &b, &theirs);
    for whole in made_of_parts(&mut sheet, &a, &ours) {
        let same = |other: &&super::aggregate::Named| (other.protocol, &other.name) == (whole.protocol, &whole.name);
        let Some(other) = theirs.iter().find(same) else { continue };
        let (cases, made) = (whole.cases.min(other.cases), Made::Whole(whole.statistic, other.statistic));
        parts.push(SharedNumber { protocol: whole.protocol, name: whole.name, cases, made });
    }
    sort(&mut parts, |part| (part.protocol, &part.name));
    (sheet, parts)
}

/// The differences `a − b` of all values that both have, in the order of tables. Cases are matched by their records; a case that failed
/// under either is in none.
pub fn paired(a: &[Measured], b: &[Measured], seed: u64) -> Vec<Difference> {
    let (sheet, parts) = parts(a, b);
    let (sums, draws) = (sheet.sums(), sheet.resampled(seed));
    let difference = |part: SharedNumber| {
        let mean = part.at(&sums);
        let (p, test) = part.test(&sheet, seed);
        let bounds = Bounds::of_difference(about(part.protocol, &part.name).unit);
        let draws = draws.iter().map(|sums| part.at(sums)).collect();
        let (low, high) = interval(mean, draws, part.cases, bounds).unzip();
        Difference { protocol: part.protocol, name: part.name, mean, low, high, cases: part.cases, p, test }
    };
    parts.into_iter().map(difference).collect()
}

/// The p-values of [`paired`] alone, which need no draws of cases.
pub(super) fn tested([a, b]: [&[Measured]; 2], seed: u64) -> Vec<Tested> {
    let (sheet, parts) = parts(a, b);
    let test = |part: SharedNumber| {
        let p = part.test(&sheet, seed).0;
        Tested { protocol: part.protocol, name: part.name, p }
    };
    parts.into_iter().map(test).collect()
}

/// Cases of the same record in both lists that failed in neither. A record that is there several times is matched in the order of ids.
fn matched<'a>(a: &'a [Measured], b: &'a [Measured]) -> Vec<(&'a Measured, &'a Measured)> {
    let mut theirs: HashMap<&str, VecDeque<&Measured>> = HashMap::new();
    for case in in_order(b).into_iter().filter(|case| !case.failed) {
        theirs.entry(&case.record).or_default().push_back(case);
    }
    let ours = in_order(a).into_iter().filter(|case| !case.failed);
    ours.filter_map(|ours| Some((ours, theirs.get_mut(ours.record.as_str())?.pop_front()?))).collect()
}
