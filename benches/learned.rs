//! What learned editors cost by the size of the model: `cargo bench --bench learned -- [MODEL…] [FILE.svg]`, memory drawn into the file.
//!
//! A model is `pocket`, a folder, a name, or `random:WIDTHxLAYERS`: GPT-2's architecture and vocabulary with random weights.
//!
//! MEND, KE and ENN on the MLPs of a model's last three layers, trained a few steps on the pocket world's facts with the settings of its configs; each in a process of its own, whose
//! peak is the training's. CPU-seconds are those of some steps less those of fewer. For the papers' argument the memory of each is shown beside that of the model.

use std::path::{Path, PathBuf};
use std::process::Command;

use emend::model::Unread;
use emend::report::curves::Curves;
use emend::report::picture;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

mod common;

use common::calibrate;

/// Steps of both runs, of eight records each.
const STEPS: [usize; 2] = [1, 3];

const METHODS: [&str; 3] = ["mend", "ke", "enn"];

fn main() {
    let args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let (drawn, mut models): (Vec<String>, Vec<String>) = args.partition(|arg| arg.ends_with(".svg"));
    if models.is_empty() {
        models.push("pocket".to_owned());
    }
    calibrate();
    let mut points: Vec<Vec<[f64; 2]>> = vec![vec![]; METHODS.len()];
    for model in models {
        if let Err(error) = run(&model, &mut points) {
            eprintln!("error: {error}");
        }
    }
    for path in drawn {
        points.iter_mut().for_each(|points| points.sort_by(|a, b| a[0].total_cmp(&b[0])));
        let names = METHODS.iter().map(|name| name.to_uppercase());
        let highest = points.iter().flatten().map(|point| point[1]).fold(1.0, f64::max);
        let curves = Curves {
            title: "peak memory of training, GB".into(),
            axis: "the model's weights in f32, GB".into(),
            logarithmic: true,
            top: highest.ceil(),
            values: names.zip(points.iter().cloned()).collect(),
        };
        if let Err(error) = picture::write(Path::new(&path), &[curves][..]) {
            eprintln!("error: {error}");
        }
    }
}

/// Where models of random weights are written and trainings leave what nobody reads.
fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("emend-bench-{}-{name}", std::process::id()))
}

fn run(model: &str, points: &mut [Vec<[f64; 2]>]) -> emend::Result<()> {
    let folder = scratch("model");
    let path = match model.strip_prefix("random:").and_then(|shape| shape.split_once('x')) {
        Some((width, layers)) => {
            let wrong = |_| emend::Error::Config(format!("{model}: random:WIDTHxLAYERS, such as random:1024x24"));
            random(&folder, width.parse().map_err(wrong)?, layers.parse().map_err(wrong)?)?;
            folder.to_string_lossy().into_owned()
        }
        None => model.to_owned(),
    };
    let unread = Unread::open(&path)?;
    let spec = unread.checkpoint.spec();
    let weights = spec.weights_bytes() as f64 / 1e9;
    let layers: Vec<usize> = (spec.layers.saturating_sub(3)..spec.layers).collect();
    let gate = if spec.mlp.gated { "\"mlp.gate\", " } else { "" };
    println!("{model}: {weights:.2} GB of weights in f32");
    for (method, points) in METHODS.iter().zip(points) {
        let of = |steps: usize| trained(&path, method, &format!("{layers:?}"), gate, steps);
        let (few, many) = (of(STEPS[0])?, of(STEPS[1])?);
        let records = 8.0 * (STEPS[1] - STEPS[0]) as f64;
        println!(
            "    {method:<6} {:>7.2} GB at its peak   {:>7.3} CPU-seconds a record",
            many.0,
            (many.1 - few.1) / records
        );
        points.push([weights, many.0]);
    }
    // It was made for this run alone.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}

/// Writes a model of GPT-2's architecture and vocabulary with random weights.
fn random(folder: &Path, width: usize, layers: usize) -> emend::Result<()> {
    let io = emend::Error::io(folder);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let normal = Normal::new(0.0f32, 0.02).expect("a deviation above 0");
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    let mut add = |name: String, shape: &[usize]| {
        let values = (0..shape.iter().product()).flat_map(|_| normal.sample(&mut rng).to_le_bytes()).collect();
        tensors.push((name, shape.to_vec(), values));
    };
    add("wte.weight".into(), &[50257, width]);
    add("wpe.weight".into(), &[1024, width]);
    for layer in 0..layers {
        for norm in ["ln_1", "ln_2"] {
            add(format!("h.{layer}.{norm}.weight"), &[width]);
            add(format!("h.{layer}.{norm}.bias"), &[width]);
        }
        let matrices = [("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width)];
        for (name, d_in, d_out) in
            matrices.into_iter().chain([("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width)])
        {
            add(format!("h.{layer}.{name}.weight"), &[d_in, d_out]);
            add(format!("h.{layer}.{name}.bias"), &[d_out]);
        }
    }
    add("ln_f.weight".into(), &[width]);
    add("ln_f.bias".into(), &[width]);
    std::fs::create_dir_all(folder).map_err(io)?;
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).expect("a folder that was just made");
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "n_embd": width, "n_head": width / 64, "n_layer": layers, "n_positions": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-5,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).map_err(emend::Error::io(folder))?;
    // Any tokenizer of fewer tokens does.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2-tiny");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(name), folder.join(name)).map_err(emend::Error::io(folder))?;
    }
    Ok(())
}

/// Trains some steps; the peak in GB, and user and system seconds.
fn trained(model: &str, method: &str, layers: &str, gate: &str, steps: usize) -> emend::Result<(f64, f64)> {
    let folder = scratch("archive");
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let sets = [
        format!("editor.layers={layers}"),
        format!("editor.weights=[{gate}\"mlp.up\", \"mlp.down\"]"),
        format!("train.max_steps={steps}"),
        format!("train.validate_every={steps}"),
        "train.validation_records=1".to_owned(),
        "data.test_records=1".to_owned(),
        "data.text_cases=1".to_owned(),
    ];
    let before = children();
    let mut command = Command::new(env!("CARGO_BIN_EXE_emend"));
    command.arg("train").arg("--config").arg(configs.join(format!("{method}-pocket.toml")));
    command.args(["--model", model, "--json", "--out"]).arg(&folder);
    command.args(sets.iter().flat_map(|set| ["--set", set]));
    let output = command.output().map_err(emend::Error::io(&folder))?;
    let spent = children() - before;
    // Nothing of it is of use.
    let _ = std::fs::remove_dir_all(&folder);
    let said: Value = serde_json::from_slice(&output.stdout).map_err(|_| {
        emend::Error::Input(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned())
    })?;
    Ok((said["peak_memory_bytes"].as_f64().unwrap_or(0.0) / 1e9, spent))
}

/// User and system seconds of the processes that ended.
fn children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    // Behind the name, the 14th and 15th fields; a clock tick is a hundredth of a second.
    behind.iter().skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
