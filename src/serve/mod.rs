//! A model with edits, served over HTTP: OpenAI's endpoints, edits, and a page to try them on.
//!
//! The engine owns the passes, the editing thread the editors; HTTP hands work to both and waits for neither.

pub mod editing;
pub mod edits;
pub mod engine;
pub mod http;
pub mod openai;
pub mod refusal;
mod text;
