//! The value that makes the model answer as asked (Meng et al., 2022, equation 4).
//!
//! A vector δ is added to what a layer's MLP says, or to the residual stream above it, at the subject's last token, and follows
//!
//! ```text
//! mean over contexts of −ln p(target) / |target|  +  kl · KL(p(· | "SUBJECT is a") ‖ p₀)  +  decay · ‖δ‖ / ‖v₀‖²
//! ```
//!
//! down by Adam; of a target that is to become less likely the first term is the mean of `p(target)^(1/|target|)`. Both are one, unless a norm stands between the MLP and the stream. Only its cone is computed: layers above, cells from the subject on. To the left of these, keys and
//! values are constants.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::contexts::RequestInContexts;
use crate::data::objective::Objective;
use crate::edit::noise::Noise;
use crate::edit::{Edited, loss};
use crate::error::{Error, Result};
use crate::model::stack::past::Past;
use crate::model::stack::taps::{Recorder, cells};
use crate::model::tap::{NoTap, Place, Site, Stack, Text};
use crate::model::tokens::Tokens;
use crate::parallel;
use crate::sections::within;

/// How δ is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Descent {
    /// Evaluations of the loss; one update fewer.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Adam's.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// A request is done once its loss is below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// Of the decay term.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// The largest `‖δ‖ / ‖v₀‖`.
    pub clamp: f64,
    /// Of the KL term.
    #[serde(default = "kl")]
    pub kl: f64,
}

fn steps() -> usize {
    20
}
fn learning_rate() -> f64 {
    0.5
}
fn early_stop() -> f64 {
    0.05
}
fn weight_decay() -> f64 {
    0.5
}
fn kl() -> f64 {
    0.0625
}

impl Descent {
    /// Refuses settings that no descent can follow.
    ///
    /// # Errors
    /// Names the setting and its range.
    pub fn check(&self) -> Result<()> {
        within("editor.steps", self.steps as f64, 1.0, 1e6)?;
        within("editor.learning_rate", self.learning_rate, 0.0, 1e6)?;
        within("editor.early_stop", self.early_stop, 0.0, 1e9)?;
        within("editor.weight_decay", self.weight_decay, 0.0, 1e9)?;
        within("editor.clamp", self.clamp, 0.0, 1e9)?;
        within("editor.kl", self.kl, 0.0, 1e9)
    }
}

/// What δ is added to. The clamp and the decay are relative to its norm `‖v₀‖`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedTo {
    /// The MLP's output (ROME), before the norm behind it where there is one.
    Value,
    /// The residual stream above the layer (MEMIT).
    Stream,
}

/// The cone of δ: a vector added at a subject's last token above a layer changes only the layers above and the cells from that token on.
/// Holds these cells, and what the layer computed at the subjects' last tokens. Everything outside the cone is computed once.
pub struct Cone {
    layer: usize,
    /// Where each request's rows begin; the last entry is their number. The last row of a request is its essence.
    first: Vec<usize>,
    /// Keys `[rows, mlp width]`, the MLP's outputs and the streams `[rows, width]`, all at the subject.
    pub keys: Tensor<2>,
    /// See `keys`.
    pub values: Tensor<2>,
    /// See `keys`.
    pub streams: Tensor<2>,
    /// `[rows, cells, width]` from the subject's last token on, above the layer.
    right: Tensor<3>,
    tokens: Vec<Vec<u32>>,
    /// The whole text that each row is a part of.
    texts: Vec<Arc<Text>>,
    starts: Vec<usize>,
    /// Keys and values to the left, of the layers above.
    past: Option<Past>,
    /// The cells of each row at which its targets are predicted, and these.
    reads: Vec<(Vec<usize>, Vec<u32>)>,
    /// Whether each request's target is to become less likely.
    lowers: Vec<bool>,
}

impl Cone {
    /// Runs requests through the model up to `layer`, and what lies left of the subjects through all of it.
    ///
    /// # Errors
    /// A text that the model cannot take, or a layer that it does not have.
    pub fn new(model: &Edited, layer: usize, in_contexts: &[&RequestInContexts]) -> Result<Self> {
        if layer >= model.layers() {
            let message = format!("the model has no layer {layer}; it has layers 0 to {}", model.layers() - 1);
            return Err(Error::Config(message));
        }
        if model.acts_on_layer(layer) {
            let message = format!(
                "an edit below acts on what layer {layer} says, and this editor works there; take that edit away, or another layer"
            );
            return Err(Error::Input(message));
        }
        let (mut rows, mut texts, mut starts, mut reads, mut first) = (vec![], vec![], vec![], vec![], vec![0]);
        for request in in_contexts {
            for (text, &subject) in request.rows.iter().zip(&request.subjects) {
                rows.push(text.ids[..text.ids.len() - 1].to_vec());
                texts.push(text.text());
                starts.push(subject);
                reads.push((text.reads().map(|cell| cell - subject).collect(), text.target().to_vec()));
            }
            rows.push(request.essence.clone());
            texts.push(Text::new(&request.essence));
            starts.push(request.essence_subject);
            reads.push((vec![0], vec![]));
            first.push(rows.len());
        }
        let tokens = Tokens::new(rows.clone()).of(texts.iter().cloned());
        let site = |place| Site { stack: Stack::Decoder, layer, place };
        let mut recorder = Recorder::at([site(Place::MlpHidden), site(Place::MlpOut)]);
        let noise = in_contexts.iter().flat_map(|request| request.noise.0.iter().cloned().chain([None]));
        let hidden = model.embed(&tokens, &mut Noise(noise.collect()))?;
        let hidden = model.blocks(hidden, 0..layer + 1, tokens.span(), None, &mut recorder)?;
        let subjects: Vec<(usize, usize)> = starts.iter().copied().enumerate().collect();
        let mut at = |place| {
            let seen = recorder.values.remove(&site(place)).map(|seen| cells(seen, &subjects));
            seen.ok_or_else(|| Error::Input(format!("layer {layer} was not reached")))
        };
        let (keys, values) = (at(Place::MlpHidden)?, at(Place::MlpOut)?);
        let streams = cells(hidden.clone(), &subjects);

        // Left of the subjects nothing changes.
        let above = layer + 1..model.layers();
        let left: Vec<Vec<u32>> = rows.iter().zip(&starts).map(|(ids, &start)| ids[..start].to_vec()).collect();
        let most = starts.iter().copied().max().unwrap_or(0);
        let past = match most > 0 && !above.is_empty() {
            true => {
                let [count, _, width] = hidden.dims();
                let mut past = model.past();
                let left = Tokens::new(left).of(texts.iter().cloned());
                let part = hidden.clone().slice([0..count, 0..most, 0..width]);
                model.blocks(part, above, left.span(), Some(&mut past), &mut NoTap)?;
                Some(past)
            }
            false => None,
        };
        let tokens: Vec<Vec<u32>> = rows.iter().zip(&starts).map(|(ids, &start)| ids[start..].to_vec()).collect();
        let right = shifted(hidden, &starts, tokens.iter().map(Vec::len).max().unwrap_or(1));
        let lowers = in_contexts.iter().map(|request| request.objective == Objective::Lower).collect();
        Ok(Cone { layer, first, keys, values, streams, right, tokens, texts, starts, past, reads, lowers })
    }

    /// The rows of a request: its contexts, without the essence.
    pub fn contexts(&self, request: usize) -> std::ops::Range<usize> {
        self.first[request]..self.first[request + 1] - 1
    }

    /// The mean over a request's contexts of a tensor `[rows, n]`, as `[1, n]`.
    pub fn mean(&self, request: usize, of: &Tensor<2>) -> Tensor<2> {
        let width = of.dims()[1];
        of.clone().slice([self.contexts(request), 0..width]).mean_dim(0)
    }
}

impl Found {
    /// In the words of an edit's findings: for each request its updates and where its loss came to.
    pub(super) fn findings(&self) -> Vec<serde_json::Value> {
        let each = self.updates.iter().zip(&self.nll);
        each.map(|(updates, nll)| serde_json::json!({"updates": updates, "target_nll": nll})).collect()
    }
}

/// The result of the descent.
#[derive(Debug, Clone)]
pub struct Found {
    /// δ `[requests, width]`.
    pub delta: Tensor<2>,
    /// Updates made for each request.
    pub updates: Vec<usize>,
    /// −ln p of each request's target a token, at the last evaluation.
    pub nll: Vec<f64>,
}

/// Finds δ for all requests of a cone together; a request that is done is computed no more.
///
/// # Errors
/// A loss that is not finite.
pub fn descend(model: &Edited, cone: &Cone, settings: &Descent, added_to: AddedTo) -> Result<Found> {
    let [_, _, width] = cone.right.dims();
    let mut paths: Vec<Path> = cone.norms(added_to).into_iter().map(|norm| Path::new(norm, width)).collect();
    let mut open: Vec<usize> = (0..paths.len()).collect();
    let mut rows = Rows::new(cone, &open, added_to);
    // The model's distribution after each essence before any change.
    let mut before = None;
    for step in 0..settings.steps {
        let delta: Vec<f64> = open.iter().flat_map(|&request| paths[request].delta.iter().copied()).collect();
        let delta = TensorData::new(delta, [open.len(), width]);
        let round =
            parallel::run_products(rows.size(model), || rows.evaluate(model, cone, delta, settings.kl, &mut before))?;
        let last = step + 1 == settings.steps;
        let mut going = vec![];
        for (place, &request) in open.iter().enumerate() {
            let path = &mut paths[request];
            path.nll = round.nll[place];
            let loss = round.loss[place] + settings.kl * round.kl[place] + path.decay(settings) * path.length();
            if !loss.is_finite() {
                let message = "the loss of an edit is not finite; try a lower editor.learning_rate";
                return Err(Error::Input(message.into()));
            }
            if loss >= settings.early_stop && !last {
                path.step(&round.gradient[place * width..][..width], settings);
                going.push(request);
            }
        }
        if going.is_empty() {
            break;
        }
        if going.len() < open.len() {
            open = going;
            rows = Rows::new(cone, &open, added_to);
        }
    }
    let delta: Vec<f64> = paths.iter().flat_map(|path| path.delta.iter().copied()).collect();
    let delta =
        Tensor::from_data(TensorData::new(delta, [paths.len(), width]), (&cone.right.device(), cone.right.dtype()));
    let (updates, nll) = paths.iter().map(|path| (path.updates, path.nll)).unzip();
    Ok(Found { delta, updates, nll })
}

/// The way of one request's δ: Adam's, written out in f64, because each request stops by itself.
struct Path {
    delta: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    updates: usize,
    /// ‖v₀‖
    norm: f64,
    nll: f64,
}

impl Path {
    fn new(norm: f64, width: usize) -> Self {
        let zero = vec![0.0; width];
        Path { delta: zero.clone(), first: zero.clone(), second: zero, updates: 0, norm, nll: f64::NAN }
    }

    /// ‖δ‖
    fn length(&self) -> f64 {
        self.delta.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// `decay / ‖v₀‖²`, what the decay term has before ‖δ‖.
    fn decay(&self, settings: &Descent) -> f64 {
        settings.weight_decay / (self.norm * self.norm)
    }

    /// A step down the gradient and the decay's, `decay/‖v₀‖² · δ/‖δ‖`; then back into the ball `‖δ‖ ≤ clamp · ‖v₀‖`.
    fn step(&mut self, gradient: &[f64], settings: &Descent) {
        let (length, decay) = (self.length(), self.decay(settings));
        self.updates += 1;
        let count = self.updates as i32;
        for (channel, gradient) in gradient.iter().enumerate() {
            let pull = if length > 0.0 { decay * self.delta[channel] / length } else { 0.0 };
            let gradient = gradient + pull;
            self.first[channel] = 0.9 * self.first[channel] + 0.1 * gradient;
            self.second[channel] = 0.999 * self.second[channel] + 0.001 * gradient * gradient;
            let mean = self.first[channel] / (1.0 - 0.9f64.powi(count));
            let spread = (self.second[channel] / (1.0 - 0.999f64.powi(count))).sqrt();
            self.delta[channel] -= settings.learning_rate * mean / (spread + 1e-8);
        }
        let (length, most) = (self.length(), settings.clamp * self.norm);
        if length > most {
            self.delta.iter_mut().for_each(|value| *value *= most / length);
        }
    }
}

impl Cone {
    /// ‖v₀‖ of each request, at its first row.
    fn norms(&self, added_to: AddedTo) -> Vec<f64> {
        let origin = match added_to {
            AddedTo::Value => &self.values,
            AddedTo::Stream => &self.streams,
        };
        let width = origin.dims()[1];
        let norm = |&first: &usize| {
            let row = origin.clone().slice([first..first + 1, 0..width]);
            row.into_data().iter::<f64>().map(|value| value * value).sum::<f64>().sqrt()
        };
        self.first[..self.first.len() - 1].iter().map(norm).collect()
    }
}

/// The rows of the requests that are not done yet, as one batch.
struct Rows {
    right: Tensor<3>,
    /// What δ is added to before the norm behind the MLP, `[rows, width]`; nothing where it is added to the stream.
    values: Option<Tensor<2>>,
    tokens: Tokens,
    past: Option<Past>,
    /// The open requests, and for each row the place of its request among them.
    open: Vec<usize>,
    owners: Tensor<1, Int>,
    /// Where targets are predicted, then where essences are read, one a request.
    reads: Vec<(usize, usize)>,
    targets: Vec<u32>,
    /// For each target the place of its request and its weight, `1 / (contexts · |target|)`.
    shares: Vec<(usize, f64)>,
    /// For each target the row that it stands in, and that row's number of them where the row's target is to become less likely.
    lowered: Vec<(usize, Option<usize>)>,
}

/// One evaluation: the figures of each open request, and the gradient `[open · width]`.
struct Round {
    nll: Vec<f64>,
    /// `−ln p(target) / |target|`, mean over contexts; of a target that is to become less likely the mean of `p^(1/|target|)`.
    loss: Vec<f64>,
    kl: Vec<f64>,
    gradient: Vec<f64>,
}

impl Rows {
    fn new(cone: &Cone, open: &[usize], added_to: AddedTo) -> Self {
        let (mut rows, mut owners, mut reads, mut essences) = (vec![], vec![], vec![], vec![]);
        let (mut targets, mut shares, mut lowered) = (vec![], vec![], vec![]);
        for (place, &request) in open.iter().enumerate() {
            let contexts = cone.contexts(request).len() as f64;
            for row in cone.first[request]..cone.first[request + 1] {
                let (at, wanted) = &cone.reads[row];
                let cells = at.iter().map(|&cell| (rows.len(), cell));
                match wanted.is_empty() {
                    true => essences.extend(cells),
                    false => reads.extend(cells),
                }
                let weight = 1.0 / (contexts * wanted.len() as f64);
                shares.extend(wanted.iter().map(|_| (place, weight)));
                let lowers = cone.lowers[request].then_some(wanted.len());
                lowered.extend(wanted.iter().map(|_| (rows.len(), lowers)));
                targets.extend(wanted);
                rows.push(row);
                owners.push(place as i64);
            }
        }
        reads.extend(essences);
        let device = cone.right.device();
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &device);
        let tokens: Vec<Vec<u32>> = rows.iter().map(|&row| cone.tokens[row].clone()).collect();
        let most = tokens.iter().map(Vec::len).max().unwrap_or(1);
        let [_, _, width] = cone.right.dims();
        let places = rows.iter().map(|&row| (row, cone.starts[row])).collect();
        Rows {
            values: (added_to == AddedTo::Value).then(|| cone.values.clone().select(0, index.clone())),
            right: cone.right.clone().select(0, index).slice([0..rows.len(), 0..most, 0..width]),
            tokens: Tokens::placed(tokens, places).of(rows.iter().map(|&row| cone.texts[row].clone())),
            past: cone.past.as_ref().map(|past| past.select(&rows)),
            open: open.to_vec(),
            owners: Tensor::from_data(owners.as_slice(), &device),
            reads,
            targets,
            shares,
            lowered,
        }
    }

    /// Multiplications and additions of its largest product with a weight.
    fn size(&self, model: &Edited) -> usize {
        let [rows, cells, width] = self.right.dims();
        rows * cells * width * model.base().decoder.spec.mlp.width
    }

    /// What the layers above read, `[rows, cells, width]`, with δ `[open, width]` added at the subjects.
    fn stream(&self, model: &Edited, cone: &Cone, delta: &Tensor<2>) -> Tensor<3> {
        let [rows, cells, width] = self.right.dims();
        let subject = self.right.clone().slice([0..rows, 0..1, 0..width]);
        let delta = delta.clone().select(0, self.owners.clone()).unsqueeze_dim::<3>(1);
        let change = match (model.norm_behind_mlp(cone.layer), &self.values) {
            (Some(norm), Some(values)) => {
                let values = values.clone().unsqueeze_dim::<3>(1);
                norm.forward(values.clone() + delta) - norm.forward(values)
            }
            _ => delta,
        };
        let subject = subject + change;
        match cells {
            1 => subject,
            _ => Tensor::cat(vec![subject, self.right.clone().slice([0..rows, 1..cells, 0..width])], 1),
        }
    }

    /// The figures and the gradient at δ `[open, width]`. `before` is what the model says of all essences, kept at the first evaluation.
    fn evaluate(
        &self,
        model: &Edited,
        cone: &Cone,
        delta: TensorData,
        kl_weight: f64,
        before: &mut Option<Tensor<2>>,
    ) -> Result<Round> {
        let place = (&cone.right.device().autodiff(), cone.right.dtype());
        let delta = Tensor::<2>::from_data(delta, place).require_grad();
        let (stream, above, span) =
            (self.stream(model, cone, &delta), cone.layer + 1..model.layers(), self.tokens.span());
        let mut loss_of = |hidden: Tensor<3>| {
            model.head_with_gradient(hidden, &self.reads, |logits| self.towards(logits, kl_weight, before))
        };
        let (loss, (each_nll, each_kl)) = match model.in_file(above.clone()) {
            true => {
                let place = (span, self.past.as_ref());
                let (gradient, found) = model.gradient_below(stream.clone().inner(), above, place, &mut loss_of)?;
                ((stream * gradient).sum(), found)
            }
            false => loss_of(model.blocks(stream, above, span, self.past.clone().as_mut(), &mut NoTap)?)?,
        };
        let gradients = loss.backward();
        let gradient = delta.grad(&gradients);
        let gradient = gradient.ok_or_else(|| Error::Input("the loss does not reach the subject".into()))?;
        let each_nll: Vec<f64> = each_nll.into_data().iter::<f64>().collect();
        let (mut nll, mut loss) = (vec![0.0; self.open.len()], vec![0.0; self.open.len()]);
        let slopes = self.slopes(&each_nll);
        for (target, (place, weight)) in self.shares.iter().enumerate() {
            let (value, (_, lowered)) = (each_nll[target], self.lowered[target]);
            nll[*place] += weight * value;
            // The slope of a row that is lowered is −p.
            loss[*place] += weight * if lowered.is_some() { -slopes[target] } else { value };
        }
        Ok(Round {
            nll,
            loss,
            kl: each_kl.into_data().iter::<f64>().collect(),
            gradient: gradient.into_data().iter::<f64>().collect(),
        })
    }

    /// What the loss of a row gains with the NLL of each of its targets, times the number of these: 1, and `−p^(1/|target|)` of a row whose target is to
    /// become less likely.
    fn slopes(&self, each_nll: &[f64]) -> Vec<f64> {
        let mut of_row: BTreeMap<usize, f64> = BTreeMap::new();
        for (value, (row, count)) in each_nll.iter().zip(&self.lowered) {
            if let Some(count) = count {
                *of_row.entry(*row).or_insert(0.0) += value / *count as f64;
            }
        }
        self.lowered.iter().map(|(row, _)| of_row.get(row).map_or(1.0, |nll| -(-nll).exp())).collect()
    }

    /// The gradient at the logits `[reads, vocabulary]`, and the NLL of each target and the KL divergence of each essence.
    fn towards(
        &self,
        logits: Tensor<2>,
        kl_weight: f64,
        before: &mut Option<Tensor<2>>,
    ) -> Result<(Tensor<2>, (Tensor<1>, Tensor<1>))> {
        let log = activation::log_softmax(logits, 1);
        let ([reads, vocabulary], targets) = (log.dims(), self.targets.len());
        let (device, dtype) = (log.device(), log.dtype());

        let (each_nll, towards_targets) = loss::nll(log.clone().slice([0..targets, 0..vocabulary]), &self.targets);
        let slopes = match self.lowered.iter().any(|(_, lowers)| lowers.is_some()) {
            true => self.slopes(&each_nll.clone().into_data().iter::<f64>().collect::<Vec<_>>()),
            false => vec![1.0; targets],
        };
        let weights: Vec<f64> = self.shares.iter().zip(slopes).map(|((_, weight), slope)| weight * slope).collect();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [targets]), (&device, dtype));
        let log = log.slice([targets..reads, 0..vocabulary]);
        let known = before.get_or_insert_with(|| log.clone()).clone();
        let index: Vec<i64> = self.open.iter().map(|&request| request as i64).collect();
        let known = known.select(0, Tensor::<1, Int>::from_data(index.as_slice(), &device));
        let (each_kl, towards_essences) = loss::kl_to(log, known);

        let towards = vec![towards_targets * weights.unsqueeze_dim(1), towards_essences.mul_scalar(kl_weight)];
        Ok((Tensor::cat(towards, 0), (each_nll, each_kl)))
    }
}

/// Each row from its own start on, `[rows, width, channels]`, padded with zeros.
fn shifted(hidden: Tensor<3>, starts: &[usize], width: usize) -> Tensor<3> {
    let [rows, cells, channels] = hidden.dims();
    let zero = (rows * cells) as i64;
    let index = starts.iter().enumerate().flat_map(|(row, &start)| {
        (0..width).map(move |cell| if start + cell < cells { (row * cells + start + cell) as i64 } else { zero })
    });
    let index: Vec<i64> = index.collect();
    let (device, dtype) = (hidden.device(), hidden.dtype());
    let flat = hidden.reshape([rows * cells, channels]);
    let flat = Tensor::cat(vec![flat, Tensor::zeros([1, channels], (&device, dtype))], 0);
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &device);
    flat.select(0, index).reshape([rows, width, channels])
}
