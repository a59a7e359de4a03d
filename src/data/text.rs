//! Plain texts, one document at a time: files of text, JSON or JSONL, gzipped or not.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::world::Split;
use super::{pocket, sets};
use crate::error::{Error, Result};
use crate::fetch::FetchSettings;
use crate::{paths, random};

/// Bytes of text that are held to be shuffled.
const SHUFFLED: usize = 32 << 20;

/// What is done with a document; it says whether there should be more.
type Take<'a> = &'a mut dyn FnMut(Document) -> Result<ControlFlow<()>>;

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// Where the answer begins, in bytes, of a text that is a prompt with its answer.
    pub answer: Option<usize>,
}

impl From<String> for Document {
    fn from(text: String) -> Self {
        Document { text, answer: None }
    }
}

impl std::ops::Deref for Document {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// Some files of texts.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The files, read in this order; `pocket` where there is no such file: the embedded world, a sentence a fact and prompt, and
    /// `pocket/train`, `pocket/validation` and `pocket/test` its parts.
    pub files: Vec<PathBuf>,
    /// The key that holds the text of a JSON record.
    pub field: String,
}

impl Documents {
    /// The text that a name leads to: a file in `folder` or from the working folder; a named set that `fetch` brings, or the embedded world:
    /// of these the part that goes with records of `split`, unless the name says which (`wikitext/test`, `pocket/train`). Of the embedded world
    /// that is another part where records are validated or tested: what an edit does to the sentences of its own fact is no harm. `field`
    /// holds the text of a JSON record.
    ///
    /// # Errors
    /// A named set that was not fetched; the line names the command that does.
    pub fn open(name: &str, split: Split, folder: &Path, field: &str) -> Result<Self> {
        let file = paths::find(name, folder, Path::is_file);
        let part = match (&file, name) {
            (None, sets::WIKITEXT) => format!("{name}/{}", split.name()),
            (None, pocket::NAME) => {
                let beside = if split == Split::Test { Split::Validation } else { Split::Train };
                format!("{name}/{}", beside.name())
            }
            _ => name.to_owned(),
        };
        let file = match file {
            Some(file) => file,
            None if part.split_once('/').is_some_and(|(set, _)| set == sets::WIKITEXT) => {
                sets::local_path(&part, &FetchSettings::from_env())?
            }
            None => part.into(),
        };
        Ok(Documents { files: vec![file], field: field.to_owned() })
    }

    /// BLAKE3 of each file's bytes, in hexadecimal.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn hashes(&self) -> Result<Vec<String>> {
        let hash = |path: &PathBuf| -> Result<String> {
            let mut hasher = blake3::Hasher::new();
            if let Some(part) = pocket_part(path) {
                // The whole world's hash is that of its file.
                let name = part.map_or(String::new(), |part| format!("/{}", part.name()));
                return Ok(format!("{}{name}", pocket::world_hash()));
            }
            hasher.update_reader(open_file(path)?).map_err(Error::io(path))?;
            Ok(hasher.finalize().to_hex().to_string())
        };
        self.files.iter().map(hash).collect()
    }

    /// Gives every document once, in an order drawn by `seed`: each is drawn from among the next 32 MB.
    ///
    /// # Errors
    /// A file that cannot be read or is not what its name says, and what `take` says.
    pub fn shuffled(&self, seed: u64, take: Take<'_>) -> Result<()> {
        self.shuffled_within(SHUFFLED, seed, take)
    }

    fn shuffled_within(&self, bytes: usize, seed: u64, take: Take<'_>) -> Result<()> {
        let mut rng: ChaCha8Rng = random::stream(seed, "texts", 0);
        let (mut held, mut size): (Vec<Document>, usize) = (vec![], 0);
        let mut flow = ControlFlow::Continue(());
        for path in &self.files {
            self.documents(path, &mut |document| {
                size += document.len();
                held.push(document);
                while size > bytes && flow.is_continue() {
                    let next = held.swap_remove(rng.random_range(0..held.len()));
                    size -= next.len();
                    flow = take(next)?;
                }
                Ok(flow)
            })?;
            if flow.is_break() {
                return Ok(());
            }
        }
        held.shuffle(&mut rng);
        for document in held {
            if take(document)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Gives the documents of a file in its order: its lines, or its records' texts. Empty ones are left out.
    fn documents(&self, path: &Path, take: Take<'_>) -> Result<()> {
        let mut take = |text: Document| {
            if text.trim().is_empty() { Ok(ControlFlow::Continue(())) } else { take(text) }
        };
        if let Some(part) = pocket_part(path) {
            let world = pocket::world()?;
            let facts = world.facts().iter().enumerate();
            for (index, fact) in facts.filter(|(_, fact)| part.is_none_or(|part| fact.split == part)) {
                for prompt in world.prompts(index).0 {
                    let document =
                        Document { answer: Some(prompt.len() + 1), text: format!("{prompt} {}.", fact.object) };
                    if take(document)?.is_break() {
                        return Ok(());
                    }
                }
            }
            return Ok(());
        }
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let (name, reader): (&str, Box<dyn Read>) = match name.strip_suffix(".gz") {
            Some(name) => (name, Box::new(MultiGzDecoder::new(BufReader::new(open_file(path)?)))),
            None => (&name, Box::new(open_file(path)?)),
        };
        let reader = BufReader::with_capacity(1 << 16, reader);
        if name.ends_with(".json") {
            return self.array(path, reader, &mut take);
        }
        for (number, line) in reader.lines().enumerate() {
            let line = line.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => {
                    Error::file(path, format!("line {}: not UTF-8; save the file as UTF-8", number + 1))
                }
                _ => Error::io(path)(error),
            })?;
            let text = if name.ends_with(".jsonl") {
                if line.trim().is_empty() {
                    continue;
                }
                let record = serde_json::from_str(&line)
                    .map_err(|error| Error::file(path, format!("line {}: not JSON: {error}", number + 1)))?;
                self.text(record).map_err(|problem| Error::file(path, format!("line {}: {problem}", number + 1)))?
            } else {
                line
            };
            if take(text.into())?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The texts of a JSON array, of which one record is held at a time.
    fn array(&self, path: &Path, reader: impl Read, take: Take<'_>) -> Result<()> {
        let mut failed = None;
        let mut stopped = false;
        let mut number = 0;
        let mut each = |record: Value| {
            let text = self.text(record).map_err(|problem| Error::file(path, format!("record {number}: {problem}")));
            number += 1;
            match text.map(Document::from).and_then(&mut *take) {
                Ok(ControlFlow::Continue(())) => true,
                Ok(ControlFlow::Break(())) => {
                    stopped = true;
                    false
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        };
        let mut json = serde_json::Deserializer::from_reader(reader);
        let read = Records(&mut each).deserialize(&mut json).and_then(|()| json.end());
        match (failed, stopped, read) {
            (Some(error), ..) => Err(error),
            (None, true, _) | (None, false, Ok(())) => Ok(()),
            (None, false, Err(error)) => Err(Error::file(path, format!("not a JSON array of records: {error}"))),
        }
    }

    fn text(&self, record: Value) -> std::result::Result<String, String> {
        match record {
            Value::String(text) => Ok(text),
            Value::Object(mut record) => match record.remove(&self.field) {
                Some(Value::String(text)) => Ok(text),
                Some(_) => {
                    Err(format!("\"{}\" is no text; name another key (--field, or field in loss.text)", self.field))
                }
                None => {
                    let keys: Vec<&str> = record.keys().map(String::as_str).collect();
                    let found = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
                    Err(format!("no key \"{}\"; --field names another (found: {found})", self.field))
                }
            },
            _ => Err("neither a text nor a record with one".into()),
        }
    }
}

/// Which part of the embedded world's sentences is meant, as the embedded model learnt them, or that all are; nothing where a file has
/// their name, or the path is another.
fn pocket_part(path: &Path) -> Option<Option<Split>> {
    if path.exists() {
        return None;
    }
    let part = path.strip_prefix(pocket::NAME).ok()?;
    match part.as_os_str().is_empty() {
        true => Some(None),
        false => Split::ALL.into_iter().find(|split| part == Path::new(split.name())).map(Some),
    }
}

/// A regular file, opened: a pipe, which could not be read a second time, is not even waited for.
fn open_file(path: &Path) -> Result<File> {
    if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::file(path, "is not a regular file; name a file of text, JSON or JSONL"));
    }
    File::open(path).map_err(Error::io(path))
}

/// Reads an array and gives its elements one by one, until it is told to stop.
struct Records<'a>(&'a mut dyn FnMut(Value) -> bool);

impl<'de> DeserializeSeed<'de> for Records<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Records<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of texts or of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            if !(self.0)(element) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(texts: &Documents, seed: u64) -> Result<Vec<String>> {
        let mut found = vec![];
        texts.shuffled(seed, &mut |text| {
            found.push(text.text);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn texts(folder: &tempfile::TempDir, name: &str, contents: &[u8]) -> Documents {
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        Documents { files: vec![path], field: "text".into() }
    }

    #[test]
    fn every_form_gives_the_same_documents() {
        let folder = tempfile::tempdir().unwrap();
        let plain = b"one\n\n two\nthree\n".to_vec();
        let lines = b"{\"text\": \"one\"}\n\n{\"text\": \" two\", \"more\": 1}\n\"three\"\n".to_vec();
        let array = b"[{\"text\": \"one\"}, \" two\", {\"text\": \"\"}, {\"text\": \"three\"}]".to_vec();
        let zipped = |contents: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
            encoder.write_all(contents).unwrap();
            encoder.finish().unwrap()
        };
        for (name, contents) in [("a.txt", &plain), ("a.jsonl", &lines), ("a.json", &array)] {
            for (name, contents) in [(name.to_owned(), contents.clone()), (format!("{name}.gz"), zipped(contents))] {
                let mut found = all(&texts(&folder, &name, &contents), 0).unwrap();
                found.sort();
                assert_eq!(found, [" two", "one", "three"], "{name}");
            }
        }
    }

    #[test]
    fn the_order_depends_on_the_seed_alone() {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (0..3000).map(|line| format!("{line}\n")).collect();
        let texts = texts(&folder, "many.txt", lines.as_bytes());
        // All at once, and through a hold of about 250 lines.
        for bytes in [SHUFFLED, 1000] {
            let order = |seed: u64| {
                let mut found = vec![];
                let take: Take<'_> = &mut |text| {
                    found.push(text.parse::<usize>().unwrap());
                    Ok(ControlFlow::Continue(()))
                };
                texts.shuffled_within(bytes, seed, take).unwrap();
                found
            };
            let (a, again, b) = (order(1), order(1), order(2));
            assert_eq!(a, again);
            assert_ne!(a, b);
            let mut sorted = a;
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..3000));
        }
    }

    #[test]
    fn one_can_stop_early() {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in [("a.txt", "a\nb\nc"), ("a.json", "[\"a\", \"b\", \"c\"]")] {
            let mut count = 0;
            texts(&folder, name, contents.as_bytes())
                .shuffled(0, &mut |_| {
                    count += 1;
                    Ok(if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })
                .unwrap();
            assert_eq!(count, 2);
        }
    }

    #[test]
    fn errors_name_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let cases: [(&str, &[u8], &str); 8] = [
            ("a.jsonl", b"\"a\"\n{\"body\": 1}", "line 2: no key \"text\"; --field names another (found: body)"),
            ("b.jsonl", b"{\"text\": 3}", "line 1: \"text\" is no text"),
            ("c.jsonl", b"{\"text\": ", "line 1: not JSON"),
            ("d.json", b"{\"text\": \"a\"}", "not a JSON array of records"),
            ("e.json", b"[\"a\", 3]", "record 1: neither a text nor a record with one"),
            ("f.json", b"[\"a\"", "not a JSON array of records"),
            ("g.txt", b"good\n\xff\xfe\n", "line 2: not UTF-8"),
            ("h.txt.gz", b"not zipped", "h.txt.gz: "),
        ];
        for (name, contents, word) in cases {
            let error = all(&texts(&folder, name, contents), 0).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(name), "{error}");
        }
        let missing = Documents { files: vec![folder.path().into()], field: "text".into() };
        assert!(all(&missing, 0).unwrap_err().to_string().contains("not a regular file"));
    }
}
