//! A comparison as one JSON document: what the tables, the page and the files of a summary are made of. Case files are all it needs.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::curves::Point;
use super::unlike::{Unlike, unlike};
use crate::config::compare::UNEDITED;
use crate::evaluate::case::Case;
use crate::evaluate::{
    Better, Figure, Kind, Measured, Method, Protocol, Snippets, Unit, about, aggregate, best, failed, in_headline,
    known_unedited, measure_all, rival,
};

/// One editor's part.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// params.json of its run.
    pub params: Value,
    /// Its cases, in the order of their ids.
    pub cases: Vec<Case>,
    /// Its curves.
    pub points: Vec<Point>,
}

/// Cases whose probes the page shows; of more only their names and outcomes.
const SHOWN: usize = 2000;

/// The document of all editors.
pub fn document(title: &str, entries: &[Entry], snippets: Option<&Snippets>, seed: u64) -> Value {
    let measured: Vec<Vec<Measured>> = entries.iter().map(|entry| measure_all(&entry.cases, snippets)).collect();
    let figures: Vec<Vec<Figure>> = measured.iter().map(|measured| aggregate(measured, seed)).collect();
    let methods: Vec<Method<'_>> = entries
        .iter()
        .zip(&figures)
        .zip(&measured)
        .map(|((entry, figures), cases)| Method { name: &entry.name, figures, cases })
        .collect();
    let unlike = unlike(entries);
    let alike = |protocol: Protocol, name: &str| !unlike.iter().any(|unlike| unlike.decides(protocol, name));
    let bests = best(&methods, seed, &alike);
    let mut rows = vec![];
    for (entry, figures) in entries.iter().zip(&figures) {
        for figure in figures {
            let best = bests.iter().find(|best| best.protocol == figure.protocol && best.name == figure.name);
            let is_best = best.is_some_and(|best| best.method == entry.name);
            let other = best.and_then(|best| best.others.iter().find(|other| other.method == entry.name));
            // Nothing where no test was made.
            let proven = match best.filter(|_| is_best) {
                Some(best) => {
                    let tested = best.others.iter().any(|other| other.p.is_some());
                    tested.then(|| best.others.iter().all(|other| other.proven))
                }
                None => other.and_then(|other| other.p.map(|_| other.proven)),
            };
            let behind = other.and_then(|other| Some((other.difference.as_ref()?, other.p)));
            rows.push(json!({
                "method": entry.name, "protocol": figure.protocol, "name": figure.name, "mean": figure.mean,
                "low": figure.low, "high": figure.high, "cases": figure.cases, "best": is_best, "proven": proven,
                "behind": behind.map(|(difference, p)| json!({
                    "mean": difference.mean, "low": difference.low, "high": difference.high, "cases": difference.cases,
                    "test": difference.test, "p": p,
                })),
            }));
        }
    }
    let sound = sound(entries);
    // Runs that ask other models, or ask otherwise, have no unedited model in common.
    let one_model = !unlike.iter().any(Unlike::of_the_unedited);
    let unedited = if one_model { unedited(&sound) } else { vec![] };
    let before = measure_all(&unedited, snippets);
    let costs = |figure: &Figure| figure.protocol == Protocol::Efficiency;
    for figure in aggregate(&before, seed).into_iter().filter(|figure| !costs(figure)) {
        // What cannot come out otherwise has no interval.
        let known = known_unedited(figure.protocol, &figure.name);
        let [low, high] = [figure.low, figure.high].map(|end| end.filter(|_| !known));
        rows.push(json!({
            "method": UNEDITED, "protocol": figure.protocol, "name": figure.name, "mean": figure.mean,
            "low": low, "high": high, "cases": figure.cases, "best": false, "proven": null,
        }));
    }
    let mut methods = vec![];
    if one_model {
        methods.push(json!({"name": UNEDITED, "label": UNEDITED, "baseline": true, "cases": before.len()}));
    }
    for entry in entries {
        methods.push(json!({
            "name": entry.name,
            "label": entry.name,
            "config": entry.params["settings"],
            "provenance": entry.params,
            "failed": failed(&entry.cases),
            "cases": entry.cases.len(),
        }));
        let early = measure_all(&right_after(entry), snippets);
        if early.is_empty() {
            continue;
        }
        // Another look at the same edits: it takes no part in tests.
        let name = format!("{}, right after", entry.name);
        methods.push(json!({"name": name, "label": name, "baseline": true, "cases": early.len()}));
        for figure in aggregate(&early, seed).into_iter().filter(|figure| !costs(figure)) {
            rows.push(json!({
                "method": name, "protocol": figure.protocol, "name": figure.name, "mean": figure.mean,
                "low": figure.low, "high": figure.high, "cases": figure.cases, "best": false, "proven": null,
            }));
        }
    }
    let first = entries.first().map_or(&Value::Null, |entry| &entry.params);
    // What all have in common; nothing where they differ.
    let common = |key: &str| match unlike.iter().any(|unlike| unlike.in_section(key)) {
        true => Value::Null,
        false => first[key].clone(),
    };
    json!({
        "format": "report/1",
        "title": title,
        "statistics": "means over cases; 95 % intervals: Wilson's where each case is yes or no, else percentiles of 1,000 draws of the \
                       cases, no narrower at the ends than a share of as many cases; best is marked where its difference from every \
                       other editor is proven: paired tests on shared cases (t, exact signs; exchanges of the editors within cases for \
                       score and balanced accuracy), p < 0.05 after Holm's correction for all pairs of editors; no mark where no test \
                       was made",
        "model": common("model"),
        "data": common("data"),
        "mode": common("mode"),
        "seed": common("seed"),
        "version": common("version"),
        "differences": unlike.iter().map(Unlike::json).collect::<Vec<_>>(),
        "notes": notes(entries, &sound),
        "methods": methods,
        "protocols": protocols(&figures.concat()),
        "figures": rows,
        "curves": entries.iter().flat_map(curves).collect::<Vec<_>>(),
        "cases": cases(entries),
    })
}

/// What the unedited model said to the probes of all cases: what stands before an edit, as if it stood behind one.
fn unedited(sound: &[&Case]) -> Vec<Case> {
    let before = |case: &&Case| {
        let mut case = Case { texts: vec![], ..(*case).clone() };
        for row in &mut case.rows {
            row.after = row.before.clone();
            if let Some(rival) = &mut row.rival {
                rival.after = rival.before.clone();
            }
        }
        case.answers.iter_mut().for_each(|answer| answer.after = answer.before.clone());
        case.essence = case.essence.map(|[before, _]| [before; 2]);
        case.perplexity = case.perplexity.map(|[before, _]| [before; 2]);
        case
    };
    sound.iter().map(before).collect()
}

/// Cases that did not fail, each once, by what was asked.
fn sound(entries: &[Entry]) -> Vec<&Case> {
    let mut cases: BTreeMap<(&str, String), &Case> = BTreeMap::new();
    for case in entries.iter().flat_map(|entry| &entry.cases).filter(|case| case.error.is_none()) {
        cases.entry((&case.id, case.record())).or_insert(case);
    }
    cases.into_values().collect()
}

/// The cases of a sequence as they were right after their own edits.
fn right_after(entry: &Entry) -> Vec<Case> {
    let seen = entry.cases.iter().filter(|case| case.error.is_none() && !case.right_after.is_empty());
    let early = |case: &Case| Case {
        rows: case.right_after.clone(),
        answers: vec![],
        texts: vec![],
        essence: None,
        perplexity: None,
        ..case.clone()
    };
    seen.map(early).collect()
}

/// What must be known of the figures beside them.
fn notes(entries: &[Entry], sound: &[&Case]) -> Vec<String> {
    let mut notes = vec![];
    for entry in entries {
        let there = entry.cases.len();
        if let Some(all) = entry.params["data"]["records"].as_u64().filter(|all| *all > there as u64) {
            notes.push(format!("{}: {there} of {all} cases are there", entry.name));
        }
        for point in entry.points.iter().filter(|point| point.failed > 0) {
            notes.push(format!(
                "{}, {} edits, {}: {} could be made, {} failed and are in no point of the curve",
                entry.name,
                point.edits,
                point.mode,
                point.made(),
                point.failed
            ));
        }
    }
    let of_nothing = |case: &&Case| case.rows.iter().filter(|row| row.rival.is_some() && rival(row).is_none()).count();
    let counts = sound.iter().map(of_nothing).filter(|count| *count > 0);
    let (cases, probes) = counts.fold((0, 0), |(cases, probes), count| (cases + 1, probes + count));
    if cases > 0 {
        notes.push(format!(
            "{probes} probes of {cases} cases have the new answer as the old one too: they are in no figure of counterfact"
        ));
    }
    notes
}

/// The protocols that have figures, and what each figure is.
fn protocols(figures: &[Figure]) -> Vec<Value> {
    let said = |protocol: Protocol| match protocol {
        Protocol::Counterfact => "which of two answers is likelier by token (Meng et al., 2022)",
        Protocol::Easyedit => "shares of tokens under teacher forcing (Wang et al., 2023)",
        Protocol::Mend => "whole targets exact under teacher forcing (Mitchell et al., 2022)",
        Protocol::Generate => "free answers, to their own end: what a user sees",
        Protocol::Completion => "tokens of the completions of passages (Mitchell et al., 2022)",
        Protocol::Balanced => "claims answered True or False, both labels counting alike",
        Protocol::Sentiment => "replies on a topic in the wanted sentiment (Mitchell et al., 2022)",
        Protocol::Mquake => "questions over several facts, over free answers (Zhong et al., 2023)",
        Protocol::Localize => "how much of what was possible an edit moved a target's probability (Hase et al., 2023)",
        Protocol::Ripple => "what follows from an edit and what does not, over free answers (Cohen et al., 2024)",
        Protocol::Efficiency => "seconds, memory and the size of the change",
    };
    let of = |protocol: Protocol| {
        let mut metrics: Vec<(&str, Value)> = vec![];
        for figure in figures.iter().filter(|figure| figure.protocol == protocol) {
            if metrics.iter().any(|(known, _)| *known == figure.name) {
                continue;
            }
            let about = about(protocol, &figure.name);
            let unit = match about.unit {
                Unit::Share | Unit::Difference => "share",
                Unit::Bits => "bits",
                Unit::Seconds => "seconds",
                Unit::Bytes => "bytes",
                Unit::Number => "number",
            };
            let better = match about.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
                Better::Neither => "neither",
            };
            metrics
                .push((&figure.name, json!({"name": figure.name, "what": about.what, "better": better, "unit": unit})));
        }
        let metrics: Vec<Value> = metrics.into_iter().map(|(_, metric)| metric).collect();
        (!metrics.is_empty()).then(|| json!({"name": protocol, "about": said(protocol), "metrics": metrics}))
    };
    Protocol::ALL.into_iter().filter_map(of).collect()
}

/// Reads a figure off a point.
type Read = fn(&Point) -> Option<f64>;

/// The curves of one editor, one a mode and metric.
fn curves(entry: &Entry) -> Vec<Value> {
    let figures: [(&str, Read); 9] = [
        ("edit_success", |point| point.figures.edit_success),
        ("generalization", |point| point.figures.generalization),
        ("locality", |point| point.figures.locality),
        ("retained", |point| point.retained),
        ("retained_earliest", |point| point.earliest),
        ("last_edit_success", |point| point.last),
        ("perplexity", |point| point.perplexity),
        ("perplexity_ratio", |point| point.perplexity_ratio),
        ("relative_norm", |point| Some(point.relative)),
    ];
    let mut curves = vec![];
    for mode in ["batch", "sequential"] {
        let mine: Vec<&Point> =
            entry.points.iter().filter(|point| point.mode == mode && point.error.is_none()).collect();
        let collapsed = mine.iter().find(|point| point.collapsed).map(|point| point.edits);
        for (metric, of) in figures {
            let points = mine.iter().filter_map(|point| {
                let value = of(point)?;
                Some(json!({
                    "edits": point.edits, "value": value, "made": point.made(), "failed": point.failed, "asked": point.asked,
                }))
            });
            let points: Vec<Value> = points.collect();
            if !points.is_empty() {
                curves.push(json!({
                    "method": entry.name, "mode": mode, "metric": metric, "points": points, "collapsed_at": collapsed,
                    "protocol": if metric == "relative_norm" { "efficiency" } else { "mend" },
                }));
            }
        }
    }
    curves
}

/// All cases, with what each editor made of them.
fn cases(entries: &[Entry]) -> Vec<Value> {
    let mut by_id: BTreeMap<_, Vec<(&Entry, &Case)>> = BTreeMap::new();
    for (entry, case) in entries.iter().flat_map(|entry| entry.cases.iter().map(move |case| (entry, case))) {
        // Numbers in the order of numbers, names behind them.
        let place = case.id.parse().unwrap_or(u64::MAX);
        // Two files may have different facts under one id.
        let request = serde_json::to_string(&case.request).unwrap_or_default();
        by_id.entry((place, case.id.as_str(), request)).or_default().push((entry, case));
    }
    let whole = by_id.len() <= SHOWN;
    let of = |id: &str, cases: &[(&Entry, &Case)]| {
        let methods = cases.iter().map(|(entry, case)| {
            let probes = if whole { probes(case) } else { vec![] };
            (entry.name.clone(), json!({"outcome": outcome(case), "error": case.error, "probes": probes}))
        });
        let request = &cases[0].1.request;
        json!({
            "id": id,
            "prompt": request.prompt,
            "target_new": request.target_new,
            "target_true": request.target_true,
            "subject": request.subject,
            "methods": methods.collect::<Map<_, _>>(),
        })
    };
    by_id.iter().map(|((_, id, _), cases)| of(id, cases)).collect()
}

/// Success: new answers where they belong, old ones everywhere else. Partial: at least at the edit's own prompt.
fn outcome(case: &Case) -> &'static str {
    if case.error.is_some() {
        return "error";
    }
    let exact = |kind: Kind| case.rows.iter().filter(|row| row.kind == kind).all(|row| row.after.exact());
    let mut kept = case.rows.iter().filter(|row| in_headline(row));
    match (exact(Kind::Rewrite), exact(Kind::Rephrase)) {
        (true, true) if kept.all(|row| row.before.agrees(&row.after)) => "success",
        (true, _) => "partial",
        _ => "failure",
    }
}

fn probes(case: &Case) -> Vec<Value> {
    let rows = case.rows.iter().enumerate().map(|(number, row)| {
        let free = case.answers.iter().find(|answer| answer.row == number);
        let said = case.likeliest.get(number);
        let before = free.map(|free| &free.before).or(said.map(|said| &said[0]));
        let after = free.map(|free| &free.after).or(said.map(|said| &said[1]));
        // Four digits are what anyone reads.
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        json!({
            "kind": row.kind, "class": row.class, "prompt": row.prompt, "target": row.target,
            "before": before, "after": after,
            "exact_before": row.before.exact(), "exact_after": row.after.exact(),
            "p_before": rounded(row.before.probability()), "p_after": rounded(row.after.probability()),
        })
    });
    rows.collect()
}
