//! Finds what consults a memory that was read from a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ike::IkeRoute;
use super::lookup::LookupRoute;
use crate::archive::{Archive, Trained};
use crate::edit::{Edit, Route};
use crate::error::{Error, Result};
use crate::model::Model;

/// A memory with its networks; an edit of weights as it is. `elsewhere` is where the archive lies, where it is not the folder that
/// the memory names.
///
/// # Errors
/// Networks that are missing, or others than the memory was made with.
pub fn bind(edit: Edit, model: &Arc<Model>, elsewhere: Option<&Path>, allow_other_base: bool) -> Result<Edit> {
    let Some(memory) = edit.memory() else { return Ok(edit) };
    let needs = &memory.needs;
    let route: Arc<dyn Route> = match needs["method"].as_str() {
        Some("serac") => {
            let named = PathBuf::from(needs["archive"].as_str().unwrap_or_default());
            let folder = elsewhere.unwrap_or(&named);
            let wanted = needs["fingerprint"].as_str().unwrap_or_default();
            if !folder.join("archive.toml").is_file() {
                return Err(Error::Input(format!(
                    "the memory wants the archive {} (fingerprint {wanted}), which is not there; --archive DIR names it elsewhere",
                    folder.display()
                )));
            }
            let archive = Archive::open(folder)?;
            let found = archive.fingerprint()?;
            if found != wanted {
                return Err(Error::Input(format!(
                    "it is a memory for another classifier: it was made with the archive {wanted}, {} is {found}",
                    folder.display()
                )));
            }
            match archive.editor(model, allow_other_base, &model.decoder.device())? {
                Trained::Serac(route, _) => route,
                Trained::Mend(_) => {
                    return Err(Error::Input(format!(
                        "{} is an archive of MEND, which has no memory",
                        folder.display()
                    )));
                }
            }
        }
        Some("ike") => Arc::new(IkeRoute::find(needs, edit.provenance.requests.len(), model)?),
        Some("lookup") => Arc::new(LookupRoute::find(needs, model.decoder.spec.layers)?),
        method => {
            return Err(Error::Input(format!("it is a memory of method {method:?}, which nothing here consults")));
        }
    };
    Ok(edit.bound(route))
}
