//! `emend apply --config`: an editor that needs no training, and the model it edits.

use std::path::Path;

use serde::Deserialize;

use super::ModelSection;
use crate::apply::EditorSettings;
use crate::error::Result;

/// The whole file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The frozen base.
    pub model: ModelSection,
    /// The editor.
    pub editor: EditorSettings,
}

/// The file before its editor is known: which keys `[editor]` has hangs on its method.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: ModelSection,
    editor: toml::Table,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Unknown keys, values of the wrong type.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let table: toml::Table = super::read(path, sets)?;
        let origin = path.display().to_string();
        // A trained editor's config has sections of its own: it is told apart by its method first.
        if let Some(section) = table.get("editor").and_then(toml::Value::as_table)
            && section.get("method").and_then(toml::Value::as_str) == Some("mend")
        {
            EditorSettings::parse(section.clone(), &origin)?;
        }
        let file: File = super::parse(table.into(), &origin)?;
        Ok(Config { model: file.model, editor: EditorSettings::parse(file.editor, &origin)? })
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
            for method in ["ft", "ft-l", "ft-kl", "rome", "memit", "emmet", "alphaedit", "kn"] {
                Config::read(&folder.join(format!("{method}-{model}.toml")), &[]).unwrap();
            }
        }
    }
}
