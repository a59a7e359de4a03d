//! The data sets made from the pocket world are what they should be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device};
use emend::Model;
use emend::data::world::Split;
use emend::data::{EditRecord, load_records, pocket};
use emend::edit::{EditRequest, Edited};
use emend::evaluate::probes::Limits;
use emend::evaluate::{Kind, Side, balanced, probe_table, sentiment};

const PARTS: [(&str, Split); 3] = [("train", Split::Train), ("validation", Split::Validation), ("test", Split::Test)];

fn records(set: &str, part: &str) -> Vec<EditRecord> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(set).join(format!("{part}.json"));
    load_records(&file).unwrap()
}

fn every_record() -> impl Iterator<Item = (&'static str, Split, EditRecord)> {
    ["qa-hard", "fc", "convsent"].into_iter().flat_map(|set| {
        let of = move |(part, split)| records(set, part).into_iter().map(move |record| (set, split, record));
        PARTS.into_iter().flat_map(of)
    })
}

#[test]
fn sets_are_as_large_as_promised_and_ids_are_their_own() {
    for set in ["qa-hard", "fc", "convsent"] {
        let ids: Vec<String> = PARTS.iter().flat_map(|(part, _)| records(set, part)).map(|record| record.id).collect();
        let different: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert!(ids.len() >= 300 && different.len() == ids.len(), "{set}: {}", ids.len());
    }
}

#[test]
fn subjects_stand_in_the_part_of_the_world_they_come_from() {
    let world = pocket::world().unwrap();
    let splits: BTreeMap<&str, Split> = world.facts().iter().map(|fact| (fact.subject.as_str(), fact.split)).collect();
    for (set, split, record) in every_record() {
        let subject = record.subject.unwrap();
        assert!(record.prompt.contains(&subject), "{set}: {}", record.prompt);
        // Sports and instruments are topics too; the world knows them as answers.
        assert!(splits.get(subject.as_str()).is_none_or(|&known| known == split), "{set}: {subject}");
    }
}

#[test]
fn statement_question_and_answer_fit_the_embedded_model() {
    let tokenizer = emend::model::load::pocket::find("pocket").unwrap().tokenizer().unwrap();
    for (set, _, record) in every_record() {
        let statement = EditRequest::from(&record).statement();
        let mut asked = vec![(&record.prompt, record.target_new.as_str())];
        asked.extend(record.target_true.iter().map(|answer| (&record.prompt, answer.as_str())));
        asked.extend(record.rephrases.iter().map(|prompt| (prompt, record.target_new.as_str())));
        for probe in record.locality.values().chain(record.portability.values()).flatten() {
            // Where no answer is known, there is room for one.
            asked.push((&probe.prompt, probe.target.as_deref().unwrap_or("False")));
            asked.extend(probe.rival.iter().map(|rival| (&probe.prompt, rival.as_str())));
        }
        for (prompt, answer) in asked {
            let text = tokenizer.continuation(&format!("{statement} {prompt}"), answer, None).unwrap();
            assert!(text.ids.len() <= 60, "{set}: {statement} {prompt} {answer}");
        }
    }
}

#[test]
fn as_many_claims_are_true_as_false() {
    for set in ["qa-hard", "fc"] {
        for (part, _) in PARTS {
            let records = records(set, part);
            let mut labels: BTreeMap<(&str, &str), usize> = BTreeMap::new();
            for record in &records {
                let classes = record.locality.iter().chain(&record.portability);
                for (class, probe) in classes.flat_map(|(class, probes)| probes.iter().map(move |probe| (class, probe)))
                {
                    if let Some(label @ ("True" | "False")) = probe.target.as_deref() {
                        *labels.entry((class, label)).or_default() += 1;
                    }
                }
            }
            for class in ["true or false", "near miss true or false", "claim", "other claim"] {
                assert_eq!(labels.get(&(class, "True")), labels.get(&(class, "False")), "{set}/{part}: {class}");
            }
        }
    }
}

#[test]
fn what_is_out_of_scope_is_there_in_its_classes() {
    for (set, _, record) in every_record() {
        let has = |class: &str| record.locality.contains_key(class) || record.portability.contains_key(class);
        let wanted: &[&str] = match set {
            "qa-hard" => &["true or false", "near miss"],
            "fc" => &["claim", "not enough info"],
            _ => &["sentiment", "other topic"],
        };
        assert!(wanted.iter().all(|class| has(class)), "{set}: {}", record.id);
        assert_eq!(record.descriptor.is_some(), set != "qa-hard");
    }
}

#[test]
fn the_table_holds_the_rivals_of_probes_and_says_which_edits_are_described() {
    let model = Edited::new(Arc::new(Model::load(pocket::NAME, &Device::flex(), DType::F32).unwrap()));
    for set in ["qa-hard", "fc", "convsent"] {
        let records = records(set, "test");
        let numbered: Vec<(usize, &EditRecord)> = records.iter().take(6).enumerate().collect();
        let table = probe_table(&model, &model, &numbered, Limits::default()).unwrap();
        for row in &table {
            let record = &records[row.record];
            let rival = row.rival.as_ref().map(|rival| &rival.target);
            assert_eq!(row.described, record.descriptor.is_some());
            match (row.kind, &row.class) {
                (Kind::Rewrite | Kind::Rephrase, _) => assert_eq!(rival, record.target_true.as_ref()),
                (_, Some(class)) => {
                    let classes = if row.kind == Kind::Locality { &record.locality } else { &record.portability };
                    let probe = classes[class].iter().find(|probe| probe.prompt == row.prompt).unwrap();
                    // Without one of its own, the new answer is the rival where the old one must stay.
                    let kept = row.kind == Kind::Locality && probe.target == record.target_true;
                    let new = Some(&record.target_new).filter(|_| kept);
                    assert_eq!(rival, probe.rival.as_ref().or(new), "{}", row.prompt);
                }
                (kind, None) => panic!("{kind:?} without a class"),
            }
        }
        let (labels, opinions) = (balanced(&table, Side::After), sentiment(&table, Side::After));
        assert_eq!((labels.in_scope.is_some(), labels.out_of_scope.is_some()), (set != "convsent", set != "convsent"));
        assert_eq!(opinions.topic.is_some(), set == "convsent");
        assert!(opinions.topic.is_none_or(|topic| (topic - 1.0).abs() < 1e-6));
        // Without rivals there is nothing to compare.
        let table = probe_table(&model, &model, &numbered[..1], Limits { rivals: false, ..Limits::default() }).unwrap();
        assert_eq!(balanced(&table, Side::After).in_scope, None);
    }
}
