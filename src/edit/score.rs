//! What an edited model says of given continuations, its memories consulted.

use super::Edited;
use super::answers::{score_consulted, texts_of};
use super::likelihood::{Scored, score_weights};
use super::memory::Consulted;
use crate::error::Result;
use crate::model::tokenizer::Continuation;

/// Scores continuations on several stacks over one base; the layers below their first difference run once. Memories are
/// consulted first: a prompt in their scope is answered as they say, in the tokens of whoever answers.
///
/// Gives one list a model, each in the order of `continuations`.
///
/// # Errors
/// A continuation longer than the context.
pub fn score(models: &[&Edited], continuations: &[Continuation]) -> Result<Vec<Vec<Scored>>> {
    if models.iter().all(|model| !model.has_memory()) {
        return score_weights(models, continuations);
    }
    let said = models.iter().map(|model| {
        if !model.has_memory() {
            return Ok(vec![None; continuations.len()]);
        }
        let tokenizer = &model.base().tokenizer;
        let prompts = continuations.iter().map(|text| Ok(texts_of(tokenizer, text)?.0));
        model.consult(&prompts.collect::<Result<Vec<_>>>()?)
    });
    let said: Vec<Vec<Option<Consulted>>> = said.collect::<Result<_>>()?;
    // What no memory answers is the weights' own word: of stacks with the same weights it is computed once, and is the same to
    // the bit.
    let mut by_weights: Vec<(&Edited, Option<Vec<Scored>>)> = vec![];
    for (model, said) in models.iter().zip(&said) {
        let known = by_weights.iter().position(|(known, _)| known.weights_id() == model.weights_id());
        let place = known.unwrap_or_else(|| {
            by_weights.push((model, None));
            by_weights.len() - 1
        });
        if by_weights[place].1.is_none() && said.iter().any(Option::is_none) {
            by_weights[place].1 = Some(vec![]);
        }
    }
    let asked: Vec<usize> = (0..by_weights.len()).filter(|&place| by_weights[place].1.is_some()).collect();
    let own = score_weights(&asked.iter().map(|&place| by_weights[place].0).collect::<Vec<_>>(), continuations)?;
    asked.into_iter().zip(own).for_each(|(place, scored)| by_weights[place].1 = Some(scored));
    let results = models.iter().zip(said).map(|(model, said)| {
        let own = by_weights.iter().find(|(known, _)| known.weights_id() == model.weights_id());
        let mut results: Vec<Option<Scored>> = match own.and_then(|(_, scored)| scored.as_ref()) {
            Some(scored) => scored.iter().cloned().map(Some).collect(),
            None => vec![None; continuations.len()],
        };
        let spoken: Vec<usize> = (0..said.len()).filter(|&index| said[index].is_some()).collect();
        let texts: Vec<&Continuation> = spoken.iter().map(|&index| &continuations[index]).collect();
        let said: Vec<&Consulted> = said.iter().flatten().collect();
        for (index, scored) in spoken.into_iter().zip(score_consulted(model, &texts, &said)?) {
            results[index] = Some(scored);
        }
        Ok(results.into_iter().flatten().collect())
    });
    let mut results: Vec<Vec<Scored>> = results.collect::<Result<_>>()?;
    compare_as_text(models, &mut results)?;
    Ok(results)
}

/// Where one model answered in tokens of its own, the others' tokens are put beside them as text.
fn compare_as_text(models: &[&Edited], results: &mut [Vec<Scored>]) -> Result<()> {
    for index in 0..results.first().map_or(0, Vec::len) {
        if results.iter().all(|scored| scored[index].text.is_none()) {
            continue;
        }
        for (model, scored) in models.iter().zip(results.iter_mut()) {
            let scored = &mut scored[index];
            scored.text = Some(scored.answer(&model.base().tokenizer)?);
        }
    }
    Ok(())
}
