//! What steering does: how far it moves answers, and what it leaves of everything else.

use serde::Serialize;

use super::perplexity::{WatchedText, at_most_ruin};
use crate::data::pairs::Pair;
use crate::edit::Edited;
use crate::edit::score::score;
use crate::error::{Error, Result};

/// A steered model beside the one without the edit.
#[derive(Debug, Clone, Serialize)]
pub struct Steered {
    /// How much of the vector was added.
    pub strength: f64,
    /// The mean over questions of `p(positive) / (p(positive) + p(negative))`, each the probability of the whole answer.
    pub effect: f64,
    /// The mean over questions of `p(positive) + p(negative)`: where it is next to nothing, an effect says nothing.
    pub said: f64,
    /// The share of a running text's tokens at which the likeliest one stays.
    pub locality: Option<f64>,
    /// The perplexity of that text after ÷ before.
    pub perplexity_ratio: Option<f64>,
}

/// Questions with two answers each, and a text: what models are read on.
pub struct Look<'a> {
    /// The questions; each has a prompt.
    pub questions: &'a [Pair],
    /// The text.
    pub text: Option<&'a WatchedText>,
    /// What the model without the edit says of the text.
    before: Option<(f64, Vec<i64>)>,
}

impl<'a> Look<'a> {
    /// Reads the text on the model without the edit.
    ///
    /// # Errors
    /// A pair without a prompt; a text that the model cannot take.
    pub fn new(base: &Edited, questions: &'a [Pair], text: Option<&'a WatchedText>) -> Result<Self> {
        if let Some(number) = questions.iter().position(|pair| pair.prompt.is_none()) {
            let message = format!(
                "pair {number} has no \"prompt\" to which its texts are answers; what is steered is tested on such pairs"
            );
            return Err(Error::Input(message));
        }
        Ok(Look { questions, text, before: text.map(|text| text.read(base)).transpose()? })
    }

    /// How a steered model does.
    ///
    /// # Errors
    /// A question that the model cannot take.
    pub fn at(&self, model: &Edited, strength: f64) -> Result<Steered> {
        let tokenizer = &model.base().tokenizer;
        let row = |pair: &Pair, answer: &str| {
            tokenizer.continuation(pair.prompt.as_deref().unwrap_or_default(), answer, None)
        };
        let rows = self.questions.iter().map(|pair| Ok([row(pair, &pair.positive)?, row(pair, &pair.negative)?]));
        let rows = rows.collect::<Result<Vec<_>>>()?.concat();
        let said = score(&[model], &rows)?.remove(0);
        let of = |sum: &[f32]| sum.iter().map(|&value| f64::from(value)).sum::<f64>();
        let logs: Vec<[f64; 2]> =
            said.chunks(2).map(|pair| [0, 1].map(|side| of(&pair[side].log_probabilities))).collect();
        let mean = |of: &dyn Fn(f64, f64) -> f64| {
            logs.iter().map(|&[positive, negative]| of(positive, negative)).sum::<f64>() / logs.len() as f64
        };
        let effect = mean(&|positive, negative| 1.0 / (1.0 + (negative - positive).exp()));
        let said = mean(&|positive, negative| positive.exp() + negative.exp());
        let read = match (self.text, &self.before) {
            (Some(text), Some((before, likeliest))) => {
                let (after, now) = text.read(model)?;
                let same = likeliest.iter().zip(&now).filter(|(a, b)| a == b).count();
                Some((same as f64 / likeliest.len() as f64, at_most_ruin(after / before)))
            }
            _ => None,
        };
        let (locality, perplexity_ratio) = read.unzip();
        Ok(Steered { strength, effect, said, locality, perplexity_ratio })
    }
}
