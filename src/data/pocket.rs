//! The embedded default data: a small world of real facts, which the embedded models (`model::load::pocket`) know.

use std::path::Path;

use super::world::World;
use crate::error::Result;
use crate::model::load::pocket as embedded;

/// World and default model have one name in configs and on the command line.
pub use crate::model::load::pocket::NAME;

/// The name of the world, where a model of this name is an embedded one: its sentences are the text that such a model knows.
pub fn of_model(name: &str) -> Option<&'static str> {
    embedded::find(name).map(|_| NAME)
}

const WORLD: &[u8] = include_bytes!("../../data/pocket/world.json");

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
