//! `emend import-lora`: a LoRA adapter that others made, as an edit.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::print;
use crate::edit::{Edited, import};
use crate::error::Result;
use crate::model::{Model, Precision};
use crate::{device, files};

/// Make an edit file of a LoRA adapter that the PEFT library wrote.
///
/// The edit is like any other: predict, inspect, compare, stack, squash and export it. Adapters that do more than add low-rank changes to
/// matrices (DoRA, replaced modules, biases) are refused.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The adapter's folder, with adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The model it was made for: a folder in Hugging Face layout, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Where the edit goes
    #[arg(long, value_name = "FILE")]
    pub save: PathBuf,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A file that is missing, broken, or no LoRA adapter; an adapter for another model, or one that does more.
pub fn run(args: &Args) -> Result<()> {
    files::check_file(&args.save)?;
    let model = Arc::new(Model::load(&args.model, &device::open("cpu")?, Precision::F32.into())?);
    let edit = import::adapter(&args.folder, &Edited::new(model))?;
    edit.save(&args.save)?;
    let weights = edit.pass().map_or(0, |change| change.matrices.len());
    let made_on = &edit.provenance.settings["base_model_name_or_path"];
    if args.json {
        let document =
            json!({"saved": args.save, "id": edit.id(), "weights": weights, "base_model_name_or_path": made_on});
        return print(&format!("{document:#}\n"));
    }
    let said = made_on.as_str().map_or(String::new(), |name| format!("; it says that it was made on \"{name}\""));
    print(&format!("saved {}: {weights} weights changed{said}\n", args.save.display()))
}
