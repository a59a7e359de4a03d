//! Scores and generates the answers that a memory names: those of another model, of the same model with a prefix before the prompt, of a
//! mixture of two models, or a fixed text.

use std::sync::Arc;

use burn::tensor::{Tensor, activation};

use super::Edited;
use super::generate::numbers;
use super::likelihood::{Scored, score_weights};
use super::memory::{Answer, Consulted};
use crate::error::{Error, Result};
use crate::model::stack::past::Past;
use crate::model::tap::{NoTap, Text};
use crate::model::tokenizer::{Continuation, Tokenizer};
use crate::model::tokens::Tokens;

/// ln of the probability of each token that is not the fixed answer's: a cache is certain, but a mean of logarithms must stay finite.
const OTHERWISE: f32 = -30.0;

/// Rows with a prefix that run at once: each has keys and values of its own.
const ROWS: usize = 8;

/// Refuses a mixture of models whose tokens are not the same.
fn check_mixture(a: &Edited, b: &Edited) -> Result<()> {
    let (own, theirs) = (a.base().decoder.spec.outputs(), b.base().decoder.spec.outputs());
    if own == theirs {
        return Ok(());
    }
    Err(Error::Input(format!(
        "a model of {own} tokens and one of {theirs} cannot be mixed: vocabularies must be equal"
    )))
}

/// Scores each continuation under the answer that a memory names for it.
pub(super) fn score_consulted(
    model: &Edited,
    texts: &[&Continuation],
    consulted: &[&Consulted],
) -> Result<Vec<Scored>> {
    let tokenizer = &model.base().tokenizer;
    let mut scored: Vec<Option<Scored>> = vec![None; texts.len()];
    // Those that another model answers alone run together.
    let mut alone: Vec<(usize, &Edited, Continuation)> = vec![];
    let mut foreign = vec![];
    let mut behind: Vec<(usize, usize)> = vec![];
    for (index, (text, consulted)) in texts.iter().zip(consulted).enumerate() {
        match &consulted.answer {
            Answer::Model { model: other, prompt, share } if *share >= 1.0 => {
                let theirs = &other.base().tokenizer;
                let row = match theirs.fingerprint()? == tokenizer.fingerprint()? {
                    // The very tokens that were asked for.
                    true => behind_prompt(theirs, prompt, text)?,
                    false => {
                        foreign.push((index, theirs));
                        theirs.continuation(
                            prompt,
                            tokenizer.decode(text.target())?.trim(),
                            Some(between(tokenizer, text)),
                        )?
                    }
                };
                alone.push((index, other, row));
            }
            Answer::Model { model: other, prompt, share } => {
                scored[index] = Some(mixed(model, other, text, prompt, *share)?);
            }
            Answer::Prefixed(_) => behind.push((index, index)),
            Answer::Target { text: answer, separator } => {
                scored[index] = Some(score_fixed_answer(tokenizer, text, answer, separator.as_deref())?);
            }
        }
    }
    while let Some((_, other, _)) = alone.first() {
        let other: &Edited = other;
        let (mine, rest): (Vec<_>, Vec<_>) = alone.into_iter().partition(|(_, model, _)| model.id() == other.id());
        let rows: Vec<Continuation> = mine.iter().map(|(_, _, row)| row.clone()).collect();
        let results = score_weights(&[mine[0].1], &rows)?.remove(0);
        mine.iter().zip(results).for_each(|((index, ..), result)| scored[*index] = Some(result));
        alone = rest;
    }
    // Ids of another vocabulary are given back as text.
    for (index, theirs) in foreign {
        if let Some(scored) = &mut scored[index] {
            scored.text = Some(scored.answer(theirs)?);
        }
    }
    while let Some(&(first, _)) = behind.first() {
        let Answer::Prefixed(prefix) = &consulted[first].answer else { break };
        let same = |&(index, _): &(usize, usize)| matches!(&consulted[index].answer, Answer::Prefixed(other) if std::sync::Arc::ptr_eq(other, prefix));
        let (mine, rest): (Vec<_>, Vec<_>) = behind.into_iter().partition(same);
        let rows = mine.iter().map(|&(index, _)| {
            let (prompt, target) = texts_of(tokenizer, texts[index])?;
            if tokenizer.of_pairs() {
                // What a decoder writes does not depend on the letters before it.
                return behind_prompt(tokenizer, &prefix.before(&prompt), texts[index]);
            }
            tokenizer.continuation(&prefix.before(&prompt), &target, Some(between(tokenizer, texts[index])))
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        // An encoder reads prefix and prompt together, and what acts on prompts sees both as one: nothing can be kept.
        let results = match tokenizer.of_pairs() || model.acts_on_prompts() {
            true => score_weights(&[model], &rows)?.remove(0),
            false => {
                let (ids, past) = prefix.past(model)?;
                score_behind(model, &ids, &past, &rows)?
            }
        };
        mine.iter().zip(results).for_each(|(&(index, _), result)| scored[index] = Some(result));
        behind = rest;
    }
    Ok(scored.into_iter().flatten().collect())
}

/// The prompt and the target of a continuation, as texts.
pub(super) fn texts_of(tokenizer: &Tokenizer, text: &Continuation) -> Result<(String, String)> {
    let prompt = tokenizer.prompt_text(&text.ids[..text.prompt])?;
    Ok((prompt, tokenizer.decode(text.target())?.trim().to_owned()))
}

/// What stands between the prompt and the target of a continuation, as far as it is the target's.
fn between(tokenizer: &Tokenizer, text: &Continuation) -> &'static str {
    if tokenizer.token(text.ids[text.prompt]).starts_with(' ') { " " } else { "" }
}

/// The target of a continuation behind another prompt.
fn behind_prompt(tokenizer: &Tokenizer, prompt: &str, text: &Continuation) -> Result<Continuation> {
    let mut ids = tokenizer.encode_prompt(prompt)?;
    let prompt = ids.len();
    ids.extend(text.target());
    Ok(Continuation { ids, prompt, apart: text.apart })
}

/// Continuations that begin with the tokens of a past of one row, as far as they agree with them.
fn score_behind(model: &Edited, ids: &[u32], past: &Past, rows: &[Continuation]) -> Result<Vec<Scored>> {
    let mut scored = vec![];
    for batch in rows.chunks(ROWS) {
        // Where the first token behind the prefix melts with its last, that much of the prefix is run again.
        let agree = |row: &Continuation| row.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let kept = batch.iter().map(|row| agree(row).min(row.prompt - 1)).min().unwrap_or(0);
        let mut past = past.truncated(kept).select(&vec![0; batch.len()]);
        let tokens = Tokens::placed(
            batch.iter().map(|row| row.ids[kept..row.ids.len() - 1].to_vec()).collect(),
            (0..batch.len()).map(|row| (row, kept)).collect(),
        );
        let tokens = tokens.of(batch.iter().map(Continuation::text));
        let hidden = model.embed(&tokens, &mut NoTap)?;
        let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), Some(&mut past), &mut NoTap)?;
        let cells: Vec<(usize, usize)> =
            batch.iter().enumerate().flat_map(|(row, text)| text.reads().map(move |cell| (row, cell - kept))).collect();
        let log = activation::log_softmax(model.head(hidden, &cells), 1);
        let mut from = 0;
        for text in batch {
            let count = text.target().len();
            scored.push(read_scored(log.clone().narrow(0, from, count), text.target()));
            from += count;
        }
    }
    Ok(scored)
}

/// A target's tokens in `log [targets, vocabulary]`.
fn read_scored(log: Tensor<2>, target: &[u32]) -> Scored {
    let (log_probabilities, argmax) = super::likelihood::read_log(log, target);
    Scored { target: target.to_vec(), log_probabilities, argmax, text: None }
}

/// `ln((1 − s) p_base + s p_other)` at each token of the target.
fn mixed(model: &Edited, other: &Edited, text: &Continuation, prompt: &str, share: f64) -> Result<Scored> {
    check_mixture(model, other)?;
    let theirs = behind_prompt(&other.base().tokenizer, prompt, text)?;
    let own = target_logs(model, text)?;
    let theirs = target_logs(other, &theirs)?;
    Ok(read_scored(mix(own, theirs, share), text.target()))
}

/// `ln((1 − s) e^a + s e^b)`, for logarithms of probabilities.
fn mix(a: Tensor<2>, b: Tensor<2>, share: f64) -> Tensor<2> {
    (a.exp().mul_scalar(1.0 - share) + b.exp().mul_scalar(share)).clamp_min(f32::MIN_POSITIVE).log()
}

/// ln p over the vocabulary at each token of the target, `[targets, vocabulary]`, on the weights of a model.
fn target_logs(model: &Edited, text: &Continuation) -> Result<Tensor<2>> {
    let tokens = Tokens::new(vec![text.ids[..text.ids.len() - 1].to_vec()]).of([text.text()]);
    let hidden = model.embed(&tokens, &mut NoTap)?;
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap)?;
    let reads: Vec<(usize, usize)> = text.reads().map(|cell| (0, cell)).collect();
    Ok(activation::log_softmax(model.head(hidden, &reads), 1))
}

/// The score of a target where the answer is a fixed text.
fn score_fixed_answer(
    tokenizer: &Tokenizer,
    text: &Continuation,
    answer: &str,
    separator: Option<&str>,
) -> Result<Scored> {
    let (prompt, _) = texts_of(tokenizer, text)?;
    let answer = tokenizer.continuation(&prompt, answer, separator)?;
    let target = text.target().to_vec();
    // Past the end of the fixed answer its last token is repeated: something that is not the target.
    let predicted =
        |index: usize| answer.target().get(index).copied().unwrap_or(answer.target()[answer.target().len() - 1]);
    let argmax: Vec<u32> = (0..target.len()).map(predicted).collect();
    let sure = |(index, token): (usize, &u32)| match answer.target().get(index) == Some(token) {
        true => 0.0,
        false => OTHERWISE,
    };
    let log_probabilities = target.iter().enumerate().map(sure).collect();
    Ok(Scored { target, log_probabilities, argmax, text: None })
}

/// Generates the answer to a prompt, token by token.
pub enum AnswerGenerator {
    /// One model.
    Model(ModelStream),
    /// `(1 − s)` of the first and s of the second.
    Mixture(Box<ModelStream>, Box<ModelStream>, f64),
    /// A fixed text as tokens, how many of them were given, and the model whose tokens they are.
    Text(Vec<u32>, usize, Edited),
}

/// A model on one row of tokens, with the keys and values of those it has read.
pub struct ModelStream {
    model: Edited,
    past: Past,
    next: Vec<u32>,
    seen: usize,
    /// What it reads and writes: the prompt, and behind it the answer.
    text: Arc<Text>,
}

impl ModelStream {
    fn new(model: &Edited, ids: Vec<u32>) -> Self {
        ModelStream { past: model.past(), model: model.clone(), text: Text::new(&ids), next: ids, seen: 0 }
    }

    /// The logits of the next token, `[1, vocabulary]`.
    fn logits(&mut self) -> Result<Tensor<2>> {
        let tokens = Tokens::placed(vec![std::mem::take(&mut self.next)], vec![(0, self.seen)]);
        let tokens = tokens.of([self.text.clone()]);
        let last = tokens.ids()[0].len() - 1;
        self.seen += last + 1;
        let hidden = self.model.embed(&tokens, &mut NoTap)?;
        let layers = 0..self.model.layers();
        let hidden = self.model.blocks(hidden, layers, tokens.span(), Some(&mut self.past), &mut NoTap)?;
        Ok(self.model.head(hidden, &[(0, last)]))
    }
}

impl AnswerGenerator {
    /// The generator of the answer that a memory names for a prompt of `model`.
    pub(super) fn new(model: &Edited, prompt: &str, consulted: &Consulted) -> Result<Self> {
        let tokenizer = &model.base().tokenizer;
        Ok(match &consulted.answer {
            Answer::Model { model: other, prompt: asked, share } => {
                let theirs = ModelStream::new(other, other.base().tokenizer.encode_prompt(asked)?);
                if *share >= 1.0 {
                    return Ok(AnswerGenerator::Model(theirs));
                }
                check_mixture(model, other)?;
                let own = ModelStream::new(model, tokenizer.encode_prompt(prompt)?);
                AnswerGenerator::Mixture(Box::new(own), Box::new(theirs), *share)
            }
            Answer::Prefixed(prefix) if tokenizer.of_pairs() || model.acts_on_prompts() => {
                let whole = tokenizer.encode_prompt(&prefix.before(prompt))?;
                AnswerGenerator::Model(ModelStream::new(model, whole))
            }
            Answer::Prefixed(prefix) => {
                let (ids, past) = prefix.past(model)?;
                let whole = tokenizer.encode_prompt(&prefix.before(prompt))?;
                let agree = whole.iter().zip(&ids).take_while(|(a, b)| a == b).count().min(whole.len() - 1);
                let next = whole[agree..].to_vec();
                let past = past.truncated(agree);
                let text = Text::new(&whole);
                AnswerGenerator::Model(ModelStream { model: model.clone(), past, next, seen: agree, text })
            }
            Answer::Target { text, separator } => {
                let answer = tokenizer.continuation(prompt, text, separator.as_deref())?;
                AnswerGenerator::Text(answer.target().to_vec(), 0, model.clone())
            }
        })
    }

    /// The model whose vocabulary the tokens are of.
    pub fn model(&self) -> &Edited {
        match self {
            AnswerGenerator::Model(stream) => &stream.model,
            AnswerGenerator::Mixture(own, ..) => &own.model,
            AnswerGenerator::Text(_, _, model) => model,
        }
    }

    /// Whether the context has room for the tokens that were pushed.
    pub fn has_room(&self) -> bool {
        let fits = |stream: &ModelStream| stream.seen + stream.next.len() <= stream.model.base().decoder.spec.context;
        match self {
            AnswerGenerator::Model(stream) => fits(stream),
            AnswerGenerator::Mixture(own, theirs, _) => fits(own) && fits(theirs),
            AnswerGenerator::Text(..) => true,
        }
    }

    /// The logits of the next token; none at the end of a fixed text.
    ///
    /// # Errors
    /// A token outside the vocabulary, or an answer longer than the context.
    pub fn logits(&mut self) -> Result<Option<Vec<f32>>> {
        Ok(match self {
            AnswerGenerator::Model(stream) => Some(numbers(stream.logits()?)),
            AnswerGenerator::Mixture(own, theirs, share) => {
                let (own, theirs) = (own.logits()?, theirs.logits()?);
                let (own, theirs) = (activation::log_softmax(own, 1), activation::log_softmax(theirs, 1));
                Some(numbers(mix(own, theirs, *share)))
            }
            AnswerGenerator::Text(answer, given, model) => answer.get(*given).map(|&token| {
                let mut logits = vec![OTHERWISE; model.base().decoder.spec.outputs()];
                logits[token as usize] = 0.0;
                logits
            }),
        })
    }

    /// Appends a token to what was generated.
    pub fn push(&mut self, id: u32) {
        match self {
            AnswerGenerator::Model(stream) => stream.next.push(id),
            AnswerGenerator::Mixture(own, theirs, _) => {
                own.next.push(id);
                theirs.next.push(id);
            }
            AnswerGenerator::Text(_, given, _) => *given += 1,
        }
    }
}
