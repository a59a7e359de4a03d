//! The editors that need no training, by the names that configs, edits and memories know them by. Another one is a line here, a file
//! of its own and a config.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::memory::{Search, from_archive};
use super::settings::{MethodSettings, read, written};
use super::{
    alphaedit, calinet, emmet, fine_tuning, grace, ike, knowledge_neurons, lookup, lora, memit, rome, side_memory,
    t_patcher, ultraedit, wise,
};
use crate::edit::{Edit, Memory, Route};
use crate::error::{Error, Result};
use crate::network::learned;

/// An editor that needs no training: its section `[editor]` is all it takes.
#[derive(Debug)]
pub(super) struct Method {
    pub name: &'static str,
    pub read: fn(Table, &str) -> Result<Box<dyn MethodSettings>>,
    /// Every key of the section with its value, those that were not given with their defaults.
    pub written: fn(Table, &str) -> Result<serde_json::Value>,
    /// Finds the route of a memory that this method made and that was read from a file; nothing where it makes no memories.
    pub consults: Option<Consults>,
    /// What its edits are, where they are more than changes of weights: such an edit cannot be exported.
    pub beyond_weights: Option<&'static str>,
}

/// See [`Method::consults`].
pub(super) type Consults = fn(&Edit, &Memory, &Search<'_>) -> Result<Arc<dyn Route>>;

static METHODS: [Method; 14] = [
    method::<fine_tuning::FineTuningSettings>(fine_tuning::NAME),
    method::<lora::LoraSettings>(lora::NAME),
    method::<rome::RomeSettings>(rome::NAME),
    method::<memit::MemitSettings>(memit::NAME),
    method::<emmet::EmmetSettings>(emmet::NAME),
    method::<alphaedit::AlphaEditSettings>(alphaedit::NAME),
    method::<ultraedit::UltraEditSettings>(ultraedit::NAME),
    method::<t_patcher::TPatcherSettings>(t_patcher::NAME).with_neurons(),
    method::<calinet::CaliNetSettings>(calinet::NAME).with_neurons(),
    method::<knowledge_neurons::KnowledgeNeuronsSettings>(knowledge_neurons::NAME),
    method::<ike::IkeSettings>(ike::NAME).consulted_by(ike::route),
    method::<lookup::LookupSettings>(lookup::NAME).consulted_by(lookup::route),
    method::<grace::GraceSettings>(grace::NAME).consulted_by(grace::route),
    method::<wise::WiseSettings>(wise::NAME).consulted_by(side_memory::route),
];

const fn method<S: MethodSettings + DeserializeOwned + Serialize + 'static>(name: &'static str) -> Method {
    Method { name, read: read::<S>, written: written::<S>, consults: None, beyond_weights: None }
}

impl Method {
    const fn consulted_by(self, consults: Consults) -> Self {
        Method { consults: Some(consults), beyond_weights: Some("is a memory"), ..self }
    }

    const fn with_neurons(self) -> Self {
        Method { beyond_weights: Some("puts neurons beside MLPs"), ..self }
    }
}

/// The method that `editor.method` names; `origin` names the file in errors.
///
/// # Errors
/// No method, one that is not known, or one that is made by training.
pub(super) fn find(named: Option<Value>, origin: &str) -> Result<&'static Method> {
    let known = || METHODS.iter().map(|method| format!("\"{}\"", method.name)).collect::<Vec<_>>().join(", ");
    let Some(named) = named else {
        return Err(Error::Config(format!("{origin}: editor.method is missing; known: {}", known())));
    };
    if named.as_str().is_some_and(|name| learned::METHODS.contains(&name)) {
        return Err(Error::Config(format!(
            "{origin}: editor.method = {named}: `emend train` makes this editor, `emend apply --archive` uses it"
        )));
    }
    let method = METHODS.iter().find(|method| named.as_str() == Some(method.name));
    method.ok_or_else(|| Error::Config(format!("{origin}: editor.method = {named} is not known; known: {}", known())))
}

/// Whether this is the name of an editor that needs no training.
pub fn needs_no_training(name: &str) -> bool {
    METHODS.iter().any(|method| method.name == name)
}

/// What finds the consultant of a memory of this method, where there is one.
pub(super) fn consults(name: &str) -> Option<Consults> {
    if learned::METHODS.contains(&name) {
        return Some(from_archive);
    }
    METHODS.iter().find(|method| method.name == name)?.consults
}
