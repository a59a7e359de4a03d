//! One file a subcommand.

pub mod apply;
mod chat;
pub mod compare;
pub mod doctor;
pub mod fetch;
pub mod forget;
pub mod inspect;
mod inspect_facts;
pub mod locate;
pub mod make_completions;
pub mod new_config;
mod plan;
pub mod predict;
pub mod pretrain;
mod propose;
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

use unicode_width::UnicodeWidthStr;

use crate::apply::memory::{Elsewhere, bind};
use crate::edit::generate::Sampling;
use crate::edit::likelihood::Scored;
use crate::edit::score::score;
use crate::edit::{Edit, Edited};
use crate::error::{Error, Result};
use crate::evaluate::protocol::text::says;
use crate::evaluate::{Kind, ProbeRow, Side};
use crate::model::chat::Chat;
use crate::model::separator::writes_no_spaces;
use crate::model::tokenizer::{Continuation, Tokenizer};
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
        eprintln!("stopping: the state is being saved (Ctrl-C again to stop at once)");
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

/// What a model answers to a prompt: its likeliest continuation, and how likely that is.
pub(crate) struct Answer {
    /// The text, without the space before it.
    pub text: String,
    /// The probability of the whole of it.
    pub probability: f64,
    /// Whether the model says more than this.
    pub goes_on: bool,
}

impl Answer {
    /// As tables show it.
    fn shown(&self) -> String {
        if self.text.is_empty() && self.goes_on {
            return "…".into();
        }
        if self.text.is_empty() {
            return "(says nothing)".into();
        }
        let more = if self.goes_on { "…" } else { "" };
        format!("{}{more} {:.0} %", cut(&self.text, SHOWN), 100.0 * self.probability)
    }
}

/// Tokens of an answer at most.
const ANSWER: usize = 12;

/// The width of an answer in a table.
const SHOWN: usize = 28;

/// Prompts that are answered in one batch.
const ANSWERED: usize = 32;

/// The likeliest continuation of each prompt, up to the end of the sentence; cut at a word where it takes more than `width` in a terminal, and never
/// within a letter.
///
/// # Errors
/// A prompt longer than the context.
pub(crate) fn answers(model: &Edited, prompts: &[String], width: usize) -> Result<Vec<Answer>> {
    let batches = prompts.chunks(ANSWERED).map(|prompts| answer_batch(model, prompts, width));
    Ok(batches.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn answer_batch(model: &Edited, prompts: &[String], width: usize) -> Result<Vec<Answer>> {
    let tokenizer = &model.base().tokenizer;
    let prompts = prompts.iter().map(|prompt| tokenizer.encode_prompt(prompt)).collect::<Result<Vec<_>>>()?;
    // An answer stops where the context does.
    let room = |ids: &[u32]| ANSWER.min((model.base().decoder.spec.context + 1).saturating_sub(ids.len()));
    let made = model.go_on(&prompts, room, &model.base().stop_tokens(), &Sampling::default())?;
    let said: Vec<Said> = made
        .into_iter()
        .zip(&prompts)
        .map(|(made, ids)| Said::cut(tokenizer, made, room(ids), width))
        .collect::<Result<_>>()?;
    let rows: Vec<Continuation> = said
        .iter()
        .zip(&prompts)
        .filter(|(said, _)| !said.ids.is_empty())
        .map(|(said, ids)| Continuation { ids: [ids, said.ids.as_slice()].concat(), prompt: ids.len(), apart: false })
        .collect();
    let mut scored = match rows.is_empty() {
        true => vec![],
        false => score(&[model], &rows)?.remove(0),
    }
    .into_iter();
    let answer = |said: Said| {
        let probability = match said.ids.is_empty() {
            true => 1.0,
            false => scored.next().map_or(1.0, |scored| scored.probability()),
        };
        Answer { text: said.text, probability, goes_on: said.goes_on }
    };
    Ok(said.into_iter().map(answer).collect())
}

/// The beginning of what a model said, as it is shown.
struct Said {
    ids: Vec<u32>,
    text: String,
    goes_on: bool,
}

impl Said {
    /// Of `made`, which were to be `most` tokens, what is an answer.
    fn cut(tokenizer: &Tokenizer, mut made: Vec<u32>, most: usize, width: usize) -> Result<Self> {
        // The answer ends with the sentence or the line.
        let ends = |id: &u32| tokenizer.token(*id).contains(['.', '\n', '?', '!', '。', '？', '！']);
        let end = made.iter().position(ends);
        if let Some(end) = end {
            made.truncate(end.max(1));
        }
        if made.is_empty() {
            return Ok(Said { ids: vec![], text: String::new(), goes_on: false });
        }
        let whole = end.is_some() || made.len() < most || tokenizer.labels().is_some();
        let text = |count: usize| -> Result<String> { Ok(tokenizer.decode(&made[..count])?.trim().to_owned()) };
        let fits = |count: usize| -> Result<bool> {
            let text = text(count)?;
            let at_word = match made.get(count) {
                Some(next) => tokenizer.token(*next).chars().next().is_none_or(begins_word),
                None => whole,
            };
            let wide = text.width() + usize::from(count < made.len() || !whole);
            Ok(at_word && wide <= width && !text.is_empty())
        };
        let clean = |count: &usize| text(*count).is_ok_and(|text| !text.contains(char::REPLACEMENT_CHARACTER));
        let mut count = (1..=made.len()).rev().find(clean).unwrap_or(0);
        for fewer in (1..=count).rev() {
            if fits(fewer)? {
                count = fewer;
                break;
            }
        }
        let (text, goes_on) = (text(count)?, count < made.len() || !whole);
        made.truncate(count);
        Ok(Said { ids: made, text, goes_on })
    }
}

/// Whether a token that begins with this letter begins a word, so that the text before it can end there.
fn begins_word(letter: char) -> bool {
    letter != char::REPLACEMENT_CHARACTER && (!letter.is_alphanumeric() || writes_no_spaces(letter))
}

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
        vec![mark.to_owned(), kind.to_owned(), cut(prompt, 56), said_before.shown(), said_after.shown()]
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
        // A memory holds each entry once, however often it is named.
        if edit.memory().is_none()
            && edited.edits().iter().any(|laid| laid.parts().any(|known| edit.parts().any(|part| part == known)))
        {
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
