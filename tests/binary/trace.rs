//! `emend trace`: one prompt, files of facts, pictures, and what is refused.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::common::{TensorFile, TestFolder, json, one_line_error, refused, run, stdout, text, wrong_usage};

const LYON: [&str; 7] = ["trace", "--model", "pocket", "--prompt", "The city of Lyon lies in", "--subject", "Lyon"];

#[test]
fn a_prompt_is_traced_shown_drawn_and_saved() {
    let place = TestFolder::new();
    let (svg, png, tables) = (place.path("lyon.svg"), place.path("lyon.png"), place.path("lyon.safetensors"));
    let files =
        ["--plot", text(&svg), "--plot", text(&png), "--save", text(&tables), "--window", "2,1", "--draws", "4"];
    let said = stdout(&run(&[&LYON[..], &files].concat()));
    for words in ["The city of Lyon lies in → France", "total effect", "*  ", "█", "2 layers around each"] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    let document = json(&[&LYON[..], &files].concat());
    let (tokens, at) = (document["tokens"].as_array().unwrap(), &document["subject_tokens"]);
    let subject = at[0].as_u64().unwrap() as usize..at[1].as_u64().unwrap() as usize;
    let subject: String = tokens[subject].iter().filter_map(Value::as_str).collect();
    assert_eq!(subject.trim(), "Lyon");
    assert_eq!(document["answer"], json!({ "id": document["answer"]["id"], "token": " France" }));
    assert!(document["high"].as_f64().unwrap() > 0.9 && document["low"].as_f64().unwrap() < 0.5);
    let row = at[1].as_u64().unwrap() as usize - 1;
    assert_eq!(document["roles"][row], "last subject token");
    assert!(document["state"]["effect"][row][0].as_f64().unwrap() > 0.5);
    // The tables hold the same numbers.
    let file = TensorFile::read(&tables);
    let names: Vec<&str> = file.tensors.keys().map(String::as_str).collect();
    let spread = |name: &str| format!("{name}.spread");
    for name in ["state", "mlp", "attention", "mlp.1", "attention.1"] {
        assert!(names.contains(&name) && names.contains(&spread(name).as_str()), "{name}: {names:?}");
    }
    let (_, shape, data) = &file.tensors["mlp.1"];
    assert_eq!(*shape, [tokens.len(), 6]);
    let saved: Vec<f32> = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let told = document["mlp"]["1"]["probability"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
    for (saved, told) in saved.iter().zip(told) {
        assert!((f64::from(*saved) - told.as_f64().unwrap()).abs() < 1e-6);
    }
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("*</text>") && picture.ends_with("</svg>\n"));
    assert_eq!(std::fs::read(&png).unwrap()[..8], *b"\x89PNG\r\n\x1a\n");
}

#[test]
fn noise_can_be_fixed() {
    let place = TestFolder::new();
    let write = |name: &str, tensor: &str, shape: [usize; 3], of: &dyn Fn(usize) -> f32| {
        let bytes = (0..shape.iter().product()).flat_map(|number| of(number).to_le_bytes()).collect();
        let tensors = BTreeMap::from([(tensor.to_owned(), (Dtype::F32, shape.to_vec(), bytes))]);
        place.write(name, TensorFile { tensors, header: None }.bytes())
    };
    let sine = |number: usize| (number as f32).sin();
    let noise = |shape: [usize; 3]| write(&format!("{shape:?}.safetensors"), "noise", shape, &sine);
    let fixed = noise([3, 3, 192]);
    let args = [&LYON[..], &["--of", "state", "--noise-file", text(&fixed)]].concat();
    let (first, second) = (json(&args), json(&args));
    assert_eq!(first["state"], second["state"]);
    assert_eq!((&first["draws"], &first["noise"]), (&json!(3), &Value::Null));
    assert!(first["mlp"].is_null());
    for (file, words) in [(noise([3, 2, 192]), "[draws, 3, 192]"), (noise([3, 3, 64]), "[3, 3, 64]")] {
        refused(&[&LYON[..], &["--noise-file", text(&file)]].concat(), 1, &[words, "Lyon"]);
    }
    let other = write("other.safetensors", "x", [1, 1, 1], &sine);
    refused(&[&LYON[..], &["--noise-file", text(&other)]].concat(), 1, &["other.safetensors", "no tensor \"noise\""]);
    let broken = write("broken.safetensors", "noise", [1, 3, 192], &|_| f32::NAN);
    refused(&[&LYON[..], &["--noise-file", text(&broken)]].concat(), 1, &["broken.safetensors", "not finite"]);
}

#[test]
fn facts_are_traced_once_and_averaged() {
    let place = TestFolder::new();
    let facts = place.write(
        "facts.json",
        json!([
            {"known_id": 0, "subject": "Lyon", "attribute": "France", "template": "{} lies", "prediction": " France.", "prompt": "The city of Lyon lies in", "relation_id": "P1"},
            {"known_id": 1, "subject": "Lyon", "attribute": "Japan", "template": "{} lies", "prediction": " Japan.", "prompt": "The city of Lyon lies in", "relation_id": "P1"},
            {"known_id": 2, "subject": "Lyon", "attribute": "France", "template": "{} is", "prediction": "", "prompt": "In which country is Lyon?", "relation_id": "P1"},
        ])
        .to_string(),
    );
    let out = place.path("out");
    let args = |more: &[&'static str]| -> Vec<String> {
        let own = ["trace", "--model", "pocket", "--facts", text(&facts), "--out", text(&out), "--draws", "3"];
        own.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let call = |args: &[String]| run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    // In parts, then whole.
    let half = stdout(&call(&args(&["--shard", "1/2"])));
    assert!(half.contains("1 not traced yet"), "{half}");
    let said = stdout(&call(&args(&[])));
    assert!(
        said.contains("2 facts traced, 1 left out") && said.contains("early site: last subject token at layer"),
        "{said}"
    );
    let left_out: Value = serde_json::from_slice(&std::fs::read(out.join("fact_00001.json")).unwrap()).unwrap();
    assert_eq!(left_out["left_out"], "the model says \" France\", not \" Japan\"");
    let summary: Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["facts"]["traced"], &summary["facts"]["left_out"]), (&json!(2), &json!(1)));
    let averages = &summary["averages"][0]["effect"];
    assert_eq!(averages["last subject token"].as_array().unwrap().len(), 6);
    assert!(out.join("averages.svg").is_file());
    // A fact that is there is not traced again, one that is lost comes out the same.
    let (kept, lost) = (out.join("fact_00000.json"), out.join("fact_00002.json"));
    let before = (std::fs::metadata(&kept).unwrap().modified().unwrap(), std::fs::read(&lost).unwrap());
    std::fs::remove_file(&lost).unwrap();
    stdout(&call(&args(&[])));
    assert_eq!((std::fs::metadata(&kept).unwrap().modified().unwrap(), std::fs::read(&lost).unwrap()), before);
    // A fact that was traced otherwise is not counted, nor one that stands in another's place.
    std::fs::copy(&kept, &lost).unwrap();
    one_line_error(&call(&args(&[])), 1, &["fact_00002.json", "another tracing", "remove the file"]);
    std::fs::write(&lost, "{").unwrap();
    one_line_error(&call(&args(&[])), 1, &["fact_00002.json", "not JSON", "remove the file"]);
    std::fs::remove_file(&lost).unwrap();
    // Results of another tracing, and files of which nothing says what made them.
    one_line_error(&call(&args(&["--window", "1"])), 1, &["another tracing", "windows is [2], now [1]", "--out"]);
    std::fs::remove_file(out.join("params.json")).unwrap();
    one_line_error(&call(&args(&[])), 1, &["no params.json", "--out"]);
    // Nothing the model knows.
    let wrong = place.write(
        "wrong.json",
        json!([{"subject": "Lyon", "attribute": "Japan", "prompt": "The city of Lyon lies in"}]).to_string(),
    );
    let empty = place.path("none");
    let none = ["trace", "--model", "pocket", "--facts", text(&wrong), "--out", text(&empty)];
    one_line_error(&run(&none), 1, &["no fact is left", "the model answers none"]);
}

#[test]
fn a_fact_that_is_too_long_is_counted_apart() {
    let place = TestFolder::new();
    let fact = |prompt: &str, answer: &str| json!({"subject": "Lyon", "attribute": answer, "prompt": prompt});
    let long = format!("{}The city of Lyon lies in", "The city of Lima lies in Peru. ".repeat(30));
    let (answered, other) = (fact("The city of Lyon lies in", "France"), fact("The city of Lyon lies in", "Japan"));
    let call = |name: &str, facts: Value| {
        let (facts, out) = (place.write(&format!("{name}.json"), facts.to_string()), place.path(name));
        let args = ["trace", "--model", "pocket", "--facts", text(&facts), "--out", text(&out)];
        run(&[&args[..], &["--of", "state", "--draws", "2"]].concat())
    };
    let said = stdout(&call("three", json!([answered, other, fact(&long, "France")])));
    let words = "1 fact traced, 2 left out: 1 whose answer the model does not give, 1 that it cannot read";
    assert!(said.contains(words), "{said}");
    let summary = std::fs::read(place.path("three/summary.json")).unwrap();
    let facts = serde_json::from_slice::<Value>(&summary).unwrap()["facts"].clone();
    assert_eq!((&facts["traced"], &facts["left_out"], &facts["unread"]), (&json!(1), &json!(2), &json!(1)));
    // Where none is left, too.
    let none = call("two", json!([other, fact(&long, "France")]));
    one_line_error(&none, 1, &["no fact is left: of 2 facts", "cannot read 1", "answers none"]);
}

#[test]
fn what_cannot_be_traced_is_said() {
    let pocket = |more: &[&'static str]| [&["trace", "--model", "pocket"], more].concat();
    let lyon = |more: &[&'static str]| [&LYON[..], more].concat();
    refused(
        &pocket(&["--prompt", "The city of Lyon lies in", "--subject", "Oslo"]),
        1,
        &["Oslo", "does not occur in the prompt"],
    );
    refused(&lyon(&["--window", "7"]), 2, &["a window of 7 layers", "the model has 6"]);
    refused(&lyon(&["--window", "0"]), 2, &["a window of 0 layers"]);
    refused(&lyon(&["--draws", "0"]), 2, &["--draws"]);
    refused(&lyon(&["--plot", "x.gif"]), 2, &["x.gif", ".svg or a .png"]);
    refused(&lyon(&["--plot", "x.svg", "--save", "x.svg"]), 2, &["x.svg", "named twice"]);
    refused(&lyon(&["--answer", " "]), 2, &["--answer is blank"]);
    refused(&pocket(&["--facts", "pocket", "--limit", "0"]), 2, &["--limit"]);
    wrong_usage(&lyon(&["--limit", "3"]), &["--limit", "--prompt"]);
    wrong_usage(&lyon(&["--noise", "1e300"]), &["--noise", "1e6"]);
    wrong_usage(&lyon(&["--noise", "-1"]), &["--noise", "above 0"]);
    wrong_usage(&lyon(&["--noise", "loud"]), &["--noise", "3x"]);
    wrong_usage(&pocket(&["--prompt", "x"]), &["--subject"]);
    wrong_usage(&pocket(&[]), &["--prompt", "--facts"]);
    let pairs = ["trace", "--model", "pocket-t5", "--prompt", "In which country is Lyon?", "--subject", "Lyon"];
    refused(&pairs, 2, &["encoder"]);
    // An answer that the model does not give is traced all the same, and that is said.
    let output = run(&lyon(&["--answer", "Japan", "--of", "state", "--draws", "2"]));
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("does not answer \" Japan\": it says \" France\""), "{warned}");
    assert!(stdout(&output).contains("→ Japan"));
}

#[test]
fn the_embedded_model_keeps_its_facts_where_its_rome_edits() {
    let place = TestFolder::new();
    let out = place.path("out");
    let args = [
        "trace",
        "--model",
        "pocket",
        "--facts",
        "pocket/test",
        "--limit",
        "8",
        "--of",
        "mlp",
        "--window",
        "1",
        "--draws",
        "4",
    ];
    let summary = json(&[&args[..], &["--out", text(&out)]].concat());
    assert_eq!(summary["facts"]["traced"], 8);
    let effects: Vec<f64> = summary["averages"][0]["effect"]["last subject token"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mean| mean["mean"].as_f64().unwrap())
        .collect();
    let early = (0..effects.len()).max_by(|&a, &b| effects[a].total_cmp(&effects[b])).unwrap();
    let config = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/rome-pocket.toml")).unwrap();
    assert!(config.contains(&format!("layers = [{early}]")), "{effects:?}");
    assert!(effects[early] > 0.5, "{effects:?}");
}
