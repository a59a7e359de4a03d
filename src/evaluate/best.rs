//! Which of several methods is best, and what of that is proven.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::aggregate::{Figure, sort};
use super::paired::{Difference, Tested, paired, tested};
use super::protocol::{Better, Measured, Protocol, Together, about, together};
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
    /// Its p-value, corrected (Holm) for all pairs of methods that are compared by this number; nothing where no test was made.
    pub p: Option<f64>,
    /// Whether the best one is better beyond chance: the difference is in its favour and p below 0.05.
    pub proven: bool,
}

/// Whether a number was taken in each case, and is their mean. What a process held is one number, and so is the time of edits that were made together.
fn of_cases((protocol, name): (Protocol, &str), method: &Method) -> bool {
    together(protocol, name) == Together::Mean
        && (protocol != Protocol::Efficiency || method.cases.iter().all(|case| case.edits <= 1))
}

/// The p-values of two methods by number.
struct Pair {
    methods: [usize; 2],
    tests: Vec<Tested>,
}

/// The best method by every number of which one way is better, in the order of tables, but for numbers that are not `alike`: what was
/// not asked alike is not put in an order.
///
/// The best is it by its figure, over the cases that it has; differences are over shared cases. Where methods failed on some cases the
/// two can disagree, and then nothing is proven.
///
/// Which one is best is chosen by the very cases that test it, and the best of many equal methods looks better than it is. So all pairs
/// of methods are tested and corrected together (Holm), not those with the best alone: whichever comes out best, its pairs are among them.
pub fn best(methods: &[Method], seed: u64, alike: &dyn Fn(Protocol, &str) -> bool) -> Vec<Best> {
    let mut numbers: Vec<(Protocol, &str)> = vec![];
    let mut means: HashMap<(Protocol, &str), Vec<(usize, f64)>> = HashMap::new();
    for (method, figure) in methods.iter().enumerate().flat_map(|(index, m)| m.figures.iter().map(move |f| (index, f)))
    {
        let key = (figure.protocol, figure.name.as_str());
        if about(key.0, key.1).better == Better::Neither || figure.mean.is_nan() || !alike(key.0, key.1) {
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
    let pairs = (0..methods.len()).flat_map(|first| (first + 1..methods.len()).map(move |second| [first, second]));
    let pairs = pairs.map(|pair| Pair { methods: pair, tests: tested(pair.map(|method| methods[method].cases), seed) });
    let pairs: Vec<Pair> = pairs.collect();
    let mut known = HashMap::new();
    let of = |key: (Protocol, &str)| {
        let sign = if about(key.0, key.1).better == Better::Lower { -1.0 } else { 1.0 };
        let candidates = means.get(&key)?;
        let ahead = |best: (usize, f64), next: (usize, f64)| if sign * next.1 > sign * best.1 { next } else { best };
        let (best, mean) = candidates.iter().copied().reduce(ahead)?;
        let corrected = corrected(key, methods, &pairs);
        let rest = candidates.iter().filter(|(method, _)| *method != best);
        let others = rest.map(|&(method, mean)| {
            let p = corrected.iter().find(|(pair, _)| pair.contains(&best) && pair.contains(&method)).map(|(_, p)| *p);
            let differences: &Vec<Difference> =
                known.entry((best, method)).or_insert_with(|| paired(methods[best].cases, methods[method].cases, seed));
            let difference = differences.iter().find(|found| (found.protocol, found.name.as_str()) == key);
            let difference = difference.filter(|_| p.is_some()).cloned();
            let ahead = difference.as_ref().is_some_and(|difference| sign * difference.mean > 0.0);
            let proven = ahead && p.is_some_and(|p| p < LEVEL);
            Other { method: methods[method].name.to_owned(), mean, difference, p, proven }
        });
        let others = others.collect();
        let method = methods[best].name.to_owned();
        Some(Best { protocol: key.0, name: key.1.to_owned(), method, mean, others })
    };
    numbers.into_iter().filter_map(of).collect()
}

/// The p-values of a number for all pairs of methods that have it case by case, corrected for how many these are.
fn corrected(key: (Protocol, &str), methods: &[Method], pairs: &[Pair]) -> Vec<([usize; 2], f64)> {
    let testable = pairs.iter().filter(|pair| pair.methods.iter().all(|&method| of_cases(key, &methods[method])));
    let found = testable.filter_map(|pair| {
        let test = pair.tests.iter().find(|test| (test.protocol, test.name.as_str()) == key)?;
        Some((pair.methods, test.p))
    });
    let (pairs, p): (Vec<[usize; 2]>, Vec<f64>) = found.unzip();
    pairs.into_iter().zip(holm(&p)).collect()
}
