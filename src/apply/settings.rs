//! `[editor]` of the editors that need no training, by its method.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::contexts::{self, Sampled};
use super::memit::Common;
use super::prepared::{Prepared, Progress};
use super::{Editor, alphaedit, emmet, fine_tuning, ike, knowledge_neurons, lookup, memit, rome};
use crate::config;
use crate::data::text::Texts;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::statistics::{Moments, Statistics};

/// The settings of an editor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum EditorSettings {
    /// Fine-tuning.
    FineTuning(fine_tuning::Settings),
    /// ROME.
    Rome(rome::Settings),
    /// MEMIT.
    Memit(memit::Settings),
    /// EMMET.
    Emmet(emmet::Settings),
    /// AlphaEdit.
    #[serde(rename = "alphaedit")]
    AlphaEdit(alphaedit::Settings),
    /// Knowledge neurons.
    KnowledgeNeurons(knowledge_neurons::Settings),
    /// In-context editing.
    Ike(ike::Settings),
    /// A lookup cache.
    Lookup(lookup::Settings),
}

const METHODS: [&str; 8] = ["fine_tuning", "rome", "memit", "emmet", "alphaedit", "knowledge_neurons", "ike", "lookup"];

impl EditorSettings {
    /// From a section `[editor]`; `origin` names its file in errors.
    ///
    /// # Errors
    /// A method that is not known, or keys that it does not have.
    pub fn parse(mut table: toml::Table, origin: &str) -> Result<Self> {
        let known = METHODS.map(|method| format!("\"{method}\"")).join(", ");
        let Some(method) = table.remove("method") else {
            return Err(Error::Config(format!("{origin}: editor.method is missing; known: {known}")));
        };
        match method.as_str() {
            Some("fine_tuning") => strict(table, origin).map(EditorSettings::FineTuning),
            Some("rome") => strict(table, origin).map(EditorSettings::Rome),
            Some("memit") => spread(table, origin).map(EditorSettings::Memit),
            Some("emmet") => spread(table, origin).map(EditorSettings::Emmet),
            Some("alphaedit") => spread(table, origin).map(EditorSettings::AlphaEdit),
            Some("knowledge_neurons") => strict(table, origin).map(EditorSettings::KnowledgeNeurons),
            Some("ike") => strict(table, origin).map(EditorSettings::Ike),
            Some("lookup") => strict(table, origin).map(EditorSettings::Lookup),
            Some(trained @ ("mend" | "serac")) => Err(Error::Config(format!(
                "{origin}: editor.method = \"{trained}\": `emend train` makes this editor, `emend apply --archive` uses it"
            ))),
            _ => Err(Error::Config(format!("{origin}: editor.method = {method} is not known; known: {known}"))),
        }
    }

    fn layers(&self) -> &[usize] {
        match self {
            EditorSettings::FineTuning(settings) => &settings.layers,
            EditorSettings::Rome(settings) => &settings.layers,
            EditorSettings::Memit(settings) => &settings.common.layers,
            EditorSettings::Emmet(settings) => &settings.common.layers,
            EditorSettings::AlphaEdit(settings) => &settings.common.layers,
            EditorSettings::KnowledgeNeurons(settings) => &settings.layers,
            EditorSettings::Lookup(settings) => std::slice::from_ref(&settings.layer),
            EditorSettings::Ike(_) => &[],
        }
    }

    fn statistics(&self) -> Option<&str> {
        let name = match self {
            EditorSettings::Rome(settings) => &settings.statistics,
            EditorSettings::Memit(settings) => &settings.common.statistics,
            EditorSettings::Emmet(settings) => &settings.common.statistics,
            EditorSettings::AlphaEdit(settings) => &settings.common.statistics,
            EditorSettings::FineTuning(_)
            | EditorSettings::KnowledgeNeurons(_)
            | EditorSettings::Ike(_)
            | EditorSettings::Lookup(_) => return None,
        };
        (name != "none").then_some(name.as_str())
    }

    /// The context templates, and how they are sampled where there are none.
    fn contexts(&mut self) -> Option<(&mut Vec<String>, &Sampled)> {
        match self {
            EditorSettings::Rome(rome::Settings { context_templates, context, .. })
            | EditorSettings::Memit(memit::Settings { common: Common { context_templates, context, .. }, .. })
            | EditorSettings::Emmet(emmet::Settings { common: Common { context_templates, context, .. }, .. })
            | EditorSettings::AlphaEdit(alphaedit::Settings {
                common: Common { context_templates, context, .. },
                ..
            })
            | EditorSettings::KnowledgeNeurons(knowledge_neurons::Settings { context_templates, context, .. }) => {
                Some((context_templates, context))
            }
            EditorSettings::FineTuning(_) | EditorSettings::Ike(_) | EditorSettings::Lookup(_) => None,
        }
    }

    fn seed(&self) -> u64 {
        match self {
            EditorSettings::FineTuning(settings) => settings.seed,
            EditorSettings::Rome(settings) => settings.context.seed,
            EditorSettings::Memit(settings) => settings.common.context.seed,
            EditorSettings::Emmet(settings) => settings.common.context.seed,
            EditorSettings::AlphaEdit(settings) => settings.common.context.seed,
            EditorSettings::KnowledgeNeurons(settings) => settings.context.seed,
            EditorSettings::Ike(settings) => settings.seed,
            EditorSettings::Lookup(_) => 0,
        }
    }

    /// Where the statistics lie: beside the config, in `folder`, or from the working folder.
    fn statistics_in(&self, folder: &Path) -> Option<PathBuf> {
        let path = self.statistics()?;
        let beside = folder.join(path);
        Some(if Moments::path(&beside).is_file() { beside } else { path.into() })
    }

    /// Whether there can be an editor for a model that was loaded as `name`, before hours of other work.
    ///
    /// # Errors
    /// A layer that does not exist, statistics that are missing or of another model.
    pub fn check(&self, model: &Model, name: &str, folder: &Path) -> Result<()> {
        let count = model.decoder.spec.layers;
        let layers = self.layers();
        if let Some(layer) = layers.iter().find(|&&layer| layer >= count) {
            let key = if matches!(self, EditorSettings::Lookup(_)) { "layer" } else { "layers" };
            let message = format!("editor.{key}: the model has no layer {layer}; it has layers 0 to {}", count - 1);
            return Err(Error::Config(message));
        }
        if layers.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::Config("editor.layers must be in order, each once".into()));
        }
        match self.statistics_in(folder) {
            Some(path) => Statistics::check(&path, model, name, layers).map(drop),
            None => Ok(()),
        }
    }

    /// The editor for a model that was loaded as `name`; its files are looked for in `folder`, then from the working folder.
    ///
    /// # Errors
    /// As [`EditorSettings::check`], and settings out of range.
    pub fn editor(
        mut self,
        model: &Arc<Model>,
        name: &str,
        folder: &Path,
        progress: Progress,
    ) -> Result<Box<dyn Editor>> {
        self.check(model, name, folder)?;
        let statistics = match self.statistics_in(folder) {
            Some(path) => Some(Statistics::open(&path, model, name, self.layers())?),
            None => None,
        };
        // Sampled once: an edit's settings then name the very contexts it was made in.
        if let Some((given, sampled)) = self.contexts() {
            *given = contexts::templates(&Edited::new(model.clone()), given, sampled)?;
        }
        let prepared = Prepared { statistics, seed: self.seed(), progress };
        Ok(match self {
            EditorSettings::FineTuning(settings) => {
                let texts = held(&settings, model, folder)?;
                Box::new(fine_tuning::FineTuning::new(settings, prepared, texts)?)
            }
            EditorSettings::Rome(settings) => Box::new(rome::Rome::new(settings, prepared)?),
            EditorSettings::Memit(settings) => Box::new(memit::Memit::new(settings, prepared)?),
            EditorSettings::Emmet(settings) => Box::new(emmet::Emmet::new(settings, prepared)?),
            EditorSettings::AlphaEdit(settings) => Box::new(alphaedit::AlphaEdit::new(settings, prepared)?),
            EditorSettings::KnowledgeNeurons(settings) => {
                Box::new(knowledge_neurons::KnowledgeNeurons::new(settings, prepared)?)
            }
            EditorSettings::Ike(settings) => Box::new(ike::Ike::new(settings, prepared, model, folder)?),
            EditorSettings::Lookup(settings) => Box::new(lookup::Lookup::new(settings, prepared)?),
        })
    }
}

/// The beginnings of the texts that fine-tuning holds a model to.
fn held(settings: &fine_tuning::Settings, model: &Model, folder: &Path) -> Result<Vec<Vec<u32>>> {
    let mut held = vec![];
    if let Some(file) = settings.locality.as_ref().filter(|_| settings.kl > 0.0) {
        let (most, length) = fine_tuning::LOCALITY;
        let beside = folder.join(file);
        let file = if beside.is_file() { beside } else { file.into() };
        let texts = Texts { files: vec![file], field: settings.locality_field.clone() };
        texts.shuffled(settings.seed, &mut |text| {
            let mut ids = model.tokenizer.encode_prompt(text.trim())?;
            ids.truncate(length.min(model.decoder.spec.context));
            held.push(ids);
            Ok(if held.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    Ok(held)
}

/// The section of an editor that shares keys with MEMIT. These are read by themselves first: an error in them would else
/// not name its key.
fn spread<T: DeserializeOwned + Serialize>(table: toml::Table, origin: &str) -> Result<T> {
    config::parse_under::<Common>("editor", table.clone().into(), origin)?;
    strict(table, origin)
}

/// A section whose type is made of parts: serde lets keys pass that no part has, this does not.
fn strict<T: DeserializeOwned + Serialize>(table: toml::Table, origin: &str) -> Result<T> {
    let keys: Vec<String> = table.keys().cloned().collect();
    let settings: T = config::parse_under("editor", table.into(), origin)?;
    // What was read, written down again, has every key that there is.
    let known = serde_json::to_value(&settings).ok();
    let known: Vec<&String> = known.iter().filter_map(|value| value.as_object()).flat_map(|map| map.keys()).collect();
    match keys.iter().find(|key| !known.contains(key)) {
        None => Ok(settings),
        Some(key) => {
            let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
            Err(Error::Config(format!("{origin}: editor.{key}: {}", config::unknown("key", key, &known))))
        }
    }
}
