//! What is asked over HTTP, and who may ask.
//!
//! A browser sends whatever a page of another site makes it send: a request must name this server as its `Host`, so that no other name can be pointed at it, and what
//! changes something must not come from another origin. With a token everything but the page and `/health` wants it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::editing::{Editing, Progress, Wanted};
use super::edits::{Edits, check_id};
use super::engine::{Engine, Event, Job};
use super::openai::{Asked, Endpoint, Fields, Prompt, Reply, broken_off};
use super::refusal::Refusal;
use crate::data::own_record;
use crate::edit::Edited;
use crate::model::chat::Chat;
use crate::model::tokens::BEGIN;

/// The page.
const PAGE: &str = include_str!("page.html");

/// What a server answers with.
pub struct Server {
    /// Generates.
    pub engine: Engine,
    /// Edits.
    pub editing: Editing,
    /// The edits.
    pub edits: Arc<Edits>,
    /// The address that it is bound to.
    pub host: IpAddr,
    /// The model's chat template, or why there is none.
    pub chat: Result<Chat, String>,
    /// What a request must bear, where there is one.
    pub token: Option<String>,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Answers that may wait.
    pub queue: usize,
    /// When it began, in seconds since 1970.
    pub started: i64,
}

type Shared = State<Arc<Server>>;
type Received = Result<Bytes, BytesRejection>;

/// All that is served; a body may have so many bytes.
pub fn router(server: Arc<Server>, max_body: usize) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/editors", get(editors))
        .route("/edits", get(list).post(edit))
        .route("/edits/{id}", get(one).patch(switch).delete(remove))
        .route("/edits/{id}/file", get(file))
        .fallback(async || {
            Refusal::missing("there is nothing at this address; the page is at /, the models at /v1/models")
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this address takes other methods")
        })
        .layer(DefaultBodyLimit::max(max_body))
        .layer(from_fn_with_state(server.clone(), guard))
        .with_state(server)
}

/// Lets a request pass that may ask.
async fn guard(State(server): Shared, request: Request, next: Next) -> Response {
    match server.check(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// The name of a host without its port.
fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

impl Server {
    fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |message: &str| Err(Refusal::new(StatusCode::FORBIDDEN, message));
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        let name = without_port(host);
        let own = || {
            name.eq_ignore_ascii_case("localhost")
                || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback() || ip == self.host)
        };
        // Behind another address there is a token, which no foreign page has.
        if self.host.is_loopback() && !own() {
            return forbidden("this server answers to localhost and 127.0.0.1 alone; the request names another host");
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if let Some(origin) = text(header::ORIGIN).filter(|_| !reads) {
            let same = origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
            if !same {
                return forbidden("a page of another origin may not write here");
            }
        }
        let wrong_kind = || text(header::CONTENT_TYPE).is_none_or(|kind| !kind.starts_with("application/json"));
        if matches!(*method, Method::POST | Method::PATCH) && wrong_kind() {
            let message = "a body is JSON: send it with \"Content-Type: application/json\"";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let open = reads && (path == "/" || path == "/health");
        if let Some(token) = self.token.as_ref().filter(|_| !open) {
            let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
            // Hashes are compared, so that the time it takes says nothing of the token.
            if given.map(|given| blake3::hash(given.as_bytes())) != Some(blake3::hash(token.as_bytes())) {
                let message =
                    "the token is missing or wrong: send \"Authorization: Bearer TOKEN\" with the one of --token";
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, message));
            }
        }
        Ok(())
    }
}

fn bytes(body: Received) -> Result<Bytes, Refusal> {
    body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than --max-body")
        }
        _ => Refusal::bad("the body could not be read"),
    })
}

/// Runs what takes a processor for a while where it keeps no other request waiting.
async fn aside<T: Send + 'static>(run: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    spawn_blocking(run).await.unwrap_or_else(|_| Err(Refusal::own("the server met an error of its own")))
}

async fn page() -> impl IntoResponse {
    let policy = "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE))
}

async fn health(State(server): Shared) -> Json<Value> {
    Json(json!({
        "status": "ok", "model": server.edits.model, "edits": server.edits.len(), "running": server.engine.running(),
        "waiting": server.engine.waiting(),
    }))
}

fn model_json(server: &Server, id: &str) -> Value {
    json!({"id": id, "object": "model", "created": server.started, "owned_by": "emend"})
}

async fn models(State(server): Shared) -> Json<Value> {
    let data: Vec<Value> = server.edits.models().iter().map(|id| model_json(&server, id)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(State(server): Shared, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let own = server.clone();
    let name = id.clone();
    aside(move || own.edits.stack(&name).map(drop)).await?;
    Ok(Json(model_json(&server, &id)))
}

async fn completions(State(server): Shared, body: Received) -> Result<Response, Refusal> {
    answer(server, Endpoint::Completions, bytes(body)?).await
}

async fn chat(State(server): Shared, body: Received) -> Result<Response, Refusal> {
    answer(server, Endpoint::Chat, bytes(body)?).await
}

/// A request as it goes to the engine.
struct Prepared {
    jobs: Vec<Job>,
    reply: Reply,
    stream: bool,
    events: UnboundedReceiver<Event>,
}

async fn answer(server: Arc<Server>, endpoint: Endpoint, body: Bytes) -> Result<Response, Refusal> {
    let own = server.clone();
    let Prepared { jobs, mut reply, stream, mut events } = aside(move || own.prepare(endpoint, &body)).await?;
    server.engine.submit(jobs)?;
    if stream {
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(stream_answer(reply, events, sender));
        return Ok(events_response(receiver));
    }
    while !reply.is_whole() {
        reply.take(events.recv().await.ok_or_else(broken_off)?)?;
    }
    Ok(Json(reply.whole()).into_response())
}

/// Hands an answer on, piece by piece; ends where the client does.
async fn stream_answer(mut reply: Reply, mut events: UnboundedReceiver<Event>, sender: UnboundedSender<String>) {
    while !reply.is_whole() {
        let event = tokio::select! {
            event = events.recv() => event,
            () = sender.closed() => return,
        };
        let chunks = event.ok_or_else(broken_off).and_then(|event| reply.take(event));
        let sent = match chunks {
            Ok(chunks) => chunks.iter().try_for_each(|chunk| sender.send(format!("data: {chunk}\n\n"))),
            Err(refusal) => {
                // The status is long gone; what is wrong is the last that is said.
                let _ = sender.send(format!("data: {}\n\n", refusal.json()));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
    let _ = sender.send("data: [DONE]\n\n".to_owned());
}

/// Server-sent events.
fn events_response(receiver: UnboundedReceiver<String>) -> Response {
    use tokio_stream::StreamExt;
    let body = Body::from_stream(UnboundedReceiverStream::new(receiver).map(Ok::<_, Infallible>));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, body).into_response()
}

impl Server {
    fn prepare(&self, endpoint: Endpoint, body: &[u8]) -> Result<Prepared, Refusal> {
        let asked = Asked::read(body, endpoint, self.max_tokens)?;
        let model = self.edits.stack(&asked.model)?;
        let answers = asked.prompts.len() * asked.choices;
        if answers > self.queue {
            let message = format!(
                "the request asks for {answers} answers; the server takes up to {} at once (--queue)",
                self.queue
            );
            return Err(Refusal::field("n", message));
        }
        let mut stop_tokens = model.base().stop_tokens();
        if endpoint == Endpoint::Chat {
            stop_tokens.extend(model.base().tokenizer.end_of_turn());
        }
        let (sender, events) = unbounded_channel();
        let (mut jobs, mut leads, mut tokens) = (vec![], vec![], 0);
        for prompt in &asked.prompts {
            let (ids, text) = self.tokenised(&model, prompt)?;
            let room = room(&ids, model.base().decoder.spec.context);
            let room = room.map_err(|message| {
                Refusal::field(if endpoint == Endpoint::Chat { "messages" } else { "prompt" }, message)
            })?;
            tokens += ids.len();
            leads.extend(std::iter::repeat_n(if asked.echo { text } else { String::new() }, asked.choices));
            jobs.push(Job {
                model: model.clone(),
                prompt: ids,
                first: jobs.len() * asked.choices,
                choices: asked.choices,
                most: asked.most.unwrap_or(self.max_tokens).min(room),
                sampling: asked.sampling.clone(),
                stop: asked.stop.clone(),
                stop_tokens: stop_tokens.clone(),
                goes_on: endpoint == Endpoint::Completions,
                top: asked.top,
                events: sender.clone(),
            });
        }
        let reply = Reply::new(endpoint, &asked, leads, tokens);
        Ok(Prepared { jobs, reply, stream: asked.stream, events })
    }
}

/// How many tokens may follow a prompt; over an encoder it has a context of its own.
fn room(ids: &[u32], context: usize) -> Result<usize, String> {
    let source = ids.iter().position(|id| *id == BEGIN).unwrap_or(0);
    let room = (context + 1).saturating_sub(ids.len() - source);
    if room == 0 || source > context {
        return Err(format!(
            "the prompt has {} tokens, and the model reads {context}; shorten it",
            source.max(ids.len() - source)
        ));
    }
    Ok(room)
}

impl Server {
    /// A prompt's tokens and text.
    fn tokenised(&self, model: &Edited, prompt: &Prompt) -> Result<(Vec<u32>, String), Refusal> {
        let tokenizer = &model.base().tokenizer;
        match prompt {
            Prompt::Text(text) => {
                let ids = tokenizer.encode_prompt(text).map_err(|error| Refusal::field("prompt", error.to_string()))?;
                Ok((ids, text.clone()))
            }
            Prompt::Ids(ids) => {
                let wrong = |message: String| Err(Refusal::field("prompt", message));
                if tokenizer.of_pairs() || tokenizer.labels().is_some() {
                    return wrong("this model has an encoder, which reads a text; give the prompt as a string".into());
                }
                let vocabulary = model.base().decoder.spec.vocabulary;
                if let Some(strange) = ids.iter().find(|id| **id as usize >= vocabulary) {
                    return wrong(format!("there is no token {strange}; the vocabulary has {vocabulary}"));
                }
                let text = tokenizer.prompt_text(ids).map_err(|error| Refusal::field("prompt", error.to_string()))?;
                Ok((ids.clone(), text))
            }
            Prompt::Messages(messages) => {
                let wrong = |message: String| Refusal::field("messages", message);
                let chat = self.chat.as_ref().map_err(|message| wrong(message.clone()))?;
                let text = chat.render(messages, true).map_err(|error| wrong(error.to_string()))?;
                Ok((tokenizer.encode_prompt(&text).map_err(|error| wrong(error.to_string()))?, text))
            }
        }
    }
}

async fn editors(State(server): Shared) -> Json<Value> {
    let editors = server.editing.editors().iter().map(|named| {
        let (method, _) = named.editor.describe();
        json!({"name": named.name, "method": method, "needs_subject": named.needs_subject, "description": named.origin})
    });
    Json(json!({"editors": editors.collect::<Vec<_>>()}))
}

async fn list(State(server): Shared) -> Json<Value> {
    Json(json!({"edits": server.edits.describe_all()}))
}

async fn one(State(server): Shared, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    Ok(Json(server.edits.describe(&id)?))
}

async fn file(State(server): Shared, Path(id): Path<String>) -> Result<Response, Refusal> {
    let name = format!("attachment; filename=\"{id}.edit.safetensors\"");
    let bytes = aside(move || server.edits.file(&id)).await?;
    let name = HeaderValue::from_str(&name).map_err(|_| Refusal::own("the edit's name is none of a file"))?;
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_DISPOSITION, name), (header::CONTENT_TYPE, kind)], bytes).into_response())
}

async fn switch(State(server): Shared, Path(id): Path<String>, body: Received) -> Result<Json<Value>, Refusal> {
    let mut fields = Fields::parse(&bytes(body)?)?;
    let on = fields.flag("on")?.ok_or_else(|| Refusal::field("on", "\"on\" is missing; it is true or false"))?;
    let edit = aside(move || {
        server.edits.switch(&id, on)?;
        server.edits.describe(&id)
    });
    Ok(Json(edit.await?))
}

async fn remove(State(server): Shared, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    aside(move || server.edits.remove(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn edit(State(server): Shared, headers: HeaderMap, body: Received) -> Result<Response, Refusal> {
    let body = bytes(body)?;
    if server.engine.is_closed() {
        return Err(Refusal::closing());
    }
    let own = server.clone();
    let (wanted, mut events) = aside(move || own.wanted(&body)).await?;
    server.editing.submit(wanted)?;
    let streamed = headers.get(header::ACCEPT).and_then(|kind| kind.to_str().ok());
    if streamed.is_some_and(|kind| kind.contains("text/event-stream")) {
        let (sender, receiver) = unbounded_channel();
        let _ = sender.send(said(Progress::Stage("queued", 0.0)));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if sender.send(said(event)).is_err() {
                    return;
                }
            }
        });
        return Ok(events_response(receiver));
    }
    while let Some(event) = events.recv().await {
        match event {
            Progress::Stage(..) | Progress::Made(_) => {}
            Progress::Done(edit) => return Ok((StatusCode::CREATED, Json(edit)).into_response()),
            Progress::Failed(refusal) => return Err(refusal),
        }
    }
    Err(Refusal::closing())
}

/// An event of an edit as it is streamed.
fn said(event: Progress) -> String {
    let (name, data) = match event {
        Progress::Stage(stage, seconds) => {
            ("progress", json!({"stage": stage, "step": null, "of": null, "seconds": seconds}))
        }
        Progress::Made(edit) => ("made", edit),
        Progress::Done(edit) => ("done", edit),
        Progress::Failed(refusal) => ("error", refusal.json()),
    };
    format!("event: {name}\ndata: {data}\n\n")
}

impl Server {
    /// A request for an edit: a record as a file of edits has it, with the editor, what the edit is to be called, and the model it is made on.
    fn wanted(&self, body: &[u8]) -> Result<(Wanted, UnboundedReceiver<Progress>), Refusal> {
        let mut fields = Fields::parse(body)?;
        let editors = self.editing.editors();
        if editors.is_empty() {
            return Err(Refusal::bad("the server has no editor; start it with --archive DIR or --config FILE"));
        }
        let names = || editors.iter().map(|named| named.name.as_str()).collect::<Vec<_>>().join(", ");
        let editor = match fields.text("editor")? {
            None if editors.len() == 1 => 0,
            None => return Err(Refusal::field("editor", format!("\"editor\" is missing; there is {}", names()))),
            Some(name) => editors.iter().position(|named| named.name == name).ok_or_else(|| Refusal {
                param: Some("editor".into()),
                ..Refusal::missing(format!("there is no editor \"{name}\"; there is {}", names()))
            })?,
        };
        let id = fields.text("id")?;
        if let Some(id) = &id {
            check_id(id)?;
            self.edits.check_free(id)?;
        }
        let on = fields.text("on")?.map(|name| self.edits.stack(&name)).transpose();
        let on = on.map_err(|refusal| Refusal { param: Some("on".into()), ..refusal })?;
        let further = [("target_new", fields.take("target")), ("locality", fields.take("neighbors"))];
        let mut record = fields.rest();
        record.retain(|_, value| !value.is_null());
        for (name, value) in further {
            value.map(|value| record.entry(name).or_insert(value));
        }
        let record = own_record(&Value::Object(record).to_string(), "the body")
            .map_err(|error| Refusal::bad(error.to_string()))?;
        if editors[editor].needs_subject && record.subject.is_none() {
            let message = format!(
                "{} needs the \"subject\": what the fact is about, as it stands in the prompt",
                editors[editor].name
            );
            return Err(Refusal::field("subject", message));
        }
        let (events, receiver) = unbounded_channel();
        Ok((Wanted { editor, record, id, on, events }, receiver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_their_ports() {
        for (host, wanted) in [
            ("localhost", "localhost"),
            ("localhost:8399", "localhost"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:8399", "::1"),
            ("[::1]", "::1"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), wanted);
        }
    }
}
