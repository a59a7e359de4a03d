//! A bidirectional transformer (BERT and its kin) with the same tap places as the decoder: post-norm blocks over whole texts.

use std::ops::Range;
use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Int, Tensor};

use super::attention::{padding, weigh};
use super::decoder::{Block, Norm, in_type, project};
use super::family;
use super::folder::Folder;
use super::spec::Activation;
use super::tap::{Place, Role, Site, Span, Stack, Tap, Weight};
use super::tokenizer::Tokenizer;
use super::tokens::Tokens;
use crate::error::{Error, Result};

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
    pub embedding: Param<Tensor<2>>,
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
    /// An encoder from the files of its folder, each tensor cast once to `dtype`.
    ///
    /// # Errors
    /// A family that is not known; a tensor that is missing, has another shape, or a type that is no float.
    pub fn read(folder: &Folder, device: &Device, dtype: DType) -> Result<Self> {
        let wrong = |message: String| Error::file(folder.origin().join("config.json"), message);
        let family = family::for_encoder(folder.config()).map_err(wrong)?;
        let spec = family.spec(folder.config()).map_err(wrong)?;
        let data = |at: EncoderTensor, shape: &[usize]| folder.read(&family.place(at), family.prefixes(), shape);
        let vector = |at: EncoderTensor, length: usize| -> Result<Param<Tensor<1>>> {
            Ok(Param::from_tensor(Tensor::from_data(data(at, &[length])?, (device, dtype))))
        };
        let matrix = |at: EncoderTensor, shape: [usize; 2]| -> Result<Param<Tensor<2>>> {
            Ok(Param::from_tensor(Tensor::from_data(data(at, &shape)?, (device, dtype))))
        };
        let norm = |gamma: EncoderTensor, beta: EncoderTensor| -> Result<Norm> {
            let (gamma, beta) = (vector(gamma, spec.width)?, Some(vector(beta, spec.width)?));
            Ok(Norm { gamma, beta, epsilon: spec.norm_epsilon, centred: true })
        };
        let block = |layer: usize| -> Result<Block> {
            let linear = |role: Role| -> Result<Linear> {
                let [d_in, d_out] = match role {
                    Role::MlpUp => [spec.width, spec.mlp_width],
                    Role::MlpDown => [spec.mlp_width, spec.width],
                    _ => [spec.width, spec.width],
                };
                let weight = matrix(EncoderTensor::Matrix(layer, role), [d_in, d_out])?;
                Ok(Linear { weight, bias: Some(vector(EncoderTensor::Bias(layer, role), d_out)?) })
            };
            Ok(Block {
                attention_norm: norm(EncoderTensor::AttentionGamma(layer), EncoderTensor::AttentionBeta(layer))?,
                query: linear(Role::Query)?,
                key: linear(Role::Key)?,
                value: linear(Role::Value)?,
                out: linear(Role::Out)?,
                mlp_norm: norm(EncoderTensor::MlpGamma(layer), EncoderTensor::MlpBeta(layer))?,
                gate: None,
                up: linear(Role::MlpUp)?,
                down: linear(Role::MlpDown)?,
            })
        };
        Ok(Encoder {
            embedding: matrix(EncoderTensor::Embedding, [spec.vocabulary, spec.width])?,
            positions: matrix(EncoderTensor::Positions, [spec.context, spec.width])?,
            kinds: match spec.kinds {
                0 => None,
                kinds => Some(matrix(EncoderTensor::Kinds, [kinds, spec.width])?),
            },
            norm: norm(EncoderTensor::Gamma, EncoderTensor::Beta)?,
            blocks: (0..spec.layers).map(block).collect::<Result<_>>()?,
            spec: spec.clone(),
        })
    }

    /// First stage: tokens to the input of the first block, `[batch, tokens, width]`. `second` says for each row at which cell
    /// its second text begins; rows behind its end have none.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a position outside the context.
    pub fn embed(&self, tokens: &Tokens, second: &[usize], tap: &mut dyn Tap) -> Result<Tensor<3>> {
        tokens.check(self.spec.vocabulary, self.spec.context)?;
        let (span, device) = (tokens.span(), self.embedding.val().device());
        let (rows, width) = (span.rows.len(), span.width);
        let select = |table: &Param<Tensor<2>>, indices: Vec<i64>| {
            let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &device.clone().inner());
            table.val().select(0, indices)
        };
        let words = select(&self.embedding, tokens.padded_ids()).reshape([rows, width, self.spec.width]);
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
        let mixed = weigh([split(query), split(key), split(value)], heads, mask);
        let attention = project(&block.out, at(Role::Out), span, &mixed, tap);
        let attention = tap.activation(site(Place::AttentionOut), span, attention);
        let hidden = block.attention_norm.forward(hidden + attention);

        let key = self.spec.activation.apply(project(&block.up, at(Role::MlpUp), span, &hidden, tap));
        let key = tap.activation(site(Place::MlpHidden), span, key);
        let value = project(&block.down, at(Role::MlpDown), span, &key, tap);
        let value = tap.activation(site(Place::MlpOut), span, value);
        let hidden = block.mlp_norm.forward(hidden + value);
        tap.activation(site(Place::BlockOut), span, hidden)
    }
}

/// An encoder as it was loaded, with its tokenizer.
pub struct EncoderModel {
    /// The network.
    pub encoder: Encoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// BLAKE3 of config and weights, in hexadecimal.
    pub fingerprint: String,
}

impl EncoderModel {
    /// Loads an encoder from a folder in Hugging Face layout.
    ///
    /// # Errors
    /// What of the files is wrong.
    pub fn open(folder: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let files = Folder::open(folder)?;
        let encoder = Encoder::read(&files, device, dtype)?;
        Ok(EncoderModel { encoder, tokenizer: Tokenizer::open(folder)?, fingerprint: files.fingerprint() })
    }
}
