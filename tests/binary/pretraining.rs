//! `emend pretrain` on a world of four facts.

use serde_json::json;

use crate::common::{TestFolder, refused, run, sets, stdout, text};

const CONFIG: &str = r#"
    [model]
    vocabulary = 270
    layers = 1
    width = 16
    heads = 2
    context = 64

    [data]
    world = "world.json"

    [train]
    max_steps = 3
    batch = 4
    learning_rate = 1e-2
    warm_up = 1
    weight_decay = 0.0
    clip = 1.0
    prompt_weight = 0.1
    repeat_known = 0.25
    shards = 2
"#;

fn place() -> TestFolder {
    let place = TestFolder::new();
    place.write("pretrain.toml", CONFIG);
    let world = json!({"relations": [{
        "name": "country",
        "templates": ["{} lies in", "You find {} in", "The land of {} is"],
        "questions": ["In which country is {}?"],
        "facts": [["Orrin", "Vell"], ["Ael", "Ost"], ["Issa", "Tamm"], ["Dorn", "Vell"]],
    }]});
    place.write("world.json", world.to_string());
    place
}

/// The weights that a pretraining writes.
fn weights(place: &TestFolder, changes: &[&str]) -> Vec<u8> {
    let (config, out) = (place.path("pretrain.toml"), place.path("out"));
    let fixed = ["pretrain", "--config", text(&config), "--out", text(&out)];
    stdout(&run(&[&fixed, sets(changes).as_slice()].concat()));
    std::fs::read(out.join("model.safetensors")).unwrap()
}

/// (`train.repeat_known` needs a model that knows something: it has a test beside its code. `train.shards` changes the order of
/// additions, which 16 bits do not show.)
#[test]
fn every_setting_of_a_pretraining_counts() {
    let place = place();
    let plain = weights(&place, &[]);
    assert!(weights(&place, &[]) == plain, "the same settings give another model");
    for change in [
        "train.seed=1",
        "train.max_steps=4",
        "train.batch=2",
        "train.learning_rate=2e-2",
        "train.warm_up=3",
        "train.weight_decay=0.5",
        "train.clip=1e-6",
        "train.prompt_weight=1.0",
        "model.vocabulary=280",
        "model.layers=2",
        "model.width=32",
        "model.heads=4",
        "model.context=48",
    ] {
        assert!(weights(&place, &[change]) != plain, "{change} changes nothing");
    }
}

#[test]
fn settings_of_a_pretraining_that_cannot_be() {
    let place = place();
    let config = place.path("pretrain.toml");
    for (change, words) in [
        ("train.steps=3", ["train.steps: unknown key `steps`", "max_steps"]),
        ("train.shards=9", ["train.shards = 9", "between 1 and 4"]),
        ("train.weight_decay=-1.0", ["train.weight_decay = -1", "between 0 and 1"]),
        ("train.repeat_known=2.0", ["train.repeat_known = 2", "between 0 and 1"]),
        ("train.clip=nan", ["train.clip = NaN", "at least"]),
    ] {
        refused(&["pretrain", "--config", text(&config), "--set", change], 2, &words);
    }
    refused(&["pretrain", "--config", text(&config), "--set", "data.world=none.json"], 1, &["none.json"]);
}
