//! DistilBERT (Sanh et al., 2019): BERT without token types.

use serde::Deserialize;
use serde_json::Value;

use super::super::encoder::{EncoderSpec, Tensors};
use super::super::spec::Activation;
use super::super::tap::Role;
use super::{EncoderFamily, Place, checked_encoder, read};

pub(super) struct DistilBert;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    #[serde(default = "activation")]
    activation: String,
    max_position_embeddings: usize,
}

fn activation() -> String {
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
        let activation = Activation::from_name(&config.activation)
            .ok_or_else(|| format!("activation \"{}\" is not known here", config.activation))?;
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

    fn place(&self, tensor: Tensors) -> Place {
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
            Tensors::Embedding => Place::plain("embeddings.word_embeddings.weight"),
            Tensors::Positions => Place::plain("embeddings.position_embeddings.weight"),
            Tensors::Kinds => Place::plain("embeddings.token_type_embeddings.weight"),
            Tensors::Gamma => Place::plain("embeddings.LayerNorm.weight"),
            Tensors::Beta => Place::plain("embeddings.LayerNorm.bias"),
            Tensors::AttentionGamma(at) => Place::plain(layer(at, "sa_layer_norm.weight")),
            Tensors::AttentionBeta(at) => Place::plain(layer(at, "sa_layer_norm.bias")),
            Tensors::MlpGamma(at) => Place::plain(layer(at, "output_layer_norm.weight")),
            Tensors::MlpBeta(at) => Place::plain(layer(at, "output_layer_norm.bias")),
            Tensors::Matrix(at, role) => Place::transposed(format!("{}.weight", linear(at, role))),
            Tensors::Bias(at, role) => Place::plain(format!("{}.bias", linear(at, role))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["distilbert.", ""]
    }
}
