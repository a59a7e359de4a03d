//! RippleEdits: an edit stated by a whole sentence, and tests of what follows from it and what does not.

use super::fields::NEEDS_PROMPT;
use super::json::{Json, Object, answer, each, prompt};
use super::problem::{Problem, quoted};
use super::record::{EditRecord, Probe, TestPart};

/// What must stay: the other kinds of test ask what must change.
const LOCALITY: [&str; 2] = ["Relation_Specificity", "Forgetfulness"];

/// What the authors' description calls the first of these; their files spell it right.
pub(super) const MISSPELT: &str = "Relation_Specifity";

/// What should change with the edit.
const PORTABILITY: [&str; 4] =
    ["Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II"];

/// All kinds of test.
pub const CLASSES: [&str; 6] =
    [LOCALITY[0], LOCALITY[1], PORTABILITY[0], PORTABILITY[1], PORTABILITY[2], PORTABILITY[3]];

/// Reads a record. Where a sentence has a fact from before the edit beside it, that is the old answer.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let edit = record.required("edit", "every record needs one")?.object();
    let mut out = edit.and_then(stated).map_err(|problem| problem.within("edit"))?;
    out.id = id;
    for (kinds, locality) in [(LOCALITY.as_slice(), true), (PORTABILITY.as_slice(), false)] {
        for &kind in kinds {
            let misspelt = (kind == LOCALITY[0]).then_some(MISSPELT);
            let Some(tests) = record.take(kind).or_else(|| record.take(misspelt?)) else { continue };
            let tests = tests.list().and_then(|tests| each(tests, test)).map_err(|problem| problem.within(kind))?;
            let (mut asked, mut conditions) = (vec![], vec![]);
            for (number, Test { any, queries, wanted }) in tests.into_iter().enumerate() {
                let part = |probe: Probe| Probe { test: Some(TestPart { number, any }), ..probe };
                // A test that asks nothing tests nothing.
                if !queries.is_empty() {
                    asked.extend(queries.into_iter().map(part));
                    conditions.extend(wanted.into_iter().map(part));
                }
            }
            let classes = if locality { &mut out.locality } else { &mut out.portability };
            for (classes, probes) in [(classes, asked), (&mut out.conditions, conditions)] {
                if !probes.is_empty() {
                    classes.insert(kind.to_owned(), probes);
                }
            }
        }
    }
    Ok(out)
}

/// Prompt, target and subject of a sentence "The name of the mother of X is Y."
fn stated(mut edit: Object) -> Result<EditRecord, Problem> {
    let sentence = answer(edit.text("prompt", NEEDS_PROMPT)?);
    let relation = edit.text_or_blank("relation")?.map(answer);
    let before = match edit.take("original_fact") {
        Some(fact) => fact.object().and_then(|mut fact| fact.text_or_blank("prompt")),
        None => Ok(None),
    };
    let before = before.map_err(|problem| problem.within("original_fact"))?.map(answer);
    let (prompt, target) =
        before.as_deref().and_then(|before| split_alike(&sentence, before)).or_else(|| split(&sentence)).ok_or_else(
            || {
                Problem::new(format!(
                    "is no sentence that ends in its answer: {}; it should read \"… is ANSWER.\"",
                    quoted(&sentence)
                ))
                .within("prompt")
            },
        )?;
    let (prompt, target_new) = (prompt.to_owned(), ended(target));
    let target_true = before.as_deref().and_then(|before| before.strip_prefix(&prompt)).map(ended);
    let subject = relation.as_deref().and_then(|relation| subject(&prompt, relation));
    Ok(EditRecord { prompt, target_new, target_true, subject, relation, ..EditRecord::default() })
}

/// Verbs behind which the answer stands.
const VERBS: [&str; 3] = [" is ", " are ", " was "];

/// A sentence at its last verb: up to it, and behind it.
fn split(sentence: &str) -> Option<(&str, &str)> {
    let end = VERBS.iter().filter_map(|verb| Some(sentence.rfind(verb)? + verb.len())).max()?;
    let (prompt, target) = (sentence[..end].trim_end(), sentence[end..].trim());
    (!ended(target).is_empty()).then_some((prompt, target))
}

/// The same at the last verb that two sentences share: an answer may have a verb of its own.
fn split_alike<'a>(sentence: &'a str, before: &str) -> Option<(&'a str, &'a str)> {
    let shared = sentence.char_indices().zip(before.chars()).take_while(|((_, a), b)| a == b);
    let shared = shared.last().map_or(0, |((at, letter), _)| at + letter.len_utf8());
    let end = VERBS.iter().filter_map(|verb| Some(sentence[..shared].rfind(verb)? + verb.len())).max()?;
    Some((sentence[..end].trim_end(), sentence[end..].trim()))
}

/// An answer without the full stop of its sentence.
fn ended(target: &str) -> String {
    let target = target.trim();
    target.strip_suffix('.').unwrap_or(target).trim().to_owned()
}

/// What the sentence is about: what stands between the words of its relation and the verb.
fn subject(prompt: &str, relation: &str) -> Option<String> {
    let words = relation.replace('_', " ").to_lowercase();
    let plain = prompt.to_lowercase();
    // Lower case may be of another length.
    let behind = plain.find(&words).map(|at| at + words.len()).filter(|_| plain.len() == prompt.len())?;
    let rest = prompt.get(behind..)?.trim_start();
    let (link, rest) = rest.split_once(' ')?;
    let verb = VERBS.iter().find_map(|verb| rest.strip_suffix(verb.trim_end()))?;
    (link.len() <= 4 && !verb.trim().is_empty()).then(|| verb.trim().to_owned())
}

struct Test {
    any: bool,
    queries: Vec<Probe>,
    wanted: Vec<Probe>,
}

fn test(item: Json) -> Result<Test, Problem> {
    let mut item = item.object()?;
    let any = match item.text_or_blank("test_condition")?.as_deref() {
        None | Some("OR") => true,
        Some("AND") => false,
        Some(other) => {
            return Err(Problem::new(format!("is {}; it should be OR or AND", quoted(other))).within("test_condition"));
        }
    };
    let mut queries = |key: &str| match item.take(key) {
        Some(list) => list.list().and_then(|list| each(list, query)).map_err(|problem| problem.within(key)),
        None => Ok(vec![]),
    };
    let asked = queries("test_queries")?.into_iter().flatten().collect();
    let conditions = queries("condition_queries")?;
    // Whether it holds could not be told.
    if let Some(at) = conditions.iter().position(Option::is_none) {
        let problem = Problem::new("is empty; a condition needs an answer that it is met by");
        return Err(problem.within("answers").within(&format!("condition_queries[{at}]")));
    }
    Ok(Test { any, queries: asked, wanted: conditions.into_iter().flatten().collect() })
}

/// A question with all names of all its answers; nothing where it has none.
fn query(item: Json) -> Result<Option<Probe>, Problem> {
    let mut item = item.object()?;
    let asked = prompt(item.text("prompt", "every query needs a prompt")?);
    let answers = match item.take("answers") {
        Some(list) => list.list().and_then(|list| each(list, |name| named(name))),
        None => Ok(vec![]),
    };
    let mut names = answers.map_err(|problem| problem.within("answers"))?.into_iter().flatten();
    let Some(target) = names.next() else { return Ok(None) };
    let mut aliases: Vec<String> = names.filter(|name| *name != target).collect();
    aliases.sort();
    aliases.dedup();
    Ok(Some(Probe { aliases, ..Probe::new(asked, Some(target)) }))
}

/// An answer's name, then its other names.
fn named(item: Json) -> Result<Vec<String>, Problem> {
    let mut item = item.object()?;
    let value = item.text_or_blank("value")?.map(answer);
    let aliases = item.one_or_more("aliases")?;
    Ok(value.into_iter().chain(aliases.into_iter().map(answer)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load_one, problem};

    const RECORD: &str = r#"{"example_type": "random", "edit": {"prompt": "The name of the country of citizenship of Ada Park is Vell.",
        "subject_id": "Q1", "relation": "COUNTRY_OF_CITIZENSHIP", "target_id": "Q2",
        "original_fact": {"prompt": "The name of the country of citizenship of Ada Park is Ost.", "relation": "COUNTRY_OF_CITIZENSHIP"}},
        "Relation_Specificity": [{"test_queries": [{"prompt": "The gender of Ada Park is", "answers": [{"value": "female", "aliases": ["woman"]}]}],
            "test_condition": "OR", "condition_queries": []}],
        "Logical_Generalization": [], "Subject_Aliasing": [], "Forgetfulness": [],
        "Compositionality_I": [{"test_queries": [{"prompt": "The capital of the country of Ada Park is", "answers": [{"value": "Tamm", "aliases": []}]},
                {"prompt": "Nobody knows", "answers": []}],
            "test_condition": "AND",
            "condition_queries": [{"prompt": "The capital of Vell is", "answers": [{"value": "Tamm", "aliases": ["Old Tamm"]}]}]}],
        "Compositionality_II": []}"#;

    #[test]
    fn a_sentence_is_parted_at_its_answer() {
        let record = load_one(RECORD);
        assert_eq!(record.prompt, "The name of the country of citizenship of Ada Park is");
        assert_eq!((record.target_new.as_str(), record.target_true.as_deref()), ("Vell", Some("Ost")));
        assert_eq!(record.subject.as_deref(), Some("Ada Park"));
        // An answer with a verb of its own, told by the fact from before.
        let record = load_one(&RECORD.replace("is Vell.", "is This is Vell.").replace("is Ost.", "is U.S."));
        assert_eq!((record.target_new.as_str(), record.target_true.as_deref()), ("This is Vell", Some("U.S")));
    }

    #[test]
    fn tests_keep_their_conditions() {
        let record = load_one(RECORD);
        assert_eq!(record.locality["Relation_Specificity"][0].aliases, ["woman"]);
        let hop = &record.portability["Compositionality_I"];
        assert_eq!(hop.len(), 1);
        let part = hop[0].test.unwrap();
        assert_eq!((part.number, part.any), (0, false));
        let condition = &record.conditions["Compositionality_I"][0];
        assert_eq!((condition.prompt.as_str(), condition.test), ("The capital of Vell is", Some(part)));
        assert!(!record.conditions.contains_key("Relation_Specificity"));
        let misspelt = load_one(&RECORD.replace("Relation_Specificity", "Relation_Specifity"));
        assert_eq!(misspelt.locality, record.locality);
    }

    #[test]
    fn errors_name_the_query() {
        let wrong = problem(&RECORD.replace(r#"[{"value": "Tamm", "aliases": ["Old Tamm"]}]"#, "[]"));
        assert_eq!(
            wrong,
            r#"record 0: "Compositionality_I[0].condition_queries[0].answers" is empty; a condition needs an answer that it is met by"#
        );
        let wrong = problem(&RECORD.replace(r#"["Old Tamm"]"#, r#"[3]"#));
        assert!(wrong.contains(r#"answers[0].aliases[0]" is a number; it should be a string"#), "{wrong}");
        let wrong = problem(&RECORD.replace(r#""AND""#, r#""XOR""#));
        assert!(wrong.contains(r#"test_condition" is "XOR"; it should be OR or AND"#), "{wrong}");
        assert!(
            problem(&RECORD.replace("Ada Park is Vell.", "Ada Park: Vell."))
                .contains("no sentence that ends in its answer")
        );
    }
}
