//! What a model's weights say of given continuations.

use burn::tensor::{Int, Tensor, activation};

use serde::{Deserialize, Serialize};

use super::Edited;
use crate::error::{Error, Result};
use crate::model::stack::sizes::Pass;
use crate::model::tap::NoTap;
use crate::model::tokenizer::{Continuation, Tokenizer};
use crate::model::tokens::Tokens;
use crate::plan::{Lengths, Work};

/// Cells that one forward pass of scoring holds at most: enough to fill the products, little enough to stay in memory.
pub const CELLS: usize = 2048;

/// A model's word on one continuation, token by token of the target, under teacher forcing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    /// The target's tokens.
    pub target: Vec<u32>,
    /// ln p of each, given the prompt and the target's tokens before it. NaN, of a model that was ruined, is null in files.
    #[serde(with = "or_null")]
    pub log_probabilities: Vec<f32>,
    /// The likeliest token in the place of each.
    pub argmax: Vec<u32>,
    /// These as text, where one of the models that were asked has a vocabulary of its own: ids then say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Scored {
    /// Mean negative log-likelihood a token.
    pub fn nll(&self) -> f64 {
        -self.log_probabilities.iter().map(|&value| f64::from(value)).sum::<f64>() / self.log_probabilities.len() as f64
    }

    /// Probability of the whole target.
    pub fn probability(&self) -> f64 {
        self.log_probabilities.iter().map(|&value| f64::from(value)).sum::<f64>().exp()
    }

    /// Whether every token of the target is the likeliest.
    pub fn exact(&self) -> bool {
        self.argmax == self.target
    }

    /// Whether two models' likeliest tokens are the same, as text where their vocabularies differ.
    pub fn agrees(&self, other: &Scored) -> bool {
        match (&self.text, &other.text) {
            (Some(a), Some(b)) => a == b,
            _ => self.argmax == other.argmax,
        }
    }

    /// The share of places, of those of the longer row, at which two models' likeliest tokens are the same. Where vocabularies differ places do not match: all of them or none.
    pub fn agreement(&self, other: &Scored) -> f64 {
        match (&self.text, &other.text) {
            (Some(a), Some(b)) => f64::from(u8::from(a == b)),
            _ => {
                let same = self.argmax.iter().zip(&other.argmax).filter(|(a, b)| a == b).count();
                same as f64 / self.argmax.len().max(other.argmax.len()).max(1) as f64
            }
        }
    }

    /// The likeliest tokens as text; `tokenizer` is that of the model that was asked.
    ///
    /// # Errors
    /// A token that is not in its vocabulary.
    pub fn answer(&self, tokenizer: &Tokenizer) -> Result<String> {
        match &self.text {
            Some(text) => Ok(text.clone()),
            None => Ok(tokenizer.decode(&self.argmax)?.trim().to_owned()),
        }
    }
}

/// Numbers in a form that can be read again: JSON has none for NaN and infinities.
mod or_null {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        let finite = |value: &f32| Some(value.clamp(f32::MIN, f32::MAX)).filter(|value| !value.is_nan());
        serializer.collect_seq(values.iter().map(finite))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let values = Vec::<Option<f32>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect())
    }
}

/// As [`score`](super::score::score), on the weights alone.
pub(crate) fn score_weights(models: &[&Edited], continuations: &[Continuation]) -> Result<Vec<Vec<Scored>>> {
    let mut results = vec![vec![None; continuations.len()]; models.len()];
    let Some(first) = models.first() else { return Ok(vec![]) };
    let shared = models.iter().map(|model| first.first_difference(model)).min().unwrap_or(0);
    // The last token of a target is predicted, never read.
    let read = |index: usize| &continuations[index].ids[..continuations[index].ids.len() - 1];
    // What acts on a prompt must know where it ends; else a text may be read in another that goes on from it.
    let acts = models.iter().any(|model| model.acts_on_prompts());
    let rows = rows(continuations.len(), read, |a, b| !acts || continuations[a].prompt == continuations[b].prompt);
    for batch in buckets(rows.iter().map(|row| read(row[0]).len() + 1)) {
        let tokens = Tokens::new(batch.iter().map(|&row| read(rows[row][0]).to_vec()).collect())
            .of(batch.iter().map(|&row| continuations[rows[row][0]].text()));
        // What stands in the rows of this batch, and where.
        let batch: Vec<(usize, usize)> =
            batch.iter().enumerate().flat_map(|(row, &at)| rows[at].iter().map(move |&index| (row, index))).collect();
        let reads = batch.iter().flat_map(|&(row, index)| continuations[index].reads().map(move |cell| (row, cell)));
        let reads: Vec<_> = reads.collect();
        let targets = batch.iter().flat_map(|&(_, index)| continuations[index].target().iter().copied());
        let targets: Vec<u32> = targets.collect();
        check_targets(first, &targets)?;
        let hidden = first.embed(&tokens, &mut NoTap)?;
        let hidden = first.blocks(hidden, 0..shared, tokens.span(), None, &mut NoTap)?;
        for (model, results) in models.iter().zip(&mut results) {
            let hidden = model.blocks(hidden.clone(), shared..model.layers(), tokens.span(), None, &mut NoTap)?;
            let log = activation::log_softmax(model.head(hidden, &reads), 1);
            let (log_probabilities, argmax) = read_log(log, &targets);
            let mut from = 0;
            for &(_, index) in &batch {
                let target = continuations[index].target().to_vec();
                let here = from..from + target.len();
                from = here.end;
                results[index] = Some(Scored {
                    target,
                    log_probabilities: log_probabilities[here.clone()].to_vec(),
                    argmax: argmax[here].to_vec(),
                    text: None,
                });
            }
        }
    }
    Ok(results.into_iter().map(|list| list.into_iter().flatten().collect()).collect())
}

/// The rows of tokens that must be read, each with all continuations that are found in it: a causal stack reads the beginning of
/// a row as if nothing stood behind it, so that one row serves two targets of one prompt, and every text that goes on from
/// another, as far as they `agree`. The longest comes first.
fn rows<'a>(count: usize, read: impl Fn(usize) -> &'a [u32], agree: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    // In this order what goes on from a text stands right behind it.
    order.sort_by_key(|&index| read(index));
    let mut rows: Vec<Vec<usize>> = vec![];
    for index in order.into_iter().rev() {
        match rows.last_mut() {
            Some(row) if read(row[0]).starts_with(read(index)) && agree(row[0], index) => row.push(index),
            _ => rows.push(vec![index]),
        }
    }
    rows
}

/// What scoring a record's questions on two models holds.
pub fn bytes_of_scoring(work: &Work<'_>) -> u64 {
    let (spec, Lengths { row, target, probes, .. }) = (work.spec, work.texts);
    let rows = probes.min((CELLS / row.max(1)).max(1));
    let pass = Pass::new(rows, row);
    spec.stream_bytes(pass) + spec.block_bytes(pass).max(3 * spec.logits_bytes(rows * target))
}

/// Refuses targets that the model has no logit for.
///
/// # Errors
/// Names the token.
pub fn check_targets(model: &Edited, targets: &[u32]) -> Result<()> {
    let vocabulary = model.base().decoder.spec.outputs();
    match targets.iter().find(|&&id| id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => {
            Err(Error::Input(format!("a target's token {id} is outside the model's vocabulary of {vocabulary}")))
        }
    }
}

/// ln p of `targets` and the likeliest tokens, from `log [targets, vocabulary]`.
pub(crate) fn read_log(log: Tensor<2>, targets: &[u32]) -> (Vec<f32>, Vec<u32>) {
    let argmax = log.clone().argmax(1).into_data().iter::<i64>().map(|id| id as u32).collect();
    (target_log_probabilities(log, targets).into_data().iter::<f32>().collect(), argmax)
}

/// The entries of `log [targets, vocabulary]` at the targets, `[targets]`.
pub fn target_log_probabilities(log: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let index: Vec<i64> = targets.iter().map(|&id| id as i64).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &log.device().inner());
    log.gather(1, index.unsqueeze_dim(1)).squeeze_dim(1)
}

/// Indices in batches of like length, none of more than 2048 cells (a longer text stands alone).
pub fn buckets(lengths: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, usize)> = lengths.enumerate().map(|(index, length)| (length, index)).collect();
    order.sort();
    let mut batches: Vec<Vec<usize>> = vec![];
    for (length, index) in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * length <= CELLS => batch.push(index),
            _ => batches.push(vec![index]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_in_the_longest_that_goes_on_from_it() {
        let texts: [&[u32]; 7] = [&[1, 2], &[1, 2, 3], &[1, 2], &[1, 2, 4, 5], &[2], &[1, 2, 4], &[]];
        let mut rows = rows(texts.len(), |index| texts[index], |_, _| true);
        for row in &mut rows {
            let longest = texts[row[0]];
            assert!(row.iter().all(|&index| longest.starts_with(texts[index])));
            row.sort();
        }
        // Each once, and no more rows than have to be.
        assert_eq!(rows.len(), 3);
        let mut all = rows.concat();
        all.sort();
        assert_eq!(all, (0..texts.len()).collect::<Vec<_>>());
        assert!(super::rows(0, |_| &[], |_, _| true).is_empty());
    }
}
