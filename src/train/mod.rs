//! Training: what learns, and the loop that teaches it.

mod edit_loss;
pub mod enn;
pub mod gradients;
pub mod ke;
pub mod learned;
mod loss;
mod lower_layers;
pub mod malmen;
pub mod mend;
pub mod methods;
mod metrics;
pub mod pretrain;
pub mod resume;
pub mod rledit;
pub mod schedule;
pub mod serac;
pub mod settings;
mod solutions;
pub mod text;
pub mod trainer;
