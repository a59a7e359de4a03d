//! The named data sets: where they are published, what they should be, and where they lie once `fetch` has brought them.
//!
//! A name is a set (`counterfact`) or one file of it (`zsre/train`). Files lie in `data/` of the cache. Where a set is
//! kept in a repository, its address names the commit. A file whose checksum nobody has published is trusted the first
//! time it comes whole; its SHA-256 is then written beside it (`FILE.sha256`, in the form of `sha256sum`) and holds from
//! there on.

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
    /// Its file name here, and in a mirror.
    pub file: &'static str,
    /// The address it is published at.
    pub url: &'static str,
    /// Its length.
    pub bytes: Bytes,
    /// Its published SHA-256.
    pub sha256: Option<&'static str>,
}

/// How long a file is.
#[derive(Debug, Clone, Copy)]
pub enum Bytes {
    /// This long.
    Exact(u64),
    /// Roughly.
    About(u64),
}

macro_rules! mquake {
    ($file:literal) => {
        concat!(
            "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/fb43dadc2d8cd19d08ce81c63d957b59deb3f3cd/datasets/",
            $file
        )
    };
}

// Its files are kept apart from the repository; this address leads to them, the raw one to a pointer.
macro_rules! ripple {
    ($commit:literal, $file:literal) => {
        concat!("https://github.com/edenbiran/RippleEdits/raw/", $commit, "/data/benchmark/", $file)
    };
}

macro_rules! hub {
    ($repository:literal, $file:literal) => {
        concat!("https://huggingface.co/datasets/", $repository, "/resolve/main/", $file)
    };
}

// Wikipedia's text as language models are tested on it, one paragraph a line.
macro_rules! wikitext {
    ($file:literal) => {
        concat!(
            "https://raw.githubusercontent.com/pytorch/examples/37ce9402ff0cae48d764d7788810fd2ed8238b25/word_language_model/data/wikitext-2/",
            $file
        )
    };
}

/// The set of running text.
pub const WIKITEXT: &str = "wikitext";

/// All named sets. Checksums are those that users of the published files have pinned independently of one another, or
/// that the repository itself holds its large files to.
pub static SETS: &[NamedSet] = &[
    NamedSet {
        name: "counterfact",
        about: "CounterFact: 21,919 counterfactual edits with paraphrases and neighbours (ROME, 2022)",
        licence: Some("MIT"),
        files: &[SetFile {
            part: "all",
            file: "counterfact.json",
            url: "https://rome.baulab.info/data/dsets/counterfact.json",
            bytes: Bytes::Exact(45_108_470),
            sha256: Some("d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"),
        }],
    },
    NamedSet {
        name: "multi_counterfact",
        about: "CounterFact without conflicting edits, for many edits at once (MEMIT, 2023)",
        licence: Some("MIT"),
        files: &[SetFile {
            part: "all",
            file: "multi_counterfact.json",
            url: "https://memit.baulab.info/data/dsets/multi_counterfact.json",
            bytes: Bytes::About(45_000_000),
            sha256: None,
        }],
    },
    NamedSet {
        name: "zsre",
        about: "zsRE questions as MEND splits them: 19,086 for evaluation, 163,196 for training",
        licence: None,
        files: &[
            SetFile {
                part: "eval",
                file: "zsre_mend_eval.json",
                url: "https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
                bytes: Bytes::Exact(8_091_864),
                sha256: Some("8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd"),
            },
            SetFile {
                part: "train",
                file: "zsre_mend_train.json",
                url: "https://rome.baulab.info/data/dsets/zsre_mend_train.json",
                bytes: Bytes::Exact(69_136_174),
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
            url: "https://rome.baulab.info/data/dsets/known_1000.json",
            bytes: Bytes::Exact(343_229),
            sha256: Some("61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a"),
        }],
    },
    NamedSet {
        name: "mquake",
        about: "MQuAKE: cases of several edits with multi-hop questions, 3,000 corrected, 3,000, 9,218 and 1,868 (2023)",
        licence: None,
        files: &[
            SetFile {
                part: "cf-3k-v2",
                file: "MQuAKE-CF-3k-v2.json",
                url: mquake!("MQuAKE-CF-3k-v2.json"),
                bytes: Bytes::Exact(15_383_628),
                sha256: Some("f82091cbb668cef8f2537f79f1768af1840184450b347ff8c344336090ddc71e"),
            },
            SetFile {
                part: "cf-3k",
                file: "MQuAKE-CF-3k.json",
                url: mquake!("MQuAKE-CF-3k.json"),
                bytes: Bytes::Exact(16_055_945),
                sha256: Some("ce27a39c39f2983512b9b5578fadea5fbe352e5368f49d64f38d37ce304edc80"),
            },
            SetFile {
                part: "cf",
                file: "MQuAKE-CF.json",
                url: mquake!("MQuAKE-CF.json"),
                bytes: Bytes::Exact(44_662_559),
                sha256: Some("fbf1ab9e5243e52da429f7636990096ae0b5f8fbf60f1d4d3a4bf0c9214cd6ea"),
            },
            SetFile {
                part: "t",
                file: "MQuAKE-T.json",
                url: mquake!("MQuAKE-T.json"),
                bytes: Bytes::Exact(8_889_248),
                sha256: Some("58500a1d4aaf9e036c23a1d9dd6be2d73d693e35a695614842f211ea5aff59f2"),
            },
        ],
    },
    NamedSet {
        name: "ripple",
        about: "RippleEdits: tests of what follows from an edit, of 885 popular, 1,922 random and 1,948 recent facts (2024)",
        licence: Some("MIT"),
        files: &[
            SetFile {
                part: "popular",
                file: "ripple-popular.json",
                url: ripple!("54f3b88af4895a3aacb580ec63ce7ae857185040", "popular.json"),
                bytes: Bytes::About(10_000_000),
                sha256: None,
            },
            SetFile {
                part: "random",
                file: "ripple-random.json",
                url: ripple!("54f3b88af4895a3aacb580ec63ce7ae857185040", "random.json"),
                bytes: Bytes::About(20_000_000),
                sha256: None,
            },
            SetFile {
                part: "recent",
                file: "ripple-recent.json",
                url: ripple!("21182d13b6ddaa50f023052d13ff59e279deec05", "recent.json"),
                bytes: Bytes::Exact(19_658_316),
                sha256: Some("bc71807ea72280e2587bd1974fc79ae7e23aa24b1d5887bcdced40d448910547"),
            },
        ],
    },
    NamedSet {
        name: "knowedit",
        about: "KnowEdit's test parts: 1,301 zsRE questions, 839 counterfactual and 1,266 recent facts of Wikidata (2024)",
        licence: Some("MIT"),
        files: &[
            SetFile {
                part: "zsre",
                file: "knowedit-zsre.json",
                url: hub!("zjunlp/KnowEdit", "benchmark/ZsRE/ZsRE-test-all.json"),
                bytes: Bytes::Exact(1_519_289),
                sha256: Some("0e0214dda853a906ef02bef58c7ce2978af5a962e91fc4a10827e0125459905c"),
            },
            SetFile {
                part: "counterfact",
                file: "knowedit-counterfact.json",
                url: hub!("zjunlp/KnowEdit", "benchmark/wiki_counterfact/test_cf.json"),
                bytes: Bytes::Exact(2_924_593),
                sha256: Some("efc01ba398dfe04975939f729aab45523addb3c6b3cf41d7429ba5de1d45225b"),
            },
            SetFile {
                part: "recent",
                file: "knowedit-recent.json",
                url: hub!("zjunlp/KnowEdit", "benchmark/wiki_recent/recent_test.json"),
                bytes: Bytes::About(6_000_000),
                sha256: Some("e5c4ce6de1e8e2d10d892164ad6f4cbd28c976ed509e29e78ae853b01de1797b"),
            },
        ],
    },
    NamedSet {
        name: "unke",
        about: "UnKE: 1,000 questions with answers of several sentences (2024)",
        licence: None,
        files: &[SetFile {
            part: "all",
            file: "unke.json",
            url: "https://github.com/TrustedLLM/UnKE/raw/main/data/final_data_v3.json",
            bytes: Bytes::About(3_000_000),
            sha256: None,
        }],
    },
    NamedSet {
        name: "wikibigedit",
        about: "WikiBigEdit: changes of Wikidata from February to July 2024, in eight steps of time (2025)",
        licence: None,
        files: &[
            SetFile {
                part: "1",
                file: "wiki_big_edit_20240201_20240220.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240201_20240220.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "2",
                file: "wiki_big_edit_20240220_20240301.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240220_20240301.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "3",
                file: "wiki_big_edit_20240301_20240320.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240301_20240320.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "4",
                file: "wiki_big_edit_20240320_20240401.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240320_20240401.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "5",
                file: "wiki_big_edit_20240401_20240501.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240401_20240501.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "6",
                file: "wiki_big_edit_20240501_20240601.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240501_20240601.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "7",
                file: "wiki_big_edit_20240601_20240620.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240601_20240620.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
            SetFile {
                part: "8",
                file: "wiki_big_edit_20240620_20240701.json",
                url: hub!("lukasthede/WikiBigEdit", "wiki_big_edit_20240620_20240701.json"),
                bytes: Bytes::About(46_000_000),
                sha256: None,
            },
        ],
    },
    NamedSet {
        name: WIKITEXT,
        about: "WikiText-2: Wikipedia articles as plain text, for what an edit does to running text (Merity et al., 2016)",
        licence: Some("CC BY-SA 3.0"),
        files: &[
            SetFile {
                part: "train",
                file: "wikitext-2-train.txt",
                url: wikitext!("train.txt"),
                bytes: Bytes::About(10_800_000),
                sha256: None,
            },
            SetFile {
                part: "validation",
                file: "wikitext-2-validation.txt",
                url: wikitext!("valid.txt"),
                bytes: Bytes::Exact(1_121_681),
                sha256: Some("f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
            },
            SetFile {
                part: "test",
                file: "wikitext-2-test.txt",
                url: wikitext!("test.txt"),
                bytes: Bytes::Exact(1_256_449),
                sha256: Some("d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
            },
        ],
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
        // Without any checksum to hold it against (a kill between the file and its note), its form has to do.
        let right = match (mismatch(file, &path)?, file.sha256.is_some() || noted.is_file()) {
            (Some(_), _) => false,
            (None, true) => return Ok(()),
            (None, false) => is_of_its_form(&path)?,
        };
        if right {
            return note(file, &path, &sha256_of(&path)?);
        }
        remove(&path)?;
        remove(&noted)?;
    }
    let url = address(file, settings);
    let want = Download {
        url: &url,
        target: &path,
        label: file.file,
        token: None,
        length: match file.bytes {
            Bytes::Exact(bytes) => Some(bytes),
            Bytes::About(_) => None,
        },
        sha256: file.sha256,
    };
    let sha256 = download(&want, settings, on_progress)?;
    if !is_of_its_form(&path)? {
        remove(&path)?;
        let form = if file.file.ends_with(".txt") { "text" } else { "JSON" };
        return Err(FetchError::Content { url, reason: format!("not a {form} file; what came was thrown away") });
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

/// Where a file comes from: a mirror where one is named, else its own address, at the hub of the settings.
fn address(file: &SetFile, settings: &FetchSettings) -> String {
    match (&settings.data_url, file.url.strip_prefix("https://huggingface.co")) {
        (Some(mirror), _) => format!("{mirror}/{}", file.file),
        (None, Some(path)) => format!("{}{path}", settings.endpoint),
        (None, None) => file.url.to_owned(),
    }
}

fn place(file: &SetFile, settings: &FetchSettings) -> PathBuf {
    settings.cache.join("data").join(file.file)
}

fn note_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// Whether a file is JSON, or where its name says that it is text, holds text and no page.
fn is_of_its_form(path: &Path) -> Result<bool, FetchError> {
    if path.extension().is_some_and(|extension| extension == "txt") {
        let bytes = fs::read(path).map_err(|error| FetchError::file("read", path, &error))?;
        return Ok(std::str::from_utf8(&bytes).is_ok_and(|text| !text.trim_start().starts_with('<')));
    }
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
