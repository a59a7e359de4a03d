//! What a user of the library relies on.

mod common;
mod golden;
mod mend;
mod metrics;
mod taps;
mod tokens;
mod world;
