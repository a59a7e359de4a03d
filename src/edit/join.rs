//! Several edits of one stack as one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::Tensor;
use serde_json::{Value, json};

use super::memory::{self, Memory};
use super::{Change, Edit, PassChange, Provenance};
use crate::error::{Error, Result};

/// Edits that become one, taken in one by one: what a weight change adds is summed, and kept no longer by itself.
#[derive(Default)]
pub struct Joined {
    /// The first edit's, with all requests and findings.
    provenance: Option<Provenance>,
    /// Each method with its settings, once.
    made_by: Vec<(String, Value)>,
    change: PassChange,
    memories: Vec<Arc<Edit>>,
    /// The ids of all.
    of: Vec<String>,
    state: BTreeMap<String, (Tensor<2>, String)>,
}

impl Joined {
    /// Takes in one more.
    ///
    /// # Errors
    /// A memory beside a change of weights; states of different widths.
    pub fn add(&mut self, edit: &Arc<Edit>) -> Result<()> {
        match &edit.change {
            Change::Pass(_) if !self.memories.is_empty() => return Err(apart()),
            Change::Pass(change) => self.change = PassChange::sum([&self.change, change].into_iter()),
            Change::Memory(_) if self.provenance.is_some() && self.memories.is_empty() => return Err(apart()),
            Change::Memory(_) => self.memories.push(edit.clone()),
        }
        self.add_state(edit)?;
        self.of.extend(edit.parts().map(str::to_owned));
        let made_by = (edit.provenance.method.clone(), edit.provenance.settings.clone());
        if !self.made_by.contains(&made_by) {
            self.made_by.push(made_by);
        }
        let Some(provenance) = &mut self.provenance else {
            self.provenance = Some(edit.provenance.clone());
            return Ok(());
        };
        provenance.take_in(&edit.provenance);
        Ok(())
    }

    /// What an edit left for its editor stands beside what the others left: an editor that goes on wants all of it.
    fn add_state(&mut self, edit: &Edit) -> Result<()> {
        for (name, tensor) in &edit.state {
            let joined = match self.state.remove(name) {
                None => tensor.clone(),
                Some((known, first)) => {
                    let ([rows, _], [more, _]) = (known.dims(), tensor.dims());
                    if rows != more {
                        return Err(Error::Input(format!(
                            "edits {first} and {} do not join: their state \"{name}\" is {rows} and {more} wide; save them apart",
                            edit.id()
                        )));
                    }
                    let tensor = tensor.clone().cast(known.dtype());
                    Tensor::cat(vec![known, tensor], 1)
                }
            };
            self.state.insert(name.clone(), (joined, edit.id().to_owned()));
        }
        Ok(())
    }

    /// All of them as one: the sum of their changes, with all requests in its provenance and all states.
    ///
    /// # Errors
    /// There was none; memories of different kinds.
    pub fn edit(self) -> Result<Edit> {
        if !self.memories.is_empty() {
            return Edit::join_memories(&self.memories);
        }
        let mut provenance = self.provenance.ok_or_else(|| Error::Input("there is no edit to join".into()))?;
        let methods: BTreeSet<&str> = self.made_by.iter().map(|(method, _)| method.as_str()).collect();
        if methods.len() > 1 {
            provenance.method = methods.into_iter().collect::<Vec<_>>().join("+");
            provenance.settings =
                self.made_by.iter().map(|(method, settings)| json!({"method": method, "settings": settings})).collect();
        }
        // A join of one edit is that edit.
        provenance.joined = if self.of.len() > 1 { self.of } else { vec![] };
        let state = self.state.into_iter().map(|(name, (tensor, _))| (name, tensor)).collect();
        Ok(Edit::new(provenance, Change::Pass(self.change), state))
    }
}

impl Provenance {
    /// The requests of another edit behind its own, with what was found for each of them; what is said of the model stays.
    fn take_in(&mut self, other: &Provenance) {
        for (key, value) in self.findings.as_object_mut().into_iter().flatten() {
            let more = other.findings[key.as_str()].as_array();
            if let (Value::Array(list), Some(more)) = (value, more)
                && list.len() == self.requests.len()
            {
                list.extend(more.iter().cloned());
            }
        }
        self.requests.extend(other.requests.iter().cloned());
    }
}

fn apart() -> Error {
    Error::Input("a memory and an edit that is none do not join; save them apart".into())
}

impl Edit {
    /// Several edits of one stack as one; see [`Joined`].
    ///
    /// # Errors
    /// There is none to join, or they do not fit together.
    pub fn join(edits: &[Arc<Edit>]) -> Result<Edit> {
        let mut joined = Joined::default();
        edits.iter().try_for_each(|edit| joined.add(edit))?;
        joined.edit()
    }

    /// Memories that want the same networks as one; where two entries are on one question the later wins,
    /// and a warning names it.
    ///
    /// # Errors
    /// An edit that is no memory, or memories of different kinds.
    pub fn join_memories(edits: &[Arc<Edit>]) -> Result<Edit> {
        let memories: Vec<&Memory> = edits.iter().filter_map(|edit| edit.memory()).collect();
        let Some((first, memory)) = edits.first().zip(memories.first()) else {
            return Err(Error::Input("there is no memory to join".into()));
        };
        if memories.len() < edits.len() {
            return Err(apart());
        }
        if let Some(other) = memories.iter().find(|other| !memory::alike(&other.needs, &memory.needs)) {
            return Err(Error::Input(format!(
                "memories of different editors do not join: one wants {}, the other {}",
                memory.needs, other.needs
            )));
        }
        let mut provenance = first.provenance.clone();
        edits[1..].iter().for_each(|edit| provenance.take_in(&edit.provenance));
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
        let values = memories.iter().try_fold(None, |values: Option<Option<Tensor<2>>>, memory| match values {
            None => Ok(Some(memory.values.clone())),
            Some(values) => memory::both(values, memory.values.clone()).map(Some),
        });
        let values = values?.flatten();
        let joined = Memory { needs: last.needs.clone(), keys, texts, values, route: last.route.clone() };
        let all =
            Edit { id: String::new(), provenance, change: Change::Memory(joined.clone()), state: first.state.clone() };
        let (stay, gone) = memory::without_contradictions(&all.provenance.requests);
        memory::warn_of_replaced(&all.provenance.requests, gone);
        Ok(all.restricted(&joined, &stay))
    }
}
