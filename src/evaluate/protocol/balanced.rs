//! The protocol `balanced`: claims, answered True or False.

use serde::{Deserialize, Serialize};

use super::counterfact::success;
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::{Side, against, mean, verdict};

/// Probes of one label, and how many of them were answered rightly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Probes whose answer is likelier than the other label, by log-likelihood a token. A tie is none.
    pub right: usize,
    /// All of them.
    pub asked: usize,
}

/// Answers to claims by their right label, False first: the parts that balanced accuracy over many edits is made of.
///
/// A single edit has too few claims for an accuracy of its own; over edits the parts are summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// On the edit's own prompt, rephrases and consequences.
    pub in_scope: [Tally; 2],
    /// On out-of-scope prompts.
    pub out_of_scope: [Tally; 2],
}

impl Labels {
    /// The answers of one side of a table.
    pub fn from_rows(table: &[ProbeRow], side: Side) -> Self {
        let mut labels = Labels::default();
        for row in table {
            let (Some(label), Some((right, wrong))) = (verdict(row), against(row, side)) else { continue };
            let scope = if row.kind == Kind::Locality { &mut labels.out_of_scope } else { &mut labels.in_scope };
            let tally = &mut scope[usize::from(label)];
            tally.right += success(right, wrong) as usize;
            tally.asked += 1;
        }
        labels
    }
}

/// The mean over the labels that occur of the share answered rightly; nothing where none occurs.
pub fn accuracy(tallies: [Tally; 2]) -> Option<f64> {
    balanced_accuracy(tallies.map(|tally| (tally.right as f64, tally.asked as f64)))
}

/// As [`accuracy`], of (right, asked) that may be weighted sums.
pub(in crate::evaluate) fn balanced_accuracy(labels: [(f64, f64); 2]) -> Option<f64> {
    let asked = labels.into_iter().filter(|(_, asked)| *asked > 0.0);
    mean(asked.map(|(right, asked)| right / asked))
}
