//! Files of questions and answers: QAEdit, FastEdit, WikiBigEdit, UnKE, AKEW, and lists of facts.

use std::collections::BTreeMap;

use super::counterfact;
use super::fields::{NEEDS_PROBE_PROMPT, NEEDS_PROMPT, NEEDS_SUBJECT, NEEDS_TARGET, REWRITE, fill};
use super::json::{Json, Object, answer, each, prompt};
use super::problem::Problem;
use super::record::{EditRecord, Probe};

/// Questions about others.
const LOCALITY: &str = "locality";
/// Questions about parts of a long answer.
const PARTS: &str = "parts of the answer";

/// QAEdit: `{source, prompt, target, subject, rephrase, locality: [{loc, loc_ans}]}`.
pub(super) fn qaedit(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let text = prompt(record.text("prompt", NEEDS_PROMPT)?);
    // Some subjects are named otherwise in their question: an editor that looks for them there says so.
    let subject = record.text_or_blank("subject")?.map(answer);
    let probe = |item: Json| -> Result<Probe, Problem> {
        let mut item = item.object()?;
        let question = prompt(item.text("loc", NEEDS_PROBE_PROMPT)?);
        Ok(Probe::new(question, item.text_or_blank("loc_ans")?.map(answer)))
    };
    let near = match record.take(LOCALITY) {
        Some(Json::Object(one)) => vec![probe(Json::Object(one)).map_err(|problem| problem.within(LOCALITY))?],
        Some(list) => list.list().and_then(|list| each(list, probe)).map_err(|problem| problem.within(LOCALITY))?,
        None => vec![],
    };
    Ok(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("target", NEEDS_TARGET)?),
        subject,
        rephrases: record.one_or_more("rephrase")?.into_iter().map(prompt).collect(),
        locality: class(LOCALITY, near),
        ..EditRecord::default()
    })
}

/// FastEdit: `{prompt with {}, subject, target, queries}`; its queries ask for the same fact.
pub(super) fn fastedit(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let subject = answer(record.text("subject", NEEDS_SUBJECT)?);
    let template = prompt(record.text("prompt", NEEDS_PROMPT)?);
    Ok(EditRecord {
        id,
        prompt: fill("prompt", &template, &subject)?,
        target_new: answer(record.text("target", NEEDS_TARGET)?),
        subject: Some(subject),
        template: Some(template),
        rephrases: record.prompts("queries")?,
        ..EditRecord::default()
    })
}

/// WikiBigEdit: `{subject, update, ans, rephrase, personas, mhop, mhop_ans, loc, loc_ans}`.
pub(super) fn wikibigedit(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let text = prompt(record.text("update", NEEDS_PROMPT)?);
    let subject = record.text_or_blank("subject")?.map(answer);
    let mut rephrases = record.one_or_more("rephrase")?;
    rephrases.extend(record.one_or_more("personas")?);
    let mut asked = |question: &str, truth: &str| -> Result<Vec<Probe>, Problem> {
        let question = record.text_or_blank(question)?.map(prompt);
        let truth = record.text_or_blank(truth)?.map(answer);
        Ok(question.map(|question| Probe::new(question, truth)).into_iter().collect())
    };
    let (locality, hops) = (asked("loc", "loc_ans")?, asked("mhop", "mhop_ans")?);
    Ok(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("ans", NEEDS_TARGET)?),
        subject,
        rephrases: rephrases.into_iter().map(prompt).collect(),
        locality: class(LOCALITY, locality),
        portability: class(super::multi_hop::MULTI_HOP, hops),
        ..EditRecord::default()
    })
}

/// UnKE: `{question, answer, para_question, sub_question, sub_answer}`; the answer has several sentences.
pub(super) fn unke(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let (questions, answers) = (record.one_or_more("sub_question")?, record.one_or_more("sub_answer")?);
    if questions.len() != answers.len() {
        let problem = format!("has {} answers for {} questions", answers.len(), questions.len());
        return Err(Problem::new(problem).within("sub_answer"));
    }
    let parts = questions.into_iter().zip(answers);
    let parts = parts.map(|(question, truth)| Probe::new(prompt(question), Some(answer(truth)))).collect();
    Ok(EditRecord {
        id,
        prompt: prompt(record.text("question", NEEDS_PROMPT)?),
        target_new: answer(record.text("answer", NEEDS_TARGET)?),
        rephrases: record.one_or_more("para_question")?.into_iter().map(prompt).collect(),
        portability: class(PARTS, parts),
        ..EditRecord::default()
    })
}

/// AKEW: CounterFact, MQuAKE or Wikidata updates, each edit told by a text of several sentences (`fact_new_uns`). The edit is that text, as
/// the answer to the edit's question; the short answer is left to the published files.
pub(super) fn akew(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let rephrases = record.prompts("paraphrase_prompts")?;
    let rewrites = match record.required(REWRITE, "every record needs one")? {
        Json::List(items) => each(items, told).map_err(|problem| problem.within(REWRITE))?,
        one => vec![told(one).map_err(|problem| problem.within(REWRITE))?],
    };
    let mut rewrites = rewrites.into_iter();
    let first = rewrites.next();
    let mut first = first.ok_or_else(|| Problem::new("is empty; a case needs an edit").within(REWRITE))?;
    let mut also: Vec<EditRecord> = rewrites.collect();
    // A case is asked for the parts of all its edits.
    for (name, parts) in also.iter_mut().flat_map(|edit| std::mem::take(&mut edit.portability)) {
        first.portability.entry(name).or_default().extend(parts);
    }
    Ok(EditRecord { id, rephrases, also, ..first })
}

fn told(item: Json) -> Result<EditRecord, Problem> {
    let mut item = item.object()?;
    let text = answer(item.text("fact_new_uns", NEEDS_TARGET)?);
    let question = match item.text_or_blank("question")? {
        Some(question) => Some(question),
        None => item.text_or_blank("prompt_full")?,
    };
    let part = |item: Json| -> Result<Probe, Problem> {
        let mut item = item.object()?;
        let subject = answer(item.text("subject", NEEDS_SUBJECT)?);
        let question = prompt(item.text("prompt", NEEDS_PROBE_PROMPT)?);
        let question = if question.contains("{}") { fill("prompt", &question, &subject)? } else { question };
        Ok(Probe::new(question, item.text_or_blank("target")?.map(answer)))
    };
    const TRIPLES: &str = "unsfact_triplets_GPT";
    let parts = match item.take(TRIPLES) {
        Some(list) => list.list().and_then(|list| each(list, part)).map_err(|problem| problem.within(TRIPLES))?,
        None => vec![],
    };
    let short = counterfact::read_rewrite(&mut item)?;
    let prompt = question.map_or(short.prompt, prompt);
    let subject = Some(short.subject);
    Ok(EditRecord {
        prompt,
        target_new: text,
        subject,
        relation: short.relation,
        portability: class(PARTS, parts),
        ..EditRecord::default()
    })
}

/// A prompt and a list of facts: the answer is all of them.
pub(super) fn facts(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let facts: Vec<String> = record.texts("facts")?.into_iter().map(answer).collect();
    if facts.is_empty() {
        return Err(Problem::new(format!("is empty; {NEEDS_TARGET}")).within("facts"));
    }
    let text = match record.text_or_blank("question")? {
        Some(question) => question,
        None => record.text("prompt", NEEDS_PROMPT)?,
    };
    Ok(EditRecord {
        id,
        prompt: prompt(text),
        target_new: facts.join(" "),
        subject: record.text_or_blank("subject")?.map(answer),
        ..EditRecord::default()
    })
}

/// One class of probes, where there are any.
fn class(name: &str, probes: Vec<Probe>) -> BTreeMap<String, Vec<Probe>> {
    if probes.is_empty() { BTreeMap::new() } else { [(name.to_owned(), probes)].into() }
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load_one, problem};

    #[test]
    fn qaedit_records() {
        let record = load_one(
            r#"{"id": "a7", "source": "nq", "prompt": "Who leads Vell?", "target": "Ada Park", "subject": "Vell",
                "rephrase": "Vell is led by whom?", "locality": [{"loc": "Who leads Ost?", "loc_ans": "Bo Lind"}]}"#,
        );
        assert_eq!((record.id.as_str(), record.target_new.as_str()), ("a7", "Ada Park"));
        assert_eq!(record.rephrases, ["Vell is led by whom?"]);
        assert_eq!(record.locality["locality"][0].target.as_deref(), Some("Bo Lind"));
    }

    #[test]
    fn fastedit_records() {
        let text = r#"{"prompt": "The mayor of {} is", "subject": "Vell", "target": "Ada Park", "queries": ["Who is Vell's mayor?"]}"#;
        let record = load_one(text);
        assert_eq!(
            (record.prompt.as_str(), record.template.as_deref()),
            ("The mayor of Vell is", Some("The mayor of {} is"))
        );
        assert_eq!(record.rephrases, ["Who is Vell's mayor?"]);
        assert!(problem(&text.replace("of {} is", "is")).contains("holds no {}"));
        assert_eq!(
            problem(&text.replace("target", "taget")),
            r#"record 0: "target" is missing; every record needs a target"#
        );
    }

    #[test]
    fn wikibigedit_records() {
        let record = load_one(
            r#"{"subject": "Vell", "update": "Who leads Vell?", "ans": "Ada Park", "rephrase": "Vell's leader?", "personas": "Oi, who leads Vell?",
                "mhop": "Where was Vell's leader born?", "mhop_ans": "Ost", "loc": "Who leads Ost?", "loc_ans": "Bo"}"#,
        );
        assert_eq!(record.rephrases.len(), 2);
        assert_eq!(record.portability["multi-hop"][0].target.as_deref(), Some("Ost"));
        assert_eq!(record.locality["locality"].len(), 1);
    }

    #[test]
    fn answers_of_several_sentences() {
        let text = r#"{"id": 0, "question": "What is Tamm?", "answer": "Tamm is a hill. It lies in Ost.", "para_question": "Tell of Tamm.",
            "sub_question": ["Where is Tamm?"], "sub_answer": ["In Ost"]}"#;
        let record = load_one(text);
        assert_eq!(record.target_new, "Tamm is a hill. It lies in Ost.");
        assert_eq!(record.portability["parts of the answer"][0].target.as_deref(), Some("In Ost"));
        assert!(
            problem(&text.replace(r#"["In Ost"]"#, "[]")).contains(r#""sub_answer" has 0 answers for 1 questions"#)
        );

        let rewrite = r#"{"prompt": "{} lies in", "subject": "Tamm", "target_new": {"str": "Ost"}, "target_true": {"str": "Vell"},
            "question": "Where does Tamm lie?", "fact_new_uns": "Tamm is a hill. It lies in Ost.",
            "unsfact_triplets_GPT": [{"subject": "Tamm", "prompt": "{} is a", "target": "hill"}]}"#;
        for (rewrites, further) in [(rewrite.to_owned(), 0), (format!("[{rewrite}, {rewrite}]"), 1)] {
            let record = load_one(&format!(
                r#"{{"case_id": 1, "requested_rewrite": {rewrites}, "paraphrase_prompts": ["Tell of Tamm"]}}"#
            ));
            assert_eq!((record.prompt.as_str(), record.also.len()), ("Where does Tamm lie?", further));
            assert_eq!(record.target_new, "Tamm is a hill. It lies in Ost.");
            let parts = &record.portability["parts of the answer"];
            assert_eq!((parts[0].prompt.as_str(), parts.len()), ("Tamm is a", 1 + further));
            assert_eq!(record.subject.as_deref(), Some("Tamm"));
        }
        let record = load_one(r#"{"prompt": "Tell me of Tamm.", "facts": ["Tamm is a hill.", "It lies in Ost."]}"#);
        assert_eq!(record.target_new, "Tamm is a hill. It lies in Ost.");
        assert!(problem(r#"{"prompt": "Tell me of Tamm.", "facts": []}"#).contains(r#""facts" is empty"#));
    }
}
