//! Edits as values, and a frozen model with a stack of them.

pub mod activation;
mod adapter;
mod answers;
pub mod change;
pub mod edited;
pub mod file;
pub mod generate;
pub mod gguf;
pub mod hf;
pub mod import;
pub mod join;
pub mod likelihood;
pub(crate) mod loss;
pub mod memory;
pub mod neurons;
pub mod noise;
pub mod peft;
mod request;
pub mod running;
pub mod score;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::objective::Objective;
use crate::error::{Error, Result};

pub use answers::AnswerGenerator;
pub use change::{Change, Delta, PassChange, RecordDeltas, SharedDeltas};
pub use edited::Edited;
pub use memory::{Memory, Route};
pub use request::EditRequest;

/// An editor is a function from a model and requests to an edit: it mutates nothing.
pub trait Editor: Send + Sync {
    /// One edit that makes the model answer all requests.
    ///
    /// # Errors
    /// A request that the model or the editor cannot take.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit>;

    /// Its name and settings.
    fn describe(&self) -> (String, serde_json::Value);

    /// Whether it can do to a target what is asked. All can make it likelier.
    fn takes(&self, objective: &Objective) -> bool {
        matches!(objective, Objective::Raise)
    }

    /// Whether its edits are memories: of two requests on one question the later then wins, where others refuse them.
    fn remembers(&self) -> bool {
        false
    }

    /// The model with what must lie under its edits; a model that has it by now stays as it is.
    ///
    /// # Errors
    /// What the model says of that.
    fn adapted(&self, model: &Edited) -> Result<Edited> {
        Ok(model.clone())
    }

    /// What consults its memories when they are read from a file; nothing where they hold all that consults them.
    fn route(&self) -> Option<Arc<dyn Route>> {
        None
    }

    /// The seed of its draws.
    fn seed(&self) -> u64 {
        0
    }

    /// Where an edit comes from that it makes now.
    fn provenance(&self, model: &Edited, requests: &[EditRequest]) -> Provenance {
        let (method, settings) = self.describe();
        Provenance::new(&method, settings, self.seed(), model, requests)
    }
}

/// One edit for requests, whose objectives the editor takes.
///
/// # Errors
/// An objective that it does not take; different ones in one edit; what the editor says.
pub fn edited_by(editor: &dyn Editor, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
    let objectives: Vec<Objective> = requests.iter().map(EditRequest::objective).collect();
    if let Some(strange) = objectives.iter().find(|objective| !editor.takes(objective)) {
        let (method, _) = editor.describe();
        let message = format!(
            "{method} makes a target likelier and takes no other objective, such as \"{}\"; fine_tuning, lora, rome and memit do",
            strange.name()
        );
        return Err(Error::Config(message));
    }
    if let Some(number) = objectives.iter().position(|objective| *objective != objectives[0]) {
        let message = "its objective is another than that of the first request; make an edit of each objective".into();
        return Err(Error::Record { number, message });
    }
    editor.edit(model, requests)
}

/// Where an edit comes from: enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The editor's name ("mend", "rome", ...).
    pub method: String,
    /// Its settings, as the editor's config has them.
    pub settings: serde_json::Value,
    /// What was asked for.
    pub requests: Vec<EditRequest>,
    /// The seed of every random draw.
    pub seed: u64,
    /// The version of this program.
    pub version: String,
    /// The fingerprint of the frozen base.
    pub base: String,
    /// The ids of the edits it was computed on, lowest first.
    pub computed_on: Vec<String>,
    /// The ids of the edits that were joined to it; none of an edit as an editor made it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<String>,
    /// What the editor came upon on its way (knowledge neurons: which these are).
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub findings: serde_json::Value,
}

impl Edit {
    /// The ids of the edits that it is: its own, or those that were joined to it.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        let own = self.provenance.joined.is_empty().then_some(self.id());
        own.into_iter().chain(self.provenance.joined.iter().map(String::as_str))
    }
}

impl Provenance {
    /// Of an edit that `method` computes now, on a model as it is.
    pub fn new(
        method: &str,
        settings: serde_json::Value,
        seed: u64,
        model: &Edited,
        requests: impl Into<Vec<EditRequest>>,
    ) -> Self {
        Provenance {
            method: method.to_owned(),
            settings,
            requests: requests.into(),
            seed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            base: model.base().fingerprint.clone(),
            computed_on: model.edit_ids(),
            joined: vec![],
            findings: serde_json::Value::Null,
        }
    }

    /// The same with what the editor came upon.
    pub fn with_findings(self, findings: serde_json::Value) -> Self {
        Provenance { findings, ..self }
    }
}

/// The error of an edit that is more than a change of weights: which edit, and what it is.
pub(crate) fn not_exported(edit: &str, what: &str) -> Error {
    Error::Input(format!("{edit} {what} and cannot be exported; its file (--save) is all there is of it"))
}

/// A change of what a model believes: a value that can be saved, stacked and taken back. It mutates nothing.
#[derive(Debug, Clone)]
pub struct Edit {
    id: String,
    /// Where it comes from.
    pub provenance: Provenance,
    /// What it changes.
    pub change: Change,
    /// What its editor wants back for its next edit; of joined edits, what each left stands side by side.
    pub state: BTreeMap<String, Tensor<2>>,
}

impl Edit {
    /// An edit; its id is the hash of its contents.
    pub fn new(provenance: Provenance, change: Change, state: BTreeMap<String, Tensor<2>>) -> Self {
        let mut edit = Edit { id: String::new(), provenance, change, state };
        edit.id = blake3::hash(&file::contents(&edit)).to_hex()[..32].to_owned();
        edit
    }

    /// Whether all its values are finite: a model with others says nothing.
    pub fn is_finite(&self) -> bool {
        let of_change: Vec<Tensor<2>> = match &self.change {
            Change::Pass(change) => {
                let matrices = change.matrices.values().flat_map(|delta| match delta {
                    Delta::LowRank { a, b } => vec![a.clone(), b.clone()],
                    Delta::Dense(delta) => vec![delta.clone()],
                });
                let vectors = change.interventions.iter().filter_map(|intervention| intervention.action.vector());
                let neurons = || change.neurons.values().flatten();
                let biases = neurons().map(|neurons| &neurons.biases);
                let rows = change.biases.values().chain(biases).chain(vectors);
                let rows = rows.map(|row| row.clone().unsqueeze_dim::<2>(0));
                let of_neurons = neurons().flat_map(|neurons| [neurons.keys.clone(), neurons.values.clone()]);
                matrices.chain(rows).chain(of_neurons).collect()
            }
            Change::Memory(memory) => memory.values.iter().chain([&memory.keys]).cloned().collect(),
        };
        let finite = |tensor: Tensor<2>| tensor.into_data().iter::<f64>().all(f64::is_finite);
        of_change.into_iter().chain(self.state.values().cloned()).all(finite)
    }

    /// What it changes of a pass, where that is what it does. Code that decides by the kind of change matches on it instead, so that
    /// a new kind is not passed over.
    pub fn pass(&self) -> Option<&PassChange> {
        match &self.change {
            Change::Pass(change) => Some(change),
            Change::Memory(_) => None,
        }
    }

    /// Its memory, where it is one; see [`Edit::pass`].
    pub fn memory(&self) -> Option<&Memory> {
        match &self.change {
            Change::Pass(_) => None,
            Change::Memory(memory) => Some(memory),
        }
    }

    /// What it changes of weights, where that is all that it does.
    ///
    /// # Errors
    /// Why a stack with this edit cannot be written as weights.
    pub fn exportable(&self) -> Result<&PassChange> {
        let what = match &self.change {
            Change::Pass(change) if change.is_of_weights() => return Ok(change),
            Change::Pass(_) => "does more than change weights",
            Change::Memory(_) => "is a memory: it changes no weight",
        };
        Err(not_exported(&format!("edit {}", self.id), what))
    }

    /// Whether it changes what a pass gives.
    pub fn changes_pass(&self) -> bool {
        match &self.change {
            Change::Pass(_) => true,
            Change::Memory(_) => false,
        }
    }

    /// The same edit, by its id, without what it adds to weights.
    fn without_change(&self) -> Edit {
        let (id, provenance, state) = (self.id.clone(), self.provenance.clone(), self.state.clone());
        Edit { id, provenance, change: Change::Pass(PassChange::default()), state }
    }

    /// The same edit with its memory's networks.
    pub fn bound(mut self, route: std::sync::Arc<dyn Route>) -> Edit {
        self.change = match self.change {
            Change::Memory(memory) => Change::Memory(memory.bound(route)),
            weights @ Change::Pass(_) => weights,
        };
        self
    }

    /// A memory without some of its entries.
    ///
    /// # Errors
    /// It is no memory, has no such entry, or none would be left.
    pub fn forget(&self, entries: &[usize]) -> Result<Edit> {
        let Some(memory) = self.memory() else {
            return Err(Error::Input(format!("edit {} is no memory: it changes the pass itself", self.id)));
        };
        let count = self.provenance.requests.len();
        if let Some(missing) = entries.iter().find(|&&entry| entry >= count) {
            return Err(Error::Input(format!("the memory has no entry {missing}; it has entries 0 to {}", count - 1)));
        }
        let stay: Vec<usize> = (0..count).filter(|index| !entries.contains(index)).collect();
        if stay.is_empty() {
            return Err(Error::Input("nothing would be left in the memory; remove its file instead".into()));
        }
        Ok(self.restricted(memory, &stay))
    }

    fn restricted(&self, memory: &Memory, stay: &[usize]) -> Edit {
        let mut provenance = self.provenance.clone();
        let count = provenance.requests.len();
        provenance.requests = stay.iter().map(|&index| self.provenance.requests[index].clone()).collect();
        // What was found for each of them stays with it.
        let lists =
            provenance.findings.as_object_mut().into_iter().flatten().filter_map(|(_, found)| found.as_array_mut());
        for list in lists.filter(|list| list.len() == count) {
            *list = stay.iter().map(|&index| list[index].clone()).collect();
        }
        Edit::new(provenance, Change::Memory(memory.chosen(stay)), self.state.clone())
    }

    /// The hash of its contents: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Writes it as one safetensors file, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        crate::files::write(path, &self.bytes())
    }

    /// What its file holds.
    pub fn bytes(&self) -> Vec<u8> {
        file::contents(self)
    }

    /// Reads an edit file; its tensors go to `device`.
    ///
    /// # Errors
    /// A file that is missing, broken, or no edit.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let bytes = crate::files::read(path)?;
        file::read(&bytes, device).map_err(|message| Error::file(path, message))
    }
}
