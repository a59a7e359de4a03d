//! Files from the network: downloads that go on where they broke off and are checked before they count.
//!
//! This is the floor that `data::sets` and `model::load::hub` stand on. It knows addresses, lengths and checksums; what a
//! data set or a model is, it does not know.

mod download;
mod error;
mod http;
mod part;
#[cfg(test)]
pub(crate) mod server;
mod settings;
#[cfg(test)]
mod tests;

pub use download::{Download, OnProgress, Progress, download, silent};
pub use error::FetchError;
pub(crate) use http::get_text;
pub(crate) use part::{sha256_of, write_whole};
pub use settings::{FetchSettings, Token};
