//! A memory of edits: an explicit list that is consulted once a prompt, on the prompt without its target. No weight changes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use serde_json::Value;

use super::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::stack::past::Past;
use crate::model::tap::NoTap;
use crate::model::tokens::Tokens;

/// The change of an edit that leaves every weight alone. Its entries are the requests of the edit's provenance, in their order.
#[derive(Clone)]
pub struct Memory {
    /// What is wanted to consult it, as its editor wrote it down: where the networks lie, a radius, ... Memories that want the same
    /// are consulted as one list.
    pub needs: Value,
    /// What each entry is found by, `[entries, width]`.
    pub keys: Tensor<2>,
    /// What is put before a prompt for each entry, where that is how it answers; else empty.
    pub texts: Vec<String>,
    /// What each entry puts in the place of an activation, `[entries, width]`, where that is how it answers.
    pub values: Option<Tensor<2>>,
    /// What consults it; nothing until the networks were found.
    pub route: Option<Arc<dyn Route>>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.route.is_some();
        f.debug_struct("Memory").field("needs", &self.needs).field("keys", &self.keys).field("bound", &bound).finish()
    }
}

/// Decides how a prompt is answered: by an entry of the memory, or by the model alone.
pub trait Route: Send + Sync {
    /// Width of the keys that it compares.
    fn width(&self) -> usize;

    /// For each prompt the answer that the memory names; nothing where no entry has it in scope.
    ///
    /// # Errors
    /// A prompt that its networks cannot take.
    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>>;

    /// Works out how far entries reach from `from` on, and what becomes of the reach of those before them, where reaches depend on each other
    /// ([`Recall::reach`]). They are never stored: an edit that is taken back gives the others back what it took from them.
    ///
    /// # Errors
    /// An entry whose target is no text.
    fn settle(&self, recall: &mut Recall, from: usize) -> Result<()> {
        let _ = (recall, from);
        Ok(())
    }
}

/// All entries of a stack that are consulted together.
#[derive(Clone)]
pub struct Recall {
    /// The entries, oldest first.
    pub requests: Vec<EditRequest>,
    /// `[entries, width]`
    pub keys: Tensor<2>,
    /// See [`Memory::texts`].
    pub texts: Vec<String>,
    /// See [`Memory::values`].
    pub values: Option<Tensor<2>>,
    /// How far each entry reaches, where [`Route::settle`] works that out; else empty.
    pub reach: Vec<f64>,
    /// The keys as numbers, in the order that a route reads them in, where that is what it compares; else empty.
    pub numbers: Arc<Vec<f32>>,
    /// What the entries' values come to, by the numbers of side memories, where [`Route::settle`] merges them; else empty.
    pub sides: BTreeMap<usize, SideMemory>,
    /// See [`Memory::needs`].
    pub needs: Value,
    /// The ids of the edits they come from, one an entry.
    pub edits: Vec<String>,
    /// The model with the weight edits that come before these entries in the stack.
    pub model: Edited,
    /// What consults them.
    pub route: Arc<dyn Route>,
}

/// The increments of many entries to one matrix, merged.
#[derive(Clone)]
pub struct SideMemory {
    /// The sum of the increments of each shard.
    pub shards: BTreeMap<usize, Vec<f32>>,
    /// What they come to together, ΔW `[d_in, d_out]`.
    pub delta: Tensor<2>,
    /// The model with ΔW.
    pub model: Edited,
    /// The least Δ of its entries.
    pub least: f64,
}

/// The entry that has a prompt in its scope, and the answer to it.
#[derive(Clone)]
pub struct Consulted {
    /// The entry; nothing where many answer together.
    pub entry: Option<usize>,
    /// How sure the memory is, from 0 to 1, that the prompt is in the entry's scope.
    pub scope: f64,
    /// The answer.
    pub answer: Answer,
}

/// How a prompt in scope is answered.
// A model is a handle: one in place costs less than a box.
#[allow(clippy::large_enum_variant)]
#[derive(Clone)]
pub enum Answer {
    /// Another model, asked `prompt`. Its share of the mixture `(1 − s) p_base + s p` is `share`; alone where that is 1.
    Model {
        /// The model.
        model: Edited,
        /// What it is asked.
        prompt: String,
        /// s.
        share: f64,
    },
    /// By the same model, with a text before the prompt.
    Prefixed(Arc<Prefix>),
    /// By the entry's target, as it is.
    Target {
        /// The target.
        text: String,
        /// What stands before it, where the entry says so.
        separator: Option<String>,
    },
}

/// A text before prompts, whose keys and values are computed once for all of them.
pub struct Prefix {
    /// The text, without a space at its end.
    pub text: String,
    /// Where it stands in the turn of a chat: what the template writes before the turn. The text begins with it.
    lead: String,
    kept: Mutex<Option<(String, Vec<u32>, Past)>>,
}

impl Prefix {
    /// A text that stands before prompts, with a space between. In a chat it begins with `lead`, what the template writes before a turn, and
    /// the prompt goes on without that.
    pub fn new(text: String, lead: String) -> Self {
        Prefix { text, lead, kept: Mutex::new(None) }
    }

    /// A prompt behind the text.
    pub fn before(&self, prompt: &str) -> String {
        format!("{} {}", self.text, prompt.strip_prefix(self.lead.as_str()).unwrap_or(prompt))
    }

    /// Its tokens, and their keys and values on the weights of `model`, one row.
    ///
    /// # Errors
    /// A text longer than the context.
    pub fn past(&self, model: &Edited) -> Result<(Vec<u32>, Past)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((owner, ids, past)) = kept.as_ref().filter(|(owner, ..)| owner == model.weights_id()) {
            debug_assert_eq!(owner, model.weights_id());
            return Ok((ids.clone(), past.clone()));
        }
        let ids = model.base().tokenizer.encode_prompt(&self.text)?;
        let mut past = model.past();
        let tokens = Tokens::new(vec![ids.clone()]);
        let hidden = model.embed(&tokens, &mut NoTap)?;
        model.blocks(hidden, 0..model.layers(), tokens.span(), Some(&mut past), &mut NoTap)?;
        *kept = Some((model.weights_id().to_owned(), ids.clone(), past.clone()));
        Ok((ids, past))
    }
}

impl Memory {
    /// The same memory with what consults it.
    pub fn bound(self, route: Arc<dyn Route>) -> Self {
        Memory { route: Some(route), ..self }
    }

    /// # Errors
    /// There is nothing in it, or keys and texts are not those of `entries` entries.
    pub fn check(&self, entries: usize) -> Result<(), String> {
        let [rows, _] = self.keys.dims();
        if entries == 0 || rows == 0 {
            return Err("the memory is empty: it holds no edit".into());
        }
        if rows != entries || (!self.texts.is_empty() && self.texts.len() != entries) {
            return Err(format!("the memory is not whole: {entries} edits, {rows} keys, {} texts", self.texts.len()));
        }
        match &self.values {
            Some(values) if values.dims()[0] != entries => {
                Err(format!("the memory is not whole: {entries} edits, {} values", values.dims()[0]))
            }
            _ => Ok(()),
        }
    }

    /// Some of its entries.
    pub fn chosen(&self, entries: &[usize]) -> Self {
        let texts = match self.texts.is_empty() {
            true => vec![],
            false => entries.iter().map(|&index| self.texts[index].clone()).collect(),
        };
        let keys = select(self.keys.clone(), entries);
        let values = self.values.clone().map(|values| select(values, entries));
        Memory { needs: self.needs.clone(), keys, texts, values, route: self.route.clone() }
    }
}

/// The entries that stay when later ones on the same question win, as indices in their order; and for each that goes the one that
/// takes its place.
pub fn without_contradictions(requests: &[EditRequest]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut last = std::collections::HashMap::new();
    for (index, request) in requests.iter().enumerate() {
        last.insert((&request.prompt, &request.descriptor), index);
    }
    let winner = |index: usize| last[&(&requests[index].prompt, &requests[index].descriptor)];
    let (stay, go): (Vec<usize>, Vec<usize>) = (0..requests.len()).partition(|&index| winner(index) == index);
    (stay, go.into_iter().map(|index| (index, winner(index))).collect())
}

/// As [`without_contradictions`] what stays; warnings name each target that is replaced, and say how many requests were there again.
pub fn without_repetitions(requests: &[EditRequest]) -> Vec<usize> {
    let (stay, gone) = without_contradictions(requests);
    let again = gone.iter().filter(|(old, new)| requests[*old].target_new == requests[*new].target_new).count();
    if again > 0 {
        tracing::warn!("{again} of {} edits are there again further on; each is made once", requests.len());
    }
    warn_of_replaced(requests, gone);
    stay
}

/// The requests without those that a later one on the same question replaces; a warning names each target that is replaced.
pub fn settled(requests: &[EditRequest]) -> Vec<EditRequest> {
    let (stay, gone) = without_contradictions(requests);
    warn_of_replaced(requests, gone);
    stay.into_iter().map(|index| requests[index].clone()).collect()
}

/// Warns of each target that another target for the same question replaces.
pub(super) fn warn_of_replaced(requests: &[EditRequest], gone: Vec<(usize, usize)>) {
    for (old, new) in gone.into_iter().map(|(old, new)| (&requests[old], &requests[new])) {
        if old.target_new != new.target_new {
            tracing::warn!("\"{}\": \"{}\" takes the place of \"{}\"", new.prompt, new.target_new, old.target_new);
        }
    }
}

impl Recall {
    /// The entries of one edit.
    ///
    /// # Errors
    /// A memory whose networks were not found, or that is not whole.
    pub fn new(edit: &super::Edit, memory: &Memory, model: Edited) -> Result<Self> {
        let requests = edit.provenance.requests.clone();
        let wrong = |message: String| Error::Input(format!("edit {}: {message}", edit.id()));
        memory.check(requests.len()).map_err(wrong)?;
        let route = memory.route.clone().ok_or_else(|| wrong("nothing here consults this memory".into()))?;
        let (wide, wanted) = (memory.keys.dims()[1], route.width());
        if wide != wanted {
            return Err(wrong(format!(
                "its keys are {wide} wide, {wanted} are wanted: it is a memory for another classifier"
            )));
        }
        let edits = vec![edit.id().to_owned(); requests.len()];
        let Memory { needs, keys, texts, values, .. } = memory.clone();
        let mut recall = Recall {
            requests,
            keys,
            texts,
            values,
            reach: vec![],
            numbers: Arc::default(),
            sides: BTreeMap::new(),
            needs,
            edits,
            model,
            route,
        };
        recall.route.clone().settle(&mut recall, 0)?;
        Ok(recall)
    }

    /// Both lists as one; of two entries on one question the later wins.
    ///
    /// # Errors
    /// As [`Route::settle`]; entries that do not answer alike.
    pub fn and(self, later: Recall) -> Result<Recall> {
        let known = self.requests.len();
        let join = |a: Vec<_>, b: Vec<_>| -> Vec<EditRequest> { a.into_iter().chain(b).collect() };
        let requests = join(self.requests, later.requests);
        let later_keys = later.keys.cast(self.keys.dtype());
        let keys = Tensor::cat(vec![self.keys, later_keys], 0);
        let texts: Vec<String> = self.texts.into_iter().chain(later.texts).collect();
        let edits: Vec<String> = self.edits.into_iter().chain(later.edits).collect();
        let values = both(self.values, later.values)?;
        let (stay, _) = without_contradictions(&requests);
        let whole = stay.len() == requests.len();
        let pick = |list: Vec<String>| match list.is_empty() {
            true => list,
            false => stay.iter().map(|&index| list[index].clone()).collect(),
        };
        let mut recall = Recall {
            keys: if whole { keys } else { select(keys, &stay) },
            values: if whole { values } else { values.map(|values| select(values, &stay)) },
            reach: if whole { self.reach } else { vec![] },
            numbers: Arc::default(),
            sides: if whole { self.sides } else { BTreeMap::new() },
            requests: stay.iter().map(|&index| requests[index].clone()).collect(),
            texts: pick(texts),
            edits: pick(edits),
            needs: later.needs,
            model: self.model,
            route: later.route,
        };
        recall.route.clone().settle(&mut recall, if whole { known } else { 0 })?;
        Ok(recall)
    }
}

/// The values of two lists, one below the other.
pub(super) fn both(known: Option<Tensor<2>>, later: Option<Tensor<2>>) -> Result<Option<Tensor<2>>> {
    match (known, later) {
        (None, None) => Ok(None),
        (Some(known), Some(later)) if known.dims()[1] == later.dims()[1] => {
            let later = later.cast(known.dtype());
            Ok(Some(Tensor::cat(vec![known, later], 0)))
        }
        _ => Err(Error::Input("memories whose values are not alike do not join".into())),
    }
}

/// Whether memories want the same networks, wherever these lie.
pub fn alike(a: &Value, b: &Value) -> bool {
    let place = |key: &str| matches!(key, "archive" | "encoder");
    let known = |value: &Value| -> Vec<(String, Value)> {
        let keys = value.as_object().into_iter().flatten();
        keys.filter(|(key, _)| !place(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    a == b || (a.get("fingerprint").is_some() && known(a) == known(b))
}

/// Some rows of a matrix.
pub fn select(rows: Tensor<2>, indices: &[usize]) -> Tensor<2> {
    let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    let indices = Tensor::<1, burn::tensor::Int>::from_data(indices.as_slice(), &rows.device());
    rows.select(0, indices)
}
