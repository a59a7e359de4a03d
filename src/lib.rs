//! Train, apply and compare editors of what a language model believes.

pub mod data;
pub mod command;
pub mod config;
pub mod edit;
pub mod error;
pub mod fetch;
pub mod files;
pub mod model;
pub mod random;
pub mod train;

pub use edit::{Change, Delta, Edit, EditRequest, Edited, Provenance};
pub use error::{Error, Result};
pub use model::Model;
