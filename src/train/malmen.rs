//! MALMEN as it is trained: MEND's loss on records that are edited together, `train.edits_together` at once. [`super::mend`] computes it.

use serde::Serialize;

use super::mend::{self, MendLossSettings, MendTrainSettings, MendTrainer};
use super::methods::{self, Beginning, Planned, Sections};
use crate::archive::LearnedEditorSettings;
use crate::error::Result;
use crate::network::malmen::{MalmenSettings, NAME};
use crate::network::mend::Mend;
use crate::plan::Held;
use crate::sections::choice::fields;

/// What a config says of MALMEN.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: MalmenSettings,
    /// `[loss]`
    pub loss: MendLossSettings,
    /// Its own keys of `[train]`.
    pub train: MendTrainSettings,
}

impl methods::Training for Training {
    type Editor = MendTrainer;

    fn own_keys() -> &'static [&'static str] {
        fields::<MendTrainSettings>()
    }

    fn read(sections: &Sections<'_>) -> Result<Self> {
        Ok(Training {
            editor: MalmenSettings::read(sections.editor, sections.origin)?,
            loss: MendLossSettings::read(sections.loss, sections.origin)?,
            train: MendTrainSettings::read(sections.train, sections.origin)?,
        })
    }

    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        mend::held(&self.editor.as_mend(), &self.loss, &self.train, planned)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<MendTrainer> {
        let Beginning { base, settings, place, .. } = beginning;
        let mend = Mend::new(self.editor.as_mend(), &base.base().decoder.spec, *place)?;
        let mend = mend.called(NAME, self.editor.written());
        let (loss, own) = (self.loss.clone(), self.train.clone());
        let trainer =
            MendTrainer::new(mend, (*base).clone(), loss, settings.edits_together, settings.learning_rate, own)?;
        trainer.archived_as(LearnedEditorSettings::Malmen(self.editor.clone())).reading(beginning)
    }
}
