//! What a config says of MEND's training, and which texts of a record that makes it read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data::record::{EditRecord, Probe};
use crate::data::source::OTHER_RECORDS;
use crate::data::world::SAME_OLD_OBJECT;
use crate::error::{Error, Result};
use crate::model::tokenizer::Tokenizer;
use crate::sections::choice::{self, Choice, fields, refuse_at_zero};
use crate::sections::within;
use crate::train::loss::weight_of;
use crate::train::text::TextSettings;

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MendLossSettings {
    /// c_edit.
    #[serde(default = "edit")]
    pub edit: f64,
    /// c_loc.
    #[serde(default = "locality")]
    pub locality: f64,
    /// Where the edit loss is taken.
    #[serde(default)]
    pub scope: Scope,
    /// Of rephrases.
    #[serde(flatten)]
    pub rephrases: Rephrases,
    /// At how many of a step's records the loss looks: a sample, for an edit among many is cheap and looking at it is not. All where
    /// nothing is said. Edits that are made together with none of these are not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked_at: Option<usize>,
    /// Out-of-scope prompts a record.
    #[serde(default = "one")]
    pub out_of_scope: usize,
    /// Of out-of-scope prompts.
    #[serde(flatten)]
    pub near: Near,
    /// Running text that is to stay as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSettings>,
}

/// Keys of a `scope` with rephrases; the edit's own prompt is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rephrases {
    /// In-scope prompts a record.
    pub in_scope: usize,
}

impl Default for Rephrases {
    fn default() -> Self {
        Rephrases { in_scope: 1 }
    }
}

/// Keys of `out_of_scope` above 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Near {
    /// Which tokens of an out-of-scope text the KL term reads.
    pub kl: KlTokens,
    /// Weights of the classes of out-of-scope prompts; a class not named weighs 1 where none is named, else 0.
    pub mix: BTreeMap<String, f64>,
}

/// Keys of `[train]` that MEND alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MendTrainSettings {
    /// The edit rates' learning rate at its height.
    pub edit_rate_learning_rate: f64,
    /// Memory, in GB, for the hidden states of texts that are met more than once; what does not fit is dropped by age, and with 0
    /// nothing is kept.
    pub hidden_memory_gb: f64,
}

impl Default for MendTrainSettings {
    fn default() -> Self {
        MendTrainSettings { edit_rate_learning_rate: 1e-4, hidden_memory_gb: 2.0 }
    }
}

impl MendTrainSettings {
    /// From these keys of the section `[train]`; `origin` names its file in errors.
    ///
    /// # Errors
    /// A value of the wrong type or out of range.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        let settings: MendTrainSettings = choice::read("train", given, origin)?;
        settings.check()?;
        Ok(settings)
    }

    pub(in crate::train) fn check(&self) -> Result<()> {
        within("train.hidden_memory_gb", self.hidden_memory_gb, 0.0, 1e6)?;
        within("train.edit_rate_learning_rate", self.edit_rate_learning_rate, 0.0, 10.0)
    }
}

impl MendLossSettings {
    /// From the section `[loss]` of a config; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, or that the choices made do not use; a value of the wrong type.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        let settings: MendLossSettings = choice::read("loss", given, origin)?;
        settings.check(given)?;
        Ok(settings)
    }

    /// # Errors
    /// A key of `given` that the choices made do not use; nothing to learn.
    pub(in crate::train) fn check(&self, given: &toml::Table) -> Result<()> {
        choice::check("loss", given, self.scope)?;
        refuse_at_zero("loss", given, ("out_of_scope", self.out_of_scope as f64), fields::<Near>())?;
        refuse_at_zero("loss", given, ("edit", self.edit), &["scope", "in_scope"])?;
        refuse_at_zero("loss", given, ("locality", self.locality), &["out_of_scope", "kl", "mix"])?;
        if self.edit == 0.0 && self.locality == 0.0 {
            return Err(Error::Config("loss.edit and loss.locality are both 0: there is nothing to learn".into()));
        }
        if self.looked_at == Some(0) {
            return Err(Error::Config(
                "loss.looked_at must be at least 1: the loss looks at so many of a step's records".into(),
            ));
        }
        self.text.as_ref().map_or(Ok(()), TextSettings::check)
    }
}

fn edit() -> f64 {
    0.1
}

fn locality() -> f64 {
    1.0
}

fn one() -> usize {
    1
}

/// Where the edit loss is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// On rephrases: the edit has to generalise.
    #[default]
    Rephrase,
    /// On rephrases and the edit's own prompt alike.
    Both,
    /// On the edit's own prompt, as EasyEdit has it: nothing asks it to generalise.
    Edit,
}

impl Choice for Scope {
    const KEY: &'static str = "scope";
    const VALUES: &'static [Self] = &[Scope::Rephrase, Scope::Both, Scope::Edit];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Scope::Rephrase | Scope::Both => fields::<Rephrases>(),
            Scope::Edit => &[],
        }
    }
}

/// Which tokens the KL term reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlTokens {
    /// Every token of prompt and answer.
    #[default]
    All,
    /// The answer's tokens, as EasyEdit has it.
    Answer,
}

impl MendLossSettings {
    /// What a class of out-of-scope prompts weighs.
    pub(in crate::train) fn weight(&self, class: &str) -> f64 {
        weight_of(&self.near.mix, class)
    }

    /// Out-of-scope prompts a record.
    pub(in crate::train) fn near(&self) -> usize {
        if self.locality == 0.0 { 0 } else { self.out_of_scope }
    }

    /// The prompts of a record at which the edit loss may be taken.
    pub(in crate::train) fn in_scope<'a>(&self, record: &'a EditRecord) -> Vec<&'a String> {
        let pool: Vec<&String> = match self.scope {
            Scope::Rephrase => record.rephrases.iter().collect(),
            Scope::Both => record.rephrases.iter().chain([&record.prompt]).collect(),
            Scope::Edit => vec![],
        };
        if pool.is_empty() { vec![&record.prompt] } else { pool }
    }

    /// An out-of-scope text up to the last cell at which the KL term reads, and these cells.
    pub(in crate::train) fn out_of_scope(
        &self,
        tokenizer: &Tokenizer,
        probe: &Probe,
        between: Option<&str>,
    ) -> Result<(Vec<u32>, Vec<usize>)> {
        let (mut ids, answer) = match &probe.target {
            Some(target) => {
                let text = tokenizer.continuation(&probe.prompt, target, between)?;
                let answer = text.reads();
                (text.ids, answer)
            }
            None => {
                let ids = tokenizer.encode_prompt(&probe.prompt)?;
                let last = ids.len() - 1;
                (ids, last..last + 1)
            }
        };
        let cells = match self.near.kl {
            KlTokens::All => 0..ids.len(),
            KlTokens::Answer => answer,
        };
        ids.truncate(cells.end);
        Ok((ids, cells.collect()))
    }

    /// All texts that a record can ask, as far as the model reads them.
    pub(in crate::train) fn all_texts(&self, tokenizer: &Tokenizer, record: &EditRecord) -> Result<Vec<Vec<u32>>> {
        let between = record.separator.as_deref();
        let mut texts = vec![];
        for prompt in self.in_scope(record).into_iter().chain([&record.prompt]) {
            let mut ids = tokenizer.continuation(prompt, &record.target_new, between)?.ids;
            ids.pop();
            texts.push(ids);
        }
        let drawn = record.locality.iter().filter(|(class, _)| self.weight(class) > 0.0);
        // Its own fact is a neighbour of the other records.
        let own = [OTHER_RECORDS, SAME_OLD_OBJECT].iter().any(|class| self.weight(class) > 0.0);
        let own = if own { record.fact() } else { None };
        for probe in drawn.flat_map(|(_, probes)| probes).chain(&own) {
            texts.push(self.out_of_scope(tokenizer, probe, between)?.0);
        }
        Ok(texts)
    }
}
