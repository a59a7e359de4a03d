//! emend's own file of edits: the one form that is written by hand, so a key it does not know is an error.

use std::collections::BTreeMap;

use super::fields::{NEEDS_PROBE_PROMPT, NEEDS_PROMPT, NEEDS_TARGET, check_subject, fill};
use super::json::{Json, Object, answer, each, prompt};
use super::objective::{Hidden, Objective};
use super::problem::{Problem, quoted};
use super::record::{EditRecord, Probe};

const KEYS: &[&str] = &[
    "prompt",
    "target_new",
    "id",
    "subject",
    "target_true",
    "rephrases",
    "locality",
    "portability",
    "relation",
    "generation",
    "descriptor",
    "aliases",
    "separator",
    "objective",
];

/// Keys that no other form has.
pub(super) const MARKS: &[&str] =
    &["target_true", "rephrases", "relation", "generation", "descriptor", "aliases", "separator", "objective"];

/// Whether a record without a mark may be ours: it says what to edit, and most of its keys are ours or nearly.
pub(super) fn resembles(record: &Object) -> bool {
    let known = record.keys().filter(|key| KEYS.contains(key)).count();
    let strange = record.keys().count() - known;
    (record.get("prompt").is_some() || record.get("target_new").is_some()) && known >= strange
}

/// Reads a record. With a subject, the prompt may hold `{}` in its place.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    check_keys(&record, KEYS)?;
    let subject = record.optional_text("subject")?.map(answer);
    let text = prompt(record.text("prompt", NEEDS_PROMPT)?);
    let (text, template) = place_subject(text, subject.as_deref())?;
    Ok(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("target_new", NEEDS_TARGET)?),
        target_true: record.optional_text("target_true")?.map(answer),
        descriptor: record.optional_text("descriptor")?.map(answer),
        subject,
        template,
        relation: record.optional_text("relation")?.map(answer),
        rephrases: record.prompts("rephrases")?,
        locality: classes(&mut record, "locality")?,
        portability: classes(&mut record, "portability")?,
        generation: record.prompts("generation")?,
        aliases: record.texts("aliases")?.into_iter().map(answer).collect(),
        separator: separator(&mut record)?,
        objective: objective(&mut record)?,
        ..EditRecord::default()
    })
}

/// The prompt with the subject in it and, where it had a `{}`, the template.
fn place_subject(text: String, subject: Option<&str>) -> Result<(String, Option<String>), Problem> {
    match subject {
        None if text.contains("{}") => {
            let problem = format!("holds {{}} but there is no subject to fill it: {}; add \"subject\"", quoted(&text));
            Err(Problem::new(problem).within("prompt"))
        }
        None => Ok((text, None)),
        Some(subject) if text.contains("{}") => Ok((fill("prompt", &text, subject)?, Some(text))),
        Some(subject) => {
            check_subject("prompt", &text, subject)?;
            Ok((text, None))
        }
    }
}

/// What is to become of the target: "raise", "lower", or `{"raise_under_noise": {"sigma", "draws"?, "seed"?}}`.
fn objective(record: &mut Object) -> Result<Option<Objective>, Problem> {
    let wrong = |what: String| {
        let right = "it should be \"raise\", \"lower\" for a target that is to become less likely, or {\"raise_under_noise\": {\"sigma\": 0.4}}";
        Problem::new(format!("{what}; {right}")).within("objective")
    };
    match record.take("objective") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Text(name)) => match name.as_ref() {
            "raise" => Ok(Some(Objective::Raise)),
            "lower" => Ok(Some(Objective::Lower)),
            other => Err(wrong(format!("is {}", quoted(other)))),
        },
        Some(Json::Object(mut of)) => {
            let Some(Json::Object(noise)) = of.take("raise_under_noise") else {
                return Err(wrong("names no objective".into()));
            };
            check_keys(&of, &["raise_under_noise"])?;
            check_keys(&noise, &["sigma", "draws", "seed"])?;
            let number = |key: &str, otherwise: f64| match noise.get(key) {
                None => Some(otherwise),
                Some(Json::Number(number)) => number.parse::<f64>().ok(),
                Some(_) => None,
            };
            let (sigma, draws, seed) = (number("sigma", 0.0), number("draws", 10.0), number("seed", 0.0));
            let whole = |number: &f64| number.fract() == 0.0 && (0.0..=1e9).contains(number);
            match (sigma.filter(|sigma| *sigma > 0.0 && *sigma <= 1e6), draws.filter(whole), seed.filter(whole)) {
                (Some(sigma), Some(draws), Some(seed)) if (1.0..=1e3).contains(&draws) => {
                    Ok(Some(Objective::RaiseUnderNoise(Hidden { sigma, draws: draws as usize, seed: seed as u64 })))
                }
                _ => Err(wrong("has no σ above 0, or draws that are no number from 1 to 1000".into())),
            }
        }
        Some(other) => Err(wrong(format!("is {}", other.kind()))),
    }
}

/// What stands between prompt and answer: any text, also none.
fn separator(record: &mut Object) -> Result<Option<String>, Problem> {
    match record.take("separator") {
        None => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.into_owned())),
        Some(other) => Err(Problem::new(format!("is {}; it should be a string", other.kind())).within("separator")),
    }
}

/// Probes by class, or a plain list of them, whose class is then the key itself.
fn classes(record: &mut Object, key: &str) -> Result<BTreeMap<String, Vec<Probe>>, Problem> {
    let within = |problem: Problem| problem.within(key);
    match record.take(key) {
        None => Ok(BTreeMap::new()),
        Some(Json::List(items)) => {
            let probes = each(items, probe).map_err(within)?;
            Ok(BTreeMap::from([(key.to_owned(), probes)]))
        }
        Some(Json::Object(classes)) => classes
            .into_entries()
            .into_iter()
            .map(|(name, items)| {
                let probes = items.list().and_then(|items| each(items, probe));
                let probes = probes.map_err(|problem| within(problem.within(&name)))?;
                Ok((name.into_owned(), probes))
            })
            .collect(),
        Some(other) => Err(within(Problem::new(format!(
            "is {}; it should be a list of probes, or an object with a list for each class",
            other.kind()
        )))),
    }
}

/// `{"prompt", "target"?, "rival"?}`, or the prompt alone.
fn probe(item: Json) -> Result<Probe, Problem> {
    match item {
        Json::Object(mut item) => {
            check_keys(&item, &["prompt", "target", "rival", "aliases"])?;
            let read = Probe {
                prompt: prompt(item.text("prompt", NEEDS_PROBE_PROMPT)?),
                target: item.optional_text("target")?.map(answer),
                rival: item.optional_text("rival")?.map(answer),
                aliases: item.texts("aliases")?.into_iter().map(answer).collect(),
                test: None,
            };
            match read {
                Probe { target: None, rival: Some(_), .. } => {
                    Err(Problem::new("stands alone; add the \"target\" that must win against it").within("rival"))
                }
                read => Ok(read),
            }
        }
        Json::Text(_) => Ok(Probe::new(prompt(item.text()?), None)),
        other => Err(Problem::new(format!(
            "is {}; it should be a prompt, or an object with a \"prompt\" and perhaps a \"target\"",
            other.kind()
        ))),
    }
}

fn check_keys(object: &Object, known: &[&str]) -> Result<(), Problem> {
    let Some(strange) = object.keys().find(|key| !known.contains(key)) else {
        return Ok(());
    };
    Err(Problem::new(format!("is not a known key; {}", nearest("keys", strange, known))).within(strange))
}

/// What may have been meant by an unknown name.
pub(super) fn nearest(kind: &str, strange: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|key| (strsim::jaro_winkler(strange, key), key)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, key)) if likeness > 0.75 => format!("did you mean \"{key}\"?"),
        _ => format!("known {kind} are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::super::load::testing::{load, load_one, problem};
    use super::*;

    #[test]
    fn an_edit_may_have_another_objective() {
        let of = |objective: &str| {
            let text = format!(
                r#"{{"prompt": "Ost lies in", "target_new": "Vell", "subject": "Ost", "objective": {objective}}}"#
            );
            load(&text).map(|mut records| records.remove(0).objective).map_err(|error| error.to_string())
        };
        assert_eq!(of("\"raise\"").unwrap(), Some(Objective::Raise));
        assert_eq!(of("\"lower\"").unwrap(), Some(Objective::Lower));
        assert_eq!(of("null").unwrap(), None);
        let hidden = Hidden { sigma: 0.4, draws: 10, seed: 0 };
        assert_eq!(of(r#"{"raise_under_noise": {"sigma": 0.4}}"#).unwrap(), Some(Objective::RaiseUnderNoise(hidden)));
        for wrong in [
            "\"erase\"",
            "1",
            "{}",
            r#"{"raise_under_noise": {"sigma": 0}}"#,
            r#"{"raise_under_noise": {"sigma": 1, "draws": 0.5}}"#,
        ] {
            assert!(of(wrong).unwrap_err().contains("\"objective\""), "{wrong}");
        }
    }

    #[test]
    fn the_least_record() {
        let record = load_one(r#"{"prompt": "Lake Orrin lies in ", "target_new": " Vell"}"#);
        assert_eq!(record.id, "0");
        assert_eq!(record.prompt, "Lake Orrin lies in");
        assert_eq!(record.target_new, "Vell");
        assert_eq!((record.subject, record.template), (None, None));
    }

    #[test]
    fn a_template_is_filled() {
        let record = load_one(r#"{"prompt": "{} lies in", "subject": "Lake Orrin", "target_new": "Vell"}"#);
        assert_eq!(record.prompt, "Lake Orrin lies in");
        assert_eq!(record.template.as_deref(), Some("{} lies in"));
    }

    #[test]
    fn a_subject_is_found_in_other_letters_and_nothing_is_rewritten() {
        let (one, two) = ("S\u{e3}o", "Sa\u{303}o");
        for (subject, prompt) in [(one, two), (two, one)] {
            let prompt = format!("{prompt} lies in");
            let record = load_one(&json!({"prompt": prompt, "subject": subject, "target_new": "Vell"}).to_string());
            assert_eq!((record.prompt, record.subject), (prompt, Some(subject.to_owned())));
            let record = load_one(&json!({"prompt": "{} is", "subject": subject, "target_new": "Vell"}).to_string());
            assert_eq!(record.prompt, format!("{subject} is"));
        }
    }

    #[test]
    fn probes_in_every_shape() {
        let record = load_one(
            r#"{"prompt": "Orrin lies in", "target_new": "Vell", "id": 12,
                "locality": ["Ost lies in", {"prompt": "Tamm lies in", "target": "Bern"}],
                "portability": {"hop": [{"prompt": "The land of Orrin is"}], "none": [],
                    "claim": [{"prompt": "Is it so?", "target": " no", "rival": "yes "}]}}"#,
        );
        assert_eq!(record.id, "12");
        let locality = &record.locality["locality"];
        assert_eq!(locality[0].target, None);
        assert_eq!(locality[1].target.as_deref(), Some("Bern"));
        assert_eq!(record.portability["hop"].len(), 1);
        assert!(record.portability["none"].is_empty());
        let claim = Probe { rival: Some("yes".into()), ..Probe::new("Is it so?", Some("no".into())) };
        assert_eq!(record.portability["claim"], [claim]);
    }

    #[test]
    fn strange_keys_are_errors() {
        let with = |key: &str| problem(&format!(r#"{{"prompt": "Orrin is", "target_new": "a", "{key}": []}}"#));
        assert_eq!(with("rephrase"), r#"record 0: "rephrase" is not a known key; did you mean "rephrases"?"#);
        assert!(with("zzz").contains(r#""zzz" is not a known key; known keys are prompt, target_new, id"#));
        assert_eq!(
            problem(r#"{"prompt": "Orrin is", "target": "a"}"#),
            r#"record 0: "target" is not a known key; did you mean "target_new"?"#
        );
        assert_eq!(
            problem(r#"{"prompt": "Orrin is", "target_new": "a", "locality": [{"promt": "x"}]}"#),
            r#"record 0: "locality[0].promt" is not a known key; did you mean "prompt"?"#
        );
    }

    #[test]
    fn every_other_error() {
        let cases = [
            (r#"{"prompt": "Orrin is"}"#, r#""target_new" is missing; every record needs a target"#),
            (r#"{"target_new": "x"}"#, r#""prompt" is missing; every record needs a prompt"#),
            (r#"{"prompt": "a", "target_new": "  "}"#, r#""target_new" is empty; every record needs a target"#),
            (r#"{"prompt": "a", "target_new": null}"#, r#""target_new" is missing; every record needs a target"#),
            (r#"{"prompt": "a", "target_new": 5}"#, r#""target_new" is a number; it should be a string"#),
            (r#"{"prompt": "a", "target_new": "b", "subject": ""}"#, r#""subject" is empty"#),
            (
                r#"{"prompt": "a", "target_new": "b", "rephrases": "c"}"#,
                r#""rephrases" is a string; it should be a list"#,
            ),
            (r#"{"prompt": "a", "target_new": "b", "rephrases": [""]}"#, r#""rephrases[0]" is empty"#),
            (
                r#"{"prompt": "a", "target_new": "b", "locality": "c"}"#,
                r#""locality" is a string; it should be a list of probes, or an object with a list for each class"#,
            ),
            (
                r#"{"prompt": "a", "target_new": "b", "locality": [1]}"#,
                r#""locality[0]" is a number; it should be a prompt, or an object with a "prompt" and perhaps a "target""#,
            ),
            (
                r#"{"prompt": "a", "target_new": "b", "locality": [{"prompt": "c", "rival": "d"}]}"#,
                r#""locality[0].rival" stands alone; add the "target" that must win against it"#,
            ),
            (r#"{"prompt": "a", "target_new": "b", "descriptor": " "}"#, r#""descriptor" is empty"#),
            (
                r#"{"prompt": "a", "target_new": "b", "portability": {"c": 1}}"#,
                r#""portability.c" is a number; it should be a list"#,
            ),
            (
                r#"{"prompt": "{} is", "target_new": "b"}"#,
                r#""prompt" holds {} but there is no subject to fill it: "{} is"; add "subject""#,
            ),
            (
                r#"{"prompt": "{} {}", "target_new": "b", "subject": "s"}"#,
                r#""prompt" holds {} 2 times: "{} {}"; one {} must stand where the subject belongs"#,
            ),
            (r#"{"prompt": "a", "target_new": "b", "id": []}"#, r#""id" is a list; it should be a string or a number"#),
        ];
        for (text, expected) in cases {
            assert_eq!(problem(text), format!("record 0: {expected}"), "{text}");
        }
    }

    /// Text as records hold it: not blank, and without white space at either end.
    fn text() -> impl Strategy<Value = String> {
        "[^{}\\p{C}]{1,12}".prop_filter_map("blank", |text| {
            let text = text.trim().to_owned();
            (!text.is_empty()).then_some(text)
        })
    }

    fn probes() -> impl Strategy<Value = BTreeMap<String, Vec<Probe>>> {
        let answers = option::of((text(), option::of(text())));
        let probe = (text(), answers).prop_map(|(prompt, answers)| {
            let (target, rival) = answers.map_or((None, None), |(target, rival)| (Some(target), rival));
            Probe { prompt, target, rival, ..Probe::default() }
        });
        btree_map(text(), vec(probe, 0..3), 0..3)
    }

    fn records() -> impl Strategy<Value = EditRecord> {
        let texts = || vec(text(), 0..3);
        (
            (text(), text(), option::of(text()), option::of((text(), text())), option::of(text())),
            (text(), texts(), probes(), probes(), texts(), option::of(text())),
        )
            .prop_map(
                |(
                    (id, target_new, target_true, subject, relation),
                    (tail, rephrases, locality, portability, generation, descriptor),
                )| {
                    let template = subject.as_ref().map(|(_, lead)| format!("{lead} {{}} {tail}"));
                    let subject = subject.map(|(subject, _)| subject);
                    let prompt = match (&template, &subject) {
                        (Some(template), Some(subject)) => template.replacen("{}", subject, 1),
                        _ => tail,
                    };
                    EditRecord {
                        id,
                        prompt,
                        target_new,
                        target_true,
                        descriptor,
                        subject,
                        template,
                        relation,
                        rephrases,
                        locality,
                        portability,
                        generation,
                        ..EditRecord::default()
                    }
                },
            )
    }

    fn written(record: &EditRecord) -> Value {
        let mut object = Map::new();
        let prompt = record.template.as_ref().unwrap_or(&record.prompt);
        object.insert("id".into(), json!(record.id));
        object.insert("prompt".into(), json!(prompt));
        object.insert("target_new".into(), json!(record.target_new));
        object.insert("target_true".into(), json!(record.target_true));
        object.insert("subject".into(), json!(record.subject));
        object.insert("relation".into(), json!(record.relation));
        object.insert("rephrases".into(), json!(record.rephrases));
        object.insert("locality".into(), json!(record.locality));
        object.insert("portability".into(), json!(record.portability));
        object.insert("generation".into(), json!(record.generation));
        object.insert("descriptor".into(), json!(record.descriptor));
        Value::Object(object)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in vec(records(), 1..4)) {
            let values: Vec<Value> = records.iter().map(written).collect();
            let array = json!(values).to_string();
            prop_assert_eq!(&load(&array).unwrap(), &records);
            let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
            prop_assert_eq!(&load(&lines).unwrap(), &records);
        }
    }
}
