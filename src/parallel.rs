//! Parts of a batch side by side, each on a thread of its own.
//!
//! The products of editing are small: one after the other, each shared among the cores, they leave the cores waiting for each other
//! most of the time. Whole parts of a batch on one core each take nearly all of it.

use std::sync::OnceLock;

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// How many parts suit a device: one a core of the CPU, one for a GPU.
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
