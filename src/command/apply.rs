//! `emend apply`: edits a model, shows what it says before and after, and keeps the edit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::chat::ChatArgs;
use super::export::{Format, check_folder};
use super::plan::{PlanArgs, Planning, of_editor};
use super::steps::tell_now_and_then;
use super::{keep_state, load_edits, print, show_rows, state_is_kept, stop};
use crate::apply::memory::Elsewhere;
use crate::apply::{Applied, Editor, Mode, apply};
use crate::archive::{Archive, Best};
use crate::config::apply::Config;
use crate::config::check_flags;
use crate::data::asking::Asking;
use crate::data::beside::with_questions;
use crate::data::pocket;
use crate::data::record::{EditRecord, Probe};
use crate::data::source::Source;
use crate::data::text::Documents;
use crate::data::unicode;
use crate::data::world::Split;
use crate::device;
use crate::edit::{Edit, EditRequest, Edited, not_exported};
use crate::error::{Error, Result};
use crate::evaluate::answers::{probes_json, said_json};
use crate::evaluate::looking;
use crate::evaluate::perplexity::WATCHED_TOKENS;
use crate::evaluate::probes::{Limits, probe_table};
use crate::evaluate::{
    Kind, PerplexityRatio, ProbeRow, Side, Summary, WatchedText, balanced, completion, counterfact, sentiment,
    summarize,
};
use crate::model::Model;
use crate::model::chat::Chat;
use crate::model::separator::without_last_space;
use crate::plan::{Lengths, OfEditor};
use crate::process::peak_memory;
use crate::report::figures;
use crate::report::table::{cut, percent};
use crate::sections::within;
use crate::{files, parallel, paths};

/// Edit a model: what it said before and what it says after, and the edit as a file.
///
/// The model itself never changes: --save keeps the edit as a file that `emend predict --edit` lays over the model again,
/// --export writes an edited checkpoint or a LoRA adapter, and `emend export` does so later.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("made_of").required(true))]
pub struct Args {
    /// The trained editor: a folder that `emend train` wrote
    #[arg(long, value_name = "DIR", group = "made_of")]
    pub archive: Option<PathBuf>,
    /// The configuration of an editor that needs no training
    #[arg(long, value_name = "FILE", group = "made_of")]
    pub config: Option<PathBuf>,
    /// Lay a value over the configuration
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config", conflicts_with = "archive")]
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
    /// it), `pocket`, or `-` for standard input
    #[arg(long, value_name = "RECORDS", allow_hyphen_values = true)]
    pub edits: Option<PathBuf>,
    /// At most so many records of these
    #[arg(long, value_name = "N", requires = "edits", conflicts_with = "prompt")]
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
    /// Add the edit to this memory, which is made where it does not exist (serac, ike, lookup, grace, wise)
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    pub memory: Option<PathBuf>,
    /// Write the edited model (hf), or a LoRA adapter for PEFT (peft) or llama.cpp (gguf-lora), into a folder; may be given for each
    #[arg(long, num_args = 2, value_names = ["FORMAT", "DIR"])]
    pub export: Vec<String>,
    /// A running text to read before and after: `pocket`, `wikitext` (fetched), or a file of text, JSON or JSONL; with the
    /// pocket model `pocket` unless given
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Tokens of that text that are read
    #[arg(long, default_value_t = WATCHED_TOKENS, value_name = "N")]
    pub text_tokens: usize,
    /// Warn where the text's perplexity rises by more than this factor
    #[arg(long, default_value_t = 1.1, value_name = "FACTOR")]
    pub text_limit: f64,
    #[command(flatten)]
    pub chat: ChatArgs,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    #[command(flatten)]
    pub planning: PlanArgs,
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Neighbours of each class that a fact of the embedded world is given.
const NEIGHBOURS: usize = 2;

/// Edits of single mode after which a running text is read.
const READ: usize = 20;

/// Records that are shown in full.
const SHOWN: usize = 3;

/// Runs the command.
///
/// # Errors
/// An archive, model, request or file that is wrong; files that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    check_flags(&args.sets, &[("--model", "model.path", args.model.is_some())])?;
    if args.planning.wanted() && planned(args)? {
        return Ok(());
    }
    let device = device::open(&args.device)?;
    // Its length is known once the records are.
    let bar = ProgressBar::no_length();
    let Opened { name, model, editor, asking, best } = open(args, &device, &bar)?;
    let asking = args.chat.or(asking);
    let chat = asking.template(&model.tokenizer)?;
    let before = laid_under(args, &model, editor.as_ref())?;
    let records = asking.put(records(args, &name)?, &model.tokenizer)?;
    check_outputs(args, editor.as_ref(), &before, records.len())?;
    let cases: Vec<Vec<EditRequest>> = records.iter().map(EditRequest::of_case).collect();
    warn_of_number(args, best.as_ref().filter(|_| !editor.remembers()), cases.iter().map(Vec::len).sum());
    let watched = watched_text(args, &name, &model, editor.as_ref())?;
    let loaded = start.elapsed().as_secs_f64();

    count_edits(&bar, cases.len());
    tell_now_and_then(&bar, "edits");
    let editing = Instant::now();
    // What a long sequence has edited in so far is not lost where it can be kept.
    if args.mode == Mode::Sequential && args.save.is_some() {
        keep_state();
    }
    let adapted = editor.adapted(&before)?;
    let job = Job { args, before, adapted, records, chat, bar, text: watched, looking: AtomicU64::new(0) };
    let applied = apply(
        editor.as_ref(),
        &job.adapted,
        &cases,
        args.mode,
        &|number, edit, after| job.look(number, edit, after),
        &stop,
    )?;
    job.bar.finish_and_clear();
    let edited = (editing.elapsed().as_secs_f64() - job.looked(&device)).max(0.0);
    let done = job.finish(applied)?;
    job.warn_of_known_answers(&done.seen);
    job.warn_of_harm(&done);

    if args.json {
        let (method, settings) = editor.describe();
        let seconds = json!({ "load": loaded, "edit": edited, "all": start.elapsed().as_secs_f64() });
        let base = json!({ "model": name, "fingerprint": model.fingerprint });
        let perplexity = job.text.as_ref().zip(done.perplexity).map(|(text, (before, ratio))| {
            json!({ "text": text.name, "tokens": text.tokens(), "before": before, "ratio": ratio })
        });
        let about = (&settings, &base, &seconds, &perplexity, job.completions());
        return print(&format!("{:#}\n", document(args, &method, about, &done)));
    }
    print(&text(&job, &done))
}

/// Plans the work; whether nothing else is to be done.
fn planned(args: &Args) -> Result<bool> {
    let archive = args.archive.as_deref().map(Archive::open).transpose()?;
    let config = args.config.as_ref().map(|path| Config::read(path, &args.sets)).transpose()?;
    let place = args.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let (name, dtype, asking) = match (&archive, &config) {
        (Some(archive), _) => {
            let base = &archive.description.base;
            (base.path.clone(), base.dtype, base.asking.clone())
        }
        (None, Some(config)) => {
            (paths::folder_or_name(&config.model.path, place), config.model.dtype, config.data.clone())
        }
        (None, None) => return Ok(false),
    };
    let name = args.model.as_ref().map_or(name, |model| paths::folder_or_name(model, Path::new("")));
    let planning = Planning::open(&name, &args.device, dtype.into())?;
    let records = args.chat.or(asking).put(records(args, &name)?, &planning.model.tokenizer)?;
    let work = planning.work(Lengths::of(&planning.model.tokenizer, &records)?);
    let edits = records.iter().map(|record| record.edits().count()).sum();
    let (requests, at_once) = match args.mode {
        Mode::Batch => (edits, 1),
        Mode::Single => (1, work.threads.min(records.len())),
        Mode::Sequential => (1, 1),
    };
    let editor = match (&archive, &config) {
        (Some(archive), _) => {
            archive.description.editor.held(&work, requests, files::size(&Archive::network_path(&archive.folder)))?
        }
        (None, config) => {
            config.as_ref().map_or(Ok(OfEditor::default()), |config| config.editor.held(&work, requests))?
        }
    };
    let mut plan = planning.plan();
    plan.held.extend(of_editor(editor, at_once));
    let text = args.text.as_deref().or(pocket::of_model(&name)).map(|_| args.text_tokens);
    plan.held.push(looking(&work, text));
    args.planning.settle(&plan, args.json)
}

/// The text that is read before and after; nothing where none is named, or where the editor changes no weight.
fn watched_text(args: &Args, name: &str, model: &Model, editor: &dyn Editor) -> Result<Option<WatchedText>> {
    within("--text-limit", args.text_limit, 1.0, f64::INFINITY)?;
    within("--text-tokens", args.text_tokens as f64, 1.0, 1e9)?;
    if editor.remembers() {
        if args.text.is_some() {
            tracing::warn!("--text: {} changes no weight, so that running text stays as it is", editor.describe().0);
        }
        return Ok(None);
    }
    let pocket = pocket::of_model(name);
    let Some(text) = args.text.as_deref().or(pocket) else { return Ok(None) };
    let documents = Documents::open(text, Split::Test, Path::new(""), "text")?;
    WatchedText::open(text, &documents, args.text_tokens, model).map(Some)
}

/// Says where a learned editor is given more edits at once than it was chosen for.
fn warn_of_number(args: &Args, best: Option<&Best>, edits: usize) {
    let Some(best) = best else { return };
    let in_a_row = best.in_a_row.unwrap_or(1);
    if args.mode == Mode::Sequential && edits > in_a_row {
        tracing::warn!(
            "{edits} edits one after the other; the archive was validated with {}, of more it says nothing",
            match best.in_a_row {
                Some(_) => format!("{in_a_row} of them"),
                None => "edits of the model as it is, none of them on another".to_owned(),
            }
        );
    }
    let Some(together) = best.edits_together.filter(|&together| args.mode == Mode::Batch && edits > together) else {
        return;
    };
    let Summary { edit_success, generalization, locality, .. } = &best.summary;
    tracing::warn!(
        "{edits} edits at once; the archive was validated with {together}{} (edit success {}, generalization {}, locality {}), of more it \
         says nothing",
        if together == 1 { " at a time" } else { " at once" },
        percent(*edit_success),
        percent(*generalization),
        percent(*locality)
    );
}

/// The model with the edits that are laid under the new ones: what a memory holds already among them.
fn laid_under(args: &Args, model: &Arc<Model>, editor: &dyn Editor) -> Result<Edited> {
    if args.memory.is_some() && !editor.remembers() {
        let (method, _) = editor.describe();
        return Err(Error::Config(format!(
            "--memory: {method} changes the pass and keeps no memory; serac, ike, lookup, grace and wise do; --save keeps this edit"
        )));
    }
    let known = args.memory.iter().filter(|file| file.exists());
    let under: Vec<PathBuf> = args.under.iter().chain(known).cloned().collect();
    let elsewhere = args.archive.as_deref().map_or(Elsewhere::Nowhere, Elsewhere::IfMissing);
    load_edits(Edited::new(model.clone()), &under, elsewhere, args.allow_other_base)
}

fn count_edits(bar: &ProgressBar, edits: usize) {
    bar.set_length(edits as u64);
    bar.reset_eta();
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} edits {per_sec} {eta}") {
        bar.set_style(style);
    }
}

/// Records on their way into a model.
struct Job<'a> {
    args: &'a Args,
    before: Edited,
    /// The model before with what must lie under the editor's edits.
    adapted: Edited,
    records: Vec<EditRecord>,
    /// The template that their prompts went through.
    chat: Option<Chat>,
    bar: ProgressBar,
    /// A running text that is read before and after.
    text: Option<WatchedText>,
    /// Nanoseconds spent on looking at edits, by all threads together.
    looking: AtomicU64,
}

/// What is kept of an edit once it was made.
struct Look {
    id: String,
    findings: Value,
    /// Where it was written, by itself.
    saved: Option<PathBuf>,
    /// What it does to its record, where it stands by itself.
    seen: Option<Seen>,
    /// By how much the perplexity of the running text rose, where it was read.
    perplexity_ratio: Option<f64>,
    /// In a sequence, what the model said to each probe right after it.
    immediate: Option<Vec<Value>>,
    /// The edit and its model, where it is the only one.
    only: Option<(Arc<Edit>, Edited)>,
}

/// What a model says to a record's probes, before and after.
struct Seen {
    table: Vec<ProbeRow>,
    /// As a person sees it; of the first few records only.
    text: Option<String>,
    /// As a program sees it, where one asked.
    document: Option<Value>,
}

/// All that came of a job.
struct Done {
    looks: Vec<Look>,
    seen: Vec<Seen>,
    saved: Vec<PathBuf>,
    exported: Vec<Value>,
    /// The perplexity of the running text before, and by how much it rose.
    perplexity: Option<(f64, PerplexityRatio)>,
}

impl Job<'_> {
    /// Looks at an edit right after it was made; in single mode it is written, looked at and let go.
    fn look(&self, number: usize, edit: &Arc<Edit>, after: &Edited) -> Result<Look> {
        let clock = Instant::now();
        let (id, findings) = (edit.id().to_owned(), edit.provenance.findings.clone());
        let mut look =
            Look { id, findings, saved: None, seen: None, perplexity_ratio: None, immediate: None, only: None };
        match self.args.mode {
            Mode::Batch => return Ok(look),
            Mode::Sequential if self.args.json => {
                let table = self.probes(number, after)?;
                look.immediate = Some(said_json(after, &table, Side::After)?);
            }
            Mode::Sequential => {}
            Mode::Single => {
                let count = self.records.len();
                if let Some(path) = &self.args.save {
                    let digits = count.to_string().len();
                    let path = if count > 1 { numbered(path, number, digits) } else { path.clone() };
                    edit.save(&path)?;
                    look.saved = Some(path);
                }
                look.seen = Some(self.see(number, after, None)?);
                if number < READ {
                    look.perplexity_ratio = self.perplexity_ratio(after)?;
                }
                look.only = (count == 1).then(|| (edit.clone(), after.clone()));
            }
        }
        self.looking.fetch_add(clock.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.bar.inc(1);
        Ok(look)
    }

    /// The seconds that looking took while edits were made: the threads did so side by side.
    fn looked(&self, device: &Device) -> f64 {
        let threads = if self.args.mode == Mode::Single { parallel::parts(device).min(self.records.len()) } else { 1 };
        self.looking.load(Ordering::Relaxed) as f64 / 1e9 / threads.max(1) as f64
    }

    /// Looks at what is left, and writes what was asked for.
    fn finish(&self, applied: Applied<Look>) -> Result<Done> {
        let Applied { mut looks, end } = applied;
        let mut ratios: Vec<f64> = looks.iter().filter_map(|look| look.perplexity_ratio).collect();
        let mut saved: Vec<PathBuf> = vec![];
        if let Some(path) = &self.args.save {
            // The base as the editor adapted it is one more edit, which its own lie on.
            for edit in &self.adapted.edits()[self.before.edits().len()..] {
                let path = beside(path, "adapted");
                edit.save(&path)?;
                saved.push(path);
            }
        }
        saved.extend(looks.iter_mut().filter_map(|look| look.saved.take()));
        let (seen, end) = match end {
            None => {
                let only = looks.iter_mut().find_map(|look| look.only.take());
                let seen = looks.iter_mut().filter_map(|look| look.seen.take()).collect();
                (seen, only.map(|(edit, after)| (Arc::unwrap_or_clone(edit), after)))
            }
            Some((edit, after)) => {
                // What took long is kept before anything else can go wrong.
                let mut place = String::new();
                if let Some(path) = &self.args.save {
                    edit.save(path)?;
                    place = format!(
                        " after {} of {} edits, which {} holds",
                        looks.len(),
                        self.records.len(),
                        path.display()
                    );
                    saved.push(path.clone());
                }
                state_is_kept(&place)?;
                let numbers = (0..self.records.len()).collect();
                let seen = parallel::each(&self.before.base().decoder.device(), numbers, |number| {
                    self.see(number, &after, looks.get(number).and_then(|look| look.immediate.as_ref()))
                })?;
                ratios.extend(self.perplexity_ratio(&after)?);
                (seen, Some((edit, after)))
            }
        };
        let mut exported = vec![];
        if let Some((edit, after)) = end {
            // What a memory cannot be asked was not added to it.
            if let Some(path) = &self.args.memory {
                saved = vec![remember(path, &edit)?];
            }
            if !self.args.export.is_empty() {
                let whole = if self.args.mode == Mode::Sequential { self.adapted.with(edit)? } else { after };
                exported = self.export(&whole)?;
            }
        }
        let before = self.text.as_ref().map_or(Ok(None), |text| text.unedited(&self.before))?;
        let perplexity = before.zip(PerplexityRatio::of(&ratios));
        Ok(Done { looks, seen, saved, exported, perplexity })
    }

    /// Whether completions of passages were edited.
    fn completions(&self) -> bool {
        self.records.iter().any(|record| record.completion.is_some())
    }

    /// By how much the perplexity of the running text rose.
    fn perplexity_ratio(&self, after: &Edited) -> Result<Option<f64>> {
        let Some(text) = &self.text else { return Ok(None) };
        let Some(before) = text.unedited(&self.before)? else { return Ok(None) };
        Ok(Some(text.edited(&self.before, after)? / before))
    }

    /// Says where an edit does harm to running text.
    fn warn_of_harm(&self, done: &Done) {
        let Some((text, (_, ratio))) = self.text.as_ref().zip(done.perplexity) else { return };
        if ratio.worst > self.args.text_limit {
            let which = if ratio.cases > 1 { "an edit raises" } else { "the edit raises" };
            tracing::warn!(
                "{which} the perplexity of {} to {:.2} times what it was, more than --text-limit {}: the model speaks worse than before",
                text.name,
                ratio.worst,
                self.args.text_limit
            );
        }
    }

    /// The probe table of one record.
    fn probes(&self, number: usize, after: &Edited) -> Result<Vec<ProbeRow>> {
        let table = probe_table(&self.before, after, &[(number, &self.records[number])], Limits::default());
        table.map_err(|error| error.of_record(number))
    }

    /// What one record's probes show.
    fn see(&self, number: usize, after: &Edited, immediate: Option<&Vec<Value>>) -> Result<Seen> {
        let (record, table) = (&self.records[number], self.probes(number, after)?);
        let document = match self.args.json {
            true => Some(request_json(&self.before, after, record, &table, immediate)?),
            false => None,
        };
        let text = match number < SHOWN && !self.args.json {
            true => {
                let rows = show_rows(&self.before, after, &shown(&table), self.chat.as_ref())?;
                let said = |record: &EditRecord| {
                    let prompt =
                        self.chat.as_ref().map_or(record.prompt.as_str(), |chat| chat.asked.said(&record.prompt));
                    format!("{} → {}\n", cut(prompt, 200), record.target_new)
                };
                Some(format!("{}\n{rows}\n", record.edits().map(said).collect::<String>()))
            }
            false => None,
        };
        Ok(Seen { table, text, document })
    }

    fn warn_of_known_answers(&self, seen: &[Seen]) {
        let rows = seen.iter().flat_map(|seen| &seen.table);
        let known = rows.filter(|row| row.kind == Kind::Rewrite && row.before.exact() && !row.lowered).count();
        match (known, self.records.iter().map(|record| record.edits().count()).sum()) {
            (0, _) => {}
            (_, 1usize) => tracing::warn!("\"{}\" is what the model answers already", self.records[0].target_new),
            (known, all) => tracing::warn!("{known} of {all} targets are what the model answers already"),
        }
    }

    /// Writes the checkpoint and the adapters that were asked for.
    fn export(&self, after: &Edited) -> Result<Vec<Value>> {
        let mut wanted: Vec<(usize, (Format, &Path))> = exports(self.args)?.into_iter().enumerate().collect();
        // Not every edit can be an adapter: that is found out before a checkpoint is written.
        wanted.sort_by_key(|(_, (format, _))| *format == Format::Hf);
        let requests: Vec<EditRequest> = self.records.iter().flat_map(EditRequest::of_case).collect();
        let write =
            |(place, (format, folder)): (usize, (Format, &Path))| Ok((place, format.write(after, folder, &requests)?));
        let mut made = wanted.into_iter().map(write).collect::<Result<Vec<_>>>()?;
        made.sort_by_key(|(place, _)| *place);
        Ok(made.into_iter().map(|(_, report)| report).collect())
    }
}

/// The formats of --export, each with its folder.
fn exports(args: &Args) -> Result<Vec<(Format, &Path)>> {
    let pairs = args.export.chunks_exact(2);
    pairs.map(|pair| Ok((Format::named(&pair[0])?, Path::new(pair[1].trim_end_matches('/'))))).collect()
}

/// The results for programs.
fn document(
    args: &Args,
    method: &str,
    (settings, base, seconds, perplexity, completions): (&Value, &Value, &Value, &Option<Value>, bool),
    done: &Done,
) -> Value {
    let table = whole_table(done);
    json!({
        "method": method,
        "mode": args.mode.name(),
        "settings": settings,
        "base": base,
        "edits": done.looks.iter().map(|look| look.id.as_str()).collect::<Vec<_>>(),
        "findings": done.looks.iter().map(|look| &look.findings).collect::<Vec<_>>(),
        "requests": done.seen.iter().map(|seen| &seen.document).collect::<Vec<_>>(),
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
        "completion": completions.then(|| completion(&table)),
        "perplexity": perplexity,
        "saved": done.saved,
        "exported": match done.exported.as_slice() {
            [] => Value::Null,
            [one] => one.clone(),
            several => json!(several),
        },
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
    })
}

fn whole_table(done: &Done) -> Vec<ProbeRow> {
    done.seen.iter().flat_map(|seen| seen.table.iter().cloned()).collect()
}

/// The results for people.
fn text(job: &Job<'_>, done: &Done) -> String {
    let mut text: String = done.seen.iter().filter_map(|seen| seen.text.as_deref()).collect();
    if let Some(bars) = figures::neurons_by_layer(done.looks.iter().map(|look| &look.findings)) {
        text += &format!("{bars}\n");
    }
    if done.seen.len() > 1 {
        let table = whole_table(done);
        text += &format!("{}\n", figures::mend(&summarize(&table)));
        let (before, after) = (Side::Before, Side::After);
        let protocols = [
            figures::counterfact(&counterfact(&table, before), &counterfact(&table, after)),
            job.completions().then(|| figures::completion(&completion(&table))),
            figures::balanced(&balanced(&table, before), &balanced(&table, after)),
            figures::sentiment(&sentiment(&table, before), &sentiment(&table, after)),
        ];
        for figures in protocols.into_iter().flatten() {
            text += &format!("{figures}\n");
        }
    }
    if let Some((read, (before, ratio))) = job.text.as_ref().zip(done.perplexity.as_ref()) {
        text += &format!("{}\n", figures::running_text(read, *before, ratio));
    }
    let saved = done.saved.iter().map(|path| format!("saved {}\n", path.display()));
    let exported = done.exported.iter().filter_map(|report| Some(format!("{}\n", report["message"].as_str()?)));
    text + &saved.chain(exported).collect::<String>()
}

/// What edits, and what is edited.
struct Opened {
    /// The model's name.
    name: String,
    model: Arc<Model>,
    editor: Box<dyn Editor>,
    /// How records were put to the model when the editor was trained.
    asking: Asking,
    /// How a learned editor did on validation records.
    best: Option<Best>,
}

/// The model, and the editor of an archive or of a configuration.
fn open(args: &Args, device: &Device, bar: &ProgressBar) -> Result<Opened> {
    if let Some(folder) = &args.archive {
        let archive = Archive::open(folder)?;
        let base = &archive.description.base;
        let name = args.model.as_ref().unwrap_or(&base.path).clone();
        let model = Arc::new(Model::load(&name, device, base.dtype.into())?);
        let editor = archive.editor(&model, args.allow_other_base, device)?;
        let best = archive.description.best.clone().filter(|_| !editor.remembers());
        return Ok(Opened { name, model, editor, asking: base.asking.clone(), best });
    }
    let path = args.config.clone().unwrap_or_default();
    let config = Config::read(&path, &args.sets)?;
    if !args.export.is_empty() {
        config.editor.check_exportable()?;
    }
    let name = match &args.model {
        Some(model) => paths::folder_or_name(model, Path::new("")),
        None => paths::folder_or_name(&config.model.path, path.parent().unwrap_or(Path::new(""))),
    };
    let model = Arc::new(Model::load(&name, device, config.model.dtype.into())?);
    let (in_batch, bar) = (args.mode == Mode::Batch, bar.clone());
    let progress = move |done: usize| bar.inc(if in_batch { done as u64 } else { 0 });
    let editor = config.editor.editor(&model, &name, path.parent().unwrap_or(Path::new("")), Box::new(progress))?;
    Ok(Opened { name, model, editor, asking: config.data, best: None })
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
    of(Kind::Rewrite, 3).chain(of(Kind::Rephrase, 3)).chain(near).chain(of(Kind::Portability, 3)).collect()
}

/// Sees that the results can be written before the work is done.
fn check_outputs(args: &Args, editor: &dyn Editor, before: &Edited, records: usize) -> Result<()> {
    if !args.export.is_empty() {
        if editor.remembers() {
            return Err(not_exported(&format!("an edit of {}", editor.describe().0), "is a memory"));
        }
        before.check_exportable()?;
    }
    let several = args.mode == Mode::Single && records > 1;
    if args.memory.is_some() && several {
        let message = "--memory takes several records together: use --mode batch or --mode sequential";
        return Err(Error::Config(message.into()));
    }
    if let Some(path) = args.save.as_ref().or(args.memory.as_ref()) {
        files::check_file(path)?;
    }
    if !args.export.is_empty() && several {
        let message = "--export takes one edited model: with several records use --mode batch or --mode sequential";
        return Err(Error::Config(message.into()));
    }
    let mut folders: Vec<&Path> = vec![];
    for (format, folder) in exports(args)? {
        if folders.contains(&folder) {
            let message = format!("--export {}: two exports into one folder; give each its own", folder.display());
            return Err(Error::Config(message));
        }
        check_folder(folder)?;
        format.check(before)?;
        folders.push(folder);
    }
    Ok(())
}

/// The records to edit: of the file, or the one on the command line.
fn records(args: &Args, model: &str) -> Result<Vec<EditRecord>> {
    if let Some(path) = &args.edits {
        let source = Source::open(&path.to_string_lossy(), Split::Test, Path::new(""))?;
        let records = source.fixed(args.limit.unwrap_or(usize::MAX), NEIGHBOURS);
        if records.is_empty() {
            return Err(Error::Input(format!("{}: there is no record to edit", path.display())));
        }
        return Ok(records);
    }
    let prompt = without_last_space(args.prompt.as_deref().unwrap_or_default()).to_owned();
    let target = args.target.as_deref().unwrap_or_default().trim().to_owned();
    if prompt.trim().is_empty() || target.is_empty() {
        return Err(Error::Config("--prompt and --target must hold at least a word each".into()));
    }
    let empty = |text: &String| text.trim().is_empty();
    if args.rephrases.iter().chain(&args.unrelated).any(empty) {
        return Err(Error::Config("--rephrase and --unrelated must hold at least a word each".into()));
    }
    let subject = args.subject.as_ref().filter(|subject| !empty(subject));
    // As in a file of records, the subject may stand as {}.
    let prompt = match subject {
        Some(subject) => prompt.replace("{}", subject),
        None if prompt.contains("{}") => {
            return Err(Error::Config(format!("--prompt \"{prompt}\" holds {{}}; --subject says what belongs there")));
        }
        None => prompt,
    };
    if let Some(subject) = subject
        && unicode::find_all(&prompt, subject).is_empty()
    {
        return Err(Error::Config(format!("--subject \"{subject}\" does not occur in --prompt \"{prompt}\"")));
    }
    let probe = |prompt: &String| Probe::new(prompt, None);
    let unrelated: Vec<Probe> = args.unrelated.iter().map(probe).collect();
    let mut record = EditRecord { prompt, rephrases: args.rephrases.clone(), ..EditRecord::default() };
    if !unrelated.is_empty() {
        record.locality = [("unrelated".to_owned(), unrelated)].into();
    }
    let mut record = with_questions(record, model)?;
    record.id = "0".into();
    record.target_new = target;
    record.subject = subject.cloned().or(record.subject);
    record.descriptor = args.descriptor.as_ref().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    Ok(vec![record])
}

/// Adds an edit to a memory's file.
fn remember(path: &Path, edit: &Edit) -> Result<PathBuf> {
    let known = match path.exists() {
        true => Some(Arc::new(Edit::load(path, &Device::flex())?)),
        false => None,
    };
    let edits: Vec<Arc<Edit>> = known.into_iter().chain([Arc::new(edit.clone())]).collect();
    let wrong = |error| match error {
        input @ (Error::Input(_) | Error::Record { .. }) => Error::file(path, input),
        other => other,
    };
    Edit::join_memories(&edits).map_err(wrong)?.save(path)?;
    Ok(path.to_owned())
}

/// `facts.edit.safetensors` and 7 → `facts-07.edit.safetensors`.
fn numbered(path: &Path, number: usize, digits: usize) -> PathBuf {
    beside(path, &format!("{number:0digits$}"))
}

/// A file beside another, whose name says what it is: "a.edit.safetensors" → "a-WHAT.edit.safetensors".
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (stem, rest) = name.split_once('.').unwrap_or((&name, "edit.safetensors"));
    path.with_file_name(format!("{stem}-{what}.{rest}"))
}

fn request_json(
    before: &Edited,
    after: &Edited,
    record: &EditRecord,
    table: &[ProbeRow],
    immediate: Option<&Vec<Value>>,
) -> Result<Value> {
    let mut probes = probes_json(before, after, table)?;
    for (probe, immediate) in probes.iter_mut().zip(immediate.into_iter().flatten()) {
        probe["immediate"] = immediate.clone();
    }
    Ok(json!({
        "id": record.id,
        "prompt": record.prompt,
        "target_new": record.target_new,
        "probes": probes,
    }))
}
