//! MEND as it is trained (Mitchell et al., 2022): `train/edit_loss.rs` of `W̃ = W − α ũᵀδ̃`.
//!
//! u and δ are constants of the outer loop, so one backward pass through the edited layers, with the deltas as factors
//! `(x·A)·B`, gives the network's gradient exactly; no second derivative is needed.

mod held;
mod settings;

pub(in crate::train) use held::{held, held_of_step};
pub use settings::{KlTokens, MendLossSettings, MendTrainSettings, Near, Rephrases, Scope};

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::archive::LearnedEditorSettings;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{Edit, EditRequest, Edited, Editor};
use crate::error::{Error, Result};
use crate::model::tokenizer::Continuation;
use crate::network::matrices::{Captured, without_last};
use crate::network::mend::{Aggregation, Mend, MendNetwork, MendSettings, Ridge};
use crate::network::parameters;
use crate::parallel;
use crate::plan::Held;
use crate::sections::choice::fields;
use crate::train::edit_loss::{EditLoss, Look, RecordTexts, Terms, side_by_side};
use crate::train::learned::{Group, LearnedEditor, StepLoss, Watch};
use crate::train::loss::check_classes;
use crate::train::methods::{self, Beginning, Planned, Sections};
use crate::train::rledit::{Compat, Episode};
use crate::train::settings::Together;

/// What a config says of MEND.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: MendSettings,
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
            editor: MendSettings::read(sections.editor, sections.origin)?,
            loss: MendLossSettings::read(sections.loss, sections.origin)?,
            train: MendTrainSettings::read(sections.train, sections.origin)?,
        })
    }

    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        held::held(&self.editor, &self.loss, &self.train, planned)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<MendTrainer> {
        let Beginning { base, settings, place, .. } = beginning;
        let mend = Mend::new(self.editor.clone(), &base.base().decoder.spec, *place)?;
        let (loss, own) = (self.loss.clone(), self.train.clone());
        MendTrainer::new(mend, (*base).clone(), loss, settings.edits_together, settings.learning_rate, own)?
            .reading(beginning)
    }
}

/// MEND with what it learns from.
#[derive(Clone)]
pub struct MendTrainer {
    pub(in crate::train) mend: Mend,
    /// What an archive of it has as its settings.
    settings: LearnedEditorSettings,
    pub(in crate::train) loss: EditLoss,
    /// Records whose edits are applied together.
    together: Together,
    /// Where edits follow each other: how a step looks back.
    pub(in crate::train) episode: Option<Episode>,
    /// The norm to which the running sum of an episode's gradients is clipped after each turn, where that is done at all.
    pub(in crate::train) clip_of_turns: Option<f64>,
    learning_rate: f64,
    own: MendTrainSettings,
}

impl MendTrainer {
    /// A trainer of `mend` on `base`.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(
        mut mend: Mend,
        base: Edited,
        loss: MendLossSettings,
        together: impl Into<Together>,
        learning_rate: f64,
        own: MendTrainSettings,
    ) -> Result<Self> {
        let together = together.into();
        if together.fewest == 0 {
            return Err(Error::Config("train.edits_together must be at least 1".into()));
        }
        own.check()?;
        let loss = EditLoss::new(base, mend.lowest_layer(), loss)?;
        mend.network = parameters::with_stable_ids(mend.network);
        let settings = LearnedEditorSettings::Mend(mend.settings.clone());
        Ok(MendTrainer { mend, settings, loss, together, episode: None, clip_of_turns: None, learning_rate, own })
    }

    /// The same with the windows of `loss.text`.
    ///
    /// # Errors
    /// A text that cannot be read or has no window; a ridge of text where there is none.
    pub fn reading(self, beginning: &Beginning<'_>) -> Result<Self> {
        let loss = self.loss.reading(beginning)?;
        if loss.text.is_none() && self.mend.settings.normal.ridge == Ridge::Text {
            let message =
                "editor.ridge = \"text\" is made of loss.text, which must be there with a weight and a share above 0";
            return Err(Error::Config(message.into()));
        }
        Ok(MendTrainer { loss, ..self })
    }

    /// The same under another method's settings in archives.
    pub fn archived_as(self, settings: LearnedEditorSettings) -> Self {
        MendTrainer { settings, ..self }
    }

    /// The same on edits that follow each other, in episodes; `clip` is the training's.
    pub fn in_episodes(self, episode: Episode, clip: f64) -> Self {
        let clip_of_turns = (episode.compat == Compat::Published).then_some(clip);
        MendTrainer { episode: Some(episode), clip_of_turns, ..self }
    }

    /// The editor.
    pub fn mend(&self) -> &Mend {
        &self.mend
    }

    /// How many tokens of a record's own edit are looked at.
    fn edit_tokens(&self, record: &EditRecord) -> Result<usize> {
        let edit = EditRequest::from(record).row(&self.loss.base.base().tokenizer)?;
        Ok(self.mend.settings.edit_tokens.of(&edit))
    }

    /// The edits' own gradients, on the model as it is.
    pub(in crate::train) fn capture(&self, model: &Edited, edits: &[&[RecordTexts]]) -> Result<Captured> {
        let rows: Vec<&Continuation> = edits.iter().flat_map(|edit| edit.iter().map(|texts| &texts.edit)).collect();
        let owners: Vec<usize> =
            edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |_| owner)).collect();
        let tokens = without_last(&rows);
        self.mend.capture(model, self.loss.lower_layers.hidden(&tokens)?, &tokens, &rows, &owners)
    }

    /// The loss of edits whose changes are sums: one pass through the edited layers, with the network below it in one graph.
    fn loss_of_sums(&mut self, texts: &[RecordTexts], together: usize) -> Result<(GradientsParams, Terms)> {
        let look = Look::at(&self.loss.base, texts);
        // Edits that are applied together stay together.
        let edits: Vec<&[RecordTexts]> = texts.chunks(together).collect();
        let parts = side_by_side(&edits);
        let captured = parallel::run(parts.clone(), |part| self.capture(look.model, part))?;
        for (captured, part) in captured.iter().zip(&parts) {
            self.mend.observe(captured, part.iter().map(|edit| edit.len()).sum());
        }
        let device = self.mend.network.rates.val().device();
        let seen = parts.into_iter().zip(captured).collect();
        self.loss.through_deltas(&self.mend.network, &device, look, seen, |network, captured, part| {
            self.mend.with_network(network).deltas(captured, part.len())
        })
    }

    /// The editor with leaves of its own. Graphs that share a leaf share a tape, and the first backward pass consumes it.
    pub(in crate::train) fn own(&self) -> Mend {
        let mut mend = self.mend.clone();
        mend.network = mend.network.clone().fork(&mend.network.rates.val().device());
        mend
    }
}

impl LearnedEditor for MendTrainer {
    type Network = MendNetwork;

    fn network(&self) -> &MendNetwork {
        &self.mend.network
    }

    fn set_network(&mut self, network: MendNetwork) {
        self.mend.network = network;
    }

    fn groups(&self) -> Vec<Group> {
        vec![
            Group {
                name: "edit rates",
                learning_rate: self.own.edit_rate_learning_rate,
                decays: false,
                norm: "gradient_norm",
                takes: |path| path == "rates" || path == "dampings",
            },
            Group {
                name: "network",
                learning_rate: self.learning_rate,
                decays: true,
                norm: "gradient_norm",
                takes: |_| true,
            },
        ]
    }

    fn made_of(&self) -> BTreeMap<String, String> {
        self.loss.made_of()
    }

    fn prepare(&mut self, source: &Source, draws: u64, watch: Watch<'_>) -> Result<()> {
        check_classes(&self.loss.settings.near.mix, source)?;
        if self.mend.settings.aggregation == Aggregation::NormalEquations {
            let together = source.draws(0, 0, self.together.most, 0);
            let tokens = together.iter().map(|record| self.edit_tokens(record)).collect::<Result<Vec<_>>>()?;
            self.mend.check_memory(&tokens)?;
        }
        if let Some(text) = &self.loss.text {
            self.mend.learn_moments(&self.loss.base, &text.all)?;
        }
        self.loss.prepare(source, draws, self.own.hidden_memory_gb, watch)
    }

    fn note(&self) -> Option<String> {
        self.loss.note()
    }

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss> {
        let together = self.together.draw(rng);
        let most = self.loss.looked_at(records.len());
        let turns = records.len().div_ceil(together);
        // In an episode as many of each turn.
        let looked_at = |number: usize| match self.episode {
            Some(_) => number % together < most.div_ceil(turns),
            None => number < most,
        };
        let texts = self.loss.drawn(records, looked_at, together, rng)?;
        let (gradients, terms) = match self.mend.settings.aggregation {
            Aggregation::Sum => self.loss_of_sums(&texts, together)?,
            Aggregation::NormalEquations => self.loss_of_solutions(&texts, together)?,
        };
        let mut figures = self.loss.figures(&terms);
        if let Some(episode) = &self.episode {
            figures[0].1 += episode.shift * terms.squares;
            figures.push(("shift_squares", terms.squares));
        }
        Ok(StepLoss { gradients, figures })
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.mend.edit(model, requests)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.mend.tensors()
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.mend = self.mend.clone().restored(tensors)?;
        Ok(())
    }

    fn settings(&self) -> LearnedEditorSettings {
        self.settings.clone()
    }

    fn sequential(&self) -> bool {
        self.episode.is_some()
    }

    fn neighbours(&self) -> usize {
        self.loss.settings.near()
    }
}
