//! What the system says of this process.

/// The most memory the process has held so far, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    status("VmHWM:").unwrap_or(0)
}

/// Begins to measure [`peak_memory`] anew, and says what the process holds now; nothing where the system cannot.
pub fn forget_peak_memory() -> Option<u64> {
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    status("VmRSS:")
}

/// A number of bytes that the system says of this process.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    Some(kibibytes.parse::<u64>().ok()? * 1024)
}
