//! What becomes of a model as edits add up: at once, and one on the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Watch;
use super::edited_by_many::{EditedByMany, fault, size};
use crate::apply::{Editor, Mode};
use crate::data::record::EditRecord;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::case::number;
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, Summary, WatchedText, probe_table, summarize};
use crate::{files, parallel};

/// Records whose probes are asked together: enough to fill a batch, and the same on any number of cores.
const TOGETHER: usize = 32;

/// Edits that count as the earliest.
const EARLIEST: usize = 10;

/// A model has collapsed where its perplexity is this many times the unedited one's: ln 10 = 2.3 nats more on every token of a plain text,
/// which no edit of a fact asks for. Edits that leave a model speaking stay within a few per cent, those that do not go far beyond this.
const COLLAPSE: f64 = 10.0;

/// A point of a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// "batch" or "sequential".
    pub mode: String,
    /// Edits that the model was asked to take.
    pub edits: usize,
    /// A hash of these edits and of the text.
    pub made_of: String,
    /// The edits whose probes were asked: all that were made, but for those whose probes the model cannot take.
    pub asked: usize,
    /// Protocol `mend`, over these.
    pub figures: Summary,
    /// Edits that could not be made: no figure knows of them.
    pub failed: usize,
    /// Edit success of all but the last edit, in a sequence: what is retained of the earlier ones.
    pub retained: Option<f64>,
    /// Edit success of the first ten edits, in a sequence that went on: what is retained of the earliest.
    #[serde(default)]
    pub earliest: Option<f64>,
    /// Edit success of the last edit alone, in a sequence.
    pub last: Option<f64>,
    /// Perplexity on the text.
    pub perplexity: Option<f64>,
    /// That divided by the unedited model's.
    #[serde(default)]
    pub perplexity_ratio: Option<f64>,
    /// ‖ΔW‖/‖W‖ over the changed matrices.
    #[serde(deserialize_with = "number")]
    pub relative: f64,
    /// Whether the model has collapsed.
    pub collapsed: bool,
    /// Why there are no figures.
    pub error: Option<String>,
}

impl Point {
    /// Edits that the model took.
    pub fn made(&self) -> usize {
        self.edits - self.failed.min(self.edits)
    }
}

/// The points that a file holds; none where there is no file.
///
/// # Errors
/// A file that holds something else.
pub fn read(path: &Path) -> Result<Vec<Point>> {
    if !path.is_file() {
        return Ok(vec![]);
    }
    serde_json::from_slice(&files::read(path)?)
        .map_err(|error| Error::file(path, format!("no points of a curve ({error}); remove the file")))
}

/// The curves of an editor, at the numbers of edits in `sizes`, each once a mode. Points that `path` holds are kept, but for those that
/// failed or were made of other edits; each new one is written there.
///
/// # Errors
/// A file that cannot be written, or holds no points.
pub fn curves(
    editor: &dyn Editor,
    base: &Edited,
    records: &[EditRecord],
    sizes: &[usize],
    text: &WatchedText,
    path: &Path,
    watch: Watch<'_>,
) -> Result<Vec<Point>> {
    let made_of: Vec<String> = sizes.iter().map(|&size| made_of(&records[..size], &text.rows)).collect();
    let mut points = read(path)?;
    points.retain(|point| point.error.is_none() && made_of.contains(&point.made_of));
    let cases: Vec<Vec<EditRequest>> = records.iter().map(EditRequest::of_case).collect();
    let adapted = editor.adapted(base)?;
    for mode in [Mode::Batch, Mode::Sequential] {
        let known: Vec<bool> = made_of
            .iter()
            .map(|made_of| points.iter().any(|point| point.mode == mode.name() && point.made_of == *made_of))
            .collect();
        let mut sequence = EditedByMany::new(&adapted);
        for (place, &edits) in sizes.iter().enumerate() {
            // A sequence is made again from its beginning, up to the last point that is left.
            if known[place] && (mode == Mode::Batch || known[place..].iter().all(|known| *known)) {
                watch();
                continue;
            }
            let cases = &cases[..edits];
            let edited = match mode {
                Mode::Batch => EditedByMany::at_once(editor, &adapted, cases)?,
                _ => {
                    sequence.continue_with(editor, cases, &mut |_, _| Ok(()))?;
                    sequence.clone()
                }
            };
            if !known[place] {
                let made_of = made_of[place].clone();
                points.push(point(base, &edited, mode, &records[..edits], text, made_of)?);
                points.sort_by(|a, b| (&a.mode, a.edits).cmp(&(&b.mode, b.edits)));
                files::write(path, serde_json::to_string_pretty(&points).unwrap_or_default().as_bytes())?;
            }
            watch();
        }
    }
    Ok(points)
}

/// What a point is made of. Points of earlier versions, which asked for the first and the last edits alone, have another hash.
fn made_of(records: &[EditRecord], text: &[Vec<u32>]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(serde_json::to_string(&("all are asked", records, text)).unwrap_or_default().as_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

/// A model as it is after some edits.
///
/// # Errors
/// What is no edit's fault.
fn point(
    base: &Edited,
    edited: &EditedByMany,
    mode: Mode,
    records: &[EditRecord],
    text: &WatchedText,
    made_of: String,
) -> Result<Point> {
    let edits = records.len();
    let mut point = Point {
        mode: mode.name().into(),
        edits,
        made_of,
        asked: 0,
        figures: Summary::default(),
        failed: edited.lost.len(),
        retained: None,
        earliest: None,
        last: None,
        perplexity: None,
        perplexity_ratio: None,
        relative: 0.0,
        collapsed: false,
        error: None,
    };
    if let Some((number, why)) = edited.lost.first_key_value().filter(|_| edited.lost.len() == edits) {
        point.error = Some(format!("no edit could be made; edit {number}: {why}"));
        return Ok(point);
    }
    let seen = (|| {
        let rows = ask(base, &edited.after, records, &edited.lost)?;
        if mode == Mode::Sequential {
            let (last, earlier): (Vec<ProbeRow>, Vec<ProbeRow>) =
                rows.iter().cloned().partition(|row| row.record + 1 == edits);
            (point.last, point.retained) = (summarize(&last).edit_success, summarize(&earlier).edit_success);
            if edits > EARLIEST {
                let earliest: Vec<ProbeRow> = rows.iter().filter(|row| row.record < EARLIEST).cloned().collect();
                point.earliest = summarize(&earliest).edit_success;
            }
        }
        point.asked = rows.iter().map(|row| row.record).collect::<BTreeSet<_>>().len();
        point.figures = summarize(&rows);
        // A model that has no number to say has collapsed, text or not.
        point.collapsed = rows.iter().any(|row| row.after.log_probabilities.iter().any(|log| log.is_nan()));
        if let Some(unedited) = text.unedited(base)? {
            let now = text.edited(base, &edited.after)?;
            point.collapsed |= !now.is_finite() || now > COLLAPSE * unedited;
            // A number that is not finite has no form in JSON.
            point.perplexity = Some(now).filter(|now| now.is_finite());
            point.perplexity_ratio = point.perplexity.map(|now| now / unedited);
        }
        point.relative = size(&edited.after)?.relative;
        Ok(())
    })();
    if let Err(error) = seen {
        point.error = Some(fault(error)?);
    }
    Ok(point)
}

/// The probe table of all edits of a list that were made and can be asked for.
fn ask(base: &Edited, after: &Edited, records: &[EditRecord], lost: &BTreeMap<usize, String>) -> Result<Vec<ProbeRow>> {
    let made: Vec<(usize, &EditRecord)> =
        records.iter().enumerate().filter(|(number, _)| !lost.contains_key(number)).collect();
    let limits = Limits { rephrases: 1, per_class: 1, rivals: false };
    let parts = made.chunks(TOGETHER).collect();
    let tables = parallel::each(&base.base().decoder.device(), parts, |part: &[(usize, &EditRecord)]| {
        let together = probe_table(base, after, part, limits);
        let Err(error) = together else { return together };
        fault(error)?;
        // One of them cannot be asked: each by itself.
        let mut rows = vec![];
        for record in part.chunks(1) {
            match probe_table(base, after, record, limits) {
                Ok(more) => rows.extend(more),
                Err(error) => tracing::warn!("edit {} of a curve cannot be asked for: {}", record[0].0, fault(error)?),
            }
        }
        Ok(rows)
    })?;
    Ok(tables.into_iter().flatten().collect())
}
