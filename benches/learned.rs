//! What learned editors cost by the size of the model: `cargo bench --bench learned -- [MODEL…]`.
//!
//! MEND, KE and ENN on the MLPs of a model's last three layers, trained a few steps on the pocket world's facts with the settings of its configs; each in a process of its own, whose
//! peak is the training's. CPU-seconds are those of some steps less those of fewer. For the paper's argument the memory of each is shown beside that of the model.

use std::path::Path;
use std::process::Command;

use emend::model::Unread;
use serde_json::Value;

mod common;

use common::calibrate;

/// Steps of both runs, of eight records each.
const STEPS: [usize; 2] = [2, 6];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let models = if args.is_empty() { vec!["pocket".to_owned()] } else { args };
    calibrate();
    for model in models {
        if let Err(error) = run(&model) {
            eprintln!("error: {error}");
        }
    }
}

fn run(model: &str) -> emend::Result<()> {
    let unread = Unread::open(model)?;
    let spec = unread.checkpoint.spec();
    let weights = spec.weights_bytes() as f64 / 1e9;
    let layers: Vec<usize> = (spec.layers.saturating_sub(3)..spec.layers).collect();
    let gate = if spec.mlp.gated { "\"mlp.gate\", " } else { "" };
    println!("{model}: {weights:.2} GB of weights in f32");
    for method in ["mend", "ke", "enn"] {
        let of = |steps: usize| trained(model, method, &format!("{layers:?}"), gate, steps);
        let (few, many) = (of(STEPS[0])?, of(STEPS[1])?);
        let records = 8.0 * (STEPS[1] - STEPS[0]) as f64;
        println!(
            "    {method:<6} {:>7.2} GB at its peak   {:>7.3} CPU-seconds a record",
            many.0,
            (many.1 - few.1) / records
        );
    }
    Ok(())
}

/// Trains some steps; the peak in GB, and user and system seconds.
fn trained(model: &str, method: &str, layers: &str, gate: &str, steps: usize) -> emend::Result<(f64, f64)> {
    let folder = std::env::temp_dir().join(format!("emend-bench-{}", std::process::id()));
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
