//! A section of a config: values as types, numbers within their ranges, every error with its file and key.

pub mod choice;

use serde::de::DeserializeOwned;
use toml::Value;

use crate::error::{Error, Result};

/// A value as a type; `origin` names it in errors.
///
/// # Errors
/// An unknown key or a value of the wrong type.
pub fn parse<T: DeserializeOwned>(value: Value, origin: &str) -> Result<T> {
    parse_under("", value, origin)
}

/// As [`parse`], for the value of `section`.
///
/// # Errors
/// An unknown key or a value of the wrong type.
pub fn parse_under<T: DeserializeOwned>(section: &str, value: Value, origin: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let parts = [section, path.as_str()].into_iter().filter(|part| !part.is_empty() && *part != ".");
        let key = parts.collect::<Vec<_>>().join(".");
        let key = if key.is_empty() { key } else { format!("{key}: ") };
        Error::Config(format!("{origin}: {key}{}", explain(&error.into_inner().to_string())))
    })
}

/// serde's word in one line; an unknown key with the nearest known one.
fn explain(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.strip_prefix("unknown field").or(message.strip_prefix("unknown variant")).and(quoted.next());
    let Some(unknown) = unknown else { return message.to_owned() };
    let what = if message.starts_with("unknown field") { "key" } else { "value" };
    let known: Vec<&str> = quoted.collect();
    self::unknown(what, unknown, &known)
}

/// The message for an unknown key or value: the nearest known one, and all of them.
pub(crate) fn unknown(what: &str, unknown: &str, known: &[&str]) -> String {
    let like = |known: &str| strsim::jaro_winkler(unknown, known);
    // Below this two words have little in common but a letter or two.
    let nearest = known.iter().filter(|known| like(known) > 0.6).max_by(|a, b| like(a).total_cmp(&like(b)));
    let nearest = nearest.map_or(String::new(), |nearest| format!(", did you mean `{nearest}`?"));
    format!("unknown {what} `{unknown}`{nearest} (known: {})", known.join(", "))
}

/// Refuses a number outside its range.
///
/// # Errors
/// Names the key, the number and the range.
pub fn within(key: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let range = match most == f64::INFINITY {
        true => format!("it must be at least {least}"),
        false => format!("it must lie between {least} and {most}"),
    };
    Err(Error::Config(format!("{key} = {value}: {range}")))
}
