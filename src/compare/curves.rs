//! What becomes of a model as edits add up: at once, and one on the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::reached::{Reached, fault, size};
use super::{Reading, Watch};
use crate::apply::{Editor, Mode};
use crate::data::record::EditRecord;
use crate::edit::{EditRequest, Edited};
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
#[serde(deny_unknown_fields)]
pub struct Point {
    /// "batch" or "sequential".
    pub mode: String,
    /// Edits that the model was asked to take.
    pub edits: usize,
    /// A hash of these edits and of the text.
    pub made_of: String,
    /// The edits that were looked at: in a sequence the first ones show what is retained.
    pub asked: usize,
    /// Protocol `mend`, over what was looked at.
    pub figures: Summary,
    /// Edits that could not be made, or not be asked for.
    pub failed: usize,
    /// Edit success of all but the last edit, in a sequence: what is retained of the earlier ones.
    pub retained: Option<f64>,
    /// Edit success of the last edit alone, in a sequence.
    pub last: Option<f64>,
    /// Perplexity on the text.
    pub perplexity: Option<f64>,
    /// ‖ΔW‖/‖W‖ over the changed matrices.
    #[serde(deserialize_with = "number")]
    pub relative: f64,
    /// Whether the model has collapsed.
    pub collapsed: bool,
    /// Why there are no figures.
    pub error: Option<String>,
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
    text: &Reading,
    path: &Path,
    watch: Watch<'_>,
) -> Result<Vec<Point>> {
    let made_of: Vec<String> = sizes.iter().map(|&size| made_of(&records[..size], &text.rows)).collect();
    let mut points = read(path)?;
    points.retain(|point| point.error.is_none() && made_of.contains(&point.made_of));
    let requests: Vec<EditRequest> = records.iter().map(EditRequest::from).collect();
    for mode in [Mode::Batch, Mode::Sequential] {
        let known: Vec<bool> = made_of
            .iter()
            .map(|made_of| points.iter().any(|point| point.mode == mode.name() && point.made_of == *made_of))
            .collect();
        let mut sequence = Reached::new(base);
        for (place, &edits) in sizes.iter().enumerate() {
            // A sequence is made again from its beginning, up to the last point that is left.
            if known[place] && (mode == Mode::Batch || known[place..].iter().all(|known| *known)) {
                watch();
                continue;
            }
            let requests = &requests[..edits];
            let reached = match mode {
                Mode::Batch => Reached::at_once(editor, base, requests)?,
                _ => {
                    sequence.go_on(editor, requests, &mut |_, _| Ok(()))?;
                    sequence.clone()
                }
            };
            if !known[place] {
                let made_of = made_of[place].clone();
                points.push(point(base, &reached, mode, &records[..edits], text, made_of)?);
                points.sort_by(|a, b| (&a.mode, a.edits).cmp(&(&b.mode, b.edits)));
                files::write(path, serde_json::to_string_pretty(&points).unwrap_or_default().as_bytes())?;
            }
            watch();
        }
    }
    Ok(points)
}

/// What a point is made of.
fn made_of(records: &[EditRecord], text: &[Vec<u32>]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(serde_json::to_string(&(records, text)).unwrap_or_default().as_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

/// A model as it is after some edits.
///
/// # Errors
/// What is no edit's fault.
fn point(
    base: &Edited,
    reached: &Reached,
    mode: Mode,
    records: &[EditRecord],
    text: &Reading,
    made_of: String,
) -> Result<Point> {
    let edits = records.len();
    let mut point = Point {
        mode: mode.name().into(),
        edits,
        made_of,
        asked: 0,
        figures: Summary::default(),
        failed: reached.lost.len(),
        retained: None,
        last: None,
        perplexity: None,
        relative: 0.0,
        collapsed: false,
        error: None,
    };
    if let Some((number, why)) = reached.lost.first_key_value().filter(|_| reached.lost.len() == edits) {
        point.error = Some(format!("no edit could be made; edit {number}: {why}"));
        return Ok(point);
    }
    let seen = (|| {
        let (rows, unasked) = ask(base, &reached.after, records, &reached.lost)?;
        point.failed += unasked;
        if mode == Mode::Sequential {
            let (last, earlier): (Vec<ProbeRow>, Vec<ProbeRow>) =
                rows.iter().cloned().partition(|row| row.record + 1 == edits);
            (point.last, point.retained) = (summarize(&last).edit_success, summarize(&earlier).edit_success);
        }
        point.asked = rows.iter().map(|row| row.record).collect::<BTreeSet<_>>().len();
        point.figures = summarize(&rows);
        // A model that has no number to say has collapsed, text or not.
        point.collapsed = rows.iter().any(|row| row.after.log_probabilities.iter().any(|log| log.is_nan()));
        if let Some(unedited) = text.unedited(base)? {
            let now = perplexity(&reached.after, &text.rows)?;
            point.collapsed |= !now.is_finite() || now > COLLAPSE * unedited;
            // A number that is not finite has no form in JSON.
            point.perplexity = Some(now).filter(|now| now.is_finite());
        }
        point.relative = size(&reached.after)?.relative;
        Ok(())
    })();
    if let Err(error) = seen {
        point.error = Some(fault(error)?);
    }
    Ok(point)
}

/// The probe table of the first and the last edits of a list, but for those that failed; and how many could not be asked.
fn ask(
    base: &Edited,
    after: &Edited,
    records: &[EditRecord],
    lost: &BTreeMap<usize, String>,
) -> Result<(Vec<ProbeRow>, usize)> {
    let count = records.len();
    let near = |number: usize| count <= ASKED || number < ASKED / 2 || number >= count - ASKED / 2;
    let numbered = records.iter().enumerate();
    let chosen: Vec<(usize, &EditRecord)> =
        numbered.filter(|(number, _)| near(*number) && !lost.contains_key(number)).collect();
    let limits = Limits { rephrases: 1, per_class: 1, rivals: false };
    let parts = chosen.len().div_ceil(parallel::parts(&base.base().decoder.device())).max(1);
    let tables = parallel::run(chosen.chunks(parts).collect(), |part: &[(usize, &EditRecord)]| {
        let together = probe_table(base, after, part, limits);
        let Err(error) = together else { return Ok((together?, 0)) };
        fault(error)?;
        // One of them cannot be asked: each by itself.
        let (mut rows, mut unasked) = (vec![], 0);
        for record in part.chunks(1) {
            match probe_table(base, after, record, limits) {
                Ok(more) => rows.extend(more),
                Err(error) => {
                    unasked += 1;
                    tracing::warn!("edit {} of a curve cannot be asked for: {}", record[0].0, fault(error)?);
                }
            }
        }
        Ok((rows, unasked))
    })?;
    let unasked = tables.iter().map(|(_, unasked)| unasked).sum();
    Ok((tables.into_iter().flat_map(|(rows, _)| rows).collect(), unasked))
}
