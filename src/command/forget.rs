//! `emend forget`: takes entries out of a memory.

use std::collections::BTreeSet;
use std::path::PathBuf;

use burn::tensor::Device;

use super::print;
use crate::edit::Edit;
use crate::error::{Error, Result};

/// Take edits out of a memory file; `emend inspect FILE` shows their numbers.
///
/// The others keep their order. What was forgotten can be added again with `emend apply --memory FILE`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The memory's file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The numbers of the entries to forget
    #[arg(value_name = "ENTRY", required = true)]
    pub entries: Vec<usize>,
}

/// Runs the command.
///
/// # Errors
/// A file that is no memory, an entry that it does not have, a memory of which nothing would be left.
pub fn run(args: &Args) -> Result<()> {
    let edit = Edit::load(&args.file, &Device::flex())?;
    let entries: BTreeSet<usize> = args.entries.iter().copied().collect();
    let entries: Vec<usize> = entries.into_iter().collect();
    let wrong = |error: Error| match error {
        Error::Input(message) => Error::file(&args.file, message),
        other => other,
    };
    let left = edit.forget(&entries).map_err(wrong)?;
    left.save(&args.file)?;
    let (before, after) = (edit.provenance.requests.len(), left.provenance.requests.len());
    let forgotten = entries.iter().filter_map(|&entry| edit.provenance.requests.get(entry));
    let lines: String = forgotten.map(|request| format!("forgot: {}\n", request.statement())).collect();
    print(&format!("{lines}{}: {after} of {before} edits left\n", args.file.display()))
}
