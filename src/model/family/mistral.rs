//! Mistral (Jiang et al., 2023): Llama whose layers may all see the last positions only.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::Pairs;
use super::super::stack::build::DecoderTensor;
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::Weight;
use super::gguf::Gguf;
use super::rope::{Rope, Ropes};
use super::{Family, StoredAt, activation, by_root, checked, head_width, llama, local, read, rms_norm, sliding};

pub(super) struct Mistral;

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
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Family for Mistral {
    fn name(&self) -> &'static str {
        "mistral"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let head_width = match config.head_dim {
            Some(width) => width,
            None => head_width(config.hidden_size, config.num_attention_heads)?,
        };
        let layers = config.num_hidden_layers;
        let slides = sliding(config.layer_types.as_deref(), layers, |_| config.sliding_window.is_some())?;
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
                key_value_heads: config.num_key_value_heads.unwrap_or(8),
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: false,
                out_bias: false,
                local: local(slides, layers, config.sliding_window)?,
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
        Some(Gguf { neighbours: true, ..Gguf::apart("llama") })
    }
}
