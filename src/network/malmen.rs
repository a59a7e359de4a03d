//! MALMEN: MEND's network trained for many edits at once (Tan et al., 2024).
//!
//! Two things differ from MEND. Only the tokens that predict the answer are looked at; each asks for a change of the output at its own
//! key, `d = −α (k·k̃) ṽ`. And the changes that all tokens of all edits ask for are met by one shift in the sense of least squares,
//! `S = (KᵀK + e^λ I)⁻¹ Kᵀ D`, with λ learned for each matrix. [`super::mend`] computes both, [`super::normal_equations`] solves.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gradient_transform::{Nonlinearity, Normalization};
use super::matrices::EditTokens;
use super::mend::{Aggregation, Keys, MendSettings, Normal, Rates, Raw, Ridge, Running};
use crate::error::Result;
use crate::sections::choice;

/// What configs, archives and edits call it.
pub(crate) const NAME: &str = "malmen";

/// What they call RLEdit, whose network is the same and whose training is another.
pub(crate) const RLEDIT: &str = "rledit";

/// `[editor]` of a MALMEN config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MalmenSettings {
    /// The layers whose weights are edited.
    pub layers: Vec<usize>,
    /// The weights edited in each.
    pub weights: Vec<String>,
    /// Rank of the network's layers.
    #[serde(default = "rank")]
    pub rank: usize,
    /// Layers of the network.
    #[serde(default = "blocks")]
    pub blocks: usize,
    /// The rate η of each matrix at the start.
    #[serde(default = "initial_rate")]
    pub initial_edit_rate: f64,
    /// Whether rates are learned as they are or by their logarithm.
    #[serde(default)]
    pub edit_rates: Rates,
    /// λ of each matrix at the start.
    #[serde(default)]
    pub initial_damping: f64,
    /// What e^λ is times.
    #[serde(default)]
    pub ridge: Ridge,
    /// The keys at which changes are asked for.
    #[serde(default)]
    pub keys: Keys,
    /// Standard deviation of V at the start, times √(d_in + d_out).
    #[serde(default = "initial_spread")]
    pub initial_spread: f64,
    /// Where the network's layers are not linear.
    #[serde(default = "nonlinearity")]
    pub nonlinearity: Nonlinearity,
    /// The tokens that an edit's keys are taken from.
    #[serde(default = "edit_tokens")]
    pub edit_tokens: EditTokens,
    /// How keys and gradients are normalised before the network reads them.
    #[serde(default = "normalization")]
    pub normalization: Normalization,
    /// Of running figures.
    #[serde(flatten)]
    pub running: Running,
}

impl MalmenSettings {
    /// From the section `[editor]` of a config; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, or that the choices made do not use; a value of the wrong type.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        let settings: MalmenSettings = choice::read("editor", given, origin)?;
        choice::check("editor", given, settings.normalization)?;
        Ok(settings)
    }

    /// The same editor in MEND's terms.
    pub fn as_mend(&self) -> MendSettings {
        MendSettings {
            layers: self.layers.clone(),
            weights: self.weights.clone(),
            rank: self.rank,
            blocks: self.blocks,
            initial_edit_rate: self.initial_edit_rate,
            edit_rates: self.edit_rates,
            initial_spread: self.initial_spread,
            nonlinearity: self.nonlinearity,
            edit_tokens: self.edit_tokens,
            aggregation: Aggregation::NormalEquations,
            normal: Normal { initial_damping: self.initial_damping, ridge: self.ridge, keys: self.keys },
            normalization: self.normalization,
            running: self.running.clone(),
            raw: Raw::default(),
        }
    }

    /// As archives and edits hold them.
    pub fn written(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

fn rank() -> usize {
    1920
}

fn blocks() -> usize {
    2
}

fn initial_rate() -> f64 {
    1e-6
}

fn initial_spread() -> f64 {
    1.0
}

fn nonlinearity() -> Nonlinearity {
    Nonlinearity::Between
}

fn edit_tokens() -> EditTokens {
    EditTokens::Answer
}

fn normalization() -> Normalization {
    Normalization::Running
}
