//! All editors, by the names that configs, edits and memories know them by. Another editor is a line here, a file of its own and a config.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::memory::{Search, serac_route};
use super::settings::{Settings, read};
use super::{alphaedit, emmet, fine_tuning, ike, knowledge_neurons, lookup, memit, rome};
use crate::edit::{Edit, Memory, Route};
use crate::error::{Error, Result};
use crate::network::{mend, serac};

/// A method by its name.
#[derive(Debug)]
pub(super) struct Method {
    pub name: &'static str,
    pub made: Made,
    /// What finds the consultant of a memory that it made and that was read from a file; nothing where it makes no memories.
    pub consults: Option<Consults>,
}

/// Where an editor comes from.
#[derive(Debug)]
pub(super) enum Made {
    /// Its section `[editor]` is all it takes.
    FromSettings(fn(Table, &str) -> Result<Box<dyn Settings>>),
    /// `emend train` makes it.
    ByTraining,
}

/// See [`Method::consults`].
pub(super) type Consults = fn(&Edit, &Memory, &Search<'_>) -> Result<Arc<dyn Route>>;

static METHODS: [Method; 10] = [
    untrained::<fine_tuning::Settings>(fine_tuning::NAME),
    untrained::<rome::Settings>(rome::NAME),
    untrained::<memit::Settings>(memit::NAME),
    untrained::<emmet::Settings>(emmet::NAME),
    untrained::<alphaedit::Settings>(alphaedit::NAME),
    untrained::<knowledge_neurons::Settings>(knowledge_neurons::NAME),
    untrained::<ike::Settings>(ike::NAME).consulted_by(ike::route),
    untrained::<lookup::Settings>(lookup::NAME).consulted_by(lookup::route),
    trained(mend::NAME),
    trained(serac::NAME).consulted_by(serac_route),
];

const fn untrained<S: Settings + DeserializeOwned + Serialize + 'static>(name: &'static str) -> Method {
    Method { name, made: Made::FromSettings(read::<S>), consults: None }
}

const fn trained(name: &'static str) -> Method {
    Method { name, made: Made::ByTraining, consults: None }
}

impl Method {
    const fn consulted_by(self, consults: Consults) -> Self {
        Method { consults: Some(consults), ..self }
    }
}

/// The method that `editor.method` names; `origin` names the file in errors.
///
/// # Errors
/// No method, or one that is not known.
pub(super) fn find(named: Option<Value>, origin: &str) -> Result<&'static Method> {
    let known = || {
        let untrained = METHODS.iter().filter(|method| matches!(method.made, Made::FromSettings(_)));
        untrained.map(|method| format!("\"{}\"", method.name)).collect::<Vec<_>>().join(", ")
    };
    let Some(named) = named else {
        return Err(Error::Config(format!("{origin}: editor.method is missing; known: {}", known())));
    };
    let method = METHODS.iter().find(|method| named.as_str() == Some(method.name));
    method.ok_or_else(|| Error::Config(format!("{origin}: editor.method = {named} is not known; known: {}", known())))
}

/// The method of a name, where there is one.
pub(super) fn by_name(name: &str) -> Option<&'static Method> {
    find(Some(Value::String(name.to_owned())), "").ok()
}
