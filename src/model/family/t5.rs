//! T5 (Raffel et al., 2020), T5 1.1 and Flan (Chung et al., 2022), and mT5 (Xue et al., 2021): an encoder and a decoder with relative positions,
//! scores that are not scaled, no biases.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::relative::Relative;
use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions, SourceSpec};
use super::super::tap::{Role, Stack, Weight};
use super::{Family, NONE, StoredAt, activation, checked, read, rms_norm};

/// Under either of its names.
pub(super) struct T5(pub &'static str);

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "farthest")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    /// "relu", or "gated-gelu" of T5 1.1.
    #[serde(default = "relu")]
    feed_forward_proj: String,
    n_positions: Option<usize>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    decoder_start_token_id: u32,
}

fn buckets() -> usize {
    32
}

fn farthest() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

fn relu() -> String {
    "relu".into()
}

impl Family for T5 {
    fn name(&self) -> &'static str {
        self.0
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let (buckets, farthest) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        if !(4..=1 << 16).contains(&buckets) || farthest <= buckets {
            return Err(format!(
                "relative_attention_num_buckets is {buckets} and relative_attention_max_distance {farthest}; at least 4 buckets are wanted, \
                 and a distance above their number"
            ));
        }
        let (gated, name) = match config.feed_forward_proj.strip_prefix("gated-") {
            Some(name) => (true, name),
            None => (false, config.feed_forward_proj.as_str()),
        };
        // The gated ones were trained with GELU by the hyperbolic tangent, whatever their config calls it.
        let name = if gated && name == "gelu" { "gelu_new" } else { name };
        // T5 1.1 has a head of its own, and most of its configs say so.
        let tied = config.tie_word_embeddings.unwrap_or(self.0 == "t5");
        checked(DecoderSpec {
            source: Some(SourceSpec {
                layers: config.num_layers,
                begin: config.decoder_start_token_id,
                kinds: 0,
                labels: None,
            }),
            vocabulary: config.vocab_size,
            width: config.d_model,
            layers: config.num_decoder_layers.unwrap_or(config.num_layers),
            context: config.n_positions.unwrap_or(512),
            embedding_scale: 1.0,
            positions: Positions::Relative(Relative { buckets, farthest }),
            attention: AttentionSpec {
                heads: config.num_heads,
                key_value_heads: config.num_heads,
                head_width: config.d_kv,
                scale: 1.0,
                cap: None,
                query_key_norm: false,
                bias: false,
                out_bias: false,
                local: None,
            },
            mlp: MlpSpec { width: config.d_ff, activation: activation("feed_forward_proj", name)?, gated, bias: false },
            norm: rms_norm(config.layer_norm_epsilon),
            block: BlockShape::PreNorm,
            head: HeadSpec {
                tied,
                bias: false,
                scale: if tied { (config.d_model as f64).powf(-0.5) } else { 1.0 },
                cap: None,
            },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("shared.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::Distances(stack) => {
                StoredAt::plain(format!("{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", of(stack)))
            }
            DecoderTensor::Gamma(stack, at) => StoredAt::plain(format!("{}.weight", norm(stack, at))),
            DecoderTensor::Matrix(at) => StoredAt::transposed(format!("{}.weight", self.module(at, spec))),
            DecoderTensor::Positions(_)
            | DecoderTensor::Classifier(_)
            | DecoderTensor::HeadBias
            | DecoderTensor::Beta(..)
            | DecoderTensor::Bias(_) => StoredAt::plain(NONE),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &[""]
    }

    fn module(&self, at: Weight, spec: &DecoderSpec) -> String {
        let (layer, name) = match at.role {
            Role::Query => (0, "SelfAttention.q"),
            Role::Key => (0, "SelfAttention.k"),
            Role::Value => (0, "SelfAttention.v"),
            Role::Out => (0, "SelfAttention.o"),
            Role::CrossQuery => (1, "EncDecAttention.q"),
            Role::CrossKey => (1, "EncDecAttention.k"),
            Role::CrossValue => (1, "EncDecAttention.v"),
            Role::CrossOut => (1, "EncDecAttention.o"),
            Role::MlpGate => (mlp(at.stack), "DenseReluDense.wi_0"),
            Role::MlpUp if spec.mlp.gated => (mlp(at.stack), "DenseReluDense.wi_1"),
            Role::MlpUp => (mlp(at.stack), "DenseReluDense.wi"),
            Role::MlpDown => (mlp(at.stack), "DenseReluDense.wo"),
        };
        format!("{}.block.{}.layer.{layer}.{name}", of(at.stack), at.layer)
    }
}

fn of(stack: Stack) -> &'static str {
    match stack {
        Stack::Encoder => "encoder",
        Stack::Decoder => "decoder",
    }
}

/// The sublayer that is the MLP.
fn mlp(stack: Stack) -> usize {
    match stack {
        Stack::Encoder => 1,
        Stack::Decoder => 2,
    }
}

fn norm(stack: Stack, at: NormAt) -> String {
    let block = |layer: usize, sublayer: usize| format!("{}.block.{layer}.layer.{sublayer}.layer_norm", of(stack));
    match at {
        NormAt::Head => format!("{}.final_layer_norm", of(stack)),
        NormAt::Attention(layer) => block(layer, 0),
        NormAt::Cross(layer) => block(layer, 1),
        NormAt::Mlp(layer) => block(layer, mlp(stack)),
        _ => NONE.into(),
    }
}
