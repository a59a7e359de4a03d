//! What an edit does to running text: the term of a loss that keeps it, its perplexity before and after, and completions of passages.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{
    TestFolder, Trained, edit, gpt2, json, one_line_error, records, refused, run, sets, stdout, text, training,
};

/// Some sentences, more than a window's tokens.
fn prose(place: &TestFolder) -> PathBuf {
    let lines = (0..30).map(|line| format!("The river of valley {line} runs by old mills to the sea.\n"));
    place.write("prose.txt", lines.collect::<String>())
}

fn bytes(out: &Path, name: &str) -> Vec<u8> {
    std::fs::read(out.join(name)).unwrap()
}

fn stderr(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_term_of_no_weight_changes_no_bit() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    prose(&place);
    let train = |name: &str, more: &[&str]| {
        let out = place.path(name);
        stdout(&run(&training(&config, &out, &sets(&[more, &["data.text_cases=0"]].concat()))));
        out
    };
    for method in ["editor.method=mend", "editor.method=malmen"] {
        let [without, zero, with] = [
            train(&format!("{method} without"), &[method]),
            train(&format!("{method} zero"), &[method, "loss.text={from=\"prose.txt\", weight=0.0}"]),
            train(&format!("{method} with"), &[method, "loss.text={from=\"prose.txt\", tokens=12}"]),
        ];
        for name in ["network.safetensors", "metrics.jsonl"] {
            assert!(bytes(&without, name) == bytes(&zero, name), "{method}: {name}");
            assert!(bytes(&without, name) != bytes(&with, name), "{method}: {name}");
        }
        let metrics = String::from_utf8(bytes(&with, "metrics.jsonl")).unwrap();
        let steps: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(steps.iter().any(|step| step["text_kl"].as_f64().is_some_and(|kl| kl > 0.0)), "{metrics}");
    }
}

/// The share and worth of what a training says of running text, in every place where it says it.
#[test]
fn a_training_looks_at_running_text() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    prose(&place);
    let settings = sets(&["loss.text={from=\"prose.txt\", tokens=12}", "data.text_tokens=100", "data.text_cases=3"]);
    let document = json(&training(&config, &out, &settings));
    let seen = &document["perplexity"];
    assert_eq!(
        (&seen["text"], &seen["tokens"], &seen["ratio"]["cases"]),
        (&json!("prose.txt"), &json!(100), &json!(3))
    );
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&seen["before"]) > 1.0 && number(&seen["ratio"]["worst"]) >= number(&seen["ratio"]["median"]));
    let best = &json(&["inspect", text(&out)])["description"]["best"];
    assert_eq!((&best["edits_together"], &best["perplexity_ratio"]["cases"]), (&json!(1), &json!(3)));
    let metrics = String::from_utf8(bytes(&out, "metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("perplexity_ratio").count(), metrics.matches("validation").count());
    // The pocket model has a text of its own, and is asked without being told.
    let said = stdout(&run(&[
        "apply",
        "--model",
        "pocket",
        "--config",
        "configs/ft-pocket.toml",
        "--edits",
        "pocket/test",
        "--limit",
        "2",
    ]));
    assert!(said.contains("perplexity of pocket (2048 tokens): ") && said.contains("(median of 2)"), "{said}");
}

#[test]
fn harm_to_running_text_is_told() {
    let place = TestFolder::new();
    let prose = prose(&place);
    let config = place.write(
        "ft.toml",
        format!(
            "[model]\npath = {:?}\n[editor]\nmethod = \"fine_tuning\"\nlayers = [1]\nweights = [\"mlp.down\"]\nlearning_rate = 0.5\nsteps = 20\n",
            gpt2()
        ),
    );
    let args = |more: &[&'static str]| -> Vec<String> {
        let own = [
            "apply",
            "--config",
            text(&config),
            "--prompt",
            "Lake Orrin lies in",
            "--target",
            "Tamm",
            "--text",
            text(&prose),
        ];
        own.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let with = |more: &[&'static str]| {
        let args = args(more);
        stderr(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let told = with(&["--text-limit", "1.01"]);
    assert!(told.contains("more than --text-limit 1.01: the model speaks worse than before"), "{told}");
    assert!(!with(&["--text-limit", "1e9"]).contains("--text-limit"));
    let owned = args(&[]);
    let document = json(&owned.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(document["perplexity"]["ratio"]["worst"].as_f64().unwrap() > 1.01, "{}", document["perplexity"]);
    let small: Vec<String> = args(&["--text-limit", "0.5"]);
    refused(&small.iter().map(String::as_str).collect::<Vec<_>>(), 2, &["--text-limit"]);
}

#[test]
fn texts_that_cannot_be_read() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let (short, empty) = (place.write("short.txt", "A few words.\n"), place.write("empty.txt", "\n\n"));
    let cases = [
        ("loss.text={from=\"short.txt\", tokens=60}", 1, "fewer than a window's 60"),
        ("loss.text=missing.txt", 1, "missing.txt"),
        ("loss.text={from=\"short.txt\", tokens=4000}", 2, "the model's context is"),
        ("loss.text={from=\"short.txt\", tokens=1}", 2, "loss.text.tokens"),
        ("loss.text={from=\"short.txt\", positions=0}", 2, "loss.text.positions"),
        ("loss.text={from=\"short.txt\", wieght=2}", 2, "wieght"),
        ("loss.text={weight=2}", 2, "from"),
        ("data.text=missing.txt", 1, "missing.txt"),
        ("data.text=wikitext", 1, "emend fetch wikitext/validation"),
        ("editor.ridge=text", 2, "ridge"),
    ];
    for (set, code, word) in cases {
        let output = run(&training(&config, &out, &sets(&[set])));
        one_line_error(&output, code, &[word]);
        assert!(!out.join("archive.toml").exists(), "{set}");
    }
    let archive = Trained::Gpt2.archive();
    for (file, word) in [(&empty, "no text of two tokens"), (&short.with_file_name("none.txt"), "none.txt")] {
        refused(&edit(&archive, &["--text", text(file)]), 1, &[word]);
    }
}

#[test]
fn more_edits_than_an_archive_was_chosen_for() {
    let place = TestFolder::new();
    let facts = place.write("facts.json", records().to_string());
    let archive = Trained::Gpt2.archive();
    let args = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", "batch"];
    let said = stderr(&args);
    assert!(said.contains("6 edits at once; the archive was validated with 1 at a time (edit success "), "{said}");
    let said = stderr(&[&args[..6], &["sequential"]].concat());
    assert!(
        said.contains("6 edits one after the other; the archive was validated with edits of the model as it is"),
        "{said}"
    );
    assert!(!stderr(&[&args[..6], &["single"]].concat()).contains("was validated with"));
    // A machine with too little memory says so before anything runs, and how much would do.
    let output = crate::common::emend().args(args).env("EMEND_MEMORY_GB", "0.00002").output().unwrap();
    one_line_error(&output, 2, &["6 edits at once take", "would fit"]);
}

/// A training on edits that follow each other, and its archive in use.
#[test]
fn rledit_is_trained_and_applied() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let facts = place.write("facts.json", records().to_string());
    prose(&place);
    let episode =
        ["editor.method=rledit", "train.edits_per_step=6", "train.edits_together=2", "editor.initial_edit_rate=0.05"];
    let own = ["editor.ridge=text", "loss.text={from=\"prose.txt\", tokens=12}", "loss.back_depth=2", "loss.decay=0.5"];
    let document = json(&training(&config, &out, &sets(&[&episode[..], &own].concat())));
    assert_eq!(document["settings"]["loss"]["back_depth"], 2);
    let metrics = String::from_utf8(bytes(&out, "metrics.jsonl")).unwrap();
    assert!(metrics.contains("shift_squares"), "{metrics}");
    for mode in ["single", "batch", "sequential"] {
        let document = json(&["apply", "--archive", text(&out), "--edits", text(&facts), "--mode", mode]);
        assert_eq!(document["method"], "rledit");
    }
    assert_eq!(json(&["inspect", text(&out)])["description"]["editor"]["ridge"], "text");
    for (set, key) in [
        ("loss.back_depth=-1", "loss.back_depth"),
        ("loss.decay=2.0", "loss.decay"),
        ("loss.bakc_depth=1", "bakc_depth"),
    ] {
        let sets = sets(&[&episode[..], &[set]].concat());
        one_line_error(&run(&training(&config, &place.path("wrong"), &sets)), 2, &[key]);
    }
}

#[test]
fn completions_are_made_trained_and_applied() {
    let place = TestFolder::new();
    let (file, again) = (place.path("completions.json"), place.path("again.json"));
    let make = |out: &Path, seed: &str| {
        let args = [
            "make-completions",
            "--model",
            "pocket",
            "--text",
            "pocket",
            "--passage",
            "5",
            "--tokens",
            "3",
            "--count",
            "12",
        ];
        json(&[&args[..], &["--out", text(out), "--seed", seed]].concat())
    };
    assert_eq!(make(&file, "3")["completions"], 12);
    make(&again, "3");
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap());
    make(&again, "4");
    assert!(std::fs::read(&file).unwrap() != std::fs::read(&again).unwrap());
    let made: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((made["original"].as_array().unwrap().len(), &made["n_tokens"]), (12, &json!(3)));

    let config = place.write(
        "mend.toml",
        r#"
        [model]
        path = "pocket"
        [editor]
        method = "mend"
        layers = [5]
        weights = ["mlp.down"]
        rank = 8
        [loss]
        text = { from = "pocket", tokens = 8 }
        scope = "both"
        locality = 0.0
        [data]
        train = "completions.json"
        validation = "completions.json[..4]"
        test = "completions.json[4..8]"
        text_tokens = 64
        [train]
        max_steps = 2
        learning_rate = 1e-3
        "#,
    );
    let document = json(&training(&config, &place.path("out"), &[]));
    let tokens = &document["completion"]["tokens"];
    assert!(tokens.as_f64().is_some() && document["completion"]["cut_tokens"].as_f64().is_some(), "{document}");

    let compare = place.write(
        "compare.toml",
        format!(
            "[model]\npath = \"pocket\"\n[data]\ncases = {file:?}\nlimit = 4\n[compare]\ntext_tokens = 64\n[[editors]]\nname = \"mend\"\n\
             archive = {:?}\n",
            place.path("out")
        ),
    );
    let document = json(&["compare", "--config", text(&compare), "--out", text(&place.path("results"))]);
    let figure = |name: &str| {
        let figures = document["figures"].as_array().unwrap();
        let found = figures
            .iter()
            .find(|figure| figure["protocol"] == "completion" && figure["name"] == name && figure["method"] == "mend");
        found.unwrap_or_else(|| panic!("no {name}"))["mean"].as_f64().unwrap()
    };
    assert!((0.0..=1.0).contains(&figure("tokens")) && figure("perplexity_before") > 1.0);

    let out = text(&again);
    refused(
        &["make-completions", "--model", "pocket", "--text", "pocket", "--out", out, "--passage", "400"],
        2,
        &["context"],
    );
    let few = ["make-completions", "--model", "pocket", "--text", "pocket", "--out", out, "--passage", "50"];
    refused(&few, 1, &["no document of it has more than 60 tokens"]);
    let broken = place.write("broken.json", r#"{"original": ["a"], "completions": ["a b c"], "n_tokens": 0}"#);
    refused(
        &["apply", "--config", "configs/ft-pocket.toml", "--edits", text(&broken)],
        1,
        &["broken.json", "n_tokens"],
    );
    let short = place.write("short.json", r#"{"original": ["a"], "completions": ["a b"], "n_tokens": 9}"#);
    let output = run(&["apply", "--config", "configs/ft-pocket.toml", "--edits", text(&short)]);
    one_line_error(&output, 1, &["a completion of 9 tokens behind a passage needs 11 tokens or more"]);
}
