//! A folder of traced facts: one file a fact, and what all were traced with.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::noise::Noise;
use super::{Question, Restored, trace};
use crate::data::objective::Hidden;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::files;

/// A folder of traced facts.
#[derive(Debug)]
pub struct Traces {
    folder: PathBuf,
}

impl Traces {
    /// Begins a folder, or goes on with one whose facts were traced alike: `params` is all that decides that.
    ///
    /// # Errors
    /// A folder that cannot be written, or that holds results of another tracing.
    pub fn begin(folder: &Path, params: &Value) -> Result<Self> {
        let path = folder.join("params.json");
        if path.is_file() {
            let known = read(&path)?;
            let apart = params.as_object().into_iter().flatten().find(|(key, value)| known.get(key) != Some(value));
            if let Some((key, value)) = apart {
                let message = format!(
                    "results of another tracing: there {key} is {}, now {value}; give another --out",
                    known[key]
                );
                return Err(Error::file(folder, message));
            }
        } else {
            files::check_writable(folder)?;
            files::write(&path, format!("{params:#}\n").as_bytes())?;
        }
        Ok(Traces { folder: folder.to_owned() })
    }

    /// Where a fact lies.
    pub fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("fact_{number:05}.json"))
    }

    /// Traces a fact and writes it down; of one whose answer the model does not give, that.
    ///
    /// # Errors
    /// A file that cannot be written, a model that cannot be traced.
    pub fn trace(
        &self,
        number: usize,
        model: &Edited,
        request: &EditRequest,
        noise: Hidden,
        restored: &Restored,
    ) -> Result<()> {
        let tokenizer = &model.base().tokenizer;
        let document = match Question::new(model, request) {
            Err(Error::Input(why)) => json!({ "format": "trace/1", "left_out": why }),
            Err(other) => return Err(other),
            Ok(question) if !question.is_answered() => {
                let (answer, says) = (tokenizer.token(question.answer), tokenizer.token(question.says.0));
                let why = format!("the model says {says:?}, not {answer:?}");
                json!({ "format": "trace/1", "prompt": question.prompt, "left_out": why })
            }
            Ok(question) => {
                let noise = Noise::draw(model, &question, noise);
                trace(model, &question, &noise, restored)?.document(tokenizer)
            }
        };
        files::write(&self.path(number), format!("{document:#}\n").as_bytes())
    }

    /// What is there of a fact.
    ///
    /// # Errors
    /// A broken file.
    pub fn read(&self, number: usize) -> Result<Option<Value>> {
        let path = self.path(number);
        if path.is_file() { read(&path).map(Some) } else { Ok(None) }
    }
}

fn read(path: &Path) -> Result<Value> {
    serde_json::from_slice(&files::read(path)?).map_err(|error| Error::file(path, format!("not JSON: {error}")))
}
