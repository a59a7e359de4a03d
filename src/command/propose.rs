//! `emend locate --propose`: layers that a new model is best edited at, tried on facts, beside what tracing would have proposed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::locate::{Args, bar};
use super::print;
use crate::apply::EditorSettings;
use crate::config;
use crate::data::objective::Hidden;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::{EditRequest, Edited, edited_by};
use crate::error::{Error, Result};
use crate::evaluate::probes::Limits;
use crate::evaluate::{counterfact, probe_table};
use crate::model::Model;
use crate::model::tap::Place;
use crate::report::table::{counted, percent, table};
use crate::trace::average::{Averages, Role};
use crate::trace::noise::{Noise, Strength};
use crate::trace::{Question, Restored, trace, window};
use crate::{device, parallel, paths};

/// Facts that are tried unless told otherwise.
const FACTS: usize = 20;

/// Layers of the coarse sweep.
const COARSE: usize = 6;

/// What came of a layer.
struct Tried {
    layer: usize,
    figures: crate::evaluate::CounterFact,
    made: usize,
    failed: usize,
}

impl Tried {
    /// What layers are ranked by: the score of the protocol `counterfact`, between equal ones by how much the right answers win; times the share of
    /// edits that could be made.
    fn rank(&self) -> f64 {
        let of = &self.figures;
        let Some(score) = of.score.or(of.efficacy) else { return 0.0 };
        let won = [of.efficacy_magnitude, of.paraphrase_magnitude, of.neighborhood_magnitude];
        let won: f64 = won.into_iter().flatten().sum();
        (score + 1e-3 * won) * self.made as f64 / (self.made + self.failed).max(1) as f64
    }

    fn document(&self) -> Value {
        json!({ "layer": self.layer, "counterfact": self.figures, "failed": self.failed })
    }
}

/// Runs the proposal.
///
/// # Errors
/// A model, facts or a configuration that is wrong; an editor without layers.
pub(super) fn run(args: &Args, start: Instant) -> Result<()> {
    let (Some(name), Some(facts)) = (&args.model, &args.facts) else {
        return Err(Error::Config("--propose wants --model and --facts".into()));
    };
    let records = Source::open(facts, Split::Validation, Path::new(""))?.fixed(args.limit.unwrap_or(FACTS), 2);
    let named: Vec<EditRecord> =
        records.into_iter().filter(|record| record.subject.is_some() && record.target_true.is_some()).collect();
    if named.iter().all(EditRecord::changes_nothing) {
        let message = format!(
            "{facts}: no record has a subject, a true answer and another one to write; CounterFact has, for one"
        );
        return Err(Error::Input(message));
    }
    let name = paths::folder_or_name(name, Path::new(""));
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&name, &device, burn::tensor::DType::F32)?);
    let base = Edited::new(model.clone());
    let layers = base.layers();
    let width = edited(args, &base, &name, 0)?.1;
    let mut tried: BTreeMap<usize, Tried> = BTreeMap::new();
    let coarse = layers.min(COARSE);
    let mut next: Vec<usize> = (0..coarse).map(|number| number * (layers - 1) / (coarse - 1).max(1)).collect();
    next.dedup();
    let mut step = (layers / coarse).max(1);
    loop {
        let bar = bar(next.len(), "layers");
        for layer in next {
            let found = layer_figures(args, &base, &name, layer, &named)?;
            eprintln!("layer {layer:>3}: score {}", percent(found.figures.score));
            tried.insert(layer, found);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let best = best(&tried);
        step = if step > 1 { step / 2 } else { 0 };
        let near = [best.checked_sub(step.max(1)), Some(best + step.max(1))].into_iter().flatten();
        next = near.filter(|layer| *layer < layers && !tried.contains_key(layer)).collect();
        if step == 0 || (next.is_empty() && step == 1) {
            break;
        }
    }
    let nothing = |one: &Tried| one.figures.score.or(one.figures.efficacy).unwrap_or(0.0) == 0.0;
    if tried.values().all(nothing) {
        let message = format!(
            "no layer tried holds an edit ({} tried); try other facts, or an editor with --config",
            counted(named.len(), "fact")
        );
        return Err(Error::Input(message));
    }
    let best = best(&tried);
    let proposed = window(best, width, layers);
    let traced = by_tracing(&base, &named, layers)?;
    let line = format!("layers = {:?}", proposed.clone().collect::<Vec<_>>());
    let lines = match args.config {
        Some(_) => format!("[editor]\n    {line}"),
        None => format!(
            "[model]\n    path = {name:?}\n\n    [editor]\n    method = \"rome\"\n    {line}\n    {}",
            default_editor(&base).join("\n    ")
        ),
    };
    if args.json {
        let document = json!({
            "model": name, "fingerprint": model.fingerprint, "facts": named.len(),
            "tried": tried.values().map(Tried::document).collect::<Vec<_>>(),
            "best": best, "editor": { "layers": proposed.collect::<Vec<_>>() }, "tracing": traced,
            "seconds": start.elapsed().as_secs_f64(),
        });
        return print(&format!("{document:#}\n"));
    }
    let rows = tried.values().map(|one| {
        let of = &one.figures;
        let mark = if one.layer == best { "best" } else { "" };
        vec![
            one.layer.to_string(),
            percent(of.score),
            percent(of.efficacy),
            percent(of.paraphrase),
            percent(of.neighborhood),
            one.failed.to_string(),
            mark.to_owned(),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut text = table(&["layer", "score", "efficacy", "paraphrase", "neighborhood", "failed", ""], &rows);
    text += &format!(
        "\n(protocol counterfact, {}, each edited by itself{}; a share of so many is known to ± {:.0} points at best)\n\n    {lines}\n\n",
        counted(named.len(), "fact"),
        match args.config {
            Some(_) => "",
            None => ", by ROME without statistics: a config of your own, --config, shows what it can do",
        },
        98.0 / (named.len() as f64).sqrt()
    );
    text += &match traced["layer"].as_u64() {
        Some(layer) => format!(
            "Tracing would have proposed layer {layer}: there restoring the MLP's outputs in a window of {} at the subject's last token brings back most \
             ({:.3} of {:.3}, mean of {} that the model knows).\n",
            traced["window"],
            traced["effect"].as_f64().unwrap_or(0.0),
            traced["total_effect"].as_f64().unwrap_or(0.0),
            counted(traced["facts"].as_u64().unwrap_or(0) as usize, "fact")
        ),
        None if base.base().decoder.spec.source.is_some() => {
            "Tracing proposes nothing: the model has an encoder, which tracing does not follow.\n".into()
        }
        None => "Tracing proposes nothing: the model gives the true answer of none of these facts.\n".into(),
    };
    if let Some(unread) = traced["unread"].as_u64().filter(|unread| *unread > 0) {
        text += &format!(
            "{} not traced: too long for the model, or without the subject.\n",
            counted(unread as usize, "fact")
        );
    }
    print(&text)
}

fn best(tried: &BTreeMap<usize, Tried>) -> usize {
    tried.values().max_by(|a, b| a.rank().total_cmp(&b.rank()).then(b.layer.cmp(&a.layer))).map_or(0, |one| one.layer)
}

/// Lines of the editor that layers are tried with where none is given, beside its method and layers.
fn default_editor(base: &Edited) -> Vec<&'static str> {
    let mut lines = vec!["statistics = \"none\"", "weight_decay = 0.5"];
    if base.base().tokenizer.begin().is_none() {
        lines.push("context_templates = [\"{}\"]");
    }
    lines
}

/// The editor at a layer, and how many layers it edits around it.
fn edited(args: &Args, base: &Edited, name: &str, layer: usize) -> Result<(Box<dyn crate::apply::Editor>, usize)> {
    let layers = base.layers();
    let Some(path) = &args.config else {
        let section = format!("method = \"rome\"\nlayers = [{layer}]\n{}", default_editor(base).join("\n"));
        let section: toml::Table =
            section.parse().map_err(|error| Error::Config(format!("the default editor: {error}")))?;
        let settings = EditorSettings::parse(section, "the default editor")?;
        return Ok((settings.editor(base.base(), name, Path::new(""), Box::new(|_| {}))?, 1));
    };
    let own = config::apply::Config::read(path, &args.sets)?.editor.layers().len();
    if own == 0 {
        return Err(Error::Config(format!("{}: this editor has no layers to propose", path.display())));
    }
    let around: Vec<usize> = window(layer, own, layers).collect();
    let sets: Vec<String> = args.sets.iter().cloned().chain([format!("editor.layers={around:?}")]).collect();
    let settings = config::apply::Config::read(path, &sets)?.editor;
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok((settings.editor(base.base(), name, folder, Box::new(|_| {}))?, own))
}

/// The figures of single edits at a layer.
fn layer_figures(args: &Args, base: &Edited, name: &str, layer: usize, records: &[EditRecord]) -> Result<Tried> {
    let (editor, _) = edited(args, base, name, layer)?;
    let numbers: Vec<usize> = (0..records.len()).collect();
    let rows = parallel::each(&base.base().decoder.device(), numbers, |number| {
        let record = &records[number];
        let after = edited_by(editor.as_ref(), base, &EditRequest::of_case(record)).and_then(|edit| base.with(edit));
        match after {
            Ok(after) => Ok(Some(probe_table(base, &after, &[(number, record)], Limits::default())?)),
            Err(Error::Input(_) | Error::Record { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    })?;
    let failed = rows.iter().filter(|rows| rows.is_none()).count();
    let made = rows.len() - failed;
    let rows: Vec<_> = rows.into_iter().flatten().flatten().collect();
    Ok(Tried { layer, figures: counterfact(&rows, crate::evaluate::Side::After), made, failed })
}

/// The layer at which restoring MLP outputs at the subject's last token brings back most.
fn by_tracing(base: &Edited, records: &[EditRecord], layers: usize) -> Result<Value> {
    let requests = records.iter().map(|record| EditRequest {
        target_new: record.target_true.clone().unwrap_or_default(),
        ..EditRequest::from(record)
    });
    let requests: Vec<EditRequest> = requests.collect();
    if base.base().decoder.spec.source.is_some() {
        return Ok(json!({ "layer": null, "facts": 0, "unread": 0 }));
    }
    let sigma = Strength::Times(3.0).for_requests(base, &requests)?;
    let width = super::trace::default_window(layers);
    let restored = Restored { states: false, places: vec![Place::MlpOut], windows: vec![width] };
    let (mut documents, mut unread) = (vec![], 0);
    let bar = bar(requests.len(), "tracing");
    for request in &requests {
        let question = match Question::new(base, request) {
            Ok(question) => Some(question).filter(Question::is_answered),
            Err(Error::Input(_)) => {
                unread += 1;
                None
            }
            Err(error) => return Err(error),
        };
        if let Some(question) = question {
            let noise = Noise::draw(base, &question, Hidden { sigma, draws: 10, seed: 0 });
            documents.push(trace(base, &question, &noise, &restored)?.document(&base.base().tokenizer));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let averages = Averages::all_of(&documents);
    let found = averages.first().and_then(|of| of.largest(|role| role == Role::LastSubject));
    let total: Vec<f64> = documents.iter().filter_map(|document| document["total_effect"].as_f64()).collect();
    Ok(json!({
        "layer": found.map(|(_, layer, _)| layer),
        "window": width,
        "effect": found.map(|(.., mean)| mean.mean),
        "total_effect": total.iter().sum::<f64>() / total.len().max(1) as f64,
        "facts": documents.len(),
        "unread": unread,
    }))
}
