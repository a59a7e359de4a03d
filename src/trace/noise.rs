//! The noise that hides a subject.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Int, Tensor};

use serde::{Deserialize, Serialize};

use super::Question;
use crate::data::objective::Hidden;
use crate::edit::{EditRequest, Edited, noise};
use crate::error::{Error, Result};
use crate::tensors;

/// Noise on the embeddings of a subject's tokens.
#[derive(Debug, Clone)]
pub struct Noise {
    /// `[draws, subject tokens, width]`
    pub values: Tensor<3>,
    /// σ; nothing where the noise was read from a file.
    pub level: Option<f64>,
}

/// How strong the noise is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Strength {
    /// So many times the standard deviation of the embeddings of subjects' tokens.
    Times(f64),
    /// σ itself.
    Sigma(f64),
}

/// As files have it: "3x", or a number.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

impl TryFrom<Written> for Strength {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written::Number(sigma) => sigma.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Strength> for Written {
    fn from(strength: Strength) -> Self {
        match strength {
            Strength::Times(times) => Written::Text(format!("{times}x")),
            Strength::Sigma(sigma) => Written::Number(sigma),
        }
    }
}

impl std::str::FromStr for Strength {
    type Err = String;

    /// "3x", or a number.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (number, times) = match text.strip_suffix('x') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let number = number.trim().parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= 1e6);
        let number = number.ok_or(
            "give a number above 0 and up to 1e6, or with an x how many times the embeddings' deviation, as 3x",
        )?;
        Ok(if times { Strength::Times(number) } else { Strength::Sigma(number) })
    }
}

impl Strength {
    /// σ for the subjects of these requests.
    ///
    /// # Errors
    /// A prompt that cannot be tokenised; no deviation.
    pub fn for_requests(self, model: &Edited, requests: &[EditRequest]) -> Result<f64> {
        let tokenizer = &model.base().tokenizer;
        let mut subjects = vec![];
        if let Strength::Times(_) = self {
            for request in requests {
                if let Ok((subject, end)) = request.subject() {
                    let ids = tokenizer.encode_prompt(&request.prompt)?;
                    let at = tokenizer.tokens_of(&request.prompt, end - subject.len()..end)?;
                    subjects.extend(ids.get(at).unwrap_or_default());
                }
            }
        }
        self.sigma(model, &subjects)
    }

    /// σ for subjects of which these are all tokens.
    ///
    /// # Errors
    /// No deviation: a single number is no sample.
    pub fn sigma(self, model: &Edited, subjects: &[u32]) -> Result<f64> {
        match self {
            Strength::Sigma(sigma) => Ok(sigma),
            Strength::Times(times) => Ok(times * deviation(model, subjects)?),
        }
    }
}

/// The standard deviation of all numbers in the token embeddings of these tokens, without what marks positions. A token counts as often as it is there.
fn deviation(model: &Edited, tokens: &[u32]) -> Result<f64> {
    let decoder = &model.base().decoder;
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    tokens.iter().for_each(|&id| *counts.entry(id).or_default() += 1.0);
    if let Some(id) = counts.keys().find(|id| **id as usize >= decoder.spec.vocabulary) {
        let vocabulary = decoder.spec.vocabulary;
        return Err(Error::Input(format!("token {id} of a subject is outside the model's vocabulary of {vocabulary}")));
    }
    let index: Vec<i64> = counts.keys().map(|&id| i64::from(id)).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &decoder.device());
    let embedded = decoder.embedding.rows(index).mul_scalar(decoder.spec.embedding_scale);
    let values: Vec<f64> = embedded.cast(DType::F32).into_data().iter::<f64>().collect();
    let width = decoder.spec.width;
    let each = || {
        values.chunks(width).zip(counts.values()).flat_map(|(row, count)| row.iter().map(move |value| (*value, *count)))
    };
    let all: f64 = counts.values().sum::<f64>() * width as f64;
    let mean = each().map(|(value, count)| value * count).sum::<f64>() / all.max(1.0);
    let squares: f64 = each().map(|(value, count)| (value - mean).powi(2) * count).sum();
    match squares > 0.0 {
        true => Ok((squares / (all - 1.0)).sqrt()),
        false => {
            Err(Error::Input("the embeddings of the subject's tokens are all one number: give --noise a number".into()))
        }
    }
}

impl Noise {
    /// Draws noise for a question. A draw depends on the seed, its number and the subject's length alone: a further one changes none before.
    pub fn draw(model: &Edited, question: &Question, hidden: Hidden) -> Self {
        Noise { values: noise::draw(model, question.at.len(), hidden, 0..hidden.draws), level: Some(hidden.sigma) }
    }

    /// Reads a tensor `noise [draws, subject tokens, width]` of a safetensors file.
    ///
    /// # Errors
    /// A file that is broken or holds another shape.
    pub fn read(path: &Path, model: &Edited, question: &Question) -> Result<Self> {
        let found = tensors::read(path)?.remove("noise");
        let found =
            found.ok_or_else(|| Error::file(path, "there is no tensor \"noise\" [draws, subject tokens, width]"))?;
        if found.iter::<f64>().any(|value| !value.is_finite()) {
            return Err(Error::file(path, "the tensor \"noise\" holds numbers that are not finite"));
        }
        let decoder = &model.base().decoder;
        let (tokens, width) = (question.at.len(), decoder.spec.width);
        match *found.shape().as_slice() {
            [draws, of_tokens, of_width] if draws > 0 && of_tokens == tokens && of_width == width => {
                let values = Tensor::from_data(found, (&decoder.device(), decoder.dtype()));
                Ok(Noise { values, level: None })
            }
            _ => {
                let message = format!(
                    "the tensor \"noise\" is {:?}; for the subject \"{}\" it must be [draws, {tokens}, {width}], with a draw at least",
                    found.shape().as_slice(),
                    question.subject
                );
                Err(Error::file(path, message))
            }
        }
    }

    /// How many draws there are.
    pub fn draws(&self) -> usize {
        self.values.dims()[0]
    }
}
