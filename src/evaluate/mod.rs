//! Probes of edits in one table, and metrics that are functions of that table alone; and of a comparison's cases: their values by
//! protocol, means with intervals, and tests between two methods.

pub mod aggregate;
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
