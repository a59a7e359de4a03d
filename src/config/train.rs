//! `emend train`: the whole of a training.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ModelSection, within};
use crate::archive::EditorSettings;
use crate::error::{Error, Result};
use crate::train::settings::Settings;
use crate::train::{mend, serac};

/// The whole file.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// The frozen base.
    pub model: ModelSection,
    /// The editor.
    pub editor: EditorSettings,
    /// Its loss.
    pub loss: Loss,
    /// What it learns from.
    pub data: Data,
    /// How it learns.
    pub train: Settings,
}

/// `[loss]`, by the editor's method.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Loss {
    /// MEND's.
    Mend(mend::LossSettings),
    /// SERAC's.
    Serac(serac::LossSettings),
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
    /// The seed of the questions that are drawn from a world for validation and test: they belong to the data, so that trainings
    /// under several seeds are tested on the same ones.
    #[serde(default)]
    pub seed: u64,
    /// At most so many records are tested; 0 for all.
    #[serde(default)]
    pub test_records: usize,
    /// Rephrases a record is validated and tested on at most.
    #[serde(default = "few")]
    pub rephrases: usize,
    /// Prompts of each locality class a record is validated and tested on at most.
    #[serde(default = "few")]
    pub per_class: usize,
}

fn few() -> usize {
    2
}

/// The file before its editor is known: which keys `[editor]` has hangs on its method.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: ModelSection,
    editor: toml::Table,
    #[serde(default)]
    loss: toml::Table,
    data: Data,
    train: Settings,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let file: File = super::read(path, sets)?;
        let origin = path.display().to_string();
        let editor = editor(file.editor, &origin)?;
        let loss = match &editor {
            EditorSettings::Mend(_) => Loss::Mend(super::parse_under("loss", file.loss.into(), &origin)?),
            EditorSettings::Serac(_) => Loss::Serac(super::parse_under("loss", file.loss.into(), &origin)?),
        };
        let config = Config { model: file.model, editor, loss, data: file.data, train: file.train };
        config.train.check()?;
        within("data.rephrases", config.data.rephrases as f64, 0.0, 1e6)?;
        within("data.per_class", config.data.per_class as f64, 0.0, 1e6)?;
        Ok(config)
    }
}

/// `[editor]` by its method.
fn editor(mut table: toml::Table, origin: &str) -> Result<EditorSettings> {
    let Some(method) = table.remove("method") else {
        let found: Vec<&str> = table.keys().map(String::as_str).collect();
        let found = found.join(", ");
        return Err(Error::Config(format!(
            "{origin}: editor.method is missing (found: {found}); known: \"mend\", \"serac\""
        )));
    };
    match method.as_str() {
        Some("mend") => Ok(EditorSettings::Mend(super::parse_under("editor", table.into(), origin)?)),
        Some("serac") => Ok(EditorSettings::Serac(super::parse_under("editor", table.into(), origin)?)),
        _ => Err(Error::Config(format!("{origin}: editor.method = {method} is not known; known: \"mend\", \"serac\""))),
    }
}
