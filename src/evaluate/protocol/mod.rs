//! The values of one edit under each protocol. Numbers of different protocols are never comparable, so each carries its own.
//!
//! Within a case a value is a mean over the case's probes; over cases values are averaged ([`mod@super::aggregate`]), as ROME's and
//! EasyEdit's scripts do.

pub mod balanced;
pub mod completion;
pub mod counterfact;
pub mod easyedit;
pub mod efficiency;
pub mod generate;
pub mod localize;
pub mod mend;
pub mod mquake;
pub mod ripple;
pub mod sentiment;
pub mod text;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::case::Case;
use super::rows::Side;
use super::snippets::{Snippets, reference_score};
use crate::data::objective::Objective;
use balanced::Labels;

/// A way to ask and to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Which of two answers is likelier by token (Meng et al., 2022).
    Counterfact,
    /// Shares of tokens under teacher forcing (Wang et al., 2023).
    Easyedit,
    /// Whole targets exact under teacher forcing (Mitchell et al., 2022).
    Mend,
    /// Free answers.
    Generate,
    /// Tokens of the completions of passages (Mitchell et al., 2022).
    Completion,
    /// Claims, answered True or False, both labels counting alike.
    Balanced,
    /// Replies on a topic in the wanted sentiment (Mitchell et al., 2022).
    Sentiment,
    /// Questions over several facts (Zhong et al., 2023).
    Mquake,
    /// Tests of what follows from an edit (Cohen et al., 2024).
    Ripple,
    /// How much of a target's probability an edit moved (Hase et al., 2023).
    Localize,
    /// Time, memory and the size of the change.
    Efficiency,
}

impl Protocol {
    /// All of them, in the order of tables.
    pub const ALL: [Protocol; 11] = [
        Protocol::Counterfact,
        Protocol::Easyedit,
        Protocol::Mend,
        Protocol::Generate,
        Protocol::Completion,
        Protocol::Balanced,
        Protocol::Sentiment,
        Protocol::Mquake,
        Protocol::Ripple,
        Protocol::Localize,
        Protocol::Efficiency,
    ];

    /// The name, as files have it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Counterfact => "counterfact",
            Protocol::Easyedit => "easyedit",
            Protocol::Mend => "mend",
            Protocol::Generate => "generate",
            Protocol::Completion => "completion",
            Protocol::Balanced => "balanced",
            Protocol::Sentiment => "sentiment",
            Protocol::Mquake => "mquake",
            Protocol::Ripple => "ripple",
            Protocol::Localize => "localize",
            Protocol::Efficiency => "efficiency",
        }
    }
}

/// One number of one edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Whose number it is.
    pub protocol: Protocol,
    /// Its name; behind a slash the class or the phase.
    pub name: String,
    /// The number. Shares go from 0 to 1.
    pub value: f64,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Larger numbers.
    Higher,
    /// Smaller numbers.
    Lower,
    /// Neither: the number only describes.
    Neither,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share or a probability.
    Share,
    /// A difference of two shares or probabilities.
    Difference,
    /// Bits.
    Bits,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A number without a unit.
    Number,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct About {
    /// Which way is better.
    pub better: Better,
    /// What it counts.
    pub unit: Unit,
    /// What it is, in a few words.
    pub what: &'static str,
}

/// Every name, in the order of tables; of a name with a class what stands before the slash, unless the whole name is there.
#[rustfmt::skip]
const TABLE: &[(Protocol, &str, Better, Unit, &str)] = {
    use Better::{Higher, Lower, Neither};
    use Protocol::{Balanced, Completion, Counterfact, Easyedit, Efficiency, Generate, Localize, Mend, Mquake, Ripple, Sentiment};
    use Unit::{Bits, Bytes, Difference, Number, Seconds, Share};
    &[
        (Counterfact, "score", Higher, Share, "harmonic mean of efficacy, paraphrase and neighborhood"),
        (Counterfact, "efficacy", Higher, Share, "own prompt, new answer likelier than the old by token"),
        (Counterfact, "efficacy_magnitude", Higher, Difference, "own prompt, probability a token of the new answer less that of the old"),
        (Counterfact, "efficacy_exact", Higher, Share, "own prompt, whole new answer the likeliest"),
        (Counterfact, "paraphrase", Higher, Share, "rephrases, new answer likelier than the old by token"),
        (Counterfact, "paraphrase_magnitude", Higher, Difference, "rephrases, probability a token of the new answer less that of the old"),
        (Counterfact, "paraphrase_exact", Higher, Share, "rephrases, whole new answer the likeliest"),
        (Counterfact, "neighborhood", Higher, Share, "other subjects, old answer likelier than the new by token"),
        (Counterfact, "neighborhood_magnitude", Higher, Difference, "other subjects, probability a token of the old answer less that of the new"),
        (Counterfact, "neighborhood_exact", Higher, Share, "other subjects, whole old answer the likeliest"),
        (Counterfact, "fluency", Higher, Bits, "entropy of the bigrams and trigrams it writes to 100 tokens, never stopping"),
        (Counterfact, "reference_score", Higher, Share, "likeness of what it writes to texts on the new answer"),
        (Counterfact, "essence", Lower, Number, "the unedited model's perplexity of what it writes of the subject"),
        (Counterfact, "essence_rise", Lower, Number, "that perplexity less that of what the unedited model writes"),
        (Easyedit, "rewrite_acc", Higher, Share, "own prompt, share of the target's tokens that are the likeliest"),
        (Easyedit, "rephrase_acc", Higher, Share, "rephrases, share of the target's tokens that are the likeliest"),
        (Easyedit, "locality", Higher, Share, "out of scope, share of likeliest tokens that are as before"),
        (Easyedit, "portability", Higher, Share, "consequences, share of the target's tokens that are the likeliest"),
        (Easyedit, "fluency", Higher, Bits, "entropy of the bigrams and trigrams it writes to 100 tokens, never stopping"),
        (Mend, "edit_success", Higher, Share, "own prompt, whole target exact"),
        (Mend, "generalization", Higher, Share, "rephrases, whole target exact"),
        (Mend, "locality", Higher, Share, "out of scope, all likeliest tokens as before"),
        (Mend, "drawdown", Lower, Difference, "out of scope, exact answers before less those after"),
        (Mend, "perplexity_ratio", Lower, Number, "perplexity of a text after the edit divided by that before, median over the cases"),
        (Mend, "perplexity_ratio/worst", Lower, Number, "perplexity of a text after the edit divided by that before, the worst case"),
        (Mend, "perplexity", Lower, Number, "perplexity of a text after the edit"),
        (Mend, "perplexity_drawdown", Lower, Number, "perplexity of a text after the edit less that before"),
        (Generate, "rewrite_exact", Higher, Share, "own prompt, says the target and nothing else but for case and final punctuation"),
        (Generate, "rewrite_contained", Higher, Share, "own prompt, says the target among its words"),
        (Generate, "rewrite_forced", Higher, Share, "own prompt of these cases, whole target the likeliest under teacher forcing"),
        (Generate, "rephrase_exact", Higher, Share, "rephrases, says the target and nothing else but for case and final punctuation"),
        (Generate, "rephrase_contained", Higher, Share, "rephrases, says the target among its words"),
        (Generate, "rephrase_forced", Higher, Share, "rephrases of these cases, whole target the likeliest under teacher forcing"),
        (Generate, "portability_exact", Higher, Share, "consequences, says the target and nothing else but for case and final punctuation"),
        (Generate, "portability_contained", Higher, Share, "consequences, says the target among its words"),
        (Generate, "portability_forced", Higher, Share, "consequences of these cases, whole target the likeliest under teacher forcing"),
        (Generate, "locality_same", Higher, Share, "out of scope, says letter for letter what it said before"),
        (Generate, "fluency", Higher, Bits, "entropy of the bigrams and trigrams it writes to its own end"),
        (Completion, "tokens", Higher, Share, "share of the completion's tokens that are the likeliest, behind the whole passage"),
        (Completion, "cut_tokens", Higher, Share, "the same behind the passage without its beginning"),
        (Completion, "perplexity_before", Neither, Number, "perplexity of a text before the edit"),
        (Completion, "perplexity_after", Lower, Number, "perplexity of a text after the edit"),
        (Balanced, "in_scope", Higher, Share, "claims that the edit decides answered rightly, mean over True and False"),
        (Balanced, "out_of_scope", Higher, Share, "claims about others answered rightly, mean over True and False"),
        (Sentiment, "success", Higher, Share, "product of sentiment and topic, edit by edit"),
        (Sentiment, "sentiment", Higher, Share, "right replies against wrong ones, tokens of all replies together"),
        (Sentiment, "topic", Higher, Share, "right replies as likely as before, tokens of all replies together"),
        (Mquake, "edit_wise", Higher, Share, "edits of a case whose new answer is said"),
        (Mquake, "instance_wise", Higher, Share, "cases in which every fact that the question needs is said"),
        (Mquake, "multi_hop", Higher, Share, "cases in which any wording of the question is answered with the new answer"),
        (Ripple, "relation_specificity", Higher, Share, "tests passed of facts of the same subject that stay"),
        (Ripple, "forgetfulness", Higher, Share, "tests passed of other answers of a relation that has several"),
        (Ripple, "logical_generalization", Higher, Share, "tests passed of facts that follow by the relation's logic"),
        (Ripple, "subject_aliasing", Higher, Share, "tests passed of the edit under other names of its subject"),
        (Ripple, "compositionality_i", Higher, Share, "tests passed of facts one step behind the new answer"),
        (Ripple, "compositionality_ii", Higher, Share, "tests passed of facts about others that lead to the subject"),
        (Localize, "target", Higher, Share, "harmonic mean of the scores below"),
        (Localize, "rewrite", Higher, Number, "own prompt, how much of what the target's probability could gain (or lose) it did"),
        (Localize, "paraphrase", Higher, Number, "rephrases, the same"),
        (Localize, "neighborhood", Higher, Share, "other subjects, how little the same target's probability moved"),
        (Localize, "essence", Higher, Share, "how little the perplexity of what it writes of the subject rose"),
        (Efficiency, "seconds/edit", Lower, Seconds, "seconds of making the edit; of edits made together their mean"),
        (Efficiency, "seconds/evaluation", Lower, Seconds, "seconds of asking both models about a case"),
        (Efficiency, "seconds", Lower, Seconds, "seconds of a phase"),
        (Efficiency, "peak_memory", Lower, Bytes, "the most memory held over what the process held before the editor; only of the first one to work in it (--only NAME)"),
        (Efficiency, "rank", Neither, Number, "sum of the ranks of the change's matrices"),
        (Efficiency, "norm", Neither, Number, "Frobenius norm of the change"),
        (Efficiency, "relative_norm", Neither, Number, "that norm divided by the norm of the weights that changed"),
        (Efficiency, "entries", Neither, Number, "edits that a memory holds"),
    ]
};

/// Where a name stands in the table; names that are not in it stand last.
pub(super) fn place(protocol: Protocol, name: &str) -> usize {
    let stem = name.split_once('/').map_or(name, |(stem, _)| stem);
    let at = |name: &str| TABLE.iter().position(|row| (row.0, row.1) == (protocol, name));
    at(name).or_else(|| at(stem)).unwrap_or(TABLE.len())
}

/// What a value of a protocol is; of a name that no protocol gives, a number of which nothing is known.
pub fn about(protocol: Protocol, name: &str) -> About {
    match TABLE.get(place(protocol, name)) {
        Some(&(_, _, better, unit, what)) => About { better, unit, what },
        None => About { better: Better::Neither, unit: Unit::Number, what: "" },
    }
}

/// What cases say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// Their mean.
    Mean,
    /// Their median: of ratios one that ran away would decide a mean.
    Median,
    /// The largest value.
    Largest,
}

/// What cases say together of a number.
pub fn together(protocol: Protocol, name: &str) -> Together {
    match (protocol, name) {
        (Protocol::Mend, mend::RATIO) => Together::Median,
        (Protocol::Mend, mend::WORST_RATIO) | (Protocol::Efficiency, efficiency::PEAK) => Together::Largest,
        _ => Together::Mean,
    }
}

/// Whether a number is the same of any model before its edits: there it is compared with itself.
pub fn known_unedited(protocol: Protocol, name: &str) -> bool {
    let stem = name.split_once('/').map_or(name, |(stem, _)| stem);
    match protocol {
        Protocol::Counterfact => stem == "essence_rise",
        Protocol::Easyedit => stem == "locality",
        Protocol::Mend => matches!(stem, "locality" | "drawdown" | "perplexity_drawdown" | "perplexity_ratio"),
        Protocol::Generate => stem == "locality_same",
        Protocol::Sentiment => stem == "topic",
        Protocol::Completion => stem == "perplexity_before",
        Protocol::Localize => true,
        Protocol::Balanced | Protocol::Mquake | Protocol::Ripple | Protocol::Efficiency => false,
    }
}

/// Values of one protocol as they are found.
struct Values(Protocol, Vec<Value>);

impl Values {
    fn new(protocol: Protocol) -> Self {
        Values(protocol, vec![])
    }

    /// Adds a number where there is one.
    fn push(&mut self, name: impl Into<String>, value: Option<f64>) {
        let value = value.filter(|value| !value.is_nan());
        self.1.extend(value.map(|value| Value { protocol: self.0, name: name.into(), value }));
    }

    fn all(self) -> Vec<Value> {
        self.1
    }
}

/// All values of a case, of whatever it has the data for; none of a case that failed.
pub fn values(case: &Case) -> Vec<Value> {
    if case.error.is_some() {
        return vec![];
    }
    // Of a case with an objective of its own the others would count the opposite of what was asked, or answers read under noise.
    if case.request.objective.is_some_and(|objective| objective != Objective::Raise) {
        return [localize::values, efficiency::values].into_iter().flat_map(|values| values(case)).collect();
    }
    let protocols = [
        counterfact::values,
        easyedit::values,
        mend::values,
        generate::values,
        completion::values,
        sentiment::values,
        mquake::values,
        ripple::values,
        localize::values,
        efficiency::values,
    ];
    protocols.into_iter().flat_map(|values| values(case)).collect()
}

/// A case as its numbers: all that means, intervals and tests over cases need of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The record's id.
    pub id: String,
    /// What is the same for two methods that were asked the same ([`Case::record`]).
    pub record: String,
    /// How many edits the model had taken.
    pub edits: usize,
    /// Whether the edit failed; then there are no numbers.
    pub failed: bool,
    /// Its values.
    pub values: Vec<Value>,
    /// Its answers to claims after the edit.
    pub labels: Labels,
}

/// The numbers of a case; with snippets also `reference_score` of the protocol `counterfact`.
pub fn measure(case: &Case, snippets: Option<&Snippets>) -> Measured {
    let failed = case.error.is_some();
    let mut values = values(case);
    if let Some(value) = snippets.filter(|_| !failed).and_then(|snippets| reference_score(case, snippets)) {
        values.push(Value { protocol: Protocol::Counterfact, name: "reference_score".into(), value });
    }
    let labels = if failed { Labels::default() } else { Labels::from_rows(&case.rows, Side::After) };
    Measured { id: case.id.clone(), record: case.record(), edits: case.edits, failed, values, labels }
}

/// The numbers of many cases, in their order.
pub fn measure_all(cases: &[Case], snippets: Option<&Snippets>) -> Vec<Measured> {
    cases.par_iter().map(|case| measure(case, snippets)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files() {
        for protocol in Protocol::ALL {
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.name());
        }
    }

    #[test]
    fn a_class_is_described_by_what_stands_before_it() {
        assert_eq!(about(Protocol::Mend, "drawdown/near").better, Better::Lower);
        assert_eq!(about(Protocol::Efficiency, "seconds/other").unit, Unit::Seconds);
        // Making an edit and looking at it are two things.
        let seconds = ["edit", "evaluation"].map(|phase| about(Protocol::Efficiency, &format!("seconds/{phase}")).what);
        assert!(seconds[0].contains("making the edit") && seconds[1].contains("asking"), "{seconds:?}");
        assert_eq!(about(Protocol::Mend, "nothing"), About { better: Better::Neither, unit: Unit::Number, what: "" });
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(place(row.0, row.1), index);
        }
    }
}
