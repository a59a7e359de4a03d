//! The five problems of Hase et al. (2023), section 5: what is done to which target, with the subject clean or hidden.

use serde::{Deserialize, Serialize};

use crate::data::objective::{Hidden, Objective};
use crate::data::record::{EditRecord, Probe};
use crate::edit::Edited;
use crate::edit::generate::Sampling;
use crate::edit::noise::Noise;
use crate::error::Result;
use crate::model::tap::{NoTap, Text};
use crate::model::tokens::Tokens;

/// A problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Error injection: the new target becomes likelier.
    Injection,
    /// Tracing reversal: what the model says where the subject is hidden becomes likelier where it is not.
    Reversal,
    /// Fact erasure: the true answer becomes less likely.
    Erasure,
    /// Fact amplification: the true answer becomes likelier still.
    Amplification,
    /// Fact forcing: the true answer becomes likelier where the subject is hidden.
    Forcing,
}

impl Problem {
    /// All of them.
    pub const ALL: [Problem; 5] =
        [Problem::Injection, Problem::Reversal, Problem::Erasure, Problem::Amplification, Problem::Forcing];

    /// Its name, as configs have it.
    pub fn name(self) -> &'static str {
        match self {
            Problem::Injection => "injection",
            Problem::Reversal => "reversal",
            Problem::Erasure => "erasure",
            Problem::Amplification => "amplification",
            Problem::Forcing => "forcing",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Problem::Injection => "error injection",
            Problem::Reversal => "tracing reversal",
            Problem::Erasure => "fact erasure",
            Problem::Amplification => "fact amplification",
            Problem::Forcing => "fact forcing",
        }
    }

    fn objective(self, hidden: Hidden) -> Objective {
        match self {
            Problem::Injection | Problem::Reversal | Problem::Amplification => Objective::Raise,
            Problem::Erasure => Objective::Lower,
            Problem::Forcing => Objective::RaiseUnderNoise(hidden),
        }
    }

    /// A fact as a record of this problem: its target, its objective, and its neighbors asked for that target. Nothing where the fact cannot be
    /// one: its answer is not known, or noise does not change what the model says.
    ///
    /// # Errors
    /// A prompt that the model cannot take.
    pub fn pose(self, model: &Edited, fact: &EditRecord, hidden: Hidden) -> Result<Option<EditRecord>> {
        let target = match self {
            Problem::Injection => Some(fact.target_new.clone()).filter(|_| !fact.changes_nothing()),
            Problem::Erasure | Problem::Amplification | Problem::Forcing => fact.target_true.clone(),
            Problem::Reversal => said_under_noise(model, fact, hidden)?,
        };
        let Some(target) = target.filter(|target| !target.is_empty()) else { return Ok(None) };
        let mut posed = EditRecord {
            target_new: target.clone(),
            target_true: None,
            target_id: None,
            aliases: vec![],
            objective: Some(self.objective(hidden)),
            ..fact.clone()
        };
        posed.portability.clear();
        for probe in posed.locality.values_mut().flatten() {
            *probe = Probe::new(probe.prompt.clone(), Some(target.clone()));
        }
        Ok(Some(posed))
    }
}

/// Tokens of what a model says under noise, at most; a word more is no other answer.
const SAID: usize = 6;

/// What the model goes on to say where a fact's subject is hidden by the first draw, greedily, to the end of its first word.
fn said_under_noise(model: &Edited, fact: &EditRecord, hidden: Hidden) -> Result<Option<String>> {
    let tokenizer = &model.base().tokenizer;
    let Some(subject) = &fact.subject else { return Ok(None) };
    let place = (subject.as_str(), fact.template.as_deref());
    let noise = Noise::of_subject(model, &fact.prompt, place, hidden, 0..1)?;
    let Some((first, noise)) = noise else { return Ok(None) };
    let mut ids = tokenizer.encode_prompt(&fact.prompt)?;
    let (asked, stop) = (ids.len(), model.base().stop_tokens());
    let mut made = vec![];
    // Read anew for each token: there are few, and noise belongs to the whole text.
    while made.len() < SAID && ids.len() < model.base().decoder.spec.context {
        let tokens = Tokens::new(vec![ids.clone()]).of([Text::new(&ids[..asked])]);
        let hidden = model.embed(&tokens, &mut Noise(vec![Some((first, noise.clone().squeeze_dim(0)))]))?;
        let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap)?;
        let logits = model.head(hidden, &[(0, ids.len() - 1)]);
        let next = logits.argmax(1).into_data().iter::<i64>().next().unwrap_or(0) as u32;
        let text = tokenizer.token(next);
        let ends = stop.contains(&next) || text.contains(['.', ',', '\n', ';', '?', '!']);
        // The first token begins the word; one that begins another ends it.
        if ends || (!made.is_empty() && text.starts_with(char::is_whitespace)) {
            break;
        }
        made.push(next);
        ids.push(next);
    }
    // What begins as the clean answer does is no other one.
    let clean = model.next_tokens(&ids[..asked], 1)?.first().map(|token| token.id);
    if made.first().copied() == clean {
        return Ok(None);
    }
    // A word that is no word by itself comes back from its text as other tokens: then it is no target.
    let target = tokenizer.decode(&made)?.trim().to_owned();
    let same = !target.is_empty()
        && tokenizer.continuation(&fact.prompt, &target, fact.separator.as_deref())?.target() == made.as_slice();
    Ok(same.then_some(target))
}

/// Whether the model knows a fact: what it writes greedily behind the prompt holds the true answer, and its probability is above `least`.
///
/// # Errors
/// A prompt that the model cannot take.
pub fn is_known(model: &Edited, fact: &EditRecord, least: f64) -> Result<bool> {
    /// Tokens that are written.
    const WRITTEN: usize = 36;
    let Some(truth) = &fact.target_true else { return Ok(false) };
    let tokenizer = &model.base().tokenizer;
    let row = tokenizer.continuation(&fact.prompt, truth, fact.separator.as_deref())?;
    let scored = crate::edit::score::score(&[model], std::slice::from_ref(&row))?;
    if scored[0][0].probability() <= least {
        return Ok(false);
    }
    let ids = tokenizer.encode_prompt(&fact.prompt)?;
    let room = |ids: &[u32]| WRITTEN.min((model.base().decoder.spec.context + 1).saturating_sub(ids.len()));
    let made = model.go_on(&[ids], room, &model.base().stop_tokens(), &Sampling::default())?;
    Ok(tokenizer.decode(&made[0])?.contains(truth.as_str()))
}
