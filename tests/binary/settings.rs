//! Every number in the config of a training changes what the training leaves behind.

use std::path::Path;

use serde_json::Value;

use crate::common::{TestFolder, json, sets, training};

/// The paths of all numbers, and of lists of numbers.
fn numbers(settings: &Value, path: &str, found: &mut Vec<String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match settings {
        Value::Object(map) => map.iter().for_each(|(key, value)| numbers(value, &join(key), found)),
        Value::Number(_) => found.push(path.to_owned()),
        Value::Array(list) if list.iter().any(Value::is_number) => found.push(path.to_owned()),
        _ => {}
    }
}

/// What a training leaves behind, and its settings.
#[track_caller]
fn trained(config: &Path, out: &Path, settings: &[&str]) -> ([Vec<u8>; 2], Vec<Value>, Value) {
    let settings = sets(settings);
    let document = json(&training(config, out, &settings));
    let files = ["network.safetensors", "metrics.jsonl"].map(|name| std::fs::read(out.join(name)).unwrap());
    let figures = ["steps", "best", "test", "editor"].map(|key| document[key].clone());
    (files, figures.into(), document["settings"].clone())
}

/// Sees that each number of a training has another value here, and that each such value leaves something else behind. `elsewhere`
/// are those that must not, which other tests look at.
#[track_caller]
fn each_counts(place: &TestFolder, config: &Path, base: &[&str], others: &[(&str, &str)], elsewhere: &[&str]) {
    let (files, figures, settings) = trained(config, &place.path("known"), base);
    let mut found = vec![];
    numbers(&settings, "", &mut found);
    let mut idle = vec![];
    for path in &found {
        if elsewhere.contains(&path.as_str()) {
            continue;
        }
        let other = others.iter().find(|(key, _)| key == path);
        let (_, value) = other.unwrap_or_else(|| panic!("no other value of {path}"));
        let set = format!("{path}={value}");
        let out = place.path(&format!("out {path}"));
        let kept: Vec<&str> = base.iter().copied().filter(|set| set.split('=').next() != Some(path)).collect();
        let (other_files, other_figures, _) = trained(config, &out, &[&kept[..], &[&set]].concat());
        if files == other_files && figures == other_figures {
            idle.push(set);
        }
    }
    assert!(idle.is_empty(), "these change nothing: {idle:?}");
    assert_eq!(found.len(), others.len() + elsewhere.len(), "{found:?}");
}

/// Numbers that every training has.
const EVERY: [(&str, &str); 14] = [
    ("data.test_records", "2"),
    ("data.rephrases", "0"),
    ("data.per_class", "0"),
    ("train.seed", "1"),
    ("train.max_steps", "5"),
    ("train.edits_per_step", "5"),
    ("train.accumulate", "2"),
    ("train.validate_every", "3"),
    ("train.validation_records", "3"),
    ("train.learning_rate", "2e-2"),
    ("train.weight_decay", "0.5"),
    ("train.warm_up", "2"),
    ("train.schedule_end", "0.9"),
    ("train.clip", "1e-3"),
];

/// It stops a training that goes wrong; and what is read of a running text, where there is one.
const ELSEWHERE: [&str; 3] = ["train.stop_after_not_finite", "data.text_tokens", "data.text_cases"];

const BASE: [&str; 8] = [
    "train.optimizer=adamw",
    "train.weight_decay=0.1",
    "train.schedule=cosine",
    "train.schedule_end=0.1",
    "train.warm_up=1",
    "train.validate_every=1",
    "train.edits_per_step=4",
    "train.validation_records=6",
];

#[test]
fn each_number_of_mend_counts() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let own = [
        ("editor.layers", "[0, 2]"),
        ("editor.rank", "3"),
        ("editor.blocks", "3"),
        ("editor.initial_edit_rate", "0.2"),
        ("editor.initial_spread", "2.0"),
        ("editor.normalization_records", "4"),
        ("loss.edit", "0.2"),
        ("loss.locality", "2.0"),
        ("loss.in_scope", "2"),
        ("loss.out_of_scope", "2"),
        ("loss.mix.near", "9.0"),
        ("loss.mix.far", "9.0"),
        ("loss.text.weight", "9.0"),
        ("loss.text.share", "0.5"),
        ("loss.text.tokens", "6"),
        ("loss.text.positions", "2"),
        ("loss.text.windows", "3"),
        ("data.text_tokens", "50"),
        ("data.text_cases", "2"),
        ("train.edits_together", "1"),
        ("train.patience", "1"),
        ("train.edit_rate_learning_rate", "2e-2"),
    ];
    let lines = (0..30).map(|line| format!("The river of valley {line} runs by old mills to the sea.\n"));
    place.write("prose.txt", lines.collect::<String>());
    let prose = "loss.text={from=\"prose.txt\", weight=1.0, share=1.0, tokens=12, positions=4, windows=9}";
    let base = [&BASE[..], &["train.edits_together=2", "loss.mix={near=1.0, far=1.0}", prose]].concat();
    // What is kept is what would be computed again; sums have no damping.
    let elsewhere = ["train.stop_after_not_finite", "train.hidden_memory_gb", "editor.initial_damping"];
    each_counts(&place, &config, &base, &[&EVERY[..], &own].concat(), &elsewhere);
}

#[test]
fn each_number_of_rledit_counts() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let own = [("loss.back_depth", "1"), ("loss.decay", "0.1"), ("loss.shift", "1e6"), ("train.edits_together", "1")];
    let base =
        ["editor.method=rledit", "train.edits_per_step=6", "train.edits_together=2", "editor.initial_edit_rate=0.05"];
    let known = trained(&config, &place.path("known"), &base).0;
    for (number, (key, value)) in own.iter().enumerate() {
        let set = format!("{key}={value}");
        let kept: Vec<&str> = base.iter().copied().filter(|set| set.split('=').next() != Some(key)).collect();
        let other = trained(&config, &place.path(&number.to_string()), &[&kept[..], &[&set]].concat()).0;
        assert!(known != other, "{set} changes nothing");
    }
}

#[test]
fn each_number_of_malmen_counts() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let own = [
        ("editor.layers", "[0, 2]"),
        ("editor.rank", "3"),
        ("editor.blocks", "3"),
        ("editor.initial_edit_rate", "0.2"),
        ("editor.initial_damping", "-3.0"),
        ("editor.initial_spread", "2.0"),
        ("editor.normalization_records", "4"),
        ("loss.edit", "0.2"),
        ("loss.locality", "2.0"),
        ("loss.in_scope", "2"),
        ("loss.out_of_scope", "2"),
        ("loss.mix.near", "9.0"),
        ("loss.mix.far", "9.0"),
        ("train.edits_together", "1"),
        ("train.patience", "1"),
        ("train.edit_rate_learning_rate", "2e-2"),
    ];
    let mix = ["editor.method=malmen", "train.edits_together=4", "loss.mix={near=1.0, far=1.0}"];
    let base = [&BASE[..], &mix].concat();
    let elsewhere = [&ELSEWHERE[..], &["train.hidden_memory_gb"]].concat();
    each_counts(&place, &config, &base, &[&EVERY[..], &own].concat(), &elsewhere);
}

#[test]
fn each_number_of_serac_counts() {
    let place = TestFolder::new();
    let config = place.serac_config();
    let own = [
        ("editor.threshold", "0.01"),
        ("editor.classifier.layers", "1"),
        ("editor.classifier.dimensions", "8"),
        ("editor.classifier.scale", "3.0"),
        ("editor.classifier.learning_rate", "2e-2"),
        ("editor.counterfactual.tune.lora.rank", "3"),
        ("editor.counterfactual.tune.lora.top", "1"),
        ("loss.scope", "2.0"),
        ("loss.mined.count", "2"),
        ("loss.mined.among", "2"),
        ("loss.mined.temperature", "0.01"),
        ("loss.mined.pool", "3"),
        ("loss.mined.skip", "1"),
        ("loss.edit", "2.0"),
        ("loss.locality", "2.0"),
        ("loss.held", "1"),
        ("loss.end", "0.5"),
        ("loss.in_scope", "1"),
        ("loss.out_of_scope", "1"),
        ("loss.mix.near", "9.0"),
        ("loss.mix.far", "9.0"),
        ("train.edits_together", "2"),
    ];
    let base = [
        &BASE[..],
        &[
            "loss.mix={near=1.0, far=1.0}",
            "editor.classifier.learning_rate=1e-2",
            "editor.counterfactual.tune={lora={rank=2}}",
        ],
    ]
    .concat();
    // How many edits are read beside a question: a training looks at one edit a question. Patience is the loop's, as MEND's test has it:
    // here every validation is better than the one before.
    let elsewhere = [&ELSEWHERE[..], &["editor.classifier.candidates", "train.patience"]].concat();
    each_counts(&place, &config, &base, &[&EVERY[..], &own].concat(), &elsewhere);
    // One rate serves the network that has none of its own.
    let of = |name: &str, more: &[&str]| trained(&config, &place.path(name), &[&base[..], more].concat()).0;
    assert!(of("one", &[]) != of("two", &["editor.counterfactual.learning_rate=2e-2"]));
}
