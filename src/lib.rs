//! Train, apply and compare editors of what a language model believes.

pub mod apply;
pub mod archive;
pub mod command;
pub mod config;
pub mod data;
pub mod edit;
pub mod error;
pub mod evaluate;
pub mod fetch;
pub mod files;
pub mod model;
pub mod network;
pub mod random;
pub mod report;
pub mod tensors;
pub mod train;

pub use edit::{Change, Delta, Edit, EditRequest, Edited, Provenance};
pub use error::{Error, Result};
pub use model::Model;
