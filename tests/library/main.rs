//! What a user of the library relies on.

mod attribution;
mod common;
mod encoders;
mod golden;
mod memory;
mod mend;
mod metrics;
mod protocols;
mod serac;
mod sets;
mod taps;
mod tokens;
mod trainer;
mod without_training;
mod world;
