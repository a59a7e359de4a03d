//! What can go wrong, one line each.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Each message is one line that says what, where, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or a configuration file asks for something that cannot be.
    #[error("{0}")]
    Config(String),
    /// A request, a record or a prompt that the model cannot take.
    #[error("{0}")]
    Input(String),
    /// One of several requests or records, of which the others may be right.
    #[error("record {number}: {message}")]
    Record {
        /// Its place in the list.
        number: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A file that is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The operating system's word on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An edit or an archive made on one base and used on another.
    #[error(
        "{what} was made on base {made_on}, this model is {model}; use that base, or --allow-other-base to go on all the same"
    )]
    OtherBase {
        /// The edit or archive.
        what: String,
        /// The fingerprint it names.
        made_on: String,
        /// The fingerprint of the model at hand.
        model: String,
    },
    /// A file of records that cannot be read.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// A training that cannot go on.
    #[error("{0}")]
    Training(String),
    /// Ctrl-C: what can be kept was kept.
    #[error("interrupted{0}")]
    Interrupted(String),
}

impl Error {
    /// A file that is not what it should be.
    pub fn file(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Error::File { path: path.as_ref().to_owned(), message: message.to_string() }
    }

    /// For `map_err` on a call of the operating system about `path`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { path, source }
    }

    /// The same error with the number of the record it is about.
    pub fn of_record(self, number: usize) -> Self {
        match self {
            Error::Input(message) => Error::Record { number, message },
            Error::Record { .. } => Error::Record { number, message: self.to_string() },
            other => other,
        }
    }

    /// The same error where there is one record alone, whose number says nothing.
    pub fn without_number(self) -> Self {
        match self {
            Error::Record { message, .. } => Error::Input(message),
            other => other,
        }
    }

    /// The exit code of the process: 1 failed, 2 the command line or a config is wrong, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 2,
            Error::Interrupted(_) => 130,
            _ => 1,
        }
    }
}
