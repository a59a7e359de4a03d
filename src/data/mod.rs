//! Edit records, and where they come from.

pub mod asking;
pub mod beside;
pub mod claim;
mod completions;
mod convsent;
mod counterfact;
mod error;
mod fever;
mod fields;
pub mod form;
mod json;
mod knowedit;
mod known;
mod load;
pub mod multi_hop;
pub mod objective;
mod own;
pub mod pairs;
pub mod pocket;
mod problem;
mod questions;
pub mod record;
pub mod ripple;

pub mod sets;
mod sheet;
pub mod source;
pub mod text;
pub mod unicode;
mod vitaminc;
pub mod world;
mod zsre;

pub use error::DataError;
pub use load::{load_records, load_with_form, own_record};
pub use record::{EditRecord, Probe};
pub use zsre::plain_questions;
