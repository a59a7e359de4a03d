//! Edit records and where they come from.
pub mod record;
pub mod pocket;
