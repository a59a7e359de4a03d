//! Which of several methods is best, and what of that is proven.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::aggregate::{Figure, sort};
use super::paired::{Difference, paired};
use super::protocol::efficiency::PEAK;
use super::protocol::{Better, Measured, Protocol, about};
use super::significance::holm;

/// The level below which a corrected p-value counts as proof.
const LEVEL: f64 = 0.05;

/// A method with its figures and the cases they come from.
#[derive(Debug, Clone, Copy)]
pub struct Method<'a> {
    /// The method's name.
    pub name: &'a str,
    /// Its figures.
    pub figures: &'a [Figure],
    /// Its cases.
    pub cases: &'a [Measured],
}

/// The best method by one number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Whose number it is.
    pub protocol: Protocol,
    /// Its name.
    pub name: String,
    /// The method; of equals the one that was named first.
    pub method: String,
    /// Its figure.
    pub mean: f64,
    /// The other methods that have the number, in the order they were named.
    pub others: Vec<Other>,
}

/// A method beside the best one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Other {
    /// The method.
    pub method: String,
    /// Its figure.
    pub mean: f64,
    /// The best one's number less this one's, on the cases that both have; nothing where they share none.
    pub difference: Option<Difference>,
    /// Its p-value, corrected (Holm) for all the others that are compared by this number; nothing where there is no difference.
    pub p: Option<f64>,
    /// Whether the best one is better beyond chance: the difference is in its favour and p below 0.05.
    pub proven: bool,
}

/// Whether a number was taken in each case. What a process held is one number, and so is the time of edits that were made together.
fn of_cases((protocol, name): (Protocol, &str), method: &Method) -> bool {
    protocol != Protocol::Efficiency || name != PEAK && method.cases.iter().all(|case| case.edits <= 1)
}

/// The best method by every number of which one way is better, in the order of tables.
///
/// The best is it by its figure, over the cases that it has; differences are over shared cases. Where methods failed on some cases the
/// two can disagree, and then nothing is proven.
pub fn best(methods: &[Method], seed: u64) -> Vec<Best> {
    let mut numbers: Vec<(Protocol, &str)> = vec![];
    let mut means: HashMap<(Protocol, &str), Vec<(usize, f64)>> = HashMap::new();
    for (method, figure) in methods.iter().enumerate().flat_map(|(index, m)| m.figures.iter().map(move |f| (index, f)))
    {
        let key = (figure.protocol, figure.name.as_str());
        if about(key.0, key.1).better == Better::Neither || figure.mean.is_nan() {
            continue;
        }
        means
            .entry(key)
            .or_insert_with(|| {
                numbers.push(key);
                vec![]
            })
            .push((method, figure.mean));
    }
    sort(&mut numbers, |key| *key);
    let mut known = HashMap::new();
    let of = |key: (Protocol, &str)| {
        let sign = if about(key.0, key.1).better == Better::Lower { -1.0 } else { 1.0 };
        let candidates = means.get(&key)?;
        let ahead = |best: (usize, f64), next: (usize, f64)| if sign * next.1 > sign * best.1 { next } else { best };
        let (best, mean) = candidates.iter().copied().reduce(ahead)?;
        let rest = candidates.iter().filter(|(method, _)| *method != best);
        let mut others: Vec<Other> = rest
            .map(|&(method, mean)| {
                let differences: &Vec<Difference> = known
                    .entry((best, method))
                    .or_insert_with(|| paired(methods[best].cases, methods[method].cases, seed));
                let difference = differences.iter().find(|found| (found.protocol, found.name.as_str()) == key);
                let difference =
                    difference.filter(|_| of_cases(key, &methods[best]) && of_cases(key, &methods[method])).cloned();
                Other { method: methods[method].name.to_owned(), mean, difference, p: None, proven: false }
            })
            .collect();
        let p: Vec<f64> = others.iter().filter_map(|other| Some(other.difference.as_ref()?.p)).collect();
        let mut corrected = holm(&p).into_iter();
        for other in &mut others {
            let Some(difference) = &other.difference else { continue };
            other.p = corrected.next();
            other.proven = sign * difference.mean > 0.0 && other.p.is_some_and(|p| p < LEVEL);
        }
        let method = methods[best].name.to_owned();
        Some(Best { protocol: key.0, name: key.1.to_owned(), method, mean, others })
    };
    numbers.into_iter().filter_map(of).collect()
}
