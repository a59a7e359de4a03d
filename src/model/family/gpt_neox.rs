//! GPT-NeoX (Black et al., 2022) and Pythia (Biderman et al., 2023): attention and MLP side by side, rotary positions on some channels, and
//! queries, keys and values of each head together in one matrix.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::Pairs;
use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::gguf::Gguf;
use super::rope::{Rope, Ropes};
use super::{Columns, Family, NONE, StoredAt, activation, by_root, checked, gpt2, head_width, layer_norm, read};

pub(super) struct GptNeoX;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "gpt2::epsilon")]
    layer_norm_eps: f64,
    rotary_pct: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rotary_emb_base: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default = "gpt2::yes")]
    use_parallel_residual: bool,
    #[serde(default = "gpt2::yes")]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn gelu() -> String {
    "gelu".into()
}

impl Family for GptNeoX {
    fn name(&self) -> &'static str {
        "gpt_neox"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let head_width = head_width(config.hidden_size, config.num_attention_heads)?;
        let theta = config.rope_theta.or(config.rotary_emb_base);
        let (scaling, parameters) = (config.rope_scaling.as_ref(), config.rope_parameters.as_ref());
        let ropes = Ropes::new(theta, scaling, parameters, config.max_position_embeddings);
        let share = config.rotary_pct.or(config.partial_rotary_factor).or(ropes.share()?).unwrap_or(0.25);
        let turned = (head_width as f64 * share) as usize;
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            context: ropes.context()?,
            embedding_scale: 1.0,
            positions: Positions::Rotary(ropes.rotary(turned, 10_000.0, Pairs::Halves)?),
            attention: AttentionSpec {
                heads: config.num_attention_heads,
                key_value_heads: config.num_attention_heads,
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
                gated: false,
                bias: true,
            },
            norm: layer_norm(config.layer_norm_eps),
            block: if config.use_parallel_residual { BlockShape::Parallel } else { BlockShape::PreNorm },
            head: HeadSpec { tied: config.tie_word_embeddings, bias: false, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        let width = spec.attention.head_width;
        let columns = |role| {
            let number = [Role::Query, Role::Key, Role::Value].iter().position(|one| *one == role)?;
            Some(Columns { first: number * width, width, every: 3 * width })
        };
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("gpt_neox.embed_in.weight"),
            DecoderTensor::Head => StoredAt::transposed("embed_out.weight"),
            DecoderTensor::Distances(_) | DecoderTensor::Positions(_) | DecoderTensor::Classifier(_) => {
                StoredAt::plain(NONE)
            }
            DecoderTensor::HeadBias => StoredAt::plain("embed_out.bias"),
            DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", norm(at))),
            DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", norm(at))),
            DecoderTensor::Matrix(at) => {
                StoredAt::transposed(format!("{}.weight", self.module(at, spec))).at(columns(at.role))
            }
            DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", self.module(at, spec))).at(columns(at.role)),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &[""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        let name = match at.role {
            Role::Query | Role::Key | Role::Value => "attention.query_key_value",
            Role::Out => "attention.dense",
            Role::MlpDown => "mlp.dense_4h_to_h",
            _ => "mlp.dense_h_to_4h",
        };
        format!("gpt_neox.layers.{}.{name}", at.layer)
    }

    fn gguf(&self) -> Option<Gguf> {
        Some(Gguf::attention_together("gptneox"))
    }
}

fn norm(at: NormAt) -> String {
    match at {
        NormAt::Head => "gpt_neox.final_layer_norm".into(),
        NormAt::Mlp(layer) => format!("gpt_neox.layers.{layer}.post_attention_layernorm"),
        NormAt::Attention(layer) => format!("gpt_neox.layers.{layer}.input_layernorm"),
        _ => NONE.into(),
    }
}
