//! Llama 1, 2 and 3 (Touvron et al., 2023; Llama team, 2024), and what shares their architecture: SmolLM2, TinyLlama, ...

use serde::Deserialize;
use serde_json::Value;

use super::super::decoder::DecoderTensor;
use super::super::spec::{Activation, Biases, DecoderSpec, NormKind, Positions, Rotary, RotaryScaling};
use super::super::tap::Role;
use super::{Family, StoredAt, agreed, checked, head_width, read};

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
    #[serde(default = "activation")]
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

/// `rope_scaling` or `rope_parameters`.
#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    /// What older files call `rope_type`. A file may have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    /// Models whose layers differ have a section for each kind of layer instead.
    full_attention: Option<Value>,
    sliding_attention: Option<Value>,
}

fn activation() -> String {
    "silu".into()
}

fn epsilon() -> f64 {
    1e-6
}

impl Config {
    /// A key of `rope_scaling` and `rope_parameters`, which say the same where a file has both.
    fn rope(&self, key: &str, value: fn(&Rope) -> Option<f64>) -> Result<Option<f64>, String> {
        agreed(self.ropes().map(|(section, rope)| (format!("{section}.{key}"), value(rope))))
    }

    /// The sections that the file has, by their names.
    fn ropes(&self) -> impl Iterator<Item = (&'static str, &Rope)> {
        let scaling = self.rope_scaling.as_ref().map(|rope| ("rope_scaling", rope));
        scaling.into_iter().chain(self.rope_parameters.as_ref().map(|rope| ("rope_parameters", rope)))
    }

    fn theta(&self) -> Result<f64, String> {
        let own = ("rope_theta".to_owned(), self.rope_theta);
        let sections = self.ropes().map(|(section, rope)| (format!("{section}.rope_theta"), rope.rope_theta));
        Ok(agreed(std::iter::once(own).chain(sections))?.unwrap_or(10_000.0))
    }

    /// A number that the scaling cannot do without.
    fn factor(&self, key: &str, value: fn(&Rope) -> Option<f64>) -> Result<f64, String> {
        match self.rope(key, value)? {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            Some(value) => Err(format!("rope_scaling's {key} is {value}; it must be above 0")),
            None => Err(format!("rope_scaling lacks \"{key}\"")),
        }
    }

    fn scaling(&self) -> Result<RotaryScaling, String> {
        let types = self.ropes().flat_map(|(section, rope)| {
            [("rope_type", &rope.rope_type), ("type", &rope.old_type)]
                .map(|(key, value)| (format!("{section}.{key}"), value.clone()))
        });
        if let Some((section, _)) =
            self.ropes().find(|(_, rope)| rope.full_attention.is_some() || rope.sliding_attention.is_some())
        {
            return Err(format!("{section} differs by kind of layer, which is not known here"));
        }
        match agreed(types)?.as_deref() {
            None if self.rope("factor", |rope| rope.factor)?.is_some_and(|factor| factor != 1.0) => {
                Err("rope_scaling has a factor and no rope_type, which says how it scales; known are linear, llama3"
                    .into())
            }
            None | Some("default") => Ok(RotaryScaling::None),
            Some("linear") => Ok(RotaryScaling::Linear(self.factor("factor", |rope| rope.factor)?)),
            Some("llama3") => {
                let factor = self.factor("factor", |rope| rope.factor)?;
                let low = self.factor("low_freq_factor", |rope| rope.low_freq_factor)?;
                let high = self.factor("high_freq_factor", |rope| rope.high_freq_factor)?;
                let original_context =
                    self.factor("original_max_position_embeddings", |rope| rope.original_max_position_embeddings)?;
                if low >= high {
                    return Err("rope_scaling's low_freq_factor must be below its high_freq_factor".into());
                }
                Ok(RotaryScaling::Llama3 { factor, low, high, original_context })
            }
            Some(other) => {
                Err(format!("rope_scaling of type \"{other}\" is not known here; known are default, linear, llama3"))
            }
        }
    }
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
        let activation = Activation::from_name(&config.hidden_act)
            .ok_or_else(|| format!("hidden_act \"{}\" is not known here", config.hidden_act))?;
        let theta = config.theta()?;
        if head_width % 2 != 0 || !(theta > 0.0 && theta.is_finite()) {
            return Err(format!(
                "rotary positions want an even head width and a theta above 0, not {head_width} and {theta}"
            ));
        }
        let scaling = config.scaling()?;
        checked(DecoderSpec {
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
            head_width,
            mlp_width: config.intermediate_size,
            context: config.max_position_embeddings,
            norm: NormKind::RmsNorm,
            norm_epsilon: config.rms_norm_eps,
            positions: Positions::Rotary(Rotary { theta, width: head_width, scaling }),
            activation,
            gated: true,
            biases: Biases {
                query_key_value: config.attention_bias,
                attention_out: config.attention_bias,
                mlp: config.mlp_bias,
            },
            tied_head: config.tie_word_embeddings,
        })
    }

    fn place(&self, tensor: DecoderTensor, _spec: &DecoderSpec) -> StoredAt {
        match tensor {
            DecoderTensor::Embedding | DecoderTensor::Positions => StoredAt::plain("embed_tokens.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::FinalGamma | DecoderTensor::FinalBeta => StoredAt::plain("norm.weight"),
            DecoderTensor::AttentionGamma(layer) | DecoderTensor::AttentionBeta(layer) => {
                StoredAt::plain(format!("layers.{layer}.input_layernorm.weight"))
            }
            DecoderTensor::MlpGamma(layer) | DecoderTensor::MlpBeta(layer) => {
                StoredAt::plain(format!("layers.{layer}.post_attention_layernorm.weight"))
            }
            DecoderTensor::Matrix(layer, role) => StoredAt::transposed(format!("{}.weight", self.module(layer, role))),
            DecoderTensor::Bias(layer, role) => StoredAt::plain(format!("{}.bias", self.module(layer, role))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["model.", ""]
    }

    fn module(&self, layer: usize, role: Role) -> String {
        let name = match role {
            Role::Query => "self_attn.q_proj",
            Role::Key => "self_attn.k_proj",
            Role::Value => "self_attn.v_proj",
            Role::Out => "self_attn.o_proj",
            Role::MlpGate => "mlp.gate_proj",
            Role::MlpDown => "mlp.down_proj",
            _ => "mlp.up_proj",
        };
        format!("layers.{layer}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            Positions::Learned => unreachable!(),
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
