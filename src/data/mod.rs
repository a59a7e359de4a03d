//! Edit records, and where they come from.

mod claim;
mod convsent;
mod counterfact;
mod error;
mod fever;
mod form;
mod json;
mod knowedit;
mod load;
mod own;
pub mod pocket;
mod problem;
pub mod record;

pub mod sets;
pub mod source;
pub mod text;
pub mod unicode;
mod vitaminc;
pub mod world;
mod zsre;

pub use error::DataError;
pub use load::load_records;
pub use record::{EditRecord, Probe};
pub use zsre::plain_questions;
