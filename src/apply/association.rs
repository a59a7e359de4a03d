//! What ROME, MEMIT and their kin have in common: an association of a key with a value that is put into MLP layers.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::contexts::Sampled;
use super::value::Descent;

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
