//! Qwen 2 and 2.5 (Yang et al., 2024), Qwen 3 (Yang et al., 2025): Llama with biases on queries, keys and values, or with each head's
//! queries and keys normed; the upper layers may see the last positions only.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::Pairs;
use super::super::stack::build::DecoderTensor;
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::Weight;
use super::gguf::Gguf;
use super::rope::{Rope, Ropes};
use super::{Family, StoredAt, activation, by_root, checked, head_width, llama, local, read, rms_norm, sliding};

pub(super) struct Qwen(pub Generation);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Generation {
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
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "llama::silu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "llama::epsilon")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    #[serde(default = "all_below")]
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
}

fn all_below() -> usize {
    28
}

impl Family for Qwen {
    fn name(&self) -> &'static str {
        match self.0 {
            Generation::Second => "qwen2",
            Generation::Third => "qwen3",
        }
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let third = self.0 == Generation::Third;
        let head_width = match config.head_dim {
            Some(width) => width,
            None if third => 128,
            None => head_width(config.hidden_size, config.num_attention_heads)?,
        };
        let layers = config.num_hidden_layers;
        let window = config.sliding_window.filter(|_| config.use_sliding_window);
        let slides = sliding(config.layer_types.as_deref(), layers, |layer| {
            window.is_some() && layer >= config.max_window_layers
        })?;
        let (scaling, parameters) = (config.rope_scaling.as_ref(), config.rope_parameters.as_ref());
        let ropes = Ropes::new(config.rope_theta, scaling, parameters, config.max_position_embeddings);
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers,
            context: ropes.context()?,
            embedding_scale: 1.0,
            positions: Positions::Rotary(ropes.rotary(head_width, 10_000.0, Pairs::Halves)?),
            attention: AttentionSpec {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: third,
                bias: if third { config.attention_bias } else { true },
                out_bias: third && config.attention_bias,
                local: local(slides, layers, window)?,
            },
            mlp: MlpSpec {
                width: config.intermediate_size,
                activation: activation("hidden_act", &config.hidden_act)?,
                gated: true,
                bias: false,
            },
            norm: rms_norm(config.rms_norm_eps),
            block: BlockShape::PreNorm,
            head: HeadSpec { tied: config.tie_word_embeddings, bias: false, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, _spec: &DecoderSpec) -> StoredAt {
        llama::place(tensor)
    }

    fn prefixes(&self) -> &'static [&'static str] {
        llama::PREFIXES
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        llama::module(at)
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf::apart(self.name()))
    }
}
