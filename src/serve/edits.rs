//! The edits that a server knows, the folder they lie in, and the stacks that model names mean.
//!
//! An edit made over HTTP is a file before it is answered for, and `serve.json` beside it says which are on and what was seen of each. Both are written whole: whenever
//! the process ends, what was answered for is there at the next start.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::refusal::Refusal;
use crate::apply::memory::{Elsewhere, bind};
use crate::edit::{Change, Edit, Edited};
use crate::error::{Error, Result};
use crate::files;

/// What an edit's file is called behind the edit's name.
const ENDING: &str = ".edit.safetensors";

/// Stacks that stay laid, beside those that are being asked.
const LAID: usize = 8;

/// Letters of an edit's name at most.
const NAME: usize = 64;

/// The edits of a server.
pub struct Edits {
    /// The model's name in requests.
    pub model: String,
    base: Edited,
    folder: Option<PathBuf>,
    shelf: Mutex<Shelf>,
    /// Where archives of memories may lie beside the folders that these name.
    archives: Vec<PathBuf>,
    /// Keeps other servers out of the folder.
    _lock: Option<fs::File>,
}

struct Shelf {
    /// In the order in which they are laid.
    kept: Vec<Kept>,
    /// Stacks by the names of their edits, the last one asked in front.
    laid: VecDeque<(Vec<String>, Arc<Edited>)>,
}

/// An edit that the server knows.
#[derive(Clone)]
struct Kept {
    edit: Arc<Edit>,
    /// Where it lies; nothing where it lives in memory only.
    file: Option<PathBuf>,
    /// Whether the file is the server's own, to be removed with the edit.
    own: bool,
    bytes: usize,
    noted: Noted,
}

/// What `serve.json` says of an edit.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Noted {
    id: String,
    on: bool,
    created: i64,
    #[serde(default)]
    report: Value,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    edits: Vec<Noted>,
}

/// An edit's name as a model name says it: with or without the ending of its file.
fn bare(name: &str) -> &str {
    let name = name.strip_suffix(".safetensors").unwrap_or(name);
    name.strip_suffix(".edit").unwrap_or(name)
}

/// Sees that an edit can be called this.
///
/// # Errors
/// A name that is empty or too long, or has letters that a file or a model name cannot have.
pub fn check_id(id: &str) -> Result<(), Refusal> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if id.is_empty() || id.len() > NAME || id.starts_with('.') || !id.chars().all(plain) || bare(id) != id {
        let message = format!(
            "an edit's \"id\" is made of up to {NAME} letters, digits, \"-\", \"_\" and \".\", and begins with no \".\""
        );
        return Err(Refusal::field("id", message));
    }
    Ok(())
}

impl Edits {
    /// The edits of files that were given, and those that a folder holds; a file of the folder that cannot be used is told and left out.
    ///
    /// # Errors
    /// A given file that cannot be used; a folder that cannot be written, or that another server uses.
    pub fn open(
        model: String,
        base: Edited,
        given: &[PathBuf],
        folder: Option<&Path>,
        archives: &[PathBuf],
    ) -> Result<Self> {
        let busy = "another server keeps its edits here; stop it, or use another --edits";
        let lock = folder.map(|folder| files::lock(folder, busy)).transpose()?;
        let shelf = Mutex::new(Shelf { kept: vec![], laid: VecDeque::new() });
        let (kept_in, archives) = (folder.map(Path::to_owned), archives.to_vec());
        let edits = Edits { model, base, folder: kept_in, shelf, archives, _lock: lock };
        for path in given {
            let id = bare(&path.file_name().unwrap_or_default().to_string_lossy()).to_owned();
            if id.contains('+') {
                return Err(Error::file(path, "a model name joins edits by \"+\"; give the file a name without it"));
            }
            let kept = edits.read(path, Noted::new(&id), false)?;
            edits.put(kept).map_err(|refusal| Error::file(path, refusal.message))?;
        }
        if let Some(folder) = folder {
            edits.read_folder(folder)?;
        }
        Ok(edits)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An edit of a file, as it can be laid on the model.
    fn read(&self, path: &Path, noted: Noted, own: bool) -> Result<Kept> {
        let edit = Edit::load(path, &self.base.base().decoder.device())?;
        let places =
            std::iter::once(Elsewhere::Nowhere).chain(self.archives.iter().map(|path| Elsewhere::IfMissing(path)));
        let mut bound = places.map(|elsewhere| bind(edit.clone(), self.base.base(), elsewhere, false));
        let first = bound.next().unwrap_or_else(|| Ok(edit.clone()));
        let edit = Arc::new(first.or_else(|error| bound.find_map(Result::ok).ok_or(error))?);
        self.base.with(edit.clone())?;
        Ok(Kept { bytes: files::size(path) as usize, edit, file: Some(path.to_owned()), own, noted })
    }

    fn read_folder(&self, folder: &Path) -> Result<()> {
        files::remove_leftovers(folder)?;
        let path = folder.join("serve.json");
        let notes: Notes = match path.is_file() {
            false => Notes::default(),
            true => serde_json::from_slice(&files::read(&path)?).unwrap_or_else(|error| {
                tracing::warn!("{}: {error}; all edits of the folder are on", path.display());
                Notes::default()
            }),
        };
        let mut found: Vec<String> = fs::read_dir(folder)
            .map_err(Error::io(folder))?
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(ENDING)?.to_owned()))
            .collect();
        if let Some(strange) = found.iter().find(|id| check_id(id).is_err()) {
            tracing::warn!("left out: {strange}{ENDING}, whose name no model name can hold; give it another");
        }
        found.retain(|id| check_id(id).is_ok());
        found.sort();
        let place = |id: &String| notes.edits.iter().position(|noted| noted.id == *id).unwrap_or(usize::MAX);
        found.sort_by_key(place);
        for id in found {
            let noted = notes.edits.iter().find(|noted| noted.id == id).cloned().unwrap_or_else(|| Noted::new(&id));
            let path = folder.join(format!("{id}{ENDING}"));
            let put = || -> Result<()> {
                let kept = self.read(&path, noted, true)?;
                self.put(kept).map_err(|refusal| Error::file(&path, refusal.message))
            };
            if let Err(error) = put() {
                tracing::warn!("left out: {error}");
            }
        }
        Ok(())
    }

    fn put(&self, kept: Kept) -> Result<(), Refusal> {
        let mut shelf = self.shelf();
        shelf.check_free(&kept.noted.id)?;
        shelf.check_new(&kept.edit)?;
        shelf.kept.push(kept);
        Ok(())
    }

    /// Sees that no edit has this name.
    ///
    /// # Errors
    /// One has.
    pub fn check_free(&self, id: &str) -> Result<(), Refusal> {
        self.shelf().check_free(id)
    }

    /// Whether this very edit is there, under any name.
    pub fn knows(&self, edit: &Edit) -> bool {
        self.shelf().check_new(edit).is_err()
    }

    /// A name that no edit has.
    pub fn free_id(&self, editor: &str) -> String {
        let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_".contains(letter) { letter } else { '-' };
        let stem: String = editor.chars().take(NAME / 2).map(plain).collect();
        let shelf = self.shelf();
        let mut numbers = (1..).map(|number| format!("{stem}-{number}"));
        numbers.find(|id| shelf.check_free(id).is_ok()).unwrap_or(stem)
    }

    /// Keeps a further edit, which is on from now. It is a file, where there is a folder, before this returns.
    ///
    /// # Errors
    /// A name that another edit has; a file that cannot be written.
    pub fn add(&self, id: &str, edit: Arc<Edit>) -> Result<(), Refusal> {
        let mut shelf = self.shelf();
        shelf.check_free(id)?;
        shelf.check_new(&edit)?;
        let file = self.folder.as_ref().map(|folder| folder.join(format!("{id}{ENDING}")));
        let contents = edit.bytes();
        if let Some(file) = &file {
            files::write(file, &contents)?;
        }
        self.folder.as_ref().map_or(Ok(()), |folder| files::sync_folder(folder))?;
        let own = file.is_some();
        shelf.kept.push(Kept { edit, file, own, bytes: contents.len(), noted: Noted::new(id) });
        self.note(&shelf)
    }

    /// Keeps what was seen of an edit.
    ///
    /// # Errors
    /// There is no such edit any more; a file that cannot be written.
    pub fn report(&self, id: &str, report: Value) -> Result<(), Refusal> {
        let mut shelf = self.shelf();
        let place = self.place(&shelf, id)?;
        shelf.kept[place].noted.report = report;
        self.note(&shelf)
    }

    /// Switches an edit on or off: whether it lies in the stack that new edits are made on, and that the page shows.
    ///
    /// # Errors
    /// As [`Edits::report`].
    pub fn switch(&self, id: &str, on: bool) -> Result<(), Refusal> {
        let mut shelf = self.shelf();
        let place = self.place(&shelf, id)?;
        shelf.kept[place].noted.on = on;
        self.note(&shelf)
    }

    /// Takes an edit out, with its file where that is the server's own. Answers that are on their way keep the model that they have.
    ///
    /// # Errors
    /// As [`Edits::report`].
    pub fn remove(&self, id: &str) -> Result<(), Refusal> {
        let mut shelf = self.shelf();
        let place = self.place(&shelf, id)?;
        if let Some(file) = shelf.kept[place].file.as_ref().filter(|_| shelf.kept[place].own) {
            fs::remove_file(file).map_err(Error::io(file))?;
        }
        shelf.kept.remove(place);
        shelf.laid.retain(|(ids, _)| !ids.iter().any(|laid| laid == id));
        self.note(&shelf)
    }

    /// An edit's file, as it lies on the disk.
    ///
    /// # Errors
    /// There is no such edit.
    pub fn file(&self, id: &str) -> Result<Vec<u8>, Refusal> {
        let shelf = self.shelf();
        Ok(shelf.kept[self.place(&shelf, id)?].edit.bytes())
    }

    fn place(&self, shelf: &Shelf, id: &str) -> Result<usize, Refusal> {
        let place = shelf.kept.iter().position(|kept| kept.noted.id == id);
        place.ok_or_else(|| Refusal::missing(format!("there is no edit \"{id}\"; {}", shelf.known())))
    }

    /// Writes down which edits of the folder are on.
    fn note(&self, shelf: &Shelf) -> Result<(), Refusal> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let own = shelf.kept.iter().filter(|kept| kept.own).map(|kept| kept.noted.clone());
        let notes = Notes { edits: own.collect() };
        let text = serde_json::to_string_pretty(&notes).unwrap_or_default() + "\n";
        Ok(files::write(&folder.join("serve.json"), text.as_bytes())?)
    }

    /// The model that a name means: the base's own name, or with edits behind it, each after a "+".
    ///
    /// # Errors
    /// Another model's name, or an edit that is not there; edits that do not go together.
    pub fn stack(&self, name: &str) -> Result<Arc<Edited>, Refusal> {
        let edits = name.strip_prefix(&self.model).map(|rest| (rest, rest.strip_prefix('+')));
        let ids: Vec<String> = match edits {
            Some(("", _)) => vec![],
            Some((_, Some(edits))) => edits.split('+').map(|id| bare(id).to_owned()).collect(),
            _ => {
                let message = format!("there is no model \"{name}\"; there is {}", self.models().join(", "));
                return Err(Refusal { param: Some("model".into()), ..Refusal::missing(message) });
            }
        };
        self.laid(ids)
    }

    /// The model with the edits that are on, and their names.
    ///
    /// # Errors
    /// Edits that do not go together.
    pub fn all_on(&self) -> Result<Arc<Edited>, Refusal> {
        let ids = self.shelf().on();
        self.laid(ids)
    }

    fn laid(&self, ids: Vec<String>) -> Result<Arc<Edited>, Refusal> {
        let edits = {
            let mut shelf = self.shelf();
            let edits = ids.iter().map(|id| Ok(shelf.kept[self.place(&shelf, id)?].edit.clone()));
            let edits = edits.collect::<Result<Vec<Arc<Edit>>, Refusal>>()?;
            if let Some(place) = shelf.laid.iter().position(|(laid, _)| *laid == ids) {
                let known = shelf.laid.remove(place);
                known.into_iter().for_each(|known| shelf.laid.push_front(known));
                return Ok(shelf.laid[0].1.clone());
            }
            edits
        };
        // Others go on meanwhile: large changes take a moment to be laid down.
        let mut model = self.base.clone();
        for (id, edit) in ids.iter().zip(edits) {
            if model.holds(&edit) {
                return Err(Refusal::field(
                    "model",
                    format!("the edit \"{id}\" lies in this stack twice; name it once"),
                ));
            }
            model = model.with(edit)?;
        }
        let model = Arc::new(model);
        let mut shelf = self.shelf();
        // One of them may have been taken out just now.
        if ids.iter().all(|id| shelf.kept.iter().any(|kept| kept.noted.id == *id)) {
            shelf.laid.push_front((ids, model.clone()));
            shelf.laid.truncate(LAID);
        }
        Ok(model)
    }

    /// The names of models: the base, it with each edit, and with all that are on where these are several.
    pub fn models(&self) -> Vec<String> {
        let shelf = self.shelf();
        let with = |ids: &[String]| format!("{}+{}", self.model, ids.join("+"));
        let each = shelf.kept.iter().map(|kept| with(std::slice::from_ref(&kept.noted.id)));
        let on = shelf.on();
        let all = (on.len() > 1).then(|| with(&on));
        std::iter::once(self.model.clone()).chain(each).chain(all).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shelf().kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of one edit, what clients are told.
    ///
    /// # Errors
    /// There is no such edit.
    pub fn describe(&self, id: &str) -> Result<Value, Refusal> {
        let shelf = self.shelf();
        let place = self.place(&shelf, id)?;
        Ok(shelf.describe(&shelf.kept[place]))
    }

    /// The same of all.
    pub fn describe_all(&self) -> Vec<Value> {
        let shelf = self.shelf();
        shelf.kept.iter().map(|kept| shelf.describe(kept)).collect()
    }
}

impl Shelf {
    fn check_free(&self, id: &str) -> Result<(), Refusal> {
        if self.kept.iter().any(|kept| kept.noted.id == id) {
            let message = format!("there is an edit \"{id}\" already; give another \"id\", or take that one out first");
            return Err(Refusal { param: Some("id".into()), ..Refusal::new(StatusCode::CONFLICT, message) });
        }
        Ok(())
    }

    /// The same edit under two names would count twice in a stack of both.
    fn check_new(&self, edit: &Edit) -> Result<(), Refusal> {
        match self.kept.iter().find(|kept| kept.edit.id() == edit.id()) {
            None => Ok(()),
            Some(known) => Err(Refusal::new(
                StatusCode::CONFLICT,
                format!("this very edit is there already, as \"{}\"; switch that one on", known.noted.id),
            )),
        }
    }

    fn on(&self) -> Vec<String> {
        self.kept.iter().filter(|kept| kept.noted.on).map(|kept| kept.noted.id.clone()).collect()
    }

    fn known(&self) -> String {
        let ids: Vec<&str> = self.kept.iter().map(|kept| kept.noted.id.as_str()).collect();
        if ids.is_empty() { "there are none yet".into() } else { format!("there is {}", ids.join(", ")) }
    }

    /// An edit that another was computed on and that is gone is told by its own id.
    fn name_of(&self, id: &str) -> String {
        let known = self.kept.iter().find(|kept| kept.edit.id() == id);
        known.map_or_else(|| id.to_owned(), |kept| kept.noted.id.clone())
    }

    fn describe(&self, Kept { edit, noted, bytes, .. }: &Kept) -> Value {
        let provenance = &edit.provenance;
        let requests = provenance.requests.iter().map(
            |request| json!({"prompt": request.prompt, "target_new": request.target_new, "subject": request.subject}),
        );
        let change = match &edit.change {
            Change::Memory(_) => "memory",
            Change::Pass(change) if change.interventions.is_empty() && change.neurons.is_empty() => "weights",
            Change::Pass(_) => "activations",
        };
        json!({
            "id": noted.id,
            "method": provenance.method,
            "requests": requests.collect::<Vec<_>>(),
            "created": noted.created,
            "bytes": bytes,
            "on": noted.on,
            "change": change,
            "report": noted.report,
            "computed_on": provenance.computed_on.iter().map(|id| self.name_of(id)).collect::<Vec<_>>(),
        })
    }
}

impl Noted {
    fn new(id: &str) -> Self {
        Noted { id: id.to_owned(), on: true, created: chrono::Utc::now().timestamp(), report: Value::Null }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_edits_are_names_of_files_and_parts_of_model_names() {
        for (name, wanted) in
            [("rome", "rome"), ("rome.edit", "rome"), ("rome.edit.safetensors", "rome"), ("a.b", "a.b")]
        {
            assert_eq!(bare(name), wanted);
        }
        for id in ["rome-1", "a.b", "X_9"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".hidden", "a+b", "a/b", "..", "a b", "é", "rome.edit", &"a".repeat(65)] {
            assert_eq!(check_id(id).unwrap_err().param.as_deref(), Some("id"), "{id}");
        }
    }
}
