//! Gemma 1, 2 and 3 (Gemma team, 2024, 2025): scaled embeddings, gains stored above one; from the second on norms on both sides of each
//! sublayer, layers that see the last positions only, soft caps; in the third each head's queries and keys normed, and a θ of its own where layers slide.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::norm::{Gain, NormKind, NormSpec};
use super::super::layers::rotary::Pairs;
use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::Weight;
use super::gguf::Gguf;
use super::rope::{Kind, Rope, Ropes};
use super::{Family, StoredAt, activation, checked, llama, local, read, sliding};

pub(super) struct Gemma(pub Generation);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Generation {
    First,
    Second,
    Third,
}

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(default = "head_width")]
    head_dim: usize,
    hidden_activation: Option<String>,
    max_position_embeddings: usize,
    #[serde(default = "llama::epsilon")]
    rms_norm_eps: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    rope_theta: Option<f64>,
    /// θ where layers slide.
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default)]
    attention_bias: bool,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    sliding_window: Option<usize>,
    /// One of so many layers does not slide.
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    use_bidirectional_attention: bool,
}

fn head_width() -> usize {
    256
}

fn yes() -> bool {
    true
}

impl Family for Gemma {
    fn name(&self) -> &'static str {
        match self.0 {
            Generation::First => "gemma",
            Generation::Second => "gemma2",
            Generation::Third => "gemma3_text",
        }
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        if config.use_bidirectional_attention {
            return Err("use_bidirectional_attention: a model whose tokens see those behind them is no decoder".into());
        }
        let layers = config.num_hidden_layers;
        // Where the config says nothing of its kinds of layers.
        let every = match self.0 {
            Generation::First => 1,
            Generation::Second => 2,
            Generation::Third => config.sliding_window_pattern.unwrap_or(6),
        };
        if every == 0 {
            return Err("sliding_window_pattern is 0; it must be at least 1".into());
        }
        let slides = sliding(config.layer_types.as_deref(), layers, |layer| (layer + 1) % every != 0)?;
        let mut local = local(slides, layers, config.sliding_window)?;

        let third = self.0 == Generation::Third;
        let ropes = |theta| {
            let (scaling, parameters) = (config.rope_scaling.as_ref(), config.rope_parameters.as_ref());
            Ropes::new(theta, scaling, parameters, config.max_position_embeddings)
        };
        let global = ropes(config.rope_theta).of(Kind::Full);
        let context = global.context()?;
        let theta = if third { 1e6 } else { 1e4 };
        let global = global.rotary(config.head_dim, theta, Pairs::Halves)?;
        if let Some(local) = local.as_mut().filter(|_| third) {
            // Scalings are of the layers that see far; those that slide have theirs in a section of their own.
            let own = config.rope_parameters.as_ref();
            let mut sliding =
                Ropes::new(config.rope_local_base_freq, None, own, config.max_position_embeddings).of(Kind::Sliding);
            sliding.theta.0 = "rope_local_base_freq";
            sliding.sections.retain(|(name, _)| name.ends_with("sliding_attention"));
            local.rotary = Some(sliding.rotary(config.head_dim, 1e4, Pairs::Halves)?);
        }
        let scalar = match self.0 {
            Generation::First => config.head_dim as f64,
            _ => config.query_pre_attn_scalar.unwrap_or(256.0),
        };
        let hidden_activation = config.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh");
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers,
            context,
            embedding_scale: (config.hidden_size as f64).sqrt(),
            positions: Positions::Rotary(global),
            attention: AttentionSpec {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads,
                head_width: config.head_dim,
                scale: scalar.powf(-0.5),
                cap: config.attn_logit_softcapping,
                query_key_norm: third,
                bias: config.attention_bias,
                out_bias: config.attention_bias,
                local,
            },
            mlp: MlpSpec {
                width: config.intermediate_size,
                activation: activation("hidden_activation", hidden_activation)?,
                gated: true,
                bias: false,
            },
            norm: NormSpec { kind: NormKind::RmsNorm, epsilon: config.rms_norm_eps, gain: Gain::AboveOne },
            block: match self.0 {
                Generation::First => BlockShape::PreNorm,
                _ => BlockShape::PreAndPostNorm,
            },
            head: HeadSpec {
                tied: config.tie_word_embeddings,
                bias: false,
                scale: 1.0,
                cap: config.final_logit_softcapping,
            },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        let norm = |name: String| StoredAt::plain(format!("layers.{name}.weight"));
        // With two norms a sublayer, Llama's name of the one before the MLP is that of the one after attention.
        match tensor {
            _ if spec.block == BlockShape::PreNorm => llama::place(tensor),
            DecoderTensor::Gamma(_, NormAt::AttentionPost(layer)) => norm(format!("{layer}.post_attention_layernorm")),
            DecoderTensor::Gamma(_, NormAt::Mlp(layer)) => norm(format!("{layer}.pre_feedforward_layernorm")),
            DecoderTensor::Gamma(_, NormAt::MlpPost(layer)) => norm(format!("{layer}.post_feedforward_layernorm")),
            _ => llama::place(tensor),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        llama::PREFIXES
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        llama::module(at)
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf::apart(match self.0 {
            Generation::First => "gemma",
            Generation::Second => "gemma2",
            Generation::Third => "gemma3",
        }))
    }
}
