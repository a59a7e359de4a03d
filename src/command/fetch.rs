//! `emend fetch`: models and named data sets into the cache, or a list of what there is.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::data::sets::{self, Bytes, NamedSet};
use crate::fetch::{FetchError, FetchSettings, OnProgress, Progress};
use crate::model::load::hub;

/// Bring models and named data sets into the cache, resumed when broken off and checked by SHA-256.
///
/// Data sets: counterfact, multi_counterfact, zsre (or one of its files, zsre/eval), known_1000, mquake, ripple, knowedit, unke,
/// wikibigedit, wikitext; `--list` names their files. They go to $EMEND_CACHE, else ~/.cache/emend. Models are hub ids such as `gpt2-xl` or `HuggingFaceTB/SmolLM2-135M-Instruct`; they go to the Hugging Face cache
/// ($HF_HOME, else ~/.cache/huggingface), where other tools find them too. HF_TOKEN opens gated models, HF_ENDPOINT names
/// another hub, HF_HUB_OFFLINE=1 keeps to the cache. Prints the path of each: a model's folder, a data set's first file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data sets and hub ids to bring
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub names: Vec<String>,
    /// List the named data sets and the models that are in the cache
    #[arg(long, conflicts_with = "names")]
    pub list: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Runs `emend fetch`: paths or the list on stdout, progress bars on stderr.
///
/// # Errors
/// The first name that cannot be had, as [`fetch`]; output that cannot be written.
pub fn run(args: &Args) -> Result<(), FetchError> {
    let settings = FetchSettings::from_env();
    if args.list {
        return print(&if args.json { pretty(&list_json(&settings)) } else { list_lines(&settings) });
    }
    let mut fetched = Vec::new();
    for name in &args.names {
        let path = fetch(name, &settings, &mut bars())?;
        if !args.json {
            print(&format!("{}\n", path.display()))?;
        }
        fetched.push(json!({"name": name, "kind": kind(name), "path": path}));
    }
    if args.json { print(&pretty(&json!({"fetched": fetched}))) } else { Ok(()) }
}

/// Brings a named data set or a model into the cache, or checks the one that is there, and gives its path.
///
/// # Errors
/// As `data::sets::fetch` and `model::load::hub::fetch`.
pub fn fetch(name: &str, settings: &FetchSettings, on_progress: &mut OnProgress<'_>) -> Result<PathBuf, FetchError> {
    if kind(name) == "data" {
        return sets::fetch(name, settings, on_progress);
    }
    hub::fetch(name, settings, on_progress).map_err(|error| match error {
        // It may have been meant as a data set.
        FetchError::NoModel { name, models, hub } => {
            let sets: Vec<&str> = sets::SETS.iter().map(|set| set.name).collect();
            FetchError::NoModel { name, models, hub: format!("{hub}; the named data sets are {}", sets.join(", ")) }
        }
        other => other,
    })
}

/// Progress bars on stderr, one a file, with rate and time left. They show on a terminal only.
pub fn bars() -> impl FnMut(&Progress<'_>) -> ControlFlow<()> {
    let mut current: Option<(String, ProgressBar)> = None;
    move |step: &Progress<'_>| {
        if current.as_ref().is_none_or(|(file, _)| file != step.file) {
            let bar = ProgressBar::no_length().with_message(step.file.to_owned());
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            // What an earlier try brought is no measure of this one's speed.
            bar.set_position(step.done);
            bar.reset_eta();
            current = Some((step.file.to_owned(), bar));
        }
        if let Some((_, bar)) = &current {
            if let Some(total) = step.total {
                bar.set_length(total);
            }
            bar.set_position(step.done);
            if step.total == Some(step.done) {
                bar.abandon();
            }
        }
        ControlFlow::Continue(())
    }
}

fn kind(name: &str) -> &'static str {
    // `zsre/dev` is a slip in a data set's name, not a hub id.
    let set = name.split('/').next().unwrap_or(name);
    if sets::find(set).is_some() { "data" } else { "model" }
}

fn list_json(settings: &FetchSettings) -> Value {
    let data = |set: &NamedSet| {
        let present = sets::present(set, settings);
        json!({
            "name": set.name,
            "about": set.about,
            "licence": set.licence,
            "bytes": bytes(set),
            "files": set.files.iter().map(|file| json!({
                "name": file.file,
                "url": file.url,
                "sha256": file.sha256,
            })).collect::<Vec<_>>(),
            "present": present,
        })
    };
    json!({
        "data": sets::SETS.iter().map(data).collect::<Vec<_>>(),
        "models": hub::cached(settings),
        "data_cache": settings.cache.join("data"),
        "hub_cache": settings.hub_cache,
    })
}

fn list_lines(settings: &FetchSettings) -> String {
    let mut text = format!("data sets ({})\n", settings.cache.join("data").display());
    for set in sets::SETS {
        let here = match sets::present(set, settings).len() {
            0 => "-",
            n if n == set.files.len() => "here",
            _ => "partly",
        };
        let about = if set.files.iter().all(|file| matches!(file.bytes, Bytes::Exact(_))) { "" } else { "~" };
        let size = format!("{about}{:.1} MB", bytes(set) as f64 / 1e6);
        text += &format!("  {:<18} {:>9}  {here:<6}  {}\n", set.name, size, set.about);
        if set.files.len() > 1 {
            let parts: Vec<String> = set.files.iter().map(|file| format!("{}/{}", set.name, file.part)).collect();
            text += &format!("  {:<37}{}\n", "", parts.join(" "));
        }
    }
    text += &format!("models in the hub's cache ({})\n", settings.hub_cache.display());
    let models = hub::cached(settings);
    if models.is_empty() {
        text += "  none\n";
    }
    for id in models {
        text += &format!("  {id}\n");
    }
    text
}

fn bytes(set: &NamedSet) -> u64 {
    let one = |bytes: Bytes| match bytes {
        Bytes::Exact(bytes) | Bytes::About(bytes) => bytes,
    };
    set.files.iter().map(|file| one(file.bytes)).sum()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Writes to stdout. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> Result<(), FetchError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let path = Path::new("standard output").to_owned();
            Err(FetchError::File { verb: "write to", path, reason: error.to_string() })
        }
        _ => Ok(()),
    }
}
