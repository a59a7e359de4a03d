//! Runs of blocks with taps: a decoder, an encoder.

pub mod block;
pub mod decoder;
pub mod encoder;
pub mod past;
pub mod spec;
pub mod taps;
pub mod weights;
