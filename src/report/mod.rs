//! Tables and plain words for people.

pub mod figures;
pub mod table;
