//! Clocks for benchmarks.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};

/// User and system seconds of this process so far.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let main: f64 = stat.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(0.0);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_task = |path: std::path::PathBuf| -> Option<f64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    let all: f64 = tasks.filter_map(|task| of_task(task.path())).sum();
    all.max(main) / 1e9
}

/// CPU-seconds and seconds: the median of `runs`, of which the first two are not counted where there are more.
pub fn median(runs: usize, mut run: impl FnMut()) -> (f64, f64) {
    let mut times: Vec<(f64, f64)> = (0..runs)
        .map(|_| {
            let (wall, cpu) = (Instant::now(), cpu_seconds());
            run();
            (cpu_seconds() - cpu, wall.elapsed().as_secs_f64())
        })
        .skip(if runs > 2 { 2 } else { 0 })
        .collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    times[times.len() / 2]
}

/// Times the product of two 1024 × 1024 matrices, so that figures of different machines can be compared.
pub fn calibrate() {
    // As the program does.
    emend::process::keep_freed_memory();
    let square = || Tensor::<2>::random([1024, 1024], Distribution::Default, (&Device::flex(), DType::F32));
    let (a, b) = (square(), square());
    let (cpu, wall) = median(9, || drop(a.clone().matmul(b.clone()).into_data()));
    println!("1024³ product             {cpu:.4} CPU-seconds   {wall:.4} s");
}
