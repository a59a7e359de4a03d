//! The embedded default model: a small one that knows the facts of the embedded world (`data::pocket`).

use std::path::Path;

use super::checkpoint::Checkpoint;
use crate::error::Result;
use crate::model::tokenizer::Tokenizer;

/// What it is called in configs and on the command line.
pub const NAME: &str = "pocket";

const CONFIG: &[u8] = include_bytes!("../../../data/pocket/config.json");
const TOKENIZER: &[u8] = include_bytes!("../../../data/pocket/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../data/pocket/tokenizer_config.json");
/// The files beside the weights.
const SIDE: &[(&str, &[u8])] =
    &[("config.json", CONFIG), ("tokenizer.json", TOKENIZER), ("tokenizer_config.json", TOKENIZER_CONFIG)];
const MODEL: &[u8] = include_bytes!("../../../data/pocket/model.safetensors");

/// Whether the embedded model is meant by a name: a folder of that name comes first.
pub fn is_meant(name: &str) -> bool {
    name == NAME && !Path::new(name).is_dir()
}

/// Its files.
///
/// # Errors
/// None in a program that was built whole.
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::embedded(NAME, SIDE, MODEL)
}

/// Its tokenizer.
///
/// # Errors
/// None in a program that was built whole.
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_bytes(TOKENIZER, TOKENIZER_CONFIG, Path::new(NAME))
}
