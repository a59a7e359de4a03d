//! Frozen models with taps.

pub mod chat;
pub mod family;
pub mod layers;
pub mod load;
mod precision;
pub mod sentences;
pub mod separator;
pub mod stack;
pub mod tap;
pub mod tokenizer;
pub mod tokens;

pub use precision::Precision;

use burn::tensor::{DType, Device};

use crate::error::{Error, Result};
use load::checkpoint::Checkpoint;
use load::{hub, pocket};
use stack::decoder::Decoder;
use stack::spec::DecoderSpec;
use tokenizer::Tokenizer;

/// A model as it was loaded. Nothing changes it; edits stand beside it (`crate::edit::Edited`).
pub struct Model {
    /// The network.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The files it came from.
    pub checkpoint: Checkpoint,
    /// BLAKE3 of config and weights, in hexadecimal.
    pub fingerprint: String,
}

/// The files of a model whose weights are not read.
pub struct Unread {
    /// Config, shapes and names of the weights.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Unread {
    /// Opens a model by name, as [`Model::load`] finds it.
    ///
    /// # Errors
    /// What of the name or of the files is wrong.
    pub fn open(name: &str) -> Result<Self> {
        let (checkpoint, tokenizer) = files(name)?;
        let tokenizer = suited(tokenizer, checkpoint.spec())?;
        Ok(Unread { checkpoint, tokenizer })
    }
}

/// The files of a model by its name.
fn files(name: &str) -> Result<(Checkpoint, Tokenizer)> {
    let (checkpoint, tokenizer) = if let Some(embedded) = pocket::find(name) {
        (embedded.checkpoint()?, embedded.tokenizer()?)
    } else {
        let folder = hub::resolve(name)?;
        (Checkpoint::open(&folder)?, Tokenizer::open(&folder)?)
    };
    // Added tokens may stand outside, as those of images do: a text without them can be read.
    let (tokens, vocabulary) = (tokenizer.tokens(), checkpoint.spec().vocabulary);
    if tokens > vocabulary {
        let message = format!(
            "the tokenizer has {tokens} tokens, the model a vocabulary of {vocabulary}: they belong to different models"
        );
        return Err(Error::file(checkpoint.origin(), message));
    }
    Ok((checkpoint, tokenizer))
}

/// A tokenizer that makes the rows of a model: of encoder-decoders two texts, of classifiers a text and its label.
fn suited(tokenizer: Tokenizer, spec: &DecoderSpec) -> Result<Tokenizer> {
    match (&spec.source, spec.labels()) {
        (_, Some(labels)) => Ok(tokenizer.for_labels(labels.to_vec())),
        (Some(_), None) => tokenizer.for_pairs(),
        (None, None) => Ok(tokenizer),
    }
}

impl Model {
    /// Loads a model by name: the embedded `pocket` or `pocket-t5`, a folder in Hugging Face layout, a name under `$EMEND_MODELS`, or a hub id.
    ///
    /// # Errors
    /// What of the name or of the files is wrong.
    pub fn load(name: &str, device: &Device, dtype: DType) -> Result<Self> {
        let _span = tracing::debug_span!("load", name).entered();
        let (checkpoint, tokenizer) = files(name)?;
        Model::from_parts(checkpoint, tokenizer, device, dtype)
    }

    /// A model from its files and its tokenizer.
    ///
    /// # Errors
    /// Tensors that do not fit the config.
    pub fn from_parts(checkpoint: Checkpoint, tokenizer: Tokenizer, device: &Device, dtype: DType) -> Result<Self> {
        let decoder = checkpoint.decoder(device, dtype, checkpoint.hold(device, dtype))?;
        let tokenizer = suited(tokenizer, &decoder.spec)?;
        let fingerprint = checkpoint.fingerprint();
        Ok(Model { decoder, tokenizer, checkpoint, fingerprint })
    }

    /// The tokens that end a text, as config.json has them.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let ids = self.checkpoint.config().get("eos_token_id");
        let number = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match ids {
            Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(number).collect(),
            Some(id) => number(id).into_iter().collect(),
            None => vec![],
        }
    }
}
