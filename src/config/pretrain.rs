//! `emend pretrain`: a small model that knows a world of facts.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{beside, within};
use crate::error::Result;
use crate::model::spec::{Activation, Biases, DecoderSpec, NormKind, Positions};
use crate::train::pretrain::Settings;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model to make.
    pub model: Model,
    /// What it is to know.
    pub data: Data,
    /// How it learns.
    pub train: Train,
}

/// `[model]`: a GPT-2.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Blocks.
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

/// `[train]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// The seed of every draw.
    #[serde(default)]
    pub seed: u64,
    /// Optimiser updates.
    pub max_steps: usize,
    /// Sentences an update.
    pub batch: usize,
    /// The learning rate at its height.
    pub learning_rate: f64,
    /// Updates until it is reached.
    pub warm_up: usize,
    /// AdamW's decay.
    pub weight_decay: f32,
    /// The largest global norm of the gradient.
    pub clip: f64,
    /// How much a token of a prompt counts beside a token of the answer.
    pub prompt_weight: f64,
    /// Share of the sentences already known that a pass still repeats.
    pub repeat_known: f64,
    /// Parts of a batch that are computed side by side.
    pub shards: usize,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let config: Config = super::read(path, sets)?;
        let (model, train) = (&config.model, &config.train);
        within("model.vocabulary", model.vocabulary as f64, 257.0, 65_536.0)?;
        within("model.layers", model.layers as f64, 1.0, 100.0)?;
        within("model.heads", model.heads as f64, 1.0, 1024.0)?;
        within("model.width", model.width as f64, model.heads as f64, 65_536.0)?;
        within("model.context", model.context as f64, 8.0, 65_536.0)?;
        within("model.width % model.heads", (model.width % model.heads) as f64, 0.0, 0.0)?;
        within("train.max_steps", train.max_steps as f64, 1.0, 1e9)?;
        within("train.batch", train.batch as f64, 1.0, 1e6)?;
        within("train.learning_rate", train.learning_rate, 0.0, 1.0)?;
        within("train.clip", train.clip, 1e-9, f64::INFINITY)?;
        within("train.prompt_weight", train.prompt_weight, 0.0, 1.0)?;
        within("train.repeat_known", train.repeat_known, 0.0, 1.0)?;
        within("train.shards", train.shards as f64, 1.0, train.batch as f64)?;
        Ok(config)
    }

    /// The world file.
    pub fn world(&self, config: &Path) -> PathBuf {
        beside(config, &self.data.world)
    }

    /// The architecture.
    pub fn spec(&self) -> DecoderSpec {
        let model = &self.model;
        DecoderSpec {
            vocabulary: model.vocabulary,
            width: model.width,
            layers: model.layers,
            heads: model.heads,
            key_value_heads: model.heads,
            head_width: model.width / model.heads,
            mlp_width: 4 * model.width,
            context: model.context,
            norm: NormKind::LayerNorm,
            norm_epsilon: 1e-5,
            positions: Positions::Learned,
            activation: Activation::GeluTanh,
            gated: false,
            biases: Biases { query_key_value: true, attention_out: true, mlp: true },
            tied_head: true,
        }
    }

    /// The settings of the training.
    pub fn settings(&self) -> Settings {
        let train = &self.train;
        Settings {
            seed: train.seed,
            steps: train.max_steps,
            batch: train.batch,
            learning_rate: train.learning_rate,
            warm_up: train.warm_up,
            weight_decay: train.weight_decay,
            clip: train.clip,
            prompt_weight: train.prompt_weight,
            repeat_known: train.repeat_known,
            shards: train.shards,
        }
    }
}
