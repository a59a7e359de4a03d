//! The pocket world and its model keep their promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use emend::Model;
use emend::data::pocket;
use emend::data::source::Source;
use emend::data::world::{CLASSES, Split};
use emend::edit::Edited;
use emend::edit::score::score;

#[test]
fn the_world_is_as_large_and_as_varied_as_promised() {
    let world = pocket::world().unwrap();
    assert!(world.facts().len() >= 4000);
    assert!(world.relations().count() >= 10);
    assert!(world.split(Split::Test).len() >= 200);
    assert!(world.split(Split::Validation).len() >= 200);
    for index in 0..world.facts().len() {
        let (known, held) = world.prompts(index);
        assert_eq!(held.len(), 2);
        assert!(known.len() >= 8);
        let all: BTreeSet<&String> = known.iter().chain(&held).collect();
        assert_eq!(all.len(), known.len() + held.len(), "the prompts of fact {index} differ");
        assert!(known.iter().chain(&held).any(|prompt| prompt.ends_with('?')), "there is a question");
    }
    let mut objects: BTreeMap<&str, usize> = BTreeMap::new();
    world.facts().iter().for_each(|fact| *objects.entry(&fact.object).or_default() += 1);
    let frequent = objects.values().filter(|&&count| count >= 5).count();
    assert!(2 * frequent > objects.len(), "most objects have five facts or more");
}

#[test]
fn no_subject_stands_in_two_parts_and_no_training_record_shows_another_part() {
    let world = pocket::world().unwrap();
    let mut parts: BTreeMap<&str, Split> = BTreeMap::new();
    for fact in world.facts() {
        assert_eq!(*parts.entry(&fact.subject).or_insert(fact.split), fact.split);
    }
    let train = Source::open(pocket::NAME, Split::Train, std::path::Path::new("")).unwrap();
    let other_parts = (0..world.facts().len()).filter(|&index| world.facts()[index].split != Split::Train);
    let elsewhere: BTreeSet<String> = other_parts
        .flat_map(|index| {
            let (known, held) = world.prompts(index);
            known.into_iter().chain(held)
        })
        .collect();
    for record in train.draws(1, 0, 200, 3) {
        assert_ne!(record.target_true.as_ref(), Some(&record.target_new));
        assert!(record.prompt.contains(record.subject.as_ref().unwrap()));
        assert!(record.rephrases.len() >= 8 && !record.rephrases.contains(&record.prompt));
        assert!(record.locality.values().flatten().all(|probe| !elsewhere.contains(&probe.prompt)));
    }
}

#[test]
fn draws_depend_on_seed_and_number_alone() {
    let train = Source::open(pocket::NAME, Split::Train, std::path::Path::new("")).unwrap();
    let all = train.draws(7, 0, 40, 2);
    assert_eq!(train.draws(7, 15, 10, 2), all[15..25]);
    assert_ne!(train.draws(8, 0, 40, 2), all);
    let classes: BTreeSet<&str> = all.iter().flat_map(|record| record.locality.keys().map(String::as_str)).collect();
    assert_eq!(classes, BTreeSet::from(CLASSES));
}

/// The decoder and the encoder-decoder.
#[test]
fn the_models_know_their_world() {
    let world = pocket::world().unwrap();
    for name in [pocket::NAME, "pocket-t5"] {
        let model = Edited::new(Arc::new(Model::load(name, &Device::flex(), DType::F32).unwrap()));
        let (mut known, mut held_out) = (vec![], vec![]);
        for (index, fact) in world.facts().iter().enumerate() {
            let (learnt, held) = world.prompts(index);
            let text = |prompt: &String| model.base().tokenizer.continuation(prompt, &fact.object, None).unwrap();
            known.push(text(&learnt[index % learnt.len()]));
            held_out.extend(held.iter().map(text));
        }
        let share = |texts: &[_]| {
            let scored = score(&[&model], texts).unwrap().remove(0);
            scored.iter().filter(|scored| scored.exact()).count() as f64 / texts.len() as f64
        };
        assert!(share(&known) >= 0.99, "{name}: {}", share(&known));
        assert!(share(&held_out) >= 0.97, "{name}: {}", share(&held_out));
    }
}
