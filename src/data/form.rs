//! The forms a file of records can have, told apart by their keys.

use super::fields::REWRITE;
use super::json::{Json, Object};
use super::problem::Problem;
use super::record::EditRecord;
use super::{
    completions, convsent, counterfact, fever, knowedit, known, multi_hop, own, questions, ripple, vitaminc, zsre,
};

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// emend's own.
    Own,
    /// ROME's and MEMIT's file.
    CounterFact,
    /// CounterFact as EasyEdit has it.
    CounterFactFlat,
    /// zsRE as MEND and EasyEdit have it.
    ZsreMend,
    /// zsRE as KE has it.
    ZsreKe,
    /// KnowEdit, and EasyEdit's own records.
    KnowEdit,
    /// What EasyEdit writes of its edits.
    EasyEditResult,
    /// MQuAKE: cases of several edits.
    Mquake,
    /// RippleEdits: tests with conditions.
    Ripple,
    /// QAEdit.
    QaEdit,
    /// FastEdit.
    FastEdit,
    /// WikiBigEdit.
    WikiBigEdit,
    /// UnKE: answers of several sentences.
    Unke,
    /// AKEW: edits told by a text.
    Akew,
    /// Prompts with lists of facts.
    Facts,
    /// VitaminC.
    VitaminC,
    /// FEVER as KE has it.
    Fever,
    /// ConvSent.
    ConvSent,
    /// Passages with completions.
    Completions,
    /// Facts to trace, as ROME has them.
    Known,
}

impl Form {
    const ALL: [Form; 20] = [
        Form::Own,
        Form::CounterFact,
        Form::CounterFactFlat,
        Form::ZsreMend,
        Form::ZsreKe,
        Form::KnowEdit,
        Form::EasyEditResult,
        Form::Mquake,
        Form::Ripple,
        Form::QaEdit,
        Form::FastEdit,
        Form::WikiBigEdit,
        Form::Unke,
        Form::Akew,
        Form::Facts,
        Form::VitaminC,
        Form::Fever,
        Form::ConvSent,
        Form::Completions,
        Form::Known,
    ];

    /// The form's name and the keys it is known by, for errors.
    pub fn name(self) -> &'static str {
        match self {
            Form::CounterFact => "CounterFact (requested_rewrite, ...)",
            Form::CounterFactFlat => {
                "CounterFact as EasyEdit has it (prompt, target_new, subject, locality_prompt, ...)"
            }
            Form::ZsreMend => "zsRE as MEND has it (subject, src, alt, answers, ...)",
            Form::ZsreKe => "zsRE as KE has it (input, alternatives, output, ...)",
            Form::KnowEdit => "KnowEdit or EasyEdit (subject, prompt, target_new, ground_truth, ...)",
            Form::EasyEditResult => "EasyEdit's results (requested_rewrite with a string as target_new)",
            Form::Mquake => "MQuAKE (requested_rewrite, a list; questions, new_answer, ...)",
            Form::Ripple => "RippleEdits (edit, Relation_Specificity, Compositionality_I, ...)",
            Form::QaEdit => "QAEdit (prompt, target, rephrase, locality with loc and loc_ans)",
            Form::FastEdit => "FastEdit (prompt with {}, subject, target, queries)",
            Form::WikiBigEdit => "WikiBigEdit (subject, update, ans, ...)",
            Form::Unke => "UnKE (question, answer, para_question, sub_question, sub_answer)",
            Form::Akew => "AKEW (requested_rewrite with fact_new_uns)",
            Form::Facts => "lists of facts (prompt or question, facts)",
            Form::VitaminC => "VitaminC (claim, evidence, label, ...)",
            Form::Fever => "FEVER as KE has it (input, output with SUPPORTS or REFUTES, ...)",
            Form::ConvSent => "ConvSent (ent, pos, neg)",
            Form::Completions => "completions of passages (original, completions, n_tokens)",
            Form::Known => "facts to trace (prompt, subject, attribute, ...)",
            Form::Own => "emend's own (prompt, target_new, ...)",
        }
    }

    /// Every form on one line.
    pub(super) fn list() -> String {
        Self::ALL.map(Self::name).join("; ")
    }

    /// The form that a record's keys tell, and whether it can be no other.
    pub(super) fn detect(record: &Object) -> Option<(Form, Sure)> {
        let any = |keys: &[&str]| keys.iter().any(|key| record.get(key).is_some());
        let all = |keys: &[&str]| keys.iter().all(|key| record.get(key).is_some());
        if let Some(rewrite) = record.get(REWRITE) {
            Some((rewritten(rewrite), Sure::Yes))
        } else if any(&["src"]) {
            Some((Form::ZsreMend, Sure::Yes))
        } else if any(&["claim"]) && any(&["evidence", "label"]) {
            Some((Form::VitaminC, Sure::Yes))
        } else if all(&["prompt", "subject", "attribute"]) && !any(&["target_new"]) {
            Some((Form::Known, Sure::Yes))
        } else if any(&["completions"]) && any(&["original", "n_tokens"]) {
            Some((Form::Completions, Sure::Yes))
        } else if any(&["ent"]) && any(&["pos", "neg"]) {
            Some((Form::ConvSent, Sure::Yes))
        } else if any(&["input"]) && fever::has_label(record) {
            Some((Form::Fever, Sure::Yes))
        } else if any(&["input"]) && any(&["alternatives", "filtered_rephrases", "output"]) {
            Some((Form::ZsreKe, Sure::Yes))
        } else if any(&["edit"]) && (any(&["example_type", ripple::MISSPELT]) || any(&ripple::CLASSES)) {
            Some((Form::Ripple, Sure::Yes))
        } else if all(&["update", "ans"]) {
            Some((Form::WikiBigEdit, Sure::Yes))
        } else if all(&["question", "answer"]) && any(&["para_question", "sub_question"]) {
            Some((Form::Unke, Sure::Yes))
        } else if any(&["facts"]) && any(&["prompt", "question"]) && !any(&["target_new"]) {
            Some((Form::Facts, Sure::Yes))
        } else if any(&["queries"]) && any(&["prompt"]) {
            Some((Form::FastEdit, Sure::Yes))
        } else if all(&["prompt", "target"]) && (any(&["rephrase", "source"]) || has_probes(record, "loc")) {
            Some((Form::QaEdit, Sure::Yes))
        } else if any(&["locality_prompt", "locality_ground_truth"]) {
            Some((Form::CounterFactFlat, Sure::Yes))
        } else if any(own::MARKS) {
            Some((Form::Own, Sure::Yes))
        } else if any(&["ground_truth", "rephrase_prompt", "cond"]) || has_probes(record, "ground_truth") {
            Some((Form::KnowEdit, Sure::No))
        } else if own::resembles(record) {
            Some((Form::Own, Sure::No))
        } else {
            None
        }
    }

    /// Reads a record as the edits it holds: none in a few of published files, several in some forms.
    pub(super) fn read(self, record: Object, id: String) -> Result<Vec<EditRecord>, Problem> {
        let one = |record| vec![record];
        match self {
            Form::CounterFact => counterfact::read(record, id).map(one),
            Form::CounterFactFlat => counterfact::read_flat(record, id).map(one),
            Form::ZsreMend => zsre::read_mend(record, id).map(Vec::from_iter),
            Form::ZsreKe => zsre::read_ke(record, id).map(Vec::from_iter),
            Form::KnowEdit => knowedit::read(record, id).map(one),
            Form::EasyEditResult => knowedit::read_result(record, id).map(one),
            Form::Mquake => multi_hop::read(record, id).map(one),
            Form::Ripple => ripple::read(record, id).map(one),
            Form::QaEdit => questions::qaedit(record, id).map(one),
            Form::FastEdit => questions::fastedit(record, id).map(one),
            Form::WikiBigEdit => questions::wikibigedit(record, id).map(one),
            Form::Unke => questions::unke(record, id).map(one),
            Form::Akew => questions::akew(record, id).map(one),
            Form::Facts => questions::facts(record, id).map(one),
            Form::VitaminC => vitaminc::read(record, id).map(one),
            Form::Fever => fever::read(record, id).map(one),
            Form::ConvSent => convsent::read(record, &id),
            Form::Completions => completions::read(record),
            Form::Known => known::read(record, id).map(one),
            Form::Own => own::read(record, id).map(one),
        }
    }

    /// The keys that records of a published form have, whether they are read or not. Ours has a check of its own.
    #[rustfmt::skip]
    fn keys(self) -> &'static [&'static str] {
        match self {
            Form::CounterFact => &["requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts", "pararel_idx"],
            Form::CounterFactFlat => &["prompt", "target_new", "subject", "ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth"],
            Form::ZsreMend => &["subject", "src", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond", "portability"],
            Form::ZsreKe => &["input", "prediction", "alternatives", "filtered_rephrases", "output", "logit", "rephrases"],
            Form::KnowEdit => &["subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", "rephrase", "cond", "locality", "portability"],
            Form::EasyEditResult => &["requested_rewrite", "pre", "post", "time"],
            Form::Mquake => &["requested_rewrite", "questions", "answer", "answer_alias", "answer_extended", "new_answer", "new_answer_alias", "single_hops", "new_single_hops", "orig"],
            Form::Ripple => &["edit", "example_type", ripple::MISSPELT, ripple::CLASSES[0], ripple::CLASSES[1], ripple::CLASSES[2], ripple::CLASSES[3], ripple::CLASSES[4], ripple::CLASSES[5]],
            Form::QaEdit => &["source", "prompt", "target", "subject", "rephrase", "locality"],
            Form::FastEdit => &["prompt", "subject", "target", "queries"],
            Form::WikiBigEdit => &["tag", "subject", "relation", "object", "update", "ans", "rephrase", "personas", "mhop", "mhop_ans", "loc", "loc_ans"],
            Form::Unke => &["question", "answer", "para_question", "para_answer", "sub_question", "sub_answer"],
            Form::Akew => &["requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts", "pararel_idx", "questions", "answer", "answer_alias", "new_answer", "new_answer_alias", "single_hops", "new_single_hops", "orig"],
            Form::Facts => &["prompt", "question", "facts", "subject"],
            Form::VitaminC => &["unique_id", "case_id", "wiki_revision_id", "claim", "evidence", "label", "page", "revision_type", "FEVER_id"],
            Form::Fever => &["input", "prediction", "alternatives", "filtered_rephrases", "output", "logit", "rephrases"],
            Form::ConvSent => &["ent", "pos", "neg"],
            Form::Completions => &["original", "completions", "n_tokens"],
            Form::Known => &["known_id", "subject", "attribute", "template", "prediction", "prompt", "relation_id"],
            Form::Own => &[],
        }
    }

    /// The keys of a record that its form does not have: nothing needed is in them.
    pub(super) fn strange<'r>(self, record: &'r Object) -> impl Iterator<Item = &'r str> {
        let known = self.keys();
        record.keys().filter(move |key| self != Form::Own && !known.contains(key) && !matches!(*key, "id" | "case_id"))
    }
}

/// The form that an edit tells which stands in an object of its own.
fn rewritten(rewrite: &Json) -> Form {
    let of_one = |one: &Object| match one.get("target_new") {
        _ if one.get("fact_new_uns").is_some() => Form::Akew,
        Some(Json::Text(_)) => Form::EasyEditResult,
        _ => Form::CounterFact,
    };
    match rewrite {
        Json::Object(one) => of_one(one),
        Json::List(items) => match items.first() {
            Some(Json::Object(first)) if of_one(first) == Form::Akew => Form::Akew,
            _ => Form::Mquake,
        },
        _ => Form::CounterFact,
    }
}

/// Whether a record's keys belong to one form alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sure {
    Yes,
    No,
}

/// Whether a probe of a record has a key. KnowEdit's probes answer with `ground_truth`, ours with `target`; some of its files differ from ours
/// in nothing else.
fn has_probes(record: &Object, key: &str) -> bool {
    let probe_has = |probe: &Json| matches!(probe, Json::Object(probe) if probe.get(key).is_some());
    let class_has = |class: &Json| match class {
        Json::List(probes) => probes.iter().any(probe_has),
        class => probe_has(class),
    };
    ["locality", "portability"].iter().filter_map(|class| record.get(class)).any(|classes| match classes {
        Json::Object(classes) => classes.get(key).is_some() || classes.values().any(class_has),
        other => class_has(other),
    })
}
