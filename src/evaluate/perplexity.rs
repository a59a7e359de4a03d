//! How well a model predicts plain text: what an edit costs where nothing was asked of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::{DType, Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::data::text::{Document, Documents};
use crate::edit::Edited;
use crate::edit::likelihood::{CELLS, buckets, check_targets, target_log_probabilities};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::sizes::Pass;
use crate::model::tap::{NoTap, Text};
use crate::model::tokenizer::Tokenizer;
use crate::model::tokens::{BEGIN, Tokens, first_predicted};
use crate::parallel;
use crate::plan::Work;

/// Places whose logits are held at a time: a vocabulary is wide.
const READS: usize = 256;

/// A text as rows of at most `length` tokens. A row begins with the last token of the one before it, so that every token of a text
/// but its first is predicted once.
///
/// An encoder-decoder predicts the second half of each row from the first ([`Tokenizer::halved`]), and of a prompt with its answer the answer.
///
/// # Errors
/// A length below 2, a text that cannot be tokenised, and a classifier, which predicts no text.
pub fn windows(tokenizer: &Tokenizer, text: &Document, length: usize) -> Result<Vec<Vec<u32>>> {
    if length < 2 {
        return Err(Error::Input(format!("rows of {length} tokens leave none to predict; take 2 or more")));
    }
    if tokenizer.labels().is_some() {
        return Err(Error::Input("a classifier predicts no text; leave the running text out".into()));
    }
    let whole = text.trim();
    if !tokenizer.of_pairs() {
        let ids = tokenizer.encode(whole)?;
        let starts = (0..ids.len().saturating_sub(1)).step_by(length - 1);
        return Ok(starts.map(|start| ids[start..ids.len().min(start + length)].to_vec()).collect());
    }
    if let Some(answer) = text.answer {
        // The full stop is the sentence's.
        let target = text[answer..].trim().trim_end_matches('.');
        return Ok(vec![tokenizer.continuation(text[..answer].trim(), target, None)?.ids]);
    }
    let ids = tokenizer.encode_plain(whole)?;
    let rows = ids.chunks(length).filter(|ids| ids.len() > 1);
    Ok(rows.filter_map(|ids| tokenizer.halved(ids)).collect())
}

/// A running text on which models are read, and what stays the same of it from one model to the next: the perplexity of the unedited
/// model, and the hidden states below the lowest layer that an edit changes.
#[derive(Debug, Default)]
pub struct WatchedText {
    /// What it is called.
    pub name: String,
    /// The text, as rows of tokens; none where nothing is watched.
    pub rows: Vec<Vec<u32>>,
    unedited: OnceLock<f64>,
    /// The hidden states of each batch below a layer.
    lower: Mutex<BTreeMap<usize, Arc<Vec<Tensor<3>>>>>,
}

/// Tokens of a text that is watched, unless told otherwise: enough to see harm, and little enough to be read after every edit.
pub const WATCHED_TOKENS: usize = 2048;

/// Tokens of a row of it at most.
const ROW: usize = 256;

impl WatchedText {
    /// A text as rows of tokens.
    pub fn new(name: impl Into<String>, rows: Vec<Vec<u32>>) -> Self {
        WatchedText { name: name.into(), rows, ..WatchedText::default() }
    }

    /// About `tokens` tokens of `documents`, in an order that is always the same.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds fewer than two tokens.
    pub fn open(name: &str, documents: &Documents, tokens: usize, model: &Model) -> Result<Self> {
        let length = model.decoder.spec.context.min(ROW);
        let (mut rows, mut left) = (vec![], tokens);
        documents.shuffled(0, &mut |text| {
            for mut row in windows(&model.tokenizer, &text, length)? {
                let first = first_predicted(&row);
                row.truncate(first + left);
                if left > 0 && row.len() > first {
                    left -= row.len() - first;
                    rows.push(row);
                }
            }
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if rows.is_empty() {
            return Err(Error::Input(format!("{name}: there is no text of two tokens to read")));
        }
        Ok(WatchedText::new(name, rows))
    }

    /// How many tokens are predicted.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.len().saturating_sub(first_predicted(row))).sum()
    }

    /// The perplexity of the unedited model; nothing where there is no text.
    ///
    /// # Errors
    /// As [`perplexity`].
    pub fn unedited(&self, base: &Edited) -> Result<Option<f64>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        if self.unedited.get().is_none() {
            let _ = self.unedited.set(perplexity(base, &self.rows)?);
        }
        Ok(self.unedited.get().copied())
    }

    /// The perplexity of `base` with edits. The layers below these are run once for all models that are read.
    ///
    /// # Errors
    /// As [`perplexity`].
    pub fn edited(&self, base: &Edited, after: &Edited) -> Result<f64> {
        let layer = base.first_difference(after);
        let rows = Rows::new(&self.rows)?;
        let known = self.lower().get(&layer).cloned();
        let below = match known {
            Some(below) => below,
            None => {
                let below = Arc::new(rows.each(base, |batch| rows.below(base, batch, layer))?);
                self.lower().insert(layer, below.clone());
                below
            }
        };
        rows.perplexity(after, |batch| Ok((below[batch].clone(), layer)))
    }

    /// What a model says of the text: its perplexity, and the likeliest token in the place of each.
    ///
    /// # Errors
    /// As [`perplexity`].
    pub fn read(&self, model: &Edited) -> Result<(f64, Vec<i64>)> {
        let rows = Rows::new(&self.rows)?;
        let parts = rows.read(
            model,
            |batch| Ok((rows.below(model, batch, 0)?, 0)),
            |log, targets| {
                let likeliest: Vec<i64> = log.clone().argmax(1).into_data().iter::<i64>().collect();
                (summed(log, targets), likeliest)
            },
        )?;
        let likeliest = parts.iter().flat_map(|(_, likeliest)| likeliest.iter().copied()).collect();
        Ok((rows.of_sum(parts.iter().map(|(sum, _)| sum).sum()), likeliest))
    }

    fn lower(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<Vec<Tensor<3>>>>> {
        self.lower.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What reading a text of so many tokens on an edited model holds: the states below the edits, and the passes.
pub fn bytes_of_reading(work: &Work<'_>, tokens: usize) -> u64 {
    let (spec, row) = (work.spec, work.spec.context.min(ROW));
    let rows = tokens.div_ceil(row.max(1)).max(1);
    let parts = work.threads.min(rows) as u64;
    // Rows share passes as far as those of scoring do.
    let pass = Pass::new(rows.div_ceil(parts as usize).min((CELLS / row.max(1)).max(1)), row);
    spec.stream_bytes(Pass::new(rows, row))
        + parts * (spec.stream_bytes(pass) + spec.block_bytes(pass).max(3 * spec.logits_bytes(READS)))
}

/// By how much the perplexity of a text has risen over some edited models: that after ÷ that before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PerplexityRatio {
    /// The median over the models.
    pub median: f64,
    /// The largest.
    pub worst: f64,
    /// Models.
    pub cases: usize,
}

/// A perplexity, or a ratio of two, as files and figures have it: that of a ruined model is a large number and takes part in means, for JSON has
/// none for what is not finite.
pub fn at_most_ruin(perplexity: f64) -> f64 {
    if perplexity.is_nan() { RUIN } else { perplexity.min(RUIN) }
}

/// The perplexity of a ruined model.
pub const RUIN: f64 = 1e30;

impl PerplexityRatio {
    /// Of the ratios of some models; nothing where there are none.
    pub fn of(ratios: &[f64]) -> Option<Self> {
        let mut ratios: Vec<f64> = ratios.iter().copied().map(at_most_ruin).collect();
        ratios.sort_by(f64::total_cmp);
        let middle = ratios.len() / 2;
        let worst = *ratios.last()?;
        let median = if ratios.len() % 2 == 1 { ratios[middle] } else { (ratios[middle - 1] + ratios[middle]) / 2.0 };
        Some(PerplexityRatio { median, worst, cases: ratios.len() })
    }
}

/// The perplexity of rows of tokens. The first token of a row is read, never predicted; every other token counts alike:
///
/// ```text
/// exp( − (1/N) Σ over rows x, t ≥ 1 of ln p(x_t | x_<t) ),   N the number of summands
/// ```
///
/// Of a row that an encoder-decoder reads, t runs over the decoder's tokens. Interventions on activations, which act on prompts and on what is
/// written behind them, take the first half of each row for the prompt.
///
/// It is the weights' own word: memories answer prompts, and a running text is none.
///
/// # Errors
/// No row of two tokens, a row longer than the context, or a token outside the vocabulary.
pub fn perplexity(model: &Edited, rows: &[Vec<u32>]) -> Result<f64> {
    let rows = Rows::new(rows)?;
    rows.perplexity(model, |batch| Ok((rows.below(model, batch, 0)?, 0)))
}

/// Rows that predict something, in batches of like length.
struct Rows<'a> {
    rows: Vec<&'a Vec<u32>>,
    batches: Vec<Vec<usize>>,
}

impl<'a> Rows<'a> {
    fn new(rows: &'a [Vec<u32>]) -> Result<Self> {
        let rows: Vec<&Vec<u32>> = rows.iter().filter(|row| row.len() > first_predicted(row)).collect();
        if rows.is_empty() {
            return Err(Error::Input("there is no token to predict; give texts of two tokens or more".into()));
        }
        // The last token is predicted, never read.
        let batches = buckets(rows.iter().map(|row| row.len() - 1));
        Ok(Rows { rows, batches })
    }

    /// What a batch reads.
    fn tokens(&self, batch: usize) -> Tokens {
        let batch: Vec<&Vec<u32>> = self.batches[batch].iter().map(|&row| self.rows[row]).collect();
        // Interventions take the first half for a prompt.
        let prompt = |ids: &&Vec<u32>| if ids.contains(&BEGIN) { first_predicted(ids) } else { ids.len().div_ceil(2) };
        Tokens::new(batch.iter().map(|ids| ids[..ids.len() - 1].to_vec()).collect())
            .of(batch.iter().map(|ids| Text::new(&ids[..prompt(ids)])))
    }

    /// The hidden states of a batch below a layer.
    fn below(&self, model: &Edited, batch: usize, layer: usize) -> Result<Tensor<3>> {
        let tokens = self.tokens(batch);
        let hidden = model.embed(&tokens, &mut NoTap)?;
        model.blocks(hidden, 0..layer, tokens.span(), None, &mut NoTap)
    }

    /// Something of each batch, side by side.
    fn each<T: Send>(&self, model: &Edited, of: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        let batches: Vec<usize> = (0..self.batches.len()).collect();
        let part = batches.len().div_ceil(parallel::parts(&model.base().decoder.device()));
        let parts = parallel::run(batches.chunks(part).collect(), |batches: &[usize]| {
            batches.iter().map(|&batch| of(batch)).collect::<Result<Vec<T>>>()
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// The perplexity, from the hidden states of each batch below a layer.
    fn perplexity(&self, model: &Edited, below: impl Fn(usize) -> Result<(Tensor<3>, usize)> + Sync) -> Result<f64> {
        Ok(self.of_sum(self.read(model, below, summed)?.iter().sum()))
    }

    /// The perplexity for a sum of ln p over all that is predicted.
    fn of_sum(&self, sum: f64) -> f64 {
        let predicted: usize = self.rows.iter().map(|row| row.len() - first_predicted(row)).sum();
        (-sum / predicted as f64).exp()
    }

    /// What `of` makes of ln p `[tokens, vocabulary]` and the tokens that stand there, a few at a time, from the hidden states of each batch below a layer.
    fn read<T: Send>(
        &self,
        model: &Edited,
        below: impl Fn(usize) -> Result<(Tensor<3>, usize)> + Sync,
        of: impl Fn(Tensor<2>, &[u32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let parts = self.each(model, |number| {
            let (tokens, (hidden, layer)) = (self.tokens(number), below(number)?);
            let hidden = model.blocks(hidden, layer..model.layers(), tokens.span(), None, &mut NoTap)?;
            let rows: Vec<&Vec<u32>> = self.batches[number].iter().map(|&row| self.rows[row]).collect();
            let cells: Vec<(usize, usize)> = rows
                .iter()
                .enumerate()
                .flat_map(|(row, ids)| (first_predicted(ids) - 1..ids.len() - 1).map(move |cell| (row, cell)))
                .collect();
            let targets: Vec<u32> = rows.iter().flat_map(|ids| ids[first_predicted(ids)..].iter().copied()).collect();
            check_targets(model, &targets)?;
            let reads = cells.chunks(READS).zip(targets.chunks(READS)).map(|(cells, targets)| {
                let logits: Tensor<2> = model.head(hidden.clone(), cells).cast(DType::F32);
                of(activation::log_softmax(logits, 1), targets)
            });
            Ok(reads.collect::<Vec<T>>())
        })?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// The sum of ln p `[tokens, vocabulary]` over the tokens that stand there.
fn summed(log: Tensor<2>, targets: &[u32]) -> f64 {
    target_log_probabilities(log, targets).into_data().iter::<f32>().map(f64::from).sum()
}
