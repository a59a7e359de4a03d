//! For code of others that panics instead of saying what is wrong: on bad files, or where a device is missing.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
#[cfg(any(test, feature = "cuda", feature = "wgpu"))]
use std::sync::PoisonError;
use std::sync::{Mutex, Once};

thread_local! {
    /// Whether this thread's panics are kept silent.
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// What panics say while a device is tried.
static TRIED: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// The result of `run`, or nothing where it panicked; nothing is printed. Panics of other threads are printed as ever.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    install();
    let before = SILENT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    SILENT.set(before);
    result.ok()
}

/// The result of `run`, or nothing where it panicked; what it said is printed as ever.
pub(crate) fn survived<T>(run: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(run)).ok()
}

/// The result of `run`, or what was said where it or a thread that works for it panicked; nothing is printed. The panics of all
/// threads are kept silent meanwhile: this is for the start of the program, when no other work runs.
#[cfg(any(test, feature = "cuda", feature = "wgpu"))]
pub(crate) fn tried<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    install();
    let watch = |told| std::mem::replace(&mut *TRIED.lock().unwrap_or_else(PoisonError::into_inner), told);
    watch(Some(vec![]));
    let result = catch_unwind(AssertUnwindSafe(run));
    // The first panic is the cause; those behind it are of threads that waited for an answer.
    let told = watch(None).and_then(|told| told.into_iter().next());
    result.map_err(|_| told.unwrap_or_else(|| "it panicked".into()))
}

/// The one hook of the program, set once: it keeps silent where that is wanted, and else does what the hook before it did.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |panic| {
            if SILENT.get() {
                return;
            }
            match TRIED.lock().as_deref_mut() {
                Ok(Some(told)) => told.push(panic.payload_as_str().unwrap_or("it panicked").to_owned()),
                _ => previous(panic),
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Barrier;

    use super::*;

    /// Two threads in [`caught`] at once, the first out before the second, then a panic that nobody catches.
    fn overlapping() {
        let (first_in, both_in, first_out) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let result = caught::<()>(|| {
                    first_in.wait();
                    both_in.wait();
                    panic!("kept silent")
                });
                assert!(result.is_none());
                first_out.wait();
            });
            scope.spawn(|| {
                first_in.wait();
                let result = caught::<()>(|| {
                    both_in.wait();
                    first_out.wait();
                    panic!("kept silent")
                });
                assert!(result.is_none());
            });
        });
        assert!(std::thread::spawn(aloud).join().is_err());
    }

    fn aloud() {
        panic!("told aloud");
    }

    /// What is printed shows only from outside: the test starts itself once more and looks at that process.
    #[test]
    fn silence_is_the_own_threads_and_ends_with_it() {
        const INNER: &str = "EMEND_TEST_PANICS";
        if std::env::var_os(INNER).is_some() {
            return overlapping();
        }
        let name = "panics::tests::silence_is_the_own_threads_and_ends_with_it";
        let mut inner = Command::new(std::env::current_exe().unwrap());
        let output = inner.args([name, "--exact", "--nocapture"]).env(INNER, "1").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert!(told.contains("told aloud") && !told.contains("kept silent"), "{told}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }

    #[test]
    fn what_is_tried_gives_its_result_or_the_first_words() {
        assert_eq!(tried(|| 3), Ok(3));
        let failed = tried(|| std::thread::spawn(aloud).join().expect("the worker answers"));
        assert_eq!(failed, Err("told aloud".into()));
        assert_eq!(caught(|| 4), Some(4));
    }
}
