//! metrics.jsonl: a line a step and a line a validation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// metrics.jsonl, cut back to what a snapshot knows of it.
pub struct Metrics {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Metrics {
    /// # Errors
    /// A file that is shorter than the snapshot knows it, or cannot be written.
    pub fn open(path: &Path, bytes: u64) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length < bytes {
            return Err(Error::file(
                path,
                format!("it holds {length} bytes, the snapshot knows {bytes}; the training cannot be resumed"),
            ));
        }
        file.set_len(bytes).map_err(Error::io(path))?;
        Ok(Metrics { path: path.to_owned(), file, bytes })
    }

    /// # Errors
    /// A full disk.
    pub fn line(&mut self, value: &serde_json::Value) -> Result<()> {
        let line = format!("{value}\n");
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Brings what was written to the disk and gives its length in bytes.
    ///
    /// # Errors
    /// A full disk.
    pub fn sync(&self) -> Result<u64> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok(self.bytes)
    }
}
