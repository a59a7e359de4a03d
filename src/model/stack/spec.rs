//! What a decoder is made of. A family maps its Hugging Face config to this and nothing else.

use crate::model::layers::mlp::Activation;
use crate::model::layers::norm::NormSpec;
use crate::model::layers::relative::Relative;
use crate::model::layers::rotary::Rotary;
use crate::model::tap::{Place, Role, Site, Stack, Weight};

/// The architecture of a decoder, and of the encoder that it reads where there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// The encoder; nothing in a decoder-only model.
    pub source: Option<SourceSpec>,
    /// Entries of the vocabulary that is read; what the head gives is [`DecoderSpec::outputs`].
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of the decoder's blocks; 0 in a classifier.
    pub layers: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// What token embeddings are multiplied by.
    pub embedding_scale: f64,
    /// How positions enter.
    pub positions: Positions,
    /// Of every block.
    pub attention: AttentionSpec,
    /// Of every block.
    pub mlp: MlpSpec,
    /// Every norm's formula.
    pub norm: NormSpec,
    /// How attention and MLP of a block stand to each other, and where its norms are.
    pub block: BlockShape,
    /// The head.
    pub head: HeadSpec,
}

/// The encoder of an encoder-decoder, or of a classifier. It shares embedding, widths, norms and the kind of positions with the decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceSpec {
    /// Number of its blocks.
    pub layers: usize,
    /// The token that begins what the decoder reads.
    pub begin: u32,
    /// Kinds of text that embeddings tell apart, of which we read the first; 0 where they tell none apart.
    pub kinds: usize,
    /// What a classifier says of a text, instead of tokens. It has no decoder: the head reads the encoder's first cell.
    pub labels: Option<Vec<String>>,
}

/// Attention of every block.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; each serves `heads / key_value_heads` query heads.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// What scores are multiplied by: `1 / √head_width` in most models.
    pub scale: f64,
    /// Scores are held within ±cap by `cap · tanh(score / cap)`.
    pub cap: Option<f64>,
    /// Whether queries and keys are normed, each head by itself, before they are turned.
    pub query_key_norm: bool,
    /// Whether the projections to queries, keys and values carry a bias.
    pub bias: bool,
    /// Whether the output projection does.
    pub out_bias: bool,
    /// Layers that see the last positions only.
    pub local: Option<Local>,
}

/// Layers that see the last positions only.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Positions that such a layer sees, the cell's own included.
    pub window: usize,
    /// Which layers they are, by their numbers.
    pub layers: Vec<bool>,
    /// Their rotary embedding, where it is another one.
    pub rotary: Option<Rotary>,
}

/// The MLP of every block.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSpec {
    /// Width of the hidden layer.
    pub width: usize,
    /// The non-linearity.
    pub activation: Activation,
    /// Whether it is gated: `down(f(gate x) · up x)`, else `down(f(up x))`.
    pub gated: bool,
    /// Whether its projections carry a bias.
    pub bias: bool,
}

/// How attention A and MLP M of a block stand to each other, and where its norms N are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockShape {
    /// `y = x + A(N x)`, `y + M(N y)`
    PreNorm,
    /// `y = x + N A(N x)`, `y + N M(N y)`
    PreAndPostNorm,
    /// `x + A(N x) + M(N x)`, a norm each.
    Parallel,
    /// The same with one norm for both.
    ParallelOneNorm,
    /// `y = N(x + A(x))`, `N(y + M(y))`; a norm after the embeddings, none before the head.
    PostNorm,
}

/// The head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadSpec {
    /// Whether it is the embedding, transposed.
    pub tied: bool,
    /// Whether it carries a bias.
    pub bias: bool,
    /// What is multiplied by the head.
    pub scale: f64,
    /// Logits are held within ±cap by `cap · tanh(logit / cap)`.
    pub cap: Option<f64>,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A learned vector for each position, added to the embedding; the first `offset` rows of the table are no position's.
    Learned {
        /// Rows before that of position 0.
        offset: usize,
    },
    /// Rotated queries and keys.
    Rotary(Rotary),
    /// A learned number for each head and distance, added to scores (Raffel et al., 2020); far distances share one.
    Relative(Relative),
}

impl DecoderSpec {
    /// `[d_in, d_out]` of a weight.
    pub fn shape(&self, role: Role) -> [usize; 2] {
        let attention = &self.attention;
        let queries = attention.heads * attention.head_width;
        let keys = attention.key_value_heads * attention.head_width;
        match role {
            Role::Query | Role::CrossQuery => [self.width, queries],
            Role::Key | Role::Value | Role::CrossKey | Role::CrossValue => [self.width, keys],
            Role::Out | Role::CrossOut => [queries, self.width],
            Role::MlpGate | Role::MlpUp => [self.width, self.mlp.width],
            Role::MlpDown => [self.mlp.width, self.width],
        }
    }

    /// Whether a projection carries a bias.
    pub fn has_bias(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => self.attention.bias,
            Role::CrossQuery | Role::CrossKey | Role::CrossValue => self.attention.bias,
            Role::Out | Role::CrossOut => self.attention.out_bias,
            Role::MlpGate | Role::MlpUp | Role::MlpDown => self.mlp.bias,
        }
    }

    /// What a classifier says of a text; nothing for a language model.
    pub fn labels(&self) -> Option<&[String]> {
        self.source.as_ref()?.labels.as_deref()
    }

    /// How many logits the head gives: tokens, or labels.
    pub fn outputs(&self) -> usize {
        self.labels().map_or(self.vocabulary, <[String]>::len)
    }

    /// Blocks of the encoder; 0 where there is none.
    pub fn source_layers(&self) -> usize {
        self.source.as_ref().map_or(0, |source| source.layers)
    }

    /// Blocks in all. A pass counts the encoder's first.
    pub fn depth(&self) -> usize {
        self.source_layers() + self.layers
    }

    /// The number of a weight's block in a pass.
    pub fn place(&self, at: Weight) -> usize {
        match at.stack {
            Stack::Encoder => at.layer,
            Stack::Decoder => self.source_layers() + at.layer,
        }
    }

    /// The lowest block, as a pass counts them, whose run an activation is part of. Embeddings belong to the lowest.
    pub fn place_of(&self, at: Site) -> usize {
        match (at.place, at.stack) {
            (Place::Embedding, _) => 0,
            (_, Stack::Encoder) => at.layer,
            (_, Stack::Decoder) => self.source_layers() + at.layer,
        }
    }

    /// Which layers there are, for messages.
    pub fn places(&self) -> String {
        let last = |layers: usize| layers.saturating_sub(1);
        match (self.source_layers(), self.layers) {
            (0, layers) => format!("layers 0 to {}", last(layers)),
            (source, 0) => format!("layers 0 to {}, all of them an encoder's (\"encoder.mlp.up\")", last(source)),
            (source, layers) => {
                format!("layers 0 to {} in the decoder and 0 to {} in the encoder", last(layers), last(source))
            }
        }
    }

    /// Whether the model has a weight of this name.
    pub fn has(&self, at: Weight) -> bool {
        let layers = match at.stack {
            Stack::Encoder => self.source_layers(),
            Stack::Decoder => self.layers,
        };
        let there = match at.role {
            Role::MlpGate => self.mlp.gated,
            Role::CrossQuery | Role::CrossKey | Role::CrossValue | Role::CrossOut => {
                self.source.is_some() && at.stack == Stack::Decoder
            }
            _ => true,
        };
        at.layer < layers && there
    }

    /// Whether a layer sees the last positions only.
    pub fn is_local(&self, layer: usize) -> bool {
        self.attention.local.as_ref().is_some_and(|local| local.layers[layer])
    }
}
