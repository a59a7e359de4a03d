//! Statistics, and the editors that need no training.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rand::RngExt;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    TensorFile, TestFolder, fixture, gpt2, json, one_line_error, records, refused, run, stdout, text, wrong_usage,
};

/// The subject stands last, where an edit tells most in models that know nothing.
const PROMPT: &str = "A king sails to Lake Orrin";
const MODELS: [&str; 2] = ["gpt2-tiny", "llama-tiny"];
const METHODS: [&str; 7] = ["fine_tuning", "lora", "rome", "memit", "emmet", "alphaedit", "knowledge_neurons"];
/// Those that edit at the subject.
const OF_SUBJECTS: [&str; 4] = ["rome", "memit", "emmet", "alphaedit"];
/// Rows that are shorter than the context of 64.
const LAYER: [&str; 4] = ["--layers", "1", "--row", "32"];

/// Lines of made-up words, of about 45 tokens each.
fn words(lines: usize) -> String {
    let syllables = ["ba", "ke", "lo", "mi", "ru", "te", "vo", "sha", "dri", "ul"];
    let mut rng = emend::random::stream(5, "made-up words", 0);
    let mut word = || -> String {
        let length: usize = rng.random_range(1..4);
        (0..length).map(|_| syllables[rng.random_range(0..syllables.len())]).collect()
    };
    (0..lines).map(|_| (0..10).map(|_| word()).collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// The arguments of a collection.
fn stats<'a>(model: &'a Path, texts: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["stats", "--model", text(model), "--text", text(texts), "--out", text(out)];
    [&args, more].concat()
}

/// Statistics of all layers of a tiny model, collected when they are first asked for: a name without its ending.
fn statistics(model: &str) -> PathBuf {
    // A static is never dropped, so its folder stands where `cargo clean` finds it.
    static SHARED: OnceLock<TempDir> = OnceLock::new();
    let folder = SHARED.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("statistics-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let texts = folder.path().join("texts.txt");
        std::fs::write(&texts, words(300)).unwrap();
        for model in MODELS {
            let out = folder.path().join(model);
            stdout(&run(&stats(&fixture(model), &texts, &out, &["--layers", "0..2", "--row", "32"])));
        }
        folder
    });
    folder.path().join(model)
}

/// A config with which a method moves a tiny model within a moment.
fn config(place: &TestFolder, model: &str, method: &str) -> PathBuf {
    let own = match method {
        "fine_tuning" => "layers = [1]\nlearning_rate = 0.05\nsteps = 60",
        "lora" => "layers = [1]\nweights = [\"mlp.up\", \"mlp.down\"]\nrank = 4\nlearning_rate = 0.05\nsteps = 60",
        "rome" => "layers = [1]",
        "memit" => "layers = [0, 1]\ncovariance_weight = 1.0",
        "emmet" => "layers = [0, 1]\nridge = 0.0",
        "alphaedit" => "layers = [0, 1]\nnull_space_threshold = 0.1\nl2 = 0.01",
        _ => "threshold = 0.1",
    };
    let mut text = format!("[model]\npath = {:?}\n\n[editor]\nmethod = {method:?}\n{own}\n", fixture(model));
    if OF_SUBJECTS.contains(&method) {
        text += &format!("statistics = {:?}\nclamp = 4.0\nweight_decay = 0.01\nkl = 0.0\n", statistics(model));
        text += "context_templates = [\"{}\", \"A hill. {}\"]\n";
    }
    place.write(&format!("{method}.toml"), text)
}

/// The arguments of an edit with a config.
fn apply<'a>(config: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let request = ["--prompt", PROMPT, "--subject", "Lake Orrin", "--target", "Tamm"];
    [&["apply", "--config", text(config)], &request[..], more].concat()
}

/// The same for a file of records.
fn apply_file<'a>(config: &'a Path, records: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["apply", "--config", text(config), "--edits", text(records)], more].concat()
}

fn predict(model: &Path, edits: &[&Path]) -> Value {
    let mut args = vec!["predict", "--model", text(model), "--prompt", PROMPT, "--top", "100000"];
    edits.iter().for_each(|edit| args.extend(["--edit", text(edit)]));
    json(&args)
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// −ln p of a record's own target, a token.
#[track_caller]
fn nll(document: &Value, record: usize, side: &str) -> f64 {
    number(&document["requests"][record]["probes"][0][side]["target_nll"])
}

/// [`refused`], and nothing is left behind that was not there before.
#[track_caller]
fn refused_cleanly(place: &TestFolder, args: &[&str], code: i32, words: &[&str]) {
    let entries = || std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let before: BTreeSet<_> = entries().collect();
    refused(args, code, words);
    assert_eq!(entries().collect::<BTreeSet<_>>(), before, "{args:?}");
}

#[track_caller]
fn warned(args: &[&str], words: &str) {
    let output = run(args);
    stdout(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains(words), "no {words:?} in: {errors}");
}

/// Edits with every method, and sees that the file holds the edit and the model nothing of it.
fn every_method_edits(name: &str) {
    let (place, model) = (TestFolder::new(), fixture(name));
    let bare = predict(&model, &[]);
    for method in METHODS {
        let (config, saved) = (config(&place, name, method), place.path("e.edit.safetensors"));
        let document = json(&apply(&config, &["--save", text(&saved)]));
        assert_eq!((&document["method"], &document["mode"]), (&json!(method), &json!("single")));
        assert!(document["settings"]["steps"].is_u64() && document["settings"]["layers"].is_array(), "{method}");
        assert_eq!(document["base"]["fingerprint"], bare["fingerprint"]);
        assert!(document["seconds"].as_object().unwrap().values().all(|seconds| number(seconds) >= 0.0));
        assert!(document["peak_memory_bytes"].is_u64());
        assert_eq!(document["saved"], json!([saved]));
        let probe = &document["requests"][0]["probes"][0];
        assert_eq!(probe["kind"], "rewrite");
        for side in ["before", "after"] {
            assert!(probe[side]["answer"].is_string() && nll(&document, 0, side) >= 0.0);
        }
        let probability = |side: &str| number(&probe[side]["target_probability"]);
        let (before, after) = (probability("before"), probability("after"));
        match method {
            "knowledge_neurons" => assert_ne!(after, before, "{name}"),
            _ => assert!(after > 2.0 * before, "{name}, {method}: {before:e}, {after:e}"),
        }
        let over = predict(&model, &[&saved]);
        assert!(over["edits"] == document["edits"] && over["results"] != bare["results"], "{name}, {method}");
        let again = json(&apply(&config, &["--edit", text(&saved)]));
        let (made, read) = (nll(&document, 0, "after"), nll(&again, 0, "before"));
        assert!((made - read).abs() < 1e-3, "{name}, {method}: {made}, {read}");
    }
    assert_eq!(predict(&model, &[]), bare);
}

#[test]
fn every_method_edits_gpt2() {
    every_method_edits("gpt2-tiny");
}

#[test]
fn every_method_edits_llama() {
    every_method_edits("llama-tiny");
}

#[test]
fn batches_and_sequences() {
    let (place, model) = (TestFolder::new(), gpt2());
    let three = place.write("three.json", Value::from(records().as_array().unwrap()[..3].to_vec()).to_string());
    let bare = predict(&model, &[]);
    for method in ["rome", "memit", "alphaedit"] {
        let (config, saved) = (config(&place, "gpt2-tiny", method), place.path("joined.edit.safetensors"));
        for (mode, edits) in [("batch", 1), ("sequential", 3)] {
            let document = json(&apply_file(&config, &three, &["--mode", mode, "--save", text(&saved)]));
            assert_eq!((&document["method"], &document["mode"]), (&json!(method), &json!(mode)));
            assert_eq!(document["edits"].as_array().unwrap().len(), edits);
            assert_ne!(predict(&model, &[&saved])["results"], bare["results"]);
            // Joined and laid over the model again it is what the model ended as.
            let again = json(&apply_file(&config, &three, &["--edit", text(&saved)]));
            for record in 0..3 {
                let immediate = &document["requests"][record]["probes"][0]["immediate"];
                assert_eq!(immediate.is_object(), mode == "sequential");
                let (end, read) = (nll(&document, record, "after"), nll(&again, record, "before"));
                assert!((end - read).abs() < 1e-3, "{method}, {mode}, {record}: {end}, {read}");
            }
            if method == "alphaedit" {
                // What later edits are to leave alone: a key a request.
                assert_eq!(TensorFile::read(&saved).tensors["state.keys.1"].1, [128, 3]);
            }
        }
    }
}

#[test]
fn an_edit_of_two_layers_as_a_checkpoint() {
    let place = TestFolder::new();
    let (config, export) = (config(&place, "gpt2-tiny", "memit"), place.path("export"));
    let document = json(&apply(&config, &["--export", "hf", text(&export)]));
    assert_eq!(document["exported"]["changed_tensors"], 2);
    let again = json(&apply(&config, &["--model", text(&export), "--set", "editor.statistics=none"]));
    let (edited, exported) = (nll(&document, 0, "after"), nll(&again, 0, "before"));
    assert!((edited - exported).abs() < 1e-3, "{edited}, {exported}");
}

#[test]
fn configs_that_include_others() {
    let place = TestFolder::new();
    let plain = config(&place, "gpt2-tiny", "rome");
    let whole = place.write("whole.toml", std::fs::read_to_string(&plain).unwrap() + "steps = 7\n");
    let top = place.write("top.toml", "include = \"rome.toml\"\n\n[editor]\nsteps = 7\n");
    let edits = |args: Vec<&str>| json(&args)["edits"].clone();
    let wanted = edits(apply(&whole, &[]));
    assert_eq!(edits(apply(&top, &[])), wanted);
    assert_eq!(edits(apply(&plain, &["--set", "editor.steps=7"])), wanted);
    assert_ne!(edits(apply(&plain, &[])), wanted);
    assert_eq!(json(&apply(&top, &["--set", "editor.steps=1"]))["settings"]["steps"], 1);
    for (include, word) in [("\"none.toml\"", "none.toml"), ("3", "the name of a file")] {
        let wrong = place.write("wrong.toml", format!("include = {include}\n"));
        refused_cleanly(&place, &apply(&wrong, &[]), 2, &[word]);
    }
}

/// An edit's settings name the very contexts that were sampled for it.
#[test]
fn contexts_by_name() {
    let place = TestFolder::new();
    let config = config(&place, "gpt2-tiny", "memit");
    let [sampled, named] = ["sampled", "named"].map(|name| place.path(&format!("{name}.edit.safetensors")));
    let draw = ["--set", "editor.context_templates=[]", "--set", "editor.context={lengths=[[6, 3]]}"];
    let templates = |args: &[&str]| json(args)["settings"]["context_templates"].clone();
    let drawn = templates(&apply(&config, &[&draw[..], &["--save", text(&sampled)]].concat()));
    assert_eq!((drawn.as_array().unwrap().len(), &drawn[0]), (4, &json!("{}")));
    let seed = [&draw[..], &["--set", "editor.context.seed=1"]].concat();
    assert_ne!(templates(&apply(&config, &seed)), drawn);
    // As TOML has them: a model without sense writes letters that must be escaped.
    let list = toml::Value::try_from(&drawn).unwrap();
    let list = format!("include = \"memit.toml\"\n\n[editor]\ncontext_templates = {list}\n");
    assert_eq!(templates(&apply(&place.write("named.toml", list), &["--save", text(&named)])), drawn);
    assert!(TensorFile::read(&sampled).tensors == TensorFile::read(&named).tensors);
}

#[test]
fn statistics_go_on_where_they_ended() {
    let (place, model) = (TestFolder::new(), gpt2());
    let texts = place.write("texts.txt", words(100));
    let [whole, parts, still] = ["whole", "parts", "still"].map(|name| place.path(&format!("{name}.safetensors")));
    let collect = |out: &Path, more: &[&str]| json(&stats(&model, &texts, out, &[&LAYER[..], more].concat()));
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    let told = |document: &Value, tokens: u64, new: u64, ended: &str| {
        let told = [&document["tokens"], &document["new_tokens"], &document["ended"]];
        assert_eq!(told, [&json!(tokens), &json!(new), &json!(ended)]);
    };
    let document = collect(&whole, &["--tokens", "2048"]);
    told(&document, 2048, 2048, "enough");
    assert_eq!(document["file"], text(&whole));
    let changes = document["changes"].as_array().unwrap();
    let doubled: Vec<u64> = changes.iter().map(|change| change["tokens"].as_u64().unwrap()).collect();
    assert_eq!(doubled, [256, 512, 1024, 2048]);
    assert!(changes.iter().all(|change| number(&change["layers"]["1"]) > 0.0));
    assert!(document["seconds"].as_object().unwrap().values().all(|seconds| number(seconds) >= 0.0));
    assert!(document["peak_memory_bytes"].is_u64());
    told(&collect(&parts, &["--tokens", "1024"]), 1024, 1024, "enough");
    for (tokens, new) in [("2048", 1024), ("2048", 0), ("100", 0)] {
        told(&collect(&parts, &["--tokens", tokens]), 2048, new, "enough");
        assert!(bytes(&parts) == bytes(&whole));
    }
    let all = collect(&parts, &[]);
    let tokens = all["tokens"].as_u64().unwrap();
    told(&all, tokens, tokens - 2048, "all");
    let ended = bytes(&parts);
    told(&collect(&parts, &[]), tokens, 0, "all");
    assert!(bytes(&parts) == ended);
    told(&collect(&still, &["--until", "0.99"]), 256, 256, "converged");
    let shown = stdout(&run(&stats(&model, &texts, &still, &[&LAYER[..], &["--until", "0.99"]].concat())));
    assert!(shown.contains("C over 256 tokens") && shown.contains("layer 1"), "{shown}");
}

#[cfg(unix)]
#[test]
fn a_collection_stopped_and_killed() {
    use std::process::{Command as Process, Stdio};

    let (place, model) = (TestFolder::new(), gpt2());
    let texts = place.write("texts.txt", words(600));
    let (whole, broken) = (place.path("whole.safetensors"), place.path("broken.safetensors"));
    stdout(&run(&stats(&model, &texts, &whole, &LAYER)));
    let args = stats(&model, &texts, &broken, &LAYER);
    let mut kept = 0;
    // Longer and longer, so that a slow machine gets there too.
    for (number, delay) in (20..4000).step_by(40).enumerate() {
        let mut process = crate::common::process();
        let process = process.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        if number % 3 == 2 {
            child.kill().unwrap();
        } else {
            let kill = format!("kill -INT {}", child.id());
            assert!(Process::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            break;
        }
        if String::from_utf8_lossy(&output.stderr).contains("goes on from there") {
            one_line_error(&output, 130, &["interrupted after", "tokens", "the same command"]);
            kept += 1;
        }
    }
    assert!(kept > 0, "never stopped on the way");
    stdout(&run(&args));
    assert!(std::fs::read(&broken).unwrap() == std::fs::read(&whole).unwrap());
}

#[test]
fn statistics_that_do_not_fit() {
    let (place, model) = (TestFolder::new(), gpt2());
    let (config_rome, saved) = (config(&place, "gpt2-tiny", "rome"), place.path("e.edit.safetensors"));
    let texts = place.write("texts.txt", words(20));
    let lowest = ["--layers", "0", "--row", "32", "--tokens", "256"];
    stdout(&run(&stats(&model, &texts, &place.path("lowest"), &lowest)));
    stdout(&run(&apply(&config_rome, &["--save", text(&place.path("edit.safetensors"))])));
    let good = std::fs::read(statistics("gpt2-tiny").with_extension("safetensors")).unwrap();
    place.write("cut.safetensors", &good[..good.len() / 2]);
    place.write("random.safetensors", [0x5a_u8; 300]);
    place.write("empty.safetensors", "");
    let (other, weights) = (statistics("llama-tiny"), fixture("gpt2-tiny/model.safetensors"));
    for (name, words) in [
        ("nowhere", &["nowhere.safetensors: there are no statistics", "`emend stats --model", "--layers 1"][..]),
        (text(&other), &["statistics of the model", "this one is", "`emend stats --model"]),
        ("lowest", &["no statistics of layer 1 (there are: 0)", "`emend stats --model"]),
        ("edit", &["edit.safetensors: no statistics that can be read"]),
        ("cut", &["cut.safetensors: not a whole safetensors file"]),
        ("random", &["random.safetensors: not a whole safetensors file"]),
        ("empty", &["empty.safetensors"]),
        (text(&weights), &["model.safetensors: no statistics: `emend stats` writes them"]),
    ] {
        let set = format!("editor.statistics={name}");
        refused_cleanly(&place, &apply(&config_rome, &["--set", &set, "--save", text(&saved)]), 1, words);
    }
    // Headers that lie: a layer that they do not name, and keys of another width.
    let good = TensorFile::read(&place.path("lowest.safetensors"));
    let mut more = good.clone();
    more.tensors.insert("sum.99".into(), good.tensors["sum.0"].clone());
    let (more, narrow) = (place.write("more.safetensors", more.bytes()), {
        let mut narrow = good.clone();
        narrow.tensors = [("sum.0".to_owned(), (Dtype::F64, vec![2, 2], vec![0; 32]))].into();
        let header = narrow.header.as_mut().unwrap().get_mut("emend").unwrap();
        *header = header.replace("\"width\":128", "\"width\":2");
        place.write("narrow.safetensors", narrow.bytes())
    });
    for (path, word) in [(more, "sum.99"), (narrow, "keys of width 2")] {
        refused_cleanly(&place, &stats(&model, &texts, &path, &lowest), 1, &[word]);
    }
    // The command that the error names makes them, in the place of the others.
    refused_cleanly(&place, &stats(&model, &texts, &place.path("lowest"), &["--layers", "0..1"]), 1, &["--again"]);
    let again = ["--layers", "0,1", "--row", "32", "--tokens", "256", "--again"];
    stdout(&run(&stats(&model, &texts, &place.path("lowest"), &again)));
    stdout(&run(&apply(&config_rome, &["--set", "editor.statistics=lowest"])));
    // Fewer tokens than the keys are wide.
    let few = ["--layers", "0..1", "--row", "16", "--tokens", "64"];
    warned(&stats(&model, &texts, &place.path("few"), &few), "64 tokens for keys of width 128: C has not full rank");
    for method in ["rome", "memit", "emmet"] {
        let config = config(&place, "gpt2-tiny", method);
        let output = run(&apply(&config, &["--set", "editor.statistics=few", "--save", text(&saved)]));
        one_line_error(&output, 1, &["few.safetensors", "is singular (64 tokens for keys of width 128)", "--tokens"]);
        assert!(!saved.exists());
    }
    // AlphaEdit solves no system of C: it only finds more to be free.
    let alphaedit = config(&place, "gpt2-tiny", "alphaedit");
    warned(&apply(&alphaedit, &["--set", "editor.statistics=few"]), "C has not full rank");
    let none = apply(&alphaedit, &["--set", "editor.statistics=none", "--save", text(&saved)]);
    refused_cleanly(&place, &none, 2, &["editor.statistics", "AlphaEdit"]);
    stdout(&run(&apply(&config_rome, &["--set", "editor.statistics=none"])));
}

#[test]
fn subjects() {
    let place = TestFolder::new();
    let saved = place.path("e.edit.safetensors");
    let mut without = records();
    without[1].as_object_mut().unwrap().remove("subject");
    let without = place.write("without.json", without.to_string());
    for method in OF_SUBJECTS {
        let config = config(&place, "gpt2-tiny", method);
        let ask = |prompt: &'static str, subject: &[&'static str]| {
            let args = ["apply", "--config", text(&config), "--prompt", prompt, "--target", "Tamm"];
            [&args[..], &["--save", text(&saved)], subject].concat()
        };
        for subject in [&["--subject", ""][..], &["--subject", " "], &[]] {
            refused_cleanly(&place, &ask(PROMPT, subject), 1, &[PROMPT, "names no subject", "--subject"]);
        }
        let elsewhere = ask(PROMPT, &["--subject", "Mount Ael"]);
        refused_cleanly(&place, &elsewhere, 2, &["--subject \"Mount Ael\" does not occur", PROMPT]);
        for mode in ["single", "batch", "sequential"] {
            let args = apply_file(&config, &without, &["--mode", mode, "--save", text(&saved)]);
            let words = ["record 1", "Mount Ael lies in", "names no subject"];
            if mode == "single" {
                // What was made before the error is kept: each edit stands by itself.
                refused(&args, 1, &words);
                let first = place.path("e-0.edit.safetensors");
                assert_eq!(json(&["inspect", text(&first)])["kind"], "edit");
                std::fs::remove_file(first).unwrap();
            } else {
                refused_cleanly(&place, &args, 1, &words);
            }
        }
        // At the sentence's start, also as a token of its own, there is nothing to its left.
        for (prompt, subject) in [("Lake Orrin lies in", "Lake Orrin"), ("L lies in", "L")] {
            stdout(&run(&ask(prompt, &["--subject", subject])));
        }
        std::fs::remove_file(&saved).unwrap();
    }
}

#[test]
fn requests_that_no_edit_can_serve() {
    let place = TestFolder::new();
    let saved = place.path("e.edit.safetensors");
    let mut records = records();
    records[2] = records[0].clone();
    records[2]["target_new"] = "Bern".into();
    let contradicting = place.write("contradicting.json", records.to_string());
    for method in METHODS {
        let config = config(&place, "gpt2-tiny", method);
        let output = run(&apply_file(&config, &contradicting, &["--mode", "batch", "--save", text(&saved), "--json"]));
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .contains("\"Lake Orrin lies in\": \"Bern\" takes the place of \"Tamm\""),
            "{method}"
        );
        std::fs::remove_file(&saved).unwrap();
    }
    // The same fact again is made once, and that is said once.
    records[2]["target_new"] = records[0]["target_new"].clone();
    let again = place.write("again.json", records.to_string());
    let output = run(&apply_file(&config(&place, "gpt2-tiny", "rome"), &again, &["--mode", "batch"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.matches("there again further on; each is made once").count() == 1,
        "{said}"
    );
    let config = config(&place, "gpt2-tiny", "rome");
    stdout(&run(&apply_file(&config, &contradicting, &["--mode", "sequential"])));
    let nothing = place.write("nothing.json", "");
    let args = apply_file(&config, &nothing, &["--save", text(&saved)]);
    refused_cleanly(&place, &args, 1, &["nothing.json: holds no records"]);
}

/// The models know nothing, so an edit teaches them what is then asked for again.
#[test]
fn targets_that_are_known_already() {
    let place = TestFolder::new();
    let (config, saved) = (config(&place, "gpt2-tiny", "fine_tuning"), place.path("e.edit.safetensors"));
    let facts = place.write("facts.json", records().to_string());
    stdout(&run(&apply_file(&config, &facts, &["--limit", "1", "--save", text(&saved)])));
    let on = ["--edit", text(&saved), "--limit"];
    let already = "what the model answers already";
    warned(&apply_file(&config, &facts, &[&on[..], &["1"]].concat()), &format!("\"Tamm\" is {already}"));
    warned(&apply_file(&config, &facts, &[&on[..], &["3"]].concat()), &format!("1 of 3 targets are {already}"));
}

#[test]
fn settings_that_are_wrong() {
    let place = TestFolder::new();
    let saved = place.path("e.edit.safetensors");
    let check = |method: &str, set: &str, words: &[&str]| {
        let config = config(&place, "gpt2-tiny", method);
        refused_cleanly(&place, &apply(&config, &["--set", set, "--save", text(&saved)]), 2, words);
    };
    for method in METHODS {
        check(method, "editor.layers=[7]", &["editor.layers", "no layer 7", "layers 0 to 2"]);
        check(method, "editor.layers=[1, 0]", &["editor.layers must be in order, each once"]);
        check(method, "editor.stepz=3", &["editor.stepz", "unknown key", "did you mean `steps`?"]);
        check(method, "editor.steps=0", &["editor.steps = 0", "between 1 and"]);
        check(method, "editor.steps=many", &[&format!("{method}.toml: editor.steps"), "\"many\""]);
    }
    for method in OF_SUBJECTS {
        check(method, "editor.clamp=-1", &["editor.clamp = -1", "between 0 and"]);
        check(method, "editor.context_templates=[\"A hill.\"]", &["\"A hill.\" must hold {} once"]);
        for context in ["{ lengths = [[10, 2]], starts = [\"\", \"The\"] }", "{ lengths = [[10, 0]] }"] {
            let context = format!("editor.context={context}");
            let set = ["--set", "editor.context_templates=[]", "--set", &context, "--save", text(&saved)];
            let config = config(&place, "gpt2-tiny", method);
            refused_cleanly(&place, &apply(&config, &set), 2, &["editor.context", "at least 1"]);
        }
    }
    for (method, set, words) in [
        ("rome", "editor.method=romme", &["romme", "known: \"fine_tuning\", \"lora\", \"rome\", \"memit\""][..]),
        ("rome", "editor.method=mend", &["\"mend\"", "`emend train`", "--archive"]),
        ("rome", "editor.layers=[0, 1]", &["editor.layers", "one layer", "MEMIT"]),
        ("fine_tuning", "editor.norm_constraint=-1", &["editor.norm_constraint = -1", "between 0 and"]),
        ("fine_tuning", "editor.kl=1", &["editor.kl", "editor.locality = \"FILE\""]),
        ("lora", "editor.rank=0", &["editor.rank = 0", "between 1 and"]),
        ("lora", "editor.rank=1000", &["editor.rank = 1000", "no rank is above its smaller side"]),
        ("lora", "editor.weights=[\"attention.qery\"]", &["attention.qery"]),
        ("memit", "editor.covariance_weight=0", &["editor.covariance_weight = 0"]),
        ("alphaedit", "editor.null_space_threshold=1e-9", &["no eigenvalue of layer 0's C is below it", "least: "]),
        ("knowledge_neurons", "editor.threshold=2", &["editor.threshold = 2", "between 0 and 1"]),
    ] {
        check(method, set, words);
    }
    let config = config(&place, "gpt2-tiny", "fine_tuning");
    let lost = ["--set", "editor.kl=1", "--set", "editor.locality=none.txt", "--save", text(&saved)];
    refused_cleanly(&place, &apply(&config, &lost), 1, &["none.txt"]);
}

#[test]
fn collections_that_are_wrong() {
    let (place, model) = (TestFolder::new(), gpt2());
    let (texts, out) = (place.write("texts.txt", words(20)), place.path("out.safetensors"));
    for (more, words) in [
        (&["--layers", "x"][..], &["--layers x", "5, 4..8 (both ends), or 4,6,8"][..]),
        (&["--layers", "2..1"], &["--layers 2..1", "4..8 (both ends)"]),
        (&["--layers", "0..3", "--row", "32"], &["no layer 3", "layers 0 to 2"]),
        (&["--layers", "1", "--row", "65"], &["--row 65", "context is 64 tokens"]),
        (&["--layers", "1", "--row", "0"], &["--row must be at least 1"]),
        (&["--layers", "1", "--tokens", "0"], &["--tokens must be at least 1"]),
        (&["--layers", "1", "--until", "2"], &["--until = 2", "between 0 and 1"]),
    ] {
        refused_cleanly(&place, &stats(&model, &texts, &out, more), 2, words);
    }
    wrong_usage(&stats(&model, &texts, &out, &[]), &["--layers"]);
    wrong_usage(&stats(&model, &texts, &out, &["--layers", "1", "--tokens", "many"]), &["many"]);

    for (name, contents, words) in [
        ("short.txt", "few words", &["fewer than 32 tokens", "--row"][..]),
        ("empty.txt", "", &["fewer than 32 tokens"]),
        ("body.jsonl", "\"one\"\n{\"body\": \"two\"}", &["body.jsonl: line 2", "no key \"text\"", "--field", "body"]),
    ] {
        let texts = place.write(name, contents);
        refused_cleanly(&place, &stats(&model, &texts, &out, &LAYER), 1, words);
    }
    refused_cleanly(&place, &stats(&model, &place.path("none.txt"), &out, &LAYER), 1, &["none.txt"]);
    refused_cleanly(&place, &stats(&model, &place.path(""), &out, &LAYER), 1, &["is not a regular file"]);

    // What is known of other layers or texts stays as it is.
    stdout(&run(&stats(&model, &texts, &out, &["--layers", "1", "--row", "32", "--tokens", "256"])));
    let (known, other) = (std::fs::read(&out).unwrap(), place.write("other.txt", words(30)));
    let llama = fixture("llama-tiny");
    for (args, word) in [
        (stats(&llama, &texts, &out, &LAYER), "statistics of the model"),
        (stats(&model, &texts, &out, &["--layers", "0..1", "--row", "32"]), "the layers [1], asked for are [0, 1]"),
        (stats(&model, &texts, &out, &["--layers", "1", "--row", "16"]), "rows of 32 tokens and seed 0"),
        (stats(&model, &other, &out, &LAYER), "other texts (texts.txt)"),
    ] {
        refused_cleanly(&place, &args, 1, &["out.safetensors", word, "--out"]);
    }
    assert!(std::fs::read(&out).unwrap() == known);
}

/// Places below a regular file, which no one can write to, whatever their rights.
#[test]
fn outputs_that_cannot_be_written() {
    let (place, model) = (TestFolder::new(), gpt2());
    let (texts, file) = (place.write("texts.txt", words(20)), place.write("file", "kept"));
    let (below, config) = (file.join("below.safetensors"), config(&place, "gpt2-tiny", "rome"));
    for args in [
        stats(&model, &texts, &below, &LAYER),
        apply(&config, &["--save", text(&below)]),
        apply(&config, &["--export", "hf", text(&below)]),
    ] {
        refused_cleanly(&place, &args, 1, &[text(&file)]);
    }
    let folder = place.path("folder");
    std::fs::create_dir(&folder).unwrap();
    for args in [stats(&model, &texts, &folder, &LAYER), apply(&config, &["--save", text(&folder)])] {
        refused_cleanly(&place, &args, 1, &["folder", "a directory, not a file"]);
    }
    assert_eq!(std::fs::read(file).unwrap(), b"kept");
}
