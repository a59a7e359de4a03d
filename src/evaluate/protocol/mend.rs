//! The protocol `mend` (Mitchell et al., 2022): whole targets, exact under teacher forcing.

use super::{Protocol, Value, Values};
use crate::evaluate::case::Case;
use crate::evaluate::metrics::summarize;

/// Perplexity after ÷ before.
pub(super) const RATIO: &str = "perplexity_ratio";

/// The same, of which over cases the largest counts.
pub(super) const WORST_RATIO: &str = "perplexity_ratio/worst";

/// The values of a case.
///
/// ```text
/// edit_success               share of own prompts on which every token of the target is the likeliest
/// generalization             the same on rephrases
/// locality, locality/CLASS   retain rate: share of out-of-scope prompts whose likeliest tokens are all as before
/// drawdown, drawdown/CLASS   exact answers to out-of-scope prompts with a known answer: share before − share after
///                            (without a class: of all but CounterFact's attribute prompts, as the paper's neighborhood)
/// perplexity_ratio           of a text after the edit ÷ before it; the median over cases, and behind /worst the largest
/// perplexity                 of that text after the edit
/// perplexity_drawdown        that perplexity − the unedited model's
/// ```
///
/// Over cases these are averaged, each case alike. [`summarize`], which trainings are steered by, averages over all probes of its
/// table instead, so that a case with more probes counts more.
pub fn values(case: &Case) -> Vec<Value> {
    let summary = summarize(&case.rows);
    let mut values = Values::new(Protocol::Mend);
    values.push("edit_success", summary.edit_success);
    values.push("generalization", summary.generalization);
    values.push("locality", summary.locality);
    for (class, value) in summary.locality_by_class {
        values.push(format!("locality/{class}"), Some(value));
    }
    values.push("drawdown", summary.drawdown);
    for (class, value) in summary.drawdown_by_class {
        values.push(format!("drawdown/{class}"), Some(value));
    }
    let ratio = case.perplexity.map(|[before, after]| after / before);
    values.push(RATIO, ratio);
    values.push(WORST_RATIO, ratio);
    values.push("perplexity", case.perplexity.map(|[_, after]| after));
    values.push("perplexity_drawdown", case.perplexity.map(|[before, after]| after - before));
    values.all()
}
