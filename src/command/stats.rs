//! `emend stats`: second moments of keys, which ROME, MEMIT and their kin keep still.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{keep_state, print, stop};
use crate::config::within;
use crate::data::text::Texts;
use crate::device;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::process::peak_memory;
use crate::report::table::{percent, table};
use crate::statistics::{Collect, Collected, Header, Moments, Source, collect};

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
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub text: Vec<PathBuf>,
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
    if args.row == Some(0) {
        return Err(Error::Config("--row must be at least 1".into()));
    }
    if args.tokens == Some(0) {
        return Err(Error::Config("--tokens must be at least 1".into()));
    }
    if let Some(until) = args.until {
        within("--until", until, 0.0, 1.0)?;
    }
    let device = device::open(&args.device)?;
    let model = Model::load(&args.model, &device, burn::tensor::DType::F32)?;
    let spec = &model.decoder.spec;
    if let Some(layer) = layers.iter().find(|&&layer| layer >= spec.layers) {
        let message = format!("--layers: the model has no layer {layer}; it has layers 0 to {}", spec.layers - 1);
        return Err(Error::Config(message));
    }
    let row = args.row.unwrap_or(spec.context.min(256));
    if row > spec.context {
        return Err(Error::Config(format!("--row {row}: the model's context is {} tokens", spec.context)));
    }
    let name = args.model.trim_end_matches('/').rsplit('/').next().unwrap_or(&args.model);
    if let Some(out) = args.out.as_ref().filter(|out| out.is_dir()) {
        return Err(Error::file(out, "a directory, not a file; --out names a file"));
    }
    let path = Moments::path(&args.out.clone().unwrap_or_else(|| PathBuf::from("stats").join(name)));
    if path.is_dir() {
        return Err(Error::file(&path, "a directory, not a file; --out names a file"));
    }
    let texts = Texts { files: args.text.clone(), field: args.field.clone() };
    let sources = texts.hashes()?.into_iter().zip(&args.text).map(|(blake3, path)| Source {
        name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        blake3,
    });
    let header = Header {
        format: String::new(),
        model: model.fingerprint.clone(),
        tokenizer: model.tokenizer.fingerprint()?,
        width: spec.mlp_width,
        layers: layers.clone(),
        tokens: 0,
        row,
        seed: args.seed,
        field: args.field.clone(),
        sources: sources.collect(),
        half: 0,
        changes: vec![],
    };
    let known = if path.is_file() { Some(Moments::load(&path, None)?) } else { None };
    let mut moments = match known.map(|known| (same(&known.header, &header), known)) {
        Some((Ok(()), known)) => known,
        Some((Err(what), _)) if !args.again => {
            let message = format!("statistics of {what}; give another --out, or --again to begin anew");
            return Err(Error::file(&path, message));
        }
        _ => Moments::empty(header),
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    crate::files::check_writable(folder)?;
    crate::files::remove_leftovers_of(&path)?;

    let before = moments.header.tokens;
    let bar = ProgressBar::new(args.tokens.unwrap_or(0));
    let template = match args.tokens {
        Some(_) => "{wide_bar} {pos}/{len} tokens {per_sec} {eta} {msg}",
        None => "{spinner} {pos} tokens {per_sec} {elapsed} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_position(before);
    bar.reset_eta();
    keep_state();
    let mut saved = Instant::now();
    let collecting = Instant::now();
    let settings = Collect { tokens: args.tokens, until: args.until };
    let result = collect(&model, &texts, &settings, &mut moments, &mut |moments| {
        bar.set_position(moments.header.tokens);
        if let Some(change) = moments.header.changes.last() {
            bar.set_message(format!("C changed by {} at {} tokens", percent(Some(change.largest())), change.tokens));
        }
        if saved.elapsed() > SAVED_EVERY {
            moments.save(&path)?;
            saved = Instant::now();
        }
        Ok(!stop())
    });
    bar.finish_and_clear();
    moments.mirror();
    let end = match result {
        Ok(end) => end,
        Err(Error::Interrupted(place)) => {
            moments.save(&path)?;
            return Err(Error::Interrupted(format!("{place}; the same command goes on from there")));
        }
        Err(error) => return Err(error),
    };
    moments.save(&path)?;
    let seconds = collecting.elapsed().as_secs_f64();
    if moments.header.tokens < moments.header.width as u64 {
        tracing::warn!(
            "{} tokens for keys of width {}: C has not full rank; collect more with --tokens",
            moments.header.tokens,
            moments.header.width
        );
    }
    if args.json {
        let ended = match end {
            Collected::Enough => "enough",
            Collected::Converged => "converged",
            Collected::All => "all",
        };
        let document = json!({
            "file": path,
            "model": { "path": args.model, "fingerprint": model.fingerprint },
            "layers": layers,
            "tokens": moments.header.tokens,
            "new_tokens": moments.header.tokens - before,
            "ended": ended,
            "changes": moments.header.changes,
            "seconds": { "collect": seconds, "all": start.elapsed().as_secs_f64() },
            "peak_memory_bytes": peak_memory(),
        });
        return print(&format!("{document:#}\n"));
    }
    let rows: Vec<Vec<String>> = moments
        .header
        .changes
        .iter()
        .map(|change| {
            let shares = change.layers.values().map(|share| percent(Some(*share)));
            std::iter::once(change.tokens.to_string()).chain(shares).collect()
        })
        .collect();
    let titles: Vec<String> = layers.iter().map(|layer| format!("layer {layer}")).collect();
    let header: Vec<&str> = std::iter::once("tokens").chain(titles.iter().map(String::as_str)).collect();
    let why = match end {
        Collected::Enough => String::new(),
        Collected::Converged => format!(", C changing by less than {}", percent(args.until)),
        Collected::All => ", all there are".into(),
    };
    print(&format!(
        "C over {} tokens{why}, in {seconds:.0} s; its change as the tokens doubled:\n\n{}\nsaved {}\n",
        moments.header.tokens,
        table(&header, &rows),
        path.display()
    ))
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
        return Err("another tokenizer".into());
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
