//! BART (Lewis et al., 2020): an encoder and a decoder with learned positions, a norm behind each sublayer.

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::build::{DecoderTensor, NormAt};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions, SourceSpec};
use super::super::tap::{Role, Stack, Weight};
use super::{Family, NONE, StoredAt, activation, by_root, checked, head_width, layer_norm, read};

pub(super) struct Bart;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    encoder_attention_heads: usize,
    decoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_ffn_dim: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation_function: String,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default)]
    normalize_before: bool,
    #[serde(default)]
    add_final_layer_norm: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "begin")]
    decoder_start_token_id: u32,
}

fn gelu() -> String {
    "gelu".into()
}

fn yes() -> bool {
    true
}

fn begin() -> u32 {
    2
}

impl Family for Bart {
    fn name(&self) -> &'static str {
        "bart"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let config: Config = read(config)?;
        if config.normalize_before || config.add_final_layer_norm {
            return Err("BART with norms before its sublayers, or behind its last (mBART), is not known here".into());
        }
        if !config.tie_word_embeddings {
            return Err("tie_word_embeddings is false; BART's head is its embedding, transposed".into());
        }
        let alike = config.encoder_attention_heads == config.decoder_attention_heads
            && config.encoder_ffn_dim == config.decoder_ffn_dim;
        if !alike {
            return Err("an encoder with other heads or another MLP width than the decoder is not known here".into());
        }
        let head_width = head_width(config.d_model, config.decoder_attention_heads)?;
        checked(DecoderSpec {
            source: Some(SourceSpec {
                layers: config.encoder_layers,
                begin: config.decoder_start_token_id,
                kinds: 0,
                labels: None,
            }),
            vocabulary: config.vocab_size,
            width: config.d_model,
            layers: config.decoder_layers,
            context: config.max_position_embeddings,
            embedding_scale: if config.scale_embedding { (config.d_model as f64).sqrt() } else { 1.0 },
            positions: Positions::Learned { offset: 2 },
            attention: AttentionSpec {
                heads: config.decoder_attention_heads,
                key_value_heads: config.decoder_attention_heads,
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: true,
                out_bias: true,
                local: None,
            },
            mlp: MlpSpec {
                width: config.decoder_ffn_dim,
                activation: activation("activation_function", &config.activation_function)?,
                gated: false,
                bias: true,
            },
            norm: layer_norm(1e-5),
            block: BlockShape::PostNorm,
            head: HeadSpec { tied: true, bias: true, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain("shared.weight"),
            DecoderTensor::Head => StoredAt::transposed("lm_head.weight"),
            // Of a folder that was saved without its head.
            DecoderTensor::HeadBias => StoredAt { zero_if_missing: true, ..StoredAt::plain("final_logits_bias") },
            DecoderTensor::Positions(stack) => StoredAt::plain(format!("{}.embed_positions.weight", of(stack))),
            DecoderTensor::Distances(_) | DecoderTensor::Classifier(_) => StoredAt::plain(NONE),
            DecoderTensor::Gamma(stack, at) => StoredAt::plain(format!("{}.weight", norm(stack, at))),
            DecoderTensor::Beta(stack, at) => StoredAt::plain(format!("{}.bias", norm(stack, at))),
            DecoderTensor::Matrix(at) => StoredAt::transposed(format!("{}.weight", self.module(at, spec))),
            DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", self.module(at, spec))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["model.", ""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        let name = match at.role {
            Role::Query => "self_attn.q_proj",
            Role::Key => "self_attn.k_proj",
            Role::Value => "self_attn.v_proj",
            Role::Out => "self_attn.out_proj",
            Role::CrossQuery => "encoder_attn.q_proj",
            Role::CrossKey => "encoder_attn.k_proj",
            Role::CrossValue => "encoder_attn.v_proj",
            Role::CrossOut => "encoder_attn.out_proj",
            Role::MlpDown => "fc2",
            _ => "fc1",
        };
        format!("{}.layers.{}.{name}", of(at.stack), at.layer)
    }
}

fn of(stack: Stack) -> &'static str {
    match stack {
        Stack::Encoder => "encoder",
        Stack::Decoder => "decoder",
    }
}

fn norm(stack: Stack, at: NormAt) -> String {
    let stack = of(stack);
    match at {
        NormAt::Embedding => format!("{stack}.layernorm_embedding"),
        NormAt::Attention(layer) => format!("{stack}.layers.{layer}.self_attn_layer_norm"),
        NormAt::Cross(layer) => format!("{stack}.layers.{layer}.encoder_attn_layer_norm"),
        NormAt::Mlp(layer) => format!("{stack}.layers.{layer}.final_layer_norm"),
        _ => NONE.into(),
    }
}
