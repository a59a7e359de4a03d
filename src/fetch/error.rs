//! What can go wrong between here and a file elsewhere, each in one line: what, where, and what would be right.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Why a model or a data set could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A model's name led nowhere; `hub` says why the hub could not help.
    #[error("no model `{name}`: no such folder, no folder of that name in {}, and {hub}", .models.display())]
    NoModel {
        /// The name as it was given.
        name: String,
        /// The folder of models that was looked in.
        models: PathBuf,
        /// What came of asking the hub, as the end of the sentence.
        hub: String,
    },
    /// The hub has the model but wants its terms accepted, or a token that may read it.
    #[error(
        "`{name}` is gated: accept its terms at {page} and set HF_TOKEN to a token of that account ({})",
        if *.token { "the token in use was refused" } else { "no token is set" }
    )]
    Gated {
        /// The model's hub id.
        name: String,
        /// The model's page.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub has the repository, but not in a form that can be used.
    #[error("`{name}` on {endpoint} cannot be used: {reason}")]
    Unusable {
        /// The model's hub id.
        name: String,
        /// The hub.
        endpoint: String,
        /// What is missing or wrong, and what would be right.
        reason: String,
    },
    /// No data set has this name.
    #[error("no data set `{name}`: the named sets are {known}")]
    UnknownSet {
        /// The name as it was given.
        name: String,
        /// All names, with commas.
        known: String,
    },
    /// A named data set that has not been brought into the cache.
    #[error("the data set `{name}` is not in the cache ({} is not there): run `emend fetch {name}`", .path.display())]
    NotFetched {
        /// The data set, or the file of it.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// No connection, or one that kept breaking.
    #[error("cannot get {url}: {reason}")]
    Network {
        /// The address.
        url: String,
        /// What happened, and what to look at.
        reason: String,
    },
    /// The server answered, but not with the file.
    #[error("cannot get {url}: the server answered {status} ({})", explain(*.status))]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The hub's own word for it (`X-Error-Code`), where it gave one.
        code: Option<String>,
    },
    /// The file does not have the SHA-256 it should have.
    #[error("{} is not the file it should be: SHA-256 {found}, expected {expected}; {advice}", .path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What its SHA-256 should be.
        expected: String,
        /// What it is.
        found: String,
        /// What was done, and what to do.
        advice: String,
    },
    /// What came is not what its name says.
    #[error("{url} is not what it should be: {reason}")]
    Content {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No room for the file. What has come so far stays, and the next try goes on from there.
    #[error("the disk is full at {}: make room (or choose another place with {variable}) and run it again, it goes on from here", .path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// The environment variable that moves the cache.
        variable: &'static str,
    },
    /// A file or folder of the cache cannot be read or written.
    #[error("cannot {verb} {}: {reason}", .path.display())]
    File {
        /// "read", "write", "create", ...
        verb: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// Another process is bringing the same file.
    #[error("another process is downloading {}: wait for it and run this again", .path.display())]
    Busy {
        /// The file both want.
        path: PathBuf,
    },
    /// The progress callback asked to stop. What has come so far stays.
    #[error("interrupted while downloading {url}: run it again, it goes on from here")]
    Interrupted {
        /// The address.
        url: String,
    },
}

impl FetchError {
    /// A file operation that failed; a full disk is told apart from the rest.
    pub(crate) fn file(verb: &'static str, path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                FetchError::DiskFull { path: path.into(), variable: "EMEND_CACHE or HF_HOME" }
            }
            _ => FetchError::File { verb, path: path.into(), reason: one_line(&error.to_string()) },
        }
    }
}

/// Servers and systems may answer in several lines; an error has one.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn explain(status: u16) -> &'static str {
    match status {
        401 | 403 => "access refused",
        404 | 410 => "there is no such file; it may have moved",
        407 => "the proxy wants a password: see HTTPS_PROXY",
        429 => "too many requests; try again later",
        500..=599 => "the server is in trouble; try again later",
        _ => "neither the file nor a known refusal",
    }
}

impl From<FetchError> for Error {
    fn from(error: FetchError) -> Self {
        match error {
            // A name that is on no list is a slip on the command line or in a config.
            FetchError::UnknownSet { .. } => Error::Config(error.to_string()),
            FetchError::Interrupted { url } => {
                Error::Interrupted(format!(" while downloading {url}: run it again, it goes on from here"))
            }
            other => Error::Input(other.to_string()),
        }
    }
}
