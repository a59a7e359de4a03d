//! DistilBERT (Sanh et al., 2019): BERT without token types.

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::encoder::{EncoderSpec, EncoderTensor};
use super::super::tap::Role;
use super::{EncoderFamily, StoredAt, activation, checked_encoder, read};

pub(super) struct DistilBert;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    #[serde(default = "gelu")]
    activation: String,
    max_position_embeddings: usize,
}

fn gelu() -> String {
    "gelu".into()
}

/// The reference has it in its code, not in its configs.
const NORM_EPSILON: f64 = 1e-12;

impl EncoderFamily for DistilBert {
    fn name(&self) -> &'static str {
        "distilbert"
    }

    fn spec(&self, config: &Value) -> Result<EncoderSpec, String> {
        let config: Config = read(config)?;
        let activation = activation("activation", &config.activation)?;
        checked_encoder(EncoderSpec {
            vocabulary: config.vocab_size,
            width: config.dim,
            layers: config.n_layers,
            heads: config.n_heads,
            mlp_width: config.hidden_dim,
            context: config.max_position_embeddings,
            kinds: 0,
            norm_epsilon: NORM_EPSILON,
            activation,
        })
    }

    fn place(&self, tensor: EncoderTensor) -> StoredAt {
        let layer = |layer: usize, name: &str| format!("transformer.layer.{layer}.{name}");
        let linear = |at: usize, role| {
            layer(
                at,
                match role {
                    Role::Query => "attention.q_lin",
                    Role::Key => "attention.k_lin",
                    Role::Value => "attention.v_lin",
                    Role::Out => "attention.out_lin",
                    Role::MlpDown => "ffn.lin2",
                    _ => "ffn.lin1",
                },
            )
        };
        match tensor {
            EncoderTensor::Embedding => StoredAt::plain("embeddings.word_embeddings.weight"),
            EncoderTensor::Positions => StoredAt::plain("embeddings.position_embeddings.weight"),
            EncoderTensor::Kinds => StoredAt::plain("embeddings.token_type_embeddings.weight"),
            EncoderTensor::Gamma => StoredAt::plain("embeddings.LayerNorm.weight"),
            EncoderTensor::Beta => StoredAt::plain("embeddings.LayerNorm.bias"),
            EncoderTensor::AttentionGamma(at) => StoredAt::plain(layer(at, "sa_layer_norm.weight")),
            EncoderTensor::AttentionBeta(at) => StoredAt::plain(layer(at, "sa_layer_norm.bias")),
            EncoderTensor::MlpGamma(at) => StoredAt::plain(layer(at, "output_layer_norm.weight")),
            EncoderTensor::MlpBeta(at) => StoredAt::plain(layer(at, "output_layer_norm.bias")),
            EncoderTensor::Matrix(at, role) => StoredAt::transposed(format!("{}.weight", linear(at, role))),
            EncoderTensor::Bias(at, role) => StoredAt::plain(format!("{}.bias", linear(at, role))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["distilbert.", ""]
    }
}
