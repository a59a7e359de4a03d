//! BERT (Devlin et al., 2019), and what shares its architecture.

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::encoder::{EncoderSpec, EncoderTensor};
use super::super::tap::Role;
use super::{EncoderFamily, StoredAt, activation, checked_encoder, read};

pub(super) struct Bert;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "kinds")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn gelu() -> String {
    "gelu".into()
}

fn kinds() -> usize {
    2
}

fn epsilon() -> f64 {
    1e-12
}

fn absolute() -> String {
    "absolute".into()
}

impl EncoderFamily for Bert {
    fn name(&self) -> &'static str {
        "bert"
    }

    fn spec(&self, config: &Value) -> Result<EncoderSpec, String> {
        let config: Config = read(config)?;
        if config.position_embedding_type != "absolute" {
            return Err(format!("position_embedding_type \"{}\" is not supported", config.position_embedding_type));
        }
        let activation = activation("hidden_act", &config.hidden_act)?;
        checked_encoder(EncoderSpec {
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            mlp_width: config.intermediate_size,
            context: config.max_position_embeddings,
            kinds: config.type_vocab_size,
            norm_epsilon: config.layer_norm_eps,
            activation,
        })
    }

    fn place(&self, tensor: EncoderTensor) -> StoredAt {
        let layer = |layer: usize, name: &str| format!("encoder.layer.{layer}.{name}");
        let linear = |at: usize, role| {
            layer(
                at,
                match role {
                    Role::Query => "attention.self.query",
                    Role::Key => "attention.self.key",
                    Role::Value => "attention.self.value",
                    Role::Out => "attention.output.dense",
                    Role::MlpDown => "output.dense",
                    _ => "intermediate.dense",
                },
            )
        };
        match tensor {
            EncoderTensor::Embedding => StoredAt::plain("embeddings.word_embeddings.weight"),
            EncoderTensor::Positions => StoredAt::plain("embeddings.position_embeddings.weight"),
            EncoderTensor::Kinds => StoredAt::plain("embeddings.token_type_embeddings.weight"),
            EncoderTensor::Gamma => StoredAt::plain("embeddings.LayerNorm.weight"),
            EncoderTensor::Beta => StoredAt::plain("embeddings.LayerNorm.bias"),
            EncoderTensor::AttentionGamma(at) => StoredAt::plain(layer(at, "attention.output.LayerNorm.weight")),
            EncoderTensor::AttentionBeta(at) => StoredAt::plain(layer(at, "attention.output.LayerNorm.bias")),
            EncoderTensor::MlpGamma(at) => StoredAt::plain(layer(at, "output.LayerNorm.weight")),
            EncoderTensor::MlpBeta(at) => StoredAt::plain(layer(at, "output.LayerNorm.bias")),
            EncoderTensor::Matrix(at, role) => StoredAt::transposed(format!("{}.weight", linear(at, role))),
            EncoderTensor::Bias(at, role) => StoredAt::plain(format!("{}.bias", linear(at, role))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["bert.", ""]
    }
}
