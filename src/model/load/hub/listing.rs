//! What the hub says a repository holds.

use serde::Deserialize;

/// A repository at one commit.
pub(super) struct Listing {
    /// The repository's own id: the one asked for may be an older name of it.
    pub(super) id: String,
    pub(super) commit: String,
    files: Vec<RemoteFile>,
}

/// A file of a repository.
pub(super) struct RemoteFile {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// Its name among the cache's blobs: the SHA-256 of a large file, Git's hash of a small one.
    pub(super) blob: String,
    /// Known for the large files, which Git LFS keeps.
    pub(super) sha256: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    id: Option<String>,
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: Option<u64>,
}

impl Listing {
    /// Reads the answer of `/api/models/ID/revision/main?blobs=true`. Files without a length or a hash are left out.
    pub(super) fn parse(text: &str, asked: &str) -> Result<Self, String> {
        let answer: Answer = serde_json::from_str(text)
            .map_err(|error| format!("not a hub's list of files ({error}); is HF_ENDPOINT right?"))?;
        // Commit and hashes become names of files and folders here, so they may be nothing else than hashes.
        if !is_hash(&answer.sha) {
            return Err("the commit it names is not a hash".into());
        }
        let files = answer.siblings.into_iter().filter_map(|sibling| {
            let sha256 = sibling.lfs.as_ref().map(|lfs| lfs.sha256.to_ascii_lowercase());
            let size = sibling.lfs.and_then(|lfs| lfs.size).or(sibling.size)?;
            let blob = sha256.clone().or(sibling.blob_id).filter(|hash| is_hash(hash))?;
            Some(RemoteFile { name: sibling.rfilename, size, blob, sha256 })
        });
        let id = answer.id.filter(|id| super::is_hub_id(id)).unwrap_or_else(|| asked.to_owned());
        Ok(Listing { id, commit: answer.sha, files: files.collect() })
    }

    pub(super) fn find(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Why a repository without the weights we read cannot be used, and what would be right.
    pub(super) fn why_no_weights(&self) -> String {
        let of = |endings: &[&str]| {
            self.files
                .iter()
                .find(|file| endings.iter().any(|ending| file.name.ends_with(ending)))
                .map(|file| &file.name)
        };
        if let Some(file) = of(&[".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"]) {
            return format!(
                "it has no model.safetensors, only such weights as {file}, which are never read; \
                 save it with `safe_serialization=True` and use that folder"
            );
        }
        match of(&[".safetensors", ".gguf"]) {
            Some(file) => format!("it has {file}, but neither model.safetensors nor its index"),
            None => "it has no weights (model.safetensors, or shards with their index)".into(),
        }
    }
}

fn is_hash(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}
