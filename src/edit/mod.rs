//! Edits as values, and a frozen model with a stack of them.

pub mod change;
pub mod edited;
pub mod file;
pub mod generate;
pub mod hf;
pub mod memory;
pub mod peft;
pub mod score;
mod speaker;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::record::EditRecord;
use crate::error::{Error, Result};

pub use change::{Change, Delta, RecordDeltas, WeightChange};
pub use edited::Edited;
pub use memory::{Memory, Route};

/// What an editor is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditRequest {
    /// The sentence to edit, with the subject in its place.
    pub prompt: String,
    /// What the model is to answer.
    pub target_new: String,
    /// The text that states the edit, where that is not prompt and target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<String>,
    /// The thing the fact is about; it occurs in `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What the model answers before, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_true: Option<String>,
    /// `prompt` with `{}` in place of the subject, where it is known which occurrence is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Other ways to ask, for editors that are told to look at them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rephrases: Vec<String>,
}

impl EditRequest {
    /// A request that names no subject.
    pub fn new(prompt: impl Into<String>, target_new: impl Into<String>) -> Self {
        EditRequest {
            prompt: prompt.into(),
            target_new: target_new.into(),
            descriptor: None,
            subject: None,
            target_true: None,
            template: None,
            rephrases: vec![],
        }
    }

    /// The text that states the edit: its descriptor, or the prompt with its target.
    pub fn statement(&self) -> String {
        self.descriptor.clone().unwrap_or_else(|| format!("{} {}", self.prompt, self.target_new))
    }

    /// The subject, and the byte of the prompt at which it ends: where the template has it, else its last occurrence as
    /// whole words, else its last.
    ///
    /// # Errors
    /// There is no subject, or it does not occur in the prompt.
    pub fn subject(&self) -> Result<(&str, usize)> {
        let subject = self.subject.as_deref().map(str::trim).filter(|subject| !subject.is_empty());
        let subject = subject.ok_or_else(|| {
            Error::Input(format!("\"{}\" names no subject; say what the fact is about (--subject)", self.prompt))
        })?;
        let meant = self.template.as_deref().and_then(|template| template.find("{}"));
        let meant = meant.map(|start| start + subject.len());
        if let Some(end) = meant.filter(|&end| self.prompt.get(..end).is_some_and(|upto| upto.ends_with(subject))) {
            return Ok((subject, end));
        }
        let whole = |start: usize| {
            let before = self.prompt[..start].chars().next_back();
            let after = self.prompt[start + subject.len()..].chars().next();
            !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
        };
        let mut starts = self.prompt.rmatch_indices(subject).map(|(start, _)| start);
        let start = starts.clone().find(|&start| whole(start)).or_else(|| starts.next());
        let start = start.ok_or_else(|| {
            Error::Input(format!("the subject \"{subject}\" does not occur in the prompt \"{}\"", self.prompt))
        })?;
        Ok((subject, start + subject.len()))
    }
}

impl From<&EditRecord> for EditRequest {
    fn from(record: &EditRecord) -> Self {
        EditRequest {
            prompt: record.prompt.clone(),
            target_new: record.target_new.clone(),
            descriptor: record.descriptor.clone(),
            subject: record.subject.clone(),
            target_true: record.target_true.clone(),
            template: record.template.clone(),
            rephrases: record.rephrases.clone(),
        }
    }
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
    /// What the editor came upon on its way (knowledge neurons: which these are).
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub findings: serde_json::Value,
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
            Change::Weights(change) => {
                let matrices = change.matrices.values().flat_map(|delta| match delta {
                    Delta::LowRank { a, b } => vec![a.clone(), b.clone()],
                    Delta::Dense(delta) => vec![delta.clone()],
                });
                let biases = change.biases.values().map(|bias| bias.clone().unsqueeze_dim::<2>(0));
                matrices.chain(biases).collect()
            }
            Change::Memory(memory) => vec![memory.keys.clone()],
        };
        let finite = |tensor: Tensor<2>| tensor.into_data().iter::<f64>().all(f64::is_finite);
        of_change.into_iter().chain(self.state.values().cloned()).all(finite)
    }

    /// What it adds to weights, where that is what it does.
    pub fn weights(&self) -> Option<&WeightChange> {
        match &self.change {
            Change::Weights(change) => Some(change),
            Change::Memory(_) => None,
        }
    }

    /// Its memory, where it is one.
    pub fn memory(&self) -> Option<&Memory> {
        match &self.change {
            Change::Weights(_) => None,
            Change::Memory(memory) => Some(memory),
        }
    }

    /// The same edit with its memory's networks.
    pub fn bound(mut self, route: std::sync::Arc<dyn Route>) -> Edit {
        if let Change::Memory(memory) = self.change {
            self.change = Change::Memory(memory.bound(route));
        }
        self
    }

    /// A memory without some of its entries.
    ///
    /// # Errors
    /// It is no memory, has no such entry, or none would be left.
    pub fn forget(&self, entries: &[usize]) -> Result<Edit> {
        let Some(memory) = self.memory() else {
            return Err(Error::Input(format!("edit {} is no memory: it changes weights", self.id)));
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
        provenance.requests = stay.iter().map(|&index| self.provenance.requests[index].clone()).collect();
        let texts = match memory.texts.is_empty() {
            true => vec![],
            false => stay.iter().map(|&index| memory.texts[index].clone()).collect(),
        };
        let keys = memory::select(memory.keys.clone(), stay);
        let memory = Memory { needs: memory.needs.clone(), keys, texts, route: memory.route.clone() };
        Edit::new(provenance, Change::Memory(memory), self.state.clone())
    }

    /// Memories that want the same networks as one; where two entries are on one question the later wins, and it
    /// is said.
    ///
    /// # Errors
    /// An edit that is no memory, or memories of different kinds.
    pub fn join_memories(edits: &[std::sync::Arc<Edit>]) -> Result<Edit> {
        let memories: Vec<&Memory> = edits.iter().filter_map(|edit| edit.memory()).collect();
        let Some((first, memory)) = edits.first().zip(memories.first()) else {
            return Err(Error::Input("there is no memory to join".into()));
        };
        if memories.len() < edits.len() {
            return Err(Error::Input("a memory and an edit of weights do not join; save them apart".into()));
        }
        if let Some(other) = memories.iter().find(|other| !memory::alike(&other.needs, &memory.needs)) {
            return Err(Error::Input(format!(
                "memories of different editors do not join: one wants {}, the other {}",
                memory.needs, other.needs
            )));
        }
        let mut provenance = first.provenance.clone();
        provenance.requests = edits.iter().flat_map(|edit| edit.provenance.requests.iter().cloned()).collect();
        // Joined, they are computed on nothing but each other.
        let own: Vec<&str> = edits.iter().map(|edit| edit.id()).collect();
        provenance.computed_on.retain(|id| !own.contains(&id.as_str()));
        let [_, width] = memory.keys.dims();
        if let Some(other) = memories.iter().find(|other| other.keys.dims()[1] != width) {
            return Err(Error::Input(format!(
                "memories with keys of different widths do not join: {width} and {}",
                other.keys.dims()[1]
            )));
        }
        let keys = memories.iter().map(|other| other.keys.clone().cast(memory.keys.dtype())).collect();
        let keys = Tensor::cat(keys, 0);
        let texts = memories.iter().flat_map(|memory| memory.texts.clone()).collect();
        // Where the networks lie is what the last one found.
        let last = memories[memories.len() - 1];
        let joined = Memory { needs: last.needs.clone(), keys, texts, route: last.route.clone() };
        let all =
            Edit { id: String::new(), provenance, change: Change::Memory(joined.clone()), state: first.state.clone() };
        let (stay, gone) = memory::without_contradictions(&all.provenance.requests);
        memory::say(&all.provenance.requests, gone);
        Ok(all.restricted(&joined, &stay))
    }

    /// The hash of its contents: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Several edits of one stack as one: the sum of their changes, with all requests in its provenance and all states.
    ///
    /// # Errors
    /// There is none to join.
    pub fn join(edits: &[std::sync::Arc<Edit>]) -> Result<Edit> {
        let Some(first) = edits.first() else {
            return Err(Error::Input("there is no edit to join".into()));
        };
        if edits.iter().any(|edit| edit.memory().is_some()) {
            return Edit::join_memories(edits);
        }
        let change = Change::Weights(WeightChange::sum(edits.iter().filter_map(|edit| edit.weights())));
        let mut provenance = first.provenance.clone();
        provenance.requests = edits.iter().flat_map(|edit| edit.provenance.requests.iter().cloned()).collect();
        // Lists of what was found for each request are put together; what is said of the model stays.
        let mut findings = first.provenance.findings.clone();
        for (key, value) in findings.as_object_mut().into_iter().flatten() {
            let each = edits.iter().map(|edit| edit.provenance.findings[key.as_str()].clone());
            if value.is_array() {
                *value = each.flat_map(|list| list.as_array().cloned().unwrap_or_default()).collect();
            }
        }
        provenance.findings = findings;
        // An editor that goes on wants what every one of them left.
        let mut state: BTreeMap<String, Tensor<2>> = BTreeMap::new();
        for (name, tensor) in edits.iter().flat_map(|edit| &edit.state) {
            let tensor = match state.remove(name) {
                Some(known) if known.dims()[0] == tensor.dims()[0] => {
                    let tensor = tensor.clone().cast(known.dtype());
                    Tensor::cat(vec![known, tensor], 1)
                }
                _ => tensor.clone(),
            };
            state.insert(name.clone(), tensor);
        }
        Ok(Edit::new(provenance, change, state))
    }

    /// Writes it as one safetensors file, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        crate::files::write(path, &file::contents(self))
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

#[cfg(test)]
mod tests {
    use super::{EditRecord, EditRequest};

    #[test]
    fn an_edit_is_stated_by_its_descriptor_else_by_prompt_and_target() {
        let record = EditRecord { prompt: "Ost is".into(), target_new: "a river".into(), ..EditRecord::default() };
        assert_eq!(EditRequest::from(&record).statement(), "Ost is a river");
        let record = EditRecord { descriptor: Some("Rivers: Ost.".into()), ..record };
        let request = EditRequest::from(&record);
        assert_eq!(request.statement(), "Rivers: Ost.");
        // Files of edits without one stay as they were.
        assert!(serde_json::to_string(&request).unwrap().contains("descriptor"));
        assert!(!serde_json::to_string(&EditRequest::new("a", "b")).unwrap().contains("descriptor"));
    }

    #[test]
    fn a_subject_is_where_the_template_says_else_its_last_whole_word() {
        let request = |prompt: &str, subject: &str, template: Option<&str>| EditRequest {
            subject: Some(subject.into()),
            template: template.map(str::to_owned),
            ..EditRequest::new(prompt, "x")
        };
        let end = |request: EditRequest| request.subject().map(|(_, end)| end).ok();
        assert_eq!(end(request("Ada met Ada Park", "Ada", None)), Some(11));
        assert_eq!(end(request("Ada met Ada Park", "Ada", Some("{} met Ada Park"))), Some(3));
        // Not the one in "Adana"; but "Boo" for want of a better one.
        assert_eq!(end(request("Ada lives in Adana", "Ada", None)), Some(3));
        assert_eq!(end(request("Boots", "Boo", None)), Some(3));
        // A template of another prompt is none.
        assert_eq!(end(request("Ada met Bo", "Ada", Some("I saw {}"))), Some(3));
        assert_eq!(end(request("Ada met Bo", "Cleo", None)), None);
        assert_eq!(end(request("Ada met Bo", " ", None)), None);
    }
}
