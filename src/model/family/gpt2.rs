//! GPT-2 (Radford et al., 2019), and what shares its architecture.

use serde::Deserialize;
use serde_json::Value;

use super::super::decoder::DecoderTensor;
use super::super::spec::{Activation, Biases, DecoderSpec, NormKind, Positions};
use super::super::tap::Role;
use super::{Family, StoredAt, checked, head_width, read};

pub(super) struct Gpt2;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "activation")]
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

fn activation() -> String {
    "gelu_new".into()
}

fn epsilon() -> f64 {
    1e-5
}

fn yes() -> bool {
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
        let activation = Activation::from_name(&config.activation_function)
            .ok_or_else(|| format!("activation_function \"{}\" is not known here", config.activation_function))?;
        checked(DecoderSpec {
            vocabulary: config.vocab_size,
            width: config.n_embd,
            layers: config.n_layer,
            heads: config.n_head,
            key_value_heads: config.n_head,
            head_width: head_width(config.n_embd, config.n_head)?,
            mlp_width: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
            context: config.n_positions,
            norm: NormKind::LayerNorm,
            norm_epsilon: config.layer_norm_epsilon,
            positions: Positions::Learned,
            activation,
            gated: false,
            biases: Biases { query_key_value: true, attention_out: true, mlp: true },
            tied_head: config.tie_word_embeddings,
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        let kind = |matrix: bool| if matrix { "weight" } else { "bias" };
        let linear = |layer, role, matrix| StoredAt {
            columns: match role {
                Role::Query => Some(0..spec.width),
                Role::Key => Some(spec.width..2 * spec.width),
                Role::Value => Some(2 * spec.width..3 * spec.width),
                _ => None,
            },
            ..StoredAt::plain(format!("{}.{}", self.module(layer, role), kind(matrix)))
        };
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("wte.weight"),
            DecoderTensor::Positions => StoredAt::plain("wpe.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::FinalGamma => StoredAt::plain("ln_f.weight"),
            DecoderTensor::FinalBeta => StoredAt::plain("ln_f.bias"),
            DecoderTensor::AttentionGamma(layer) => StoredAt::plain(format!("h.{layer}.ln_1.weight")),
            DecoderTensor::AttentionBeta(layer) => StoredAt::plain(format!("h.{layer}.ln_1.bias")),
            DecoderTensor::MlpGamma(layer) => StoredAt::plain(format!("h.{layer}.ln_2.weight")),
            DecoderTensor::MlpBeta(layer) => StoredAt::plain(format!("h.{layer}.ln_2.bias")),
            DecoderTensor::Matrix(layer, role) => linear(layer, role, true),
            DecoderTensor::Bias(layer, role) => linear(layer, role, false),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["transformer.", ""]
    }

    fn module(&self, layer: usize, role: Role) -> String {
        let name = match role {
            Role::Query | Role::Key | Role::Value => "attn.c_attn",
            Role::Out => "attn.c_proj",
            Role::MlpDown => "mlp.c_proj",
            _ => "mlp.c_fc",
        };
        format!("h.{layer}.{name}")
    }
}
