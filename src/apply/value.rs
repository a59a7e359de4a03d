//! The value that makes the model answer as asked (Meng et al., 2022, equation 4).
//!
//! A vector δ is added to the residual stream above a layer's MLP, at the subject's last token, and follows
//!
//! ```text
//! mean over contexts of −ln p(target) / |target|  +  kl · KL(p(· | "SUBJECT is a") ‖ p₀)  +  decay · ‖δ‖ / ‖v₀‖²
//! ```
//!
//! down by Adam. Only its cone is computed: layers above, cells from the subject on. To the left of these, keys and
//! values are constants.

use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::contexts::Posed;
use crate::config::within;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::model::past::Past;
use crate::model::tap::{NoTap, Place, Site, Stack};
use crate::model::taps::{Recorder, cells};
use crate::model::tokens::Tokens;
use crate::parallel;

/// How δ is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descent {
    /// Evaluations of the loss; one update fewer.
    pub steps: usize,
    /// Adam's.
    pub learning_rate: f64,
    /// A request is done once its loss is below this.
    pub early_stop: f64,
    /// Of the decay term.
    pub weight_decay: f64,
    /// The largest `‖δ‖ / ‖v₀‖`.
    pub clamp: f64,
    /// Of the KL term.
    pub kl: f64,
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

/// Where the norm of `v₀` is taken: what δ is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// The MLP's output (ROME).
    Value,
    /// The residual stream above the layer (MEMIT).
    Stream,
}

/// What one layer says of some requests at their subjects' last tokens, and the cells above it that δ can reach.
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
    starts: Vec<usize>,
    /// Keys and values to the left, of the layers above.
    past: Option<Past>,
    /// The cells of each row at which its targets are predicted, and these.
    reads: Vec<(Vec<usize>, Vec<u32>)>,
}

impl Cone {
    /// Runs requests through the model up to `layer`, and what lies left of the subjects through all of it.
    ///
    /// # Errors
    /// A text that the model cannot take, or a layer that it does not have.
    pub fn new(model: &Edited, layer: usize, posed: &[&Posed]) -> Result<Self> {
        if layer >= model.layers() {
            let message = format!("the model has no layer {layer}; it has layers 0 to {}", model.layers() - 1);
            return Err(Error::Config(message));
        }
        let (mut rows, mut starts, mut reads, mut first) = (vec![], vec![], vec![], vec![0]);
        for request in posed {
            for (text, &subject) in request.rows.iter().zip(&request.subjects) {
                rows.push(text.ids[..text.ids.len() - 1].to_vec());
                starts.push(subject);
                reads.push((text.reads().map(|cell| cell - subject).collect(), text.target().to_vec()));
            }
            rows.push(request.essence.clone());
            starts.push(request.essence_subject);
            reads.push((vec![0], vec![]));
            first.push(rows.len());
        }
        let tokens = Tokens::new(rows.clone());
        let site = |place| Site { stack: Stack::Decoder, layer, place };
        let mut recorder = Recorder::at([site(Place::MlpHidden), site(Place::MlpOut)]);
        let hidden = model.embed(&tokens, &mut recorder)?;
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
                let left = Tokens::new(left);
                let part = hidden.clone().slice([0..count, 0..most, 0..width]);
                model.blocks(part, above, left.span(), Some(&mut past), &mut NoTap)?;
                Some(past)
            }
            false => None,
        };
        let tokens: Vec<Vec<u32>> = rows.iter().zip(&starts).map(|(ids, &start)| ids[start..].to_vec()).collect();
        let right = shifted(hidden, &starts, tokens.iter().map(Vec::len).max().unwrap_or(1));
        Ok(Cone { layer, first, keys, values, streams, right, tokens, starts, past, reads })
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

/// What the descent came to.
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
pub fn descend(model: &Edited, cone: &Cone, settings: &Descent, measured: Measured) -> Result<Found> {
    let requests = cone.first.len() - 1;
    let [_, _, width] = cone.right.dims();
    let (device, dtype) = (cone.right.device(), cone.right.dtype());
    let origin = match measured {
        Measured::Value => &cone.values,
        Measured::Stream => &cone.streams,
    };
    // v₀ is that of each request's first row.
    let norms: Vec<f64> = (0..requests)
        .map(|request| {
            let first = cone.first[request];
            let row = origin.clone().slice([first..first + 1, 0..width]);
            row.into_data().iter::<f64>().map(|value| value * value).sum::<f64>().sqrt()
        })
        .collect();
    let mut delta = vec![vec![0.0f64; width]; requests];
    let mut moments = vec![(vec![0.0f64; width], vec![0.0f64; width]); requests];
    let mut updates = vec![0; requests];
    let mut nll = vec![f64::NAN; requests];
    let mut essence: Vec<Option<Tensor<2>>> = vec![None; requests];
    let mut open: Vec<usize> = (0..requests).collect();
    let mut parts = Part::all(cone, &open);
    for step in 0..settings.steps {
        let values: Vec<f64> = open.iter().flat_map(|&request| delta[request].iter().copied()).collect();
        let evaluate = |part: &Part| {
            part.evaluate(model, cone, TensorData::new(values.clone(), [open.len(), width]), settings, &essence)
        };
        let rounds = match parts.as_slice() {
            [all] => vec![parallel::run_products(all.size(model), || evaluate(all))?],
            _ => parallel::run(parts.iter().collect(), evaluate)?,
        };
        let mut round =
            Round { nll: vec![0.0; open.len()], kl: vec![0.0; open.len()], gradient: vec![0.0; values.len()] };
        for (part, essences) in rounds {
            essences.into_iter().for_each(|(request, log)| essence[request] = Some(log));
            round.add(&part);
        }
        let mut going = vec![];
        for (place, &request) in open.iter().enumerate() {
            let here = &mut delta[request];
            let size = here.iter().map(|value| value * value).sum::<f64>().sqrt();
            let decay = settings.weight_decay / (norms[request] * norms[request]);
            nll[request] = round.nll[place];
            let loss = round.nll[place] + settings.kl * round.kl[place] + decay * size;
            if !loss.is_finite() {
                let message = "the loss of an edit is not finite; try a lower editor.learning_rate";
                return Err(Error::Input(message.into()));
            }
            if loss < settings.early_stop || step + 1 == settings.steps {
                continue;
            }
            let (first, second) = &mut moments[request];
            updates[request] += 1;
            let count = updates[request] as i32;
            for channel in 0..width {
                let pull = if size > 0.0 { decay * here[channel] / size } else { 0.0 };
                let gradient = round.gradient[place * width + channel] + pull;
                first[channel] = 0.9 * first[channel] + 0.1 * gradient;
                second[channel] = 0.999 * second[channel] + 0.001 * gradient * gradient;
                let mean = first[channel] / (1.0 - 0.9f64.powi(count));
                let spread = (second[channel] / (1.0 - 0.999f64.powi(count))).sqrt();
                here[channel] -= settings.learning_rate * mean / (spread + 1e-8);
            }
            let size = here.iter().map(|value| value * value).sum::<f64>().sqrt();
            let most = settings.clamp * norms[request];
            if size > most {
                here.iter_mut().for_each(|value| *value *= most / size);
            }
            going.push(request);
        }
        if going.is_empty() {
            break;
        }
        if going.len() < open.len() {
            open = going;
            parts = Part::all(cone, &open);
        }
    }
    let data = TensorData::new(delta.concat(), [requests, width]);
    Ok(Found { delta: Tensor::from_data(data, (&device, dtype)), updates, nll })
}

/// Rows of a part, at least: with fewer a core reads and packs weights more than it computes with them. Two parts of 6 rows took as long
/// as one of 12.
const ROWS: usize = 24;

/// Some rows of the requests that are not done yet.
struct Part {
    right: Tensor<3>,
    tokens: Tokens,
    past: Option<Past>,
    /// For each row the place of its request among the open ones.
    owners: Tensor<1, Int>,
    reads: Vec<(usize, usize)>,
    /// For each read: the target and its weight; for an essence, its request and the place of that.
    wanted: Vec<Wanted>,
}

enum Wanted {
    Token { place: usize, id: u32, weight: f64 },
    Essence { place: usize, request: usize },
}

/// One evaluation: the figures of each open request, and the gradient `[open · width]`.
struct Round {
    nll: Vec<f64>,
    kl: Vec<f64>,
    gradient: Vec<f64>,
}

impl Round {
    /// Adds what another part of the rows says.
    fn add(&mut self, other: &Round) {
        let add = |sum: &mut Vec<f64>, more: &[f64]| sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        add(&mut self.nll, &other.nll);
        add(&mut self.kl, &other.kl);
        add(&mut self.gradient, &other.gradient);
    }
}

/// The logarithms that the model gave at an essence before any change, by request.
type Essences = Vec<(usize, Tensor<2>)>;

impl Part {
    /// All rows of the open requests, in parts that run side by side.
    fn all(cone: &Cone, open: &[usize]) -> Vec<Self> {
        let rows = |(place, &request): (usize, &usize)| {
            (cone.first[request]..cone.first[request + 1]).map(move |row| (place, request, row))
        };
        let rows: Vec<(usize, usize, usize)> = open.iter().enumerate().flat_map(rows).collect();
        let count = rows.len().div_ceil(parallel::parts(&cone.right.device())).max(ROWS);
        rows.chunks(count).map(|rows| Part::of(cone, rows)).collect()
    }

    /// Rows, each with its request and the place of that among the open ones.
    fn of(cone: &Cone, some: &[(usize, usize, usize)]) -> Self {
        let (mut rows, mut owners, mut reads, mut wanted) = (vec![], vec![], vec![], vec![]);
        for &(place, request, row) in some {
            let contexts = cone.contexts(request).len() as f64;
            let (at, targets) = &cone.reads[row];
            reads.extend(at.iter().map(|&cell| (rows.len(), cell)));
            if targets.is_empty() {
                wanted.push(Wanted::Essence { place, request });
            }
            let weight = 1.0 / (contexts * targets.len() as f64);
            wanted.extend(targets.iter().map(|&id| Wanted::Token { place, id, weight }));
            rows.push(row);
            owners.push(place as i64);
        }
        let device = cone.right.device();
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &device);
        let tokens: Vec<Vec<u32>> = rows.iter().map(|&row| cone.tokens[row].clone()).collect();
        let most = tokens.iter().map(Vec::len).max().unwrap_or(1);
        let [_, _, width] = cone.right.dims();
        let places = rows.iter().map(|&row| (row, cone.starts[row])).collect();
        Part {
            right: cone.right.clone().select(0, index).slice([0..rows.len(), 0..most, 0..width]),
            tokens: Tokens::placed(tokens, places),
            past: cone.past.as_ref().map(|past| past.select(&rows)),
            owners: Tensor::from_data(owners.as_slice(), &device),
            reads,
            wanted,
        }
    }

    /// Multiplications and additions of its largest product with a weight.
    fn size(&self, model: &Edited) -> usize {
        let [rows, cells, width] = self.right.dims();
        rows * cells * width * model.base().decoder.spec.mlp_width
    }

    /// The rows' share of the figures and of the gradient, at δ `[open requests, width]`.
    fn evaluate(
        &self,
        model: &Edited,
        cone: &Cone,
        delta: TensorData,
        settings: &Descent,
        essence: &[Option<Tensor<2>>],
    ) -> Result<(Round, Essences)> {
        let open = delta.shape()[0];
        let place = (&cone.right.device().autodiff(), cone.right.dtype());
        let delta = Tensor::<2>::from_data(delta, place).require_grad();
        let [rows, width_of, width] = self.right.dims();
        let subject = self.right.clone().slice([0..rows, 0..1, 0..width]);
        let subject = subject + delta.clone().select(0, self.owners.clone()).unsqueeze_dim::<3>(1);
        let hidden = match width_of {
            1 => subject,
            _ => Tensor::cat(vec![subject, self.right.clone().slice([0..rows, 1..width_of, 0..width])], 1),
        };
        let mut past = self.past.clone();
        let above = cone.layer + 1..model.layers();
        let hidden = model.blocks(hidden, above, self.tokens.span(), past.as_mut(), &mut NoTap)?;
        let logits = model.head(hidden, &self.reads);
        let log = activation::log_softmax(logits.clone().inner(), 1);
        let [_, vocabulary] = log.dims();

        // With p the softmax of the logits z: ∂NLL/∂z = p − onehot, ∂KL(p ‖ p₀)/∂z = p ⊙ (ln p − ln p₀ − KL).
        let mut round = Round { nll: vec![0.0; open], kl: vec![0.0; open], gradient: vec![] };
        let mut essences = vec![];
        let mut towards = vec![];
        for (read, wanted) in self.wanted.iter().enumerate() {
            let log = log.clone().slice([read..read + 1, 0..vocabulary]);
            match *wanted {
                Wanted::Token { place, id, weight } => {
                    let id = id as usize;
                    let here = log.clone().slice([0..1, id..id + 1]);
                    round.nll[place] -= weight * here.into_data().iter::<f64>().sum::<f64>();
                    let one = Tensor::<2>::full([1, 1], 1.0, (&log.device(), log.dtype()));
                    let p = log.exp();
                    let less = p.clone().slice([0..1, id..id + 1]) - one;
                    towards.push(p.slice_assign([0..1, id..id + 1], less).mul_scalar(weight));
                }
                Wanted::Essence { place, request } => {
                    let before = essence[request].clone().unwrap_or_else(|| log.clone());
                    essences.push((request, before.clone()));
                    let p = log.clone().exp();
                    let apart = log - before;
                    let kl = (p.clone() * apart.clone()).sum().into_data().iter::<f64>().sum::<f64>();
                    round.kl[place] = kl;
                    towards.push((p * apart.sub_scalar(kl)).mul_scalar(settings.kl));
                }
            }
        }
        let gradients = (logits * Tensor::cat(towards, 0)).sum().backward();
        let gradient = delta.grad(&gradients);
        let gradient = gradient.ok_or_else(|| Error::Input("the loss does not reach the subject".into()))?;
        round.gradient = gradient.into_data().iter::<f64>().collect();
        Ok((round, essences))
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
