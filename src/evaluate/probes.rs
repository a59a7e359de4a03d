//! The table of probes: what a model said before and after an edit.

use serde::{Deserialize, Serialize};

use crate::data::objective::{Hidden, Objective};
use crate::data::record::{EditRecord, Probe, TestPart};
use crate::edit::Edited;
use crate::edit::likelihood::Scored;
use crate::edit::noise::{self, Noise};
use crate::edit::score::score;
use crate::error::Result;
use crate::model::separator::parted;
use crate::model::tokenizer::Continuation;

/// What a probe asks of an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The edit's own prompt: the new target is right.
    Rewrite,
    /// Another way to ask for it: the new target is right.
    Rephrase,
    /// Out of scope: the answer must stay.
    Locality,
    /// A consequence of the edit.
    Portability,
    /// What the unedited model must know for a test of the class to count.
    Condition,
}

/// One probe, before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRow {
    /// The number of the record in the list.
    pub record: usize,
    /// Whether a descriptor states the record's edit.
    pub described: bool,
    /// What is asked.
    pub kind: Kind,
    /// The class of a locality or portability probe.
    pub class: Option<String>,
    /// The prompt.
    pub prompt: String,
    /// The target that is scored.
    pub target: String,
    /// Whether the target was given, or is the model's own likeliest token before the edit.
    pub given: bool,
    /// Whether prompt and target had to be tokenised apart.
    pub apart: bool,
    /// Before the edit.
    pub before: Scored,
    /// After the edit.
    pub after: Scored,
    /// Other names of the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The test that it is part of, where several questions are one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestPart>,
    /// What stands between prompt and target, where the record says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Whether the edit is to make its target less likely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lowered: bool,
    /// The answer that the target is up against, where the probe or its record knows it.
    pub rival: Option<Rival>,
}

impl ProbeRow {
    /// The prompt up to where its answer begins.
    pub fn asked(&self) -> String {
        parted(&self.prompt, &self.target, self.separator.as_deref()).0.into_owned()
    }
}

/// The probe's own rival; without one, the old answer where the new one is asked for, the new one where the old must stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rival {
    /// The answer.
    pub target: String,
    /// Before the edit.
    pub before: Scored,
    /// After the edit.
    pub after: Scored,
}

/// How many probes of each kind a record is asked at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rephrases.
    pub rephrases: usize,
    /// Prompts of each locality class and of each portability class.
    pub per_class: usize,
    /// Whether the answers that the targets are up against are scored too, as the protocols `counterfact`, `balanced` and
    /// `sentiment` want it.
    pub rivals: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { rephrases: usize::MAX, per_class: usize::MAX, rivals: true }
    }
}

struct Asked {
    record: usize,
    described: bool,
    kind: Kind,
    class: Option<String>,
    prompt: String,
    target: String,
    given: bool,
    aliases: Vec<String>,
    test: Option<TestPart>,
    separator: Option<String>,
    text: Continuation,
    rival: Option<(String, Continuation)>,
    /// The noise under which it is read, and the subject that is hidden.
    hidden: Option<(Hidden, String, Option<String>)>,
    lowered: bool,
}

/// Asks both models the probes of records: their own prompt, rephrases, locality and portability prompts.
///
/// `records` come with their number in the caller's list. A locality prompt without a known answer is asked for the token the
/// model answered before.
///
/// # Errors
/// A probe that cannot be tokenised, or is longer than the context.
pub fn probe_table(
    before: &Edited,
    after: &Edited,
    records: &[(usize, &EditRecord)],
    limits: Limits,
) -> Result<Vec<ProbeRow>> {
    let tokenizer = &before.base().tokenizer;
    let mut asked: Vec<Asked> = vec![];
    for &(number, record) in records {
        let between = record.separator.as_deref();
        let mut ask = |kind, class: Option<&String>, probe: &Probe, edit: &EditRecord| -> Result<()> {
            let prompt = probe.prompt.as_str();
            let (text, target, given) = match &probe.target {
                Some(target) => (tokenizer.continuation(prompt, target, between)?, target.clone(), true),
                None => {
                    let mut ids = tokenizer.encode_prompt(prompt)?;
                    let prompt = ids.len();
                    let own = before.next_tokens(&ids, 1)?.first().map_or(0, |token| token.id);
                    ids.push(own);
                    let target = tokenizer.token(own).trim().to_owned();
                    (Continuation { ids, prompt, apart: false }, target, false)
                }
            };
            let rival = match kind {
                Kind::Rewrite | Kind::Rephrase => edit.target_true.as_ref(),
                // Only where the record's old answer is what must stay does the new one compete with it.
                Kind::Locality if given && Some(&target) == record.target_true.as_ref() => Some(&record.target_new),
                Kind::Locality | Kind::Portability | Kind::Condition => None,
            };
            let rival = probe.rival.as_ref().filter(|_| given).or(rival).filter(|_| limits.rivals);
            let rival = match rival {
                Some(rival) => Some((rival.clone(), tokenizer.continuation(prompt, rival, between)?)),
                None => None,
            };
            // Where the subject is hidden the edit's own prompts are read so, and an answer that is up against theirs is not.
            let own = matches!(kind, Kind::Rewrite | Kind::Rephrase);
            let hidden =
                edit.objective.filter(|_| own).and_then(|objective| objective.hidden()).zip(edit.subject.clone());
            let rival = rival.filter(|_| hidden.is_none());
            let template = edit.template.clone().filter(|_| kind == Kind::Rewrite);
            asked.push(Asked {
                record: number,
                described: record.descriptor.is_some(),
                kind,
                class: class.cloned(),
                prompt: prompt.to_owned(),
                target,
                given,
                aliases: probe.aliases.clone(),
                test: probe.test,
                separator: record.separator.clone(),
                text,
                rival,
                lowered: matches!(kind, Kind::Rewrite | Kind::Rephrase) && edit.objective == Some(Objective::Lower),
                hidden: hidden.map(|(hidden, subject)| (hidden, subject, template)),
            });
            Ok(())
        };
        for edit in record.edits() {
            let own = |prompt: &String| Probe {
                aliases: edit.aliases.clone(),
                ..Probe::new(prompt, Some(edit.target_new.clone()))
            };
            ask(Kind::Rewrite, None, &own(&edit.prompt), edit)?;
            for prompt in edit.rephrases.iter().take(limits.rephrases) {
                ask(Kind::Rephrase, None, &own(prompt), edit)?;
            }
        }
        let kinds = [
            (Kind::Locality, &record.locality),
            (Kind::Portability, &record.portability),
            (Kind::Condition, &record.conditions),
        ];
        for (kind, classes) in kinds {
            for (class, probes) in classes {
                // Of tests whole ones are asked.
                let place = |at: usize, probe: &Probe| probe.test.map_or(at, |part| part.number);
                for (_, probe) in probes.iter().enumerate().filter(|(at, probe)| place(*at, probe) < limits.per_class) {
                    ask(kind, Some(class), probe, record)?;
                }
            }
        }
    }
    let rivals = asked.iter().filter_map(|asked| Some(&asked.rival.as_ref()?.1));
    let texts: Vec<Continuation> = asked.iter().map(|asked| &asked.text).chain(rivals).cloned().collect();
    let mut scored = score(&[before, after], &texts)?;
    // Where a subject is to be hidden the edit's own prompts are read so.
    for (number, asked) in asked.iter().enumerate() {
        let Some((hidden, subject, template)) = &asked.hidden else { continue };
        let place = (subject.as_str(), template.as_deref());
        if let Some(noise) = Noise::of_subject(before, &asked.prompt, place, *hidden, 0..hidden.draws)? {
            let own = noise::score(&[before, after], &asked.text, &noise)?;
            scored.iter_mut().zip(own).for_each(|(of_model, own)| of_model[number] = own);
        }
    }
    let [before, after] = scored.as_slice() else { return Ok(vec![]) };
    let mut both = before.iter().cloned().zip(after.iter().cloned());
    let own: Vec<(Scored, Scored)> = both.by_ref().take(asked.len()).collect();
    let rows = asked.into_iter().zip(own).map(|(asked, (before, after))| ProbeRow {
        record: asked.record,
        described: asked.described,
        kind: asked.kind,
        class: asked.class,
        prompt: asked.prompt,
        target: asked.target,
        given: asked.given,
        aliases: asked.aliases,
        test: asked.test,
        separator: asked.separator,
        lowered: asked.lowered,
        apart: asked.text.apart,
        before,
        after,
        rival: asked.rival.and_then(|(target, _)| {
            let (before, after) = both.next()?;
            Some(Rival { target, before, after })
        }),
    });
    Ok(rows.collect())
}
