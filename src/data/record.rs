//! One edit, as every loader gives it.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::objective::Objective;
use super::unicode;
use crate::model::chat::AskedInChat;

/// The class of CounterFact's attribute prompts: questions about others whose right answer is the very one that an edit writes. Locality
/// has a figure for it beside the headline, which is of the neighborhood alone, as in the paper.
pub const ATTRIBUTE: &str = "attribute";

/// The class of locality prompts that other records of a file give.
pub const OTHER_RECORDS: &str = "other records";

/// A question put to the model beside an edit: a prompt and, where it is known, its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The text the model continues.
    pub prompt: String,
    /// The answer, without what parts it from the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// An answer that must lose against the target, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<String>,
    /// Other names of the target: a free answer that is one of them is right too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The test that the question is part of, where several questions are one test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestPart>,
}

/// One test of a class, made of several questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestPart {
    /// Its number in its class.
    pub number: usize,
    /// Whether one right answer is enough; else all are wanted.
    pub any: bool,
}

impl Probe {
    /// A question whose answer has no known rival.
    pub fn new(prompt: impl Into<String>, target: Option<String>) -> Self {
        Probe { prompt: prompt.into(), target, rival: None, aliases: vec![], test: None }
    }
}

/// One edit and the questions that test it: the normal form of every data set.
///
/// Prompts are kept to the character, but for one plain space at their end; targets have no white space around them. What stands
/// between the two belongs to `model::separator`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Other names of the new answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Further edits of the same case, made together with this one. They have prompts, answers and rephrases, and no tests of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<EditRecord>,
    /// Questions, by class, that the unedited model must answer rightly for a test of that class to count.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, Vec<Probe>>,
    /// That its prompts are turns of a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<AskedInChat>,
    /// What stands between a prompt and its answer, where the record says so; else it follows from the two
    /// (`model::separator`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// That the target is the completion of a passage, of so many tokens (`data::completions`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<usize>,
    /// What is to become of the target, where that is said: a problem of a comparison says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
}

impl EditRecord {
    /// The fact as it stands before the edit, where its answer is known: a question out of scope of other edits.
    pub fn fact(&self) -> Option<Probe> {
        Some(Probe::new(&self.prompt, Some(self.target_true.clone()?)))
    }

    /// All edits of the case: its own, then the further ones.
    pub fn edits(&self) -> impl Iterator<Item = &EditRecord> {
        std::iter::once(self).chain(&self.also)
    }

    /// Whether it asks for the answer that is given already: then neither of the two can be the likelier one.
    pub fn changes_nothing(&self) -> bool {
        self.target_true.as_deref().is_some_and(|truth| truth.trim() == self.target_new.trim())
    }
}

/// Where a prompt names its subject: where the template has it, else its last occurrence as whole words, else its last.
pub fn place_of_subject(prompt: &str, subject: &str, template: Option<&str>) -> Option<Range<usize>> {
    let meant = template
        .into_iter()
        .flat_map(|template| template.match_indices("{}").map(move |(at, hole)| (template, at, hole.len())));
    let mut meant = meant.filter(|&(template, at, hole)| {
        let rest = prompt.strip_prefix(&template[..at]).and_then(|rest| rest.strip_prefix(subject));
        rest == Some(&template[at + hole..])
    });
    if let Some((_, at, _)) = meant.next() {
        return Some(at..at + subject.len());
    }
    let places = unicode::find_all(prompt, subject);
    let whole = |place: &&Range<usize>| {
        let before = prompt[..place.start].chars().next_back();
        let after = prompt[place.end..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    };
    places.iter().rev().find(whole).or(places.last()).cloned()
}
