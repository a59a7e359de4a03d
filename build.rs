//! Tells the tests which downloaded models are there: those that need another one are then reported as ignored, not as passed.

use std::env::var_os;
use std::path::PathBuf;

/// The models that tests look for under `$EMEND_MODELS`, else `~/.cache/emend-models`.
const MODELS: [&str; 3] = ["all-minilm-l6-v2", "gemma3-270m", "smollm2-135m"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=EMEND_MODELS");
    println!("cargo::rerun-if-env-changed=HOME");
    let names = MODELS.map(|name| format!("\"{name}\"")).join(", ");
    println!("cargo::rustc-check-cfg=cfg(downloaded, values({names}))");
    let home = || Some(PathBuf::from(var_os("HOME")?).join(".cache/emend-models"));
    let Some(root) = var_os("EMEND_MODELS").map(PathBuf::from).or_else(home).filter(|root| root.is_dir()) else {
        return;
    };
    println!("cargo::rerun-if-changed={}", root.display());
    for name in MODELS.iter().filter(|name| root.join(name).is_dir()) {
        println!("cargo::rustc-cfg=downloaded=\"{name}\"");
    }
}
