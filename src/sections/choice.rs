//! Sections in which some keys belong to one value of another key, as weight decay does to AdamW: the keys of a value are a type of
//! their own, flattened into the section's. A key that the chosen value does not use is refused, and the value that does is named.

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::{Serialize, forward_to_deserialize_any};
use toml::{Table, Value};

use super::{explain, parse_under, unknown};
use crate::error::{Error, Result};

/// A key whose values use keys of their own beside it.
pub trait Choice: Copy + Serialize + 'static {
    /// The key.
    const KEY: &'static str;
    /// Its values.
    const VALUES: &'static [Self];

    /// The keys that this value uses, of those that not every value does.
    fn keys(self) -> &'static [&'static str];
}

/// Refuses keys that another value of a choice uses and the chosen one does not.
///
/// # Errors
/// Names the key, the choice and the values that use it.
pub fn check<C: Choice>(section: &str, given: &Table, chosen: C) -> Result<()> {
    let values: Vec<(String, &[&str])> = C::VALUES.iter().map(|value| (written(value), value.keys())).collect();
    refuse(section, given, (C::KEY, &written(&chosen)), &values)
}

/// As [`check`], for a choice that is no enum. Each of `values` is a value as it is written, with the keys that it uses.
///
/// # Errors
/// Names the key, the choice and the values that use it.
pub fn refuse(section: &str, given: &Table, (key, chosen): (&str, &str), values: &[(String, &[&str])]) -> Result<()> {
    for strange in given.keys() {
        let using = values.iter().filter(|(_, keys)| keys.contains(&strange.as_str()));
        let using: Vec<&str> = using.map(|(value, _)| value.as_str()).collect();
        if !using.is_empty() && !using.contains(&chosen) {
            return Err(unused(section, strange, &format!("{key} = {chosen}"), &using.join(" or ")));
        }
    }
    Ok(())
}

/// As [`refuse`], for a number that uses `keys` where it is not 0.
///
/// # Errors
/// Names the key, and the number.
pub fn refuse_at_zero(section: &str, given: &Table, (key, number): (&str, f64), keys: &[&str]) -> Result<()> {
    let chosen = if number == 0.0 { "0" } else { "above 0" };
    refuse(section, given, (key, chosen), &[("0".into(), &[]), ("above 0".into(), keys)])
}

/// The error of a key that a choice makes of no use.
pub fn unused(section: &str, key: &str, chosen: &str, using: &str) -> Error {
    let leave_out = format!("--set {section}.{key}= leaves it out");
    Error::Config(format!("{section}.{key}: {chosen} does not use it; {using} does ({leave_out})"))
}

/// A value as a config has it.
pub fn written<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).unwrap_or_default().to_string()
}

/// The keys of a type, which must be a struct of which nothing is flattened.
pub fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // A struct says its fields to whoever it is read from, before it is given any.
    let _ = <T as serde::Deserialize>::deserialize(Fields(&mut fields));
    fields
}

struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(Self::Error::custom("only names are asked for"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("only names are asked for"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A section whose type is made of parts. `origin` names its file in errors.
///
/// # Errors
/// An unknown key, which serde lets pass where there are parts; a value of the wrong type, with its key, which serde does not name
/// there.
pub fn read<T: DeserializeOwned + Serialize>(section: &str, given: &Table, origin: &str) -> Result<T> {
    let settings: T = parse_under(section, given.clone().into(), origin).map_err(|error| {
        let read = |table: &Table| <T as serde::Deserialize>::deserialize(Value::Table(table.clone()));
        let wrong = |table: &Table| read(table).err().map(|error| error.to_string());
        // Where nothing is flattened serde names the key itself, down to its parts.
        let whole = Value::Table(given.clone());
        let named = serde_path_to_error::deserialize::<_, T>(whole.clone()).err().map(|error| error.path().to_string());
        // Of a section of which a part is flattened it names the section alone.
        let is_section =
            |path: &str| path.split('.').try_fold(&whole, |at, key| at.get(key)).is_some_and(Value::is_table);
        let named = named.is_some_and(|path| path != "." && !is_section(&path));
        match (culprit(given, &wrong).filter(|_| !named), wrong(given)) {
            (Some(key), Some(message)) => {
                Error::Config(format!("{origin}: {}: {}", joined(section, &key), explain(&message)))
            }
            _ => error,
        }
    })?;
    match unread(section, given, &serde_json::to_value(&settings).unwrap_or_default()) {
        None => Ok(settings),
        Some(message) => Err(Error::Config(format!("{origin}: {message}"))),
    }
}

fn joined(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// The key whose value is at fault: the one without which a table is read, or has another fault. `wrong` says what is wrong with a
/// table.
fn culprit(table: &Table, wrong: &dyn Fn(&Table) -> Option<String>) -> Option<String> {
    let first_line = |message: Option<String>| message.map(|text| text.lines().next().unwrap_or_default().to_owned());
    let fault = first_line(wrong(table));
    table.iter().find_map(|(key, value)| {
        if let Value::Table(inner) = value {
            let with = |inner: &Table| {
                let mut table = table.clone();
                table.insert(key.clone(), Value::Table(inner.clone()));
                wrong(&table)
            };
            if let Some(inner) = culprit(inner, &with) {
                return Some(format!("{key}.{inner}"));
            }
        }
        let mut without = table.clone();
        without.remove(key);
        let left = first_line(wrong(&without));
        // A key that must be there is missed when it is gone, whatever its value was.
        let missed = left.as_ref().is_some_and(|left| left.starts_with("missing field"));
        (left != fault && !missed).then(|| key.clone())
    })
}

/// The error for the first key that was not read: what was read, written down again, has every key that there is.
pub fn unread(section: &str, given: &Table, read: &serde_json::Value) -> Option<String> {
    let read = read.as_object()?;
    given.iter().find_map(|(key, value)| match (read.get(key), value) {
        (None, _) => {
            let known: Vec<&str> = read.keys().map(String::as_str).collect();
            Some(format!("{}: {}", joined(section, key), unknown("key", key, &known)))
        }
        (Some(read), Value::Table(inner)) => unread(&joined(section, key), inner, read),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Section {
        rate: f64,
        #[serde(default)]
        kind: Kind,
        #[serde(flatten)]
        heavy: Heavy,
        #[serde(default)]
        inner: Inner,
    }

    #[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        #[default]
        Light,
        Heavy,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Heavy {
        weight: usize,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        #[serde(flatten)]
        heavy: Heavy,
    }

    impl Choice for Kind {
        const KEY: &'static str = "kind";
        const VALUES: &'static [Self] = &[Kind::Light, Kind::Heavy];

        fn keys(self) -> &'static [&'static str] {
            match self {
                Kind::Light => &[],
                Kind::Heavy => fields::<Heavy>(),
            }
        }
    }

    fn read_or_error(text: &str) -> String {
        let table: Table = text.parse().unwrap();
        let read = read::<Section>("part", &table, "file.toml");
        let checked = read.and_then(|section| {
            check("part", &table, section.kind)?;
            Ok(format!("{} {} {}", section.rate, section.heavy.weight, section.inner.heavy.weight))
        });
        checked.unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn keys_of_another_value_are_refused() {
        assert_eq!(fields::<Heavy>(), ["weight"]);
        assert_eq!(read_or_error("rate = 1"), "1 0 0");
        assert_eq!(read_or_error("rate = 1\nkind = \"heavy\"\nweight = 3\ninner = { weight = 2 }"), "1 3 2");
        assert_eq!(
            read_or_error("rate = 1\nweight = 3"),
            r#"part.weight: kind = "light" does not use it; "heavy" does (--set part.weight= leaves it out)"#
        );
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named_in_parts_too() {
        for (text, key, words) in [
            ("rate = 1\nwieght = 3", "part.wieght", "did you mean `weight`"),
            ("rate = 1\ninner = { wieght = 3 }", "part.inner.wieght", "did you mean `weight`"),
            ("rate = 1\nkind = \"heavy\"\nweight = \"3\"", "part.weight", "invalid type"),
            ("rate = 1\ninner = { weight = -3 }", "part.inner.weight", "-3"),
            ("rate = 1\nkind = \"heavi\"", "part.kind", "did you mean `heavy`"),
            ("rate = \"x\"", "part.rate", "invalid type"),
            ("kind = \"light\"", "part", "rate"),
        ] {
            let said = read_or_error(text);
            assert!(said.starts_with(&format!("file.toml: {key}: ")) && said.contains(words), "{text}: {said}");
        }
    }
}
