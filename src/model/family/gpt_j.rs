//! GPT-J (Wang and Komatsuzaki, 2021): attention and MLP side by side behind one norm, rotary positions on the first channels of each head.

use serde::Deserialize;
use serde_json::Value;

use super::super::layers::rotary::{Pairs, Rotary, RotaryScaling};
use super::super::stack::build::DecoderTensor;
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::{Family, NONE, StoredAt, activation, by_root, checked, gpt2, head_width, layer_norm, read};

pub(super) struct GptJ;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    rotary_dim: Option<usize>,
    #[serde(default = "gpt2::gelu_new")]
    activation_function: String,
    #[serde(default = "gpt2::epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Family for GptJ {
    fn name(&self) -> &'static str {
        "gptj"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        let head_width = head_width(config.n_embd, config.n_head)?;
        let width = config.rotary_dim.unwrap_or(head_width);
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.n_embd,
            layers: config.n_layer,
            context: config.n_positions,
            embedding_scale: 1.0,
            positions: Positions::Rotary(Rotary {
                theta: 10_000.0,
                width,
                pairs: Pairs::Neighbors,
                scaling: RotaryScaling::None,
            }),
            attention: AttentionSpec {
                heads: config.n_head,
                key_value_heads: config.n_head,
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: false,
                out_bias: false,
                local: None,
            },
            mlp: MlpSpec {
                width: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
                activation: activation("activation_function", &config.activation_function)?,
                gated: false,
                bias: true,
            },
            norm: layer_norm(config.layer_norm_epsilon),
            block: BlockShape::ParallelOneNorm,
            head: HeadSpec { tied: config.tie_word_embeddings, bias: true, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("wte.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::Distances(_) | DecoderTensor::Positions(_) | DecoderTensor::Classifier(_) => {
                StoredAt::plain(NONE)
            }
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
            Role::Query => "attn.q_proj",
            Role::Key => "attn.k_proj",
            Role::Value => "attn.v_proj",
            Role::Out => "attn.out_proj",
            Role::MlpDown => "mlp.fc_out",
            _ => "mlp.fc_in",
        };
        format!("h.{}.{name}", at.layer)
    }
}
