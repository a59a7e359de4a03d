//! Training: what learns, and the loop that teaches it.

mod below;
pub mod gradients;
pub mod learned;
pub mod mend;
pub mod pretrain;
pub mod schedule;
pub mod trainer;
