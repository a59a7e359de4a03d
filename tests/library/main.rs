//! What a user of the library relies on.

mod attribution;
mod classifiers;
mod common;
mod encoders;
mod families;
mod fine_tuning;
mod golden;
mod memory;
mod mend;
mod metrics;
mod objectives;
mod pairs;
mod plan;
mod protocols;
mod sampling;
mod serac;
mod sets;
mod settings;
mod stack;
mod taps;
mod tokens;
mod trace;
mod trainer;
mod ultraedit;
mod without_training;
mod world;
