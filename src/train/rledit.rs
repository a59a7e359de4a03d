//! RLEdit as it is trained (Li et al., 2025): MALMEN's network on a *sequence* of edits, each made on the model that the last one left.
//!
//! A step of training is an episode: `train.edits_per_step` records in turns of `train.edits_together`. With W_t the model after turn t, S_t
//! its shift and L MEND's loss on the records of a turn,
//!
//! ```text
//! loss = mean over t of  Σ_{i ≤ back_depth} decay^i · L(turn t − i; W_t)  +  shift · ‖S_t‖²
//! ```
//!
//! W_{t−1} is a constant of turn t, as the base is in MALMEN; the KL term out of scope is held against it, running text against the model without
//! any edit, in its own turn alone. An episode of one turn is MALMEN's step where `shift` is 0. `train/solutions.rs` computes it.
//!
//! The published code adds ‖S‖² without a gradient, so that it changes nothing, and clips the running sum of the gradients after every turn, so that
//! early turns count less; `compat = "published"` does so too.

use serde::{Deserialize, Serialize};

use super::mend::{self, MendLossSettings, MendTrainSettings, MendTrainer};
use super::methods::{self, Beginning, Planned, Sections};
use crate::archive::LearnedEditorSettings;
use crate::error::Result;
use crate::network::malmen::{MalmenSettings, RLEDIT};
use crate::network::mend::Mend;
use crate::plan::Held;
use crate::sections::choice::{self, fields};
use crate::sections::within;

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RlEditLossSettings {
    /// MEND's.
    #[serde(flatten)]
    pub mend: MendLossSettings,
    /// Of episodes.
    #[serde(flatten)]
    pub episode: Episode,
}

/// How a turn looks back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Episode {
    /// Earlier turns that a turn's loss is taken on too.
    pub back_depth: usize,
    /// What a turn counts against the one after it.
    pub decay: f64,
    /// The weight of ‖S‖².
    pub shift: f64,
    /// Whose gradient a step has.
    pub compat: Compat,
}

/// Whose gradient an episode has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// That of the loss, clipped once a step.
    #[default]
    None,
    /// As in the authors' code: ‖S‖² has none, and the running sum over turns is clipped to `train.clip` after each.
    Published,
}

impl Default for Episode {
    fn default() -> Self {
        Episode { back_depth: 10, decay: 0.95, shift: 1e-4, compat: Compat::None }
    }
}

/// What a config says of RLEdit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: MalmenSettings,
    /// `[loss]`
    pub loss: RlEditLossSettings,
    /// Its own keys of `[train]`.
    pub train: MendTrainSettings,
}

impl methods::Training for Training {
    type Editor = MendTrainer;

    fn own_keys() -> &'static [&'static str] {
        fields::<MendTrainSettings>()
    }

    fn read(sections: &Sections<'_>) -> Result<Self> {
        let loss: RlEditLossSettings = choice::read("loss", sections.loss, sections.origin)?;
        loss.mend.check(sections.loss)?;
        within("loss.back_depth", loss.episode.back_depth as f64, 0.0, 1e6)?;
        within("loss.decay", loss.episode.decay, 0.0, 1.0)?;
        within("loss.shift", loss.episode.shift, 0.0, 1e9)?;
        Ok(Training {
            editor: MalmenSettings::read(sections.editor, sections.origin)?,
            loss,
            train: MendTrainSettings::read(sections.train, sections.origin)?,
        })
    }

    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        mend::held(&self.editor.as_mend(), &self.loss.mend, &self.train, planned)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<MendTrainer> {
        let Beginning { base, settings, place, .. } = beginning;
        let mend = Mend::new(self.editor.as_mend(), &base.base().decoder.spec, *place)?;
        let mend = mend.called(RLEDIT, self.editor.written());
        let (loss, own) = (self.loss.mend.clone(), self.train.clone());
        let trainer =
            MendTrainer::new(mend, (*base).clone(), loss, settings.edits_together, settings.learning_rate, own)?;
        let trainer = trainer.archived_as(LearnedEditorSettings::RlEdit(self.editor.clone())).reading(beginning)?;
        Ok(trainer.in_episodes(self.loss.episode.clone(), settings.clip))
    }
}
