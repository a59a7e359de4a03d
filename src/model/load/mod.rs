//! From names and files to models: the hub and its folders, stored tensors, the embedded model.

pub mod checkpoint;
pub mod encoder;
pub mod folder;
pub mod hub;
pub mod pocket;
pub mod save;
