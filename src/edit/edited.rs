//! A frozen base and an ordered stack of edits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Tensor;

use super::activation::{Acting, Intervention};
use super::change::{Change, Delta, Deltas, PassChange, exact};
use super::memory::{Consulted, Recall, alike};
use super::neurons::{self, AddedNeurons, Firing};
use super::{Edit, EditRequest};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::layers::norm::Norm;
use crate::model::stack::decoder::Decoder;
use crate::model::stack::past::Past;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{Both, NoTap, Place, Site, Span, Stack, Tap, Weight};
use crate::model::tokens::Tokens;

/// A frozen base with edits on it: all that evaluation, prediction and generation see. Cheap to clone.
#[derive(Clone)]
pub struct Edited {
    base: Arc<Model>,
    /// The decoder without any edit, and what it is known by.
    origin: (Decoder, String),
    edits: Vec<Arc<Edit>>,
    /// What the edits have made of each matrix that they change.
    laid: BTreeMap<Weight, Laid>,
    /// The decoder, with the weights replaced whose changes are too large to run as factors.
    decoder: Decoder,
    deltas: Deltas,
    /// Neurons beside MLPs, in the element type of the model.
    neurons: AddedNeurons,
    /// What is done to activations, in the order of the edits.
    interventions: Vec<Intervention>,
    /// The lowest layer that a change reaches which no edit holds.
    trial: Option<usize>,
    id: String,
    /// The hash of the base and of the edits that change weights.
    weights_id: String,
    /// Lists that are consulted before the weights are asked, lowest first.
    memories: Vec<Arc<Recall>>,
}

/// What edits have made of one matrix, in the element type of changes.
#[derive(Clone)]
// There are as many of them as edited matrices: a box would save nothing.
#[allow(clippy::large_enum_variant)]
enum Laid {
    /// Factors that run beside the matrix, in the order of the edits.
    Factors(Vec<(Tensor<2>, Tensor<2>)>),
    /// The matrix with all changes added.
    Merged(Tensor<2>),
}

/// Tells the models apart that trial changes give.
static TRIALS: AtomicU64 = AtomicU64::new(0);

impl Edited {
    /// The base without edits.
    pub fn new(base: Arc<Model>) -> Self {
        let (decoder, id) = (base.decoder.clone(), base.fingerprint.clone());
        Edited::with_decoder(base, decoder, id)
    }

    /// A model whose tokenizer and config are the base's, but whose weights are another decoder's, known by `id`. Edits are laid on
    /// these weights.
    pub fn with_decoder(base: Arc<Model>, decoder: Decoder, id: String) -> Self {
        Edited {
            base,
            origin: (decoder.clone(), id.clone()),
            edits: vec![],
            laid: BTreeMap::new(),
            decoder,
            deltas: Deltas::default(),
            neurons: AddedNeurons::new(),
            interventions: vec![],
            trial: None,
            weights_id: id.clone(),
            id,
            memories: vec![],
        }
    }

    /// The same with the matrices of its topmost blocks in memory, where it has no edits yet: see [`Decoder::in_memory_from`].
    pub fn in_memory_from(self, lowest: usize) -> Self {
        if !self.edits.is_empty() {
            return self;
        }
        Edited::with_decoder(self.base.clone(), self.decoder.clone().in_memory_from(lowest), self.id.clone())
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

    /// Whether an edit, or a part of it, lies here already: laid down twice it would count twice. A memory holds each entry once, however
    /// often it is laid down.
    pub fn holds(&self, edit: &Edit) -> bool {
        let known = |laid: &Arc<Edit>| laid.parts().any(|known| edit.parts().any(|part| part == known));
        edit.memory().is_none() && self.edits.iter().any(known)
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
        let edit = edit.into();
        let mut edited = self.clone();
        match &edit.change {
            Change::Pass(change) => {
                edited.lay(change, &format!("edit {}", edit.id()))?;
                let changing = edited.edits.iter().filter(|edit| edit.changes_pass()).chain([&edit]);
                edited.weights_id = hash(&self.origin.1, changing);
            }
            Change::Memory(memory) => {
                let recall = Recall::new(&edit, memory, self.weights_alone())?;
                // One list of all that is consulted alike: the nearest entry answers, whichever edit it came with.
                match edited.list_of(&recall.needs).cloned() {
                    Some(last) => {
                        edited.memories.pop();
                        edited.memories.push(Arc::new(Recall::clone(&last).and(recall)?));
                    }
                    None => edited.memories.push(Arc::new(recall)),
                }
            }
        }
        edited.edits.push(edit);
        edited.id = hash(&self.origin.1, edited.edits.iter());
        Ok(edited)
    }

    /// The same model with a change of weights on top that is no edit: nothing says where it comes from, and it is in no list. For the steps
    /// on the way to an edit.
    ///
    /// # Errors
    /// As [`Edited::with_foreign`].
    pub fn with_change(&self, change: &PassChange) -> Result<Edited> {
        let mut edited = self.clone();
        edited.lay(change, "a trial change")?;
        edited.trial = self.lowest(change).into_iter().chain(self.trial).min();
        // Keys and values that were computed on one trial must not serve another.
        let number = TRIALS.fetch_add(1, Ordering::Relaxed);
        edited.weights_id = format!("{}/trial {number}", self.weights_id);
        edited.id.clone_from(&edited.weights_id);
        Ok(edited)
    }

    /// The same model whose edits hold no weight changes any more: these stand in the weights, and nobody takes them away one by one. In a long
    /// sequence that is what keeps memory from growing.
    pub fn without_changes(self) -> Edited {
        let (mut trial, spec) = (self.trial, self.decoder.spec.clone());
        let edits = self.edits.into_iter().map(|edit| match &edit.change {
            Change::Memory(_) => edit,
            Change::Pass(change) => {
                trial = lowest(&spec, change).into_iter().chain(trial).min();
                Arc::new(edit.without_change())
            }
        });
        let edits = edits.collect();
        Edited { edits, trial, ..self }
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
        let (decoder, origin) = self.origin.clone();
        let mut edited = Edited::with_decoder(self.base.clone(), decoder, origin);
        for edit in edits {
            edited = edited.with_foreign(edit)?;
        }
        Ok((edited, dependent))
    }

    /// The same model without its memories.
    fn weights_alone(&self) -> Edited {
        let edits = self.edits.iter().filter(|edit| edit.changes_pass()).cloned().collect();
        Edited { edits, memories: vec![], id: self.weights_id.clone(), ..self.clone() }
    }

    /// Adds a change to the pass, that of weights cast once to the element type of changes; `what` names it in errors.
    fn lay(&mut self, change: &PassChange, what: &str) -> Result<()> {
        let dtype = self.decoder.dtype();
        for (&at, delta) in &change.matrices {
            let shape = self.shape(at, what)?;
            check_shape(what, at, &shape, &delta.shape())?;
            self.lay_matrix(at, &delta.clone().cast(exact(dtype)), shape)?;
        }
        for (&at, bias) in &change.biases {
            let [_, d_out] = self.shape(at, what)?;
            check_shape(what, at, &[d_out], &bias.dims())?;
            let bias = bias.clone().cast(dtype);
            let sum = self.deltas.biases.remove(&at).map_or_else(|| bias.clone(), |known| known + bias.clone());
            self.deltas.biases.insert(at, sum);
        }
        for (&at, list) in &change.neurons {
            for neurons in list {
                neurons.check(&self.decoder.spec, at, what)?;
                neurons::add(&mut self.neurons, at, neurons, Some(dtype));
            }
        }
        for intervention in &change.interventions {
            intervention.check(&self.decoder.spec, what)?;
            self.interventions.push(intervention.clone());
        }
        Ok(())
    }

    fn lay_matrix(&mut self, at: Weight, delta: &Delta, [d_in, d_out]: [usize; 2]) -> Result<()> {
        let dtype = self.decoder.dtype();
        let mut factors = match self.laid.remove(&at) {
            Some(Laid::Merged(sum)) => return self.merge(at, sum + delta.dense()),
            Some(Laid::Factors(factors)) => factors,
            None => vec![],
        };
        let rank = factors.iter().map(|(a, _)| a.dims()[1]).sum::<usize>() + delta.rank();
        match delta {
            // Factors cost rank·(d_in + d_out) a token, the product d_in·d_out: from there on the sum is cheaper.
            Delta::LowRank { a, b } if rank * (d_in + d_out) < d_in * d_out => {
                factors.push((a.clone(), b.clone()));
                let (a, b): (Vec<_>, Vec<_>) = factors.iter().cloned().unzip();
                self.deltas.matrices.insert(at, (Tensor::cat(a, 1).cast(dtype), Tensor::cat(b, 0).cast(dtype)));
                self.laid.insert(at, Laid::Factors(factors));
                Ok(())
            }
            _ => {
                self.deltas.matrices.remove(&at);
                let weight = self.decoder.linear(at)?.weight.val().cast(exact(dtype));
                let sum = factors.into_iter().fold(weight, |sum, (a, b)| sum + a.matmul(b));
                self.merge(at, sum + delta.dense())
            }
        }
    }

    /// Puts a matrix with all its changes in the place of the decoder's.
    fn merge(&mut self, at: Weight, sum: Tensor<2>) -> Result<()> {
        let bias = self.decoder.linear(at)?.bias.as_ref().map(|bias| bias.val());
        self.decoder = self.decoder.clone().with_linear(at, sum.clone().cast(self.decoder.dtype()), bias)?;
        self.laid.insert(at, Laid::Merged(sum));
        Ok(())
    }

    /// `[d_in, d_out]` of a weight that a change names.
    fn shape(&self, at: Weight, what: &str) -> Result<[usize; 2]> {
        let linear = self.decoder.linear(at).map_err(|error| Error::Input(format!("{what}: {error}")))?;
        Ok(linear.weight.dims())
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

    /// The entry of a memory that answers a prompt, where it is one alone, and how sure the memory is that it is meant; nothing where the weights answer.
    ///
    /// # Errors
    /// A prompt that a memory's networks cannot take.
    pub fn consulted(&self, prompt: &str) -> Result<Option<(Option<EditRequest>, f64)>> {
        for recall in self.memories.iter().rev() {
            if let Some(said) = recall.route.consult(recall, &[prompt.to_owned()])?.pop().flatten() {
                return Ok(Some((said.entry.map(|entry| recall.requests[entry].clone()), said.scope)));
            }
        }
        Ok(None)
    }

    /// The list that a memory which wants this would join: the topmost, where it is consulted alike and on the same weights.
    pub fn list_of(&self, needs: &serde_json::Value) -> Option<&Arc<Recall>> {
        let joins = |last: &&Arc<Recall>| alike(&last.needs, needs) && last.model.weights_id == self.weights_id;
        self.memories.last().filter(joins)
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

    /// Sees that each of its edits can be written as weights.
    ///
    /// # Errors
    /// Why one cannot.
    pub fn check_exportable(&self) -> Result<()> {
        self.edits.iter().try_for_each(|edit| edit.exportable().map(drop))
    }

    /// Whether an intervention acts on what a decoder's layer says, its MLP or the whole block: what an editor adds there would not pass as it is added.
    pub fn acts_on_layer(&self, layer: usize) -> bool {
        let places = [Place::MlpOut, Place::BlockOut].map(|place| Site { stack: Stack::Decoder, layer, place });
        self.interventions.iter().any(|one| places.contains(&one.at))
    }

    /// Where interventions of its edits do not act on a prompt as they say: a line each.
    ///
    /// # Errors
    /// A prompt that is no text.
    pub fn misses(&self, prompt: &[u32]) -> Result<Vec<String>> {
        let each = self.interventions.iter().map(|one| {
            let missed = one.misses(prompt, &self.base.tokenizer)?;
            Ok(missed.map(|why| format!("an edit acts at {}, but {why}", one.at)))
        });
        Ok(each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Whether what its edits do depends on where a prompt ends.
    pub fn acts_on_prompts(&self) -> bool {
        !self.interventions.is_empty()
    }

    /// The number of layers.
    pub fn layers(&self) -> usize {
        self.decoder.spec.depth()
    }

    /// The lowest layer whose result may differ between two stacks on one base; the number of layers if none does.
    pub fn first_difference(&self, other: &Edited) -> usize {
        let common = self.edits.iter().zip(&other.edits).take_while(|(a, b)| a.id() == b.id()).count();
        let apart = self.edits[common..].iter().chain(&other.edits[common..]);
        let changed = apart.filter_map(|edit| match &edit.change {
            Change::Pass(change) => self.lowest(change),
            Change::Memory(_) => None,
        });
        let trials = [self, other].into_iter().filter_map(|model| model.trial);
        changed.chain(trials).min().unwrap_or(self.layers())
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
        let acting = Acting::new(&self.interventions, span, &self.base.tokenizer)?;
        let hidden = if layers.start == 0 && !layers.is_empty() { acting.embedding(span, hidden) } else { hidden };
        self.decoder.blocks(
            hidden,
            layers,
            span,
            past,
            &mut Both(Both(&self.deltas, Firing::new(&self.neurons)), Both(&acting, tap)),
        )
    }

    /// See [`Decoder::remember`].
    ///
    /// # Errors
    /// A past of another model, or one that does not fit the batch.
    pub fn remember(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        span: &Span,
        past: &mut Past,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        past.check_owner(&self.weights_id)?;
        let acting = Acting::new(&self.interventions, span, &self.base.tokenizer)?;
        let hidden = if layer == 0 { acting.embedding(span, hidden) } else { hidden };
        self.decoder.remember(
            hidden,
            layer,
            span,
            past,
            &mut Both(Both(&self.deltas, Firing::new(&self.neurons)), Both(&acting, tap)),
        )
    }

    /// Logits `[positions, vocabulary]` at (row, cell) pairs.
    pub fn head(&self, hidden: Tensor<3>, positions: &[(usize, usize)]) -> Tensor<2> {
        self.decoder.head(hidden, positions)
    }

    /// The norm between the MLP of a decoder's layer and the stream, where there is one.
    pub fn norm_behind_mlp(&self, layer: usize) -> Option<&Norm> {
        self.decoder.blocks.get(layer)?.mlp_post_norm.as_ref()
    }

    /// Whether some of its layers stay in their file.
    pub fn in_file(&self, layers: Range<usize>) -> bool {
        self.decoder.in_file(layers)
    }

    /// See [`Decoder::head_with_gradient`].
    ///
    /// # Errors
    /// What `gradient` says.
    pub fn head_with_gradient<T>(
        &self,
        hidden: Tensor<3>,
        positions: &[(usize, usize)],
        gradient: impl FnOnce(Tensor<2>) -> Result<(Tensor<2>, T)>,
    ) -> Result<(Tensor<1>, T)> {
        self.decoder.head_with_gradient(hidden, positions, gradient)
    }

    /// The gradient at the input `hidden [batch, tokens, width]` of some layers of a loss above them, which `above` makes of their output; and
    /// whatever else that finds. Every layer is run twice, the second time in a graph of its own: in one graph all of a model that stays in its
    /// file would be kept, cast.
    ///
    /// # Errors
    /// What the layers or `above` say; a loss that does not depend on the input.
    pub fn gradient_below<T>(
        &self,
        hidden: Tensor<3>,
        layers: Range<usize>,
        (span, past): (&Span, Option<&Past>),
        above: impl FnOnce(Tensor<3>) -> Result<(Tensor<1>, T)>,
    ) -> Result<(Tensor<3>, T)> {
        let layer = |hidden: Tensor<3>, number: usize| {
            self.blocks(hidden, number..number + 1, span, past.cloned().as_mut(), &mut NoTap)
        };
        let leaf = |hidden: Tensor<3>| Tensor::from_inner(hidden).require_grad();
        let unreached = || Error::Input("the loss does not depend on what is below it".into());
        let (mut stream, mut inputs) = (hidden, vec![]);
        for number in layers.clone() {
            inputs.push(stream.clone());
            stream = layer(stream, number)?;
        }
        let top = leaf(stream);
        let (loss, found) = above(top.clone())?;
        let mut gradient = top.grad(&loss.backward()).ok_or_else(unreached)?;
        for (number, input) in layers.zip(inputs).rev() {
            let input = leaf(input);
            let gradients = (layer(input.clone(), number)? * gradient).sum().backward();
            gradient = input.grad(&gradients).ok_or_else(unreached)?;
        }
        Ok((gradient, found))
    }

    /// The lowest layer that a change reaches.
    fn lowest(&self, change: &PassChange) -> Option<usize> {
        lowest(&self.decoder.spec, change)
    }

    /// An empty past of this model.
    pub fn past(&self) -> Past {
        Past::new(self.weights_id.clone(), self.layers())
    }
}

/// The lowest block, as a pass counts them, that a change reaches.
fn lowest(spec: &DecoderSpec, change: &PassChange) -> Option<usize> {
    let weights = change.matrices.keys().chain(change.biases.keys()).map(|&at| spec.place(at));
    let neurons = change.neurons.keys().map(|&(stack, layer)| Site { stack, layer, place: Place::MlpOut });
    let sites = change.interventions.iter().map(|intervention| intervention.at).chain(neurons);
    weights.chain(sites.map(|at| spec.place_of(at))).min()
}

/// The hash of a base and of the edits on it; the base's own name where there are none.
fn hash<'a>(origin: &str, edits: impl Iterator<Item = &'a Arc<Edit>>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(origin.as_bytes());
    for edit in edits {
        hasher.update(edit.id().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn check_shape(what: &str, at: Weight, model: &[usize], delta: &[usize]) -> Result<()> {
    if model == delta {
        return Ok(());
    }
    Err(Error::Input(format!("{what} changes {at} as {delta:?}, but the model has it as {model:?}")))
}
