//! Tables and plain words for people.

pub mod table;
