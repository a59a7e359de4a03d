//! Training: what learns, and the loop that teaches it.

pub mod gradients;
pub mod pretrain;
pub mod schedule;
