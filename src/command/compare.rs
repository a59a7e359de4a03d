//! `emend compare`: several editors on the same cases, with the same metrics, and a report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::chat::ChatArgs;
use super::plan::{PlanArgs, Planning};
use super::print;
use super::steps::tell_now_and_then;
use crate::apply::Mode;
use crate::compare::compared_editor::ComparedEditor;
use crate::compare::curves::{self, curves};
use crate::compare::document::{Entry, document};
use crate::compare::layout::Run;
use crate::compare::shard::Shard;
use crate::compare::{Looks, run as run_cases};
use crate::config::check_flags;
use crate::config::compare::{Competitor, Config};
use crate::data::objective::Objective;
use crate::data::plain_questions;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::data::text::Documents;
use crate::data::world::Split;
use crate::device;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::evaluate::probes::Limits;
use crate::evaluate::{LOOKING, Snippets, Summary, WatchedText, looking};
use crate::files;
use crate::model::Model;
use crate::paths;
use crate::plan::{EDITING, Held, Lengths};
use crate::process::forget_peak_memory;
use crate::report::curves::Curves;
use crate::report::{html, picture, summary};

/// Tokens of a reply in a chat at most, where the config does not say so.
const REPLY: usize = 64;

/// Compare editors: the same cases, seeds and protocols for all, with intervals and tests, and a report to look at.
///
/// Writes results/NAME/METHOD/run_000/ with params.json and a file for each case, laid out as in the ROME suite. Stopped or
/// killed and started again, it goes on with the cases that are left.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "summarize", conflicts_with = "summarize")]
    pub config: Option<PathBuf>,
    /// Make all tables and the report anew, from the case files of these results alone
    #[arg(long, value_name = "DIR", conflicts_with_all = ["plan", "memory_limit"])]
    pub summarize: Option<PathBuf>,
    /// The folder of the results; results/NAME, after the configuration's name, unless given
    #[arg(long, value_name = "DIR", conflicts_with = "summarize")]
    pub out: Option<PathBuf>,
    /// At most so many cases
    #[arg(long, value_name = "N", conflicts_with = "summarize")]
    pub limit: Option<usize>,
    /// How the edits are made: each by itself, all at once, or one on the other
    #[arg(long, value_enum, conflicts_with = "summarize")]
    pub mode: Option<crate::apply::Mode>,
    /// Only these editors; may be given several times
    #[arg(long = "only", value_name = "NAME", conflicts_with = "summarize")]
    pub only: Vec<String>,
    /// Use another model than the configuration's
    #[arg(long, value_name = "MODEL", conflicts_with = "summarize")]
    pub model: Option<String>,
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Only a part of the cases, the third of sixteen as 3/16: so many processes, on one machine or on several over one folder, share the work, and
    /// --summarize makes the tables of what they made
    #[arg(long, value_name = "K/N", conflicts_with = "summarize")]
    pub shard: Option<String>,
    /// Lay a value over the configuration
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "summarize")]
    pub sets: Vec<String>,
    /// Draw edit success and locality over the number of edits, of all editors that have curves, as .svg or .png
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    pub plot: Option<PathBuf>,
    /// Reference texts, for the reference score of what was written (tf-idf; cases of compare.texts)
    #[arg(long, value_name = "FILE")]
    pub snippets: Option<PathBuf>,
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
/// A configuration, model, archive or file that is wrong; cases that failed, once the others are done.
pub fn run(args: &Args) -> Result<()> {
    // Told before hours of work, not after them.
    if let Some(path) = args.snippets.as_ref().filter(|path| !path.is_file()) {
        return Err(Error::file(path, "no file of reference texts here"));
    }
    args.plot.iter().try_for_each(|path| picture::check_name(path).and_then(|()| files::check_file(path)))?;
    let (folder, failed) = match (&args.config, &args.summarize) {
        (_, Some(folder)) => (folder.clone(), 0),
        (Some(path), None) => match compare(args, path)? {
            Some(done) => done,
            None => return Ok(()),
        },
        (None, None) => return Err(Error::Config("give --config FILE or --summarize DIR".into())),
    };
    match &args.shard {
        // The others' cases are not there yet.
        Some(shard) => print(&format!(
            "shard {shard} is done; when all are, `emend compare --summarize {}` makes the tables\n",
            folder.display()
        ))?,
        None => summarize(args, &folder)?,
    }
    if failed > 0 {
        return Err(Error::Input(format!(
            "{failed} case(s) failed, points of curves included; the report says why, and a case whose file is removed is tried again"
        )));
    }
    Ok(())
}

/// Runs all editors over all cases that are left.
/// Gives their folder and how many failed; nothing where only a plan was wanted.
fn compare(args: &Args, path: &Path) -> Result<Option<(PathBuf, usize)>> {
    let shard: Shard = args.shard.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    let flags = [
        ("--limit", "data.limit", args.limit.is_some()),
        ("--mode", "compare.mode", args.mode.is_some()),
        ("--model", "model.path", args.model.is_some()),
    ];
    check_flags(&args.sets, &flags)?;
    let mut config = Config::read(path, &args.chat.with_sets(&args.sets))?;
    config.model.path = match &args.model {
        Some(model) => paths::folder_or_name(model, Path::new("")),
        None => paths::folder_or_name(&config.model.path, path.parent().unwrap_or(Path::new(""))),
    };
    config.compare.mode = args.mode.unwrap_or(config.compare.mode);
    config.data.limit = args.limit.unwrap_or(config.data.limit);
    if let Some(strange) = args.only.iter().find(|name| config.editors.iter().all(|editor| editor.name != **name)) {
        let known: Vec<&str> = config.editors.iter().map(|editor| editor.name.as_str()).collect();
        return Err(Error::Config(format!("--only {strange}: the editors are {}", known.join(", "))));
    }
    if args.plot.is_some() && config.compare.curve.is_empty() {
        return Err(Error::Config(
            "--plot draws curves, and the configuration asks for none; --set 'compare.curve=[1, 10, 100]' does".into(),
        ));
    }
    let place = path.parent().unwrap_or(Path::new(""));
    let folder = match &args.out {
        Some(out) => out.clone(),
        None => Path::new("results").join(path.file_stem().unwrap_or_default()),
    };
    let cases = records(&config, place)?;
    let chosen: Vec<&Competitor> =
        config.editors.iter().filter(|editor| args.only.is_empty() || args.only.contains(&editor.name)).collect();
    if args.planning.wanted() && planned(args, &config, place, &cases, &chosen)? {
        return Ok(None);
    }
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&config.model.path, &device, config.model.dtype.into())?);
    let more = config.data.asking().put(cases, &model.tokenizer)?;
    let records = &more[..most_cases(&config).min(more.len())];
    let compared = chosen.iter().map(|editor| ComparedEditor::open(editor, place, &model, &config.model.path));
    let compared = compared.collect::<Result<Vec<_>>>()?;
    let base = Edited::new(model.clone());
    check_objectives(&config, &chosen, (place, &model), records)?;
    let compare = &config.compare;
    let text = watched_text(&config, place, &model)?;
    let looks = Looks {
        limits: Limits { rephrases: config.data.rephrases, per_class: config.data.per_class, rivals: true },
        generate: compare.generate,
        // A chat model begins its reply with the question.
        answer_tokens: compare.answer_tokens.or(config.data.chat.then_some(REPLY)),
        texts: compare.texts,
        perplexity: config.text_cases(),
        text: &text,
        seed: compare.seed,
        memory_before: None,
    };
    let sizes: Vec<usize> = compare.curve.iter().copied().filter(|&edits| edits <= more.len()).collect();
    if let Some(edits) = compare.curve.iter().find(|edits| !sizes.contains(edits)) {
        tracing::warn!("no curve reaches {edits} edits: of cases there are {}", more.len());
    }
    files::check_writable(&folder)?;
    let busy = "another comparison writes here; wait for it, or use another --out";
    let _lock = match shard.is_part() {
        true => files::lock_part(&folder, &format!("shard-{}", shard.to_string().replace('/', "-of-")), busy)?.into(),
        false => vec![files::lock(&folder, busy)?],
    };
    let mut failed = 0;
    for (number, (editor, compared_editor)) in chosen.iter().zip(compared).enumerate() {
        let clock = Instant::now();
        // Begun anew for each editor. What one has freed the allocator may keep: only the first is measured by itself.
        let held = forget_peak_memory();
        let looks = Looks { memory_before: held.filter(|_| number == 0), ..looks };
        let (made, params) = compared_editor.editor(&config, &model, records, &text.rows)?;
        let run = match shard.is_part() {
            true => Run::shared(&folder.join(&editor.name), params)?,
            false => Run::continued(&folder.join(&editor.name), params)?,
        };
        // A broken file is told before hours of work, not after them.
        run.cases()?;
        let own = || records.iter().enumerate().filter(|(number, _)| shard.has(*number)).map(|(_, record)| record);
        let left = own().filter(|record| !run.path(&record.id).is_file()).count();
        // The curves of an editor are one shard's.
        let points = if editor.curve && shard.has(number) { sizes.len() * 2 } else { 0 };
        let bar = ProgressBar::new((own().count() + points) as u64);
        if let Ok(style) = ProgressStyle::with_template("{msg:14} {wide_bar} {pos}/{len} {per_sec} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(editor.name.clone());
        tell_now_and_then(&bar, "cases");
        let watch = || bar.inc(1);
        run_cases(made.as_ref(), &base, records, compare.mode, looks, (&run, shard), &watch)?;
        let mut curve = vec![];
        if points > 0 {
            curve = curves(made.as_ref(), &base, &more, &sizes, &text, &run.points(), &watch)?;
        }
        bar.finish_and_clear();
        let mut lost = run.cases()?.values().filter(|case| case.error.is_some()).count();
        lost += curve.iter().filter(|point| point.error.is_some()).count();
        failed += lost;
        eprintln!("{:14} {left} cases in {:.0} s, {lost} failed", editor.name, clock.elapsed().as_secs_f64());
    }
    Ok(Some((folder, failed)))
}

/// Plans a comparison; whether nothing else is to be done.
fn planned(args: &Args, config: &Config, place: &Path, cases: &[EditRecord], chosen: &[&Competitor]) -> Result<bool> {
    let planning = Planning::open(&config.model.path, &args.device, config.model.dtype.into())?;
    let tokenizer = &planning.model.tokenizer;
    let mut cases = config.data.asking().put(cases.to_vec(), tokenizer)?;
    cases.truncate(most_cases(config).max(config.compare.curve.last().copied().unwrap_or(0)));
    let work = planning.work(Lengths::of(tokenizer, &cases)?);
    let batch = if config.compare.mode == Mode::Batch { cases.len().min(most_cases(config)) } else { 1 };
    let side_by_side = if config.compare.mode == Mode::Single { work.threads.min(cases.len()) } else { 1 };
    let mut plan = planning.plan();
    let (mut largest, mut kept) = ((0, vec![]), 0);
    for editor in chosen {
        let together = config.compare.curve.last().copied().filter(|_| editor.curve).unwrap_or(1).max(batch);
        let single = ComparedEditor::held(editor, place, &work, 1)?;
        kept += single.kept;
        let many = ComparedEditor::held(editor, place, &work, together)?;
        let edit = (side_by_side as u64 * single.edit).max(many.edit);
        if edit >= largest.0 {
            let what = |of: &str| format!("{}: {of}", editor.name);
            let meanwhile = (side_by_side as u64 - 1) * single.edit;
            largest = (
                edit,
                vec![
                    Held::during(
                        EDITING,
                        what(&format!("{side_by_side} edits side by side, or {together} at once")),
                        edit,
                    ),
                    Held::during(LOOKING, what("edits that are made meanwhile"), meanwhile),
                ],
            );
        }
    }
    // What one editor has freed the allocator may keep.
    plan.held.push(Held::always("what editors keep from edit to edit", kept));
    plan.held.extend(largest.1);
    plan.held.push(looking(
        &work,
        (config.text_cases() > 0 || !config.compare.curve.is_empty()).then_some(config.compare.text_tokens),
    ));
    args.planning.settle(&plan, args.json)
}

/// The cases, each with an id of its own, and behind them those of the curves, which may go on further.
fn records(config: &Config, place: &Path) -> Result<Vec<EditRecord>> {
    let source = Source::open(&config.data.cases, Split::Test, place)?;
    let most = most_cases(config).max(config.compare.curve.last().copied().unwrap_or(0));
    let mut records = source.fixed(most, config.data.per_class.min(3));
    if config.data.plain_questions {
        plain_questions(&mut records);
    }
    if records.is_empty() {
        return Err(Error::Input(format!("{}: no case is left to compare on", config.data.cases)));
    }
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, record) in records.iter().enumerate() {
        if let Some(first) = known.insert(&record.id, number) {
            return Err(Error::Input(format!(
                "{}: records {first} and {number} have the same id {}; give each its own",
                config.data.cases, record.id
            )));
        }
    }
    Ok(records)
}

/// How many cases are compared on.
fn most_cases(config: &Config) -> usize {
    if config.data.limit == 0 { usize::MAX } else { config.data.limit }
}

/// Sees that every editor takes the objectives of all records, where there are any, before one of them begins.
fn check_objectives(
    config: &Config,
    chosen: &[&Competitor],
    (place, model): (&Path, &Arc<Model>),
    records: &[EditRecord],
) -> Result<()> {
    let wanted = records.iter().filter_map(|record| record.objective).find(|wanted| *wanted != Objective::Raise);
    let Some(wanted) = wanted else { return Ok(()) };
    for editor in chosen {
        let (made, _) =
            ComparedEditor::open(editor, place, model, &config.model.path)?.editor(config, model, records, &[])?;
        if !made.takes(&wanted) {
            let name = &editor.name;
            return Err(Error::Config(format!(
                "editors: {name} takes no objective \"{}\", which a record has; fine_tuning, lora, rome and memit do; leave {name} out (--only)",
                wanted.name()
            )));
        }
    }
    Ok(())
}

/// The text whose perplexity is watched.
fn watched_text(config: &Config, place: &Path, model: &Model) -> Result<WatchedText> {
    let Some(name) = config.text() else { return Ok(WatchedText::default()) };
    let documents = Documents::open(name, Split::Test, place, "text")?;
    WatchedText::open(name, &documents, config.compare.text_tokens, model)
}

/// Makes the summary and the report from the case files.
fn summarize(args: &Args, folder: &Path) -> Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map_err(Error::io(folder))?
        .flatten()
        .filter(|entry| Run::any(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(Error::file(
            folder,
            "no results here: no METHOD/run_000; `emend compare --config FILE` makes them",
        ));
    }
    let mut entries = vec![];
    for name in names {
        let run = Run::last(&folder.join(&name))?;
        let cases = run.cases()?;
        if cases.is_empty() {
            tracing::warn!("{}: no case yet, left out", run.folder.display());
            continue;
        }
        let points = curves::read(&run.points())?;
        for point in &points {
            let place = format!("{name}, {} edits, {}", point.edits, point.mode);
            match &point.error {
                Some(error) => tracing::warn!("{place}: no point of the curve: {error}"),
                None if point.collapsed => tracing::warn!("{place}: the model has collapsed"),
                None => {}
            }
        }
        entries.push(Entry { name, params: run.params, cases: cases.into_values().collect(), points });
    }
    if entries.is_empty() {
        return Err(Error::file(folder, "no case is left to summarize"));
    }
    // ROME's snippets name their targets by ids alone.
    let cases = entries.iter().flat_map(|entry| &entry.cases);
    let names = cases.filter_map(|case| Some((case.target_id.clone()?, case.request.target_new.clone()))).collect();
    let snippets = args.snippets.as_ref().map(|path| Snippets::open(path, &names)).transpose()?;
    let seed = entries[0].params["seed"].as_u64().unwrap_or(0);
    let title = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let document = document(&title, &entries, snippets.as_ref(), seed);
    let mut short = document.clone();
    if let Some(short) = short.as_object_mut() {
        short.remove("cases");
    }
    let write = |name: &str, text: String| files::write(&folder.join(name), text.as_bytes());
    write("summary.json", format!("{short:#}\n"))?;
    write("summary.csv", summary::csv(&document))?;
    write("summary.md", summary::markdown(&document))?;
    write("report.html", html::page(&document, &title))?;
    if let Some(path) = &args.plot {
        let panels = panels(&entries);
        if panels.is_empty() {
            return Err(Error::file(
                folder,
                "no curves here to draw; `compare.curve` in the configuration asks for them",
            ));
        }
        picture::write(path, &panels[..])?;
    }
    if args.json {
        return print(&format!("{short:#}\n"));
    }
    let report = folder.join("report.html");
    print(&format!("{}\nthe report: {}\n", summary::terminal(&summary::headlines(&short)), report.display()))
}

/// Edit success and locality over the number of edits, a panel for each and for each way in which the edits were made.
fn panels(entries: &[Entry]) -> Vec<Curves> {
    let modes = [(Mode::Batch, "edits in one batch"), (Mode::Sequential, "edits one after the other")];
    type Figure = fn(&Summary) -> Option<f64>;
    let figures: [(&str, Figure); 2] =
        [("edit success", |figures| figures.edit_success), ("locality", |figures| figures.locality)];
    let mut panels = vec![];
    for (mode, axis) in modes {
        for (title, figure) in figures {
            let values = entries.iter().map(|entry| {
                let points = entry.points.iter().filter(|point| point.mode == mode.name());
                let points = points.filter_map(|point| Some([point.edits as f64, figure(&point.figures)?]));
                (entry.name.clone(), points.collect::<Vec<_>>())
            });
            let values: Vec<_> = values.filter(|(_, points)| !points.is_empty()).collect();
            if !values.is_empty() {
                panels.push(Curves { title: title.into(), axis: axis.into(), logarithmic: true, top: 1.0, values });
            }
        }
    }
    panels
}
