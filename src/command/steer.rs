//! `emend steer`: an edit of activations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Tensor;
use serde_json::{Value, json};

use super::steps::bar;
use super::{load_edits, print, shown_answer};
use crate::apply::memory::Elsewhere;
use crate::apply::steering::{captured, mean_difference};
use crate::data::pairs::Pair;
use crate::data::pocket;
use crate::data::text::Documents;
use crate::data::world::Split;
use crate::edit::activation::{Action, Intervention, Positions, Until};
use crate::edit::{Change, Edit, Edited, PassChange, Provenance};
use crate::error::{Error, Result};
use crate::evaluate::answers::answers;
use crate::evaluate::perplexity::{RUIN, WATCHED_TOKENS, WatchedText};
use crate::evaluate::steered::{Look, Steered};
use crate::model::load::folder::{Stored, floats};
use crate::model::tap::Site;
use crate::model::tokens::check_length;
use crate::model::{Model, Precision};
use crate::report::curves::Curves;
use crate::report::picture;
use crate::report::table::{cut, percent, table};
use crate::{device, files};

/// Change what a model computes on its way: set, move, scale, clamp or take a direction out of its activations, at chosen places and tokens.
///
/// The edit is a file like any other: laid over a model with `emend predict --edit`, stacked, squashed and taken back. No weight changes. What it puts there comes from
/// another prompt (--from), from pairs of texts (--pairs), or from a file (--vector).
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("action").required(true), group = clap::ArgGroup::new("source"))]
pub struct Args {
    /// pocket, a folder in Hugging Face layout, a name under $EMEND_MODELS, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// An edit that lies below; several in their order
    #[arg(long = "edit", value_name = "FILE")]
    pub edits: Vec<PathBuf>,
    /// Where: LAYER.block, .mlp, .attention or .mlp_hidden, or embedding ("encoder." before it for an encoder's); several with commas, each with a vector of its own but where --vector gives one
    #[arg(long, value_name = "PLACE", value_delimiter = ',', required = true)]
    pub at: Vec<String>,
    /// At which tokens of a prompt: last, first, all, or numbers from 0 (from the end: -1), with commas
    #[arg(long, value_name = "WHICH", default_value = "last", allow_hyphen_values = true)]
    pub positions: String,
    /// At the token in which the last occurrence of this text ends, such as a subject
    #[arg(long, value_name = "TEXT", conflicts_with = "positions")]
    pub after: Option<String>,
    /// Whether it also acts on what is written behind the prompt; always goes with last and all
    #[arg(long, value_enum, default_value = "prompt")]
    pub until: Until,
    /// Put the vector in the activation's place
    #[arg(long, group = "action", requires = "source")]
    pub set: bool,
    /// Add the vector, times --strength
    #[arg(long, group = "action", requires = "source")]
    pub add: bool,
    /// Take out what the activation has along the vector
    #[arg(long, group = "action", requires = "source")]
    pub project_out: bool,
    /// Multiply the activation
    #[arg(long, group = "action", value_name = "FACTOR", allow_hyphen_values = true, conflicts_with = "source")]
    pub scale: Option<f64>,
    /// Keep each of its elements within bounds
    #[arg(
        long,
        group = "action",
        value_name = "LOW,HIGH",
        value_delimiter = ',',
        num_args = 1,
        allow_hyphen_values = true,
        conflicts_with = "source"
    )]
    pub clamp: Vec<f64>,
    /// The vector: what this prompt's run has there, at its last token
    #[arg(long, group = "source", value_name = "PROMPT")]
    pub from: Option<String>,
    /// Take it at the token in which this text ends, instead of at the last
    #[arg(long, value_name = "TEXT", requires = "from")]
    pub from_after: Option<String>,
    /// The vector: the mean of what the positive texts' runs have more than the negative ones' at their last tokens. JSON or JSONL: [{"positive": "…", "negative": "…"}, …], with "prompt" where both answer one, or
    /// {"positive": […], "negative": […]}
    #[arg(long, group = "source", value_name = "FILE")]
    pub pairs: Option<PathBuf>,
    /// The vector: the one tensor of a safetensors file
    #[arg(long, group = "source", value_name = "FILE")]
    pub vector: Option<PathBuf>,
    /// How much of the vector is added
    #[arg(long, value_name = "TIMES", default_value_t = 1.0, allow_hyphen_values = true, conflicts_with_all = ["set", "project_out", "scale", "clamp"])]
    pub strength: f64,
    /// Try these strengths, with commas, and show what each does: on --test, and to --text
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_hyphen_values = true, requires_all = ["add", "test"], conflicts_with = "strength")]
    pub sweep: Vec<f64>,
    /// Pairs of answers to prompts, other ones than the vector was made of: how far answers move towards the positive ones
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub test: Option<PathBuf>,
    /// A running text: what steering leaves of it. wikitext (fetched), or a file; the world's own sentences with the pocket model
    #[arg(long, value_name = "TEXT", requires = "sweep")]
    pub text: Option<String>,
    /// Tokens of that text that are read
    #[arg(long, value_name = "N", default_value_t = WATCHED_TOKENS, requires = "sweep")]
    pub text_tokens: usize,
    /// Draw the sweep into this file; a .svg or a .png
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub plot: Option<PathBuf>,
    /// Write the edit to this file
    #[arg(long, value_name = "FILE", conflicts_with = "sweep")]
    pub save: Option<PathBuf>,
    /// Show what the model says to this before and after; may be given several times
    #[arg(long = "prompt", value_name = "TEXT", conflicts_with = "sweep")]
    pub prompts: Vec<String>,
    /// The element type to compute with
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Precision,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Go on where an edit that lies below was made on another base
    #[arg(long)]
    pub allow_other_base: bool,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The width of an answer in the table.
const SHOWN: usize = 40;

/// Runs the command.
///
/// # Errors
/// A place, position, vector or prompt that is wrong; nothing to do with the edit.
pub fn run(args: &Args) -> Result<()> {
    if args.save.is_none() && args.prompts.is_empty() && args.sweep.is_empty() {
        let message = "the edit would be made and lost; write it to a file (--save FILE), look at what it does (--prompt TEXT), or try \
                       strengths (--sweep LIST)";
        return Err(Error::Config(message.into()));
    }
    check_together(args)?;
    let sites = args.at.iter().map(|at| at.trim().parse()).collect::<Result<Vec<Site>>>()?;
    if let Some(twice) = sites.iter().enumerate().find(|(index, site)| sites[..*index].contains(site)) {
        return Err(Error::Config(format!("--at names {} twice", twice.1)));
    }
    args.plot.iter().try_for_each(|path| picture::check_name(path))?;
    let positions = positions(args)?;
    let source = Source::open(args)?;
    let test = args.test.as_deref().map(Pair::load).transpose()?;
    args.save.iter().chain(&args.plot).try_for_each(|path| files::check_file(path))?;
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&args.model, &device, args.dtype.into())?);
    let before = load_edits(Edited::new(model.clone()), &args.edits, Elsewhere::Nowhere, args.allow_other_base)?;
    for prompt in &args.prompts {
        check_length(model.tokenizer.encode_prompt(prompt)?.len(), model.decoder.spec.context)?;
    }
    let interventions = sites.iter().map(|&at| {
        // The place first: a vector cannot be taken where there is none.
        let (positions, until) = (positions.clone(), args.until);
        let there = Intervention { at, positions: positions.clone(), until, action: Action::Scale(1.0) };
        there.check(&model.decoder.spec, "the edit")?;
        let intervention = Intervention { action: source.action(args, &before, at)?, ..there };
        intervention.check(&model.decoder.spec, "the edit")?;
        Ok(intervention)
    });
    let interventions = interventions.collect::<Result<Vec<_>>>()?;
    if let Some(test) = &test {
        return sweep(args, &before, &interventions, test);
    }
    let provenance = Provenance::new("steer", source.settings(args), 0, &before, vec![]);
    let edit =
        Edit::new(provenance, Change::Pass(PassChange { interventions, ..PassChange::default() }), Default::default());
    if !edit.is_finite() {
        return Err(Error::Input("the vector holds values that are not finite".into()));
    }
    let edit = Arc::new(edit);
    let after = before.with(edit.clone())?;
    for prompt in &args.prompts {
        if let Some(missed) = missed(&before, edit.pass().map_or(&[][..], |change| &change.interventions), prompt)? {
            return Err(Error::Input(format!("\"{prompt}\": {missed}")));
        }
    }
    let mut rows = vec![];
    let (said_before, said_after) = (answers(&before, &args.prompts, SHOWN)?, answers(&after, &args.prompts, SHOWN)?);
    for (prompt, (before, after)) in args.prompts.iter().zip(said_before.iter().zip(&said_after)) {
        rows.push(vec![cut(prompt, 56), shown_answer(before), shown_answer(after)]);
    }
    if let Some(path) = &args.save {
        edit.save(path)?;
    }
    if args.json {
        let said = args.prompts.iter().zip(said_before.iter().zip(&said_after)).map(|(prompt, (before, after))| {
            let answer = |answer: &super::Answer| json!({"text": answer.text, "probability": answer.probability});
            json!({"prompt": prompt, "before": answer(before), "after": answer(after)})
        });
        let document = json!({"id": edit.id(), "saved": args.save, "prompts": said.collect::<Vec<_>>()});
        return print(&format!("{document:#}\n"));
    }
    let mut text = String::new();
    if !rows.is_empty() {
        text += &table(&["prompt", "before", "after"], &rows);
    }
    if let Some(path) = &args.save {
        let places: Vec<String> = sites.iter().map(Site::to_string).collect();
        text += &format!("saved {}: it acts at {}\n", path.display(), places.join(", "));
    }
    print(&text)
}

/// Refuses flags that would be set for nothing.
fn check_together(args: &Args) -> Result<()> {
    let wrong = |message: &str| Err(Error::Config(message.into()));
    if !args.sweep.is_empty() && !args.add {
        return wrong("--sweep tries strengths, and only --add has one");
    }
    if args.sweep.is_empty() && args.test.is_some() {
        return wrong("--test is what --sweep looks at; name strengths (--sweep 0,1,2)");
    }
    if args.from_after.is_some() && args.from.is_none() {
        return wrong("--from-after says where in the prompt of --from the vector is taken; there is no --from");
    }
    match &args.from_after {
        Some(text) if text.trim().is_empty() => wrong("--from-after: the text is empty"),
        _ => Ok(()),
    }
}

/// Why an edit does not act on a prompt as it says; nothing where it does.
fn missed(model: &Edited, interventions: &[Intervention], prompt: &str) -> Result<Option<String>> {
    let tokenizer = &model.base().tokenizer;
    let ids = tokenizer.encode_prompt(prompt)?;
    for one in interventions {
        if let Some(missed) = one.misses(&ids, tokenizer)? {
            return Ok(Some(missed));
        }
    }
    Ok(None)
}

/// What each strength does: a table, and a picture where one is asked for.
fn sweep(args: &Args, before: &Edited, interventions: &[Intervention], test: &[Pair]) -> Result<()> {
    let base = before.base();
    let text = match args.text.as_deref().or(pocket::of_model(&args.model)) {
        Some(text) => {
            let documents = Documents::open(text, Split::Test, Path::new(""), "text")?;
            Some(WatchedText::open(text, &documents, args.text_tokens, base)?)
        }
        None => None,
    };
    let look = Look::new(before, test, text.as_ref()).map_err(|error| match (error, &args.test) {
        (Error::Input(message), Some(path)) => Error::file(path, message),
        (other, _) => other,
    })?;
    for prompt in test.iter().filter_map(|pair| pair.prompt.as_ref()) {
        if let Some(missed) = missed(before, interventions, prompt)? {
            tracing::warn!("\"{prompt}\": {missed}, and the edit does nothing to it");
        }
    }
    if text.is_none() && args.text_tokens != WATCHED_TOKENS {
        tracing::warn!("--text-tokens: there is no text to read; name one with --text");
    }
    let mut found: Vec<Steered> = vec![];
    let bar = bar(args.sweep.len(), "strengths");
    for &strength in &args.sweep {
        let with_strength = |one: &Intervention| match &one.action {
            Action::Add { vector, .. } => {
                Intervention { action: Action::Add { vector: vector.clone(), strength }, ..one.clone() }
            }
            _ => one.clone(),
        };
        let interventions = interventions.iter().map(with_strength).collect();
        let model = before.with_change(&PassChange { interventions, ..PassChange::default() })?;
        found.push(look.at(&model, strength)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if let Some(path) = &args.plot {
        picture::write(path, &[curves(&found, &args.at.join(", "))][..])?;
    }
    if args.json {
        let text = text.as_ref().map(|text| json!({"name": text.name, "tokens": text.tokens()}));
        let document =
            json!({"at": args.at, "questions": test.len(), "text": text, "strengths": found, "plot": args.plot});
        return print(&format!("{document:#}\n"));
    }
    let rows = found.iter().map(|one| {
        let ratio = match one.perplexity_ratio {
            Some(ratio) if ratio >= RUIN => "ruined".into(),
            ratio => ratio.map_or("–".into(), |ratio| format!("{ratio:.3} ×")),
        };
        let finite = |share: f64| percent(Some(share).filter(|share| share.is_finite()));
        vec![one.strength.to_string(), finite(one.effect), finite(one.said), percent(one.locality), ratio]
    });
    let mut shown = table(&["strength", "effect", "either", "locality", "perplexity"], &rows.collect::<Vec<_>>());
    shown += &format!(
        "\neffect: the positive answer's share of both, mean of {} questions; either: how likely the model says one of them\n",
        test.len()
    );
    if let Some(text) = &text {
        shown += &format!("locality: tokens of {} at which the likeliest one stays, of {}\n", text.name, text.tokens());
    }
    if let Some(path) = &args.plot {
        shown += &format!("drawn: {}\n", path.display());
    }
    print(&shown)
}

/// A sweep's curves. A perplexity has no upper end: what is drawn is how much of the text is kept, 1 ÷ its ratio.
fn curves(found: &[Steered], at: &str) -> Curves {
    let curve = |name: &str, of: &dyn Fn(&Steered) -> Option<f64>| {
        let values: Option<Vec<[f64; 2]>> = found.iter().map(|one| Some([one.strength, of(one)?])).collect();
        values.map(|values| (name.to_owned(), values))
    };
    let values = [
        curve("effect", &|one| Some(one.effect)),
        curve("locality", &|one| one.locality),
        curve("1 ÷ perplexity ratio", &|one| one.perplexity_ratio.map(|ratio| 1.0 / ratio)),
    ];
    Curves {
        title: format!("steering at {at}"),
        axis: "strength".into(),
        logarithmic: false,
        top: 1.0,
        values: values.into_iter().flatten().collect(),
    }
}

/// The positions that the command line names.
fn positions(args: &Args) -> Result<Positions> {
    if let Some(text) = &args.after {
        return Ok(Positions::After(text.clone()));
    }
    Ok(match args.positions.as_str() {
        "last" => Positions::Last,
        "first" => Positions::First,
        "all" => Positions::All,
        numbers => {
            let numbers = numbers.split(',').map(|number| number.trim().parse::<i64>()).collect::<Result<Vec<_>, _>>();
            let wrong = |_| {
                let message = format!(
                    "--positions \"{}\" names no tokens; it is last, first, all, or numbers with commas such as 0,-1",
                    args.positions
                );
                Error::Config(message)
            };
            Positions::At(numbers.map_err(wrong)?)
        }
    })
}

/// Where vectors come from.
enum Source {
    Prompt(String, Positions),
    Pairs(PathBuf, Vec<Pair>),
    File(PathBuf, Vec<f32>),
    None,
}

impl Source {
    fn open(args: &Args) -> Result<Self> {
        Ok(match (&args.from, &args.pairs, &args.vector) {
            (Some(prompt), ..) => {
                let place = args.from_after.clone().map_or(Positions::Last, Positions::After);
                Source::Prompt(prompt.clone(), place)
            }
            (_, Some(path), _) => Source::Pairs(path.clone(), Pair::load(path)?),
            (.., Some(path)) => Source::File(path.clone(), read_vector(path)?),
            _ => Source::None,
        })
    }

    /// The vector for a site.
    fn vector(&self, model: &Edited, at: Site) -> Result<Tensor<1>> {
        match self {
            Source::Prompt(prompt, place) => captured(model, at, prompt, place),
            Source::Pairs(_, pairs) => mean_difference(model, at, pairs),
            Source::File(_, values) => {
                let device = model.base().decoder.device();
                Ok(Tensor::from_data(values.as_slice(), &device))
            }
            Source::None => Err(Error::Config("there is no vector; give --from, --pairs or --vector".into())),
        }
    }

    fn action(&self, args: &Args, model: &Edited, at: Site) -> Result<Action> {
        Ok(match (args.scale, args.clamp.as_slice()) {
            (Some(factor), _) => Action::Scale(factor),
            (None, &[low, high]) => Action::Clamp { low, high },
            (None, []) if args.set => Action::Set(self.vector(model, at)?),
            (None, []) if args.add => Action::Add { vector: self.vector(model, at)?, strength: args.strength },
            (None, []) => Action::ProjectOut(self.vector(model, at)?),
            (None, others) => {
                let message = format!("--clamp takes two bounds, such as -2,2, and not {}", others.len());
                return Err(Error::Config(message));
            }
        })
    }

    /// Enough to make the edit again.
    fn settings(&self, args: &Args) -> Value {
        let source = match self {
            Source::Prompt(prompt, place) => json!({"from": prompt, "from_position": place}),
            Source::Pairs(path, pairs) => json!({"pairs": path, "count": pairs.len()}),
            Source::File(path, _) => json!({"vector": path}),
            Source::None => Value::Null,
        };
        json!({"at": args.at, "source": source})
    }
}

/// The one tensor of a file.
fn read_vector(path: &Path) -> Result<Vec<f32>> {
    let bytes = files::read(path)?;
    let wrong = |message: String| Error::file(path, message);
    let file = safetensors::SafeTensors::deserialize(&bytes)
        .map_err(|error| wrong(format!("not a whole safetensors file ({error})")))?;
    let tensors = file.tensors();
    let [(name, view)] = tensors.as_slice() else {
        return Err(wrong(format!("it holds {} tensors; a vector is a file of one", tensors.len())));
    };
    let wide = view.shape().iter().filter(|&&size| size != 1).count();
    if wide > 1 || view.shape().iter().product::<usize>() == 0 {
        return Err(wrong(format!("tensor \"{name}\" is {:?}; a vector is a row of numbers", view.shape())));
    }
    let stored = Stored { dtype: view.dtype(), shape: view.shape(), bytes: view.data() };
    let values =
        floats(stored).ok_or_else(|| wrong(format!("tensor \"{name}\" holds {:?}, not floats", view.dtype())))?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(wrong(format!("tensor \"{name}\" holds values that are not finite"))),
    }
}
