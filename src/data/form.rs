//! The forms a file of records can have, told apart by their keys, and what their loaders share.

use super::json::{Json, Object};
use super::problem::{Problem, quoted};
use super::record::EditRecord;
use super::unicode::find_all;
use super::{convsent, counterfact, fever, knowedit, own, vitaminc, zsre};

/// What every loader says of a missing target or prompt.
pub(super) const NEEDS_TARGET: &str = "every record needs a target";
pub(super) const NEEDS_PROMPT: &str = "every record needs a prompt";
pub(super) const NEEDS_SUBJECT: &str = "every record of this form needs a subject";
pub(super) const NEEDS_PROBE_PROMPT: &str = "every probe needs a prompt";

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    CounterFact,
    CounterFactFlat,
    ZsreMend,
    ZsreKe,
    KnowEdit,
    VitaminC,
    Fever,
    ConvSent,
    Own,
}

impl Form {
    const ALL: [Form; 9] = [
        Form::Own,
        Form::CounterFact,
        Form::CounterFactFlat,
        Form::ZsreMend,
        Form::ZsreKe,
        Form::KnowEdit,
        Form::VitaminC,
        Form::Fever,
        Form::ConvSent,
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
            Form::KnowEdit => "KnowEdit (subject, prompt, target_new, ground_truth, ...)",
            Form::VitaminC => "VitaminC (claim, evidence, label, ...)",
            Form::Fever => "FEVER as KE has it (input, output with SUPPORTS or REFUTES, ...)",
            Form::ConvSent => "ConvSent (ent, pos, neg)",
            Form::Own => "emend's own (prompt, target_new, ...)",
        }
    }

    /// Every form on one line.
    pub fn list() -> String {
        Self::ALL.map(Self::name).join("; ")
    }

    /// The form that a record's keys tell, and whether it can be no other.
    pub fn detect(record: &Object) -> Option<(Form, Sure)> {
        let any = |keys: &[&str]| keys.iter().any(|key| record.get(key).is_some());
        if any(&["requested_rewrite"]) {
            Some((Form::CounterFact, Sure::Yes))
        } else if any(&["src"]) {
            Some((Form::ZsreMend, Sure::Yes))
        } else if any(&["claim"]) && any(&["evidence", "label"]) {
            Some((Form::VitaminC, Sure::Yes))
        } else if any(&["ent"]) && any(&["pos", "neg"]) {
            Some((Form::ConvSent, Sure::Yes))
        } else if any(&["input"]) && fever::has_label(record) {
            Some((Form::Fever, Sure::Yes))
        } else if any(&["input"]) && any(&["alternatives", "filtered_rephrases", "output"]) {
            Some((Form::ZsreKe, Sure::Yes))
        } else if any(&["locality_prompt", "locality_ground_truth"]) {
            Some((Form::CounterFactFlat, Sure::Yes))
        } else if any(own::MARKS) {
            Some((Form::Own, Sure::Yes))
        } else if any(&["ground_truth", "rephrase_prompt", "cond"]) || has_ground_truths(record) {
            Some((Form::KnowEdit, Sure::No))
        } else if own::resembles(record) {
            Some((Form::Own, Sure::No))
        } else {
            None
        }
    }

    /// Reads a record as the edits it holds: none in a few of published files, several in some forms.
    pub fn read(self, record: Object, id: String) -> Result<Vec<EditRecord>, Problem> {
        let one = |record| vec![record];
        match self {
            Form::CounterFact => counterfact::read(record, id).map(one),
            Form::CounterFactFlat => counterfact::read_flat(record, id).map(one),
            Form::ZsreMend => zsre::read_mend(record, id).map(Vec::from_iter),
            Form::ZsreKe => zsre::read_ke(record, id).map(Vec::from_iter),
            Form::KnowEdit => knowedit::read(record, id).map(one),
            Form::VitaminC => vitaminc::read(record, id).map(one),
            Form::Fever => fever::read(record, id).map(one),
            Form::ConvSent => convsent::read(record, &id),
            Form::Own => own::read(record, id).map(one),
        }
    }
}

/// Whether a record's keys belong to one form alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sure {
    Yes,
    No,
}

/// KnowEdit's probes answer with `ground_truth`, ours with `target`; some of its files differ from ours in nothing else.
fn has_ground_truths(record: &Object) -> bool {
    let probe_has = |probe: &Json| matches!(probe, Json::Object(probe) if probe.get("ground_truth").is_some());
    let class_has = |class: &Json| matches!(class, Json::List(probes) if probes.iter().any(probe_has));
    ["locality", "portability"].iter().filter_map(|key| record.get(key)).any(|classes| match classes {
        Json::Object(classes) => classes.values().any(class_has),
        other => class_has(other),
    })
}

/// An error unless the subject occurs in the prompt, however its letters are composed.
pub(super) fn check_subject(key: &str, prompt: &str, subject: &str) -> Result<(), Problem> {
    if !find_all(prompt, subject).is_empty() {
        return Ok(());
    }
    let problem = format!(
        "does not contain the subject: {} is not in {}; write the subject in the prompt letter for letter",
        quoted(subject),
        quoted(prompt)
    );
    Err(Problem::new(problem).within(key))
}

/// A template with the subject in the place of its one `{}`.
pub(super) fn fill(key: &str, template: &str, subject: &str) -> Result<String, Problem> {
    let holds = match template.matches("{}").count() {
        0 => "holds no {}".to_owned(),
        1 => return Ok(template.replacen("{}", subject, 1)),
        count => format!("holds {{}} {count} times"),
    };
    let problem = format!("{holds}: {}; one {{}} must stand where the subject belongs", quoted(template));
    Err(Problem::new(problem).within(key))
}
