//! What training learns, and requests → deltas through it.

pub mod enn;
pub mod gradient_transform;
pub mod ke;
pub mod learned;
pub mod malmen;
pub mod matrices;
pub mod mend;
pub mod normal_equations;
pub mod parameters;
pub mod reader;
pub mod serac;
pub mod tuned;
