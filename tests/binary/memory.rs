//! SERAC as a user meets it: memories that are made, added to, consulted and forgotten, and the networks that they depend on.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{
    TensorFile, TestFolder, Trained, edit, fixture, gpt2, json, records, refused, replace, run, sets, stdout, text,
    training, wrong_usage,
};

const PROMPTS: [&str; 3] = ["Lake Orrin lies in", "You find Mount Ael in", "A king is"];

/// Arguments that add one edit to a memory.
fn remember<'a>(archive: &'a Path, memory: &'a Path, prompt: &'a str, target: &'a str) -> Vec<&'a str> {
    vec!["apply", "--archive", text(archive), "--prompt", prompt, "--target", target, "--memory", text(memory)]
}

/// A memory of the lake and the mountain, made and then added to.
fn two(place: &TestFolder, archive: &Path) -> PathBuf {
    let memory = place.path("memory.safetensors");
    for (prompt, target) in [("Lake Orrin lies in", "Tamm"), ("Mount Ael lies in", "Bern")] {
        stdout(&run(&remember(archive, &memory, prompt, target)));
    }
    memory
}

fn predict(edits: &[&Path], prompts: &[&str], more: &[&str]) -> Value {
    let model = gpt2();
    let mut args = vec!["predict", "--model", text(&model), "--top", "100000", "--generate", "4"];
    edits.iter().for_each(|edit| args.extend(["--edit", text(edit)]));
    prompts.iter().for_each(|prompt| args.extend(["--prompt", *prompt]));
    args.extend(more);
    json(&args)
}

/// The prompts of a memory's entries with their answers.
fn entries(memory: &Path) -> Vec<(String, String)> {
    let document = json(&["inspect", text(memory)]);
    assert_eq!(document["kind"], "memory");
    let requests = document["provenance"]["requests"].as_array().unwrap().iter();
    let string = |value: &Value| value.as_str().unwrap().to_owned();
    requests.map(|request| (string(&request["prompt"]), string(&request["target_new"]))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(prompt, target)| ((*prompt).to_owned(), (*target).to_owned())).collect()
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The probabilities of all next tokens, by id.
fn probabilities(result: &Value) -> Vec<f64> {
    let top = result["top"].as_array().unwrap().iter();
    let mut top: Vec<(u64, f64)> =
        top.map(|token| (token["id"].as_u64().unwrap(), number(&token["probability"]))).collect();
    top.sort_by_key(|(id, _)| *id);
    top.into_iter().map(|(_, probability)| probability).collect()
}

/// max|a − b|
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && a.len() > 100, "{} and {}", a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn made_added_to_listed_consulted_and_forgotten() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let memory = place.path("memory.safetensors");
    let first = json(&remember(&archive, &memory, "Lake Orrin lies in", "Tamm"));
    assert_eq!((&first["method"], &first["saved"]), (&json!("serac"), &json!([memory])));
    assert_eq!(entries(&memory), pairs(&[("Lake Orrin lies in", "Tamm")]));
    stdout(&run(&remember(&archive, &memory, "Mount Ael lies in", "Bern")));
    assert_eq!(entries(&memory), pairs(&[("Lake Orrin lies in", "Tamm"), ("Mount Ael lies in", "Bern")]));

    let document = json(&["inspect", text(&memory)]);
    assert_eq!(document["provenance"]["method"], "serac");
    assert_eq!(document["width"], 16);
    assert_eq!(document["needs"]["archive"], json!(archive.canonicalize().unwrap()));
    assert_eq!(document["needs"]["fingerprint"].as_str().unwrap().len(), 64);
    let listed = stdout(&run(&["inspect", text(&memory)]));
    let row = |number: &str, words: [&str; 2]| {
        listed.lines().any(|line| line.starts_with(number) && words.iter().all(|word| line.contains(word)))
    };
    assert!(row("0 ", ["Lake Orrin lies in", "Tamm"]) && row("1 ", ["Mount Ael lies in", "Bern"]), "{listed}");

    let said = predict(&[&memory], &["Mount Ael lies in", "Lake Orrin lies in"], &[]);
    for (result, target) in said["results"].as_array().unwrap().iter().zip(["Bern", "Tamm"]) {
        let consulted = &result["memory"];
        assert_eq!(
            (&consulted["request"]["prompt"], &consulted["request"]["target_new"]),
            (&result["prompt"], &json!(target))
        );
        assert!((0.0..=1.0).contains(&number(&consulted["scope"])), "{consulted}");
    }
    let model = gpt2();
    let said = ["predict", "--model", text(&model), "--edit", text(&memory), "--prompt", "Mount Ael lies in"];
    let said = stdout(&run(&said));
    assert!(said.contains("from memory: Mount Ael lies in Bern (scope "), "{said}");

    // What is refused leaves the file alone.
    let before = std::fs::read(&memory).unwrap();
    refused(&["forget", text(&memory), "2"], 1, &["memory.safetensors", "no entry 2", "0 to 1"]);
    refused(&["forget", text(&memory), "0", "7"], 1, &["memory.safetensors", "no entry 7"]);
    refused(&["forget", text(&memory), "1", "0"], 1, &["memory.safetensors", "nothing would be left"]);
    wrong_usage(&["forget", text(&memory)], &["ENTRY"]);
    wrong_usage(&["forget", text(&memory), "first"], &["first"]);
    assert!(std::fs::read(&memory).unwrap() == before);

    let forgot = stdout(&run(&["forget", text(&memory), "0"]));
    assert!(forgot.contains("forgot: Lake Orrin lies in Tamm") && forgot.contains("1 of 2 edits left"), "{forgot}");
    assert_eq!(entries(&memory), pairs(&[("Mount Ael lies in", "Bern")]));
    refused(&["forget", text(&memory), "0"], 1, &["nothing would be left", "remove its file"]);
    // The one that is left answers now, and nothing tells that there ever was another.
    assert_eq!(
        predict(&[&memory], &["Lake Orrin lies in"], &[])["results"][0]["memory"]["request"]["target_new"],
        "Bern"
    );
    let alone = place.path("alone.safetensors");
    stdout(&run(&remember(&archive, &alone, "Mount Ael lies in", "Bern")));
    assert!(std::fs::read(&alone).unwrap() == std::fs::read(&memory).unwrap());
}

#[test]
fn several_records_at_once() {
    let place = TestFolder::new();
    let (archive, facts) = (place.serac("archive", "0.0"), place.write("facts.json", records().to_string()));
    let memory = |name: &str| place.path(&format!("{name}.safetensors"));
    let apply = |mode: &str, more: &[&str]| {
        let memory = memory(mode);
        let args =
            ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", mode, "--memory", text(&memory)];
        run(&[&args, more].concat())
    };
    stdout(&apply("batch", &[]));
    stdout(&apply("sequential", &[]));
    let all: Vec<(&str, &str)> = vec![
        ("Lake Orrin lies in", "Tamm"),
        ("Mount Ael lies in", "Bern"),
        ("Port Issa lies in", "Ostria"),
        ("Cape Dorn lies in", "Vell"),
        ("Fort Ulm lies in", "Ost"),
        ("Isle Rhea lies in", "Ostria"),
    ];
    for mode in ["batch", "sequential"] {
        assert_eq!(entries(&memory(mode)), pairs(&all), "{mode}");
    }
    // A text's key does not depend on what stands beside it.
    assert!(std::fs::read(memory("batch")).unwrap() == std::fs::read(memory("sequential")).unwrap());
    let args = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--memory"];
    let single = memory("single");
    refused(&[&args[..], &[text(&single)]].concat(), 2, &["--memory", "--mode batch", "--mode sequential"]);
    assert!(!single.exists());
    // One record is one edit in every mode.
    stdout(&run(&[&args[..], &[text(&single), "--limit", "1"]].concat()));
    assert_eq!(entries(&single), pairs(&all[..1]));
    wrong_usage(&edit(&archive, &["--memory", text(&single), "--save", text(&single)]), &["--memory", "--save"]);
}

#[test]
fn editors_of_weights_keep_no_memory() {
    let place = TestFolder::new();
    let memory = place.path("memory.safetensors");
    refused(&edit(&Trained::Gpt2.archive(), &["--memory", text(&memory)]), 2, &["--memory", "mend", "--save"]);
    for (method, own) in [
        ("fine_tuning", "layers = [1]\nlearning_rate = 0.05\nsteps = 2"),
        ("rome", "layers = [1]\nstatistics = \"none\"\ncontext_templates = [\"{}\"]"),
    ] {
        let config = format!("[model]\npath = {:?}\n\n[editor]\nmethod = {method:?}\n{own}\n", gpt2());
        let config = place.write("config.toml", config);
        let request = ["--prompt", "Lake Orrin lies in", "--subject", "Lake Orrin", "--target", "Tamm"];
        let args = [&["apply", "--config", text(&config), "--memory", text(&memory)], &request[..]].concat();
        refused(&args, 2, &["--memory", method, "serac, ike, lookup, grace and wise"]);
    }
    assert!(!memory.exists());
}

#[test]
fn out_of_scope_the_model_speaks_in_scope_another() {
    let place = TestFolder::new();
    let plain = predict(&[], &PROMPTS, &[]);
    let outside = two(&place, &place.serac("outside", "1.0"));
    let said = predict(&[&outside], &PROMPTS, &[]);
    assert_eq!(said["results"], plain["results"]);
    assert_eq!(said["edits"].as_array().unwrap().len(), 1);
    std::fs::remove_file(&outside).unwrap();

    let inside = two(&place, &place.serac("inside", "0.0"));
    let said = predict(&[&inside], &PROMPTS, &[]);
    for (said, plain) in said["results"].as_array().unwrap().iter().zip(plain["results"].as_array().unwrap()) {
        assert!(said["memory"].is_object() && plain["memory"].is_null());
        assert!(apart(&probabilities(said), &probabilities(plain)) > 0.01, "{}", said["prompt"]);
    }
    assert_eq!(predict(&[], &PROMPTS, &[])["results"], plain["results"]);
}

/// What `apply` shows before and after is what `predict` says without and with the memory.
#[test]
fn probes_before_and_after() {
    let place = TestFolder::new();
    let facts = place.write("facts.json", records().to_string());
    for (threshold, moved) in [("0.0", true), ("1.0", false)] {
        let archive = place.serac("archive", threshold);
        let args = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--limit", "2", "--mode", "batch"];
        let document = json(&args);
        for request in document["requests"].as_array().unwrap() {
            for probe in request["probes"].as_array().unwrap() {
                assert_eq!(probe["before"] != probe["after"], moved, "{probe}");
            }
        }
        let figures = &document["summary"]["figures"];
        assert_eq!(figures["edits"], 2);
        assert!(moved || figures["locality"] == 1.0, "{figures}");
    }
}

/// A counterfactual model that is the model itself, untrained: who asks a memory asks the model behind the edit.
#[test]
fn in_scope_an_edit_is_read_before_the_question() {
    let place = TestFolder::new();
    let config = place.serac_config();
    let mut said = vec![];
    for routing in ["hard", "soft"] {
        let out = place.path(routing);
        let set = format!("editor.routing={routing}");
        let mut values = vec!["editor.counterfactual.tune=nothing", "train.max_steps=2", &set];
        values.extend((routing == "hard").then_some("editor.threshold=0.0"));
        let settings = sets(&values);
        stdout(&run(&training(&config, &out, &settings)));
        let memory = place.path("memory.safetensors");
        let _ = std::fs::remove_file(&memory);
        stdout(&run(&remember(&out, &memory, "Lake Orrin lies in", "Tamm")));
        said.push(predict(&[&memory], &["You find Lake Orrin in"], &[])["results"][0].clone());
    }
    let plain = predict(&[], &["You find Lake Orrin in", "Lake Orrin lies in Tamm. You find Lake Orrin in"], &[]);
    let [base, behind] = [0, 1].map(|index| probabilities(&plain["results"][index]));
    assert!(apart(&base, &behind) > 0.01, "the edit before the question tells nothing");
    let [hard, soft] = [0, 1].map(|index| probabilities(&said[index]));
    assert!(apart(&hard, &behind) < 1e-6);
    assert_eq!(said[0]["generated"], plain["results"][1]["generated"]);
    // p = (1 − s) p_base + s p_counterfactual
    let scope = number(&said[1]["memory"]["scope"]);
    assert!(scope > 0.01 && scope < 0.99, "a mixture of {scope} shows nothing");
    let mixed: Vec<f64> =
        base.iter().zip(&behind).map(|(base, behind)| (1.0 - scope) * base + scope * behind).collect();
    assert!(apart(&soft, &mixed) < 1e-6);
}

#[test]
fn a_memory_lies_over_edits_of_weights() {
    let place = TestFolder::new();
    let weights = place.path("weights.safetensors");
    stdout(&run(&edit(&Trained::Gpt2.archive(), &["--save", text(&weights)])));
    let outside = two(&place, &place.serac("outside", "1.0"));
    let edited = predict(&[&weights], &PROMPTS, &[]);
    assert_ne!(edited["results"], predict(&[], &PROMPTS, &[])["results"]);
    for order in [[&weights, &outside], [&outside, &weights]] {
        let said = predict(&order.map(PathBuf::as_path), &PROMPTS, &[]);
        assert_eq!(said["results"], edited["results"]);
        assert_eq!(said["edits"].as_array().unwrap().len(), 2);
    }
    // An edit of weights is no memory to add to, and none to forget from.
    let before = std::fs::read(&weights).unwrap();
    let archive = place.serac("inside", "0.0");
    refused(
        &remember(&archive, &weights, "hi", "Tamm"),
        1,
        &["weights.safetensors", "a memory and an edit that is none"],
    );
    refused(&["forget", text(&weights), "0"], 1, &["weights.safetensors", "no memory"]);
    assert!(std::fs::read(&weights).unwrap() == before);
}

/// Three edits, the last on the question of the first.
fn contradictory(place: &TestFolder) -> PathBuf {
    let record = |prompt: &str, target: &str| json!({"prompt": prompt, "target_new": target});
    let records = [
        record("Lake Orrin lies in", "Tamm"),
        record("Mount Ael lies in", "Ost"),
        record("Lake Orrin lies in", "Vell"),
    ];
    place.write("contradictory.json", json!(records).to_string())
}

/// Of an edit on a question that was edited before the later wins, and it is said, once.
#[track_caller]
fn changed_its_mind(args: &[&str], memory: &Path) {
    let output = run(args);
    stdout(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = "\"Lake Orrin lies in\": \"Vell\" takes the place of \"Tamm\"";
    assert_eq!(errors.matches(said).count(), 1, "{args:?}: {errors}");
    assert_eq!(entries(memory), pairs(&[("Mount Ael lies in", "Ost"), ("Lake Orrin lies in", "Vell")]));
    let consulted = predict(&[memory], &["Lake Orrin lies in"], &[])["results"][0]["memory"].clone();
    assert_eq!(consulted["request"]["target_new"], "Vell");
}

#[test]
fn of_contradictory_edits_the_later_wins() {
    let place = TestFolder::new();
    let (archive, facts) = (place.serac("archive", "0.0"), contradictory(&place));
    for mode in ["batch", "sequential"] {
        let memory = place.path(&format!("{mode}.safetensors"));
        let args = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", mode];
        changed_its_mind(&[&args[..], &["--memory", text(&memory)]].concat(), &memory);
    }
    let memory = place.path("added.safetensors");
    stdout(&run(&remember(&archive, &memory, "Lake Orrin lies in", "Tamm")));
    stdout(&run(&remember(&archive, &memory, "Mount Ael lies in", "Ost")));
    changed_its_mind(&remember(&archive, &memory, "Lake Orrin lies in", "Vell"), &memory);
    // The same edit again is no change of mind, and no second entry.
    let again = run(&remember(&archive, &memory, "Lake Orrin lies in", "Vell"));
    stdout(&again);
    assert!(!String::from_utf8_lossy(&again.stderr).contains("takes the place"));
    assert_eq!(entries(&memory).len(), 2);
}

#[test]
fn a_saved_sequence_says_its_changes_of_mind_too() {
    let place = TestFolder::new();
    let (archive, facts) = (place.serac("archive", "0.0"), contradictory(&place));
    for mode in ["batch", "sequential"] {
        let saved = place.path(&format!("{mode}.safetensors"));
        let args = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", mode];
        changed_its_mind(&[&args[..], &["--save", text(&saved)]].concat(), &saved);
    }
}

/// Of two files laid over each other the later wins too.
#[test]
fn memories_are_consulted_as_one() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let [old, new] = [("Tamm", "old"), ("Vell", "new")].map(|(target, name)| {
        let memory = place.path(&format!("{name}.safetensors"));
        stdout(&run(&remember(&archive, &memory, "Lake Orrin lies in", target)));
        memory
    });
    for (order, target) in [([&old, &new], "Vell"), ([&new, &old], "Tamm")] {
        let said = predict(&order.map(PathBuf::as_path), &["Lake Orrin lies in"], &[]);
        assert_eq!(said["results"][0]["memory"]["request"]["target_new"], target);
    }
}

#[test]
fn an_archive_names_its_bases() {
    let place = TestFolder::new();
    let archive = Trained::Serac.archive();
    let description = json(&["inspect", text(&archive)])["description"].clone();
    let model = json(&["inspect", text(&gpt2())])["fingerprint"].clone();
    let editor = &description["editor"];
    for found in [&description["base"], &editor["classifier"], &editor["counterfactual"]] {
        assert_eq!(found["fingerprint"], model);
    }
    assert_eq!((&editor["method"], &editor["forms"]), (&json!("serac"), &json!(["answer"])));

    for (section, key) in [("classifier", "classifier.encoder"), ("counterfactual", "counterfactual.model")] {
        let other = place.copy(&archive, section);
        let path = other.join("archive.toml");
        let toml = std::fs::read_to_string(&path).unwrap();
        let (before, after) = toml.split_once(&format!("[editor.{section}]")).unwrap();
        let after = after.replacen(model.as_str().unwrap(), &"0".repeat(64), 1);
        std::fs::write(&path, format!("{before}[editor.{section}]{after}")).unwrap();
        refused(&edit(&other, &[]), 1, &[key, &"0".repeat(64), model.as_str().unwrap()]);
    }
    let other = place.copy(&archive, "base");
    replace(&other.join("archive.toml"), model.as_str().unwrap(), &"0".repeat(64));
    refused(&edit(&other, &[]), 1, &["was made on base", model.as_str().unwrap()]);
}

#[test]
fn a_memory_finds_its_archive() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let memory = two(&place, &archive);
    let here = predict(&[&memory], &PROMPTS, &[]);
    let (named, moved) = (archive.canonicalize().unwrap(), place.path("moved"));
    std::fs::rename(&archive, &moved).unwrap();
    let model = gpt2();
    let ask = |more: &[&str]| {
        let args = ["predict", "--model", text(&model), "--edit", text(&memory), "--prompt", "hi"];
        args.into_iter().chain(more.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let refuse = |more: &[&str], words: &[&str]| {
        let args = ask(more);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1, words);
    };
    refuse(&[], &["memory.safetensors", text(&named), "not there", "--archive DIR"]);
    refuse(&["--archive", "no-such-folder"], &["memory.safetensors", "no-such-folder", "not there"]);
    let there = predict(&[&memory], &PROMPTS, &["--archive", text(&moved)]);
    assert_eq!(there["results"], here["results"]);
    // It can be looked at and cut down without its networks.
    assert_eq!(entries(&memory).len(), 2);
    // Trained otherwise, set otherwise, or another editor's.
    let (other, config) = (place.path("other"), place.serac_config());
    stdout(&run(&training(&config, &other, &sets(&["train.seed=2", "editor.threshold=0.0"]))));
    refuse(&["--archive", text(&other)], &["memory.safetensors", "another classifier"]);
    let outside = place.serac("outside", "1.0");
    refuse(&["--archive", text(&outside)], &["memory.safetensors", "another classifier"]);
    refuse(&["--archive", text(&Trained::Gpt2.archive())], &["memory.safetensors", "another classifier"]);
    let before = std::fs::read(&memory).unwrap();
    refused(&remember(&other, &memory, "hi", "Tamm"), 1, &["memory.safetensors", "another classifier"]);
    assert!(std::fs::read(&memory).unwrap() == before);
    wrong_usage(&["predict", "--model", text(&model), "--prompt", "hi", "--archive", text(&moved)], &["--edit"]);
    stdout(&run(&["forget", text(&memory), "1"]));
    assert_eq!(entries(&memory), pairs(&[("Lake Orrin lies in", "Tamm")]));
}

/// The networks are the same wherever they lie.
#[test]
fn a_memory_is_added_to_where_its_archive_was_moved() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let memory = two(&place, &archive);
    let moved = place.path("moved");
    std::fs::rename(&archive, &moved).unwrap();
    stdout(&run(&remember(&moved, &memory, "Port Issa lies in", "Ostria")));
    assert_eq!(entries(&memory).len(), 3);
    assert_eq!(
        predict(&[&memory], &["Port Issa lies in"], &[])["results"][0]["memory"]["request"]["target_new"],
        "Ostria"
    );
}

/// Tensors of an archive's network whose names begin so.
fn network(archive: &Path, part: &str) -> Vec<(String, Vec<u8>)> {
    let tensors = TensorFile::read(&archive.join("network.safetensors")).tensors.into_iter();
    let tensors: Vec<_> =
        tensors.filter(|(name, _)| name.starts_with(part)).map(|(name, (_, _, data))| (name, data)).collect();
    assert!(!tensors.is_empty(), "no {part}");
    tensors
}

#[test]
fn the_two_networks_trained_apart() {
    let place = TestFolder::new();
    let config = place.serac_config();
    let (first, second) = (place.path("first"), place.path("second"));
    // Weights that decay show a parameter that is not left alone.
    let decay = ["train.optimizer=adamw", "train.weight_decay=0.1"];
    let settings = |more: &[&'static str]| sets(&[&decay[..], more].concat());
    let document = json(&training(&config, &first, &settings(&["editor.train=classifier"])));
    assert!(number(&document["editor"]["scope_accuracy"]) <= 1.0);
    // The counterfactual model is still the one it began as; the classifier is not.
    let model = TensorFile::read(&gpt2().join("model.safetensors")).tensors;
    let embedding = |archive: &Path, part: &str| network(archive, part)[0].1.clone();
    let pretrained = &model["transformer.wte.weight"].2;
    assert!(&embedding(&first, "counterfactual.ends.embedding") == pretrained);
    assert!(&embedding(&first, "classifier.reader.ends.embedding") != pretrained);
    let metrics = std::fs::read_to_string(first.join("metrics.jsonl")).unwrap();
    assert!(metrics.lines().next().unwrap().contains("\"edit_nll\":0.0,"), "{metrics}");

    let start = format!("editor.start={}", text(&first));
    let apart = settings(&["editor.train=counterfactual"]);
    let config = place.counterfactual_config();
    stdout(&run(&training(&config, &second, &[&apart[..], &["--set", &start]].concat())));
    assert!(network(&second, "classifier.") == network(&first, "classifier."));
    assert!(network(&second, "counterfactual.") != network(&first, "counterfactual."));
    // Both together are an archive like any other.
    let memory = two(&place, &second);
    assert_eq!(entries(&memory).len(), 2);
    // Beside its config a start is found by its name.
    let third = place.path("third");
    stdout(&run(&training(&config, &third, &settings(&["editor.train=counterfactual", "editor.start=first"]))));
    assert!(network(&third, "") == network(&second, ""));
}

#[test]
fn starts_that_are_none() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    let mend = format!("editor.start={}", text(&Trained::Gpt2.archive()));
    refused(&training(&config, &out, &sets(&[&mend])), 2, &["editor.start", "no archive of SERAC"]);
    refused(&training(&config, &out, &sets(&["editor.start=nowhere"])), 1, &["nowhere", "no archive here"]);
    let serac = format!("editor.start={}", text(&Trained::Serac.archive()));
    let other = ["editor.classifier.dimensions=8", "editor.counterfactual.tune={top=1}", &serac];
    refused(&training(&config, &out, &sets(&other)), 2, &["editor.start", "neither network"]);
    let llama = ["train", "--model", text(&fixture("llama-tiny")), "--config", text(&config), "--out", text(&out)]
        .map(str::to_owned);
    let llama: Vec<&str> = llama.iter().map(String::as_str).chain(sets(&[&serac])).collect();
    refused(&llama, 2, &["editor.start", "neither network"]);
    assert!(!out.join("archive.toml").exists());
}

/// With one network trained alone, the other must come from the start: a new one that nothing ever trains is of no use.
#[test]
fn a_start_without_the_network_that_is_not_trained() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    let (alone, cross) = (place.counterfactual_config(), place.cross_config());
    replace(&cross, "mined = { count = 1, among = 4 }", "");
    let serac = format!("editor.start={}", text(&Trained::Serac.archive()));
    for (config, other) in
        [(&alone, "editor.classifier.dimensions=8"), (&cross, "train.seed=0"), (&alone, "editor.classifier.layers=1")]
    {
        let other = ["editor.train=counterfactual", other, &serac];
        refused(&training(config, &out, &sets(&other)), 2, &["editor.start", "classifier"]);
    }
    let other = ["editor.train=classifier", "editor.counterfactual.tune={top=1}", &serac];
    refused(&training(&config, &out, &sets(&other)), 2, &["editor.start", "counterfactual"]);
}

/// An encoder of another family and vocabulary as the classifier, by embedding and over pairs.
#[test]
fn bert_as_the_classifier() {
    for (kind, width) in [("embedding", 16), ("cross", 32)] {
        let place = TestFolder::new();
        let facts = place.path("facts.json");
        let (encoder, out) = (place.copy_of("bert-tiny"), place.path("out"));
        let mut set = vec!["editor.classifier.encoder=bert-tiny", "editor.threshold=0.0"];
        let config = if kind == "cross" {
            set.push("editor.classifier.candidates=2");
            place.cross_config()
        } else {
            place.serac_config()
        };
        let document = json(&training(&config, &out, &sets(&set)));
        for share in ["scope_accuracy", "scope_in", "scope_out"] {
            assert!((0.0..=1.0).contains(&number(&document["editor"][share])), "{kind}: {share}");
        }
        let steps = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let steps: Vec<Value> = steps.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let losses: Vec<f64> = steps.iter().filter_map(|step| step["scope"].as_f64()).collect();
        assert!(losses.len() == 4 && losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{kind}: {losses:?}");
        // The encoder is named by its whole path, and what was trained of it is not what it was.
        let named = json(&["inspect", text(&out)])["description"]["editor"]["classifier"].clone();
        assert_eq!(named["encoder"], json!(encoder.canonicalize().unwrap()));
        assert_eq!(named["fingerprint"].as_str().unwrap().len(), 64);
        let (words, pretrained) =
            (network(&out, "classifier.reader.ends.embedding"), TensorFile::read(&encoder.join("model.safetensors")));
        let (_, (_, _, pretrained)) =
            pretrained.tensors.iter().find(|(name, _)| name.ends_with("word_embeddings.weight")).unwrap();
        assert!(words[0].1.len() == pretrained.len() && &words[0].1 != pretrained);

        let memory = place.path("memory.safetensors");
        let apply =
            ["apply", "--archive", text(&out), "--edits", text(&facts), "--mode", "batch", "--memory", text(&memory)];
        stdout(&run(&apply));
        assert_eq!(json(&["inspect", text(&memory)])["width"], width);
        let known: Vec<String> = entries(&memory).into_iter().map(|(prompt, _)| prompt).collect();
        assert_eq!(known.len(), 6);
        let plain = predict(&[], &PROMPTS, &[]);
        let said = predict(&[&memory], &PROMPTS, &[]);
        for (said, plain) in said["results"].as_array().unwrap().iter().zip(plain["results"].as_array().unwrap()) {
            let consulted = &said["memory"];
            assert!(
                known.iter().any(|prompt| consulted["request"]["prompt"] == *prompt.as_str()),
                "{kind}: {consulted}"
            );
            assert!((0.0..=1.0).contains(&number(&consulted["scope"])), "{kind}: {consulted}");
            assert!(apart(&probabilities(said), &probabilities(plain)) > 0.01, "{kind}");
        }
        // An entry more or less says nothing of the others.
        stdout(&run(&["forget", text(&memory), "1", "2", "3", "4", "5"]));
        let alone = predict(&[&memory], &PROMPTS, &[]);
        assert!(
            alone["results"].as_array().unwrap().iter().all(|said| said["memory"]["request"]["target_new"] == "Tamm")
        );

        // Without its encoder, or with another in its place, an archive answers nothing.
        let model = gpt2();
        let ask = ["predict", "--model", text(&model), "--edit", text(&memory), "--prompt", "hi"];
        replace(&encoder.join("config.json"), "\"gelu\"", "\"relu\"");
        refused(&ask, 1, &["classifier.encoder", "bert-tiny"]);
        std::fs::remove_dir_all(&encoder).unwrap();
        refused(&ask, 1, &["bert-tiny", "no such folder"]);
    }
}

/// The pair of an edit and a question read by the model's own blocks.
#[test]
fn pairs_read_by_the_model_itself() {
    let place = TestFolder::new();
    let (config, out) = (place.cross_config(), place.path("out"));
    let set = ["editor.classifier.layers=2", "editor.classifier.tune={lora={rank=2}}"];
    stdout(&run(&training(&config, &out, &sets(&[&set[..], &["editor.threshold=0.0"]].concat()))));
    assert!(network(&out, "classifier.reader.factors").len() >= 4);
    let memory = two(&place, &out);
    let said = predict(&[&memory], &PROMPTS, &[]);
    assert!(said["results"].as_array().unwrap().iter().all(|result| result["memory"].is_object()));
}

/// A counterfactual model of another family and vocabulary: it says its own words, and the model's are left alone.
#[test]
fn a_counterfactual_model_of_another_vocabulary() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    let record = |subject: &str, target: &str| json!({"prompt": format!("{subject} is in"), "subject": subject, "target_new": target, "locality": {"far": ["A king is"]}});
    place.write("facts.json", json!([record("Ael", "Ost"), record("Ulm", "Vell")]).to_string());
    let llama = format!("editor.counterfactual.model={}", text(&fixture("llama-tiny")));
    let set = [&llama, "loss.locality=0.0", "editor.threshold=0.0"];
    let document = json(&training(&config, &out, &sets(&set)));
    assert_eq!(document["steps"], 4);
    let memory = place.path("memory.safetensors");
    stdout(&run(&remember(&out, &memory, "Ael is in", "Ost")));
    let said = predict(&[&memory], &["Ael is in"], &[])["results"][0].clone();
    // The tokens are the other model's: it has 320, the model 300.
    assert_eq!((said["top"].as_array().unwrap().len(), &said["memory"]["request"]["target_new"]), (320, &json!("Ost")));
    assert!((probabilities(&said).iter().sum::<f64>() - 1.0).abs() < 1e-4);
}

/// A memory answers in every element type, and says nearly the same.
#[test]
fn memories_in_other_element_types() {
    let place = TestFolder::new();
    let config = place.cross_config();
    let cross = place.path("cross");
    let bert = format!("editor.classifier.encoder={}", text(&fixture("bert-tiny")));
    stdout(&run(&training(&config, &cross, &sets(&["editor.threshold=0.0", "train.max_steps=2", &bert]))));
    for (archive, tolerance) in [(place.serac("archive", "0.0"), [1e-5, 0.05]), (cross, [1e-5, 0.05])] {
        let memory = two(&place, &archive);
        let said = predict(&[&memory], &PROMPTS[..1], &[])["results"][0].clone();
        for (dtype, tolerance) in ["f64", "bf16"].into_iter().zip(tolerance) {
            let other = predict(&[&memory], &PROMPTS[..1], &["--dtype", dtype])["results"][0].clone();
            let scopes = [&said, &other].map(|said| number(&said["memory"]["scope"]));
            assert!((scopes[0] - scopes[1]).abs() < tolerance, "{dtype}: {scopes:?}");
            assert!(apart(&probabilities(&said), &probabilities(&other)) < tolerance, "{dtype}");
        }
        std::fs::remove_file(&memory).unwrap();
    }
}

#[test]
fn trained_in_other_element_types() {
    for dtype in ["f64", "bf16"] {
        let place = TestFolder::new();
        let (config, out) = (place.serac_config(), place.path("out"));
        let set = format!("model.dtype={dtype}");
        stdout(&run(&training(&config, &out, &sets(&[&set, "editor.threshold=0.0", "train.max_steps=2"]))));
        let memory = two(&place, &out);
        let said = predict(&[&memory], &["Mount Ael lies in"], &["--dtype", dtype])["results"][0]["memory"].clone();
        assert_eq!(said["request"]["target_new"], "Bern", "{dtype}");
    }
}
