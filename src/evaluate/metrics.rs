//! Metrics, each a pure function of the table.
//!
//! `mend`: teacher-forced, whole target exact. `counterfact`: whether the new answer is likelier than the old one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::probes::{Kind, ProbeRow};

/// The figures of a table, shares from 0 to 1. A figure without probes is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Share of edits whose whole target is the likeliest answer to the edit's own prompt.
    pub edit_success: Option<f64>,
    /// The same on rephrases.
    pub generalization: Option<f64>,
    /// Share of out-of-scope prompts on which the likeliest token stays the same at every token of the target.
    pub locality: Option<f64>,
    /// Share of out-of-scope facts answered exactly before, less that after.
    pub drawdown: Option<f64>,
    /// Locality by class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub locality_by_class: BTreeMap<String, f64>,
    /// Drawdown by class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drawdown_by_class: BTreeMap<String, f64>,
    /// Edits in the table.
    pub edits: usize,
}

/// The mean of values, or nothing where there are none.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

fn share<'a>(rows: impl Iterator<Item = &'a ProbeRow>, holds: impl Fn(&ProbeRow) -> bool) -> Option<f64> {
    mean(rows.map(|row| f64::from(u8::from(holds(row)))))
}

/// Whole target exact, on the edit's own prompt.
pub fn edit_success(table: &[ProbeRow]) -> Option<f64> {
    share(table.iter().filter(|row| row.kind == Kind::Rewrite), |row| row.after.exact())
}

/// Whole target exact, on rephrases.
pub fn generalization(table: &[ProbeRow]) -> Option<f64> {
    share(table.iter().filter(|row| row.kind == Kind::Rephrase), |row| row.after.exact())
}

/// Likeliest tokens unchanged, on out-of-scope prompts; of one class where one is named.
pub fn locality(table: &[ProbeRow], class: Option<&str>) -> Option<f64> {
    share(out_of_scope(table, class), |row| row.before.argmax == row.after.argmax)
}

/// Exact accuracy lost on out-of-scope facts whose answer is known; of one class where one is named.
pub fn drawdown(table: &[ProbeRow], class: Option<&str>) -> Option<f64> {
    let known = || out_of_scope(table, class).filter(|row| row.given);
    Some(share(known(), |row| row.before.exact())? - share(known(), |row| row.after.exact())?)
}

fn out_of_scope<'a>(table: &'a [ProbeRow], class: Option<&'a str>) -> impl Iterator<Item = &'a ProbeRow> {
    let fits = move |row: &&ProbeRow| {
        row.kind == Kind::Locality && class.is_none_or(|class| row.class.as_deref() == Some(class))
    };
    table.iter().filter(fits)
}

/// All figures of a table.
pub fn summarize(table: &[ProbeRow]) -> Summary {
    let classes: std::collections::BTreeSet<&str> =
        out_of_scope(table, None).filter_map(|row| row.class.as_deref()).collect();
    let by_class = |figure: fn(&[ProbeRow], Option<&str>) -> Option<f64>| -> BTreeMap<String, f64> {
        classes.iter().filter_map(|class| Some(((*class).to_owned(), figure(table, Some(class))?))).collect()
    };
    Summary {
        edit_success: edit_success(table),
        generalization: generalization(table),
        locality: locality(table, None),
        drawdown: drawdown(table, None),
        locality_by_class: by_class(locality),
        drawdown_by_class: by_class(drawdown),
        edits: table.iter().filter(|row| row.kind == Kind::Rewrite).count(),
    }
}

/// The figures of the `counterfact` protocol (Meng et al., 2022), of one side of an edit: shares of prompts on which the
/// right one of two answers is likelier by token, first meant over the prompts of an edit, then over edits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CounterFact {
    /// ES: the new answer beats the old one on the edit's own prompt.
    pub efficacy: Option<f64>,
    /// EM: by how much, as a difference of probabilities a token.
    pub efficacy_magnitude: Option<f64>,
    /// PS: the same on rephrases.
    pub paraphrase: Option<f64>,
    /// PM.
    pub paraphrase_magnitude: Option<f64>,
    /// NS: the old answer beats the new one on prompts about others.
    pub neighborhood: Option<f64>,
    /// NM.
    pub neighborhood_magnitude: Option<f64>,
    /// S: the harmonic mean of ES, PS and NS.
    pub score: Option<f64>,
}

/// What stands before an edit, and what after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The model as it was.
    Before,
    /// The edited model.
    After,
}

/// The `counterfact` figures of one side of a table; absent where no row has a rival.
pub fn counterfact(table: &[ProbeRow], side: Side) -> CounterFact {
    let figure = |kind: Kind, of: fn(f64, f64) -> f64| -> Option<f64> {
        let mut edits: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for row in table.iter().filter(|row| row.kind == kind) {
            let Some(rival) = &row.rival else { continue };
            let (right, wrong) = match side {
                Side::Before => (&row.before, &rival.before),
                Side::After => (&row.after, &rival.after),
            };
            edits.entry(row.record).or_default().push(of(right.nll(), wrong.nll()));
        }
        mean(edits.into_values().filter_map(|values| mean(values.into_iter())))
    };
    let success = |right: f64, wrong: f64| f64::from(u8::from(right < wrong));
    let magnitude = |right: f64, wrong: f64| (-right).exp() - (-wrong).exp();
    let (efficacy, paraphrase, neighborhood) =
        (figure(Kind::Rewrite, success), figure(Kind::Rephrase, success), figure(Kind::Locality, success));
    let harmonic = |values: [f64; 3]| 3.0 / values.into_iter().map(|value| 1.0 / value).sum::<f64>();
    CounterFact {
        efficacy,
        efficacy_magnitude: figure(Kind::Rewrite, magnitude),
        paraphrase,
        paraphrase_magnitude: figure(Kind::Rephrase, magnitude),
        neighborhood,
        neighborhood_magnitude: figure(Kind::Locality, magnitude),
        score: efficacy.zip(paraphrase).zip(neighborhood).map(|((e, p), n)| harmonic([e, p, n])),
    }
}
