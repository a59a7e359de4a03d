//! Editors side by side, through the program: files as ROME's suite has them, runs that were killed, figures from case files alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{
    TestFolder, fixture, gpt2, json, one_line_error, process, refused, replace, run, stdout, text, wrong_usage,
};

const FT: &str = r#"
    [model]
    path = "pocket"

    [editor]
    method = "fine_tuning"
    layers = [1]
    steps = 3
    learning_rate = 1e-3
"#;

const LOOKUP: &str = r#"
    [model]
    path = "pocket"

    [editor]
    method = "lookup"
    layer = 2
    radius = 0.5
"#;

const ROME: &str = r#"
    [model]
    path = "pocket"

    [editor]
    method = "rome"
    layers = [0]
    steps = 2
    learning_rate = 0.5
    statistics = "none"
    context_templates = ["{}"]
"#;

fn facts() -> Value {
    let fact = |id: &str, city: &str, old: &str, new: &str, other: &str| {
        json!({
            "id": id, "prompt": format!("The city of {city} lies in"), "subject": city, "target_true": old, "target_new": new,
            "rephrases": [format!("{city} is in")],
            "locality": {"near": [{"prompt": format!("The city of {other} lies in"), "target": old}], "far": ["A king is"]},
        })
    };
    json!([
        fact("11", "Lyon", "France", "Japan", "Marseille"),
        fact("7", "Osaka", "Japan", "France", "Tokyo"),
        fact("a b", "Marseille", "France", "Italy", "Lyon"),
    ])
}

/// A place with editors, facts, and a comparison of fine-tuning and a lookup cache.
fn place() -> TestFolder {
    let place = TestFolder::new();
    place.write("ft.toml", FT);
    place.write("lookup.toml", LOOKUP);
    place.write("rome.toml", ROME);
    place.write("facts.json", facts().to_string());
    place.write("compare.toml", config("cases = \"facts.json\"", "", &["ft", "lookup"]));
    place
}

fn config(data: &str, compare: &str, editors: &[&str]) -> String {
    let editors: String =
        editors.iter().map(|name| format!("[[editors]]\nname = \"{name}\"\nconfig = \"{name}.toml\"\n")).collect();
    format!("[model]\npath = \"pocket\"\n[data]\n{data}\n[compare]\n{compare}\n{editors}")
}

fn compare<'a>(config: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["compare", "--config", text(config), "--out", text(out)], more].concat()
}

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The case files of a run, by name.
fn case_files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(run).into_iter().flatten().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let cases = entries.filter(|path| name(path).starts_with("case_") && name(path).ends_with(".json"));
    cases.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

fn summaries(out: &Path) -> Vec<Vec<u8>> {
    ["summary.json", "summary.csv", "summary.md", "report.html"]
        .map(|name| std::fs::read(out.join(name)).unwrap())
        .into()
}

/// All that a summary says but for times and memory, which no two runs share.
fn without_times(summary: &Path) -> Value {
    let mut summary = read(summary);
    let stays = |figure: &Value| {
        let name = figure["name"].as_str().unwrap();
        !name.starts_with("seconds/") && name != "peak_memory"
    };
    summary["figures"].as_array_mut().unwrap().retain(stays);
    summary.as_object_mut().unwrap().remove("title");
    summary
}

fn figure(summary: &Value, method: &str, protocol: &str, name: &str) -> Value {
    let wanted =
        |figure: &&Value| figure["method"] == method && figure["protocol"] == protocol && figure["name"] == name;
    summary["figures"].as_array().unwrap().iter().find(wanted).cloned().unwrap_or(Value::Null)
}

/// Mean negative log-likelihood a token of an answer as a table has it.
fn nll(scored: &Value) -> f64 {
    let values: Vec<f64> =
        scored["log_probabilities"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    -values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn case_files_are_those_of_romes_suite() {
    let place = place();
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    let told = stdout(&run(&compare(&config, &out, &[])));
    for words in ["protocol counterfact", "protocol mend", "seconds/edit", "lookup", "report.html"] {
        assert!(told.contains(words), "no {words}: {told}");
    }
    // What a table is of stands above it.
    let line = "pocket f32 · 3 cases of facts.json · single: read with its own edit alone";
    let markdown = std::fs::read_to_string(out.join("summary.md")).unwrap();
    assert!(told.contains(line) && markdown.contains(line), "{told}");
    assert!(!told.contains("protocol generate"), "nobody asked for free answers: {told}");
    for method in ["ft", "lookup"] {
        let folder = out.join(method).join("run_000");
        let params = read(&folder.join("params.json"));
        assert_eq!(params["name"], method);
        assert_eq!(params["mode"], "single");
        assert_eq!(params["data"]["records"], 3);
        let files = case_files(&folder);
        assert_eq!(files.len(), 3);
        assert!(files.contains_key("case_7.json") && files.contains_key("case_11.json"));
        for bytes in files.values() {
            let file: Value = serde_json::from_slice(bytes).unwrap();
            let case = &file["emend"]["case"];
            let rewrite = &file["requested_rewrite"];
            match case["id"].as_str().unwrap() {
                // ROME's ids are numbers.
                "a b" => assert_eq!(file["case_id"], "a b"),
                id => assert_eq!(file["case_id"].as_u64().unwrap().to_string(), id),
            }
            assert_eq!(file["num_edits"], 1);
            let prompt = rewrite["prompt"].as_str().unwrap();
            assert_eq!(prompt, "The city of {} lies in");
            assert_eq!(prompt.replace("{}", rewrite["subject"].as_str().unwrap()), case["request"]["prompt"]);
            for target in ["target_new", "target_true"] {
                assert_eq!(rewrite[target]["str"], case["request"][target]);
            }
            assert_eq!(file["time"], case["seconds"]["edit"]);
            assert!(file["time"].as_f64().unwrap() > 0.0);
            for (side, when) in [("post", "after"), ("pre", "before")] {
                for (kind, name, right, wrong) in [
                    ("rewrite", "rewrite", "target_new", "target_true"),
                    ("rephrase", "paraphrase", "target_new", "target_true"),
                    ("locality", "neighborhood", "target_true", "target_new"),
                ] {
                    let rows: Vec<&Value> =
                        case["rows"].as_array().unwrap().iter().filter(|row| row["kind"] == kind).collect();
                    assert_eq!(rows.len(), if kind == "locality" { 2 } else { 1 });
                    let probs = file[side][format!("{name}_prompts_probs")].as_array().unwrap();
                    let rivals: Vec<&&Value> = rows.iter().filter(|row| !row["rival"].is_null()).collect();
                    let exact: Vec<bool> =
                        rivals.iter().map(|row| row[when]["argmax"] == row[when]["target"]).collect();
                    assert_eq!(file[side][format!("{name}_prompts_correct")], json!(exact));
                    assert_eq!((probs.len(), rivals.len()), (1, 1));
                    for (told, row) in probs.iter().zip(rivals) {
                        assert!((told[right].as_f64().unwrap() - nll(&row[when])).abs() < 1e-12);
                        assert!((told[wrong].as_f64().unwrap() - nll(&row["rival"][when])).abs() < 1e-12);
                    }
                }
            }
        }
    }
    // A cache answers its own prompt.
    let summary = read(&out.join("summary.json"));
    assert_eq!(figure(&summary, "lookup", "counterfact", "efficacy")["mean"], 1.0);
    assert_eq!(figure(&summary, "lookup", "counterfact", "efficacy")["cases"], 3);
    assert_eq!(figure(&summary, "lookup", "efficiency", "entries")["mean"], 1.0);

    // All of it comes from the case files alone, to the byte.
    let made = summaries(&out);
    for name in ["summary.json", "summary.csv", "summary.md", "report.html"] {
        std::fs::remove_file(out.join(name)).unwrap();
    }
    assert_eq!(stdout(&run(&["compare", "--summarize", text(&out)])), told);
    assert!(summaries(&out) == made);
    // And in one document.
    let document = json(&["compare", "--summarize", text(&out)]);
    assert_eq!(document, summary);
    assert_eq!(document["format"], "report/1");

    // The page asks for nothing.
    let page = String::from_utf8(made[3].clone()).unwrap();
    assert!(page.contains("<title>out"));
    // The name of a language is no address that anybody asks.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for words in ["http://", "https://", "src=\"//", "@import", "XMLHttpRequest", "fetch("] {
        assert!(!page.contains(words), "{words} in the page");
    }
    // A line a figure, under one head.
    let csv = String::from_utf8(made[1].clone()).unwrap();
    assert_eq!(csv.lines().count(), 1 + document["figures"].as_array().unwrap().len());
}

#[test]
fn a_killed_run_goes_on_with_what_is_left() {
    let place = place();
    place.write("slow.toml", FT.replace("steps = 3", "steps = 60\n    early_stop = 0.0"));
    let data = "cases = \"pocket/test\"\nlimit = 10\nrephrases = 1\nper_class = 1";
    let config = place.write("slow-compare.toml", config(data, "", &["slow"]));
    let (out, whole) = (place.path("out"), place.path("whole"));
    let folder = out.join("slow/run_000");
    let mut child =
        process().args(compare(&config, &out, &[])).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while case_files(&folder).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "no case");
        assert!(child.try_wait().unwrap().is_none(), "ended before its first case");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = case_files(&folder);
    assert!(!kept.is_empty() && kept.len() < 10, "{} cases were made before the kill", kept.len());

    let output = run(&compare(&config, &out, &[]));
    stdout(&output);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&format!("{} cases in", 10 - kept.len())), "{told}");
    let all = case_files(&folder);
    assert_eq!(all.len(), 10);
    assert!(kept.iter().all(|(name, bytes)| all[name] == *bytes));
    assert!(!out.join("slow/run_001").exists());
    // Nothing is left: nothing is made.
    let again = run(&compare(&config, &out, &[]));
    stdout(&again);
    assert!(String::from_utf8_lossy(&again.stderr).contains("0 cases in"));
    assert!(case_files(&folder) == all);

    stdout(&run(&compare(&config, &whole, &[])));
    assert_eq!(without_times(&out.join("summary.json")), without_times(&whole.join("summary.json")));
}

#[test]
fn shards_share_the_cases() {
    let place = place();
    let data = "cases = \"pocket/test\"\nlimit = 7\nrephrases = 1\nper_class = 1";
    let config = place.write("shared.toml", config(data, "curve = [1, 3]\ntext = \"pocket\"", &["ft", "lookup"]));
    let (out, whole) = (place.path("out"), place.path("whole"));
    // Two at once on one folder, in one moment.
    let start = |shard: &str| {
        let args = compare(&config, &out, &["--shard", shard]);
        process().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = ["1/2", "2/2"].map(start).map(|child| child.wait_with_output().unwrap());
    for (output, cases) in both.iter().zip(["4 cases", "3 cases"]) {
        assert!(stdout(output).contains("--summarize"));
        assert!(String::from_utf8_lossy(&output.stderr).contains(cases), "{output:?}");
    }
    assert_eq!(case_files(&out.join("ft/run_000")).len(), 7);
    assert!(!out.join("ft/run_001").exists() && !out.join("summary.json").exists());
    stdout(&run(&["compare", "--summarize", text(&out)]));
    stdout(&run(&compare(&config, &whole, &[])));
    let summary = |folder: &Path| {
        let mut summary = without_times(&folder.join("summary.json"));
        summary.as_object_mut().unwrap().remove("title");
        summary
    };
    assert_eq!(summary(&out), summary(&whole));
    // One that is done makes nothing; one of another configuration is refused, and so is one that is none.
    assert!(String::from_utf8_lossy(&run(&compare(&config, &out, &["--shard", "2/2"])).stderr).contains("0 cases"));
    let other = run(&compare(&config, &out, &["--shard", "1/2", "--set", "compare.seed=5"]));
    one_line_error(&other, 1, &["another configuration", "--out"]);
    for wrong in ["3/2", "0/2", "x"] {
        one_line_error(&run(&compare(&config, &out, &["--shard", wrong])), 2, &["--shard", "1/16"]);
    }
}

#[test]
fn free_answers_say_on_how_many_cases_they_were_taken() {
    let place = place();
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    let told = stdout(&run(&compare(&config, &out, &["--set", "compare.generate=2"])));
    assert!(told.contains("rewrite exact, % ↑, n=2") && told.contains("edit success, % ↑ "), "{told}");
    let summary = read(&out.join("summary.json"));
    assert_eq!(figure(&summary, "lookup", "generate", "rewrite_exact")["cases"], 2);
    assert_eq!(figure(&summary, "lookup", "generate", "rewrite_exact")["mean"], 1.0);
    assert_eq!(figure(&summary, "lookup", "mend", "edit_success")["cases"], 3);
    let answers =
        |id: &str| read(&out.join("ft/run_000").join(format!("case_{id}.json")))["emend"]["case"]["answers"].clone();
    assert_eq!(answers("11").as_array().unwrap().len(), 4);
}

#[test]
fn what_is_written_is_read_beside_romes_snippets() {
    let place = place();
    let fact = json!([{
        "case_id": 3,
        "requested_rewrite": {
            "prompt": "The city of {} lies in", "relation_id": "P17", "subject": "Lyon",
            "target_new": {"str": "Japan", "id": "Q17"}, "target_true": {"str": "France", "id": "Q142"},
        },
        "paraphrase_prompts": ["Lyon is in"],
        "neighborhood_prompts": ["The city of Marseille lies in"],
        "attribute_prompts": ["The city of Osaka lies in"],
        "generation_prompts": ["The city of Lyon", "Lyon is"],
    }]);
    place.write("rome.json", fact.to_string());
    let snippets = json!([
        {"relation_id": "P17", "target_id": "Q17", "samples": [{"name": "Osaka", "text": "Osaka is a city in Japan."}]},
        {"relation_id": "P30", "target_id": "Q17", "samples": [{"name": "Ginza", "text": "Other words alone."}]},
    ]);
    let snippets = place.write("snippets.json", snippets.to_string());
    let config = place.write("texts.toml", config("cases = \"rome.json\"", "texts = 1", &["ft"]));
    let out = place.path("out");
    let summary = json(&compare(&config, &out, &["--snippets", text(&snippets)]));
    for name in ["fluency", "essence", "reference_score"] {
        assert_eq!(figure(&summary, "ft", "counterfact", name)["cases"], 1, "{name}");
    }
    let file = read(&out.join("ft/run_000/case_3.json"));
    assert_eq!(file["post"]["text"].as_array().unwrap().len(), 2);
    assert!(file["post"]["ngram_entropy"].as_f64().unwrap() > 0.0);
    // Prompts whose own answer is the new target are no neighbors.
    assert_eq!(file["post"]["neighborhood_prompts_correct"].as_array().unwrap().len(), 1);
    // Each text goes on past its own end; what stands before that is kept beside it.
    let texts = file["emend"]["case"]["texts"].as_array().unwrap();
    let lengths = texts.iter().map(|text| {
        let [whole, own] = ["after", "to_own_end"].map(|part| text[part].as_str().unwrap());
        assert!(whole.starts_with(own), "{text}");
        [whole.len(), own.len()]
    });
    let lengths: Vec<[usize; 2]> = lengths.collect();
    assert!(
        lengths.iter().all(|[whole, own]| whole >= own) && lengths.iter().any(|[whole, own]| whole > own),
        "{lengths:?}"
    );
    assert_eq!(figure(&summary, "ft", "generate", "fluency")["cases"], 1);
    // They ask for the new answer: beside the headline, not in it.
    let locality = |name: &str| figure(&summary, "ft", "mend", name)["mean"].clone();
    assert_eq!(locality("locality"), locality("locality/neighborhood"));
    assert!(locality("locality/attribute").is_number());
}

#[test]
fn other_settings_are_another_run() {
    let place = place();
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    stdout(&run(&compare(&config, &out, &["--limit", "2"])));
    let first = case_files(&out.join("ft/run_000"));
    assert_eq!(first.len(), 2);
    // One editor alone, on one case more.
    stdout(&run(&compare(&config, &out, &["--only", "ft"])));
    assert_eq!(case_files(&out.join("ft/run_001")).len(), 3);
    assert!(case_files(&out.join("ft/run_000")) == first);
    assert!(!out.join("lookup/run_001").exists());
    // The last run of each counts, and that they do not fit each other is said wherever figures stand.
    let told = stdout(&run(&["compare", "--summarize", text(&out)]));
    let summary = read(&out.join("summary.json"));
    let difference = summary["differences"][0]["told"].as_str().unwrap();
    for words in ["not alike in data: ", "3 records of facts.json", "2 records of facts.json", "(ft)", "(lookup)"] {
        assert!(difference.contains(words), "{difference}");
    }
    assert_eq!(summary["differences"].as_array().unwrap().len(), 1);
    assert!(summary["data"].is_null() && summary["model"]["path"] == "pocket");
    let page = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert!(told.starts_with("not alike in data") && page("summary.md").starts_with("**not alike in data"));
    assert!(page("report.html").contains("not alike in data"));
    // No mark stands across it.
    for figure in summary["figures"].as_array().unwrap() {
        assert!(figure["proven"].is_null() && figure["best"] == false, "{figure}");
    }
    assert!(!page("summary.md").contains("tie"));
    let counts: Vec<&Value> = summary["methods"].as_array().unwrap().iter().map(|method| &method["cases"]).collect();
    // The unedited model stands in front, with all cases that are there.
    assert_eq!(counts, [3, 3, 2]);
    // Other steps of the editor.
    replace(&place.path("ft.toml"), "steps = 3", "steps = 4");
    stdout(&run(&compare(&config, &out, &["--only", "ft"])));
    assert_eq!(case_files(&out.join("ft/run_002")).len(), 3);
    // Where the files lie decides nothing.
    let elsewhere = self::place();
    replace(&elsewhere.path("ft.toml"), "steps = 3", "steps = 4");
    elsewhere.write("other.json", facts().to_string());
    replace(&elsewhere.path("compare.toml"), "facts.json\"", "other.json\"\nnote = \"the same facts\"");
    stdout(&run(&compare(&elsewhere.path("compare.toml"), &out, &["--only", "ft"])));
    assert!(!out.join("ft/run_003").exists());
    assert_eq!(read(&out.join("ft/run_002/params.json"))["data"]["note"], "the same facts");
    // Other numbers come of other precision.
    stdout(&run(&compare(&config, &out, &["--only", "ft", "--set", "model.dtype=f64"])));
    assert_eq!(case_files(&out.join("ft/run_003")).len(), 3);
}

#[test]
fn all_at_once_and_one_on_the_other() {
    let place = place();
    let config = place.path("compare.toml");
    for mode in ["batch", "sequential"] {
        let out = place.path(mode);
        stdout(&run(&compare(&config, &out, &["--mode", mode])));
        let folder = out.join("lookup/run_000");
        assert_eq!(read(&folder.join("params.json"))["mode"], mode);
        for name in ["ft", "lookup"] {
            for bytes in case_files(&out.join(name).join("run_000")).values() {
                assert_eq!(serde_json::from_slice::<Value>(bytes).unwrap()["num_edits"], 3);
            }
        }
        let summary = read(&out.join("summary.json"));
        assert_eq!(figure(&summary, "lookup", "efficiency", "entries")["mean"], 3.0);
        assert_eq!(figure(&summary, "lookup", "mend", "edit_success")["mean"], 1.0);
        assert_eq!(summary["mode"], mode);
        // In a sequence an edit is read right after it was made, too.
        let early = figure(&summary, "lookup, right after", "mend", "edit_success");
        if mode == "batch" {
            assert!(early.is_null(), "{early}");
        } else {
            assert_eq!((&early["mean"], &early["cases"], &early["proven"]), (&json!(1.0), &json!(3), &Value::Null));
            let file = read(&out.join("lookup/run_000/case_11.json"));
            assert_eq!(file["emend"]["case"]["right_after"].as_array().unwrap().len(), 4);
        }
        // A case that is missing is looked at on the model of all edits.
        let folder = out.join("ft/run_000");
        let (before, lost) = (case_files(&folder), folder.join("case_7.json"));
        let known = read(&lost);
        std::fs::remove_file(&lost).unwrap();
        stdout(&run(&compare(&config, &out, &["--mode", mode])));
        let after = case_files(&folder);
        assert!(before.iter().all(|(name, bytes)| name == "case_7.json" || after[name] == *bytes));
        let again = read(&lost);
        assert_eq!((&again["post"], &again["pre"]), (&known["post"], &known["pre"]));
        assert_eq!(again["emend"]["case"]["right_after"], known["emend"]["case"]["right_after"]);
        assert_eq!(again["emend"]["case"]["size"], known["emend"]["case"]["size"]);
    }
}

#[test]
fn in_a_batch_only_what_is_wrong_fails() {
    let place = place();
    let mut facts = facts();
    // ROME edits subjects; of two answers to one question the later one stays, as in a sequence.
    facts[1].as_object_mut().unwrap().remove("subject");
    let mut again = facts[0].clone();
    (again["id"], again["target_new"]) = (json!("again"), json!("Italy"));
    facts.as_array_mut().unwrap().push(again);
    place.write("facts.json", facts.to_string());
    let compare_section = "mode = \"batch\"\ncurve = [4]\ntext = \"pocket\"";
    let config = place.write("batch.toml", config("cases = \"facts.json\"", compare_section, &["rome", "ft"]));
    let out = place.path("out");
    let output = run(&compare(&config, &out, &[]));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.lines().last().unwrap().starts_with("error: 3 case(s) failed"), "{errors}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("rome: 2 of 4 cases failed and are in no mean"), "{told}");
    assert!(
        told.contains("rome, 4 edits, batch: 2 could be made, 2 failed and are in no point of the curve"),
        "{told}"
    );
    let curves = read(&out.join("summary.json"))["curves"].clone();
    let rome =
        |curve: &&Value| curve["method"] == "rome" && curve["mode"] == "batch" && curve["metric"] == "edit_success";
    let point = &curves.as_array().unwrap().iter().find(rome).unwrap()["points"][0];
    let counts = ["edits", "made", "failed", "asked"].map(|count| point[count].as_u64().unwrap());
    assert_eq!(counts, [4, 2, 2, 2]);
    let error = |method: &str, id: &str| {
        read(&out.join(format!("{method}/run_000/case_{id}.json")))["emend"]["case"]["error"].clone()
    };
    assert!(error("rome", "7").as_str().unwrap().contains("names no subject"));
    for method in ["rome", "ft"] {
        let contradicted = error(method, "11");
        assert!(contradicted.as_str().unwrap().contains("contradicted by a later request"), "{contradicted}");
        assert!(error(method, "again").is_null());
        // A curve counts what was left out, at once and in a row.
        let points = read(&out.join(method).join("run_000/curves.json"));
        assert_eq!(points[0]["failed"], if method == "rome" { 2 } else { 1 });
        assert_eq!(points[1]["failed"], if method == "rome" { 1 } else { 0 });
        assert_eq!(points[0]["asked"], if method == "rome" { 2 } else { 3 });
        assert!(points[0]["error"].is_null() && points[1]["error"].is_null());
    }
    assert!(error("ft", "7").is_null());
}

#[test]
fn a_text_is_read_after_edits() {
    let place = place();
    let with = |more: &str| config("cases = \"facts.json\"", more, &["ft", "lookup"]);
    let config = place.write("text.toml", with("perplexity = 2\ntext = \"pocket\""));
    let out = place.path("out");
    let summary = json(&compare(&config, &out, &[]));
    let rose = figure(&summary, "ft", "mend", "perplexity_drawdown");
    assert_eq!(rose["cases"], 2);
    // No weight changes for a memory's sake.
    assert_eq!(figure(&summary, "lookup", "mend", "perplexity_drawdown")["mean"], 0.0);
    let perplexities = |method: &str, id: &str| {
        read(&out.join(format!("{method}/run_000/case_{id}.json")))["emend"]["case"]["perplexity"].clone()
    };
    let (one, other) = (perplexities("ft", "11"), perplexities("ft", "7"));
    let rises: Vec<f64> =
        [&one, &other].map(|both| both[1].as_f64().unwrap() - both[0].as_f64().unwrap()).into_iter().collect();
    assert!((rises.iter().sum::<f64>() / 2.0 - rose["mean"].as_f64().unwrap()).abs() < 1e-9);
    assert!(rises.iter().all(|rise| *rise != 0.0) && one[0] == other[0]);
    // The third case is not among them.
    let files = case_files(&out.join("ft/run_000"));
    let read = |bytes: &&Vec<u8>| String::from_utf8_lossy(bytes).contains("\"perplexity\"");
    assert_eq!(files.values().filter(read).count(), 2);
    // One model has one perplexity and one time, however many edits are in it: nothing is proven by counting these once a case.
    let batch = json(&compare(&config, &place.path("batch"), &["--mode", "batch"]));
    assert_eq!(figure(&batch, "ft", "mend", "perplexity_drawdown")["cases"], 1);
    for (summary, name) in [(&batch, "seconds/edit"), (&batch, "peak_memory"), (&summary, "peak_memory")] {
        for method in ["ft", "lookup"] {
            assert_eq!(figure(summary, method, "efficiency", name)["proven"], Value::Null, "{method} {name}");
        }
    }
    // Only the first editor has the process to itself, and what was there before is no part of its memory.
    let ft = case_files(&out.join("ft/run_000"));
    let held = ft.values().map(|bytes| serde_json::from_slice::<Value>(bytes).unwrap()["emend"]["case"].clone());
    let most = held.filter_map(|case| {
        Some(case["peak_memory_bytes"].as_u64()?.saturating_sub(case["memory_before_bytes"].as_u64()?))
    });
    let most = most.max().map(|most| most as f64);
    assert_eq!(figure(&summary, "ft", "efficiency", "peak_memory")["mean"].as_f64(), most);
    assert!(figure(&summary, "lookup", "efficiency", "peak_memory").is_null());
    // The pocket model has a text of its own; another has none.
    let wrong = place.write("wrong.toml", with("perplexity = 2").replace("\"pocket\"", &format!("{:?}", gpt2())));
    wrong_usage(&compare(&wrong, &out, &[]), &["compare.perplexity", "compare.text"]);
}

#[test]
fn two_comparisons_do_not_write_into_one_folder() {
    let place = place();
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    let lock = std::fs::File::create(out.join("lock")).unwrap();
    lock.lock().unwrap();
    let config = place.path("compare.toml");
    one_line_error(&run(&compare(&config, &out, &[])), 1, &["another comparison writes here", "--out"]);
    drop(lock);
    stdout(&run(&compare(&config, &out, &[])));
}

#[test]
fn other_statistics_are_another_run() {
    let place = place();
    let rome = ROME.replace("\"none\"", "\"moments\"");
    place.write("rome.toml", rome);
    let config = place.write("compare.toml", config("cases = \"facts.json\"", "", &["rome"]));
    let out = place.path("out");
    let id =
        |number: &str| read(&out.join("rome").join(number).join("params.json"))["settings"]["statistics_id"].clone();
    for seed in ["0", "1"] {
        let file = place.path("moments");
        let made = ["stats", "--model", "pocket", "--text", "pocket", "--layers", "0", "--tokens", "3000", "--again"];
        stdout(&run(&[&made[..], &["--seed", seed, "--out", text(&file)]].concat()));
        stdout(&run(&compare(&config, &out, &[])));
    }
    assert!(id("run_000").is_string() && id("run_000") != id("run_001"));
}

#[test]
fn curves_go_on_behind_the_cases() {
    let place = place();
    let config = place.write("curves.toml", config("cases = \"facts.json\"\nlimit = 1", "curve = [1, 3]", &["lookup"]));
    let out = place.path("out");
    stdout(&run(&compare(&config, &out, &[])));
    assert_eq!(case_files(&out.join("lookup/run_000")).len(), 1);
    let points = read(&out.join("lookup/run_000/curves.json"));
    let point = &points[3];
    assert_eq!((&point["mode"], &point["edits"], &point["asked"]), (&json!("sequential"), &json!(3), &json!(3)));
    // A list forgets nothing.
    assert_eq!((&point["retained"], &point["last"]), (&json!(1.0), &json!(1.0)));
    assert!(points[2]["retained"].is_null() && points[1]["retained"].is_null());
    // The same points as a picture, of results that are there.
    let plot = place.path("curves.svg");
    stdout(&run(&["compare", "--summarize", text(&out), "--plot", text(&plot)]));
    let drawn = std::fs::read_to_string(&plot).unwrap();
    for told in ["edit success", "locality", "edits in one batch", "edits one after the other", ">lookup<", ">3<"] {
        assert!(drawn.contains(told), "{told}: {drawn}");
    }
    refused(&["compare", "--summarize", text(&out), "--plot", "curves.gif"], 2, &[".svg or a .png"]);
    let none = ["--plot", text(&plot), "--set", "compare.curve=[]"];
    refused(&compare(&config, &out, &none), 2, &["--plot", "compare.curve"]);
}

#[test]
fn curves_keep_their_points() {
    let place = place();
    let compare_section = "text = \"pocket\"\nperplexity = 0\ncurve = [1, 2, 50]";
    let config = place.write("curves.toml", config("cases = \"facts.json\"", compare_section, &["ft"]));
    let out = place.path("out");
    place.write("facts.txt", "The city of Lyon lies in France. The city of Osaka lies in Japan.\n");
    stdout(&run(&compare(&config, &out, &[])));
    let path = out.join("ft/run_000/curves.json");
    let points = read(&path);
    let places: Vec<(&str, u64)> = points
        .as_array()
        .unwrap()
        .iter()
        .map(|point| (point["mode"].as_str().unwrap(), point["edits"].as_u64().unwrap()))
        .collect();
    // There are no fifty facts.
    let wanted = [("batch", 1), ("batch", 2), ("sequential", 1), ("sequential", 2)];
    assert_eq!(places, wanted);
    for point in points.as_array().unwrap() {
        assert!(point["perplexity"].as_f64().unwrap() > 1.0 && point["relative"].as_f64().unwrap() > 0.0, "{point}");
        assert!(point["error"].is_null() && point["collapsed"] == false);
        assert!(point["perplexity_ratio"].as_f64().unwrap() > 0.5, "{point}");
    }
    // One edit at once is one edit in a row.
    assert_eq!(points[0]["figures"], points[2]["figures"]);
    let summary = read(&out.join("summary.json"));
    // One editor is nobody's best, and ties with nobody.
    assert!(!std::fs::read_to_string(out.join("summary.md")).unwrap().contains("tie"));
    let curve = |metric: &str, mode: &str| {
        let wanted = |curve: &&Value| curve["metric"] == metric && curve["mode"] == mode;
        summary["curves"].as_array().unwrap().iter().find(wanted).unwrap()["points"].clone()
    };
    let point = json!({"edits": 2, "value": points[3]["perplexity"], "made": 2, "failed": 0, "asked": 2});
    assert_eq!(curve("perplexity", "sequential")[1], point);
    assert_eq!(curve("edit_success", "batch").as_array().unwrap().len(), 2);
    // A rerun makes nothing anew.
    let bytes = std::fs::read(&path).unwrap();
    stdout(&run(&compare(&config, &out, &[])));
    assert!(std::fs::read(&path).unwrap() == bytes);
    // Points that are missing are made, the others kept as they are, and none is there twice.
    let mut some = points.clone();
    some.as_array_mut().unwrap().retain(|point| point["edits"] == 1);
    some[0]["perplexity"] = json!(1000.5);
    some[0]["collapsed"] = json!(true);
    std::fs::write(&path, some.to_string()).unwrap();
    let output = run(&compare(&config, &out, &[]));
    stdout(&output);
    let again = read(&path);
    assert_eq!(again.as_array().unwrap().len(), 4, "{again:#}");
    assert!(again.as_array().unwrap().contains(&some[0]));
    let made = |point: &&Value| **point == points[3];
    assert_eq!(again.as_array().unwrap().iter().filter(made).count(), 1);
    // A model that has collapsed is told.
    assert!(String::from_utf8_lossy(&output.stderr).contains("ft, 1 edits, batch: the model has collapsed"));
    // Another text is another curve.
    stdout(&run(&compare(&config, &out, &["--set", "compare.text=facts.txt"])));
    let other = read(&path);
    assert_eq!(other.as_array().unwrap().len(), 4);
    assert!(other[0]["perplexity"] != points[0]["perplexity"] && other[0]["figures"] == points[0]["figures"]);
    std::fs::write(&path, "[{\"mode\": \"batch\"").unwrap();
    one_line_error(&run(&compare(&config, &out, &[])), 1, &["curves.json", "no points of a curve"]);
}

#[test]
fn an_editor_that_fails_on_a_case_goes_on() {
    let place = place();
    let mut facts = facts();
    // ROME edits subjects; the context of the pocket model is 64 tokens.
    facts[1].as_object_mut().unwrap().remove("subject");
    facts[2]["rephrases"] = json!([format!("{} Lyon is in", "The king of France is old.".repeat(20))]);
    place.write("facts.json", facts.to_string());
    let config = place.write("compare.toml", config("cases = \"facts.json\"", "curve = [1, 3]", &["ft", "rome"]));
    let out = place.path("out");
    let output = run(&compare(&config, &out, &["--json"]));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.lines().last().unwrap().starts_with("error: 3 case(s) failed"), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let counts = summary["methods"].as_array().unwrap()[1..].iter();
    let counts: Vec<(u64, u64)> =
        counts.map(|method| (method["failed"].as_u64().unwrap(), method["cases"].as_u64().unwrap())).collect();
    assert_eq!(counts, [(1, 3), (2, 3)]);
    assert_eq!(figure(&summary, "ft", "mend", "edit_success")["cases"], 2);
    assert_eq!(figure(&summary, "rome", "mend", "edit_success")["cases"], 1);
    let case = read(&out.join("rome/run_000/case_7.json"));
    assert!(case["emend"]["case"]["error"].as_str().unwrap().contains("names no subject"));
    // ROME's scripts take means of the lists that are there.
    assert_eq!((&case["post"], &case["pre"]), (&json!({}), &json!({})));
    assert!(case["time"].is_number());
    // It is known, not tried again; and it still counts.
    let files = case_files(&out.join("rome/run_000"));
    assert_eq!(run(&compare(&config, &out, &[])).status.code(), Some(1));
    // On a curve what cannot be edited or asked for is counted, the others are asked.
    let points = read(&out.join("rome/run_000/curves.json"));
    for point in points.as_array().unwrap().iter().filter(|point| point["edits"] == 3) {
        assert_eq!((&point["failed"], &point["asked"], &point["error"]), (&json!(1), &json!(1), &Value::Null));
    }
    assert!(case_files(&out.join("rome/run_000")) == files);
    // The tables alone are no failure.
    stdout(&run(&["compare", "--summarize", text(&out)]));
}

/// Whoever has fewer cases than others says so in its row.
#[test]
fn a_part_of_the_cases_says_so() {
    let place = place();
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    stdout(&run(&compare(&config, &out, &[])));
    std::fs::remove_file(out.join("lookup/run_000/case_7.json")).unwrap();
    let told = stdout(&run(&["compare", "--summarize", text(&out)]));
    assert!(told.contains("lookup: 2 of 3 cases are there"), "{told}");
    let markdown = std::fs::read_to_string(out.join("summary.md")).unwrap();
    let row = |text: &str, method: &str| text.lines().find(|line| line.contains(method)).unwrap().to_owned();
    assert!(row(&markdown, "| lookup |").contains("n=2") && row(&told, "lookup ").contains("n=2"), "{told}");
    assert!(!row(&markdown, "| ft |").contains("n="), "{markdown}");
}

/// A text that another run did not read decides perplexities alone.
#[test]
fn what_decides_some_figures_takes_the_marks_of_these() {
    let place = place();
    let out = place.path("out");
    place.write("facts.txt", "The city of Lyon lies in France. The city of Osaka lies in Japan.\n");
    let config = place.path("compare.toml");
    for (editor, watched) in [("ft", "pocket"), ("lookup", "facts.txt")] {
        let watched = format!("compare.text={watched}");
        stdout(&run(&compare(&config, &out, &["--only", editor, "--set", "compare.perplexity=2", "--set", &watched])));
    }
    let summary = read(&out.join("summary.json"));
    let told: Vec<&Value> = summary["differences"].as_array().unwrap().iter().map(|told| &told["what"]).collect();
    assert_eq!(told, ["compare.text"]);
    for method in ["ft", "lookup"] {
        assert!(figure(&summary, method, "mend", "perplexity")["proven"].is_null());
        assert!(figure(&summary, method, "mend", "edit_success")["proven"].is_boolean());
    }
}

/// Records without ids are numbered: the same number in two files is not the same fact.
#[test]
fn other_facts_under_the_same_id_are_no_pair() {
    let place = place();
    let out = place.path("out");
    let mut facts = facts();
    facts.as_array_mut().unwrap().iter_mut().for_each(|fact| drop(fact.as_object_mut().unwrap().remove("id")));
    place.write("facts.json", facts.to_string());
    facts.as_array_mut().unwrap().rotate_left(1);
    place.write("other.json", facts.to_string());
    let config = place.path("compare.toml");
    stdout(&run(&compare(&config, &out, &["--only", "ft"])));
    stdout(&run(&compare(&config, &out, &["--only", "lookup", "--set", "data.cases=other.json"])));
    let summary = read(&out.join("summary.json"));
    assert!(summary["differences"][0]["told"].as_str().unwrap().contains("3 records of other.json"));
    assert!(summary["figures"].as_array().unwrap().iter().all(|figure| figure["proven"].is_null()));
    // The page has each fact of each number by itself.
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    let (_, cases) = page.split_once("id=\"data-cases\">").unwrap();
    let cases: Value = serde_json::from_str(cases.split_once("</script>").unwrap().0).unwrap();
    assert_eq!(cases.as_array().unwrap().len(), 6);
}

/// zsRE's locality questions are asked as its file has them, plainly only where that is asked for.
#[test]
fn questions_are_those_of_the_file() {
    let place = place();
    let fact = json!([{
        "subject": "Lyon", "src": "In which country is Lyon?", "rephrase": "Lyon is in which country?", "alt": "Japan",
        "answers": ["France"], "loc": "nq question: who is a king", "loc_ans": "a man",
    }]);
    place.write("zsre.json", fact.to_string());
    for (more, wanted) in [("", "nq question: who is a king"), ("\nplain_questions = true", "who is a king?")] {
        let config = place.write("zsre.toml", config(&format!("cases = \"zsre.json\"{more}"), "", &["lookup"]));
        let out = place.path("out");
        stdout(&run(&compare(&config, &out, &[])));
        let run = if more.is_empty() { "run_000" } else { "run_001" };
        let case = read(&out.join("lookup").join(run).join("case_0.json"))["emend"]["case"].clone();
        let rows = case["rows"].as_array().unwrap();
        assert_eq!(rows.iter().find(|row| row["kind"] == "locality").unwrap()["prompt"], wanted);
    }
}

/// An edit to the answer that is there already shows nothing.
#[test]
fn the_same_answer_twice_is_told() {
    let place = place();
    let mut facts = facts();
    facts[1]["target_new"] = facts[1]["target_true"].clone();
    place.write("facts.json", facts.to_string());
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    let output = run(&compare(&config, &out, &[]));
    let told = stdout(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("1 of 3 records have the new answer as the old one too (the first is record 7: \"Japan\")"),
        "{errors}"
    );
    assert!(told.contains("3 probes of 1 cases have the new answer as the old one too"), "{told}");
    let summary = read(&out.join("summary.json"));
    for name in ["efficacy", "paraphrase", "neighborhood"] {
        assert_eq!(figure(&summary, "lookup", "counterfact", name)["cases"], 2, "{name}");
    }
    assert_eq!(figure(&summary, "lookup", "mend", "edit_success")["cases"], 3);
}

#[test]
fn case_files_that_are_wrong() {
    let place = place();
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    stdout(&run(&compare(&config, &out, &[])));
    let ft = out.join("ft/run_000");
    let case = ft.join("case_7.json");
    let good = std::fs::read(&case).unwrap();
    let bad = |contents: &[u8], words: &[&str]| {
        std::fs::write(&case, contents).unwrap();
        let words = [&["case_7.json"], words].concat();
        refused(&["compare", "--summarize", text(&out)], 1, &words);
        // Whoever would go on is told before anything is made.
        one_line_error(&run(&compare(&config, &out, &[])), 1, &words);
        std::fs::write(&case, &good).unwrap();
    };
    bad(&good[..good.len() / 2], &["no case of a comparison", "remove the file"]);
    bad(b"", &["no case of a comparison"]);
    bad(b"[1, 2]", &["no case of a comparison"]);
    bad(&std::fs::read(out.join("lookup/run_000/case_7.json")).unwrap(), &["another run", "remove the file"]);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut file: Value = serde_json::from_slice(&good).unwrap();
        change(&mut file);
        file.to_string().into_bytes()
    };
    bad(&changed(&|file| file["emend"]["case"]["colour"] = json!("red")), &["colour"]);
    bad(&changed(&|file| file["emend"]["format"] = json!("case/2")), &["case/2", "this program reads case/1"]);
    bad(&changed(&|file| file["emend"]["case"]["edits"] = json!(-1)), &["no case of a comparison"]);
    bad(
        &changed(&|file| file["post"]["rewrite_prompts_probs"][0]["target_new"] = json!(0.001)),
        &["\"post\" differs", "changed by hand"],
    );
    bad(
        &changed(&|file| file["emend"]["case"]["rows"][0]["before"]["log_probabilities"][0] = json!(-0.001)),
        &["\"pre\" differs"],
    );
    bad(
        &changed(&|file| file["emend"]["case"]["rows"][0]["after"]["log_probabilities"] = json!([])),
        &["probe 0 has not a number for every token"],
    );
    bad(
        &changed(&|file| {
            let mut rows = file["emend"]["case"]["rows"].clone();
            rows[0]["after"]["log_probabilities"] = json!([]);
            file["emend"]["case"]["right_after"] = rows;
        }),
        &["probe 0 has not a number for every token"],
    );
    bad(&changed(&|file| file["emend"]["case"]["id"] = json!("11")), &["\"case_id\" differs"]);
    bad(&changed(&|file| file["time"] = json!(0.5)), &["\"time\" differs"]);
    bad(&changed(&|file| file["num_edits"] = json!(2)), &["\"num_edits\" differs"]);
    bad(
        &changed(&|file| file["requested_rewrite"]["target_new"]["str"] = json!("Peru")),
        &["\"requested_rewrite\" differs"],
    );
    bad(
        &changed(&|file| {
            file["emend"]["case"]["id"] = json!("11");
            file["case_id"] = json!(11);
        }),
        &["case \"11\" belongs into", "case_11.json"],
    );
    // What is only written in another way is the same.
    std::fs::write(&case, format!("{:#}", serde_json::from_slice::<Value>(&good).unwrap())).unwrap();
    stdout(&run(&["compare", "--summarize", text(&out)]));
    std::fs::write(&case, &good).unwrap();

    std::fs::copy(&case, ft.join("case_8.json")).unwrap();
    refused(&["compare", "--summarize", text(&out)], 1, &["case_8.json", "case \"7\" belongs into"]);
    std::fs::remove_file(ft.join("case_8.json")).unwrap();

    let params = std::fs::read(ft.join("params.json")).unwrap();
    for wrong in ["{", "", "[1]", "{\"model\": 3}"] {
        std::fs::write(ft.join("params.json"), wrong).unwrap();
        let words = if wrong.len() < 2 { "params.json: not JSON" } else { "another run" };
        refused(&["compare", "--summarize", text(&out)], 1, &[words]);
    }
    std::fs::write(ft.join("params.json"), params).unwrap();
    stdout(&run(&["compare", "--summarize", text(&out)]));
}

#[test]
fn a_run_without_a_case_is_left_out() {
    let place = place();
    let (config, out) = (place.path("compare.toml"), place.path("out"));
    refused(&["compare", "--summarize", text(&place.path("nowhere"))], 1, &["nowhere"]);
    std::fs::create_dir(&out).unwrap();
    refused(&["compare", "--summarize", text(&out)], 1, &["no results here", "emend compare --config"]);
    stdout(&run(&compare(&config, &out, &[])));
    case_files(&out.join("ft/run_000")).keys().for_each(|name| {
        std::fs::remove_file(out.join("ft/run_000").join(name)).unwrap();
    });
    let output = run(&["compare", "--summarize", text(&out), "--json"]);
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(summary["methods"].as_array().unwrap().len(), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no case yet"));
    std::fs::remove_dir_all(out.join("lookup")).unwrap();
    one_line_error(&run(&["compare", "--summarize", text(&out)]), 1, &["no case is left"]);
}

#[test]
fn cases_that_are_none() {
    let place = place();
    let out = place.path("out");
    let refuse = |data: &str, code: i32, words: &[&str]| {
        let config = place.write("wrong.toml", config(data, "", &["ft"]));
        refused(&compare(&config, &out, &[]), code, words);
    };
    refuse("cases = \"facts.json[3..]\"", 1, &["facts.json[3..]", "no case is left"]);
    refuse("cases = \"missing.json\"", 1, &["missing.json"]);
    refuse("cases = \"facts.json[x]\"", 2, &["NAME[from..to]"]);
    let mut twice = facts();
    twice[2]["id"] = json!("11");
    place.write("twice.json", twice.to_string());
    refuse("cases = \"twice.json\"", 1, &["records 0 and 2 have the same id 11"]);
    assert!(!out.join("ft").exists());
}

#[test]
fn configs_that_are_wrong() {
    let place = place();
    let out = place.path("out");
    let good = std::fs::read_to_string(place.path("compare.toml")).unwrap();
    let refuse = |contents: &str, words: &[&str]| {
        let config = place.write("wrong.toml", contents);
        refused(&compare(&config, &out, &[]), 2, words);
    };
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replace(from, to)
    };
    let head = good.split("[[editors]]").next().unwrap();
    refuse(head, &["wrong.toml", "editors"]);
    refuse(&format!("editors = []\n{head}"), &["no [[editors]] to compare"]);
    refuse(&changed("name = \"lookup\"", "name = \"ft\""), &["editors[1].name = \"ft\" is there twice"]);
    refuse(&changed("name = \"lookup\"", "name = \"a/b\""), &["a/b", "letters, digits, - and _"]);
    refuse(&changed("name = \"lookup\"", "name = \"..\""), &["editors[1].name"]);
    refuse(&changed("name = \"lookup\"", "name = \"\""), &["editors[1].name"]);
    refuse(&changed("name = \"lookup\"", "name = \"unedited\""), &["editors[1].name", "the model's own row"]);
    refuse(&changed("config = \"lookup.toml\"", ""), &["editors[1] (lookup)", "either an archive or a config"]);
    refuse(
        &changed("config = \"lookup.toml\"", "config = \"lookup.toml\"\narchive = \"a\""),
        &["editors[1] (lookup)", "either an archive or a config"],
    );
    refuse(
        &changed("config = \"lookup.toml\"", "archive = \"a\"\nset = [\"editor.layer=1\"]"),
        &["editors[1] (lookup)", "not over an archive"],
    );
    refuse(&changed("[compare]", "[compare]\nmod = \"batch\""), &["unknown key `mod`", "did you mean `mode`?"]);
    refuse(&changed("[compare]", "[compare]\nmode = \"all\""), &["compare.mode", "all"]);
    for curve in ["[10, 1]", "[1, 1]", "[0, 1]"] {
        refuse(&changed("[compare]", &format!("[compare]\ncurve = {curve}")), &["compare.curve must rise"]);
    }
    refuse(&changed("config = \"lookup.toml\"", "config = \"missing.toml\""), &["missing.toml"]);
    let config = place.path("compare.toml");
    refused(&compare(&config, &out, &["--only", "rome"]), 2, &["--only rome", "ft, lookup"]);
    refused(&compare(&config, &out, &["--set", "editors.0.name=a"]), 2, &["--set"]);
    wrong_usage(&["compare"], &["--config"]);
    wrong_usage(&["compare", "--config", text(&config), "--summarize", text(&out)], &["cannot be used with"]);
    wrong_usage(&["compare", "--summarize", text(&out), "--limit", "3"], &["cannot be used with"]);
}

/// Before any editor works.
#[test]
fn what_an_editor_lacks_is_told_first() {
    let place = place();
    let out = place.path("out");
    let good = std::fs::read_to_string(place.path("compare.toml")).unwrap();
    let refuse = |lookup: &str, words: &[&str]| {
        let config = place.write("wrong.toml", good.replace("config = \"lookup.toml\"", lookup));
        refused(&compare(&config, &out, &[]), 1, words);
        assert!(!out.join("ft").exists());
    };
    place.write("rome.toml", ROME.replace("\"none\"", "\"moments\""));
    refuse(
        "config = \"rome.toml\"",
        &["moments.safetensors", "there are no statistics here", "emend stats --model pocket"],
    );
    place.write("mine.toml", "");
    refuse("archive = \"checkpoints/mine\"", &["no archive here", "emend train --config", "mine.toml"]);
    refuse("archive = \"checkpoints/other\"", &["no archive here", "emend train --config FILE"]);
}

/// Every figure is there with the mean, the cases and, where it is told, the interval that was computed otherwise; and no other is.
#[track_caller]
fn same_figures(summary: &Value, expected: &Value) {
    let expected = expected["figures"].as_array().unwrap();
    for wanted in expected {
        let [method, protocol, name] = ["method", "protocol", "name"].map(|key| wanted[key].as_str().unwrap());
        let found = figure(summary, method, protocol, name);
        assert_eq!(found["cases"], wanted["cases"], "{wanted}: {found}");
        for (key, wanted) in wanted.as_object().unwrap() {
            match (key.as_str(), wanted.as_f64()) {
                ("mean" | "low" | "high", Some(right)) => {
                    let number = found[key].as_f64().unwrap_or_else(|| panic!("{key} {right}: {found}"));
                    assert!((number - right).abs() <= 1e-9 * right.abs().max(1.0), "{key} {right}: {found}");
                }
                ("low" | "high", None) => assert!(found[key].is_null(), "{key}: {found}"),
                _ => {}
            }
        }
        let [low, mean, high] = ["low", "mean", "high"].map(|key| found[key].as_f64());
        assert!(low.is_none_or(|low| Some(low) <= mean) && high.is_none_or(|high| mean <= Some(high)), "{found}");
        assert_eq!(low.is_some(), high.is_some(), "{found}");
    }
    assert_eq!(summary["figures"].as_array().unwrap().len(), expected.len());
}

/// The numbers of `tests/fixtures/compare`, which `tests/recompute.py` computed from the same case files.
#[test]
fn figures_are_those_computed_in_python() {
    let place = TestFolder::new();
    let folder = place.copy(&fixture("compare"), "golden");
    let summary = json(&["compare", "--summarize", text(&folder)]);
    same_figures(&summary, &read(&folder.join("expected.json")));
    // Four of five, each yes or no: Wilson's interval. What is compared with itself has none.
    let efficacy = figure(&summary, "alpha", "counterfact", "efficacy");
    for (end, wanted) in [("low", 0.375528), ("high", 0.963777)] {
        assert!((efficacy[end].as_f64().unwrap() - wanted).abs() < 1e-5, "{efficacy}");
    }
    for (protocol, name) in [("mend", "locality"), ("mend", "drawdown/near"), ("generate", "locality_same")] {
        let known = figure(&summary, "unedited", protocol, name);
        assert!(known["mean"].is_number() && known["low"].is_null() && known["high"].is_null(), "{known}");
    }
    let failed: Vec<&Value> = summary["methods"].as_array().unwrap().iter().map(|method| &method["failed"]).collect();
    // Neither the unedited model nor a second look at edits can fail.
    assert_eq!(failed, [&Value::Null, &json!(0), &json!(0), &Value::Null, &json!(1)]);
}

/// The same script on a comparison that was just made. Without Python the stored numbers above are all there is to hold figures against.
#[test]
fn a_new_comparison_is_recomputed_in_python() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recompute.py");
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: no python3 here");
        return;
    }
    let place = place();
    let looks = "mode = \"sequential\"\ngenerate = 2\ntexts = 3\nperplexity = 2\ntext = \"pocket\"";
    let mut facts = facts();
    facts[0]["generation"] = json!(["The city of Lyon", "Lyon is"]);
    facts[1]["portability"] =
        json!({"claims": [{"prompt": "True or false: Osaka lies in France.", "target": "True", "rival": "False"}]});
    place.write("facts.json", facts.to_string());
    let config = place.write("all.toml", config("cases = \"facts.json\"", looks, &["ft", "lookup"]));
    let out = place.path("out");
    let summary = json(&compare(&config, &out, &[]));
    let output = std::process::Command::new("python3").arg(script).arg(&out).output().unwrap();
    let expected: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(expected["figures"].as_array().unwrap().len() > 100);
    same_figures(&summary, &expected);
}

/// All that a case file says but times and memory.
fn without_measurements(bytes: &[u8]) -> Value {
    let mut case: Value = serde_json::from_slice(bytes).unwrap();
    case["time"].take();
    for key in ["seconds", "peak_memory_bytes", "memory_before_bytes"] {
        case["emend"]["case"][key].take();
    }
    case
}

#[test]
fn cases_do_not_depend_on_the_number_of_threads() {
    let place = place();
    let settings = "generate = 2\ntexts = 2\nperplexity = 1\ntext = \"text.txt\"\ncurve = [1, 3]";
    place.write("text.txt", "The city of Lyon lies in France. ".repeat(20));
    let config = place.write("threads.toml", config("cases = \"facts.json\"", settings, &["ft", "lookup", "rome"]));
    for mode in ["single", "batch"] {
        let of = |threads: usize| {
            let out = place.path(&format!("{mode}-{threads}"));
            let args = compare(&config, &out, &["--mode", mode]);
            let output = process().env("RAYON_NUM_THREADS", threads.to_string()).args(args).output();
            stdout(&output.unwrap());
            let run = |name: &str| case_files(&out.join(name).join("run_000"));
            ["ft", "lookup", "rome"].map(|name| {
                let files = run(name).into_iter();
                files.map(|(file, bytes)| (file, without_measurements(&bytes))).collect::<BTreeMap<_, _>>()
            })
        };
        let known = of(2);
        assert!(known.iter().all(|cases| cases.len() == 3));
        for threads in [1, 3, 16] {
            assert!(known == of(threads), "{mode} on {threads} threads");
        }
    }
}

/// Every number of a comparison changes its figures or its curves.
#[test]
fn each_number_of_a_comparison_counts() {
    let place = place();
    place.write("text.txt", "The city of Lyon lies in France. ".repeat(20));
    let made = |number: usize, data: &str, settings: &str| {
        let settings = format!("text = \"text.txt\"\n{settings}");
        let data = format!("cases = \"facts.json\"\n{data}");
        let config = place.write(&format!("numbers-{number}.toml"), config(&data, &settings, &["ft"]));
        let out = place.path(&format!("numbers-{number}"));
        stdout(&run(&compare(&config, &out, &[])));
        let summary = without_times(&out.join("summary.json"));
        let curves = summary["curves"].as_array().unwrap().iter();
        // The time of a point is no figure of the editor.
        let curves = curves.filter(|curve| !curve.to_string().contains("seconds")).cloned().collect();
        (summary["figures"].clone(), Value::Array(curves))
    };
    let data = ["limit = 3", "rephrases = 1", "per_class = 1"];
    let settings = ["seed = 0", "generate = 2", "texts = 2", "perplexity = 2", "curve = [1, 3]"];
    let known = made(0, &data.join("\n"), &settings.join("\n"));
    let others = ["limit = 2", "rephrases = 0", "per_class = 0"].into_iter().chain([
        "seed = 1",
        "generate = 1",
        "texts = 1",
        "perplexity = 1",
        "curve = [1, 2]",
    ]);
    for (number, other) in others.enumerate() {
        let with = |known: &[&str]| {
            let key = |text: &str| text.split(' ').next().map(str::to_owned);
            let lines = known.iter().map(|line| if key(line) == key(other) { other } else { line });
            lines.collect::<Vec<_>>().join("\n")
        };
        assert!(made(number + 1, &with(&data), &with(&settings)) != known, "{other} changes nothing");
    }
}
