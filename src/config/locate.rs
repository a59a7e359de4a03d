//! `emend locate`: the same facts edited at many layers, beside what tracing says of these.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ModelSection;
use crate::error::{Error, Result};
use crate::evaluate::problem::Problem;
use crate::sections::within;
use crate::trace::noise::Strength;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model.
    pub model: ModelSection,
    /// The facts.
    pub data: Data,
    /// What is swept.
    #[serde(default)]
    pub locate: Locate,
    /// The editors, each with its name.
    pub editors: Vec<Swept>,
}

/// `[data]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `pocket`, a named set that `fetch` brings, or a path beside the config; records with a subject and a true answer.
    pub facts: String,
    /// So many facts that the model knows.
    #[serde(default = "twenty")]
    pub limit: usize,
    /// Rephrases a fact is asked at most.
    #[serde(default = "one")]
    pub rephrases: usize,
    /// Prompts about others of each class at most.
    #[serde(default = "one")]
    pub per_class: usize,
    /// The least probability of its answer for a fact to be known.
    #[serde(default = "known")]
    pub known: f64,
}

fn twenty() -> usize {
    20
}

fn one() -> usize {
    1
}

fn known() -> f64 {
    0.02
}

/// `[locate]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Locate {
    /// The problems.
    pub problems: Vec<Problem>,
    /// The layers that are edited; all unless given.
    pub layers: Vec<usize>,
    /// Layers of the windows of MLP outputs that are restored in tracing.
    pub windows: Vec<usize>,
    /// The noise of tracing, of reversal and of forcing: "3x" is three times the deviation of the subjects' embeddings, a number is σ.
    pub noise: Strength,
    /// How often it is drawn.
    pub draws: usize,
    /// The seed of all draws.
    pub seed: u64,
    /// Facts of each problem and layer after whose edit the model writes of the subject (the essence score); it takes longer.
    pub essence: usize,
}

impl Default for Locate {
    fn default() -> Self {
        Locate {
            problems: Problem::ALL.to_vec(),
            layers: vec![],
            windows: vec![5],
            noise: Strength::Times(3.0),
            draws: 10,
            seed: 0,
            essence: 0,
        }
    }
}

/// `[[editors]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swept {
    /// What it is called.
    pub name: String,
    /// Its configuration, beside this one. Its layers are replaced.
    pub config: String,
    /// How many layers around each it edits.
    #[serde(default = "one")]
    pub width: usize,
    /// Values laid over its configuration, as `--set` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// Further ones for a problem.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub problem: BTreeMap<Problem, Vec<String>>,
}

impl Swept {
    /// What is laid over its configuration for a problem, whose own values stand in the place of those for all.
    pub fn sets(&self, problem: Problem) -> Vec<String> {
        let key = |set: &String| set.split('=').next().map(|key| key.trim().to_owned());
        let own = self.problem.get(&problem).cloned().unwrap_or_default();
        let shared = self.set.iter().filter(|set| own.iter().all(|own| key(own) != key(set))).cloned();
        shared.collect::<Vec<_>>().into_iter().chain(own.clone()).collect()
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unknown keys, values out of range, names that no folder can have.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let config: Config = super::read(path, sets)?;
        let wrong = |message: String| Err(Error::Config(format!("{}: {message}", path.display())));
        if config.editors.is_empty() {
            return wrong("there is no [[editors]] to sweep".into());
        }
        let mut names = BTreeSet::new();
        for (number, editor) in config.editors.iter().enumerate() {
            let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
            if editor.name.is_empty() || !editor.name.chars().all(plain) || !names.insert(&editor.name) {
                let name = &editor.name;
                return wrong(format!(
                    "editors[{number}].name = \"{name}\": a name is made of letters, digits, - and _, each once"
                ));
            }
            within(&format!("editors[{number}].width"), editor.width as f64, 1.0, 1e4)?;
        }
        let locate = &config.locate;
        if locate.problems.is_empty() || locate.windows.is_empty() {
            return wrong("locate.problems and locate.windows must each name at least one".into());
        }
        if locate.layers.windows(2).any(|pair| pair[0] >= pair[1]) {
            return wrong("locate.layers must rise".into());
        }
        let twice = |of: &[String]| (1..of.len()).find(|&at| of[..at].contains(&of[at])).map(|at| of[at].clone());
        let problems: Vec<String> = locate.problems.iter().map(|problem| problem.name().to_owned()).collect();
        let windows: Vec<String> = locate.windows.iter().map(usize::to_string).collect();
        for (key, of) in [("problems", &problems), ("windows", &windows)] {
            if let Some(twice) = twice(of) {
                return wrong(format!("locate.{key} names {twice} twice: its edits would count twice"));
            }
        }
        within("data.limit", config.data.limit as f64, 1.0, 1e7)?;
        within("data.known", config.data.known, 0.0, 1.0)?;
        within("locate.draws", locate.draws as f64, 1.0, 1e3)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_sweep_names_editors_that_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        for name in ["pocket", "smollm2", "gpt2xl", "gpt-j-6b"] {
            let path = folder.join(format!("locate-{name}.toml"));
            let config = Config::read(&path, &[]).unwrap();
            assert_eq!((config.locate.problems.len(), config.editors.len()), (5, 4), "{name}");
            for editor in &config.editors {
                for problem in &config.locate.problems {
                    super::super::apply::Config::read(&folder.join(&editor.config), &editor.sets(*problem)).unwrap();
                }
            }
        }
    }
}
