//! T-Patcher (Huang et al., 2023): a neuron for each token of the target that the model does not say, beside one MLP (the last). With q_e the MLP's input where the token is predicted,
//! M those of other texts, k, b, v the neuron's key, bias and value:
//!
//! ```text
//! loss = −ln p(target)/|target|  +  a · mean of the largest exp(−q_e·k − b)                                        (it answers its own query)
//!                                +  m · mean of the largest exp(M·k + b + γ) + exp((M − q_e)·k + b + γ)            (and no other)
//! ```
//!
//! Keys begin at q_e/‖q_e‖², biases and values at 0. It is done when the target is said and no remembered query makes a neuron speak.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Editor;
use super::patch::{Patch, Patched, bytes_of_step};
use super::prepared::{Prepared, check, of_request, precision};
use crate::data::text::Documents;
use crate::data::world::Split;
use crate::edit::neurons::Neurons;
use crate::edit::{Change, Edit, EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::layers::mlp::Activation;
use crate::model::stack::taps::Inputs;
use crate::model::tap::{NoTap, Role, Weight};
use crate::model::tokens::Tokens;
use crate::parallel;
use crate::plan::{OfEditor, Work};
use crate::sections::within;

/// What configs and edits call it.
pub(super) const NAME: &str = "t_patcher";

/// Tokens of a remembered text at most, and texts that share a pass.
const TEXT: (usize, usize) = (64, 32);

/// `[editor]` of a T-Patcher config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TPatcherSettings {
    /// The layer beside whose MLP neurons are put; the last is what the paper takes.
    pub layer: usize,
    /// Neurons of an edit at most: the least likely tokens of its target get one each.
    #[serde(default = "neurons")]
    pub neurons: usize,
    /// act
    #[serde(default = "relu")]
    pub activation: Activation,
    /// Updates at most.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Adam's.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Adam's L2 term.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// The target counts as said once its mean −ln p a token is below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// a
    #[serde(default = "activation_weight")]
    pub activation_weight: f64,
    /// m
    #[serde(default = "memory_weight")]
    pub memory_weight: f64,
    /// γ
    #[serde(default = "margin")]
    pub margin: f64,
    /// The text whose queries are remembered: `pocket`, `wikitext` (fetched), or a file.
    pub memory: String,
    /// Queries that are remembered of it.
    #[serde(default = "queries")]
    pub queries: usize,
    /// Of these the largest that a step looks at.
    #[serde(default = "largest")]
    pub largest: usize,
}

fn neurons() -> usize {
    5
}
fn relu() -> Activation {
    Activation::Relu
}
fn steps() -> usize {
    500
}
fn learning_rate() -> f64 {
    0.01
}
fn weight_decay() -> f64 {
    0.0
}
fn early_stop() -> f64 {
    0.05
}
fn activation_weight() -> f64 {
    1.0
}
fn memory_weight() -> f64 {
    5.0
}
fn margin() -> f64 {
    3.0
}
fn queries() -> usize {
    10_000
}
fn largest() -> usize {
    1000
}

impl super::MethodSettings for TPatcherSettings {
    fn layers(&self) -> (&'static str, &[usize]) {
        ("layer", std::slice::from_ref(&self.layer))
    }

    fn causal(&self) -> bool {
        true
    }

    /// The remembered queries, in f32 for every step and once more for their products.
    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        let kept = 4 * (self.queries * work.spec.width) as u64;
        Ok(OfEditor { kept, edit: bytes_of_step(work, self.layer, requests.min(1)) })
    }

    fn editor(self: Box<Self>, prepared: Prepared, model: &Arc<Model>, folder: &Path) -> Result<Box<dyn Editor>> {
        let memory = self.remembered(model, folder)?;
        Ok(Box::new(TPatcher::new(*self, prepared, memory)?))
    }
}

impl TPatcherSettings {
    /// What goes into the MLP over a text, `[queries, width]`.
    fn remembered(&self, model: &Arc<Model>, folder: &Path) -> Result<Tensor<2>> {
        within("editor.queries", self.queries as f64, 1.0, 1e7)?;
        let (length, together) = TEXT;
        let documents = Documents::open(&self.memory, Split::Train, folder, "text")?;
        let (mut rows, mut left) = (vec![], self.queries);
        documents.shuffled(0, &mut |text| {
            let ids = model.tokenizer.encode_prompt(text.trim())?;
            for part in ids.chunks(length.min(model.decoder.spec.context)) {
                let part = &part[..part.len().min(left)];
                left -= part.len();
                if !part.is_empty() {
                    rows.push(part.to_vec());
                }
            }
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if rows.is_empty() {
            return Err(Error::Config(format!("editor.memory = \"{}\": there is no text in it", self.memory)));
        }
        let (model, at) = (Edited::new(model.clone()), Weight::decoder(self.layer, Role::MlpUp));
        let batches: Vec<&[Vec<u32>]> = rows.chunks(together).collect();
        let parts = parallel::run(batches, |rows: &[Vec<u32>]| {
            let tokens = Tokens::new(rows.to_vec());
            let mut inputs = Inputs::of([at]);
            let hidden = model.embed(&tokens, &mut NoTap)?;
            model.blocks(hidden, 0..self.layer + 1, tokens.span(), None, &mut inputs)?;
            let seen = inputs.values.remove(&at);
            let seen = seen.ok_or_else(|| Error::Input(format!("layer {} was not reached", self.layer)))?;
            let real = rows.iter().enumerate().flat_map(|(row, ids)| (0..ids.len()).map(move |cell| (row, cell)));
            Ok(crate::model::stack::taps::cells(seen, &real.collect::<Vec<_>>()))
        })?;
        Ok(Tensor::cat(parts, 0))
    }
}

/// T-Patcher, ready to edit.
pub struct TPatcher {
    settings: TPatcherSettings,
    prepared: Prepared,
    /// M `[queries, width]`
    memory: Tensor<2>,
}

impl TPatcher {
    /// `memory` is M, the queries of other texts `[queries, width]`.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: TPatcherSettings, prepared: Prepared, memory: Tensor<2>) -> Result<Self> {
        within("editor.neurons", settings.neurons as f64, 1.0, 1e5)?;
        within("editor.steps", settings.steps as f64, 1.0, 1e6)?;
        within("editor.learning_rate", settings.learning_rate, 0.0, 1e3)?;
        within("editor.weight_decay", settings.weight_decay, 0.0, 1e3)?;
        within("editor.early_stop", settings.early_stop, 0.0, 1e9)?;
        within("editor.activation_weight", settings.activation_weight, 0.0, 1e9)?;
        within("editor.memory_weight", settings.memory_weight, 0.0, 1e9)?;
        within("editor.margin", settings.margin, -1e3, 1e3)?;
        within("editor.largest", settings.largest as f64, 1.0, 1e7)?;
        Ok(TPatcher { settings, prepared, memory })
    }

    /// The neurons for one request, on a model as it is.
    fn patch(&self, model: &Edited, request: &EditRequest) -> Result<(PassChange, serde_json::Value)> {
        let settings = &self.settings;
        let text = Patched::new(model, settings.layer, std::slice::from_ref(request))?;
        let queries = text.queries(model)?.cast(precision(model));
        let own = self.unsaid(model, &text)?;
        let index: Vec<i64> = own.iter().map(|&token| token as i64).collect();
        let (device, count) = (queries.device(), own.len());
        let q = queries.select(0, Tensor::<1, Int>::from_data(index.as_slice(), &device));
        let [_, width] = q.dims();
        let square = q.clone().square().sum_dim(1).clamp_min(1e-12);
        let place = (&device, q.dtype());
        let mut patch = Patch::new(
            settings.layer,
            Neurons {
                keys: (q.clone() / square).transpose(),
                biases: Tensor::zeros([count], place),
                values: Tensor::zeros([count, width], place),
                activation: settings.activation,
            },
        );
        let memory = self.memory.clone().cast(q.dtype());
        let (mut loss, mut updates) = (f64::NAN, 0);
        for step in 1..=settings.steps {
            let leaves = patch.leaves();
            let said = text.said(model, &leaves)?;
            loss = said.loss;
            // How loud each neuron is at each remembered query, `[queries, neurons]`.
            let loud = memory.clone().matmul(leaves.keys.clone().inner()) + leaves.biases.clone().inner().unsqueeze();
            let most = loud.clone().max().into_data().iter::<f64>().next().unwrap_or(0.0);
            if loss < settings.early_stop && most <= 0.0 && said.right.iter().all(|&right| right) {
                break;
            }
            let held = self.held_back(&leaves, &q, &memory, &loud);
            let gradients = (said.surrogate + held).backward();
            patch.step(&leaves, &gradients, (settings.learning_rate, settings.weight_decay), step);
            updates = step;
        }
        Ok((patch.change(), json!({"neurons": count, "updates": updates, "target_nll": loss})))
    }

    /// The tokens of the target that get a neuron each: those that the model does not say, the least likely first; the least likely one where it says all.
    fn unsaid(&self, model: &Edited, text: &Patched) -> Result<Vec<usize>> {
        let each = text.likelihoods(model)?;
        let mut order: Vec<usize> = (0..each.len()).collect();
        order.sort_by(|a, b| each[*a].0.total_cmp(&each[*b].0));
        let mut own: Vec<usize> = order.iter().copied().filter(|&token| !each[token].1).collect();
        if own.is_empty() {
            own.extend(order.first());
        }
        own.truncate(self.settings.neurons);
        own.sort();
        Ok(own)
    }

    /// The terms that make a neuron answer its own query and no other, with their gradients.
    fn held_back(&self, neurons: &Neurons, q: &Tensor<2>, memory: &Tensor<2>, loud: &Tensor<2>) -> Tensor<1> {
        let TPatcherSettings { activation_weight, memory_weight, margin, largest, .. } = self.settings;
        // q_e·k of each neuron at its own query, `[neurons, 1]`.
        let own = (q.clone() * neurons.keys.clone().transpose()).sum_dim(1);
        let bias = neurons.biases.clone().unsqueeze_dim::<2>(1);
        let silent = (own.clone() + bias.clone()).neg();
        let silent = raised(silent).mean();
        // Only the loudest queries are looked at, those that are loudest to any neuron.
        let [count, _] = loud.dims();
        let top: Vec<f64> = loud.clone().max_dim(1).into_data().iter::<f64>().collect();
        let mut order: Vec<usize> = (0..count).collect();
        let most = largest.min(count);
        if most < count {
            order.select_nth_unstable_by(most - 1, |a, b| top[*b].total_cmp(&top[*a]));
            order.truncate(most);
        }
        let index: Vec<i64> = order.iter().map(|&query| query as i64).collect();
        let some = memory.clone().select(0, Tensor::<1, Int>::from_data(index.as_slice(), &memory.device()));
        let along = some.matmul(neurons.keys.clone());
        let bias = bias.transpose();
        let heard = raised((along.clone() + bias.clone()).add_scalar(margin)).mean();
        let nearer = raised((along - own.transpose() + bias).add_scalar(margin)).mean();
        silent.mul_scalar(activation_weight) + (heard + nearer).mul_scalar(memory_weight)
    }
}

/// From here on the exponential goes on as a straight line: it neither overflows nor loses its slope.
const EXPONENT: f64 = 20.0;

fn raised(x: Tensor<2>) -> Tensor<2> {
    let low = x.clone().clamp_max(EXPONENT);
    low.clone().exp() * (x - low).add_scalar(1.0)
}

impl Editor for TPatcher {
    /// Several requests are patched one after the other, each on the model that the one before gave.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        check(requests)?;
        let mut current = model.clone();
        let (mut changes, mut findings) = (vec![], vec![]);
        for (number, request) in requests.iter().enumerate() {
            let made = self.patch(&current, request).map_err(|error| of_request(requests, number, error));
            let (change, finding) = made?;
            if number + 1 < requests.len() {
                current = current.with_change(&change)?;
            }
            changes.push(change);
            findings.push(finding);
            (self.prepared.progress)(1);
        }
        let provenance = self.provenance(model, requests).with_findings(json!({"requests": findings}));
        Ok(Edit::new(provenance, Change::Pass(PassChange::sum(changes.iter())), BTreeMap::new()))
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}
