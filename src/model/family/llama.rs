//! Llama 1, 2 and 3 (Touvron et al., 2023; Llama team, 2024), and what shares their architecture: SmolLM2, TinyLlama, ...

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::Pairs;
use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::gguf::Gguf;
use super::rope::{Rope, Ropes};
use super::{Family, NONE, StoredAt, activation, by_root, checked, head_width, read, rms_norm};

pub(super) struct Llama;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    /// What newer files call `rope_scaling`. A file may have both.
    rope_parameters: Option<Rope>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

pub(super) fn silu() -> String {
    "silu".into()
}

pub(super) fn epsilon() -> f64 {
    1e-6
}

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let head_width = match config.head_dim {
            Some(width) => width,
            None => head_width(config.hidden_size, config.num_attention_heads)?,
        };
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
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: config.attention_bias,
                out_bias: config.attention_bias,
                local: None,
            },
            mlp: MlpSpec {
                width: config.intermediate_size,
                activation: activation("hidden_act", &config.hidden_act)?,
                gated: true,
                bias: config.mlp_bias,
            },
            norm: rms_norm(config.rms_norm_eps),
            block: BlockShape::PreNorm,
            head: HeadSpec { tied: config.tie_word_embeddings, bias: false, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, _spec: &DecoderSpec) -> StoredAt {
        place(tensor)
    }

    fn prefixes(&self) -> &'static [&'static str] {
        PREFIXES
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        module(at)
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf { neighbours: true, ..Gguf::apart("llama") })
    }
}

pub(super) const PREFIXES: &[&str] = &["model.", ""];

/// Names that Llama's descendants share.
pub(super) fn place(tensor: DecoderTensor) -> StoredAt {
    match tensor {
        DecoderTensor::Embedding => StoredAt::plain("embed_tokens.weight"),
        DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
        DecoderTensor::Distances(_) | DecoderTensor::Positions(_) | DecoderTensor::Classifier(_) => {
            StoredAt::plain(NONE)
        }
        DecoderTensor::HeadBias => StoredAt::plain("lm_head.bias"),
        DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", norm(at))),
        DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", norm(at))),
        DecoderTensor::Matrix(at) => StoredAt::transposed(format!("{}.weight", module(at))),
        DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", module(at))),
    }
}

fn norm(at: NormAt) -> String {
    match at {
        NormAt::Head => "norm".into(),
        NormAt::Attention(layer) => format!("layers.{layer}.input_layernorm"),
        NormAt::Mlp(layer) => format!("layers.{layer}.post_attention_layernorm"),
        NormAt::Query(layer) => format!("layers.{layer}.self_attn.q_norm"),
        NormAt::Key(layer) => format!("layers.{layer}.self_attn.k_norm"),
        NormAt::AttentionPost(layer) => format!("layers.{layer}.post_self_attn_layernorm"),
        NormAt::MlpPost(layer) => format!("layers.{layer}.post_mlp_layernorm"),
        NormAt::Embedding | NormAt::Cross(_) => NONE.into(),
    }
}

pub(super) fn module(at: Weight) -> String {
    let name = match at.role {
        Role::Query => "self_attn.q_proj",
        Role::Key => "self_attn.k_proj",
        Role::Value => "self_attn.v_proj",
        Role::Out => "self_attn.o_proj",
        Role::MlpGate => "mlp.gate_proj",
        Role::MlpDown => "mlp.down_proj",
        _ => "mlp.up_proj",
    };
    format!("layers.{}.{name}", at.layer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::layers::rotary::{Rotary, RotaryScaling};
    use super::*;

    /// The rotary scaling and θ of a config with these keys.
    fn rotary(more: Value) -> Result<Rotary, String> {
        let mut config = json!({
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 32,
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        match Llama.spec(&config)?.positions {
            Positions::Rotary(rotary) => Ok(rotary),
            _ => unreachable!(),
        }
    }

    #[test]
    fn a_key_under_two_names_is_read_once() {
        let both = json!({"rope_type": "linear", "type": "linear", "factor": 2.0});
        let old = json!({"type": "linear", "factor": 2});
        let new = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0});
        for more in [
            json!({"rope_scaling": both}),
            json!({"rope_parameters": both}),
            json!({"rope_scaling": old, "rope_parameters": null}),
            json!({"rope_scaling": old, "rope_parameters": both}),
            json!({"rope_scaling": old, "rope_parameters": new, "rope_theta": 5000}),
            // One section completes the other.
            json!({"rope_scaling": {"type": "linear"}, "rope_parameters": {"factor": 2.0}}),
        ] {
            let found = rotary(more.clone()).unwrap();
            assert_eq!(found.scaling, RotaryScaling::Linear(2.0), "{more}");
            let theta = if more["rope_theta"].is_null() { 10_000.0 } else { 5000.0 };
            assert_eq!(found.theta, theta, "{more}");
        }
        assert_eq!(rotary(json!({})).unwrap().scaling, RotaryScaling::None);
        let nested = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}});
        for (more, words) in [(json!({"rope_scaling": {"factor": 2.0}}), "no rope_type"), (nested, "kind of layer")] {
            assert!(rotary(more).unwrap_err().contains(words));
        }
    }

    #[test]
    fn two_names_with_two_values_are_refused_with_both() {
        let linear = |factor: f64| json!({"rope_type": "linear", "factor": factor});
        let cases = [
            (
                json!({"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}}),
                "rope_scaling.rope_type is \"linear\" and rope_scaling.type is \"llama3\"",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
                "rope_scaling.type is \"linear\" and rope_parameters.rope_type is \"default\"",
            ),
            (
                json!({"rope_scaling": linear(2.0), "rope_parameters": linear(4.0)}),
                "rope_scaling.factor is 2.0 and rope_parameters.factor is 4.0",
            ),
            (
                json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}),
                "rope_theta is 10000.0 and rope_parameters.rope_theta is 500000.0",
            ),
        ];
        for (more, words) in cases {
            let error = rotary(more).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
