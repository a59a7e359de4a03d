//! `emend pretrain`: a small model that knows a world of facts.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::model::layers::mlp::Activation;
use crate::model::layers::norm::{Gain, NormKind, NormSpec};
use crate::model::layers::relative::Relative;
use crate::model::stack::spec::{AttentionSpec, BlockShape, DecoderSpec, HeadSpec, MlpSpec, Positions, SourceSpec};
use crate::paths;
use crate::sections::within;
use crate::train::pretrain::{CLAIM_LABELS, PretrainSettings};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model to make.
    pub model: Model,
    /// What it is to know.
    pub data: Data,
    /// How it learns.
    pub train: PretrainSettings,
}

/// `[model]`: a GPT-2; a T5 where there are encoder layers; a BERT that judges claims where there are no others.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Blocks of an encoder; 0 for none.
    #[serde(default)]
    pub encoder_layers: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Blocks of the decoder; 0 for a classifier, which is an encoder alone.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Positions.
    pub context: usize,
}

/// `[data]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A world file; its folder is where the model goes unless `--out` says another.
    pub world: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let config: Config = super::read(path, sets)?;
        let model = &config.model;
        within("model.vocabulary", model.vocabulary as f64, 257.0, 65_536.0)?;
        within("model.encoder_layers", model.encoder_layers as f64, 0.0, 100.0)?;
        within("model.layers", model.layers as f64, if model.encoder_layers > 0 { 0.0 } else { 1.0 }, 100.0)?;
        if model.encoder_layers > 0 && (config.train.prompt_weight > 0.0 || config.train.recall.share > 0.0) {
            let message = "model.encoder_layers: what an encoder reads is not predicted, and seen as a whole: train.prompt_weight and train.recall are 0";
            return Err(Error::Config(message.into()));
        }
        within("model.heads", model.heads as f64, 1.0, 1024.0)?;
        within("model.width", model.width as f64, model.heads as f64, 65_536.0)?;
        within("model.context", model.context as f64, 8.0, 65_536.0)?;
        within("model.width % model.heads", (model.width % model.heads) as f64, 0.0, 0.0)?;
        config.train.check()?;
        Ok(config)
    }

    /// The world file.
    pub fn world(&self, config: &Path) -> PathBuf {
        paths::file(&self.data.world, config.parent().unwrap_or(Path::new("")))
    }

    /// The architecture.
    pub fn spec(&self) -> DecoderSpec {
        let model = &self.model;
        let head_width = model.width / model.heads;
        if model.layers == 0 {
            return DecoderSpec {
                source: Some(SourceSpec {
                    layers: model.encoder_layers,
                    begin: 0,
                    kinds: 1,
                    labels: Some(CLAIM_LABELS.map(str::to_owned).to_vec()),
                }),
                norm: NormSpec { kind: NormKind::LayerNorm, epsilon: 1e-12, gain: Gain::Whole },
                block: BlockShape::PostNorm,
                mlp: MlpSpec { width: 4 * model.width, activation: Activation::Gelu, gated: false, bias: true },
                head: HeadSpec { tied: false, bias: true, scale: 1.0, cap: None },
                ..self.gpt2()
            };
        }
        if model.encoder_layers > 0 {
            return DecoderSpec {
                source: Some(SourceSpec { layers: model.encoder_layers, begin: 0, kinds: 0, labels: None }),
                vocabulary: model.vocabulary,
                width: model.width,
                layers: model.layers,
                context: model.context,
                embedding_scale: 1.0,
                positions: Positions::Relative(Relative { buckets: 32, farthest: 128 }),
                attention: AttentionSpec {
                    heads: model.heads,
                    key_value_heads: model.heads,
                    head_width,
                    scale: 1.0,
                    cap: None,
                    query_key_norm: false,
                    bias: false,
                    out_bias: false,
                    local: None,
                },
                mlp: MlpSpec { width: 4 * model.width, activation: Activation::Relu, gated: false, bias: false },
                norm: NormSpec { kind: NormKind::RmsNorm, epsilon: 1e-6, gain: Gain::Whole },
                block: BlockShape::PreNorm,
                head: HeadSpec { tied: true, bias: false, scale: (model.width as f64).powf(-0.5), cap: None },
            };
        }
        self.gpt2()
    }

    fn gpt2(&self) -> DecoderSpec {
        let model = &self.model;
        let head_width = model.width / model.heads;
        DecoderSpec {
            source: None,
            vocabulary: model.vocabulary,
            width: model.width,
            layers: model.layers,
            context: model.context,
            embedding_scale: 1.0,
            positions: Positions::Learned { offset: 0 },
            attention: AttentionSpec {
                heads: model.heads,
                key_value_heads: model.heads,
                head_width,
                scale: 1.0 / (head_width as f64).sqrt(),
                cap: None,
                query_key_norm: false,
                bias: true,
                out_bias: true,
                local: None,
            },
            mlp: MlpSpec { width: 4 * model.width, activation: Activation::GeluTanh, gated: false, bias: true },
            norm: NormSpec { kind: NormKind::LayerNorm, epsilon: 1e-5, gain: Gain::Whole },
            block: BlockShape::PreNorm,
            head: HeadSpec { tied: true, bias: false, scale: 1.0, cap: None },
        }
    }
}
