//! `emend locate`: a sweep from nothing to its report, taken up again, and a proposal of layers.

use serde_json::{Value, json};

use crate::common::{TestFolder, fixture, json, one_line_error, refused, run, stdout, text, training, wrong_usage};

/// A sweep of a moment: fine-tuning at two layers.
fn config(place: &TestFolder, facts: &str, locate: &str) -> std::path::PathBuf {
    place.write(
        "ft.toml",
        "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [0]\nlearning_rate = 1e-3\nsteps = 4\n",
    );
    let text = format!(
        "[model]\npath = \"pocket\"\n\n[data]\nfacts = {facts:?}\nlimit = 4\n\n[locate]\nproblems = [\"injection\", \"erasure\", \"forcing\"]\ndraws = 2\n\
         {locate}\n\n[[editors]]\nname = \"ft\"\nconfig = \"ft.toml\"\n"
    );
    place.write("sweep.toml", text)
}

#[test]
fn a_sweep_ends_in_a_report_and_is_taken_up_again() {
    let place = TestFolder::new();
    let config = config(&place, "pocket/test", "layers = [1, 4]\nwindows = [1, 2]");
    let out = place.path("out");
    let args = ["locate", "--config", text(&config), "--out", text(&out)];
    let dry = stdout(&run(&[&args[..], &["--dry-run"]].concat()));
    assert!(
        dry.contains("4 facts that pocket knows, 3 problems, 1 editor, 2 layers: 24 edits, 4 facts traced\n"),
        "{dry}"
    );
    assert!(!out.exists());
    let said = stdout(&run(&args));
    for words in [
        "error injection",
        "fact erasure",
        "fact forcing",
        "R² tracing",
        "by chance",
        "points at layer",
        "correlations over 4 facts",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    let document: Value = serde_json::from_slice(&std::fs::read(out.join("locate.json")).unwrap()).unwrap();
    let rows = document["rows"].as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["problem"] == "erasure" && row["metric"] == "rewrite" && row["window"] == 2)
        .unwrap();
    assert_eq!(row["points"].as_array().unwrap().len(), 8);
    assert_eq!(row["by_layer"].as_array().unwrap().len(), 2);
    let shares = ["layer", "effect", "both"].map(|of| row["regression"]["r2"][of].as_f64().unwrap());
    assert!(
        shares.iter().all(|share| (-1e-9..=1.0 + 1e-9).contains(share)) && shares[2] >= shares[0].max(shares[1]) - 1e-9,
        "{shares:?}"
    );
    let page = std::fs::read_to_string(out.join("locate.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("default-src 'none'") && !page.contains("src="));
    // Every figure names its axes.
    for axis in [">layer</text>", ">score, effect</text>", ">tracing effect</text>", ">rewrite score</text>"] {
        assert!(page.contains(axis), "no {axis}");
    }
    let markdown = std::fs::read_to_string(out.join("locate.md")).unwrap();
    for words in ["| error injection | ft |", "pocket: 4 facts of pocket/test that it knows", "Numbers without meaning"]
    {
        assert!(markdown.contains(words), "no {words:?} in {markdown}");
    }
    assert!(page.contains("do not tell apart from layers") && page.contains("pocket/test"));
    // A case and a traced fact are lost: they come out the same, and nothing else is done again.
    let kept = out.join("injection.ft.L01/run_000");
    let mut cases: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("case_"));
    cases.sort();
    let before = std::fs::metadata(&cases[1]).unwrap().modified().unwrap();
    std::fs::remove_file(&cases[0]).unwrap();
    std::fs::remove_file(out.join("traces/fact_00002.json")).unwrap();
    let again = json(&args);
    assert_eq!(std::fs::metadata(&cases[1]).unwrap().modified().unwrap(), before);
    assert_eq!(again["rows"], document["rows"]);
    // Results of another sweep in the folder: its own settings, an editor's, or no sweep at all. The report stays.
    let other = [&args[..], &["--set", "locate.draws=3"]].concat();
    one_line_error(&run(&other), 1, &["another sweep", "locate.draws is 2, now 3", "--out"]);
    let other = [&args[..], &["--set", "locate.problems=[\"erasure\"]"]].concat();
    one_line_error(&run(&other), 1, &["another sweep", "locate.problems"]);
    let editor = std::fs::read_to_string(place.path("ft.toml")).unwrap();
    std::fs::write(place.path("ft.toml"), editor.replace("steps = 4", "steps = 5")).unwrap();
    one_line_error(&run(&args), 1, &["another configuration", "--out"]);
    assert!(!out.join("injection.ft.L01/run_001").exists());
    assert_eq!(std::fs::read_to_string(out.join("locate.html")).unwrap(), page);
    let compared = place.path("compared");
    std::fs::create_dir_all(compared.join("rome/run_000")).unwrap();
    let other = ["locate", "--config", text(&config), "--out", text(&compared)];
    one_line_error(&run(&other), 1, &["rome", "none of this sweep", "--out"]);
}

/// The study's sweeps, on models as deep as those it was made on: every layer is there, and what is laid over each editor for each problem is something that it has.
#[test]
fn the_studys_sweeps_are_whole() {
    let place = TestFolder::new();
    for (config, tiny, layers) in [("gpt2xl", "gpt2-tiny", 48), ("gpt-j-6b", "gptj-tiny", 28)] {
        let model = place.path(config);
        std::fs::create_dir(&model).unwrap();
        let tiny = fixture(tiny);
        let mut about: Value = serde_json::from_slice(&std::fs::read(tiny.join("config.json")).unwrap()).unwrap();
        about["n_layer"] = json!(layers);
        about["vocab_size"] = json!(300);
        std::fs::write(model.join("config.json"), about.to_string()).unwrap();
        std::fs::copy(tiny.join("model.safetensors"), model.join("model.safetensors")).unwrap();
        std::fs::copy(fixture("gpt2-tiny").join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
        let sweep = format!("configs/locate-{config}.toml");
        let args = ["locate", "--config", &sweep, "--model", text(&model), "--set", "data.facts=pocket", "--plan"];
        let plan = json(&args);
        assert!(plan["peak"]["bytes"].as_u64().unwrap() > 0);
        let shallow = place.path("shallow");
        let _ = std::fs::remove_dir_all(&shallow);
        std::fs::rename(&model, &shallow).unwrap();
        about["n_layer"] = json!(20);
        std::fs::write(shallow.join("config.json"), about.to_string()).unwrap();
        let args = ["locate", "--config", &sweep, "--model", text(&shallow), "--set", "data.facts=pocket", "--plan"];
        refused(&args, 2, &["locate.layers", "0 to 19"]);
    }
}

#[test]
fn one_layer_is_too_few_for_a_regression_and_that_is_said() {
    let place = TestFolder::new();
    let config = config(&place, "pocket/test", "layers = [2]\nwindows = [1]");
    let said = stdout(&run(&["locate", "--config", text(&config), "--out", text(&place.path("out")), "--limit", "2"]));
    assert!(said.contains("no regression for error injection by ft: 1 layer:"), "{said}");
}

#[test]
fn what_cannot_be_swept_is_said_before_any_edit() {
    let place = TestFolder::new();
    let unknown = json!([{"prompt": "The city of Lyon lies in", "subject": "Lyon", "target_new": "Japan", "target_true": "Norway"}]);
    let facts = place.write("facts.json", unknown.to_string());
    let path = config(&place, text(&facts), "layers = [1]");
    let out = place.path("out");
    let sweep = |more: &[&'static str]| -> Vec<String> {
        let own = ["locate", "--config", text(&path), "--out", text(&out)];
        own.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let call = |args: &[String]| run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    one_line_error(&call(&sweep(&[])), 1, &["no fact is left", "the model knows none"]);
    one_line_error(&call(&sweep(&["--set", "locate.layers=[9]"])), 2, &["no layer 9"]);
    one_line_error(&call(&sweep(&["--set", "locate.windows=[7]"])), 2, &["a window of 7 layers"]);
    one_line_error(&call(&sweep(&["--set", "locate.problems=[\"theft\"]"])), 2, &["theft", "injection"]);
    one_line_error(&call(&sweep(&["--set", "locate.noise=\"much\""])), 2, &["3x"]);
    one_line_error(&call(&sweep(&["--set", "locate.problems=[\"erasure\", \"erasure\"]"])), 2, &["erasure twice"]);
    one_line_error(&call(&sweep(&["--limit", "0"])), 2, &["--limit"]);
    one_line_error(
        &call(&sweep(&["--limit", "2", "--set", "data.limit=3"])),
        2,
        &["--limit and --set data.limit=3", "one key two values"],
    );
    // An encoder-decoder is told as such, whatever else does not fit it.
    for more in [&["--set", "locate.layers=[9]"][..], &["--plan"]] {
        let pairs = [&["--model", "pocket-t5"], more].concat();
        one_line_error(&call(&sweep(&pairs)), 2, &["tracing, like ROME", "an encoder that reads it whole"]);
    }
    wrong_usage(&["locate", "--propose", "--model", "pocket", "--facts", "pocket", "--set", "a=1"], &["--config"]);
    wrong_usage(&["locate"], &["--config"]);
    wrong_usage(&["locate", "--propose", "--model", "pocket"], &["--facts"]);
    assert!(!out.exists());
    // An editor that takes no such objective is found before anything is traced, or in a request of one's own.
    let known = place.path("known.toml");
    let kn = place.write(
        "kn.toml",
        "include = \"KN\"\n[editor]\nlayers = [1]\n"
            .replace("KN", concat!(env!("CARGO_MANIFEST_DIR"), "/configs/kn-pocket.toml")),
    );
    let text_of =
        std::fs::read_to_string(&path).unwrap().replace(text(&facts), "pocket/test").replace("ft.toml", text(&kn));
    std::fs::write(&known, text_of).unwrap();
    one_line_error(
        &run(&["locate", "--config", text(&known), "--out", text(&out), "--dry-run"]),
        2,
        &["ft takes no objective", "lower"],
    );
    // An editor without layers, and in a comparison one that takes no such objective: before any work.
    std::fs::write(
        &known,
        std::fs::read_to_string(&known)
            .unwrap()
            .replace(text(&kn), "IKE")
            .replace("IKE", concat!(env!("CARGO_MANIFEST_DIR"), "/configs/ike-pocket.toml")),
    )
    .unwrap();
    one_line_error(
        &run(&["locate", "--config", text(&known), "--dry-run"]),
        2,
        &["ike-pocket.toml", "no layers to sweep"],
    );
    let lookup = place
        .write("lookup.toml", "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"lookup\"\nlayer = 1\nradius = 0.1\n");
    let erase = json!([{"prompt": "The city of Lyon lies in", "subject": "Lyon", "target_new": "France", "objective": "lower"}]);
    let erase = place.write("erase.json", erase.to_string());
    refused(&["apply", "--config", text(&lookup), "--edits", text(&erase)], 2, &["lookup", "\"lower\""]);
    let compare = place.write(
        "compare.toml",
        "[model]\npath = \"pocket\"\n\n[data]\ncases = \"erase.json\"\n\n[[editors]]\nname = \"ft\"\nconfig = \"ft.toml\"\n\n\
         [[editors]]\nname = \"cache\"\nconfig = \"lookup.toml\"\n",
    );
    let args = ["compare", "--config", text(&compare), "--out", text(&out)];
    one_line_error(&run(&args), 2, &["cache takes no objective", "--only"]);
    assert!(!out.exists());
}

#[test]
fn facts_that_cannot_be_read_are_counted_apart() {
    let place = TestFolder::new();
    let fact = |prompt: &str, truth: &str| json!({"prompt": prompt, "subject": "Lyon", "target_new": "Japan", "target_true": truth});
    let long = format!("{}The city of Lyon lies in", "The city of Lima lies in Peru. ".repeat(30));
    let (known, unknown) = (fact("The city of Lyon lies in", "France"), fact("Lyon, a city, lies in", "Norway"));
    let facts = place.write("facts.json", json!([fact(&long, "France"), unknown, known]).to_string());
    let path = config(&place, text(&facts), "layers = [1]");
    let args = ["locate", "--config", text(&path), "--dry-run"];
    let said = stdout(&run(&args));
    assert!(
        said.starts_with("1 fact that pocket knows, 3 problems, 1 editor, 1 layer: 3 edits, 1 fact traced"),
        "{said}"
    );
    assert!(said.trim_end().ends_with("; 1 fact left out that it cannot read"), "{said}");
    assert_eq!(json(&args)["unread"], 1);
    place.write("facts.json", json!([fact(&long, "France"), unknown]).to_string());
    one_line_error(&run(&args), 1, &["no fact is left", "of 2 records the model cannot read 1 and knows none"]);
}

#[test]
fn a_training_takes_no_other_objective() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let facts = std::fs::read_to_string(place.path("facts.json")).unwrap();
    let mut records: Value = serde_json::from_str(&facts).unwrap();
    records[2]["objective"] = json!("lower");
    place.write("facts.json", records.to_string());
    let args = training(&config, &place.path("out"), &[]).iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    one_line_error(&output, 1, &["record 2", "no other objective"]);
}

#[test]
fn layers_are_proposed_beside_what_tracing_says() {
    let place = TestFolder::new();
    let ft = place.write(
        "ft.toml",
        "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [0, 1]\nlearning_rate = 1e-3\nsteps = 3\n",
    );
    let args = [
        "locate",
        "--propose",
        "--model",
        "pocket",
        "--facts",
        "pocket/validation",
        "--limit",
        "4",
        "--config",
        text(&ft),
    ];
    let said = stdout(&run(&args));
    for words in ["efficacy", "best", "[editor]", "layers = [", "Tracing would have proposed layer"] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    let document = json(&args);
    assert_eq!(document["editor"]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(document["tracing"]["facts"], 4);
    // Where no editor is given, what is to be pasted is a whole config.
    let args = ["locate", "--propose", "--model", "pocket", "--facts", "pocket/validation", "--limit", "2"];
    let said = stdout(&run(&args));
    let pasted: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let config = place.write("pasted.toml", pasted.join("\n"));
    let request = ["--prompt", "The city of Lyon lies in", "--subject", "Lyon", "--target", "Japan"];
    stdout(&run(&[&["apply", "--config", text(&config)], &request[..]].concat()));
}
