//! Descent on the edit alone: what fine-tuning and LoRA have in common. What is tuned follows the gradient of the target's loss, each matrix's as `uᵀδ`.
//!
//! The loss is that of the target's tokens under teacher forcing (FT-M); `compat = "prompt_last"` reads all of them at the prompt's last token, as ROME's baseline does.
//! With `kl` λ the distributions on other texts x are also kept near the model's before the edit:
//!
//! ```text
//! mean over requests of −ln p(target) / |target|  +  λ · mean over tokens of KL(p₀(· | x) ‖ p(· | x))
//! ```
//!
//! A target that is to become less likely has the loss `p(target)^(1/|target|)`; one that is to become likelier under noise is there once for each draw.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData, activation};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::prepared::{check, of_request};
use crate::data::objective::Objective;
use crate::data::text::Documents;
use crate::edit::likelihood::check_targets;
use crate::edit::noise::Noise;
use crate::edit::{EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::sizes::Pass;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::taps::GradientProbes;
use crate::model::tap::{NoTap, Tap, Weight};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::{Tokens, check_length};
use crate::network::matrices::without_last;
use crate::plan::Work;
use crate::sections::within;
use crate::{parallel, paths, random};

/// Keys of `[editor]` that both have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuningSettings {
    /// The layers.
    pub layers: Vec<usize>,
    /// The weights in each; each method has its own where nothing is said.
    #[serde(default)]
    pub weights: Vec<String>,
    /// Updates at most; each method has its own number where nothing is said.
    #[serde(default = "steps")]
    pub steps: usize,
    /// The optimiser's.
    pub learning_rate: f64,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Done once the loss of the edit (without the KL term) is below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// λ: how much the texts of `locality` count.
    #[serde(default)]
    pub kl: f64,
    /// Of the KL term.
    #[serde(flatten)]
    pub held: Held,
    /// Which positions the loss reads.
    #[serde(default)]
    pub compat: Compat,
}

fn steps() -> usize {
    25
}
fn early_stop() -> f64 {
    1e-2
}

/// Keys of a `kl` above 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Held {
    /// A file of texts that the model is held to; it must be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Texts of that file that a step draws.
    pub locality_texts: usize,
    /// The key that holds the text where `locality` is JSON.
    pub locality_field: String,
    /// The seed of these draws.
    pub seed: u64,
}

impl Default for Held {
    fn default() -> Self {
        Held { locality: None, locality_texts: 8, locality_field: "text".into(), seed: 0 }
    }
}

/// Texts that are read of a file of locality, and tokens of each: enough that steps seldom meet a text again, and as long as the prompts that
/// benchmarks ask.
const LOCALITY: (usize, usize) = (1000, 32);

/// The optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Kingma and Ba, 2015.
    #[default]
    Adam,
    /// Plain descent.
    Sgd,
    /// With a mean of squares that forgets 1 % a step, as in MEND's baseline.
    RmsProp,
}

/// Which positions the loss reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// Each token of the target where it is predicted.
    #[default]
    None,
    /// All of them at the prompt's last token.
    PromptLast,
}

/// What is tuned.
pub(super) trait Tuned {
    /// What it changes of the model.
    fn change(&self) -> PassChange;
    /// A step down the gradients.
    fn step(&mut self, gradients: WeightGradients, settings: &TuningSettings, step: usize);
    /// Whether what it wants beside the target's loss is met: the descent ends early only then.
    fn holds(&self) -> bool {
        true
    }
}

/// A tensor that is being tuned, with the optimiser's moments.
pub(super) struct TunedTensor<const D: usize> {
    /// What it is now.
    pub value: Tensor<D>,
    first: Tensor<D>,
    second: Tensor<D>,
}

impl<const D: usize> TunedTensor<D> {
    /// As it begins.
    pub fn new(value: Tensor<D>) -> Self {
        let zero = value.zeros_like();
        TunedTensor { value, first: zero.clone(), second: zero }
    }

    /// A step of the optimiser that settings name; the first is number 1.
    pub fn step(&mut self, gradient: Tensor<D>, settings: &TuningSettings, step: usize) {
        self.descend(gradient, (settings.optimizer, settings.learning_rate), step);
    }

    /// A step of an optimiser at a rate.
    pub fn descend(&mut self, gradient: Tensor<D>, (optimizer, rate): (Optimizer, f64), step: usize) {
        let gradient = gradient.cast(self.value.dtype());
        let change = match optimizer {
            Optimizer::Sgd => gradient,
            Optimizer::Adam => {
                self.first = self.first.clone().mul_scalar(0.9) + gradient.clone().mul_scalar(0.1);
                self.second = self.second.clone().mul_scalar(0.999) + gradient.square().mul_scalar(0.001);
                let mean = self.first.clone().div_scalar(1.0 - 0.9f64.powi(step as i32));
                mean / self.second.clone().div_scalar(1.0 - 0.999f64.powi(step as i32)).sqrt().add_scalar(1e-8)
            }
            Optimizer::RmsProp => {
                self.second = self.second.clone().mul_scalar(0.99) + gradient.clone().square().mul_scalar(0.01);
                gradient / self.second.clone().sqrt().add_scalar(1e-8)
            }
        };
        self.value = self.value.clone() - change.mul_scalar(rate);
    }
}

/// The gradients of a weight's matrix and of its bias.
pub(super) type WeightGradients = BTreeMap<Weight, (Tensor<2>, Tensor<1>)>;

/// Some texts, carried to the lowest tuned layer: what lies below is the same at every step.
struct TuningTexts {
    tokens: Tokens,
    hidden: Tensor<3>,
    lowest: usize,
}

impl TuningTexts {
    fn new(model: &Edited, lowest: usize, tokens: Tokens, tap: &mut dyn Tap) -> Result<Self> {
        let hidden = model.embed(&tokens, tap)?;
        let hidden = model.blocks(hidden, 0..lowest, tokens.span(), None, &mut NoTap)?;
        Ok(TuningTexts { tokens, hidden, lowest })
    }

    /// The logits `[cells, vocabulary]` of a model that differs from the lowest layer on.
    fn logits(&self, model: &Edited, cells: &[(usize, usize)], tap: &mut dyn Tap) -> Result<Tensor<2>> {
        let layers = self.lowest..model.layers();
        Ok(model.head(model.blocks(self.hidden.clone(), layers, self.tokens.span(), None, tap)?, cells))
    }

    /// A loss of the logits, and its gradients: uᵀδ of a matrix, the sum of δ of its bias.
    fn gradients(
        &self,
        model: &Edited,
        weights: &[Weight],
        cells: &[(usize, usize)],
        loss: &dyn Fn(Tensor<2>) -> Tensor<1>,
    ) -> Result<(f64, WeightGradients)> {
        let mut probes = GradientProbes::at(weights.iter().copied());
        let loss = loss(self.logits(model, cells, &mut probes)?);
        let value = loss.clone().inner().into_data().iter::<f64>().sum();
        let read = probes.read(&loss.backward()).into_iter().map(|(at, (u, delta))| {
            let [rows, cells, d_in] = u.dims();
            let d_out = delta.dims()[2];
            let (u, delta) = (u.reshape([rows * cells, d_in]), delta.reshape([rows * cells, d_out]));
            (at, (u.transpose().matmul(delta.clone()), delta.sum_dim(0).squeeze_dim(0)))
        });
        Ok((value, read.collect()))
    }
}

/// A descent, ready to begin.
pub(super) struct Tuning {
    settings: TuningSettings,
    /// The weights that are tuned.
    pub weights: Vec<Weight>,
    /// What the model is held to.
    texts: Vec<Vec<u32>>,
}

impl TuningSettings {
    /// The beginnings of the texts that the model is held to.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn texts(&self, model: &Model, folder: &Path) -> Result<Vec<Vec<u32>>> {
        let mut held = vec![];
        if let Some(file) = self.held.locality.as_ref().filter(|_| self.kl > 0.0) {
            let (most, length) = LOCALITY;
            let texts = Documents { files: vec![paths::file(file, folder)], field: self.held.locality_field.clone() };
            texts.shuffled(self.held.seed, &mut |text| {
                let mut ids = model.tokenizer.encode_prompt(text.trim())?;
                ids.truncate(length.min(model.decoder.spec.context));
                held.push(ids);
                Ok(if held.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        Ok(held)
    }

    /// The lowest block that is tuned, as a pass counts them.
    ///
    /// # Errors
    /// A weight of no such name.
    fn lowest(&self, spec: &DecoderSpec) -> Result<usize> {
        let weights = Weight::all_named(&self.layers, &self.weights)?;
        Ok(weights.iter().map(|&at| spec.place(at)).min().unwrap_or(0))
    }

    /// What a step over so many requests holds: a graph over the layers from the lowest tuned one on, with the weights in it where they stay in their file.
    ///
    /// # Errors
    /// A weight of no such name.
    pub(super) fn bytes_of_step(&self, work: &Work<'_>, requests: usize) -> Result<u64> {
        let (spec, texts, requests) = (work.spec, work.texts, requests * work.draws);
        let lowest = self.lowest(spec)?;
        let held = if self.kl > 0.0 { self.held.locality_texts } else { 0 };
        let graph = |rows: usize, tokens: usize, reads: usize| {
            spec.graph_bytes(Pass::new(rows, tokens), spec.depth() - lowest) + 5 * spec.logits_bytes(reads)
        };
        let passes =
            graph(requests, texts.row, requests * texts.target).max(graph(held, LOCALITY.1, held * LOCALITY.1));
        Ok(passes + if work.in_file { spec.layers_bytes(lowest) } else { 0 })
    }
}

impl Tuning {
    /// `texts` are those of `settings.held.locality`, as tokens.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: TuningSettings, texts: Vec<Vec<u32>>) -> Result<Self> {
        within("editor.steps", settings.steps as f64, 1.0, 1e6)?;
        within("editor.learning_rate", settings.learning_rate, 0.0, 1e3)?;
        within("editor.early_stop", settings.early_stop, 0.0, 1e9)?;
        within("editor.kl", settings.kl, 0.0, 1e9)?;
        within("editor.locality_texts", settings.held.locality_texts as f64, 1.0, 1e6)?;
        if settings.kl > 0.0 && texts.is_empty() {
            return Err(Error::Config(match &settings.held.locality {
                None => "editor.kl: name a file of texts that the model is held to, editor.locality = \"FILE\"".into(),
                Some(file) => format!("editor.locality = \"{file}\": there is no text in it"),
            }));
        }
        let weights = Weight::all_named(&settings.layers, &settings.weights)?;
        if weights.is_empty() {
            return Err(Error::Config("editor.layers and editor.weights must name at least one each".into()));
        }
        Ok(Tuning { settings, weights, texts })
    }

    /// Descends on requests with what `begin` makes, and gives what that became.
    ///
    /// # Errors
    /// A request that the model cannot take, a loss that is not finite.
    pub fn tune<T: Tuned + Send>(
        &self,
        model: &Edited,
        requests: &[EditRequest],
        begin: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        check(requests)?;
        let tokenizer = &model.base().tokenizer;
        let texts = requests.iter().enumerate().map(|(number, request)| {
            let text = request.row(tokenizer);
            let text = text.and_then(|text| {
                check_targets(model, text.target())?;
                check_length(text.ids.len() - 1, model.base().decoder.spec.context)?;
                Ok(text)
            });
            text.map_err(|error| of_request(requests, number, error))
        });
        let rows = texts.collect::<Result<Vec<_>>>()?;
        let (rows, noise) = hidden_rows(model, requests, rows)?;
        let objective = requests[0].objective();
        let cells: usize = rows.iter().map(|text| text.ids.len()).sum();
        let spec = &model.base().decoder.spec;
        parallel::run_products(cells * spec.width * spec.mlp.width, || {
            let mut tuned = begin()?;
            self.descend(model, &rows, (noise, objective), &mut tuned)?;
            Ok(tuned)
        })
    }

    /// The cells at which the loss is read, each with its target.
    fn reads(&self, rows: &[Continuation]) -> Vec<((usize, usize), u32)> {
        let mut reads = vec![];
        for (row, text) in rows.iter().enumerate() {
            let cells: Vec<usize> = match self.settings.compat {
                Compat::None => text.reads().collect(),
                Compat::PromptLast => vec![text.prompt - 1; text.target().len()],
            };
            reads.extend(cells.into_iter().map(|cell| (row, cell)).zip(text.target().iter().copied()));
        }
        reads
    }

    /// Descends from the model as it is, on prompts with their targets.
    fn descend(
        &self,
        model: &Edited,
        rows: &[Continuation],
        (noise, objective): (Noise, Objective),
        tuned: &mut dyn Tuned,
    ) -> Result<()> {
        let spec = &model.base().decoder.spec;
        let lowest = self.weights.iter().map(|&at| spec.place(at)).min().unwrap_or(0);
        let read = without_last(&rows.iter().collect::<Vec<_>>());
        let edits = TuningTexts::new(model, lowest, read, &mut { noise })?;
        let reads = self.reads(rows);
        let cells: Vec<(usize, usize)> = reads.iter().map(|(cell, _)| *cell).collect();
        let ids: Vec<i64> = reads.iter().map(|(_, id)| i64::from(*id)).collect();
        let share: Vec<f64> =
            reads.iter().map(|((row, _), _)| 1.0 / (rows.len() * rows[*row].target().len()) as f64).collect();
        let nll = |logits: Tensor<2>| {
            let log = activation::log_softmax(logits, 1);
            let device = log.device().inner();
            let index = Tensor::<1, Int>::from_data(ids.as_slice(), &device).unsqueeze_dim::<2>(1);
            let share = TensorData::new(share.clone(), [share.len()]);
            let share = Tensor::<1>::from_data(share, (&device, log.dtype()));
            let log = log.gather(1, index).squeeze_dim::<1>(1);
            if objective != Objective::Lower {
                return (log * share).sum().neg();
            }
            // p^(1/|target|) of each row, as ROME's objective has it.
            let own = (0..rows.len()).flat_map(|row| reads.iter().map(move |((of, _), _)| (*of == row) as u8));
            let own: Vec<f64> = own
                .zip(reads.iter().cycle())
                .map(|(own, ((row, _), _))| f64::from(own) / rows[*row].target().len() as f64)
                .collect();
            let own = TensorData::new(own, [rows.len(), reads.len()]);
            let own = Tensor::<2>::from_data(own, (&device, log.dtype()));
            own.matmul(log.unsqueeze_dim(1)).exp().mean()
        };

        for step in 1..=self.settings.steps {
            let now = model.with_change(&tuned.change())?;
            let (loss, mut gradients) = edits.gradients(&now, &self.weights, &cells, &nll)?;
            let mut kl = 0.0;
            if self.settings.kl > 0.0 {
                let of_kl;
                (kl, of_kl) = self.locality(model, &now, lowest, step)?;
                for (at, (matrix, bias)) in of_kl {
                    match gradients.remove(&at) {
                        Some((m, b)) => gradients.insert(at, (m + matrix, b + bias)),
                        None => gradients.insert(at, (matrix, bias)),
                    };
                }
            }
            if !(loss + kl).is_finite() {
                return Err(Error::Input("the loss is not finite; try a lower editor.learning_rate".into()));
            }
            if loss < self.settings.early_stop && tuned.holds() {
                break;
            }
            tuned.step(gradients, &self.settings, step);
        }
        Ok(())
    }

    /// `λ · KL(p₀ ‖ p)` of some texts drawn for a step, and its gradients.
    fn locality(&self, model: &Edited, now: &Edited, lowest: usize, step: usize) -> Result<(f64, WeightGradients)> {
        let mut rng = random::stream(self.settings.held.seed, "locality", step as u64);
        let drawn =
            (0..self.settings.held.locality_texts).map(|_| self.texts[rng.random_range(0..self.texts.len())].clone());
        let texts = TuningTexts::new(model, lowest, Tokens::new(drawn.collect()), &mut NoTap)?;
        let rows = texts.tokens.ids().iter().enumerate();
        let cells: Vec<(usize, usize)> =
            rows.flat_map(|(row, ids)| (0..ids.len()).map(move |cell| (row, cell))).collect();
        let before = activation::log_softmax(texts.logits(model, &cells, &mut NoTap)?, 1);
        let weight = self.settings.kl / cells.len() as f64;
        texts.gradients(now, &self.weights, &cells, &|logits| {
            let apart = before.clone() - activation::log_softmax(logits, 1);
            (before.clone().exp() * apart).sum().mul_scalar(weight)
        })
    }
}

/// Rows whose subjects are hidden where the objective says so: then each is there once for every draw.
fn hidden_rows(
    model: &Edited,
    requests: &[EditRequest],
    rows: Vec<Continuation>,
) -> Result<(Vec<Continuation>, Noise)> {
    let (mut all, mut noise) = (vec![], Noise::default());
    for (request, row) in requests.iter().zip(rows) {
        let drawn = match request.objective().hidden() {
            Some(hidden) => {
                let (subject, _) = request.subject()?;
                let place = (subject, request.template.as_deref());
                Noise::of_subject(model, &request.prompt, place, hidden, 0..hidden.draws)?
            }
            None => None,
        };
        let Some((first, drawn)) = drawn else {
            all.push(row);
            noise.0.push(None);
            continue;
        };
        let [draws, tokens, width] = drawn.dims();
        for draw in 0..draws {
            let own = drawn.clone().slice([draw..draw + 1, 0..tokens, 0..width]).squeeze_dim(0);
            all.push(row.clone());
            noise.0.push(Some((first, own)));
        }
    }
    Ok((all, noise))
}
