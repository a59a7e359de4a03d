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
    /// How many edits the model had taken when it was looked at.
    pub edits: usize,
    /// The probes, before and after; empty where the edit failed.
    pub rows: Vec<ProbeRow>,
    /// The likeliest tokens in the place of each probe's target, as text, before and after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<[String; 2]>,
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
            edits,
            rows: vec![],
            said: vec![],
            answers: vec![],
            texts: vec![],
            essence: None,
            perplexity: None,
            seconds: BTreeMap::new(),
            peak_memory_bytes: 0,
            size: Size::default(),
            error: None,
        }
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
    /// The text behind the prompt, after the edit.
    pub after: String,
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
