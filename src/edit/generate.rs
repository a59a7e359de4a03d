//! What an edited model says next, and how it goes on.

use burn::tensor::{Tensor, activation};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Edited;
use crate::error::{Error, Result};
use crate::model::tap::NoTap;
use crate::model::tokens::Tokens;

/// A likely next token.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
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

    fn choose(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.temperature == 0.0 {
            return order.into_iter().min_by(by_logit).unwrap_or(0);
        }
        order.sort_by(by_logit);
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let largest = f64::from(logits[order[0] as usize]);
        let weight = |id: &u32| ((f64::from(logits[*id as usize]) - largest) / self.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let kept = weights.iter().take_while(|weight| {
            let wanted = reached < self.top_p * total;
            reached += **weight;
            wanted
        });
        let kept = kept.count();
        weights.truncate(kept);
        let mut draw = rng.random::<f64>() * weights.iter().sum::<f64>();
        for (id, weight) in order.iter().zip(&weights) {
            draw -= weight;
            if draw <= 0.0 {
                return *id;
            }
        }
        order[kept - 1]
    }
}

fn check_finite(logits: &[f32]) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    let message = "the model's logits are not finite: a weight or an edit holds values that no model can compute with";
    Err(Error::Input(message.into()))
}

impl Edited {
    /// The `k` likeliest next tokens of each text, likeliest first. Each text is a row of its own pass, so that what stands
    /// beside it changes nothing.
    ///
    /// # Errors
    /// A text longer than the context.
    pub fn next_tokens(&self, ids: &[u32], k: usize) -> Result<Vec<Candidate>> {
        let tokens = Tokens::new(vec![ids.to_vec()]);
        let hidden = self.embed(&tokens, &mut NoTap)?;
        let hidden = self.blocks(hidden, 0..self.layers(), tokens.span(), None, &mut NoTap)?;
        let logits = self.head(hidden, &[(0, ids.len() - 1)]);
        let probabilities: Vec<f32> = activation::softmax(logits.clone(), 1).into_data().iter::<f32>().collect();
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        check_finite(&logits)?;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        order.truncate(k);
        let candidate = |id: u32| Candidate { id, logit: logits[id as usize], probability: probabilities[id as usize] };
        Ok(order.into_iter().map(candidate).collect())
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
        // Each row draws from a stream of its own: what stands beside it changes nothing.
        let mut streams: Vec<_> = (0..rows.len())
            .map(|row| {
                let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
                rng.set_stream(row as u64);
                rng
            })
            .collect();
        let mut made = vec![vec![]; rows.len()];
        let mut open: Vec<usize> = (0..rows.len()).collect();
        let mut past = self.past();
        let mut next = rows.to_vec();
        let mut seen = vec![0; rows.len()];
        for _ in 0..count {
            let places = open.iter().map(|&row| (row, seen[row])).collect();
            let tokens = Tokens::placed(open.iter().map(|&row| next[row].clone()).collect(), places);
            let hidden = self.embed(&tokens, &mut NoTap)?;
            let hidden = self.blocks(hidden, 0..self.layers(), tokens.span(), Some(&mut past), &mut NoTap)?;
            let reads: Vec<_> = tokens.ids().iter().enumerate().map(|(row, ids)| (row, ids.len() - 1)).collect();
            let logits: Tensor<2> = self.head(hidden, &reads);
            let width = logits.dims()[1];
            let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
            check_finite(&logits)?;
            let mut kept = vec![];
            for (index, logits) in logits.chunks(width).enumerate() {
                let row = open[index];
                let id = sampling.choose(logits, &mut streams[row]);
                if !stop.contains(&id) {
                    seen[row] += next[row].len();
                    next[row] = vec![id];
                    made[row].push(id);
                    kept.push(index);
                }
            }
            if kept.is_empty() {
                break;
            }
            if kept.len() < open.len() {
                past = past.select(&kept);
                open = kept.into_iter().map(|index| open[index]).collect();
            }
        }
        Ok(made)
    }
}
