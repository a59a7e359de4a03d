//! KE: a network that reads what is to be edited and says how to scale its gradient (De Cao et al., 2021).
//!
//! A bidirectional LSTM reads `old >> new || prompt`, old being what the model answers. For each edited matrix a head makes of what it read two
//! pairs of factors, of which a gives a mask of rank 1 over the gradient and b a change of rank 1 by itself, and a gate η:
//!
//! ```text
//! ΔW = s σ(η) · (∇W ∘ (softmax(a_out) a_inᵀ) + softmax(b_out) b_inᵀ)
//! ```
//!
//! With `∇W = Σ uᵀδ` over tokens the first term is `Σ (a_in ∘ u)ᵀ (softmax(a_out) ∘ δ)`: every term is a product of two vectors, and no
//! matrix is ever formed.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn::lstm::{Lstm, LstmConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::learned::Stored;
use super::matrices::{Captured, EditTokens, EditedMatrix, Factors, Matrices, by_owner, products};
use super::parameters;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, Editor, PassChange, RecordDeltas};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tokenizer::Continuation;
use crate::sections::choice;
use crate::sections::within;

/// What configs, archives and edits call it.
pub(crate) const NAME: &str = "ke";

/// `[editor]` of a KE config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeSettings {
    /// The layers whose weights are edited.
    pub layers: Vec<usize>,
    /// The weights edited in each.
    pub weights: Vec<String>,
    /// Width of each direction of the LSTM.
    #[serde(default = "hidden")]
    pub hidden: usize,
    /// Width of what the heads read of it.
    #[serde(default = "condition")]
    pub condition: usize,
    /// s
    #[serde(default = "scale")]
    pub scale: f64,
    /// How ∇W is given.
    #[serde(default)]
    pub gradient: Gradient,
    /// Times that an edit is applied at most, each on the model that the last one left, until the model says what it is to say.
    #[serde(default = "applications")]
    pub applications: usize,
}

/// How the gradient of a matrix is given to its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradient {
    /// With norm 1 for each request, so that what the model already half believes is edited like what it never heard.
    #[default]
    Unit,
    /// As it is, which is the paper's.
    Raw,
}

fn hidden() -> usize {
    128
}

fn condition() -> usize {
    1024
}

fn scale() -> f64 {
    1.0
}

fn applications() -> usize {
    5
}

impl KeSettings {
    /// From the section `[editor]` of a config; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, a value of the wrong type.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        choice::read("editor", given, origin)
    }

    /// The network's own size, over a model of this width.
    pub fn network_bytes(&self, matrices: &Matrices, width: usize) -> u64 {
        let lstm = 2 * 4 * ((width + self.hidden) * self.hidden + 2 * self.hidden);
        let of_head = |slot: &EditedMatrix| {
            let factors = factors(matrices.shapes[slot.shape]);
            (self.condition + 2) * (self.condition + factors)
        };
        let heads: usize = matrices.each.iter().map(of_head).sum();
        4 * (lstm + (2 * self.hidden + 1) * self.condition + heads) as u64
    }

    /// As archives and edits hold them.
    pub fn written(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The editor of an archive.
    pub(super) fn editor(&self, stored: &Stored<'_>) -> Result<Box<dyn Editor>> {
        let ke = Ke::new(self.clone(), stored.model, stored.place).map_err(|error| stored.of_settings(error))?;
        let mut ke = ke.restored(stored.tensors()?).map_err(|error| stored.of_network(error))?;
        ke.archive_fingerprint = Some(stored.fingerprint.clone());
        Ok(Box::new(ke))
    }
}

/// What a head says of a matrix: both pairs of factors, and the gate.
fn factors([d_in, d_out]: [usize; 2]) -> usize {
    2 * (d_in + d_out) + 1
}

/// What is trained.
#[derive(Module, Debug)]
pub struct KeNetwork {
    /// Reads the tokens from the first on.
    pub forwards: Lstm,
    /// Reads them from the last on.
    pub backwards: Lstm,
    /// Of where both end, `[2 hidden, condition]`.
    pub summary: Linear,
    /// One for each matrix.
    pub heads: Vec<Head>,
}

/// What is said of one matrix.
#[derive(Module, Debug)]
pub struct Head {
    /// `[condition, condition]`
    pub inner: WeightNormed,
    /// `[condition, 2 (d_in + d_out) + 1]`
    pub outer: WeightNormed,
}

/// A linear layer whose columns have learned norms, `W = g v / ‖v‖` (Salimans and Kingma, 2016).
#[derive(Module, Debug)]
pub struct WeightNormed {
    /// v `[d_in, d_out]`
    pub direction: Param<Tensor<2>>,
    /// g `[d_out]`
    pub norm: Param<Tensor<1>>,
    /// `[d_out]`
    pub bias: Param<Tensor<1>>,
}

impl WeightNormed {
    fn new(d_in: usize, d_out: usize, place: (&Device, DType)) -> Self {
        let bound = 1.0 / (d_in as f64).sqrt();
        let spread = Distribution::Uniform(-bound, bound);
        let direction = Tensor::<2>::random([d_in, d_out], spread, place);
        let norm = column_norms(direction.clone());
        WeightNormed {
            norm: Param::from_tensor(norm),
            direction: Param::from_tensor(direction),
            bias: Param::from_tensor(Tensor::random([d_out], spread, place)),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let direction = self.direction.val();
        let scale = self.norm.val() / column_norms(direction.clone());
        x.matmul(direction) * scale.unsqueeze() + self.bias.val().unsqueeze()
    }
}

fn column_norms(matrix: Tensor<2>) -> Tensor<1> {
    matrix.square().sum_dim(0).sqrt().squeeze_dim(0)
}

/// A KE editor.
#[derive(Clone)]
pub struct Ke {
    /// Its settings.
    pub settings: KeSettings,
    /// Its network.
    pub network: KeNetwork,
    /// The fingerprint of the archive that it comes from, for the provenance of its edits.
    pub archive_fingerprint: Option<String>,
    /// The model whose embeddings the network reads.
    model: Arc<Model>,
    matrices: Matrices,
    /// The tokens between old and new, and between new and prompt.
    marks: [Vec<u32>; 2],
}

/// What is seen of some requests before the network is asked: their gradients, each with its request as owner, and what is read of each.
pub struct Seen {
    /// The gradients.
    pub captured: Captured,
    /// `old >> new || prompt` of each request, as tokens.
    pub conditions: Vec<Vec<u32>>,
}

impl Ke {
    /// A KE whose network is yet to learn. `place` is the network's device and type.
    ///
    /// # Errors
    /// Weights that the model does not have, numbers out of range.
    pub fn new(settings: KeSettings, model: &Arc<Model>, place: (&Device, DType)) -> Result<Self> {
        within("editor.hidden", settings.hidden as f64, 1.0, 1e5)?;
        within("editor.condition", settings.condition as f64, 1.0, 1e5)?;
        within("editor.applications", settings.applications as f64, 1.0, 1e3)?;
        if !(settings.scale > 0.0 && settings.scale.is_finite()) {
            return Err(Error::Config(format!("editor.scale = {}: it must be a number above 0", settings.scale)));
        }
        let spec: &DecoderSpec = &model.decoder.spec;
        let matrices = Matrices::new(&settings.layers, &settings.weights, spec)?;
        let lstm = LstmConfig::new(spec.width, settings.hidden, true);
        let heads = matrices.each.iter().map(|slot| Head {
            inner: WeightNormed::new(settings.condition, settings.condition, place),
            outer: WeightNormed::new(settings.condition, factors(matrices.shapes[slot.shape]), place),
        });
        let network = KeNetwork {
            forwards: lstm.init(place.0),
            backwards: lstm.init(place.0),
            summary: LinearConfig::new(2 * settings.hidden, settings.condition).init(place.0),
            heads: heads.collect(),
        };
        let marks = [model.tokenizer.encode_plain(" >>")?, model.tokenizer.encode_plain(" ||")?];
        Ok(Ke { settings, network, archive_fingerprint: None, model: model.clone(), matrices, marks })
    }

    /// The same with another network.
    pub fn with_network(&self, network: &KeNetwork) -> Self {
        Ke { network: network.clone(), ..self.clone() }
    }

    /// The edited matrices.
    pub fn matrices(&self) -> &Matrices {
        &self.matrices
    }

    /// What the network is to be asked of requests whose gradients are captured, each row being its own owner.
    pub fn seen(&self, captured: Captured, rows: &[&Continuation]) -> Seen {
        let condition = |(row, old): (&&Continuation, &Vec<u32>)| {
            let prompt = &row.ids[..row.ids.len() - row.target().len()];
            let parts = [old, &self.marks[0], row.target(), &self.marks[1], prompt];
            // What tells an encoder's tokens from a decoder's is no token.
            let known = self.model.decoder.embedding.dims()[0] as u32;
            parts.concat().into_iter().filter(|&id| id < known).collect()
        };
        let conditions = rows.iter().zip(&captured.likeliest).map(condition).collect();
        Seen { captured, conditions }
    }

    /// What the LSTM makes of conditions, `[conditions, condition]`. Burn's keeps its states in the element type of the device, whatever the heads' is.
    fn read(&self, conditions: &[Vec<u32>]) -> Tensor<2> {
        let longest = conditions.iter().map(Vec::len).max().unwrap_or(0).max(1);
        // What stands behind a text's last token comes after the state that is looked at.
        let padded = |backwards: bool| -> Tensor<3> {
            let ids = conditions.iter().flat_map(|ids| {
                let mut ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                if backwards {
                    ids.reverse();
                }
                ids.resize(longest, 0);
                ids
            });
            let ids: Vec<i64> = ids.collect();
            let embedding = &self.model.decoder.embedding;
            let index = Tensor::<1, Int>::from_data(ids.as_slice(), &embedding.device());
            let weight = self.network.summary.weight.val();
            let rows = embedding.rows(index).into_data();
            let rows = Tensor::<2>::from_data(rows, (&weight.device(), weight.dtype()));
            let width = rows.dims()[1];
            rows.reshape([conditions.len(), longest, width])
        };
        let last = |states: Tensor<3>| -> Tensor<2> {
            let [count, _, width] = states.dims();
            let places: Vec<i64> =
                conditions.iter().enumerate().map(|(row, ids)| (row * longest + ids.len().max(1) - 1) as i64).collect();
            let index = Tensor::<1, Int>::from_data(places.as_slice(), &states.device());
            states.reshape([count * longest, width]).select(0, index)
        };
        let forwards = last(self.network.forwards.forward(padded(false), None).0);
        let backwards = last(self.network.backwards.forward(padded(true), None).0);
        let read = activation::tanh(self.network.summary.forward(Tensor::cat(vec![forwards, backwards], 1)));
        self.network.heads.first().map_or(read.clone(), |head| read.cast(head.inner.bias.val().dtype()))
    }

    /// The deltas of `edits` edits: `A [edits, d_in, rank]`, `B [edits, rank, d_out]` for each matrix, differentiable with respect to the
    /// network where that is tracked. `edit_of` has the edit of each request.
    pub fn deltas(&self, seen: &Seen, edit_of: &[usize], edits: usize) -> RecordDeltas {
        let read = self.read(&seen.conditions);
        let requests = edit_of.len();
        let mut deltas = RecordDeltas::default();
        for (slot, (at, head)) in self.matrices.each.iter().zip(&self.network.heads).enumerate() {
            let [d_in, d_out] = self.matrices.shapes[at.shape];
            let (u, delta, owners) = &seen.captured.factors[slot];
            let said = head.outer.forward(activation::tanh(head.inner.forward(read.clone())));
            let mut first = 0;
            let mut take = |width: usize| {
                first += width;
                said.clone().slice([0..requests, first - width..first])
            };
            let (mask_out, mask_in, own_out, own_in, gate) =
                (take(d_out), take(d_in), take(d_out), take(d_in), take(1));
            let gate = activation::sigmoid(gate).mul_scalar(self.settings.scale);
            let (device, dtype) = (said.device(), said.dtype());
            let of_owner: Vec<i64> = owners.iter().map(|&owner| owner as i64).collect();
            let of_owner = Tensor::<1, Int>::from_data(of_owner.as_slice(), &device);
            let (u, delta) = (u.clone().cast(dtype), delta.clone().cast(dtype));
            let sizes = self.sizes(&seen.captured.factors[slot], requests, (&device, dtype));
            // The masks of each token are its request's.
            let mask_in = mask_in.select(0, of_owner.clone()) * u;
            let mask_out = (activation::softmax(mask_out, 1) * gate.clone() / sizes).select(0, of_owner) * delta;
            let (own_in, own_out) = (own_in, activation::softmax(own_out, 1) * gate);
            let zero = |width: usize| Tensor::<2>::zeros([1, width], (&device, dtype));
            let a = Tensor::cat(vec![mask_in, own_in, zero(d_in)], 0);
            let b = Tensor::cat(vec![mask_out, own_out, zero(d_out)], 0);
            let edit_of_row: Vec<usize> =
                owners.iter().map(|&owner| edit_of[owner]).chain(edit_of.iter().copied()).collect();
            let (index, rank) = by_owner(&edit_of_row, edits, 0, edit_of_row.len());
            let index = Tensor::<1, Int>::from_data(index.as_slice(), &device);
            let a = a.select(0, index.clone()).reshape([edits, rank, d_in]).swap_dims(1, 2);
            let b = b.select(0, index).reshape([edits, rank, d_out]);
            let of_model = seen.captured.factors[slot].0.dtype();
            deltas.matrices.insert(at.weight, (a.cast(of_model), b.cast(of_model)));
        }
        deltas
    }

    /// What each request's gradient is divided by, `[requests, 1]`: its norm, or 1.
    fn sizes(&self, factors: &Factors, requests: usize, place: (&Device, DType)) -> Tensor<2> {
        let sizes: Vec<f64> = match self.settings.gradient {
            Gradient::Raw => vec![1.0; requests],
            Gradient::Unit => {
                let squares = products(factors, factors, requests);
                // What is below all numbers of the network's type has no direction.
                let size = |square: f64| if square > f64::from(f32::MIN_POSITIVE) { square.sqrt() } else { 1.0 };
                squares.into_iter().map(size).collect()
            }
        };
        Tensor::from_data(TensorData::new(sizes, [requests, 1]), place)
    }

    /// The same without autodiff.
    fn untracked(&self) -> Self {
        Ke { network: self.network.valid(), ..self.clone() }
    }

    /// The tensors of an editor.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        let named = parameters::collect(&self.network).into_iter();
        named.map(|(name, data)| (format!("network.{name}"), data)).collect()
    }

    /// Puts [`Ke::tensors`] back; what a training keeps beside them is passed over.
    ///
    /// # Errors
    /// Tensors that are missing, too many, or of another shape.
    pub fn restored(mut self, tensors: BTreeMap<String, TensorData>) -> Result<Self> {
        let named = tensors.into_iter().filter(|(name, _)| !name.starts_with(CONSTRAINT));
        let named = named.map(|(name, data)| (name.strip_prefix("network.").unwrap_or(&name).to_owned(), data));
        self.network = parameters::restore(self.network, named.collect())?;
        Ok(self)
    }
}

/// What the names of a training's own tensors begin with.
pub const CONSTRAINT: &str = "constraint.";

impl Editor for Ke {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let tokenizer = &model.base().tokenizer;
        let rows: Vec<Continuation> = requests.iter().map(|request| request.row(tokenizer)).collect::<Result<_>>()?;
        let rows: Vec<&Continuation> = rows.iter().collect();
        self.matrices.check_memory(&rows.iter().map(|row| row.ids.len() - 1).collect::<Vec<_>>())?;
        let (editor, owners) = (self.untracked(), (0..rows.len()).collect::<Vec<_>>());
        let (mut sum, mut edited, mut applied) = (PassChange::default(), model.clone(), 0);
        while applied < self.settings.applications {
            let captured = self.matrices.capture_rows(&edited, (&rows, &owners), EditTokens::All)?;
            let said = rows.iter().zip(&captured.likeliest).all(|(row, likeliest)| row.target() == likeliest);
            // The first is always made: that an answer is likely does not say that it is known by rephrases.
            if applied > 0 && said {
                break;
            }
            let deltas = editor.deltas(&self.seen(captured, &rows), &vec![0; rows.len()], 1).matrices.into_iter();
            let matrices =
                deltas.map(|(at, (a, b))| (at, Delta::LowRank { a: a.squeeze_dim(0), b: b.squeeze_dim(0) })).collect();
            sum = PassChange::sum([sum, PassChange { matrices, ..Default::default() }].iter());
            edited = model.with_change(&sum)?;
            applied += 1;
        }
        sum.matrices = sum.matrices.into_iter().map(|(at, delta)| (at, delta.smaller())).collect();
        let mut provenance = self.provenance(model, requests);
        if let Some(fingerprint) = &self.archive_fingerprint {
            provenance.settings["archive_fingerprint"] = fingerprint.as_str().into();
        }
        let provenance = provenance.with_findings(serde_json::json!({"applications": applied}));
        Ok(Edit::new(provenance, Change::Pass(sum), BTreeMap::new()))
    }

    fn describe(&self) -> (String, Value) {
        (NAME.to_owned(), self.settings.written())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `s σ(η) · (∇W ∘ (softmax(a_out) a_inᵀ) + softmax(b_out) b_inᵀ)` written out, with ∇W as one matrix.
    #[test]
    fn factors_are_the_update_written_out() {
        let device = Device::flex();
        let model = Arc::new(Model::load("pocket", &device, DType::F32).unwrap());
        let settings = "layers = [3, 5]\nweights = [\"mlp.down\"]\nhidden = 5\ncondition = 7\nscale = 3.0";
        for gradient in ["raw", "unit"] {
            let settings = toml::from_str(&format!("{settings}\ngradient = \"{gradient}\"")).unwrap();
            let ke = Ke::new(settings, &model, (&device, DType::F32)).unwrap();
            let base = Edited::new(model.clone());
            let requests = [EditRequest::new("Ada lives in", "Lyon"), EditRequest::new("The river runs to the", "sea")];
            let rows: Vec<Continuation> =
                requests.iter().map(|request| request.row(&model.tokenizer).unwrap()).collect();
            let rows: Vec<&Continuation> = rows.iter().collect();
            let captured = ke.matrices.capture_rows(&base, (&rows, &[0, 1]), EditTokens::All).unwrap();
            let seen = ke.seen(captured, &rows);
            // Both requests in one edit.
            let deltas = ke.deltas(&seen, &[0, 0], 1);
            let read = ke.read(&seen.conditions);
            for (slot, (at, head)) in ke.matrices.each.iter().zip(&ke.network.heads).enumerate() {
                let [d_in, d_out] = ke.matrices.shapes[at.shape];
                let said = head.outer.forward(activation::tanh(head.inner.forward(read.clone())));
                let (u, delta, owners) = &seen.captured.factors[slot];
                let mut wanted = Tensor::<2>::zeros([d_in, d_out], &device);
                for request in 0..2 {
                    let part =
                        |from: usize, width: usize| said.clone().slice([request..request + 1, from..from + width]);
                    let mine: Vec<i64> =
                        (0..owners.len()).filter(|&token| owners[token] == request).map(|token| token as i64).collect();
                    let mine = Tensor::<1, Int>::from_data(mine.as_slice(), &device);
                    let mut full = u.clone().select(0, mine.clone()).transpose().matmul(delta.clone().select(0, mine));
                    if gradient == "unit" {
                        let norm: f64 = full.clone().square().sum().sqrt().into_data().iter::<f64>().sum();
                        full = full.div_scalar(norm);
                    }
                    let mask = part(d_out, d_in).transpose().matmul(activation::softmax(part(0, d_out), 1));
                    let second = d_out + d_in;
                    let own =
                        part(second + d_out, d_in).transpose().matmul(activation::softmax(part(second, d_out), 1));
                    let gate: f64 = part(2 * second, 1).into_data().iter::<f64>().sum();
                    wanted = wanted + (full * mask + own).mul_scalar(3.0 / (1.0 + (-gate).exp()));
                }
                let (a, b) = deltas.matrices[&at.weight].clone();
                let found: Tensor<2> = a.squeeze_dim::<2>(0).matmul(b.squeeze_dim(0));
                let largest: f64 = wanted.clone().abs().max().into_data().iter::<f64>().sum();
                let apart: f64 = (found - wanted).abs().max().into_data().iter::<f64>().sum();
                assert!(apart < 1e-5 * largest, "{apart} of {largest}");
            }
        }
    }
}
