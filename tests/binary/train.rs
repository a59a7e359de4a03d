//! What a training promises: settings that are used or refused, the same bytes everywhere, and nothing lost.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::{
    TensorFile, TestFolder, edit, emend, gpt2, json, records, refused, run, same_training, sets, stdout, text, training,
};

/// The settings of two trainings may be the same: the archive's fingerprint tells whose edit it is.
#[test]
fn an_edit_names_the_archive_it_was_made_with() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let made = ["1", "2"].map(|seed| {
        let (archive, saved) = (place.path(seed), place.path(&format!("{seed}.safetensors")));
        stdout(&run(&training(&config, &archive, &sets(&[&format!("train.seed={seed}")]))));
        stdout(&run(&edit(&archive, &["--save", text(&saved)])));
        let mut settings = json(&["inspect", text(&saved)])["provenance"]["settings"].clone();
        let fingerprint = settings.as_object_mut().unwrap().remove("archive_fingerprint").unwrap();
        (settings, fingerprint.as_str().unwrap().to_owned())
    });
    assert_eq!(made[0].0, made[1].0);
    assert!(made[0].1 != made[1].1 && made[0].1.len() == 64, "{made:?}");
}

/// With a small rate, steps in 16 bits would move next to no weight.
#[test]
fn what_is_trained_on_a_base_in_16_bits_is_f32() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    for tune in ["whole", "{top=1}"] {
        let _ = std::fs::remove_dir_all(&out);
        let tunes = [format!("editor.classifier.tune={tune}"), format!("editor.counterfactual.tune={tune}")];
        let values = sets(&["model.dtype=bf16", "train.learning_rate=1e-5", &tunes[0], &tunes[1]]);
        stdout(&run(&training(&config, &out, &values)));
        let network = TensorFile::read(&out.join("network.safetensors"));
        for part in ["classifier.reader", "counterfactual"] {
            let last = if tune == "whole" { 2 } else { 0 };
            let (values, _) = network.matrix(&format!("{part}.blocks.{last}.up.weight"));
            // What training left alone has a value of 16 bits, as it was loaded.
            let moved = values.iter().filter(|value| (**value as f32).to_bits() & 0xffff != 0).count();
            assert!(moved * 100 > values.len() * 95, "{tune}, {part}: {moved} of {}", values.len());
        }
        stdout(&run(&edit(&out, &[])));
    }
}

/// A line without the folder's name, which differs from run to run.
fn command(line: &str) -> String {
    line.split_once("--prompt").map_or(line, |(_, prompt)| prompt).to_owned()
}

/// Two trainings are told apart by their test figures only where both answer the same questions.
#[test]
fn test_questions_belong_to_the_data() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let tested = |name: &str, values: &[&str]| {
        let world =
            ["data.validation=pocket", "data.test=pocket", "data.test_records=12", "train.validation_records=4"];
        // Nothing is learnt: all that could differ are the questions.
        let still = ["train.learning_rate=0.0", "train.edit_rate_learning_rate=0.0", "editor.normalization=off"];
        let (out, rate) = (place.path(name), ["editor.initial_edit_rate=0.01"]);
        let values = sets(&[&world[..], &still, &rate, values].concat());
        let told = stdout(&run(&training(&config, &out, &[&["--model", "pocket"], &values[..]].concat())));
        // The tested facts that are shown, and the one that the next command would edit.
        told.lines().filter(|line| line.contains("--prompt") || line.contains(" %")).map(command).collect::<Vec<_>>()
    };
    let first = tested("first", &["train.seed=1"]);
    assert_eq!(first, tested("second", &["train.seed=2"]));
}

/// A setting that nothing reads is no help to whoever wrote it.
#[test]
fn settings_that_nothing_uses_are_refused() {
    let place = TestFolder::new();
    let out = place.path("out");
    let (mend, serac, cross) = (place.gpt2_config(), place.serac_config(), place.cross_config());
    let cases: [(&Path, &[&str], &[&str]); 16] = [
        (
            &mend,
            &["train.weight_decay=0.1"],
            &["train.weight_decay: optimizer = \"adam\" does not use it", "\"adamw\" does"],
        ),
        (&mend, &["train.schedule_end=0.1"], &["train.schedule_end: schedule = \"constant\"", "\"cosine\" does"]),
        (&mend, &["editor.direction=descent"], &["editor.direction: edit_rates = \"log\"", "\"raw\" does"]),
        (
            &mend,
            &["editor.normalization=off", "editor.normalization_records=9"],
            &["editor.normalization_records: normalization = \"off\"", "\"running\" does"],
        ),
        (
            &mend,
            &["loss.scope=edit", "loss.in_scope=2"],
            &["loss.in_scope: scope = \"edit\"", "\"rephrase\" or \"both\" does"],
        ),
        (&mend, &["loss.out_of_scope=0", "loss.kl=answer"], &["loss.kl: out_of_scope = 0"]),
        (
            &serac,
            &["train.hidden_memory_gb=1.0"],
            &[
                "train.hidden_memory_gb: editor.method = \"serac\"",
                "\"mend\" or \"malmen\" or \"rledit\" or \"ke\" or \"enn\" does",
            ],
        ),
        (&serac, &["train.edit_rate_learning_rate=0.1"], &["train.edit_rate_learning_rate: editor.method = \"serac\""]),
        (
            &serac,
            &["editor.routing=soft", "editor.threshold=0.3"],
            &["editor.threshold: routing = \"soft\"", "\"hard\" does"],
        ),
        (&cross, &["editor.classifier.scale=2.0"], &["editor.classifier.", ": kind = \"cross\"", "\"embedding\" does"]),
        (&serac, &["loss.mined.count=0"], &["loss.mined.among: count = 0"]),
        (&serac, &["loss.locality=0.0", "loss.held=1"], &["loss.held: locality = 0"]),
        (
            &serac,
            &["editor.train=counterfactual"],
            &["loss.mined: editor.train = \"counterfactual\"", "\"classifier\" does"],
        ),
        (&serac, &["editor.train=classifier", "loss.edit=2.0"], &["loss.edit: editor.train = \"classifier\""]),
        (
            &serac,
            &["editor.train=classifier", "editor.counterfactual.learning_rate=0.1"],
            &["editor.counterfactual.learning_rate: editor.train = \"classifier\"", "\"counterfactual\" does"],
        ),
        (
            &serac,
            &["editor.counterfactual.tune=nothing", "loss.edit=2.0"],
            &["loss.edit: editor.counterfactual.tune = \"nothing\""],
        ),
    ];
    for (config, set, words) in cases {
        println!("{set:?}");
        refused(&training(config, &out, &sets(set)), 2, words);
    }
    // Under the choice that uses them they are read.
    let used = ["train.optimizer=adamw", "train.weight_decay=0.1", "train.schedule=cosine", "train.schedule_end=0.1"];
    stdout(&run(&training(&mend, &out, &sets(&used))));
}

/// Steps whose parts are shared among more threads, or among fewer, give the same bytes.
#[test]
fn any_number_of_threads_trains_the_same() {
    let place = TestFolder::new();
    for (name, config) in [("mend", place.gpt2_config()), ("serac", place.serac_config())] {
        let trained = ["1", "2", "3"].map(|threads| {
            let out = place.path(&format!("{name}-{threads}"));
            let set = sets(&["train.edits_per_step=5", "train.max_steps=6", "train.validate_every=3"]);
            let output =
                emend().env("RAYON_NUM_THREADS", threads).args(training(&config, &out, &set)).output().unwrap();
            stdout(&output);
            out
        });
        same_training(&trained[0], &trained[1]);
        same_training(&trained[2], &trained[1]);
    }
}

/// What a training stands on is put back before it goes on, or it is another training.
#[test]
fn a_training_goes_on_with_what_it_began_with() {
    let place = TestFolder::new();
    let (config, out, start) = (place.serac_config(), place.path("out"), place.path("start"));
    let other = place.copy(&gpt2(), "other");
    place.write("test.json", records().to_string());
    stdout(&run(&training(&config, &start, &[])));
    let model = format!("editor.counterfactual.model={}", text(&other));
    let set = sets(&[&model, "editor.start=start", "data.test=test.json"]);
    stdout(&run(&training(&config, &out, &set)));
    let resume = training(&config, &out, &[&["--resume"], &set[..]].concat());
    stdout(&run(&resume));

    let weights = other.join("model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut bytes = good.clone();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&1f32.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    refused(&resume, 2, &["--resume", "editor.counterfactual.model", "fingerprint"]);
    std::fs::write(&weights, good).unwrap();

    let mut changed = records();
    changed[0]["target_new"] = "Bern".into();
    for (file, key) in [("test.json", "data.test"), ("facts.json", "data.train")] {
        place.write(file, changed.to_string());
        refused(&resume, 2, &["--resume", key]);
        place.write(file, records().to_string());
    }

    std::fs::remove_dir_all(&start).unwrap();
    stdout(&run(&training(&config, &start, &sets(&["train.seed=7"]))));
    refused(&resume, 2, &["--resume", "editor.start"]);
    std::fs::remove_dir_all(&start).unwrap();
    stdout(&run(&training(&config, &start, &[])));
    stdout(&run(&resume));
}

/// An edit, a question and its answer stand in one text: found too long before the first step, not in the middle of the night.
#[test]
fn a_record_that_is_too_long_behind_its_edit_is_named() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    let mut long = records();
    long[2]["rephrases"] = json!(["a ".repeat(27) + "a"]);
    for part in ["train", "validation", "test"] {
        let file = format!("{part}.json");
        place.write(&file, long.to_string());
        let set = format!("data.{part}={file}");
        let words = [file.as_str(), "record 2 (id 2)", "context of 64", "counterfactual model"];
        refused(&training(&config, &out, &["--set", &set]), 1, &words);
    }
    assert!(!out.join("metrics.jsonl").exists());
    // The model alone can read it: it is right for MEND.
    stdout(&run(&training(&place.gpt2_config(), &out, &["--set", "data.train=train.json"])));
}

/// How far one network's gradient is off does not slow the other's training.
#[test]
fn each_network_of_serac_is_clipped_by_its_own_norm() {
    let place = TestFolder::new();
    let config = place.serac_config();
    let set = ["train.clip=1e-3", "train.max_steps=2", "train.validate_every=1"];
    let trained = [("both", vec![]), ("classifier", vec!["editor.train=classifier"])].map(|(name, more)| {
        let out = place.path(name);
        stdout(&run(&training(&config, &out, &sets(&[&set[..], &more].concat()))));
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        let last = std::fs::read_to_string(out.join("training/current")).unwrap();
        (first, TensorFile::read(&out.join("training").join(last.trim()).join("last.safetensors")))
    });
    let [(both, network), (alone, classifier)] = trained;
    assert_eq!(both["gradient_norm"], alone["gradient_norm"]);
    assert!(both["gradient_norm"].as_f64() > Some(1e-3), "{both}");
    assert!(both["gradient_norm_counterfactual"].as_f64() > Some(1e-3), "{both}");
    assert_eq!(alone["gradient_norm_counterfactual"], 0.0);
    for (name, tensor) in network.tensors.iter().filter(|(name, _)| name.starts_with("classifier.")) {
        assert!(tensor == &classifier.tensors[name], "{name}");
    }
}

/// Where nothing tells the states of a training apart, the last one is taken, and that is said once.
#[test]
fn where_no_figure_tells_the_last_state_is_the_best() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let still = ["train.learning_rate=0.0", "train.edit_rate_learning_rate=0.0", "editor.normalization=off"];
    let args = training(&config, &out, &sets(&still));
    let output = run(&[&args[..], &["--json"]].concat());
    let document: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(document["best"]["step"], 4);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.matches("all validations gave the same score").count(), 1, "{told}");
}

/// Texts that come again are kept, and how many were found is said at the end.
#[test]
fn how_many_hidden_states_were_found_is_said() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let output = run(&training(&config, &out, &sets(&["train.max_steps=12"])));
    stdout(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.matches("texts were found kept").count(), 1, "{told}");
    // Without memory there is nothing to say.
    let output =
        run(&training(&config, &place.path("none"), &sets(&["train.max_steps=12", "train.hidden_memory_gb=0"])));
    stdout(&output);
    assert!(!String::from_utf8(output.stderr).unwrap().contains("found kept"));
}

#[test]
fn a_config_of_an_editor_that_needs_no_training() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/ft-pocket.toml");
    let words = ["editor.method = \"fine_tuning\"", "needs no training", "emend apply --config"];
    refused(&["train", "--config", text(&config)], 2, &words);
}

#[test]
fn folders_that_are_no_trainings() {
    let place = TestFolder::new();
    let (config, foreign) = (place.gpt2_config(), place.path("foreign"));
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("letter.txt"), "Dear Ada").unwrap();
    for more in [&[][..], &["--resume"]] {
        refused(&training(&config, &foreign, more), 2, &["foreign", "none of a training", "--out"]);
    }
    // Nothing to resume: said, and begun.
    let output = run(&training(&config, &place.path("new"), &["--resume"]));
    stdout(&output);
    assert!(String::from_utf8(output.stderr).unwrap().contains("nothing to resume"));
}

#[test]
fn losses_that_nothing_uses() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    for (set, words) in [
        (&["loss.mix={near=0.0}"][..], &["loss.mix", "above 0"][..]),
        (&["loss.locality=0.0", "loss.out_of_scope=2"], &["loss.out_of_scope", "locality = 0"]),
        (&["loss.edit=0.0", "loss.scope=both"], &["loss.scope", "edit = 0", "--set loss.scope= leaves it out"]),
        (&["loss.edit=0.0", "loss.locality=0.0"], &["nothing to learn"]),
    ] {
        refused(&training(&config, &out, &sets(set)), 2, words);
    }
}
