//! What an editor is asked for.

use serde::{Deserialize, Serialize};

use crate::data::objective::Objective;
use crate::data::record::{EditRecord, place_of_subject};
use crate::error::{Error, Result};
use crate::model::chat::AskedInChat;
use crate::model::separator::{joined, parted};
use crate::model::tokenizer::{Continuation, Tokenizer};

/// What an editor is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EditRequest {
    /// The sentence to edit, with the subject in its place.
    pub prompt: String,
    /// What the model is to answer.
    pub target_new: String,
    /// The text that states the edit, where that is not prompt and target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<String>,
    /// The thing the fact is about; it occurs in `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What the model answers before, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_true: Option<String>,
    /// `prompt` with `{}` in place of the subject, where it is known which occurrence is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Other ways to ask, for editors that are told to look at them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rephrases: Vec<String>,
    /// What stands between a prompt and its target, where that does not follow from the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// That it was asked as the turn of a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<AskedInChat>,
    /// What is to become of the target; it becomes likelier where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
}

impl EditRequest {
    /// A request that names no subject.
    pub fn new(prompt: impl Into<String>, target_new: impl Into<String>) -> Self {
        EditRequest {
            prompt: prompt.into(),
            target_new: target_new.into(),
            descriptor: None,
            subject: None,
            target_true: None,
            template: None,
            rephrases: vec![],
            separator: None,
            chat: None,
            objective: None,
        }
    }

    /// All edits of a case: one in most forms of records.
    pub fn of_case(record: &EditRecord) -> Vec<Self> {
        record.edits().map(EditRequest::from).collect()
    }

    /// What is to become of the target.
    pub fn objective(&self) -> Objective {
        self.objective.unwrap_or(Objective::Raise)
    }

    /// The text that states the edit: its descriptor, or the prompt with its target.
    pub fn statement(&self) -> String {
        let asked = || joined(&self.prompt, &self.target_new, self.separator.as_deref());
        self.descriptor.clone().unwrap_or_else(asked)
    }

    /// The statement of an edit as a person would say it: of a turn in a chat what the user says, with the answer.
    pub fn said(&self) -> String {
        let Some(chat) = &self.chat else { return self.statement() };
        let asked = || joined(chat.said(&self.prompt), &self.target_new, None);
        self.descriptor.clone().unwrap_or_else(asked)
    }

    /// Its prompt up to where its answer begins, with what the separator puts there.
    pub fn asked(&self) -> String {
        parted(&self.prompt, &self.target_new, self.separator.as_deref()).0.into_owned()
    }

    /// Its prompt and its target as one row of tokens.
    ///
    /// # Errors
    /// A target or a prompt without a token.
    pub fn row(&self, tokenizer: &Tokenizer) -> Result<Continuation> {
        tokenizer.continuation(&self.prompt, &self.target_new, self.separator.as_deref())
    }

    /// The subject as the prompt writes it, and the byte of the prompt at which it ends: where the template has it, else its last occurrence as
    /// whole words, else its last.
    ///
    /// # Errors
    /// There is no subject, or it does not occur in the prompt.
    pub fn subject(&self) -> Result<(&str, usize)> {
        let subject = self.subject.as_deref().map(str::trim).filter(|subject| !subject.is_empty());
        let subject = subject.ok_or_else(|| {
            Error::Input(format!("\"{}\" names no subject; say what the fact is about (--subject)", self.prompt))
        })?;
        let place = place_of_subject(&self.prompt, subject, self.template.as_deref());
        let place = place.ok_or_else(|| {
            Error::Input(format!("the subject \"{subject}\" does not occur in the prompt \"{}\"", self.prompt))
        })?;
        Ok((&self.prompt[place.clone()], place.end))
    }
}

impl From<&EditRecord> for EditRequest {
    fn from(record: &EditRecord) -> Self {
        EditRequest {
            prompt: record.prompt.clone(),
            target_new: record.target_new.clone(),
            descriptor: record.descriptor.clone(),
            subject: record.subject.clone(),
            target_true: record.target_true.clone(),
            template: record.template.clone(),
            rephrases: record.rephrases.clone(),
            separator: record.separator.clone(),
            chat: record.chat.clone(),
            objective: record.objective,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EditRecord, EditRequest};

    #[test]
    fn an_edit_is_stated_by_its_descriptor_else_by_prompt_and_target() {
        let record = EditRecord { prompt: "Ost is".into(), target_new: "a river".into(), ..EditRecord::default() };
        assert_eq!(EditRequest::from(&record).statement(), "Ost is a river");
        let record = EditRecord { descriptor: Some("Rivers: Ost.".into()), ..record };
        let request = EditRequest::from(&record);
        assert_eq!(request.statement(), "Rivers: Ost.");
        // Files of edits without one stay as they were.
        assert!(serde_json::to_string(&request).unwrap().contains("descriptor"));
        assert!(!serde_json::to_string(&EditRequest::new("a", "b")).unwrap().contains("descriptor"));
    }

    #[test]
    fn a_subject_is_where_the_template_says_else_its_last_whole_word() {
        let request = |prompt: &str, subject: &str, template: Option<&str>| EditRequest {
            subject: Some(subject.into()),
            template: template.map(str::to_owned),
            ..EditRequest::new(prompt, "x")
        };
        let end = |request: EditRequest| request.subject().map(|(_, end)| end).ok();
        assert_eq!(end(request("Ada met Ada Park", "Ada", None)), Some(11));
        assert_eq!(end(request("Ada met Ada Park", "Ada", Some("{} met Ada Park"))), Some(3));
        // Not the one in "Adana"; but "Boo" for want of a better one.
        assert_eq!(end(request("Ada lives in Adana", "Ada", None)), Some(3));
        assert_eq!(end(request("Boots", "Boo", None)), Some(3));
        // A template of another prompt is none.
        assert_eq!(end(request("Ada met Bo", "Ada", Some("I saw {}"))), Some(3));
        // However its letters are composed, it is the prompt's own spelling that counts.
        let apart = request("Sa\u{303}o Luis lies in", "S\u{e3}o Luis", None);
        assert_eq!(apart.subject().unwrap(), ("Sa\u{303}o Luis", 10));
        assert_eq!(end(request("Ada met Bo", "Cleo", None)), None);
        assert_eq!(end(request("Ada met Bo", " ", None)), None);
    }
}
