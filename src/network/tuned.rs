//! What training changes of a pretrained stack: all of it, its top blocks, or low-rank factors beside its matrices. The rest stays the
//! pretrained model's and is stored nowhere else. What is trained is f32 even where the base is in 16 bits (f64 on a base in f64); the
//! stacks cast what passes from one to the other.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::layers::matrix::Matrix;
use crate::model::layers::norm::Norm;
use crate::model::stack::block::Block;
use crate::model::stack::decoder::Decoder;
use crate::model::stack::encoder::Encoder;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{Role, Span, Stack, Tap, Weight};

/// How much of a pretrained stack is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tune {
    /// Nothing.
    Nothing,
    /// All of it, embeddings included.
    Whole,
    /// Its topmost blocks.
    Top(usize),
    /// Factors `W + A·B` beside every matrix of its topmost blocks (Hu et al., 2022).
    Lora {
        /// Columns of A.
        rank: usize,
        /// Blocks that have them; 0 for all.
        #[serde(default)]
        top: usize,
    },
}

impl Tune {
    /// Bytes of what is trained of a decoder, and over how many of its blocks a graph lies.
    pub fn bytes(&self, spec: &DecoderSpec) -> (u64, usize) {
        let depth = spec.depth();
        match *self {
            Tune::Nothing => (0, 0),
            Tune::Whole => (spec.weights_bytes(), depth),
            Tune::Top(count) => (spec.layers_bytes(depth.saturating_sub(count)), count.min(depth)),
            Tune::Lora { rank, top } => {
                let blocks = if top == 0 { depth } else { top.min(depth) };
                let of_block = Role::all().map(|role| spec.shape(role).iter().sum::<usize>() * rank).sum::<usize>();
                (4 * (blocks * of_block) as u64, blocks)
            }
        }
    }
}

/// The trained part of a stack.
#[derive(Module, Debug)]
pub struct Tuned {
    /// In the place of the topmost blocks.
    pub blocks: Vec<Block>,
    /// What is not in the blocks, where all is trained.
    pub ends: Option<Ends>,
    /// One a matrix.
    pub factors: Vec<Factors>,
}

/// What a stack has below and above its blocks.
#[derive(Module, Debug)]
pub struct Ends {
    /// `[vocabulary, width]`
    pub embedding: Matrix,
    /// `[context, width]`
    pub positions: Option<Param<Tensor<2>>>,
    /// An encoder's token types, `[kinds, width]`.
    pub kinds: Option<Param<Tensor<2>>>,
    /// A decoder's last norm, an encoder's first.
    pub norm: Option<Norm>,
    /// A decoder's untied head, `[width, outputs]`.
    pub head: Option<Matrix>,
    /// What distances add to a decoder's scores, `[buckets, heads]`.
    pub distances: Option<Param<Tensor<2>>>,
    /// Of the encoder that a decoder reads.
    pub source: Option<SourceEnds>,
}

/// What the encoder of an encoder-decoder has beside its blocks.
#[derive(Module, Debug)]
pub struct SourceEnds {
    /// `[context, width]`
    pub positions: Option<Param<Tensor<2>>>,
    /// `[buckets, heads]`
    pub distances: Option<Param<Tensor<2>>>,
    /// The norm of what the decoder reads.
    pub norm: Option<Norm>,
}

/// `A·B`, added to one matrix.
#[derive(Module, Debug)]
pub struct Factors {
    /// `[d_in, rank]`
    pub a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    pub b: Param<Tensor<2>>,
    /// The matrix.
    #[module(skip)]
    pub at: Weight,
}

impl Tuned {
    fn new(tune: &Tune, blocks: &[(Stack, &[Block])], ends: Ends, place: (&Device, DType)) -> Result<Self> {
        let each = || blocks.iter().flat_map(|(stack, blocks)| blocks.iter().enumerate().map(|at| (*stack, at)));
        let layers = each().count();
        let top = |count: usize| match count {
            0 => Err(Error::Config("at least one block must be trained; \"nothing\" trains none".into())),
            _ if count > layers => Err(Error::Config(format!("{count} blocks of a model that has {layers}"))),
            _ => Ok(layers - count),
        };
        let none = Tuned { blocks: vec![], ends: None, factors: vec![] };
        Ok(match *tune {
            Tune::Nothing => none,
            Tune::Whole => {
                let blocks = each().map(|(_, (_, block))| block.clone().in_memory()).collect();
                let ends =
                    Ends { embedding: ends.embedding.in_memory(), head: ends.head.map(Matrix::in_memory), ..ends };
                trained(Tuned { blocks, ends: Some(ends), ..none }, place)
            }
            Tune::Top(count) => {
                let blocks = each().skip(top(count)?).map(|(_, (_, block))| block.clone().in_memory()).collect();
                trained(Tuned { blocks, ..none }, place)
            }
            Tune::Lora { rank: 0, .. } => return Err(Error::Config("lora.rank must be at least 1".into())),
            Tune::Lora { rank, top: count } => {
                let first = if count == 0 { 0 } else { top(count)? };
                let mut factors = vec![];
                for (stack, (layer, block)) in each().skip(first) {
                    for role in Role::all() {
                        let Some(linear) = block.linear(role) else { continue };
                        let [d_in, d_out] = linear.weight.dims();
                        if rank > d_in.min(d_out) {
                            return Err(Error::Config(format!(
                                "lora.rank = {rank} is above what a matrix of {d_in} × {d_out} can have"
                            )));
                        }
                        let spread = Distribution::Normal(0.0, 1.0 / (d_in as f64).sqrt());
                        factors.push(Factors {
                            a: Param::from_tensor(Tensor::random([d_in, rank], spread, place)),
                            b: Param::from_tensor(Tensor::zeros([rank, d_out], place)),
                            at: Weight { stack, layer, role },
                        });
                    }
                }
                Tuned { factors, ..none }
            }
        })
    }

    /// The part of a decoder that `tune` names, as it is pretrained.
    ///
    /// # Errors
    /// More blocks than there are.
    pub fn of_decoder(tune: &Tune, decoder: &Decoder, place: (&Device, DType)) -> Result<Self> {
        let ends = Ends {
            embedding: decoder.embedding.clone(),
            positions: decoder.positions.clone(),
            kinds: None,
            norm: decoder.norm.clone(),
            head: decoder.head.clone(),
            distances: decoder.distances.clone(),
            source: decoder.source.as_ref().map(|source| SourceEnds {
                positions: source.positions.clone(),
                distances: source.distances.clone(),
                norm: source.norm.clone(),
            }),
        };
        let encoder = decoder.source.as_ref().map_or(&[][..], |source| &source.blocks);
        Tuned::new(tune, &[(Stack::Encoder, encoder), (Stack::Decoder, &decoder.blocks)], ends, place)
    }

    /// The part of an encoder that `tune` names, as it is pretrained.
    ///
    /// # Errors
    /// More blocks than there are.
    pub fn of_encoder(tune: &Tune, encoder: &Encoder, place: (&Device, DType)) -> Result<Self> {
        let ends = Ends {
            embedding: encoder.embedding.clone(),
            positions: Some(encoder.positions.clone()),
            kinds: encoder.kinds.clone(),
            norm: Some(encoder.norm.clone()),
            head: None,
            distances: None,
            source: None,
        };
        Tuned::new(tune, &[(Stack::Encoder, &encoder.blocks)], ends, place)
    }

    /// The decoder with its trained part; factors stand apart (see [`Tuned::tap`]).
    pub fn decoder(&self, pretrained: &Decoder) -> Decoder {
        let mut decoder = pretrained.clone();
        decoder.replace_top(&self.blocks);
        if let Some(ends) = &self.ends {
            decoder.embedding = ends.embedding.clone();
            decoder.positions = ends.positions.clone();
            decoder.norm = ends.norm.clone();
            decoder.head = ends.head.clone();
            decoder.distances = ends.distances.clone();
            if let (Some(source), Some(ends)) = (&mut decoder.source, &ends.source) {
                source.positions = ends.positions.clone();
                source.distances = ends.distances.clone();
                source.norm = ends.norm.clone();
            }
        }
        decoder
    }

    /// The encoder with its trained part; factors stand apart (see [`Tuned::tap`]).
    pub fn encoder(&self, pretrained: &Encoder) -> Encoder {
        let mut encoder = pretrained.clone();
        let first = encoder.blocks.len() - self.blocks.len();
        encoder.blocks.truncate(first);
        encoder.blocks.extend(self.blocks.iter().cloned());
        if let Some(ends) = &self.ends {
            encoder.embedding = ends.embedding.clone();
            if let Some(positions) = &ends.positions {
                encoder.positions = positions.clone();
            }
            encoder.kinds = ends.kinds.clone();
            if let Some(norm) = &ends.norm {
                encoder.norm = norm.clone();
            }
        }
        encoder
    }

    /// Adds `(x·A)·B` where there are factors.
    pub fn tap(&self) -> FactorTap<'_> {
        FactorTap(&self.factors)
    }
}

/// Pretrained parameters in the network's element type, and as leaves of a training where the device is one's. In 16 bits most
/// steps are too small to move a weight at all.
fn trained(tuned: Tuned, (device, dtype): (&Device, DType)) -> Tuned {
    let tuned = tuned.map(&mut InType(dtype));
    if device.is_autodiff() { tuned.train().fork(device) } else { tuned }
}

/// Casts parameters that are of another element type.
struct InType(DType);

impl ModuleMapper for InType {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = self.0;
        if param.val().dtype() == dtype { param } else { param.map(|value| value.cast(dtype)) }
    }
}

/// See [`Tuned::tap`].
pub struct FactorTap<'a>(&'a [Factors]);

impl Tap for FactorTap<'_> {
    fn linear(&mut self, at: Weight, _span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        let Some(factors) = self.0.iter().find(|factors| factors.at == at) else { return output };
        let [rows, cells, d_in] = input.dims();
        let (a, b) = (factors.a.val(), factors.b.val());
        let flat = input.clone().reshape([rows * cells, d_in]).cast(a.dtype());
        let change = flat.matmul(a).matmul(b);
        let d_out = change.dims()[1];
        let dtype = output.dtype();
        output + change.reshape([rows, cells, d_out]).cast(dtype)
    }
}
