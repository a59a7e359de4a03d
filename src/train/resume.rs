//! Whose training a folder holds, and going on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use burn::optim::ModuleOptimizer;
use burn::tensor::Bytes;

use super::learned::LearnedEditor;
use crate::archive::snapshot::{Progress, Store};
use crate::data::record::EditRecord;
use crate::error::{Error, Result};
use crate::panics::caught;
use crate::{files, tensors};

/// Makes sure that a folder can take a new training: it is new, or its training is to be resumed. What it gives keeps others from
/// training there as long as it lives.
///
/// # Errors
/// A folder that holds a training already, or none to resume, or in which another process trains.
pub fn claim_folder(folder: &Path, resume: bool) -> Result<File> {
    check_free(folder, resume)?;
    files::check_writable(folder)?;
    let lock = Store::new(folder).lock()?;
    // Another process may have trained here between the first look and the lock.
    check_free(folder, resume)?;
    files::remove_leftovers(folder)?;
    files::remove_leftovers(&folder.join("training"))?;
    Ok(lock)
}

fn check_free(folder: &Path, resume: bool) -> Result<()> {
    let is_archive = folder.join("archive.toml").is_file();
    let message = match (Store::new(folder).progress()?, resume) {
        (Some(progress), false) => format!(
            "{} holds a training of {} steps already; --resume goes on with it, --out DIR trains elsewhere",
            folder.display(),
            progress.step
        ),
        (None, true) if is_archive => format!("{} holds no training state to resume", folder.display()),
        (None, false) if is_archive => {
            format!("{} holds an archive already; --out DIR trains elsewhere", folder.display())
        }
        (None, _) if is_foreign(folder) => {
            format!("{} holds files that are none of a training; --out DIR trains elsewhere", folder.display())
        }
        (None, true) => {
            tracing::warn!("there is nothing to resume in {}: the training begins anew", folder.display());
            return Ok(());
        }
        _ => return Ok(()),
    };
    Err(Error::Config(message))
}

/// Whether a folder holds something, and nothing that a training wrote.
fn is_foreign(folder: &Path) -> bool {
    let ours = ["training", "metrics.jsonl"].iter().any(|name| folder.join(name).exists());
    !ours && std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Puts editor and optimisers into the state of the last snapshot, where there is one, and gives where that stands. `new` is a
/// training's progress before its first step.
///
/// # Errors
/// A snapshot of another configuration, of other models or records, or one with a broken file.
pub fn resume<E: LearnedEditor>(
    store: &Store,
    new: &Progress,
    editor: &mut E,
    optimizers: &mut [ModuleOptimizer],
) -> Result<Option<Progress>> {
    let (Some(saved), Some(folder)) = (store.progress()?, store.current()?) else { return Ok(None) };
    same_config(&saved.config, &new.config)?;
    if saved.base != new.base {
        return Err(Error::OtherBase {
            what: format!("the training in {}", folder.display()),
            made_on: saved.base,
            model: new.base.clone(),
        });
    }
    same_made_of(&saved.made_of, &new.made_of)?;
    let last = folder.join("last.safetensors");
    editor.restore(tensors::read(&last)?).map_err(|error| Error::file(&last, error))?;
    for (number, optimizer) in optimizers.iter_mut().enumerate() {
        let path = folder.join(format!("optimizer-{number}.bpk"));
        let state = std::fs::read(&path).map_err(Error::io(&path))?;
        // burn panics on some broken files.
        let loaded = caught(|| optimizer.clone().from_bytes(Bytes::from_bytes_vec(state)));
        let broken = || Error::file(&path, "not a whole optimiser state; train again with another --out");
        *optimizer = loaded.and_then(|loaded| loaded.ok()).ok_or_else(broken)?;
    }
    // A broken network never takes the place of a good one.
    let best = folder.join("best.safetensors");
    if best.is_file() {
        editor.clone().restore(tensors::read(&best)?).map_err(|error| Error::file(&best, error))?;
    }
    store.clean(&folder)?;
    Ok(Some(saved))
}

/// BLAKE3 of records, in hexadecimal.
pub fn digest(records: &[EditRecord]) -> String {
    let mut hasher = blake3::Hasher::new();
    for record in records {
        hasher.update(serde_json::to_string(record).unwrap_or_default().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Sees that a training goes on with the models and records that it began with.
fn same_made_of(saved: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Result<()> {
    let names: BTreeSet<&String> = saved.keys().chain(now.keys()).collect();
    let Some(name) = names.into_iter().find(|name| saved.get(*name) != now.get(*name)) else { return Ok(()) };
    let of = |known: &BTreeMap<String, String>| known.get(name).map_or("nothing", String::as_str).to_owned();
    Err(Error::Config(format!(
        "--resume: {name} is not what the training began with: its fingerprint was {}, now it is {}; put back what it was, or train \
         with another --out",
        of(saved),
        of(now)
    )))
}

fn same_config(saved: &serde_json::Value, now: &serde_json::Value) -> Result<()> {
    fn first_difference(path: String, a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
        match (a.as_object(), b.as_object()) {
            (Some(x), Some(y)) => {
                let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
                let null = serde_json::Value::Null;
                keys.into_iter().find_map(|key| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    first_difference(path, x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null))
                })
            }
            _ => (a != b).then(|| format!("{path} was {a}, now it is {b}")),
        }
    }
    match first_difference(String::new(), saved, now) {
        None => Ok(()),
        Some(difference) => Err(Error::Config(format!(
            "--resume: the training began under another configuration ({difference}); resume under the same, or train with another --out"
        ))),
    }
}
