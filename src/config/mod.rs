//! Configuration files as types: TOML, every key known, every error with its file and key.

pub mod apply;
pub mod compare;
pub mod locate;
pub mod pretrain;
pub mod train;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::model::Precision;
use crate::sections::parse;

/// Reads a file and lays `--set key=value` over it.
///
/// # Errors
/// A file that cannot be read or is no TOML, an unknown key (with the nearest known one), a value of the wrong type.
pub fn read<T: DeserializeOwned>(path: &Path, sets: &[String]) -> Result<T> {
    let mut table = table(path, 0)?;
    for (number, set) in sets.iter().enumerate() {
        if let Some(twice) = sets[..number].iter().find(|other| key(other).is_some() && key(other) == key(set)) {
            return Err(Error::Config(format!(
                "--set {twice} and --set {set} give one key two values; keep one of them"
            )));
        }
        lay_over(&mut table, set)?;
    }
    parse(Value::Table(table), &path.display().to_string())
}

/// Refuses flags that stand for keys to which `--set` gives values too: of each flag its name, its key, and whether it was given.
///
/// # Errors
/// Names both.
pub fn check_flags(sets: &[String], flags: &[(&str, &str, bool)]) -> Result<()> {
    for (flag, of, _) in flags.iter().filter(|(.., given)| *given) {
        if let Some(set) = sets.iter().find(|set| key(set) == Some(*of)) {
            return Err(Error::Config(format!("{flag} and --set {set} give one key two values; keep one of them")));
        }
    }
    Ok(())
}

/// The key that a `--set key=value` names.
fn key(set: &str) -> Option<&str> {
    set.split_once('=').map(|(key, _)| key.trim())
}

/// A file as a table, laid over the one it names with `include = "FILE"`.
fn table(path: &Path, depth: usize) -> Result<Table> {
    let bytes = crate::files::read(path).map_err(|error| Error::Config(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::Config(format!("{}: not UTF-8 (byte {})", path.display(), error.utf8_error().valid_up_to()))
    })?;
    let mut own: Table = text.parse().map_err(|error: toml::de::Error| not_toml(path, &text, &error))?;
    let Some(include) = own.remove("include") else { return Ok(own) };
    let wrong = |why: &str| Error::Config(format!("{}: include: {why}", path.display()));
    let include = include.as_str().ok_or_else(|| wrong("it must be the name of a file, beside this one"))?.to_owned();
    if depth == 8 {
        return Err(wrong("files include each other more than eight deep"));
    }
    let mut under = table(&beside(path, &include), depth + 1)?;
    merge(&mut under, own);
    Ok(under)
}

/// Lays a table over another, section by section.
pub(crate) fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    Error::Config(format!("{}: line {line}: {}", path.display(), error.message().replace('\n', " ")))
}

/// `a.b.c=value`; the value is TOML, or a string where it is not. `a.b.c=` leaves the key out.
fn lay_over(table: &mut Table, set: &str) -> Result<()> {
    let wrong = |why: &str| Error::Config(format!("--set {set}: {why}; write --set section.key=value"));
    let (key, value) = set.split_once('=').ok_or_else(|| wrong("there is no \"=\""))?;
    let value = value.trim();
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().filter(|last| !last.is_empty()).ok_or_else(|| wrong("there is no key"))?;
    let leave_out = value.is_empty();
    let value = match format!("value = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("value").unwrap_or(Value::Boolean(false)),
        Err(_) => Value::String(value.to_owned()),
    };
    let mut place = table;
    for part in path {
        let inner = place.entry(part).or_insert_with(|| Value::Table(Table::new()));
        place = inner.as_table_mut().ok_or_else(|| wrong(&format!("\"{part}\" is no section")))?;
    }
    if leave_out {
        place.remove(last).ok_or_else(|| wrong("there is no such key to leave out"))?;
    } else {
        place.insert(last.to_owned(), value);
    }
    Ok(())
}

/// `[model]`: the frozen base.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// `pocket`, a folder, a name under `$EMEND_MODELS`, or a hub id.
    pub path: String,
    /// The element type to compute with.
    #[serde(default)]
    pub dtype: Precision,
}

/// A path of a config, relative to the config's folder.
pub fn beside(config: &Path, path: &str) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_value_is_laid_over_and_left_out() {
        let mut table: Table = "[a]\nb = 1\nc = 2".parse().unwrap();
        for set in ["a.b=3", "a.c=", "a.d.e = x y"] {
            lay_over(&mut table, set).unwrap();
        }
        assert_eq!(table, "[a]\nb = 3\nd = { e = \"x y\" }".parse().unwrap());
        let error = lay_over(&mut table, "a.c=").unwrap_err().to_string();
        assert!(error.contains("--set a.c=: there is no such key to leave out"), "{error}");
    }

    #[test]
    fn a_file_lies_over_the_one_it_includes() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("base.toml"), "[model]\npath = \"a\"\ndtype = \"f64\"\n").unwrap();
        std::fs::write(path("top.toml"), "include = \"base.toml\"\n[model]\npath = \"b\"\n").unwrap();
        let found: BTreeMap<String, ModelSection> = read(&path("top.toml"), &[]).unwrap();
        assert_eq!((found["model"].path.as_str(), found["model"].dtype), ("b", Precision::F64));

        std::fs::write(path("self.toml"), "include = \"self.toml\"\n").unwrap();
        let error = read::<Table>(&path("self.toml"), &[]).unwrap_err().to_string();
        assert!(error.contains("eight deep"), "{error}");
    }
}
