//! Builds a decoder, with the encoder that it reads, from named tensors.

use burn::module::Param;

use super::block::{Block, Cross};
use super::decoder::{Decoder, Source};
use super::spec::{BlockShape, DecoderSpec, Positions};
use super::weights::Weights;
use crate::error::Result;
use crate::model::layers::matrix::Linear;
use crate::model::layers::norm::{Norm, NormKind};
use crate::model::tap::{Role, Stack, Weight};

/// The tensors a decoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderTensor {
    /// Token embedding `[vocabulary, width]`.
    Embedding,
    /// Learned positions `[offset + context, width]`.
    Positions(Stack),
    /// What distances add to scores `[buckets, heads]`.
    Distances(Stack),
    /// What only a classifier has.
    Classifier(ClassifierTensor),
    /// Untied head `[width, outputs]`.
    Head,
    /// Its bias `[outputs]`.
    HeadBias,
    /// γ of a norm.
    Gamma(Stack, NormAt),
    /// β of a norm.
    Beta(Stack, NormAt),
    /// A weight matrix.
    Matrix(Weight),
    /// Its bias.
    Bias(Weight),
}

/// The tensors of a classifier beside those of its encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassifierTensor {
    /// Kinds of text `[kinds, width]`.
    Kinds,
    /// What its head reads the first cell through `[width, width]`.
    Pooler,
    /// Its bias `[width]`.
    PoolerBias,
}

/// The norms of a stack, those of blocks by their layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormAt {
    /// After the embeddings.
    Embedding,
    /// After the last block: before the head, or of what a decoder reads.
    Head,
    /// Of attention over what an encoder made.
    Cross(usize),
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
        let (width, vocabulary, outputs) = (spec.width, spec.vocabulary, spec.outputs());
        let embedding = weights.weight(DecoderTensor::Embedding, [vocabulary, width])?;
        let source = match &spec.source {
            Some(source) => Some(Source::build(Stack::Encoder, &spec, source.layers, weights)?),
            None => None,
        };
        let Source { kinds: _, positions, distances, embedding_norm, blocks, norm } =
            Source::build(Stack::Decoder, &spec, spec.layers, weights)?;
        let pooler = match spec.labels() {
            Some(_) => Some(Linear {
                weight: weights.weight(DecoderTensor::Classifier(ClassifierTensor::Pooler), [width, width])?,
                bias: Some(Param::from_tensor(
                    weights.vector(DecoderTensor::Classifier(ClassifierTensor::PoolerBias), width)?,
                )),
            }),
            None => None,
        };
        let head = match spec.head.tied {
            true => None,
            false => Some(weights.weight(DecoderTensor::Head, [width, outputs])?),
        };
        let head_bias = match spec.head.bias {
            true => Some(Param::from_tensor(weights.vector(DecoderTensor::HeadBias, outputs)?)),
            false => None,
        };
        Ok(Decoder {
            embedding,
            positions,
            distances,
            embedding_norm,
            source,
            blocks,
            norm,
            pooler,
            head,
            head_bias,
            spec,
        })
    }
}

impl Source {
    /// What a stack has between embedding and head.
    fn build(
        stack: Stack,
        spec: &DecoderSpec,
        layers: usize,
        weights: &mut dyn Weights<DecoderTensor>,
    ) -> Result<Self> {
        let (mut kinds, mut positions, mut distances) = (None, None, None);
        if layers == 0 {
            return Ok(Source { kinds, positions, distances, embedding_norm: None, blocks: vec![], norm: None });
        }
        if let Some(source) = spec.source.as_ref().filter(|source| source.kinds > 0 && stack == Stack::Encoder) {
            let table =
                weights.matrix(DecoderTensor::Classifier(ClassifierTensor::Kinds), [source.kinds, spec.width])?;
            kinds = Some(Param::from_tensor(table));
        }
        match &spec.positions {
            Positions::Learned { offset } => {
                let shape = [offset + spec.context, spec.width];
                positions = Some(Param::from_tensor(weights.matrix(DecoderTensor::Positions(stack), shape)?));
            }
            Positions::Relative(relative) => {
                let shape = [relative.buckets, spec.attention.heads];
                distances = Some(Param::from_tensor(weights.matrix(DecoderTensor::Distances(stack), shape)?));
            }
            Positions::Rotary(_) => {}
        }
        let post = spec.block == BlockShape::PostNorm;
        let mut norm_if =
            |there: bool, at: NormAt| if there { norm(spec, stack, at, weights).map(Some) } else { Ok(None) };
        let embedding_norm = norm_if(post, NormAt::Embedding)?;
        let last = norm_if(!post, NormAt::Head)?;
        let blocks = (0..layers).map(|layer| block(spec, stack, layer, weights)).collect::<Result<_>>()?;
        Ok(Source { kinds, positions, distances, embedding_norm, blocks, norm: last })
    }
}

fn norm(spec: &DecoderSpec, stack: Stack, at: NormAt, weights: &mut dyn Weights<DecoderTensor>) -> Result<Norm> {
    let width = match at {
        NormAt::Query(_) | NormAt::Key(_) => spec.attention.head_width,
        _ => spec.width,
    };
    let gamma = weights.vector(DecoderTensor::Gamma(stack, at), width)?;
    let beta = match spec.norm.kind {
        NormKind::LayerNorm => Some(weights.vector(DecoderTensor::Beta(stack, at), width)?),
        NormKind::RmsNorm => None,
    };
    Ok(Norm::new(spec.norm, gamma, beta))
}

fn block(spec: &DecoderSpec, stack: Stack, layer: usize, weights: &mut dyn Weights<DecoderTensor>) -> Result<Block> {
    let mut linear = |role| -> Result<Linear> {
        let ([d_in, d_out], at) = (spec.shape(role), Weight { stack, layer, role });
        let weight = weights.weight(DecoderTensor::Matrix(at), [d_in, d_out])?;
        let bias = match spec.has_bias(role) {
            true => Some(Param::from_tensor(weights.vector(DecoderTensor::Bias(at), d_out)?)),
            false => None,
        };
        Ok(Linear { weight, bias })
    };
    let (query, key, value, out) = (linear(Role::Query)?, linear(Role::Key)?, linear(Role::Value)?, linear(Role::Out)?);
    let crossed = match spec.source.is_some() && stack == Stack::Decoder {
        true => Some([
            linear(Role::CrossQuery)?,
            linear(Role::CrossKey)?,
            linear(Role::CrossValue)?,
            linear(Role::CrossOut)?,
        ]),
        false => None,
    };
    let gate = if spec.mlp.gated { Some(linear(Role::MlpGate)?) } else { None };
    let (up, down) = (linear(Role::MlpUp)?, linear(Role::MlpDown)?);
    let mut norm_if = |there: bool, at: NormAt| if there { norm(spec, stack, at, weights).map(Some) } else { Ok(None) };
    let each_head = spec.attention.query_key_norm;
    let (query_norm, key_norm) = (norm_if(each_head, NormAt::Query(layer))?, norm_if(each_head, NormAt::Key(layer))?);
    let post = spec.block == BlockShape::PreAndPostNorm;
    let (attention_post_norm, mlp_post_norm) =
        (norm_if(post, NormAt::AttentionPost(layer))?, norm_if(post, NormAt::MlpPost(layer))?);
    let mlp_norm = norm_if(spec.block != BlockShape::ParallelOneNorm, NormAt::Mlp(layer))?;
    let cross = match crossed {
        Some([query, key, value, out]) => {
            Some(Cross { norm: norm(spec, stack, NormAt::Cross(layer), weights)?, query, key, value, out })
        }
        None => None,
    };
    let attention_norm = norm(spec, stack, NormAt::Attention(layer), weights)?;
    Ok(Block {
        attention_norm,
        query,
        key,
        value,
        query_norm,
        key_norm,
        out,
        attention_post_norm,
        cross,
        mlp_norm,
        gate,
        up,
        down,
        mlp_post_norm,
    })
}
