//! MQuAKE: a case is one or more edits, and questions that follow from all of them.

use std::collections::BTreeMap;

use super::counterfact::{Rewrite, read_rewrite};
use super::fields::REWRITE;
use super::json::{Json, Object, answer, each, prompt};
use super::problem::Problem;
use super::record::{EditRecord, Probe, TestPart};

/// The class of the questions that need several facts: one thing, asked in several ways.
pub const MULTI_HOP: &str = "multi-hop";

/// The class of the facts that such a question needs, as they are after the edits.
pub const SINGLE_HOP: &str = "single hop";

/// Reads a case. Its first edit is the record, the others stand in `also`.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let rewrites = record.required(REWRITE, "every record needs one")?.list().and_then(|items| each(items, edit));
    let mut rewrites = rewrites.map_err(|problem| problem.within(REWRITE))?.into_iter();
    let first = rewrites.next();
    let first = first.ok_or_else(|| Problem::new("is empty; a case needs an edit").within(REWRITE))?;
    let mut portability = BTreeMap::new();
    if let Some(target) = record.text_or_blank("new_answer")?.map(answer) {
        let aliases = names(&mut record, "new_answer_alias")?;
        // One right wording is enough; of the hops all are wanted.
        let test = Some(TestPart { number: 0, any: true });
        let ask = |prompt| Probe { aliases: aliases.clone(), test, ..Probe::new(prompt, Some(target.clone())) };
        portability.insert(MULTI_HOP.to_owned(), record.prompts("questions")?.into_iter().map(ask).collect());
    }
    if let Some(hops) = record.take("new_single_hops") {
        let hops = hops.list().and_then(|hops| each(hops, hop)).map_err(|problem| problem.within("new_single_hops"))?;
        portability.insert(SINGLE_HOP.to_owned(), hops);
    }
    portability.retain(|_, probes: &mut Vec<Probe>| !probes.is_empty());
    Ok(EditRecord { id, also: rewrites.collect(), portability, ..first })
}

fn edit(item: Json) -> Result<EditRecord, Problem> {
    let mut item = item.object()?;
    let question = item.text_or_blank("question")?.map(prompt);
    let Rewrite { prompt, template, subject, target_new, target_id, target_true, relation } = read_rewrite(&mut item)?;
    Ok(EditRecord {
        prompt,
        target_new,
        target_id,
        target_true,
        subject: Some(subject),
        template: Some(template),
        relation,
        rephrases: question.into_iter().collect(),
        ..EditRecord::default()
    })
}

fn hop(item: Json) -> Result<Probe, Problem> {
    let mut item = item.object()?;
    let question = prompt(item.text("question", "every hop needs a question")?);
    let target = answer(item.text("answer", "every hop needs an answer")?);
    let test = Some(TestPart { number: 0, any: false });
    Ok(Probe { aliases: names(&mut item, "answer_alias")?, test, ..Probe::new(question, Some(target)) })
}

/// Other names of one thing, each once.
pub(super) fn names(object: &mut Object, key: &str) -> Result<Vec<String>, Problem> {
    let mut names: Vec<String> = object.texts(key)?.into_iter().map(answer).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load_one, problem};

    const CASE: &str = r#"{"case_id": 3, "requested_rewrite": [
        {"prompt": "{} was written by", "relation_id": "P50", "subject": "Tamm", "question": "Who wrote Tamm?",
         "target_new": {"str": "Ada Park", "id": "Q1"}, "target_true": {"str": "Bo Lind", "id": "Q2"}},
        {"prompt": "{} is a citizen of", "subject": "Ada Park", "target_new": {"str": "Vell"}, "target_true": {"str": "Ost"}}],
        "questions": ["Where is the author of Tamm from?", "Whose citizen wrote Tamm?"], "answer": "Ost", "new_answer": "Vell",
        "new_answer_alias": ["the Vell", "VL"], "single_hops": [],
        "new_single_hops": [{"question": "Who wrote Tamm?", "cloze": "Tamm is by", "answer": "Ada Park", "answer_alias": []}]}"#;

    #[test]
    fn a_case_is_several_edits() {
        let record = load_one(CASE);
        assert_eq!((record.id.as_str(), record.prompt.as_str()), ("3", "Tamm was written by"));
        assert_eq!(record.rephrases, ["Who wrote Tamm?"]);
        assert_eq!(record.also.len(), 1);
        assert_eq!(record.also[0].prompt, "Ada Park is a citizen of");
        assert_eq!(record.also[0].target_true.as_deref(), Some("Ost"));
        let multi_hop = &record.portability["multi-hop"];
        assert_eq!(multi_hop.len(), 2);
        assert_eq!(multi_hop[0].target.as_deref(), Some("Vell"));
        assert_eq!(multi_hop[0].aliases, ["VL", "the Vell"]);
        assert_eq!(record.portability["single hop"][0].prompt, "Who wrote Tamm?");
    }

    #[test]
    fn errors_name_the_edit() {
        assert!(
            problem(&CASE.replace("{} is a citizen", "is a citizen"))
                .contains(r#""requested_rewrite[1].prompt" holds no {}"#)
        );
        let wrong = problem(&CASE.replace(r#"["the Vell", "VL"]"#, r#"["the Vell", 7]"#));
        assert_eq!(wrong, r#"record 0 (id 3): "new_answer_alias[1]" is a number; it should be a string"#);
        assert!(problem(r#"{"requested_rewrite": []}"#).contains("is empty; a case needs an edit"));
    }
}
