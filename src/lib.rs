//! Train, apply and compare editors of what a language model believes.
//!
//! ```no_run
//! # use std::{path::Path, sync::Arc};
//! # use burn::tensor::{DType, Device};
//! # use emend::{Edited, EditRequest, Model, archive::Archive};
//! # fn main() -> emend::Result<()> {
//! let model = Arc::new(Model::load("pocket", &Device::flex(), DType::F32)?);
//! let mend = Archive::open(Path::new("checkpoints/mend-pocket"))?.editor(&model, false, &Device::flex())?;
//! let base = Edited::new(model);
//! let edited = base.with(mend.edit(&base, &[EditRequest::new("The city of Lyon lies in", "Japan")])?)?;
//! println!("{:?}", edited.next_tokens(&edited.base().tokenizer.encode("In which country is Lyon?")?, 5)?);
//! # Ok(())
//! # }
//! ```

pub mod apply;
pub mod archive;
pub mod command;
pub mod compare;
pub mod config;
pub mod data;
pub mod device;
pub mod edit;
pub mod error;
pub mod evaluate;
pub mod fetch;
pub mod files;
pub mod locate;
pub mod model;
pub mod network;
mod panics;
mod parallel;
pub mod paths;
pub mod plan;
pub mod process;
pub mod random;
pub mod report;
pub mod sections;
pub mod serve;
pub mod statistics;
pub mod tensors;
pub mod trace;
pub mod train;

pub use edit::{Change, Delta, Edit, EditRequest, Edited, Provenance};
pub use error::{Error, Result};
pub use model::Model;
