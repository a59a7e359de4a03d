//! A trained editor on disk: a folder that `train` writes and `apply` reads, and all that passes between them.
//!
//! `archive.toml` says what it is, `network.safetensors` holds the network, `metrics.jsonl` what happened on the way, and
//! `training/` the state for going on (`snapshot`).

pub mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::data::asking::Asking;
use crate::edit::Editor;
use crate::error::{Error, Result};
use crate::evaluate::{PerplexityRatio, Summary};
use crate::model::Model;
pub use crate::network::learned::LearnedEditorSettings;
use crate::network::learned::Stored;
use crate::sections::choice::unread;

const FORMAT: &str = "archive/1";

/// archive.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// "archive/1".
    pub format: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// The model it was trained on.
    pub base: Base,
    /// The editor.
    pub editor: LearnedEditorSettings,
    /// How the best network did on validation records.
    #[serde(default)]
    pub best: Option<Best>,
}

/// The model an editor was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// The name it was loaded by.
    pub path: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// The element type it was computed in.
    #[serde(default)]
    pub dtype: crate::model::Precision,
    /// How records were put to it.
    #[serde(default, skip_serializing_if = "is_plain")]
    pub asking: Asking,
}

fn is_plain(asking: &Asking) -> bool {
    *asking == Asking::default()
}

/// The best network of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: usize,
    /// How many edits shared a model there; archives of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edits_together: Option<usize>,
    /// How many followed each other, where they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_a_row: Option<usize>,
    /// What its edits did to running text, where one was watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<PerplexityRatio>,
    /// Its figures on validation records.
    #[serde(flatten)]
    pub summary: Summary,
}

/// The element type of a network on a base: f32, or f64 on a base in f64.
pub fn network_type(base: DType) -> DType {
    if base == DType::F64 { DType::F64 } else { DType::F32 }
}

/// An archive folder.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The folder.
    pub folder: PathBuf,
    /// archive.toml.
    pub description: Description,
}

impl Archive {
    /// Opens a folder.
    ///
    /// # Errors
    /// A folder that is no archive, or one of another format.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("archive.toml");
        if !path.is_file() {
            return Err(Error::file(
                folder,
                "no archive here (no archive.toml); `emend train --config FILE --out DIR` writes one",
            ));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let description: Description =
            toml::from_str(&text).map_err(|error| Error::file(&path, error.message().replace('\n', " ")))?;
        if description.format != FORMAT {
            return Err(Error::file(&path, format!("format {}; this program reads {FORMAT}", description.format)));
        }
        let given: toml::Table = text.parse().map_err(|error: toml::de::Error| Error::file(&path, error.message()))?;
        let read = serde_json::to_value(&description.editor).unwrap_or_default();
        let editor = given.get("editor").and_then(toml::Value::as_table);
        if let Some(message) = editor.and_then(|editor| unread("editor", editor, &read)) {
            return Err(Error::file(&path, message));
        }
        Ok(Archive { folder: folder.to_owned(), description })
    }

    /// The description of a new archive.
    pub fn describe(base: Base, editor: LearnedEditorSettings, best: Option<Best>) -> Description {
        Description { format: FORMAT.into(), version: env!("CARGO_PKG_VERSION").into(), base, editor, best }
    }

    /// Where the network stands.
    pub fn network_path(folder: &Path) -> PathBuf {
        folder.join("network.safetensors")
    }

    /// Writes network and description; each file appears whole.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(folder: &Path, description: &Description, network: &[u8]) -> Result<()> {
        crate::files::write(&Archive::network_path(folder), network)?;
        let text = toml::to_string(description).map_err(|error| Error::file(folder.join("archive.toml"), error))?;
        crate::files::write(&folder.join("archive.toml"), text.as_bytes())
    }

    /// BLAKE3 of the network and of the editor's settings, in hexadecimal.
    ///
    /// # Errors
    /// A network that cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(serde_json::to_string(&self.description.editor).unwrap_or_default().as_bytes());
        hasher.update(&crate::files::map(&Archive::network_path(&self.folder))?);
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Whether the editor was trained on a model.
    ///
    /// # Errors
    /// It was trained on another one.
    pub fn check_base(&self, model: &Model) -> Result<()> {
        if self.description.base.fingerprint != model.fingerprint {
            return Err(Error::OtherBase {
                what: format!("archive {}", self.folder.display()),
                made_on: self.description.base.fingerprint.clone(),
                model: model.fingerprint.clone(),
            });
        }
        Ok(())
    }

    /// Loads the editor for a model.
    ///
    /// # Errors
    /// A model that is not the archive's base (unless `allow_other_base`), a network that does not fit.
    pub fn editor(&self, model: &Arc<Model>, allow_other_base: bool, device: &Device) -> Result<Box<dyn Editor>> {
        if !allow_other_base {
            self.check_base(model)?;
        }
        self.description.editor.editor(&Stored {
            model,
            place: (device, network_type(model.decoder.dtype())),
            folder: &self.folder,
            settings: &self.folder.join("archive.toml"),
            network: &Archive::network_path(&self.folder),
            fingerprint: self.fingerprint()?,
        })
    }
}
