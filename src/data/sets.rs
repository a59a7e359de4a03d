//! The named data sets: where they are published, what they should be, and where they lie once `fetch` has brought them.
//!
//! A name is a set (`counterfact`) or one file of it (`zsre/train`). Files lie in `data/` of the cache. A file whose
//! checksum nobody has published is trusted the first time it comes whole; its SHA-256 is then written beside it
//! (`FILE.sha256`, in the form of `sha256sum`) and holds from there on.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use crate::fetch::{Download, FetchError, FetchSettings, OnProgress, download, sha256_of, write_whole};

/// A published data set.
#[derive(Debug, Clone, Copy)]
pub struct NamedSet {
    /// What it is called here.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Its licence, where its publisher names one.
    pub licence: Option<&'static str>,
    /// Its files. The first is meant when the set is named alone.
    pub files: &'static [SetFile],
}

/// One file of a published data set.
#[derive(Debug, Clone, Copy)]
pub struct SetFile {
    /// What tells it from the set's other files, as in `zsre/train`.
    pub part: &'static str,
    /// Its file name, there and here.
    pub file: &'static str,
    /// The address of the folder it is published in.
    pub base: &'static str,
    /// Its length in bytes; only rough where there is no checksum.
    pub bytes: u64,
    /// Its published SHA-256.
    pub sha256: Option<&'static str>,
}

const ROME: &str = "https://rome.baulab.info/data/dsets";
const MEMIT: &str = "https://memit.baulab.info/data/dsets";

/// All named sets. Checksums are those that users of the published files have pinned independently of one another.
pub static SETS: &[NamedSet] = &[
    NamedSet {
        name: "counterfact",
        about: "CounterFact: 21,919 counterfactual edits with paraphrases and neighbours (ROME, 2022)",
        licence: Some("MIT"),
        files: &[SetFile {
            part: "all",
            file: "counterfact.json",
            base: ROME,
            bytes: 45_108_470,
            sha256: Some("d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"),
        }],
    },
    NamedSet {
        name: "multi_counterfact",
        about: "CounterFact without conflicting edits, for many edits at once (MEMIT, 2023)",
        licence: Some("MIT"),
        files: &[SetFile { part: "all", file: "multi_counterfact.json", base: MEMIT, bytes: 45_000_000, sha256: None }],
    },
    NamedSet {
        name: "zsre",
        about: "zsRE questions as MEND splits them: 19,086 for evaluation, 163,196 for training",
        licence: None,
        files: &[
            SetFile {
                part: "eval",
                file: "zsre_mend_eval.json",
                base: ROME,
                bytes: 8_091_864,
                sha256: Some("8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd"),
            },
            SetFile {
                part: "train",
                file: "zsre_mend_train.json",
                base: ROME,
                bytes: 69_136_174,
                sha256: Some("4f3ac245e9c0baaf633f9e6cb765ffa8e83d594a74520a6cc3539497328c0722"),
            },
        ],
    },
    NamedSet {
        name: "known_1000",
        about: "1,209 facts that GPT-2 XL knows, for causal tracing (ROME, 2022)",
        licence: Some("MIT"),
        files: &[SetFile {
            part: "all",
            file: "known_1000.json",
            base: ROME,
            bytes: 343_229,
            sha256: Some("61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a"),
        }],
    },
];

/// The set that `name` names, alone or with one of its files (`zsre/train`, `zsre/zsre_mend_train.json`).
pub fn find(name: &str) -> Option<&'static NamedSet> {
    select(SETS, name).map(|(set, _)| set)
}

/// The file in the cache that `name` names: the first of a set, or the file named after a slash. It is checked against
/// its SHA-256 each time.
///
/// # Errors
/// No such set; not fetched yet (the line names the command that does); a file that is not what it should be.
pub fn local_path(name: &str, settings: &FetchSettings) -> Result<PathBuf, FetchError> {
    local(SETS, name, settings)
}

/// Brings what `name` names into the cache, all files of a set or the one named after a slash, and gives the path of
/// the first. Files that are there and right are left alone; wrong ones are replaced.
///
/// # Errors
/// No such set, and all that can go wrong in a download.
pub fn fetch(name: &str, settings: &FetchSettings, on_progress: &mut OnProgress<'_>) -> Result<PathBuf, FetchError> {
    bring(SETS, name, settings, on_progress)
}

/// The files of `set` that are in the cache, without looking into them.
pub fn present(set: &NamedSet, settings: &FetchSettings) -> Vec<PathBuf> {
    set.files.iter().map(|file| place(file, settings)).filter(|path| path.is_file()).collect()
}

/// The set and the chosen files of it: all when it is named alone.
fn select<'a>(sets: &'a [NamedSet], name: &str) -> Option<(&'a NamedSet, &'a [SetFile])> {
    let (name, part) = name.split_once('/').map_or((name, None), |(name, part)| (name, Some(part)));
    let set = sets.iter().find(|set| set.name == name)?;
    match part {
        None => Some((set, set.files)),
        Some(part) => {
            let index = set.files.iter().position(|file| file.part == part || file.file == part)?;
            Some((set, &set.files[index..=index]))
        }
    }
}

fn local(sets: &[NamedSet], name: &str, settings: &FetchSettings) -> Result<PathBuf, FetchError> {
    let (_, files) = select(sets, name).ok_or_else(|| unknown(sets, name))?;
    let Some(file) = files.first() else { return Err(unknown(sets, name)) };
    let path = place(file, settings);
    if !path.is_file() {
        return Err(FetchError::NotFetched { name: name.to_owned(), path });
    }
    match mismatch(file, &path)? {
        None => Ok(path),
        Some((expected, found)) => {
            let advice = format!("run `emend fetch {name}` to bring it anew");
            Err(FetchError::Checksum { path, expected, found, advice })
        }
    }
}

fn bring(
    sets: &[NamedSet],
    name: &str,
    settings: &FetchSettings,
    on_progress: &mut OnProgress<'_>,
) -> Result<PathBuf, FetchError> {
    let (_, files) = select(sets, name).ok_or_else(|| unknown(sets, name))?;
    for file in files {
        bring_file(file, settings, on_progress)?;
    }
    files.first().map(|file| place(file, settings)).ok_or_else(|| unknown(sets, name))
}

fn bring_file(file: &SetFile, settings: &FetchSettings, on_progress: &mut OnProgress<'_>) -> Result<(), FetchError> {
    let path = place(file, settings);
    let noted = note_of(&path);
    if path.is_file() {
        // Without any checksum to hold it against (a kill between the file and its note), being JSON has to do.
        let right = match (mismatch(file, &path)?, file.sha256.is_some() || noted.is_file()) {
            (Some(_), _) => false,
            (None, true) => return Ok(()),
            (None, false) => is_json(&path)?,
        };
        if right {
            return note(file, &path, &sha256_of(&path)?);
        }
        remove(&path)?;
        remove(&noted)?;
    }
    let base = settings.data_url.as_deref().unwrap_or(file.base);
    let url = format!("{base}/{}", file.file);
    let want = Download {
        url: &url,
        target: &path,
        label: file.file,
        token: None,
        length: file.sha256.map(|_| file.bytes),
        sha256: file.sha256,
    };
    let sha256 = download(&want, settings, on_progress)?;
    if !is_json(&path)? {
        remove(&path)?;
        return Err(FetchError::Content { url, reason: "not a JSON file; what came was thrown away".into() });
    }
    note(file, &path, &sha256)
}

/// Expected and found SHA-256 where they differ.
fn mismatch(file: &SetFile, path: &Path) -> Result<Option<(String, String)>, FetchError> {
    let expected = match file.sha256 {
        Some(sha256) => sha256.to_owned(),
        None => match fs::read_to_string(note_of(path)) {
            Ok(line) => line.split_whitespace().next().unwrap_or_default().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FetchError::file("read", &note_of(path), &error)),
        },
    };
    let found = sha256_of(path)?;
    Ok((!expected.eq_ignore_ascii_case(&found)).then_some((expected, found)))
}

/// Writes the checksum beside a file that has no published one.
fn note(file: &SetFile, path: &Path, sha256: &str) -> Result<(), FetchError> {
    match file.sha256 {
        Some(_) => Ok(()),
        None => write_whole(&note_of(path), &format!("{sha256}  {}\n", file.file)),
    }
}

fn place(file: &SetFile, settings: &FetchSettings) -> PathBuf {
    settings.cache.join("data").join(file.file)
}

fn note_of(path: &Path) -> PathBuf {
    path.with_extension("json.sha256")
}

fn is_json(path: &Path) -> Result<bool, FetchError> {
    let file = File::open(path).map_err(|error| FetchError::file("read", path, &error))?;
    Ok(serde_json::from_reader::<_, IgnoredAny>(BufReader::new(file)).is_ok())
}

fn remove(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FetchError::file("remove", path, &error)),
        _ => Ok(()),
    }
}

fn unknown(sets: &[NamedSet], name: &str) -> FetchError {
    let mut known = Vec::new();
    for set in sets {
        known.push(set.name.to_owned());
        if set.files.len() > 1 {
            known.extend(set.files.iter().map(|file| format!("{}/{}", set.name, file.part)));
        }
    }
    FetchError::UnknownSet { name: name.to_owned(), known: known.join(", ") }
}

#[cfg(test)]
mod tests;
