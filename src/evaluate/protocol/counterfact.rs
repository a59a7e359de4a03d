//! The protocol `counterfact` (Meng et al., 2022): which of two answers is likelier, and what the edited model writes.

use super::text::fluency;
use super::{Protocol, Value, Values};
use crate::evaluate::case::Case;
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::{Side, against, mean, rival, share};

/// Whether the right answer beats the wrong one, by mean negative log-likelihood a token. A tie is no success.
pub(in crate::evaluate) fn success(right: f64, wrong: f64) -> f64 {
    f64::from(u8::from(right < wrong))
}

/// By how much: `exp(−nll of the right) − exp(−nll of the wrong)`. A model that has no number to say gives no probability.
pub(in crate::evaluate) fn magnitude(right: f64, wrong: f64) -> f64 {
    let probability = |nll: f64| if nll.is_nan() { 0.0 } else { (-nll).exp() };
    probability(right) - probability(wrong)
}

/// The mean of `of(nll of the target, nll of its rival)` over the probes of a kind that have a rival other than the target, of one edit.
pub(in crate::evaluate) fn over_probes<'a>(
    rows: impl Iterator<Item = &'a ProbeRow>,
    kind: Kind,
    side: Side,
    of: fn(f64, f64) -> f64,
) -> Option<f64> {
    let pairs = rows.filter(|row| row.kind == kind).filter_map(|row| against(row, side));
    mean(pairs.map(|(right, wrong)| of(right, wrong)))
}

/// The values of a case. With nll the mean negative log-likelihood a token, y the new answer and o the old one,
///
/// ```text
/// efficacy               ES: mean over own prompts of [nll(y) < nll(o)]
/// efficacy_magnitude     EM: mean of e^(−nll(y)) − e^(−nll(o))
/// efficacy_exact         share of the same prompts on which every token of y is the likeliest
/// paraphrase, …          PS, PM and the exact share, on rephrases
/// neighborhood, …        NS, NM and the exact share on prompts about others, with o and y in each other's place
/// fluency                GE: entropy of what it writes, bits, every text to 100 tokens and past its end
/// essence, essence_rise  perplexity after the edit of what it writes of the subject, and how far that rose
/// ```
///
/// Essence is another quantity than ROME's `essence_score`, the edited model's perplexity of reference texts. Fluency is [`super::text::fluency`]. The exact twins are over the very probes of the successes: those that have a rival. A success at p = 1e-5 against 1e-6
/// is one of ES and none of its twin.
pub fn values(case: &Case) -> Vec<Value> {
    let mut values = Values::new(Protocol::Counterfact);
    let of = |kind, of| over_probes(case.rows.iter(), kind, Side::After, of);
    let exact = |kind| {
        let rows = case.rows.iter().filter(|row| row.kind == kind && rival(row).is_some());
        share(rows, |row| row.after.exact())
    };
    for (name, kind) in [("efficacy", Kind::Rewrite), ("paraphrase", Kind::Rephrase), ("neighborhood", Kind::Locality)]
    {
        values.push(name, of(kind, success));
        values.push(format!("{name}_magnitude"), of(kind, magnitude));
        values.push(format!("{name}_exact"), exact(kind));
    }
    values.push("fluency", fluency(case.whole_texts()));
    values.push("essence", case.essence.map(|[_, after]| after));
    values.push("essence_rise", case.essence.map(|[before, after]| after - before));
    values.all()
}
