//! Probes of edits in one table, and metrics that are functions of that table alone.

pub mod case;
pub mod metrics;
pub mod probes;

pub use metrics::{Balanced, CounterFact, Sentiment, Side, Summary, balanced, counterfact, sentiment, summarize};
pub use probes::{Kind, ProbeRow, Rival, probe_table};
