//! What a sweep left in its folder, as one document: scores by layer, tracing effects by layer, and the regressions.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::regress::{Observation, Regressions, correlation};
use super::sweep::{Cell, Sweep};
use crate::compare::layout::Run;
use crate::error::Result;
use crate::evaluate::problem::Problem;
use crate::evaluate::protocol::{Protocol, values};
use crate::trace::average::{Mean, Role};
use crate::trace::folder::Traces;

/// What tracing says of a fact, for one width of windows: the share of the total effect that each layer brings back, at its best token, and at the
/// subject's last.
#[derive(Debug, Clone)]
struct Effects {
    best: Vec<f64>,
    last_subject: Vec<f64>,
}

/// The least total effect of which shares are taken: less than a hundredth of all probability is rounding, and noise that did no harm.
const LEAST_EFFECT: f64 = 0.01;

/// Of a fact's document; nothing where it was left out, or where the noise did it no harm.
fn effects(document: &Value, width: usize, layers: usize) -> Option<Effects> {
    let whole = document["total_effect"].as_f64().filter(|effect| effect.abs() >= LEAST_EFFECT)?.abs();
    let rows = document["mlp"][width.to_string()]["effect"].as_array()?;
    let row = |row: &Value| row.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
    let table: Vec<Vec<f64>> = rows.iter().map(row).collect::<Option<_>>()?;
    let roles = document["roles"].as_array().filter(|roles| roles.len() == table.len())?;
    if table.iter().any(|row| row.len() != layers) {
        return None;
    }
    let share = |effect: f64| (effect / whole).max(0.0);
    let best = |layer: usize| table.iter().map(|row| row[layer]).fold(f64::NEG_INFINITY, f64::max);
    let last = roles.iter().position(|role| role.as_str() == Some(Role::LastSubject.name()))?;
    Some(Effects {
        best: (0..layers).map(|layer| share(best(layer))).collect(),
        last_subject: (0..layers).map(|layer| share(table[last][layer])).collect(),
    })
}

/// One edit's scores.
struct Scored {
    problem: Problem,
    editor: String,
    layer: usize,
    /// The record's id.
    id: String,
    /// By metric of the protocol `localize`.
    scores: BTreeMap<String, f64>,
}

/// The document of a sweep.
///
/// ```text
/// {
///   "format": "locate/1", "model": …, "facts": 20, "layers": […], "windows": […], "noise": …,
///   "trace": [{"window": 5, "best": [mean by layer], "last_subject": [mean by layer], "peak": the layer of the largest of these}],
///   "rows": [{"problem": "injection", "method": "rome", "metric": "rewrite", "window": 5,
///     "regression": {"r2": {"layer", "effect", "both", "difference", "by_chance"}, "f", "p", "correlation", "edits"} or null, "why": "…",
///     "by_layer": [{"layer", "mean", "interval", "facts"}], "best_layer": …, "as_good": [layers whose intervals reach the best's],
///     "fails": [layers with less than a tenth of the best mean], "without_failing": R² without these, or null,
///     "at_peak": {"layer", "r", "interval"}, "points": [[fact, layer, effect, score]]}],
///   "unread": facts that the model cannot read, "failed": edits that failed, "unharmed": facts that take no part in regressions, for noise takes them less than 0.01 of probability
/// }
/// ```
///
/// # Errors
/// Files that are broken.
pub fn document(sweep: &Sweep<'_>, folder: &Path, traces: &Traces, title: &str, windows: &[usize]) -> Result<Value> {
    let mut effects_of = EffectsOf::new();
    for (number, fact) in sweep.facts.iter().enumerate() {
        let Some(document) = traces.read(number)? else { continue };
        for &width in windows {
            if let Some(effects) = effects(&document, width, sweep.depth()) {
                effects_of.insert((fact.id.clone(), width), effects);
            }
        }
    }
    let first = windows.first().copied().unwrap_or(1);
    let unharmed = sweep.facts.iter().filter(|fact| !effects_of.contains_key(&(fact.id.clone(), first))).count();
    let (edits, failed) = edits(sweep, folder)?;
    let traced: Vec<Value> = windows.iter().map(|&width| traced(&effects_of, width)).collect();
    let mut rows = vec![];
    for (problem, _) in &sweep.posed {
        let mut methods: Vec<&str> = vec![];
        for edit in edits.iter().filter(|edit| edit.problem == *problem) {
            if !methods.contains(&edit.editor.as_str()) {
                methods.push(&edit.editor);
            }
        }
        for (method, metric) in methods.iter().flat_map(|method| METRICS.map(|metric| (*method, metric))) {
            let own =
                |edit: &&Scored| edit.problem == *problem && edit.editor == method && edit.scores.contains_key(metric);
            let own: Vec<&Scored> = edits.iter().filter(own).collect();
            if own.is_empty() {
                continue;
            }
            for (&width, traced) in windows.iter().zip(&traced) {
                let mut row = row(&own, metric, &sweep.layers, &effects_of, (width, traced["peak"].as_u64()));
                row["problem"] = json!(problem.name());
                row["method"] = json!(method);
                rows.push(row);
            }
        }
    }
    let posed: serde_json::Map<String, Value> =
        sweep.posed.iter().map(|(problem, records)| (problem.name().to_owned(), json!(records.len()))).collect();
    Ok(json!({
        "format": "locate/1",
        "title": title,
        "facts": sweep.facts.len(),
        "unread": sweep.unread,
        "posed": posed,
        "layers": sweep.layers,
        "windows": windows,
        "noise": { "sigma": sweep.noise.sigma, "draws": sweep.noise.draws, "seed": sweep.noise.seed },
        "trace": traced,
        "rows": rows,
        "failed": failed,
        "unharmed": unharmed,
    }))
}

/// The share of the best layer's mean score below which edits count as failing at a layer.
const FAILS: f64 = 0.1;

/// The scores of the protocol `localize`, in the order of tables.
const METRICS: [&str; 5] = ["rewrite", "paraphrase", "neighborhood", "essence", "target"];

/// What tracing says of a fact, by its id and the width of windows.
type EffectsOf = BTreeMap<(String, usize), Effects>;

/// All edits that were made, and how many failed.
fn edits(sweep: &Sweep<'_>, folder: &Path) -> Result<(Vec<Scored>, usize)> {
    let (mut edits, mut failed) = (vec![], 0);
    for cell in sweep.cells() {
        for case in Run::last(&folder.join(cell.name()))?.cases()?.into_values() {
            if case.error.is_some() {
                failed += 1;
                continue;
            }
            let scores = values(&case).into_iter().filter(|value| value.protocol == Protocol::Localize);
            let scores = scores.map(|value| (value.name, value.value)).collect();
            let Cell { problem, editor, layer } = cell.clone();
            edits.push(Scored { problem, editor, layer, id: case.id, scores });
        }
    }
    Ok((edits, failed))
}

/// The mean effects of all facts, by layer.
fn traced(effects_of: &EffectsOf, width: usize) -> Value {
    let all: Vec<&Effects> =
        effects_of.iter().filter(|((_, of), _)| *of == width).map(|(_, effects)| effects).collect();
    let layers = all.first().map_or(0, |one| one.best.len());
    let mean = |of: &dyn Fn(&Effects) -> f64| all.iter().map(|one| of(one)).sum::<f64>() / all.len().max(1) as f64;
    let best: Vec<f64> = (0..layers).map(|layer| mean(&|one| one.best[layer])).collect();
    let last: Vec<f64> = (0..layers).map(|layer| mean(&|one| one.last_subject[layer])).collect();
    json!({ "window": width, "best": best, "last_subject": last, "peak": peak(&last), "facts": all.len() })
}

/// What one problem, method and metric come to beside the tracing effects of a width, whose mean is highest at a layer.
fn row(
    own: &[&Scored],
    metric: &str,
    layers: &[usize],
    effects_of: &EffectsOf,
    (width, highest): (usize, Option<u64>),
) -> Value {
    let effect = |edit: &Scored, of: fn(&Effects) -> &Vec<f64>| {
        effects_of.get(&(edit.id.clone(), width)).and_then(|effects| of(effects).get(edit.layer).copied())
    };
    let at = |layer: usize| own.iter().filter(move |edit| edit.layer == layer);
    let by_layer: Vec<(usize, Mean)> = layers
        .iter()
        .filter_map(|&layer| Some((layer, Mean::of(&at(layer).map(|edit| edit.scores[metric]).collect::<Vec<f64>>())?)))
        .collect();
    let best = by_layer.iter().max_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean)).map(|(layer, _)| *layer);
    let means = by_layer.iter().map(|(layer, Mean { mean, interval, count })| {
        json!({ "layer": layer, "mean": mean, "interval": interval, "facts": count })
    });
    let means: Vec<Value> = means.collect();
    // Layers that so few facts do not tell apart from the best: their intervals overlap.
    let low =
        by_layer.iter().find(|(layer, _)| Some(*layer) == best).map(|(_, of)| of.interval.map_or(of.mean, |of| of.0));
    let as_good =
        by_layer.iter().filter(|(_, of)| low.is_some_and(|low| of.interval.map_or(of.mean, |of| of.1) >= low));
    let as_good: Vec<usize> = as_good.map(|(layer, _)| *layer).collect();
    let highest_mean = by_layer.iter().map(|(_, of)| of.mean).fold(0.0, f64::max);
    let fails = by_layer.iter().filter(|(_, of)| highest_mean > 0.0 && of.mean < FAILS * highest_mean);
    let fails: Vec<usize> = fails.map(|(layer, _)| *layer).collect();
    let seen: Vec<(&Scored, f64)> = own.iter().filter_map(|edit| Some((*edit, effect(edit, |of| &of.best)?))).collect();
    let observation = |(edit, effect): &(&Scored, f64)| Observation {
        score: edit.scores[metric],
        layer: edit.layer,
        effect: *effect,
    };
    let (regression, why) = match Regressions::of(&seen.iter().map(observation).collect::<Vec<_>>()) {
        Ok(found) => (found.document(), Value::Null),
        Err(why) => (Value::Null, json!(why)),
    };
    // Where edits fail at some layers, that is most of what the layer explains: the same without them.
    let rest = seen.iter().filter(|(edit, _)| !fails.contains(&edit.layer)).map(observation).collect::<Vec<_>>();
    let without_failing = match fails.is_empty() {
        true => Value::Null,
        false => Regressions::of(&rest).map_or(Value::Null, |found| found.document()["r2"].clone()),
    };
    // The layer that was edited nearest to where tracing peaks.
    let near =
        highest.and_then(|highest| layers.iter().min_by_key(|&&layer| (layer as u64).abs_diff(highest)).copied());
    let at_peak = near.map(|layer| {
        let pairs = at(layer).filter_map(|edit| Some((effect(edit, |of| &of.last_subject)?, edit.scores[metric])));
        let pairs: Vec<(f64, f64)> = pairs.collect();
        let found = correlation(&pairs);
        json!({ "layer": layer, "r": found.map(|of| of.r), "interval": found.and_then(|of| of.interval), "facts": pairs.len() })
    });
    let points: Vec<Value> =
        seen.iter().map(|(edit, effect)| json!([edit.id, edit.layer, effect, edit.scores[metric]])).collect();
    json!({
        "metric": metric,
        "window": width,
        "regression": regression,
        "why": why,
        "by_layer": means,
        "best_layer": best,
        "as_good": as_good,
        "fails": fails,
        "without_failing": without_failing,
        "at_peak": at_peak,
        "points": points,
    })
}

/// Where a list is highest.
pub fn peak(values: &[f64]) -> Option<usize> {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a)))
}
