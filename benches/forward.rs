//! CPU-seconds of a forward pass with logits at every position: `cargo bench --bench forward -- [MODEL] [ROWS] [TOKENS]`.
//!
//! The product of two 1024 × 1024 matrices is timed beside it, so that figures of different machines can be compared.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::model::Model;
use emend::model::tap::NoTap;
use emend::model::tokens::Tokens;

/// User and system seconds of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let main: f64 = stat.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(0.0);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_task = |path: std::path::PathBuf| -> Option<f64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    let all: f64 = tasks.filter_map(|task| of_task(task.path())).sum();
    all.max(main) / 1e9
}

/// The median of several runs after two that are not counted.
fn median(mut run: impl FnMut()) -> (f64, f64) {
    let mut times: Vec<(f64, f64)> = (0..9)
        .map(|_| {
            let (wall, cpu) = (Instant::now(), cpu_seconds());
            run();
            (cpu_seconds() - cpu, wall.elapsed().as_secs_f64())
        })
        .skip(2)
        .collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    times[times.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("smollm2-135m", String::as_str);
    let number = |index: usize, otherwise| args.get(index).and_then(|arg| arg.parse().ok()).unwrap_or(otherwise);
    let (rows, cells) = (number(1, 8usize), number(2, 32usize));
    let device = Device::flex();

    let square = || Tensor::<2>::random([1024, 1024], Distribution::Default, (&device, DType::F32));
    let (a, b) = (square(), square());
    let (cpu, wall) = median(|| drop(a.clone().matmul(b.clone()).into_data()));
    println!("1024³ product             {cpu:.4} CPU-seconds   {wall:.4} s");

    let model = match Model::load(name, &device, DType::F32) {
        Ok(model) => model,
        Err(error) => return eprintln!("error: {error}"),
    };
    let vocabulary = model.decoder.spec.vocabulary;
    let ids = (0..rows).map(|row| (0..cells).map(|cell| ((row * 7919 + cell * 104_729) % vocabulary) as u32).collect());
    let tokens = Tokens::new(ids.collect());
    let reads: Vec<_> = (0..rows).flat_map(|row| (0..cells).map(move |cell| (row, cell))).collect();
    let (cpu, wall) = median(|| {
        let hidden = model.decoder.embed(&tokens, &mut NoTap).expect("tokens of the vocabulary");
        let layers = 0..model.decoder.spec.layers;
        let hidden = model.decoder.blocks(hidden, layers, tokens.span(), None, &mut NoTap).expect("no past");
        drop(model.decoder.head(hidden, &reads).into_data());
    });
    println!("{name} {rows} × {cells}, logits  {cpu:.4} CPU-seconds   {wall:.4} s");
}
