//! CounterFact, in the form of ROME and MEMIT and in EasyEdit's flat one.

use std::collections::BTreeMap;

use super::fields::{NEEDS_PROMPT, NEEDS_SUBJECT, NEEDS_TARGET, REWRITE, check_subject, fill};
use super::json::{Object, answer, prompt};
use super::problem::Problem;
use super::record::{ATTRIBUTE, EditRecord, Probe};

/// Prompts about other subjects that share the true target.
const NEIGHBORHOOD: &str = "neighborhood";

/// Reads a record of the published file: the rewrite is an object of its own and its prompt a template.
pub(super) fn read(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let rewrite = record.required(REWRITE, "every record needs one")?;
    let rewrite = rewrite
        .object()
        .and_then(|mut rewrite| read_rewrite(&mut rewrite))
        .map_err(|problem| problem.within(REWRITE))?;

    let mut locality = BTreeMap::new();
    let neighborhood = record.prompts("neighborhood_prompts")?;
    let attribute = record.prompts("attribute_prompts")?;
    add_class(&mut locality, NEIGHBORHOOD, neighborhood, rewrite.target_true.as_deref());
    add_class(&mut locality, ATTRIBUTE, attribute, Some(&rewrite.target_new));

    Ok(EditRecord {
        id,
        prompt: rewrite.prompt,
        target_new: rewrite.target_new,
        target_id: rewrite.target_id,
        target_true: rewrite.target_true,
        subject: Some(rewrite.subject),
        template: Some(rewrite.template),
        relation: rewrite.relation,
        rephrases: record.prompts("paraphrase_prompts")?,
        locality,
        generation: record.prompts("generation_prompts")?,
        ..EditRecord::default()
    })
}

/// One edit as the published files state it.
pub(super) struct Rewrite {
    pub prompt: String,
    pub template: String,
    pub subject: String,
    pub target_new: String,
    pub target_id: Option<String>,
    pub target_true: Option<String>,
    pub relation: Option<String>,
}

/// Reads an edit; its prompt is a template.
pub(super) fn read_rewrite(rewrite: &mut Object) -> Result<Rewrite, Problem> {
    let subject = answer(rewrite.text("subject", NEEDS_SUBJECT)?);
    let template = prompt(rewrite.text("prompt", NEEDS_PROMPT)?);
    let (target_new, target_id) = rewrite
        .required("target_new", NEEDS_TARGET)?
        .object()
        .and_then(|mut target| Ok((target.text("str", NEEDS_TARGET)?, target.text_or_blank("id")?)))
        .map_err(|problem| problem.within("target_new"))?;
    let target_true = match rewrite.take("target_true") {
        None => None,
        Some(target) => target
            .object()
            .and_then(|mut target| target.text_or_blank("str"))
            .map_err(|problem| problem.within("target_true"))?,
    };
    Ok(Rewrite {
        prompt: prompt(fill("prompt", &template, &subject)?.into()),
        template,
        subject,
        target_new: answer(target_new),
        target_id: target_id.map(answer),
        target_true: target_true.map(answer),
        relation: rewrite.text_or_blank("relation_id")?.map(answer),
    })
}

/// Reads a record of EasyEdit's file: one value a key, and the subject already in the prompt.
pub(super) fn read_flat(mut record: Object, id: String) -> Result<EditRecord, Problem> {
    let text = prompt(record.text("prompt", NEEDS_PROMPT)?);
    let subject = answer(record.text("subject", NEEDS_SUBJECT)?);
    check_subject("prompt", &text, &subject)?;
    let rephrase = record.text_or_blank("rephrase_prompt")?;

    let mut locality = BTreeMap::new();
    let truth = record.text_or_blank("locality_ground_truth")?.map(answer);
    if let Some(neighbor) = record.text_or_blank("locality_prompt")? {
        add_class(&mut locality, NEIGHBORHOOD, vec![prompt(neighbor)], truth.as_deref());
    }

    Ok(EditRecord {
        id,
        prompt: text,
        target_new: answer(record.text("target_new", NEEDS_TARGET)?),
        target_true: record.text_or_blank("ground_truth")?.map(answer),
        subject: Some(subject),
        rephrases: rephrase.map(prompt).into_iter().collect(),
        locality,
        ..EditRecord::default()
    })
}

fn add_class(classes: &mut BTreeMap<String, Vec<Probe>>, class: &str, prompts: Vec<String>, target: Option<&str>) {
    if prompts.is_empty() {
        return;
    }
    let probe = |prompt| Probe::new(prompt, target.map(str::to_owned));
    classes.insert(class.to_owned(), prompts.into_iter().map(probe).collect());
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load_one, problem};

    const RAW: &str = r#"{"case_id": 7, "pararel_idx": 1, "requested_rewrite": {"prompt": "{} was built in ",
        "subject": "The Grey Mill", "target_new": {"str": " Oslo", "id": "Q1"}, "target_true": {"str": "Bern", "id": "Q2"},
        "relation_id": "P1"}, "paraphrase_prompts": ["One finds The Grey Mill in "],
        "neighborhood_prompts": ["The Red Mill was built in"], "attribute_prompts": ["The Old Harbour is in"],
        "generation_prompts": ["Near The Grey Mill one"]}"#;

    const FLAT: &str = r#"{"case_id": 8, "prompt": "The Grey Mill was built in", "target_new": "Oslo",
        "subject": "The Grey Mill", "ground_truth": "Bern", "rephrase_prompt": "One finds The Grey Mill in",
        "locality_prompt": "The Red Mill was built in", "locality_ground_truth": "Bern"}"#;

    #[test]
    fn raw_records() {
        let record = load_one(RAW);
        assert_eq!(record.id, "7");
        assert_eq!(record.prompt, "The Grey Mill was built in");
        assert_eq!(record.template.as_deref(), Some("{} was built in"));
        assert_eq!(record.target_new, "Oslo");
        assert_eq!(record.target_true.as_deref(), Some("Bern"));
        assert_eq!(record.relation.as_deref(), Some("P1"));
        assert_eq!(record.rephrases, ["One finds The Grey Mill in"]);
        assert_eq!(record.generation, ["Near The Grey Mill one"]);
        assert_eq!(record.locality["neighborhood"][0].target.as_deref(), Some("Bern"));
        assert_eq!(record.locality["attribute"][0].target.as_deref(), Some("Oslo"));
    }

    #[test]
    fn flat_records() {
        let record = load_one(FLAT);
        assert_eq!(record.id, "8");
        assert_eq!(record.template, None);
        assert_eq!(record.target_true.as_deref(), Some("Bern"));
        assert_eq!(record.rephrases, ["One finds The Grey Mill in"]);
        assert_eq!(record.locality["neighborhood"][0].prompt, "The Red Mill was built in");
    }

    #[test]
    fn raw_errors_name_the_inner_key() {
        assert_eq!(
            problem(&RAW.replace(r#""str": " Oslo""#, r#""str": """#)),
            r#"record 0 (id 7): "requested_rewrite.target_new.str" is empty; every record needs a target"#
        );
        assert_eq!(
            problem(&RAW.replace("target_new", "target_next")),
            r#"record 0 (id 7): "requested_rewrite.target_new" is missing; every record needs a target"#
        );
        assert_eq!(
            problem(&RAW.replace(r#"["The Red Mill was built in"]"#, "[5]")),
            r#"record 0 (id 7): "neighborhood_prompts[0]" is a number; it should be a string"#
        );
        let twice = problem(&RAW.replace("{} was", "{} or {} was"));
        assert!(twice.contains(r#""requested_rewrite.prompt" holds {} 2 times"#), "{twice}");
    }

    #[test]
    fn flat_errors() {
        assert_eq!(
            problem(&FLAT.replace(r#""subject": "The Grey Mill""#, r#""subject": "The Gray Mill""#)),
            "record 0 (id 8): \"prompt\" does not contain the subject: \"The Gray Mill\" is not in \
             \"The Grey Mill was built in\"; write the subject in the prompt letter for letter"
        );
        let kind =
            problem(&FLAT.replace(r#""locality_prompt": "The Red Mill was built in""#, r#""locality_prompt": []"#));
        assert_eq!(kind, r#"record 0 (id 8): "locality_prompt" is a list; it should be a string"#);
    }
}
