//! ROME: one layer's MLP as an associative memory, with one association put in (Meng et al., 2022, equation 2).
//!
//! With the key k of the subject and the value v* of the answer, `ΔW = u (v* − k W)ᵀ / (kᵀu)` with `u = C⁻¹ k`: it maps
//! k to v* and moves other keys, weighed by their second moment C, as little as can be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use serde::{Deserialize, Serialize};

use super::association::Association;
use super::contexts::{RequestInContexts, templates};
use super::prepared::{check, of_request, precision};
use super::value::{AddedTo, Cone, Found, descend};
use super::{Editor, Prepared};
use crate::data::objective::Objective;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::tap::{Role, Weight};

/// What configs and edits call it.
pub(super) const NAME: &str = "rome";

/// `[editor]` of a ROME config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RomeSettings {
    /// Where the association goes, and how it is found; one layer.
    #[serde(flatten)]
    pub association: Association,
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

impl super::MethodSettings for RomeSettings {
    fn defaults() -> toml::Table {
        toml::toml! {
            clamp = 4.0
            context = { lengths = [[5, 10], [10, 10]] }
        }
    }

    fn association(&self) -> Option<&Association> {
        Some(&self.association)
    }

    fn association_mut(&mut self) -> Option<&mut Association> {
        Some(&mut self.association)
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(Rome::new(*self, prepared)?))
    }
}

/// ROME, ready to edit.
pub struct Rome {
    settings: RomeSettings,
    prepared: Prepared,
}

impl Rome {
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: RomeSettings, prepared: Prepared) -> Result<Self> {
        if settings.association.layers.len() != 1 {
            return Err(Error::Config("editor.layers: ROME edits one layer; MEMIT edits several".into()));
        }
        settings.association.descent.check()?;
        Ok(Rome { settings, prepared })
    }

    /// The change that puts one request in, on a model as it is.
    fn change(&self, model: &Edited, request: &EditRequest, templates: &[String]) -> Result<(PassChange, Found)> {
        let layer = self.settings.association.layers[0];
        let in_contexts = RequestInContexts::new(model, request, templates)?;
        let cone = Cone::new(model, layer, &[&in_contexts])?;
        let found = descend(model, &cone, &self.settings.association.descent, AddedTo::Value)?;

        let of_first = |tensor: &Tensor<2>| {
            let width = tensor.dims()[1];
            tensor.clone().slice([0..1, 0..width])
        };
        let mean = cone.mean(0, &cone.keys);
        // Under noise each row is a draw, and none of them stands for the prompt alone.
        let hidden = request.objective().hidden().is_some();
        let (key, value) = match self.settings.compat {
            _ if hidden => (mean.clone(), cone.mean(0, &cone.values)),
            Compat::None => (mean.clone(), cone.mean(0, &cone.values)),
            Compat::Rome if templates.first().is_some_and(|first| first == "{}") => {
                (of_first(&cone.keys), of_first(&cone.values))
            }
            Compat::Rome => {
                let alone = RequestInContexts::new(model, request, &["{}".to_owned()])?;
                let alone = Cone::new(model, layer, &[&alone])?;
                (of_first(&alone.keys), of_first(&alone.values))
            }
        };
        let wanted = if hidden { value.clone() } else { of_first(&cone.values) } + found.delta.clone();
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
        Ok((PassChange { matrices, ..Default::default() }, found))
    }
}

impl Editor for Rome {
    /// Several requests are put in one after the other, each on the model that the one before gave.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        check(requests)?;
        let association = &self.settings.association;
        let templates = templates(model, &association.context_templates, &association.context)?;
        let mut current = model.clone();
        let (mut changes, mut findings) = (vec![], vec![]);
        for (number, request) in requests.iter().enumerate() {
            let change = self.change(&current, request, &templates);
            let (change, found) = change.map_err(|error| of_request(requests, number, error))?;
            if number + 1 < requests.len() {
                current = current.with_change(&change)?;
            }
            changes.push(change);
            findings.extend(found.findings());
            (self.prepared.progress)(1);
        }
        let provenance = self.provenance(model, requests).with_findings(serde_json::json!({"requests": findings}));
        Ok(Edit::new(provenance, Change::Pass(PassChange::sum(changes.iter())), BTreeMap::new()))
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
