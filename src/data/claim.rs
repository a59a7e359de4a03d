//! Claims: as questions with one of two answers, which the loaders of fact checking share, and as texts that a classifier judges.

use super::record::{EditRecord, OTHER_RECORDS, Probe};
use crate::error::{Error, Result};
use crate::model::separator::parted;

/// What stands around a claim in a question.
const AROUND: [&str; 2] = ["True or false: ", " Answer:"];

/// The answer where a claim holds, or where it does not.
pub(super) fn verdict(holds: bool) -> String {
    if holds { "True" } else { "False" }.to_owned()
}

/// The claim as a prompt whose answer is a verdict.
pub(super) fn question(claim: &str) -> String {
    format!("{}{}{}", AROUND[0], claim.trim(), AROUND[1])
}

/// The claim of such a prompt.
fn asked(prompt: &str) -> Option<&str> {
    prompt.strip_prefix(AROUND[0])?.strip_suffix(AROUND[1])
}

/// The labels of a classifier, and how records are put to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    all: Vec<String>,
    /// By which it says that a claim holds, and that it does not, where it judges claims.
    verdicts: Option<[String; 2]>,
}

/// What such labels are called, in small letters; those that transformers writes where a model has no names come last.
const HOLDS: [&str; 5] = ["supports", "true", "entailment", "yes", "label_1"];
const FAILS: [&str; 5] = ["refutes", "false", "contradiction", "no", "label_0"];

impl Labels {
    /// Those of a classifier.
    pub fn of(labels: &[String]) -> Self {
        let find = |names: &[&str]| labels.iter().find(|label| names.contains(&label.to_lowercase().as_str())).cloned();
        let verdicts = find(&HOLDS).zip(find(&FAILS)).map(|(holds, fails)| [holds, fails]);
        Labels { all: labels.to_vec(), verdicts }
    }

    /// Sees whether facts can be put to it, as claims.
    ///
    /// # Errors
    /// Labels of which none judges a claim.
    pub fn check(&self) -> Result<()> {
        match self.verdicts {
            Some(_) => Ok(()),
            None => Err(Error::Input(format!(
                "answers that are no labels are put to a classifier as claims, and that wants a label for those that hold ({}) and one for those that do not ({}); this one says {}",
                HOLDS.join(", "),
                FAILS.join(", "),
                self.all.join(", ")
            ))),
        }
    }

    fn label(&self, holds: bool) -> String {
        self.verdicts.as_ref().map_or_else(String::new, |verdicts| verdicts[usize::from(!holds)].clone())
    }

    /// The label that an answer means: its own name, whatever its letters' size, or another name of a verdict.
    fn meant(&self, answer: &str) -> Option<String> {
        let small = answer.trim().to_lowercase();
        let own = self.all.iter().find(|label| *label == answer).or_else(|| {
            let alike: Vec<&String> = self.all.iter().filter(|label| label.to_lowercase() == small).collect();
            (alike.len() == 1).then(|| alike[0])
        });
        let verdict = || match (HOLDS.contains(&small.as_str()), FAILS.contains(&small.as_str())) {
            (true, _) => self.verdicts.as_ref().map(|verdicts| verdicts[0].clone()),
            (_, true) => self.verdicts.as_ref().map(|verdicts| verdicts[1].clone()),
            _ => None,
        };
        own.cloned().or_else(verdict)
    }

    /// Records as they are put to the classifier. Those without a question out of scope are given the next two as such.
    ///
    /// # Errors
    /// As [`Labels::check`], for the record.
    pub fn put_all(&self, records: Vec<EditRecord>) -> Result<Vec<EditRecord>> {
        self.warn_of_claims(&records);
        let put = |(number, record)| self.put(record, number).map_err(|error: Error| error.of_record(number));
        let mut put = records.into_iter().enumerate().map(put).collect::<Result<Vec<_>>>()?;
        let known: Vec<Option<Probe>> = put.iter().map(EditRecord::fact).collect();
        for (number, record) in put.iter_mut().enumerate() {
            let others = (1..3).map(|further| (number + further) % known.len()).filter(|other| *other != number);
            let others: Vec<Probe> = others.filter_map(|other| known[other].clone()).collect();
            if record.locality.is_empty() && !others.is_empty() {
                record.locality.insert(OTHER_RECORDS.into(), others);
            }
        }
        Ok(put)
    }

    /// Says which answers were perhaps meant as labels, and are none: one by itself, or some beside labels. A file of facts is meant as claims.
    fn warn_of_claims(&self, records: &[EditRecord]) {
        let others: Vec<&EditRecord> = records
            .iter()
            .filter(|record| asked(&record.prompt).is_none() && self.meant(&record.target_new).is_none())
            .collect();
        if let Some(record) =
            others.first().filter(|_| self.verdicts.is_some() && (records.len() == 1 || others.len() < records.len()))
        {
            tracing::warn!(
                "{} of {} answers are no labels of this classifier ({}), the first \"{}\": with their prompts they are put to it as claims",
                others.len(),
                records.len(),
                self.all.join(", "),
                record.target_new
            );
        }
    }

    /// A record as it is put to the classifier. One whose answer is a label stays as it is. All others are claims: one that asks for verdicts
    /// gives up its questions; of any other, prompt and answer are the claim, in every second one with the old answer, which holds no more,
    /// where it is known, else with the new one, which is to hold now.
    ///
    /// # Errors
    /// As [`Labels::check`].
    pub(super) fn put(&self, record: EditRecord, number: usize) -> Result<EditRecord> {
        let of_claims = asked(&record.prompt).is_some();
        if let Some(label) = self.meant(&record.target_new).filter(|_| !of_claims) {
            let target_true = record.target_true.as_deref().and_then(|answer| self.meant(answer));
            return Ok(EditRecord { target_new: label, target_true, ..record });
        }
        self.check()?;
        let (answer, holds) = match (of_claims, record.target_true.clone().filter(|_| number % 2 == 1)) {
            (true, _) => (String::new(), record.target_new == verdict(true)),
            (false, Some(old)) => (old, false),
            (false, None) => (record.target_new.clone(), true),
        };
        let between = record.separator.as_deref();
        let claim = |prompt: &String| match asked(prompt) {
            Some(claim) => claim.to_owned(),
            None => stated(prompt, &answer, between),
        };
        let probes = |classes: &std::collections::BTreeMap<String, Vec<Probe>>| {
            let put = |probes: &Vec<Probe>| {
                probes.iter().enumerate().map(|(place, probe)| self.probe(probe, number + place, between)).collect()
            };
            classes.iter().map(|(class, probes)| (class.clone(), put(probes))).collect()
        };
        Ok(EditRecord {
            prompt: claim(&record.prompt),
            target_new: self.label(holds),
            target_true: Some(self.label(!holds)),
            rephrases: record.rephrases.iter().map(claim).collect(),
            locality: probes(&record.locality),
            portability: probes(&record.portability),
            conditions: probes(&record.conditions),
            also: record.also.iter().map(|further| self.put(further.clone(), number)).collect::<Result<_>>()?,
            target_id: None,
            descriptor: None,
            template: None,
            generation: vec![],
            aliases: vec![],
            separator: None,
            ..record
        })
    }

    /// A question beside an edit as a claim: with its answer, or in every second one with the answer that must lose, where there is one.
    fn probe(&self, probe: &Probe, number: usize, between: Option<&str>) -> Probe {
        let put = |prompt: String, holds: Option<bool>| Probe {
            prompt,
            target: holds.map(|holds| self.label(holds)),
            rival: holds.map(|holds| self.label(!holds)),
            aliases: vec![],
            test: probe.test,
        };
        match (asked(&probe.prompt), &probe.target, &probe.rival) {
            (Some(claim), target, _) => put(claim.into(), target.as_ref().map(|target| *target == verdict(true))),
            (None, Some(_), Some(rival)) if number % 2 == 1 => put(stated(&probe.prompt, rival, between), Some(false)),
            (None, Some(target), _) => put(stated(&probe.prompt, target, between), Some(true)),
            (None, None, _) => put(probe.prompt.clone(), None),
        }
    }
}

/// A prompt with its answer as a sentence.
pub(crate) fn stated(prompt: &str, answer: &str, between: Option<&str>) -> String {
    let (lead, space) = parted(prompt, answer, between);
    let end = if answer.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{lead}{space}{answer}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels {
        Labels::of(&["REFUTES".into(), "SUPPORTS".into()])
    }

    #[test]
    fn questions_with_verdicts_are_their_claims() {
        let record = EditRecord {
            prompt: question("Orrin is a lake."),
            target_new: verdict(false),
            target_true: Some(verdict(true)),
            rephrases: vec![question("Orrin's a lake.")],
            locality: [("random".into(), vec![Probe::new(question("Vell is dry."), Some(verdict(true)))])].into(),
            descriptor: Some("Orrin is a lake. False".into()),
            ..EditRecord::default()
        };
        let put = labels().put(record, 0).unwrap();
        assert_eq!((put.prompt.as_str(), put.target_new.as_str()), ("Orrin is a lake.", "REFUTES"));
        assert_eq!(put.target_true.as_deref(), Some("SUPPORTS"));
        assert_eq!((put.rephrases, put.descriptor), (vec!["Orrin's a lake.".to_owned()], None));
        let probe = &put.locality["random"][0];
        assert_eq!((probe.prompt.as_str(), probe.target.as_deref()), ("Vell is dry.", Some("SUPPORTS")));
    }

    #[test]
    fn facts_are_stated() {
        let record = EditRecord {
            prompt: "Orrin lies in".into(),
            target_new: "Tamm".into(),
            target_true: Some("Vell".into()),
            rephrases: vec!["Where is Orrin?".into()],
            locality: [(
                "near".into(),
                vec![Probe { rival: Some("Tamm".into()), ..Probe::new("Agg lies in", Some("Vell".into())) }],
            )]
            .into(),
            ..EditRecord::default()
        };
        let texts = |number| {
            let put = labels().put(record.clone(), number).unwrap();
            let near = put.locality["near"][0].clone();
            [put.prompt, put.rephrases[0].clone(), put.target_new, near.prompt, near.target.unwrap()]
        };
        assert_eq!(
            texts(0),
            ["Orrin lies in Tamm.", "Where is Orrin? Tamm.", "SUPPORTS", "Agg lies in Vell.", "SUPPORTS"]
        );
        assert_eq!(
            texts(1),
            ["Orrin lies in Vell.", "Where is Orrin? Vell.", "REFUTES", "Agg lies in Tamm.", "REFUTES"]
        );
    }

    #[test]
    fn labels_that_judge_nothing_are_refused() {
        let labels = Labels::of(&["sport".into(), "politics".into()]);
        let record =
            |answer: &str| EditRecord { prompt: "A text".into(), target_new: answer.into(), ..EditRecord::default() };
        let error = labels.put(record("Tamm"), 0).unwrap_err().to_string();
        assert!(error.contains("this one says sport, politics"), "{error}");
        assert_eq!(labels.put(record("sport"), 0).unwrap(), record("sport"));
        assert!(Labels::of(&["LABEL_0".into(), "LABEL_1".into()]).check().is_ok());
    }
}
