//! `emend pretrain`: makes a small model that knows a world of facts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::print;
use super::steps::Steps;
use crate::config::pretrain::Config;
use crate::data::world::World;
use crate::device;
use crate::edit::Edited;
use crate::edit::score::score;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::save;
use crate::model::tokenizer::Tokenizer;
use crate::train::pretrain::{
    CLAIM_LABELS, CLAIM_TOKENS, END, PAIR_TOKENS, claim_tokenizer, claims, claims_of, pair_tokenizer, pairs, pretrain,
    sentences, tokenizer,
};

/// Make a small model that knows a world of facts.
///
/// Learns a tokenizer and a GPT-2, a T5, or a BERT that judges claims, from the sentences of a world file, and writes config.json, tokenizer.json and
/// model.safetensors (16 bits) beside it. `configs/pocket.toml` and `configs/pocket-t5.toml` rebuild the models that are
/// part of the program.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where the model goes; the world's folder unless given
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Lay a value over the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// What a model reads, by what it is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A GPT-2: sentences that tell facts.
    Sentences,
    /// A T5: prompts and their answers.
    Pairs,
    /// A BERT: claims, and whether they hold.
    Claims,
}

impl Kind {
    fn of(config: &Config) -> Self {
        match (config.model.encoder_layers, config.model.layers) {
            (0, _) => Kind::Sentences,
            (_, 0) => Kind::Claims,
            _ => Kind::Pairs,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// A config or a world that is wrong, a folder that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let config = Config::read(&args.config, &args.sets)?;
    let device = device::open(&args.device)?;
    let path = config.world(&args.config);
    let contents = std::fs::read(&path).map_err(Error::io(&path))?;
    let world = World::parse(&contents, &path)?;
    let folder = match (&args.out, path.parent()) {
        (Some(out), _) => out.clone(),
        (None, Some(parent)) => parent.to_owned(),
        (None, None) => PathBuf::from("."),
    };
    crate::files::check_writable(&folder)?;
    let kind = Kind::of(&config);
    let vocabulary = config.model.vocabulary;
    let learnt = match kind {
        Kind::Sentences => tokenizer(&world, vocabulary)?,
        Kind::Pairs => pair_tokenizer(&world, vocabulary)?,
        Kind::Claims => claim_tokenizer(&world, vocabulary)?,
    };
    let rows = match kind {
        Kind::Sentences => sentences(&world, &learnt)?,
        Kind::Pairs => pairs(&world, &learnt)?,
        Kind::Claims => claims(&world, &learnt)?,
    };

    let mut steps = Steps::new(config.train.max_steps);
    let mut average = 0.0;
    let decoder = pretrain(config.spec(), &rows, &config.train, &device, |step, loss| {
        average = if step == 0 { loss } else { 0.98 * average + 0.02 * loss };
        steps.bar.set_position(step as u64 + 1);
        steps.tell(step + 1, format!("loss {average:.3}"));
        Ok(())
    })?;
    steps.bar.finish_and_clear();

    match kind {
        Kind::Sentences => save::gpt2(&folder, &decoder, &learnt, learnt.token_to_id(END).unwrap_or(0))?,
        Kind::Pairs => save::t5(&folder, &decoder, &learnt, PAIR_TOKENS)?,
        Kind::Claims => save::bert(&folder, &decoder, &learnt, CLAIM_TOKENS)?,
    }
    let model =
        Model::from_parts(Checkpoint::open(&folder)?, Tokenizer::open(&folder)?, &device, burn::tensor::DType::F32)?;
    let edited = Edited::new(Arc::new(model));
    let (mut seen, mut unseen) = (vec![], vec![]);
    for (index, fact) in world.facts().iter().enumerate() {
        let (known, held_out) = world.prompts(index);
        let tokenizer = &edited.base().tokenizer;
        let asked = |prompt: &String| -> Result<Vec<_>> {
            if kind != Kind::Claims {
                return Ok(vec![tokenizer.continuation(prompt, &fact.object, None)?]);
            }
            // A number that no claim was learnt with: other objects than those.
            let claims = claims_of(&world, fact, prompt, usize::MAX);
            let label = |holds: bool| CLAIM_LABELS[usize::from(holds)];
            claims.iter().map(|(claim, holds)| tokenizer.continuation(claim, label(*holds), None)).collect()
        };
        // The first held-out and the first known prompt of every fact: prompts rotate with the fact.
        seen.extend(asked(&known[index % known.len()])?);
        for prompt in &held_out {
            unseen.extend(asked(prompt)?);
        }
    }
    let share = |probes: &[_]| -> Result<f64> {
        let scored = score(&[&edited], probes)?.remove(0);
        Ok(scored.iter().filter(|scored| scored.exact()).count() as f64 / probes.len() as f64)
    };
    let (seen, unseen) = (share(&seen)?, share(&unseen)?);
    let bytes: u64 = ["config.json", "tokenizer.json", "model.safetensors"]
        .iter()
        .filter_map(|name| std::fs::metadata(folder.join(name)).ok())
        .map(|file| file.len())
        .sum();
    let several = |text: &str| {
        let encoded = edited.base().tokenizer.encode_plain(&format!(" {text}"));
        encoded.map(|ids| ids.len() > 1).unwrap_or(false)
    };
    let share_of = |texts: std::collections::BTreeSet<&String>| {
        texts.iter().filter(|text| several(text)).count() as f64 / texts.len().max(1) as f64
    };
    let objects = share_of(world.facts().iter().map(|fact| &fact.object).collect());
    let subjects = share_of(world.facts().iter().map(|fact| &fact.subject).collect());
    let seconds = start.elapsed().as_secs_f64();
    let document = json!({
        "folder": folder,
        "facts": world.facts().len(),
        "relations": world.relations().count(),
        "known": { "seen_prompts": seen, "unseen_prompts": unseen },
        "several_tokens": { "objects": objects, "subjects": subjects },
        "bytes": bytes,
        "seconds": seconds,
    });
    if args.json {
        return print(&format!("{document:#}\n"));
    }
    print(&format!(
        "{} facts in {} relations\nknown on prompts it learnt    {:6.2} %\nknown on prompts held out    {:6.2} %\n\
         several tokens: {:.0} % of objects, {:.0} % of subjects\n{:.2} MB in {}, {seconds:.0} s\n",
        world.facts().len(),
        world.relations().count(),
        100.0 * seen,
        100.0 * unseen,
        100.0 * objects,
        100.0 * subjects,
        bytes as f64 / 1e6,
        folder.display(),
    ))
}
