//! FEVER, in KE's form: claims with a label. An edit turns the label round.

use super::claim::{question, verdict};
use super::fields::NEEDS_PROMPT;
use super::json::{Json, Object};
use super::problem::{Problem, quoted};
use super::record::EditRecord;
use super::zsre::first_answer;

const OUTPUT: &str = "output";

/// Whether a claim with this label holds.
fn holds(label: &str) -> Option<bool> {
    match label.trim() {
        "SUPPORTS" => Some(true),
        "REFUTES" => Some(false),
        _ => None,
    }
}

/// FEVER's third label, which an edit cannot turn round.
const OPEN: &str = "NOT ENOUGH INFO";

/// Whether an output of the record is a label, which tells it from KE's zsRE.
pub(super) fn has_label(record: &Object) -> bool {
    let is_label = |item: &Json| {
        let Json::Object(item) = item else { return false };
        matches!(item.get("answer"), Some(Json::Text(label)) if holds(label).is_some() || label.trim() == OPEN)
    };
    matches!(record.get(OUTPUT), Some(Json::List(items)) if items.iter().any(is_label))
}

/// Reads a record. `alternatives`, which KE's files have for all their tasks, can only say what the label is not already.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let claim = record.text("input", NEEDS_PROMPT)?.trim().to_owned();
    let output = record.required(OUTPUT, "every record needs a label")?;
    let label = first_answer(Some(output)).map_err(|problem| problem.within(OUTPUT))?;
    let Some(holds) = label.as_deref().and_then(holds) else {
        let found =
            label.as_ref().map_or_else(|| "holds no answer".to_owned(), |label| format!("is {}", quoted(label)));
        let what = if label.is_some_and(|label| label.trim() == OPEN) {
            "such a claim has nothing to turn round; leave it out"
        } else {
            "it should be SUPPORTS or REFUTES"
        };
        return Err(Problem::new(format!("{found}; {what}")).within(OUTPUT));
    };
    Ok(EditRecord {
        id,
        prompt: question(&claim),
        target_new: verdict(!holds),
        target_true: Some(verdict(holds)),
        descriptor: Some(format!("{claim} {}", verdict(!holds))),
        rephrases: record.texts("filtered_rephrases")?.iter().map(|claim| question(claim)).collect(),
        ..EditRecord::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load, load_one, problem};

    const FEVER: &str = r#"{"id": 75, "input": "Orrin is a lake. ", "alternatives": ["REFUTES"],
        "filtered_rephrases": [" Orrin's a lake."], "output": [{"provenance": []}, {"answer": "SUPPORTS"}]}"#;

    #[test]
    fn an_edit_turns_the_label_round() {
        let record = load_one(FEVER);
        assert_eq!(record.id, "75");
        assert_eq!(record.descriptor.as_deref(), Some("Orrin is a lake. False"));
        assert_eq!(record.prompt, "True or false: Orrin is a lake. Answer:");
        assert_eq!((record.target_new.as_str(), record.target_true.as_deref()), ("False", Some("True")));
        assert_eq!(record.rephrases, ["True or false: Orrin's a lake. Answer:"]);
        assert_eq!(record.subject, None);
        let record = load_one(r#"{"input": "Orrin is dry.", "output": [{"answer": "REFUTES"}]}"#);
        assert_eq!(record.descriptor.as_deref(), Some("Orrin is dry. True"));
        assert_eq!((record.target_new.as_str(), record.target_true.as_deref()), ("True", Some("False")));
        assert!(record.rephrases.is_empty());
    }

    #[test]
    fn errors() {
        assert_eq!(
            problem(&FEVER.replace("Orrin is a lake. ", " ")),
            r#"record 0 (id 75): "input" is empty; every record needs a prompt"#
        );
        assert_eq!(
            problem(&FEVER.replace(r#"{"provenance": []}"#, r#"{"answer": "PERHAPS"}"#)),
            r#"record 0 (id 75): "output" is "PERHAPS"; it should be SUPPORTS or REFUTES"#
        );
        assert_eq!(
            problem(&FEVER.replace("SUPPORTS", "NOT ENOUGH INFO")),
            r#"record 0 (id 75): "output" is "NOT ENOUGH INFO"; such a claim has nothing to turn round; leave it out"#
        );
        assert_eq!(
            problem(&FEVER.replace(r#"{"provenance": []}"#, "7")),
            r#"record 0 (id 75): "output[0]" is a number; it should be an object"#
        );
        assert_eq!(
            problem(&FEVER.replace(r#"[" Orrin's a lake."]"#, "[1]")),
            r#"record 0 (id 75): "filtered_rephrases[0]" is a number; it should be a string"#
        );
    }

    #[test]
    fn questions_of_ke_are_no_claims() {
        let zsre = r#"{"input": "Which river?", "alternatives": ["Vell"], "output": [{"answer": "Tamm"}]}"#;
        let error = load(&format!("{}\n{zsre}", FEVER.replace('\n', " "))).unwrap_err().to_string();
        assert!(error.contains("record 1: has the form zsRE as KE has it"), "{error}");
        assert!(error.contains("but the first record has the form FEVER as KE has it"), "{error}");
        assert_eq!(load_one(zsre).target_new, "Vell");
    }
}
