//! `emend train`: the whole of a training.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::choice::{self, Choice, fields};
use super::{ModelSection, within};
use crate::archive::EditorSettings;
use crate::error::{Error, Result};
use crate::network;
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
    pub train: Train,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Train {
    /// What every training has.
    #[serde(flatten)]
    pub every: Settings,
    /// What MEND's has.
    #[serde(flatten)]
    pub mend: Option<mend::TrainSettings>,
}

/// The trained editors.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    Mend,
    Serac,
}

impl Choice for Method {
    const KEY: &'static str = "editor.method";
    const VALUES: &'static [Self] = &[Method::Mend, Method::Serac];

    /// Its keys in `[train]`.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Method::Mend => fields::<mend::TrainSettings>(),
            Method::Serac => &[],
        }
    }
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

/// The file before its editor is known: which keys `[editor]`, `[loss]` and `[train]` have depends on its method.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: ModelSection,
    editor: toml::Table,
    #[serde(default)]
    loss: toml::Table,
    data: Data,
    train: toml::Table,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let file: File = super::read(path, sets)?;
        let origin = path.display().to_string();
        let (mut editor, mut train) = (file.editor, file.train);
        let method = method(&mut editor, &origin)?;
        choice::check("train", &train, method)?;
        // The editor's own keys stand among those that every training has.
        let own = method.keys().iter().filter_map(|key| Some(((*key).to_owned(), train.remove(*key)?)));
        let own: toml::Table = own.collect();
        let (editor, loss, mend) = match method {
            Method::Mend => {
                let settings = network::mend::Settings::read(&editor, &origin)?;
                let loss = mend::LossSettings::read(&file.loss, &origin)?;
                (EditorSettings::Mend(settings), Loss::Mend(loss), Some(mend::TrainSettings::read(&own, &origin)?))
            }
            Method::Serac => {
                let settings = network::serac::Settings::read(&editor, &origin)?;
                let loss = serac::LossSettings::read(&file.loss, &settings, &origin)?;
                (EditorSettings::Serac(settings), Loss::Serac(loss), None)
            }
        };
        let train = Train { every: Settings::read(&train, &origin)?, mend };
        let config = Config { model: file.model, editor, loss, data: file.data, train };
        within("data.rephrases", config.data.rephrases as f64, 0.0, 1e6)?;
        within("data.per_class", config.data.per_class as f64, 0.0, 1e6)?;
        Ok(config)
    }
}

/// The method of `[editor]`, taken out of it.
fn method(table: &mut toml::Table, origin: &str) -> Result<Method> {
    let known = Method::VALUES.iter().map(|method| serde_json::json!(method).to_string());
    let known = known.collect::<Vec<_>>().join(", ");
    let Some(method) = table.remove("method") else {
        let found: Vec<&str> = table.keys().map(String::as_str).collect();
        let found = found.join(", ");
        return Err(Error::Config(format!("{origin}: editor.method is missing (found: {found}); known: {known}")));
    };
    match method.as_str() {
        Some("mend") => Ok(Method::Mend),
        Some("serac") => Ok(Method::Serac),
        _ => Err(Error::Config(format!("{origin}: editor.method = {method} is not known; known: {known}"))),
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
            if name.starts_with("mend") || name.starts_with("serac") {
                Config::read(&path, &[]).unwrap();
                read += 1;
            }
        }
        assert!(read >= 12, "{read}");
    }
}
