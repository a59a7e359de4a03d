//! A small HTTP server on the loopback for tests: it answers as it is told, breaks off where it is told, and remembers.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::FetchSettings;

/// What a client asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What to answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Reply { status, ..Reply::default() }
    }

    pub(crate) fn whole(body: &[u8]) -> Self {
        Reply { status: 200, body: body.to_vec(), ..Reply::default() }
    }

    /// The whole, or the range that was asked for, as a good server does; `etag` goes along and decides `If-Range`.
    pub(crate) fn ranged(request: &Request, body: &[u8], etag: &str) -> Self {
        let start = request
            .header("range")
            .filter(|_| request.header("if-range").is_none_or(|tag| tag == etag))
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let reply = match start {
            None => Reply::whole(body),
            Some(start) if start >= body.len() => {
                Reply::status(416).with("Content-Range", &format!("bytes */{}", body.len()))
            }
            Some(start) => Reply { status: 206, body: body[start..].to_vec(), ..Reply::default() }
                .with("Content-Range", &format!("bytes {start}-{}/{}", body.len() - 1, body.len())),
        };
        reply.with("ETag", etag)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Promises the whole body and breaks off after `bytes`.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

/// The running server. It ends with the test's process.
pub(crate) struct Server {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` gets each request and the number of those before it.
    pub(crate) fn start(answer: impl Fn(&Request, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                let before = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                // A client may hang up first: that is its right.
                let _ = write(&mut stream, &answer(&request, before));
            }
        });
        Server { url, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|request| request.path).collect()
    }
}

/// Settings that keep all in `folder`, ask nobody but `url`, and lose no time.
pub(crate) fn settings(folder: &Path, url: &str) -> FetchSettings {
    FetchSettings {
        cache: folder.join("emend"),
        models: folder.join("models"),
        hub_cache: folder.join("hub"),
        endpoint: url.to_owned(),
        token: None,
        offline: false,
        data_url: Some(url.to_owned()),
        retries: 2,
        backoff: Duration::from_millis(1),
        timeout: Duration::from_secs(5),
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Some(Request { path, headers })
}

fn write(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} Test\r\nContent-Length: {}\r\nConnection: close\r\n", reply.status, reply.body.len())?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])
}
