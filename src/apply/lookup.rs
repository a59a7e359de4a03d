//! A lookup cache (the LU baseline of Mitchell et al., 2022): a prompt whose hidden state lies within a radius of a cached one is answered
//! with the cached target; every other prompt is the model's own.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Editor;
use super::memory::{Search, settings_of_layer};
use super::nearest::{Nearest, Rows, nearest};
use super::prepared::Prepared;
use crate::edit::likelihood::buckets;
use crate::edit::memory::{Answer, Consulted, Recall, settled};
use crate::edit::{Change, Edit, EditRequest, Edited, Memory, Route};
use crate::error::Result;
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::NoTap;
use crate::model::tokens::Tokens;
use crate::sections::within;

/// What configs, edits and memories call it.
pub(super) const NAME: &str = "lookup";

/// `[editor]` of a lookup config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupSettings {
    /// The layer whose output is compared; the encoder's, where there is one.
    pub layer: usize,
    /// The largest distance ‖h − h_cached‖ at which the cache answers, in units of the cached state's length.
    pub radius: f64,
    /// Which of a prompt's states it is known by.
    #[serde(default)]
    pub state: State,
}

/// Which of a prompt's hidden states it is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// That of its last token; of the last that an encoder reads, where there is one, as below.
    #[default]
    Last,
    /// The mean over its tokens, as the reference has it of an encoder; the first one, which many decoders use as a sink, is left out.
    Mean,
}

impl super::MethodSettings for LookupSettings {
    fn layers(&self) -> (&'static str, &[usize]) {
        ("layer", std::slice::from_ref(&self.layer))
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(Lookup::new(*self, prepared)?))
    }
}

/// What consults a memory that was read from a file.
///
/// # Errors
/// As [`LookupRoute::find`].
pub(super) fn route(_: &Edit, memory: &Memory, search: &Search<'_>) -> Result<Arc<dyn Route>> {
    Ok(Arc::new(LookupRoute::find(&memory.needs, &search.model.decoder.spec)?))
}

/// The lookup cache.
pub struct Lookup {
    settings: LookupSettings,
    prepared: Prepared,
}

impl Lookup {
    /// # Errors
    /// Numbers out of range.
    pub fn new(settings: LookupSettings, prepared: Prepared) -> Result<Self> {
        within("editor.radius", settings.radius, 0.0, 1e9)?;
        Ok(Lookup { settings, prepared })
    }
}

impl Editor for Lookup {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let requests = settled(requests);
        let prompts: Vec<String> = requests.iter().map(|request| request.asked()).collect();
        let keys = states(model, &self.settings, &prompts)?;
        let (method, settings) = self.describe();
        let mut needs = json!({"method": method});
        for (key, value) in settings.as_object().into_iter().flatten() {
            needs[key] = value.clone();
        }
        let provenance = self.provenance(model, &requests);
        let route: Arc<dyn Route> = Arc::new(LookupRoute { settings: self.settings.clone(), width: keys.dims()[1] });
        let memory = Memory { needs, keys, texts: vec![], values: None, route: Some(route) };
        Ok(Edit::new(provenance, Change::Memory(memory), Default::default()))
    }

    fn describe(&self) -> (String, Value) {
        self.prepared.describe(NAME, &self.settings)
    }

    fn remembers(&self) -> bool {
        true
    }
}

/// What prompts are known by, `[prompts, width]`.
fn states(model: &Edited, settings: &LookupSettings, prompts: &[String]) -> Result<Tensor<2>> {
    let rows = prompts.iter().map(|prompt| model.base().tokenizer.encode_prompt(prompt));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let width = model.base().decoder.spec.width;
    let device = model.base().decoder.device();
    let mut values = vec![0.0; rows.len() * width];
    for batch in buckets(rows.iter().map(Vec::len)) {
        let tokens = Tokens::new(batch.iter().map(|&row| rows[row].clone()).collect());
        let hidden = model.embed(&tokens, &mut NoTap)?;
        let hidden = model.blocks(hidden, 0..settings.layer + 1, tokens.span(), None, &mut NoTap)?;
        let cells = tokens.span().width;
        let hidden: Vec<f32> = hidden.into_data().iter::<f32>().collect();
        for (place, &row) in batch.iter().enumerate() {
            let read = &tokens.span().rows[place];
            let length = if read.text.source > 0 { read.text.source } else { read.len };
            let read = match settings.state {
                State::Last => length - 1..length,
                State::Mean => usize::from(length > 1)..length,
            };
            let share = 1.0 / read.len() as f32;
            let state = &mut values[row * width..][..width];
            for cell in read {
                let cell = &hidden[(place * cells + cell) * width..][..width];
                state.iter_mut().zip(cell).for_each(|(sum, value)| *sum += share * value);
            }
        }
    }
    Ok(Tensor::from_data(TensorData::new(values, [rows.len(), width]), (&device, DType::F32)))
}

/// Answers with the target of the nearest cached prompt, within the radius.
pub struct LookupRoute {
    settings: LookupSettings,
    width: usize,
}

impl LookupRoute {
    /// For a memory that was read from a file.
    ///
    /// # Errors
    /// Settings that are none, or a layer that the model does not have.
    pub fn find(needs: &Value, spec: &DecoderSpec) -> Result<Self> {
        // An encoder's states are read, where there is one.
        let layers = spec.source.as_ref().map_or(spec.layers, |source| source.layers);
        let settings = settings_of_layer(needs, "memory", layers, |settings: &LookupSettings| settings.layer)?;
        Ok(LookupRoute { settings, width: spec.width })
    }
}

impl Route for LookupRoute {
    fn width(&self) -> usize {
        self.width
    }

    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        if prompts.is_empty() {
            return Ok(vec![]);
        }
        let found = states(&recall.model, &self.settings, prompts)?;
        let (found, keys) = (Rows::new(&found), Rows::new(&recall.keys));
        let nearest = nearest(&found, &keys, |_, _| true);
        let said = nearest.into_iter().map(|nearest| {
            let Nearest { key: entry, distance } = nearest?;
            let length: f64 = keys.row(entry).iter().map(|k| f64::from(*k).powi(2)).sum();
            let distance = distance / length.sqrt().max(f64::MIN_POSITIVE);
            let request = &recall.requests[entry];
            let answer = Answer::Target { text: request.target_new.clone(), separator: request.separator.clone() };
            let scope = 1.0 - distance / self.settings.radius.max(f64::MIN_POSITIVE);
            (distance <= self.settings.radius).then_some(Consulted {
                entry: Some(entry),
                scope: scope.max(0.0),
                answer,
            })
        });
        Ok(said.collect())
    }
}
