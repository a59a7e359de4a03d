//! ROME: one layer's MLP as an associative memory, with one association put in (Meng et al., 2022, equation 2).
//!
//! With the key k of the subject and the value v* of the answer, `ΔW = u (v* − k W)ᵀ / (kᵀu)` with `u = C⁻¹ k`: it maps
//! k to v* and moves other keys, weighed by their second moment C, as little as can be.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use serde::{Deserialize, Serialize};

use super::contexts::{Posed, Sampled, templates};
use super::prepared::{check, of_request, precision};
use super::value::{Cone, Descent, Found, Measured, descend};
use super::{Editor, Prepared};
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, WeightChange};
use crate::error::{Error, Result};
use crate::model::tap::{Role, Weight};

/// `[editor]` of a ROME config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The layer, as a list of one.
    pub layers: Vec<usize>,
    /// Evaluations of v*'s loss; one update fewer.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Adam's, for v*.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// v* is found once its loss is below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// Of v*'s decay term.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// The largest `‖v* − v₀‖ / ‖v₀‖`.
    #[serde(default = "clamp")]
    pub clamp: f64,
    /// Of v*'s KL term.
    #[serde(default = "kl")]
    pub kl: f64,
    /// A file of `emend stats`, or "none" for C = 1.
    pub statistics: String,
    /// Texts with `{}` where the prompt stands; sampled where there are none.
    #[serde(default)]
    pub context_templates: Vec<String>,
    /// How contexts are sampled.
    #[serde(default = "context")]
    pub context: Sampled,
    /// Whose key the update is solved for.
    #[serde(default)]
    pub compat: Compat,
}

/// Whose key and value stand in the denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// The mean over contexts, as in u (r-ROME): the layer maps this key to v*.
    #[default]
    None,
    /// Those of the prompt alone, as ROME's own code has it, though u is of the mean.
    Rome,
}

fn steps() -> usize {
    20
}
fn learning_rate() -> f64 {
    0.5
}
fn early_stop() -> f64 {
    0.05
}
fn weight_decay() -> f64 {
    0.5
}
fn clamp() -> f64 {
    4.0
}
fn kl() -> f64 {
    0.0625
}
fn context() -> Sampled {
    Sampled { lengths: vec![[5, 10], [10, 10]], starts: vec![], seed: 0 }
}

/// ROME, ready to edit.
pub struct Rome {
    settings: Settings,
    prepared: Prepared,
}

impl Rome {
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: Settings, prepared: Prepared) -> Result<Self> {
        if settings.layers.len() != 1 {
            return Err(Error::Config("editor.layers: ROME edits one layer; MEMIT edits several".into()));
        }
        let rome = Rome { settings, prepared };
        rome.descent().check()?;
        Ok(rome)
    }

    fn descent(&self) -> Descent {
        let settings = &self.settings;
        Descent {
            steps: settings.steps,
            learning_rate: settings.learning_rate,
            early_stop: settings.early_stop,
            weight_decay: settings.weight_decay,
            clamp: settings.clamp,
            kl: settings.kl,
        }
    }

    /// The change that puts one request in, on a model as it is.
    fn change(&self, model: &Edited, request: &EditRequest, templates: &[String]) -> Result<(WeightChange, Found)> {
        let layer = self.settings.layers[0];
        let posed = Posed::new(model, request, templates)?;
        let cone = Cone::new(model, layer, &[&posed])?;
        let found = descend(model, &cone, &self.descent(), Measured::Value)?;

        let of_first = |tensor: &Tensor<2>| {
            let width = tensor.dims()[1];
            tensor.clone().slice([0..1, 0..width])
        };
        let mean = cone.mean(0, &cone.keys);
        let (key, value) = match self.settings.compat {
            Compat::None => (mean.clone(), cone.mean(0, &cone.values)),
            Compat::Rome => (of_first(&cone.keys), of_first(&cone.values)),
        };
        let wanted = of_first(&cone.values) + found.delta.clone();
        let numbers = |tensor: Tensor<2>| tensor.into_data().iter::<f64>().collect::<Vec<f64>>();
        let mean = numbers(mean);
        let u = self.prepared.whiten(layer, Mat::from_fn(mean.len(), 1, |row, _| mean[row]))?;
        let u: Vec<f64> = (0..mean.len()).map(|row| u[(row, 0)]).collect();
        let along: f64 = numbers(key).iter().zip(&u).map(|(key, u)| key * u).sum();
        if !along.is_finite() || along.abs() < 1e-12 {
            return Err(Error::Input(format!("the key of \"{}\" is too small to hold an edit", request.prompt)));
        }
        let residual: Vec<f64> = numbers(wanted - value).into_iter().map(|value| value / along).collect();
        let device = model.base().decoder.device();
        let tensor = |values: Vec<f64>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), (&device, precision(model)))
        };
        let (d_in, d_out) = (u.len(), residual.len());
        let delta = Delta::LowRank { a: tensor(u, [d_in, 1]), b: tensor(residual, [1, d_out]) };
        let matrices = [(Weight::decoder(layer, Role::MlpDown), delta)].into();
        Ok((WeightChange { matrices, biases: BTreeMap::new() }, found))
    }
}

impl Editor for Rome {
    /// Several requests are put in one after the other, each on the model that the one before gave.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        check(requests)?;
        let templates = templates(model, &self.settings.context_templates, &self.settings.context)?;
        let mut current = model.clone();
        let (mut changes, mut findings) = (vec![], vec![]);
        for (number, request) in requests.iter().enumerate() {
            let change = self.change(&current, request, &templates);
            let (change, found) = change.map_err(|error| of_request(requests, number, error))?;
            if number + 1 < requests.len() {
                let one = std::slice::from_ref(request);
                let provenance = self.prepared.provenance("rome", self.describe().1, &current, one);
                current = current.with(Edit::new(provenance, Change::Weights(change.clone()), BTreeMap::new()))?;
            }
            changes.push(change);
            findings.extend(found.findings());
            (self.prepared.progress)(1);
        }
        let mut provenance = self.prepared.provenance("rome", self.describe().1, model, requests);
        provenance.findings = serde_json::json!({"requests": findings});
        Ok(Edit::new(provenance, Change::Weights(WeightChange::sum(changes.iter())), BTreeMap::new()))
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe("rome", &self.settings)
    }
}
