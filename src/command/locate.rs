//! `emend locate`: whether tracing tells where to edit, and which layers to edit in a new model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::plan::{PlanArgs, Planning, of_editor};
use super::steps::tell_now_and_then;
use super::{print, propose};
use crate::config::check_flags;
use crate::config::locate::Config;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::evaluate::looking;
use crate::locate::sweep::Sweep;
use crate::locate::{page, results};
use crate::model::Model;
use crate::plan::Lengths;
use crate::process::peak_memory;
use crate::report::heat_map::Panel;
use crate::report::picture;
use crate::report::table::counted;
use crate::sections::within;
use crate::trace::average::Averages;
use crate::trace::folder::is_left_out;
use crate::{device, files, paths, trace};

/// Ask whether tracing tells where to edit: edit the same facts at many layers, trace each, and regress one on the other. With --propose, find the
/// layers that a new model is best edited at.
///
/// Writes results/NAME: the cases of each problem, editor and layer as `emend compare` does, a file a traced fact, locate.json, locate.md and locate.html. Stopped or
/// killed and started again it goes on with what is left.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file of a sweep; with --propose that of an editor with layers (ROME without statistics unless given)
    #[arg(long, value_name = "FILE", required_unless_present = "propose")]
    pub config: Option<PathBuf>,
    /// Try layers on facts, a coarse sweep and then near the best, and print the lines of a config
    #[arg(long, requires = "model", requires = "facts", conflicts_with_all = ["plan", "memory_limit"])]
    pub propose: bool,
    /// Use another model than the configuration's
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// With --propose: the facts to try layers on; not those that results are to be reported of
    #[arg(long, value_name = "FACTS", requires = "propose")]
    pub facts: Option<String>,
    /// At most so many facts; with --propose 20 unless given
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// The folder of the results; results/NAME, after the configuration's name, unless given
    #[arg(long, value_name = "DIR", conflicts_with = "propose")]
    pub out: Option<PathBuf>,
    /// Lay a value over the configuration
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    pub sets: Vec<String>,
    /// Check configuration, model, facts and editors, say what would be done, and do nothing
    #[arg(long, conflicts_with = "propose")]
    pub dry_run: bool,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    #[command(flatten)]
    pub planning: PlanArgs,
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A configuration, model, file or folder that is wrong; facts of which the model knows none.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    within("--limit", args.limit.unwrap_or(1) as f64, 1.0, 1e9)?;
    let path = match (&args.config, args.propose) {
        (_, true) => return propose::run(args, start),
        (Some(path), false) => path,
        (None, false) => return Err(Error::Config("give --config FILE, or --propose".into())),
    };
    let flags = [("--limit", "data.limit", args.limit.is_some()), ("--model", "model.path", args.model.is_some())];
    check_flags(&args.sets, &flags)?;
    let mut config = Config::read(path, &args.sets)?;
    let place = path.parent().unwrap_or(Path::new(""));
    config.model.path = match &args.model {
        Some(model) => paths::folder_or_name(model, Path::new("")),
        None => paths::folder_or_name(&config.model.path, place),
    };
    config.data.limit = args.limit.unwrap_or(config.data.limit);
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = args.out.clone().unwrap_or_else(|| Path::new("results").join(&name));
    let candidates =
        Source::open(&config.data.facts, Split::Test, place)?.fixed(usize::MAX, config.data.per_class.min(3));
    if args.planning.wanted() && planned(args, &config, place, &candidates)? {
        return Ok(());
    }
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&config.model.path, &device, config.model.dtype.into())?);
    let base = Edited::new(model.clone());
    let sweep = Sweep::new(&config, place, &base, &candidates)?;
    sweep.check()?;
    let cells = sweep.cells();
    if args.dry_run && args.json {
        let problems: serde_json::Map<String, Value> =
            sweep.posed.iter().map(|(problem, records)| (problem.name().to_owned(), json!(records.len()))).collect();
        let document = json!({
            "model": config.model.path, "facts": sweep.facts.len(), "unread": sweep.unread, "problems": problems,
            "editors": config.editors.len(), "layers": sweep.layers, "edits": sweep.edits(),
        });
        return print(&format!("{document:#}\n"));
    }
    if args.dry_run {
        let facts = counted(sweep.facts.len(), "fact");
        let unread = match sweep.unread {
            0 => String::new(),
            unread => format!("; {} left out that it cannot read", counted(unread, "fact")),
        };
        let said = format!(
            "{facts} that {} knows, {}, {}, {}: {}, {facts} traced{unread}\n",
            config.model.path,
            counted(sweep.posed.len(), "problem"),
            counted(config.editors.len(), "editor"),
            counted(sweep.layers.len(), "layer"),
            counted(sweep.edits(), "edit"),
        );
        return print(&said);
    }
    if folder.join("params.json").is_file() {
        return Err(Error::file(&folder, "results of `emend trace`; give another --out"));
    }
    files::check_writable(&folder)?;
    let _lock = files::lock(&folder, "another sweep writes here; wait for it, or use another --out")?;
    sweep.begin(&folder)?;
    let bar = bar(sweep.facts.len(), "tracing");
    let traces = sweep.trace(&folder.join("traces"), &|| bar.inc(1))?;
    bar.finish_and_clear();
    eprintln!("{} traced", counted(sweep.facts.len(), "fact"));
    let bar = self::bar(sweep.edits(), "");
    let mut said = Instant::now();
    for (number, cell) in cells.iter().enumerate() {
        bar.set_message(cell.name());
        sweep.run(cell, &folder, &|| bar.inc(1))?;
        if bar.is_hidden() && said.elapsed().as_secs() >= 30 {
            said = Instant::now();
            eprintln!("{} of {} problems, editors and layers", number + 1, cells.len());
        }
    }
    bar.finish_and_clear();
    let mut document = results::document(&sweep, &folder, &traces, &name, &config.locate.windows)?;
    document["model"] = json!({ "path": config.model.path, "fingerprint": model.fingerprint });
    document["config"] = json!(config);
    let facts = (0..sweep.facts.len()).map(|number| traces.read(number)).collect::<Result<Vec<_>>>()?;
    let facts: Vec<Value> = facts.into_iter().flatten().filter(|fact| !is_left_out(fact)).collect();
    let panels: Vec<Panel> = Averages::all_of(&facts).iter().map(Panel::of_averages).collect();
    let write = |name: &str, text: String| files::write(&folder.join(name), text.as_bytes());
    write("locate.json", format!("{document:#}\n"))?;
    write("locate.md", page::markdown(&document))?;
    write("locate.html", page::page(&document, &picture::svg(&panels[..])))?;
    let failed = document["failed"].as_u64().unwrap_or(0) as usize;
    if args.json {
        document["seconds"] = json!(start.elapsed().as_secs_f64());
        document["peak_memory_bytes"] = json!(peak_memory());
        print(&format!("{document:#}\n"))?;
    } else {
        print(&format!("{}\nthe report: {}\n", page::terminal(&document), folder.join("locate.html").display()))?;
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Input(format!("{} failed; the case files say why", counted(failed, "edit")))),
    }
}

/// Plans a sweep; whether nothing else is to be done. The facts are those that the model is going to be asked: which of them it knows is not known yet.
fn planned(args: &Args, config: &Config, place: &Path, candidates: &[EditRecord]) -> Result<bool> {
    let planning = Planning::open(&config.model.path, &args.device, config.model.dtype.into())?;
    let mut measured = candidates[..candidates.len().min(5 * config.data.limit)].to_vec();
    for record in &mut measured {
        record.rephrases.truncate(config.data.rephrases);
        record.locality.values_mut().for_each(|probes| probes.truncate(config.data.per_class));
    }
    let work = planning.work(Lengths::of(&planning.model.tokenizer, &measured)?);
    let mut plan = planning.plan();
    plan.held.extend(trace::held(&work, config.locate.draws, config.locate.windows.len()));
    plan.held.extend(of_editor(Sweep::held(config, place, &work)?, work.threads));
    plan.held.push(looking(&work, None));
    args.planning.settle(&plan, args.json)
}

/// A bar of a length.
pub(super) fn bar(length: usize, message: &str) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(message.to_owned());
    tell_now_and_then(&bar, "done");
    bar
}
