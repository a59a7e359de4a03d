//! A frozen base and an ordered stack of edits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use super::change::{Delta, Deltas};
use super::memory::{Consulted, Recall, alike};
use super::{Edit, EditRequest};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::decoder::Decoder;
use crate::model::past::Past;
use crate::model::tap::{Both, Span, Tap, Weight};
use crate::model::tokens::Tokens;

/// A frozen base with edits on it: all that evaluation, prediction and generation see. Cheap to clone.
#[derive(Clone)]
pub struct Edited {
    base: Arc<Model>,
    edits: Vec<Arc<Edit>>,
    /// The base's decoder, with the weights replaced whose changes are too large to run as factors.
    decoder: Decoder,
    deltas: Deltas,
    id: String,
    /// The hash of the base and of the edits that change weights.
    weights_id: String,
    /// Lists that are consulted before the weights are asked, lowest first.
    memories: Vec<Arc<Recall>>,
}

impl Edited {
    /// The base without edits.
    pub fn new(base: Arc<Model>) -> Self {
        let decoder = base.decoder.clone();
        let id = base.fingerprint.clone();
        let (weights_id, deltas) = (id.clone(), Deltas::default());
        Edited { base, edits: vec![], decoder, deltas, id, weights_id, memories: vec![] }
    }

    /// A model whose tokenizer and config are the base's, but whose weights are another decoder's, known by `id`.
    pub fn with_decoder(base: Arc<Model>, decoder: Decoder, id: String) -> Self {
        Edited { decoder, weights_id: id.clone(), id, ..Edited::new(base) }
    }

    /// The frozen base.
    pub fn base(&self) -> &Arc<Model> {
        &self.base
    }

    /// The edits, lowest first.
    pub fn edits(&self) -> &[Arc<Edit>] {
        &self.edits
    }

    /// The base's fingerprint, or the hash of it and of the edits' ids.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The base's fingerprint, or the hash of it and of the ids of the edits that change weights.
    pub fn weights_id(&self) -> &str {
        &self.weights_id
    }

    /// The ids of the edits, lowest first: what a further edit is computed on.
    pub fn edit_ids(&self) -> Vec<String> {
        self.edits.iter().map(|edit| edit.id().to_owned()).collect()
    }

    /// The same model with one edit more on top.
    ///
    /// # Errors
    /// An edit made on another base, or of weights this model does not have.
    pub fn with(&self, edit: impl Into<Arc<Edit>>) -> Result<Edited> {
        let edit = edit.into();
        if edit.provenance.base != self.base.fingerprint {
            return Err(Error::OtherBase {
                what: format!("edit {}", edit.id()),
                made_on: edit.provenance.base.clone(),
                model: self.base.fingerprint.clone(),
            });
        }
        self.with_foreign(edit)
    }

    /// As [`Edited::with`], for an edit that may have been made on another base.
    ///
    /// # Errors
    /// An edit of weights this model does not have, or has in another shape.
    pub fn with_foreign(&self, edit: impl Into<Arc<Edit>>) -> Result<Edited> {
        let edits = self.edits.iter().cloned().chain([edit.into()]).collect();
        Edited::stack(self.base.clone(), edits)
    }

    /// The same model without one edit of the stack, and the ids of later edits that were computed on it.
    ///
    /// # Errors
    /// There is no such edit.
    pub fn without(&self, id: &str) -> Result<(Edited, Vec<String>)> {
        let mut edits = self.edits.clone();
        let index = edits.iter().position(|edit| edit.id() == id);
        let index = index.ok_or_else(|| Error::Input(format!("there is no edit {id} on this model")))?;
        edits.remove(index);
        let later = edits[index..].iter().filter(|edit| edit.provenance.computed_on.iter().any(|on| on == id));
        let dependent = later.map(|edit| edit.id().to_owned()).collect();
        Ok((Edited::stack(self.base.clone(), edits)?, dependent))
    }

    fn stack(base: Arc<Model>, edits: Vec<Arc<Edit>>) -> Result<Edited> {
        let mut edited = Edited::new(base);
        if edits.is_empty() {
            return Ok(edited);
        }
        let dtype = edited.decoder.dtype();
        let mut changes: BTreeMap<Weight, Vec<&Delta>> = BTreeMap::new();
        for change_edit in edits.iter().filter_map(|edit| Some((edit.weights()?, edit))) {
            let (change, edit) = change_edit;
            for (at, delta) in &change.matrices {
                let [d_in, d_out] = shape(&edited.base, edit, *at)?;
                check_shape(edit, *at, &[d_in, d_out], &delta.shape())?;
                changes.entry(*at).or_default().push(delta);
            }
            for (at, bias) in &change.biases {
                let [_, d_out] = shape(&edited.base, edit, *at)?;
                check_shape(edit, *at, &[d_out], &bias.dims())?;
                let bias = bias.clone().cast(dtype);
                let sum = edited.deltas.biases.remove(at).map_or_else(|| bias.clone(), |known| known + bias.clone());
                edited.deltas.biases.insert(*at, sum);
            }
        }
        for (at, deltas) in changes {
            let linear = edited.base.decoder.linear(at)?;
            let [d_in, d_out] = linear.weight.val().dims();
            let rank: usize = deltas.iter().map(|delta| delta.rank()).sum();
            let dense = deltas.iter().any(|delta| matches!(delta, Delta::Dense(_)));
            // Factors cost rank·(d_in + d_out) a token, the product d_in·d_out: from there on the sum is cheaper.
            if dense || rank * (d_in + d_out) >= d_in * d_out {
                let weight = linear.weight.val();
                let exact = deltas[0].dtype();
                let sum = deltas.iter().fold(weight.cast(exact), |sum, delta| sum + delta.dense());
                let bias = linear.bias.as_ref().map(|bias| bias.val());
                edited.decoder = edited.decoder.with_linear(at, sum.cast(dtype), bias)?;
            } else {
                let factors = deltas.into_iter().filter_map(|delta| match delta {
                    Delta::LowRank { a, b } => Some((a.clone(), b.clone())),
                    Delta::Dense(_) => None,
                });
                let (a, b): (Vec<_>, Vec<_>) = factors.unzip();
                edited.deltas.matrices.insert(at, (Tensor::cat(a, 1).cast(dtype), Tensor::cat(b, 0).cast(dtype)));
            }
        }
        let all = |edits: Vec<&Arc<Edit>>| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(edited.base.fingerprint.as_bytes());
            for edit in edits {
                hasher.update(edit.id().as_bytes());
            }
            hasher.finalize().to_hex().to_string()
        };
        let changing: Vec<&Arc<Edit>> = edits.iter().filter(|edit| edit.weights().is_some()).collect();
        if !changing.is_empty() {
            edited.weights_id = all(changing);
        }
        edited.id = all(edits.iter().collect());
        let mut memories: Vec<Recall> = vec![];
        for (number, edit) in edits.iter().enumerate() {
            let Some(memory) = edit.memory() else { continue };
            let below = edits[..number].iter().filter(|edit| edit.weights().is_some()).cloned().collect();
            let recall = Recall::new(edit, memory, Edited::stack(edited.base.clone(), below)?)?;
            // One list of all that is consulted alike: the nearest entry answers, whichever edit it came with.
            match memories.pop() {
                Some(last) if alike(&last.needs, &recall.needs) && last.below.weights_id == recall.below.weights_id => {
                    memories.push(last.and(recall));
                }
                last => memories.extend(last.into_iter().chain([recall])),
            }
        }
        edited.memories = memories.into_iter().map(Arc::new).collect();
        edited.edits = edits;
        Ok(edited)
    }

    /// For each prompt what the topmost memory that has a say makes of it; nothing where the weights answer.
    ///
    /// # Errors
    /// A prompt that a memory's networks cannot take.
    pub fn consult(&self, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        let mut consulted = vec![None; prompts.len()];
        for recall in self.memories.iter().rev() {
            let open: Vec<usize> = (0..prompts.len()).filter(|&index| consulted[index].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let asked: Vec<String> = open.iter().map(|&index| prompts[index].clone()).collect();
            for (index, answer) in open.into_iter().zip(recall.route.consult(recall, &asked)?) {
                consulted[index] = answer;
            }
        }
        Ok(consulted)
    }

    /// The entry of a memory that answers a prompt, and how sure the memory is that it is meant; nothing where the weights answer.
    ///
    /// # Errors
    /// A prompt that a memory's networks cannot take.
    pub fn consulted(&self, prompt: &str) -> Result<Option<(EditRequest, f64)>> {
        for recall in self.memories.iter().rev() {
            if let Some(said) = recall.route.consult(recall, &[prompt.to_owned()])?.pop().flatten() {
                return Ok(Some((recall.requests[said.entry].clone(), said.scope)));
            }
        }
        Ok(None)
    }

    /// Whether there is a memory to consult.
    pub fn has_memory(&self) -> bool {
        !self.memories.is_empty()
    }

    /// The memories, lowest first.
    pub fn memories(&self) -> &[Arc<Recall>] {
        &self.memories
    }

    /// A weight `[d_in, d_out]` and its bias `[d_out]` as the edits made them, multiplied out.
    ///
    /// # Errors
    /// The model has no such weight.
    pub fn weight(&self, at: Weight) -> Result<(Tensor<2>, Option<Tensor<1>>)> {
        let linear = self.decoder.linear(at)?;
        let mut weight = linear.weight.val();
        if let Some((a, b)) = self.deltas.matrices.get(&at) {
            weight = weight + a.clone().matmul(b.clone());
        }
        let bias = match (linear.bias.as_ref().map(|bias| bias.val()), self.deltas.biases.get(&at)) {
            (Some(bias), Some(delta)) => Some(bias + delta.clone()),
            (bias, delta) => bias.or_else(|| delta.cloned()),
        };
        Ok((weight, bias))
    }

    /// Refuses a stack with a memory: it cannot be written as weights.
    ///
    /// # Errors
    /// Names the edit.
    pub fn check_exportable(&self) -> Result<()> {
        match self.edits.iter().find(|edit| edit.memory().is_some()) {
            None => Ok(()),
            Some(edit) => Err(Error::Input(format!(
                "edit {} is a memory: it changes no weight and cannot be exported; its file (--save) is all there is of it",
                edit.id()
            ))),
        }
    }

    /// The number of layers.
    pub fn layers(&self) -> usize {
        self.decoder.spec.layers
    }

    /// The lowest layer whose result may differ between two stacks on one base; the number of layers if none does.
    pub fn first_difference(&self, other: &Edited) -> usize {
        let common = self.edits.iter().zip(&other.edits).take_while(|(a, b)| a.id() == b.id()).count();
        let apart = self.edits[common..].iter().chain(&other.edits[common..]);
        let changed = apart
            .filter_map(|edit| edit.weights())
            .flat_map(|change| change.matrices.keys().chain(change.biases.keys()).map(|at| at.layer));
        changed.min().unwrap_or(self.layers())
    }

    /// Tokens to the input of the first block, `[batch, tokens, width]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a position outside the context.
    pub fn embed(&self, tokens: &Tokens, tap: &mut dyn Tap) -> Result<Tensor<3>> {
        self.decoder.embed(tokens, tap)
    }

    /// The residual stream through the edited blocks of `layers`. The tap sees what the edits made.
    ///
    /// # Errors
    /// A past of another model, or one that does not fit the batch.
    pub fn blocks(
        &self,
        hidden: Tensor<3>,
        layers: Range<usize>,
        span: &Span,
        past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor<3>> {
        if let Some(past) = &past {
            past.check_owner(&self.weights_id)?;
        }
        self.decoder.blocks(hidden, layers, span, past, &mut Both(&self.deltas, tap))
    }

    /// Logits `[positions, vocabulary]` at (row, cell) pairs.
    pub fn head(&self, hidden: Tensor<3>, positions: &[(usize, usize)]) -> Tensor<2> {
        self.decoder.head(hidden, positions)
    }

    /// An empty past of this model.
    pub fn past(&self) -> Past {
        Past::new(self.weights_id.clone(), self.layers())
    }
}

/// `[d_in, d_out]` of a weight that an edit changes.
fn shape(base: &Model, edit: &Edit, at: Weight) -> Result<[usize; 2]> {
    let linear = base.decoder.linear(at).map_err(|error| Error::Input(format!("edit {}: {error}", edit.id())))?;
    Ok(linear.weight.val().dims())
}

fn check_shape(edit: &Edit, at: Weight, model: &[usize], delta: &[usize]) -> Result<()> {
    if model == delta {
        return Ok(());
    }
    Err(Error::Input(format!("edit {} changes {at} as {delta:?}, but the model has it as {model:?}", edit.id())))
}
