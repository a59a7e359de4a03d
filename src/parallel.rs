//! Parts of a batch side by side, each on a thread of its own.
//!
//! The products of editing are small: one after the other, each shared among the cores, they leave the cores waiting for each other
//! most of the time. Whole parts of a batch on one core each take nearly all of it.

use std::sync::{Mutex, OnceLock, PoisonError};

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// How many parts suit a device: one a core of the CPU, one for a GPU. What a part is must not depend on it: other parts are other sums, and
/// other sums are other last digits.
pub fn parts(device: &Device) -> usize {
    if *device == Device::flex() { rayon::current_num_threads() } else { 1 }
}

/// One thread a core, each a pool of its own so that products started on it stay there. They live as long as the program: what a
/// thread has freed its allocator keeps, and threads that come and go would leave ever more of it behind.
fn pools() -> Result<&'static [ThreadPool]> {
    static POOLS: OnceLock<std::result::Result<Vec<ThreadPool>, ThreadPoolBuildError>> = OnceLock::new();
    let alone = |_| ThreadPoolBuilder::new().num_threads(1).build();
    let pools = POOLS.get_or_init(|| (0..rayon::current_num_threads()).map(alone).collect());
    pools.as_deref().map_err(|error| Error::Input(format!("no thread could be started: {error}")))
}

/// `work` on all parts at once; its results in their order. Within a part products stay on one thread, and [`parts`] is 1: parts are
/// not divided again.
///
/// # Errors
/// The first error in the order of the parts.
pub fn run<T: Send, R: Send>(parts: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    if parts.len() < 2 {
        return parts.into_iter().map(work).collect();
    }
    let (pools, work) = (pools()?, &work);
    std::thread::scope(|scope| {
        let spawn = |(number, part)| {
            let pool: &ThreadPool = &pools[number % pools.len()];
            scope.spawn(move || pool.install(|| work(part)))
        };
        let threads: Vec<_> = parts.into_iter().enumerate().map(spawn).collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All are joined before the first error is told.
        results.collect::<Vec<_>>().into_iter().collect()
    })
}

/// `work` on every item, as many of them side by side as suit the device; its results in the order of the items. An item's result is the
/// same however many cores there are, where `work` itself does not ask for them.
///
/// # Errors
/// The first error in the order of the items that were begun; those behind it need not be.
pub fn each<T: Send, R: Send>(device: &Device, items: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let count = parts(device).min(items.len());
    if count < 2 {
        return items.into_iter().map(work).collect();
    }
    let waiting = Mutex::new(items.into_iter().enumerate());
    let done = run((0..count).collect(), |_| {
        let mut done = vec![];
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, item)) = next else { return Ok(done) };
            let result = work(item);
            if result.is_err() {
                // Nobody takes another.
                waiting.lock().unwrap_or_else(PoisonError::into_inner).by_ref().for_each(drop);
            }
            done.push((number, result));
        }
    })?;
    let mut done: Vec<(usize, Result<R>)> = done.into_iter().flatten().collect();
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Multiplications and additions of a product from which on it is worth sharing between cores.
const SHARED: usize = 128 << 20;

/// `work` whose products take some number of multiplications and additions each: on one thread where they are small.
///
/// # Errors
/// What `work` says.
pub fn run_products<R: Send>(size: usize, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    // A part is on one thread already.
    if size >= SHARED || rayon::current_num_threads() == 1 { work() } else { pools()?[0].install(work) }
}
