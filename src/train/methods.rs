//! The editors that `emend train` makes. Another one is a variant here, and the compiler names its arms.

use std::path::Path;

use burn::tensor::{DType, Device};
use serde::Serialize;
use serde_json::json;
use toml::Table;

use super::learned::LearnedEditor;
use super::settings::TrainSettings;
use super::text::TextSettings;
use super::{enn, ke, malmen, mend, rledit, serac};
use crate::data::source::Source;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::model::tokenizer::Tokenizer;
use crate::plan::{Held, Work};
use crate::sections::choice::{self, Choice};

/// What a config says of one method: `[editor]`, `[loss]`, and the method's own keys of `[train]`, all by the names of the sections.
pub trait Training: Sized {
    /// What learns.
    type Editor: LearnedEditor;

    /// The method's own keys of `[train]`.
    fn own_keys() -> &'static [&'static str] {
        &[]
    }

    /// Reads the sections.
    ///
    /// # Errors
    /// Unknown keys, values out of range, keys that other ones make of no use.
    fn read(sections: &Sections<'_>) -> Result<Self>;

    /// What the editor and its steps hold, beside the frozen model.
    ///
    /// # Errors
    /// Settings that the model or the records cannot serve.
    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>>;

    /// The editor as it begins.
    ///
    /// # Errors
    /// Settings that the model or the records cannot serve.
    fn begin(&self, beginning: &Beginning<'_>) -> Result<Self::Editor>;
}

/// What a training's memory follows from.
pub struct Planned<'a> {
    /// The model, and how long the records' texts are.
    pub work: Work<'a>,
    /// What every training has.
    pub settings: &'a TrainSettings,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The records it is going to learn from.
    pub source: &'a Source,
    /// The config's folder.
    pub folder: &'a Path,
}

/// The parts of a training's work.
pub const TRAINING: &str = "training";
/// Validations and the test.
pub const TESTING: &str = "validating and testing";

/// The sections of a config before they are read.
pub struct Sections<'a> {
    /// `[editor]`, without its method.
    pub editor: &'a Table,
    /// `[loss]`
    pub loss: &'a Table,
    /// The method's own keys of `[train]`.
    pub train: &'a Table,
    /// The file, for errors.
    pub origin: &'a str,
}

/// What an editor begins on.
pub struct Beginning<'a> {
    /// The frozen model.
    pub base: &'a Edited,
    /// What every training has.
    pub settings: &'a TrainSettings,
    /// The network's device and element type.
    pub place: (&'a Device, DType),
    /// The records it is going to learn from.
    pub source: &'a Source,
    /// The config's folder, where files that it names lie.
    pub folder: &'a Path,
}

/// The methods.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// MEND.
    Mend,
    /// MALMEN.
    Malmen,
    /// RLEdit.
    RlEdit,
    /// SERAC.
    Serac,
    /// KE.
    Ke,
    /// ENN.
    Enn,
}

/// What a config says of its method.
// There is one of them at a time: a box would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Trained {
    /// MEND.
    Mend(mend::Training),
    /// MALMEN.
    Malmen(malmen::Training),
    /// RLEdit.
    RlEdit(rledit::Training),
    /// SERAC.
    Serac(serac::Training),
    /// KE.
    Ke(ke::Training),
    /// ENN.
    Enn(enn::Training),
}

impl Choice for Method {
    const KEY: &'static str = "editor.method";
    const VALUES: &'static [Self] =
        &[Method::Mend, Method::Malmen, Method::RlEdit, Method::Serac, Method::Ke, Method::Enn];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Method::Mend => mend::Training::own_keys(),
            Method::Malmen => malmen::Training::own_keys(),
            Method::RlEdit => rledit::Training::own_keys(),
            Method::Serac => serac::Training::own_keys(),
            Method::Ke => ke::Training::own_keys(),
            Method::Enn => enn::Training::own_keys(),
        }
    }
}

impl Trained {
    /// Reads the sections of a method.
    ///
    /// # Errors
    /// As [`Training::read`].
    pub fn read(method: Method, sections: &Sections<'_>) -> Result<Self> {
        Ok(match method {
            Method::Mend => Trained::Mend(Training::read(sections)?),
            Method::Malmen => Trained::Malmen(Training::read(sections)?),
            Method::RlEdit => Trained::RlEdit(Training::read(sections)?),
            Method::Serac => Trained::Serac(Training::read(sections)?),
            Method::Ke => Trained::Ke(Training::read(sections)?),
            Method::Enn => Trained::Enn(Training::read(sections)?),
        })
    }

    /// Whether its edits are memories, which change no weight.
    pub fn remembers(&self) -> bool {
        matches!(self, Trained::Serac(_))
    }

    /// The running text that it learns to leave alone.
    pub fn text(&self) -> Option<&TextSettings> {
        match self {
            Trained::Mend(training) => training.loss.text.as_ref(),
            Trained::Malmen(training) => training.loss.text.as_ref(),
            Trained::RlEdit(training) => training.loss.mend.text.as_ref(),
            Trained::Serac(_) => None,
            Trained::Ke(training) => training.loss.mend.text.as_ref(),
            Trained::Enn(training) => training.loss.mend.text.as_ref(),
        }
    }

    /// What the editor and its steps hold, beside the frozen model.
    ///
    /// # Errors
    /// As [`Training::held`].
    pub fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        match self {
            Trained::Mend(training) => training.held(planned),
            Trained::Malmen(training) => training.held(planned),
            Trained::RlEdit(training) => training.held(planned),
            Trained::Serac(training) => training.held(planned),
            Trained::Ke(training) => training.held(planned),
            Trained::Enn(training) => training.held(planned),
        }
    }

    /// Memory for hidden states that are kept, in GB, where the method keeps any.
    pub fn hidden_memory_mut(&mut self) -> Option<&mut f64> {
        match self {
            Trained::Mend(training) => Some(&mut training.train.hidden_memory_gb),
            Trained::Malmen(training) => Some(&mut training.train.hidden_memory_gb),
            Trained::RlEdit(training) => Some(&mut training.train.hidden_memory_gb),
            Trained::Serac(_) => None,
            Trained::Ke(training) => Some(&mut training.train.hidden_memory_gb),
            Trained::Enn(training) => Some(&mut training.train.hidden_memory_gb),
        }
    }

    /// Hands the editor as it begins to whoever trains it.
    ///
    /// # Errors
    /// As [`Training::begin`], and what the trainer says.
    pub fn train(&self, beginning: &Beginning<'_>, trainer: impl Trainer) -> Result<()> {
        match self {
            Trained::Mend(training) => trainer.train(training.begin(beginning)?),
            Trained::Malmen(training) => trainer.train(training.begin(beginning)?),
            Trained::RlEdit(training) => trainer.train(training.begin(beginning)?),
            Trained::Serac(training) => trainer.train(training.begin(beginning)?),
            Trained::Ke(training) => trainer.train(training.begin(beginning)?),
            Trained::Enn(training) => trainer.train(training.begin(beginning)?),
        }
    }
}

/// Whoever trains an editor, whichever it is.
pub trait Trainer {
    /// Trains it.
    ///
    /// # Errors
    /// As [`EditTrainer::run`](super::trainer::EditTrainer::run).
    fn train<E: LearnedEditor>(self, editor: E) -> Result<()>;
}

impl Method {
    /// The method of `[editor]`, taken out of it; `origin` names the file in errors.
    ///
    /// # Errors
    /// No method, or one that is not known.
    pub fn take(editor: &mut Table, origin: &str) -> Result<Self> {
        let known = || Self::VALUES.iter().map(choice::written).collect::<Vec<_>>().join(", ");
        let Some(named) = editor.remove("method") else {
            let found: Vec<&str> = editor.keys().map(String::as_str).collect();
            let found = found.join(", ");
            return Err(Error::Config(format!(
                "{origin}: editor.method is missing (found: {found}); known: {}",
                known()
            )));
        };
        let method = Self::VALUES.iter().find(|method| named.as_str().is_some_and(|name| json!(method) == name));
        let unknown = || Error::Config(format!("{origin}: editor.method = {named} is not known; known: {}", known()));
        method.copied().ok_or_else(unknown)
    }
}
