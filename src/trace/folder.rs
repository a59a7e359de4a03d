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
    /// A hash of all that they are traced with.
    run: String,
}

/// Whether a folder was begun, and so with these params: `path` is the file in it that says with which.
///
/// # Errors
/// What is apart: each key, what it was and what it is now.
pub fn begun(path: &Path, what: &str, params: &Value) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let mut apart = vec![];
    differences("", &read(path)?, params, &mut apart);
    if apart.is_empty() {
        return Ok(true);
    }
    let folder = path.parent().unwrap_or(path);
    Err(Error::file(folder, format!("results of another {what}: {}; give another --out", apart.join("; "))))
}

impl Traces {
    /// Begins a folder, or goes on with one whose facts were traced alike: `params` is all that decides that.
    ///
    /// # Errors
    /// A folder that cannot be written, or that holds results of something else.
    pub fn begin(folder: &Path, params: &Value) -> Result<Self> {
        let path = folder.join("params.json");
        if !begun(&path, "tracing", params)? {
            // Another process may have begun it just now, with the same params.
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
            if let Some(strange) =
                entries.into_iter().find(|name| !name.to_string_lossy().starts_with('.') && name != "params.json")
            {
                let strange = strange.to_string_lossy().into_owned();
                let message = format!(
                    "there is no params.json beside \"{strange}\", so it cannot be told what made it; give another --out"
                );
                return Err(Error::file(folder, message));
            }
            files::check_writable(folder)?;
            files::write(&path, format!("{params:#}\n").as_bytes())?;
        }
        let run = blake3::hash(params.to_string().as_bytes()).to_hex()[..16].to_owned();
        Ok(Traces { folder: folder.to_owned(), run })
    }

    /// Where a fact lies.
    pub fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("fact_{number:05}.json"))
    }

    /// Traces a fact and writes it down; of one that is left out, why: the model does not give its answer, or cannot read it ([`is_unread`]).
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
        let mut document = match Question::new(model, request) {
            Err(Error::Input(why)) => json!({ "format": "trace/1", "left_out": why, "unread": true }),
            Err(other) => return Err(other),
            Ok(question) if !question.is_answered() => {
                let (answer, says) = (tokenizer.token(question.answer), tokenizer.token(question.says.0));
                let why = format!("the model says {says:?}, not {answer:?}");
                json!({ "format": "trace/1", "prompt": question.prompt, "left_out": why })
            }
            Ok(question) => {
                let noise = Noise::draw(model, &question, noise);
                match trace(model, &question, &noise, restored) {
                    Ok(found) => found.document(tokenizer),
                    Err(Error::Input(why)) => {
                        json!({ "format": "trace/1", "prompt": question.prompt, "left_out": why, "unread": true })
                    }
                    Err(other) => return Err(other),
                }
            }
        };
        document["run"] = json!(self.run);
        document["fact"] = json!(number);
        files::write(&self.path(number), format!("{document:#}\n").as_bytes())
    }

    /// What is there of a fact.
    ///
    /// # Errors
    /// A broken file, or one of another tracing.
    pub fn read(&self, number: usize) -> Result<Option<Value>> {
        let path = self.path(number);
        if !path.is_file() {
            return Ok(None);
        }
        let document = read(&path)?;
        if document["run"] != self.run.as_str() || document["fact"] != json!(number) {
            return Err(Error::file(&path, "a fact of another tracing; remove the file and run the command again"));
        }
        Ok(Some(document))
    }
}

/// Whether a fact's document says that it was left out.
pub fn is_left_out(document: &Value) -> bool {
    document["left_out"].is_string()
}

/// Whether it was left out because the model cannot read it: too long, or without its subject.
pub fn is_unread(document: &Value) -> bool {
    document["unread"] == true
}

fn read(path: &Path) -> Result<Value> {
    let remedy = "remove the file and run the command again";
    serde_json::from_slice(&files::read(path)?)
        .map_err(|error| Error::file(path, format!("not JSON: {error}; {remedy}")))
}

/// In which keys two documents differ, in words.
fn differences(place: &str, known: &Value, now: &Value, found: &mut Vec<String>) {
    match (known, now) {
        (Value::Object(known), Value::Object(now)) => {
            for key in now.keys().chain(known.keys().filter(|key| !now.contains_key(*key))) {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differences(&place, &of(known), &of(now), found);
            }
        }
        (known, now) if known != now => found.push(format!("there {place} is {known}, now {now}")),
        _ => {}
    }
}
