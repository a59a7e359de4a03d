//! OpenAI's two endpoints: what a request asks for, and how its answers are written.

use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::engine::{Event, Said, Shown};
use super::refusal::Refusal;
use crate::edit::generate::Sampling;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Tokens.
    Ids(Vec<u32>),
    /// The turns of a chat.
    Messages(Value),
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The stack of edits, by its name.
    pub model: String,
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// Answers to each of them.
    pub choices: usize,
    /// Tokens of an answer at most, where that is said.
    pub most: Option<usize>,
    /// How tokens are chosen; without a seed each request has another.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Whether log-probabilities are wanted, and of how many likeliest tokens at each place.
    pub top: Option<usize>,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether these end with how many tokens there were.
    pub usage: bool,
    /// Whether the answer begins with its prompt.
    pub echo: bool,
}

/// Fields that OpenAI knows and that are not served, with what says the same as leaving them out.
const NOT_SERVED: [(&str, &[&str]); 19] = [
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("parallel_tool_calls", &["true", "false"]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("audio", &[]),
    ("modalities", &["[\"text\"]"]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("reasoning_effort", &[]),
    ("verbosity", &[]),
    ("logit_bias", &["{}"]),
    ("suffix", &["\"\""]),
    ("best_of", &["1"]),
    ("presence_penalty", &["0", "0.0"]),
    ("frequency_penalty", &["0", "0.0"]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("moderation", &[]),
];

/// Answers to one prompt at most.
const CHOICES: usize = 8;

/// The fields of a request's body, taken out one by one. null is as good as nothing.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    /// A body that is no JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let value: Value =
            serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("the body is not JSON: {error}")))?;
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            other => Err(Refusal::bad(format!("the body is {}; it should be an object", kind(&other)))),
        }
    }

    /// A field as it stands.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// # Errors
    /// A field that is no string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, &other, "a string")),
        }
    }

    /// # Errors
    /// A field that is not true or false.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let should = format!("a number from {} to {}", range.start(), range.end());
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &value, &should)),
        }
    }

    fn whole(&mut self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let should = format!("a whole number from {} to {}", range.start(), range.end());
        match value.as_u64().map(|number| number as usize).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &value, &should)),
        }
    }

    /// What was not taken.
    pub fn rest(self) -> Map<String, Value> {
        self.0
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong(name: &str, value: &Value, should: &str) -> Refusal {
    let found = match value {
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        other => kind(other).to_owned(),
    };
    Refusal::field(name, format!("\"{name}\" is {found}; it should be {should}"))
}

impl Asked {
    /// Reads the body of a request; an answer may have `most` tokens.
    ///
    /// # Errors
    /// A body that is not JSON; a field that is missing, of another kind, out of range, or not served.
    pub fn read(body: &[u8], endpoint: Endpoint, most: usize) -> Result<Self, Refusal> {
        let mut fields = Fields::parse(body)?;
        let missing = |name: &str| Refusal::field(name, format!("\"{name}\" is missing"));
        let chat = endpoint == Endpoint::Chat;
        for (name, same) in NOT_SERVED {
            let value = fields.take(name);
            if value.is_some_and(|value| !same.contains(&value.to_string().as_str())) {
                return Err(Refusal::field(name, format!("\"{name}\" is not served here; leave it out")));
            }
        }
        let model = fields.text("model")?.ok_or_else(|| missing("model"))?;
        let prompts = match chat {
            true => vec![messages(fields.take("messages").ok_or_else(|| missing("messages"))?)?],
            false => prompts(fields.take("prompt").ok_or_else(|| missing("prompt"))?)?,
        };
        let limit = fields.whole("max_tokens", 1..=most)?;
        let limit = if chat {
            fields.whole("max_completion_tokens", 1..=most)?.or(limit)
        } else {
            limit.or(Some(16.min(most)))
        };
        let seed = match fields.take("seed") {
            None => rand::random(),
            Some(value) => {
                let seed = value.as_u64().or(value.as_i64().map(|seed| seed as u64));
                seed.ok_or_else(|| wrong("seed", &value, "a whole number"))?
            }
        };
        let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
        let sampling = Sampling {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_k: 0,
            // 0 leaves the likeliest token, as the smallest number above it does.
            top_p: top_p.max(f64::MIN_POSITIVE),
            seed,
        };
        let top = match chat {
            true => {
                let top = fields.whole("top_logprobs", 0..=20)?;
                match fields.flag("logprobs")?.unwrap_or(false) {
                    true => Some(top.unwrap_or(0)),
                    false if top.is_some_and(|top| top > 0) => {
                        return Err(Refusal::field("top_logprobs", "\"top_logprobs\" needs \"logprobs\": true"));
                    }
                    false => None,
                }
            }
            false => fields.whole("logprobs", 0..=20)?,
        };
        let echo = !chat && fields.flag("echo")?.unwrap_or(false);
        if echo && top.is_some() {
            return Err(Refusal::field(
                "echo",
                "\"echo\" together with \"logprobs\" is not served; ask for one of them",
            ));
        }
        let stream = fields.flag("stream")?.unwrap_or(false);
        let usage = match fields.take("stream_options") {
            None => false,
            Some(_) if !stream => {
                return Err(Refusal::field("stream_options", "\"stream_options\" needs \"stream\": true"));
            }
            Some(Value::Object(options)) => options.get("include_usage").and_then(Value::as_bool).unwrap_or(false),
            Some(other) => return Err(wrong("stream_options", &other, "an object")),
        };
        Ok(Asked {
            model,
            prompts,
            choices: fields.whole("n", 1..=CHOICES)?.unwrap_or(1),
            most: limit,
            sampling,
            stop: stops(fields.take("stop"))?,
            top,
            stream,
            usage,
            echo,
        })
    }
}

fn prompts(value: Value) -> Result<Vec<Prompt>, Refusal> {
    let should = "a string, a list of strings, or a list of token ids";
    let ids = |items: &[Value]| -> Option<Vec<u32>> {
        items.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    };
    match value {
        Value::String(text) => Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if items.is_empty() => Err(Refusal::field("prompt", "\"prompt\" is an empty list")),
        Value::Array(items) => {
            if let Some(ids) = ids(&items) {
                return Ok(vec![Prompt::Ids(ids)]);
            }
            let each = items.into_iter().map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(items) => match ids(&items).filter(|ids| !ids.is_empty()) {
                    Some(ids) => Ok(Prompt::Ids(ids)),
                    None => Err(wrong("prompt", &Value::Array(items), should)),
                },
                other => Err(wrong("prompt", &other, should)),
            });
            each.collect()
        }
        other => Err(wrong("prompt", &other, should)),
    }
}

/// Turns with their contents as texts.
fn messages(value: Value) -> Result<Prompt, Refusal> {
    let refuse = |what: String| Refusal::field("messages", what);
    let Value::Array(mut items) = value else { return Err(wrong("messages", &value, "a list of messages")) };
    if items.is_empty() {
        return Err(refuse("\"messages\" is an empty list".into()));
    }
    for (number, item) in items.iter_mut().enumerate() {
        let Some(message) = item.as_object_mut() else {
            return Err(refuse(format!("message {number} is no object with a role and a content")));
        };
        if !message.get("role").is_some_and(Value::is_string) {
            return Err(refuse(format!("message {number} has no role; it is system, user or assistant")));
        }
        if message.get("tool_calls").is_some_and(|calls| !calls.is_null()) {
            return Err(refuse(format!("message {number} calls tools, which are not served here")));
        }
        let content = match message.remove("content") {
            Some(Value::String(text)) => text,
            None | Some(Value::Null) => String::new(),
            Some(Value::Array(parts)) => {
                let text = |part: &Value| part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned);
                let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                texts
                    .ok_or_else(|| refuse(format!("message {number} has a part that is no text; only texts are read")))?
                    .concat()
            }
            Some(_) => return Err(refuse(format!("the content of message {number} is no text"))),
        };
        message.insert("content".into(), content.into());
    }
    Ok(Prompt::Messages(Value::Array(items)))
}

fn stops(value: Option<Value>) -> Result<Vec<String>, Refusal> {
    let should = "a string, or a list of up to four strings, none of them empty";
    let texts: Option<Vec<String>> = match &value {
        None => Some(vec![]),
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(items)) if items.len() <= 4 => {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        }
        Some(_) => None,
    };
    let texts = texts.filter(|texts| texts.iter().all(|text| !text.is_empty()));
    texts.ok_or_else(|| wrong("stop", &value.unwrap_or_default(), should))
}

/// How the answers to a request are written.
#[derive(Debug, Clone)]
pub struct Reply {
    endpoint: Endpoint,
    id: String,
    created: i64,
    model: String,
    /// What each answer begins with: its prompt, where that is wanted.
    leads: Vec<String>,
    prompt_tokens: usize,
    logprobs: bool,
    /// Whether a stream ends with the numbers of tokens.
    usage: bool,
    /// What came of each answer so far.
    answers: Vec<Written>,
}

#[derive(Debug, Clone, Default)]
struct Written {
    text: String,
    said: Vec<Said>,
    /// The reason of its end, where it has ended.
    reason: Option<&'static str>,
    tokens: usize,
}

impl Reply {
    /// To a request with so many prompt tokens; of each answer what it begins with.
    pub fn new(endpoint: Endpoint, asked: &Asked, leads: Vec<String>, prompt_tokens: usize) -> Self {
        let prefix = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
        Reply {
            endpoint,
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            created: chrono::Utc::now().timestamp(),
            model: asked.model.clone(),
            prompt_tokens,
            logprobs: asked.top.is_some(),
            usage: asked.usage,
            answers: vec![Written::default(); leads.len()],
            leads,
        }
    }

    /// Takes in what came of the request; the chunks of a stream that say it.
    ///
    /// # Errors
    /// There is no answer.
    pub fn take(&mut self, event: Event) -> Result<Vec<Value>, Refusal> {
        match event {
            Event::Failed(message) => Err(Refusal::own(message)),
            Event::Text { choice, text, tokens } => {
                let mut chunks = vec![];
                if self.answers[choice].text.is_empty() && self.answers[choice].said.is_empty() {
                    chunks.extend(self.opening(choice));
                }
                chunks.push(self.chunk(choice, json!(text), &tokens, None));
                let written = &mut self.answers[choice];
                written.text += &text;
                written.said.extend(tokens);
                Ok(chunks)
            }
            Event::End { choice, stopped, tokens } => {
                let reason = if stopped { "stop" } else { "length" };
                let opening = match self.answers[choice].text.is_empty() && self.answers[choice].said.is_empty() {
                    true => self.opening(choice),
                    false => None,
                };
                let written = &mut self.answers[choice];
                (written.reason, written.tokens) = (Some(reason), tokens);
                let last = self.chunk(choice, Value::Null, &[], Some(reason));
                let usage = (self.usage && self.is_whole()).then(|| {
                    let mut chunk = self.document(true, json!([]));
                    chunk["usage"] = self.counted();
                    chunk
                });
                Ok(opening.into_iter().chain([last]).chain(usage).collect())
            }
        }
    }

    /// Whether every answer has ended.
    pub fn is_whole(&self) -> bool {
        self.answers.iter().all(|written| written.reason.is_some())
    }

    /// What a stream's answer begins with.
    fn opening(&self, choice: usize) -> Option<Value> {
        match self.endpoint {
            Endpoint::Chat => {
                let delta = json!({"role": "assistant", "content": ""});
                let choice = json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": null});
                Some(self.document(true, json!([choice])))
            }
            Endpoint::Completions if self.leads[choice].is_empty() => None,
            Endpoint::Completions => Some(self.chunk(choice, json!(self.leads[choice]), &[], None)),
        }
    }

    fn chunk(&self, choice: usize, text: Value, said: &[Said], reason: Option<&str>) -> Value {
        let logprobs = if said.is_empty() { Value::Null } else { self.logprobs(said) };
        let choice = match self.endpoint {
            Endpoint::Completions => json!({
                "index": choice,
                "text": text.as_str().unwrap_or_default(),
                "logprobs": logprobs,
                "finish_reason": reason,
            }),
            Endpoint::Chat => {
                let delta = if text.is_null() { json!({}) } else { json!({"content": text}) };
                json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
            }
        };
        self.document(true, json!([choice]))
    }

    /// The whole answer.
    pub fn whole(&self) -> Value {
        let choices = self.answers.iter().zip(&self.leads).enumerate().map(|(index, (written, lead))| {
            let logprobs = if self.logprobs { self.logprobs(&written.said) } else { Value::Null };
            match self.endpoint {
                Endpoint::Completions => json!({
                    "index": index,
                    "text": format!("{lead}{}", written.text),
                    "logprobs": logprobs,
                    "finish_reason": written.reason,
                }),
                Endpoint::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": written.text, "refusal": null},
                    "logprobs": logprobs,
                    "finish_reason": written.reason,
                }),
            }
        });
        let mut document = self.document(false, choices.collect());
        document["usage"] = self.counted();
        document
    }

    fn document(&self, chunk: bool, choices: Value) -> Value {
        let object = match (self.endpoint, chunk) {
            (Endpoint::Completions, _) => "text_completion",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn counted(&self) -> Value {
        let made: usize = self.answers.iter().map(|written| written.tokens).sum();
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        })
    }

    fn logprobs(&self, said: &[Said]) -> Value {
        let entry =
            |shown: &Shown| json!({"token": shown.text, "logprob": shown.log_probability, "bytes": shown.bytes});
        if self.endpoint == Endpoint::Chat {
            let content = said.iter().map(|said| {
                let mut of = entry(&said.token);
                of["top_logprobs"] = said.top.iter().map(entry).collect();
                of
            });
            return json!({"content": content.collect::<Vec<_>>(), "refusal": null});
        }
        let top = said.iter().map(|said| {
            let all = said.top.iter().chain([&said.token]);
            all.map(|shown| (shown.text.clone(), json!(shown.log_probability))).collect::<Map<String, Value>>()
        });
        json!({
            "tokens": said.iter().map(|said| &said.token.text).collect::<Vec<_>>(),
            "token_logprobs": said.iter().map(|said| said.token.log_probability).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Vec<_>>(),
            "text_offset": said.iter().map(|said| said.offset).collect::<Vec<_>>(),
        })
    }
}

/// A client whose answers do not come is told so.
pub fn broken_off() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer broke off; the server says more in its log")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Asked, Refusal> {
        Asked::read(body.to_string().as_bytes(), Endpoint::Completions, 100)
    }

    fn chat(body: Value) -> Result<Asked, Refusal> {
        Asked::read(body.to_string().as_bytes(), Endpoint::Chat, 100)
    }

    #[test]
    fn requests_are_read_with_openais_defaults() {
        let asked =
            read(json!({"model": "m", "prompt": "a", "seed": -1, "user": "x", "stop": null, "penalty": 3})).unwrap();
        assert_eq!((asked.prompts, asked.most, asked.choices), (vec![Prompt::Text("a".into())], Some(16), 1));
        assert_eq!(asked.sampling, Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: u64::MAX });
        let many = |prompt: Value| read(json!({"model": "m", "prompt": prompt})).unwrap().prompts;
        assert_eq!(many(json!([1, 2])), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(many(json!(["a", "b"])).len(), 2);
        assert_eq!(many(json!([[1], [2, 3]])), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        let turn = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        let asked = chat(json!({"model": "m", "messages": turn, "max_completion_tokens": 3, "tools": []})).unwrap();
        assert_eq!(asked.prompts, [Prompt::Messages(json!([{"role": "user", "content": "ab"}]))]);
        assert_eq!((asked.most, asked.top), (Some(3), None));
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_fields_name() {
        let mut base = json!({"model": "m", "prompt": "a"});
        for (name, value) in [
            ("temperature", json!(2.5)),
            ("temperature", json!("hot")),
            ("top_p", json!(-0.1)),
            ("n", json!(9)),
            ("n", json!(0)),
            ("max_tokens", json!(101)),
            ("max_tokens", json!(1.5)),
            ("logprobs", json!(21)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!("")),
            ("stream", json!("yes")),
            ("stream_options", json!({"include_usage": true})),
            ("prompt", json!([])),
            ("prompt", json!([1, "a"])),
            ("model", json!(1)),
            ("tools", json!([{}])),
            ("response_format", json!({"type": "json_object"})),
            ("best_of", json!(2)),
            ("presence_penalty", json!(0.5)),
            ("seed", json!("x")),
        ] {
            let mut body = base.clone();
            body[name] = value.clone();
            let refusal = read(body).unwrap_err();
            assert_eq!(
                (refusal.status.as_u16(), refusal.param.as_deref()),
                (400, Some(name)),
                "{value}: {}",
                refusal.message
            );
        }
        base.as_object_mut().unwrap().remove("prompt");
        assert_eq!(read(base).unwrap_err().message, "\"prompt\" is missing");
        for messages in [
            json!([]),
            json!(["a"]),
            json!([{"content": "a"}]),
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ] {
            let refusal = chat(json!({"model": "m", "messages": messages})).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some("messages"));
        }
        assert!(
            chat(json!({"model": "m", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})).is_err()
        );
        let not_json = Asked::read(b"{", Endpoint::Completions, 10).unwrap_err();
        assert!(not_json.message.starts_with("the body is not JSON"), "{}", not_json.message);
        assert!(Asked::read(b"[]", Endpoint::Completions, 10).unwrap_err().message.contains("a list"));
    }
}
