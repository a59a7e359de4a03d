//! `emend predict`: what a model says, with edits laid over it.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::chat::ChatArgs;
use super::steps::bar;
use super::{load_edits, print};
use crate::apply::memory::Elsewhere;
use crate::data::asking::Asking;
use crate::device;
use crate::edit::Edited;
use crate::edit::generate::Sampling;
use crate::error::Result;
use crate::model::Model;
use crate::model::Precision;
use crate::model::separator::without_last_space;
use crate::model::tokens::BEGIN;
use crate::report::table::{cut, percent, table};

/// What a model says, with edits laid over it in the order given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// pocket, a folder in Hugging Face layout, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// An edit file; several are laid one over the other
    #[arg(long = "edit", value_name = "FILE")]
    pub edits: Vec<PathBuf>,
    /// Where the archive of a memory lies, if it was moved since
    #[arg(long, value_name = "DIR", requires = "edits")]
    pub archive: Option<PathBuf>,
    /// The text to continue; may be given several times
    #[arg(long = "prompt", value_name = "TEXT", required = true)]
    pub prompts: Vec<String>,
    /// How many next tokens to show
    #[arg(long, default_value_t = 5, value_name = "K")]
    pub top: usize,
    /// Continue by up to so many tokens
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub generate: usize,
    /// 0 takes the likeliest token; higher draws more freely
    #[arg(long, default_value_t = 0.0, value_name = "T", requires = "generate")]
    pub temperature: f64,
    /// Draw among the k likeliest tokens only; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K", requires = "temperature")]
    pub top_k: usize,
    /// Draw among the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.0, value_name = "P", requires = "temperature")]
    pub top_p: f64,
    /// The seed of the draws
    #[arg(long, default_value_t = 0, requires = "temperature")]
    pub seed: u64,
    #[command(flatten)]
    pub chat: ChatArgs,
    /// The element type to compute with
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Precision,
    /// Go on where an edit was made on another base
    #[arg(long)]
    pub allow_other_base: bool,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A model, edit or prompt that is wrong.
pub fn run(args: &Args) -> Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.check()?;
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&args.model, &device, args.dtype.into())?);
    let elsewhere = args.archive.as_deref().map_or(Elsewhere::Nowhere, Elsewhere::Instead);
    let edited = load_edits(Edited::new(model.clone()), &args.edits, elsewhere, args.allow_other_base)?;
    let tokenizer = &model.tokenizer;
    let asking = args.chat.or(Asking::default());
    let chat = asking.template(tokenizer)?;
    warn_of_chats(&edited, &asking);
    let mut results = vec![];
    let mut text = String::new();
    let bar = bar(args.prompts.len(), "prompts");
    for said in &args.prompts {
        let prompt = &match &chat {
            Some(chat) => {
                if chat.is_turn(said) {
                    tracing::warn!("a prompt holds the chat template's own text already and is asked as it stands");
                }
                chat.prompt(without_last_space(said))?
            }
            None => said.clone(),
        };
        let ids = tokenizer.encode_prompt(prompt)?;
        for missed in edited.misses(&ids)? {
            tracing::warn!("{said:?}: {missed}");
        }
        let top = edited.next_tokens(&ids, args.top)?;
        let consulted = edited.consulted(without_last_space(prompt))?;
        let generated = match args.generate {
            0 => None,
            count => {
                let made = edited.generate(std::slice::from_ref(&ids), count, &model.stop_tokens(), &sampling)?;
                Some(tokenizer.decode(&made[0])?)
            }
        };
        let rows: Vec<Vec<String>> = top
            .iter()
            .map(|token| {
                vec![
                    tokenizer.shown(token.id),
                    format!("{:.1} %", 100.0 * token.probability),
                    format!("{:.3}", token.logit),
                ]
            })
            .collect();
        let what = if tokenizer.labels().is_some() { "label" } else { "next token" };
        text += &format!("{said}\n\n{}", table(&[what, "probability", "logit"], &rows));
        if let Some((request, scope)) = &consulted {
            let statement = request.as_ref().map(|request| cut(&request.statement(), 80));
            let what = statement.unwrap_or_else(|| "its edits together".into());
            text += &format!("\nfrom memory: {what} (scope {})\n", percent(Some(*scope)));
        }
        if let Some(generated) = &generated {
            let lead = if chat.is_some() { "" } else { prompt };
            text += &format!("\n{lead}{generated}\n");
        }
        text.push('\n');
        let top: Vec<_> = top
            .iter()
            .map(|token| json!({"id": token.id, "token": token.token, "logit": token.logit, "probability": token.probability}))
            .collect();
        let memory = consulted.map(|(request, scope)| json!({"request": request, "scope": scope}));
        let mut result = json!({"prompt": prompt, "top": top, "generated": generated, "memory": memory});
        // Over an encoder there are two texts.
        let mut texts = ids.split(|id| *id == BEGIN);
        result["token_ids"] = json!(texts.next());
        if let Some(written) = texts.next() {
            result["decoder_token_ids"] = json!(written);
        }
        results.push(result);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        let document = json!({
            "model": args.model,
            "fingerprint": model.fingerprint,
            "edits": edited.edit_ids(),
            "results": results,
        });
        return print(&format!("{document:#}\n"));
    }
    print(&text)
}

/// An edit that was made for a chat answers the turns of one, and not always the bare text or another system's.
fn warn_of_chats(edited: &Edited, asking: &Asking) {
    let of_weights = edited.edits().iter().flat_map(|edit| &edit.provenance.requests);
    let of_memories = edited.memories().iter().flat_map(|memory| &memory.requests);
    let mut chats = of_weights.chain(of_memories).filter_map(|request| request.chat.as_ref());
    if let Some(asked) = chats.find(|asked| !asking.chat || asked.system != asking.system) {
        let system = asked.system.as_ref().map_or(String::new(), |text| format!(" --system {text:?}"));
        tracing::warn!("an edit was made for a chat; ask as it was asked, with --chat{system}");
    }
}
