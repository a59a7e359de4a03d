//! One record as JSON: parsed without copying its text, and read key by key with errors that name the key.
//!
//! Records are parsed one at a time into this small tree, not into typed structures: a wrong type is then
//! an ordinary value that can be reported with its key and record, where serde knows only a line.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::problem::{Problem, quoted};
use crate::model::separator::without_last_space;

/// A JSON value. Text that holds no escape is borrowed from the file.
#[derive(Debug)]
pub(super) enum Json<'a> {
    Null,
    Bool,
    /// As it is written.
    Number(String),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Object<'a>),
}

impl<'a> Json<'a> {
    /// Its type with an article, for errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool => "a boolean",
            Json::Number(_) => "a number",
            Json::Text(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// A text that holds more than white space.
    pub fn text(self) -> Result<Cow<'a, str>, Problem> {
        match self {
            Json::Text(text) if is_blank(&text) => Err(Problem::new("is empty")),
            Json::Text(text) => Ok(text),
            other => Err(wrong_kind(&other, "a string")),
        }
    }

    /// The items of a list.
    pub fn list(self) -> Result<Vec<Json<'a>>, Problem> {
        match self {
            Json::List(items) => Ok(items),
            other => Err(wrong_kind(&other, "a list")),
        }
    }

    /// The members of an object.
    pub fn object(self) -> Result<Object<'a>, Problem> {
        match self {
            Json::Object(object) => Ok(object),
            other => Err(wrong_kind(&other, "an object")),
        }
    }
}

/// A JSON object, in the order of the file, without a key that occurs twice.
#[derive(Debug)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

impl<'a> Object<'a> {
    /// An object with these members, each key once.
    pub fn of(members: Vec<(Cow<'a, str>, Json<'a>)>) -> Self {
        Object(members)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_ref())
    }

    pub fn values(&self) -> impl Iterator<Item = &Json<'a>> {
        self.0.iter().map(|(_, value)| value)
    }

    pub fn into_entries(self) -> Vec<(Cow<'a, str>, Json<'a>)> {
        self.0
    }

    pub fn get(&self, key: &str) -> Option<&Json<'a>> {
        self.0.iter().find_map(|(name, value)| (name == key).then_some(value))
    }

    /// The value of a key, moved out. A null counts as missing.
    pub fn take(&mut self, key: &str) -> Option<Json<'a>> {
        let (_, value) = self.0.iter_mut().find(|(name, _)| name == key)?;
        match std::mem::replace(value, Json::Null) {
            Json::Null => None,
            value => Some(value),
        }
    }

    /// A value that must be there; `need` completes the error: `"prompt" is missing; NEED`.
    pub fn required(&mut self, key: &str, need: &str) -> Result<Json<'a>, Problem> {
        self.take(key).ok_or_else(|| Problem::new(format!("is missing; {need}")).within(key))
    }

    /// A text that must be there and hold more than white space.
    pub fn text(&mut self, key: &str, need: &str) -> Result<Cow<'a, str>, Problem> {
        match self.required(key, need)? {
            Json::Text(text) if is_blank(&text) => Err(Problem::new(format!("is empty; {need}")).within(key)),
            value => value.text().map_err(|problem| problem.within(key)),
        }
    }

    /// A text that may be missing but not empty.
    pub fn optional_text(&mut self, key: &str) -> Result<Option<Cow<'a, str>>, Problem> {
        self.take(key).map(Json::text).transpose().map_err(|problem| problem.within(key))
    }

    /// A text that may be missing or empty, which is the same: published files write it so.
    pub fn text_or_blank(&mut self, key: &str) -> Result<Option<Cow<'a, str>>, Problem> {
        match self.take(key) {
            Some(Json::Text(text)) if is_blank(&text) => Ok(None),
            Some(value) => value.text().map(Some).map_err(|problem| problem.within(key)),
            None => Ok(None),
        }
    }

    /// A list of texts; a missing list is an empty one.
    pub fn texts(&mut self, key: &str) -> Result<Vec<Cow<'a, str>>, Problem> {
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let items = value.list().map_err(|problem| problem.within(key))?;
        each(items, Json::text).map_err(|problem| problem.within(key))
    }

    /// A text or a list of texts; blank ones, which published files have, are left out.
    pub fn one_or_more(&mut self, key: &str) -> Result<Vec<Cow<'a, str>>, Problem> {
        match self.take(key) {
            None => Ok(vec![]),
            Some(Json::List(items)) => {
                let texts = each(items, text_or_blank).map_err(|problem| problem.within(key))?;
                Ok(texts.into_iter().flatten().collect())
            }
            Some(one) => Ok(text_or_blank(one).map_err(|problem| problem.within(key))?.into_iter().collect()),
        }
    }

    /// A list of prompts; a missing list is an empty one.
    pub fn prompts(&mut self, key: &str) -> Result<Vec<String>, Problem> {
        Ok(self.texts(key)?.into_iter().map(prompt).collect())
    }
}

fn wrong_kind(found: &Json, right: &str) -> Problem {
    Problem::new(format!("is {}; it should be {right}", found.kind()))
}

fn text_or_blank<'a>(item: Json<'a>) -> Result<Option<Cow<'a, str>>, Problem> {
    match item {
        Json::Null => Ok(None),
        Json::Text(text) if is_blank(&text) => Ok(None),
        other => other.text().map(Some),
    }
}

/// Applies `read` to every item; the error names the item.
pub(super) fn each<'a, T>(
    items: Vec<Json<'a>>,
    mut read: impl FnMut(Json<'a>) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| read(item).map_err(|problem| problem.within(&format!("[{index}]"))))
        .collect()
}

/// A prompt as records hold it: to the character, but for the one plain space at its end.
pub(super) fn prompt(text: Cow<'_, str>) -> String {
    trimmed(text, without_last_space)
}

/// An answer or a subject as records hold it. White space after it is no part of it either: nothing shows it, and
/// no model would answer with it.
pub(super) fn answer(text: Cow<'_, str>) -> String {
    trimmed(text, str::trim)
}

fn trimmed(text: Cow<'_, str>, trim: fn(&str) -> &str) -> String {
    let kept = trim(&text);
    if kept.len() == text.len() { text.into_owned() } else { kept.to_owned() }
}

/// Whether a text holds nothing but white space.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(Cow<'de, str>, Json<'de>)> = Vec::new();
        while let Some((Key(key), value)) = members.next_entry()? {
            entries.push((key, value));
        }
        // Sorted once: comparing each with each would take hours on an object of a million keys.
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_ref()).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(A::Error::custom(format_args!("the key {} occurs twice in one object", quoted(twice[0]))));
        }
        Ok(Json::Object(Object(entries)))
    }
}

/// A key, borrowed where it can be: serde's own `Cow` always copies.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Owned(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object<'_> {
        let json: Json = serde_json::from_str(text).unwrap();
        json.object().unwrap()
    }

    #[test]
    fn text_without_an_escape_is_borrowed() {
        let mut plain = object(r#"{"a": "one", "b": "\u00e9"}"#);
        assert!(matches!(plain.take("a"), Some(Json::Text(Cow::Borrowed("one")))));
        assert!(matches!(plain.take("b"), Some(Json::Text(Cow::Owned(text))) if text == "é"));
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused() {
        let error = serde_json::from_str::<Json>(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap_err();
        assert!(error.to_string().starts_with(r#"the key "a" occurs twice"#));
    }

    #[test]
    fn problems_name_the_whole_path() {
        let mut record = object(r#"{"list": ["x", 3], "n": 1.5, "blank": " "}"#);
        let problem = record.texts("list").unwrap_err().within("outer");
        assert_eq!(problem.to_string(), r#""outer.list[1]" is a number; it should be a string"#);
        assert_eq!(
            record.text("blank", "every record needs it").unwrap_err().to_string(),
            r#""blank" is empty; every record needs it"#
        );
        assert_eq!(
            record.text("n", "every record needs it").unwrap_err().to_string(),
            r#""n" is a number; it should be a string"#
        );
        assert_eq!(
            record.text("none", "every record needs it").unwrap_err().to_string(),
            r#""none" is missing; every record needs it"#
        );
    }

    #[test]
    fn a_blank_text_may_count_as_missing() {
        let mut record = object(r#"{"a": " ", "b": null, "c": " "}"#);
        assert!(record.text_or_blank("a").unwrap().is_none());
        assert!(record.text_or_blank("b").unwrap().is_none());
        assert!(record.optional_text("c").is_err());
    }

    #[test]
    fn prompts_lose_one_space_behind_and_answers_all() {
        assert_eq!(prompt(Cow::Borrowed("  a prompt ")), "  a prompt");
        assert_eq!(prompt(Cow::Borrowed("a prompt \n")), "a prompt \n");
        assert_eq!(answer(Cow::Borrowed(" an answer ")), "an answer");
    }
}
