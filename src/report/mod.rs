//! Tables and plain words for people.

pub mod curves;
pub mod figures;
pub mod heat_map;
pub mod html;
mod metrics;
pub mod picture;
pub mod summary;
pub mod table;
