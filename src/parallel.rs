//! Parts of a batch side by side, each on a thread of its own.
//!
//! The products of editing are small: one after the other, each shared among the cores, they leave the cores waiting for each other
//! most of the time. Whole parts of a batch on one core each take nearly all of it.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// How many parts suit a device: one a core of the CPU, one for a GPU.
pub fn parts(device: &Device) -> usize {
    if *device == Device::flex() { rayon::current_num_threads() } else { 1 }
}

/// `work` on all parts at once; its results in their order. Within a part products stay on one thread.
///
/// # Errors
/// The first error in the order of the parts.
pub fn run<T: Send, R: Send>(parts: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    if parts.len() < 2 {
        return parts.into_iter().map(work).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let spawn = |part| {
            scope.spawn(move || {
                let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                let alone = alone.map_err(|error| Error::Input(format!("no thread could be started: {error}")))?;
                alone.install(|| work(part))
            })
        };
        let threads: Vec<_> = parts.into_iter().map(spawn).collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All are joined before the first error is told.
        results.collect::<Vec<_>>().into_iter().collect()
    })
}
