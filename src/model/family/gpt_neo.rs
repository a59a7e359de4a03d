//! GPT-Neo (Black et al., 2021): GPT-2 whose every other layer sees the last positions only, and whose scores are not scaled.

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::build::DecoderTensor;
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::{Family, NONE, StoredAt, activation, checked, gpt2, head_width, layer_norm, local, read};

pub(super) struct GptNeo;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    intermediate_size: Option<usize>,
    /// Kinds of layers, and how many times they follow each other: `[[["global", "local"], 12]]`.
    attention_types: Vec<(Vec<String>, usize)>,
    #[serde(default = "window")]
    window_size: usize,
    #[serde(default = "gpt2::gelu_new")]
    activation_function: String,
    #[serde(default = "gpt2::epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "gpt2::yes")]
    tie_word_embeddings: bool,
}

fn window() -> usize {
    256
}

impl Config {
    /// Which layers see the last positions only.
    fn slides(&self) -> Result<Vec<bool>, String> {
        let mut slides = vec![];
        for (kinds, times) in &self.attention_types {
            for kind in kinds.iter().cycle().take(kinds.len().saturating_mul(*times).min(10_000)) {
                slides.push(match kind.as_str() {
                    "local" => true,
                    "global" => false,
                    other => return Err(format!("attention_types has \"{other}\"; known are global, local")),
                });
            }
        }
        Ok(slides)
    }
}

impl Family for GptNeo {
    fn name(&self) -> &'static str {
        "gpt_neo"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_layers,
            context: config.max_position_embeddings,
            embedding_scale: 1.0,
            positions: Positions::Learned { offset: 0 },
            attention: AttentionSpec {
                heads: config.num_heads,
                key_value_heads: config.num_heads,
                head_width: head_width(config.hidden_size, config.num_heads)?,
                scale: 1.0,
                cap: None,
                query_key_norm: false,
                bias: false,
                out_bias: true,
                local: local(config.slides()?, config.num_layers, Some(config.window_size))?,
            },
            mlp: MlpSpec {
                width: config.intermediate_size.unwrap_or(config.hidden_size.saturating_mul(4)),
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
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("wte.weight"),
            DecoderTensor::Positions(_) => StoredAt::plain("wpe.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::Distances(_) | DecoderTensor::Classifier(_) => StoredAt::plain(NONE),
            DecoderTensor::HeadBias => StoredAt::plain("lm_head.bias"),
            DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", gpt2::norm(at))),
            DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", gpt2::norm(at))),
            DecoderTensor::Matrix(at) => StoredAt::transposed(format!("{}.weight", self.module(at, spec))),
            DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", self.module(at, spec))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["transformer.", ""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        let name = match at.role {
            Role::Query => "attn.attention.q_proj",
            Role::Key => "attn.attention.k_proj",
            Role::Value => "attn.attention.v_proj",
            Role::Out => "attn.attention.out_proj",
            Role::MlpDown => "mlp.c_proj",
            _ => "mlp.c_fc",
        };
        format!("h.{}.{name}", at.layer)
    }
}
