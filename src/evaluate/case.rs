//! One edit of a comparison and all that was seen of it: every metric is a function of this alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::probes::ProbeRow;
use crate::data::record::EditRecord;
use crate::edit::EditRequest;

/// One edit, looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The record's id.
    pub id: String,
    /// The relation of its fact, where the record has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
    /// The new target's id, where the record has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<String>,
    /// What was asked for.
    pub request: EditRequest,
    /// What was asked for with it, in a case of several edits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<EditRequest>,
    /// Whether the edit is the completion of a passage.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub completion: bool,
    /// How many edits the model had taken when it was looked at.
    pub edits: usize,
    /// The probes, before and after; empty where the edit failed.
    pub rows: Vec<ProbeRow>,
    /// In a sequence, the same probes on the model right after the case's own edit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub right_after: Vec<ProbeRow>,
    /// The likeliest tokens in the place of each probe's target, as text, before and after.
    #[serde(rename = "said", default, skip_serializing_if = "Vec::is_empty")]
    pub likeliest: Vec<[String; 2]>,
    /// What the model says by itself to some of the probes; empty where nobody asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<FreeAnswer>,
    /// How it goes on from the record's prompts for generation; empty where nobody asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<FreeText>,
    /// The perplexity, under the unedited model, of what it makes of "SUBJECT is a"; before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub essence: Option<[f64; 2]>,
    /// The perplexity of a text, before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<[f64; 2]>,
    /// Seconds by phase ("edit", "evaluation").
    pub seconds: BTreeMap<String, f64>,
    /// The most memory the process had held when the case was done, in bytes, since its editor began.
    pub peak_memory_bytes: u64,
    /// What it held when its editor began; nothing where other editors had worked in it before, for what they freed is not given back
    /// at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_before_bytes: Option<u64>,
    /// How large the change is.
    pub size: Size,
    /// Why there are no probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Case {
    /// A case of which nothing was seen yet, on a model with so many edits.
    pub fn new(record: &EditRecord, edits: usize) -> Self {
        Case {
            id: record.id.clone(),
            relation: record.relation.clone(),
            target_id: record.target_id.clone(),
            request: EditRequest::from(record),
            also: record.also.iter().map(EditRequest::from).collect(),
            completion: record.completion.is_some(),
            edits,
            rows: vec![],
            right_after: vec![],
            likeliest: vec![],
            answers: vec![],
            texts: vec![],
            essence: None,
            perplexity: None,
            seconds: BTreeMap::new(),
            peak_memory_bytes: 0,
            memory_before_bytes: None,
            size: Size::default(),
            error: None,
        }
    }

    /// A hash of what was asked for, and how that was tested. Cases of two runs that have the same one are about the same record, whatever
    /// its id or its place in a file.
    pub fn record(&self) -> String {
        let asked = |row: &ProbeRow| {
            let rival = row.rival.as_ref().map(|rival| rival.target.clone());
            (row.kind, row.class.clone(), row.prompt.clone(), row.given.then(|| row.target.clone()), rival)
        };
        let asked: Vec<_> = self.rows.iter().map(asked).collect();
        let text = serde_json::to_string(&(&self.relation, &self.request, asked)).unwrap_or_default();
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }

    /// Prompts and texts as ROME's script writes them, each to the same number of tokens.
    pub fn whole_texts(&self) -> impl Iterator<Item = [&str; 2]> {
        let whole = self.texts.iter().filter(|text| text.to_own_end.is_some());
        whole.map(|text| [text.prompt.as_str(), text.after.as_str()])
    }

    /// Prompts and texts up to the model's own end.
    pub fn own_texts(&self) -> impl Iterator<Item = [&str; 2]> {
        self.texts.iter().map(|text| [text.prompt.as_str(), text.to_own_end.as_deref().unwrap_or(&text.after)])
    }
}

/// What a model says to a probe, by itself and to its own end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreeAnswer {
    /// The number of the probe in [`Case::rows`].
    pub row: usize,
    /// Before the edit.
    pub before: String,
    /// After it.
    pub after: String,
}

/// A text that a model wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreeText {
    /// Where it began.
    pub prompt: String,
    /// The text behind the prompt, after the edit: past the token that ends a text, to as many tokens in all as every other.
    pub after: String,
    /// The part of it up to that token. Files of earlier versions have none: there `after` is that part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_own_end: Option<String>,
}

/// A number that files have as null where it is not finite.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// How large a change is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// The sum of the ranks of the changed matrices.
    pub rank: usize,
    /// ‖ΔW‖ over all changed matrices together (Frobenius).
    #[serde(deserialize_with = "number")]
    pub norm: f64,
    /// ‖ΔW‖ / ‖W‖ over these.
    #[serde(deserialize_with = "number")]
    pub relative: f64,
    /// Edits that a memory holds.
    pub entries: usize,
}
