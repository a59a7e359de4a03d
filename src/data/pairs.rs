//! Pairs of texts that differ in one respect: what a model is to be steered towards, and what away from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::separator::joined;

/// Two texts, or two answers to one prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// What stands before both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The text, or the answer, that has what is wanted.
    pub positive: String,
    /// The one that has it not.
    pub negative: String,
}

/// The two forms in which files hold pairs: a list of them, or two lists.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Pairs(Vec<Pair>),
    Lists { positive: Vec<String>, negative: Vec<String> },
}

const FORMS: &str = "[{\"positive\": \"…\", \"negative\": \"…\"}, …] (with \"prompt\" where both answer one), a line of these each, or {\"positive\": […], \"negative\": […]}";

impl Pair {
    /// The text with what is wanted.
    pub fn positive(&self) -> String {
        self.behind_prompt(&self.positive)
    }

    /// The text without it.
    pub fn negative(&self) -> String {
        self.behind_prompt(&self.negative)
    }

    fn behind_prompt(&self, text: &str) -> String {
        self.prompt.as_ref().map_or_else(|| text.to_owned(), |prompt| joined(prompt, text, None))
    }

    /// Reads a file of pairs, JSON or JSONL.
    ///
    /// # Errors
    /// A file that is missing or holds something else; lists of unequal length; an empty text; no pair.
    pub fn load(path: &Path) -> Result<Vec<Pair>> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let wrong = |message: String| Error::file(path, message);
        let lines = || text.lines().filter(|line| !line.trim().is_empty());
        let by_line = lines().nth(1).is_some()
            && lines().all(|line| line.trim_start().starts_with('{') && line.trim_end().ends_with('}'));
        let pairs = match by_line {
            true => lines()
                .enumerate()
                .map(|(number, line)| {
                    serde_json::from_str(line)
                        .map_err(|error| wrong(format!("line {}: {error}; pairs are {FORMS}", number + 1)))
                })
                .collect::<Result<Vec<Pair>>>()?,
            false => match serde_json::from_str::<Pair>(&text) {
                Ok(pair) => vec![pair],
                Err(_) => match serde_json::from_str(&text)
                    .map_err(|_| wrong(format!("these are no pairs of texts; they are {FORMS}")))?
                {
                    Written::Pairs(pairs) => pairs,
                    Written::Lists { positive, negative } if positive.len() != negative.len() => {
                        return Err(wrong(format!(
                            "{} positive and {} negative texts do not make pairs; give as many of both",
                            positive.len(),
                            negative.len()
                        )));
                    }
                    Written::Lists { positive, negative } => {
                        let pair = |(positive, negative)| Pair { prompt: None, positive, negative };
                        positive.into_iter().zip(negative).map(pair).collect()
                    }
                },
            },
        };
        if pairs.is_empty() {
            return Err(wrong("there is no pair in it".into()));
        }
        let empty = |pair: &Pair| pair.positive.trim().is_empty() || pair.negative.trim().is_empty();
        if let Some(number) = pairs.iter().position(empty) {
            return Err(wrong(format!("pair {number} has an empty text")));
        }
        Ok(pairs)
    }
}
