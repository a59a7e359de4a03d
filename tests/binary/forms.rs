//! Texts and records as people have them: scripts, tables, cases of several edits, tests with conditions.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{TestFolder, fixture, gpt2, json as document, refused, run, stdout, text, wrong_usage};

/// Fine-tuning that takes a moment and is strong enough to show.
fn fine_tuning(place: &TestFolder) -> PathBuf {
    let config = format!(
        "[model]\npath = {:?}\n[editor]\nmethod = \"fine_tuning\"\nlayers = [2]\nweights = [\"mlp.down\"]\nsteps = 60\nlearning_rate = 0.05\n",
        text(&gpt2())
    );
    place.write("ft.toml", config)
}

#[test]
fn an_answer_in_a_script_without_spaces() {
    let place = TestFolder::new();
    let (config, saved) = (fine_tuning(&place), place.path("han.edit.safetensors"));
    let edit =
        ["apply", "--config", text(&config), "--prompt", "甲国的首都是", "--target", "乙城", "--save", text(&saved)];
    let shown = stdout(&run(&edit));
    assert!(shown.contains("乙城 ") && !shown.contains('\u{fffd}'), "{shown}");
    let model = gpt2();
    let ask =
        ["predict", "--model", text(&model), "--edit", text(&saved), "--prompt", "甲国的首都是", "--generate", "6"];
    let said = document(&ask);
    assert!(said["results"][0]["generated"].as_str().unwrap().starts_with("乙城"), "{said}");
}

#[test]
fn what_stands_between_prompt_and_answer_may_be_said() {
    let place = TestFolder::new();
    let config = fine_tuning(&place);
    let rows = |separator: Option<&str>| -> Vec<Value> {
        let mut record = json!({"prompt": "Ada: ", "target_new": "Vell", "target_true": "Ost"});
        if let Some(separator) = separator {
            record["separator"] = separator.into();
        }
        let facts = place.write("facts.json", json!([record]).to_string());
        let saved = place.path("said.edit.safetensors");
        let args = ["apply", "--config", text(&config), "--edits", text(&facts), "--save", text(&saved)];
        stdout(&run(&args));
        let model = gpt2();
        // The prompt as it was made, and the answer behind it.
        let prompt = format!("Ada:{}", separator.unwrap_or_default());
        let ask = [
            "predict",
            "--model",
            text(&model),
            "--edit",
            text(&saved),
            "--prompt",
            prompt.trim_end_matches(' '),
            "--generate",
            "5",
        ];
        vec![document(&ask)["results"][0]["generated"].clone()]
    };
    assert!(rows(None)[0].as_str().unwrap().starts_with(" Vell"));
    assert!(rows(Some(""))[0].as_str().unwrap().starts_with("Vell"));
    assert!(rows(Some("\n"))[0].as_str().unwrap().starts_with("Vell"));
}

#[test]
fn a_table_of_facts() {
    let place = TestFolder::new();
    let config = fine_tuning(&place);
    let table = "id;prompt;target_new;rephrase;locality;locality_target\n\
        a;\"Lake Orrin; a lake, lies in\";Vell;You find Lake Orrin in;A king is;Ada\n\
        b;Mount Ael lies in;Tamm;;;\n";
    let facts = place.write("facts.csv", table);
    let edited = document(&["apply", "--config", text(&config), "--edits", text(&facts), "--set", "editor.steps=2"]);
    let requests = edited["requests"].as_array().unwrap();
    assert_eq!(requests.iter().map(|request| request["id"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(requests[0]["prompt"], "Lake Orrin; a lake, lies in");
    assert_eq!(requests[0]["probes"].as_array().unwrap().len(), 3);

    let wrong = |name: &str, contents: &str, words: &[&str]| {
        let facts = place.write(name, contents);
        refused(
            &["apply", "--config", text(&config), "--edits", text(&facts)],
            1,
            &[&[text(&facts)][..], words].concat(),
        );
    };
    wrong("ragged.csv", "prompt,target_new\na,b\nc,d,e\n", &["line 3", "3 cells where the header has 2"]);
    wrong("open.csv", "prompt,target_new\n\"a,b\nc,d\n", &["line 2", "never closed"]);
    wrong("colons.csv", "prompt:target_new\na:b\n", &["line 1", "commas, tabs, semicolons"]);
    wrong("column.tsv", "prompt\ttarget_new\tsubjct\na\tb\tc\n", &["line 1", "subjct", "did you mean \"subject\""]);
    wrong(
        "alias.json",
        r#"[{"prompt": "a", "target_new": "b", "aliases": ["c", 4]}]"#,
        &["\"aliases[1]\" is a number"],
    );
    wrong("separator.json", r#"[{"prompt": "a", "target_new": "b", "separator": 4}]"#, &["\"separator\" is a number"]);
}

/// Two cases of two edits each, in MQuAKE's form.
fn cases() -> Value {
    let edit = |subject: &str, verb: &str, new: &str, old: &str| {
        json!({"prompt": format!("{{}} {verb}"), "subject": subject, "question": format!("{subject} {verb} what?"),
            "relation_id": "P1", "target_new": {"str": new, "id": "Q1"}, "target_true": {"str": old, "id": "Q2"}})
    };
    let case = |number: usize, subject: &str, new: &str| {
        json!({"case_id": number, "requested_rewrite": [edit(subject, "lies in", new, "Ost"), edit(new, "is led by", "Ada", "Bo")],
            "questions": [format!("Who leads the land of {subject}?"), format!("{subject} is led by")],
            "answer": "Bo", "answer_alias": [], "new_answer": "Ada", "new_answer_alias": ["Ada Park"], "orig": {},
            "single_hops": [], "new_single_hops": [{"question": format!("Where is {subject}?"), "cloze": "x", "answer": new, "answer_alias": []}]})
    };
    json!([case(7, "Lake Orrin", "Vell"), case(8, "Mount Ael", "Tamm")])
}

#[test]
fn a_case_of_several_edits_is_made_whole() {
    let place = TestFolder::new();
    let config = fine_tuning(&place);
    let facts = place.write("cases.json", cases().to_string());
    let apply = |mode: &str| {
        let saved = place.path(&format!("{mode}.edit.safetensors"));
        let args =
            ["apply", "--config", text(&config), "--edits", text(&facts), "--mode", mode, "--save", text(&saved)];
        (document(&args), saved)
    };
    let made_of = |path: &Path| document(&["inspect", text(path)])["provenance"]["requests"].as_array().unwrap().len();
    let (single, _) = apply("single");
    assert_eq!(single["edits"].as_array().unwrap().len(), 2);
    assert_eq!(made_of(&place.path("single-0.edit.safetensors")), 2);
    // Both edits of a case are asked, each with its own question.
    let kinds: Vec<&str> = single["requests"][0]["probes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|probe| probe["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "rewrite").count(), 2);
    assert_eq!(kinds.iter().filter(|kind| **kind == "portability").count(), 3);
    let (batch, saved) = apply("batch");
    assert_eq!((batch["edits"].as_array().unwrap().len(), made_of(&saved)), (1, 4));
    let (sequence, saved) = apply("sequential");
    assert_eq!((sequence["edits"].as_array().unwrap().len(), made_of(&saved)), (2, 4));
}

/// A comparison of one fine-tuning on a file of cases, with free answers; the figures of a protocol by name.
fn compared(place: &TestFolder, cases: &Value, protocol: &str) -> Vec<(String, f64)> {
    place.write("ft.toml", std::fs::read(fine_tuning(place)).unwrap());
    place.write("cases.json", cases.to_string());
    let config = format!(
        "[model]\npath = {:?}\n[data]\ncases = \"cases.json\"\n[compare]\ngenerate = 9\n[[editors]]\nname = \"ft\"\nconfig = \"ft.toml\"\n",
        text(&gpt2())
    );
    let (config, out) = (place.write("compare.toml", config), place.path("results"));
    let summary = document(&["compare", "--config", text(&config), "--out", text(&out)]);
    // The same figures by other code.
    if let Ok(output) = std::process::Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recompute.py"))
        .arg(&out)
        .output()
    {
        let expected: Value = serde_json::from_slice(&output.stdout).unwrap();
        for figure in expected["figures"].as_array().unwrap() {
            let same = summary["figures"]
                .as_array()
                .unwrap()
                .iter()
                .find(|ours| ["method", "protocol", "name"].iter().all(|key| ours[key] == figure[key]));
            let same = same.unwrap_or_else(|| panic!("no {figure}"));
            assert!(
                (same["mean"].as_f64().unwrap() - figure["mean"].as_f64().unwrap()).abs() < 1e-6,
                "{same} {figure}"
            );
        }
    }
    let figures = summary["figures"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|figure| figure["method"] == "ft" && figure["protocol"] == protocol);
    figures.map(|figure| (figure["name"].as_str().unwrap().to_owned(), figure["mean"].as_f64().unwrap())).collect()
}

#[test]
fn reasoning_over_several_edits_has_its_protocol() {
    let place = TestFolder::new();
    let figures = compared(&place, &cases(), "mquake");
    let names: Vec<&str> = figures.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["edit_wise", "instance_wise", "multi_hop"]);
    // What was taught is said, at least in part: a few steps make both edits of a case.
    assert!(figures[0].1 > 0.0, "{figures:?}");
}

#[test]
fn a_test_counts_where_its_conditions_hold() {
    let place = TestFolder::new();
    let model = gpt2();
    // What the unedited model says to a prompt: a condition that holds.
    let said = document(&["predict", "--model", text(&model), "--prompt", "A king is", "--generate", "3"]);
    let known = said["results"][0]["generated"].as_str().unwrap().trim().to_owned();
    let query = |prompt: &str, answer: &str| json!([{"prompt": prompt, "answers": [{"value": answer, "aliases": []}]}]);
    let test = |answer: &str, condition: &str| {
        json!({"test_queries": query("The name of the mother of Ada Park is", answer), "test_condition": "OR",
            "condition_queries": query("A king is", condition)})
    };
    let record = |tests: Value| {
        json!([{"example_type": "popular",
            "edit": {"prompt": "The name of the mother of Ada Park is Vell.", "relation": "MOTHER", "subject_id": "Q1", "target_id": "Q2"},
            "Logical_Generalization": tests, "Forgetfulness": []}])
    };
    let share = |tests: Value| compared(&TestFolder::new(), &record(tests), "ripple");
    let name = "logical_generalization".to_owned();
    assert_eq!(share(json!([test("Vell", &known), test("Ost", &known)])), [(name.clone(), 0.5)]);
    // The second does not count.
    assert_eq!(share(json!([test("Vell", &known), test("Ost", "nobody ever")])), [(name, 1.0)]);
    assert!(share(json!([test("Vell", "nobody ever")])).is_empty());
    // Nor under teacher forcing, or among free answers.
    let asked = |protocol: &str, tests: Value| {
        let figures = compared(&TestFolder::new(), &record(tests), protocol);
        figures.into_iter().any(|(name, _)| name.starts_with("portability"))
    };
    for protocol in ["easyedit", "generate"] {
        let mut free = test("Vell", "");
        free["condition_queries"] = json!([]);
        assert!(asked(protocol, json!([free])), "{protocol}");
        assert!(!asked(protocol, json!([test("Vell", "nobody ever")])), "{protocol}");
    }
    let facts = place.write(
        "ripple.json",
        record(json!([{"test_queries": [], "condition_queries": [{"prompt": "A king is", "answers": []}]}]))
            .to_string(),
    );
    let config = fine_tuning(&place);
    refused(
        &["apply", "--config", text(&config), "--edits", text(&facts)],
        1,
        &["condition_queries[0].answers", "is empty"],
    );
}

#[test]
fn a_file_of_facts_is_shown() {
    let place = TestFolder::new();
    let facts = place.write("cases.json", cases().to_string());
    let model = gpt2();
    let shown = document(&["inspect", text(&facts), "--model", text(&model)]);
    assert_eq!(
        (shown["records"].as_u64(), shown["edits"].as_u64(), shown["most_edits"].as_u64()),
        (Some(2), Some(4), Some(2))
    );
    assert!(shown["form"].as_str().unwrap().starts_with("MQuAKE"), "{shown}");
    assert_eq!(shown["subjects"], json!({"named": 4, "in_prompt": 4}));
    assert!(shown["tokens"]["both"]["most"].as_u64() > shown["tokens"]["prompt"]["least"].as_u64());
    let shown = stdout(&run(&["inspect", text(&facts)]));
    for words in ["2 records", "4 edits in all, up to 2 a case", "multi-hop", "Lake Orrin lies in"] {
        assert!(shown.contains(words), "no {words:?} in: {shown}");
    }
    let saved = fixture("compare");
    refused(&["inspect", text(&saved.join("expected.json"))], 1, &["no known form"]);
    refused(&["inspect", text(&place.path("mistyped.json"))], 1, &["mistyped.json", "No such file"]);
    refused(&["inspect", text(&place.write("empty.json", ""))], 1, &["holds no records"]);
    refused(&["inspect", text(&place.write("utf16.json", [0xff, 0xfe, b'[', 0]))], 1, &["not UTF-8"]);
}

#[test]
fn keys_that_a_published_form_does_not_have_are_named_once() {
    let place = TestFolder::new();
    let config = fine_tuning(&place);
    let record = |id: usize| json!({"id": id, "prompt": "Who leads Vell?", "target": "Ada", "rephrase": "Vell's leader?", "colour": "red"});
    let facts = place.write("qa.json", json!([record(1), record(2)]).to_string());
    let output = run(&["apply", "--config", text(&config), "--edits", text(&facts), "--set", "editor.steps=1"]);
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    stdout(&output);
    assert_eq!(errors.matches("\"colour\"").count(), 1, "{errors}");
    assert!(errors.contains("QAEdit"), "{errors}");
}

#[test]
fn a_flag_given_twice_is_an_error() {
    for command in ["apply", "predict", "train", "compare", "stats", "inspect"] {
        let help = stdout(&run(&[command, "--help"]));
        for flag in ["--model", "--device", "--config", "--json", "--mode"] {
            if !help.contains(&format!("{flag} ")) && !help.contains(&format!("{flag}\n")) {
                continue;
            }
            let value: &[&str] = match flag {
                "--json" => &[],
                "--mode" => &["batch"],
                _ => &["x"],
            };
            let twice = [&[command, flag][..], value, &[flag], value].concat();
            wrong_usage(&twice, &["cannot be used multiple times", flag]);
        }
    }
    let place = TestFolder::new();
    let config = fine_tuning(&place);
    let twice = ["--set", "editor.steps=1", "--set", "editor.steps = 2"];
    let edit = ["apply", "--config", text(&config), "--prompt", "A king is", "--target", "here"];
    refused(&[&edit[..], &twice].concat(), 2, &["editor.steps=1", "editor.steps = 2", "one key two values"]);
    // A flag that stands for a key, too.
    let twice = ["--model", "pocket", "--set", "model.path=pocket"];
    refused(&[&edit[..], &twice].concat(), 2, &["--model and --set model.path=pocket", "one key two values"]);
    let twice = ["--limit", "2", "--set", "data.limit = 3"];
    let compare = ["compare", "--config", "configs/compare-pocket.toml"];
    refused(&[&compare[..], &twice].concat(), 2, &["--limit and --set data.limit = 3", "one key two values"]);
}
