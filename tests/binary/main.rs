//! What a user of the program relies on: the compiled binary, run as a user runs it.

mod attribution;
mod bad_input;
mod chat;
mod classifier;
mod common;
mod compare;
mod edits;
mod forms;
mod hostile_files;
mod in_context;
mod learned;
mod locate;
mod memory;
mod memory_input;
mod pairs;
mod plan;
mod pretraining;
mod published_statistics;
mod records;
mod resume;
mod running_text;
mod settings;
mod steer;
mod threads;
mod trace;
mod train;
