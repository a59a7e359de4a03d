//! How records are put to a model: as they stand, as turns of a chat, or to a classifier as claims.

use serde::{Deserialize, Serialize};

use super::claim::Labels;
use super::completions;
use super::record::{EditRecord, Probe, place_of_subject};
use super::source::Source;
use crate::error::{Error, Result};
use crate::model::chat::Chat;
use crate::model::tokenizer::Tokenizer;

/// What `[data]` says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asking {
    /// Whether prompts are put through the model's chat template; the target is then the beginning of the reply.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
    /// What the system says first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What stands between a prompt and its answer, where a record does not say so itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
}

impl Asking {
    /// # Errors
    /// A system's text without a chat.
    pub fn check(&self, origin: &str) -> Result<()> {
        match self.system.is_some() && !self.chat {
            true => Err(Error::Config(format!("{origin}system is what a chat begins with; it needs {origin}chat"))),
            false => Ok(()),
        }
    }

    /// The template that prompts are put through.
    ///
    /// # Errors
    /// A model without a template, or with one that cannot be used.
    pub fn template(&self, tokenizer: &Tokenizer) -> Result<Option<Chat>> {
        self.chat.then(|| tokenizer.chat(self.system.clone())).transpose()
    }

    /// Records as they are put to the model of a tokenizer.
    ///
    /// # Errors
    /// A template that is missing or broken, or that changes a prompt or its subject.
    pub fn put(&self, mut records: Vec<EditRecord>, tokenizer: &Tokenizer) -> Result<Vec<EditRecord>> {
        if let Some(labels) = tokenizer.labels() {
            records = Labels::of(labels).put_all(records)?;
        }
        let chat = self.template(tokenizer)?;
        let mut turns = Turns { chat: chat.as_ref(), already: 0, first: None };
        for (number, record) in records.iter_mut().enumerate() {
            completions::cut(record, tokenizer).map_err(|error| error.of_record(number))?;
            turns.put(record).map_err(|error| error.of_record(number))?;
            set_separator(record, self.separator.as_deref());
        }
        if let Some(first) = turns.first {
            tracing::warn!(
                "{} prompts hold the chat template's own text already and are asked as they stand; the first is \"{}\"",
                turns.already,
                first.escape_debug()
            );
        }
        Ok(records)
    }

    /// A source whose records are put to the model of a tokenizer.
    ///
    /// # Errors
    /// As [`Asking::put`]; a world, whose facts are told as plain sentences.
    pub fn put_source(&self, source: Source, tokenizer: &Tokenizer) -> Result<Source> {
        if let Some(labels) = tokenizer.labels().filter(|_| *self == Asking::default()) {
            return source.as_claims(&Labels::of(labels));
        }
        match source {
            Source::Records(records)
                if *self == Asking::default() && records.all().iter().all(|record| record.completion.is_none()) =>
            {
                Ok(Source::Records(records))
            }
            Source::Records(records) => Ok(self.put(records.all().to_vec(), tokenizer)?.into()),
            Source::World { .. } if *self == Asking::default() => Ok(source),
            Source::World { .. } => Err(Error::Config(
                "the facts of the embedded world are plain sentences; chat and separator are for records of a file"
                    .into(),
            )),
        }
    }
}

fn set_separator(record: &mut EditRecord, separator: Option<&str>) {
    if record.separator.is_none() {
        record.separator = separator.map(str::to_owned);
    }
    record.also.iter_mut().for_each(|further| set_separator(further, separator));
}

/// Prompts on their way into a chat.
struct Turns<'a> {
    chat: Option<&'a Chat>,
    /// Prompts that were turns already, and the first of them.
    already: usize,
    first: Option<String>,
}

impl Turns<'_> {
    fn put(&mut self, record: &mut EditRecord) -> Result<()> {
        let Some(chat) = self.chat else { return Ok(()) };
        let place = record
            .subject
            .as_deref()
            .and_then(|subject| place_of_subject(&record.prompt, subject, record.template.as_deref()));
        let prompt = self.turn(&record.prompt)?;
        record.template = match (place, &record.subject) {
            (Some(place), Some(subject)) => {
                // The template may cut white space around the prompt, and nothing else.
                let cut = record.prompt.len() - record.prompt.trim_start().len();
                let kept = record.prompt.trim();
                let from = prompt.rfind(kept).and_then(|start| (start + place.start).checked_sub(cut));
                let written = &record.prompt[place.clone()];
                let from = from.filter(|&from| prompt.get(from..).is_some_and(|rest| rest.starts_with(written)));
                let from = from.ok_or_else(|| {
                    Error::Input(format!(
                        "the chat template changes the subject \"{subject}\" of \"{}\"",
                        record.prompt
                    ))
                })?;
                Some(format!("{}{{}}{}", &prompt[..from], &prompt[from + written.len()..]))
            }
            _ => None,
        };
        record.prompt = prompt;
        record.chat = Some(chat.asked.clone());
        let probes = [&mut record.locality, &mut record.portability, &mut record.conditions];
        let probes = probes.into_iter().flat_map(|classes| classes.values_mut()).flatten();
        let probes = probes.map(|probe: &mut Probe| &mut probe.prompt);
        for prompt in record.rephrases.iter_mut().chain(&mut record.generation).chain(probes) {
            *prompt = self.turn(prompt)?;
        }
        record.also.iter_mut().try_for_each(|further| self.put(further))
    }

    fn turn(&mut self, prompt: &str) -> Result<String> {
        let Some(chat) = self.chat else { return Ok(prompt.to_owned()) };
        if chat.is_turn(prompt) {
            self.already += 1;
            self.first.get_or_insert_with(|| prompt.to_owned());
        }
        chat.prompt(prompt)
    }
}
