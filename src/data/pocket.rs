//! The embedded default: a small world of real facts and a small model that knows them, part of the program.

use std::path::Path;

use super::world::World;
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::tokenizer::Tokenizer;

/// What the embedded model and the embedded world are called in configs and on the command line.
pub const NAME: &str = "pocket";

const WORLD: &[u8] = include_bytes!("../../data/pocket/world.json");
const CONFIG: &[u8] = include_bytes!("../../data/pocket/config.json");
const TOKENIZER: &[u8] = include_bytes!("../../data/pocket/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../data/pocket/tokenizer_config.json");
/// The files beside the weights.
const SIDE: &[(&str, &[u8])] =
    &[("config.json", CONFIG), ("tokenizer.json", TOKENIZER), ("tokenizer_config.json", TOKENIZER_CONFIG)];
const MODEL: &[u8] = include_bytes!("../../data/pocket/model.safetensors");

/// The embedded model's files.
///
/// # Errors
/// None in a program that was built whole.
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::embedded(NAME, SIDE, MODEL)
}

/// The embedded model's tokenizer.
///
/// # Errors
/// None in a program that was built whole.
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_bytes(TOKENIZER, TOKENIZER_CONFIG, Path::new(NAME))
}

/// The embedded facts.
///
/// # Errors
/// None in a program that was built whole.
pub fn world() -> Result<World> {
    World::parse(WORLD, Path::new("pocket/world.json"))
}

/// BLAKE3 of the embedded facts, in hexadecimal.
pub fn world_hash() -> String {
    blake3::hash(WORLD).to_hex().to_string()
}
