//! `emend trace`: where in a model what it knows of a subject passes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::plan::{PlanArgs, Planning};
use super::steps::Steps;
use super::{load_edits, print};
use crate::apply::memory::Elsewhere;
use crate::compare::shard::Shard;
use crate::data::objective::Hidden;
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::separator::without_last_space;
use crate::model::tap::Place;
use crate::model::{Model, Precision};
use crate::plan::Lengths;
use crate::process::peak_memory;
use crate::report::heat_map::Panel;
use crate::report::picture;
use crate::report::table::{counted, percent};
use crate::sections::within;
use crate::trace::average::{Averages, Mean, Role};
use crate::trace::folder::{Traces, is_left_out, is_unread};
use crate::trace::noise::{Noise, Strength};
use crate::trace::result::Trace;
use crate::trace::{self, Question, Restored, trace};
use crate::{device, files, tensors};

/// Trace where a model keeps what it knows of a subject: hide the subject behind noise, put single activations back, see how likely the answer
/// becomes.
///
/// One prompt, or a file of facts with averages over them. Of a file each fact is written down before the next; the same command goes on where
/// it was stopped.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("traced").required(true))]
pub struct Args {
    /// pocket, a folder in Hugging Face layout, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Trace the model with an edit file laid over it; several are laid one over the other
    #[arg(long = "edit", value_name = "FILE")]
    pub edits: Vec<PathBuf>,
    /// The sentence whose answer is traced
    #[arg(long, value_name = "TEXT", group = "traced", requires = "subject")]
    pub prompt: Option<String>,
    /// What it is about; it occurs in the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "facts")]
    pub subject: Option<String>,
    /// The answer whose first token is traced; what the model says unless given
    #[arg(long, value_name = "TEXT", conflicts_with = "facts")]
    pub answer: Option<String>,
    /// Facts: a file (known_1000, CounterFact, or any that `emend apply --edits` takes), a fetched set, or `pocket`. Those whose true answer the
    /// model does not give are left out
    #[arg(long, value_name = "FACTS", group = "traced")]
    pub facts: Option<String>,
    /// At most so many facts of these
    #[arg(long, value_name = "N", conflicts_with = "prompt")]
    pub limit: Option<usize>,
    /// Only a part of the facts, the third of sixteen as 3/16; the averages are of all that the folder holds
    #[arg(long, value_name = "K/N", conflicts_with = "prompt")]
    pub shard: Option<Shard>,
    /// The folder of the facts' results; results/trace-MODEL-FACTS unless given
    #[arg(long, value_name = "DIR", conflicts_with = "prompt")]
    pub out: Option<PathBuf>,
    /// What is restored; may be given several times; all three unless given
    #[arg(long = "of", value_enum, value_name = "WHAT")]
    pub of: Vec<What>,
    /// Layers of a window of MLP or attention outputs, one number or several (10,5,3,1); 10 unless given, a third of a model with fewer than 24
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub window: Vec<usize>,
    /// The noise: 3x is three times the standard deviation of the subjects' token embeddings; a number is σ itself
    #[arg(long, default_value = "3x", value_name = "NOISE", conflicts_with = "noise_file", allow_hyphen_values = true)]
    pub noise: Strength,
    /// How often it is drawn
    #[arg(long, default_value_t = 10, value_name = "N", conflicts_with = "noise_file")]
    pub draws: usize,
    /// The seed of the draws
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "noise_file")]
    pub seed: u64,
    /// Take the noise of a safetensors file instead: a tensor `noise [draws, subject tokens, width]`, added to what goes into the lowest layer (in Gemma
    /// behind the scale of its embeddings)
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    pub noise_file: Option<PathBuf>,
    /// Draw the heat maps into a file, .svg or .png; may be given for both
    #[arg(long, value_name = "FILE")]
    pub plot: Vec<PathBuf>,
    /// Write the tables as safetensors: `state`, `mlp` and `attention`, each [tokens, layers], the answer's mean probability once a cell is restored;
    /// `state.spread` and so on, its standard deviation over draws; `high`, and `low` of each draw. Of several windows the first has the plain
    /// names, the others are `mlp.5` and so on
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    pub save: Option<PathBuf>,
    /// The element type to compute with
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Precision,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Go on where an edit was made on another base
    #[arg(long)]
    pub allow_other_base: bool,
    #[command(flatten)]
    pub planning: PlanArgs,
    /// Print one JSON document instead of heat maps
    #[arg(long)]
    pub json: bool,
}

/// What is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// A block's output.
    State,
    /// A window of MLP outputs.
    Mlp,
    /// A window of attention outputs.
    Attention,
}

/// The layers of a window unless given: ten, as the paper has it, and a third of a model that has few.
pub(super) fn default_window(layers: usize) -> usize {
    if layers < 24 { (layers / 3).max(1) } else { 10 }
}

/// Runs the command.
///
/// # Errors
/// A model, prompt, subject, file or folder that is wrong; facts of which none is answered.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    check(args)?;
    let facts = args.facts.as_ref().map(|name| facts(name, args.limit)).transpose()?;
    if args.planning.wanted() && planned(args, facts.as_deref())? {
        return Ok(());
    }
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&args.model, &device, args.dtype.into())?);
    let edited = load_edits(Edited::new(model.clone()), &args.edits, Elsewhere::Nowhere, args.allow_other_base)?;
    let restored = restored(args, edited.layers());
    restored.check(edited.layers())?;
    match facts {
        None => one(args, &edited, &restored, start),
        Some(requests) => many(args, &edited, &restored, &requests, start),
    }
}

/// Plans a run; whether nothing else is to be done.
fn planned(args: &Args, facts: Option<&[EditRequest]>) -> Result<bool> {
    let planning = Planning::open(&args.model, &args.device, args.dtype.into())?;
    let tokenizer = &planning.model.tokenizer;
    let prompts = facts.map_or(vec![], |facts| facts.iter().map(|fact| fact.prompt.as_str()).collect());
    let prompts = prompts.into_iter().chain(args.prompt.as_deref());
    let lengths = prompts.map(|prompt| Ok(tokenizer.encode_prompt(prompt)?.len())).collect::<Result<Vec<_>>>()?;
    let row = lengths.into_iter().max().unwrap_or(1);
    let restored = restored(args, planning.model.checkpoint.spec().layers);
    let mut plan = planning.plan();
    plan.held.extend(trace::held(
        &planning.work(Lengths { row, target: 1, ..Lengths::default() }),
        args.draws,
        restored.maps(),
    ));
    args.planning.settle(&plan, args.json)
}

/// What can be wrong before anything is read.
fn check(args: &Args) -> Result<()> {
    within("--draws", args.draws as f64, 1.0, 1e3)?;
    within("--limit", args.limit.unwrap_or(1) as f64, 1.0, 1e9)?;
    if args.answer.as_deref().is_some_and(|answer| answer.trim().is_empty()) {
        return Err(Error::Config("--answer is blank; leave it out to trace what the model says".into()));
    }
    for path in &args.plot {
        picture::check_name(path)?;
    }
    let written: Vec<&PathBuf> = args.plot.iter().chain(&args.save).collect();
    for (number, path) in written.iter().enumerate() {
        if written[..number].contains(path) {
            return Err(Error::Config(format!("{} is named twice; give each file its own name", path.display())));
        }
        files::check_file(path)?;
    }
    Ok(())
}

fn restored(args: &Args, layers: usize) -> Restored {
    let wanted = |what| args.of.is_empty() || args.of.contains(&what);
    let places = [(What::Mlp, Place::MlpOut), (What::Attention, Place::AttentionOut)];
    let mut windows = args.window.clone();
    if windows.is_empty() {
        windows.push(default_window(layers));
    }
    let mut known = vec![];
    windows.retain(|window| {
        !known.contains(window) && {
            known.push(*window);
            true
        }
    });
    Restored {
        states: wanted(What::State),
        places: places.into_iter().filter(|(what, _)| wanted(*what)).map(|(_, place)| place).collect(),
        windows,
    }
}

fn draw(args: &Args, panels: &[Panel]) -> Result<()> {
    for path in &args.plot {
        picture::write(path, panels)?;
    }
    Ok(())
}

/// Traces one prompt.
fn one(args: &Args, model: &Edited, restored: &Restored, start: Instant) -> Result<()> {
    let tokenizer = &model.base().tokenizer;
    let request = EditRequest {
        subject: args.subject.clone(),
        ..EditRequest::new(
            without_last_space(args.prompt.as_deref().unwrap_or_default()),
            args.answer.as_deref().unwrap_or_default().trim(),
        )
    };
    let question = Question::new(model, &request)?;
    let noise = match &args.noise_file {
        Some(path) => Noise::read(path, model, &question)?,
        None => {
            let sigma = args.noise.sigma(model, &question.ids[question.at.clone()])?;
            Noise::draw(model, &question, Hidden { sigma, draws: args.draws, seed: args.seed })
        }
    };
    if !question.is_answered() {
        tracing::warn!(
            "the model does not answer {:?}: it says {:?} ({}); what is traced is the answer asked for",
            tokenizer.token(question.answer),
            tokenizer.token(question.says.0),
            percent(Some(question.says.1))
        );
    }
    let found = trace(model, &question, &noise, restored)?;
    if let Some(path) = &args.save {
        files::write(path, &tensors::to_bytes(&found.tensors())?)?;
    }
    let panels = Panel::of_trace(&found, tokenizer);
    draw(args, &panels)?;
    if args.json {
        let mut document = found.document(tokenizer);
        document["asked_for"] = json!(args.answer);
        document["noise_file"] = json!(args.noise_file);
        if args.noise_file.is_none() {
            document["seed"] = json!(args.seed);
            document["noise_setting"] = json!(args.noise);
        }
        document["model"] = json!(args.model);
        document["fingerprint"] = json!(model.base().fingerprint);
        document["edits"] = json!(model.edit_ids());
        document["seconds"] = json!(start.elapsed().as_secs_f64());
        document["peak_memory_bytes"] = json!(peak_memory());
        return print(&format!("{document:#}\n"));
    }
    print(&text(&found, &panels, tokenizer.token(question.answer).trim()))
}

fn sigma_shown(sigma: f64) -> String {
    if (1e-3..1e6).contains(&sigma) { format!("{sigma:.4}") } else { format!("{sigma:.2e}") }
}

/// What a person sees of a trace.
fn text(found: &Trace, panels: &[Panel], answer: &str) -> String {
    let question = &found.question;
    let mut text = format!("{} → {answer}\n\n", question.prompt);
    text += &format!(
        "clean {}, with noise on \"{}\" {} (mean of {}{}): a total effect of {:.3}\n\n",
        percent(Some(found.high)),
        question.subject,
        percent(Some(found.low())),
        counted(found.low.len(), "draw"),
        found.noise.map_or(String::new(), |sigma| format!(", σ = {}", sigma_shown(sigma))),
        found.high - found.low()
    );
    panels.iter().for_each(|panel| text += &format!("{}\n", panel.terminal()));
    text
}

/// The facts of a file as requests: each with its true answer as the target, or none.
fn facts(name: &str, limit: Option<usize>) -> Result<Vec<EditRequest>> {
    let source = Source::open(name, Split::Test, Path::new(""))?.apart();
    let records = source.fixed(limit.unwrap_or(usize::MAX), 0);
    let named: Vec<EditRequest> = records
        .iter()
        .map(|record| EditRequest { target_new: record.target_true.clone().unwrap_or_default(), ..record.into() })
        .filter(|request| request.subject.is_some())
        .collect();
    match named.len() {
        0 => Err(Error::Input(format!("{name}: no record names a subject, so there is nothing to hide"))),
        some if some < records.len() => {
            tracing::warn!(
                "{name}: {} of {} records name no subject and are left out",
                records.len() - some,
                records.len()
            );
            Ok(named)
        }
        _ => Ok(named),
    }
}

/// What is restored, as the command line names it.
fn of_names(restored: &Restored) -> Vec<&'static str> {
    let places = restored.places.iter().map(|place| if *place == Place::MlpOut { "mlp" } else { "attention" });
    restored.states.then_some("state").into_iter().chain(places).collect()
}

/// Traces facts, each into a file of its own, and averages over all that the folder holds.
fn many(args: &Args, model: &Edited, restored: &Restored, requests: &[EditRequest], start: Instant) -> Result<()> {
    let name = args.facts.as_deref().unwrap_or_default();
    let folder = args.out.clone().unwrap_or_else(|| {
        let last = |name: &str| Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Path::new("results").join(format!("trace-{}-{}", last(args.model.trim_end_matches('/')), last(name)))
    });
    // Of all facts, so that every shard has the same noise.
    let sigma = args.noise.for_requests(model, requests)?;
    let digest = blake3::hash(serde_json::to_string(requests).unwrap_or_default().as_bytes()).to_hex()[..16].to_owned();
    let params = json!({
        "format": "trace/1",
        "model": args.model,
        "fingerprint": model.base().fingerprint,
        "edits": model.edit_ids(),
        "facts": { "from": name, "count": requests.len(), "digest": digest },
        "noise": { "sigma": sigma, "draws": args.draws, "seed": args.seed },
        "of": of_names(restored),
        "windows": restored.windows,
        "dtype": args.dtype,
    });
    let traces = Traces::begin(&folder, &params)?;
    let shard = args.shard.unwrap_or_default();
    let own: Vec<usize> = (0..requests.len()).filter(|&number| shard.has(number)).collect();
    let left: Vec<usize> = own.iter().copied().filter(|&number| !traces.path(number).is_file()).collect();
    let hidden = Hidden { sigma, draws: args.draws, seed: args.seed };
    let mut steps = Steps::new(own.len());
    for (done, &number) in left.iter().enumerate() {
        traces.trace(number, model, &requests[number], hidden, restored)?;
        let done = own.len() - left.len() + done + 1;
        steps.bar.set_position(done as u64);
        steps.tell(done, requests[number].prompt.clone());
    }
    steps.bar.finish_and_clear();
    summarize(args, &traces, &folder, &params, requests.len(), start)
}

/// The averages over all facts of a folder.
fn summarize(args: &Args, traces: &Traces, folder: &Path, params: &Value, facts: usize, start: Instant) -> Result<()> {
    let (mut traced, mut unanswered, mut unread, mut missing) = (vec![], 0, 0, 0);
    for number in 0..facts {
        match traces.read(number)? {
            None => missing += 1,
            Some(document) if is_unread(&document) => unread += 1,
            Some(document) if is_left_out(&document) => unanswered += 1,
            Some(document) => traced.push(document),
        }
    }
    if traced.is_empty() && missing == 0 {
        let read = match unread {
            0 => "the model answers none".to_owned(),
            unread => format!("the model cannot read {unread} (too long, or without their subject) and answers none"),
        };
        return Err(Error::Input(format!(
            "no fact is left: of {} {read}; the files in {} say why",
            counted(facts, "fact"),
            folder.display()
        )));
    }
    let averages = Averages::all_of(&traced);
    let mean = |key: &str| {
        let values: Vec<f64> = traced.iter().filter_map(|document| document[key].as_f64()).collect();
        Mean::of(&values)
    };
    let figures = [("high", mean("high")), ("low", mean("low")), ("total_effect", mean("total_effect"))];
    let mut summary = params.clone();
    for (key, mean) in figures {
        summary[key] = mean.map_or(Value::Null, |mean| mean.document());
    }
    summary["facts"]["traced"] = json!(traced.len());
    summary["facts"]["left_out"] = json!(unanswered + unread);
    summary["facts"]["unread"] = json!(unread);
    summary["facts"]["missing"] = json!(missing);
    summary["averages"] = averages.iter().map(Averages::document).collect();
    let panels: Vec<Panel> = averages.iter().map(Panel::of_averages).collect();
    files::write(&folder.join("summary.json"), format!("{summary:#}\n").as_bytes())?;
    files::write(&folder.join("averages.svg"), picture::svg(&panels[..]).as_bytes())?;
    draw(args, &panels)?;
    if args.json {
        summary["seconds"] = json!(start.elapsed().as_secs_f64());
        summary["peak_memory_bytes"] = json!(peak_memory());
        return print(&format!("{summary:#}\n"));
    }
    let mut text = format!("{} traced, {} left out", counted(traced.len(), "fact"), unanswered + unread);
    if unanswered + unread > 0 {
        text += &format!(
            ": {unanswered} whose answer the model does not give, {unread} that it cannot read (too long, or without their subject; the files say why)"
        );
    }
    text += &if missing > 0 { format!("; {missing} not traced yet\n") } else { "\n".into() };
    if let [(_, Some(high)), (_, Some(low)), (_, Some(effect))] = figures {
        text += &format!(
            "clean {}, with noise {}: a mean total effect of {}\n\n",
            percent(Some(high.mean)),
            percent(Some(low.mean)),
            effect.shown()
        );
    }
    for (averages, panel) in averages.iter().zip(&panels) {
        text += &panel.terminal();
        // At the last token the effect of the highest layers is the whole, by construction.
        for (site, late) in [("early", false), ("late", true)] {
            if let Some((role, layer, mean)) = averages.largest(|role| (role == Role::Last) == late) {
                text += &format!("{site} site: {} at layer {layer}, {}\n", role.name(), mean.shown());
            }
        }
        text.push('\n');
    }
    print(&format!("{text}the facts' files and summary.json: {}\n", folder.display()))
}
