//! Finds what consults a memory that was read from a file, and what of that routes share.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::methods::consults;
use crate::archive::Archive;
use crate::edit::{Change, Edit, Memory, Route};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;

/// Where a memory's archive may lie beside the folder that it names.
#[derive(Debug, Clone, Copy)]
pub enum Elsewhere<'a> {
    /// Only there.
    Nowhere,
    /// Here, where it is not there.
    IfMissing(&'a Path),
    /// Here, whether it is there or not.
    Instead(&'a Path),
}

/// For which model the networks of a memory are looked for, and where.
pub(super) struct Search<'a> {
    pub model: &'a Arc<Model>,
    pub elsewhere: Elsewhere<'a>,
    pub allow_other_base: bool,
}

/// A memory with its networks; an edit of weights as it is.
///
/// # Errors
/// Networks that are missing, or others than the memory was made with.
pub fn bind(edit: Edit, model: &Arc<Model>, elsewhere: Elsewhere<'_>, allow_other_base: bool) -> Result<Edit> {
    let memory = match &edit.change {
        Change::Memory(memory) => memory,
        Change::Pass(_) => return Ok(edit),
    };
    let Some(name) = memory.needs["method"].as_str() else {
        return Err(Error::Input("the memory names no method that consults it".into()));
    };
    let Some(consults) = consults(name) else {
        return Err(Error::Input(format!("it is a memory of \"{name}\", which nothing here consults")));
    };
    let route = consults(&edit, memory, &Search { model, elsewhere, allow_other_base })?;
    Ok(edit.bound(route))
}

/// The settings that a memory names as its needs, of a method that works at one `layer` of a causal stack. `what` is what its memory is called.
///
/// # Errors
/// Settings that are none, a layer that the model does not have, an encoder-decoder.
pub(super) fn settings_of_causal_layer<S: DeserializeOwned>(
    needs: &Value,
    what: &str,
    spec: &DecoderSpec,
    layer: impl Fn(&S) -> usize,
) -> Result<S> {
    if spec.source.is_some() {
        return Err(Error::Input(format!("it is a {what} of a causal stack, and this model has an encoder")));
    }
    settings_of_layer(needs, what, spec.layers, layer)
}

/// The same of a stack of `layers` that may be an encoder's.
///
/// # Errors
/// Settings that are none, a layer that the stack does not have.
pub(super) fn settings_of_layer<S: DeserializeOwned>(
    needs: &Value,
    what: &str,
    layers: usize,
    layer: impl Fn(&S) -> usize,
) -> Result<S> {
    let mut settings = needs.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("method");
    }
    let settings: S = serde_json::from_value(settings)
        .map_err(|error| Error::Input(format!("the {what}'s settings are broken: {error}")))?;
    let layer = layer(&settings);
    if layer >= layers {
        let last = layers - 1;
        return Err(Error::Input(format!("it is a {what} of layer {layer}; this model has layers 0 to {last}")));
    }
    Ok(settings)
}

/// The networks of an editor that learned, from the archive that a memory names.
///
/// # Errors
/// An archive that is not there, or another than the memory was made with.
pub(super) fn from_archive(_: &Edit, memory: &Memory, search: &Search<'_>) -> Result<Arc<dyn Route>> {
    let needs = &memory.needs;
    let (Some(named), Some(wanted)) = (needs["archive"].as_str(), needs["fingerprint"].as_str()) else {
        return Err(Error::Input(
            "the memory names no archive; make it again with `emend apply --archive DIR --memory FILE`".into(),
        ));
    };
    let there = |folder: &Path| folder.join("archive.toml").is_file();
    let folder = match search.elsewhere {
        Elsewhere::Instead(folder) if !there(folder) => {
            return Err(Error::Input(format!(
                "--archive {}: not there, or no archive (no archive.toml)",
                folder.display()
            )));
        }
        Elsewhere::Instead(folder) => folder,
        Elsewhere::IfMissing(folder) if !there(Path::new(named)) => folder,
        _ if there(Path::new(named)) => Path::new(named),
        _ => {
            return Err(Error::Input(format!(
                "the memory wants the archive {named} (fingerprint {wanted}), which is not there; --archive DIR names it elsewhere"
            )));
        }
    };
    let archive = Archive::open(folder)?;
    let found = archive.fingerprint()?;
    if found != wanted {
        return Err(Error::Input(format!(
            "it is a memory for another classifier: it was made with the archive {wanted}, {} is {found}",
            folder.display()
        )));
    }
    let editor = archive.editor(search.model, search.allow_other_base, &search.model.decoder.device())?;
    let wrong =
        || Error::Input(format!("{} is an archive of {}, which has no memory", folder.display(), editor.describe().0));
    editor.route().ok_or_else(wrong)
}
