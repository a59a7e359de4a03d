//! `emend compare`: several editors on the same cases.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ModelSection;
use crate::apply::Mode;
use crate::data::asking::Asking;
use crate::data::pocket;
use crate::error::{Error, Result};
use crate::evaluate::perplexity::WATCHED_TOKENS;
use crate::sections::within;

/// What tables call the model before any edit, beside the editors.
pub const UNEDITED: &str = "unedited";

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model that all edit.
    pub model: ModelSection,
    /// The cases.
    pub data: Data,
    /// What is looked at.
    #[serde(default)]
    pub compare: Compare,
    /// The editors, each with its name.
    pub editors: Vec<Competitor>,
}

/// `[data]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `pocket`, a named set that `fetch` brings, or a path beside the config.
    pub cases: String,
    /// Whether prompts are put through the model's chat template; targets are then the beginning of the reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
    /// What the system says first in a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What stands between prompts and answers, where a record does not say so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// At most so many of them; 0 for all.
    #[serde(default)]
    pub limit: usize,
    /// Rephrases a case is asked at most.
    #[serde(default = "many")]
    pub rephrases: usize,
    /// Probes of each class a case is asked at most.
    #[serde(default = "many")]
    pub per_class: usize,
    /// Whether zsRE's locality prompts are asked as plain questions, without the lead "nq question: " that published figures are of.
    #[serde(default)]
    pub plain_questions: bool,
    /// Said beside every figure: where a file differs from the published one, for example.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Data {
    /// How its records are put to the model.
    pub fn asking(&self) -> Asking {
        Asking { chat: self.chat, system: self.system.clone(), separator: self.separator.clone() }
    }
}

fn many() -> usize {
    1000
}

/// `[compare]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compare {
    /// How the edits are made.
    pub mode: Mode,
    /// The seed of bootstrap intervals, and of the texts that are drawn.
    pub seed: u64,
    /// Cases whose probes are also answered freely (protocol `generate`); 0 for none.
    pub generate: usize,
    /// Tokens of a free answer at most: those of the longest target and 12 more, at least 24, unless given; 64 in a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<usize>,
    /// Cases whose generation prompts are continued (fluency, reference score, essence); 0 for none.
    pub texts: usize,
    /// Cases after whose edit `text` is read (its perplexity after ÷ before); 20 where there is a text, unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<usize>,
    /// A text whose perplexity is watched along the curves, and after the edits of `perplexity` cases: `pocket`, `wikitext`, or a file; with
    /// the pocket model `pocket` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Tokens of it that are read.
    pub text_tokens: usize,
    /// Numbers of edits at which the curves are read, whatever `data.limit` is; empty for no curves.
    pub curve: Vec<usize>,
}

impl Default for Compare {
    fn default() -> Self {
        Compare {
            mode: Mode::Single,
            seed: 0,
            generate: 0,
            answer_tokens: None,
            texts: 0,
            perplexity: None,
            text: None,
            text_tokens: WATCHED_TOKENS,
            curve: vec![],
        }
    }
}

/// `[[editors]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Competitor {
    /// What it is called: a folder of the results, a row of the tables.
    pub name: String,
    /// A trained editor's archive, beside the config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// The configuration of an editor that needs no training, beside the config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Values laid over that configuration, as `--set` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// Whether it takes part in the curves.
    #[serde(default = "yes")]
    pub curve: bool,
}

fn yes() -> bool {
    true
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, names that no folder can have, an editor with neither archive nor configuration.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let config: Config = super::read(path, sets)?;
        let wrong = |message: String| Err(Error::Config(format!("{}: {message}", path.display())));
        if config.editors.is_empty() {
            return wrong("there is no [[editors]] to compare".into());
        }
        let mut names = BTreeSet::new();
        for (number, editor) in config.editors.iter().enumerate() {
            let key = format!("editors[{number}]");
            let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
            if editor.name.is_empty() || editor.name.starts_with('.') || !editor.name.chars().all(plain) {
                return wrong(format!("{key}.name = \"{}\": a name is made of letters, digits, - and _", editor.name));
            }
            if editor.name == UNEDITED {
                return wrong(format!(
                    "{key}.name = \"{UNEDITED}\" is the model's own row in the tables; name the editor"
                ));
            }
            if !names.insert(&editor.name) {
                return wrong(format!("{key}.name = \"{}\" is there twice", editor.name));
            }
            if editor.archive.is_some() == editor.config.is_some() {
                return wrong(format!("{key} ({}) must name either an archive or a config", editor.name));
            }
            if editor.archive.is_some() && !editor.set.is_empty() {
                return wrong(format!("{key} ({}): set lays values over a config, not over an archive", editor.name));
            }
        }
        if config.compare.curve.windows(2).any(|pair| pair[0] >= pair[1]) || config.compare.curve.contains(&0) {
            return wrong("compare.curve must rise, from 1 on".into());
        }
        if config.compare.perplexity.is_some_and(|cases| cases > 0) && config.text().is_none() {
            return wrong("compare.perplexity = N wants compare.text, a file whose perplexity is taken".into());
        }
        config.data.asking().check("data.")?;
        within("compare.text_tokens", config.compare.text_tokens as f64, 1.0, 1e9)?;
        within("data.rephrases", config.data.rephrases as f64, 0.0, 1e6)?;
        within("data.per_class", config.data.per_class as f64, 0.0, 1e6)?;
        Ok(config)
    }

    /// The name of the text that is watched; nothing where none is.
    pub fn text(&self) -> Option<&str> {
        let pocket = pocket::of_model(&self.model.path);
        self.compare.text.as_deref().or(pocket)
    }

    /// Cases after whose edit it is read.
    pub fn text_cases(&self) -> usize {
        if self.text().is_none() { 0 } else { self.compare.perplexity.unwrap_or(READ) }
    }
}

/// Cases after whose edit a text is read, unless told otherwise.
const READ: usize = 20;
