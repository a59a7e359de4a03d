//! `--plan` and `--memory-limit`: what a command will hold in memory, said and refused before a weight is read.

use burn::tensor::DType;
use serde_json::json;

use super::print;
use crate::error::Result;
use crate::evaluate::LOOKING;
use crate::model::Unread;
use crate::model::load::checkpoint::{Checkpoint, Hold};
use crate::plan::{EDITING, Held, Lengths, OfEditor, Plan, Work, parse_size, size};
use crate::report::table::table;
use crate::{device, parallel, process};

/// The switches.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct PlanArgs {
    /// Say what will be held in memory, and while what is done, and do nothing; no weight is read for it
    #[arg(long)]
    pub plan: bool,
    /// Refuse work that would take more memory than this (20GB, 800MB), before it begins; a training keeps fewer hidden states where that is enough
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_limit: Option<u64>,
}

impl PlanArgs {
    /// Whether a plan is wanted.
    pub fn wanted(&self) -> bool {
        self.plan || self.memory_limit.is_some()
    }

    /// Prints the plan where that is asked for, and then nothing else is to be done; else refuses what is beyond the limit.
    ///
    /// # Errors
    /// Work that takes more than the limit; output that cannot be written.
    pub fn settle(&self, plan: &Plan, as_json: bool) -> Result<bool> {
        if !self.plan {
            return self.memory_limit.map_or(Ok(()), |limit| plan.check(limit)).map(|()| false);
        }
        // What this process holds now is part of the plan.
        let limit = self.memory_limit.or_else(|| process::memory_at_hand().map(|free| free + process::memory_now()));
        let (peak, part) = plan.peak();
        if as_json {
            let document = json!({
                "held": plan.held,
                "peak": {"bytes": peak, "while": part},
                "limit_bytes": limit,
                "fits": limit.map(|limit| peak <= limit),
            });
            print(&format!("{document:#}\n"))?;
        } else {
            let shown = plan.held.iter().filter(|held| held.bytes > 0);
            let rows =
                shown.map(|held| vec![size(held.bytes), held.during.unwrap_or("always").to_owned(), held.what.clone()]);
            let part = part.map_or(String::new(), |part| format!(", while {part}"));
            let limit = limit.map_or(String::new(), |limit| format!("; {} can be had", size(limit)));
            print(&format!(
                "{}\n{} at most{part}{limit}\n",
                table(&["memory", "while", "for"], &rows.collect::<Vec<_>>()),
                size(peak)
            ))?;
        }
        limit.map_or(Ok(()), |limit| plan.check(limit)).map(|()| true)
    }
}

/// What is planned on: a model whose weights are not read.
pub(super) struct Planning {
    /// The model.
    pub model: Unread,
    in_file: bool,
    bytes: u64,
    threads: usize,
}

impl Planning {
    /// Opens a model.
    ///
    /// # Errors
    /// A model or device that is not there.
    pub fn open(name: &str, device: &str, dtype: DType) -> Result<Self> {
        let device = device::open(device)?;
        let model = Unread::open(name)?;
        let in_file = model.checkpoint.hold(&device, dtype) == Hold::InFile;
        let bytes = dtype.size() as u64;
        Ok(Planning { in_file, bytes, threads: parallel::parts(&device), model })
    }

    /// A plan with what every command holds: the program with what it has read so far, and the model.
    pub fn plan(&self) -> Plan {
        let program = Held::always("the program, its tokenizer, and the records", process::memory_in_use() + PROGRAM);
        Plan { held: vec![program, weights(&self.model.checkpoint, self.in_file, self.bytes)] }
    }

    /// The work on texts of some lengths.
    pub fn work(&self, texts: Lengths) -> Work<'_> {
        Work { spec: self.model.checkpoint.spec(), in_file: self.in_file, threads: self.threads, texts, draws: 1 }
    }
}

/// What the program touches of itself once it computes: code, and the threads' stacks and pools.
const PROGRAM: u64 = 45_000_000;

/// The model's weights.
fn weights(checkpoint: &Checkpoint, in_file: bool, bytes: u64) -> Held {
    let spec = checkpoint.spec();
    match in_file {
        true => {
            // Pages of one matrix at a time: the vocabulary is the largest.
            let largest = 2 * (spec.vocabulary * spec.width) as u64;
            Held::always("weights, which stay in their file; one matrix at a time", largest)
        }
        false => Held::always("weights", spec.weights_bytes() / 4 * bytes),
    }
}

/// An editor's part of a plan: edits, so many side by side.
pub(super) fn of_editor(editor: OfEditor, at_once: usize) -> Vec<Held> {
    let at_once = at_once.max(1);
    let edits = if at_once > 1 { format!("{at_once} edits side by side") } else { "an edit".into() };
    vec![
        Held::always("what the editor keeps from edit to edit", editor.kept),
        Held::during(EDITING, edits, at_once as u64 * editor.edit),
        Held::during(LOOKING, "edits that are made meanwhile", (at_once as u64 - 1) * editor.edit),
    ]
}
