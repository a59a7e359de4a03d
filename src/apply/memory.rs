//! Finds what consults a memory that was read from a file.

use std::path::Path;
use std::sync::Arc;

use super::ike::IkeRoute;
use super::lookup::LookupRoute;
use crate::archive::{Archive, Trained};
use crate::edit::{Edit, Route};
use crate::error::{Error, Result};
use crate::model::Model;

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

/// A memory with its networks; an edit of weights as it is.
///
/// # Errors
/// Networks that are missing, or others than the memory was made with.
pub fn bind(edit: Edit, model: &Arc<Model>, elsewhere: Elsewhere<'_>, allow_other_base: bool) -> Result<Edit> {
    let Some(memory) = edit.memory() else { return Ok(edit) };
    let needs = &memory.needs;
    let route: Arc<dyn Route> = match needs["method"].as_str() {
        Some("serac") => {
            let (Some(named), Some(wanted)) = (needs["archive"].as_str(), needs["fingerprint"].as_str()) else {
                return Err(Error::Input(
                    "the memory names no archive; make it again with `emend apply --archive DIR --memory FILE`".into(),
                ));
            };
            let there = |folder: &Path| folder.join("archive.toml").is_file();
            let folder = match elsewhere {
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
        Some("ike") => Arc::new(IkeRoute::find(memory, edit.provenance.requests.len(), model)?),
        Some("lookup") => Arc::new(LookupRoute::find(needs, &model.decoder.spec)?),
        Some(method) => {
            return Err(Error::Input(format!("it is a memory of \"{method}\", which nothing here consults")));
        }
        None => return Err(Error::Input("the memory names no method that consults it".into())),
    };
    Ok(edit.bound(route))
}
