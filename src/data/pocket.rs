//! The embedded pocket world.
use crate::error::{Error, Result};
use crate::model::{checkpoint::Checkpoint, tokenizer::Tokenizer};
/// Name.
pub const NAME: &str = "pocket";
/// Checkpoint.
pub fn checkpoint() -> Result<Checkpoint> { Err(Error::Input("no pocket yet".into())) }
/// Tokenizer.
pub fn tokenizer() -> Result<Tokenizer> { Err(Error::Input("no pocket yet".into())) }
