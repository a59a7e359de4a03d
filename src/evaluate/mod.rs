//! Probes of edits in one table, and metrics that are functions of that table alone; and of a comparison's cases: their values by
//! protocol, means with intervals, and tests between two methods.

pub mod aggregate;
pub mod answers;
pub mod best;
mod bootstrap;
pub mod case;
pub mod metrics;
pub mod paired;
pub mod perplexity;
pub mod probes;
pub mod problem;
pub mod protocol;
mod rows;
pub mod significance;
pub mod snippets;
pub mod steered;

pub use aggregate::{Figure, aggregate, failed};
pub use best::{Best, Method, Other, best};
pub use metrics::{
    Balanced, Completion, CounterFact, Sentiment, Summary, balanced, completion, counterfact, sentiment, summarize,
};
pub use paired::{Difference, paired};
pub use perplexity::{PerplexityRatio, WatchedText, perplexity, windows};
pub use probes::{Kind, ProbeRow, Rival, probe_table};
pub use protocol::{
    About, Better, Measured, Protocol, Unit, Value, about, known_unedited, measure, measure_all, values,
};
pub use rows::{Side, in_headline, rival};
pub use significance::{Test, holm};
pub use snippets::{Snippets, reference_score};

use crate::edit::likelihood::bytes_of_scoring;
use crate::plan::{Held, Work};

/// What looking at edits holds: their records' questions, as many records side by side as there are parts; and where one is watched a running text of so many tokens.
pub fn looking(work: &Work<'_>, text: Option<usize>) -> Held {
    let parts = work.threads.min(work.texts.records.max(1)) as u64;
    let text = text.map_or(0, |tokens| perplexity::bytes_of_reading(work, tokens));
    Held::during(LOOKING, "the questions of records, and running text", (parts * bytes_of_scoring(work)).max(text))
}

/// The part of the work in which edits are looked at.
pub const LOOKING: &str = "looking at edits";
