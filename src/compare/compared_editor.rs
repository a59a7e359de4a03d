//! An editor that a comparison's config names. All that it is made of is read before the first edit, and is written to params.json.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::apply::{Editor, EditorSettings};
use crate::archive::Archive;
use crate::config;
use crate::config::compare::{Competitor, Config};
use crate::data::record::EditRecord;
use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::plan::{OfEditor, Work};

/// What is looked at in a case, as a number that rises when that changes: cases of one run are looked at alike. From 2 on texts are written
/// to a fixed length, and a sequence is also read right after each edit.
const LOOKS: u32 = 2;

/// An editor that is compared with others.
pub struct ComparedEditor<'a> {
    named: &'a Competitor,
    made_of: MadeOf,
}

enum MadeOf {
    Trained(Box<Archive>),
    /// With the folder of its config.
    Untrained(Box<EditorSettings>, PathBuf),
}

impl<'a> ComparedEditor<'a> {
    /// Checks that all the editor is made of is there, so that a wrong name is reported before the other editors have run for hours.
    /// Paths are relative to `place`.
    ///
    /// # Errors
    /// A config, archive or statistics that are missing, wrong, or of another model; the editor is named.
    pub fn open(named: &'a Competitor, place: &Path, model: &Model, model_name: &str) -> Result<Self> {
        let open = || {
            if let Some(archive) = &named.archive {
                let folder = place.join(archive);
                // `train` gives an archive its configuration's name.
                let training = place.join(folder.file_name().unwrap_or_default()).with_extension("toml");
                if !folder.exists() && training.is_file() {
                    let command = format!("`emend train --config {}` makes it", training.display());
                    return Err(Error::file(&folder, format!("no archive here; {command}")));
                }
                let archive = Archive::open(&folder)?;
                archive.check_base(model)?;
                return Ok(MadeOf::Trained(Box::new(archive)));
            }
            let path = place.join(named.config.as_deref().unwrap_or_default());
            let settings = config::apply::Config::read(&path, &named.set)?.editor;
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            settings.check(model, model_name, &folder)?;
            Ok(MadeOf::Untrained(Box::new(settings), folder))
        };
        let made_of = open().map_err(|error| naming(&named.name, error))?;
        Ok(ComparedEditor { named, made_of })
    }

    /// What an editor holds in an edit of so many requests, of a model whose weights are not read.
    ///
    /// # Errors
    /// A config or archive that is missing or wrong; the editor is named.
    pub fn held(named: &Competitor, place: &Path, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        let held = || match &named.archive {
            Some(archive) => {
                let archive = Archive::open(&place.join(archive))?;
                let network = files::size(&Archive::network_path(&archive.folder));
                archive.description.editor.held(work, requests, network)
            }
            None => {
                let path = place.join(named.config.as_deref().unwrap_or_default());
                config::apply::Config::read(&path, &named.set)?.editor.held(work, requests)
            }
        };
        held().map_err(|error| naming(&named.name, error))
    }

    /// The editor, and params.json of its run: all that decides what a case file holds. `text` is that of the perplexities.
    ///
    /// # Errors
    /// Networks, demonstrations or texts that are missing or broken, settings out of range; the editor is named.
    pub fn editor(
        self,
        config: &Config,
        model: &Arc<Model>,
        records: &[EditRecord],
        text: &[Vec<u32>],
    ) -> Result<(Box<dyn Editor>, Value)> {
        let ComparedEditor { named, made_of } = self;
        let mut network = None;
        let made = match made_of {
            MadeOf::Trained(archive) => {
                // Another training under the same name is another editor.
                network = Some(hash(&files::map(&Archive::network_path(&archive.folder))?));
                archive.editor(model, false, &model.decoder.device())
            }
            MadeOf::Untrained(settings, folder) => {
                settings.editor(model, &config.model.path, &folder, Box::new(|_| {}))
            }
        };
        let editor = made.map_err(|error| naming(&named.name, error))?;
        let (method, settings) = editor.describe();
        let compare = &config.compare;
        let text = (config.text_cases() > 0).then(|| hash(&serde_json::to_vec(text).unwrap_or_default()));
        let params = json!({
            "method": method,
            "name": named.name,
            "settings": settings,
            "archive": named.archive,
            "network": network,
            "model": {"path": config.model.path, "fingerprint": model.fingerprint, "dtype": config.model.dtype},
            "data": {
                "path": config.data.cases,
                "records": records.len(),
                "hash": hash(&serde_json::to_vec(records).unwrap_or_default()),
                "rephrases": config.data.rephrases,
                "per_class": config.data.per_class,
                "note": config.data.note,
            },
            "looks": LOOKS,
            "mode": compare.mode,
            "seed": compare.seed,
            "generate": compare.generate,
            "texts": compare.texts,
            "perplexity": config.text_cases(),
            "text": text,
            "version": env!("CARGO_PKG_VERSION"),
        });
        Ok((editor, params))
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// The error with the editor's name before it, where it names no file.
fn naming(name: &str, error: Error) -> Error {
    let named = |message: String| format!("editor {name}: {message}");
    match error {
        Error::Config(message) => Error::Config(named(message)),
        Error::Input(message) => Error::Input(named(message)),
        other => other,
    }
}
