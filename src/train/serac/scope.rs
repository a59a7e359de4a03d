//! The classifier's loss: balanced binary cross-entropy of s(e, q), the scope of an edit e at a question q.
//!
//! ```text
//! ½ mean₊ −ln s(e, q) + ½ mean₋ −ln(1 − s(e, q))
//! ```

use burn::tensor::{Tensor, TensorData, activation};

use super::RecordQuestions;
use crate::data::unicode;
use crate::error::Result;
use crate::network::serac::Serac;

/// Least distance of a negative: what lies nearer counts as this near, so that its loss is finite: −ln(1 − e^(−1e-4)) = 9.2.
const NEAREST: f64 = 1e-4;

/// What positives and negatives weigh together: each side one half, so that always saying the same costs as much either way.
const SIDE: f64 = 0.5;

/// What hard negatives and other records' questions weigh, where there are both: each half of their side. In a batch of n edits there
/// are about n² of the others and n of the hard ones: counted alike, a batch would teach nothing but the easy ones. Where there is but
/// one kind, the whole side is its.
const KIND: f64 = 0.5 * SIDE;

/// The classifier's loss on all pairs of the edits and the questions of a batch. Out of scope of an edit are its own near
/// questions and mined ones, which count for half of the negatives, and the questions of the others, where they do not name its subject.
pub(super) fn by_embedding(serac: &Serac, asked: &[RecordQuestions]) -> Result<Tensor<1>> {
    let mut questions: Vec<&str> = vec![];
    let mut owners: Vec<(usize, bool)> = vec![];
    for (owner, asked) in asked.iter().enumerate() {
        for (question, _) in &asked.in_scope {
            questions.push(question);
            owners.push((owner, true));
        }
        for probe in asked.out_of_scope.iter().chain(&asked.mined) {
            questions.push(&probe.prompt);
            owners.push((owner, false));
        }
    }
    let (count, edits) = (questions.len(), asked.len());
    // 1 in scope, 2 a hard negative, 3 another's question, 0 not to be judged.
    let kind = |edit: usize, question: usize| match owners[question] {
        (owner, true) if owner == edit => 1,
        (owner, false) if owner == edit => 2,
        _ => {
            let text = questions[question];
            let own = asked[edit].in_scope.iter().any(|(prompt, _)| prompt == text);
            let same = asked[edit].subject.as_ref().is_some_and(|subject| unicode::contains(text, subject));
            if own || same { 0 } else { 3 }
        }
    };
    let kinds: Vec<usize> =
        (0..edits).flat_map(|edit| (0..count).map(move |question| (edit, question))).map(|(e, q)| kind(e, q)).collect();
    let of_kind = |kind: usize| kinds.iter().filter(|&&known| known == kind).count() as f64;
    let (positives, hard, others) = (of_kind(1), of_kind(2), of_kind(3));
    let (hard_share, other_share) = match (hard > 0.0, others > 0.0) {
        (true, true) => (KIND, KIND),
        (true, false) => (SIDE, 0.0),
        _ => (0.0, SIDE),
    };
    let device = serac.network.classifier.head.weight.val().device().inner();
    let weights = |weight: [f64; 4]| {
        let values: Vec<f64> = kinds.iter().map(|&kind| weight[kind]).collect();
        TensorData::new(values, [edits, count])
    };
    let rows =
        |texts: Vec<&str>| texts.into_iter().map(|text| serac.reader.row(text, None)).collect::<Result<Vec<_>>>();
    let mut all = rows(asked.iter().map(|asked| asked.statement.as_str()).collect())?;
    all.extend(rows(questions.clone())?);
    let embedded = serac.embed(&all)?;
    let dimensions = embedded.dims()[1];
    let statements = embedded.clone().slice([0..edits, 0..dimensions]);
    let embedded = embedded.slice([edits..edits + count, 0..dimensions]);
    let distances = serac.distances(statements, embedded);
    let place = (&device, distances.dtype());
    let positive = Tensor::<2>::from_data(weights([0.0, SIDE / positives.max(1.0), 0.0, 0.0]), place);
    let negative =
        Tensor::<2>::from_data(weights([0.0, 0.0, hard_share / hard.max(1.0), other_share / others.max(1.0)]), place);
    // −ln s = x and −ln(1 − s) = −ln(1 − e^(−x)), for x = σ‖e − q‖².
    let out = distances.clone().clamp_min(NEAREST).neg().exp().neg().add_scalar(1.0).log().neg();
    Ok((distances * positive + out * negative).sum())
}

/// The classifier's loss on pairs: each edit with its own questions, and with one of another record.
pub(super) fn by_pairs(serac: &Serac, asked: &[RecordQuestions]) -> Result<Tensor<1>> {
    let (mut rows, mut labels) = (vec![], vec![]);
    for (number, edit) in asked.iter().enumerate() {
        let other = &asked[(number + 1) % asked.len()];
        let foreign = other.in_scope.iter().take(usize::from(asked.len() > 1)).map(|(question, _)| question);
        let foreign =
            foreign.filter(|text| edit.subject.as_ref().is_none_or(|subject| !unicode::contains(text, subject)));
        let negatives = edit.out_of_scope.iter().chain(&edit.mined).map(|probe| &probe.prompt).chain(foreign);
        for (question, label) in edit
            .in_scope
            .iter()
            .map(|(question, _)| (question, true))
            .chain(negatives.map(|question| (question, false)))
        {
            let row = serac.reader.row(&edit.statement, Some(question))?;
            // Another record's question may be too long beside this edit.
            if !label && serac.reader.context().is_some_and(|context| row.0.len() > context) {
                continue;
            }
            rows.push(row);
            labels.push(label);
        }
    }
    let logits = serac.pairs(&rows)?;
    let positives = labels.iter().filter(|label| **label).count().max(1) as f64;
    let negatives = labels.iter().filter(|label| !**label).count().max(1) as f64;
    let weights: Vec<f64> = labels.iter().map(|&label| SIDE / if label { positives } else { negatives }).collect();
    // −ln σ(z) = softplus(−z), −ln(1 − σ(z)) = softplus(z).
    let signs: Vec<f64> = labels.iter().map(|&label| if label { -1.0 } else { 1.0 }).collect();
    let place = (&logits.device().inner(), logits.dtype());
    let constant = |values: Vec<f64>| {
        let length = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [length]), place)
    };
    Ok((activation::softplus(logits * constant(signs), 1.0) * constant(weights)).sum())
}
