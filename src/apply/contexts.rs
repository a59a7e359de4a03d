//! Texts that stand before a prompt, so that an edit does not depend on its prompt standing first.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::data::objective::Objective;
use crate::edit::generate::Sampling;
use crate::edit::likelihood::check_targets;
use crate::edit::noise::Noise;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::check_length;
use crate::random;

/// Contexts that the model writes itself: for each `[tokens, count]`, `count` texts of `tokens` tokens, those that they
/// begin with counted; and the empty one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampled {
    /// `[tokens, count]`
    pub lengths: Vec<[usize; 2]>,
    /// Words each text begins with in turn; none to begin with the begin token alone.
    #[serde(default)]
    pub starts: Vec<String>,
    /// The seed of the draws.
    #[serde(default)]
    pub seed: u64,
}

/// Refuses contexts that are given and to be sampled: one of the two would do nothing.
///
/// # Errors
/// Both keys are there.
pub(super) fn check_used(given: &toml::Table) -> Result<()> {
    let templates = given.get("context_templates").and_then(toml::Value::as_array);
    match (templates.is_some_and(|templates| !templates.is_empty()), given.contains_key("context")) {
        (true, true) => Err(Error::Config(
            "editor.context: editor.context_templates are given, so none is sampled; leave one of the two out".into(),
        )),
        _ => Ok(()),
    }
}

/// The templates of an editor: those it was given, else sampled ones. Each holds one `{}`, where the prompt stands.
///
/// # Errors
/// A template without its `{}`, or a model that has no begin token to write from.
pub fn templates(model: &Edited, given: &[String], sampled: &Sampled) -> Result<Vec<String>> {
    if let Some(wrong) = given.iter().find(|template| template.matches("{}").count() != 1) {
        let message = format!("editor.context_templates: \"{wrong}\" must hold {{}} once, where the prompt stands");
        return Err(Error::Config(message));
    }
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    // The frozen model writes them: they stay the same as edits are stacked.
    let base = Edited::new(model.base().clone());
    let tokenizer = &base.base().tokenizer;
    let mut templates = vec!["{}".to_owned()];
    for (number, [tokens, count]) in sampled.lengths.iter().enumerate() {
        let starts: Vec<Vec<u32>> = match sampled.starts.is_empty() {
            true => {
                let begin = tokenizer.begin().ok_or_else(|| {
                    let message = "editor.context: the tokenizer names no begin token; give context.starts";
                    Error::Config(message.into())
                })?;
                vec![vec![begin]]
            }
            false => sampled.starts.iter().map(|start| tokenizer.encode(start)).collect::<Result<_>>()?,
        };
        if starts.iter().any(Vec::is_empty) || *count == 0 {
            let message = "editor.context: a start must hold a word, and each length a count of at least 1";
            return Err(Error::Config(message.into()));
        }
        let rows: Vec<Vec<u32>> = (0..*count).map(|row| starts[row % starts.len()].clone()).collect();
        let seed = random::stream(sampled.seed, "contexts", number as u64).random();
        let sampling = Sampling { temperature: 1.0, top_k: 5, top_p: 1.0, seed };
        let stop = base.base().stop_tokens();
        let begun = starts.iter().map(Vec::len).max().unwrap_or(0);
        for (start, made) in rows.iter().zip(base.generate(&rows, tokens.saturating_sub(begun), &stop, &sampling)?) {
            let ids: Vec<u32> = start.iter().chain(&made).copied().collect();
            let text = tokenizer.decode(&ids)?.replace(['{', '}', '\n'], " ");
            templates.push(format!("{}. {{}}", text.trim().trim_end_matches('.')));
        }
    }
    Ok(templates)
}

/// A request's prompt and target in each of its contexts, as tokens.
#[derive(Debug, Clone)]
pub struct RequestInContexts {
    /// Prompt and target in each context; the first is the empty one where templates are sampled.
    pub rows: Vec<Continuation>,
    /// The index of the subject's last token in each row.
    pub subjects: Vec<usize>,
    /// "SUBJECT is a": what the subject is beside the fact.
    pub essence: Vec<u32>,
    /// The index of the subject's last token in it.
    pub essence_subject: usize,
    /// What hides the subject in each row, where it is hidden; the essence is never.
    pub noise: Noise,
    /// What is to become of the target.
    pub objective: Objective,
}

impl RequestInContexts {
    /// A request as it stands, met at its prompt's last token instead of its subject's. There is no essence beside it: a text's first token stands in, which costs next to nothing.
    ///
    /// # Errors
    /// A text that cannot be tokenised or is longer than the context.
    pub fn at_last_token(model: &Edited, request: &EditRequest) -> Result<Self> {
        let row = request.row(&model.base().tokenizer)?;
        check_length(row.ids.len() - 1, model.base().decoder.spec.context)?;
        check_targets(model, row.target())?;
        Ok(RequestInContexts {
            subjects: vec![row.prompt - 1],
            essence: row.ids[..1].to_vec(),
            essence_subject: 0,
            noise: Noise(vec![None]),
            objective: request.objective(),
            rows: vec![row],
        })
    }

    /// Writes a request into each template, and tokenises it.
    ///
    /// # Errors
    /// A request without a subject, or whose subject does not occur in its prompt; texts that cannot be tokenised.
    pub fn new(model: &Edited, request: &EditRequest, templates: &[String]) -> Result<Self> {
        let tokenizer = &model.base().tokenizer;
        let (subject, end) = request.subject()?;
        let (mut rows, mut subjects) = (vec![], vec![]);
        // Each row has a draw of its own, and every draw a row.
        let hidden = request.objective().hidden();
        let count = hidden.map_or(0, |hidden| hidden.draws).max(templates.len());
        let mut noise = Noise::default();
        for (number, template) in templates.iter().cycle().take(count).enumerate() {
            let prompt = template.replace("{}", &request.prompt);
            let row = tokenizer.continuation(&prompt, &request.target_new, request.separator.as_deref())?;
            let before = template.find("{}").unwrap_or(0);
            // A tokenizer may cut a prompt otherwise where a target follows; the subject is never beyond it.
            check_length(row.ids.len() - 1, model.base().decoder.spec.context)?;
            check_targets(model, row.target())?;
            subjects.push(tokenizer.last_token(&prompt, before + end)?.min(row.prompt - 1));
            rows.push(row);
            noise.0.push(match hidden {
                Some(hidden) => {
                    let of_template =
                        Some(prompt[..before + end - subject.len()].to_owned() + "{}" + &prompt[before + end..]);
                    let place = (subject, of_template.as_deref());
                    let drawn = Noise::of_subject(model, &prompt, place, hidden, number..number + 1)?;
                    drawn.map(|(first, noise)| (first, noise.squeeze_dim(0)))
                }
                None => None,
            });
        }
        let essence = format!("{subject} is a");
        Ok(RequestInContexts {
            rows,
            subjects,
            essence: tokenizer.encode_prompt(&essence)?,
            essence_subject: tokenizer.last_token(&essence, subject.len())?,
            noise,
            objective: request.objective(),
        })
    }
}
