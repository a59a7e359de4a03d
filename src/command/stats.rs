//! `emend stats`: second moments of keys, which ROME, MEMIT and their kin keep still.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::chat::ChatArgs;
use super::plan::{PlanArgs, Planning};
use super::steps::tell_now_and_then;
use super::{keep_state, print, stats_npz, stop};
use crate::data::asking::Asking;
use crate::data::text::Documents;
use crate::device;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::plan::Lengths;
use crate::process::peak_memory;
use crate::report::table::{percent, table};
use crate::sections::within;
use crate::statistics::{Collect, Collected, Header, Moments, Source, collect, held};

/// Collect second moments of keys over text, for ROME, MEMIT, EMMET and AlphaEdit.
///
/// One pass serves all layers. A collection that was stopped or killed goes on when the same command runs again, and
/// takes more text in with more --tokens.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: `pocket`, a folder, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Files of text (a document a line), JSON or JSONL (a document a record), gzipped or not; `pocket`: the embedded
    /// world's sentences
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present_any = ["import", "export"])]
    pub text: Vec<PathBuf>,
    /// Take over second moments that others have published: numpy archives as the ROME and MEMIT authors have them, one a layer
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["text", "tokens", "until", "export", "plan", "memory_limit"])]
    pub import: Vec<PathBuf>,
    /// Write the statistics that are there for the ROME and MEMIT authors' code, a file a layer
    #[arg(long, num_args = 2, value_names = ["npz", "DIR"], conflicts_with_all = ["text", "tokens", "until", "plan", "memory_limit"])]
    pub export: Vec<String>,
    /// The layers: 5, 4..8 (both ends), or 4,6,8
    #[arg(long, value_name = "LAYERS")]
    pub layers: String,
    /// So many tokens, rounded up to whole batches of 4 rows; all there are unless given
    #[arg(long, value_name = "N")]
    pub tokens: Option<u64>,
    /// Stop when C changes by less than this share as the tokens double
    #[arg(long, value_name = "SHARE")]
    pub until: Option<f64>,
    /// The key that holds the text of a JSON record
    #[arg(long, default_value = "text", value_name = "KEY")]
    pub field: String,
    /// Tokens a row of text; 256 unless given, or the model's context where that is shorter
    #[arg(long, value_name = "N")]
    pub row: Option<usize>,
    /// The seed of the texts' order
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// The file; stats/MODEL.safetensors unless given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Begin anew where the file holds statistics of another model, other layers or other texts
    #[arg(long)]
    pub again: bool,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(flatten)]
    pub planning: PlanArgs,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How often the state is saved on the way.
const SAVED_EVERY: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// A model, a text or a layer that is wrong, a file of other statistics, an interruption after the state is saved.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let layers = layers(&args.layers)?;
    check_numbers(args)?;
    if !args.import.is_empty() {
        return stats_npz::import(args, &layers);
    }
    if !args.export.is_empty() {
        return stats_npz::export(args, &layers);
    }
    if args.planning.wanted() {
        let planning = Planning::open(&args.model, &args.device, burn::tensor::DType::F32)?;
        let row = row_length(args, &layers, planning.work(Lengths::default()).spec)?;
        let mut plan = planning.plan();
        plan.held.extend(held(&planning.work(Lengths::default()), layers.len(), row));
        if args.planning.settle(&plan, args.json)? {
            return Ok(());
        }
    }
    let device = device::open(&args.device)?;
    let model = Model::load(&args.model, &device, burn::tensor::DType::F32)?;
    let row = row_length(args, &layers, &model.decoder.spec)?;
    let path = target(args)?;
    let texts = Documents { files: args.text.clone(), field: args.field.clone() };
    let mut moments = begun(&path, header(args, layers, row, &model, &texts)?, args.again)?;
    let before = moments.header.tokens;
    let collecting = Instant::now();
    let end = collected(args, &model, &texts, &mut moments, &path)?;
    let outcome = Outcome { moments: &moments, path: &path, before, end, seconds: collecting.elapsed().as_secs_f64() };
    warn_of_rank(&moments.header);
    match args.json {
        true => print(&format!("{:#}\n", outcome.document(args, start))),
        false => print(&outcome.lines(args.until)),
    }
}

/// Numbers that can be wrong for any model.
fn check_numbers(args: &Args) -> Result<()> {
    for (name, number) in [("--row", args.row.map(|row| row as u64)), ("--tokens", args.tokens)] {
        if number == Some(0) {
            return Err(Error::Config(format!("{name} must be at least 1")));
        }
    }
    within("--until", args.until.unwrap_or(0.0), 0.0, 1.0)
}

/// Tokens a row, for a model that has the layers.
pub(super) fn row_length(args: &Args, layers: &[usize], spec: &DecoderSpec) -> Result<usize> {
    if spec.source.is_some() {
        let message = "--model: statistics serve editors of causal stacks (rome, memit, emmet, alphaedit), and this model has an encoder";
        return Err(Error::Config(message.into()));
    }
    if let Some(layer) = layers.iter().find(|&&layer| layer >= spec.layers) {
        let message = format!("--layers: the model has no layer {layer}; it has {}", spec.places());
        return Err(Error::Config(message));
    }
    match args.row {
        Some(row) if row > spec.context => {
            Err(Error::Config(format!("--row {row}: the model's context is {} tokens", spec.context)))
        }
        Some(row) => Ok(row),
        None => Ok(spec.context.min(256)),
    }
}

/// The file to write.
pub(super) fn target(args: &Args) -> Result<PathBuf> {
    let name = args.model.trim_end_matches('/').rsplit('/').next().unwrap_or(&args.model);
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("stats").join(name));
    let path = Moments::path(&out);
    // A folder given as --out is refused; one of the model's name under stats/ is not in the way.
    match args.out.iter().chain([&path]).find(|path| path.is_dir()) {
        Some(folder) => Err(Error::file(folder, "a directory, not a file; --out names a file")),
        None => Ok(path.clone()),
    }
}

/// What the statistics are to be made of.
fn header(args: &Args, layers: Vec<usize>, row: usize, model: &Model, texts: &Documents) -> Result<Header> {
    let sources = texts.hashes()?.into_iter().zip(&args.text).map(|(blake3, path)| Source {
        name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        blake3,
    });
    Ok(Header {
        format: String::new(),
        model: model.fingerprint.clone(),
        tokenizer: model.tokenizer.fingerprint()?,
        width: model.decoder.spec.mlp.width,
        layers,
        tokens: 0,
        row,
        seed: args.seed,
        field: args.field.clone(),
        chat: args.chat.or(Asking::default()).template(&model.tokenizer)?.map(|chat| chat.asked),
        sources: sources.collect(),
        half: 0,
        changes: vec![],
    })
}

/// The moments that the file holds already, where they are of what is wanted, else none yet; the file can be written.
pub(super) fn begun(path: &Path, wanted: Header, again: bool) -> Result<Moments> {
    let known = if path.is_file() { Some(Moments::load(path, None)?) } else { None };
    let moments = match known.map(|known| (same(&known.header, &wanted), known)) {
        Some((Ok(()), known)) => known,
        Some((Err(what), _)) if !again => {
            let message = format!("statistics of {what}; give another --out, or --again to begin anew");
            return Err(Error::file(path, message));
        }
        _ => Moments::empty(wanted),
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    crate::files::check_writable(folder)?;
    crate::files::remove_leftovers_of(path)?;
    Ok(moments)
}

/// Collects what is missing under a progress bar and saves it: now and then on the way, when it is interrupted, and at the end.
fn collected(args: &Args, model: &Model, texts: &Documents, moments: &mut Moments, path: &Path) -> Result<Collected> {
    let bar = progress_bar(args.tokens, moments.header.tokens);
    keep_state();
    let mut saved = Instant::now();
    let settings = Collect {
        tokens: args.tokens,
        until: args.until,
        chat: args.chat.or(Asking::default()).template(&model.tokenizer)?,
    };
    let result = collect(model, texts, &settings, moments, &mut |moments| {
        bar.set_position(moments.header.tokens);
        if let Some(change) = moments.header.changes.last() {
            bar.set_message(format!("C changed by {} at {} tokens", percent(Some(change.largest())), change.tokens));
        }
        if saved.elapsed() > SAVED_EVERY {
            moments.save(path)?;
            saved = Instant::now();
        }
        Ok(!stop())
    });
    bar.finish_and_clear();
    moments.mirror();
    match result {
        Ok(end) => moments.save(path).map(|()| end),
        Err(Error::Interrupted(place)) => {
            moments.save(path)?;
            Err(Error::Interrupted(format!("{place}; the same command goes on from there")))
        }
        Err(error) => Err(error),
    }
}

/// A bar of the tokens, which are unlimited where no number is given.
fn progress_bar(tokens: Option<u64>, known: u64) -> ProgressBar {
    let bar = ProgressBar::new(tokens.unwrap_or(0));
    let template = match tokens {
        Some(_) => "{wide_bar} {pos}/{len} tokens {per_sec} {eta} {msg}",
        None => "{spinner} {pos} tokens {per_sec} {elapsed} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_position(known);
    bar.reset_eta();
    tell_now_and_then(&bar, "tokens");
    bar
}

/// Says where there are too few tokens for C to have an inverse.
fn warn_of_rank(header: &Header) {
    if header.tokens < header.width as u64 {
        tracing::warn!(
            "{} tokens for keys of width {}: C has not full rank; collect more with --tokens",
            header.tokens,
            header.width
        );
    }
}

/// What a collection came to.
struct Outcome<'a> {
    moments: &'a Moments,
    path: &'a Path,
    /// The tokens that were known before.
    before: u64,
    end: Collected,
    seconds: f64,
}

impl Outcome<'_> {
    fn document(&self, args: &Args, start: Instant) -> Value {
        let header = &self.moments.header;
        let ended = match self.end {
            Collected::Enough => "enough",
            Collected::Converged => "converged",
            Collected::All => "all",
        };
        json!({
            "file": self.path,
            "model": { "path": args.model, "fingerprint": header.model },
            "layers": header.layers,
            "tokens": header.tokens,
            "new_tokens": header.tokens - self.before,
            "ended": ended,
            "changes": header.changes,
            "seconds": { "collect": self.seconds, "all": start.elapsed().as_secs_f64() },
            "peak_memory_bytes": peak_memory(),
        })
    }

    fn lines(&self, until: Option<f64>) -> String {
        let header = &self.moments.header;
        let rows = header.changes.iter().map(|change| {
            let shares = change.layers.values().map(|share| percent(Some(*share)));
            std::iter::once(change.tokens.to_string()).chain(shares).collect::<Vec<String>>()
        });
        let titles: Vec<String> = header.layers.iter().map(|layer| format!("layer {layer}")).collect();
        let titles: Vec<&str> = std::iter::once("tokens").chain(titles.iter().map(String::as_str)).collect();
        let why = match self.end {
            Collected::Enough => String::new(),
            Collected::Converged => format!(", C changing by less than {}", percent(until)),
            Collected::All => ", all there are".into(),
        };
        format!(
            "C over {} tokens{why}, in {:.0} s; its change as the tokens doubled:\n\n{}\nsaved {}\n",
            header.tokens,
            self.seconds,
            table(&titles, &rows.collect::<Vec<_>>()),
            self.path.display()
        )
    }
}

/// `5`, `4..8` or `4,6,8` as layers in order.
fn layers(text: &str) -> Result<Vec<usize>> {
    let wrong = || Error::Config(format!("--layers {text}: write 5, 4..8 (both ends), or 4,6,8"));
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let mut layers: Vec<usize> = match text.split_once("..") {
        Some((from, to)) => {
            let (from, to) = (number(from)?, number(to.trim_start_matches('='))?);
            // No model has as many; a list of them could be larger than the memory.
            if to > 100_000 {
                return Err(wrong());
            }
            (from..=to).collect()
        }
        None => text.split(',').map(number).collect::<Result<_>>()?,
    };
    layers.sort_unstable();
    layers.dedup();
    if layers.is_empty() { Err(wrong()) } else { Ok(layers) }
}

/// Whether known moments are of what is asked for; else what they are of.
fn same(header: &Header, wanted: &Header) -> std::result::Result<(), String> {
    if header.model != wanted.model {
        return Err(format!("the model {}, this one is {}", header.model, wanted.model));
    }
    if header.tokenizer != wanted.tokenizer {
        return Err(if header.imported() { "others, which were imported" } else { "another tokenizer" }.into());
    }
    if header.width != wanted.width {
        return Err(format!("keys of width {}, the model's are {} wide", header.width, wanted.width));
    }
    if header.layers != wanted.layers {
        return Err(format!("the layers {:?}, asked for are {:?}", header.layers, wanted.layers));
    }
    // A name may change; its ending says how the bytes are read.
    let texts = |header: &Header| -> Vec<(String, String)> {
        let form = |name: &str| name.trim_end_matches(".gz").rsplit('.').next().unwrap_or_default().to_owned();
        header.sources.iter().map(|source| (source.blake3.clone(), form(&source.name))).collect()
    };
    if texts(header) != texts(wanted) || header.field != wanted.field {
        let names: Vec<&str> = header.sources.iter().map(|source| source.name.as_str()).collect();
        return Err(format!("other texts ({})", names.join(", ")));
    }
    if header.chat != wanted.chat {
        return Err("texts put to the model otherwise (--chat, --system)".into());
    }
    if (header.row, header.seed) != (wanted.row, wanted.seed) {
        return Err(format!("rows of {} tokens and seed {}", header.row, header.seed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_three_forms() {
        assert_eq!(layers("5").unwrap(), [5]);
        assert_eq!(layers("4..6").unwrap(), [4, 5, 6]);
        assert_eq!(layers("8, 4,8").unwrap(), [4, 8]);
        for wrong in ["", "x", "1..", "6..4", "0..9999999999"] {
            assert!(layers(wrong).is_err(), "{wrong}");
        }
    }
}
