//! The term of a loss that keeps running text as it is: an edit is to change what is asked for and nothing of what the model says elsewhere.
//!
//! ```text
//! c_text · mean over windows and positions of KL(p(· | x_≤t; W) ‖ p(· | x_≤t; W̃))
//! ```
//!
//! A window is read whole by the edited layers, and compared at a sample of its positions, each as likely as any other: the vocabulary at
//! all of them would cost more than the rest of a step, and positions of one window say much the same.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use rand::RngExt;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::data::text::Documents;
use crate::data::world::Split;
use crate::error::{Error, Result};
use crate::evaluate::windows;
use crate::model::Model;
use crate::model::tokens::first_predicted;
use crate::sections::within;

/// `loss.text`: the name of a text, or a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TextSettings {
    /// `pocket`, `wikitext`, or a file of text, JSON or JSONL.
    pub from: String,
    /// c_text; with 0 there is no term.
    pub weight: f64,
    /// Windows a record: with 0.5, half of the records of a pass bear one, and at least one does.
    pub share: f64,
    /// Tokens of a window at most. A document is cut into windows; one that is shorter is a window by itself.
    pub tokens: usize,
    /// Positions of a window that are compared.
    pub positions: usize,
    /// Windows of the text that are drawn from, over and over.
    pub windows: usize,
    /// The key that holds the text of a JSON record.
    pub field: String,
}

/// The table's keys with what they are where nothing is said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    from: String,
    #[serde(default = "weight")]
    weight: f64,
    #[serde(default = "share")]
    share: f64,
    #[serde(default = "tokens")]
    tokens: usize,
    #[serde(default = "positions")]
    positions: usize,
    #[serde(default = "of_the_text")]
    windows: usize,
    #[serde(default = "field")]
    field: String,
}

fn weight() -> f64 {
    1.0
}

fn share() -> f64 {
    0.5
}

fn tokens() -> usize {
    48
}

fn positions() -> usize {
    12
}

fn of_the_text() -> usize {
    1000
}

fn field() -> String {
    "text".into()
}

impl From<Written> for TextSettings {
    fn from(written: Written) -> Self {
        let Written { from, weight, share, tokens, positions, windows, field } = written;
        TextSettings { from, weight, share, tokens, positions, windows, field }
    }
}

impl<'de> Deserialize<'de> for TextSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = TextSettings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a text, or a table with `from` and more")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> std::result::Result<TextSettings, E> {
                Ok(TextSettings {
                    from: name.to_owned(),
                    weight: weight(),
                    share: share(),
                    tokens: tokens(),
                    positions: positions(),
                    windows: of_the_text(),
                    field: field(),
                })
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> std::result::Result<TextSettings, M::Error> {
                Written::deserialize(MapAccessDeserializer::new(map)).map(TextSettings::from)
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

impl TextSettings {
    /// # Errors
    /// Names the key that is out of range.
    pub fn check(&self) -> Result<()> {
        within("loss.text.weight", self.weight, 0.0, 1e9)?;
        within("loss.text.share", self.share, 0.0, 100.0)?;
        within("loss.text.tokens", self.tokens as f64, 2.0, 1e6)?;
        within("loss.text.positions", self.positions as f64, 1.0, 1e6)?;
        within("loss.text.windows", self.windows as f64, 1.0, 1e7)
    }
}

/// A window as a step reads it: its tokens, and the cells at which it is compared.
pub type Window = (Vec<u32>, Vec<usize>);

/// The windows of a training.
#[derive(Debug, Clone)]
pub struct Windows {
    /// What is said of them.
    pub settings: TextSettings,
    /// The windows.
    pub all: Vec<Vec<u32>>,
}

impl Windows {
    /// The first windows of a text, its documents in an order drawn by the seed; nothing where the settings give them no weight.
    ///
    /// # Errors
    /// Settings out of range, a file that cannot be read, a text that is shorter than a window.
    pub fn open(settings: &TextSettings, model: &Model, folder: &Path, seed: u64) -> Result<Option<Self>> {
        settings.check()?;
        if settings.weight == 0.0 || settings.share == 0.0 {
            return Ok(None);
        }
        let context = model.decoder.spec.context;
        if settings.tokens > context {
            let message = format!("loss.text.tokens = {}: the model's context is {context} tokens", settings.tokens);
            return Err(Error::Config(message));
        }
        let documents = Documents::open(&settings.from, Split::Train, folder, &settings.field)?;
        let (mut all, mut read) = (vec![], 0);
        documents.shuffled(seed, &mut |text| {
            for window in windows(&model.tokenizer, &text, settings.tokens)? {
                read += window.len();
                if all.len() < settings.windows && window.len() > first_predicted(&window) {
                    all.push(window);
                }
            }
            Ok(if all.len() < settings.windows { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if all.len() < settings.windows && read < settings.tokens {
            return Err(Error::Input(format!(
                "loss.text: {} holds {read} tokens, fewer than a window's {}; give a longer text, or lower loss.text.tokens",
                settings.from, settings.tokens
            )));
        }
        Ok(Some(Windows { settings: settings.clone(), all }))
    }

    /// BLAKE3 of the windows, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        blake3::hash(serde_json::to_string(&self.all).unwrap_or_default().as_bytes()).to_hex().to_string()
    }

    /// The windows of a step over some records, by the record that bears them.
    pub fn draw(&self, records: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<Window>> {
        let mut drawn = vec![vec![]; records];
        let count = (self.settings.share * records as f64).round().max(1.0) as usize;
        for some in 0..count.div_ceil(records) {
            for record in sample(rng, records, records.min(count - some * records)) {
                let window = &self.all[rng.random_range(0..self.all.len())];
                // What an encoder reads predicts nothing.
                let first = first_predicted(window) - 1;
                let many = window.len() - first;
                let mut cells = sample(rng, many, self.settings.positions.min(many)).into_vec();
                cells.iter_mut().for_each(|cell| *cell += first);
                cells.sort_unstable();
                drawn[record].push((window.clone(), cells));
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn read(text: &str) -> std::result::Result<TextSettings, String> {
        #[derive(Deserialize)]
        struct Loss {
            text: TextSettings,
        }
        toml::from_str::<Loss>(text).map(|loss| loss.text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_stands_for_a_table() {
        assert_eq!(read("text = \"wikitext\"").unwrap(), read("text = { from = \"wikitext\" }").unwrap());
        assert_eq!(read("text = { from = \"a\", weight = 2 }").unwrap().weight, 2.0);
        assert!(read("text = { from = \"a\", wieght = 2 }").unwrap_err().contains("wieght"));
        assert!(read("text = 3").unwrap_err().contains("the name of a text"));
    }

    #[test]
    fn windows_are_dealt_to_as_many_records_as_the_share_says() {
        let all: Vec<Vec<u32>> = (0..20).map(|window| (0..10 + window).collect()).collect();
        let settings = read("text = { from = \"a\", positions = 4 }").unwrap();
        for (share, records, count) in [(0.5, 10, 5), (1.0, 10, 10), (0.01, 10, 1), (2.5, 4, 10)] {
            let windows = Windows { settings: TextSettings { share, ..settings.clone() }, all: all.clone() };
            let drawn = windows.draw(records, &mut random::stream(0, "test", 0));
            assert_eq!((drawn.len(), drawn.iter().map(Vec::len).sum::<usize>()), (records, count));
            let most = drawn.iter().map(Vec::len).max().unwrap();
            assert_eq!(most, count.div_ceil(records));
            for (ids, cells) in drawn.iter().flatten() {
                assert!(cells.len() == 4 && cells.is_sorted() && cells.iter().all(|&cell| cell < ids.len()));
            }
        }
    }
}
