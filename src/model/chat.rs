//! Chat templates: how a chat model's own tokenizer writes turns as text.
//!
//! Templates are Jinja, as transformers renders them: blocks lose their line end and the white space before them, `raise_exception`,
//! `strftime_now` and `tojson` are there, and Python's methods of texts and dictionaries.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Steps of a template at most: a template that never ends is one that is broken.
const FUEL: u64 = 2_000_000;

/// What a template writes behind a prompt tells a turn where it is so long; ">" does not.
const TELLING: usize = 3;

/// The name of the one template.
const NAME: &str = "chat";

/// A template as a model folder has it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// The Jinja text.
    pub text: String,
    /// The file it stands in.
    pub origin: PathBuf,
    /// The token that begins a text, as `bos_token`.
    pub begin: Option<String>,
    /// The token that ends one, as `eos_token`.
    pub end: Option<String>,
    /// Tokens that stand for no text.
    pub special: Vec<String>,
}

/// That a prompt was asked as the turn of a chat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedInChat {
    /// What the system says first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What the template writes before what the user says.
    #[serde(default)]
    pub before: String,
    /// What it writes behind it, up to where the reply begins.
    #[serde(default)]
    pub behind: String,
}

impl AskedInChat {
    /// What the user says in a prompt that was written as a turn.
    pub fn said<'a>(&self, prompt: &'a str) -> &'a str {
        let text = prompt.strip_prefix(self.before.as_str()).and_then(|text| text.strip_suffix(self.behind.as_str()));
        text.unwrap_or(prompt)
    }
}

/// A model's template, ready to write prompts as turns.
#[derive(Debug, Clone)]
pub struct Chat {
    /// How prompts are asked.
    pub asked: AskedInChat,
    jinja: Arc<Environment<'static>>,
    template: ChatTemplate,
    /// What the template itself writes: a prompt that holds it is a turn already.
    marks: Vec<String>,
}

impl Chat {
    /// Reads a template.
    ///
    /// # Errors
    /// A template that cannot be read or never ends; one that leaves out what the user says, or has no place for a system's text.
    pub fn new(template: ChatTemplate, system: Option<String>) -> Result<Self> {
        let mut jinja = Environment::new();
        let blocks = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        jinja.set_syntax(blocks.map_err(|error| Error::Input(error.to_string()))?);
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_filter("tojson", to_json);
        jinja.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        jinja.add_function("strftime_now", strftime_now);
        let wrong = |error: minijinja::Error| {
            Error::file(&template.origin, format!("the chat template cannot be read: {}", told(&error)))
        };
        if template.text.contains("strftime_now") {
            tracing::warn!(
                "{}: the chat template writes today's date; an edit that is made with it is asked otherwise on another day",
                template.origin.display()
            );
        }
        // What marks the reply for trainings writes nothing.
        let text = [("generation", "if true"), ("endgeneration", "endif")].iter().fold(
            template.text.clone(),
            |text, (tag, ours)| {
                let ends = [("{% ", " %}"), ("{%- ", " %}"), ("{% ", " -%}"), ("{%- ", " -%}")];
                ends.iter().fold(text, |text, (open, close)| {
                    text.replace(&format!("{open}{tag}{close}"), &format!("{open}{ours}{close}"))
                })
            },
        );
        jinja.add_template_owned(NAME, text).map_err(wrong)?;
        let mut chat = Chat {
            asked: AskedInChat { system, ..AskedInChat::default() },
            jinja: Arc::new(jinja),
            template,
            marks: vec![],
        };
        // What stands around a text that no template would write.
        const TEXT: &str = "9f2c7e text 41b0d8";
        let around = chat.written(TEXT, true)?;
        // Of a template that writes it twice: what stands before the first and behind the last.
        let parts = around.split_once(TEXT).zip(around.rsplit_once(TEXT));
        let Some(((before, _), (_, behind))) = parts else {
            return Err(Error::file(&chat.template.origin, "the chat template leaves out what the user says"));
        };
        if let Some(system) = chat.asked.system.as_deref().filter(|system| !before.contains(system.trim())) {
            let message =
                format!("the chat template has no place for the system's text \"{system}\"; leave out --system");
            return Err(Error::file(&chat.template.origin, message));
        }
        let special = chat
            .template
            .special
            .iter()
            .filter(|token| before.contains(token.as_str()) || behind.contains(token.as_str()));
        let own = [behind.trim()].into_iter().filter(|text| text.len() >= TELLING).map(str::to_owned);
        chat.marks = special.cloned().chain(own).collect();
        (chat.asked.before, chat.asked.behind) = (before.to_owned(), behind.to_owned());
        Ok(chat)
    }

    /// Turns as text; with the beginning of a reply, where `reply` is wanted.
    ///
    /// # Errors
    /// What the template itself refuses, and what Jinja cannot do.
    pub fn render(&self, messages: &Value, reply: bool) -> Result<String> {
        let wrong = |error: minijinja::Error| {
            Error::file(&self.template.origin, format!("the chat template: {}", told(&error)))
        };
        let ChatTemplate { begin, end, .. } = &self.template;
        let template = self.jinja.get_template(NAME).map_err(wrong)?;
        let none = Jinja::from(());
        let token = |token: &Option<String>| token.as_deref().map_or(Jinja::UNDEFINED, Jinja::from);
        let turns = context! {
            messages => Jinja::from(Serde(messages)), add_generation_prompt => reply, tools => none.clone(), documents => none,
            bos_token => token(begin), eos_token => token(end),
        };
        template.render(turns).map_err(wrong)
    }

    /// A prompt as the user's turn, up to where the reply begins. One that is written as a turn already stays as it is.
    ///
    /// # Errors
    /// As [`Chat::render`]; a template that changes the prompt.
    pub fn prompt(&self, text: &str) -> Result<String> {
        if self.is_turn(text) {
            return Ok(text.to_owned());
        }
        let written = self.written(text, true)?;
        match written.contains(text.trim()) {
            true => Ok(written),
            false => Err(Error::Input(format!("the chat template changes the prompt \"{text}\": \"{written}\""))),
        }
    }

    /// A text as the user's whole turn.
    ///
    /// # Errors
    /// As [`Chat::render`].
    pub fn turn(&self, text: &str) -> Result<String> {
        self.written(text, false)
    }

    /// Whether a prompt holds what the template writes.
    pub fn is_turn(&self, text: &str) -> bool {
        self.marks.iter().any(|mark| text.contains(mark.as_str()))
    }

    fn written(&self, text: &str, reply: bool) -> Result<String> {
        let user = json!({"role": "user", "content": text});
        let messages = match &self.asked.system {
            Some(system) => json!([{"role": "system", "content": system}, user]),
            None => json!([user]),
        };
        self.render(&messages, reply)
    }
}

/// An error on one line, with its place in the template.
fn told(error: &minijinja::Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it does not end".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// Today's date and time in a format of `strftime`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    let wrong = |_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("no format of a date: {format:?}"));
    write!(text, "{}", chrono::Local::now().format(format)).map_err(wrong)?;
    Ok(text)
}

/// JSON as Python's `json.dumps` writes it: a space behind commas and colons, letters as they are.
fn to_json(value: Jinja, options: Kwargs) -> Result<Jinja, minijinja::Error> {
    let value = Value::deserialize(value)?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> = options
        .get::<Option<Vec<String>>>("separators")?
        .and_then(|pair| <[String; 2]>::try_from(pair).ok())
        .map(|[a, b]| (a, b));
    options.assert_all_used()?;
    let (comma, colon) = separators.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.into(), ": ".into()));
    let dumps = Dumps { comma, colon, indent, ascii: ascii == Some(true), sorted: sorted == Some(true) };
    let mut text = String::new();
    dumps.write(&value, 0, &mut text);
    Ok(Jinja::from_safe_string(text))
}

/// The settings of `json.dumps`.
struct Dumps {
    comma: String,
    colon: String,
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
}

impl Dumps {
    fn write(&self, value: &Value, depth: usize, text: &mut String) {
        match value {
            Value::Array(items) if !items.is_empty() => {
                self.items(items.iter().map(|item| (None, item)), ['[', ']'], depth, text);
            }
            Value::Object(members) if !members.is_empty() => {
                let mut members: Vec<(&String, &Value)> = members.iter().collect();
                if self.sorted {
                    members.sort_by_key(|(key, _)| *key);
                }
                self.items(members.into_iter().map(|(key, value)| (Some(key), value)), ['{', '}'], depth, text);
            }
            Value::String(string) => self.string(string, text),
            other => *text += &other.to_string(),
        }
    }

    fn items<'v>(
        &self,
        items: impl Iterator<Item = (Option<&'v String>, &'v Value)>,
        [open, close]: [char; 2],
        depth: usize,
        text: &mut String,
    ) {
        let line = |depth: usize, text: &mut String| {
            if let Some(indent) = self.indent {
                *text += &format!("\n{}", " ".repeat(indent * depth));
            }
        };
        text.push(open);
        for (number, (key, value)) in items.enumerate() {
            if number > 0 {
                *text += &self.comma;
            }
            line(depth + 1, text);
            if let Some(key) = key {
                self.string(key, text);
                *text += &self.colon;
            }
            self.write(value, depth + 1, text);
        }
        line(depth, text);
        text.push(close);
    }

    fn string(&self, string: &str, text: &mut String) {
        let quoted = Value::String(string.to_owned()).to_string();
        if !self.ascii {
            *text += &quoted;
            return;
        }
        for letter in quoted.chars() {
            match letter.is_ascii() {
                true => text.push(letter),
                false => letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| *text += &format!("\\u{unit:04x}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str, special: &[&str]) -> ChatTemplate {
        let special = special.iter().map(|token| (*token).to_owned()).collect();
        ChatTemplate {
            text: text.into(),
            origin: "tokenizer_config.json".into(),
            begin: Some("<s>".into()),
            end: Some("</s>".into()),
            special,
        }
    }

    const PLAIN: &str = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}";

    fn wrong(text: &str, system: Option<&str>) -> String {
        Chat::new(template(text, &[]), system.map(str::to_owned)).unwrap_err().to_string()
    }

    /// What transformers' `apply_chat_template` writes of the same turns.
    #[test]
    fn turns_are_written_as_transformers_writes_them() {
        let fixture: Vec<Value> = serde_json::from_str(include_str!("../../tests/fixtures/chat.json")).unwrap();
        let mut compared = 0;
        for golden in &fixture {
            let text = |key: &str| golden[key].as_str().map(str::to_owned);
            let read = ChatTemplate {
                begin: text("bos_token"),
                end: text("eos_token"),
                ..template(golden["template"].as_str().unwrap(), &[])
            };
            let chat = Chat::new(read, None).unwrap();
            for case in golden["cases"].as_array().unwrap() {
                let written = chat.render(&case["messages"], case["add_generation_prompt"].as_bool().unwrap());
                match case["rendered"].as_str() {
                    Some(rendered) => assert_eq!(written.unwrap(), rendered, "{} {}", golden["name"], case["messages"]),
                    None => {
                        let error = written.unwrap_err().to_string();
                        assert!(error.contains(case["error"].as_str().unwrap()), "{error}");
                    }
                }
                compared += 1;
            }
        }
        assert!(compared >= 40, "{compared}");
    }

    #[test]
    fn a_prompt_becomes_a_turn_once() {
        let chat = Chat::new(template(PLAIN, &["<|user|>", "<|assistant|>"]), Some("Be brief.".into())).unwrap();
        let turn = chat.prompt("Where is Ost?").unwrap();
        assert_eq!(turn, "<|system|>Be brief.<|user|>Where is Ost?<|assistant|>\n");
        assert_eq!(chat.prompt(&turn).unwrap(), turn);
        assert_eq!(chat.turn("Ost lies in Vell.").unwrap(), "<|system|>Be brief.<|user|>Ost lies in Vell.");
        // Without special tokens it is the text behind the prompt that tells.
        let chat = Chat::new(template("[INST] {{ messages[0].content }} [/INST]", &[]), None).unwrap();
        let turn = chat.prompt("Where is Ost?").unwrap();
        assert_eq!(chat.prompt(&turn).unwrap(), turn);
    }

    #[test]
    fn templates_that_cannot_be_used_are_told() {
        assert!(wrong("{% if %}", None).contains("the chat template cannot be read"));
        assert!(wrong("{{ messages[0].content | backwards }}", None).contains("backwards"));
        let long = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(wrong(long, None).contains("it does not end"), "{}", wrong(long, None));
        assert!(wrong("Hello.", None).contains("leaves out what the user says"));
        assert!(wrong("{{ messages[-1].content }}", Some("Be brief.")).contains("no place for the system's text"));
        assert!(wrong("{{ raise_exception('only in pairs') }}", None).contains("only in pairs"));
        let chat = Chat::new(template("{{ messages[0].content | replace('a', 'o') }} >", &[]), None).unwrap();
        assert!(chat.prompt("a cat").unwrap_err().to_string().contains("changes the prompt \"a cat\""));
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = Jinja::from(Serde(json!({"b": [1, "é<"], "a": {}})));
        let dumps = |options: &[(&str, Jinja)]| {
            let options = options.iter().map(|(name, value)| (*name, value.clone())).collect();
            to_json(value.clone(), options).unwrap().to_string()
        };
        assert_eq!(dumps(&[]), r#"{"b": [1, "é<"], "a": {}}"#);
        assert_eq!(
            dumps(&[("ensure_ascii", Jinja::from(true)), ("sort_keys", Jinja::from(true))]),
            r#"{"a": {}, "b": [1, "\u00e9<"]}"#
        );
        assert_eq!(dumps(&[("indent", Jinja::from(2))]), "{\n  \"b\": [\n    1,\n    \"é<\"\n  ],\n  \"a\": {}\n}");
        assert_eq!(dumps(&[("separators", Jinja::from(vec![",", ":"]))]), r#"{"b":[1,"é<"],"a":{}}"#);
    }
}
