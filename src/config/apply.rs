//! `emend apply --config`: an editor that needs no training, and the model it edits.

use std::path::Path;

use serde::Deserialize;

use super::ModelSection;
use crate::apply::EditorSettings;
use crate::data::asking::Asking;
use crate::error::Result;

/// The whole file.
#[derive(Debug)]
pub struct Config {
    /// The frozen base.
    pub model: ModelSection,
    /// The editor.
    pub editor: EditorSettings,
    /// How records are put to the model.
    pub data: Asking,
}

/// The file before its editor is known: which keys `[editor]` has depends on its method.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: ModelSection,
    editor: toml::Table,
    #[serde(default)]
    data: Asking,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Unknown keys, values of the wrong type.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let table: toml::Table = super::read(path, sets)?;
        let origin = path.display().to_string();
        // A config of `emend train` has sections that are none here: what its method is comes first.
        let section = table.get("editor").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let editor = if section.contains_key("method") { Some(EditorSettings::parse(section, &origin)?) } else { None };
        let file: File = super::parse(table.into(), &origin)?;
        let editor = editor.map_or_else(|| EditorSettings::parse(file.editor, &origin), Ok)?;
        file.data.check("data.")?;
        Ok(Config { model: file.model, editor, data: file.data })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Config;

    #[test]
    fn there_is_a_config_that_reads_for_each_method_and_model() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        for model in ["pocket", "smollm2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2xl", "llama2-7b"] {
            for method in ["ft", "ft-l", "ft-kl", "lora", "rome", "memit", "emmet", "alphaedit", "kn"] {
                Config::read(&folder.join(format!("{method}-{model}.toml")), &[]).unwrap();
            }
        }
    }
}
