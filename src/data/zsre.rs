//! zsRE, in the form of MEND and EasyEdit and in KE's.

use std::collections::BTreeMap;

use super::fields::{NEEDS_PROMPT, NEEDS_SUBJECT, NEEDS_TARGET, check_subject};
use super::json::{Json, Object, answer, each, is_blank, prompt};
use super::problem::Problem;
use super::record::{EditRecord, Probe};

/// The lead that marks a question of Natural Questions in the published file.
const NQ_LEAD: &str = "nq question: ";
const NQ: &str = "nq";

/// Reads a record of MEND's and EasyEdit's file.
///
/// The new target is `alt`, which is false, and the true one `answers[0]`. ROME's loader reads the same file another
/// way: there the new target is `answers[0]`, so that an edit teaches the truth, and `alt` is not used.
///
/// Locality questions stay as the file has them, lead included, as MEND and EasyEdit ask them (ROME adds a question mark): published figures
/// are of these. [`plain_questions`] makes questions of them as a person would ask.
///
/// The published files have a few records whose `alt` is empty. There is nothing to edit in them: `None`.
pub(super) fn read_mend(mut record: Object, id: String) -> Result<Option<EditRecord>, Problem> {
    if matches!(record.get("alt"), Some(Json::Text(alt)) if is_blank(alt)) {
        return Ok(None);
    }
    let text = prompt(record.text("src", NEEDS_PROMPT)?);
    let subject = answer(record.text("subject", NEEDS_SUBJECT)?);
    check_subject("src", &text, &subject)?;
    let rephrase = record.text_or_blank("rephrase")?;
    let truth = record.texts("answers")?.into_iter().next();
    let mut locality = BTreeMap::new();
    if let Some(question) = record.text_or_blank("loc")? {
        let probe = Probe::new(prompt(question), record.text_or_blank("loc_ans")?.map(answer));
        locality.insert(NQ.to_owned(), vec![probe]);
    }
    Ok(Some(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("alt", NEEDS_TARGET)?),
        target_true: truth.map(answer),
        subject: Some(subject),
        rephrases: rephrase.map(prompt).into_iter().collect(),
        locality,
        ..EditRecord::default()
    }))
}

/// Makes plain questions of zsRE's locality prompts: without their lead, and with the question mark that the file leaves out. Prompts
/// that have no such lead stay.
pub fn plain_questions(records: &mut [EditRecord]) {
    for probe in records.iter_mut().filter_map(|record| record.locality.get_mut(NQ)).flatten() {
        if let Some(question) = probe.prompt.strip_prefix(NQ_LEAD) {
            let question = question.trim();
            probe.prompt = if question.ends_with('?') { question.to_owned() } else { format!("{question}?") };
        }
    }
}

/// Reads a record of KE's file, one object a line. It names no subject and has no locality prompts.
///
/// The new target is the first of `alternatives` (KE and MEND draw one at random), the true one the first answer in
/// `output`. A record without an alternative holds nothing to edit: `None`.
pub(super) fn read_ke(mut record: Object, id: String) -> Result<Option<EditRecord>, Problem> {
    const ALTERNATIVES: &str = "alternatives";
    record_has(&record, ALTERNATIVES)?;
    let Some(target_new) = record.texts(ALTERNATIVES)?.into_iter().next() else {
        return Ok(None);
    };
    Ok(Some(EditRecord {
        id,
        prompt: prompt(record.text("input", NEEDS_PROMPT)?),
        target_new: answer(target_new),
        target_true: first_answer(record.take("output")).map_err(|problem| problem.within("output"))?,
        rephrases: record.prompts("filtered_rephrases")?,
        ..EditRecord::default()
    }))
}

fn record_has(record: &Object, key: &str) -> Result<(), Problem> {
    match record.get(key) {
        Some(_) => Ok(()),
        None => Err(Problem::new(format!("is missing; {NEEDS_TARGET}")).within(key)),
    }
}

/// The first answer among outputs, some of which only say where an answer is found.
pub(super) fn first_answer(output: Option<Json>) -> Result<Option<String>, Problem> {
    let Some(output) = output else {
        return Ok(None);
    };
    let answers = each(output.list()?, |item| item.object()?.text_or_blank("answer"))?;
    Ok(answers.into_iter().flatten().next().map(answer))
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load, load_one, problem};
    use super::plain_questions;

    const MEND: &str = r#"{"subject": "Lake Orrin", "src": "Which river leaves Lake Orrin?", "pred": "Tam",
        "rephrase": "What is the river out of Lake Orrin?", "alt": " Vell", "answers": ["Tamm", "Tam"],
        "loc": "nq question: who wrote the blue book", "loc_ans": "Ann Oak",
        "cond": "Tam >> Vell || Which river leaves Lake Orrin?"}"#;

    const KE: &str = r#"{"id": "q-9", "input": "Which river leaves Lake Orrin?", "prediction": "Tamm",
        "alternatives": ["Vell", "Ost"], "filtered_rephrases": ["What river leaves Lake Orrin? "],
        "output": [{"provenance": [{"title": "x"}]}, {"answer": "Tamm"}]}"#;

    #[test]
    fn mend_records() {
        let record = load_one(MEND);
        assert_eq!(record.id, "0");
        assert_eq!(record.target_new, "Vell");
        assert_eq!(record.target_true.as_deref(), Some("Tamm"));
        assert_eq!(record.rephrases, ["What is the river out of Lake Orrin?"]);
        assert_eq!(record.locality["nq"][0].prompt, "nq question: who wrote the blue book");
        assert_eq!(record.locality["nq"][0].target.as_deref(), Some("Ann Oak"));
    }

    #[test]
    fn questions_are_plain_where_that_is_asked_for() {
        // A question mark is not doubled, and what has no lead is left alone.
        let others = [MEND.to_owned(), MEND.replace("blue book", "blue book?"), MEND.replace("nq question: ", "")];
        let mut records: Vec<_> = others.iter().map(|text| load_one(text)).collect();
        plain_questions(&mut records);
        let prompts: Vec<&str> = records.iter().map(|record| record.locality["nq"][0].prompt.as_str()).collect();
        assert_eq!(prompts, ["who wrote the blue book?", "who wrote the blue book?", "who wrote the blue book"]);
    }

    #[test]
    fn records_without_a_new_answer_are_left_out() {
        let empty = MEND.replace(" Vell", "");
        let records = load(&format!("[{MEND}, {empty}, {MEND}]")).unwrap();
        let ids: Vec<_> = records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["0", "2"]);
        assert!(problem(&empty).contains("holds no records"));
        assert!(problem(&MEND.replace("\"alt\"", "\"alto\"")).contains(r#""alt" is missing"#));
    }

    #[test]
    fn ke_records() {
        let text = format!("{}\n{}", KE.replace('\n', " "), KE.replace('\n', " "));
        let records = load(&text).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].id, "q-9");
        assert_eq!(records[0].target_new, "Vell");
        assert_eq!(records[0].target_true.as_deref(), Some("Tamm"));
        assert_eq!(records[0].rephrases, ["What river leaves Lake Orrin?"]);
        assert_eq!(records[0].subject, None);
        assert!(problem(&KE.replace("alternatives", "others")).contains(r#""alternatives" is missing"#));
        assert!(problem(&KE.replace(r#"[{"prov"#, r#"[1, {"prov"#)).contains(r#""output[0]" is a number"#));
    }

    #[test]
    fn the_subject_must_be_in_the_question() {
        let error = problem(&MEND.replace(r#""subject": "Lake Orrin""#, r#""subject": "Lake Orin""#));
        assert!(error.contains(r#""src" does not contain the subject: "Lake Orin""#), "{error}");
    }
}
