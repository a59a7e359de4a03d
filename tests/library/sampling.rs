//! Tokens are drawn with the probabilities that temperature, top-k and top-p give them.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::DType;
use emend::edit::Edited;
use emend::edit::generate::Sampling;

use crate::common::{Golden, fixture, model};

/// Draws of each case.
const DRAWS: usize = 8000;

/// The logits of a next token, largest first, as probabilities by the definition: softmax of `logits / temperature` over the k
/// likeliest, then over the fewest of these that together reach `top_p`.
fn probabilities(logits: &[(u32, f64)], sampling: &Sampling) -> BTreeMap<u32, f64> {
    let softmax = |among: &[(u32, f64)]| -> Vec<f64> {
        let weights: Vec<f64> = among.iter().map(|(_, logit)| (logit / sampling.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    };
    let k = if sampling.top_k == 0 { logits.len() } else { sampling.top_k };
    let among = softmax(&logits[..k]);
    let reaches = |count: &usize| among[..*count].iter().sum::<f64>() >= sampling.top_p;
    let kept = &logits[..(1..=k).find(reaches).unwrap_or(k)];
    kept.iter().map(|(id, _)| *id).zip(softmax(kept)).collect()
}

/// Whether as many draws as these can come of these probabilities. By Bernstein's inequality a share of n draws is off by t with a
/// probability below `2 exp(−n t² / (2 p (1 − p) + 2 t / 3))`; t is such that one of `looks` shares fails once in a million.
fn fit(seen: &BTreeMap<u32, usize>, wanted: &BTreeMap<u32, f64>, looks: usize) -> bool {
    let (n, log) = (DRAWS as f64, (2.0 * looks as f64 / 1e-6).ln());
    let near = |(id, p): (&u32, &f64)| {
        let share = seen.get(id).copied().unwrap_or(0) as f64 / n;
        let most = (log / 3.0 + (log * log / 9.0 + 2.0 * log * n * p * (1.0 - p)).sqrt()) / n;
        (share - p).abs() <= most
    };
    seen.keys().all(|id| wanted.contains_key(id)) && wanted.iter().all(near)
}

#[test]
fn draws_are_distributed_as_asked_for() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let prompt = Golden::open(fixture("gpt2-tiny").join("golden.safetensors")).ids()[0][..5].to_vec();
    let logits = base.next_tokens(&prompt, usize::MAX).unwrap();
    let logits: Vec<(u32, f64)> = logits.iter().map(|token| (token.id, f64::from(token.logit))).collect();
    let sampling = |temperature, top_k, top_p| Sampling { temperature, top_k, top_p, seed: 11 };
    let cases = [
        sampling(1.0, 0, 1.0),
        sampling(0.5, 0, 1.0),
        sampling(1.0, 5, 1.0),
        sampling(1.0, 0, 0.5),
        sampling(2.0, 20, 0.6),
    ];
    let wanted = cases.each_ref().map(|case| probabilities(&logits, case));
    assert_eq!([&wanted[2], &wanted[3], &wanted[4]].map(BTreeMap::len), [5, 38, 11]);
    let looks = cases.len() * logits.len();
    for (number, case) in cases.iter().enumerate() {
        // Each row draws from a stream of its own.
        let made = base.generate(&vec![prompt.clone(); DRAWS], 1, &[], case).unwrap();
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        for row in &made {
            assert_eq!(row.len(), 1);
            *seen.entry(row[0]).or_default() += 1;
        }
        // They fit what was asked for, and nothing else that was.
        for (other, wanted) in wanted.iter().enumerate() {
            assert_eq!(fit(&seen, wanted, looks), other == number, "draws of {case:?}, wanted {:?}", cases[other]);
        }
    }
}
