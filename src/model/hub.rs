//! stub
use std::path::PathBuf;
use crate::error::Result;
/// resolve
pub fn resolve(name: &str) -> Result<PathBuf> { Ok(PathBuf::from(name)) }
