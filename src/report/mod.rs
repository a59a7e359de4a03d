//! Tables and plain words for people.

pub mod figures;
pub mod html;
pub mod summary;
pub mod table;
