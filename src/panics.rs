//! For code of others that panics on bad files instead of saying so.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

/// The result of `run`, or nothing where it panicked; nothing is printed.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(run));
    set_hook(hook);
    result.ok()
}
