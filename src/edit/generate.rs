//! Next-token distributions and generation of an edited model.

use std::collections::BTreeSet;

use burn::tensor::{DType, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Edited;
use super::answers::AnswerGenerator;
use super::memory::Consulted;
use super::running::RunningRows;
use crate::error::{Error, Result};
use crate::model::tap::NoTap;
use crate::model::tokenizer::Tokenizer;
use crate::model::tokens::Tokens;

/// A likely next token.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its id, in the vocabulary of the model that answers.
    pub id: u32,
    /// Its text, the leading space included.
    pub token: String,
    /// Its logit.
    pub logit: f32,
    /// Its probability.
    pub probability: f32,
}

/// How to choose each next token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the k likeliest tokens are drawn; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability are drawn; 1 for all.
    pub top_p: f64,
    /// The seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// # Errors
    /// A temperature below 0, or a `top_p` outside (0, 1].
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Config(format!("a temperature of {} cannot be; it is 0 or more", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Config(format!(
                "a top_p of {} cannot be; it lies above 0 and at most at 1",
                self.top_p
            )));
        }
        Ok(())
    }

    /// A token for these logits.
    pub fn choose(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        if self.temperature == 0.0 {
            return highest(logits, 1).first().copied().unwrap_or(0);
        }
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let weight = |logit: f32| ((f64::from(logit) - largest) / self.temperature).exp();
        let sum = |ids: &[u32]| -> f64 { ids.iter().map(|&id| weight(logits[id as usize])).sum() };
        let all = if self.top_k == 0 { logits.len() } else { self.top_k.min(logits.len()) };
        let total = match all < logits.len() {
            true => sum(&highest(logits, all)),
            false => logits.iter().map(|&logit| weight(logit)).sum(),
        };
        // The likeliest tokens, as many as together reach a weight: a vocabulary is not sorted whole.
        let reaching = |wanted: f64| {
            let mut count = DRAWN.min(all);
            loop {
                let ids = highest(logits, count);
                if count == all || sum(&ids) >= wanted {
                    return ids;
                }
                count = (count * 8).min(all);
            }
        };
        let mut within = total;
        let nucleus = (self.top_p < 1.0).then(|| {
            let mut ids = reaching(self.top_p * total);
            let mut reached = 0.0;
            let kept = ids.iter().take_while(|&&id| {
                let wanted = reached < self.top_p * total;
                reached += weight(logits[id as usize]);
                wanted
            });
            let kept = kept.count();
            ids.truncate(kept);
            within = sum(&ids);
            ids
        });
        let mut draw = rng.random::<f64>() * within;
        let ids = nucleus.unwrap_or_else(|| reaching(draw));
        for &id in &ids {
            draw -= weight(logits[id as usize]);
            if draw <= 0.0 {
                return id;
            }
        }
        ids.last().copied().unwrap_or(0)
    }
}

/// Tokens that are sorted first for a draw.
const DRAWN: usize = 64;

/// The ids of the `count` highest logits, highest first; of equal ones the lower id.
pub fn highest(logits: &[f32], count: usize) -> Vec<u32> {
    let before = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count == 1 {
        let better = |best: Option<u32>, (id, logit): (usize, &f32)| match best {
            Some(known) if logits[known as usize].total_cmp(logit).is_ge() => Some(known),
            _ => Some(id as u32),
        };
        return logits.iter().enumerate().fold(None, better).into_iter().collect();
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if count < order.len() && count > 0 {
        order.select_nth_unstable_by(count, before);
    }
    order.truncate(count);
    order.sort_unstable_by(before);
    order
}

/// Logits as numbers, row after row.
pub fn numbers(logits: Tensor<2>) -> Vec<f32> {
    // A vocabulary is wide: what is f32 by now is not copied.
    let data = logits.into_data();
    let data = if data.dtype() == DType::F32 { data } else { data.convert::<f32>() };
    data.try_into_vec().unwrap_or_default()
}

/// Refuses logits that no model says.
///
/// # Errors
/// One that is not finite.
pub fn check_finite(logits: &[f32]) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    let message = "the model's logits are not finite: a weight or an edit holds values that no model can compute with";
    Err(Error::Input(message.into()))
}

/// The draws of a row: a stream of its own, so that what stands beside it changes nothing.
pub fn stream(sampling: &Sampling, row: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    rng.set_stream(row as u64);
    rng
}

/// The `k` likeliest tokens of logits over a vocabulary.
fn likeliest(tokenizer: &Tokenizer, logits: Vec<f32>, k: usize) -> Result<Vec<Candidate>> {
    check_finite(&logits)?;
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let candidate = |id: u32| {
        let logit = logits[id as usize];
        let probability = (f64::from(logit - largest).exp() / total) as f32;
        Candidate { id, token: tokenizer.token(id), logit, probability }
    };
    Ok(highest(&logits, k).into_iter().map(candidate).collect())
}

impl Edited {
    /// The `k` likeliest next tokens of a text, likeliest first. A text is a row of its own pass, so that what stands beside it
    /// changes nothing.
    ///
    /// # Errors
    /// A text longer than the context.
    pub fn next_tokens(&self, ids: &[u32], k: usize) -> Result<Vec<Candidate>> {
        if let Some((mut generator, _)) = self.generators(&[ids.to_vec()])?.remove(0) {
            let logits = generator.logits()?.unwrap_or_default();
            return likeliest(&generator.model().base().tokenizer, logits, k);
        }
        let tokens = Tokens::new(vec![ids.to_vec()]);
        let hidden = self.embed(&tokens, &mut NoTap)?;
        let hidden = self.blocks(hidden, 0..self.layers(), tokens.span(), None, &mut NoTap)?;
        let logits = self.head(hidden, &[(0, ids.len() - 1)]);
        likeliest(&self.base().tokenizer, numbers(logits), k)
    }

    /// For each row of tokens the generator of the answer that a memory names for it; nothing where the weights answer.
    ///
    /// # Errors
    /// A prompt that a memory's networks cannot take.
    pub fn generators(&self, rows: &[Vec<u32>]) -> Result<Vec<Option<(AnswerGenerator, Consulted)>>> {
        if !self.has_memory() {
            return Ok(rows.iter().map(|_| None).collect());
        }
        let prompts = rows.iter().map(|ids| self.base().tokenizer.prompt_text(ids));
        let prompts = prompts.collect::<Result<Vec<String>>>()?;
        let consulted = self.consult(&prompts)?.into_iter().zip(&prompts).map(|(consulted, prompt)| {
            consulted.map(|consulted| Ok((AnswerGenerator::new(self, prompt, &consulted)?, consulted))).transpose()
        });
        consulted.collect()
    }

    /// Continues each row of tokens by up to `count` tokens, with keys and values kept; a row ends at a token of `stop`,
    /// which is not part of the result.
    ///
    /// # Errors
    /// A row that would outgrow the context, or settings that cannot be.
    pub fn generate(
        &self,
        rows: &[Vec<u32>],
        count: usize,
        stop: &[u32],
        sampling: &Sampling,
    ) -> Result<Vec<Vec<u32>>> {
        sampling.check()?;
        // A classifier says one label.
        let count = if self.base().tokenizer.labels().is_some() { count.min(1) } else { count };
        let mut generators = self.generators(rows)?;
        let plain: Vec<usize> = (0..rows.len()).filter(|&row| generators[row].is_none()).collect();
        let mut made = vec![vec![]; rows.len()];
        for (row, generator) in generators.iter_mut().enumerate() {
            if let Some((generator, _)) = generator {
                made[row] = self.generate_answer(generator, count, stop, sampling, row)?;
            }
        }
        if !plain.is_empty() {
            self.continue_plain(rows, &plain, count, stop, sampling, &mut made)?;
        }
        Ok(made)
    }

    /// Continues each row by as many tokens as it has room for; rows with the same room are one batch.
    ///
    /// # Errors
    /// As [`Edited::generate`].
    pub fn go_on(
        &self,
        rows: &[Vec<u32>],
        room: impl Fn(&[u32]) -> usize,
        stop: &[u32],
        sampling: &Sampling,
    ) -> Result<Vec<Vec<u32>>> {
        let mut made = vec![vec![]; rows.len()];
        let rooms: BTreeSet<usize> = rows.iter().map(|row| room(row)).collect();
        for count in rooms {
            let alike: Vec<usize> = (0..rows.len()).filter(|&row| room(&rows[row]) == count).collect();
            let chosen: Vec<Vec<u32>> = alike.iter().map(|&row| rows[row].clone()).collect();
            for (row, ids) in alike.into_iter().zip(self.generate(&chosen, count, stop, sampling)?) {
                made[row] = ids;
            }
        }
        Ok(made)
    }

    /// An answer that a memory names, in this model's tokens.
    fn generate_answer(
        &self,
        generator: &mut AnswerGenerator,
        count: usize,
        stop: &[u32],
        sampling: &Sampling,
        row: usize,
    ) -> Result<Vec<u32>> {
        let other = generator.model().base().clone();
        let own = other.fingerprint == self.base().fingerprint;
        // Without tokens to stop at, the stop tokens of another vocabulary do not count either.
        let stop = if own || stop.is_empty() { stop.to_vec() } else { other.stop_tokens() };
        let mut rng = stream(sampling, row);
        let mut ids = vec![];
        // An answer ends where the context of the model that gives it ends.
        while ids.len() < count && (ids.is_empty() || generator.has_room()) {
            let Some(logits) = generator.logits()? else { break };
            check_finite(&logits)?;
            let id = sampling.choose(&logits, &mut rng);
            if stop.contains(&id) {
                break;
            }
            ids.push(id);
            generator.push(id);
        }
        if own || self.base().tokenizer.fingerprint()? == other.tokenizer.fingerprint()? {
            return Ok(ids);
        }
        self.base().tokenizer.encode_plain(&other.tokenizer.decode(&ids)?)
    }

    /// Rows that the weights answer, as one batch with keys and values kept.
    fn continue_plain(
        &self,
        rows: &[Vec<u32>],
        plain: &[usize],
        count: usize,
        stop: &[u32],
        sampling: &Sampling,
        made: &mut [Vec<u32>],
    ) -> Result<()> {
        // Each row draws from a stream of its own: what stands beside it changes nothing.
        let mut streams: Vec<_> = (0..rows.len()).map(|row| stream(sampling, row)).collect();
        let mut open = plain.to_vec();
        let prompts: Vec<Vec<u32>> = open.iter().map(|&row| rows[row].clone()).collect();
        let mut running = RunningRows::new(self, &prompts);
        for _ in 0..count {
            let logits = running.step()?;
            let width = logits.dims()[1];
            let logits = numbers(logits);
            check_finite(&logits)?;
            let mut kept = vec![];
            for (index, logits) in logits.chunks(width).enumerate() {
                let row = open[index];
                let id = sampling.choose(logits, &mut streams[row]);
                if !stop.contains(&id) {
                    running.push(index, id);
                    made[row].push(id);
                    kept.push(index);
                }
            }
            if kept.is_empty() {
                break;
            }
            running.keep(&kept);
            open = kept.into_iter().map(|index| open[index]).collect();
        }
        Ok(())
    }
}
