//! `emend train`: the whole of a training.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ModelSection, within};
use crate::archive::EditorSettings;
use crate::error::Result;
use crate::train::mend::LossSettings;
use crate::train::trainer::Settings;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The frozen base.
    pub model: ModelSection,
    /// The editor.
    pub editor: EditorSettings,
    /// Its loss.
    #[serde(default = "loss")]
    pub loss: LossSettings,
    /// What it learns from.
    pub data: Data,
    /// How it learns.
    pub train: Settings,
}

fn loss() -> LossSettings {
    toml::from_str("").unwrap_or_else(|_| unreachable!("every key of [loss] has a default"))
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

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let config: Config = super::read(path, sets)?;
        config.train.check()?;
        within("data.rephrases", config.data.rephrases as f64, 0.0, 1e6)?;
        within("data.per_class", config.data.per_class as f64, 0.0, 1e6)?;
        Ok(config)
    }
}
