//! `emend train`: the whole of a training.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Table;

use super::ModelSection;
use crate::apply::needs_no_training;
use crate::data::asking::Asking;
use crate::data::pocket;
use crate::error::{Error, Result};
use crate::evaluate::perplexity::WATCHED_TOKENS;
use crate::sections::choice::{self, Choice};
use crate::sections::{parse, within};
use crate::train::methods::{Method, Sections, Trained};
use crate::train::settings::TrainSettings;

/// The whole file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The frozen base.
    pub model: ModelSection,
    /// `[editor]`, `[loss]`, and the editor's own keys of `[train]`.
    pub editor: Trained,
    /// What it learns from.
    pub data: Data,
    /// What `[train]` says of every training.
    pub train: TrainSettings,
}

/// `[data]`: `pocket`, a named set that `fetch` brings, or a path beside the config.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Records to learn from.
    pub train: String,
    /// Records to choose by.
    pub validation: String,
    /// Records to report on.
    pub test: String,
    /// Whether prompts are put through the model's chat template; targets are then the beginning of the reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
    /// What the system says first in a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What stands between prompts and answers, where a record does not say so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// At most so many records are tested; 0 for all.
    #[serde(default)]
    pub test_records: usize,
    /// Rephrases a record is validated and tested on at most.
    #[serde(default = "few")]
    pub rephrases: usize,
    /// Prompts of each locality class a record is validated and tested on at most.
    #[serde(default = "few")]
    pub per_class: usize,
    /// A text whose perplexity is taken before and after edits: `pocket`, `wikitext`, or a file; that of `loss.text`, or `pocket` with
    /// the pocket model, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Tokens of it that are read.
    #[serde(default = "watched")]
    pub text_tokens: usize,
    /// Models of a validation, and of the test, on which it is read; each has taken in what is edited together.
    #[serde(default = "cases")]
    pub text_cases: usize,
}

impl Data {
    /// How its records are put to the model.
    pub fn asking(&self) -> Asking {
        Asking { chat: self.chat, system: self.system.clone(), separator: self.separator.clone() }
    }
}

fn few() -> usize {
    2
}

fn watched() -> usize {
    WATCHED_TOKENS
}

fn cases() -> usize {
    20
}

/// The file before its editor is known: which keys `[editor]`, `[loss]` and `[train]` have depends on its method.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: ModelSection,
    editor: Table,
    #[serde(default)]
    loss: Table,
    data: Data,
    train: Table,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        Config::of(super::read(path, sets)?, &path.display().to_string())
    }

    /// From a whole file's table; `origin` names the file in errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn of(table: Table, origin: &str) -> Result<Self> {
        // A config of `emend apply` lacks sections: what its method is comes first.
        let named = table.get("editor").and_then(|editor| editor.get("method")).and_then(toml::Value::as_str);
        if let Some(method) = named.filter(|method| needs_no_training(method)) {
            return Err(Error::Config(format!(
                "{origin}: editor.method = \"{method}\" needs no training; `emend apply --config` uses it as it is"
            )));
        }
        let file: File = parse(table.into(), origin)?;
        let (mut editor, mut train) = (file.editor, file.train);
        let method = Method::take(&mut editor, origin)?;
        choice::check("train", &train, method)?;
        // The editor's own keys stand among those that every training has.
        let own = method.keys().iter().filter_map(|key| Some(((*key).to_owned(), train.remove(*key)?)));
        let own: Table = own.collect();
        let sections = Sections { editor: &editor, loss: &file.loss, train: &own, origin };
        let editor = Trained::read(method, &sections)?;
        let train = TrainSettings::read(&train, origin)?;
        let config = Config { model: file.model, editor, data: file.data, train };
        config.data.asking().check("data.")?;
        within("data.rephrases", config.data.rephrases as f64, 0.0, 1e6)?;
        within("data.per_class", config.data.per_class as f64, 0.0, 1e6)?;
        within("data.text_tokens", config.data.text_tokens as f64, 1.0, 1e9)?;
        Ok(config)
    }

    /// The name of the text that is watched, and the key that holds its texts; nothing where none is.
    pub fn text(&self) -> Option<(&str, &str)> {
        // An editor that changes no weight does nothing to running text.
        if self.editor.remembers() {
            return None;
        }
        let learnt = self.editor.text().filter(|text| text.weight > 0.0 && text.share > 0.0);
        let field = learnt.map_or("text", |text| text.field.as_str());
        let pocket = pocket::of_model(&self.model.path);
        let name = self.data.text.as_deref().or(learnt.map(|text| text.from.as_str())).or(pocket)?;
        (self.data.text_cases > 0).then_some((name, field))
    }

    /// The file with every key that decides something and its value, section by section.
    pub fn written(&self) -> Value {
        let mut own = json!(self.editor);
        let mut editor = json!({ "method": own["method"].take() });
        let mut train = json!(self.train);
        // When a state is saved changes nothing of it.
        train.as_object_mut().and_then(|train| train.remove("save_minutes"));
        for (into, section) in [(&mut editor, own["editor"].take()), (&mut train, own["train"].take())] {
            if let (Value::Object(into), Value::Object(section)) = (into, section) {
                into.extend(section);
            }
        }
        json!({
            "model": self.model,
            "editor": editor,
            "loss": own["loss"].take(),
            "data": self.data,
            "train": train,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shipped config is read, so that none says what it does not use.
    #[test]
    fn shipped_configs_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let mut read = 0;
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if ["mend-", "malmen-", "rledit-", "serac-", "ke-", "enn-"].iter().any(|method| name.starts_with(method)) {
                Config::read(&path, &[]).unwrap();
                read += 1;
            }
        }
        assert!(read >= 60, "{read}");
    }
}
