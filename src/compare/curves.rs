//! What becomes of a model as edits add up: at once, and one on the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Watch, attempt, one, size};
use crate::apply::{Editor, Mode};
use crate::data::record::EditRecord;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::case::number;
use crate::evaluate::perplexity::perplexity;
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, Summary, probe_table, summarize};
use crate::{files, parallel};

/// A model has collapsed where its perplexity is this many times the unedited one's.
const COLLAPSE: f64 = 10.0;

/// Edits whose probes are asked at a point: all of a short sequence, the first and the last of a long one.
const ASKED: usize = 100;

/// A point of a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// "batch" or "sequential".
    pub mode: String,
    /// Edits that the model has taken.
    pub edits: usize,
    /// The edits that were looked at: in a sequence the first ones show what is retained.
    pub asked: usize,
    /// Protocol `mend`, over what was looked at.
    pub figures: Summary,
    /// Edits of a sequence that could not be made; they are not asked.
    #[serde(default, skip_serializing_if = "is_none")]
    pub failed: usize,
    /// Edit success of the last edit alone, in a sequence.
    pub last: Option<f64>,
    /// Perplexity on the text.
    pub perplexity: Option<f64>,
    /// A hash of that text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// ‖ΔW‖/‖W‖ over the changed matrices.
    #[serde(deserialize_with = "number")]
    pub relative: f64,
    /// Whether the model has collapsed.
    pub collapsed: bool,
    /// Why there are no figures.
    pub error: Option<String>,
}

fn is_none(failed: &usize) -> bool {
    *failed == 0
}

/// The curves of an editor, at the numbers of edits in `sizes`. Points that `path` holds are kept; each new one is written there.
///
/// # Errors
/// A file that cannot be written, or holds no points.
pub fn curves(
    editor: &dyn Editor,
    base: &Edited,
    records: &[EditRecord],
    sizes: &[usize],
    text: &[Vec<u32>],
    path: &Path,
    watch: Watch<'_>,
) -> Result<Vec<Point>> {
    let mut points: Vec<Point> = match path.is_file() {
        true => serde_json::from_slice(&files::read(path)?)
            .map_err(|error| Error::file(path, format!("no points of a curve ({error}); remove the file")))?,
        false => vec![],
    };
    let mut hasher = blake3::Hasher::new();
    text.iter().flatten().for_each(|token| {
        hasher.update(&token.to_le_bytes());
    });
    let text_hash = (!text.is_empty()).then(|| hasher.finalize().to_hex()[..16].to_owned());
    // Points on another text are no part of these curves.
    points.retain(|point| match (&point.text, &text_hash) {
        (Some(known), Some(own)) => known == own,
        (None, Some(_)) => point.perplexity.is_some(),
        _ => true,
    });
    let sizes: Vec<usize> = sizes.iter().copied().filter(|&size| size <= records.len()).collect();
    let unedited = if text.is_empty() { None } else { Some(perplexity(base, text)?) };
    let requests: Vec<EditRequest> = records.iter().map(EditRequest::from).collect();
    for mode in [Mode::Batch, Mode::Sequential] {
        let known = |edits: usize, points: &[Point]| {
            points.iter().any(|point| point.mode == mode.name() && point.edits == edits)
        };
        let mut current = base.clone();
        let mut last: Option<Arc<Edit>> = None;
        let (mut made, mut lost) = (0, BTreeSet::new());
        if sizes.iter().all(|&size| known(size, &points)) {
            sizes.iter().for_each(|_| watch());
            continue;
        }
        for &edits in &sizes {
            let reached = match mode {
                Mode::Batch if known(edits, &points) => {
                    watch();
                    continue;
                }
                Mode::Batch => attempt(|| one(editor, base, &requests[..edits]))?,
                // A sequence is taken up from its beginning, and goes on without an edit that fails.
                _ => {
                    for (number, request) in requests.iter().enumerate().take(edits).skip(made) {
                        match attempt(|| one(editor, &current, std::slice::from_ref(request)))? {
                            Ok((edit, after)) => (current, last) = (after, Some(edit)),
                            Err(message) => {
                                lost.insert(number);
                                tracing::warn!("edit {number} of a sequence: {message}");
                            }
                        }
                    }
                    made = edits;
                    if known(edits, &points) {
                        watch();
                        continue;
                    }
                    let reached = last.clone().map(|edit| (edit, current.clone()));
                    reached.ok_or_else(|| "no edit of the sequence could be made".to_owned())
                }
            };
            let point = attempt(|| {
                let (edit, after) = reached.map_err(Error::Input)?;
                let rows = ask(base, &after, &records[..edits], &lost)?;
                let perplexity = if text.is_empty() { None } else { Some(perplexity(&after, text)?) };
                let bad = |now: f64, then: f64| !now.is_finite() || now > COLLAPSE * then;
                let of_last: Vec<ProbeRow> = rows.iter().filter(|row| row.record + 1 == edits).cloned().collect();
                Ok(Point {
                    mode: mode.name().into(),
                    edits,
                    asked: rows.iter().map(|row| row.record).collect::<BTreeSet<_>>().len(),
                    figures: summarize(&rows),
                    failed: lost.len(),
                    last: summarize(&of_last).edit_success,
                    // A number that is not finite has no form in JSON.
                    perplexity: perplexity.filter(|value| value.is_finite()),
                    text: text_hash.clone(),
                    relative: size(&after, &edit)?.relative,
                    collapsed: perplexity.zip(unedited).is_some_and(|(now, then)| bad(now, then)),
                    error: None,
                })
            })?;
            points.push(point.unwrap_or_else(|message| Point {
                mode: mode.name().into(),
                edits,
                asked: 0,
                figures: Summary::default(),
                failed: lost.len(),
                last: None,
                perplexity: None,
                text: text_hash.clone(),
                relative: 0.0,
                collapsed: false,
                error: Some(message),
            }));
            files::write(path, serde_json::to_string_pretty(&points).unwrap_or_default().as_bytes())?;
            watch();
        }
    }
    Ok(points)
}

/// The probe table of the first and the last edits of a list, but for those that failed.
fn ask(base: &Edited, after: &Edited, records: &[EditRecord], lost: &BTreeSet<usize>) -> Result<Vec<ProbeRow>> {
    let count = records.len();
    let near = |number: usize| count <= ASKED || number < ASKED / 2 || number >= count - ASKED / 2;
    let numbered = records.iter().enumerate();
    let chosen: Vec<(usize, &EditRecord)> =
        numbered.filter(|(number, _)| near(*number) && !lost.contains(number)).collect();
    if chosen.is_empty() {
        return Ok(vec![]);
    }
    let limits = Limits { rephrases: 1, per_class: 1, rivals: false };
    let parts = chosen.len().div_ceil(parallel::parts(&base.base().decoder.device()));
    let tables = parallel::run(chosen.chunks(parts).collect(), |part: &[(usize, &EditRecord)]| {
        probe_table(base, after, part, limits)
    })?;
    Ok(tables.concat())
}
