//! The protocol `efficiency`: what an edit costs and how large it is.

use super::{Protocol, Value, Values};
use crate::evaluate::case::Case;

/// The most memory the process held, over what it held before the editor: over cases the largest counts, not the mean.
pub const PEAK: &str = "peak_memory";

/// The values of a case: `seconds/PHASE`, `peak_memory`, `rank`, `norm`, `relative_norm` and `entries`.
///
/// Memory is the method's where its editor was the first to work in the process. Of others nothing is known: allocators keep what editors
/// before them freed.
pub fn values(case: &Case) -> Vec<Value> {
    let mut values = Values::new(Protocol::Efficiency);
    for (phase, &seconds) in &case.seconds {
        values.push(format!("seconds/{phase}"), Some(seconds));
    }
    values.push(PEAK, case.memory_before_bytes.map(|before| case.peak_memory_bytes.saturating_sub(before) as f64));
    values.push("rank", Some(case.size.rank as f64));
    values.push("norm", Some(case.size.norm));
    values.push("relative_norm", Some(case.size.relative));
    values.push("entries", Some(case.size.entries as f64));
    values.all()
}
