//! Several editors on the same cases: each case is edited, looked at, and written down before the next.

pub mod curves;
pub mod document;
pub mod layout;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::apply::{Editor, Mode};
use crate::data::record::EditRecord;
use crate::edit::generate::Sampling;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::case::{Case, FreeAnswer, FreeText, Size};
use crate::evaluate::perplexity::perplexity;
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, probe_table};
use crate::parallel;
use layout::Run;

/// Tokens of a free answer at most.
const ANSWER: usize = 24;

/// Tokens of a text that is written on from a prompt for generation, and of an essence text.
const TEXT: usize = 100;

/// Essence texts of a case.
const ESSENCES: usize = 5;

/// What is looked at in each case.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    /// Probes of each kind.
    pub limits: Limits,
    /// Cases whose probes are answered freely.
    pub generate: usize,
    /// Cases whose generation prompts are continued.
    pub texts: usize,
    /// The seed of the draws.
    pub seed: u64,
}

/// What came of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Cases that were there already.
    pub known: usize,
    /// Cases that failed, those known ones included that had.
    pub failed: usize,
}

/// Is told that a case is done.
pub type Watch<'a> = &'a (dyn Fn() + Sync);

/// Runs an editor over the cases that are left.
///
/// # Errors
/// Files that cannot be written. An editor that fails on a case is no error: the case says so.
pub fn run(
    editor: &dyn Editor,
    base: &Edited,
    records: &[EditRecord],
    mode: Mode,
    looks: Looks,
    run: &Run,
    watch: Watch<'_>,
) -> Result<Outcome> {
    let left: Vec<usize> = (0..records.len()).filter(|&number| !run.path(&records[number].id).is_file()).collect();
    let known = records.len() - left.len();
    (0..known).for_each(|_| watch());
    if left.is_empty() {
        return Ok(Outcome { known, failed: 0 });
    }
    let failed = AtomicUsize::new(0);
    let write = |case: Case| -> Result<()> {
        if case.error.is_some() {
            failed.fetch_add(1, Ordering::Relaxed);
        }
        run.write(&case)?;
        watch();
        Ok(())
    };
    let parts = left.len().div_ceil(parallel::parts(&base.base().decoder.device()));
    match mode {
        Mode::Single => {
            parallel::run(left.chunks(parts).collect(), |part: &[usize]| {
                part.iter().try_for_each(|&number| {
                    let request = EditRequest::from(&records[number]);
                    let clock = Instant::now();
                    let edited = attempt(|| one(editor, base, &[request]))?;
                    let seconds = clock.elapsed().as_secs_f64();
                    let edited = match edited {
                        Ok((edit, after)) => attempt(|| Ok((size(&after, &edit)?, after)))?,
                        Err(message) => Err(message),
                    };
                    write(look(base, edited, &records[number], number, 1, seconds, looks)?)
                })
            })?;
        }
        Mode::Batch | Mode::Sequential => {
            // What is left is looked at on the model that all edits give: these are made anew.
            let clock = Instant::now();
            let requests: Vec<EditRequest> = records.iter().map(EditRequest::from).collect();
            let mut lost: BTreeMap<usize, String> = BTreeMap::new();
            let after = match mode {
                Mode::Batch => attempt(|| one(editor, base, &requests))?,
                _ => {
                    let mut current = base.clone();
                    let mut last = None;
                    for (number, request) in requests.iter().enumerate() {
                        match attempt(|| one(editor, &current, std::slice::from_ref(request)))? {
                            Ok((edit, after)) => {
                                current = after;
                                last = Some(edit);
                            }
                            Err(message) => {
                                lost.insert(number, message);
                            }
                        }
                    }
                    last.map(|edit| (edit, current)).ok_or_else(|| "no edit of the sequence could be made".to_owned())
                }
            };
            let seconds = clock.elapsed().as_secs_f64() / records.len() as f64;
            // One change for all.
            let after = match after {
                Ok((edit, after)) => attempt(|| Ok((size(&after, &edit)?, after)))?,
                Err(message) => Err(message),
            };
            parallel::run(left.chunks(parts).collect(), |part: &[usize]| {
                part.iter().try_for_each(|&number| {
                    let after = match lost.get(&number) {
                        Some(message) => Err(message.clone()),
                        None => after.clone(),
                    };
                    write(look(base, after, &records[number], number, records.len(), seconds, looks)?)
                })
            })?;
        }
    }
    Ok(Outcome { known, failed: failed.into_inner() })
}

/// One edit, and the model with it.
fn one(editor: &dyn Editor, on: &Edited, requests: &[EditRequest]) -> Result<(Arc<Edit>, Edited)> {
    let edit = Arc::new(editor.edit(on, requests)?);
    if !edit.is_finite() {
        return Err(Error::Input("the edit holds values that are not finite".into()));
    }
    let after = on.with(edit.clone())?;
    Ok((edit, after))
}

/// What fails for the sake of a case is the case's own; what fails for the sake of the machine ends the run.
fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Result<std::result::Result<T, String>> {
    match work() {
        Ok(done) => Ok(Ok(done)),
        Err(Error::Input(message) | Error::Training(message)) => Ok(Err(message)),
        Err(other) => Err(other),
    }
}

/// All that is looked at of a case.
fn look(
    base: &Edited,
    edited: std::result::Result<(Size, Edited), String>,
    record: &EditRecord,
    number: usize,
    edits: usize,
    seconds: f64,
    looks: Looks,
) -> Result<Case> {
    let clock = Instant::now();
    let mut case = Case {
        id: record.id.clone(),
        request: EditRequest::from(record),
        edits,
        rows: vec![],
        said: vec![],
        answers: vec![],
        texts: vec![],
        essence: None,
        seconds: BTreeMap::from([("edit".to_owned(), seconds)]),
        peak_memory_bytes: 0,
        size: Size::default(),
        error: None,
    };
    let seen = edited.map(|(size, after)| {
        attempt(|| {
            case.rows = probe_table(base, &after, &[(0, record)], looks.limits)?;
            let text =
                |tokens: &[u32]| -> Result<String> { Ok(base.base().tokenizer.decode(tokens)?.trim().to_owned()) };
            let said = case.rows.iter().map(|row| Ok([text(&row.before.argmax)?, text(&row.after.argmax)?]));
            case.said = said.collect::<Result<_>>()?;
            case.size = size;
            if number < looks.generate {
                case.answers = answers(base, &after, &case.rows)?;
            }
            if number < looks.texts {
                (case.texts, case.essence) = texts(base, &after, record, looks.seed)?;
            }
            Ok(())
        })
    });
    match seen {
        Ok(seen) => case.error = seen?.err(),
        Err(message) => case.error = Some(message),
    }
    if case.error.is_some() {
        case.rows.clear();
        case.said.clear();
        case.answers.clear();
    }
    case.seconds.insert("evaluation".into(), clock.elapsed().as_secs_f64());
    case.peak_memory_bytes = crate::command::peak_memory();
    Ok(case)
}

/// How large the change of a stack is, by its last edit's kind.
///
/// # Errors
/// A weight that the model does not have.
pub fn size(after: &Edited, edit: &Edit) -> Result<Size> {
    if edit.memory().is_some() {
        return Ok(Size { entries: after.memories().iter().map(|list| list.requests.len()).sum(), ..Size::default() });
    }
    let sum = crate::edit::WeightChange::sum(after.edits().iter().filter_map(|edit| edit.weights()));
    let (mut size, mut change, mut weight) = (Size::default(), 0.0, 0.0);
    for (at, delta) in &sum.matrices {
        size.rank += delta.rank();
        change += delta.norm().powi(2);
        let base = after.base().decoder.linear(*at)?.weight.val();
        weight += base.square().sum().into_data().iter::<f64>().sum::<f64>();
    }
    size.norm = change.sqrt();
    size.relative = if weight > 0.0 { (change / weight).sqrt() } else { 0.0 };
    Ok(size)
}

/// What both models say to the probes, by themselves, up to the end of the line.
fn answers(base: &Edited, after: &Edited, rows: &[ProbeRow]) -> Result<Vec<FreeAnswer>> {
    let tokenizer = &base.base().tokenizer;
    let prompts = rows.iter().map(|row| tokenizer.encode_prompt(&row.prompt)).collect::<Result<Vec<_>>>()?;
    let stop = base.base().stop_tokens();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = (base.base().decoder.spec.context + 1).saturating_sub(longest).min(ANSWER);
    let said = |model: &Edited| -> Result<Vec<String>> {
        let made = model.generate(&prompts, room, &stop, &Sampling::default())?;
        let text = |ids: &Vec<u32>| {
            let text = tokenizer.decode(ids)?;
            Ok(text.trim_start().lines().next().unwrap_or_default().trim().to_owned())
        };
        made.iter().map(text).collect()
    };
    let pairs = said(base)?.into_iter().zip(said(after)?);
    Ok(pairs.enumerate().map(|(row, (before, after))| FreeAnswer { row, before, after }).collect())
}

/// How the edited model goes on from the prompts for generation, and the perplexity under the unedited model of what both make
/// of "SUBJECT is a".
fn texts(base: &Edited, after: &Edited, record: &EditRecord, seed: u64) -> Result<(Vec<FreeText>, Option<[f64; 2]>)> {
    let tokenizer = &base.base().tokenizer;
    let stop = base.base().stop_tokens();
    // The reference's way to write: among the five likeliest tokens.
    let sampling = Sampling { temperature: 1.0, top_k: 5, top_p: 1.0, seed };
    let write = |model: &Edited, rows: &[Vec<u32>]| -> Result<Vec<Vec<u32>>> {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let most = base.base().decoder.spec.context.min(TEXT);
        model.generate(rows, most.saturating_sub(longest), &stop, &sampling)
    };
    let rows = record.generation.iter().map(|prompt| tokenizer.encode_prompt(prompt)).collect::<Result<Vec<_>>>()?;
    let mut texts = vec![];
    if !rows.is_empty() {
        for (prompt, made) in record.generation.iter().zip(write(after, &rows)?) {
            texts.push(FreeText { prompt: prompt.clone(), after: tokenizer.decode(&made)? });
        }
    }
    let essence = match &record.subject {
        None => None,
        Some(subject) => {
            let rows = vec![tokenizer.encode_prompt(&format!("{subject} is a"))?; ESSENCES];
            let read = |model: &Edited| -> Result<f64> {
                let made = write(model, &rows)?;
                let whole: Vec<Vec<u32>> =
                    rows.iter().zip(made).map(|(row, made)| [row.clone(), made].concat()).collect();
                perplexity(base, &whole)
            };
            // A number that is not finite has no form in JSON.
            Some([read(base)?, read(after)?]).filter(|both| both.iter().all(|value| value.is_finite()))
        }
    };
    Ok((texts, essence))
}
