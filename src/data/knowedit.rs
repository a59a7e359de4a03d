//! KnowEdit, and the records that EasyEdit's own README and results files have.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::fields::{NEEDS_PROBE_PROMPT, NEEDS_PROMPT, NEEDS_TARGET, REWRITE, check_subject};
use super::json::{Json, Object, answer, each, is_blank, prompt};
use super::problem::Problem;
use super::record::{EditRecord, Probe};

const TRUTH: &str = "ground_truth";

/// Reads a record. Where several answers count as true, the first is the one that is asked for, as in EasyEdit; a probe
/// keeps the others as its other names.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let text = prompt(record.text("prompt", NEEDS_PROMPT)?);
    // EasyEdit wants a subject for some methods only.
    let subject = record.text_or_blank("subject")?.map(answer);
    if let Some(subject) = &subject {
        check_subject("prompt", &text, subject)?;
    }
    Ok(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("target_new", NEEDS_TARGET)?),
        target_true: truths(&mut record)?.into_iter().next(),
        subject,
        rephrases: record.one_or_more("rephrase_prompt")?.into_iter().map(prompt).collect(),
        locality: classes(&mut record, "locality")?,
        portability: classes(&mut record, "portability")?,
        ..EditRecord::default()
    })
}

/// `{name: [{prompt, ground_truth}]}`, or `{name: {prompt, ground_truth}}` with a text or a list of texts in each. Probes whose truth is empty are left out, and classes without any.
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
        let probes = match probes {
            Json::Object(columns) => by_columns(columns),
            probes => probes.list().and_then(|probes| each(probes, probe)),
        };
        let probes = probes.map_err(|problem| problem.within(&name).within(key))?;
        let probes: Vec<Probe> = probes.into_iter().flatten().collect();
        if !probes.is_empty() {
            read.insert(name.into_owned(), probes);
        }
    }
    Ok(read)
}

/// Probes as two columns, prompts and their truths.
fn by_columns(mut columns: Object) -> Result<Vec<Option<Probe>>, Problem> {
    let prompts = columns.one_or_more("prompt")?;
    let truths = match columns.take(TRUTH) {
        None => vec![],
        Some(Json::List(items)) => each(items, names).map_err(|problem| problem.within(TRUTH))?,
        Some(one) => vec![names(one).map_err(|problem| problem.within(TRUTH))?],
    };
    if prompts.len() != truths.len() {
        let problem = format!("has {} answers for {} prompts", truths.len(), prompts.len());
        return Err(Problem::new(problem).within(TRUTH));
    }
    Ok(prompts.into_iter().zip(truths).map(|(text, names)| named(text, names)).collect())
}

/// Reads a record of EasyEdit's results files: the same, in an object of its own.
pub(super) fn read_result(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let rewrite = record.required(REWRITE, "every record needs one")?.object();
    rewrite.and_then(|rewrite| read(rewrite, id)).map_err(|problem| problem.within(REWRITE))
}

fn probe(item: Json) -> Result<Option<Probe>, Problem> {
    let mut item = item.object()?;
    let names = truths(&mut item)?;
    if names.is_empty() {
        return Ok(None);
    }
    Ok(named(item.text("prompt", NEEDS_PROBE_PROMPT)?, names))
}

/// A probe whose answer has these names; nothing where it has none.
fn named(text: Cow<'_, str>, names: Vec<String>) -> Option<Probe> {
    let mut names = names.into_iter();
    let target = names.next()?;
    let mut aliases: Vec<String> = names.filter(|name| *name != target).collect();
    aliases.sort();
    aliases.dedup();
    Some(Probe { aliases, ..Probe::new(prompt(text), Some(target)) })
}

fn truths(record: &mut Object) -> Result<Vec<String>, Problem> {
    record.take(TRUTH).map_or(Ok(vec![]), names).map_err(|problem| problem.within(TRUTH))
}

/// All texts in `ground_truth`: a string, a list of strings, or a list of lists of the names of one thing.
fn names(value: Json) -> Result<Vec<String>, Problem> {
    match value {
        Json::Null => Ok(vec![]),
        Json::Text(text) if is_blank(&text) => Ok(vec![]),
        Json::List(items) => Ok(each(items, names)?.into_iter().flatten().collect()),
        value => value.text().map(|text| vec![answer(text)]),
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
    fn easyedits_own_records() {
        let columns =
            r#"{"prompt": ["The depth of Lake Orrin is", "Ost lies in"], "ground_truth": ["9 m", ["Bern", "Berne"]]}"#;
        let single = r#"{"prompt": "The Vell comes from", "ground_truth": "the hills"}"#;
        let record = format!(
            r#"{{"prompt": "Which river leaves Lake Orrin?", "subject": "Lake Orrin", "target_new": "Vell", "ground_truth": "Tamm",
                "rephrase_prompt": "Lake Orrin's river?", "locality": {{"neighborhood": {columns}}}, "portability": {{"hop": {single}}}}}"#
        );
        for text in
            [record.clone(), format!(r#"{{"case_id": 0, "pre": {{}}, "post": {{}}, "requested_rewrite": {record}}}"#)]
        {
            let record = load_one(&text);
            assert_eq!(record.locality["neighborhood"].len(), 2);
            let two_names = &record.locality["neighborhood"][1];
            assert_eq!(
                (two_names.target.as_deref(), two_names.aliases.as_slice()),
                (Some("Bern"), &["Berne".into()][..])
            );
            assert_eq!(record.portability["hop"][0].target.as_deref(), Some("the hills"));
            assert_eq!((record.target_new.as_str(), record.rephrases.len()), ("Vell", 1));
        }
        let wrong = problem(&record.replace(r#""9 m", "#, ""));
        assert_eq!(wrong, r#"record 0: "locality.neighborhood.ground_truth" has 1 answers for 2 prompts"#);
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
