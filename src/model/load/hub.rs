//! A model's name → a folder with the model in it: a folder here, a folder of models, or the Hugging Face hub.
//!
//! Models of the hub lie in the Hugging Face cache in its standard layout, so that what other tools have brought is
//! found and what is brought here is found by them. `hf-hub` knows that layout, but its downloads append whatever a
//! server sends to what is there and check nothing; so the files come through [`crate::fetch`].

mod listing;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::fetch::{Download, FetchError, FetchSettings, OnProgress, download, get_text, sha256_of, silent};
use listing::{Listing, RemoteFile};
use snapshot::{Snapshots, shards_of};

/// Needed of every model, besides its weights.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Taken along where there are any.
const WELCOME: [&str; 3] = ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"];
/// Weights in one file.
const WEIGHTS: &str = "model.safetensors";
/// The table of weights in several files.
const INDEX: &str = "model.safetensors.index.json";
/// The longest answers of a hub that are read: its list of a repository's files, and an index of weights.
const LONGEST: u64 = 64 << 20;

/// [`resolve_with`] under the settings of the environment, without progress.
///
/// # Errors
/// As [`resolve_with`].
pub fn resolve(name: &str) -> Result<PathBuf, FetchError> {
    resolve_with(name, &FetchSettings::from_env(), &mut silent)
}

/// The folder of the model `name`: a folder if one exists, then a folder of that name in `settings.models`, then a hub
/// id (`organisation/name`, or a bare `name`), from the cache without any network, else brought into it.
///
/// A folder is given as it is; what lies in it is the loader's to judge.
///
/// # Errors
/// Nothing of that name anywhere (the line says what was tried), a gated or unusable repository, a failed download.
pub fn resolve_with(
    name: &str,
    settings: &FetchSettings,
    on_progress: &mut OnProgress<'_>,
) -> Result<PathBuf, FetchError> {
    if let Some(folder) = local(name, settings) {
        return Ok(folder);
    }
    let hub = Hub::new(name, settings)?;
    match hub.snapshots.complete() {
        Some(folder) => Ok(folder),
        None => hub.bring(on_progress),
    }
}

/// Brings the model `name` into the cache, or checks it there: every file with a known SHA-256 is hashed, wrong ones
/// are fetched anew. Without network a model whose cached files are right will do. A folder is given as it is.
///
/// # Errors
/// As [`resolve_with`], and a cached file that is wrong when the hub cannot be asked for a right one.
pub fn fetch(name: &str, settings: &FetchSettings, on_progress: &mut OnProgress<'_>) -> Result<PathBuf, FetchError> {
    if let Some(folder) = local(name, settings) {
        return Ok(folder);
    }
    let hub = Hub::new(name, settings)?;
    match hub.bring(on_progress) {
        Err(error @ FetchError::NoModel { .. }) => match hub.snapshots.complete() {
            Some(folder) => hub.snapshots.verify(&folder).map(|()| folder),
            None => Err(error),
        },
        result => result,
    }
}

/// The hub ids of the models that are complete in the cache, sorted.
pub fn cached(settings: &FetchSettings) -> Vec<String> {
    let Ok(entries) = fs::read_dir(&settings.hub_cache) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|folder| Some(folder.strip_prefix("models--")?.replace("--", "/")))
        .filter(|id| is_hub_id(id) && Snapshots::new(&settings.hub_cache, id).complete().is_some())
        .collect();
    names.sort();
    names
}

fn local(name: &str, settings: &FetchSettings) -> Option<PathBuf> {
    let here = Path::new(name);
    // A file is no model; the loader says why.
    if here.is_dir() || here.is_file() {
        return Some(here.to_owned());
    }
    // Only what lies inside the folder of models counts as a name in it.
    let inside = !name.is_empty() && here.components().all(|part| matches!(part, Component::Normal(_)));
    Some(settings.models.join(here)).filter(|folder| inside && folder.is_dir())
}

/// `name` or `organisation/name`, of the characters and lengths that the hub allows.
fn is_hub_id(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !word.starts_with(['-', '.'])
            && !word.ends_with(['-', '.'])
            && !word.contains("--")
            && !word.contains("..")
    };
    name.len() <= 96 && name.split('/').count() <= 2 && name.split('/').all(word)
}

/// One repository of the hub and its place in the cache.
struct Hub<'a> {
    id: &'a str,
    settings: &'a FetchSettings,
    snapshots: Snapshots,
}

impl<'a> Hub<'a> {
    fn new(id: &'a str, settings: &'a FetchSettings) -> Result<Self, FetchError> {
        let hub = Hub { id, settings, snapshots: Snapshots::new(&settings.hub_cache, id) };
        match is_hub_id(id) {
            true => Ok(hub),
            false => Err(hub.none("it has not the form of a hub id either (`name` or `organisation/name`)".into())),
        }
    }

    /// Brings what is missing or wrong of the newest version, and makes it the cached one.
    fn bring(&self, on_progress: &mut OnProgress<'_>) -> Result<PathBuf, FetchError> {
        if self.settings.offline {
            let cache = self.settings.hub_cache.display();
            return Err(
                self.none(format!("it is not in the hub's cache {cache}; HF_HUB_OFFLINE forbids to ask the hub"))
            );
        }
        let listing = self.listing()?;
        let weights = match (listing.find(WEIGHTS), listing.find(INDEX)) {
            (Some(_), _) => vec![WEIGHTS.to_owned()],
            (None, Some(index)) => {
                // The index says which further files to bring, so it comes first.
                let blob = self.bring_blob(&listing, index, on_progress)?;
                let shards = shards_of(&blob).map_err(|reason| self.unusable(format!("{INDEX} {reason}")))?;
                std::iter::once(INDEX.to_owned()).chain(shards).collect()
            }
            (None, None) => return Err(self.unusable(listing.why_no_weights())),
        };
        // Small files first: a refusal comes before gigabytes. And in the snapshot the needed ones come last, so that
        // one that a kill left half made is never taken for complete.
        let mut wanted: Vec<&RemoteFile> = WELCOME.iter().filter_map(|name| listing.find(name)).collect();
        for name in weights.iter().map(String::as_str).chain(NEEDED) {
            let file = listing.find(name).ok_or_else(|| {
                let advice = match name {
                    "tokenizer.json" => "; save its tokenizer with a recent `transformers` to get one",
                    _ => "",
                };
                self.unusable(format!("it has no {name}{advice}"))
            })?;
            wanted.push(file);
        }
        let mut order = wanted.clone();
        order.sort_by_key(|file| file.size);
        for file in order {
            self.bring_blob(&listing, file, on_progress)?;
        }
        self.snapshots.publish(&listing.commit, &wanted)
    }

    /// One file as a blob of the cache: kept if it is right, else downloaded.
    fn bring_blob(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<PathBuf, FetchError> {
        let blob = self.snapshots.blob(&file.blob);
        if let Ok(found) = fs::metadata(&blob) {
            let right = found.len() == file.size
                && match &file.sha256 {
                    Some(sha256) => sha256_of(&blob)?.eq_ignore_ascii_case(sha256),
                    None => true,
                };
            if right {
                return Ok(blob);
            }
            tracing::warn!("{} in the cache is not what the hub has: bringing it anew", file.name);
            fs::remove_file(&blob).map_err(|error| FetchError::file("remove", &blob, &error))?;
        }
        let url = format!("{}/{}/resolve/{}/{}", self.settings.endpoint, listing.id, listing.commit, file.name);
        let want = Download {
            url: &url,
            target: &blob,
            label: &file.name,
            token: self.settings.token.as_ref(),
            length: Some(file.size),
            sha256: file.sha256.as_deref(),
        };
        match download(&want, self.settings, on_progress) {
            Ok(_) => Ok(blob),
            Err(FetchError::Status { status: 401 | 403, .. }) => Err(self.gated()),
            Err(error) => Err(error),
        }
    }

    fn listing(&self) -> Result<Listing, FetchError> {
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/api/{}?blobs=true", self.snapshots.repo().api_url());
        let text = match get_text(&url, self.settings.token.as_ref(), self.settings, LONGEST) {
            Ok(text) => text,
            Err(FetchError::Status { code: Some(code), .. }) if code == "GatedRepo" => return Err(self.gated()),
            // The hub hides private models: without a token that may read it, one answers as if it were not there.
            Err(FetchError::Status { status: 401 | 403 | 404, .. }) => {
                return Err(self.none(format!("{endpoint} has none of that id (if it is private, set HF_TOKEN)")));
            }
            Err(error @ (FetchError::Network { .. } | FetchError::Status { .. })) => {
                return Err(self.none(format!("it is not complete in the hub's cache; {error}")));
            }
            Err(error) => return Err(error),
        };
        Listing::parse(&text, self.id).map_err(|reason| FetchError::Content { url, reason })
    }

    fn none(&self, hub: String) -> FetchError {
        FetchError::NoModel { name: self.id.to_owned(), models: self.settings.models.clone(), hub }
    }

    fn gated(&self) -> FetchError {
        let page = format!("{}/{}", self.settings.endpoint, self.id);
        FetchError::Gated { name: self.id.to_owned(), page, token: self.settings.token.is_some() }
    }

    fn unusable(&self, reason: String) -> FetchError {
        FetchError::Unusable { name: self.id.to_owned(), endpoint: self.settings.endpoint.clone(), reason }
    }
}
