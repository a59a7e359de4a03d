//! What ROME, MEMIT and their kin have in common: an association of a key with a value that is put into MLP layers.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::contexts::Sampled;
use super::value::Descent;
use crate::model::stack::sizes::Pass;
use crate::plan::{OfEditor, Work};
use crate::statistics;

/// The settings of an association: where it goes, how its value is found, and what keeps other keys still.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Association {
    /// The layers, lowest first.
    pub layers: Vec<usize>,
    /// How the value is found.
    #[serde(flatten)]
    pub descent: Descent,
    /// A file of `emend stats`, or "none" for C = 1.
    pub statistics: String,
    /// Texts with `{}` where the prompt stands; sampled where there are none.
    #[serde(default)]
    pub context_templates: Vec<String>,
    /// How contexts are sampled.
    pub context: Sampled,
}

impl Association {
    /// The statistics' file, where there is one.
    pub fn statistics(&self) -> Option<&str> {
        (self.statistics != "none").then_some(self.statistics.as_str())
    }

    /// What is held: statistics of all layers; in an edit of some requests at once the rows of their contexts up to the last layer, a graph over the cells
    /// from the subject on above it, and the vocabulary where targets are read. The subject is taken to end in the middle of a prompt.
    pub fn held(&self, work: &Work<'_>, requests: usize) -> OfEditor {
        let (spec, texts) = (work.spec, work.texts);
        let sampled: usize = self.context.lengths.iter().map(|[_, count]| count).sum();
        let (longest, contexts) = match self.context_templates.len() {
            0 => (self.context.lengths.iter().map(|[tokens, _]| *tokens).max().unwrap_or(0), 1 + sampled),
            given => (self.context_templates.iter().map(String::len).max().unwrap_or(0) / 4, given),
        };
        let contexts = contexts.max(work.draws);
        let rows = requests * (contexts + 1);
        let last = self.layers.last().copied().unwrap_or(0);
        let above = spec.layers.saturating_sub(last + 1);
        let right = texts.row.div_ceil(2);
        let left = longest + texts.row - right;
        let cone = Pass { rows, tokens: right, past: left };
        let reads = requests * (contexts * texts.target + 1);
        // Where matrices stay in their file, δ is found layer by layer, and each layer's are cast for its graph.
        let (layers, cast) = if work.in_file { (1, spec.layers_bytes(spec.depth() - 1)) } else { (above, 0) };
        let descent = spec.past_bytes(Pass::new(rows, left), above)
            + spec.graph_bytes(cone, layers)
            + 6 * spec.logits_bytes(reads);
        let below = spec.block_bytes(Pass::new(rows, left + right));
        let layers = if self.statistics().is_some() { self.layers.len() } else { 0 };
        OfEditor { kept: statistics::bytes_of(spec, layers), edit: cast + descent.max(below) }
    }

    /// The context templates, and how they are sampled where there are none.
    pub fn contexts(&mut self) -> (&mut Vec<String>, &Sampled) {
        (&mut self.context_templates, &self.context)
    }
}

/// What MEMIT and its kin have where a config says nothing: z is held nearer to its beginning than ROME's v*, and five words begin the
/// contexts.
pub(super) fn defaults_of_many() -> Table {
    toml::toml! {
        clamp = 0.75
        context = { lengths = [[10, 5]], starts = ["The", "Therefore", "Because", "I", "You"] }
    }
}
