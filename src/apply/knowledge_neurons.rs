//! Knowledge neurons (Dai et al., 2022): which MLP neurons bring an answer forth, and what becomes of it when they are
//! changed.
//!
//! The attribution of neuron i of a layer at the prompt's last token, with hidden activations a and answer y, is the
//! integrated gradient
//!
//! ```text
//! aᵢ · mean over α = 1/m, 2/m, …, 1 of ∂p(y | hidden = α a)/∂hiddenᵢ
//! ```
//!
//! Only the one position is run, above the layer, with the steps as rows of one batch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::Editor;
use super::contexts::{self, Sampled, templates};
use super::prepared::{Prepared, check, of_request, precision};
use crate::edit::likelihood::check_targets;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::sizes::Pass;
use crate::model::stack::taps::{Recorder, cells};
use crate::model::tap::{NoTap, Place, Role, Site, Stack, Text, Weight};
use crate::model::tokens::Tokens;
use crate::parallel;
use crate::plan::{OfEditor, Work};
use crate::sections::choice::{self, Choice, fields};

/// What configs and edits call it.
pub(super) const NAME: &str = "knowledge_neurons";

/// `[editor]` of a knowledge-neurons config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnowledgeNeuronsSettings {
    /// The layers searched; all unless given.
    #[serde(default)]
    pub layers: Vec<usize>,
    /// Steps of the integral.
    #[serde(default = "steps")]
    pub steps: usize,
    /// A neuron counts for a prompt from this share of the largest attribution on.
    #[serde(default = "threshold")]
    pub threshold: f64,
    /// It is kept if it counts for at least this share of the prompts.
    #[serde(default = "share")]
    pub share: f64,
    /// Whether the prompts are the edit's rephrases too, where it has any: its generalization then says nothing of prompts
    /// that were not looked at.
    #[serde(default)]
    pub rephrases: bool,
    /// At most so many neurons, those with the largest attributions; 0 for all.
    #[serde(default)]
    pub most: usize,
    /// What is done with them.
    #[serde(default)]
    pub operation: Operation,
    /// Of rewriting.
    #[serde(flatten)]
    pub rewriting: Rewriting,
    /// Texts with `{}` where the prompt stands, for refinement; sampled where there are none.
    #[serde(default)]
    pub context_templates: Vec<String>,
    /// How contexts are sampled.
    #[serde(default = "context")]
    pub context: Sampled,
}

/// What is done with the neurons found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Their output rows become 0.
    Erase,
    /// Their output rows are doubled.
    Amplify,
    /// The old answer's output embedding is taken off their rows, the new one's is added.
    #[default]
    Rewrite,
}

/// Keys of `operation = "rewrite"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rewriting {
    /// λ₁: of the old answer's embedding.
    pub old_weight: f64,
    /// λ₂: of the new answer's embedding.
    pub new_weight: f64,
    /// What the embeddings are measured in.
    pub scale: Scale,
}

impl Default for Rewriting {
    fn default() -> Self {
        Rewriting { old_weight: 1.0, new_weight: 8.0, scale: Scale::Paper }
    }
}

impl Choice for Operation {
    const KEY: &'static str = "operation";
    const VALUES: &'static [Self] = &[Operation::Erase, Operation::Amplify, Operation::Rewrite];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Operation::Erase | Operation::Amplify => &[],
            Operation::Rewrite => fields::<Rewriting>(),
        }
    }
}

/// What both answers' output embeddings are measured in when they are written into a neuron's row w.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// As they are: `w − λ₁ t_old + λ₂ t_new`.
    #[default]
    Paper,
    /// Of length one, times the length of the row: `w + ‖w‖ (λ₂ t_new/‖t_new‖ − λ₁ t_old/‖t_old‖)`. One pair of weights then serves models whose
    /// embeddings and rows are of different lengths.
    Row,
}

fn steps() -> usize {
    20
}
fn threshold() -> f64 {
    0.2
}
fn share() -> f64 {
    0.5
}
fn context() -> Sampled {
    Sampled { lengths: vec![], starts: vec![], seed: 0 }
}

impl super::MethodSettings for KnowledgeNeuronsSettings {
    fn check_used(&self, given: &toml::Table) -> Result<()> {
        choice::check("editor", given, self.operation)?;
        contexts::check_used(given)
    }

    fn layers(&self) -> (&'static str, &[usize]) {
        ("layers", &self.layers)
    }

    fn causal(&self) -> bool {
        true
    }

    fn contexts(&mut self) -> Option<(&mut Vec<String>, &Sampled)> {
        Some((&mut self.context_templates, &self.context))
    }

    fn seed(&self) -> u64 {
        self.context.seed
    }

    /// A graph over all layers at the last token, a row a step, for as many layers side by side as there are parts.
    fn held(&self, work: &Work<'_>, _: usize) -> Result<OfEditor> {
        let (spec, row) = (work.spec, work.texts.row);
        let pass = Pass { rows: self.steps, tokens: 1, past: row };
        let cast = if work.in_file { spec.layers_bytes(0) } else { 0 };
        let known = spec.past_bytes(Pass::new(self.steps, row), spec.layers);
        let each = spec.graph_bytes(pass, spec.layers) + known + 5 * spec.logits_bytes(self.steps);
        Ok(OfEditor { kept: 0, edit: known + work.threads as u64 * (each + cast) })
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(KnowledgeNeurons::new(*self, prepared)?))
    }
}

/// A neuron with its attribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Neuron {
    /// The layer.
    pub layer: usize,
    /// Its index in the MLP's hidden activations.
    pub neuron: usize,
    /// Its attribution, the mean over prompts; it is 0 where the neuron does not count.
    pub attribution: f64,
}

/// Knowledge neurons, ready to edit.
pub struct KnowledgeNeurons {
    settings: KnowledgeNeuronsSettings,
    prepared: Prepared,
}

impl KnowledgeNeurons {
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: KnowledgeNeuronsSettings, prepared: Prepared) -> Result<Self> {
        use crate::sections::within;
        within("editor.steps", settings.steps as f64, 1.0, 1e6)?;
        within("editor.threshold", settings.threshold, 0.0, 1.0)?;
        within("editor.share", settings.share, 0.0, 1.0)?;
        within("editor.old_weight", settings.rewriting.old_weight, -1e6, 1e6)?;
        within("editor.new_weight", settings.rewriting.new_weight, -1e6, 1e6)?;
        Ok(KnowledgeNeurons { settings, prepared })
    }

    /// The neurons that bring forth `answer` after the prompts, each with the beginning of an answer perhaps; how many of its tokens are the prompt's stands beside it.
    ///
    /// # Errors
    /// A prompt that the model cannot take.
    pub fn find(&self, model: &Edited, prompts: &[(Vec<u32>, usize)], answer: u32) -> Result<Vec<Neuron>> {
        let layers: Vec<usize> = match self.settings.layers.is_empty() {
            true => (0..model.layers()).collect(),
            false => self.settings.layers.clone(),
        };
        let mut counts: BTreeMap<(usize, usize), (usize, f64)> = BTreeMap::new();
        for (ids, asked) in prompts {
            let found = attributions(model, (ids, *asked), answer, &layers, self.settings.steps)?;
            let largest = found.values().flatten().copied().fold(0.0, f64::max);
            for (layer, values) in found {
                for (neuron, value) in values.into_iter().enumerate() {
                    if value > 0.0 && value >= self.settings.threshold * largest {
                        let entry = counts.entry((layer, neuron)).or_default();
                        entry.0 += 1;
                        entry.1 += value / prompts.len() as f64;
                    }
                }
            }
        }
        let wanted = self.settings.share * prompts.len() as f64;
        let kept = counts.into_iter().filter(|(_, (count, _))| *count as f64 >= wanted);
        let mut kept: Vec<Neuron> =
            kept.map(|((layer, neuron), (_, attribution))| Neuron { layer, neuron, attribution }).collect();
        kept.sort_by(|a, b| b.attribution.total_cmp(&a.attribution));
        if self.settings.most > 0 {
            kept.truncate(self.settings.most);
        }
        Ok(kept)
    }

    /// The change for one request, and its neurons. Those in `taken` were erased or amplified before.
    fn change(
        &self,
        model: &Edited,
        request: &EditRequest,
        templates: &[String],
        taken: &mut BTreeSet<(usize, usize)>,
    ) -> Result<(PassChange, Vec<Neuron>)> {
        let tokenizer = &model.base().tokenizer;
        let asked = templates.iter().map(|template| template.replace("{}", &request.prompt));
        let rephrases = request.rephrases.iter().filter(|_| self.settings.rephrases).cloned();
        let asked: Vec<String> = asked.chain(rephrases).collect();
        let target = |target: &str| -> Result<Vec<u32>> {
            let text = tokenizer.continuation(&request.prompt, target, request.separator.as_deref())?;
            check_targets(model, text.target())?;
            Ok(text.target().to_vec())
        };
        let new = target(&request.target_new)?;
        // Where the record does not say what is answered before, the model does.
        let old = match &request.target_true {
            Some(answer) => target(answer)?,
            None => {
                let ids = tokenizer.encode_prompt(&request.prompt)?;
                model.next_tokens(&ids, 1)?.iter().map(|token| token.id).collect()
            }
        };
        // Both answers are told apart by their first token that is not the same ("the Lions", "the Tigers").
        let same = new.iter().zip(&old).take_while(|(new, old)| new == old).count();
        let same = same.min(new.len() - 1).min(old.len().saturating_sub(1));
        let prompts = asked.iter().map(|prompt| {
            let mut ids = tokenizer.encode_prompt(prompt)?;
            let asked = ids.len();
            ids.extend(&new[..same]);
            Ok((ids, asked))
        });
        let prompts = prompts.collect::<Result<Vec<(Vec<u32>, usize)>>>()?;
        let (new, old) = (new[same], old.get(same).copied().unwrap_or(new[same]));
        let neurons = self.find(model, &prompts, old)?;
        let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for neuron in &neurons {
            // What is erased or amplified for several requests is so once.
            if self.settings.operation == Operation::Rewrite || taken.insert((neuron.layer, neuron.neuron)) {
                by_layer.entry(neuron.layer).or_default().push(neuron.neuron);
            }
        }
        let decoder = &model.base().decoder;
        let (device, dtype) = (decoder.device(), precision(model));
        let size = |rows: Tensor<2>| rows.square().sum_dim(1).sqrt();
        // An answer's output embedding t.
        let embedding = |id: u32| -> Tensor<2> {
            let index = Tensor::<1, Int>::from_data([i64::from(id)], &device);
            let row = match &decoder.head {
                Some(head) => head.columns(index),
                None => decoder.embedding.rows(index),
            };
            let row = row.cast(dtype);
            match self.settings.rewriting.scale {
                Scale::Paper => row,
                Scale::Row => row.clone() * size(row).recip(),
            }
        };
        let mut matrices = BTreeMap::new();
        for (layer, mine) in by_layer {
            let at = Weight::decoder(layer, Role::MlpDown);
            let (weight, _) = model.weight(at)?;
            let [d_in, _] = weight.dims();
            let index: Vec<i64> = mine.iter().map(|&neuron| neuron as i64).collect();
            let rows = weight.select(0, Tensor::<1, Int>::from_data(index.as_slice(), &device)).cast(dtype);
            let b = match self.settings.operation {
                Operation::Erase => rows.neg(),
                Operation::Amplify => rows,
                Operation::Rewrite => {
                    let direction = embedding(new).mul_scalar(self.settings.rewriting.new_weight)
                        - embedding(old).mul_scalar(self.settings.rewriting.old_weight);
                    match self.settings.rewriting.scale {
                        Scale::Paper => direction.repeat_dim(0, mine.len()),
                        Scale::Row => size(rows) * direction,
                    }
                }
            };
            let mut places = vec![0.0f64; d_in * mine.len()];
            mine.iter().enumerate().for_each(|(column, &neuron)| places[neuron * mine.len() + column] = 1.0);
            let a = Tensor::<2>::from_data(TensorData::new(places, [d_in, mine.len()]), (&device, dtype));
            matrices.insert(at, Delta::LowRank { a, b });
        }
        Ok((PassChange { matrices, ..Default::default() }, neurons))
    }
}

impl Editor for KnowledgeNeurons {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        check(requests)?;
        let templates = templates(model, &self.settings.context_templates, &self.settings.context)?;
        let (mut changes, mut found, mut taken) = (vec![], vec![], BTreeSet::new());
        for (number, request) in requests.iter().enumerate() {
            let change = self.change(model, request, &templates, &mut taken);
            let (change, neurons) = change.map_err(|error| of_request(requests, number, error))?;
            if neurons.is_empty() {
                tracing::warn!(
                    "\"{}\": no neuron counts for enough of the prompts, nothing is changed; try a lower editor.threshold \
                     or editor.share",
                    request.prompt
                );
            }
            changes.push(change);
            found.push(neurons);
            (self.prepared.progress)(1);
        }
        let findings = serde_json::json!({"layers": model.layers(), "neurons": found});
        let provenance = self.provenance(model, requests).with_findings(findings);
        Ok(Edit::new(provenance, Change::Pass(PassChange::sum(changes.iter())), BTreeMap::new()))
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}

/// The integrated gradients of all neurons of some layers at the last token of `ids`.
///
/// # Errors
/// A text that the model cannot take.
pub fn attributions(
    model: &Edited,
    (ids, asked): (&[u32], usize),
    answer: u32,
    layers: &[usize],
    steps: usize,
) -> Result<BTreeMap<usize, Vec<f64>>> {
    let last = ids.len().checked_sub(1).ok_or_else(|| Error::Input("there is no token to read".into()))?;
    let site = |layer, place| Site { stack: Stack::Decoder, layer, place };
    let (mut past, text) = (model.past(), Text::new(&ids[..asked.min(ids.len())]));
    if last > 0 {
        let left = Tokens::new(vec![ids[..last].to_vec()]).of([text.clone()]);
        let hidden = model.embed(&left, &mut NoTap)?;
        model.blocks(hidden, 0..model.layers(), left.span(), Some(&mut past), &mut NoTap)?;
    }
    // The last token by itself, on what stands left of it.
    let here = Tokens::placed(vec![vec![ids[last]]], vec![(0, last)]).of([text.clone()]);
    let wanted = layers
        .iter()
        .flat_map(|&layer| [site(layer, Place::MlpHidden), site(layer, Place::MlpOut), site(layer, Place::BlockOut)]);
    let mut recorder = Recorder::at(wanted);
    let hidden = model.embed(&here, &mut NoTap)?;
    model.blocks(hidden, 0..model.layers(), here.span(), Some(&mut past.clone()), &mut recorder)?;

    let many = Tokens::placed(vec![vec![ids[last]]; steps], (0..steps).map(|step| (step, last)).collect())
        .of(vec![text; steps]);
    let past = past.select(&vec![0; steps]);
    let reads: Vec<(usize, usize)> = (0..steps).map(|row| (row, 0)).collect();
    let of_layer = |layer: usize| -> Result<(usize, Vec<f64>)> {
        let at = |place| {
            let seen = recorder.values.get(&site(layer, place)).map(|seen| cells(seen.clone(), &[(0, 0)]));
            seen.ok_or_else(|| Error::Input(format!("the model has no layer {layer}")))
        };
        let (a, out, above) = (at(Place::MlpHidden)?, at(Place::MlpOut)?, at(Place::BlockOut)?);
        let (device, dtype) = (a.device(), a.dtype());
        // What the hidden activations bring to the stream: the MLP's output without its bias.
        let (weight, bias) = model.weight(Weight::decoder(layer, Role::MlpDown))?;
        let brought = match bias {
            Some(bias) => out - bias.unsqueeze(),
            None => out,
        };
        let alphas: Vec<f64> = (1..=steps).map(|step| step as f64 / steps as f64 - 1.0).collect();
        let less = Tensor::<2>::from_data(TensorData::new(alphas, [steps, 1]), (&device, dtype));
        let streams = above + less * brought;
        let leaf = Tensor::from_inner(streams).require_grad();
        let mut past = past.clone();
        let hidden = model.blocks(
            leaf.clone().unsqueeze_dim(1),
            layer + 1..model.layers(),
            many.span(),
            Some(&mut past),
            &mut NoTap,
        )?;
        let p = activation::softmax(model.head(hidden, &reads), 1);
        let index = Tensor::<1, Int>::from_data([i64::from(answer)], &device);
        let gradients = p.select(1, index).sum().backward();
        let gradient = leaf.grad(&gradients);
        let gradient = gradient.ok_or_else(|| Error::Input("the answer does not depend on the layer".into()))?;
        // ∂p/∂hidden = (∂p/∂stream) · Wᵀ
        let mean = gradient.mean_dim(0).matmul(weight.transpose());
        Ok((layer, (a * mean).into_data().iter::<f64>().collect()))
    };
    // The lowest layers first: they have the most above them, and the last to be begun should be short.
    let mut order = layers.to_vec();
    order.sort_unstable();
    Ok(parallel::each(&model.base().decoder.device(), order, of_layer)?.into_iter().collect())
}
