//! `[editor]` of the editors that need no training: the trait of their settings, and how an editor is made of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

use super::Editor;
use super::association::Association;
use super::contexts::{self, Sampled};
use super::methods::{Method, find};
use super::prepared::{Prepared, Progress};
use crate::edit::{Edited, not_exported};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::paths;
use crate::plan::{OfEditor, Work};
use crate::sections::choice;
use crate::statistics::{Moments, Statistics};

/// The settings of one method: which files they name, and how an editor is made of them.
pub trait MethodSettings: fmt::Debug + Send + Sync {
    /// Defaults of this method's own, for keys that it shares with methods of other defaults.
    fn defaults() -> Table
    where
        Self: Sized,
    {
        Table::new()
    }

    /// Refuses what the settings' own choices make of no use, among the keys that were `given`.
    ///
    /// # Errors
    /// Names the key, and the choice that does not use it.
    fn check_used(&self, given: &Table) -> Result<()> {
        if self.association().is_some() { contexts::check_used(given) } else { Ok(()) }
    }

    /// The association that it puts into MLP layers, for ROME and its kin: all that follows is then the association's.
    fn association(&self) -> Option<&Association> {
        None
    }

    /// Whether it needs a causal stack: what stands at a subject's last position.
    fn causal(&self) -> bool {
        self.association().is_some()
    }

    /// [`MethodSettings::association`], for its contexts to be filled in.
    fn association_mut(&mut self) -> Option<&mut Association> {
        None
    }

    /// The key that names layers, and the layers.
    fn layers(&self) -> (&'static str, &[usize]) {
        ("layers", self.association().map_or(&[], |association| &association.layers))
    }

    /// The statistics' file, for editors that keep ordinary keys still.
    fn statistics(&self) -> Option<&str> {
        self.association()?.statistics()
    }

    /// The context templates, and how they are sampled where there are none.
    fn contexts(&mut self) -> Option<(&mut Vec<String>, &Sampled)> {
        self.association_mut().map(Association::contexts)
    }

    /// The seed of its draws.
    fn seed(&self) -> u64 {
        self.association().map_or(0, |association| association.context.seed)
    }

    /// What it holds in an edit of so many requests. Nothing to speak of, where nothing is said.
    ///
    /// # Errors
    /// Weights that the model does not have.
    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        Ok(self.association().map_or(OfEditor::default(), |association| association.held(work, requests)))
    }

    /// The editor. Its own files are looked for in `folder`, then from the working folder.
    ///
    /// # Errors
    /// Settings out of range; files that are missing or broken.
    fn editor(self: Box<Self>, prepared: Prepared, model: &Arc<Model>, folder: &Path) -> Result<Box<dyn Editor>>;
}

/// The settings of some editor, with its method.
#[derive(Debug)]
pub struct EditorSettings {
    method: &'static Method,
    settings: Box<dyn MethodSettings>,
}

impl EditorSettings {
    /// From a section `[editor]`; `origin` names its file in errors.
    ///
    /// # Errors
    /// A method that is not known or is made by training, or keys that it does not have.
    pub fn parse(mut table: Table, origin: &str) -> Result<Self> {
        let method = find(table.remove("method"), origin)?;
        Ok(EditorSettings { method, settings: (method.read)(table, origin)? })
    }

    /// Every key of a section `[editor]` with its value: those that are not given have their defaults, and those without one are null.
    ///
    /// # Errors
    /// As [`EditorSettings::parse`].
    pub fn written(mut table: Table, origin: &str) -> Result<serde_json::Value> {
        let method = find(table.remove("method"), origin)?;
        (method.written)(table, origin)
    }

    /// Refuses a method that works on a causal stack for a model whose encoder reads a prompt whole.
    ///
    /// # Errors
    /// Such a model, with the methods that edit it.
    pub fn check_stack(&self, spec: &DecoderSpec, name: &str) -> Result<()> {
        if spec.source.is_some() && self.settings.causal() {
            let message = format!(
                "this editor works on what a causal stack keeps of a prompt, and {name} has an encoder that reads it whole; mend, malmen, \
                 rledit, ultraedit, fine_tuning, lora and calinet edit it, and serac, ike and lookup stand beside it"
            );
            return Err(Error::Config(message));
        }
        Ok(())
    }

    /// Refuses a method whose edits cannot be exported, before any of its work.
    ///
    /// # Errors
    /// What its edits are, where they are more than changes of weights.
    pub fn check_exportable(&self) -> Result<()> {
        match self.method.beyond_weights {
            None => Ok(()),
            Some(what) => Err(not_exported(&format!("an edit of {}", self.method.name), what)),
        }
    }

    /// Whether a request must name its subject.
    pub fn needs_subject(&self) -> bool {
        self.settings.association().is_some()
    }

    /// Where the statistics lie: beside the config, in `folder`, or from the working folder.
    fn statistics_in(&self, folder: &Path) -> Option<PathBuf> {
        let name = self.settings.statistics()?;
        Some(paths::find(name, folder, |path| Moments::path(path).is_file()).unwrap_or_else(|| name.into()))
    }

    /// What the editor holds in an edit of so many requests.
    ///
    /// # Errors
    /// Layers and weights that the model does not have.
    pub fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        self.check_layers(work.spec)?;
        self.settings.held(work, requests)
    }

    /// Sees that the model has the layers.
    fn check_layers(&self, spec: &DecoderSpec) -> Result<()> {
        // A layer is meant of each stack that a weight names; of a memory, the encoder's.
        let count = spec.layers.max(spec.source_layers());
        let (key, layers) = self.settings.layers();
        match layers.iter().find(|&&layer| layer >= count) {
            Some(layer) => {
                Err(Error::Config(format!("editor.{key}: the model has no layer {layer}; it has {}", spec.places())))
            }
            None => Ok(()),
        }
    }

    /// The layers that it edits.
    pub fn layers(&self) -> &[usize] {
        self.settings.layers().1
    }

    /// Whether there can be an editor for a model that was loaded as `name`, before hours of other work.
    ///
    /// # Errors
    /// A layer that does not exist, statistics that are missing or of another model.
    pub fn check(&self, model: &Model, name: &str, folder: &Path) -> Result<()> {
        self.check_stack(&model.decoder.spec, name)?;
        self.check_layers(&model.decoder.spec)?;
        let layers = self.settings.layers().1;
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
            Some(path) => Some(Statistics::open(&path, model, name, self.settings.layers().1)?),
            None => None,
        };
        // Sampled once: an edit's settings then name the very contexts it was made in.
        if let Some((given, sampled)) = self.settings.contexts() {
            *given = contexts::templates(&Edited::new(model.clone()), given, sampled)?;
        }
        let prepared = Prepared { statistics, seed: self.settings.seed(), progress };
        self.settings.editor(prepared, model, folder)
    }
}

/// A method's settings out of its section, for the table of methods.
pub(super) fn read<S: MethodSettings + DeserializeOwned + Serialize + 'static>(
    table: Table,
    origin: &str,
) -> Result<Box<dyn MethodSettings>> {
    Ok(Box::new(settings::<S>(table, origin)?))
}

/// A method's settings out of its section, written down again: every key with its value.
pub(super) fn written<S: MethodSettings + DeserializeOwned + Serialize + 'static>(
    table: Table,
    origin: &str,
) -> Result<serde_json::Value> {
    Ok(serde_json::json!(settings::<S>(table, origin)?))
}

/// A method's settings out of its section; `origin` names its file in errors.
///
/// # Errors
/// Keys that the method does not have or use, values of the wrong type.
pub fn settings<S: MethodSettings + DeserializeOwned + Serialize>(given: Table, origin: &str) -> Result<S> {
    let mut whole = given.clone();
    for (key, value) in S::defaults() {
        whole.entry(key).or_insert(value);
    }
    let settings: S = choice::read("editor", &whole, origin)?;
    settings.check_used(&given)?;
    Ok(settings)
}
