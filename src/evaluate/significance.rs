//! Tests of paired differences, and the price of many tests at once.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

/// Where a p-value comes from. All are two-sided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Student's t of the differences: t = d̄ √n / s with n − 1 degrees of freedom.
    T,
    /// The exact binomial test of the signs, ties left out: for yes-or-no values that is McNemar's exact test.
    Sign,
    /// The share of draws of the cases in which the difference has the other sign, or none; 1/1001 at the least on a side.
    Bootstrap,
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

/// The p-value of draws of a difference. A draw of exactly zero counts against either sign.
pub(super) fn bootstrap_test(draws: &[f64]) -> f64 {
    let known = draws.iter().filter(|draw| !draw.is_nan()).count();
    let (at_most, at_least) =
        (draws.iter().filter(|draw| **draw <= 0.0).count(), draws.iter().filter(|draw| **draw >= 0.0).count());
    (2.0 * (1 + at_most.min(at_least)) as f64 / (1 + known) as f64).min(1.0)
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
