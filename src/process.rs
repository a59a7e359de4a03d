//! What the system says of this process, and what it is told.

/// Keeps memory that was freed for the next tensor. A pass asks for the same large blocks again and again; given back to the system each
/// time, they must be cleared each time, which took a tenth of a long training's processor time.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the allocator takes both numbers at any time; they decide when it asks the system, and nothing else.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
    }
}

/// Says in one line what it means that a mapped file ends before it should: somebody shortened it, and the system's own answer is to end the
/// process without a word.
pub fn explain_lost_pages() {
    #[cfg(unix)]
    {
        extern "C" fn lost(_: libc::c_int) {
            let words = b"error: a file that is read from where it lies, a model's weights for one, was shortened or cannot be read; put it back and try again\n";
            // SAFETY: both may be called in a signal's handler.
            unsafe {
                libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len());
                libc::_exit(1);
            }
        }
        // SAFETY: the handler calls nothing but what may be called there.
        unsafe { libc::signal(libc::SIGBUS, lost as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// The most memory the process has held so far, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    status("VmHWM:").unwrap_or(0)
}

/// The memory that the process holds now, in bytes; 0 where the system does not say.
pub fn memory_now() -> u64 {
    status("VmRSS:").unwrap_or(0)
}

/// The memory that the process has in use, in bytes: what was freed goes back to the system first.
pub fn memory_in_use() -> u64 {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the allocator takes it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    memory_now()
}

/// Memory that can be planned with, in bytes: `$EMEND_MEMORY_GB`, else what the system says is free; nothing where it does not say.
pub fn memory_at_hand() -> Option<u64> {
    if let Ok(text) = std::env::var("EMEND_MEMORY_GB") {
        match text.parse::<f64>().ok().filter(|gigabytes| gigabytes.is_finite() && *gigabytes > 0.0) {
            Some(gigabytes) => return Some((gigabytes * 1e9) as u64),
            None => {
                tracing::warn!("EMEND_MEMORY_GB={text} is no number of gigabytes above 0; the system's word counts")
            }
        }
    }
    kibibytes("/proc/meminfo", "MemAvailable:")
}

/// The memory of the machine, in bytes; nothing where the system does not say.
pub fn memory_of_machine() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal:")
}

/// Bytes that can be written where a path lies, or will lie when its folders are made; nothing where the system does not say.
pub fn free_disk(path: &std::path::Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let there = path.ancestors().find(|path| path.exists())?;
        let name = std::ffi::CString::new(there.as_os_str().as_bytes()).ok()?;
        // SAFETY: the name ends with a zero, and the struct is one of numbers that the call fills in.
        unsafe {
            let mut found: libc::statvfs = std::mem::zeroed();
            let known = libc::statvfs(name.as_ptr(), &raw mut found) == 0;
            // The types of both differ from system to system.
            #[allow(clippy::unnecessary_cast)]
            known.then(|| found.f_bavail as u64 * found.f_frsize as u64)
        }
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Begins to measure [`peak_memory`] anew, and says what the process holds now; nothing where the system cannot.
pub fn forget_peak_memory() -> Option<u64> {
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(memory_now()).filter(|bytes| *bytes > 0)
}

/// A number of bytes that the system says of this process.
fn status(name: &str) -> Option<u64> {
    kibibytes("/proc/self/status", name)
}

fn kibibytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    Some(kibibytes.parse::<u64>().ok()? * 1024)
}
