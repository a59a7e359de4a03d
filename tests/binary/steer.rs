//! `emend steer` and the editors whose edits are no weights, as a user runs them.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::{TensorFile, TestFolder, gpt2, json, refused, run, stdout, text, wrong_usage};

const ASKED: &str = "The city of Rosario lies in";
const OTHER: &str = "The city of Lima lies in";

fn steer<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["steer", "--model", "pocket"], more].concat()
}

fn top(model: &str, edits: &[&Path], prompt: &str) -> Value {
    let mut args = vec!["predict", "--model", model, "--prompt", prompt, "--generate", "4"];
    for edit in edits {
        args.extend(["--edit", text(edit)]);
    }
    json(&args)["results"][0].clone()
}

#[test]
fn one_prompt_laid_over_another() {
    let place = TestFolder::new();
    let (file, laid) = (place.path("laid.safetensors"), ["--set", "--from", OTHER]);
    let (own, other) = (top("pocket", &[], ASKED), top("pocket", &[], OTHER));
    assert_ne!(own["top"][0]["id"], other["top"][0]["id"]);
    let args = steer(&[&["--at", "5.block", "--save", text(&file), "--prompt", ASKED], &laid[..]].concat());
    let shown = stdout(&run(&args));
    assert!(shown.contains("before") && shown.contains("saved") && shown.contains("5.block"), "{shown}");
    let steered = top("pocket", &[&file], ASKED);
    assert_eq!(steered["top"][0]["id"], other["top"][0]["id"]);
    // Taken away, the model is what it was; laid over its own prompt it does nothing.
    assert_eq!(top("pocket", &[], ASKED), own);
    assert_eq!(top("pocket", &[&file], OTHER)["top"], other["top"]);
    // The same command makes the same bytes.
    let again = place.write("again.safetensors", "what stands there is replaced, as with apply --save");
    stdout(&run(&steer(&[&["--at", "5.block", "--save", text(&again)], &laid[..]].concat())));
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&again).unwrap());
    // What it is.
    let said = stdout(&run(&["inspect", text(&file)]));
    for word in ["5.block", "last", "prompt", "set"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let said = json(&["inspect", text(&file)]);
    assert_eq!(said["interventions"][0]["action"], "set");
    assert_eq!(said["provenance"]["method"], "steer");
    // It lies over an edit of weights and under one, and joins it.
    let weights = place.path("weights.safetensors");
    let edit = [
        "apply",
        "--config",
        "configs/ft-l-pocket.toml",
        "--prompt",
        "The city of Oslo lies in",
        "--subject",
        "Oslo",
        "--target",
        "Chile",
    ];
    stdout(&run(&[&edit[..], &["--save", text(&weights)]].concat()));
    let [one, two] = [[&weights, &file], [&file, &weights]].map(|files| top("pocket", &[files[0], files[1]], ASKED));
    assert_eq!(one["top"], two["top"]);
    let both = place.path("both.safetensors");
    stdout(&run(&["squash", text(&weights), text(&file), "--out", text(&both)]));
    assert_eq!(top("pocket", &[&both], ASKED)["top"][0]["id"], one["top"][0]["id"]);
    // It is no matter of weights, which is said before the edit above it is made.
    let out = place.path("out");
    let export = [&edit[..], &["--edit", text(&file), "--export", "peft", text(&out)]].concat();
    refused(&export, 1, &["cannot be exported", "does more than change weights"]);
    refused(&["predict", "--model", text(&gpt2()), "--edit", text(&file), "--prompt", "a"], 1, &["made on base"]);
}

#[test]
fn every_action_and_source() {
    let place = TestFolder::new();
    let pairs = json!([{"positive": "The city of Lima", "negative": "A river"}, {"positive": "The city of Oslo", "negative": "A poem"}]);
    let pairs = place.write("pairs.json", pairs.to_string());
    let lists = json!({"positive": ["The city of Lima", "The city of Oslo"], "negative": ["A river", "A poem"]});
    let lists = place.write("lists.json", lists.to_string());
    let lines = "{\"positive\": \"The city of Lima\", \"negative\": \"A river\"}\n{\"positive\": \"The city of Oslo\", \"negative\": \"A poem\"}\n";
    let lines = place.write("lines.jsonl", lines);
    let vector = place.path("vector.safetensors");
    TensorFile::default().zeros("v", &[192]).write(&vector);
    let mut ids = vec![];
    for (number, more) in [
        &["--add", "--pairs", text(&pairs), "--strength", "2", "--until", "always"][..],
        &["--add", "--pairs", text(&lists), "--strength", "2", "--until", "always"],
        &["--add", "--pairs", text(&lines), "--strength", "2", "--until", "always"],
        &["--project-out", "--from", OTHER, "--from-after", "Lima", "--positions", "all"],
        &["--set", "--vector", text(&vector), "--after", "Rosario"],
        &["--scale", "-0.5", "--positions", "0,-1"],
        &["--clamp", "-1,1", "--positions", "first"],
    ]
    .iter()
    .enumerate()
    {
        let file = place.path(&format!("{number}.safetensors"));
        let args = steer(&[&["--at", "1.mlp,3.block", "--save", text(&file), "--prompt", ASKED], *more].concat());
        let said = json(&args);
        ids.push(said["id"].clone());
        assert_ne!(said["prompts"][0]["before"], said["prompts"][0]["after"], "{more:?}");
        assert_eq!(json(&["inspect", text(&file)])["interventions"].as_array().unwrap().len(), 2);
    }
    // However pairs are written, they are the same vectors.
    let vectors = |number: usize| {
        let file = TensorFile::read(&place.path(&format!("{number}.safetensors")));
        file.tensors["intervention.1.vector"].clone()
    };
    assert_eq!(vectors(0), vectors(1));
    assert_eq!(vectors(0), vectors(2));
}

#[test]
fn strengths_are_compared() {
    let place = TestFolder::new();
    let pair =
        |city: &str| json!({"prompt": format!("The city of {city} lies in"), "positive": "Japan", "negative": "Chile"});
    let test = place.write("test.json", json!([pair("Rosario"), pair("Lima")]).to_string());
    let plots = ["sweep.svg", "sweep.png"].map(|name| place.path(name));
    for plot in &plots {
        let args = [
            "--at",
            "4.block",
            "--add",
            "--from",
            "The city of Osaka lies in",
            "--sweep",
            "0,0.5,2",
            "--test",
            text(&test),
        ];
        let args = steer(&[&args[..], &["--text-tokens", "200", "--plot", text(plot)]].concat());
        let said = json(&args);
        let rows = said["strengths"].as_array().unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!((&rows[0]["locality"], &rows[0]["perplexity_ratio"]), (&json!(1.0), &json!(1.0)));
        let effect = |row: usize| rows[row]["effect"].as_f64().unwrap();
        assert!(effect(2) > effect(0), "{said}");
        let shown = stdout(&run(&args));
        for word in ["strength", "effect", "locality", "perplexity", "drawn"] {
            assert!(shown.contains(word), "{shown}");
        }
    }
    assert!(std::fs::read_to_string(&plots[0]).unwrap().starts_with("<svg"));
    assert!(std::fs::read(&plots[1]).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn what_cannot_be_steered() {
    let place = TestFolder::new();
    let uneven = place.write("uneven.json", json!({"positive": ["a", "b"], "negative": ["c"]}).to_string());
    let empty = place.write("empty.json", "[]");
    let blank = place.write("blank.json", json!([{"positive": "a", "negative": " "}]).to_string());
    let plain = place.write("plain.json", json!([{"positive": "a", "negative": "b"}]).to_string());
    let broken = place.write("broken.json", "not json");
    let (narrow, two, nan) = (place.path("narrow.st"), place.path("two.st"), place.path("nan.st"));
    TensorFile::default().zeros("v", &[5]).write(&narrow);
    TensorFile::default().zeros("v", &[192]).zeros("w", &[192]).write(&two);
    TensorFile::default().zeros("v", &[192]).with_nan("v").write(&nan);
    let own: &[(&[&str], &[&str])] = &[
        (&["--at", "9.block", "--scale", "2"], &["9.block", "layers 0 to 5"]),
        (&["--at", "encoder.1.block", "--scale", "2"], &["no encoder"]),
        (&["--at", "1.blocks", "--scale", "2"], &["1.blocks", "block, mlp"]),
        (&["--at", "1.block,1.block", "--scale", "2"], &["twice"]),
        (&["--at", "1.block", "--scale", "2", "--positions", "lst"], &["lst", "last, first, all"]),
        (&["--at", "1.block", "--scale", "2", "--positions", "0", "--until", "always"], &["last", "all"]),
        (&["--at", "1.block", "--scale", "nan"], &["no number"]),
        (&["--at", "1.block", "--clamp", "2,-2"], &["no value"]),
        (&["--at", "1.block", "--clamp", "2"], &["two bounds"]),
        (&["--at", "1.block", "--set", "--from", "a", "--from-after", "b"], &["does not stand in"]),
        (&["--at", "1.block", "--scale", "2", "--positions", "0,50"], &[ASKED, "position 50 is outside"]),
        (&["--at", "1.block", "--scale", "2", "--after", "Lima"], &[ASKED, "\"Lima\" does not stand in"]),
        (&["--at", "1.block", "--set", "--vector", text(&narrow)], &["5 wide", "192"]),
        (&["--at", "1.block", "--set", "--vector", text(&two)], &["2 tensors"]),
        (&["--at", "1.block", "--set", "--vector", text(&nan)], &["not finite"]),
        (&["--at", "1.block", "--set", "--vector", text(&broken)], &["safetensors"]),
        (&["--at", "1.block", "--add", "--pairs", text(&uneven)], &["2 positive and 1 negative"]),
        (&["--at", "1.block", "--add", "--pairs", text(&empty)], &["no pair"]),
        (&["--at", "1.block", "--add", "--pairs", text(&blank)], &["empty text"]),
        (&["--at", "1.block", "--add", "--pairs", text(&broken)], &["no pairs of texts"]),
        (&["--at", "1.block", "--add", "--pairs", "nowhere.json"], &["nowhere.json"]),
    ];
    for (args, words) in own {
        // What the command line itself says wrong, and what does not fit the model or the files.
        let usage = ["1.blocks", "twice", "lst", "two bounds"].contains(&words[0]);
        refused(&steer(&[*args, &["--prompt", ASKED]].concat()), if usage { 2 } else { 1 }, words);
    }
    let zeros = place.path("zeros.st");
    TensorFile::default().zeros("v", &[192]).write(&zeros);
    refused(
        &steer(&["--at", "1.block", "--project-out", "--vector", text(&zeros), "--prompt", "a"]),
        1,
        &["no direction"],
    );
    refused(&steer(&["--at", "1.block", "--scale", "2"]), 2, &["--save", "--prompt"]);
    // Where nothing can be written that is said before the model is read.
    let (folder, below) = (place.path(""), plain.join("edit.safetensors"));
    for (path, word) in [(&folder, "a directory"), (&below, text(&plain))] {
        let args = ["steer", "--model", "nowhere", "--at", "1.block", "--scale", "2", "--save", text(path)];
        refused(&args, 1, &[word]);
    }
    let sweep = ["--at", "1.block", "--add", "--from", "a", "--sweep", "1", "--test"];
    refused(&steer(&[&sweep[..], &[text(&plain)]].concat()), 1, &["plain.json", "no \"prompt\""]);
    refused(&steer(&[&sweep[..], &[text(&plain), "--plot", "a.gif"]].concat()), 2, &[".svg or a .png"]);
    let set = ["--at", "1.block", "--set", "--from", "a", "--sweep", "1", "--test", text(&plain)];
    refused(&steer(&set), 2, &["only --add"]);
    let add = ["--at", "1.block", "--add", "--from", "a", "--prompt", "a"];
    refused(&steer(&[&add[..], &["--test", text(&plain)]].concat()), 2, &["--sweep"]);
    refused(&steer(&[&add[..], &["--from-after", " "]].concat()), 2, &["--from-after"]);
    let long = "The city of Lima lies in Peru. ".repeat(30);
    refused(&steer(&["--at", "1.block", "--scale", "2", "--prompt", &long]), 1, &["context of 64"]);
    wrong_usage(&steer(&["--at", "1.block", "--prompt", "a"]), &["--set"]);
    wrong_usage(&steer(&["--at", "1.block", "--set", "--prompt", "a"]), &["--from"]);
    wrong_usage(&steer(&["--at", "1.block", "--set", "--scale", "2", "--from", "a"]), &["cannot be used with"]);
    wrong_usage(&steer(&["--at", "1.block", "--set", "--from", "a", "--pairs", "b"]), &["cannot be used with"]);
    wrong_usage(&steer(&["--at", "1.block", "--set", "--from", "a", "--strength", "2"]), &["cannot be used with"]);
}

#[test]
fn hostile_interventions() {
    let place = TestFolder::new();
    let file = place.path("good.safetensors");
    stdout(&run(&steer(&["--at", "1.block,2.mlp", "--set", "--from", OTHER, "--save", text(&file)])));
    let good = TensorFile::read(&file);
    let of_first = |key: &str, value: Value| good.with_header(|header| header["interventions"][0][key] = value.clone());
    for (what, file, words) in [
        ("a vector missing", good.clone().without("intervention.0.vector"), &["has no vector"][..]),
        ("a vector too many", good.clone().zeros("intervention.2.vector", &[192]), &["belongs to no intervention"]),
        ("no number", good.clone().zeros("intervention.x.vector", &[192]), &["belongs to no intervention"]),
        ("a matrix", good.clone().zeros("intervention.0.vector", &[2, 96]), &["rank 2"]),
        ("another width", good.clone().zeros("intervention.0.vector", &[7]), &["7 wide"]),
        ("values that are not finite", good.clone().with_nan("intervention.0.vector"), &["not finite"]),
        (
            "no intervention",
            good.with_header(|header| header["interventions"] = json!([])),
            &["change of kind activations"],
        ),
        ("another kind", good.with_header(|header| header["change"] = json!("weights")), &["change of kind weights"]),
        ("a place that is none", of_first("at", json!("1.blok")), &["1.blok"]),
        ("a layer that is not there", of_first("at", json!("77.block")), &["77.block", "layers 0 to 5"]),
        ("an action that is none", of_first("action", json!("run")), &["header is broken"]),
        ("code", of_first("action", json!({"python": "import os"})), &["header is broken"]),
        ("positions that are none", of_first("positions", json!("everywhere")), &["header is broken"]),
        ("no positions", of_first("positions", json!({"at": []})), &["no position"]),
        ("a vector for a factor", of_first("action", json!({"scale": {"factor": 2.0}})), &["nothing wants"]),
        ("an unknown key", of_first("module", json!("os")), &["header is broken"]),
    ] {
        let path = place.path("bad.safetensors");
        file.write(&path);
        let output = run(&["predict", "--model", "pocket", "--edit", text(&path), "--prompt", "a"]);
        crate::common::one_line_error(&output, 1, words);
        let _ = what;
    }
    // Positions that a prompt does not have are passed over.
    let path = place.path("far.safetensors");
    of_first("positions", json!({"at": [i64::MAX, i64::MIN, 1_000_000]})).write(&path);
    let output = run(&["predict", "--model", "pocket", "--edit", text(&path), "--prompt", "a"]);
    stdout(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is outside this prompt"));
}

#[test]
fn editors_without_weights_in_every_mode() {
    let place = TestFolder::new();
    for (config, more) in [
        ("configs/grace-pocket.toml", &[][..]),
        ("configs/wise-pocket.toml", &["--set", "editor.context={ lengths = [[8, 2]] }"]),
        ("configs/t-patcher-pocket.toml", &["--set", "editor.queries=2000", "--set", "editor.steps=100"]),
        ("configs/calinet-pocket.toml", &["--set", "editor.steps=60"]),
    ] {
        for mode in ["single", "sequential", "batch"] {
            let file = place.path("edit.safetensors");
            let _ = std::fs::remove_file(&file);
            let args = ["apply", "--config", config, "--edits", "pocket/validation", "--limit", "3", "--mode", mode];
            let mut args = [&args[..], more].concat();
            if mode != "single" {
                args.extend(["--save", text(&file)]);
            }
            let said = json(&args);
            let success = said["summary"]["figures"]["edit_success"].as_f64().unwrap();
            assert!(success > 0.6, "{config} {mode}: {success}");
            if mode != "single" {
                let asked = said["edits"][0]["requests"][0]["prompt"].as_str().unwrap_or(ASKED);
                top("pocket", &[&file], asked);
                stdout(&run(&["inspect", text(&file)]));
            }
        }
    }
    // That they cannot be exported is said before any work: of the model, which is not there, nothing is read.
    for (config, what) in [
        ("configs/grace-pocket.toml", "is a memory"),
        ("configs/wise-pocket.toml", "is a memory"),
        ("configs/t-patcher-pocket.toml", "puts neurons beside MLPs"),
        ("configs/calinet-pocket.toml", "puts neurons beside MLPs"),
    ] {
        let out = place.path("export");
        let edit = ["apply", "--config", config, "--model", "nowhere", "--prompt", ASKED, "--target", "Chile"];
        refused(&[&edit[..], &["--export", "hf", text(&out)]].concat(), 1, &["an edit of", what, "cannot be exported"]);
        assert!(!out.exists());
    }
    for (set, words) in [
        ("editor.radius=-1", "editor.radius"),
        ("editor.layer=77", "no layer 77"),
        ("editor.steps=0", "editor.steps"),
        ("editor.radios=1", "radios"),
    ] {
        let args =
            ["apply", "--config", "configs/grace-pocket.toml", "--prompt", ASKED, "--target", "Chile", "--set", set];
        refused(&args, 2, &[words]);
    }
    let memory = ["apply", "--config", "configs/t-patcher-pocket.toml", "--prompt", ASKED, "--target", "Chile"];
    refused(&[&memory[..], &["--set", "editor.memory=nowhere.txt"]].concat(), 1, &["nowhere.txt"]);
}
