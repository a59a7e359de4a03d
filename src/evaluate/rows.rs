//! What all protocols share: means over rows, and what a row says on one side of an edit.

use super::probes::{Kind, ProbeRow, Rival};
use crate::data::record::ATTRIBUTE;
use crate::edit::likelihood::Scored;

/// What stands before an edit, and what after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The model as it was.
    Before,
    /// The edited model.
    After,
}

impl ProbeRow {
    /// Its target, as the model of that side scores it.
    pub fn scored(&self, side: Side) -> &Scored {
        match side {
            Side::Before => &self.before,
            Side::After => &self.after,
        }
    }
}

/// The mean of values, or nothing where there are none.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// The share of rows of which something holds, or nothing where there are none.
pub(super) fn share<'a>(rows: impl Iterator<Item = &'a ProbeRow>, holds: impl Fn(&ProbeRow) -> bool) -> Option<f64> {
    mean(rows.map(|row| f64::from(u8::from(holds(row)))))
}

/// Whether a row is of the headline of locality: out of scope, and of no class that stands beside it.
pub fn in_headline(row: &ProbeRow) -> bool {
    row.kind == Kind::Locality && row.class.as_deref() != Some(ATTRIBUTE)
}

/// The answer that a row's target is up against; nothing where the two are the same, for then neither can be the likelier one.
pub fn rival(row: &ProbeRow) -> Option<&Rival> {
    row.rival.as_ref().filter(|rival| rival.target.trim() != row.target.trim())
}

/// Mean negative log-likelihoods a token of target and rival.
pub(super) fn against(row: &ProbeRow, side: Side) -> Option<(f64, f64)> {
    let rival = rival(row)?;
    Some(match side {
        Side::Before => (row.before.nll(), rival.before.nll()),
        Side::After => (row.after.nll(), rival.after.nll()),
    })
}

/// The label that is right, where target and rival are the two labels "True" and "False", in any case.
pub(super) fn verdict(row: &ProbeRow) -> Option<bool> {
    let label = |text: &str| match text.trim() {
        text if text.eq_ignore_ascii_case("true") => Some(true),
        text if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    };
    let (right, wrong) = (label(&row.target)?, label(&row.rival.as_ref()?.target)?);
    (right != wrong).then_some(right)
}
