//! `emend inspect`: an edit, statistics, an archive, a model or a file of facts in one screen.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::{Value, json};

use super::{inspect_facts, print};
use crate::archive::{Archive, snapshot::Store};
use crate::edit::activation::{Action, Intervention, Positions, Until, length};
use crate::edit::{Change, Edit, EditRequest, Memory, PassChange};
use crate::error::{Error, Result};
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::{hub, pocket};
use crate::model::tap::{Place, Site};
use crate::report::table::{cut, percent, table};
use crate::statistics::{Header, Moments};

/// Show an edit file, statistics, an archive, a model or a file of facts in one screen.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An edit file, a file of statistics, an archive's folder, a model's folder or name, or a file of records
    #[arg(value_name = "WHAT")]
    pub what: String,
    /// Count the tokens of records as this model does
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// A thing that is none of these, or broken.
pub fn run(args: &Args) -> Result<()> {
    let path = Path::new(&args.what);
    let facts = path.is_file() && inspect_facts::is_facts(path);
    if args.model.is_some() && !facts {
        return Err(Error::Config("--model counts the tokens of a file of records; this is none".into()));
    }
    let (text, document) = if facts {
        inspect_facts::facts(path, args.model.as_deref())?
    } else if let Ok(moments) = Moments::load(path, Some(&[])) {
        statistics(&moments.header)
    } else if path.is_file() || inspect_facts::is_file_name(path) {
        edit(path)?
    } else if path.join("archive.toml").is_file() || path.join("training").is_dir() {
        archive(path)?
    } else if let Some(embedded) = pocket::find(&args.what) {
        model(&embedded.checkpoint()?)?
    } else {
        let folder: PathBuf = hub::resolve(&args.what)?;
        model(&Checkpoint::open(&folder)?)?
    };
    if args.json { print(&format!("{document:#}\n")) } else { print(&text) }
}

/// What second moments were made of.
fn statistics(header: &Header) -> (String, Value) {
    let Header { model, tokens, width, layers, sources, .. } = header;
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    let made_of = match header.imported() {
        true => format!("imported from {}; which tokenizer read which texts is not known", names.join(", ")),
        false => format!("of {}, in rows of {} tokens", names.join(", "), header.row),
    };
    let text = format!(
        "second moments of keys of width {width}, layers {}, over {tokens} tokens\n{made_of}\nmodel {model}\n",
        layers.join(", ")
    );
    (text, json!({"kind": "statistics", "imported": header.imported(), "header": header}))
}

fn edit(path: &Path) -> Result<(String, Value)> {
    let edit = Edit::load(path, &Device::flex())?;
    let provenance = &edit.provenance;
    let mut text = format!(
        "edit {} by {} (emend {}, seed {})\nbase {}\n",
        edit.id(),
        provenance.method,
        provenance.version,
        provenance.seed,
        provenance.base
    );
    if !provenance.computed_on.is_empty() {
        text += &format!("computed on the edits {}\n", provenance.computed_on.join(", "));
    }
    if let Some(what) = provenance.findings["adapts"].as_str() {
        text += &format!("adapts {what}\n");
    }
    if let Some(chat) = provenance.requests.iter().find_map(|request| request.chat.as_ref()) {
        let system = chat.system.as_ref().map_or(String::new(), |text| format!(", with the system's text {text:?}"));
        text += &format!("made for a chat{system}: ask with --chat\n");
    }
    if !provenance.requests.is_empty() {
        text.push('\n');
    }
    let (own, mut document) = match &edit.change {
        Change::Pass(change) => pass(change, &provenance.requests),
        Change::Memory(memory) => entries(memory, &provenance.requests),
    };
    text += &own;
    document["id"] = json!(edit.id());
    document["provenance"] = json!(provenance);
    Ok((text, document))
}

/// What a request asks: of a turn of a chat what the user says.
fn said(request: &EditRequest) -> &str {
    request.chat.as_ref().map_or(request.prompt.as_str(), |chat| chat.said(&request.prompt))
}

/// What an edit changes of a pass.
fn pass(change: &PassChange, requests: &[EditRequest]) -> (String, Value) {
    let mut text = String::new();
    for request in requests.iter().take(10) {
        text += &format!("  {} → {}\n", cut(said(request), 80), cut(&request.target_new, 30));
    }
    if requests.len() > 10 {
        text += &format!("  … and {} more\n", requests.len() - 10);
    }
    let (mut rows, mut weights) = (vec![], vec![]);
    for (at, delta) in &change.matrices {
        let [d_in, d_out] = delta.shape();
        let (rank, norm) = (delta.rank(), delta.norm());
        rows.push(vec![at.to_string(), format!("{d_in} × {d_out}"), rank.to_string(), format!("{norm:.4}")]);
        weights.push(json!({"weight": at, "shape": [d_in, d_out], "rank": rank, "norm": norm}));
    }
    for (at, bias) in &change.biases {
        rows.push(vec![format!("{at}, bias"), bias.dims()[0].to_string(), "–".into(), String::new()]);
        weights.push(json!({"bias": at, "length": bias.dims()[0]}));
    }
    if !rows.is_empty() || change.is_of_weights() {
        text += &format!("\n{}", table(&["weight", "shape", "rank", "‖ΔW‖"], &rows));
    }
    let (mut rows, mut neurons) = (vec![], vec![]);
    for (&(stack, layer), list) in &change.neurons {
        let at = Site { stack, layer, place: Place::MlpOut };
        for one in list {
            let activation = json!(one.activation);
            rows.push(vec![
                at.to_string(),
                one.count().to_string(),
                activation.as_str().unwrap_or_default().to_owned(),
            ]);
            neurons.push(json!({"at": at, "neurons": one.count(), "activation": activation}));
        }
    }
    if !rows.is_empty() {
        text += &format!("\n{}", table(&["beside", "neurons", "activation"], &rows));
    }
    let (rows, interventions): (Vec<Vec<String>>, Vec<Value>) = change.interventions.iter().map(intervention).unzip();
    if !rows.is_empty() {
        text += &format!("\n{}", table(&["place", "positions", "until", "what is done", "‖vector‖"], &rows));
    }
    (text, json!({"kind": "edit", "weights": weights, "neurons": neurons, "interventions": interventions}))
}

/// What is done to an activation, as a row and as JSON.
fn intervention(intervention: &Intervention) -> (Vec<String>, Value) {
    let Intervention { at, positions, until, action } = intervention;
    let which = match positions {
        Positions::Last => "last".into(),
        Positions::All => "all".into(),
        Positions::First => "first".into(),
        Positions::At(list) => list.iter().map(i64::to_string).collect::<Vec<_>>().join(", "),
        Positions::After(text) => format!("after \"{text}\""),
    };
    let until = if *until == Until::Always { "always" } else { "prompt" };
    let what = match action {
        Action::Set(_) => "set".into(),
        Action::Add { strength, .. } => format!("add, × {strength}"),
        Action::Scale(factor) => format!("× {factor}"),
        Action::Clamp { low, high } => format!("within {low} and {high}"),
        Action::ProjectOut(_) => "project out".into(),
    };
    let norm = action.vector().map(length);
    let row =
        vec![at.to_string(), cut(&which, 40), until.into(), what, norm.map_or("–".into(), |norm| format!("{norm:.3}"))];
    let document = json!({"at": at, "positions": positions, "until": until, "action": action.name(), "norm": norm});
    (row, document)
}

/// What a memory holds. All of it: the numbers are what `emend forget` takes.
fn entries(memory: &Memory, requests: &[EditRequest]) -> (String, Value) {
    let rows = requests.iter().enumerate().map(|(number, request)| {
        let asked = request.descriptor.as_deref().unwrap_or_else(|| said(request));
        vec![number.to_string(), cut(asked, 80), cut(&request.target_new, 30)]
    });
    let mut text = table(&["entry", "edit", "answer"], &rows.collect::<Vec<_>>());
    for (key, value) in memory.needs.as_object().into_iter().flatten() {
        text += &format!("{key} = {value}\n");
    }
    (text, json!({"kind": "memory", "needs": memory.needs, "width": memory.keys.dims()[1]}))
}

fn archive(path: &Path) -> Result<(String, Value)> {
    let progress = Store::new(path).progress()?;
    if let (Some(progress), false) = (&progress, path.join("archive.toml").is_file()) {
        let text =
            format!("a training of {} steps, not validated yet; `emend train --resume` goes on\n", progress.step);
        return Ok((text, json!({"kind": "training", "training": progress})));
    }
    let archive = Archive::open(path)?;
    let description = &archive.description;
    let settings = serde_json::to_value(&description.editor).unwrap_or_default();
    let mut text = format!(
        "archive of a {} editor (emend {})\nbase {} {}\n",
        settings["method"].as_str().unwrap_or_default(),
        description.version,
        description.base.path,
        description.base.fingerprint
    );
    for (key, value) in settings.as_object().into_iter().flatten() {
        text += &format!("  {key} = {value}\n");
    }
    if let Some(progress) = &progress {
        let state = if progress.finished { "finished" } else { "not finished; `emend train --resume` goes on" };
        text += &format!("training: {} steps, {state}\n", progress.step);
    }
    if let Some(best) = &description.best {
        let summary = &best.summary;
        text += &format!(
            "best after step {}, on {} validation records: edit success {}, generalization {}, locality {}, drawdown {}\n",
            best.step,
            summary.edits,
            percent(summary.edit_success),
            percent(summary.generalization),
            percent(summary.locality),
            percent(summary.drawdown)
        );
        if let Some(together) = best.edits_together.filter(|together| *together > 1) {
            text += &format!("  {together} of them edited together\n");
        }
        if let Some(ratio) = best.perplexity_ratio {
            text += &format!("  perplexity of running text {:.3} × (worst {:.3})\n", ratio.median, ratio.worst);
        }
    }
    let document = json!({"kind": "archive", "description": description, "training": progress});
    Ok((text, document))
}

fn model(checkpoint: &Checkpoint) -> Result<(String, Value)> {
    let spec = checkpoint.spec();
    let fingerprint = checkpoint.fingerprint();
    let mut elements = 0usize;
    let mut types: std::collections::BTreeMap<String, usize> = Default::default();
    for file in checkpoint.files() {
        for (_, stored) in file.tensors() {
            elements += stored.shape.iter().product::<usize>();
            *types.entry(format!("{:?}", stored.dtype)).or_default() += 1;
        }
    }
    if elements == 0 {
        return Err(Error::file(checkpoint.origin(), "the checkpoint holds no tensors"));
    }
    let types: Vec<String> = types.into_iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
    let layers = match &spec.source {
        None => format!("{} layers", spec.layers),
        Some(source) => match &source.labels {
            None => format!("{} encoder and {} decoder layers", source.layers, spec.layers),
            Some(labels) => format!("classifier of {}, {} encoder layers", labels.join(", "), source.layers),
        },
    };
    let text = format!(
        "model {} of family {}\nfingerprint {fingerprint}\n{:.1} M parameters in {} file(s): {}\n\
         {} of width {}, {} heads over {} key-value heads of width {}, MLP {}{}\nvocabulary {}, context {}, {} head\n",
        checkpoint.origin().display(),
        checkpoint.family().name(),
        elements as f64 / 1e6,
        checkpoint.files().len(),
        types.join(", "),
        layers,
        spec.width,
        spec.attention.heads,
        spec.attention.key_value_heads,
        spec.attention.head_width,
        spec.mlp.width,
        if spec.mlp.gated { ", gated" } else { "" },
        spec.vocabulary,
        spec.context,
        if spec.head.tied { "tied" } else { "untied" },
    );
    let document = json!({
        "kind": "model",
        "path": checkpoint.origin(),
        "family": checkpoint.family().name(),
        "fingerprint": fingerprint,
        "parameters": elements,
        "layers": spec.depth(),
        "labels": spec.labels(),
        "width": spec.width,
        "vocabulary": spec.vocabulary,
        "context": spec.context,
    });
    Ok((text, document))
}
