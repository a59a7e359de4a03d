//! `emend export`: an edited model, or its change, for other engines. `emend apply --export` does the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{load_edits, print};
use crate::apply::memory::Elsewhere;
use crate::edit::score::score;
use crate::edit::{Edit, EditRequest, Edited, gguf, hf, peft};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::table::percent;
use crate::{device, model};

/// Write an edited model, or its edits as a LoRA adapter, for other engines.
///
/// Nothing is edited anew: the edits are files that `emend apply --save` wrote. Edits that are more than changes of weights (memories, neurons,
/// activations) cannot leave.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The edit files, lowest first
    #[arg(value_name = "EDIT", required = true)]
    pub edits: Vec<PathBuf>,
    /// pocket, a folder in Hugging Face layout, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// What to write
    #[arg(long, value_enum)]
    pub format: Format,
    /// A new folder for it
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Go on where an edit was made on another base
    #[arg(long)]
    pub allow_other_base: bool,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Print one JSON document instead of a line
    #[arg(long)]
    pub json: bool,
}

/// In what form edits leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The edited model in Hugging Face layout
    Hf,
    /// A LoRA adapter for PEFT, vLLM and others
    Peft,
    /// A LoRA adapter for llama.cpp
    GgufLora,
}

/// Runs the command.
///
/// # Errors
/// An edit that is more than a change of weights, or of another base; a folder that is not empty; a family that the format has no names for.
pub fn run(args: &Args) -> Result<()> {
    let device = device::open(&args.device)?;
    check_folder(&args.out)?;
    // A memory is refused for what it is, before what consults it is looked for.
    for file in &args.edits {
        Edit::load(file, &Device::flex())?.exportable()?;
    }
    let base = Edited::new(Arc::new(Model::load(&args.model, &device, model::Precision::F32.into())?));
    args.format.check(&base)?;
    let edited = load_edits(base, &args.edits, Elsewhere::Nowhere, args.allow_other_base)?;
    let requests = edited.edits().iter().flat_map(|edit| edit.provenance.requests.clone()).collect::<Vec<_>>();
    let report = args.format.write(&edited, &args.out, &requests)?;
    match args.json {
        true => print(&format!("{report:#}\n")),
        false => print(&format!("{}\n", report["message"].as_str().unwrap_or_default())),
    }
}

/// Refuses a folder that holds something, before any work.
pub(super) fn check_folder(folder: &Path) -> Result<()> {
    match std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        true => Err(Error::file(folder, "the folder is not empty; give a new one")),
        false => Ok(()),
    }
}

impl Format {
    /// The format that is called so.
    pub(super) fn named(name: &str) -> Result<Self> {
        let unknown = |_| Error::Config(format!("--export {name}: the formats are hf, peft and gguf-lora"));
        Format::from_str(name, false).map_err(unknown)
    }

    /// Refuses a model whose weights the format has no names for.
    pub(super) fn check(self, model: &Edited) -> Result<()> {
        match self {
            Format::GgufLora => gguf::mapping(&model.base().checkpoint).map(drop),
            Format::Hf | Format::Peft => Ok(()),
        }
    }

    /// Writes a stack of edits; `requests` are what they were asked for. What is said of it.
    pub(super) fn write(self, edited: &Edited, folder: &Path, requests: &[EditRequest]) -> Result<Value> {
        let adapter = |format: &str, what: &str, rank: usize| {
            let message = format!("exported a LoRA adapter{what} of rank {rank} to {}", folder.display());
            json!({"format": format, "folder": folder, "rank": rank, "message": message})
        };
        match self {
            Format::Hf => checkpoint(edited, folder, requests),
            Format::Peft => Ok(adapter("peft", "", peft::export(edited, folder)?)),
            Format::GgufLora => Ok(adapter("gguf-lora", " for llama.cpp", gguf::export(edited, folder)?)),
        }
    }
}

/// Writes the checkpoint, and says what rounding did to the edits.
fn checkpoint(edited: &Edited, folder: &Path, requests: &[EditRequest]) -> Result<Value> {
    let report = hf::export(edited, folder)?;
    let mut message = format!(
        "exported to {}: {} of {} tensors changed, {} of the changed elements lost to rounding",
        folder.display(),
        report.changed,
        report.tensors,
        percent(Some(report.lost_to_rounding)),
    );
    let mut lost: Vec<&str> = vec![];
    if !requests.is_empty() {
        // What counts is what the rounded weights say.
        let decoder = &edited.base().decoder;
        let rounded = Model::load(&folder.to_string_lossy(), &decoder.device(), decoder.dtype())?;
        let rounded = Edited::new(Arc::new(rounded));
        let tokenizer = &edited.base().tokenizer;
        let texts = requests.iter().map(|request| request.row(tokenizer)).collect::<Result<Vec<_>>>()?;
        let exact = |model: &Edited| -> Result<Vec<bool>> {
            Ok(score(&[model], &texts)?.remove(0).iter().map(|scored| scored.exact()).collect())
        };
        let (ours, theirs) = (exact(edited)?, exact(&rounded)?);
        let holds = theirs.iter().filter(|holds| **holds).count();
        message += &format!(", {holds} of {} edits hold in the rounded weights", requests.len());
        lost.extend((0..requests.len()).filter(|&i| ours[i] && !theirs[i]).map(|i| requests[i].prompt.as_str()));
    }
    if !lost.is_empty() {
        message += &format!("; lost to rounding: \"{}\"", lost.join("\", \""));
    }
    Ok(json!({
        "format": "hf",
        "folder": folder,
        "changed_tensors": report.changed,
        "lost_to_rounding": report.lost_to_rounding,
        "edits_lost_to_rounding": lost,
        "message": message,
    }))
}
