//! A bidirectional transformer (BERT and its kin) with the same tap places as the decoder: post-norm blocks over whole texts.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use super::block::Block;
use super::weights::Weights;
use crate::error::Result;
use crate::model::layers::attention::{padding, weigh};
use crate::model::layers::matrix::{Linear, Matrix};
use crate::model::layers::mlp::Activation;
use crate::model::layers::norm::{Gain, Norm, NormKind, NormSpec, if_there};
use crate::model::layers::{in_type, project};
use crate::model::tap::{Place, Role, Site, Span, Stack, Tap, Weight};
use crate::model::tokens::Tokens;

/// The architecture of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Heads, each of `width / heads` channels.
    pub heads: usize,
    /// Width of the MLP's hidden layer.
    pub mlp_width: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// Token types: 2 where the model tells two texts apart, 0 where it knows none.
    pub kinds: usize,
    /// Added to the variance in every norm.
    pub norm_epsilon: f64,
    /// The MLP's non-linearity.
    pub activation: Activation,
}

/// An encoder. Its weights never change once it is loaded; on an autodiff device they can be trained.
#[derive(Module, Debug)]
pub struct Encoder {
    /// `[vocabulary, width]`
    pub embedding: Matrix,
    /// `[context, width]`
    pub positions: Param<Tensor<2>>,
    /// `[kinds, width]`
    pub kinds: Option<Param<Tensor<2>>>,
    /// After the embeddings.
    pub norm: Norm,
    /// The blocks, lowest first; their norms stand behind attention and behind the MLP.
    pub blocks: Vec<Block>,
    /// The architecture.
    #[module(skip)]
    pub spec: EncoderSpec,
}

/// The tensors an encoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderTensor {
    /// Token embedding `[vocabulary, width]`.
    Embedding,
    /// Learned positions `[context, width]`.
    Positions,
    /// Token types `[kinds, width]`.
    Kinds,
    /// γ of the norm after the embeddings.
    Gamma,
    /// β of the norm after the embeddings.
    Beta,
    /// γ of a layer's norm after attention.
    AttentionGamma(usize),
    /// β of a layer's norm after attention.
    AttentionBeta(usize),
    /// γ of a layer's norm after the MLP.
    MlpGamma(usize),
    /// β of a layer's norm after the MLP.
    MlpBeta(usize),
    /// A weight matrix.
    Matrix(usize, Role),
    /// Its bias.
    Bias(usize, Role),
}

impl Encoder {
    /// Builds an encoder from its tensors.
    ///
    /// # Errors
    /// What `weights` says of a tensor.
    pub fn build(spec: EncoderSpec, weights: &mut dyn Weights<EncoderTensor>) -> Result<Self> {
        let width = spec.width;
        let kind = NormSpec { kind: NormKind::LayerNorm, epsilon: spec.norm_epsilon, gain: Gain::Whole };
        let norm =
            |weights: &mut dyn Weights<EncoderTensor>, gamma: EncoderTensor, beta: EncoderTensor| -> Result<Norm> {
                Ok(Norm::new(kind, weights.vector(gamma, width)?, Some(weights.vector(beta, width)?)))
            };
        let embedding = weights.weight(EncoderTensor::Embedding, [spec.vocabulary, width])?;
        let positions = Param::from_tensor(weights.matrix(EncoderTensor::Positions, [spec.context, width])?);
        let kinds = match spec.kinds {
            0 => None,
            kinds => Some(Param::from_tensor(weights.matrix(EncoderTensor::Kinds, [kinds, width])?)),
        };
        let embedding_norm = norm(weights, EncoderTensor::Gamma, EncoderTensor::Beta)?;
        let mut blocks = vec![];
        for layer in 0..spec.layers {
            let mut linear = |role: Role| -> Result<Linear> {
                let [d_in, d_out] = match role {
                    Role::MlpUp => [width, spec.mlp_width],
                    Role::MlpDown => [spec.mlp_width, width],
                    _ => [width, width],
                };
                let weight = Matrix::held(weights.matrix(EncoderTensor::Matrix(layer, role), [d_in, d_out])?);
                let bias = Param::from_tensor(weights.vector(EncoderTensor::Bias(layer, role), d_out)?);
                Ok(Linear { weight, bias: Some(bias) })
            };
            let (query, key, value, out) =
                (linear(Role::Query)?, linear(Role::Key)?, linear(Role::Value)?, linear(Role::Out)?);
            let (up, down) = (linear(Role::MlpUp)?, linear(Role::MlpDown)?);
            blocks.push(Block {
                attention_norm: norm(
                    weights,
                    EncoderTensor::AttentionGamma(layer),
                    EncoderTensor::AttentionBeta(layer),
                )?,
                query,
                key,
                value,
                query_norm: None,
                key_norm: None,
                out,
                attention_post_norm: None,
                cross: None,
                mlp_norm: Some(norm(weights, EncoderTensor::MlpGamma(layer), EncoderTensor::MlpBeta(layer))?),
                gate: None,
                up,
                down,
                mlp_post_norm: None,
            });
        }
        Ok(Encoder { embedding, positions, kinds, norm: embedding_norm, blocks, spec })
    }

    /// First stage: tokens to the input of the first block, `[batch, tokens, width]`. `second` says for each row at which cell
    /// its second text begins; rows behind its end have none.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a position outside the context.
    pub fn embed(&self, tokens: &Tokens, second: &[usize], tap: &mut dyn Tap) -> Result<Tensor<3>> {
        tokens.check(self.spec.vocabulary, self.spec.context, false)?;
        let (span, device) = (tokens.span(), self.embedding.device());
        let (rows, width) = (span.rows.len(), span.width);
        let select = |table: &Param<Tensor<2>>, indices: Vec<i64>| {
            let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &device.clone().inner());
            table.val().select(0, indices)
        };
        let indices = Tensor::<1, Int>::from_data(tokens.padded_ids(0).as_slice(), &device.clone().inner());
        let words = self.embedding.rows(indices).reshape([rows, width, self.spec.width]);
        let places = select(&self.positions, (0..width as i64).collect()).unsqueeze_dim::<3>(0);
        let mut hidden = words + places;
        if let Some(kinds) = &self.kinds {
            let kind = |row: usize, cell: usize| i64::from(second.get(row).is_some_and(|&from| cell >= from));
            hidden = hidden
                + match second.is_empty() {
                    true => select(kinds, vec![0]).unsqueeze_dim::<3>(0),
                    false => {
                        let cells = (0..rows).flat_map(|row| (0..width).map(move |cell| kind(row, cell)));
                        select(kinds, cells.collect()).reshape([rows, width, self.spec.width])
                    }
                };
        }
        let site = Site { stack: Stack::Encoder, layer: 0, place: Place::Embedding };
        Ok(tap.activation(site, span, self.norm.forward(hidden)))
    }

    /// Second stage: the residual stream through the blocks of `layers`, `[batch, tokens, width]`. Padding is seen by no cell.
    pub fn blocks(&self, mut hidden: Tensor<3>, layers: Range<usize>, span: &Span, tap: &mut dyn Tap) -> Tensor<3> {
        let device = hidden.device().inner();
        let mut mask = padding(span, &device, hidden.dtype());
        for layer in layers {
            let dtype = self.blocks[layer].dtype();
            if dtype != hidden.dtype() {
                hidden = in_type(hidden, dtype);
                mask = padding(span, &device, dtype);
            }
            hidden = self.block(hidden, layer, span, mask.clone(), tap);
        }
        hidden
    }

    fn block(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        span: &Span,
        mask: Option<Tensor<4>>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let block = &self.blocks[layer];
        let at = |role| Weight { stack: Stack::Encoder, layer, role };
        let site = |place| Site { stack: Stack::Encoder, layer, place };
        let [batch, tokens, width] = hidden.dims();
        let (heads, head_width) = (self.spec.heads, width / self.spec.heads);

        let query = project(&block.query, at(Role::Query), span, &hidden, tap);
        let key = project(&block.key, at(Role::Key), span, &hidden, tap);
        let value = project(&block.value, at(Role::Value), span, &hidden, tap);
        let query = query.mul_scalar(1.0 / (head_width as f64).sqrt());
        let split = |x: Tensor<3>| x.reshape([batch, tokens, heads, head_width]).swap_dims(1, 2);
        let mixed = weigh([split(query), split(key), split(value)], heads, None, mask);
        let attention = project(&block.out, at(Role::Out), span, &mixed, tap);
        let attention = tap.activation(site(Place::AttentionOut), span, attention);
        let hidden = block.attention_norm.forward(hidden + attention);

        let key = self.spec.activation.apply(project(&block.up, at(Role::MlpUp), span, &hidden, tap));
        let key = tap.activation(site(Place::MlpHidden), span, key);
        let value = project(&block.down, at(Role::MlpDown), span, &key, tap);
        let value = tap.activation(site(Place::MlpOut), span, value);
        let hidden = if_there(&block.mlp_norm, hidden + value);
        tap.activation(site(Place::BlockOut), span, hidden)
    }
}
