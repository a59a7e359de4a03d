//! Metrics of a table of many edits, each a pure function of it: what a training is steered by and `apply` prints.
//!
//! The values of a single edit, which a comparison averages, are in [`super::protocol`].
//!
//! `mend`: teacher-forced, whole target exact. `counterfact`: whether the new answer is likelier than the old one. `balanced`: claims,
//! answered True or False. `sentiment`: replies on a topic, in the wanted sentiment or the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::probes::{Kind, ProbeRow};
use super::protocol::balanced::{Labels, accuracy};
use super::protocol::counterfact as likelier;
use super::protocol::counterfact::{magnitude, success};
use super::protocol::easyedit::token_accuracy;
use super::protocol::sentiment::{Reply, reply};
use super::rows::{Side, in_headline, mean, share};

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

/// Whole target exact, on the edit's own prompt; of edits that are to make one likelier.
pub fn edit_success(table: &[ProbeRow]) -> Option<f64> {
    share(table.iter().filter(|row| row.kind == Kind::Rewrite && !row.lowered), |row| row.after.exact())
}

/// Whole target exact, on rephrases.
pub fn generalization(table: &[ProbeRow]) -> Option<f64> {
    share(table.iter().filter(|row| row.kind == Kind::Rephrase && !row.lowered), |row| row.after.exact())
}

/// Likeliest tokens unchanged, on out-of-scope prompts; of one class where one is named, else of all but CounterFact's attribute prompts.
pub fn locality(table: &[ProbeRow], class: Option<&str>) -> Option<f64> {
    share(out_of_scope(table, class), |row| row.before.agrees(&row.after))
}

/// Exact accuracy lost on out-of-scope facts whose answer is known; of one class where one is named, else of all but CounterFact's
/// attribute prompts.
pub fn drawdown(table: &[ProbeRow], class: Option<&str>) -> Option<f64> {
    let known = || out_of_scope(table, class).filter(|row| row.given);
    Some(share(known(), |row| row.before.exact())? - share(known(), |row| row.after.exact())?)
}

/// Out-of-scope rows of a class; without one those of the headline.
fn out_of_scope<'a>(table: &'a [ProbeRow], class: Option<&'a str>) -> impl Iterator<Item = &'a ProbeRow> {
    let fits = move |row: &&ProbeRow| match class {
        Some(class) => row.kind == Kind::Locality && row.class.as_deref() == Some(class),
        None => in_headline(row),
    };
    table.iter().filter(fits)
}

/// All figures of a table, over all its probes: an edit with more of them counts more. A comparison averages over edits instead
/// ([`super::protocol::mend`]).
pub fn summarize(table: &[ProbeRow]) -> Summary {
    let classes: std::collections::BTreeSet<&str> =
        table.iter().filter(|row| row.kind == Kind::Locality).filter_map(|row| row.class.as_deref()).collect();
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

/// The mean over edits of a value of each edit's rows.
fn over_edits(table: &[ProbeRow], value: impl Fn(Vec<&ProbeRow>) -> Option<f64>) -> Option<f64> {
    let mut edits: BTreeMap<usize, Vec<&ProbeRow>> = BTreeMap::new();
    for row in table {
        edits.entry(row.record).or_default().push(row);
    }
    mean(edits.into_values().filter_map(value))
}

/// The harmonic mean of three shares; 0 where one of them is.
pub(super) fn harmonic(values: [f64; 3]) -> f64 {
    3.0 / values.into_iter().map(|value| 1.0 / value).sum::<f64>()
}

/// The `counterfact` figures of one side of a table; absent where no row has a rival.
pub fn counterfact(table: &[ProbeRow], side: Side) -> CounterFact {
    let figure = |kind: Kind, of: fn(f64, f64) -> f64| {
        over_edits(table, |rows| likelier::over_probes(rows.into_iter(), kind, side, of))
    };
    let (efficacy, paraphrase, neighborhood) =
        (figure(Kind::Rewrite, success), figure(Kind::Rephrase, success), figure(Kind::Locality, success));
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

/// The `balanced` figures of one side of a table; absent where no row asks for a label.
pub fn balanced(table: &[ProbeRow], side: Side) -> Balanced {
    let labels = Labels::from_rows(table, side);
    Balanced { in_scope: accuracy(labels.in_scope), out_of_scope: accuracy(labels.out_of_scope) }
}

/// The figures of the `sentiment` protocol (Mitchell et al., 2022, SERAC), of one side of an edit, as the authors' code has them. On
/// in-scope probes of a record that a descriptor states, with l⁺ the mean log-likelihood of all tokens of all its right replies
/// together and l⁻ that of the wrong ones,
///
/// ```text
/// z_sentiment = σ(l⁺ − l⁻)
/// z_topic     = min(1, exp(l⁺ − l⁺ before the edit))
/// success     = z_sentiment · z_topic
/// ```
///
/// each meant over edits. z_topic falls where an edit makes the right replies themselves unlikely; that the wrong ones become so is
/// what was asked for. Probes of the `balanced` protocol are none of this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sentiment {
    /// z_sentiment.
    pub sentiment: Option<f64>,
    /// z_topic; 1 before the edit.
    pub topic: Option<f64>,
    /// The product of the two, edit by edit.
    pub success: Option<f64>,
}

/// The `sentiment` figures of one side of a table; absent where no edit is stated by a descriptor.
pub fn sentiment(table: &[ProbeRow], side: Side) -> Sentiment {
    let figure = |of: fn(Reply) -> f64| over_edits(table, |rows| reply(rows.into_iter(), side).map(of));
    Sentiment {
        sentiment: figure(|reply| reply.sentiment),
        topic: figure(|reply| reply.topic),
        success: figure(|reply| reply.sentiment * reply.topic),
    }
}

/// The protocol `completion` on edits that are completions of passages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Share of the completion's tokens that are the likeliest in their places, mean over prompts.
    pub tokens: Option<f64>,
    /// The same behind passages without their beginning.
    pub cut_tokens: Option<f64>,
}

/// The figures of protocol `completion` after the edits.
pub fn completion(rows: &[ProbeRow]) -> Completion {
    let of = |kind: Kind| mean(rows.iter().filter(|row| row.kind == kind).filter_map(|row| token_accuracy(&row.after)));
    Completion { tokens: of(Kind::Rewrite), cut_tokens: of(Kind::Rephrase) }
}
