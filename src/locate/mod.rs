//! Does tracing where a fact is kept tell where to edit it? (Hase et al., 2023)
//!
//! A sweep edits the same facts at many layers, for several problems and editors, and traces each fact; regressions then ask how much of the
//! scores the layer explains, how much the tracing effect, and how much that adds to the layer.

pub mod page;
pub mod regress;
pub mod results;
pub mod sweep;
