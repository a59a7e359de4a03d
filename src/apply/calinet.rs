//! CaliNet (Dong et al., 2022): a small MLP of slots beside one MLP of a frozen model, trained for all facts of a batch at once. With q the MLP's input, it says `act(q·K + b)·V`, added
//! to what the MLP says. The loss is the mean over facts of −ln p a token of the target; a step looks at some of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Editor;
use super::patch::{Patch, Patched, bytes_of_step};
use super::prepared::{Prepared, check, precision};
use crate::edit::neurons::Neurons;
use crate::edit::{Change, Edit, EditRequest, Edited};
use crate::error::Result;
use crate::model::Model;
use crate::model::layers::mlp::Activation;
use crate::plan::{OfEditor, Work};
use crate::random;
use crate::sections::within;

/// What configs and edits call it.
pub(super) const NAME: &str = "calinet";

/// `[editor]` of a CaliNet config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaliNetSettings {
    /// The decoder's layer beside whose MLP the slots are.
    pub layer: usize,
    /// Slots.
    #[serde(default = "slots")]
    pub slots: usize,
    /// act
    #[serde(default = "relu")]
    pub activation: Activation,
    /// Updates at most.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Adam's.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Facts that a step looks at.
    #[serde(default = "facts")]
    pub facts: usize,
    /// Done once the mean loss of as many steps as there are facts to be seen is below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// The seed of keys and of the order of facts.
    #[serde(default)]
    pub seed: u64,
}

fn slots() -> usize {
    64
}
fn relu() -> Activation {
    Activation::Relu
}
fn steps() -> usize {
    500
}
fn learning_rate() -> f64 {
    1e-2
}
fn facts() -> usize {
    32
}
fn early_stop() -> f64 {
    0.05
}

impl super::MethodSettings for CaliNetSettings {
    fn layers(&self) -> (&'static str, &[usize]) {
        ("layer", std::slice::from_ref(&self.layer))
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        Ok(OfEditor { kept: 0, edit: bytes_of_step(work, self.layer, requests.min(self.facts)) })
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(CaliNet::new(*self, prepared)?))
    }
}

/// CaliNet, ready to edit.
pub struct CaliNet {
    settings: CaliNetSettings,
    prepared: Prepared,
}

impl CaliNet {
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: CaliNetSettings, prepared: Prepared) -> Result<Self> {
        within("editor.slots", settings.slots as f64, 1.0, 1e6)?;
        within("editor.steps", settings.steps as f64, 1.0, 1e6)?;
        within("editor.learning_rate", settings.learning_rate, 0.0, 1e3)?;
        within("editor.facts", settings.facts as f64, 1.0, 1e6)?;
        within("editor.early_stop", settings.early_stop, 0.0, 1e9)?;
        Ok(CaliNet { settings, prepared })
    }

    /// Keys from N(0, 1/width), biases and values 0: at first the slots say nothing.
    fn begin(&self, model: &Edited) -> Patch {
        let (width, slots) = (model.base().decoder.spec.width, self.settings.slots);
        let mut rng = random::stream(self.settings.seed, "calinet", 0);
        let scale = 1.0 / (width as f64).sqrt();
        let drawn: Vec<f64> = (0..width * slots)
            .map(|_| {
                let value: f64 = StandardNormal.sample(&mut rng);
                scale * value
            })
            .collect();
        let place = (&model.base().decoder.device(), precision(model));
        let keys = Tensor::from_data(TensorData::new(drawn, [width, slots]), place);
        let (biases, values) = (Tensor::zeros([slots], place), Tensor::zeros([slots, width], place));
        Patch::new(self.settings.layer, Neurons { keys, biases, values, activation: self.settings.activation })
    }
}

impl Editor for CaliNet {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        check(requests)?;
        let settings = &self.settings;
        let all = Patched::new(model, settings.layer, requests)?;
        let (mut patch, some) = (self.begin(model), settings.facts.min(all.count()));
        let seen = all.count().div_ceil(some);
        let (mut losses, mut updates) = (vec![], 0);
        for step in 1..=settings.steps {
            let leaves = patch.leaves();
            let said = match some == all.count() {
                true => all.said(model, &leaves)?,
                false => {
                    let mut rng = random::stream(settings.seed, "calinet facts", step as u64);
                    let drawn: Vec<usize> = (0..some).map(|_| rng.random_range(0..all.count())).collect();
                    all.chosen(&drawn).said(model, &leaves)?
                }
            };
            losses.push(said.loss);
            let last = &losses[losses.len().saturating_sub(seen)..];
            if losses.len() >= seen && last.iter().sum::<f64>() / (seen as f64) < settings.early_stop {
                break;
            }
            patch.step(&leaves, &said.surrogate.backward(), (settings.learning_rate, 0.0), step);
            updates = step;
        }
        (self.prepared.progress)(requests.len());
        let last = losses.last().copied().unwrap_or(f64::NAN);
        let provenance = self.provenance(model, requests).with_findings(json!({"updates": updates, "loss": last}));
        Ok(Edit::new(provenance, Change::Pass(patch.change()), BTreeMap::new()))
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}
