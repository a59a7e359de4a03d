//! The unfinished file: `FILE.part` beside the target, what it was a part of, and its checksum so far.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::FetchError;

/// `FILE.part`, held by one process at a time through `FILE.lock`.
pub(super) struct PartialFile {
    target: PathBuf,
    path: PathBuf,
    /// `FILE.part.tag` holds the server's mark (ETag or date) of the version that the part belongs to.
    tag_path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    file: File,
    hash: Sha256,
    /// Bytes so far.
    pub(super) len: u64,
    pub(super) tag: Option<String>,
}

impl PartialFile {
    /// Opens or creates the part of `target`; what is there already is kept and hashed.
    pub(super) fn open(target: &Path) -> Result<Self, FetchError> {
        let (path, tag_path, lock_path) =
            (beside(target, ".part"), beside(target, ".part.tag"), beside(target, ".lock"));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(|error| FetchError::file("create the folder", folder, &error))?;
        }
        let open = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let lock = open(&lock_path).map_err(|error| FetchError::file("write", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy { path: target.into() }),
            // Some network file systems know no locks; the checksum still stands guard there.
            Err(TryLockError::Error(error)) => tracing::debug!("no lock on {}: {error}", lock_path.display()),
        }
        let mut file = open(&path).map_err(|error| FetchError::file("write", &path, &error))?;
        let mut hash = Sha256::new();
        let len = hash_all(&mut file, &mut hash).map_err(|error| FetchError::file("read", &path, &error))?;
        let tag = fs::read_to_string(&tag_path).ok().filter(|tag| !tag.is_empty());
        Ok(PartialFile { target: target.into(), path, tag_path, lock_path, _lock: lock, file, hash, len, tag })
    }

    /// Forgets all that came, and notes which version comes now.
    pub(super) fn restart(&mut self, tag: Option<String>) -> Result<(), FetchError> {
        // The old mark goes first: a part must never carry the mark of another version.
        match fs::remove_file(&self.tag_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FetchError::file("remove", &self.tag_path, &error));
            }
            _ => {}
        }
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|error| FetchError::file("write", &self.path, &error))?;
        (self.hash, self.len) = (Sha256::new(), 0);
        if let Some(tag) = &tag {
            fs::write(&self.tag_path, tag).map_err(|error| FetchError::file("write", &self.tag_path, &error))?;
        }
        self.tag = tag;
        Ok(())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(bytes).map_err(|error| FetchError::file("write", &self.path, &error))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// The part is whole and right: it takes the target's name.
    pub(super) fn finish(self) -> Result<(), FetchError> {
        self.file.sync_all().map_err(|error| FetchError::file("write", &self.path, &error))?;
        fs::rename(&self.path, &self.target).map_err(|error| FetchError::file("write", &self.target, &error))?;
        self.tidy();
        Ok(())
    }

    /// The part is wrong: nothing of it stays.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.path);
        self.tidy();
    }

    fn tidy(&self) {
        // Leftovers do no harm, so a failure here is none.
        let _ = fs::remove_file(&self.tag_path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn sha256_of(path: &Path) -> Result<String, FetchError> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| hash_all(&mut file, &mut hash))
        .map_err(|error| FetchError::file("read", path, &error))?;
    Ok(hex(&hash.finalize()))
}

/// Writes a small file beside its place and renames it, so that it is never seen half written.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), FetchError> {
    let new = beside(path, ".new");
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| File::create(&new))
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| FetchError::file("write", path, &error))
}

fn hash_all(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 18];
    let mut len = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(len),
            n => {
                hash.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
