//! Falcon (Almazrouei et al., 2023): attention and MLP side by side; few key-value heads, which stand behind their query heads in one matrix.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::Pairs;
use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::gguf::Gguf;
use super::rope::{Rope, Ropes};
use super::{Columns, Family, NONE, StoredAt, activation, by_root, checked, gpt2, head_width, layer_norm, read};

pub(super) struct Falcon;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_kv_heads: Option<usize>,
    ffn_hidden_size: Option<usize>,
    #[serde(default = "gelu")]
    activation: String,
    #[serde(default = "context")]
    max_position_embeddings: usize,
    #[serde(default = "gpt2::epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default)]
    alibi: bool,
    #[serde(default)]
    bias: bool,
    #[serde(default = "gpt2::yes")]
    multi_query: bool,
    #[serde(default = "gpt2::yes")]
    parallel_attn: bool,
    #[serde(default)]
    new_decoder_architecture: bool,
    num_ln_in_parallel_attn: Option<usize>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default = "gpt2::yes")]
    tie_word_embeddings: bool,
}

fn gelu() -> String {
    "gelu".into()
}

fn context() -> usize {
    2048
}

impl Family for Falcon {
    fn name(&self) -> &'static str {
        "falcon"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        if config.alibi {
            return Err("alibi: scores that fall with the distance (Falcon-RW) are not known here".into());
        }
        let head_width = head_width(config.hidden_size, config.num_attention_heads)?;
        let heads = config.num_attention_heads;
        let key_value_heads = match (config.new_decoder_architecture, config.multi_query) {
            (true, _) => config.num_kv_heads.unwrap_or(heads),
            (false, true) => 1,
            (false, false) => heads,
        };
        let norms = config.num_ln_in_parallel_attn.unwrap_or(if config.new_decoder_architecture { 2 } else { 1 });
        let (scaling, parameters) = (config.rope_scaling.as_ref(), config.rope_parameters.as_ref());
        let ropes = Ropes::new(config.rope_theta, scaling, parameters, config.max_position_embeddings);
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            context: ropes.context()?,
            embedding_scale: 1.0,
            positions: Positions::Rotary(ropes.rotary(head_width, 10_000.0, Pairs::Halves)?),
            attention: AttentionSpec {
                heads,
                key_value_heads,
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: config.bias,
                out_bias: config.bias,
                local: None,
            },
            mlp: MlpSpec {
                width: config.ffn_hidden_size.unwrap_or(config.hidden_size.saturating_mul(4)),
                activation: activation("activation", &config.activation)?,
                gated: false,
                bias: config.bias,
            },
            norm: layer_norm(config.layer_norm_epsilon),
            block: match (config.parallel_attn || config.new_decoder_architecture, norms) {
                (false, _) => BlockShape::PreNorm,
                (true, 2) => BlockShape::Parallel,
                (true, _) => BlockShape::ParallelOneNorm,
            },
            head: HeadSpec { tied: config.tie_word_embeddings, bias: false, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        // Each key-value head behind the query heads that it serves.
        let columns = |role| {
            let attention = &spec.attention;
            let (width, group) = (attention.head_width, attention.heads / attention.key_value_heads);
            let every = (group + 2) * width;
            match role {
                Role::Query => Some(Columns { first: 0, width: group * width, every }),
                Role::Key => Some(Columns { first: group * width, width, every }),
                Role::Value => Some(Columns { first: (group + 1) * width, width, every }),
                _ => None,
            }
        };
        let norm = |at: NormAt| match (at, spec.block) {
            (NormAt::Head, _) => "ln_f".to_owned(),
            (NormAt::Mlp(layer), BlockShape::Parallel) => format!("h.{layer}.ln_mlp"),
            (NormAt::Mlp(layer), _) => format!("h.{layer}.post_attention_layernorm"),
            (NormAt::Attention(layer), BlockShape::Parallel) => format!("h.{layer}.ln_attn"),
            (NormAt::Attention(layer), _) => format!("h.{layer}.input_layernorm"),
            _ => NONE.to_owned(),
        };
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("word_embeddings.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::Distances(_) | DecoderTensor::Positions(_) | DecoderTensor::Classifier(_) => {
                StoredAt::plain(NONE)
            }
            DecoderTensor::HeadBias => StoredAt::plain("lm_head.bias"),
            DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", norm(at))),
            DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", norm(at))),
            DecoderTensor::Matrix(at) => {
                StoredAt::transposed(format!("{}.weight", self.module(at, spec))).at(columns(at.role))
            }
            DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", self.module(at, spec))).at(columns(at.role)),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["transformer.", ""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        let name = match at.role {
            Role::Query | Role::Key | Role::Value => "self_attention.query_key_value",
            Role::Out => "self_attention.dense",
            Role::MlpDown => "mlp.dense_4h_to_h",
            _ => "mlp.dense_h_to_4h",
        };
        format!("h.{}.{name}", at.layer)
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf::attention_together("falcon"))
    }
}
