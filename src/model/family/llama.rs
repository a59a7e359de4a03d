//! Llama 1, 2 and 3 (Touvron et al., 2023; Llama team, 2024), and what shares their architecture: SmolLM2, TinyLlama, ...

use serde::Deserialize;
use serde_json::Value;

use super::super::decoder::Tensors;
use super::super::spec::{Activation, Biases, DecoderSpec, NormKind, Positions, Residual, Rotary, RotaryScaling};
use super::super::tap::Role;
use super::{Family, Place, checked, head_width, read};

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
    #[serde(alias = "rope_parameters")]
    rope_scaling: Option<Rope>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// `rope_scaling`, or `rope_parameters` as newer files call it.
#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn activation() -> String {
    "silu".into()
}

fn epsilon() -> f64 {
    1e-6
}

impl Rope {
    fn scaling(&self) -> Result<RotaryScaling, String> {
        let need = |value: Option<f64>, name: &str| match value {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            Some(value) => Err(format!("rope_scaling's {name} is {value}; it must be above 0")),
            None => Err(format!("rope_scaling lacks \"{name}\"")),
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(RotaryScaling::None),
            Some("linear") => Ok(RotaryScaling::Linear(need(self.factor, "factor")?)),
            Some("llama3") if self.low_freq_factor >= self.high_freq_factor => {
                Err("rope_scaling's low_freq_factor must be below its high_freq_factor".into())
            }
            Some("llama3") => Ok(RotaryScaling::Llama3 {
                factor: need(self.factor, "factor")?,
                low: need(self.low_freq_factor, "low_freq_factor")?,
                high: need(self.high_freq_factor, "high_freq_factor")?,
                original_context: need(self.original_max_position_embeddings, "original_max_position_embeddings")?,
            }),
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
        let rope = config.rope_scaling.as_ref();
        let theta = config.rope_theta.or(rope.and_then(|rope| rope.rope_theta)).unwrap_or(10_000.0);
        if head_width % 2 != 0 || !(theta > 0.0 && theta.is_finite()) {
            return Err(format!(
                "rotary positions want an even head width and a theta above 0, not {head_width} and {theta}"
            ));
        }
        let scaling = rope.map_or(Ok(RotaryScaling::None), Rope::scaling)?;
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
            positions: Positions::Rotary(Rotary { theta, width: head_width, interleaved: false, scaling }),
            activation,
            gated: true,
            residual: Residual::Sequential,
            windows: vec![None; config.num_hidden_layers.min(10_001)],
            biases: Biases {
                query_key_value: config.attention_bias,
                attention_out: config.attention_bias,
                mlp: config.mlp_bias,
            },
            tied_head: config.tie_word_embeddings,
        })
    }

    fn place(&self, tensor: Tensors, _spec: &DecoderSpec) -> Place {
        match tensor {
            Tensors::Embedding | Tensors::Positions => Place::plain("embed_tokens.weight"),
            Tensors::Head => Place::transposed("lm_head.weight"),
            Tensors::FinalGamma | Tensors::FinalBeta => Place::plain("norm.weight"),
            Tensors::AttentionGamma(layer) | Tensors::AttentionBeta(layer) => {
                Place::plain(format!("layers.{layer}.input_layernorm.weight"))
            }
            Tensors::MlpGamma(layer) | Tensors::MlpBeta(layer) => {
                Place::plain(format!("layers.{layer}.post_attention_layernorm.weight"))
            }
            Tensors::Matrix(layer, role) => Place::transposed(format!("{}.weight", self.module(layer, role))),
            Tensors::Bias(layer, role) => Place::plain(format!("{}.bias", self.module(layer, role))),
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
