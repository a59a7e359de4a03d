//! Fine-tuning on the edit alone: of some weights of some layers, free or held near where they were. [`super::tuning`] is the descent.
//!
//! With `norm_constraint` ε no element leaves `[−ε, ε]` around its base (FT-L, Zhu et al., 2020; constrained
//! fine-tuning of Hase et al., 2023, with one layer or five). With `kl` the model is held to other texts too (FT+KL).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Editor;
use super::prepared::{Prepared, precision};
use super::tuning::{Held, Tuned, TunedTensor, Tuning, TuningSettings, WeightGradients};
use crate::data::objective::Objective;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange};
use crate::error::Result;
use crate::model::Model;
use crate::model::tap::Weight;
use crate::plan::{OfEditor, Work};
use crate::sections::choice::{self, fields};
use crate::sections::within;

/// What configs and edits call it.
pub(super) const NAME: &str = "fine_tuning";

/// `[editor]` of a fine-tuning config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FineTuningSettings {
    /// The descent.
    #[serde(flatten)]
    pub tuning: TuningSettings,
    /// Whether the biases of these weights are trained too, where there are any.
    #[serde(default = "yes")]
    pub biases: bool,
    /// ε: the largest change of an element; none unless given.
    #[serde(default)]
    pub norm_constraint: Option<f64>,
}

fn yes() -> bool {
    true
}

impl super::MethodSettings for FineTuningSettings {
    fn defaults() -> toml::Table {
        toml::toml! { weights = ["mlp.down"] }
    }

    fn check_used(&self, given: &toml::Table) -> Result<()> {
        choice::refuse_at_zero("editor", given, ("kl", self.tuning.kl), fields::<Held>())
    }

    fn layers(&self) -> (&'static str, &[usize]) {
        ("layers", &self.tuning.layers)
    }

    fn seed(&self) -> u64 {
        self.tuning.held.seed
    }

    /// What is tuned, with its gradient, two moments, and what makes a step; and the step's graph.
    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        let weights = Weight::all_named(&self.tuning.layers, &self.tuning.weights)?;
        let tuned: usize = weights.iter().map(|at| work.spec.shape(at.role).iter().product::<usize>()).sum();
        Ok(OfEditor { kept: 0, edit: 4 * 7 * tuned as u64 + self.tuning.bytes_of_step(work, requests)? })
    }

    fn editor(self: Box<Self>, prepared: Prepared, model: &Arc<Model>, folder: &Path) -> Result<Box<dyn Editor>> {
        let texts = self.tuning.texts(model, folder)?;
        Ok(Box::new(FineTuning::new(*self, prepared, texts)?))
    }
}

/// Fine-tuning, ready to edit.
pub struct FineTuning {
    settings: FineTuningSettings,
    prepared: Prepared,
    tuning: Tuning,
}

impl FineTuning {
    /// `texts` are those of `locality`, as tokens.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: FineTuningSettings, prepared: Prepared, texts: Vec<Vec<u32>>) -> Result<Self> {
        if let Some(most) = settings.norm_constraint {
            within("editor.norm_constraint", most, 0.0, 1e9)?;
        }
        let tuning = Tuning::new(settings.tuning.clone(), texts)?;
        Ok(FineTuning { settings, prepared, tuning })
    }

    /// No change yet.
    fn begin(&self, model: &Edited) -> Result<Whole> {
        let mut whole =
            Whole { matrices: BTreeMap::new(), biases: BTreeMap::new(), most: self.settings.norm_constraint };
        let place = (&model.base().decoder.device(), precision(model));
        for &at in &self.tuning.weights {
            let linear = model.base().decoder.linear(at)?;
            whole.matrices.insert(at, TunedTensor::new(Tensor::zeros(linear.weight.dims(), place)));
            if let Some(bias) = linear.bias.as_ref().filter(|_| self.settings.biases) {
                whole.biases.insert(at, TunedTensor::new(Tensor::zeros(bias.dims(), place)));
            }
        }
        Ok(whole)
    }
}

/// Whole matrices and biases, as what is added to them.
struct Whole {
    matrices: BTreeMap<Weight, TunedTensor<2>>,
    biases: BTreeMap<Weight, TunedTensor<1>>,
    /// ε
    most: Option<f64>,
}

impl Tuned for Whole {
    fn change(&self) -> PassChange {
        PassChange {
            matrices: self.matrices.iter().map(|(&at, tuned)| (at, Delta::Dense(tuned.value.clone()))).collect(),
            biases: self.biases.iter().map(|(&at, tuned)| (at, tuned.value.clone())).collect(),
            ..PassChange::default()
        }
    }

    fn step(&mut self, gradients: WeightGradients, settings: &TuningSettings, step: usize) {
        fn held<const D: usize>(tuned: &mut TunedTensor<D>, most: Option<f64>) {
            if let Some(most) = most {
                tuned.value = tuned.value.clone().clamp(-most, most);
            }
        }
        for (at, (matrix, bias)) in gradients {
            if let Some(tuned) = self.matrices.get_mut(&at) {
                tuned.step(matrix, settings, step);
                held(tuned, self.most);
            }
            if let Some(tuned) = self.biases.get_mut(&at) {
                tuned.step(bias, settings, step);
                held(tuned, self.most);
            }
        }
    }
}

impl Editor for FineTuning {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let change = self.tuning.tune(model, requests, || self.begin(model))?.change();
        Ok(Edit::new(self.provenance(model, requests), Change::Pass(change), BTreeMap::new()))
    }

    fn takes(&self, _: &Objective) -> bool {
        true
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}
