//! One file a subcommand.

pub mod apply;
mod chat;
pub mod compare;
pub mod doctor;
pub mod export;
pub mod fetch;
pub mod forget;
pub mod import_lora;
pub mod inspect;
mod inspect_facts;
pub mod locate;
pub mod make_completions;
pub mod new_config;
mod plan;
pub mod predict;
pub mod pretrain;
mod propose;
pub mod serve;
pub mod shell;
pub mod squash;
pub mod stats;
mod stats_npz;
pub mod steer;
mod steps;
pub mod trace;
pub mod train;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::apply::memory::{Elsewhere, bind};
use crate::edit::likelihood::Scored;
use crate::edit::{Edit, Edited};
use crate::error::{Error, Result};
use crate::evaluate::answers::{Answer, answers};
use crate::evaluate::protocol::text::says;
use crate::evaluate::{Kind, ProbeRow, Side};
use crate::model::chat::Chat;
use crate::report::table::{cut, table};

/// Set while a command keeps its state when it is asked to stop; without it Ctrl-C ends the process at once.
static KEEPS_STATE: AtomicBool = AtomicBool::new(false);
/// Set by the first Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C end the process with code 130: at once, or, in a command that keeps state, when the state is kept.
/// A second Ctrl-C always ends it at once.
pub fn handle_interrupts() {
    let handler = || {
        if !KEEPS_STATE.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            eprintln!("error: interrupted");
            std::process::exit(130);
        }
        eprintln!("stopping: what is under way is kept or finished first (Ctrl-C again to stop at once)");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C will not save the state: {error}");
    }
}

/// From here on the first Ctrl-C only raises a flag: [`stop`] tells.
pub(crate) fn keep_state() {
    KEEPS_STATE.store(true, Ordering::SeqCst);
}

/// The state is kept: from here on Ctrl-C ends the process at once, as it does now if it was asked for already.
///
/// # Errors
/// The user asked to stop; `place` says where that is.
pub(crate) fn state_is_kept(place: &str) -> Result<()> {
    KEEPS_STATE.store(false, Ordering::SeqCst);
    if stop() { Err(Error::Interrupted(place.into())) } else { Ok(()) }
}

/// Whether the user asked to stop.
pub(crate) fn stop() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Prints to stdout. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// Output that cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(error)),
        _ => Ok(()),
    }
}

/// An answer as tables show it.
pub(crate) fn shown_answer(answer: &Answer) -> String {
    if answer.text.is_empty() && answer.goes_on {
        return "…".into();
    }
    if answer.text.is_empty() {
        return "(says nothing)".into();
    }
    let more = if answer.goes_on { "…" } else { "" };
    format!("{}{more} {:.0} %", cut(&answer.text, SHOWN), 100.0 * answer.probability)
}

/// The width of an answer in a table.
pub(crate) const SHOWN: usize = 28;

/// A before/after table of probes.
///
/// Of prompts that are turns of a chat what the user says is shown.
pub(crate) fn show_rows(before: &Edited, after: &Edited, rows: &[&ProbeRow], chat: Option<&Chat>) -> Result<String> {
    let (said_before, said_after) =
        (shown_answers(before, rows, Side::Before)?, shown_answers(after, rows, Side::After)?);
    let lines = rows.iter().zip(said_before.iter().zip(&said_after)).map(|(row, (said_before, said_after))| {
        let kind = match row.kind {
            Kind::Rewrite => "edit",
            Kind::Rephrase => "rephrase",
            Kind::Locality => "unrelated",
            Kind::Portability => "consequence",
            Kind::Condition => "condition",
        };
        // Another name of an answer is that answer.
        let right = |scored: &Scored, said: &Answer| scored.exact() || !row.aliases.is_empty() && says(&said.text, row);
        let as_wished = match row.kind {
            // A target that is to become less likely is one that the model no longer says.
            Kind::Rewrite | Kind::Rephrase if row.lowered => !right(&row.after, said_after),
            Kind::Rewrite | Kind::Rephrase | Kind::Portability => right(&row.after, said_after),
            Kind::Locality => row.before.agrees(&row.after),
            Kind::Condition => right(&row.before, said_before),
        };
        let mark = if as_wished { "✓" } else { "✗" };
        let prompt = chat.map_or(row.prompt.as_str(), |chat| chat.asked.said(&row.prompt));
        vec![mark.to_owned(), kind.to_owned(), cut(prompt, 56), shown_answer(said_before), shown_answer(said_after)]
    });
    let lines: Vec<Vec<String>> = lines.collect();
    Ok(table(&["", "", "prompt", "before", "after"], &lines))
}

/// What a model says to each probe. An answer that was asked for and is given is shown to its end, and no further.
fn shown_answers(model: &Edited, rows: &[&ProbeRow], side: Side) -> Result<Vec<Answer>> {
    let given = |row: &ProbeRow| row.given && row.scored(side).exact();
    let asked: Vec<String> = rows.iter().filter(|row| !given(row)).map(|row| row.asked()).collect();
    let mut said = answers(model, &asked, SHOWN)?.into_iter();
    let known = rows.iter().filter_map(|row| match given(row) {
        true => Some(Answer { text: row.target.clone(), probability: row.scored(side).probability(), goes_on: false }),
        false => said.next(),
    });
    Ok(known.collect())
}

/// A model with edit files laid over it, in their order; memories look for their networks `elsewhere` too.
pub(crate) fn load_edits(
    model: Edited,
    files: &[PathBuf],
    elsewhere: Elsewhere<'_>,
    allow_other_base: bool,
) -> Result<Edited> {
    let device = model.base().decoder.device();
    let mut edited = model;
    for file in files {
        let edit = Edit::load(file, &device)?;
        if edited.holds(&edit) {
            return Err(Error::file(
                file,
                "this edit lies there already, by itself or in a file that holds it; laid down twice it would count twice",
            ));
        }
        let edit = bind(edit, edited.base(), elsewhere, allow_other_base).map_err(|error| match error {
            input @ (Error::Input(_) | Error::Record { .. }) => Error::file(file, input),
            other => other,
        })?;
        if edit.provenance.computed_on.iter().any(|id| !edited.edit_ids().contains(id)) {
            tracing::warn!("{} was computed on an edit that is not laid under it", file.display());
        }
        edited = match allow_other_base {
            true => edited.with_foreign(edit),
            false => edited.with(edit),
        }
        .map_err(|error| match error {
            Error::OtherBase { made_on, model, .. } => {
                Error::OtherBase { what: file.display().to_string(), made_on, model }
            }
            input @ (Error::Input(_) | Error::Record { .. }) => Error::file(file, input),
            other => other,
        })?;
    }
    Ok(edited)
}
