//! Phi-3 and Phi-4 (Abdin et al., 2024): Llama whose queries, keys and values are one matrix, and gate and up another.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::Pairs;
use super::super::stack::build::DecoderTensor;
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::gguf::Gguf;
use super::rope::{Rope, Ropes};
use super::{
    Columns, Family, StoredAt, activation, by_root, checked, head_width, llama, local, read, rms_norm, sliding,
};

pub(super) struct Phi3;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    #[serde(default = "llama::silu")]
    hidden_act: String,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<f64>,
    #[serde(default = "epsilon")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<usize>,
}

fn epsilon() -> f64 {
    1e-5
}

impl Family for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let head_width = head_width(config.hidden_size, config.num_attention_heads)?;
        let layers = config.num_hidden_layers;
        let slides = sliding(None, layers, |_| config.sliding_window.is_some())?;
        let (scaling, parameters) = (config.rope_scaling.as_ref(), config.rope_parameters.as_ref());
        let mut ropes = Ropes::new(config.rope_theta, scaling, parameters, config.max_position_embeddings);
        ropes.original_context = config.original_max_position_embeddings;
        let share = config.partial_rotary_factor.or(ropes.share()?).unwrap_or(1.0);
        let turned = (head_width as f64 * share) as usize;
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers,
            context: ropes.context()?,
            embedding_scale: 1.0,
            positions: Positions::Rotary(ropes.rotary(turned, 10_000.0, Pairs::Halves)?),
            attention: AttentionSpec {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
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

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        let DecoderTensor::Matrix(at) = tensor else { return llama::place(tensor) };
        let [_, queries] = spec.shape(Role::Query);
        let [_, keys] = spec.shape(Role::Key);
        let columns = match at.role {
            Role::Query => Some(Columns::run(0, queries)),
            Role::Key => Some(Columns::run(queries, keys)),
            Role::Value => Some(Columns::run(queries + keys, keys)),
            Role::MlpGate => Some(Columns::run(0, spec.mlp.width)),
            Role::MlpUp => Some(Columns::run(spec.mlp.width, spec.mlp.width)),
            _ => None,
        };
        StoredAt::transposed(format!("{}.weight", self.module(at, spec))).at(columns)
    }

    fn prefixes(&self) -> &'static [&'static str] {
        llama::PREFIXES
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        match at.role {
            Role::Query | Role::Key | Role::Value => format!("layers.{}.self_attn.qkv_proj", at.layer),
            Role::MlpGate | Role::MlpUp => format!("layers.{}.mlp.gate_up_proj", at.layer),
            _ => llama::module(at),
        }
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf { gate_together: true, ..Gguf::attention_together("phi3") })
    }
}
