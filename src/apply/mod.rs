//! Editors: functions from a model and requests to an edit.

pub mod alphaedit;
pub mod contexts;
pub mod emmet;
pub mod fine_tuning;
pub mod ike;
pub mod knowledge_neurons;
pub mod lookup;
pub mod memit;
pub mod memory;
pub mod prepared;
pub mod rome;
mod settings;
mod trained;
pub mod value;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::parallel;

pub use prepared::Prepared;
pub use settings::EditorSettings;

/// An editor is a function: it mutates nothing.
pub trait Editor: Sync {
    /// One edit that makes the model answer all requests.
    ///
    /// # Errors
    /// A request that the model or the editor cannot take.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit>;

    /// Its name and settings.
    fn describe(&self) -> (String, serde_json::Value);

    /// Whether its edits are memories: of two requests on one question the later then wins, where others refuse them.
    fn remembers(&self) -> bool {
        false
    }
}

/// How several requests are edited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// Is shown the model right after each edit, with the number of its request.
pub type Watch<'a> = dyn FnMut(usize, &Edited) -> Result<()> + Send + 'a;

/// Edits requests into a model.
///
/// # Errors
/// The first request that cannot be edited, by its number, and what `watch` says.
pub fn apply(
    editor: &dyn Editor,
    model: &Edited,
    requests: &[EditRequest],
    mode: Mode,
    watch: &mut Watch<'_>,
) -> Result<Applied> {
    let together = mode == Mode::Batch && !editor.remembers();
    prepared::check(if together { requests } else { &requests[..requests.len().min(1)] })?;
    let finite = |edit: Edit| match edit.is_finite() {
        true => Ok(Arc::new(edit)),
        false => Err(Error::Input("the edit holds values that are not finite; try a lower learning rate".into())),
    };
    let one = |on: &Edited, number: usize| -> Result<(Arc<Edit>, Edited)> {
        let edit = editor.edit(on, &requests[number..=number]).and_then(finite);
        let edit = edit.map_err(|error| error.of_record(number))?;
        let after = on.with(edit.clone())?;
        Ok((edit, after))
    };
    match mode {
        Mode::Batch => {
            let edit = finite(editor.edit(model, requests)?)?;
            let after = model.with(edit.clone())?;
            watch(0, &after)?;
            Ok(Applied { edits: vec![edit], after: vec![after; requests.len()] })
        }
        Mode::Sequential => {
            // Only the last model is kept: each may hold merged weights of its own.
            let (mut edits, mut current) = (vec![], model.clone());
            for number in 0..requests.len() {
                let (edit, after) = one(&current, number)?;
                watch(number, &after)?;
                edits.push(edit);
                current = after;
            }
            Ok(Applied { edits, after: vec![current; requests.len()] })
        }
        Mode::Single => {
            let parts = parallel::parts(&model.base().decoder.device());
            let numbers: Vec<usize> = (0..requests.len()).collect();
            let parts = numbers.chunks(numbers.len().div_ceil(parts)).collect();
            let (watch, failed) = (Mutex::new(watch), AtomicUsize::new(usize::MAX));
            let done = parallel::run(parts, |part: &[usize]| {
                let mut done = vec![];
                // Once one has failed those behind it need not be made.
                for &number in part.iter().take_while(|number| **number < failed.load(Ordering::Relaxed)) {
                    let watched = one(model, number).and_then(|edited| {
                        watch.lock().unwrap_or_else(PoisonError::into_inner)(number, &edited.1)?;
                        Ok(edited)
                    });
                    if watched.is_err() {
                        failed.fetch_min(number, Ordering::Relaxed);
                    }
                    done.push(watched?);
                }
                Ok(done)
            })?;
            let (edits, after) = done.into_iter().flatten().unzip();
            Ok(Applied { edits, after })
        }
    }
}
