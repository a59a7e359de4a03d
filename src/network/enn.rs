//! ENN: a base that was trained so that a plain gradient step edits it well (Sinitsin et al., 2020).
//!
//! The chosen matrices of the base are what is trained, `W = W₀ + D`, with a rate for each. An edit is k steps down the gradient of its own loss,
//!
//! ```text
//! W ← W − α ∇ −ln p(target | prompt; W),    ∇ = Σ uᵀδ over tokens
//! ```
//!
//! so that it is of low rank, and the adapted base and the edit are two edits of one stack: `W₀ + D − α Σ uᵀδ`.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::learned::Stored;
use super::matrices::{EditTokens, Matrices};
use super::parameters;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, Editor, PassChange, Provenance};
use crate::error::{Error, Result};
use crate::model::stack::spec::DecoderSpec;
use crate::model::tokenizer::Continuation;
use crate::sections::choice;
use crate::sections::within;

/// What configs, archives and edits call it.
pub(crate) const NAME: &str = "enn";

/// `[editor]` of an ENN config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnnSettings {
    /// The layers whose weights are trained and edited.
    pub layers: Vec<usize>,
    /// The weights in each.
    pub weights: Vec<String>,
    /// k: gradient steps of an edit.
    #[serde(default = "steps")]
    pub steps: usize,
    /// The rate of each matrix at the start.
    #[serde(default = "initial_rate")]
    pub initial_edit_rate: f64,
}

fn steps() -> usize {
    1
}

fn initial_rate() -> f64 {
    1e-2
}

impl EnnSettings {
    /// From the section `[editor]` of a config; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, a value of the wrong type.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        choice::read("editor", given, origin)
    }

    /// As archives and edits hold them.
    pub fn written(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The editor of an archive.
    pub(super) fn editor(&self, stored: &Stored<'_>) -> Result<Box<dyn Editor>> {
        let spec = &stored.model.decoder.spec;
        let enn = Enn::new(self.clone(), spec, stored.place).map_err(|error| stored.of_settings(error))?;
        let mut enn = enn.restored(stored.tensors()?).map_err(|error| stored.of_network(error))?;
        enn.archive_fingerprint = Some(stored.fingerprint.clone());
        enn.adaptation = Some(Arc::new(enn.adaptation(&stored.model.fingerprint)));
        Ok(Box::new(enn))
    }
}

/// What is trained.
#[derive(Module, Debug)]
pub struct EnnNetwork {
    /// D of each matrix, `[d_in, d_out]`.
    pub adapted: Vec<Param<Tensor<2>>>,
    /// ln α `[matrices]`
    pub rates: Param<Tensor<1>>,
}

/// An ENN editor.
#[derive(Debug, Clone)]
pub struct Enn {
    /// Its settings.
    pub settings: EnnSettings,
    /// What was trained.
    pub network: EnnNetwork,
    /// The fingerprint of the archive that it comes from, for the provenance of its edits.
    pub archive_fingerprint: Option<String>,
    /// D as an edit, where it is trained no more.
    adaptation: Option<Arc<Edit>>,
    matrices: Matrices,
}

impl Enn {
    /// An ENN over the base as it is. `place` is the device and type of what is trained.
    ///
    /// # Errors
    /// Weights that the model does not have, numbers out of range.
    pub fn new(settings: EnnSettings, spec: &DecoderSpec, place: (&Device, DType)) -> Result<Self> {
        if settings.steps == 0 {
            return Err(Error::Config("editor.steps = 0: an edit takes at least one gradient step".into()));
        }
        within("editor.steps", settings.steps as f64, 1.0, 100.0)?;
        let rate = settings.initial_edit_rate;
        if !rate.is_finite() || rate <= 0.0 {
            return Err(Error::Config(format!("editor.initial_edit_rate = {rate}: it must be a number above 0")));
        }
        let matrices = Matrices::new(&settings.layers, &settings.weights, spec)?;
        let adapted =
            matrices.each.iter().map(|slot| Param::from_tensor(Tensor::zeros(matrices.shapes[slot.shape], place)));
        let network = EnnNetwork {
            adapted: adapted.collect(),
            rates: Param::from_tensor(Tensor::full([matrices.each.len()], rate.ln(), place)),
        };
        Ok(Enn { settings, network, archive_fingerprint: None, adaptation: None, matrices })
    }

    /// The edited matrices.
    pub fn matrices(&self) -> &Matrices {
        &self.matrices
    }

    /// D as a change.
    pub fn adapted(&self) -> PassChange {
        let each = self.matrices.each.iter().zip(&self.network.adapted);
        let matrices = each.map(|(slot, delta)| (slot.weight, Delta::Dense(delta.val().inner())));
        PassChange { matrices: matrices.collect(), ..Default::default() }
    }

    /// D as an edit of a base with this fingerprint.
    pub fn adaptation(&self, base: &str) -> Edit {
        let (method, settings) = self.describe();
        let provenance = Provenance {
            method,
            settings: self.of_archive(settings),
            requests: vec![],
            seed: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            base: base.to_owned(),
            computed_on: vec![],
            joined: vec![],
            findings: json!({"adapts": "the base, so that gradient steps edit it"}),
        };
        Edit::new(provenance, Change::Pass(self.adapted()), BTreeMap::new())
    }

    /// Settings alone do not tell two trainings apart.
    fn of_archive(&self, mut settings: Value) -> Value {
        if let Some(fingerprint) = &self.archive_fingerprint {
            settings["archive_fingerprint"] = fingerprint.as_str().into();
        }
        settings
    }

    /// α of each matrix.
    pub fn rates(&self) -> Vec<f64> {
        self.network.rates.val().inner().exp().into_data().iter::<f64>().collect()
    }

    /// The steps of an edit on the adapted model.
    ///
    /// # Errors
    /// What the model says of the requests.
    pub fn steps(&self, model: &Edited, requests: &[EditRequest]) -> Result<PassChange> {
        let tokenizer = &model.base().tokenizer;
        let rows: Vec<Continuation> = requests.iter().map(|request| request.row(tokenizer)).collect::<Result<_>>()?;
        let rows: Vec<&Continuation> = rows.iter().collect();
        self.matrices.check_memory(&rows.iter().map(|row| row.ids.len() - 1).collect::<Vec<_>>())?;
        let (rates, owners) = (self.rates(), vec![0; rows.len()]);
        let (mut sum, mut edited) = (PassChange::default(), model.clone());
        for step in 0..self.settings.steps {
            if step > 0 {
                edited = model.with_change(&sum)?;
            }
            let captured = self.matrices.capture_rows(&edited, (&rows, &owners), EditTokens::All)?;
            let each = self.matrices.each.iter().zip(&rates).zip(captured.factors);
            let matrices = each.map(|((slot, rate), (u, delta, _))| {
                (slot.weight, Delta::LowRank { a: u.transpose(), b: delta.mul_scalar(-rate) })
            });
            let matrices = matrices.collect();
            sum = PassChange::sum([sum, PassChange { matrices, ..Default::default() }].iter());
        }
        sum.matrices = sum.matrices.into_iter().map(|(at, delta)| (at, delta.smaller())).collect();
        Ok(sum)
    }

    /// An edit of its steps.
    ///
    /// # Errors
    /// As [`Enn::steps`].
    pub fn stepped(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let change = Change::Pass(self.steps(model, requests)?);
        let mut provenance = self.provenance(model, requests);
        provenance.settings = self.of_archive(provenance.settings);
        Ok(Edit::new(provenance, change, BTreeMap::new()))
    }

    /// The tensors of an editor.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        let named = parameters::collect(&self.network).into_iter();
        named.map(|(name, data)| (format!("network.{name}"), data)).collect()
    }

    /// Puts [`Enn::tensors`] back.
    ///
    /// # Errors
    /// Tensors that are missing, too many, or of another shape; the weights that are not trained are named.
    pub fn restored(mut self, tensors: BTreeMap<String, TensorData>) -> Result<Self> {
        for (slot, matrix) in self.matrices.each.iter().enumerate() {
            if !tensors.contains_key(&format!("network.adapted.{slot}")) {
                let weight = matrix.weight;
                return Err(Error::Input(format!(
                    "{weight} was not trained: tensor \"network.adapted.{slot}\" is missing"
                )));
            }
        }
        let named =
            tensors.into_iter().map(|(name, data)| (name.strip_prefix("network.").unwrap_or(&name).to_owned(), data));
        self.network = parameters::restore(self.network, named.collect())?;
        Ok(self)
    }
}

/// Whether a model holds an adaptation by now: by itself or joined with others; written by another version of the program or for another base it
/// has another id, and is known by its archive.
fn lies_under(adaptation: &Edit, model: &Edited) -> bool {
    let archive = |edit: &Edit| edit.provenance.settings.get("archive_fingerprint").cloned();
    let adapts = |edit: &Edit| edit.provenance.method == NAME && !edit.provenance.findings["adapts"].is_null();
    model.edits().iter().any(|edit| {
        edit.parts().any(|id| id == adaptation.id()) || adapts(edit) && archive(edit) == archive(adaptation)
    })
}

impl Editor for Enn {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        if self.adaptation.as_ref().is_some_and(|adaptation| !lies_under(adaptation, model)) {
            let message = "enn takes its steps on the base that it adapted, and the model is not adapted yet; Editor::adapted does that";
            return Err(Error::Input(message.into()));
        }
        self.stepped(model, requests)
    }

    fn describe(&self) -> (String, Value) {
        (NAME.to_owned(), self.settings.written())
    }

    fn adapted(&self, model: &Edited) -> Result<Edited> {
        match &self.adaptation {
            Some(adaptation) if !lies_under(adaptation, model) => model.with(adaptation.clone()),
            _ => Ok(model.clone()),
        }
    }
}
