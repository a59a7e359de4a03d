//! Completions of passages (Mitchell et al., 2022): one object with two lists, the passages as they were written, `original`, and each
//! passage with another end, `completions`, of which the last `n_tokens` tokens are what an edit is to write.
//!
//! How many letters these are only a tokenizer says, so that records stay whole until [`cut`].

use rand::RngExt;

use super::json::{Json, Object, each};
use super::problem::Problem;
use super::record::EditRecord;
use crate::error::{Error, Result};
use crate::model::tokenizer::Tokenizer;
use crate::random;

/// In-scope prompts of a record: its passage with so many different beginnings cut.
const CUTS: usize = 4;

/// Reads the object as a record a completion, each with its whole text as prompt.
pub(super) fn read(mut record: Object) -> std::result::Result<Vec<EditRecord>, Problem> {
    let texts = record.required("completions", "a file of completions needs the list of them")?;
    let texts = texts.list().and_then(|texts| each(texts, |text| text.text().map(|text| text.into_owned())));
    let texts = texts.map_err(|problem| problem.within("completions"))?;
    let tokens = match record.required("n_tokens", "a file of completions says how many tokens they have")? {
        Json::Number(number) => number.parse::<usize>().ok().filter(|tokens| *tokens > 0),
        _ => None,
    };
    let tokens =
        tokens.ok_or_else(|| Problem::new("is no number of tokens; it should be 1 or more").within("n_tokens"))?;
    if let Some(Json::List(passages)) = record.get("original")
        && passages.len() != texts.len()
    {
        let message =
            format!("has {} passages for {} completions; each completion has its own", passages.len(), texts.len());
        return Err(Problem::new(message).within("original"));
    }
    let record = |(number, text): (usize, String)| EditRecord {
        id: number.to_string(),
        prompt: text,
        completion: Some(tokens),
        ..EditRecord::default()
    };
    Ok(texts.into_iter().enumerate().map(record).collect())
}

/// Parts the text of a completion into prompt and target, by a model's own tokens, and gives it its prompts in scope: the passage without
/// some of its beginning, up to half of it. They are drawn by the text alone.
///
/// # Errors
/// A text with too few tokens.
pub fn cut(record: &mut EditRecord, tokenizer: &Tokenizer) -> Result<()> {
    let Some(tokens) = record.completion.filter(|_| record.target_new.is_empty()) else { return Ok(()) };
    let text = std::mem::take(&mut record.prompt);
    let starts = tokenizer.starts(&text)?;
    if starts.len() < tokens + 2 {
        return Err(Error::Input(format!(
            "a completion of {tokens} tokens behind a passage needs {} tokens or more, this text has {}: \"{text}\"",
            tokens + 2,
            starts.len()
        )));
    }
    let passage = starts.len() - tokens;
    let end = starts[passage];
    // Some tokenizers count the space before a word to its token, others do not.
    let whole = text[..end].strip_suffix(' ').unwrap_or(&text[..end]);
    let space = if whole.len() < end || text[end..].starts_with(' ') { " " } else { "" };
    record.separator = Some(space.to_owned());
    record.target_new = text[end..].strip_prefix(' ').unwrap_or(&text[end..]).to_owned();
    let mut rng = random::stream_of(0, "cuts", &text);
    let mut cuts: Vec<usize> = (0..CUTS).map(|_| rng.random_range(1..=(passage / 2).max(1))).collect();
    cuts.sort_unstable();
    cuts.dedup();
    record.rephrases =
        cuts.into_iter().map(|cut| whole.get(starts[cut]..).unwrap_or("").trim_start().to_owned()).collect();
    record.rephrases.retain(|prompt| !prompt.is_empty());
    record.prompt = whole.to_owned();
    Ok(())
}
