//! A decoder-only transformer in three stages, open to taps at every named place.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor};

use super::block::Block;
use super::past::Past;
use super::spec::{BlockShape, DecoderSpec, Positions};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::model::layers::attention::{causal, weigh};
use crate::model::layers::norm::{Norm, NormKind, if_there};
use crate::model::layers::rotary::Angles;
use crate::model::layers::{at_least_f32, in_type, project, soft_cap};
use crate::model::tap::{Place, Role, Row, Site, Span, Stack, Tap, Weight};
use crate::model::tokens::Tokens;

/// A transformer decoder. Its weights never change once it is loaded; on an autodiff device they can be trained.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocabulary, width]`
    pub embedding: Param<Tensor<2>>,
    /// `[offset + context, width]`, where positions are learned.
    pub positions: Option<Param<Tensor<2>>>,
    /// The blocks, lowest first.
    pub blocks: Vec<Block>,
    /// The norm before the head.
    pub norm: Norm,
    /// `[width, vocabulary]`; nothing where the head is the embedding, transposed.
    pub head: Option<Param<Tensor<2>>>,
    /// `[vocabulary]`
    pub head_bias: Option<Param<Tensor<1>>>,
    /// The architecture.
    #[module(skip)]
    pub spec: DecoderSpec,
}

/// What all layers of a kind share in one pass: rotary angles of the batch's cells and who sees whom.
struct Geometry {
    angles: Option<Angles>,
    /// `[batch or 1, 1, tokens, past + tokens]`
    mask: Option<Tensor<4>>,
}

/// Of layers that see all positions to the left, and of those that see the last ones, where there are any.
struct Geometries {
    global: Geometry,
    local: Option<Geometry>,
}

impl Geometries {
    fn new(spec: &DecoderSpec, span: &Span, seen: &[Vec<Option<usize>>], device: &Device, dtype: DType) -> Self {
        // Rows that stand alike share one mask and one table of angles.
        let stands = |row: &Row| (row.start, row.len, row.unseen);
        let alike = span.rows.windows(2).all(|pair| stands(&pair[0]) == stands(&pair[1]))
            && seen.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if alike { 1 } else { span.rows.len() };
        let place = (device, dtype);
        let angles = match &spec.positions {
            Positions::Rotary(rotary) => Some(rotary.angles(span, rows, device, dtype)),
            Positions::Learned { .. } => None,
        };
        let local = spec.attention.local.as_ref().map(|local| Geometry {
            angles: match &local.rotary {
                Some(rotary) => Some(rotary.angles(span, rows, device, dtype)),
                None => angles.clone(),
            },
            mask: causal(span, seen, rows, Some(local.window), place),
        });
        Geometries { global: Geometry { angles, mask: causal(span, seen, rows, None, place) }, local }
    }

    fn of(&self, spec: &DecoderSpec, layer: usize) -> &Geometry {
        self.local.as_ref().filter(|_| spec.is_local(layer)).unwrap_or(&self.global)
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
        let gate = if self.spec.mlp.gated { "mlp.gate, " } else { "" };
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
        if self.spec.embedding_scale != 1.0 {
            hidden = hidden.mul_scalar(self.spec.embedding_scale);
        }
        if let (Some(positions), Positions::Learned { offset }) = (&self.positions, &self.spec.positions) {
            let cells = (0..rows).flat_map(|row| (0..span.width).map(move |cell| (row, cell)));
            let indices = cells.map(|(row, cell)| (offset + span.position(row, cell).unwrap_or(0)) as i64);
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
        let geometries_in = |dtype| Geometries::new(&self.spec, span, &seen, &self.device(), dtype);
        let mut dtype = self.blocks[layers.start].dtype();
        let mut geometries = geometries_in(dtype);
        for layer in layers {
            if self.blocks[layer].dtype() != dtype {
                dtype = self.blocks[layer].dtype();
                geometries = geometries_in(dtype);
            }
            let geometry = geometries.of(&self.spec, layer);
            hidden = self.block(in_type(hidden, dtype), layer, span, geometry, past.as_deref_mut(), tap);
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
        let site = |place| Site { stack: Stack::Decoder, layer, place };

        let normed = block.attention_norm.forward(hidden.clone());
        let attention = self.attention(&normed, layer, span, geometry, past, tap);
        let attention = tap.activation(site(Place::AttentionOut), span, attention);
        let attention = if_there(&block.attention_post_norm, attention);

        let (hidden, input) = match (self.spec.block, &block.mlp_norm) {
            (BlockShape::Parallel, Some(norm)) => (hidden.clone() + attention, norm.forward(hidden)),
            (_, Some(norm)) => {
                let hidden = hidden + attention;
                (hidden.clone(), norm.forward(hidden))
            }
            (_, None) => (hidden + attention, normed),
        };
        let value = self.mlp(&input, layer, span, tap);
        let value = tap.activation(site(Place::MlpOut), span, value);
        let value = if_there(&block.mlp_post_norm, value);
        tap.activation(site(Place::BlockOut), span, hidden + value)
    }

    /// Attention over the cells and the past, output projection included.
    fn attention(
        &self,
        normed: &Tensor<3>,
        layer: usize,
        span: &Span,
        geometry: &Geometry,
        past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let (block, spec) = (&self.blocks[layer], &self.spec.attention);
        let at = |role| Weight::decoder(layer, role);
        let query = project(&block.query, at(Role::Query), span, normed, tap);
        let key = project(&block.key, at(Role::Key), span, normed, tap);
        let value = project(&block.value, at(Role::Value), span, normed, tap);
        let each_head = |norm: &Option<Norm>, x: Tensor<3>| match norm {
            Some(norm) => norm.forward_heads(x),
            None => x,
        };
        let (query, key) = (each_head(&block.query_norm, query), each_head(&block.key_norm, key));

        let [batch, tokens, _] = query.dims();
        let (shared, width) = (spec.key_value_heads, spec.head_width);
        let group = spec.heads / shared;
        let turn = |x: Tensor<4>| match &geometry.angles {
            Some(angles) => angles.turn(x),
            None => x,
        };
        let query = turn(query.mul_scalar(spec.scale).reshape([batch, tokens, spec.heads, width]));
        let query = query.swap_dims(1, 2).reshape([batch, shared, group * tokens, width]);
        let key = turn(key.reshape([batch, tokens, shared, width])).swap_dims(1, 2);
        let value = value.reshape([batch, tokens, shared, width]).swap_dims(1, 2);
        let (key, value) = match past {
            Some(past) => past.append(layer, span, key, value),
            None => (key, value),
        };
        let mixed = weigh([query, key, value], spec.heads, spec.cap, geometry.mask.clone());
        project(&block.out, at(Role::Out), span, &mixed, tap)
    }

    fn mlp(&self, input: &Tensor<3>, layer: usize, span: &Span, tap: &mut dyn Tap) -> Tensor<3> {
        let (block, spec) = (&self.blocks[layer], &self.spec.mlp);
        let at = |role| Weight::decoder(layer, role);
        let up = project(&block.up, at(Role::MlpUp), span, input, tap);
        let key = match &block.gate {
            Some(gate) => spec.activation.apply(project(gate, at(Role::MlpGate), span, input, tap)) * up,
            None => spec.activation.apply(up),
        };
        let site = Site { stack: Stack::Decoder, layer, place: Place::MlpHidden };
        let key = tap.activation(site, span, key);
        project(&block.down, at(Role::MlpDown), span, &key, tap)
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
        let logits = match &self.head_bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        };
        soft_cap(at_least_f32(logits), self.spec.head.cap)
    }
}

/// The tensors a decoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderTensor {
    /// Token embedding `[vocabulary, width]`.
    Embedding,
    /// Learned positions `[offset + context, width]`.
    Positions,
    /// Untied head `[width, vocabulary]`.
    Head,
    /// Its bias `[vocabulary]`.
    HeadBias,
    /// γ of a norm.
    Gamma(NormAt),
    /// β of a norm.
    Beta(NormAt),
    /// A weight matrix.
    Matrix(usize, Role),
    /// Its bias.
    Bias(usize, Role),
}

/// The norms of a decoder, those of blocks by their layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormAt {
    /// Before the head.
    Head,
    /// Before attention.
    Attention(usize),
    /// After attention.
    AttentionPost(usize),
    /// Before the MLP.
    Mlp(usize),
    /// After the MLP.
    MlpPost(usize),
    /// Of each head's queries.
    Query(usize),
    /// Of each head's keys.
    Key(usize),
}

impl Decoder {
    /// Builds a decoder from its tensors.
    ///
    /// # Errors
    /// What `weights` says of a tensor.
    pub fn build(spec: DecoderSpec, weights: &mut dyn Weights<DecoderTensor>) -> Result<Self> {
        let (width, vocabulary) = (spec.width, spec.vocabulary);
        let embedding = Param::from_tensor(weights.matrix(DecoderTensor::Embedding, [vocabulary, width])?);
        let positions = match spec.positions {
            Positions::Learned { offset } => {
                let shape = [offset + spec.context, width];
                Some(Param::from_tensor(weights.matrix(DecoderTensor::Positions, shape)?))
            }
            Positions::Rotary(_) => None,
        };
        let blocks =
            (0..spec.layers).map(|layer| Decoder::build_block(&spec, layer, weights)).collect::<Result<_>>()?;
        let norm = norm(&spec, NormAt::Head, weights)?;
        let head = match spec.head.tied {
            true => None,
            false => Some(Param::from_tensor(weights.matrix(DecoderTensor::Head, [width, vocabulary])?)),
        };
        let head_bias = match spec.head.bias {
            true => Some(Param::from_tensor(weights.vector(DecoderTensor::HeadBias, vocabulary)?)),
            false => None,
        };
        Ok(Decoder { embedding, positions, blocks, norm, head, head_bias, spec })
    }
}

fn norm(spec: &DecoderSpec, at: NormAt, weights: &mut dyn Weights<DecoderTensor>) -> Result<Norm> {
    let width = match at {
        NormAt::Query(_) | NormAt::Key(_) => spec.attention.head_width,
        _ => spec.width,
    };
    let gamma = weights.vector(DecoderTensor::Gamma(at), width)?;
    let beta = match spec.norm.kind {
        NormKind::LayerNorm => Some(weights.vector(DecoderTensor::Beta(at), width)?),
        NormKind::RmsNorm => None,
    };
    Ok(Norm::new(spec.norm, gamma, beta))
}

impl Decoder {
    fn build_block(spec: &DecoderSpec, layer: usize, weights: &mut dyn Weights<DecoderTensor>) -> Result<Block> {
        let mut linear = |role| -> Result<Linear> {
            let [d_in, d_out] = spec.shape(role);
            let weight = Param::from_tensor(weights.matrix(DecoderTensor::Matrix(layer, role), [d_in, d_out])?);
            let bias = match spec.has_bias(role) {
                true => Some(Param::from_tensor(weights.vector(DecoderTensor::Bias(layer, role), d_out)?)),
                false => None,
            };
            Ok(Linear { weight, bias })
        };
        let (query, key, value, out) =
            (linear(Role::Query)?, linear(Role::Key)?, linear(Role::Value)?, linear(Role::Out)?);
        let gate = if spec.mlp.gated { Some(linear(Role::MlpGate)?) } else { None };
        let (up, down) = (linear(Role::MlpUp)?, linear(Role::MlpDown)?);
        let mut norm_if = |there: bool, at: NormAt| if there { norm(spec, at, weights).map(Some) } else { Ok(None) };
        let each_head = spec.attention.query_key_norm;
        let (query_norm, key_norm) =
            (norm_if(each_head, NormAt::Query(layer))?, norm_if(each_head, NormAt::Key(layer))?);
        let post = spec.block == BlockShape::PreAndPostNorm;
        let (attention_post_norm, mlp_post_norm) =
            (norm_if(post, NormAt::AttentionPost(layer))?, norm_if(post, NormAt::MlpPost(layer))?);
        let mlp_norm = norm_if(spec.block != BlockShape::ParallelOneNorm, NormAt::Mlp(layer))?;
        let attention_norm = norm(spec, NormAt::Attention(layer), weights)?;
        Ok(Block {
            attention_norm,
            query,
            key,
            value,
            query_norm,
            key_norm,
            out,
            attention_post_norm,
            mlp_norm,
            gate,
            up,
            down,
            mlp_post_norm,
        })
    }
}
