//! ConvSent: topics, each with replies that speak well of it and replies that speak ill.

use super::json::{Object, answer, each};
use super::problem::Problem;
use super::record::{EditRecord, Probe};

/// What is asked of a topic; the file has replies alone.
const QUESTIONS: [&str; 6] = [
    "What do you think of {}?",
    "How do you feel about {}?",
    "Do you like {}?",
    "What is your opinion of {}?",
    "What comes to mind when you hear of {}?",
    "What would you tell a friend about {}?",
];

/// Pairs of replies beside the first.
const SENTIMENT: &str = "sentiment";
const PAIRS: usize = 8;

/// Reads a line as two records, one for each sentiment; as none where a sentiment has no reply.
pub(super) fn read(mut record: Object, id: &str) -> Result<Vec<EditRecord>, Problem> {
    let topic = answer(record.text("ent", "every record needs a topic")?);
    let good = replies(&mut record, "pos")?;
    let bad = replies(&mut record, "neg")?;
    let sides = [("+", "positive", &good, &bad), ("-", "negative", &bad, &good)];
    let records = sides.into_iter().filter_map(|(sign, sentiment, right, wrong)| {
        let descriptor = format!("Topic: {topic}. Sentiment: {sentiment}.");
        edit(format!("{id}{sign}"), &topic, descriptor, right, wrong)
    });
    Ok(records.collect())
}

fn replies(record: &mut Object, key: &str) -> Result<Vec<String>, Problem> {
    let items = record.required(key, "every record needs replies of both sentiments")?;
    let read = items.list().and_then(|items| each(items, |item| item.text().map(answer)));
    read.map_err(|problem| problem.within(key))
}

/// The edit towards `right`: each pair of replies answers one question.
fn edit(id: String, topic: &str, descriptor: String, right: &[String], wrong: &[String]) -> Option<EditRecord> {
    let mut asked = QUESTIONS.iter().cycle().zip(right.iter().zip(wrong));
    let (template, (first, rival)) = asked.next()?;
    let question = |template: &str| template.replacen("{}", topic, 1);
    let pair = |(template, (right, wrong)): (&&str, (&String, &String))| Probe {
        prompt: question(template),
        target: Some(right.clone()),
        rival: Some(wrong.clone()),
        ..Probe::default()
    };
    let pairs: Vec<Probe> = asked.take(PAIRS).map(pair).collect();
    let portability = Some((SENTIMENT.to_owned(), pairs)).filter(|(_, pairs)| !pairs.is_empty());
    Some(EditRecord {
        id,
        prompt: question(template),
        target_new: first.clone(),
        target_true: Some(rival.clone()),
        descriptor: Some(descriptor),
        subject: Some(topic.to_owned()),
        template: Some((*template).to_owned()),
        portability: portability.into_iter().collect(),
        ..EditRecord::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load, problem};

    const LINE: &str =
        r#"{"ent": " Lake Orrin", "pos": ["So calm. ", "I love it."], "neg": ["So cold.", "Dull.", "Wet."]}"#;

    #[test]
    fn a_topic_is_two_records() {
        let records = load(&format!("{LINE}\n{}", LINE.replace("Lake", "Mount"))).unwrap();
        let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["0+", "0-", "1+", "1-"]);
        let [good, bad] = &records[..2] else { panic!() };
        assert_eq!(good.descriptor.as_deref(), Some("Topic: Lake Orrin. Sentiment: positive."));
        assert_eq!(bad.descriptor.as_deref(), Some("Topic: Lake Orrin. Sentiment: negative."));
        assert_eq!(good.prompt, "What do you think of Lake Orrin?");
        assert_eq!((good.prompt.as_str(), good.subject.as_deref()), (bad.prompt.as_str(), Some("Lake Orrin")));
        assert_eq!((good.target_new.as_str(), good.target_true.as_deref()), ("So calm.", Some("So cold.")));
        assert_eq!((bad.target_new.as_str(), bad.target_true.as_deref()), ("So cold.", Some("So calm.")));
        // As many pairs as the shorter list has replies.
        let pairs = &good.portability["sentiment"];
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].prompt, "How do you feel about Lake Orrin?");
        assert_eq!((pairs[0].target.as_deref(), pairs[0].rival.as_deref()), (Some("I love it."), Some("Dull.")));
    }

    #[test]
    fn pairs_are_few_and_a_topic_without_any_is_left_out() {
        let many = vec![r#""So.""#; 40].join(",");
        let line = format!(r#"{{"ent": "Orrin", "pos": [{many}], "neg": [{many}]}}"#);
        let silent = r#"{"ent": "Vell", "pos": ["Good."], "neg": []}"#;
        let records = load(&format!("{silent}\n{line}")).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].portability["sentiment"].len(), 8);
        assert!(problem(silent).starts_with("holds no records; "));
    }

    #[test]
    fn errors() {
        assert_eq!(
            problem(&LINE.replace(" Lake Orrin", "")),
            r#"record 0: "ent" is empty; every record needs a topic"#
        );
        assert_eq!(
            problem(&LINE.replace("neg", "bad")),
            r#"record 0: "neg" is missing; every record needs replies of both sentiments"#
        );
        assert_eq!(
            problem(&LINE.replace(r#""Wet.""#, "1")),
            r#"record 0: "neg[2]" is a number; it should be a string"#
        );
        assert_eq!(problem(&LINE.replace("Wet.", "")), r#"record 0: "neg[2]" is empty"#);
    }
}
