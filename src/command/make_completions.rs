//! `emend make-completions`: passages of a text with completions that a model draws, for MEND's own task.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::print;
use super::steps::tell_now_and_then;
use crate::data::text::Documents;
use crate::data::world::Split;
use crate::device;
use crate::edit::Edited;
use crate::edit::generate::Sampling;
use crate::error::{Error, Result};
use crate::model::{Model, Precision};
use crate::sections::within;

/// Make a file of completions: passages of a text, each with an end that a model draws instead of its own.
///
/// Editing them is the task that MEND was published with for GPT models: the edit writes the completion, the passage without its beginning
/// is in scope, and running text is not. `train`, `apply` and `compare` read the file like any other file of records.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model that draws: pocket, a folder in Hugging Face layout, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The text: `wikitext` (its part `train`, unless wikitext/test is named), `pocket`, or a file of text, JSON or JSONL
    #[arg(long, value_name = "TEXT")]
    pub text: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Completions to make; as many as the text has passages, unless given
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Tokens of a completion
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub tokens: usize,
    /// Tokens of a passage before it
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub passage: usize,
    /// How freely completions are drawn
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f64,
    /// Draw among the k likeliest tokens only; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// The seed of the draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// The key that holds the text of a JSON record
    #[arg(long, default_value = "text", value_name = "KEY")]
    pub field: String,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Print one JSON document instead of a line
    #[arg(long)]
    pub json: bool,
}

/// Passages that are completed side by side.
const TOGETHER: usize = 32;

/// Runs the command.
///
/// # Errors
/// A model or text that is wrong, a text without a passage that is long enough, a file that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    within("--tokens", args.tokens as f64, 1.0, 1e6)?;
    within("--count", args.count.unwrap_or(1) as f64, 1.0, 1e12)?;
    within("--passage", args.passage as f64, 2.0, 1e6)?;
    let sampling =
        Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed, ..Sampling::default() };
    sampling.check()?;
    if let Some(folder) = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        crate::files::check_writable(folder)?;
    }
    let model = Arc::new(Model::load(&args.model, &device::open(&args.device)?, Precision::F32.into())?);
    let length = args.passage + args.tokens;
    if length > model.decoder.spec.context {
        let context = model.decoder.spec.context;
        let message = format!("--passage and --tokens are {length} together; the model's context is {context} tokens");
        return Err(Error::Config(message));
    }
    let bar = match args.count {
        Some(count) => ProgressBar::new(count as u64),
        None => ProgressBar::no_length(),
    };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} completions {per_sec} {eta}") {
        bar.set_style(style);
    }
    tell_now_and_then(&bar, "completions");
    let (mut made, mut waiting, mut batches) = (Made::default(), vec![], 0);
    let most = args.count.unwrap_or(usize::MAX);
    let edited = Edited::new(model.clone());
    let mut complete = |waiting: &mut Vec<Passage>, made: &mut Made| -> Result<()> {
        // Each batch has a stream of its own, or all batches would draw alike.
        let sampling = Sampling { seed: args.seed.wrapping_add(batches << 32), ..sampling.clone() };
        batches += 1;
        made.add(&edited, std::mem::take(waiting), args.tokens, &sampling)?;
        bar.set_position(made.completions.len().min(most) as u64);
        Ok(())
    };
    let documents = Documents::open(&args.text, Split::Train, Path::new(""), &args.field)?;
    documents.shuffled(args.seed, &mut |document| {
        waiting.extend(Passage::of(document.trim(), args, &model)?);
        if waiting.len() == TOGETHER {
            complete(&mut waiting, &mut made)?;
        }
        Ok(if made.completions.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if !waiting.is_empty() && made.completions.len() < most {
        complete(&mut waiting, &mut made)?;
    }
    bar.finish_and_clear();
    let Made { mut original, mut completions, passages } = made;
    original.truncate(most);
    completions.truncate(most);
    if passages == 0 {
        return Err(Error::Input(format!(
            "{}: no document of it has more than {length} tokens, which a passage and its completion want; lower --passage or --tokens",
            args.text
        )));
    }
    if completions.is_empty() {
        return Err(Error::Input("no completion could be told apart from its passage again, token for token; try other lengths, or a text like those that the model knows".into()));
    }
    if args.count.is_some_and(|count| completions.len() < count) {
        tracing::warn!(
            "{} completions were made of the {passages} passages that the text has, fewer than --count {most}",
            completions.len()
        );
    }
    let count = completions.len();
    let document = json!({ "original": original, "completions": completions, "n_tokens": args.tokens });
    crate::files::write(&args.out, format!("{document:#}\n").as_bytes())?;
    match args.json {
        true => print(&format!("{:#}\n", json!({ "saved": args.out, "completions": count, "n_tokens": args.tokens }))),
        false => print(&format!("saved {}: {count} completions of {} tokens\n", args.out.display(), args.tokens)),
    }
}

/// What was made so far.
#[derive(Default)]
struct Made {
    original: Vec<String>,
    completions: Vec<String>,
    /// How many passages were tried.
    passages: usize,
}

impl Made {
    /// Completes passages. What the file holds must be cut again at the very token: a completion that stopped early, broke the line, or whose
    /// first letters melt into the passage, is left out.
    fn add(&mut self, model: &Edited, passages: Vec<Passage>, tokens: usize, sampling: &Sampling) -> Result<()> {
        let tokenizer = &model.base().tokenizer;
        let prompts: Vec<Vec<u32>> = passages.iter().map(|passage| passage.ids.clone()).collect();
        let made = model.generate(&prompts, tokens, &model.base().stop_tokens(), sampling)?;
        self.passages += passages.len();
        for (passage, made) in passages.into_iter().zip(made) {
            let ids = [passage.ids.as_slice(), made.as_slice()].concat();
            // As one text: some tokenizers drop the space at the beginning of what they are given.
            let text = tokenizer.decode(&ids)?;
            let whole = made.len() == tokens && text.starts_with(&passage.text) && tokenizer.encode(&text)? == ids;
            if whole && !text.contains('\n') && text.trim_end() == text {
                self.original.push(passage.original);
                self.completions.push(text);
            }
        }
        Ok(())
    }
}

/// A passage, and the text that it goes on with.
struct Passage {
    ids: Vec<u32>,
    text: String,
    original: String,
}

impl Passage {
    /// The beginning of a document; nothing where that is too short to be one.
    fn of(document: &str, args: &Args, model: &Model) -> Result<Option<Self>> {
        let (starts, length) = (model.tokenizer.starts(document)?, args.passage + args.tokens);
        if starts.len() <= length {
            return Ok(None);
        }
        // A token may begin before the space in front of its word.
        let upto = |token: usize| document[..starts[token]].trim_end().to_owned();
        let text = upto(args.passage);
        let ids = model.tokenizer.encode(&text)?;
        // Some texts are more tokens by themselves than they were in their document.
        let fits = ids.len() + args.tokens <= model.decoder.spec.context;
        Ok(fits.then(|| Passage { ids, text, original: upto(length) }))
    }
}
