//! Several editors on the same cases: each case is edited, looked at, and written down before the next.

pub mod compared_editor;
pub mod curves;
pub mod document;
mod edited_by_many;
pub mod layout;
pub mod shard;
mod unlike;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::apply::{Editor, Mode};
use crate::data::record::EditRecord;
use crate::edit::generate::Sampling;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::case::{Case, FreeAnswer, FreeText, Size};
use crate::evaluate::perplexity::{RUIN, at_most_ruin, perplexity};
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, WatchedText, probe_table};
use crate::parallel;
use crate::process::peak_memory;
use edited_by_many::{EditedByMany, fault, size, with_one_edit};
use layout::Run;
use shard::Shard;

/// Tokens of a free answer at most, unless a target is longer.
const ANSWER: usize = 24;

/// Tokens of a text that is written on from a prompt for generation, and of an essence text; the prompt's are among them.
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
    /// Tokens of a free answer at most; where nothing is said, those of the target and some more.
    pub answer_tokens: Option<usize>,
    /// Cases whose generation prompts are continued.
    pub texts: usize,
    /// Cases after whose edit the text is read.
    pub perplexity: usize,
    /// That text.
    pub text: &'a WatchedText,
    /// The seed of the draws.
    pub seed: u64,
    /// What the process held when the editor began, where no other had worked in it.
    pub memory_before: Option<u64>,
}

/// Called when a case is done.
pub type Watch<'a> = &'a (dyn Fn() + Sync);

/// Runs an editor over the cases of a shard that are left.
///
/// # Errors
/// Files that cannot be written. An editor that fails on a case is no error: the case says so.
pub fn run(
    editor: &dyn Editor,
    base: &Edited,
    records: &[EditRecord],
    mode: Mode,
    looks: Looks<'_>,
    (run, shard): (&Run, Shard),
    watch: Watch<'_>,
) -> Result<()> {
    let own = (0..records.len()).filter(|&number| shard.has(number));
    let (left, done): (Vec<usize>, Vec<usize>) = own.partition(|&number| !run.path(&records[number].id).is_file());
    done.iter().for_each(|_| watch());
    if left.is_empty() {
        return Ok(());
    }
    let cases: Vec<Vec<EditRequest>> = records.iter().map(EditRequest::of_case).collect();
    let unedited = if looks.perplexity > 0 { looks.text.unedited(base)? } else { None };
    let changed = |after: Edited, reads: bool| -> Result<Changed> {
        let perplexity = match unedited.filter(|_| reads) {
            Some(before) => Some([before, looks.text.edited(base, &after)?].map(at_most_ruin)),
            None => None,
        };
        Ok(Changed { size: size(&after)?, perplexity, right_after: vec![], after })
    };
    // Looks at a case on a model that took so many edits, in so many seconds each.
    let write = |number: usize, edits: usize, seconds: f64, changed: Box<dyn FnOnce() -> Result<Changed> + '_>| {
        let (record, clock) = (&records[number], Instant::now());
        let mut case = Case::new(record, edits);
        if let Err(error) = changed().and_then(|changed| look(&mut case, base, changed, record, number, looks)) {
            case = Case { error: Some(fault(error)?), ..Case::new(record, edits) };
        }
        case.seconds.insert("edit".into(), seconds);
        case.seconds.insert("evaluation".into(), clock.elapsed().as_secs_f64());
        (case.peak_memory_bytes, case.memory_before_bytes) = (peak_memory(), looks.memory_before);
        run.write(&case)?;
        watch();
        Ok(())
    };
    let (clock, mut looking) = (Instant::now(), Duration::ZERO);
    // What the model says right after each edit of a sequence, by the number of the case.
    let mut right_after: BTreeMap<usize, Vec<ProbeRow>> = BTreeMap::new();
    // What edits are made on; looks compare with the base itself.
    let adapted = editor.adapted(base)?;
    let edited = match mode {
        Mode::Single => None,
        Mode::Batch => Some(EditedByMany::at_once(editor, &adapted, &cases)?),
        Mode::Sequential => {
            let mut edited = EditedByMany::new(&adapted);
            edited.continue_with(editor, &cases, &mut |number, after| {
                let clock = Instant::now();
                if left.contains(&number) {
                    let rows = probe_table(base, after, &[(0, &records[number])], looks.limits);
                    right_after.insert(number, or_nothing(rows, Vec::new)?);
                }
                looking += clock.elapsed();
                Ok(())
            })?;
            Some(edited)
        }
    };
    let each = clock.elapsed().saturating_sub(looking).as_secs_f64() / records.len() as f64;
    // What is left is looked at on the model that all edits give: one change for all.
    let shared = match edited {
        Some(EditedByMany { after, lost, .. }) => {
            // One model has one perplexity: it stands in one case, so that nobody counts it several times.
            let reader = (0..records.len()).find(|number| !lost.contains_key(number));
            let reads = reader.is_some_and(|reader| left.contains(&reader));
            Some((changed(after, reads)?, lost, reader))
        }
        None => None,
    };
    let parts = left.len().div_ceil(parallel::parts(&base.base().decoder.device()));
    parallel::run(left.chunks(parts).collect(), |part: &[usize]| {
        part.iter().try_for_each(|&number| match &shared {
            Some((shared, lost, reader)) => {
                let lost_for = lost.get(&number).map(|message| Error::Input(message.clone()));
                let perplexity = shared.perplexity.filter(|_| *reader == Some(number));
                let right_after = right_after.get(&number).cloned().unwrap_or_default();
                let changed = || match lost_for {
                    Some(error) => Err(error),
                    None => Ok(Changed { perplexity, right_after, ..shared.clone() }),
                };
                write(number, records.len() - lost.len(), each, Box::new(changed))
            }
            None => {
                let clock = Instant::now();
                let after = with_one_edit(editor, &adapted, &cases[number]);
                let seconds = clock.elapsed().as_secs_f64();
                let changed = || after.and_then(|after| changed(after, number < looks.perplexity));
                write(number, 1, seconds, Box::new(changed))
            }
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
    /// See [`Case::right_after`].
    right_after: Vec<ProbeRow>,
}

/// What a ruined model says: nothing. What is wrong with the machine stays an error.
fn or_nothing<T>(said: Result<T>, nothing: impl FnOnce() -> T) -> Result<T> {
    said.or_else(|error| fault(error).map(|_| nothing()))
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
    let tokenizer = &base.base().tokenizer;
    let said = case.rows.iter().map(|row| Ok([row.before.answer(tokenizer)?, row.after.answer(tokenizer)?]));
    case.likeliest = said.collect::<Result<_>>()?;
    (case.size, case.perplexity, case.right_after) = (changed.size, changed.perplexity, changed.right_after);
    if number < looks.generate {
        case.answers = answers(base, &after, &case.rows, looks.answer_tokens)?;
    }
    if number < looks.texts {
        (case.texts, case.essence) = texts(base, &after, record, looks.seed)?;
    }
    Ok(())
}

/// What both models say to the probes, by themselves, up to the end of the line (of a target of several lines, of as many).
fn answers(base: &Edited, after: &Edited, rows: &[ProbeRow], most: Option<usize>) -> Result<Vec<FreeAnswer>> {
    let tokenizer = &base.base().tokenizer;
    let stop = base.base().stop_tokens();
    let prompts = rows.iter().map(|row| tokenizer.encode_prompt(&row.asked())).collect::<Result<Vec<_>>>()?;
    // Room for each target, and to go on behind it.
    let with_target = rows.iter().map(|row| row.before.target.len() + ANSWER / 2).max().unwrap_or(0).max(ANSWER);
    let most = most.unwrap_or(with_target);
    // Of a long prompt the context leaves less.
    let room = |prompt: &[u32]| (base.base().decoder.spec.context + 1).saturating_sub(prompt.len()).min(most);
    let say = |model: &Edited| -> Result<Vec<String>> {
        let made = model.go_on(&prompts, room, &stop, &Sampling::default())?;
        // As many lines as the target has.
        let lines = |(made, row): (Vec<u32>, &ProbeRow)| -> Result<String> {
            let text = tokenizer.decode(&made)?;
            let lines: Vec<&str> = text.trim_start().lines().take(row.target.lines().count().max(1)).collect();
            Ok(lines.join("\n").trim().to_owned())
        };
        made.into_iter().zip(rows).map(lines).collect()
    };
    let pairs = say(base)?.into_iter().zip(or_nothing(say(after), || vec![String::new(); rows.len()])?);
    Ok(pairs.enumerate().map(|(row, (before, after))| FreeAnswer { row, before, after }).collect())
}

/// How the edited model goes on from the prompts for generation, and the perplexity under the unedited model of what both make
/// of "SUBJECT is a".
///
/// The first as ROME's script has it: each prompt is written to [`TEXT`] tokens in all (or as many as the context holds), whatever the
/// other prompts are, and past the token that ends a text. The other to the model's own end.
fn texts(base: &Edited, after: &Edited, record: &EditRecord, seed: u64) -> Result<(Vec<FreeText>, Option<[f64; 2]>)> {
    let tokenizer = &base.base().tokenizer;
    let stop = base.base().stop_tokens();
    // The reference's way to write: among the five likeliest tokens.
    let sampling = Sampling { temperature: 1.0, top_k: 5, top_p: 1.0, seed };
    let most = base.base().decoder.spec.context.min(TEXT);
    let room = |prompt: &[u32]| most.saturating_sub(prompt.len());
    let rows = record.generation.iter().map(|prompt| tokenizer.encode_prompt(prompt)).collect::<Result<Vec<_>>>()?;
    let made = or_nothing(after.go_on(&rows, room, &[], &sampling), || vec![vec![]; rows.len()])?;
    let text = |(prompt, made): (&String, Vec<u32>)| -> Result<FreeText> {
        let end = made.iter().position(|token| stop.contains(token)).unwrap_or(made.len());
        let to_own_end = Some(tokenizer.decode(&made[..end])?);
        Ok(FreeText { prompt: prompt.clone(), after: tokenizer.decode(&made)?, to_own_end })
    };
    let texts = record.generation.iter().zip(made).map(text).collect::<Result<Vec<_>>>()?;
    let essence = match &record.subject {
        None => None,
        Some(subject) => {
            let rows = vec![tokenizer.encode_prompt(&format!("{subject} is a"))?; ESSENCES];
            let read = |model: &Edited| -> Result<f64> {
                let made = model.go_on(&rows, room, &stop, &sampling)?;
                let whole: Vec<Vec<u32>> =
                    rows.iter().zip(made).map(|(row, made)| [row.clone(), made].concat()).collect();
                perplexity(base, &whole)
            };
            Some([read(base)?, or_nothing(read(after), || RUIN)?].map(at_most_ruin))
        }
    };
    Ok((texts, essence))
}
