//! BERT (Devlin et al., 2019), and what shares its architecture: as an encoder of sentences, and as a classifier.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::super::stack::build::{ClassifierTensor, DecoderTensor, NormAt};
use super::super::stack::encoder::{EncoderSpec, EncoderTensor};
use super::super::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions, SourceSpec};
use super::super::tap::{Role, Weight};
use super::{
    EncoderFamily, Family, NONE, StoredAt, activation, by_root, checked, checked_encoder, head_width, layer_norm, read,
};

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

/// What only a classifier's config has.
#[derive(Deserialize)]
struct Classifier {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default = "two_labels")]
    id2label: BTreeMap<usize, String>,
    problem_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn two_labels() -> BTreeMap<usize, String> {
    (0..2).map(|label| (label, format!("LABEL_{label}"))).collect()
}

pub(super) const CLASSIFIER: &str = "BertForSequenceClassification";

impl Family for Bert {
    fn name(&self) -> &'static str {
        "bert"
    }

    fn spec(&self, config: &Value) -> Result<DecoderSpec, String> {
        let (encoder, classifier): (Config, Classifier) = (read(config)?, read(config)?);
        if !classifier.architectures.iter().any(|name| name == CLASSIFIER) {
            return Err(format!(
                "BERT is edited as a classifier: \"architectures\" should hold \"{CLASSIFIER}\", and here it is {:?}",
                classifier.architectures
            ));
        }
        if let Some(kind) = classifier.problem_type.filter(|kind| kind != "single_label_classification") {
            return Err(format!("problem_type \"{kind}\" is not known here; a text has one of the labels"));
        }
        let labels: Vec<String> = classifier.id2label.values().cloned().collect();
        if labels.len() < 2 || !classifier.id2label.keys().copied().eq(0..labels.len()) {
            return Err("id2label wants at least two labels, numbered from 0 on".into());
        }
        let named = |label: &&String| labels.iter().filter(|other| other.trim() == label.trim()).count() > 1;
        if let Some(label) = labels.iter().find(|label| label.trim().is_empty() || named(label)) {
            return Err(format!("id2label has \"{label}\", and each label wants a name of its own"));
        }
        if classifier.is_decoder {
            return Err("is_decoder is true; a classifier reads its text both ways".into());
        }
        if encoder.position_embedding_type != "absolute" {
            return Err(format!("position_embedding_type \"{}\" is not supported", encoder.position_embedding_type));
        }
        let head_width = head_width(encoder.hidden_size, encoder.num_attention_heads)?;
        checked(DecoderSpec {
            source: Some(SourceSpec {
                layers: encoder.num_hidden_layers,
                begin: 0,
                kinds: encoder.type_vocab_size,
                labels: Some(labels),
            }),
            vocabulary: encoder.vocab_size,
            width: encoder.hidden_size,
            layers: 0,
            context: encoder.max_position_embeddings,
            embedding_scale: 1.0,
            positions: Positions::Learned { offset: 0 },
            attention: AttentionSpec {
                heads: encoder.num_attention_heads,
                key_value_heads: encoder.num_attention_heads,
                head_width,
                scale: by_root(head_width),
                cap: None,
                query_key_norm: false,
                bias: true,
                out_bias: true,
                local: None,
            },
            mlp: MlpSpec {
                width: encoder.intermediate_size,
                activation: activation("hidden_act", &encoder.hidden_act)?,
                gated: false,
                bias: true,
            },
            norm: layer_norm(encoder.layer_norm_eps),
            block: BlockShape::PostNorm,
            head: HeadSpec { tied: false, bias: true, scale: 1.0, cap: None },
        })
    }

    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt {
        let of_encoder = |name: &str| format!("bert.{name}");
        match tensor {
            DecoderTensor::Embedding => StoredAt::plain(of_encoder("embeddings.word_embeddings.weight")),
            DecoderTensor::Positions(_) => StoredAt::plain(of_encoder("embeddings.position_embeddings.weight")),
            DecoderTensor::Classifier(ClassifierTensor::Kinds) => {
                StoredAt::plain(of_encoder("embeddings.token_type_embeddings.weight"))
            }
            DecoderTensor::Classifier(ClassifierTensor::Pooler) => {
                StoredAt::transposed(of_encoder("pooler.dense.weight"))
            }
            DecoderTensor::Classifier(ClassifierTensor::PoolerBias) => StoredAt::plain(of_encoder("pooler.dense.bias")),
            DecoderTensor::Head => StoredAt::transposed("classifier.weight"),
            DecoderTensor::HeadBias => StoredAt::plain("classifier.bias"),
            DecoderTensor::Distances(_) => StoredAt::plain(NONE),
            DecoderTensor::Gamma(_, at) => StoredAt::plain(format!("{}.weight", norm(at))),
            DecoderTensor::Beta(_, at) => StoredAt::plain(format!("{}.bias", norm(at))),
            DecoderTensor::Matrix(at) => StoredAt::transposed(format!("{}.weight", self.module(at, spec))),
            DecoderTensor::Bias(at) => StoredAt::plain(format!("{}.bias", self.module(at, spec))),
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &[""]
    }

    fn module(&self, at: Weight, _spec: &DecoderSpec) -> String {
        format!("bert.{}", linear(at.layer, at.role))
    }
}

fn layer(layer: usize, name: &str) -> String {
    format!("encoder.layer.{layer}.{name}")
}

fn linear(at: usize, role: Role) -> String {
    let name = match role {
        Role::Query => "attention.self.query",
        Role::Key => "attention.self.key",
        Role::Value => "attention.self.value",
        Role::Out => "attention.output.dense",
        Role::MlpDown => "output.dense",
        _ => "intermediate.dense",
    };
    layer(at, name)
}

fn norm(at: NormAt) -> String {
    match at {
        NormAt::Embedding => "bert.embeddings.LayerNorm".into(),
        NormAt::Attention(at) => format!("bert.{}", layer(at, "attention.output.LayerNorm")),
        NormAt::Mlp(at) => format!("bert.{}", layer(at, "output.LayerNorm")),
        _ => NONE.into(),
    }
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
