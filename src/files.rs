//! Files that appear whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes beside the target, flushes to the disk, and renames: what was there before survives until the new file is whole.
///
/// # Errors
/// A folder that cannot be written, a full disk.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut temporary = tempfile::Builder::new().prefix(".emend-").tempfile_in(folder).map_err(Error::io(folder))?;
    temporary.write_all(contents).map_err(Error::io(path))?;
    temporary.as_file().sync_all().map_err(Error::io(path))?;
    let permissions = fs::metadata(path).map(|known| known.permissions());
    if let Ok(permissions) = permissions.or_else(|_| default_permissions()) {
        // A temporary file is private; the result is as readable as any other file.
        temporary.as_file().set_permissions(permissions).map_err(Error::io(path))?;
    }
    temporary.persist(path).map_err(|error| Error::Io { path: path.to_owned(), source: error.error })?;
    Ok(())
}

#[cfg(unix)]
fn default_permissions() -> std::io::Result<fs::Permissions> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn default_permissions() -> std::io::Result<fs::Permissions> {
    Err(std::io::ErrorKind::Unsupported.into())
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
