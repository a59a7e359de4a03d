//! VitaminC: claims, each with a sentence of evidence that supports it, refutes it or says nothing of it.

use std::collections::HashMap;

use super::claim::{question, verdict};
use super::json::{Object, answer, is_blank};
use super::problem::{Problem, quoted};
use super::record::{EditRecord, Probe};

/// Further claims that the evidence decides.
const CLAIM: &str = "claim";
/// Claims that the evidence leaves as they were.
const NOT_ENOUGH_INFO: &str = "not enough info";

/// Reads a line: the evidence is the descriptor, the claim a question.
///
/// A claim that the evidence does not decide makes a record without an answer, whose one probe is that claim; `merge` joins
/// it to the others of its evidence. The file's `case_id` is that of several lines, its `unique_id` of one.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let id = record.text_or_blank("unique_id")?.map_or(id, answer);
    let descriptor = Some(answer(record.text("evidence", "every record needs evidence")?));
    let prompt = question(&record.text("claim", "every record needs a claim")?);
    let label = record.text("label", "every record needs a label")?;
    let holds = match label.trim() {
        "SUPPORTS" => true,
        "REFUTES" => false,
        "NOT ENOUGH INFO" => {
            let locality = [(NOT_ENOUGH_INFO.to_owned(), vec![Probe::new(prompt, None)])].into();
            return Ok(EditRecord { id, descriptor, locality, ..EditRecord::default() });
        }
        other => {
            let problem = format!("is {}; it should be SUPPORTS, REFUTES or NOT ENOUGH INFO", quoted(other));
            return Err(Problem::new(problem).within("label"));
        }
    };
    let (target_new, target_true) = (verdict(holds), Some(verdict(!holds)));
    Ok(EditRecord { id, descriptor, prompt, target_new, target_true, ..EditRecord::default() })
}

/// One record for each evidence, in the order of the file. Those that decide no claim have no `target_new`.
pub(super) fn merge(lines: Vec<EditRecord>) -> Vec<EditRecord> {
    let mut places: HashMap<Option<String>, usize> = HashMap::new();
    let mut records: Vec<EditRecord> = vec![];
    for line in lines {
        match places.get(&line.descriptor) {
            Some(&place) => join(&mut records[place], line),
            None => {
                places.insert(line.descriptor.clone(), records.len());
                records.push(line);
            }
        }
    }
    records
}

/// Joins a line to the record of its evidence. The first claim that is decided gives prompt, answer and id.
fn join(record: &mut EditRecord, mut line: EditRecord) {
    for (class, probes) in std::mem::take(&mut line.locality) {
        record.locality.entry(class).or_default().extend(probes);
    }
    if is_blank(&line.target_new) {
        return;
    }
    if is_blank(&record.target_new) {
        *record = EditRecord { locality: std::mem::take(&mut record.locality), ..line };
    } else if record.prompt != line.prompt {
        let probe = Probe { rival: line.target_true, ..Probe::new(line.prompt, Some(line.target_new)) };
        record.portability.entry(CLAIM.to_owned()).or_default().push(probe);
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load, load_one, problem};

    fn line(claim: &str, evidence: &str, label: &str) -> String {
        format!(
            r#"{{"unique_id": "u-{claim}", "case_id": "c1", "page": "Orrin", "claim": "{claim} ", "evidence": "{evidence}",
                "label": "{label}"}}"#
        )
    }

    #[test]
    fn a_claim_becomes_a_question() {
        let record = load_one(&line("Orrin is wet.", " Orrin is a lake. ", "SUPPORTS"));
        assert_eq!(record.id, "u-Orrin is wet.");
        assert_eq!(record.descriptor.as_deref(), Some("Orrin is a lake."));
        assert_eq!(record.prompt, "True or false: Orrin is wet. Answer:");
        assert_eq!((record.target_new.as_str(), record.target_true.as_deref()), ("True", Some("False")));
        let record = load_one(r#"{"claim": "Orrin is dry.", "evidence": "Orrin is a lake.", "label": "REFUTES"}"#);
        assert_eq!((record.target_new.as_str(), record.target_true.as_deref()), ("False", Some("True")));
        assert_eq!(record.id, "0");
    }

    #[test]
    fn lines_of_one_evidence_are_one_record_wherever_they_stand() {
        let (lake, hill) = ("Orrin is a lake.", "Vell is a hill.");
        let lines = [
            line("A", lake, "NOT ENOUGH INFO"),
            line("B", hill, "REFUTES"),
            line("C", lake, "REFUTES"),
            line("D", lake, "SUPPORTS"),
            line("C", lake, "REFUTES"),
            line("E", hill, "NOT ENOUGH INFO"),
            line("F", "Ost.", "NOT ENOUGH INFO"),
        ];
        let records = load(&lines.join("\n")).unwrap();
        assert_eq!(load(&format!("[{}]", lines.join(","))).unwrap(), records);
        let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["u-C", "u-B"]);
        let [lake, hill] = &records[..] else { panic!() };
        assert_eq!((lake.prompt.as_str(), lake.target_new.as_str()), ("True or false: C Answer:", "False"));
        let claims = &lake.portability["claim"];
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].prompt, "True or false: D Answer:");
        assert_eq!((claims[0].target.as_deref(), claims[0].rival.as_deref()), (Some("True"), Some("False")));
        assert_eq!(lake.locality["not enough info"][0].prompt, "True or false: A Answer:");
        assert_eq!(hill.locality["not enough info"][0].target, None);
        assert!(hill.portability.is_empty());
    }

    #[test]
    fn a_file_that_decides_nothing_holds_no_records() {
        assert!(problem(&line("A", "Orrin is a lake.", "NOT ENOUGH INFO")).starts_with("holds no records; "));
    }

    #[test]
    fn errors() {
        let good = line("A", "B", "SUPPORTS");
        let wrong = |from: &str, to: &str| problem(&good.replace(from, to));
        assert_eq!(
            wrong("SUPPORTS", "MAYBE"),
            r#"record 0 (id c1): "label" is "MAYBE"; it should be SUPPORTS, REFUTES or NOT ENOUGH INFO"#
        );
        assert_eq!(
            wrong(r#""evidence": "B""#, r#""evidence": """#),
            r#"record 0 (id c1): "evidence" is empty; every record needs evidence"#
        );
        assert_eq!(
            wrong(r#""claim": "A ""#, r#""claim": 3"#),
            r#"record 0 (id c1): "claim" is a number; it should be a string"#
        );
        assert_eq!(
            wrong(r#""label""#, r#""lable""#),
            r#"record 0 (id c1): "label" is missing; every record needs a label"#
        );
    }
}
