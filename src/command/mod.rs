//! One file a subcommand.

pub mod fetch;
pub mod pretrain;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Set while a command keeps its state when it is asked to stop; without it Ctrl-C ends the process at once.
static KEEPS_STATE: AtomicBool = AtomicBool::new(false);
/// Set by the first Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C end the process with code 130: at once, or, in a command that keeps state, when the state is kept.
/// A second Ctrl-C always ends it at once.
pub fn handle_interrupts() {
    let handler = || {
        if !KEEPS_STATE.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping: the state is being saved (Ctrl-C again to stop at once)");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C will not save the state: {error}");
    }
}

/// From here on the first Ctrl-C only raises a flag: [`stop`] tells.
pub(crate) fn keep_state() {
    KEEPS_STATE.store(true, Ordering::SeqCst);
}

/// Whether the user asked to stop.
pub(crate) fn stop() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Prints to stdout. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// Output that cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(error)),
        _ => Ok(()),
    }
}

/// The most memory the process has held so far, in bytes; 0 where the system does not say.
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
