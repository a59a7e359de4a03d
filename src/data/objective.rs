//! What an edit is to do to its target. Beside making an answer likelier these are the objectives of Hase et al. (2023).

use serde::{Deserialize, Serialize};

/// What is to become of the target's probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// It rises.
    Raise,
    /// It falls: the fact is erased.
    Lower,
    /// It rises where the subject is hidden behind noise: the fact is forced.
    RaiseUnderNoise(Hidden),
}

/// The noise that hides a subject, on the embeddings of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hidden {
    /// σ
    pub sigma: f64,
    /// How often it is drawn.
    pub draws: usize,
    /// The seed of the draws.
    pub seed: u64,
}

impl Objective {
    /// In a word, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Objective::Raise => "raise",
            Objective::Lower => "lower",
            Objective::RaiseUnderNoise(_) => "raise_under_noise",
        }
    }

    /// The noise under which the target is looked at, where it is.
    pub fn hidden(&self) -> Option<Hidden> {
        match self {
            Objective::RaiseUnderNoise(hidden) => Some(*hidden),
            Objective::Raise | Objective::Lower => None,
        }
    }
}
