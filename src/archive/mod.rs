//! A trained editor on disk: a folder that `train` writes and `apply` reads, and all that passes between them.
//!
//! `archive.toml` says what it is, `network.safetensors` holds the network, `metrics.jsonl` what happened on the way, and
//! `training/` the state for going on (`snapshot`).

pub mod snapshot;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::evaluate::Summary;
use crate::model::Model;
use crate::network::gradient_transform::Normalizer;
use crate::network::mend::{Mend, Settings};
use crate::network::parameters;
use crate::tensors;

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
    pub editor: EditorSettings,
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
    pub dtype: crate::config::Precision,
}

/// `[editor]`, by its method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum EditorSettings {
    /// MEND.
    Mend(Settings),
}

/// The best network of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: usize,
    /// Its figures on validation records.
    #[serde(flatten)]
    pub summary: Summary,
}

/// The tensors of an editor: its network, and the running figures beside it.
pub fn mend_tensors(mend: &Mend) -> BTreeMap<String, TensorData> {
    let mut tensors: BTreeMap<String, TensorData> =
        parameters::collect(&mend.network).into_iter().map(|(name, data)| (format!("network.{name}"), data)).collect();
    for (shape, normalizer) in mend.normalizers.iter().enumerate() {
        tensors.insert(format!("normalizer.{shape}.count"), TensorData::new(vec![normalizer.count], [1]));
        tensors.insert(format!("normalizer.{shape}.mean"), normalizer.mean.clone().into_data());
        tensors.insert(format!("normalizer.{shape}.squares"), normalizer.squares.clone().into_data());
    }
    tensors.insert("normalizer.records".into(), TensorData::new(vec![mend.observed as f64], [1]));
    tensors
}

/// Puts [`mend_tensors`] back.
///
/// # Errors
/// Tensors that are missing, too many, or of another shape.
pub fn restore_mend(mut mend: Mend, mut tensors: BTreeMap<String, TensorData>) -> Result<Mend> {
    let records = tensors
        .remove("normalizer.records")
        .ok_or_else(|| Error::Input("tensor \"normalizer.records\" is missing".into()))?;
    mend.observed = records.iter::<f64>().sum::<f64>() as usize;
    for (shape, normalizer) in mend.normalizers.iter_mut().enumerate() {
        let mut take = |part: &str, length: usize| {
            let name = format!("normalizer.{shape}.{part}");
            let found = tensors.remove(&name).filter(|data| data.shape().to_vec() == [length]);
            found.ok_or_else(|| Error::Input(format!("tensor \"{name}\" is missing or has another shape")))
        };
        let (device, dtype, length) = (normalizer.mean.device(), normalizer.mean.dtype(), normalizer.mean.dims()[0]);
        let count = take("count", 1)?.iter::<f64>().sum();
        let mean = Tensor::from_data(take("mean", length)?, (&device, dtype));
        *normalizer =
            Normalizer { count, mean, squares: Tensor::from_data(take("squares", length)?, (&device, dtype)) };
    }
    let named =
        tensors.into_iter().map(|(name, data)| (name.strip_prefix("network.").unwrap_or(&name).to_owned(), data));
    mend.network = parameters::restore(mend.network, named.collect())?;
    Ok(mend)
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
        Ok(Archive { folder: folder.to_owned(), description })
    }

    /// The description of a new archive.
    pub fn describe(base: Base, editor: EditorSettings, best: Option<Best>) -> Description {
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

    /// Loads the editor for a model.
    ///
    /// # Errors
    /// A model that is not the archive's base (unless `allow_other_base`), a network that does not fit.
    pub fn editor(&self, model: &Arc<Model>, allow_other_base: bool, device: &Device) -> Result<Mend> {
        if self.description.base.fingerprint != model.fingerprint && !allow_other_base {
            return Err(Error::OtherBase {
                what: format!("archive {}", self.folder.display()),
                made_on: self.description.base.fingerprint.clone(),
                model: model.fingerprint.clone(),
            });
        }
        let EditorSettings::Mend(settings) = self.description.editor.clone();
        let place = (device, network_type(model.decoder.dtype()));
        let mend = Mend::new(settings, &model.decoder.spec, place)
            .map_err(|error| Error::file(self.folder.join("archive.toml"), error))?;
        let path = Archive::network_path(&self.folder);
        restore_mend(mend, tensors::read(&path)?).map_err(|error| match error {
            Error::Input(message) => Error::file(&path, message),
            other => other,
        })
    }
}
