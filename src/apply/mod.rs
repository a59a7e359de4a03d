//! Editors: functions from a model and requests to an edit.

pub mod alphaedit;
pub mod contexts;
pub mod emmet;
pub mod fine_tuning;
pub mod knowledge_neurons;
pub mod memit;
mod mend;
pub mod prepared;
pub mod rome;
mod settings;
pub mod value;

use std::sync::Arc;

use crate::edit::{Edit, EditRequest, Edited};
use crate::error::Result;

pub use mend::MendEditor;
pub use prepared::Prepared;
pub use settings::EditorSettings;

/// An editor is a function: it mutates nothing.
pub trait Editor {
    /// One edit that makes the model answer all requests.
    ///
    /// # Errors
    /// A request that the model or the editor cannot take.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit>;

    /// Its name and settings.
    fn describe(&self) -> (String, serde_json::Value);
}

/// How several requests are edited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Each on the model as it is.
    Single,
    /// All by one edit.
    Batch,
    /// Each on the model that the last edit gave.
    Sequential,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Single => "single",
            Mode::Batch => "batch",
            Mode::Sequential => "sequential",
        }
    }
}

/// What came of the requests.
pub struct Applied {
    /// One edit a request, or one for all.
    pub edits: Vec<Arc<Edit>>,
    /// For each request the model it is to be judged by: at the end of a sequence the last one.
    pub after: Vec<Edited>,
}

/// Edits requests into a model; `watch` is shown the model right after each edit, with the number of its request.
///
/// # Errors
/// The first request that cannot be edited, by its number.
pub fn apply(
    editor: &dyn Editor,
    model: &Edited,
    requests: &[EditRequest],
    mode: Mode,
    watch: &mut dyn FnMut(usize, &Edited) -> Result<()>,
) -> Result<Applied> {
    prepared::check(if mode == Mode::Batch { requests } else { &requests[..requests.len().min(1)] })?;
    if mode == Mode::Batch {
        let edit = Arc::new(editor.edit(model, requests)?);
        let after = model.with(edit.clone())?;
        watch(0, &after)?;
        return Ok(Applied { edits: vec![edit], after: vec![after; requests.len()] });
    }
    let mut applied = Applied { edits: vec![], after: vec![] };
    let mut current = model.clone();
    for (number, request) in requests.iter().enumerate() {
        let on = if mode == Mode::Single { model } else { &current };
        let edit = editor.edit(on, std::slice::from_ref(request)).map_err(|error| error.of_record(number))?;
        let edit = Arc::new(edit);
        let after = on.with(edit.clone())?;
        watch(number, &after)?;
        applied.edits.push(edit);
        // Of a sequence only the last model is kept: each may hold merged weights of its own.
        match mode {
            Mode::Sequential => current = after,
            _ => applied.after.push(after),
        }
    }
    if mode == Mode::Sequential {
        applied.after = vec![current; requests.len()];
    }
    Ok(applied)
}
