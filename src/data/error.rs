//! What can be wrong with a file of records.

use std::path::PathBuf;

use thiserror::Error;

/// A file of records that cannot be used: one line with the place, what is wrong there, and what would be right.
///
/// Records are counted from 0, as they are when their index serves as their id.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A folder or a device: reading one may never end.
    #[error("{}: is not a regular file; name a file of records (JSON, JSONL, CSV, TSV)", .file.display())]
    NotAFile {
        /// The path.
        file: PathBuf,
    },
    /// The bytes are not UTF-8.
    #[error("{}: byte {byte} is not UTF-8; save the file as UTF-8", .file.display())]
    NotUtf8 {
        /// The file.
        file: PathBuf,
        /// Offset of the first byte that is wrong, from 0.
        byte: usize,
    },
    /// There is no record in the file.
    #[error("{}: holds no records; {EXPECTED}", .file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The text is not JSON, or an object names a key twice.
    #[error("{}: line {line}, column {column}: not JSON: {problem}", .file.display())]
    NotJson {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },
    /// A CSV or TSV table that is broken.
    #[error("{}: line {line}: {problem}", .file.display())]
    NotTable {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// JSON, but neither an array nor objects.
    #[error("{}: holds {found}; {EXPECTED}", .file.display())]
    NotRecords {
        /// The file.
        file: PathBuf,
        /// What stands there instead.
        found: &'static str,
    },
    /// The keys of the first record belong to no known form.
    #[error("{}: record 0 has no known form: its keys are {keys}; known forms are {forms}", .file.display())]
    UnknownForm {
        /// The file.
        file: PathBuf,
        /// The keys found.
        keys: String,
        /// Every known form with its keys.
        forms: String,
    },
    /// One record is wrong.
    #[error("{}: record {record}{}: {problem}", .file.display(), in_parentheses(.id))]
    Record {
        /// The file.
        file: PathBuf,
        /// Index of the record, from 0.
        record: usize,
        /// Its own id, where it has one.
        id: Option<String>,
        /// The key, what is wrong with it, and what would be right.
        problem: String,
    },
}

const EXPECTED: &str =
    "a file of records is a JSON array of objects, one object a line, or a CSV or TSV table with a header";

fn in_parentheses(id: &Option<String>) -> String {
    id.as_ref().map_or_else(String::new, |id| format!(" (id {})", id.escape_debug()))
}
