//! `emend squash`: many edit files as one.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::Device;
use serde_json::json;

use super::print;
use super::steps::bar;
use crate::edit::Edit;
use crate::edit::join::Joined;
use crate::error::{Error, Result};

/// Make one edit file of several, in the order in which they are laid over the model.
///
/// What they change is added up, and all they were asked for stands in the new file; the old ones stay. One of them cannot be taken back by
/// itself any more: keep its file for that.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The edit files, lowest first
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Where the one goes
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print one JSON document instead of a line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A file that is no edit, edits of different models, a memory beside an edit of weights, an edit that is named twice.
pub fn run(args: &Args) -> Result<()> {
    let mut joined = Joined::default();
    let mut taken: Vec<(String, String)> = vec![];
    let mut parts: Vec<String> = vec![];
    if let Some(file) = args.files.iter().find(|file| {
        std::fs::canonicalize(file)
            .ok()
            .is_some_and(|file| std::fs::canonicalize(&args.out).is_ok_and(|out| out == file))
    }) {
        return Err(Error::file(file, "--out is one of the files that are joined; give another name"));
    }
    let bar = bar(args.files.len(), "edits");
    for file in &args.files {
        let edit = Edit::load(file, &Device::flex())?;
        let (id, base) = (edit.id().to_owned(), edit.provenance.base.clone());
        if edit.parts().any(|part| parts.iter().any(|known| known == part)) {
            return Err(Error::file(
                file,
                "this edit is named twice, by itself or in a file that holds it; laid down twice it would count twice",
            ));
        }
        parts.extend(edit.parts().map(str::to_owned));
        if let Some((_, first)) = taken.first().filter(|(_, first)| *first != base) {
            let message = format!("this edit was made on the model {base}, the first one on {first}: they do not join");
            return Err(Error::file(file, message));
        }
        if let Some(on) = edit.provenance.computed_on.iter().find(|on| !taken.iter().any(|(known, _)| known == *on)) {
            tracing::warn!("{} was computed on the edit {on}, which is not laid under it", file.display());
        }
        joined.add(&Arc::new(edit)).map_err(|error| match error {
            Error::Input(message) => Error::file(file, message),
            other => other,
        })?;
        taken.push((id, base));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let edit = joined.edit()?;
    edit.save(&args.out)?;
    let (files, requests) = (taken.len(), edit.provenance.requests.len());
    if args.json {
        let ids: Vec<&String> = taken.iter().map(|(id, _)| id).collect();
        let document = json!({"saved": args.out, "id": edit.id(), "of": ids, "requests": requests});
        return print(&format!("{document:#}\n"));
    }
    print(&format!("saved {}: {requests} requests of {files} files\n", args.out.display()))
}
