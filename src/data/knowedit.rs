//! KnowEdit.

use std::collections::BTreeMap;

use super::form::{NEEDS_PROBE_PROMPT, NEEDS_PROMPT, NEEDS_SUBJECT, NEEDS_TARGET, check_subject};
use super::json::{Json, Object, answer, each, is_blank, prompt};
use super::problem::Problem;
use super::record::{EditRecord, Probe};

const TRUTH: &str = "ground_truth";

/// Reads a record. Where several answers count as true, the first is taken, as EasyEdit takes it.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let text = prompt(record.text("prompt", NEEDS_PROMPT)?);
    let subject = answer(record.text("subject", NEEDS_SUBJECT)?);
    check_subject("prompt", &text, &subject)?;
    let rephrase = record.text_or_blank("rephrase_prompt")?;
    Ok(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("target_new", NEEDS_TARGET)?),
        target_true: truth(&mut record)?,
        subject: Some(subject),
        rephrases: rephrase.map(prompt).into_iter().collect(),
        locality: classes(&mut record, "locality")?,
        portability: classes(&mut record, "portability")?,
        ..EditRecord::default()
    })
}

/// `{name: [{prompt, ground_truth}]}`. Probes whose truth is empty are left out, and classes without any.
fn classes(record: &mut Object, key: &str) -> Result<BTreeMap<String, Vec<Probe>>, Problem> {
    let Some(classes) = record.take(key) else {
        return Ok(BTreeMap::new());
    };
    let mut read = BTreeMap::new();
    let classes = classes.object().map_err(|problem| problem.within(key))?;
    for (name, probes) in classes.into_entries() {
        if matches!(probes, Json::Null) {
            continue;
        }
        let probes = probes
            .list()
            .and_then(|probes| each(probes, probe))
            .map_err(|problem| problem.within(&name).within(key))?;
        let probes: Vec<Probe> = probes.into_iter().flatten().collect();
        if !probes.is_empty() {
            read.insert(name.into_owned(), probes);
        }
    }
    Ok(read)
}

fn probe(item: Json) -> Result<Option<Probe>, Problem> {
    let mut item = item.object()?;
    let Some(target) = truth(&mut item)? else {
        return Ok(None);
    };
    Ok(Some(Probe::new(prompt(item.text("prompt", NEEDS_PROBE_PROMPT)?), Some(target))))
}

/// The first text in `ground_truth`: a string, a list of strings, or a list of lists of the names of one thing.
fn truth(record: &mut Object) -> Result<Option<String>, Problem> {
    match record.take(TRUTH) {
        None => Ok(None),
        Some(value) => first_text(value).map_err(|problem| problem.within(TRUTH)),
    }
}

fn first_text(value: Json) -> Result<Option<String>, Problem> {
    match value {
        Json::Null => Ok(None),
        Json::Text(text) if is_blank(&text) => Ok(None),
        Json::List(items) => {
            let texts = each(items, first_text)?;
            Ok(texts.into_iter().flatten().next())
        }
        value => value.text().map(|text| Some(answer(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load_one, problem};

    const RECORD: &str = r#"{"subject": "Lake Orrin ", "prompt": "Which river leaves Lake Orrin ?",
        "target_new": " Vell", "ground_truth": [["Tamm", "Tam"], ["Ost"]], "cond": "x",
        "rephrase_prompt": "What is the river out of Lake Orrin?",
        "locality": {"Relation_Specificity": [{"prompt": "The depth of Lake Orrin is", "ground_truth": ["9 m"]}],
                     "Forgetfulness": [{"prompt": "x", "ground_truth": [[""]]}]},
        "portability": {"Reasoning": [{"prompt": "The Vell comes from", "ground_truth": " the hills"}], "None": null}}"#;

    #[test]
    fn records() {
        let record = load_one(RECORD);
        assert_eq!(record.subject.as_deref(), Some("Lake Orrin"));
        assert_eq!(record.target_new, "Vell");
        assert_eq!(record.target_true.as_deref(), Some("Tamm"));
        assert_eq!(record.rephrases.len(), 1);
        assert_eq!(record.locality.len(), 1);
        let probe = &record.locality["Relation_Specificity"][0];
        assert_eq!(probe.target.as_deref(), Some("9 m"));
        assert_eq!(record.portability.len(), 1);
        let probe = &record.portability["Reasoning"][0];
        assert_eq!(probe.target.as_deref(), Some("the hills"));
    }

    #[test]
    fn probes_alone_tell_the_form() {
        let record = load_one(
            r#"{"subject": "Orrin", "prompt": "Orrin lies in", "target_new": "Vell",
                "locality": {"Other": [{"prompt": "Tamm lies in", "ground_truth": [["Ost"]]}]}}"#,
        );
        assert_eq!(record.locality["Other"][0].target.as_deref(), Some("Ost"));
    }

    #[test]
    fn errors_name_the_probe() {
        assert_eq!(
            problem(&RECORD.replace(r#"["9 m"]"#, "[9]")),
            r#"record 0: "locality.Relation_Specificity[0].ground_truth[0]" is a number; it should be a string"#
        );
        assert_eq!(
            problem(&RECORD.replace(r#"{"prompt": "The Vell"#, r#"{"promt": "The Vell"#)),
            r#"record 0: "portability.Reasoning[0].prompt" is missing; every probe needs a prompt"#
        );
        assert!(problem(&RECORD.replace("target_new", "target")).contains(r#""target_new" is missing"#));
    }
}
