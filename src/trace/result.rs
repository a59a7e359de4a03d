//! What a trace finds, and how it is written.
//!
//! # The file of tables
//!
//! `--save` writes safetensors: `state`, `mlp` and `attention`, each `[tokens, layers]`, the probability of the answer with that cell (or the
//! window around it) restored, mean over draws; `state.spread` and so on, the standard deviation over draws; `high [1]`, and `low [draws]`. Of several
//! windows `mlp` and `attention` are the first's, and the others' are `mlp.5`, `mlp.5.spread` and so on.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use serde_json::{Map as Object, Value, json};

use super::average::Role;
use super::{Question, Window};
use crate::model::tap::Place;
use crate::model::tokenizer::Tokenizer;

/// A table of cells: what the answer's probability is once each is restored.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// The place and the number of layers of a window; nothing for block outputs.
    pub window: Option<Window>,
    /// The mean over draws, token by token, each layer by layer.
    pub probability: Vec<Vec<f64>>,
    /// The standard deviation over draws.
    pub spread: Vec<Vec<f64>>,
}

impl Map {
    /// Of one number a draw for each cell, token by token.
    pub(super) fn new(window: Option<Window>, layers: usize, values: &[Vec<f64>]) -> Self {
        let rows = |of: fn(&[f64]) -> f64| {
            values.chunks(layers).map(|row| row.iter().map(|cell| of(cell)).collect()).collect()
        };
        Map { window, probability: rows(mean), spread: rows(deviation) }
    }

    /// "state", "mlp" or "attention".
    pub fn name(&self) -> &'static str {
        match self.window {
            None => "state",
            Some((Place::MlpOut, _)) => "mlp",
            Some(_) => "attention",
        }
    }

    /// What it shows, for people.
    pub fn title(&self) -> String {
        match self.window {
            None => "the block's output restored".into(),
            Some((place, width)) => {
                let what = if place == Place::MlpOut { "the MLP's" } else { "attention's" };
                match width {
                    1 => format!("{what} output restored"),
                    width => format!("{what} outputs restored, {width} layers around each"),
                }
            }
        }
    }
}

/// The mean of at least one number.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of a sample; 0 of one number.
pub(super) fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (squares / (values.len() - 1) as f64).sqrt() }
}

/// What was found of one question.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The question.
    pub question: Question,
    /// p(answer) of the clean run.
    pub high: f64,
    /// p(answer) of each corrupted run.
    pub low: Vec<f64>,
    /// σ of the noise; nothing where it was read from a file.
    pub noise: Option<f64>,
    /// Block outputs first, then windows in the order they were asked for.
    pub maps: Vec<Map>,
}

impl Trace {
    /// The mean of the corrupted runs.
    pub fn low(&self) -> f64 {
        mean(&self.low)
    }

    /// As JSON: see the fields of [`Trace`]; `effect` is what restoring a cell adds to `low`.
    pub fn document(&self, tokenizer: &Tokenizer) -> Value {
        let Question { prompt, subject, ids, at, answer, says } = &self.question;
        let low = self.low();
        let mut document = json!({
            "format": "trace/1",
            "prompt": prompt,
            "subject": subject,
            "answer": { "id": answer, "token": tokenizer.token(*answer) },
            "says": { "id": says.0, "token": tokenizer.token(says.0), "probability": says.1 },
            "token_ids": ids,
            "tokens": ids.iter().map(|&id| tokenizer.token(id)).collect::<Vec<_>>(),
            "subject_tokens": [at.start, at.end],
            "roles": Role::all_of(ids.len(), at).iter().map(|role| role.map(Role::name)).collect::<Vec<_>>(),
            "high": self.high,
            "low": low,
            "low_of_draws": self.low,
            "low_spread": deviation(&self.low),
            "draws": self.low.len(),
            "noise": self.noise,
            "total_effect": self.high - low,
        });
        let table = |map: &Map| {
            let effect: Vec<Vec<f64>> =
                map.probability.iter().map(|row| row.iter().map(|value| value - low).collect()).collect();
            json!({ "probability": map.probability, "effect": effect, "spread": map.spread })
        };
        for map in &self.maps {
            match map.window {
                None => document["state"] = table(map),
                Some((_, width)) => {
                    if !document[map.name()].is_object() {
                        document[map.name()] = Value::Object(Object::new());
                    }
                    document[map.name()][width.to_string()] = table(map);
                }
            }
        }
        document
    }

    /// The tables of a file: see the module.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        let flat = |table: &[Vec<f64>]| {
            let shape = [table.len(), table.first().map_or(0, Vec::len)];
            TensorData::new(table.iter().flatten().map(|&value| value as f32).collect::<Vec<f32>>(), shape)
        };
        let mut tensors = BTreeMap::new();
        for map in &self.maps {
            let mut name = map.name().to_owned();
            if let Some((_, width)) = map.window.filter(|_| tensors.contains_key(&name)) {
                name += &format!(".{width}");
            }
            tensors.insert(format!("{name}.spread"), flat(&map.spread));
            tensors.insert(name, flat(&map.probability));
        }
        let numbers = |values: &[f64]| {
            TensorData::new(values.iter().map(|&value| value as f32).collect::<Vec<f32>>(), [values.len()])
        };
        tensors.insert("high".into(), numbers(&[self.high]));
        tensors.insert("low".into(), numbers(&self.low));
        tensors
    }
}
