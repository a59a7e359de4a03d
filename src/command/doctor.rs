//! `emend doctor`: what this machine and this build have, and what is missing.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Value, json};

use super::print;
use crate::data::sets;
use crate::error::{Error, Result};
use crate::fetch::FetchSettings;
use crate::model::load::{hub, pocket};
use crate::{device, process};

/// Show what this machine and this build have: processor, memory, devices, caches and what lies in them.
///
/// Nothing is fetched. The exit code is 1 where a cache cannot be read, else 0.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: emend doctor")]
pub struct Args {
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A cache that is there and cannot be read; output that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let settings = FetchSettings::from_env();
    let models = names_in(&settings.models);
    let hub_cache = names_in(&settings.hub_cache);
    let data = names_in(&settings.cache.join("data"));
    let sets: Vec<&str> =
        sets::SETS.iter().filter(|set| !sets::present(set, &settings).is_empty()).map(|set| set.name).collect();
    let cached = hub::cached(&settings);
    let devices = ["cpu", "cuda", "wgpu"].map(|name| (name, device::open(name).err().map(|error| error.to_string())));
    let features = processor_features();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = rayon::current_num_threads();
    let total = process::memory_of_machine();
    let free = process::memory_at_hand();
    let disk = process::free_disk(&settings.cache);
    let mut missing = vec![];
    if cached.is_empty() && models.as_ref().is_ok_and(Vec::is_empty) {
        missing.push(("a model beside the embedded ones", "emend fetch HuggingFaceTB/SmolLM2-135M-Instruct"));
    }
    if sets.is_empty() {
        missing.push(("data to compare editors on", "emend fetch counterfact"));
    }
    let broken: Vec<String> =
        [&models, &hub_cache, &data].into_iter().filter_map(|names| names.as_ref().err().cloned()).collect();
    let text = if args.json {
        let devices: Vec<Value> =
            devices.iter().map(|(name, why)| json!({"name": name, "usable": why.is_none(), "why_not": why})).collect();
        let missing: Vec<Value> =
            missing.iter().map(|(what, command)| json!({"what": what, "command": command})).collect();
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cores": cores,
            "threads": threads,
            "processor_features": features.iter().map(|(name, seen)| ((*name).to_owned(), json!(seen))).collect::<serde_json::Map<_, _>>(),
            "memory": {"total_bytes": total, "available_bytes": free},
            "devices": devices,
            "models": {
                "embedded": pocket::names(),
                "folder": settings.models,
                "in_folder": models.as_deref().unwrap_or_default(),
                "hub_cache": settings.hub_cache,
                "in_hub_cache": cached,
            },
            "data": {"folder": settings.cache.join("data"), "sets": sets},
            "free_disk_bytes": disk,
            "missing": missing,
            "broken": broken,
        });
        format!("{document:#}\n")
    } else {
        let line = |name: &str, value: String| format!("{name:<16}{value}\n");
        let gigabytes =
            |bytes: Option<u64>| bytes.map_or("not known".into(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9));
        let features: Vec<String> =
            features.iter().map(|(name, seen)| if *seen { (*name).to_owned() } else { format!("no {name}") }).collect();
        let mut text = line("emend", env!("CARGO_PKG_VERSION").to_owned());
        text += &line("processor", format!("{cores} cores, {threads} threads used; {}", features.join(", ")));
        text += &line("memory", format!("{}, of which {} can be had", gigabytes(total), gigabytes(free)));
        for (name, why) in &devices {
            text += &line(&format!("device {name}"), why.clone().unwrap_or_else(|| "works".into()));
        }
        text += &line("embedded", listed(&pocket::names()));
        text += &line("models", format!("{}: {}", settings.models.display(), listed(models.as_deref().unwrap_or(&[]))));
        text += &line("hub's cache", format!("{}: {}", settings.hub_cache.display(), listed(&cached)));
        text += &line("data sets", format!("{}: {}", settings.cache.join("data").display(), listed(&sets)));
        text += &line("free disk", format!("{} for {}", gigabytes(disk), settings.cache.display()));
        for (what, command) in missing {
            text += &line("missing", format!("{what}; `{command}` brings it"));
        }
        text
    };
    print(&text)?;
    // Said last, as the one line of an error is.
    if broken.is_empty() { Ok(()) } else { Err(Error::Input(broken.join("; "))) }
}

fn listed<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// What lies in a folder, sorted; nothing where there is no folder. What the system says where it cannot be read.
fn names_in(folder: &Path) -> Result<Vec<String>, String> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            let mut names: Vec<String> =
                entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
            names.sort();
            Ok(names)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(format!("{}: {error}; the cache must be a folder that can be read", folder.display())),
    }
}

/// The vector instructions that matter, and whether this processor has them.
fn processor_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        vec![
            ("AVX", std::arch::is_x86_feature_detected!("avx")),
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
            ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ]
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        vec![]
    }
}
