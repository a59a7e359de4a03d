//! One way to ask a server, and one idea of which failures are worth another try.

use std::io::{ErrorKind, Read};
use std::thread::sleep;

use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::error::one_line;
use super::{FetchError, FetchSettings, Token};

/// A failure, and whether to try again.
pub(super) enum Trouble {
    /// Nothing will change by asking again.
    Final(FetchError),
    /// The connection broke or the server is busy.
    Passing(FetchError),
    /// There is no way to the server at all: worth another try only if there was one before.
    NoWay(FetchError),
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Trouble::Final(error)
    }
}

pub(super) fn agent(settings: &FetchSettings) -> Agent {
    Agent::config_builder()
        .user_agent(concat!("emend/", env!("CARGO_PKG_VERSION")))
        // Statuses are ours to read; a token goes along to the same host only, never to the storage behind it.
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(settings.timeout))
        .timeout_recv_response(Some(settings.timeout))
        .timeout_per_read(Some(settings.timeout))
        .build()
        .into()
}

/// Asks for `url`. Any status the caller did not name in `welcome` is trouble.
pub(super) fn get(
    agent: &Agent,
    url: &str,
    token: Option<&Token>,
    headers: &[(&str, String)],
    welcome: &[u16],
) -> Result<Response<Body>, Trouble> {
    // Ranges and lengths count the bytes of the file itself, so nothing may be compressed on the way.
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if let Some(token) = token {
        request = request.header("Authorization", token.bearer());
    }
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let response = request.call().map_err(|error| no_answer(url, error))?;
    let status = response.status().as_u16();
    if welcome.contains(&status) {
        return Ok(response);
    }
    let code = header(&response, "x-error-code");
    let error = FetchError::Status { url: url.to_owned(), status, code };
    Err(match status {
        408 | 425 | 429 | 500 | 502..=504 => Trouble::Passing(error),
        _ => Trouble::Final(error),
    })
}

/// A header's text, where it is there and readable.
pub(super) fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn no_answer(url: &str, error: ureq::Error) -> Trouble {
    use ureq::Error::{BadUri, ConnectProxyFailed, ConnectionFailed, HostNotFound, Http, InvalidProxyUrl, Io, Timeout};
    let network = |reason: String| FetchError::Network { url: url.to_owned(), reason };
    match error {
        HostNotFound => Trouble::NoWay(network("the host's name cannot be resolved; is there a network?".into())),
        ConnectionFailed => Trouble::NoWay(network("no connection; is there a network, or a proxy to set?".into())),
        Io(error) if is_breakage(error.kind()) => Trouble::Passing(network(one_line(&error.to_string()))),
        // What is left is that the name leads nowhere or nobody listens there.
        Io(error) => {
            Trouble::NoWay(network(format!("{}; is there a network, or a proxy to set?", one_line(&error.to_string()))))
        }
        Timeout(_) => Trouble::Passing(network("the server was silent for too long".into())),
        BadUri(_) | Http(_) => {
            Trouble::Final(network("this is no proper web address (or the token has odd characters)".into()))
        }
        InvalidProxyUrl | ConnectProxyFailed(_) => {
            Trouble::Final(network("the proxy does not work: see HTTPS_PROXY".into()))
        }
        other => Trouble::Final(network(one_line(&other.to_string()))),
    }
}

/// Whether there was a connection that went bad.
fn is_breakage(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, UnexpectedEof, WouldBlock};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | TimedOut | UnexpectedEof | WouldBlock
    )
}

/// Counts failures in a row, and waits longer after each.
pub(super) struct Patience<'a> {
    settings: &'a FetchSettings,
    failures: u32,
    best: u64,
    pub(super) answered: bool,
}

impl<'a> Patience<'a> {
    pub(super) fn new(settings: &'a FetchSettings, already: u64) -> Self {
        Patience { settings, failures: 0, best: already, answered: false }
    }

    /// Waits before another try, or gives the error back when there should be none. `reached` is how many bytes there
    /// are by now: a connection that breaks often but gains something each time is never given up.
    pub(super) fn after(&mut self, trouble: Trouble, reached: u64) -> Result<(), FetchError> {
        if reached > self.best {
            (self.best, self.failures) = (reached, 0);
        }
        let error = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::NoWay(error) if !self.answered => return Err(error),
            Trouble::NoWay(error) | Trouble::Passing(error) => error,
        };
        if self.failures >= self.settings.retries {
            return Err(error);
        }
        tracing::debug!("{error}; trying again");
        sleep(self.settings.backoff * 2_u32.pow(self.failures.min(4)));
        self.failures += 1;
        Ok(())
    }
}

/// A short text from `url`, tried again as a download would be.
///
/// # Errors
/// When it cannot be had, or is longer than `limit` bytes, or is not UTF-8.
pub(crate) fn get_text(
    url: &str,
    token: Option<&Token>,
    settings: &FetchSettings,
    limit: u64,
) -> Result<String, FetchError> {
    let agent = agent(settings);
    let mut patience = Patience::new(settings, 0);
    loop {
        let trouble = match get(&agent, url, token, &[], &[200]) {
            Err(trouble) => trouble,
            Ok(response) => {
                let mut text = Vec::new();
                match response.into_body().into_reader().take(limit + 1).read_to_end(&mut text) {
                    Err(error) => Trouble::Passing(FetchError::Network {
                        url: url.to_owned(),
                        reason: one_line(&error.to_string()),
                    }),
                    Ok(_) if text.len() as u64 > limit => {
                        return Err(FetchError::Content {
                            url: url.to_owned(),
                            reason: format!("longer than {limit} bytes"),
                        });
                    }
                    Ok(_) => {
                        return String::from_utf8(text)
                            .map_err(|_| FetchError::Content { url: url.to_owned(), reason: "not UTF-8".into() });
                    }
                }
            }
        };
        patience.after(trouble, 0)?;
    }
}
