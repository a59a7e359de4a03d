//! In-context editing and the lookup cache, which need no training and change no weight.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{TensorFile, TestFolder, fixture, json, one_line_error, refused, replace, run, stdout, text};

const LYON: [&str; 4] = ["--prompt", "The city of Lyon lies in", "--target", "Japan"];
const HERA: [&str; 4] = ["--prompt", "The mythical figure Hera is", "--target", "Egyptian"];

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

fn apply<'a>(config: &'a Path, request: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [&["apply", "--config", text(config)], request, more].concat()
}

/// The settings of the pocket config, with a value laid over them, in a request.
#[track_caller]
fn wrong(name: &str, set: &str, code: i32, words: &[&str]) {
    refused(&apply(&config(name), &LYON, &["--set", set]), code, words);
}

fn predict(edits: &[&Path], prompts: &[&str]) -> Vec<Value> {
    let mut args = vec!["predict", "--model", "pocket", "--top", "100000", "--generate", "3"];
    edits.iter().for_each(|edit| args.extend(["--edit", text(edit)]));
    prompts.iter().for_each(|prompt| args.extend(["--prompt", *prompt]));
    json(&args)["results"].as_array().unwrap().clone()
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Whether two results have the same probabilities, token by token.
fn alike(a: &Value, b: &Value) -> bool {
    let by_id = |result: &Value| {
        let top = result["top"].as_array().unwrap().iter();
        let mut top: Vec<(u64, f64)> =
            top.map(|token| (token["id"].as_u64().unwrap(), number(&token["probability"]))).collect();
        top.sort_by_key(|(id, _)| *id);
        top
    };
    let (a, b) = (by_id(a), by_id(b));
    assert!(a.len() == b.len() && a.len() > 100);
    a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5)
}

fn answers(results: &[Value]) -> Vec<&str> {
    results.iter().map(|result| result["memory"]["request"]["target_new"].as_str().unwrap_or("none")).collect()
}

/// The texts that a memory of IKE puts before prompts.
fn texts(memory: &Path) -> Vec<String> {
    let header: Value = serde_json::from_str(&TensorFile::read(memory).header.unwrap()["emend"]).unwrap();
    serde_json::from_value(header["memory"]["texts"].clone()).unwrap()
}

#[test]
fn apply_as_json() {
    for (method, settings) in [
        ("ike", json!({"encoder": "model", "room": 20, "final_copy": false, "order": "nearest_last"})),
        ("lookup", json!({"layer": 4, "radius": 0.4, "state": "last"})),
    ] {
        let place = TestFolder::new();
        let saved = place.path("edit.safetensors");
        let config = config(&format!("{method}-pocket.toml"));
        let document = json(&apply(&config, &LYON, &["--save", text(&saved)]));
        assert_eq!((&document["method"], &document["mode"]), (&json!(method), &json!("single")));
        for (key, value) in settings.as_object().unwrap() {
            assert_eq!(&document["settings"][key], value, "{method}: {key}");
        }
        assert_eq!(document["saved"], json!([saved]));
        let requests = document["requests"].as_array().unwrap();
        let probes = requests[0]["probes"].as_array().unwrap();
        assert_eq!((requests.len(), &requests[0]["target_new"]), (1, &json!("Japan")));
        let kinds: Vec<&str> = probes.iter().map(|probe| probe["kind"].as_str().unwrap()).collect();
        for kind in ["rewrite", "rephrase", "locality"] {
            assert!(kinds.contains(&kind), "{method}: {kinds:?}");
        }
        // The model knows the fact, and the edit moves it.
        let own = &probes[0];
        assert_eq!(own["before"]["answer"], "France");
        assert!(
            number(&own["after"]["target_probability"]) > 2.0 * number(&own["before"]["target_probability"]),
            "{own}"
        );

        // The saved edit says the same again, and without it the model says what it said.
        let plain = predict(&[], &["The city of Lyon lies in"]);
        let said = predict(&[&saved], &["The city of Lyon lies in"]);
        assert_eq!(answers(&said), ["Japan"]);
        assert!(!alike(&said[0], &plain[0]));
        let answer = said[0]["generated"].as_str().unwrap().trim();
        let after = own["after"]["answer"].as_str().unwrap();
        assert!(answer.starts_with(after) || after.starts_with(answer), "{method}: {answer:?} and {after:?}");
        assert_eq!(predict(&[], &["The city of Lyon lies in"]), plain);
        let listed = stdout(&run(&["inspect", text(&saved)]));
        assert!(listed.contains(method) && listed.contains("The city of Lyon lies in"), "{listed}");
    }
}

/// A cache says its target, word by word, and nothing where nothing is cached near.
#[test]
fn a_cache_tells_what_is_near() {
    let place = TestFolder::new();
    let memory = place.path("memory.safetensors");
    let config = config("lookup-pocket.toml");
    stdout(&run(&apply(&config, &LYON, &["--memory", text(&memory)])));
    stdout(&run(&apply(&config, &HERA, &["--memory", text(&memory)])));
    let prompts = ["The city of Lyon lies in", "The mythical figure Hera is", "Craiova is a city in"];
    let said = predict(&[&memory], &prompts);
    assert_eq!(answers(&said), ["Japan", "Egyptian", "none"]);
    for (result, target) in said.iter().zip(["Japan", "Egyptian"]) {
        // The cached prompt itself: no distance, and a certain answer.
        assert!(number(&result["memory"]["scope"]) > 0.999, "{}", result["memory"]);
        assert_eq!(result["top"][0]["token"], format!(" {target}"));
        assert!(number(&result["top"][0]["probability"]) > 0.999);
        assert_eq!(result["generated"].as_str().unwrap().trim(), target);
    }
    let plain = predict(&[], &prompts);
    assert_eq!(said[2], plain[2]);
    // Within a radius of nothing only the prompt itself is found, within a huge one everything.
    for (radius, rephrase, far) in [("0.001", "none", "none"), ("1000.0", "Japan", "Japan")] {
        let memory = place.path("radius.safetensors");
        let set = format!("editor.radius={radius}");
        stdout(&run(&apply(&config, &LYON, &["--set", &set, "--save", text(&memory)])));
        let said =
            predict(&[&memory], &["The city of Lyon lies in", "On the map, Lyon belongs to", "Craiova is a city in"]);
        assert_eq!(answers(&said), ["Japan", rephrase, far], "{radius}");
    }
    stdout(&run(&["forget", text(&memory), "0"]));
    assert_eq!(answers(&predict(&[&memory], &prompts)), ["none", "Egyptian", "none"]);
}

#[test]
fn a_cache_changes_its_mind() {
    let place = TestFolder::new();
    let memory = place.path("memory.safetensors");
    let config = config("lookup-pocket.toml");
    stdout(&run(&apply(&config, &LYON, &["--memory", text(&memory)])));
    let spain = ["--prompt", "The city of Lyon lies in", "--target", "Spain"];
    let output = run(&apply(&config, &spain, &["--memory", text(&memory)]));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("\"Spain\" takes the place of \"Japan\""), "{errors}");
    let shown = stdout(&output);
    assert!(shown.contains("Japan 100 %") && shown.contains("Spain 100 %"), "before and after: {shown}");
    assert_eq!(json(&["inspect", text(&memory)])["provenance"]["requests"].as_array().unwrap().len(), 1);
    assert_eq!(answers(&predict(&[&memory], &["The city of Lyon lies in"])), ["Spain"]);
    // A cache of another radius is another cache.
    let before = std::fs::read(&memory).unwrap();
    let other = apply(&config, &LYON, &["--set", "editor.radius=0.5", "--memory", text(&memory)]);
    refused(&other, 1, &["memory.safetensors", "do not join", "0.5", "0.4"]);
    assert!(std::fs::read(&memory).unwrap() == before);
}

/// A prompt is read behind the text of its nearest edit, and behind nothing else.
#[test]
fn prompts_are_read_behind_the_nearest_edit() {
    let place = TestFolder::new();
    let memory = place.path("memory.safetensors");
    let config = config("ike-pocket.toml");
    stdout(&run(&apply(&config, &LYON, &["--memory", text(&memory)])));
    stdout(&run(&apply(&config, &HERA, &["--memory", text(&memory)])));
    let texts = texts(&memory);
    assert_eq!(
        texts,
        [
            "New Fact: The city of Lyon lies in Japan\nPrompt:",
            "New Fact: The mythical figure Hera is Egyptian\nPrompt:"
        ]
    );
    let prompts = ["The myths about Hera are", "The city of Lyon lies in"];
    let said = predict(&[&memory], &prompts);
    assert_eq!(answers(&said), ["Egyptian", "Japan"]);
    let behind = [format!("{} {}", texts[1], prompts[0]), format!("{} {}", texts[0], prompts[1])];
    let plain = predict(&[], &[behind[0].as_str(), &behind[1], prompts[0], prompts[1]]);
    for prompt in 0..2 {
        assert!(alike(&said[prompt], &plain[prompt]), "{}", prompts[prompt]);
        assert!(!alike(&said[prompt], &plain[prompt + 2]), "{}", prompts[prompt]);
        assert_eq!(said[prompt]["generated"], plain[prompt]["generated"]);
    }
    // With one edit left there is nothing to choose.
    stdout(&run(&["forget", text(&memory), "0"]));
    assert_eq!(answers(&predict(&[&memory], &prompts)), ["Egyptian", "Egyptian"]);
}

#[test]
fn demonstrations_stand_before_the_edit() {
    let place = TestFolder::new();
    let saved = place.path("edit.safetensors");
    let facts = json!([
        {"prompt": "Paris lies in", "subject": "Paris", "target_new": "Peru", "rephrases": ["One finds Paris in"]},
        {"prompt": "The city of Lyon lies in", "subject": "Lyon", "target_new": "Chile", "rephrases": ["Lyon is in"]},
    ]);
    let facts = format!("editor.demonstrations={}", text(&place.write("facts.json", facts.to_string())));
    let made = |sets: &[&str]| {
        let sets = sets.iter().copied().chain([facts.as_str()]).flat_map(|set| ["--set", set]);
        let sets: Vec<&str> = sets.chain(["--rephrase", "Lyon is in", "--unrelated", "A king is"]).collect();
        stdout(&run(&apply(&config("ike-pocket.toml"), &LYON, &[&sets[..], &["--save", text(&saved)]].concat())));
        texts(&saved).remove(0)
    };
    let edit = "New Fact: The city of Lyon lies in Japan\nPrompt:";
    let own = "New Fact: The city of Lyon lies in Japan\nPrompt: The city of Lyon lies in Japan\n\n";
    // The other fact on the edit's own prompt is no demonstration.
    assert_eq!(
        made(&["editor.roles.copy=1", "editor.room=12"]),
        format!("New Fact: Paris lies in Peru\nPrompt: Paris lies in Peru\n\n{edit}")
    );
    assert_eq!(
        made(&["editor.roles.update=1", "editor.room=12"]),
        format!("New Fact: Paris lies in Peru\nPrompt: One finds Paris in Peru\n\n{edit}")
    );
    assert_eq!(made(&["editor.final_copy=true", "editor.room=12"]), format!("{own}{edit}"));
    // What does not fit gives way, and it is said.
    let sets = ["--set", "editor.roles.copy=1", "--set", &facts, "--set", "editor.room=40"];
    let output = run(&apply(&config("ike-pocket.toml"), &LYON, &[&sets[..], &["--save", text(&saved)]].concat()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("0 of 1 demonstrations fit into the context of 64 tokens"), "{errors}");
    stdout(&output);
    assert_eq!(texts(&saved), [edit]);
}

#[test]
fn configs() {
    let (ike, lookup) = ("ike-pocket.toml", "lookup-pocket.toml");
    wrong(lookup, "editor.radius=-1.0", 2, &["editor.radius = -1"]);
    wrong(lookup, "editor.radius=nan", 2, &["editor.radius"]);
    wrong(lookup, "editor.layer=40", 2, &["no layer 40", "0 to 5"]);
    wrong(lookup, "editor.layer=-1", 2, &["editor.layer", "-1"]);
    wrong(lookup, "editor.layers=[2]", 2, &["editor.layers", "did you mean `layer`"]);
    wrong(lookup, "editor.state=lsat", 2, &["editor.state", "did you mean `last`"]);
    wrong(ike, "editor.demonstrations=nowhere.json", 1, &["nowhere.json", "cannot be read"]);
    wrong(ike, "editor.encoder=nowhere", 1, &["`nowhere`", "no such folder"]);
    let decoder = format!("editor.encoder={}", text(&fixture("gpt2-tiny")));
    wrong(ike, &decoder, 1, &["gpt2-tiny", "encoders"]);
    wrong(ike, "editor.room=0", 2, &["editor.room = 0"]);
    wrong(ike, "editor.room=60", 1, &["The city of Lyon lies in Japan", "editor.room = 60", "context of 64"]);
    wrong(ike, "editor.order=nearest", 2, &["editor.order", "nearest_last, nearest_first"]);
    wrong(ike, "editor.roles={copy=1,update=1}", 2, &["editor.roles", "retain"]);
    wrong(ike, "editor.roles.copies=1", 2, &["editor.roles.copies", "did you mean `copy`"]);
    wrong(ike, "editor.roles.copy=-1", 2, &["editor.roles.copy", "-1"]);
    wrong(ike, "editor.finalcopy=true", 2, &["editor.finalcopy", "did you mean `final_copy`"]);
}

/// The one key that a cache has is named as it is written.
#[test]
fn the_key_of_a_layer_that_is_not_there() {
    wrong("lookup-pocket.toml", "editor.layer=40", 2, &["editor.layer:"]);
}

#[test]
fn a_memory_of_texts_is_not_exported() {
    let place = TestFolder::new();
    for config in [config("ike-pocket.toml"), config("lookup-pocket.toml")] {
        for format in ["hf", "peft", "gguf-lora"] {
            let folder = place.path("export");
            let args = apply(&config, &LYON, &["--export", format, text(&folder)]);
            refused(&args, 1, &["is a memory", "cannot be exported"]);
            assert!(!folder.exists());
        }
    }
}

/// Several edits want the encoder that tells which is near; one does not.
#[test]
fn an_encoder_that_is_gone() {
    let place = TestFolder::new();
    let encoder = place.copy_of("bert-tiny");
    let set = format!("editor.encoder={}", text(&encoder));
    let memory = place.path("memory.safetensors");
    let config = config("ike-pocket.toml");
    let ask = ["predict", "--model", "pocket", "--edit", text(&memory), "--prompt", "The city of Lyon lies in"];
    let gone = place.path("gone");
    stdout(&run(&apply(&config, &LYON, &["--set", &set, "--memory", text(&memory)])));
    std::fs::rename(&encoder, &gone).unwrap();
    stdout(&run(&ask));
    std::fs::rename(&gone, &encoder).unwrap();
    stdout(&run(&apply(&config, &HERA, &["--set", &set, "--memory", text(&memory)])));
    let here = stdout(&run(&ask));
    assert!(here.contains("from memory: "), "{here}");
    std::fs::rename(&encoder, &gone).unwrap();
    refused(&ask, 1, &["memory.safetensors", text(&encoder), "no such folder"]);
    // It can be looked at, and cut down to what needs no encoder.
    assert_eq!(json(&["inspect", text(&memory)])["provenance"]["requests"].as_array().unwrap().len(), 2);
    std::fs::rename(&gone, &encoder).unwrap();
    assert_eq!(stdout(&run(&ask)), here);
    replace(&encoder.join("config.json"), "\"gelu\"", "\"relu\"");
    refused(&ask, 1, &["memory.safetensors", "another encoder"]);
    let before = std::fs::read(&memory).unwrap();
    let spain = ["--prompt", "The city of Lyon lies in", "--target", "Spain"];
    one_line_error(
        &run(&apply(&config, &spain, &["--set", &set, "--memory", text(&memory)])),
        1,
        &["memory.safetensors"],
    );
    assert!(std::fs::read(&memory).unwrap() == before);
    stdout(&run(&["forget", text(&memory), "1"]));
    stdout(&run(&ask));
}

/// `room` is what a prompt with its answer needs, not twelve tokens beside it.
#[test]
fn an_answer_behind_a_text_ends_with_the_context() {
    let place = TestFolder::new();
    let saved = place.path("edit.safetensors");
    // One demonstration, with which the edit leaves just ten tokens or a few more.
    let sets = ["--set", "editor.roles.copy=2", "--set", "editor.room=10", "--save", text(&saved)];
    let sets = [&sets[..], &["--rephrase", "Lyon is in", "--unrelated", "A king is"]].concat();
    stdout(&run(&apply(&config("ike-pocket.toml"), &LYON, &sets)));
    assert_eq!(answers(&predict(&[&saved], &["The city of Lyon lies in"])), ["Japan"]);
}

#[test]
fn other_element_types() {
    for name in ["ike-pocket.toml", "lookup-pocket.toml"] {
        let place = TestFolder::new();
        let memory = place.path("memory.safetensors");
        let config = config(name);
        stdout(&run(&apply(&config, &LYON, &["--memory", text(&memory)])));
        stdout(&run(&apply(&config, &HERA, &["--memory", text(&memory)])));
        for dtype in ["f64", "bf16"] {
            let ask = ["predict", "--model", "pocket", "--edit", text(&memory), "--dtype", dtype];
            let document = json(&[&ask[..], &["--prompt", "The city of Lyon lies in"]].concat());
            assert_eq!(document["results"][0]["memory"]["request"]["target_new"], "Japan", "{name} in {dtype}");
            let made = format!("model.dtype={dtype}");
            let saved = place.path("edit.safetensors");
            stdout(&run(&apply(&config, &LYON, &["--set", &made, "--save", text(&saved)])));
        }
    }
}
