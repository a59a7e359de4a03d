//! `emend inspect FACTS`: what a file of records holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::data::form::Form;
use crate::data::load_with_form;
use crate::data::record::{EditRecord, Probe, place_of_subject};
use crate::edit::EditRequest;
use crate::error::Result;
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::{hub, pocket};
use crate::model::tokenizer::{Continuation, Tokenizer};
use crate::report::table::table;

/// Bytes that tell a file of records from an edit.
const BEGINNING: usize = 4096;

/// What files of records are called.
const NAMES: [&str; 5] = ["json", "jsonl", "csv", "tsv", "txt"];

/// Whether a path is called as files of records or edits are, and not as models are.
pub fn is_file_name(path: &Path) -> bool {
    path.extension()
        .and_then(|kind| kind.to_str())
        .is_some_and(|kind| NAMES.iter().chain(&["safetensors"]).any(|name| kind.eq_ignore_ascii_case(name)))
}

/// Whether a file holds text, as records do and edits do not, or is called so.
pub fn is_facts(path: &Path) -> bool {
    use std::io::Read;
    let mut beginning = vec![];
    let read = std::fs::File::open(path).and_then(|file| file.take(BEGINNING as u64).read_to_end(&mut beginning));
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_lowercase();
    let text = !beginning.contains(&0) && beginning.iter().any(|byte| !byte.is_ascii_whitespace());
    read.is_ok() && kind != "safetensors" && (text || NAMES.contains(&kind.as_str()))
}

/// Form, records, edits a case, probes by class, subjects, lengths, and the first record as it is read.
///
/// # Errors
/// A file that is no file of records; a model that cannot be opened.
pub fn facts(path: &Path, model: Option<&str>) -> Result<(String, Value)> {
    let (form, records) = load_with_form(path)?;
    let edits: usize = records.iter().map(|record| record.edits().count()).sum();
    let most = records.iter().map(|record| record.edits().count()).max().unwrap_or(1);
    let named: Vec<&EditRecord> =
        records.iter().flat_map(EditRecord::edits).filter(|edit| edit.subject.is_some()).collect();
    let inside = named.iter().filter(|edit| {
        edit.subject
            .as_deref()
            .is_some_and(|subject| place_of_subject(&edit.prompt, subject, edit.template.as_deref()).is_some())
    });
    let inside = inside.count();
    let probes = by_class(&records);
    let mut text = format!("{} records of the form {}\n", records.len(), name(form));
    if most > 1 {
        text += &format!("{edits} edits in all, up to {most} a case\n");
    }
    text += &format!("{} edits name a subject, {inside} of them in their prompt\n\n", named.len());
    let rows: Vec<Vec<String>> = probes
        .iter()
        .map(|((kind, class), [count, answers])| {
            vec![(*kind).into(), class.clone(), count.to_string(), answers.to_string()]
        })
        .collect();
    text += &table(&["probes", "class", "number", "with an answer"], &rows);
    let mut document = json!({
        "kind": "facts",
        "form": name(form),
        "records": records.len(),
        "edits": edits,
        "most_edits": most,
        "subjects": {"named": named.len(), "in_prompt": inside},
        "probes": probes.iter().map(|((kind, class), [count, answers])| json!({"kind": kind, "class": class, "number": count, "answers": answers})).collect::<Vec<_>>(),
    });
    if let Some(model) = model {
        let (row, lengths) = lengths(&records, model)?;
        text += &format!("\n{}", table(&["tokens", "least", "mean", "most"], &row));
        document["tokens"] = lengths;
    }
    let first = serde_json::to_value(&records[0]).unwrap_or_default();
    text += &format!("\nThe first record as it is read\n\n{:#}\n", without_empty(first.clone()));
    document["first"] = first;
    Ok((text, document))
}

/// The form's name and the keys it is known by.
fn name(form: Option<Form>) -> &'static str {
    form.map_or("unknown", Form::name)
}

/// How many probes there are of each kind and class, and how many of them come with an answer.
fn by_class(records: &[EditRecord]) -> BTreeMap<(&'static str, String), [usize; 2]> {
    let mut probes: BTreeMap<(&'static str, String), [usize; 2]> = BTreeMap::new();
    let mut add = |kind, class: &str, answered: bool| {
        let counts = probes.entry((kind, class.to_owned())).or_default();
        counts[0] += 1;
        counts[1] += usize::from(answered);
    };
    for record in records {
        record.edits().flat_map(|edit| &edit.rephrases).for_each(|_| add("rephrase", "", true));
        record.generation.iter().for_each(|_| add("generation", "", false));
        let kinds =
            [("locality", &record.locality), ("portability", &record.portability), ("condition", &record.conditions)];
        for (kind, classes) in kinds {
            for (class, list) in classes {
                list.iter().for_each(|probe: &Probe| add(kind, class, probe.target.is_some()));
            }
        }
    }
    probes
}

/// Lengths of prompts, targets and whole edits in a model's tokens.
fn lengths(records: &[EditRecord], model: &str) -> Result<(Vec<Vec<String>>, Value)> {
    let tokenizer = match pocket::find(model) {
        Some(embedded) => embedded.tokenizer()?,
        None => {
            let folder = hub::resolve(model)?;
            Checkpoint::open(&folder)?;
            Tokenizer::open(&folder)?
        }
    };
    let (mut rows, mut document) = (vec![], json!({}));
    let texts = records.iter().flat_map(EditRecord::edits).map(|edit| EditRequest::from(edit).row(&tokenizer));
    let texts = texts.collect::<Result<Vec<Continuation>>>()?;
    type Length = fn(&Continuation) -> usize;
    let parts: [(&str, Length); 3] =
        [("prompt", |text| text.prompt), ("target", |text| text.target().len()), ("both", |text| text.ids.len())];
    for (name, length) in parts {
        let lengths: Vec<usize> = texts.iter().map(length).collect();
        let (least, most) = (lengths.iter().min().copied().unwrap_or(0), lengths.iter().max().copied().unwrap_or(0));
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
        rows.push(vec![name.into(), least.to_string(), format!("{mean:.1}"), most.to_string()]);
        document[name] = json!({"least": least, "mean": mean, "most": most});
    }
    Ok((rows, document))
}

/// A record without what it does not have.
fn without_empty(record: Value) -> Value {
    let Value::Object(members) = record else { return record };
    let said = |value: &Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    };
    Value::Object(members.into_iter().filter(|(_, value)| said(value)).collect())
}
