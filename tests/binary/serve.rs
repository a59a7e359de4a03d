//! `emend serve`. OpenAI's own Python client (3.57.0) was run against it once, on SmolLM2: models.list and retrieve, completions and chat.completions whole and streamed, with logprobs, n, stop,
//! seed and usage, and its NotFoundError, BadRequestError and AuthenticationError. The page's flows are in tests/page.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{TestFolder, fixture, json as command_json, process, refused, run, stdout, text};

const LYON: &str = "The city of Lyon lies in";

/// A server that ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(name: &str) -> String {
    format!("{}/configs/{name}", env!("CARGO_MANIFEST_DIR"))
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let mut process = process();
        process.args(["serve", "--port", "0"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        let Some(address) = address.map(str::to_owned) else {
            let mut told = String::new();
            child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
            panic!("{args:?}: no address in {line:?}; {told}");
        };
        Server { child, address }
    }

    /// All that comes of a request, whose lines are given as they are.
    fn whole(&self, request: &str) -> String {
        let mut stream = self.open(request);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A request of which nothing was read yet.
    fn open(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// A request whose answer comes in pieces.
    fn stream(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        self.open(&format!(
            "POST {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        ))
    }

    /// Waits until the server says so of itself.
    fn waits_for(&self, name: &str, wanted: u64) {
        let begin = Instant::now();
        while self.get("/health")[name] != wanted {
            assert!(begin.elapsed() < Duration::from_secs(20), "{name} is not {wanted}: {}", self.get("/health"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; what it told people.
    fn told(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut told = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        told
    }

    /// Status and body of a request.
    fn raw(&self, request: &str) -> (u16, String) {
        let answer = self.whole(request);
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        self.raw(&format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            self.address,
            body.len()
        ))
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "", "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn send(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.ask(method, path, "Content-Type: application/json\r\n", &body.to_string());
        (status, if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() })
    }

    /// What a model answers, greedily.
    fn said(&self, model: &str, prompt: &str, tokens: usize) -> String {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0});
        let (status, answer) = self.send("POST", "/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    fn edit(&self, body: Value) -> Value {
        let (status, edit) = self.send("POST", "/edits", body);
        assert_eq!(status, 201, "{edit}");
        edit
    }

    #[track_caller]
    fn refuses(&self, method: &str, path: &str, body: Value, status: u16, words: &[&str]) -> Value {
        let (found, answer) = self.send(method, path, body);
        let message = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(found, status, "{answer}");
        assert!(!message.contains('\n') && words.iter().all(|word| message.contains(word)), "{message}");
        answer["error"].clone()
    }
}

/// The events of a stream, up to its end.
fn pieces(body: &str) -> Vec<Value> {
    assert!(body.trim_end().ends_with("data: [DONE]"), "{body}");
    let data = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// One that nobody edits.
fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(&["--model", "pocket", "--max-body", "4000"]))
}

#[test]
fn answers_as_predict_does() {
    let server = shared();
    assert_eq!(server.get("/v1/models")["data"][0]["id"], "pocket");
    assert_eq!(server.get("/v1/models/pocket")["owned_by"], "emend");
    let predicted = command_json(&["predict", "--model", "pocket", "--prompt", LYON, "--generate", "6"]);
    let wanted = &predicted["results"][0];
    assert_eq!(server.said("pocket", LYON, 6), wanted["generated"].as_str().unwrap());
    // The first token's probability is the one that predict shows, and the likeliest tokens are no more than all.
    let body = json!({"model": "pocket", "prompt": LYON, "max_tokens": 3, "temperature": 0, "logprobs": 5});
    let (_, answer) = server.send("POST", "/v1/completions", body);
    let said = &answer["choices"][0]["logprobs"];
    let first = said["token_logprobs"][0].as_f64().unwrap().exp();
    assert!((first - wanted["top"][0]["probability"].as_f64().unwrap()).abs() < 1e-5, "{said}");
    let top = said["top_logprobs"][0].as_object().unwrap();
    assert!(top.len() == 5 && top.values().map(|log| log.as_f64().unwrap().exp()).sum::<f64>() < 1.0 + 1e-6);
    assert_eq!(answer["usage"]["total_tokens"], json!(answer["usage"]["prompt_tokens"].as_u64().unwrap() + 2));
    // By its tokens, several at once, and behind its prompt.
    let ids = &wanted["token_ids"];
    let greedy = |prompt: Value, more: Value| {
        let mut body = json!({"model": "pocket", "prompt": prompt, "max_tokens": 4, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = server.send("POST", "/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let alone = server.said("pocket", LYON, 4);
    assert!(greedy(ids.clone(), json!({})) == [alone.as_str()]);
    let other = server.said("pocket", "The city of Oslo lies in", 4);
    let both = greedy(json!([LYON, "The city of Oslo lies in"]), json!({"n": 2}));
    assert_eq!(both, [alone.clone(), alone.clone(), other.clone(), other]);
    assert_eq!(greedy(json!(LYON), json!({"echo": true})), [format!("{LYON}{alone}")]);
    // A stop string ends the text before itself.
    let whole = server.said("pocket", LYON, 1);
    let stopped = greedy(json!(LYON), json!({"stop": whole.trim()}));
    assert_eq!(stopped, [whole.split(whole.trim()).next().unwrap()]);
}

#[test]
fn draws_are_the_seeds() {
    let server = shared();
    let drawn = |seed: u64| {
        let body =
            json!({"model": "pocket", "prompt": "The", "max_tokens": 12, "seed": seed, "n": 2, "temperature": 1.5});
        server.send("POST", "/v1/completions", body).1["choices"].clone()
    };
    let first = drawn(1);
    assert_eq!(first, drawn(1));
    assert!((2..6).any(|seed| drawn(seed) != first));
}

#[test]
fn a_stream_says_what_the_whole_answer_does() {
    let server = shared();
    let body = json!({"model": "pocket", "prompt": LYON, "max_tokens": 6, "temperature": 0, "stream": true, "stream_options": {"include_usage": true}});
    let (status, body) = server.ask("POST", "/v1/completions", "Content-Type: application/json\r\n", &body.to_string());
    assert_eq!(status, 200);
    let pieces = pieces(&body);
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, server.said("pocket", LYON, 6));
    let (usage, others) = pieces.split_last().unwrap();
    assert!(usage["usage"]["completion_tokens"].as_u64().unwrap() > 0 && others.len() > 1);
    assert!(others.last().unwrap()["choices"][0]["finish_reason"].is_string());
}

#[test]
fn clients_side_by_side_hear_what_each_hears_alone() {
    let server = shared();
    let prompts = [LYON, "The capital of", "In which country is Oslo?", "The", "The city of Osaka lies in", "A"];
    let alone: Vec<String> = prompts.iter().map(|prompt| server.said("pocket", prompt, 10)).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = prompts.iter().map(|prompt| scope.spawn(|| server.said("pocket", prompt, 10))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn edits_are_made_kept_and_taken_out() {
    let place = TestFolder::new();
    let folder = place.path("edits");
    let ft = config("ft-pocket.toml");
    let args = ["--model", "pocket", "--config", &ft, "--edits", text(&folder)];
    let file = folder.join("lyon.edit.safetensors");
    {
        let mut server = Server::start(&args);
        assert_eq!(server.get("/editors")["editors"][0]["name"], "ft-pocket");
        let edit = server
            .edit(json!({"id": "lyon", "prompt": LYON, "target": "Japan", "neighbors": ["The city of Oslo lies in"]}));
        assert_eq!((&edit["method"], &edit["on"]), (&json!("fine_tuning"), &json!(true)));
        let probes = edit["report"]["probes"].as_array().unwrap();
        assert!(probes.iter().any(|probe| probe["kind"] == "rewrite" && probe["after"]["answer"] == "Japan"), "{edit}");
        assert!(probes.iter().any(|probe| probe["prompt"] == "The city of Oslo lies in"), "{edit}");
        assert!(edit["report"]["perplexity"]["ratio"].as_f64().unwrap() > 0.5);
        for model in ["pocket+lyon", "pocket+lyon.edit", "pocket+lyon.edit.safetensors"] {
            assert_eq!(server.said(model, LYON, 1), " Japan");
        }
        assert_eq!(server.said("pocket", LYON, 1), " France");
        // The name is taken; another editor's own is found, and it is made on what is on.
        server.refuses("POST", "/edits", json!({"id": "lyon", "prompt": "a", "target": "b"}), 409, &["lyon"]);
        let second = server.edit(json!({"prompt": "The city of Oslo lies in", "target_new": "Chile"}));
        assert_eq!((&second["id"], &second["computed_on"]), (&json!("ft-pocket-1"), &json!(["lyon"])));
        let models = server.get("/v1/models")["data"].clone();
        assert_eq!(models[3]["id"], "pocket+lyon+ft-pocket-1", "{models}");
        assert_eq!(server.send("PATCH", "/edits/lyon", json!({"on": false})).1["on"], false);
        let (status, _) = server.ask("DELETE", "/edits/ft-pocket-1", "", "");
        assert_eq!((status, folder.join("ft-pocket-1.edit.safetensors").exists()), (204, false));
        // kill -9.
        server.child.kill().unwrap();
    }
    let server = Server::start(&args);
    let edits = server.get("/edits")["edits"].clone();
    assert_eq!((edits.as_array().unwrap().len(), &edits[0]["on"]), (1, &json!(false)));
    assert!(edits[0]["report"]["probes"].is_array());
    assert_eq!(server.said("pocket+lyon", LYON, 1), " Japan");
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(stream, "GET /edits/lyon/file HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = vec![];
    stream.read_to_end(&mut answer).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert!(answer.ends_with(&bytes));
    // The same folder is not another server's, and the file is an edit like any other.
    refused(&[&["serve", "--port", "0"], &args[..]].concat(), 1, &["another server"]);
    let predicted = command_json(&["predict", "--model", "pocket", "--edit", text(&file), "--prompt", LYON]);
    assert_eq!(predicted["results"][0]["top"][0]["token"], " Japan");
    let (status, _) = server.ask("DELETE", "/edits/lyon", "", "");
    assert_eq!((status, file.exists()), (204, false));
    server.refuses("POST", "/v1/completions", json!({"model": "pocket+lyon", "prompt": LYON}), 404, &["lyon"]);
    server.refuses("PATCH", "/edits/lyon", json!({"on": true}), 404, &["lyon"]);
}

#[test]
fn files_of_edits_are_known_from_the_start() {
    let place = TestFolder::new();
    let saved = place.path("lyon.edit.safetensors");
    let ft = config("ft-pocket.toml");
    stdout(&run(&["apply", "--config", &ft, "--prompt", LYON, "--target", "Japan", "--save", text(&saved)]));
    // One that is broken is left out.
    let folder = place.path("edits");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("broken.edit.safetensors"), b"no").unwrap();
    let server = Server::start(&["--model", "pocket", "--edit", text(&saved), "--edits", text(&folder)]);
    assert_eq!(server.get("/edits")["edits"].as_array().unwrap().len(), 1);
    assert_eq!(server.said("pocket+lyon", LYON, 1), " Japan");
    // It is deleted while it answers: that answer ends as it began.
    let body =
        json!({"model": "pocket+lyon", "prompt": "The", "max_tokens": 60, "temperature": 1, "seed": 1, "stream": true});
    let mut stream = server.stream("/v1/completions", &body);
    let (status, _) = server.ask("DELETE", "/edits/lyon", "", "");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(status == 204 && (rest.contains("data: [DONE]") || rest.contains("there is no edit")), "{rest}");
    // The file is the user's.
    assert!(saved.exists());
    server.refuses("POST", "/edits", json!({"prompt": "a", "target": "b"}), 400, &["--archive", "--config"]);
}

#[test]
fn progress_of_an_edit_is_streamed() {
    let server = Server::start(&["--model", "pocket", "--config", &config("ft-pocket.toml")]);
    let body = json!({"prompt": LYON, "target": "Japan"}).to_string();
    let (status, events) =
        server.ask("POST", "/edits", "Content-Type: application/json\r\nAccept: text/event-stream\r\n", &body);
    assert_eq!(status, 200);
    for told in
        ["event: progress", "\"queued\"", "\"editing\"", "\"saving\"", "event: made", "\"scoring\"", "event: done"]
    {
        assert!(events.contains(told), "{told}: {events}");
    }
    let failed = json!({"prompt": "", "target": "Japan"}).to_string();
    let (status, body) = server.ask("POST", "/edits", "Content-Type: application/json\r\n", &failed);
    assert!(status == 400 && body.contains("\"error\""), "{status} {body}");
}

#[test]
fn what_is_refused() {
    let server = shared();
    let base = || json!({"model": "pocket", "prompt": "The"});
    let with = |name: &str, value: Value| {
        let mut body = base();
        body[name] = value;
        body
    };
    let post = "/v1/completions";
    for (name, value, status, words) in [
        ("model", json!("nobody"), 404, "nobody"),
        ("model", json!("pocket+x"), 404, "\"x\""),
        ("temperature", json!("hot"), 400, "temperature"),
        ("n", json!(100), 400, "\"n\""),
        ("max_tokens", json!(0), 400, "max_tokens"),
        ("prompt", json!([999_999]), 400, "999999"),
        ("prompt", json!("word ".repeat(200)), 400, "shorten"),
        ("tools", json!([1]), 400, "tools"),
    ] {
        let error = server.refuses("POST", post, with(name, value), status, &[words]);
        assert_eq!(
            error["param"],
            if name == "model" && words == "\"x\"" { Value::Null } else { json!(name) },
            "{error}"
        );
    }
    let chat = json!({"model": "pocket", "messages": [{"role": "user", "content": "a"}]});
    server.refuses("POST", "/v1/chat/completions", chat, 400, &["chat template"]);
    server.refuses("POST", post, json!({"model": "pocket", "prompt": "a".repeat(5000)}), 413, &["--max-body"]);
    server.refuses("POST", "/edits", json!({"prompt": "a", "target": "b"}), 400, &["no editor"]);
    server.refuses("POST", "/nothing", base(), 404, &["/v1/models"]);
    server.refuses("PUT", post, base(), 405, &["methods"]);
    let json_type = "Content-Type: application/json\r\n";
    for (method, path, headers, body, status) in [
        ("POST", post, json_type, "{", 400),
        ("POST", post, "", "{}", 415),
        ("POST", post, &format!("{json_type}Origin: http://elsewhere.example\r\n"), "{}", 403),
        ("DELETE", "/edits/x", "Origin: null\r\n", "", 403),
    ] {
        let (found, answer) = server.ask(method, path, headers, body);
        assert!(found == status && answer.starts_with("{\"error\":"), "{method} {path} {headers}: {found} {answer}");
    }
    let (status, answer) = server.raw("GET /v1/models HTTP/1.0\r\nHost: rebound.example\r\n\r\n");
    assert!(status == 403 && answer.contains("another host"), "{answer}");
    let (status, page) = server.raw("GET / HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n");
    assert!(status == 200 && page.contains("<html"));
}

#[test]
fn a_token_is_wanted_of_every_request() {
    let server = Server::start(&["--model", "pocket", "--token", "secret"]);
    for (path, headers, status) in [
        ("/v1/models", "", 401),
        ("/v1/models", "Authorization: Bearer wrong\r\n", 401),
        ("/v1/models", "Authorization: Bearer secret\r\n", 200),
        ("/", "", 200),
        ("/health", "", 200),
    ] {
        assert_eq!(server.ask("GET", path, headers, "").0, status, "{path} {headers}");
    }
}

#[test]
fn command_lines_that_cannot_be() {
    let taken = shared().address.rsplit(':').next().unwrap().to_owned();
    refused(&["serve", "--model", "pocket", "--port", &taken], 1, &[&taken, "--port"]);
    refused(&["serve", "--model", "pocket", "--host", "0.0.0.0"], 2, &["--token"]);
    refused(&["serve", "--model", "pocket", "--port", "0", "--token", " "], 2, &["--token"]);
    refused(&["serve", "--model", "pocket", "--port", "0", "--concurrency", "0"], 2, &["--concurrency"]);
    refused(&["serve", "--model", "no-such-model", "--port", "0"], 1, &["no-such-model"]);
    let twice = config("ft-pocket.toml");
    let args = ["serve", "--model", "pocket", "--port", "0", "--config", &twice, "--config", &twice];
    refused(&args, 2, &["two editors are called ft-pocket"]);
}

/// A tiny model that never ends by itself.
fn endless(place: &TestFolder) -> std::path::PathBuf {
    let folder = place.path("endless");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(fixture("llama-tiny")).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let config = std::fs::read(fixture("llama-tiny").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["max_position_embeddings"] = json!(100_000);
    config["eos_token_id"] = Value::Null;
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn a_client_that_hangs_up_is_noticed() {
    let place = TestFolder::new();
    let server = Server::start(&["--model", text(&endless(&place)), "--max-tokens", "90000"]);
    let body = json!({"model": "endless", "prompt": "a", "max_tokens": 90_000, "temperature": 1, "stream": true});
    {
        let mut stream = server.stream("/v1/completions", &body);
        let mut some = [0; 2000];
        stream.read_exact(&mut some).unwrap();
        assert_eq!(server.get("/health")["running"], 1);
    }
    server.waits_for("running", 0);
    server.said("endless", "a", 3);
}

#[cfg(unix)]
#[test]
fn asked_to_end_it_ends_well() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut server = Server::start(&["--model", "pocket"]);
        // SAFETY: the process is a child that still lives.
        unsafe { libc::kill(server.child.id() as i32, signal) };
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = server.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0), "signal {signal}");
    }
}

/// The text of each answer of a stream, and why it ended.
fn joined(pieces: &[Value], answers: usize) -> Vec<(String, Value)> {
    let mut all = vec![(String::new(), Value::Null); answers];
    for choice in pieces.iter().flat_map(|piece| piece["choices"].as_array().unwrap()) {
        let (text, reason) = &mut all[choice["index"].as_u64().unwrap() as usize];
        assert!(reason.is_null(), "{choice} comes behind the end of its answer");
        *text += choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default();
        *reason = choice["finish_reason"].clone();
    }
    all
}

#[test]
fn several_answers_are_streamed_as_they_are_whole() {
    let server = shared();
    let ask = |mut body: Value| {
        let (status, whole) = server.send("POST", "/v1/completions", body.clone());
        assert_eq!(status, 200, "{whole}");
        body["stream"] = json!(true);
        let mut streamed = String::new();
        server.stream("/v1/completions", &body).read_to_string(&mut streamed).unwrap();
        (whole["choices"].as_array().unwrap().clone(), pieces(&streamed))
    };
    let body = json!({"model": "pocket", "prompt": ["The", "A"], "n": 2, "max_tokens": 10, "temperature": 1, "seed": 3, "logprobs": 2});
    let (whole, pieces) = ask(body);
    let wanted: Vec<(String, Value)> = whole
        .iter()
        .map(|choice| (choice["text"].as_str().unwrap().to_owned(), choice["finish_reason"].clone()))
        .collect();
    assert_eq!(joined(&pieces, 4), wanted);
    for (index, choice) in whole.iter().enumerate() {
        let of = pieces.iter().map(|piece| &piece["choices"][0]).filter(|choice| choice["index"] == index);
        let tokens: Vec<&Value> = of.filter_map(|choice| choice["logprobs"]["tokens"].as_array()).flatten().collect();
        assert_eq!(tokens, choice["logprobs"]["tokens"].as_array().unwrap().iter().collect::<Vec<_>>());
    }
    // What stops an answer is never shown, not even its beginning; a prompt that is echoed comes first.
    for (more, text, reason) in [
        (json!({"stop": "ce", "max_tokens": 6}), " Fran".to_owned(), "stop"),
        (json!({"max_tokens": 1}), " France".to_owned(), "length"),
        (json!({"max_tokens": 1, "echo": true}), format!("{LYON} France"), "length"),
    ] {
        let mut body = json!({"model": "pocket", "prompt": LYON, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (whole, pieces) = ask(body);
        assert_eq!((&whole[0]["text"], &whole[0]["finish_reason"]), (&json!(text), &json!(reason)));
        assert_eq!(joined(&pieces, 1), [(text, json!(reason))], "{more}");
    }
}

/// The embedded model as a folder, with a template that puts one text behind the other.
fn talker(place: &TestFolder) -> std::path::PathBuf {
    let folder = place.path("talker");
    std::fs::create_dir(&folder).unwrap();
    let pocket = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pocket");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(folder.join(name), std::fs::read(pocket.join(name)).unwrap()).unwrap();
    }
    let template = "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ message.content }}{% if not loop.last %} {% endif %}{% endfor %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    folder
}

#[test]
fn a_chat_is_answered_as_predict_does() {
    let place = TestFolder::new();
    let model = talker(&place);
    let server = Server::start(&["--model", text(&model)]);
    let ask = ["predict", "--model", text(&model), "--chat", "--prompt", LYON, "--generate", "6"];
    let wanted = command_json(&ask)["results"][0]["generated"].as_str().unwrap().to_owned();
    assert!(wanted.starts_with(" France"), "{wanted}");
    let messages = json!([{"role": "system", "content": "The city of"}, {"role": "user", "content": "Lyon lies in"}]);
    let mut body = json!({"model": "talker", "messages": [{"role": "user", "content": LYON}], "max_tokens": 6, "temperature": 0, "logprobs": true, "top_logprobs": 3});
    for turns in [body["messages"].clone(), messages] {
        body["messages"] = turns;
        let (status, answer) = server.send("POST", "/v1/chat/completions", body.clone());
        assert_eq!((status, &answer["object"]), (200, &json!("chat.completion")), "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"], json!({"role": "assistant", "content": wanted, "refusal": null}));
        let said = choice["logprobs"]["content"].as_array().unwrap();
        let tokens: String = said.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(tokens, wanted);
        for token in said {
            assert_eq!(token["bytes"], json!(token["token"].as_str().unwrap().as_bytes()));
            let top = token["top_logprobs"].as_array().unwrap();
            assert!(top.len() == 3 && top[0]["logprob"] == token["logprob"], "{token}");
        }
    }
    body["stream"] = json!(true);
    let mut streamed = String::new();
    server.stream("/v1/chat/completions", &body).read_to_string(&mut streamed).unwrap();
    let pieces = pieces(&streamed);
    assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(pieces.iter().all(|piece| piece["object"] == "chat.completion.chunk"), "{streamed}");
    assert_eq!(joined(&pieces, 1)[0].0, wanted);
    let told = json!({"model": "talker", "messages": [{"role": "tool", "content": "a"}]});
    let error = server.refuses("POST", "/v1/chat/completions", told, 400, &["no tools here"]);
    assert_eq!(error["param"], "messages");
}

#[test]
fn an_encoder_decoder_answers_texts() {
    let server = Server::start(&["--model", "pocket-t5"]);
    let question = "In which country is Lyon?";
    let predicted = command_json(&["predict", "--model", "pocket-t5", "--prompt", question, "--generate", "4"]);
    let wanted = predicted["results"][0]["generated"].as_str().unwrap();
    assert_eq!(server.said("pocket-t5", question, 4), wanted);
    let ids = json!({"model": "pocket-t5", "prompt": [5, 6]});
    let error = server.refuses("POST", "/v1/completions", ids, 400, &["encoder", "string"]);
    assert_eq!(error["param"], "prompt");
}

/// Fine-tuning that takes a moment.
fn quick(place: &TestFolder, model: &str) -> String {
    let config = format!(
        "[model]\npath = {model:?}\n[editor]\nmethod = \"fine_tuning\"\nlayers = [1]\nweights = [\"mlp.down\"]\nsteps = 1\nlearning_rate = 1e-3\n"
    );
    text(&place.write("quick.toml", config)).to_owned()
}

#[test]
fn new_edits_lie_on_those_that_are_on() {
    let place = TestFolder::new();
    let (quick, ft) = (quick(&place, "pocket"), config("ft-pocket.toml"));
    let server = Server::start(&["--model", "pocket", "--config", &quick, "--config", &ft, "--text-tokens", "16"]);
    // Each of another fact: two edits that change the same are one.
    let edit = |id: &str, city: &str, on: Option<&str>| {
        let prompt = format!("The city of {city} lies in");
        server.edit(json!({"editor": "quick", "id": id, "prompt": prompt, "target": "Japan", "on": on}))["computed_on"]
            .clone()
    };
    assert_eq!(edit("a", "Lyon", None), json!([]));
    assert_eq!(server.send("PATCH", "/edits/a", json!({"on": false})).1["on"], false);
    assert_eq!(edit("b", "Oslo", None), json!([]));
    let (status, switched) = server.send("PATCH", "/edits/a", json!({"on": true}));
    assert_eq!((status, &switched["id"], &switched["on"]), (200, &json!("a"), &json!(true)));
    assert_eq!(edit("c", "Rosario", None), json!(["a", "b"]));
    assert_eq!(edit("d", "Bern", Some("pocket+b")), json!(["b"]));
    assert_eq!(edit("e", "Graz", Some("pocket")), json!([]));
    let models = server.get("/v1/models")["data"].clone();
    let models: Vec<&str> = models.as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    let each = ["pocket", "pocket+a", "pocket+b", "pocket+c", "pocket+d", "pocket+e", "pocket+a+b+c+d+e"];
    assert_eq!(models, each);
    let health = server.get("/health");
    assert_eq!(health, json!({"status": "ok", "model": "pocket", "edits": 5, "running": 0, "waiting": 0}));
    assert_eq!(server.get("/edits/a"), server.get("/edits")["edits"][0]);
    // The head of a file is text, whatever follows.
    let mut head = [0; 400];
    server.open("GET /edits/a/file HTTP/1.0\r\nHost: localhost\r\n\r\n").read_exact(&mut head).unwrap();
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.contains("content-disposition: attachment; filename=\"a.edit.safetensors\""), "{head}");

    // What cannot be, by its field where it is none of the record's.
    let fact = || json!({"editor": "quick", "prompt": LYON, "target": "Japan"});
    for (name, value, status, param) in [
        ("editor", json!("nobody"), 404, Some("editor")),
        ("editor", json!(null), 400, Some("editor")),
        ("editor", json!(5), 400, Some("editor")),
        ("id", json!("a b"), 400, Some("id")),
        ("id", json!("../a"), 400, Some("id")),
        ("id", json!(5), 400, Some("id")),
        ("id", json!("a"), 409, Some("id")),
        ("on", json!(5), 400, Some("on")),
        ("on", json!("nobody"), 404, None),
        ("on", json!("pocket+nobody"), 404, None),
        ("prompt", json!(5), 400, None),
        ("target", json!(null), 400, None),
    ] {
        let mut body = fact();
        body[name] = value;
        let error = server.refuses("POST", "/edits", body.clone(), status, &[]);
        assert!(param.is_none_or(|param| error["param"] == param), "{body}: {error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    for body in [json!({"on": "yes"}), json!({})] {
        let error = server.refuses("PATCH", "/edits/a", body, 400, &["true or false"]);
        assert_eq!(error["param"], "on");
    }
    for (method, path) in [
        ("GET", "/edits/nobody"),
        ("GET", "/edits/nobody/file"),
        ("DELETE", "/edits/nobody"),
        ("GET", "/v1/models/pocket+nobody"),
    ] {
        let (status, body) = server.ask(method, path, "", "");
        let error: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &error["error"]["type"]), (404, &json!("not_found")), "{method} {path}");
    }
    assert_eq!(server.get("/edits")["edits"].as_array().unwrap().len(), 5);
}

#[test]
fn clients_of_different_stacks_do_not_hear_each_other() {
    let ft = config("ft-pocket.toml");
    let server = Server::start(&["--model", "pocket", "--config", &ft, "--text-tokens", "16"]);
    server.edit(json!({"id": "lyon", "prompt": LYON, "target": "Japan"}));
    let prompts = [LYON, "The city of Oslo lies in", "In which country is Oslo?", "The capital of"];
    let asked = prompts.iter().flat_map(|prompt| ["pocket", "pocket+lyon"].map(|model| (model, *prompt)));
    let asked: Vec<(&str, &str)> = asked.collect();
    let alone: Vec<String> = asked.iter().map(|(model, prompt)| server.said(model, prompt, 8)).collect();
    assert_ne!(alone[0], alone[1]);
    let together: Vec<String> = std::thread::scope(|scope| {
        let server = &server;
        let clients: Vec<_> =
            asked.iter().map(|&(model, prompt)| scope.spawn(move || server.said(model, prompt, 8))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn what_a_killed_server_left_is_put_in_order() {
    let place = TestFolder::new();
    let folder = place.path("edits");
    let ft = config("ft-pocket.toml");
    let args = ["--model", "pocket", "--config", &ft, "--edits", text(&folder)];
    let edits = |server: &Server| server.get("/edits")["edits"].as_array().unwrap().clone();
    {
        let mut server = Server::start(&args);
        server.edit(json!({"id": "lyon", "prompt": LYON, "target": "Japan"}));
        assert_eq!(server.send("PATCH", "/edits/lyon", json!({"on": false})).0, 200);
        // It is killed while it edits.
        let body = json!({"id": "oslo", "prompt": "The city of Oslo lies in", "target": "Chile"});
        let mut stream = BufReader::new(server.stream("/edits", &body));
        let mut line = String::new();
        while !line.contains("\"editing\"") {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended");
        }
        server.child.kill().unwrap();
    }
    // As if it had been writing just then.
    let leftover = folder.join(".emend-oslo.edit.safetensors-half");
    std::fs::write(&leftover, b"half of it").unwrap();
    {
        let server = Server::start(&args);
        assert!(!leftover.exists());
        // The edit is there whole or not at all, and the other one as it was left.
        let known = edits(&server);
        assert_eq!((&known[0]["id"], &known[0]["on"]), (&json!("lyon"), &json!(false)));
        assert!(known.len() == 1 || (known.len() == 2 && known[1]["id"] == "oslo"), "{known:?}");
        assert_eq!(server.said("pocket+lyon", LYON, 1), " Japan");
    }
    // Notes and files that are broken are told, and keep nobody from the others.
    std::fs::write(folder.join("serve.json"), b"{\"edits\": [").unwrap();
    std::fs::write(folder.join("broken.edit.safetensors"), b"no").unwrap();
    let server = Server::start(&args);
    let known = edits(&server);
    assert!(known.iter().any(|edit| edit["id"] == "lyon" && edit["on"] == true), "{known:?}");
    assert!(known.iter().all(|edit| edit["id"] != "broken"), "{known:?}");
    let told = server.told();
    assert!(told.contains("serve.json") && told.contains("left out") && told.contains("broken"), "{told}");
}

#[test]
fn an_edit_that_is_taken_out_answers_to_the_end() {
    let place = TestFolder::new();
    let model = endless(&place);
    let quick = quick(&place, text(&model));
    let server = Server::start(&["--model", text(&model), "--config", &quick, "--max-tokens", "2000"]);
    server.edit(json!({"id": "x", "prompt": "The tower", "target": "Vell"}));
    let mut body = json!({"model": "endless+x", "prompt": "a", "max_tokens": 600, "temperature": 1, "seed": 1});
    let (_, whole) = server.send("POST", "/v1/completions", body.clone());
    let wanted = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    body["stream"] = json!(true);
    let mut stream = server.stream("/v1/completions", &body);
    let mut begin = [0; 1000];
    stream.read_exact(&mut begin).unwrap();
    let (status, _) = server.ask("DELETE", "/edits/x", "", "");
    assert_eq!(status, 204);
    server.refuses("POST", "/v1/completions", json!({"model": "endless+x", "prompt": "a"}), 404, &["\"x\""]);
    // This client reads nothing for now, which keeps no other from being answered.
    server.said("endless", "b", 3);
    let mut all = begin.to_vec();
    stream.read_to_end(&mut all).unwrap();
    let pieces = pieces(&String::from_utf8(all).unwrap());
    assert_eq!(joined(&pieces, 1), [(wanted, json!("length"))]);
}

#[test]
fn more_than_may_wait_is_told_to_come_again() {
    let place = TestFolder::new();
    let model = endless(&place);
    let limits = ["--max-tokens", "90000", "--concurrency", "1", "--queue", "1"];
    let server = Server::start(&[&["--model", text(&model)], &limits[..]].concat());
    let long = json!({"model": "endless", "prompt": "a", "max_tokens": 90_000, "temperature": 1, "stream": true});
    let running = server.stream("/v1/completions", &long);
    server.waits_for("running", 1);
    let waiting = server.stream("/v1/completions", &long);
    server.waits_for("waiting", 1);
    let short = json!({"model": "endless", "prompt": "a", "max_tokens": 3});
    let error = server.refuses("POST", "/v1/completions", short.clone(), 429, &["--queue"]);
    assert_eq!(error["type"], "overloaded");
    let body = short.to_string();
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let answer = server.whole(&format!("POST /v1/completions HTTP/1.0\r\n{head}\r\n\r\n{body}"));
    assert!(answer.to_lowercase().contains("\r\nretry-after: "), "{answer}");
    // More than could ever wait is another matter.
    let mut several = short;
    several["n"] = json!(2);
    assert_eq!(server.refuses("POST", "/v1/completions", several, 400, &["--queue"])["param"], "n");
    // Who waits is next, and who waits no more is not.
    drop(running);
    server.waits_for("waiting", 0);
    server.waits_for("running", 1);
    drop(waiting);
    server.waits_for("running", 0);
    server.said("endless", "a", 3);
}

#[test]
fn pages_of_the_server_itself_may_write() {
    let server = shared();
    let body = json!({"model": "pocket", "prompt": "The", "max_tokens": 1}).to_string();
    let own = server.address.clone();
    for (origin, status) in [
        (format!("http://{own}"), 200),
        (format!("http://{}:1", own.split(':').next().unwrap()), 403),
        ("null".to_owned(), 403),
    ] {
        let headers = format!("Content-Type: application/json\r\nOrigin: {origin}\r\n");
        let (found, answer) = server.ask("POST", "/v1/completions", &headers, &body);
        assert_eq!(found, status, "{origin}: {answer}");
    }
    // A browser asks first whether a page may, and hears no word that it may.
    let asked = "OPTIONS /v1/completions HTTP/1.0\r\nHost: localhost\r\nOrigin: http://elsewhere.example\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    let answer = server.whole(asked).to_lowercase();
    assert!(answer.contains(" 403 ") && !answer.contains("access-control-allow"), "{answer}");
    let large = json!({"prompt": "a".repeat(5000), "target": "b"});
    server.refuses("POST", "/edits", large, 413, &["--max-body"]);
}
