//! Tables and plain words for people.

mod canvas;
pub mod curves;
pub mod figures;
pub mod heat_map;
pub mod html;
mod metrics;
pub mod summary;
pub mod table;
