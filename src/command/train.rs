//! `emend train`: trains an editor into an archive.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::chat::ChatArgs;
use super::plan::{PlanArgs, Planning};
use super::steps::Steps;
use super::{keep_state, print, show_rows, state_is_kept, stop};
use crate::archive::{Base, network_type};
use crate::config::check_flags;
use crate::config::train::Config;
use crate::data::objective::Objective;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::data::text::Documents;
use crate::data::world::Split;
use crate::device;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::looking;
use crate::evaluate::probes::Limits;
use crate::evaluate::{Kind, PerplexityRatio, ProbeRow, Side, WatchedText, balanced, completion, sentiment, summarize};
use crate::model::Model;
use crate::model::chat::Chat;
use crate::model::separator::joined;
use crate::model::tokens::BEGIN;
use crate::paths;
use crate::plan::{Held, Lengths};
use crate::process::peak_memory;
use crate::report::figures;
use crate::report::table::percent;
use crate::train::learned::LearnedEditor;
use crate::train::methods::{Beginning, Planned, TESTING, Trainer};
use crate::train::resume::claim_folder;
use crate::train::trainer::{EditTrainer, Event};

/// Train an editor into an archive.
///
/// Writes a folder with archive.toml, network.safetensors and metrics.jsonl that `emend apply --archive` reads. A training
/// that was stopped or killed goes on with --resume as if nothing had happened.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The archive's folder; checkpoints/NAME, after the configuration's name, unless given
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with a training that was stopped
    #[arg(long)]
    pub resume: bool,
    /// Use another model than the configuration's
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    #[command(flatten)]
    pub chat: ChatArgs,
    /// Lay a value over the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
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
/// A configuration, model, data or folder that is wrong; an interruption, after the state is saved.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    check_flags(&args.sets, &[("--model", "model.path", args.model.is_some())])?;
    let mut config = Config::read(&args.config, &args.chat.with_sets(&args.sets))?;
    config.model.path = match &args.model {
        Some(model) => paths::folder_or_name(model, Path::new("")),
        None => paths::folder_or_name(&config.model.path, args.config.parent().unwrap_or(Path::new(""))),
    };
    let folder = match &args.out {
        Some(out) => out.clone(),
        None => Path::new("checkpoints").join(args.config.file_stem().unwrap_or_default()),
    };
    let place = args.config.parent().unwrap_or(Path::new(""));
    let open = |name: &str, split| -> Result<Source> {
        let source = Source::open(name, split, place)?;
        if source.is_empty() {
            return Err(Error::Input(format!("{name} holds no records")));
        }
        // Each edit of a case is learnt by itself.
        Ok(source.apart())
    };
    let train = open(&config.data.train, Split::Train)?;
    let validation = open(&config.data.validation, Split::Validation)?;
    let test = open(&config.data.test, Split::Test)?;
    // What a limit of memory changes decides nothing, and a training goes on under another one.
    let written = config.written();
    if args.planning.wanted() && planned(args, &mut config, &train, &test)? {
        return Ok(());
    }
    let _claim = claim_folder(&folder, args.resume)?;
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&config.model.path, &device, config.model.dtype.into())?);
    let asking = config.data.asking();
    let put = |source| asking.put_source(source, &model.tokenizer);
    let (train, validation, test) = (put(train)?, put(validation)?, put(test)?);
    let base = Edited::new(model.clone());
    for (source, name) in
        [(&train, &config.data.train), (&validation, &config.data.validation), (&test, &config.data.test)]
    {
        check_lengths(source, name, &model)?;
    }

    let training = device.clone().autodiff();
    training.seed(config.train.seed);
    let beginning = Beginning {
        base: &base,
        settings: &config.train,
        place: (&training, network_type(model.decoder.dtype())),
        source: &train,
        folder: place,
    };
    let run =
        Run { args, config: &config, written, base: base.clone(), train: &train, validation, test, folder, start };
    config.editor.train(&beginning, run)
}

/// Plans a training; whether nothing else is to be done. Under a limit hidden states are kept as far as there is room.
fn planned(args: &Args, config: &mut Config, train: &Source, test: &Source) -> Result<bool> {
    let place = args.config.parent().unwrap_or(Path::new(""));
    let planning = Planning::open(&config.model.path, &args.device, config.model.dtype.into())?;
    let tokenizer = &planning.model.tokenizer;
    let put = |source: &Source| config.data.asking().put_source(source.clone(), tokenizer);
    let (train, test) = (put(train)?, put(test)?);
    let limits = Limits { rephrases: config.data.rephrases, per_class: config.data.per_class, rivals: false };
    let mut sample = test.fixed(MEASURED, limits.per_class);
    for record in &mut sample {
        record.rephrases.truncate(limits.rephrases);
        record.locality.values_mut().for_each(|probes| probes.truncate(limits.per_class));
        record.portability.values_mut().for_each(|probes| probes.truncate(limits.per_class));
    }
    let work = planning.work(Lengths { records: test.len(), ..Lengths::of(tokenizer, &sample)? });
    let planned = Planned { work, settings: &config.train, tokenizer, source: &train, folder: place };
    let mut plan = planning.plan();
    plan.held.extend(config.editor.held(&planned)?);
    let text = config.text().map(|_| config.data.text_tokens);
    plan.held.push(Held { during: Some(TESTING), ..looking(&work, text) });
    if let Some(limit) = args.planning.memory_limit {
        let above = plan.peak().0.saturating_sub(limit);
        let kept = plan.held.iter_mut().find(|held| held.lower == Some("train.hidden_memory_gb"));
        if let Some((kept, setting)) =
            kept.filter(|kept| above > 0 && kept.bytes >= above).zip(config.editor.hidden_memory_mut())
        {
            // With none at all texts would not share passes, and sums would have other last digits.
            kept.bytes = (kept.bytes - above).max(1_000_000);
            *setting = kept.bytes as f64 / 1e9;
            eprintln!("train.hidden_memory_gb = {setting:.2}: so it stays within --memory-limit");
        }
    }
    args.planning.settle(&plan, args.json)
}

/// Records of the test whose texts are measured for a plan.
const MEASURED: usize = 100;

/// A training, whatever its editor.
struct Run<'a> {
    args: &'a Args,
    config: &'a Config,
    /// The configuration as archives and results have it.
    written: serde_json::Value,
    base: Edited,
    train: &'a Source,
    validation: Source,
    test: Source,
    folder: PathBuf,
    start: Instant,
}

impl Trainer for Run<'_> {
    fn train<E: LearnedEditor>(self, editor: E) -> Result<()> {
        let Run { args, config, base, folder, start, .. } = &self;
        let (model, every) = (base.base(), &config.train);
        let limits = Limits { rephrases: config.data.rephrases, per_class: config.data.per_class, rivals: false };
        let validation = self.validation.fixed(every.validation_records, limits.per_class);
        for (source, name) in [
            (self.train, &config.data.train),
            (&self.validation, &config.data.validation),
            (&self.test, &config.data.test),
        ] {
            check_records(source, name, &editor)?;
        }
        let read = |split| self.watched(split);
        let (text, test_text) = (read(Split::Validation)?, read(Split::Test)?);
        let mut trainer = EditTrainer {
            editor,
            base: base.clone(),
            settings: every.clone(),
            description: Base {
                path: config.model.path.clone(),
                fingerprint: model.fingerprint.clone(),
                dtype: config.model.dtype,
                asking: config.data.asking(),
            },
            config: self.written.clone(),
            made_of: BTreeMap::from([("data.test".to_owned(), self.test.fingerprint())]),
            train: self.train,
            validation: &validation,
            limits,
            text: text.as_ref(),
            text_cases: config.data.text_cases,
            folder: folder.clone(),
        };
        keep_state();
        let mut show = Show::new(every.max_steps);
        let progress = trainer.run(&mut |event| show.event(event), &stop)?;
        show.steps.bar.finish_and_clear();
        state_is_kept(" after the training; --resume shows its figures")?;
        let trained = start.elapsed().as_secs_f64();

        let most = if config.data.test_records == 0 { usize::MAX } else { config.data.test_records };
        let test = self.test.fixed(most, limits.per_class);
        // Answers that must lose are looked at once, at the end.
        let probes = test.iter().flat_map(|record| record.portability.values().chain(record.locality.values()));
        trainer.limits.rivals = probes.flatten().any(|probe| probe.rival.is_some());
        let rows = trainer.evaluate(&test)?;
        let summary = summarize(&rows);
        let own = trainer.editor.examine(&test, trainer.limits)?;
        let mut perplexity = None;
        if let Some(text) = &test_text {
            let ratio = trainer.perplexity_ratio(&test, text)?;
            perplexity = text.unedited(base)?.zip(ratio).map(|(before, ratio)| (text, before, ratio));
        }
        let seconds = json!({"training": trained, "test": start.elapsed().as_secs_f64() - trained});
        if args.json {
            let document = json!({
                "archive": folder,
                "steps": progress.step,
                "protocol": "mend",
                "best": progress.best,
                "test": summary,
                "completion": test.iter().any(|record| record.completion.is_some()).then(|| completion(&rows)),
                "perplexity": perplexity.map(|(text, before, ratio)| {
                    json!({"text": text.name, "tokens": text.tokens(), "before": before, "ratio": ratio})
                }),
                "editor": own.iter().map(|(name, share)| ((*name).to_owned(), json!(share))).collect::<serde_json::Map<_, _>>(),
                "balanced": balanced(&rows, Side::After),
                "sentiment": sentiment(&rows, Side::After),
                "settings": self.written,
                "fingerprint": model.fingerprint,
                "seconds": seconds,
                "peak_memory_bytes": peak_memory(),
            });
            return print(&format!("{document:#}\n"));
        }
        let example = &test[0];
        let chat = config.data.asking().template(&model.tokenizer)?;
        let mut text = format!(
            "\n{} steps in {trained:.0} s, the best after step {}\n\n{}",
            progress.step,
            progress.best.map_or(0, |best| best.step),
            figures::mend(&summary)
        );
        let completions = test.iter().any(|record| record.completion.is_some()).then(|| completion(&rows));
        if let Some(figures) = &completions {
            text += &format!("\n{}", figures::completion(figures));
        }
        if let Some((read, before, ratio)) = &perplexity {
            text += &format!("{}\n", figures::running_text(read, *before, ratio));
        }
        for (name, share) in &own {
            text += &format!("{:<40}{:>8}\n", name.replace('_', " "), percent(Some(*share)));
        }
        for figures in [
            figures::balanced(&balanced(&rows, Side::Before), &balanced(&rows, Side::After)),
            figures::sentiment(&sentiment(&rows, Side::Before), &sentiment(&rows, Side::After)),
        ] {
            text += &figures.map_or(String::new(), |figures| format!("\n{figures}"));
        }
        text += &format!(
            "\nThree test facts, before and after an edit\n\n{}",
            three(base, &trainer, &test, &rows, chat.as_ref())?
        );
        text += &format!(
            "\nNext, an edit of your own:\n\n    emend apply --archive {} {}--prompt {} --target {}\n",
            quoted(&folder.to_string_lossy()),
            example.descriptor.as_ref().map_or(String::new(), |text| format!("--descriptor {} ", quoted(text))),
            quoted(chat.as_ref().map_or(example.prompt.as_str(), |chat| chat.asked.said(&example.prompt))),
            quoted(&example.target_new)
        );
        print(&text)
    }
}

impl Run<'_> {
    /// The part of the text that is watched in a validation or in the test.
    fn watched(&self, split: Split) -> Result<Option<WatchedText>> {
        let Some((name, field)) = self.config.text() else { return Ok(None) };
        let place = self.args.config.parent().unwrap_or(Path::new(""));
        let documents = Documents::open(name, split, place, field)?;
        WatchedText::open(name, &documents, self.config.data.text_tokens, self.base.base()).map(Some)
    }
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./".contains(letter);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Refuses records with a text that is longer than the context, before hours of work meet them.
fn check_lengths(source: &Source, name: &str, model: &Model) -> Result<()> {
    let Source::Records(records) = source else { return Ok(()) };
    let context = model.decoder.spec.context;
    for (number, record) in records.all().iter().enumerate() {
        let own = record.rephrases.iter().chain([&record.prompt]).map(|prompt| (prompt, Some(&record.target_new)));
        let near = record.locality.values().chain(record.portability.values()).flatten();
        for (prompt, target) in own.chain(near.map(|probe| (&probe.prompt, probe.target.as_ref()))) {
            let target = target.map_or("", String::as_str);
            // No token is shorter than a byte.
            if prompt.len() + target.len() + 2 < context {
                continue;
            }
            let tokens = match model.tokenizer.of_pairs() {
                // The encoder's part of the row.
                true => model.tokenizer.encode_prompt(prompt)?.iter().position(|&id| id == BEGIN).unwrap_or(0),
                false => model.tokenizer.encode(&joined(prompt, target, record.separator.as_deref()))?.len(),
            };
            if tokens > context {
                return Err(Error::Input(format!(
                    "{name}: record {number} (id {}): a text of {tokens} tokens is longer than the model's context of {context}; \
                     shorten it or leave it out",
                    record.id
                )));
            }
        }
    }
    Ok(())
}

/// Refuses records of which the editor cannot take a text, before hours of work meet them.
fn check_records<E: LearnedEditor>(source: &Source, name: &str, editor: &E) -> Result<()> {
    let Source::Records(records) = source else { return Ok(()) };
    for (number, record) in records.all().iter().enumerate() {
        if record.edits().any(|edit| edit.objective.is_some_and(|objective| objective != Objective::Raise)) {
            return Err(Error::Input(format!(
                "{name}: record {number} (id {}): a trained editor makes targets likelier and takes no other objective",
                record.id
            )));
        }
        editor.check(record).map_err(|error| match error {
            Error::Input(message) => Error::Input(format!("{name}: record {number} (id {}): {message}", record.id)),
            other => other,
        })?;
    }
    Ok(())
}

/// The first three test records as a user would see them.
fn three<E: LearnedEditor>(
    base: &Edited,
    trainer: &EditTrainer<'_, E>,
    test: &[EditRecord],
    rows: &[ProbeRow],
    chat: Option<&Chat>,
) -> Result<String> {
    let mut text = String::new();
    let adapted = trainer.editor.adapted(base)?;
    for record in 0..3 {
        let mine: Vec<&ProbeRow> = rows.iter().filter(|row| row.record == record).collect();
        let Some(own) = test.get(record) else { break };
        let request = EditRequest::from(own);
        let edit = trainer.editor.edit(&adapted, &[request])?;
        let after = adapted.with(edit)?;
        let of = |kind: Kind| mine.iter().filter(move |row| row.kind == kind).take(1);
        let chosen: Vec<&ProbeRow> =
            of(Kind::Rewrite).chain(of(Kind::Rephrase)).chain(of(Kind::Locality)).copied().collect();
        text += &show_rows(base, &after, &chosen, chat)?;
        text.push('\n');
    }
    Ok(text)
}

/// How far a training is, and a line a validation.
struct Show {
    steps: Steps,
    loss: f64,
    note: String,
}

impl Show {
    fn new(steps: usize) -> Self {
        Show { steps: Steps::new(steps), loss: f64::NAN, note: String::new() }
    }

    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Prepared { done, total } => {
                self.steps.bar.set_length(*total as u64);
                self.steps.bar.set_position(*done as u64);
                self.steps.bar.set_message("texts prepared");
                if done == total {
                    self.steps.bar.reset();
                    self.steps.bar.set_length(self.steps.count);
                }
            }
            Event::Step { step, skipped: true, .. } => {
                self.steps.bar.set_position(*step as u64);
                self.steps.bar.suspend(|| eprintln!("step {step}: loss or gradient not finite, skipped"));
            }
            Event::Step { step, figures, .. } => {
                if self.loss.is_nan() {
                    // What an earlier run did is no measure of this one's speed.
                    self.steps.bar.set_position(*step as u64);
                    self.steps.bar.reset_eta();
                }
                let loss = figures.first().map_or(f64::NAN, |(_, loss)| *loss);
                self.loss = if self.loss.is_nan() { loss } else { 0.95 * self.loss + 0.05 * loss };
                self.steps.bar.set_position(*step as u64);
                let parts = figures.iter().skip(1).map(|(name, value)| format!(" · {name} {value:.2}"));
                let said = format!("loss {:.3}{}{}", self.loss, parts.collect::<String>(), self.note);
                self.steps.tell(*step, said);
            }
            Event::Note(note) => self.steps.bar.suspend(|| eprintln!("{note}")),
            Event::Validation { step, summary, perplexity, score, best } => {
                self.note =
                    format!(" · success {} · drawdown {}", percent(summary.edit_success), percent(summary.drawdown));
                let line = format!(
                    "step {step:>6}   edit success {}   generalization {}   locality {}   drawdown {}   {}score {}{}",
                    percent(summary.edit_success),
                    percent(summary.generalization),
                    percent(summary.locality),
                    percent(summary.drawdown),
                    perplexity.map_or(String::new(), |PerplexityRatio { median, worst, .. }| {
                        format!("perplexity {median:.3} × (worst {worst:.3})   ")
                    }),
                    percent(Some(*score)),
                    if *best { "   best so far" } else { "" }
                );
                self.steps.bar.suspend(|| eprintln!("{line}"));
            }
        }
    }
}
