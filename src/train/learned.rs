//! What the trainer knows of an editor that learns.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use rand_chacha::ChaCha8Rng;

use crate::archive::LearnedEditorSettings;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::Result;
use crate::evaluate::Summary;
use crate::evaluate::probes::Limits;

/// An editor whose network is trained. Cheap to clone: tensors are shared.
pub trait LearnedEditor: Clone + Send + Sync {
    /// What is trained. Its parameters have ids derived from their paths (`network::parameters::with_stable_ids`).
    type Network: Module;

    /// The network.
    fn network(&self) -> &Self::Network;

    /// Puts the network that an optimiser gave back.
    fn set_network(&mut self, network: Self::Network);

    /// The groups of parameters, each with an optimiser of its own. A parameter belongs to the first group that takes its path.
    fn groups(&self) -> Vec<Group>;

    /// Sees whether a record can be learned from or tested on: whether every text of it fits. A record that cannot is found before
    /// the first step this way.
    ///
    /// # Errors
    /// Says which text is too long.
    fn check(&self, record: &EditRecord) -> Result<()> {
        let _ = record;
        Ok(())
    }

    /// The models and texts that the training stands on beside the base and the records, by their keys in the config, each with its
    /// fingerprint: a training goes on only with those it began with.
    fn made_of(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Does once what is constant in a training of `draws` records of `source`. `watch` is told how much is done of how much, and
    /// says whether to go on.
    ///
    /// # Errors
    /// A setting that names something that the records do not have; a record that the model cannot take; an interruption.
    fn prepare(&mut self, source: &Source, draws: u64, watch: Watch<'_>) -> Result<()>;

    /// What is worth saying of the training so far, for its log.
    fn note(&self) -> Option<String> {
        None
    }

    /// The loss of some records: gradients of its mean over them, and figures to show. It may move running figures of the editor.
    ///
    /// # Errors
    /// A record that the model cannot take.
    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss>;

    /// Told what each validation found, for an editor whose task changes with its success.
    fn validated(&mut self, summary: &Summary) {
        let _ = summary;
    }

    /// The model that its edits are made on, where that is not the base itself.
    ///
    /// # Errors
    /// What the model says of it.
    fn adapted(&self, base: &Edited) -> Result<Edited> {
        Ok(base.clone())
    }

    /// One edit for all requests.
    ///
    /// # Errors
    /// A request that the model cannot take.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit>;

    /// Everything that an archive holds of it, by name.
    fn tensors(&self) -> BTreeMap<String, TensorData>;

    /// Puts [`LearnedEditor::tensors`] back.
    ///
    /// # Errors
    /// Tensors that do not fit.
    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()>;

    /// Its settings, as an archive names them.
    fn settings(&self) -> LearnedEditorSettings;

    /// Whether edits are made one on the other in a step of training, and so in validation and test; else each is made on the base.
    fn sequential(&self) -> bool {
        false
    }

    /// How many neighbours of each locality class a record is drawn with.
    fn neighbours(&self) -> usize;

    /// Figures of its own on records it did not learn from, as shares from 0 to 1; `limits` are those of the test.
    ///
    /// # Errors
    /// A record that the model cannot take.
    fn examine(&self, records: &[EditRecord], limits: Limits) -> Result<Vec<(&'static str, f64)>> {
        let _ = (records, limits);
        Ok(vec![])
    }
}

/// Called with how much is done and of how much; returns whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Parameters that share an optimiser.
pub struct Group {
    /// Its name in files and messages.
    pub name: &'static str,
    /// The learning rate at its height.
    pub learning_rate: f64,
    /// Whether AdamW's decay applies to it.
    pub decays: bool,
    /// The figure that its gradient's norm is shown by. Groups of one figure are one gradient, clipped by one norm.
    pub norm: &'static str,
    /// Whether a parameter of this path belongs to it.
    pub takes: fn(&str) -> bool,
}

/// What a step of training gives.
pub struct StepLoss {
    /// The gradient of the mean loss.
    pub gradients: GradientsParams,
    /// Named figures; the first is the loss itself.
    pub figures: Vec<(&'static str, f64)>,
}
