//! Tables and plain words for people.

pub mod figures;
pub mod html;
mod metrics;
pub mod summary;
pub mod table;
