//! The facts of causal tracing, in ROME's form (`known_1000.json`): a prompt about a subject, and the true answer. Nothing is edited.

use super::fields::{NEEDS_PROMPT, check_subject};
use super::json::{Object, answer, prompt};
use super::problem::Problem;
use super::record::EditRecord;

/// Reads a record. Its template leaves off the prompt's end and is not used.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let asked = prompt(record.text("prompt", NEEDS_PROMPT)?);
    let known = answer(record.text("attribute", "every fact needs its answer")?);
    let subject = record.text("subject", "every fact is about something")?.into_owned();
    check_subject("subject", &asked, &subject)?;
    Ok(EditRecord {
        id,
        prompt: asked,
        target_new: known.clone(),
        target_true: Some(known),
        subject: Some(subject),
        relation: record.optional_text("relation_id")?.map(|relation| relation.into_owned()),
        ..EditRecord::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load_one, problem};

    const KNOWN: &str = r#"{"known_id": 4, "subject": "Orrin", "attribute": "Vell", "template": "{} lies", "prediction": " Vell, by the sea",
        "prompt": "Orrin lies in", "relation_id": "P1"}"#;

    #[test]
    fn a_fact_keeps_its_answer() {
        let record = load_one(KNOWN);
        assert_eq!((record.id.as_str(), record.prompt.as_str()), ("4", "Orrin lies in"));
        assert_eq!(record.target_true.as_deref(), Some("Vell"));
        assert_eq!(record.subject.as_deref(), Some("Orrin"));
        assert_eq!(record.relation.as_deref(), Some("P1"));
        assert!(record.changes_nothing());
    }

    #[test]
    fn errors() {
        assert_eq!(
            problem(&KNOWN.replace(r#""Vell", "template""#, r#"7, "template""#)),
            r#"record 0 (id 4): "attribute" is a number; it should be a string"#
        );
    }
}
