//! Reference texts, and how like them a model writes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::case::Case;
use crate::error::{Error, Result};

/// Texts about things of which an answer is true: what a model that had learnt the answer might write.
///
/// A file is a JSON array or one object a line, of either form:
///
/// ```text
/// {"relation_id": "P27", "target": "France", "texts": ["…", "…"]}                           relation_id may be missing
/// {"relation_id": "P27", "target_id": "Q142", "samples": [{"name": "…", "text": "…"}, …]}   ROME's attribute_snippets.json
/// ```
///
/// The second names its answers by id; `names` says what they are called, as CounterFact's `target_new.id` and `target_new.str` do.
#[derive(Debug, Clone)]
pub struct Snippets {
    entries: Vec<Entry>,
    /// ln((1 + N) / (1 + texts with the word)) + 1 of N texts, by word.
    idf: HashMap<String, f64>,
}

#[derive(Debug, Clone)]
struct Entry {
    relation: Option<String>,
    target: String,
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    relation_id: Option<String>,
    target: Option<String>,
    target_id: Option<String>,
    #[serde(default)]
    texts: Vec<String>,
    #[serde(default)]
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    text: String,
}

impl Snippets {
    /// Reads a file; `names` gives the answers of ids, and may be empty where the file names the answers themselves.
    ///
    /// # Errors
    /// A file that cannot be read or is of neither form, or in which no entry has an answer and a text.
    pub fn open(path: &Path, names: &BTreeMap<String, String>) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Snippets::parse(&text, names).map_err(|message| Error::file(path, message))
    }

    /// The same from the contents of a file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str, names: &BTreeMap<String, String>) -> Result<Self, String> {
        let wrong =
            |error| format!("not snippets: {error}; an entry has a target and texts, or a target_id and samples");
        let raw: Vec<Raw> = match text.trim_start().starts_with('[') {
            true => serde_json::from_str(text).map_err(wrong)?,
            false => serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(wrong)?,
        };
        let found = raw.len();
        let entries = raw.into_iter().filter_map(|raw| {
            let target = raw.target.or_else(|| names.get(raw.target_id.as_deref()?).cloned())?;
            let texts: Vec<String> = raw.texts.into_iter().chain(raw.samples.into_iter().map(|s| s.text)).collect();
            (!texts.is_empty()).then(|| Entry { relation: raw.relation_id, target: target.trim().to_owned(), texts })
        });
        let entries: Vec<Entry> = entries.collect();
        if entries.is_empty() {
            return Err(format!("none of {found} entries has a text and an answer whose name is known"));
        }
        Ok(Snippets { idf: idf(entries.iter().flat_map(|entry| &entry.texts)), entries })
    }

    /// The texts of an answer, of one relation where one is named. Entries without a relation belong to all.
    pub fn texts<'a>(&'a self, relation: Option<&'a str>, target: &'a str) -> impl Iterator<Item = &'a str> {
        let fits = move |entry: &&Entry| {
            let known = entry.relation.as_deref().zip(relation).is_none_or(|(own, wanted)| own == wanted);
            known && entry.target == target.trim()
        };
        self.entries.iter().filter(fits).flat_map(|entry| entry.texts.iter().map(String::as_str))
    }

    /// Cosine of the tf-idf vectors of two lists of texts, each read as one. Words that no snippet has do not count; nothing where one
    /// of the lists has no other.
    ///
    /// ```text
    /// v_w = (times w occurs) · idf_w        cos(u, v) = u·v / (‖u‖ ‖v‖)
    /// ```
    pub fn likeness<'a>(&self, a: impl Iterator<Item = &'a str>, b: impl Iterator<Item = &'a str>) -> Option<f64> {
        let (a, b) = (self.vector(a), self.vector(b));
        let norm = |v: &BTreeMap<&str, f64>| v.values().map(|x| x * x).sum::<f64>().sqrt();
        let dot: f64 = a.iter().filter_map(|(word, x)| Some(x * b.get(word)?)).sum();
        let norms = norm(&a) * norm(&b);
        (norms > 0.0).then(|| dot / norms)
    }

    fn vector<'a>(&self, texts: impl Iterator<Item = &'a str>) -> BTreeMap<&str, f64> {
        let mut vector: BTreeMap<&str, f64> = BTreeMap::new();
        for word in texts.flat_map(terms) {
            if let Some((word, idf)) = self.idf.get_key_value(&word) {
                *vector.entry(word).or_default() += idf;
            }
        }
        vector
    }
}

/// Words of two signs and more in small letters, as scikit-learn's `TfidfVectorizer` takes them: letters, digits and underscores.
fn terms(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    words.filter(|word| word.chars().nth(1).is_some()).map(str::to_lowercase)
}

/// The smooth inverse document frequency of each word, as scikit-learn has it.
fn idf<'a>(texts: impl Iterator<Item = &'a String>) -> HashMap<String, f64> {
    let (mut count, mut with): (usize, HashMap<String, usize>) = (0, HashMap::new());
    for text in texts {
        count += 1;
        for word in terms(text).collect::<HashSet<_>>() {
            *with.entry(word).or_default() += 1;
        }
    }
    let of = |with: usize| ((1 + count) as f64 / (1 + with) as f64).ln() + 1.0;
    with.into_iter().map(|(word, with)| (word, of(with))).collect()
}

/// RS: how like the reference texts of the new answer a case's texts are ([`Snippets::likeness`]), prompts included, as in ROME's
/// script. Nothing without texts on either side; 0 where they share no word.
///
/// Texts of the case's relation count, or those of all relations to the answer where it has none. ROME's idf comes from Wikipedia,
/// ours from the snippets themselves.
pub fn reference_score(case: &Case, snippets: &Snippets) -> Option<f64> {
    let texts = || snippets.texts(case.relation.as_deref(), &case.request.target_new);
    if case.texts.is_empty() || texts().next().is_none() {
        return None;
    }
    let written = case.texts.iter().flat_map(|text| [text.prompt.as_str(), text.after.as_str()]);
    Some(snippets.likeness(written, texts()).unwrap_or(0.0))
}
