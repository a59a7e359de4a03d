//! CPU-seconds of a forward pass with logits at every position: `cargo bench --bench forward -- [MODEL] [ROWS] [TOKENS]`.
//!
//! The product of two 1024 × 1024 matrices is timed beside it, so that figures of different machines can be compared.

use burn::tensor::{DType, Device};
use emend::model::Model;
use emend::model::tap::NoTap;
use emend::model::tokens::Tokens;

mod common;

use common::{calibrate, median};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("smollm2-135m", String::as_str);
    let number = |index: usize, otherwise| args.get(index).and_then(|arg| arg.parse().ok()).unwrap_or(otherwise);
    let (rows, cells) = (number(1, 8usize), number(2, 32usize));
    let device = Device::flex();

    calibrate();
    let model = match Model::load(name, &device, DType::F32) {
        Ok(model) => model,
        Err(error) => return eprintln!("error: {error}"),
    };
    let vocabulary = model.decoder.spec.vocabulary;
    let ids = (0..rows).map(|row| (0..cells).map(|cell| ((row * 7919 + cell * 104_729) % vocabulary) as u32).collect());
    let tokens = Tokens::new(ids.collect());
    let reads: Vec<_> = (0..rows).flat_map(|row| (0..cells).map(move |cell| (row, cell))).collect();
    let (cpu, wall) = median(9, || {
        let hidden = model.decoder.embed(&tokens, &mut NoTap).expect("tokens of the vocabulary");
        let layers = 0..model.decoder.spec.layers;
        let hidden = model.decoder.blocks(hidden, layers, tokens.span(), None, &mut NoTap).expect("no past");
        drop(model.decoder.head(hidden, &reads).into_data());
    });
    println!("{name} {rows} × {cells}, logits  {cpu:.4} CPU-seconds   {wall:.4} s");
}
