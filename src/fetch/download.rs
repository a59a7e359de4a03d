//! One file from one address: resumed when broken off, checked, and only then under its own name.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use ureq::http::Response;
use ureq::{Agent, Body};

use super::error::one_line;
use super::http::{Patience, Trouble, agent, get, header};
use super::part::{PartialFile, sha256_of};
use super::{FetchError, FetchSettings, Token};

/// A file to bring.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// Its address.
    pub url: &'a str,
    /// Where it goes. Beside it `.part`, `.part.tag` and `.lock` stand while it is on its way.
    pub target: &'a Path,
    /// What to call it in a progress bar.
    pub label: &'a str,
    /// Sent to this address's host only.
    pub token: Option<&'a Token>,
    /// Its length in bytes, where that is known beforehand.
    pub length: Option<u64>,
    /// Its SHA-256 in hexadecimal, where that is known beforehand.
    pub sha256: Option<&'a str>,
}

/// How far a download is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The download's label.
    pub file: &'a str,
    /// Bytes here, those of an earlier try included.
    pub done: u64,
    /// Bytes in all, where the server says.
    pub total: Option<u64>,
}

/// Called at every step; `Break` stops the download and leaves its part for the next time.
pub type OnProgress<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;

/// The callback of those who do not want to know.
pub fn silent(_: &Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Brings a file to its place and gives its SHA-256. A target that is there already is not fetched again, only hashed.
///
/// What came of an earlier try is gone on with (`Range`) when it can only be part of the same file: its checksum is
/// known, or the server's mark (`ETag`, else `Last-Modified`) still holds (`If-Range`). Otherwise, or when the server
/// cannot do ranges, it begins anew.
///
/// # Errors
/// No network, a refusal, a connection that keeps breaking, a wrong length, a wrong checksum (the part is then
/// removed), a full disk, a place that cannot be written, another process at the same file, or a stop through
/// `on_progress`.
pub fn download(
    want: &Download<'_>,
    settings: &FetchSettings,
    on_progress: &mut OnProgress<'_>,
) -> Result<String, FetchError> {
    let mut part = PartialFile::open(want.target)?;
    // Looked for under the lock: another process may have finished it a moment ago.
    if want.target.exists() {
        part.discard();
        return sha256_of(want.target);
    }
    match complete(want, settings, &mut part, on_progress) {
        Ok(sha256) => part.finish().map(|()| sha256),
        Err(error) => {
            // Nothing that is worth going on from needs no files beside the target either.
            if part.len == 0 || matches!(error, FetchError::Checksum { .. }) {
                part.discard();
            }
            Err(error)
        }
    }
}

/// Asks until the part is whole and right, and gives its SHA-256.
fn complete(
    want: &Download<'_>,
    settings: &FetchSettings,
    part: &mut PartialFile,
    on_progress: &mut OnProgress<'_>,
) -> Result<String, FetchError> {
    let agent = agent(settings);
    let mut patience = Patience::new(settings, part.len);
    let mut second_chance = part.len > 0;
    loop {
        if let Err(trouble) = attempt(want, &agent, part, &mut patience, on_progress) {
            patience.after(trouble, part.len)?;
            continue;
        }
        match check(want, part) {
            Ok(sha256) => return Ok(sha256),
            // The beginning was there before we came and may be what is wrong: once, all of it again.
            Err(_) if second_chance => {
                second_chance = false;
                part.restart(None)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// One request, read to its end. `Ok` means that all the server has is here.
fn attempt(
    want: &Download<'_>,
    agent: &Agent,
    part: &mut PartialFile,
    patience: &mut Patience<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<(), Trouble> {
    let known = want.sha256.is_some();
    if known && part.len > 0 && want.length == Some(part.len) {
        return Ok(());
    }
    let mut headers = Vec::new();
    if part.len > 0 && (known || part.tag.is_some()) && want.length.is_none_or(|length| part.len < length) {
        headers.push(("Range", format!("bytes={}-", part.len)));
        if let (false, Some(tag)) = (known, &part.tag) {
            headers.push(("If-Range", tag.clone()));
        }
    }
    let welcome: &[u16] = if headers.is_empty() { &[200] } else { &[200, 206, 416] };
    let response = get(agent, want.url, want.token, &headers, welcome)?;
    patience.answered = true;

    let broken = |reason: String| Trouble::Passing(FetchError::Network { url: want.url.to_owned(), reason });
    let total = match (response.status().as_u16(), content_range(&response)) {
        (206, Some((Some(start), total))) if start == part.len => {
            fits(want, total)?;
            total
        }
        (416, Some((None, total))) if total == Some(part.len) => return Ok(()),
        (200, _) => {
            // A page in place of the file (a proxy's login, say) must not cost what is here already.
            let total = response.body().content_length();
            fits(want, total)?;
            part.restart(tag_of(&response))?;
            total
        }
        // The server's range is not the one asked for, so the next try begins anew.
        _ => {
            part.restart(None)?;
            return Err(broken("the server sent another range than was asked for".into()));
        }
    };
    let mut tell = |done: u64| match on_progress(&Progress { file: want.label, done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(FetchError::Interrupted { url: want.url.to_owned() }),
    };
    tell(part.len)?;
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                part.append(&buffer[..n])?;
                // A server that does not say how much it has could otherwise fill the disk.
                if want.length.is_some_and(|length| part.len > length) {
                    fits(want, Some(part.len))?;
                }
                tell(part.len)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(format!("the connection broke off ({})", one_line(&error.to_string())))),
        }
    }
    match total {
        Some(total) if part.len < total => {
            Err(broken(format!("the connection broke off at {} of {total} bytes", part.len)))
        }
        _ => Ok(()),
    }
}

/// The part's SHA-256, if that and its length are what they should be.
fn check(want: &Download<'_>, part: &PartialFile) -> Result<String, FetchError> {
    fits(want, Some(part.len))?;
    let found = part.sha256();
    match want.sha256 {
        Some(expected) if !expected.eq_ignore_ascii_case(&found) => Err(FetchError::Checksum {
            path: want.target.into(),
            expected: expected.to_owned(),
            found,
            advice: format!("what came from {} was thrown away; it may have changed there, try again later", want.url),
        }),
        _ => Ok(found),
    }
}

/// Whether a length, where it is known, is the expected one, where there is one.
fn fits(want: &Download<'_>, length: Option<u64>) -> Result<(), FetchError> {
    match (want.length, length) {
        (Some(expected), Some(found)) if expected != found => {
            let reason = format!("{found} bytes long, expected {expected}");
            Err(FetchError::Content { url: want.url.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// What may stand in `If-Range`: a strong ETag, else the date of the last change.
fn tag_of(response: &Response<Body>) -> Option<String> {
    header(response, "etag").filter(|tag| !tag.starts_with("W/")).or_else(|| header(response, "last-modified"))
}

/// `bytes 5-9/10` is (5, 10), `bytes */10` is (none, 10).
fn content_range(response: &Response<Body>) -> Option<(Option<u64>, Option<u64>)> {
    let text = header(response, "content-range")?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some((start, total.trim().parse().ok()))
}
