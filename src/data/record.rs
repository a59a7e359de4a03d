//! One edit, as every loader gives it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The class of CounterFact's attribute prompts: questions about others whose right answer is the very one that an edit writes. Locality
/// has a figure for it beside the headline, which is of the neighborhood alone, as in the paper.
pub const ATTRIBUTE: &str = "attribute";

/// A question put to the model beside an edit: a prompt and, where it is known, its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The text the model continues. No space at its end.
    pub prompt: String,
    /// The answer, without the space that parts it from the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// An answer that must lose against the target, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<String>,
}

impl Probe {
    /// A question whose answer has no known rival.
    pub fn new(prompt: impl Into<String>, target: Option<String>) -> Self {
        Probe { prompt: prompt.into(), target, rival: None }
    }
}

/// One edit and the questions that test it: the normal form of every data set.
///
/// Prompts carry no space at their end and targets none at their beginning; the one space between
/// them belongs to tokenisation (`model::tokenizer`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditRecord {
    /// The record's name in its file: its own id where it has one, else its index.
    pub id: String,
    /// The sentence to edit, with the subject in its place.
    pub prompt: String,
    /// What the model is to answer.
    pub target_new: String,
    /// The new target's own id, where the file has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<String>,
    /// What it answers before, where that is known.
    pub target_true: Option<String>,
    /// The text that states the edit, where that is not prompt and target: a sentence of evidence, a topic and how to speak
    /// of it. `prompt` and `target_new` are then a first question in scope and its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<String>,
    /// The thing the fact is about. It occurs in `prompt`.
    pub subject: Option<String>,
    /// `prompt` with `{}` in place of the subject, where the file has it: it says which occurrence is meant.
    pub template: Option<String>,
    /// The relation's name, where the file has one.
    pub relation: Option<String>,
    /// In scope: other ways to ask for the same fact.
    pub rephrases: Vec<String>,
    /// Out of scope, by class ("neighborhood", "same relation", ...): what must not change.
    pub locality: BTreeMap<String, Vec<Probe>>,
    /// Consequences of the edit, by class: what should change with it.
    pub portability: BTreeMap<String, Vec<Probe>>,
    /// Prompts for free generation.
    pub generation: Vec<String>,
}

impl EditRecord {
    /// The fact as it stands before the edit, where its answer is known: a question out of scope of other edits.
    pub fn fact(&self) -> Option<Probe> {
        Some(Probe::new(&self.prompt, Some(self.target_true.clone()?)))
    }

    /// Whether it asks for the answer that is given already: then neither of the two can be the likelier one.
    pub fn changes_nothing(&self) -> bool {
        self.target_true.as_deref().is_some_and(|truth| truth.trim() == self.target_new.trim())
    }
}
