//! The editors that learn, as archives name them. Another one is a variant here, and the compiler names its arms.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, TensorData};
use serde::{Deserialize, Serialize};

use super::{enn, ke, malmen, mend, serac};
use crate::edit::Editor;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::network::matrices::{EditTokens, Matrices};
use crate::plan::{OfEditor, Work};
use crate::tensors;

/// `[editor]` of an archive, by its method.
// There is one of them at a time: a box would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum LearnedEditorSettings {
    /// MEND.
    Mend(mend::MendSettings),
    /// MALMEN.
    Malmen(malmen::MalmenSettings),
    /// RLEdit.
    RlEdit(malmen::MalmenSettings),
    /// SERAC.
    Serac(serac::SeracSettings),
    /// KE.
    Ke(ke::KeSettings),
    /// ENN.
    Enn(enn::EnnSettings),
}

/// Their names.
pub(crate) const METHODS: &[&str] = &[mend::NAME, malmen::NAME, malmen::RLEDIT, serac::NAME, ke::NAME, enn::NAME];

impl LearnedEditorSettings {
    /// The editor of these settings, with the network of its archive.
    ///
    /// # Errors
    /// Settings that do not fit the model, a network that does not fit them.
    pub fn editor(&self, stored: &Stored<'_>) -> Result<Box<dyn Editor>> {
        match self {
            LearnedEditorSettings::Mend(settings) => settings.editor((mend::NAME, settings.written()), stored),
            LearnedEditorSettings::Malmen(settings) => {
                settings.as_mend().editor((malmen::NAME, settings.written()), stored)
            }
            LearnedEditorSettings::RlEdit(settings) => {
                settings.as_mend().editor((malmen::RLEDIT, settings.written()), stored)
            }
            LearnedEditorSettings::Serac(settings) => settings.editor(stored),
            LearnedEditorSettings::Ke(settings) => settings.editor(stored),
            LearnedEditorSettings::Enn(settings) => settings.editor(stored),
        }
    }
}

impl LearnedEditorSettings {
    /// What an editor holds whose network takes so many bytes, in an edit of so many requests.
    ///
    /// # Errors
    /// Weights that the model does not have.
    pub fn held(&self, work: &Work<'_>, requests: usize, network: u64) -> Result<OfEditor> {
        let of_mend = |settings: &mend::MendSettings| -> Result<u64> {
            let matrices = Matrices::new(&settings.layers, &settings.weights, work.spec)?;
            Ok(match settings.aggregation {
                mend::Aggregation::Sum => {
                    matrices.bytes_of_capture(work, requests)
                        + settings.graph_bytes(&matrices, requests * work.texts.row) / 4
                }
                mend::Aggregation::NormalEquations => {
                    let tokens =
                        if settings.edit_tokens == EditTokens::Answer { work.texts.target } else { work.texts.row };
                    matrices.bytes_of_edit(work, requests, tokens)
                }
            })
        };
        let edit = match self {
            LearnedEditorSettings::Mend(settings) => of_mend(settings)?,
            LearnedEditorSettings::Malmen(settings) | LearnedEditorSettings::RlEdit(settings) => {
                of_mend(&settings.as_mend())?
            }
            LearnedEditorSettings::Serac(_) => 0,
            LearnedEditorSettings::Ke(ke::KeSettings { layers, weights, .. })
            | LearnedEditorSettings::Enn(enn::EnnSettings { layers, weights, .. }) => {
                Matrices::new(layers, weights, work.spec)?.bytes_of_capture(work, requests)
            }
        };
        Ok(match self {
            // The matrices stand adapted beside the base's, and once more with an edit in them.
            LearnedEditorSettings::Enn(_) => OfEditor { kept: 2 * network, edit: edit + network },
            _ => OfEditor { kept: network, edit },
        })
    }
}

/// Where an editor's network is stored, and what it is for.
pub struct Stored<'a> {
    /// The model to edit.
    pub model: &'a Arc<Model>,
    /// The network's device and element type.
    pub place: (&'a Device, DType),
    /// The archive's folder.
    pub folder: &'a Path,
    /// The file with its settings.
    pub settings: &'a Path,
    /// The file with its network.
    pub network: &'a Path,
    /// BLAKE3 of both.
    pub fingerprint: String,
}

impl Stored<'_> {
    /// The network's tensors.
    ///
    /// # Errors
    /// A file that is missing or broken.
    pub fn tensors(&self) -> Result<BTreeMap<String, TensorData>> {
        tensors::read(self.network)
    }

    /// What is wrong with the settings, said of their file.
    pub fn of_settings(&self, error: Error) -> Error {
        Error::file(self.settings, error)
    }

    /// What is wrong with the network, said of its file.
    pub fn of_network(&self, error: Error) -> Error {
        match error {
            Error::Input(message) => Error::file(self.network, message),
            other => other,
        }
    }
}
