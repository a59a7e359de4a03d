//! OPT (Zhang et al., 2022): GPT-2's shape with ReLU; the first two rows of its table of positions are no position's.

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions};
use super::super::tap::{Role, Weight};
use super::{Family, NONE, StoredAt, activation, by_root, checked, gpt2, head_width, layer_norm, read};

pub(super) struct Opt;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    ffn_dim: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    word_embed_proj_dim: Option<usize>,
    #[serde(default = "relu")]
    activation_function: String,
    #[serde(default = "gpt2::yes")]
    do_layer_norm_before: bool,
    #[serde(default, rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    #[serde(default = "gpt2::yes")]
    layer_norm_elementwise_affine: bool,
    #[serde(default = "gpt2::yes")]
    enable_bias: bool,
    #[serde(default = "gpt2::yes")]
    tie_word_embeddings: bool,
}

fn relu() -> String {
    "relu".into()
}

impl Family for Opt {
    fn name(&self) -> &'static str {
        "opt"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        if !config.do_layer_norm_before || config.remove_final_layer_norm || !config.layer_norm_elementwise_affine {
            return Err("OPT with its norms elsewhere than before each sublayer, as OPT-350m, is not known here".into());
        }
        if config.word_embed_proj_dim.is_some_and(|width| width != config.hidden_size) {
            return Err("word_embed_proj_dim is another than hidden_size, which is not known here".into());
        }
        let head_width = head_width(config.hidden_size, config.num_attention_heads)?;
        let bias = config.enable_bias;
        checked(DecoderSpec {
            source: None,
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            context: config.max_position_embeddings,
            embedding_scale: 1.0,
            positions: Positions::Learned { offset: 2 },
            attention: AttentionSpec {
                heads: config.num_attention_heads,
                key_value_heads: config.num_attention_heads,
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias,
                out_bias: bias,
                local: None,
            },
            mlp: MlpSpec {
                width: config.ffn_dim,
                activation: activation("activation_function", &config.activation_function)?,
                gated: false,
                bias,
            },
            norm: layer_norm(1e-5),
            block: BlockShape::PreNorm,
            head: HeadSpec { tied: config.tie_word_embeddings, bias: false, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("embed_tokens.weight"),
            DecoderTensor::Positions(_) => StoredAt::plain("embed_positions.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            DecoderTensor::Distances(_) | DecoderTensor::Classifier(_) => StoredAt::plain(NONE),
            DecoderTensor::HeadBias => StoredAt::plain("lm_head.bias"),
            DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", norm(at))),
            DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", norm(at))),
            DecoderTensor::Matrix(at) => StoredAt::transposed(format!("{}.weight", self.module(at, spec))),
            DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", self.module(at, spec))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["model.decoder.", "decoder.", ""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        let name = match at.role {
            Role::Query => "self_attn.q_proj",
            Role::Key => "self_attn.k_proj",
            Role::Value => "self_attn.v_proj",
            Role::Out => "self_attn.out_proj",
            Role::MlpDown => "fc2",
            _ => "fc1",
        };
        format!("layers.{}.{name}", at.layer)
    }
}

fn norm(at: NormAt) -> String {
    match at {
        NormAt::Head => "final_layer_norm".into(),
        NormAt::Mlp(layer) => format!("layers.{layer}.final_layer_norm"),
        NormAt::Attention(layer) => format!("layers.{layer}.self_attn_layer_norm"),
        _ => NONE.into(),
    }
}
