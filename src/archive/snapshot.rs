//! The state of a training on disk, switched as a whole.
//!
//! Each snapshot is a folder of its own, `training/STEP-N`: progress.json, last.safetensors (the editor), best.safetensors (the
//! best editor so far) and the optimisers. `training/current` names the one that counts; it is replaced by renaming, after the new
//! folder is whole on disk. A process killed at any moment leaves the old snapshot or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Best;
use crate::error::{Error, Result};
use crate::files;

/// Where a training stands. It holds no times: a resumed run and one left alone write the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Bytes of metrics.jsonl that belong to them.
    pub metrics_bytes: u64,
    /// The best validation so far.
    pub best: Option<Best>,
    /// What it was judged by.
    #[serde(default)]
    pub best_score: Option<f64>,
    /// Whether there were validations with different scores: until then no state is better than another.
    #[serde(default)]
    pub scores_vary: bool,
    /// Whether a validation after this step is due and was not made.
    #[serde(default)]
    pub unjudged: bool,
    /// Validations since the last gain.
    pub without_gain: usize,
    /// Steps skipped in a row because a loss or gradient was not finite.
    pub not_finite: usize,
    /// Whether the training has ended.
    pub finished: bool,
    /// The fingerprint of the base it runs on.
    pub base: String,
    /// What else it stands on, models and records, by their keys in the config with their fingerprints.
    #[serde(default)]
    pub made_of: BTreeMap<String, String>,
    /// The configuration it runs under.
    pub config: serde_json::Value,
}

/// Writes a file under a name: a network's tensors need not be held a second time as bytes.
pub type Write<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;

/// What a snapshot holds.
pub struct Snapshot<'a> {
    /// Where the training stands.
    pub progress: Progress,
    /// The editor as it is, a safetensors file.
    pub last: Write<'a>,
    /// Whether it is the best so far; otherwise the previous snapshot's best is kept.
    pub is_best: bool,
    /// One state an optimiser.
    pub optimizers: Vec<Write<'a>>,
}

/// The `training` folder of an archive.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Of the archive in `archive`.
    pub fn new(archive: &Path) -> Self {
        Store { folder: archive.join("training") }
    }

    /// Keeps other processes from training here as long as the file lives.
    ///
    /// # Errors
    /// Another process trains here; a folder that cannot be written.
    pub fn lock(&self) -> Result<fs::File> {
        files::lock(&self.folder, "another process trains in this folder; wait for it, or use another --out")
    }

    fn pointer(&self) -> PathBuf {
        self.folder.join("current")
    }

    /// The folder of the snapshot that counts, if there is one.
    ///
    /// # Errors
    /// A pointer that names no folder here.
    pub fn current(&self) -> Result<Option<PathBuf>> {
        let pointer = self.pointer();
        if !pointer.is_file() {
            return Ok(None);
        }
        let name = fs::read_to_string(&pointer).map_err(Error::io(&pointer))?;
        let folder = self.folder.join(name.trim());
        let inside = Path::new(name.trim()).components().count() == 1 && name.trim().starts_with("step-");
        if !inside || !folder.is_dir() {
            return Err(Error::file(
                &pointer,
                format!("\"{}\" is no snapshot here; train again with another --out", name.trim()),
            ));
        }
        Ok(Some(folder))
    }

    /// The progress of the snapshot that counts.
    ///
    /// # Errors
    /// A snapshot that is broken.
    pub fn progress(&self) -> Result<Option<Progress>> {
        let Some(folder) = self.current()? else { return Ok(None) };
        let path = folder.join("progress.json");
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map(Some).map_err(|error| Error::file(&path, error))
    }

    /// Writes a snapshot and makes it the one that counts.
    ///
    /// # Errors
    /// A folder that cannot be written; the old snapshot still counts then.
    pub fn write(&self, snapshot: &Snapshot<'_>) -> Result<()> {
        let old = self.current()?;
        let state = match &snapshot.progress {
            Progress { finished: true, .. } => "-end",
            Progress { unjudged: true, .. } => "-unjudged",
            _ => "",
        };
        let name = format!("step-{:08}{state}", snapshot.progress.step);
        let folder = self.folder.join(&name);
        if old.as_ref() == Some(&folder) {
            return Ok(());
        }
        // What a killed process left behind.
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let (last, best) = (folder.join("last.safetensors"), folder.join("best.safetensors"));
        crate::files::write_by(&last, &snapshot.last)?;
        match &old {
            _ if snapshot.is_best => crate::files::link(&last, &best)?,
            Some(old) if old.join("best.safetensors").is_file() => {
                crate::files::link(&old.join("best.safetensors"), &best)?;
            }
            _ => {}
        }
        for (number, state) in snapshot.optimizers.iter().enumerate() {
            crate::files::write_by(&folder.join(format!("optimizer-{number}.bpk")), state)?;
        }
        let progress = serde_json::to_string_pretty(&snapshot.progress).unwrap_or_default();
        crate::files::write(&folder.join("progress.json"), progress.as_bytes())?;
        crate::files::sync_folder(&folder)?;
        crate::files::write(&self.pointer(), name.as_bytes())?;
        crate::files::sync_folder(&self.folder)?;
        self.clean(&folder)
    }

    /// Removes all snapshots but one: those of a process that was killed too.
    ///
    /// # Errors
    /// A folder that cannot be changed.
    pub fn clean(&self, keep: &Path) -> Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))?.flatten() {
            let path = entry.path();
            if path != keep && path.is_dir() {
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }
}
