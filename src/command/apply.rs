//! `emend apply`: edits a model, shows what it says before and after, and keeps the edit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::train::folder_or_name;
use super::{answer, load_edits, print, show_rows};
use crate::apply::memory::Elsewhere;
use crate::apply::{Applied, Editor, Mode, apply};
use crate::archive::Archive;
use crate::config::apply::Config;
use crate::config::beside;
use crate::data::pocket;
use crate::data::record::{EditRecord, Probe};
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::score::{Scored, score};
use crate::edit::{Edit, EditRequest, Edited, hf, peft};
use crate::error::{Error, Result};
use crate::evaluate::probes::{Limits, probe_table};
use crate::evaluate::{Kind, ProbeRow, Side, balanced, counterfact, sentiment, summarize};
use crate::model::{Model, device};
use crate::parallel;
use crate::process::peak_memory;
use crate::report::figures;
use crate::report::table::percent;

/// Edit a model: what it said before and what it says after, and the edit as a file.
///
/// The model itself never changes: --save keeps the edit as a file that `emend predict --edit` lays over the model again,
/// --export writes an edited checkpoint or a LoRA adapter.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The trained editor: a folder that `emend train` wrote
    #[arg(long, value_name = "DIR", required_unless_present = "config", conflicts_with = "config")]
    pub archive: Option<PathBuf>,
    /// The configuration of an editor that needs no training
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Lay a value over the configuration
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    pub sets: Vec<String>,
    /// The sentence to edit
    #[arg(long, value_name = "TEXT", requires = "target", conflicts_with = "edits", required_unless_present = "edits")]
    pub prompt: Option<String>,
    /// What the model is to answer
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    pub target: Option<String>,
    /// The text that states the edit, where that is not the prompt with its target; these are then a first question and its answer
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    pub descriptor: Option<String>,
    /// What the fact is about; it occurs in the prompt
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    pub subject: Option<String>,
    /// Another way to ask for the fact, to be looked at too
    #[arg(long = "rephrase", value_name = "TEXT", requires = "prompt")]
    pub rephrases: Vec<String>,
    /// A prompt that the edit should leave alone, to be looked at too
    #[arg(long = "unrelated", value_name = "TEXT", requires = "prompt")]
    pub unrelated: Vec<String>,
    /// Records: a file (CounterFact, zsRE, KnowEdit, or emend's own form), a fetched set (NAME[from..to] for a part of
    /// it), or `pocket`
    #[arg(long, value_name = "RECORDS")]
    pub edits: Option<PathBuf>,
    /// At most so many records of these
    #[arg(long, value_name = "N", requires = "edits")]
    pub limit: Option<usize>,
    /// How several edits are made: each by itself, all at once, or one on the other
    #[arg(long, value_enum, default_value = "single")]
    pub mode: Mode,
    /// Use another model than the archive's base, or the configuration's
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Go on where the archive or an edit was made on another base
    #[arg(long)]
    pub allow_other_base: bool,
    /// Lay a saved edit over the model first
    #[arg(long = "edit", value_name = "FILE")]
    pub under: Vec<PathBuf>,
    /// Keep the edit as a file; one a record in single mode
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Add the edit to this memory, which is made where it does not exist (serac, ike, lookup)
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    pub memory: Option<PathBuf>,
    /// Write the edited model (hf) or a LoRA adapter (peft) into a folder
    #[arg(long, num_args = 2, value_names = ["FORMAT", "DIR"])]
    pub export: Option<Vec<String>>,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Prompts about other things, for a request that comes with none.
const UNRELATED: [&str; 3] = ["The capital of Japan is", "Water is made of hydrogen and", "The largest planet is"];

/// Neighbours of each class that a fact of the embedded world is given.
const NEIGHBOURS: usize = 2;

/// Records that are shown in full.
const SHOWN: usize = 3;

/// Runs the command.
///
/// # Errors
/// An archive, model, request or file that is wrong; files that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let device = device(&args.device)?;
    // Its length is known once the records are.
    let bar = ProgressBar::no_length();
    let (name, model, editor) = editor(args, &device, &bar)?;
    let name = &name;
    if args.memory.is_some() && !editor.remembers() {
        let (method, _) = editor.describe();
        return Err(Error::Config(format!(
            "--memory: {method} changes weights and keeps no memory; serac, ike and lookup do; --save keeps this edit"
        )));
    }
    // What a memory holds already stays under the new edits.
    let known = args.memory.iter().filter(|file| file.exists());
    let under: Vec<PathBuf> = args.under.iter().chain(known).cloned().collect();
    let before = {
        let elsewhere = args.archive.as_deref().map_or(Elsewhere::Nowhere, Elsewhere::IfMissing);
        load_edits(Edited::new(model.clone()), &under, elsewhere, args.allow_other_base)?
    };
    let records = records(args, name)?;
    if args.memory.is_some() && args.mode == Mode::Single && records.len() > 1 {
        let message = "--memory takes several records together: use --mode batch or --mode sequential";
        return Err(Error::Config(message.into()));
    }
    check_outputs(args, records.len())?;
    let requests: Vec<EditRequest> = records.iter().map(EditRequest::from).collect();
    let loaded = start.elapsed().as_secs_f64();

    bar.set_length(requests.len() as u64);
    bar.reset_eta();
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} edits {per_sec} {eta}") {
        bar.set_style(style);
    }
    let editing = Instant::now();
    // In a sequence, what the model said right after an edit stands beside what it says at the end.
    let mut immediate: Vec<Vec<Value>> = vec![];
    let applied = apply(editor.as_ref(), &before, &requests, args.mode, &mut |number, after| {
        if args.mode != Mode::Batch {
            bar.inc(1);
        }
        if args.json && args.mode == Mode::Sequential {
            let table = probe_table(&before, after, &[(number, &records[number])], Limits::default())?;
            immediate.push(table.iter().map(|row| side(after, &row.prompt, &row.after)).collect::<Result<_>>()?);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    let edited = editing.elapsed().as_secs_f64();

    // What took long is kept before anything else can go wrong; what a memory cannot be asked is not added to it.
    let mut saved = save(args, &applied)?;
    let numbered: Vec<(usize, &EditRecord)> = records.iter().enumerate().collect();
    let parts = numbered.chunks(numbered.len().div_ceil(parallel::parts(&device)));
    let tables = parallel::run(parts.collect(), |part: &[(usize, &EditRecord)]| {
        let tables = part.iter().map(|&(number, record)| {
            let table = probe_table(&before, &applied.after[number], &[(number, record)], Limits::default());
            table.map_err(|error| error.of_record(number))
        });
        tables.collect::<Result<Vec<_>>>()
    })?;
    let tables = tables.concat();
    if let Some(path) = &args.memory {
        saved = remember(path, &applied)?;
    }
    let known = tables.iter().flatten().filter(|row| row.kind == Kind::Rewrite && row.before.exact()).count();
    match (known, records.len()) {
        (0, _) => {}
        (_, 1) => tracing::warn!("\"{}\" is what the model answers already", records[0].target_new),
        (known, all) => tracing::warn!("{known} of {all} targets are what the model answers already"),
    }
    let exported = export(args, &before, &applied, &records)?;
    let (method, settings) = editor.describe();
    if args.json {
        let table = tables.concat();
        let requests = (0..records.len()).map(|number| {
            request_json(&before, &applied.after[number], &records[number], &tables[number], immediate.get(number))
        });
        let document = json!({
            "method": method,
            "mode": args.mode.name(),
            "settings": settings,
            "base": { "model": name, "fingerprint": model.fingerprint },
            "edits": applied.edits.iter().map(|edit| edit.id()).collect::<Vec<_>>(),
            "findings": applied.edits.iter().map(|edit| &edit.provenance.findings).collect::<Vec<_>>(),
            "requests": requests.collect::<Result<Vec<Value>>>()?,
            "summary": { "protocol": "mend", "figures": summarize(&table) },
            "counterfact": {
                "before": counterfact(&table, Side::Before),
                "after": counterfact(&table, Side::After),
            },
            "balanced": {
                "before": balanced(&table, Side::Before),
                "after": balanced(&table, Side::After),
            },
            "sentiment": {
                "before": sentiment(&table, Side::Before),
                "after": sentiment(&table, Side::After),
            },
            "saved": saved,
            "exported": exported,
            "seconds": { "load": loaded, "edit": edited, "all": start.elapsed().as_secs_f64() },
            "peak_memory_bytes": peak_memory(),
        });
        return print(&format!("{document:#}\n"));
    }
    let mut text = String::new();
    for (number, table) in tables.iter().enumerate().take(SHOWN) {
        text += &format!("{} → {}\n\n", records[number].prompt, records[number].target_new);
        let shown: Vec<&ProbeRow> = shown(table);
        text += &show_rows(&before, &applied.after[number], &shown)?;
        text.push('\n');
    }
    if let Some(bars) = figures::neurons_by_layer(applied.edits.iter().map(|edit| &edit.provenance.findings)) {
        text += &format!("{bars}\n");
    }
    if records.len() > 1 {
        let table = tables.concat();
        text += &format!("{}\n", figures::mend(&summarize(&table)));
        let (before, after) = (Side::Before, Side::After);
        let protocols = [
            figures::counterfact(&counterfact(&table, before), &counterfact(&table, after)),
            figures::balanced(&balanced(&table, before), &balanced(&table, after)),
            figures::sentiment(&sentiment(&table, before), &sentiment(&table, after)),
        ];
        for figures in protocols.into_iter().flatten() {
            text += &format!("{figures}\n");
        }
    }
    for line in saved
        .iter()
        .map(|path| format!("saved {}\n", path.display()))
        .chain(exported.iter().filter_map(|report| report["message"].as_str().map(|message| format!("{message}\n"))))
    {
        text += &line;
    }
    print(&text)
}

/// The model's name, the model, and the editor of an archive or of a configuration.
fn editor(args: &Args, device: &Device, bar: &ProgressBar) -> Result<(String, Arc<Model>, Box<dyn Editor>)> {
    if let Some(folder) = &args.archive {
        let archive = Archive::open(folder)?;
        let base = &archive.description.base;
        let name = args.model.as_ref().unwrap_or(&base.path).clone();
        let model = Arc::new(Model::load(&name, device, base.dtype.into())?);
        let editor = archive.editor(&model, args.allow_other_base, device)?;
        return Ok((name, model, Box::new(editor)));
    }
    let path = args.config.clone().unwrap_or_default();
    let config = Config::read(&path, &args.sets)?;
    let name = match &args.model {
        Some(model) => folder_or_name(Path::new(model), model),
        None => folder_or_name(&beside(&path, &config.model.path), &config.model.path),
    };
    let model = Arc::new(Model::load(&name, device, config.model.dtype.into())?);
    let (in_batch, bar) = (args.mode == Mode::Batch, bar.clone());
    let progress = move |done: usize| bar.inc(if in_batch { done as u64 } else { 0 });
    let editor = config.editor.editor(&model, &name, path.parent().unwrap_or(Path::new("")), Box::new(progress))?;
    Ok((name, model, editor))
}

/// A few probes of each kind, one of each locality class first.
fn shown(table: &[ProbeRow]) -> Vec<&ProbeRow> {
    let of = |kind: Kind, most: usize| table.iter().filter(move |row| row.kind == kind).take(most);
    let mut classes: Vec<&str> = vec![];
    let near: Vec<&ProbeRow> = table
        .iter()
        .filter(|row| row.kind == Kind::Locality)
        .filter(|row| {
            let class = row.class.as_deref().unwrap_or_default();
            let again = classes.iter().filter(|known| **known == class).count();
            classes.push(class);
            again < 3
        })
        .take(5)
        .collect();
    of(Kind::Rewrite, 1).chain(of(Kind::Rephrase, 3)).chain(near).chain(of(Kind::Portability, 3)).collect()
}

/// Sees that the results can be written before the work is done.
fn check_outputs(args: &Args, records: usize) -> Result<()> {
    if let Some(path) = args.save.as_ref().or(args.memory.as_ref()) {
        if path.is_dir() {
            return Err(Error::file(path, "a directory, not a file; --save and --memory name a file"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        crate::files::check_writable(folder)?;
    }
    if args.export.is_some() && args.mode == Mode::Single && records > 1 {
        let message = "--export takes one edited model: with several records use --mode batch or --mode sequential";
        return Err(Error::Config(message.into()));
    }
    if let Some(export) = &args.export
        && std::fs::read_dir(&export[1]).is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Error::file(&export[1], "the folder is not empty; give a new one"));
    }
    if let Some(export) = &args.export
        && !matches!(export[0].as_str(), "hf" | "peft")
    {
        return Err(Error::Config(format!("--export {}: the formats are hf and peft", export[0])));
    }
    Ok(())
}

/// The records to edit: of the file, or the one on the command line.
fn records(args: &Args, model: &str) -> Result<Vec<EditRecord>> {
    if let Some(path) = &args.edits {
        let source = Source::open(&path.to_string_lossy(), Split::Test, Path::new(""))?;
        let records = source.fixed(0, args.limit.unwrap_or(usize::MAX), NEIGHBOURS);
        if records.is_empty() {
            return Err(Error::Input(format!("{}: there is no record to edit", path.display())));
        }
        return Ok(records);
    }
    let prompt = args.prompt.as_deref().unwrap_or_default().trim_end().to_owned();
    let target = args.target.as_deref().unwrap_or_default().trim().to_owned();
    if prompt.is_empty() || target.is_empty() {
        return Err(Error::Config("--prompt and --target must hold at least a word each".into()));
    }
    if let Some(subject) = &args.subject
        && !prompt.contains(subject.as_str())
    {
        return Err(Error::Config(format!("--subject \"{subject}\" does not occur in --prompt \"{prompt}\"")));
    }
    // Of a fact of the embedded world we know other ways to ask, and its neighbours.
    let known = if model == pocket::NAME { pocket::world()?.about(&prompt) } else { None };
    let mut record = known.unwrap_or_default();
    let probe = |prompt: &str| Probe::new(prompt, None);
    if !args.rephrases.is_empty() {
        record.rephrases.clone_from(&args.rephrases);
    }
    if !args.unrelated.is_empty() {
        record.locality =
            [("unrelated".to_owned(), args.unrelated.iter().map(|prompt| probe(prompt)).collect())].into();
    } else if record.locality.is_empty() {
        record.locality = [("unrelated".to_owned(), UNRELATED.map(probe).to_vec())].into();
    }
    record.id = "0".into();
    record.prompt = prompt;
    record.target_new = target;
    record.subject = args.subject.clone().or(record.subject);
    record.descriptor = args.descriptor.as_ref().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    Ok(vec![record])
}

/// Writes the edit files and gives their paths.
fn save(args: &Args, applied: &Applied) -> Result<Vec<PathBuf>> {
    let Some(path) = &args.save else { return Ok(vec![]) };
    if args.mode == Mode::Single && applied.edits.len() > 1 {
        let digits = applied.edits.len().to_string().len();
        let paths: Vec<PathBuf> = (0..applied.edits.len()).map(|number| numbered(path, number, digits)).collect();
        for (edit, path) in applied.edits.iter().zip(&paths) {
            edit.save(path)?;
        }
        return Ok(paths);
    }
    match applied.edits.as_slice() {
        [edit] => edit.save(path)?,
        edits => Edit::join(edits)?.save(path)?,
    }
    Ok(vec![path.clone()])
}

/// Adds the edits to a memory's file.
fn remember(path: &Path, applied: &Applied) -> Result<Vec<PathBuf>> {
    let known = match path.exists() {
        true => Some(Arc::new(Edit::load(path, &Device::flex())?)),
        false => None,
    };
    let edits: Vec<Arc<Edit>> = known.into_iter().chain(applied.edits.iter().cloned()).collect();
    let wrong = |error| match error {
        input @ (Error::Input(_) | Error::Record { .. }) => Error::file(path, input),
        other => other,
    };
    Edit::join_memories(&edits).map_err(wrong)?.save(path)?;
    Ok(vec![path.to_owned()])
}

/// `facts.edit.safetensors` and 7 → `facts-07.edit.safetensors`.
fn numbered(path: &Path, number: usize, digits: usize) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (stem, rest) = name.split_once('.').unwrap_or((&name, "edit.safetensors"));
    path.with_file_name(format!("{stem}-{number:0digits$}.{rest}"))
}

/// Writes the checkpoint or adapter; says what rounding did to the edits.
fn export(args: &Args, before: &Edited, applied: &Applied, records: &[EditRecord]) -> Result<Option<Value>> {
    let Some(export) = &args.export else { return Ok(None) };
    let folder = Path::new(&export[1]);
    let Some(after) = applied.after.last() else { return Ok(None) };
    if export[0] == "peft" {
        let rank = peft::export(after, folder)?;
        let message = format!("exported a LoRA adapter of rank {rank} to {}", folder.display());
        return Ok(Some(json!({"format": "peft", "folder": folder, "rank": rank, "message": message})));
    }
    let report = hf::export(after, folder)?;
    // What counts is what the rounded weights say.
    let rounded =
        Model::load(&folder.to_string_lossy(), &before.base().decoder.device(), before.base().decoder.dtype())?;
    let rounded = Edited::new(Arc::new(rounded));
    let tokenizer = &before.base().tokenizer;
    let texts = records
        .iter()
        .map(|record| tokenizer.continuation(&record.prompt, &record.target_new))
        .collect::<Result<Vec<_>>>()?;
    let exact = |model: &Edited| -> Result<Vec<bool>> {
        Ok(score(&[model], &texts)?.remove(0).iter().map(|scored| scored.exact()).collect())
    };
    let (ours, theirs) = (exact(after)?, exact(&rounded)?);
    let lost: Vec<&str> =
        (0..records.len()).filter(|&i| ours[i] && !theirs[i]).map(|i| records[i].prompt.as_str()).collect();
    let mut message = format!(
        "exported to {}: {} of {} tensors changed, {} of the changed elements lost to rounding, {} of {} edits hold in the rounded weights",
        folder.display(),
        report.changed,
        report.tensors,
        percent(Some(report.lost_to_rounding)),
        theirs.iter().filter(|holds| **holds).count(),
        records.len(),
    );
    if !lost.is_empty() {
        message += &format!("; lost to rounding: \"{}\"", lost.join("\", \""));
    }
    Ok(Some(json!({
        "format": "hf",
        "folder": folder,
        "changed_tensors": report.changed,
        "lost_to_rounding": report.lost_to_rounding,
        "edits_lost_to_rounding": lost,
        "message": message,
    })))
}

/// What a model says to a probe.
fn side(model: &Edited, prompt: &str, scored: &Scored) -> Result<Value> {
    let answer = answer(model, prompt)?.text;
    Ok(json!({"answer": answer, "target_probability": scored.probability(), "target_nll": scored.nll()}))
}

fn request_json(
    before: &Edited,
    after: &Edited,
    record: &EditRecord,
    table: &[ProbeRow],
    immediate: Option<&Vec<Value>>,
) -> Result<Value> {
    let probes = table.iter().enumerate().map(|(index, row)| {
        let mut probe = json!({
            "kind": row.kind,
            "class": row.class,
            "prompt": row.prompt,
            "target": row.target,
            "tokenised_apart": row.apart,
            "before": side(before, &row.prompt, &row.before)?,
            "after": side(after, &row.prompt, &row.after)?,
        });
        if let Some(immediate) = immediate {
            probe["immediate"] = immediate[index].clone();
        }
        Ok(probe)
    });
    Ok(json!({
        "id": record.id,
        "prompt": record.prompt,
        "target_new": record.target_new,
        "probes": probes.collect::<Result<Vec<Value>>>()?,
    }))
}
