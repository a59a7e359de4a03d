//! The protocol `localize` (Hase et al., 2023): by how much of what was possible an edit moved a target's probability. Of cases that have an
//! objective.

use super::{Protocol, Value, Values};
use crate::data::objective::Objective;
use crate::evaluate::case::Case;
use crate::evaluate::probes::{Kind, ProbeRow};

/// The least share of probability that there is to gain or to lose: of less a share says nothing, in numbers of 32 bits.
const LEAST: f64 = 1e-6;

/// The values of a case. With p the probability of the whole target before the edit and p′ that after it,
///
/// ```text
/// rewrite          own prompts: 1 − (1 − p′)/(1 − p); where it is to fall max(0, (p − p′)/p)
/// paraphrase       the same on rephrases
/// neighborhood     prompts about others, of the same target: 1 − |p′ − p| / (|p − ½| + ½)
/// essence          1 − min(max(rise, 0), 5)/5, of the perplexity of what it writes of the subject
/// target           the harmonic mean of those that are there; 0 where one of them is not above 0
/// ```
///
/// A rewrite score below 0 says that the edit did the opposite; it is held above −1, for what can be lost of a sure answer is no measure of what could be gained.
/// Where nothing could be gained, or lost, a prompt has no score. Where the objective is to raise a target under noise, own prompts and rephrases are read
/// under noise too.
pub fn values(case: &Case) -> Vec<Value> {
    let mut values = Values::new(Protocol::Localize);
    let Some(objective) = case.request.objective else { return values.all() };
    let moved = |row: &ProbeRow| {
        let (before, after) = (row.before.probability(), row.after.probability());
        match objective {
            Objective::Lower => (before > LEAST).then(|| ((before - after) / before).max(0.0)),
            Objective::Raise | Objective::RaiseUnderNoise(_) => {
                (1.0 - before > LEAST).then(|| (1.0 - (1.0 - after) / (1.0 - before)).max(-1.0))
            }
        }
    };
    let stayed = |row: &ProbeRow| {
        let (before, after) = (row.before.probability(), row.after.probability());
        Some(1.0 - (after - before).abs() / ((before - 0.5).abs() + 0.5))
    };
    let mean = |kind: Kind, of: &dyn Fn(&ProbeRow) -> Option<f64>| {
        let each: Vec<f64> = case.rows.iter().filter(|row| row.kind == kind && row.given).filter_map(of).collect();
        (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
    };
    let essence = case.essence.map(|[before, after]| 1.0 - (after - before).clamp(0.0, 5.0) / 5.0);
    let scores = [
        ("rewrite", mean(Kind::Rewrite, &moved)),
        ("paraphrase", mean(Kind::Rephrase, &moved)),
        ("neighborhood", mean(Kind::Locality, &stayed)),
        ("essence", essence),
    ];
    let there: Vec<f64> = scores.iter().filter_map(|(_, score)| *score).collect();
    for (name, score) in scores {
        values.push(name, score);
    }
    let above = there.iter().all(|score| *score > 0.0);
    let harmonic = there.len() as f64 / there.iter().map(|score| 1.0 / score).sum::<f64>();
    values.push("target", (!there.is_empty()).then_some(if above { harmonic } else { 0.0 }));
    values.all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::record::EditRecord;
    use crate::edit::likelihood::Scored;

    fn case(objective: Objective, rows: &[(Kind, f64, f64)]) -> Case {
        let scored =
            |p: f64| Scored { target: vec![1], log_probabilities: vec![p.ln() as f32], argmax: vec![1], text: None };
        let row = |&(kind, before, after): &(Kind, f64, f64)| ProbeRow {
            record: 0,
            described: false,
            kind,
            class: None,
            prompt: String::new(),
            target: String::new(),
            given: true,
            apart: false,
            before: scored(before),
            after: scored(after),
            aliases: vec![],
            test: None,
            separator: None,
            lowered: false,
            rival: None,
        };
        let record = EditRecord { objective: Some(objective), ..EditRecord::default() };
        Case { rows: rows.iter().map(row).collect(), ..Case::new(&record, 1) }
    }

    fn value(case: &Case, name: &str) -> f64 {
        values(case).into_iter().find(|value| value.name == name).unwrap().value
    }

    #[test]
    fn scores_are_shares_of_what_could_be_moved() {
        let rows = [(Kind::Rewrite, 0.2, 0.6), (Kind::Rephrase, 0.2, 1.0), (Kind::Locality, 0.8, 0.4)];
        let raised = case(Objective::Raise, &rows);
        assert!((value(&raised, "rewrite") - 0.5).abs() < 1e-6);
        assert!((value(&raised, "paraphrase") - 1.0).abs() < 1e-6);
        assert!((value(&raised, "neighborhood") - 0.5).abs() < 1e-6);
        assert!((value(&raised, "target") - 3.0 / 5.0).abs() < 1e-6);
        // Erased: half of 0.8 is gone; what grew was not erased at all.
        let lowered = case(Objective::Lower, &[(Kind::Rewrite, 0.8, 0.4), (Kind::Rephrase, 0.2, 0.3)]);
        assert!((value(&lowered, "rewrite") - 0.5).abs() < 1e-6);
        assert_eq!((value(&lowered, "paraphrase"), value(&lowered, "target")), (0.0, 0.0));
        // Cases without an objective have none of these numbers.
        let mut plain = raised;
        plain.request.objective = None;
        assert!(values(&plain).is_empty());
    }
}
