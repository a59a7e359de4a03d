//! Metrics, each a pure function of the table.
//!
//! `mend`: teacher-forced, whole target exact. `counterfact`: whether the new answer is likelier than the old one. `balanced`: claims,
//! answered True or False. `sentiment`: replies on a topic, in the wanted sentiment or the other.

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

/// Mean negative log-likelihoods a token of target and rival.
fn against(row: &ProbeRow, side: Side) -> Option<(f64, f64)> {
    let rival = row.rival.as_ref()?;
    Some(match side {
        Side::Before => (row.before.nll(), rival.before.nll()),
        Side::After => (row.after.nll(), rival.after.nll()),
    })
}

/// The `counterfact` figures of one side of a table; absent where no row has a rival.
pub fn counterfact(table: &[ProbeRow], side: Side) -> CounterFact {
    let figure = |kind: Kind, of: fn(f64, f64) -> f64| -> Option<f64> {
        let mut edits: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for row in table.iter().filter(|row| row.kind == kind) {
            let Some((right, wrong)) = against(row, side) else { continue };
            edits.entry(row.record).or_default().push(of(right, wrong));
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

/// The figures of the `balanced` protocol, of one side of an edit: balanced accuracy on probes that are answered "True" or
/// "False" with the other one as rival. With `P(y)` the probes whose target is y, and l the mean log-likelihood a token,
///
/// ```text
/// balanced accuracy = mean over y of |{p in P(y): l(target of p) > l(rival of p)}| / |P(y)|
/// ```
///
/// over the labels y that occur. A model that always answers the same gets one half, however often that is right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Balanced {
    /// On the edit's own prompt, rephrases and consequences.
    pub in_scope: Option<f64>,
    /// On out-of-scope prompts.
    pub out_of_scope: Option<f64>,
}

/// The label that is right, where target and rival are the two labels, in any case.
fn verdict(row: &ProbeRow) -> Option<bool> {
    let label = |text: &str| match text.trim() {
        text if text.eq_ignore_ascii_case("true") => Some(true),
        text if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    };
    let (right, wrong) = (label(&row.target)?, label(&row.rival.as_ref()?.target)?);
    (right != wrong).then_some(right)
}

/// The `balanced` figures of one side of a table; absent where no row asks for a label.
pub fn balanced(table: &[ProbeRow], side: Side) -> Balanced {
    let accuracy = |in_scope: bool| {
        let right = |label: bool| {
            let rows = table.iter().filter(|row| (row.kind != Kind::Locality) == in_scope);
            let answers = rows.filter(|row| verdict(row) == Some(label)).filter_map(|row| against(row, side));
            // A tie is no success.
            mean(answers.map(|(right, wrong)| f64::from(u8::from(right < wrong))))
        };
        mean([true, false].into_iter().filter_map(right))
    };
    Balanced { in_scope: accuracy(true), out_of_scope: accuracy(false) }
}

/// The figures of the `sentiment` protocol (Mitchell et al., 2022, SERAC), of one side of an edit. On in-scope probes of
/// records that a descriptor states, with l⁺ and l⁻ the mean log-likelihoods a token of the right and the wrong reply,
///
/// ```text
/// z_sentiment = σ(l⁺ − l⁻)
/// z_topic     = min(1, exp(½(l⁺ + l⁻) − ½(l⁺ + l⁻ before the edit)))
/// success     = z_sentiment · z_topic
/// ```
///
/// each first meant over the probes of an edit, then over edits. z_topic falls where an edit makes all talk of the topic
/// unlikely, whatever its sentiment. Probes of the `balanced` protocol are none of this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sentiment {
    /// z_sentiment.
    pub sentiment: Option<f64>,
    /// z_topic; 1 before the edit.
    pub topic: Option<f64>,
    /// The product of the two, probe by probe.
    pub success: Option<f64>,
}

/// The `sentiment` figures of one side of a table; absent where no edit is stated by a descriptor.
pub fn sentiment(table: &[ProbeRow], side: Side) -> Sentiment {
    let figure = |of: fn(f64, f64) -> f64| -> Option<f64> {
        let mut edits: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for row in table.iter().filter(|row| row.described && row.kind != Kind::Locality && verdict(row).is_none()) {
            let (Some(before), Some(now)) = (against(row, Side::Before), against(row, side)) else { continue };
            let sentiment = 1.0 / (1.0 + (now.0 - now.1).exp());
            let topic = (0.5 * (before.0 - now.0 + (before.1 - now.1))).exp().min(1.0);
            edits.entry(row.record).or_default().push(of(sentiment, topic));
        }
        mean(edits.into_values().filter_map(|values| mean(values.into_iter())))
    };
    Sentiment {
        sentiment: figure(|sentiment, _| sentiment),
        topic: figure(|_, topic| topic),
        success: figure(|sentiment, topic| sentiment * topic),
    }
}
