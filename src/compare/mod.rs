//! Several editors on the same cases: each case is edited, looked at, and written down before the next.

pub mod curves;
pub mod document;
pub mod layout;
mod reached;

use std::time::Instant;

use crate::apply::{Editor, Mode};
use crate::data::record::EditRecord;
use crate::edit::generate::Sampling;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::case::{Case, FreeAnswer, FreeText, Size};
use crate::evaluate::perplexity::perplexity;
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, probe_table};
use crate::parallel;
use layout::Run;
use reached::{Reached, fault, one, size};

/// Tokens of a free answer at most.
const ANSWER: usize = 24;

/// Tokens of a text that is written on from a prompt for generation, and of an essence text.
const TEXT: usize = 100;

/// Essence texts of a case.
const ESSENCES: usize = 5;

/// What is looked at in each case.
#[derive(Debug, Clone, Copy)]
pub struct Looks<'a> {
    /// Probes of each kind.
    pub limits: Limits,
    /// Cases whose probes are answered freely.
    pub generate: usize,
    /// Cases whose generation prompts are continued.
    pub texts: usize,
    /// Cases after whose edit the text is read.
    pub perplexity: usize,
    /// That text, as rows of tokens.
    pub text: &'a [Vec<u32>],
    /// The seed of the draws.
    pub seed: u64,
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
    looks: Looks<'_>,
    run: &Run,
    watch: Watch<'_>,
) -> Result<()> {
    let left: Vec<usize> = (0..records.len()).filter(|&number| !run.path(&records[number].id).is_file()).collect();
    (left.len()..records.len()).for_each(|_| watch());
    if left.is_empty() {
        return Ok(());
    }
    let requests: Vec<EditRequest> = records.iter().map(EditRequest::from).collect();
    let unedited = if looks.perplexity > 0 { Some(perplexity(base, looks.text)?) } else { None };
    let changed = |after: Edited, reads: bool| -> Result<Changed> {
        let perplexity = match unedited.filter(|_| reads) {
            Some(before) => finite([before, perplexity(&after, looks.text)?]),
            None => None,
        };
        Ok(Changed { size: size(&after)?, perplexity, after })
    };
    let clock = Instant::now();
    // What is left is looked at on the model that all edits give: these are made anew.
    let reached = match mode {
        Mode::Single => None,
        Mode::Batch => Some(Reached::at_once(editor, base, &requests)?),
        Mode::Sequential => {
            let mut reached = Reached::new(base);
            reached.go_on(editor, &requests)?;
            Some(reached)
        }
    };
    let each = clock.elapsed().as_secs_f64() / records.len() as f64;
    // One change for all.
    let shared = reached.as_ref().map(|reached| changed(reached.after.clone(), true)).transpose()?;
    let parts = left.len().div_ceil(parallel::parts(&base.base().decoder.device()));
    parallel::run(left.chunks(parts).collect(), |part: &[usize]| {
        part.iter().try_for_each(|&number| {
            let clock = Instant::now();
            let (edits, seconds, changed) = match (&reached, &shared) {
                (Some(reached), Some(shared)) => {
                    let lost = reached.lost.get(&number).map(|message| Error::Input(message.clone()));
                    (records.len(), each, lost.map_or_else(|| Ok(shared.clone()), Err))
                }
                _ => {
                    let after = one(editor, base, &requests[number..=number]);
                    let seconds = clock.elapsed().as_secs_f64();
                    (1, seconds, after.and_then(|after| changed(after, number < looks.perplexity)))
                }
            };
            let mut case = Case::new(&records[number], edits);
            let seen = changed.and_then(|changed| look(&mut case, base, changed, &records[number], number, looks));
            if let Err(error) = seen {
                case = Case { error: Some(fault(error)?), ..Case::new(&records[number], edits) };
            }
            case.seconds.insert("edit".into(), seconds);
            case.seconds
                .insert("evaluation".into(), clock.elapsed().as_secs_f64() - if edits == 1 { seconds } else { 0.0 });
            case.peak_memory_bytes = crate::command::peak_memory();
            run.write(&case)?;
            watch();
            Ok(())
        })
    })?;
    Ok(())
}

/// A model and how far it is from the unedited one.
#[derive(Clone)]
struct Changed {
    after: Edited,
    size: Size,
    perplexity: Option<[f64; 2]>,
}

/// Both numbers where both have a form in JSON.
fn finite(both: [f64; 2]) -> Option<[f64; 2]> {
    both.iter().all(|value| value.is_finite()).then_some(both)
}

/// All that is looked at of a case.
fn look(
    case: &mut Case,
    base: &Edited,
    changed: Changed,
    record: &EditRecord,
    number: usize,
    looks: Looks<'_>,
) -> Result<()> {
    let after = changed.after;
    case.rows = probe_table(base, &after, &[(0, record)], looks.limits)?;
    let text = |tokens: &[u32]| -> Result<String> { Ok(base.base().tokenizer.decode(tokens)?.trim().to_owned()) };
    let said = case.rows.iter().map(|row| Ok([text(&row.before.argmax)?, text(&row.after.argmax)?]));
    case.said = said.collect::<Result<_>>()?;
    (case.size, case.perplexity) = (changed.size, changed.perplexity);
    if number < looks.generate {
        case.answers = answers(base, &after, &case.rows)?;
    }
    if number < looks.texts {
        (case.texts, case.essence) = texts(base, &after, record, looks.seed)?;
    }
    Ok(())
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
            finite([read(base)?, read(after)?])
        }
    };
    Ok((texts, essence))
}
