//! What a model says to prompts, in words, and what it says to an edit's probes before and after.

use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use super::{ProbeRow, Side};
use crate::edit::Edited;
use crate::edit::generate::Sampling;
use crate::edit::score::score;
use crate::error::Result;
use crate::model::separator::writes_no_spaces;
use crate::model::tokenizer::{Continuation, Tokenizer};

/// What a model answers to a prompt: its likeliest continuation, and how likely that is.
pub struct Answer {
    /// The text, without the space before it.
    pub text: String,
    /// The probability of the whole of it.
    pub probability: f64,
    /// Whether the model says more than this.
    pub goes_on: bool,
}

/// Tokens of an answer at most.
const ANSWER: usize = 12;

/// Prompts that are answered in one batch.
const ANSWERED: usize = 32;

/// The likeliest continuation of each prompt, up to the end of the sentence; cut at a word where it takes more than `width` in a terminal, and never
/// within a letter.
///
/// # Errors
/// A prompt longer than the context.
pub fn answers(model: &Edited, prompts: &[String], width: usize) -> Result<Vec<Answer>> {
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

/// What a model says to each probe, and what it makes of the target, for programs.
///
/// # Errors
/// As [`answers`].
pub fn said_json(model: &Edited, table: &[ProbeRow], side: Side) -> Result<Vec<Value>> {
    let prompts: Vec<String> = table.iter().map(|row| row.prompt.clone()).collect();
    let said = answers(model, &prompts, usize::MAX)?;
    let document = |(answer, row): (Answer, &ProbeRow)| {
        let scored = row.scored(side);
        json!({"answer": answer.text, "target_probability": scored.probability(), "target_nll": scored.nll()})
    };
    Ok(said.into_iter().zip(table).map(document).collect())
}

/// A table of probes for programs: what the models said before and after.
///
/// # Errors
/// As [`answers`].
pub fn probes_json(before: &Edited, after: &Edited, table: &[ProbeRow]) -> Result<Vec<Value>> {
    let (said_before, said_after) = (said_json(before, table, Side::Before)?, said_json(after, table, Side::After)?);
    let probe = |((row, before), after): ((&ProbeRow, Value), Value)| {
        json!({
            "kind": row.kind,
            "class": row.class,
            "prompt": row.prompt,
            "target": row.target,
            "tokenised_apart": row.apart,
            "before": before,
            "after": after,
        })
    };
    Ok(table.iter().zip(said_before).zip(said_after).map(probe).collect())
}
