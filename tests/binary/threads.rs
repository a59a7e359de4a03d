//! The same bytes on one core, on three and on sixteen as on two.

use std::path::{Path, PathBuf};

use crate::common::{TestFolder, process, stdout, text};

/// A shipped config.
fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

/// Runs the program on so many threads, from a folder.
#[track_caller]
fn run(threads: usize, folder: &Path, args: &[&str]) {
    let output = process().current_dir(folder).env("RAYON_NUM_THREADS", threads.to_string()).args(args).output();
    stdout(&output.unwrap());
}

/// All files that a command writes, alike on every number of threads.
#[track_caller]
fn same(place: &TestFolder, args: &[&str], written: &[&str]) {
    let mut known: Option<Vec<Vec<u8>>> = None;
    for threads in [2, 1, 3, 16] {
        let folder = place.path(&format!("threads-{threads}"));
        std::fs::create_dir_all(&folder).unwrap();
        run(threads, &folder, args);
        let files: Vec<Vec<u8>> = written.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect();
        let first = known.get_or_insert_with(|| files.clone());
        for (number, name) in written.iter().enumerate() {
            assert!(first[number] == files[number], "{name} on {threads} threads, {args:?}");
        }
    }
}

#[test]
fn statistics_and_the_edits_that_want_them() {
    let place = TestFolder::new();
    let stats =
        ["stats", "--model", "pocket", "--text", "pocket", "--layers", "0..1", "--row", "32", "--tokens", "2048"];
    same(&place, &[&stats[..], &["--out", "stats/pocket.safetensors"]].concat(), &["stats/pocket.safetensors"]);
    // 13 requests: more than one part on two cores, and parts that are not alike.
    for method in ["memit", "emmet", "alphaedit"] {
        let config = config(&format!("{method}-pocket.toml"));
        let mut args =
            vec!["apply", "--config", text(&config), "--edits", "pocket", "--limit", "13", "--mode", "batch"];
        args.extend(["--set", "editor.steps=4", "--set", "editor.layers=[0,1]", "--save", "edit.safetensors"]);
        if method == "alphaedit" {
            args.extend(["--set", "editor.null_space_threshold=1e9"]);
        }
        same(&place, &args, &["edit.safetensors"]);
    }
    let rome = config("rome-pocket.toml");
    let mut args =
        vec!["apply", "--config", text(&rome), "--edits", "pocket", "--limit", "3", "--set", "editor.steps=5"];
    args.extend(["--save", "rome.edit.safetensors"]);
    same(&place, &args, &["rome-0.edit.safetensors", "rome-1.edit.safetensors", "rome-2.edit.safetensors"]);
}

#[test]
fn editors_that_want_no_statistics() {
    let place = TestFolder::new();
    for (method, settings) in
        [("ft-kl", "editor.steps=3"), ("kn", "editor.steps=4"), ("ike", "editor.room=19"), ("lookup", "editor.layer=1")]
    {
        let config = config(&format!("{method}-pocket.toml"));
        let args = ["apply", "--config", text(&config), "--edits", "pocket", "--limit", "5", "--mode", "batch"];
        same(&place, &[&args[..], &["--set", settings, "--save", "edit.safetensors"]].concat(), &["edit.safetensors"]);
    }
}

#[test]
fn trainings() {
    let place = TestFolder::new();
    let files = ["network.safetensors", "metrics.jsonl", "archive.toml"];
    for (method, settings) in [("mend", "train.edits_per_step=5"), ("serac", "train.edits_per_step=11")] {
        let config = config(&format!("{method}-pocket.toml"));
        let mut args = vec!["train", "--config", text(&config), "--out", method, "--set", settings];
        for set in ["train.max_steps=4", "train.validate_every=2", "train.validation_records=7", "data.test_records=3"]
        {
            args.extend(["--set", set]);
        }
        let files = files.map(|name| format!("{method}/{name}"));
        same(&place, &args, &files.each_ref().map(String::as_str));
    }
    // A batch edited by the trained network.
    let args = [
        "apply",
        "--archive",
        "mend",
        "--edits",
        "pocket",
        "--limit",
        "9",
        "--mode",
        "batch",
        "--save",
        "edit.safetensors",
    ];
    same(&place, &args, &["edit.safetensors"]);
}
