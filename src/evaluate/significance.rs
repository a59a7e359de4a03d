//! Tests of paired differences, and the price of many tests at once.

use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

use crate::random;

/// Up to so many cases that differ all exchanges are made: 2^12 of them.
const EXACT: usize = 12;

/// Exchanges that are drawn where there are more cases: enough for a p-value that Holm's correction of a few hundred still leaves small.
const DRAWN: u64 = 9_999;

/// Where a p-value comes from. All are two-sided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Student's t of the differences: t = d̄ √n / s with n − 1 degrees of freedom.
    T,
    /// The exact binomial test of the signs, ties left out: for yes-or-no values that is McNemar's exact test.
    Sign,
    /// Exchanges of the two methods within cases ([`super::significance`]): all of them where few cases differ, 9,999 drawn ones elsewhere.
    SignFlip,
}

/// The p-value of differences, a case each: the sign test where each is −1, 0 or 1 or where they do not vary, Student's t elsewhere.
pub fn test(differences: &[f64]) -> (f64, Test) {
    let signs_only = differences.iter().all(|&difference| [-1.0, 0.0, 1.0].contains(&difference));
    match t_test(differences).filter(|_| !signs_only) {
        Some(p) => (p, Test::T),
        None => (sign_test(differences), Test::Sign),
    }
}

/// The p-value of Student's t for paired differences; nothing where they are fewer than two, equal but for rounding, or not finite.
pub fn t_test(differences: &[f64]) -> Option<f64> {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let squares: f64 = differences.iter().map(|difference| (difference - mean).powi(2)).sum();
    let deviation = (squares / (n - 1.0)).sqrt();
    let varies = differences.len() > 1 && deviation.is_finite() && deviation > 1e-12 * mean.abs();
    let student = StudentsT::new(0.0, 1.0, n - 1.0).ok().filter(|_| varies)?;
    Some((2.0 * student.sf((mean / deviation).abs() * n.sqrt())).min(1.0))
}

/// The p-value of the signs of differences: with m that are not zero and k of the rarer sign, `min(1, 2 P(B ≤ k))`, B binomial of m
/// tosses. 1 where all are zero.
pub fn sign_test(differences: &[f64]) -> f64 {
    let above = differences.iter().filter(|difference| **difference > 0.0).count() as u64;
    let below = differences.iter().filter(|difference| **difference < 0.0).count() as u64;
    match Binomial::new(0.5, above + below) {
        Ok(tosses) if above + below > 0 => (2.0 * tosses.cdf(above.min(below))).min(1.0),
        _ => 1.0,
    }
}

/// The p-value of the difference of a number that no single case has, such as a harmonic mean of means: a permutation test of that very
/// difference. `ours` and `theirs` are what each case adds to the sums S that `of` makes the number of. If the two methods are alike,
/// either could have given either one's part of a case, so that with signs ε of +1 and −1 each drawn for a case
///
/// ```text
/// D(ε) = of(M + E(ε)) − of(M − E(ε)),   M = Σ ½ (ours + theirs),   E(ε) = Σ ε ½ (ours − theirs)
/// p    = share of all ε with |D(ε)| ≥ |D(1)|;   of m drawn ones (1 + how many) / (1 + m)
/// ```
///
/// Cases in which the methods do not differ change nothing by their sign and are left out. The test is wrong about equal methods in no more
/// than a share α of all comparisons, however few the cases: a single one never proves anything.
pub(super) fn sign_flip_test(
    ours: &[Vec<f64>],
    theirs: &[Vec<f64>],
    of: impl Fn(&[f64]) -> f64 + Sync,
    seed: u64,
) -> f64 {
    let exchange = Exchange::new(ours, theirs);
    if exchange.halves.is_empty() {
        return 1.0;
    }
    let found = exchange.gap(&of, std::iter::repeat(false));
    if found.is_nan() {
        return 1.0;
    }
    // Equal but for rounding counts as equal, and what gives no number counts against a difference.
    let reaches = |gap: f64| gap.is_nan() || gap >= found - 1e-12 * found.max(1.0);
    let differ = exchange.halves.len();
    if differ <= EXACT {
        // Exchanging all cases changes the sign alone: the first may stay as it is.
        let all = 1u64 << (differ - 1);
        let reached = (0..all).filter(|&number| {
            let signs = (0..u64::BITS).map(|bit| ((number << 1) >> bit) & 1 == 1);
            reaches(exchange.gap(&of, signs))
        });
        return reached.count() as f64 / all as f64;
    }
    let drawn = |&number: &u64| {
        let mut rng = random::stream(seed, "sign flips", number);
        let words = std::iter::repeat_with(|| rng.random::<u64>());
        let signs = words.flat_map(|word| (0..u64::BITS).map(move |bit| (word >> bit) & 1 == 1));
        reaches(exchange.gap(&of, signs))
    };
    let reached = (0..DRAWN).into_par_iter().filter(drawn).count();
    (1 + reached) as f64 / (1 + DRAWN) as f64
}

/// Two methods whose parts of cases may be exchanged.
struct Exchange {
    /// M: half of what both add, over all cases.
    middle: Vec<f64>,
    /// ½ (ours − theirs), of each case in which they differ.
    halves: Vec<Vec<f64>>,
}

impl Exchange {
    fn new(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> Self {
        let mut middle = vec![0.0; ours.first().map_or(0, Vec::len)];
        let mut halves = vec![];
        for (ours, theirs) in ours.iter().zip(theirs) {
            middle.iter_mut().zip(ours).zip(theirs).for_each(|((sum, a), b)| *sum += 0.5 * (a + b));
            if ours != theirs {
                halves.push(ours.iter().zip(theirs).map(|(a, b)| 0.5 * (a - b)).collect());
            }
        }
        Exchange { middle, halves }
    }

    /// |D(ε)|, where ε is −1 in the cases that are exchanged.
    fn gap(&self, of: impl Fn(&[f64]) -> f64, exchanged: impl Iterator<Item = bool>) -> f64 {
        let (mut ours, mut theirs) = (self.middle.clone(), self.middle.clone());
        for (half, exchanged) in self.halves.iter().zip(exchanged) {
            let sign = if exchanged { -1.0 } else { 1.0 };
            ours.iter_mut().zip(half).for_each(|(sum, half)| *sum += sign * half);
            theirs.iter_mut().zip(half).for_each(|(sum, half)| *sum -= sign * half);
        }
        (of(&ours) - of(&theirs)).abs()
    }
}

/// p-values corrected for being many (Holm, 1979): with p₍₁₎ ≤ … ≤ p₍ₘ₎,
///
/// ```text
/// p̃₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎)
/// ```
///
/// in the order they came in. Those below α are wrong about any true hypothesis with probability α at most, all together.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut corrected = vec![0.0; p.len()];
    let mut least: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        least = least.max((p[index] * (p.len() - rank) as f64).min(1.0));
        corrected[index] = least;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::metrics::harmonic;

    /// The harmonic mean of three means, of what cases add to three sums and to their number.
    fn score(sums: &[f64]) -> f64 {
        harmonic([sums[0], sums[1], sums[2]].map(|sum| sum / sums[3]))
    }

    /// An editor that writes the new answer on nine of ten own prompts, on seven of ten rephrases, and keeps half of the neighbors.
    fn editor(cases: usize, seed: u64, name: &str) -> Vec<Vec<f64>> {
        let mut rng = random::stream(seed, name, 0);
        let mut share =
            |of: usize, chance: f64| (0..of).filter(|_| rng.random::<f64>() < chance).count() as f64 / of as f64;
        (0..cases).map(|_| vec![share(1, 0.9), share(2, 0.7), share(10, 0.5), 1.0]).collect()
    }

    #[test]
    fn equal_editors_are_seldom_told_apart() {
        for (cases, draws) in [(1, 200), (2, 200), (3, 200), (5, 200), (10, 2000), (20, 600)] {
            let wrong = (0..draws).filter(|&draw| {
                sign_flip_test(&editor(cases, draw, "a"), &editor(cases, draw, "b"), score, draw) < 0.05
            });
            let size = wrong.count() as f64 / draws as f64;
            // Three standard deviations of so many draws above 5 %; of five cases and fewer no p-value is below it.
            let most = if cases <= 5 { 0.0 } else { 0.05 + 3.0 * (0.05 * 0.95 / draws as f64).sqrt() };
            assert!(size <= most, "{cases} cases: {size}");
        }
    }

    #[test]
    fn what_differs_in_every_case_is_told() {
        let all = |value: f64, cases: usize| vec![vec![value, value, value, 1.0]; cases];
        // 2 of the 2ⁿ exchanges reach the difference: none, and all.
        for cases in [1, 2, 6, 12] {
            let p = sign_flip_test(&all(1.0, cases), &all(0.25, cases), score, 0);
            assert!((p - 0.5f64.powi(cases as i32 - 1)).abs() < 1e-12, "{cases}: {p}");
        }
        assert_eq!(sign_flip_test(&all(1.0, 40), &all(0.25, 40), score, 0), 1e-4);
        assert_eq!(sign_flip_test(&all(0.5, 40), &all(0.5, 40), score, 0), 1.0);
        assert_eq!(sign_flip_test(&[], &[], score, 0), 1.0);
        // Cases that do not differ add nothing.
        let (mut ours, mut theirs) = (all(1.0, 6), all(0.25, 6));
        ours.extend(all(0.5, 50));
        theirs.extend(all(0.5, 50));
        assert_eq!(sign_flip_test(&ours, &theirs, score, 0), 0.03125);
    }
}
