//! A decoder-only transformer in three stages, open to taps at every named place.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor};

use super::attention::{Geometry, attend};
use super::past::Past;
use super::spec::{Biases, DecoderSpec, NormKind, Positions};
use super::tap::{Place, Role, Site, Span, Stack, Tap, Weight};
use super::tokens::Tokens;
use crate::error::{Error, Result};

/// A transformer decoder. Its weights never change once it is loaded; on an autodiff device they can be trained.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocabulary, width]`
    pub embedding: Param<Tensor<2>>,
    /// `[context, width]`, where positions are learned.
    pub positions: Option<Param<Tensor<2>>>,
    /// The blocks, lowest first.
    pub blocks: Vec<Block>,
    /// The norm before the head.
    pub norm: Norm,
    /// `[width, vocabulary]`; nothing where the head is the embedding, transposed.
    pub head: Option<Param<Tensor<2>>>,
    /// The architecture.
    #[module(skip)]
    pub spec: DecoderSpec,
}

/// One layer: attention and MLP, each behind a norm.
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention.
    pub attention_norm: Norm,
    /// `[width, heads · head_width]`
    pub query: Linear,
    /// `[width, key_value_heads · head_width]`
    pub key: Linear,
    /// `[width, key_value_heads · head_width]`
    pub value: Linear,
    /// `[heads · head_width, width]`
    pub out: Linear,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// `[width, mlp_width]`, in a gated MLP.
    pub gate: Option<Linear>,
    /// `[width, mlp_width]`
    pub up: Linear,
    /// `[mlp_width, width]`
    pub down: Linear,
}

/// Layer norm, or RMS norm where there is no `beta`.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[width]`
    pub gamma: Param<Tensor<1>>,
    /// `[width]`
    pub beta: Option<Param<Tensor<1>>>,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether the mean is taken off.
    pub centred: bool,
}

impl Norm {
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let beta = self.beta.as_ref().map(|beta| beta.val());
        if self.centred {
            return burn::tensor::module::layer_norm(x, self.gamma.val(), beta, self.epsilon);
        }
        // Scaling the rows by one number each is a pass less than dividing by a broadcast root.
        let dtype = x.dtype();
        let x = at_least_f32(x);
        let scale = x.clone().square().mean_dim(2).add_scalar(self.epsilon).sqrt().recip();
        (x * scale).cast(dtype) * self.gamma.val().unsqueeze()
    }
}

impl Block {
    /// The element type of its weights. Trained blocks over a base in 16 bits are of another type than the ones below them.
    pub(super) fn dtype(&self) -> DType {
        self.query.weight.val().dtype()
    }

    /// The matrix of a role, where the block has it.
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        match role {
            Role::Query => Some(&self.query),
            Role::Key => Some(&self.key),
            Role::Value => Some(&self.value),
            Role::Out => Some(&self.out),
            Role::MlpGate => self.gate.as_ref(),
            Role::MlpUp => Some(&self.up),
            Role::MlpDown => Some(&self.down),
            Role::CrossQuery | Role::CrossKey | Role::CrossValue | Role::CrossOut => None,
        }
    }

    fn linear_mut(&mut self, role: Role) -> Option<&mut Linear> {
        match role {
            Role::Query => Some(&mut self.query),
            Role::Key => Some(&mut self.key),
            Role::Value => Some(&mut self.value),
            Role::Out => Some(&mut self.out),
            Role::MlpGate => self.gate.as_mut(),
            Role::MlpUp => Some(&mut self.up),
            Role::MlpDown => Some(&mut self.down),
            Role::CrossQuery | Role::CrossKey | Role::CrossValue | Role::CrossOut => None,
        }
    }
}

impl Decoder {
    /// The device the weights live on.
    pub fn device(&self) -> Device {
        self.embedding.val().device()
    }

    /// The element type of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding.val().dtype()
    }

    /// The linear map of a weight's name.
    ///
    /// # Errors
    /// The model has no such weight.
    pub fn linear(&self, at: Weight) -> Result<&Linear> {
        let block = self.blocks.get(at.layer).filter(|_| at.stack == Stack::Decoder);
        block.and_then(|block| block.linear(at.role)).ok_or_else(|| self.no_such(at))
    }

    /// The same decoder with one matrix and its bias replaced. The other weights are shared.
    ///
    /// # Errors
    /// The model has no such weight.
    pub fn with_linear(mut self, at: Weight, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Result<Self> {
        let missing = self.no_such(at);
        let block = self.blocks.get_mut(at.layer).filter(|_| at.stack == Stack::Decoder);
        let linear = block.and_then(|block| block.linear_mut(at.role)).ok_or(missing)?;
        *linear = Linear { weight: Param::from_tensor(weight), bias: bias.map(Param::from_tensor) };
        Ok(self)
    }

    fn no_such(&self, at: Weight) -> Error {
        let gate = if self.spec.gated { "mlp.gate, " } else { "" };
        Error::Config(format!(
            "the model has no weight {at}; it has decoder layers 0 to {} with attention.query, attention.key, attention.value, attention.out, {gate}mlp.up, mlp.down",
            self.spec.layers - 1
        ))
    }

    /// First stage: tokens to the input of the first block, `[batch, tokens, width]`. Padded cells hold token 0.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a position outside the context.
    pub fn embed(&self, tokens: &Tokens, tap: &mut dyn Tap) -> Result<Tensor<3>> {
        tokens.check(self.spec.vocabulary, self.spec.context)?;
        let span = tokens.span();
        let (rows, device) = (span.rows.len(), self.device());
        let select = |table: &Param<Tensor<2>>, indices: Vec<i64>| {
            let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &device);
            table.val().select(0, indices).reshape([rows, span.width, self.spec.width])
        };
        let mut hidden = select(&self.embedding, tokens.padded_ids());
        if let Some(positions) = &self.positions {
            let cells = (0..rows).flat_map(|row| (0..span.width).map(move |cell| (row, cell)));
            let indices = cells.map(|(row, cell)| span.position(row, cell).unwrap_or(0) as i64);
            hidden = hidden + select(positions, indices.collect());
        }
        let site = Site { stack: Stack::Decoder, layer: 0, place: Place::Embedding };
        Ok(tap.activation(site, span, hidden))
    }

    /// Second stage: the residual stream through the blocks of `layers`, `[batch, tokens, width]`.
    ///
    /// With a `past`, the cells also see the positions it holds, and this pass's keys and values are appended to it.
    ///
    /// # Errors
    /// A past that does not fit the batch or the layers.
    pub fn blocks(
        &self,
        mut hidden: Tensor<3>,
        layers: Range<usize>,
        span: &Span,
        mut past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor<3>> {
        if layers.is_empty() {
            return Ok(hidden);
        }
        let seen = match &past {
            Some(past) => past.cells(layers.clone(), span)?,
            None => vec![vec![]; span.rows.len()],
        };
        let geometry_in = |dtype| Geometry::new(&self.spec, span, &seen, &self.device(), dtype);
        let mut dtype = self.blocks[layers.start].dtype();
        let mut geometry = geometry_in(dtype);
        for layer in layers {
            if self.blocks[layer].dtype() != dtype {
                dtype = self.blocks[layer].dtype();
                geometry = geometry_in(dtype);
            }
            hidden = self.block(in_type(hidden, dtype), layer, span, &geometry, past.as_deref_mut(), tap);
        }
        Ok(hidden)
    }

    fn block(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        span: &Span,
        geometry: &Geometry,
        past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let block = &self.blocks[layer];
        let at = |role| Weight::decoder(layer, role);
        let site = |place| Site { stack: Stack::Decoder, layer, place };

        let normed = block.attention_norm.forward(hidden.clone());
        let query = project(&block.query, at(Role::Query), span, &normed, tap);
        let key = project(&block.key, at(Role::Key), span, &normed, tap);
        let value = project(&block.value, at(Role::Value), span, &normed, tap);
        let mixed = attend(&self.spec, layer, span, geometry, [query, key, value], past);
        let attention = project(&block.out, at(Role::Out), span, &mixed, tap);
        let attention = tap.activation(site(Place::AttentionOut), span, attention);

        let hidden = hidden + attention;
        let normed = block.mlp_norm.forward(hidden.clone());
        let up = project(&block.up, at(Role::MlpUp), span, &normed, tap);
        let key = match &block.gate {
            Some(gate) => self.spec.activation.apply(project(gate, at(Role::MlpGate), span, &normed, tap)) * up,
            None => self.spec.activation.apply(up),
        };
        let key = tap.activation(site(Place::MlpHidden), span, key);
        let value = project(&block.down, at(Role::MlpDown), span, &key, tap);
        let value = tap.activation(site(Place::MlpOut), span, value);
        tap.activation(site(Place::BlockOut), span, hidden + value)
    }

    /// Third stage: logits `[positions, vocabulary]` at the given (row, cell) pairs only.
    pub fn head(&self, hidden: Tensor<3>, positions: &[(usize, usize)]) -> Tensor<2> {
        let [rows, cells, width] = hidden.dims();
        let index: Vec<i64> = positions.iter().map(|(row, cell)| (row * cells + cell) as i64).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &self.device());
        let read = in_type(hidden.reshape([rows * cells, width]).select(0, index), self.norm.gamma.val().dtype());
        let read = self.norm.forward(read.unsqueeze_dim(0)).squeeze_dim::<2>(0);
        let logits = match &self.head {
            Some(head) => read.matmul(head.val()),
            None => read.matmul(self.embedding.val().transpose()),
        };
        at_least_f32(logits)
    }
}

/// Probabilities are never computed in 16 bits.
pub(super) fn at_least_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if matches!(x.dtype(), DType::F16 | DType::BF16) { x.cast(DType::F32) } else { x }
}

/// A tensor in an element type; as it is where it has that type.
pub(super) fn in_type<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// One product for the whole batch: `[batch · tokens, d_in] × [d_in, d_out]`, then the tap.
pub(super) fn project(linear: &Linear, at: Weight, span: &Span, input: &Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
    let [rows, cells, d_in] = input.dims();
    let output = linear.forward(input.clone().reshape([rows * cells, d_in]));
    let d_out = output.dims()[1];
    tap.linear(at, span, input, output.reshape([rows, cells, d_out]))
}

/// Gives the tensors of a decoder by their place in it.
pub trait Weights {
    /// A tensor of rank 1 or 2 by what it is, in the decoder's own orientation (`[d_in, d_out]`).
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    fn vector(&mut self, at: DecoderTensor, length: usize) -> Result<Tensor<1>>;
    /// The same for a matrix.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    fn matrix(&mut self, at: DecoderTensor, shape: [usize; 2]) -> Result<Tensor<2>>;
}

/// The tensors a decoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderTensor {
    /// Token embedding `[vocabulary, width]`.
    Embedding,
    /// Learned positions `[context, width]`.
    Positions,
    /// Untied head `[width, vocabulary]`.
    Head,
    /// γ of the norm before the head.
    FinalGamma,
    /// β of the norm before the head.
    FinalBeta,
    /// γ of a layer's norm before attention.
    AttentionGamma(usize),
    /// β of a layer's norm before attention.
    AttentionBeta(usize),
    /// γ of a layer's norm before the MLP.
    MlpGamma(usize),
    /// β of a layer's norm before the MLP.
    MlpBeta(usize),
    /// A weight matrix.
    Matrix(usize, Role),
    /// Its bias.
    Bias(usize, Role),
}

impl Decoder {
    /// Builds a decoder from its tensors.
    ///
    /// # Errors
    /// What `weights` says of a tensor.
    pub fn build(spec: DecoderSpec, weights: &mut dyn Weights) -> Result<Self> {
        let width = spec.width;
        let embedding = Param::from_tensor(weights.matrix(DecoderTensor::Embedding, [spec.vocabulary, width])?);
        let positions = match spec.positions {
            Positions::Learned => {
                Some(Param::from_tensor(weights.matrix(DecoderTensor::Positions, [spec.context, width])?))
            }
            Positions::Rotary(_) => None,
        };
        let blocks = (0..spec.layers).map(|layer| Block::build(&spec, layer, weights)).collect::<Result<_>>()?;
        let norm = Norm::build(&spec, weights, DecoderTensor::FinalGamma, DecoderTensor::FinalBeta)?;
        let head = match spec.tied_head {
            true => None,
            false => Some(Param::from_tensor(weights.matrix(DecoderTensor::Head, [width, spec.vocabulary])?)),
        };
        Ok(Decoder { embedding, positions, blocks, norm, head, spec })
    }
}

impl Norm {
    fn build(spec: &DecoderSpec, weights: &mut dyn Weights, gamma: DecoderTensor, beta: DecoderTensor) -> Result<Self> {
        let centred = spec.norm == NormKind::LayerNorm;
        let gamma = Param::from_tensor(weights.vector(gamma, spec.width)?);
        let beta = match centred {
            true => Some(Param::from_tensor(weights.vector(beta, spec.width)?)),
            false => None,
        };
        Ok(Norm { gamma, beta, epsilon: spec.norm_epsilon, centred })
    }
}

impl Block {
    fn build(spec: &DecoderSpec, layer: usize, weights: &mut dyn Weights) -> Result<Self> {
        let mut linear = |role| -> Result<Linear> {
            let [d_in, d_out] = spec.shape(role);
            let weight = Param::from_tensor(weights.matrix(DecoderTensor::Matrix(layer, role), [d_in, d_out])?);
            let bias = match spec.biases.has(role) {
                true => Some(Param::from_tensor(weights.vector(DecoderTensor::Bias(layer, role), d_out)?)),
                false => None,
            };
            Ok(Linear { weight, bias })
        };
        let (query, key, value, out) =
            (linear(Role::Query)?, linear(Role::Key)?, linear(Role::Value)?, linear(Role::Out)?);
        let gate = if spec.gated { Some(linear(Role::MlpGate)?) } else { None };
        let (up, down) = (linear(Role::MlpUp)?, linear(Role::MlpDown)?);
        let attention_norm =
            Norm::build(spec, weights, DecoderTensor::AttentionGamma(layer), DecoderTensor::AttentionBeta(layer))?;
        let mlp_norm = Norm::build(spec, weights, DecoderTensor::MlpGamma(layer), DecoderTensor::MlpBeta(layer))?;
        Ok(Block { attention_norm, query, key, value, out, mlp_norm, gate, up, down })
    }
}

impl DecoderSpec {
    /// `[d_in, d_out]` of a weight.
    pub fn shape(&self, role: Role) -> [usize; 2] {
        let (queries, keys) = (self.heads * self.head_width, self.key_value_heads * self.head_width);
        match role {
            Role::Query | Role::CrossQuery => [self.width, queries],
            Role::Key | Role::Value | Role::CrossKey | Role::CrossValue => [self.width, keys],
            Role::Out | Role::CrossOut => [queries, self.width],
            Role::MlpGate | Role::MlpUp => [self.width, self.mlp_width],
            Role::MlpDown => [self.mlp_width, self.width],
        }
    }
}

impl Biases {
    /// Whether the projection carries a bias.
    pub fn has(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => self.query_key_value,
            Role::CrossQuery | Role::CrossKey | Role::CrossValue => self.query_key_value,
            Role::Out | Role::CrossOut => self.attention_out,
            Role::MlpGate | Role::MlpUp | Role::MlpDown => self.mlp,
        }
    }
}
