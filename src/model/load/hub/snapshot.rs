//! A repository in the Hugging Face cache: `blobs/HASH`, `snapshots/COMMIT/NAME` linked to them, `refs/main`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use super::listing::RemoteFile;
use super::{INDEX, LONGEST, NEEDED, WEIGHTS};
use crate::fetch::{FetchError, sha256_of, write_whole};

/// The branch that is meant where none is named.
const BRANCH: &str = "main";

pub(super) struct Snapshots {
    cached: CacheRepo,
    repo: Repo,
    folder: PathBuf,
}

impl Snapshots {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, BRANCH.to_owned());
        let folder = cache.join(repo.folder_name());
        Snapshots { cached: Cache::new(cache.to_owned()).repo(repo.clone()), repo, folder }
    }

    pub(super) fn repo(&self) -> &Repo {
        &self.repo
    }

    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.cached.blob_path(hash)
    }

    /// The snapshot that `refs/main` means if it is complete, else the newest complete one, else none.
    pub(super) fn complete(&self) -> Option<PathBuf> {
        let main = fs::read_to_string(self.folder.join("refs").join(BRANCH)).ok();
        let main =
            main.map(|commit| commit.trim().to_owned()).filter(|commit| commit.chars().all(char::is_alphanumeric));
        let mut others: Vec<(SystemTime, PathBuf)> = fs::read_dir(self.folder.join("snapshots"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        others.sort_by(|a, b| b.cmp(a));
        let main = main.filter(|commit| !commit.is_empty()).map(|commit| self.cached.pointer_path(&commit));
        main.into_iter().chain(others.into_iter().map(|(_, path)| path)).find(|folder| is_complete(folder))
    }

    /// Checks the files of a snapshot that are named by their SHA-256, as the large ones are.
    pub(super) fn verify(&self, snapshot: &Path) -> Result<(), FetchError> {
        let unreadable = |error: io::Error| FetchError::file("read", snapshot, &error);
        for entry in fs::read_dir(snapshot).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let Ok(blob) = fs::canonicalize(&path) else { continue };
            let Some(hash) = blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name)) else {
                continue;
            };
            let found = sha256_of(&blob)?;
            if found != hash {
                let advice = "connect to the network and run `emend fetch` for this model again".into();
                return Err(FetchError::Checksum { path, expected: hash.to_owned(), found, advice });
            }
        }
        Ok(())
    }

    /// Links the blobs of `files` under their names, in this order, and makes the commit the branch's.
    pub(super) fn publish(&self, commit: &str, files: &[&RemoteFile]) -> Result<PathBuf, FetchError> {
        let snapshot = self.cached.pointer_path(commit);
        fs::create_dir_all(&snapshot).map_err(|error| FetchError::file("create the folder", &snapshot, &error))?;
        for file in files {
            let name = snapshot.join(&file.name);
            // A link that is there may lead to a blob that was wrong and is gone, so it is made anew.
            let made = fs::remove_file(&name)
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                .and_then(|()| link(&self.blob(&file.blob), &file.blob, &name));
            made.map_err(|error| FetchError::file("write", &name, &error))?;
        }
        write_whole(&self.folder.join("refs").join(BRANCH), commit)?;
        Ok(snapshot)
    }
}

/// The files that an index of weights names.
pub(super) fn shards_of(index: &Path) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    if fs::metadata(index).is_ok_and(|found| found.len() > LONGEST) {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    let text = fs::read_to_string(index).map_err(|error| format!("cannot be read ({error})"))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| format!("is not an index of weights ({error})"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err("names no file".into());
    }
    // A name from elsewhere must not lead out of the snapshot's folder.
    match shards.iter().find(|name| !name.ends_with(".safetensors") || name.contains(['/', '\\', ':'])) {
        Some(name) => Err(format!("names `{name}`, which is no plain name of a safetensors file")),
        None => Ok(shards),
    }
}

/// Configuration, tokenizer and all weights are there; links that lead nowhere are not.
fn is_complete(folder: &Path) -> bool {
    let there = |name: &str| fs::metadata(folder.join(name)).is_ok_and(|found| found.is_file() && found.len() > 0);
    NEEDED.iter().all(|name| there(name))
        && (there(WEIGHTS)
            || there(INDEX)
                && shards_of(&folder.join(INDEX)).is_ok_and(|shards| shards.iter().all(|shard| there(shard))))
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(unix)]
fn link(_blob: &Path, hash: &str, name: &Path) -> io::Result<()> {
    // Relative, so that the cache can be moved.
    std::os::unix::fs::symlink(Path::new("../../blobs").join(hash), name)
}

#[cfg(not(unix))]
fn link(blob: &Path, _hash: &str, name: &Path) -> io::Result<()> {
    fs::hard_link(blob, name).or_else(|_| fs::copy(blob, name).map(drop))
}
