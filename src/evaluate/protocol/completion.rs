//! The protocol `completion` (Mitchell et al., 2022, their task for GPT models): tokens of a passage's completion, and what it costs.

use super::{Protocol, Value, Values};
use crate::evaluate::case::Case;
use crate::evaluate::metrics::completion;

/// The values of a case whose edit is a completion; none of another.
///
/// ```text
/// tokens                     share of the completion's tokens that are the likeliest in their places, behind the whole passage
/// cut_tokens                 the same behind the passage without its beginning
/// perplexity_before, _after  of a running text
/// ```
pub fn values(case: &Case) -> Vec<Value> {
    let mut values = Values::new(Protocol::Completion);
    if case.completion {
        let figures = completion(&case.rows);
        values.push("tokens", figures.tokens);
        values.push("cut_tokens", figures.cut_tokens);
        values.push("perplexity_before", case.perplexity.map(|[before, _]| before));
        values.push("perplexity_after", case.perplexity.map(|[_, after]| after));
    }
    values.all()
}
