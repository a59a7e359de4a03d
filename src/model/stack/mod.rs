//! Runs of blocks with taps: a decoder, with the encoder that it reads where there is one; an encoder by itself.

pub mod block;
pub mod build;
pub mod decoder;
pub mod encoder;
mod parts;
pub mod past;
pub mod sizes;
pub mod spec;
pub mod taps;
pub mod weights;
