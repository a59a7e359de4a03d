//! Files that appear whole or not at all.

use std::fs;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Writes beside the target, flushes to the disk, and renames: what was there before survives until the new file is whole.
///
/// # Errors
/// A folder that cannot be written, a full disk.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    write_by(path, |temporary| fs::write(temporary, contents).map_err(Error::io(path)))
}

/// The same for contents that `make` puts into the file whose path it is given.
///
/// # Errors
/// A folder that cannot be written, and what `make` says.
pub fn write_by(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let temporary = tempfile::Builder::new().prefix(&prefix(path)).tempfile_in(folder).map_err(Error::io(folder))?;
    let temporary = temporary.into_temp_path();
    make(&temporary)?;
    // Opened anew: `make` may have put another file under this name, as safetensors does.
    let made = fs::OpenOptions::new().append(true).open(&temporary).map_err(Error::io(path))?;
    made.sync_all().map_err(Error::io(path))?;
    // A temporary file is private; the result is as readable as the one before it, or as any other file.
    match fs::metadata(path) {
        Ok(known) => made.set_permissions(known.permissions()).map_err(Error::io(path))?,
        Err(_) => make_readable(&temporary, 0o644)?,
    }
    drop(made);
    temporary.persist(path).map_err(|error| Error::Io { path: path.to_owned(), source: error.error })
}

/// Gives a file or folder the permissions of `mode`, where the system has such.
///
/// # Errors
/// What the system says.
pub fn make_readable(path: &Path, mode: u32) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io(path))?;
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
    Ok(())
}

/// A second name for a file, or a copy of it where the file system has no second names.
///
/// # Errors
/// A folder that cannot be written.
pub fn link(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    write(to, &fs::read(from).map_err(Error::io(from))?)
}

/// Makes the names in a folder survive a loss of power.
///
/// # Errors
/// A folder that cannot be opened.
pub fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))?;
    Ok(())
}

/// Makes a folder and sees that a file can be written there, so that hours of work do not end at a closed door.
///
/// # Errors
/// A folder that cannot be made or written.
pub fn check_writable(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    tempfile::Builder::new().prefix(".emend-").tempfile_in(folder).map_err(Error::io(folder))?;
    Ok(())
}

/// Sees that a file can be written here; one that is there is going to be replaced.
///
/// # Errors
/// A directory; a folder that cannot be made or written.
pub fn check_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "a directory, not a file; give the name of a file"));
    }
    check_writable(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Keeps other processes out of a folder as long as the file lives; `busy` is said to them.
///
/// # Errors
/// Another process holds the folder; a folder that cannot be made or written.
pub fn lock(folder: &Path, busy: &str) -> Result<fs::File> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    lock_file(&folder.join("lock"), fs::File::try_lock, busy)
}

/// Lets other processes that ask for a part too into a folder, as long as the files live, but none that want the whole, nor the same part.
///
/// # Errors
/// As [`lock`].
pub fn lock_part(folder: &Path, part: &str, busy: &str) -> Result<[fs::File; 2]> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let whole = lock_file(&folder.join("lock"), fs::File::try_lock_shared, busy)?;
    Ok([whole, lock_file(&folder.join(format!("lock-{part}")), fs::File::try_lock, busy)?])
}

fn lock_file(
    path: &Path,
    lock: impl Fn(&fs::File) -> std::result::Result<(), fs::TryLockError>,
    busy: &str,
) -> Result<fs::File> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(Error::io(path))?;
    match lock(&file) {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::file(path, busy)),
        Err(fs::TryLockError::Error(error)) => Err(Error::io(path)(error)),
    }
}

/// How the temporary files of a target begin.
fn prefix(path: &Path) -> String {
    format!(".emend-{}-", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes what processes killed while writing left in a folder.
///
/// # Errors
/// A folder that cannot be changed.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    remove_beginning(folder, ".emend-")
}

/// Removes what a process killed while writing one file left beside it.
///
/// # Errors
/// A folder that cannot be changed.
pub fn remove_leftovers_of(path: &Path) -> Result<()> {
    remove_beginning(path.parent().unwrap_or(Path::new("")), &prefix(path))
}

fn remove_beginning(folder: &Path, prefix: &str) -> Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(prefix) && path.is_file() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// A whole regular file: what has no end, such as a device, is not read.
///
/// # Errors
/// A file that is missing, or none.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    regular(path)?;
    fs::read(path).map_err(Error::io(path))
}

/// Bytes of a file; 0 where there is none.
pub fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |about| about.len())
}

/// Maps a regular file into memory. An empty file is an error of its own, since it cannot be mapped.
///
/// # Errors
/// A file that is missing, empty, or none.
pub fn map(path: &Path) -> Result<Mmap> {
    if regular(path)?.len() == 0 {
        return Err(Error::file(path, "the file is empty; fetch or write it again"));
    }
    let file = fs::File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is read-only and the files that are mapped are replaced by renaming, never written in place.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

fn regular(path: &Path) -> Result<fs::Metadata> {
    let kind = fs::metadata(path).map_err(Error::io(path))?;
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(kind),
        (_, true) => Err(Error::file(path, "a directory, not a file")),
        _ => Err(Error::file(path, "not a regular file")),
    }
}
