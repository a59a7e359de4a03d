//! GPT-2 (Radford et al., 2019), and what shares its architecture.

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::gguf::Gguf;
use super::{Columns, Family, NONE, StoredAt, activation, by_root, checked, head_width, layer_norm, read};

pub(super) struct Gpt2;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
}

pub(super) fn gelu_new() -> String {
    "gelu_new".into()
}

pub(super) fn epsilon() -> f64 {
    1e-5
}

pub(super) fn yes() -> bool {
    true
}

impl Family for Gpt2 {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        if !config.scale_attn_weights || config.scale_attn_by_inverse_layer_idx {
            return Err("attention that is not scaled by the root of the head width is not supported".into());
        }
        let head_width = head_width(config.n_embd, config.n_head)?;
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.n_embd,
            layers: config.n_layer,
            context: config.n_positions,
            embedding_scale: 1.0,
            positions: Positions::Learned { offset: 0 },
            attention: AttentionSpec {
                heads: config.n_head,
                key_value_heads: config.n_head,
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: true,
                out_bias: true,
                local: None,
            },
            mlp: MlpSpec {
                width: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
                activation: activation("activation_function", &config.activation_function)?,
                gated: false,
                bias: true,
            },
            norm: layer_norm(config.layer_norm_epsilon),
            block: BlockShape::PreNorm,
            head: HeadSpec { tied: config.tie_word_embeddings, bias: false, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        let kind = |matrix: bool| if matrix { "weight" } else { "bias" };
        let linear = |at: Weight, matrix| StoredAt {
            columns: match at.role {
                Role::Query => Some(Columns::run(0, spec.width)),
                Role::Key => Some(Columns::run(spec.width, spec.width)),
                Role::Value => Some(Columns::run(2 * spec.width, spec.width)),
                _ => None,
            },
            ..StoredAt::plain(format!("{}.{}", self.module(at, spec), kind(matrix)))
        };
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("wte.weight"),
            DecoderTensor::Positions(_) => StoredAt::plain("wpe.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::Distances(_) | DecoderTensor::Classifier(_) => StoredAt::plain(NONE),
            DecoderTensor::HeadBias => StoredAt::plain("lm_head.bias"),
            DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", norm(at))),
            DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", norm(at))),
            DecoderTensor::Matrix(at) => linear(at, true),
            DecoderTensor::Bias(at) => linear(at, false),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["transformer.", ""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        let name = match at.role {
            Role::Query | Role::Key | Role::Value => "attn.c_attn",
            Role::Out => "attn.c_proj",
            Role::MlpDown => "mlp.c_proj",
            _ => "mlp.c_fc",
        };
        format!("h.{}.{name}", at.layer)
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf::attention_together("gpt2"))
    }
}

/// Names that GPT-J and GPT-Neo share; norms that GPT-2 has not are named after its first.
pub(super) fn norm(at: NormAt) -> String {
    match at {
        NormAt::Head => "ln_f".into(),
        NormAt::Mlp(layer) => format!("h.{layer}.ln_2"),
        NormAt::Attention(layer) => format!("h.{layer}.ln_1"),
        _ => NONE.into(),
    }
}
