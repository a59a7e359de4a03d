//! MEND: the gradient of an edit, decomposed and transformed into a better one (Mitchell et al., 2022).
//!
//! For each edited matrix, `ΔW = −α Σ_tokens ũᵀ δ̃`, where `(ũ, δ̃)` is the network's word on `(u, δ)` and α a learned rate. Where the
//! shifts of many edits are to serve at once, each token asks for a change of the output at its own key, `d = −α (u·ũ) δ̃`, and the
//! normal equations give the one shift that comes nearest to all ([`super::normal_equations`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use faer::Mat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gradient_transform::{GradientTransform, Nonlinearity, Normalization, Normalizer};
use super::learned::Stored;
use super::matrices::{AT_ONCE, Captured, EditTokens, Matrices, by_owner};
use super::normal_equations::{Gradients, Moments, NormalEquations, OfSolution, matrix, tensor};
use super::parameters;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, Editor, PassChange, RecordDeltas};
use crate::error::{Error, Result};
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{NoTap, Weight};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::sections::choice::{self, Choice, fields};

/// What configs, archives and edits call it.
pub(crate) const NAME: &str = "mend";

/// `[editor]` of a MEND config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MendSettings {
    /// The layers whose weights are edited.
    pub layers: Vec<usize>,
    /// The weights edited in each ("mlp.up", "mlp.down", "attention.out", ...).
    pub weights: Vec<String>,
    /// Rank of the network's layers; at most `d_in + d_out`.
    #[serde(default = "rank")]
    pub rank: usize,
    /// The rate of each matrix at the start.
    #[serde(default = "initial_rate")]
    pub initial_edit_rate: f64,
    /// Whether rates are learned as they are or by their logarithm.
    #[serde(default)]
    pub edit_rates: Rates,
    /// Layers of the network.
    #[serde(default = "blocks")]
    pub blocks: usize,
    /// Standard deviation of V at the start, times √(d_in + d_out).
    #[serde(default = "initial_spread")]
    pub initial_spread: f64,
    /// Where the network's layers are not linear.
    #[serde(default)]
    pub nonlinearity: Nonlinearity,
    /// The tokens whose gradients are transformed.
    #[serde(default)]
    pub edit_tokens: EditTokens,
    /// How the changes of many tokens become one.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Of normal equations.
    #[serde(flatten)]
    pub normal: Normal,
    /// How u and δ are normalised.
    #[serde(default = "normalization")]
    pub normalization: Normalization,
    /// Of running figures.
    #[serde(flatten)]
    pub running: Running,
    /// Of raw rates.
    #[serde(flatten)]
    pub raw: Raw,
}

/// How the changes that tokens ask for become one change of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// `Σ ũᵀ δ̃`
    #[default]
    Sum,
    /// `(KᵀK + e^λ I)⁻¹ Kᵀ D`
    NormalEquations,
}

/// Keys of `aggregation = "normal_equations"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Normal {
    /// λ of each matrix at the start.
    pub initial_damping: f64,
    /// What e^λ is times.
    pub ridge: Ridge,
    /// The keys at which changes are asked for.
    pub keys: Keys,
}

/// The keys at which changes are asked for. One edit without damping is MEND's update with either, where that is read at its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// The tokens' own, as published: `D = −α (u·ũ) δ̃` at u. What a rephrase finds of an edit is what its key has of u.
    #[default]
    Raw,
    /// The network's: `D = −α ‖ũ‖² δ̃` at ũ. One edit without damping is MEND's `−α ũᵀδ̃`, and the network learns at which keys an edit is to be found.
    Transformed,
}

/// What holds a shift back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ridge {
    /// Its norm, as published: `e^λ ‖S‖²`.
    #[default]
    Identity,
    /// What it does to the outputs of running text, `e^λ ⟨S, C S⟩`: C are second moments of the keys of `loss.text`, learnt once before the
    /// first step.
    Text,
}

impl Choice for Aggregation {
    const KEY: &'static str = "aggregation";
    const VALUES: &'static [Self] = &[Aggregation::Sum, Aggregation::NormalEquations];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Aggregation::Sum => &[],
            Aggregation::NormalEquations => fields::<Normal>(),
        }
    }
}

/// Keys of `normalization = "running"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Records after which the running normalisation is frozen; 0 for never.
    pub normalization_records: usize,
}

/// Keys of `edit_rates = "raw"`: a rate that is learned by its logarithm cannot turn its sign.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Raw {
    /// The direction of an update. `ascent` is the reference's sign, which learning has to turn first.
    pub direction: Direction,
}

impl Choice for Normalization {
    const KEY: &'static str = "normalization";
    const VALUES: &'static [Self] = &[Normalization::Running, Normalization::Off];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Normalization::Running => fields::<Running>(),
            Normalization::Off => &[],
        }
    }
}

impl Choice for Rates {
    const KEY: &'static str = "edit_rates";
    const VALUES: &'static [Self] = &[Rates::Log, Rates::Raw];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Rates::Log => &[],
            Rates::Raw => fields::<Raw>(),
        }
    }
}

impl MendSettings {
    /// From the section `[editor]` of a config; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, or that the choices made do not use; a value of the wrong type.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        let settings: MendSettings = choice::read("editor", given, origin)?;
        choice::check("editor", given, settings.normalization)?;
        choice::check("editor", given, settings.edit_rates)?;
        choice::check("editor", given, settings.aggregation)?;
        Ok(settings)
    }

    /// The network's own size.
    pub fn network_bytes(&self, matrices: &Matrices) -> u64 {
        let of_shape = |(shape, [d_in, d_out]): (usize, &[usize; 2])| {
            let (d, sharing) = (d_in + d_out, matrices.of_shape(shape).len());
            self.blocks * (2 * d * self.rank.min(d) + d + 2 * sharing * d)
        };
        4 * matrices.shapes.iter().enumerate().map(of_shape).sum::<usize>() as u64
    }

    /// What a graph over the network keeps for edits of so many tokens in all.
    pub fn graph_bytes(&self, matrices: &Matrices, tokens: usize) -> u64 {
        let channels: usize =
            matrices.each.iter().map(|matrix| matrices.shapes[matrix.shape].iter().sum::<usize>()).sum();
        let inner: usize = matrices.each.len() * 2 * self.rank;
        4 * (tokens * (self.blocks * (3 * channels + inner) + 4 * channels)) as u64
    }

    /// As archives and edits hold them.
    pub fn written(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The editor of an archive, under its method's name and the settings that the archive has.
    pub(super) fn editor(&self, (method, settings): (&str, Value), stored: &Stored<'_>) -> Result<Box<dyn Editor>> {
        let mend = Mend::new(self.clone(), &stored.model.decoder.spec, stored.place);
        let mend = mend.map(|mend| mend.called(method, settings));
        let mend = mend.map_err(|error| stored.of_settings(error))?;
        let mut mend = mend.restored(stored.tensors()?).map_err(|error| stored.of_network(error))?;
        mend.archive_fingerprint = Some(stored.fingerprint.clone());
        Ok(Box::new(mend))
    }
}

/// How a matrix's rate is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rates {
    /// α = exp(θ): steps are in shares of the rate, and it stays positive.
    #[default]
    Log,
    /// α = θ, as in the reference.
    Raw,
}

/// The sign of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// `W − α ũᵀδ̃`
    #[default]
    Descent,
    /// `W + α ũᵀδ̃`
    Ascent,
}

fn rank() -> usize {
    1920
}

fn initial_rate() -> f64 {
    1e-4
}

fn initial_spread() -> f64 {
    1.0
}

fn blocks() -> usize {
    2
}

fn normalization() -> Normalization {
    Normalization::Running
}

/// What is trained.
#[derive(Module, Debug)]
pub struct MendNetwork {
    /// One for each shape of matrix.
    pub transforms: Vec<GradientTransform>,
    /// θ `[matrices]`: the rates, or their logarithms.
    pub rates: Param<Tensor<1>>,
    /// λ `[matrices]`: the logarithms of the normal equations' dampings.
    pub dampings: Option<Param<Tensor<1>>>,
}

/// A MEND editor.
#[derive(Debug, Clone)]
pub struct Mend {
    /// Its settings.
    pub settings: MendSettings,
    /// Its network.
    pub network: MendNetwork,
    /// One for each shape, in the order of `network.transforms`.
    pub normalizers: Vec<Normalizer>,
    /// Of the keys of running text, one a matrix, where the ridge is made of them.
    moments: Vec<Arc<Moments>>,
    /// Records whose gradients the normalisers saw.
    pub observed: usize,
    /// The fingerprint of the archive that it comes from, for the provenance of its edits.
    pub archive_fingerprint: Option<String>,
    /// What configs call it, and the settings that they give.
    called: (String, Value),
    matrices: Matrices,
}

impl Mend {
    /// A MEND that is the identity: its edits are steps down the normalised gradient. `place` is the network's device and type.
    ///
    /// # Errors
    /// Weights that the model does not have, numbers out of range.
    pub fn new(settings: MendSettings, spec: &DecoderSpec, place: (&Device, DType)) -> Result<Self> {
        if settings.rank == 0 {
            return Err(Error::Config("editor.rank must be at least 1".into()));
        }
        let rate = settings.initial_edit_rate;
        if !rate.is_finite() || rate <= 0.0 {
            return Err(Error::Config(format!("editor.initial_edit_rate = {rate}: it must be a number above 0")));
        }
        crate::sections::within("editor.initial_spread", settings.initial_spread, 0.0, 1e6)?;
        crate::sections::within("editor.blocks", settings.blocks as f64, 1.0, 100.0)?;
        crate::sections::within("editor.initial_damping", settings.normal.initial_damping, -50.0, 50.0)?;
        if settings.edit_rates == Rates::Log && settings.raw.direction == Direction::Ascent {
            let message = "editor.direction = \"ascent\" wants edit_rates = \"raw\": a rate learned by its logarithm cannot turn its sign";
            return Err(Error::Config(message.into()));
        }
        let matrices = Matrices::new(&settings.layers, &settings.weights, spec)?;
        let encoder = matrices.each.iter().find(|matrix| matrix.weight.reads_encoder());
        if let Some(matrix) = encoder.filter(|_| settings.edit_tokens == EditTokens::Answer) {
            let message =
                format!("editor.edit_tokens = \"answer\": {} sees the prompt alone; take \"all\"", matrix.weight);
            return Err(Error::Config(message));
        }
        let (slots, shapes) = (&matrices.each, &matrices.shapes);
        let transforms = shapes.iter().enumerate().map(|(shape, [d_in, d_out])| {
            let matrices = slots.iter().filter(|slot| slot.shape == shape).count();
            let std = settings.initial_spread / ((d_in + d_out) as f64).sqrt();
            GradientTransform::new(d_in + d_out, settings.rank, settings.blocks, matrices, std, place)
        });
        let rate = match settings.edit_rates {
            Rates::Log => settings.initial_edit_rate.ln(),
            Rates::Raw => settings.initial_edit_rate,
        };
        let network = MendNetwork {
            transforms: transforms.collect(),
            rates: Param::from_tensor(Tensor::full([slots.len()], rate, place)),
            dampings: match settings.aggregation {
                Aggregation::Sum => None,
                Aggregation::NormalEquations => {
                    Some(Param::from_tensor(Tensor::full([slots.len()], settings.normal.initial_damping, place)))
                }
            },
        };
        let plain = place.0.clone().inner();
        let normalizers = shapes.iter().map(|[d_in, d_out]| Normalizer::new(d_in + d_out, (&plain, place.1))).collect();
        let called = (NAME.to_owned(), settings.written());
        Ok(Mend {
            settings,
            network,
            normalizers,
            moments: vec![],
            observed: 0,
            archive_fingerprint: None,
            called,
            matrices,
        })
    }

    /// The same editor under another method's name, with the settings that this method's configs have.
    pub fn called(self, method: &str, settings: Value) -> Self {
        Mend { called: (method.to_owned(), settings), ..self }
    }

    /// The lowest layer it edits: everything below is constant.
    pub fn lowest_layer(&self) -> usize {
        self.matrices.lowest_layer()
    }

    /// The rate α of each matrix, `[matrices]`.
    fn rates_tensor(&self) -> Tensor<1> {
        match self.settings.edit_rates {
            Rates::Log => self.network.rates.val().exp(),
            Rates::Raw => self.network.rates.val(),
        }
    }

    /// As [`Matrices::check_memory`].
    ///
    /// # Errors
    /// Too many edits.
    pub fn check_memory(&self, tokens: &[usize]) -> Result<()> {
        self.matrices.check_memory(tokens)
    }

    /// The decomposed gradients of edits, as [`Matrices::capture`].
    ///
    /// # Errors
    /// What the model says of the batch.
    pub fn capture(
        &self,
        model: &Edited,
        hidden: Tensor<3>,
        tokens: &Tokens,
        rows: &[&Continuation],
        groups: &[usize],
    ) -> Result<Captured> {
        self.matrices.capture(model, hidden, tokens, (rows, groups), self.settings.edit_tokens, &mut NoTap)
    }

    /// Shows the captured gradients of `records` records to the normalisers, unless these are frozen by now.
    pub fn observe(&mut self, captured: &Captured, records: usize) {
        let limit = self.settings.running.normalization_records;
        if limit > 0 && self.observed >= limit {
            return;
        }
        self.observed += records;
        for (slot, (u, delta, _)) in self.matrices.each.iter().zip(&captured.factors) {
            let normalizer = &mut self.normalizers[slot.shape];
            let rows = Tensor::cat(vec![u.clone(), delta.clone()], 1).cast(normalizer.mean.dtype());
            normalizer.update(rows);
        }
    }

    /// The deltas of `groups` edits: `A [groups, d_in, tokens]`, `B [groups, tokens, d_out]` for each matrix, differentiable with
    /// respect to the network where that is tracked.
    pub fn deltas(&self, captured: &Captured, groups: usize) -> RecordDeltas {
        let mut deltas = RecordDeltas::default();
        for (shape, [d_in, d_out]) in self.matrices.shapes.iter().enumerate() {
            let Some((mine, z)) = self.transformed(captured, shape) else { continue };
            let (device, dtype) = (z.device(), captured.factors[mine[0]].0.dtype());
            let rows = z.dims()[0];
            let zero = Tensor::<2>::zeros([1, d_in + d_out], (&device, z.dtype()));
            let padded = Tensor::cat(vec![z, zero], 0);
            let mut first = 0;
            for &slot in &mine {
                let owners = &captured.factors[slot].2;
                let (index, rank) = by_owner(owners, groups, first, rows);
                first += owners.len();
                let index = Tensor::<1, Int>::from_data(index.as_slice(), &device);
                let placed = padded.clone().select(0, index).reshape([groups, rank, d_in + d_out]);
                let a = placed.clone().slice([0..groups, 0..rank, 0..*d_in]).swap_dims(1, 2).cast(dtype);
                let b = placed.slice([0..groups, 0..rank, *d_in..d_in + d_out]);
                deltas
                    .matrices
                    .insert(self.matrices.each[slot].weight, (a, (b * self.rate(slot).unsqueeze()).cast(dtype)));
            }
        }
        deltas
    }

    /// What the network makes of the tokens of all matrices of a shape, one matrix behind the other `[tokens, d_in + d_out]`, and which
    /// matrices these are; nothing where there is no token.
    fn transformed(&self, captured: &Captured, shape: usize) -> Option<(Vec<usize>, Tensor<2>)> {
        let mine = self.matrices.of_shape(shape);
        let joined = mine.iter().map(|&slot| {
            let (u, delta, _) = &captured.factors[slot];
            Tensor::cat(vec![u.clone(), delta.clone()], 1)
        });
        let z = Tensor::cat(joined.collect(), 0);
        let device = z.device();
        let z = z.cast(self.normalizers[shape].mean.dtype());
        let matrices: Vec<i64> = mine
            .iter()
            .flat_map(|&slot| vec![self.matrices.each[slot].number as i64; captured.factors[slot].2.len()])
            .collect();
        if matrices.is_empty() {
            return None;
        }
        let matrices = Tensor::<1, Int>::from_data(matrices.as_slice(), &device);
        let z = match self.settings.normalization {
            Normalization::Running => self.normalizers[shape].normalize(z),
            Normalization::Off => z,
        };
        Some((mine, self.network.transforms[shape].forward(z, &matrices, self.settings.nonlinearity)))
    }

    /// `−α` of a matrix, `[1]`.
    fn rate(&self, slot: usize) -> Tensor<1> {
        let sign = match self.settings.raw.direction {
            Direction::Descent => -1.0,
            Direction::Ascent => 1.0,
        };
        self.rates_tensor().narrow(0, slot, 1).mul_scalar(sign)
    }

    /// What each token of each matrix brings to the normal equations; differentiable as [`Mend::deltas`].
    pub fn asked(&self, captured: &Captured) -> BTreeMap<usize, Asked> {
        let mut asked = BTreeMap::new();
        for (shape, [d_in, d_out]) in self.matrices.shapes.iter().enumerate() {
            let Some((mine, z)) = self.transformed(captured, shape) else { continue };
            let mut first = 0;
            for &slot in &mine {
                let u = captured.factors[slot].0.clone();
                let tokens = u.dims()[0];
                let own = z.clone().slice([first..first + tokens, 0..d_in + d_out]);
                first += tokens;
                let key = own.clone().slice([0..tokens, 0..*d_in]);
                let raw = u.cast(own.dtype());
                let (keys, at) = match self.settings.normal.keys {
                    Keys::Raw => (None, raw),
                    Keys::Transformed => (Some(key.clone()), key.clone()),
                };
                let direction = own.slice([0..tokens, *d_in..d_in + d_out]);
                let wanted = direction * (key * at).sum_dim(1) * self.rate(slot).unsqueeze();
                asked.insert(slot, Asked { keys, wanted });
            }
        }
        asked
    }

    /// λ of a matrix.
    fn damping(&self, slot: usize) -> f64 {
        let dampings = self.network.dampings.as_ref().map(|dampings| dampings.val().inner());
        dampings.map_or(f64::NEG_INFINITY, |all| all.narrow(0, slot, 1).into_data().iter::<f64>().sum())
    }

    /// The normal equations of each matrix over the tokens of all that was captured, and their solution. The network is not tracked.
    ///
    /// # Errors
    /// As [`NormalEquations::new`].
    pub fn solved(&self, captured: &[Captured]) -> Result<Vec<Solved>> {
        let plain = self.clone().untracked();
        let asked: Vec<_> = captured.iter().map(|some| plain.asked(some)).collect();
        let slots = self.matrices.each.iter().enumerate().map(|(slot, at)| {
            let own = || asked.iter().filter_map(|asked| asked.get(&slot));
            let raw = Tensor::cat(captured.iter().map(|some| some.factors[slot].0.clone()).collect(), 0);
            let place = (raw.device(), raw.dtype());
            let learned: Vec<Tensor<2>> = own().filter_map(|asked| asked.keys.clone()).collect();
            let keys = if learned.is_empty() { raw } else { Tensor::cat(learned, 0) };
            let wanted = matrix(&Tensor::cat(own().map(|asked| asked.wanted.clone()).collect(), 0));
            let transformed = self.settings.normal.keys == Keys::Transformed;
            let moments = self.moments.get(slot).cloned();
            let equations = NormalEquations::new(&keys, transformed, self.damping(slot), moments)?;
            let solution = equations.solve(&wanted);
            Ok(Solved { weight: at.weight, equations, wanted, solution, place })
        });
        slots.collect()
    }

    /// Learns the moments of the keys of running text, where the ridge is made of them.
    ///
    /// # Errors
    /// What the model says of the windows, keys that are not finite.
    pub fn learn_moments(&mut self, model: &Edited, windows: &[Vec<u32>]) -> Result<()> {
        if self.settings.normal.ridge == Ridge::Text {
            let sums = self.matrices.moments(model, windows)?;
            self.moments = sums.iter().map(|sum| Ok(Arc::new(Moments::new(sum)?))).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// The same with another network.
    pub fn with_network(&self, network: &MendNetwork) -> Self {
        Mend { network: network.clone(), ..self.clone() }
    }

    /// The same without autodiff: what it would keep of each edit adds up over hundreds of them.
    fn untracked(self) -> Self {
        Mend { network: self.network.valid(), ..self }
    }

    /// The tensors of an editor: its network, and the running figures beside it.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        let mut tensors: BTreeMap<String, TensorData> = parameters::collect(&self.network)
            .into_iter()
            .map(|(name, data)| (format!("network.{name}"), data))
            .collect();
        for (shape, normalizer) in self.normalizers.iter().enumerate() {
            tensors.insert(format!("normalizer.{shape}.count"), TensorData::new(vec![normalizer.count], [1]));
            tensors.insert(format!("normalizer.{shape}.mean"), normalizer.mean.clone().into_data());
            tensors.insert(format!("normalizer.{shape}.squares"), normalizer.squares.clone().into_data());
        }
        for (slot, moments) in self.moments.iter().enumerate() {
            tensors.insert(format!("moments.{slot}"), moments.data());
        }
        tensors.insert("normalizer.records".into(), TensorData::new(vec![self.observed as f64], [1]));
        tensors
    }

    /// Puts [`Mend::tensors`] back.
    ///
    /// # Errors
    /// Tensors that are missing, too many, or of another shape.
    pub fn restored(mut self, mut tensors: BTreeMap<String, TensorData>) -> Result<Self> {
        let records = tensors
            .remove("normalizer.records")
            .ok_or_else(|| Error::Input("tensor \"normalizer.records\" is missing".into()))?;
        self.observed = records.iter::<f64>().sum::<f64>() as usize;
        for (shape, normalizer) in self.normalizers.iter_mut().enumerate() {
            let mut take = |part: &str, length: usize| {
                let name = format!("normalizer.{shape}.{part}");
                let found = tensors.remove(&name).filter(|data| data.shape().to_vec() == [length]);
                found.ok_or_else(|| Error::Input(format!("tensor \"{name}\" is missing or has another shape")))
            };
            let (device, dtype, length) =
                (normalizer.mean.device(), normalizer.mean.dtype(), normalizer.mean.dims()[0]);
            let count = take("count", 1)?.iter::<f64>().sum();
            let mean = Tensor::from_data(take("mean", length)?, (&device, dtype));
            *normalizer =
                Normalizer { count, mean, squares: Tensor::from_data(take("squares", length)?, (&device, dtype)) };
        }
        if self.settings.normal.ridge == Ridge::Text {
            let slots = self.matrices.each.iter().enumerate().map(|(slot, at)| {
                let (name, width) = (format!("moments.{slot}"), self.matrices.shapes[at.shape][0]);
                let moments = tensors.remove(&name).and_then(|data| Moments::from_data(&data, width));
                moments.map(Arc::new).ok_or_else(|| Error::Input(format!("tensor \"{name}\" is missing or broken")))
            });
            self.moments = slots.collect::<Result<_>>()?;
        }
        let named =
            tensors.into_iter().map(|(name, data)| (name.strip_prefix("network.").unwrap_or(&name).to_owned(), data));
        self.network = parameters::restore(self.network, named.collect())?;
        Ok(self)
    }
}

impl Editor for Mend {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let at_once = match self.settings.aggregation {
            Aggregation::Sum => usize::MAX,
            Aggregation::NormalEquations => AT_ONCE,
        };
        let mut captured = self.matrices.of_requests(model, requests, self.settings.edit_tokens, at_once)?;
        let matrices: BTreeMap<Weight, Delta> = match self.settings.aggregation {
            Aggregation::Sum => {
                let deltas = self.clone().untracked().deltas(&captured.remove(0), 1).matrices.into_iter();
                deltas.map(|(at, (a, b))| (at, Delta::LowRank { a: a.squeeze_dim(0), b: b.squeeze_dim(0) })).collect()
            }
            Aggregation::NormalEquations => {
                self.solved(&captured)?.iter().map(|solved| (solved.weight, solved.change())).collect()
            }
        };
        let matrices = matrices.into_iter().map(|(at, delta)| (at, delta.smaller())).collect();
        let mut provenance = self.provenance(model, requests);
        // Settings alone do not tell two trainings apart.
        if let Some(fingerprint) = &self.archive_fingerprint {
            provenance.settings["archive_fingerprint"] = fingerprint.as_str().into();
        }
        Ok(Edit::new(provenance, Change::Pass(PassChange { matrices, ..Default::default() }), BTreeMap::new()))
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.called.clone()
    }
}

/// The normal equations of a matrix with their solution.
pub struct Solved {
    /// The matrix.
    pub weight: Weight,
    equations: NormalEquations,
    /// D
    wanted: Mat<f64>,
    solution: Mat<f64>,
    place: (Device, DType),
}

/// What tokens bring to the normal equations of a matrix.
pub struct Asked {
    /// Their keys `[tokens, d_in]`, where these are the network's.
    pub keys: Option<Tensor<2>>,
    /// D, the change of the output that each asks for at its key, `[tokens, d_out]`.
    pub wanted: Tensor<2>,
}

impl Solved {
    /// What the shift is made of, as tensors of a device ([`NormalEquations::parts`]).
    pub fn parts(&self, device: &Device) -> Vec<Tensor<2>> {
        self.equations.parts(&self.solution, device, self.place.1)
    }

    /// The shift itself.
    pub fn change(&self) -> Delta {
        self.shift(&self.parts(&self.place.0))
    }

    /// `‖S‖²` and its gradient with respect to the parts.
    pub fn squares(&self) -> (f64, Vec<Tensor<2>>) {
        let (squares, gradient) = self.equations.squares(&self.solution);
        let gradients = std::iter::once(gradient.unknown).chain(gradient.outputs);
        (squares, gradients.map(|gradient| tensor(&gradient, &self.place.0, self.place.1)).collect())
    }

    /// The shift of its parts, as [`NormalEquations::shift`].
    pub fn shift(&self, parts: &[Tensor<2>]) -> Delta {
        self.equations.shift(parts)
    }

    /// What the loss's gradients with respect to the parts are towards what tokens asked for, and `∂L/∂λ`.
    pub fn gradients(&self, of_parts: &[Tensor<2>]) -> (Asked, f64) {
        let of = OfSolution { unknown: matrix(&of_parts[0]), outputs: of_parts.get(1).map(matrix) };
        let Gradients { wanted, keys, damping } = self.equations.gradients(&self.wanted, &self.solution, &of);
        let tensor = |gradient: Mat<f64>| tensor(&gradient, &self.place.0, self.place.1);
        (Asked { keys: keys.map(tensor), wanted: tensor(wanted) }, damping)
    }
}
