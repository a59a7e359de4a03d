//! Files that are broken, foreign or made to do harm: one clear line each, and no panic, hang or wrong result.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::{
    TensorFile, TestFolder, Trained, edit, fixture, gpt2, json, one_line_error, process, refused, run, sets, stdout,
    text, training,
};

/// Header and data of a safetensors file.
fn parts(bytes: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

/// A file of any header before any data, behind any length.
fn file(length: u64, rest: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), rest].concat()
}

fn pack(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    file(header.len() as u64, &[header.as_bytes(), data].concat())
}

/// What may lie where a safetensors file should be. Each is a good file with one thing wrong, so that nothing else refuses it.
fn hostile(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (header, data) = parts(good);
    let mut names: Vec<&String> = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__").collect();
    names.sort_by_key(|name| header[*name]["data_offsets"][0].as_u64());
    let (first, second, last) = (names[0], names[1], names[names.len() - 1]);
    let with = |name: &str, changes: Value| {
        let mut header = header.clone();
        header[name].as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        pack(&header, &data)
    };
    let ends = |name: &str| [0, 1].map(|end| header[name]["data_offsets"][end].as_u64().unwrap());
    let [from, to] = ends(last);
    let elements: u64 = header[last]["shape"].as_array().unwrap().iter().filter_map(Value::as_u64).product();
    let size = (to - from) / elements;
    // Each long enough for its shape, the second beginning before the first ends.
    let overlap = ends(second).map(|end| end - 4);
    vec![
        ("half of it", good[..good.len() / 2].to_vec()),
        ("half of its header", good[..60].to_vec()),
        ("five bytes", good[..5].to_vec()),
        ("nothing", vec![]),
        ("a zip archive", [b"PK\x03\x04".as_slice(), &[7; 500]].concat()),
        ("a web page", b"<!DOCTYPE html><html><body>404</body></html>".to_vec()),
        ("a header of 4 GB", file(1 << 32, &good[8..])),
        ("a header of 2^64 - 1 bytes", file(u64::MAX, &good[8..])),
        ("a header that is no JSON", file(10, b"not json!!and no tensors")),
        ("a header of brackets", file(100_000, &[b'['; 100_000])),
        ("overlapping tensors", with(second, json!({"data_offsets": overlap}))),
        ("a shape smaller than its data", with(first, json!({"shape": [3]}))),
        ("a shape beyond all memory", with(first, json!({"shape": [1u64 << 40, 1u64 << 40]}))),
        ("a shape below zero", with(first, json!({"shape": [-1]}))),
        ("data past the end", with(last, json!({"shape": [elements + 16], "data_offsets": [from, to + 16 * size]}))),
        ("data at 2^63", with(last, json!({"data_offsets": [1u64 << 63, u64::MAX]}))),
        ("data that ends before it begins", with(last, json!({"data_offsets": [to, from]}))),
        ("bytes that belong to no tensor", [good, &[0; 40]].concat()),
        ("a type that is none", with(first, json!({"dtype": "F99"}))),
    ]
}

#[test]
fn hostile_weights() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    let weights = model.join("model.safetensors");
    for (what, bytes) in hostile(&std::fs::read(&weights).unwrap()) {
        println!("{what}");
        std::fs::write(&weights, bytes).unwrap();
        refused(&["predict", "--model", text(&model), "--prompt", "hi"], 1, &["model.safetensors"]);
        refused(&["inspect", text(&model)], 1, &["model.safetensors"]);
    }
}

#[test]
fn hostile_edits() {
    let place = TestFolder::new();
    let saved = place.path("good.safetensors");
    stdout(&run(&edit(&Trained::Gpt2.archive(), &["--save", text(&saved)])));
    for (what, bytes) in hostile(&std::fs::read(&saved).unwrap()) {
        println!("{what}");
        let bad = place.write("bad.safetensors", bytes);
        refused(
            &["predict", "--model", text(&gpt2()), "--prompt", "hi", "--edit", text(&bad)],
            1,
            &["bad.safetensors"],
        );
        refused(&["inspect", text(&bad)], 1, &["bad.safetensors"]);
    }
}

#[test]
fn hostile_adapters() {
    let place = TestFolder::new();
    let (adapter, out, base) = (place.path("adapter"), place.path("in.safetensors"), gpt2());
    stdout(&run(&edit(&Trained::Gpt2.archive(), &["--export", "peft", text(&adapter)])));
    let tensors = adapter.join("adapter_model.safetensors");
    for (what, bytes) in hostile(&std::fs::read(&tensors).unwrap()) {
        println!("{what}");
        std::fs::write(&tensors, bytes).unwrap();
        let import = ["import-lora", text(&adapter), "--model", text(&base), "--save", text(&out)];
        refused(&import, 1, &["adapter_model.safetensors"]);
        assert!(!out.exists());
    }
}

#[test]
fn hostile_networks() {
    let place = TestFolder::new();
    let archive = place.copy(&Trained::Gpt2.archive(), "archive");
    let network = archive.join("network.safetensors");
    for (what, bytes) in hostile(&std::fs::read(&network).unwrap()) {
        println!("{what}");
        std::fs::write(&network, bytes).unwrap();
        refused(&edit(&archive, &[]), 1, &["network.safetensors"]);
    }
}

#[test]
fn weights_that_do_not_fit_the_config() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    let good = TensorFile::read(&gpt2().join("model.safetensors"));
    let (embedding, up) = ("transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight");
    let mut integers = good.clone();
    integers.tensors.get_mut(up).unwrap().0 = safetensors::Dtype::I32;
    for (weights, word) in [
        (good.clone().without(embedding), "wte.weight"),
        (good.clone().without(up), "h.1.mlp.c_fc.weight"),
        (good.clone().zeros(up, &[128, 32]), up),
        (good.clone().zeros(embedding, &[0, 32]), embedding),
        (good.clone().zeros(up, &[4096]), up),
        (integers, "I32"),
    ] {
        std::fs::write(model.join("model.safetensors"), weights.bytes()).unwrap();
        refused(&["predict", "--model", text(&model), "--prompt", "hi"], 1, &[text(&model), word]);
    }
}

/// A saved edit with other tensors, or with another header.
fn remade(good: &TensorFile, tensors: &[(&str, &[usize])]) -> TensorFile {
    let empty = TensorFile { tensors: Default::default(), header: good.header.clone() };
    tensors.iter().fold(empty, |edit, (name, shape)| edit.zeros(name, shape))
}

fn good_edit(place: &TestFolder) -> TensorFile {
    let saved = place.path("good.safetensors");
    stdout(&run(&edit(&Trained::Gpt2.archive(), &["--save", text(&saved)])));
    TensorFile::read(&saved)
}

#[test]
fn edits_that_are_none() {
    let place = TestFolder::new();
    let good = good_edit(&place);
    let up = "change.decoder.1.mlp.up";
    let [a, b, dense] = ["a", "b", "dense"].map(|part| format!("{up}.{part}"));
    let model_file = TensorFile::read(&gpt2().join("model.safetensors"));
    for (edit, word) in [
        (model_file, "no edit"),
        (good.with_header(|header| *header = Value::Null), "header"),
        (good.with_header(|header| *header = json!({})), "format"),
        (good.with_header(|header| header["format"] = "edit/9".into()), "edit/9"),
        (good.with_header(|header| header["change"] = "magic".into()), "magic"),
        (good.with_header(|header| header["requests"] = 3.into()), "header"),
        (remade(&good, &[("foo", &[2, 2])]), "foo"),
        (remade(&good, &[(&a, &[32, 2])]), "decoder.1.mlp.up"),
        (remade(&good, &[(&a, &[32, 2]), (&b, &[3, 128])]), "do not fit"),
        (remade(&good, &[(&a, &[32, 2]), (&b, &[2, 128]), (&dense, &[32, 128])]), "decoder.1.mlp.up"),
        (remade(&good, &[(&a, &[32, 1, 1]), (&b, &[1, 128])]), "rank 3"),
        (remade(&good, &[("change.decoder.1.mlp.foo.a", &[32, 1])]), "mlp.foo"),
        (remade(&good, &[("change.decoder.-1.mlp.up.a", &[32, 1])]), "decoder.-1.mlp.up"),
        (good.clone().with_nan("change.decoder.1.mlp.up.a"), "not finite"),
    ] {
        let bad = place.write("bad.safetensors", edit.bytes());
        refused(
            &["predict", "--model", text(&gpt2()), "--prompt", "hi", "--edit", text(&bad)],
            1,
            &["bad.safetensors", word],
        );
        refused(&["inspect", text(&bad)], 1, &["bad.safetensors", word]);
    }
}

/// Edits that are whole, but of another model than their header says: the file is to blame, not the command line.
#[test]
fn edits_that_do_not_fit_the_model() {
    let place = TestFolder::new();
    let good = good_edit(&place);
    for (weight, shapes, word) in [
        ("decoder.1.mlp.up", [[31, 1], [1, 128]], "[32, 128]"),
        ("decoder.1.mlp.up", [[0, 0], [0, 0]], "[32, 128]"),
        ("decoder.99.mlp.up", [[32, 1], [1, 128]], "decoder.99.mlp.up"),
        ("decoder.1.mlp.gate", [[32, 1], [1, 128]], "decoder.1.mlp.gate"),
        ("encoder.1.mlp.up", [[32, 1], [1, 128]], "encoder.1.mlp.up"),
    ] {
        let [a, b] = ["a", "b"].map(|part| format!("change.{weight}.{part}"));
        let bad = place.write("bad.safetensors", remade(&good, &[(&a, &shapes[0]), (&b, &shapes[1])]).bytes());
        refused(
            &["predict", "--model", text(&gpt2()), "--prompt", "hi", "--edit", text(&bad)],
            1,
            &["bad.safetensors", word],
        );
    }
}

#[test]
fn networks_that_do_not_fit() {
    let place = TestFolder::new();
    let archive = place.copy(&Trained::Gpt2.archive(), "archive");
    let path = archive.join("network.safetensors");
    let good = TensorFile::read(&path);
    let scale = "network.transforms.0.layers.0.scale";
    for (network, word) in [
        (good.clone().without("normalizer.records"), "normalizer.records"),
        (good.clone().without(scale), "scale"),
        (good.clone().zeros("foo", &[1]), "foo"),
        (good.clone().zeros(scale, &[3, 160]), "scale"),
        (TensorFile::read(&gpt2().join("model.safetensors")), "missing"),
    ] {
        std::fs::write(&path, network.bytes()).unwrap();
        refused(&edit(&archive, &[]), 1, &["network.safetensors", word]);
    }
    std::fs::remove_file(&path).unwrap();
    refused(&edit(&archive, &[]), 1, &["network.safetensors"]);
}

/// An edit made by such a network would be one that the program itself refuses to read.
#[test]
fn networks_that_are_not_finite() {
    let place = TestFolder::new();
    let archive = place.copy(&Trained::Gpt2.archive(), "archive");
    let path = archive.join("network.safetensors");
    let good = TensorFile::read(&path);
    for name in ["network.rates", "network.transforms.0.layers.0.scale", "normalizer.0.mean"] {
        std::fs::write(&path, good.clone().with_nan(name).bytes()).unwrap();
        refused(&edit(&archive, &[]), 1, &["network.safetensors", "not finite"]);
    }
}

#[test]
fn archives_that_are_none() {
    let place = TestFolder::new();
    let archive = place.copy(&Trained::Gpt2.archive(), "archive");
    let path = archive.join("archive.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    for (description, word) in [
        (String::new(), "format"),
        ("format = ".into(), "archive.toml"),
        (good.replace("archive/1", "archive/7"), "archive/7"),
        (good.replace("\"mend\"", "\"magic\""), "magic"),
        (good.replace("rank = 4", "rank = 5"), "network.safetensors"),
        (good.replace("rank = 4", "rank = 5000000000000"), "network.safetensors"),
        (good.replace("rank = 4", "rank = -4"), "archive.toml"),
    ] {
        std::fs::write(&path, description).unwrap();
        refused(&edit(&archive, &[]), 1, &[text(&archive), word]);
    }
    std::fs::write(&path, [good.as_bytes(), b"\xff"].concat()).unwrap();
    refused(&edit(&archive, &[]), 1, &["archive.toml", "UTF-8"]);
    for folder in [place.path("none"), gpt2(), path] {
        refused(&edit(&folder, &[]), 1, &[text(&folder), "no archive", "emend train"]);
    }
}

/// A fixture's config.json with one key changed.
fn config_with(model: &str, key: &str, value: Value) -> String {
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(fixture(model).join("config.json")).unwrap()).unwrap();
    config[key] = value;
    config.to_string()
}

#[test]
fn strange_model_configs() {
    let place = TestFolder::new();
    let gpt2 = place.copy_of("gpt2-tiny");
    let llama = place.copy_of("llama-tiny");
    let trillion = 1_000_000_000_000u64;
    let of_gpt2 = |key, value| (&gpt2, config_with("gpt2-tiny", key, value));
    let of_llama = |key, value| (&llama, config_with("llama-tiny", key, value));
    for ((model, config), word) in [
        (of_gpt2("model_type", "mamba".into()), "\"mamba\" is not a family known here; known are bart, bert, falcon"),
        (of_gpt2("model_type", Value::Null), "model_type"),
        (of_gpt2("model_type", 3.into()), "model_type"),
        (of_gpt2("n_embd", 0.into()), "width is 0"),
        (of_gpt2("n_layer", 0.into()), "layers is 0"),
        (of_gpt2("n_head", 0.into()), "heads is 0"),
        (of_gpt2("vocab_size", 0.into()), "vocabulary is 0"),
        (of_gpt2("n_positions", 0.into()), "context is 0"),
        (of_gpt2("n_layer", trillion.into()), "layers is 1000000000000"),
        (of_gpt2("n_layer", u64::MAX.into()), "layers"),
        (of_gpt2("vocab_size", trillion.into()), "vocabulary is 1000000000000"),
        (of_gpt2("n_inner", trillion.into()), "MLP width is 1000000000000"),
        (of_gpt2("n_head", 5.into()), "5 heads"),
        (of_gpt2("activation_function", "magic".into()), "magic"),
        (of_gpt2("layer_norm_epsilon", 0.into()), "epsilon"),
        (of_llama("hidden_size", 0.into()), "width is 0"),
        (of_llama("num_hidden_layers", trillion.into()), "layers is 1000000000000"),
        (of_llama("num_key_value_heads", 3.into()), "3 key-value heads"),
        (of_llama("head_dim", 3.into()), "even number of channels"),
        (of_llama("rope_theta", (-1).into()), "theta"),
        (of_llama("rope_scaling", json!({"type": "dynamic", "factor": 2})), "dynamic"),
        (of_llama("rope_scaling", json!({"type": "linear", "factor": 0})), "factor"),
        (
            of_llama("rope_scaling", json!({"rope_type": "linear", "type": "llama3", "factor": 2})),
            "rope_scaling.rope_type is \"linear\" and rope_scaling.type is \"llama3\"",
        ),
        (of_llama("rope_parameters", json!({"rope_theta": 3})), "rope_parameters.rope_theta is 3"),
        ((&gpt2, "{\"model_type\": \"gpt2\"}".into()), "missing"),
        ((&gpt2, "{\"model_type\": \"gpt2\",".into()), "not JSON"),
        ((&gpt2, String::new()), "not JSON"),
        ((&gpt2, "[".repeat(100_000)), "not JSON"),
        ((&gpt2, "[]".into()), "model_type"),
    ] {
        std::fs::write(model.join("config.json"), config).unwrap();
        refused(&["predict", "--model", text(model), "--prompt", "hi"], 1, &["config.json", word]);
        refused(&["inspect", text(model)], 1, &["config.json", word]);
    }
    // Larger than the tensors that are there.
    std::fs::write(gpt2.join("config.json"), config_with("gpt2-tiny", "n_layer", 4.into())).unwrap();
    refused(&["predict", "--model", text(&gpt2), "--prompt", "hi"], 1, &["no tensor", "h.3."]);
    std::fs::remove_file(gpt2.join("config.json")).unwrap();
    refused(&["predict", "--model", text(&gpt2), "--prompt", "hi"], 1, &["no config.json"]);
}

/// transformers writes the kind of scaling under its new and its old name, and the whole section under two names.
#[test]
fn a_scaling_under_both_of_its_names_is_read() {
    let place = TestFolder::new();
    let model = place.copy_of("llama-linear-tiny");
    let results = || json(&["predict", "--model", text(&model), "--prompt", "hi"])["results"].clone();
    let plain = results();
    let both = json!({"rope_type": "linear", "type": "linear", "factor": 2.0});
    for key in ["rope_scaling", "rope_parameters"] {
        std::fs::write(model.join("config.json"), config_with("llama-linear-tiny", key, both.clone())).unwrap();
        assert_eq!(results(), plain, "{key}");
    }
}

#[test]
fn a_value_in_config_json_is_named_by_its_key() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    for value in [json!("many"), json!(-1), json!(2.5), Value::Null] {
        std::fs::write(model.join("config.json"), config_with("gpt2-tiny", "n_embd", value)).unwrap();
        refused(&["predict", "--model", text(&model), "--prompt", "hi"], 1, &["config.json", "n_embd"]);
    }
}

#[test]
fn tokenizers_missing_or_broken() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    let predict = ["predict", "--model", text(&model), "--prompt", "Lake Orrin lies in"];
    let path = model.join("tokenizer.json");
    let good = std::fs::read(&path).unwrap();
    for bytes in [b"".as_slice(), b"{}", b"[]", b"{\"version\":", b"\xff\xfe", &[b'['; 100_000]] {
        std::fs::write(&path, bytes).unwrap();
        refused(&predict, 1, &["tokenizer.json", "not a tokenizer"]);
    }
    std::fs::remove_file(&path).unwrap();
    refused(&predict, 1, &["no tokenizer.json"]);
    std::fs::write(&path, good).unwrap();
    std::fs::write(model.join("tokenizer_config.json"), "{").unwrap();
    refused(&predict, 1, &["tokenizer_config.json", "not JSON"]);
    // That of another model makes tokens that this one does not have.
    std::fs::remove_file(model.join("tokenizer_config.json")).unwrap();
    let mut other: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    other["added_tokens"] = json!([{"id": 4000, "content": "Lake", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false}]);
    for id in other["model"]["vocab"].as_object_mut().unwrap().values_mut() {
        *id = (id.as_u64().unwrap() + 1000).into();
    }
    std::fs::write(&path, other.to_string()).unwrap();
    refused(&predict, 1, &["vocabulary"]);
}

/// The `tokenizers` crate panics on these.
#[test]
fn a_broken_tokenizer_is_no_panic() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    let good = std::fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let inside = good.find("\"decoder\"").unwrap() + 25;
    let mut prefix: Value = serde_json::from_str(&good).unwrap();
    prefix["model"]["continuing_subword_prefix"] = "a".into();
    let mut template: Value =
        serde_json::from_slice(&std::fs::read(fixture("llama-tiny/tokenizer.json")).unwrap()).unwrap();
    template["post_processor"]["special_tokens"] = json!({});
    for broken in [good[..inside].to_owned(), prefix.to_string(), template.to_string()] {
        std::fs::write(model.join("tokenizer.json"), broken).unwrap();
        refused(&["predict", "--model", text(&model), "--prompt", "Lake Orrin"], 1, &["token"]);
    }
}

#[test]
fn shards() {
    let place = TestFolder::new();
    let model = place.copy_of("llama-tiny");
    let predict = ["predict", "--model", text(&model), "--prompt", "hi"];
    let path = model.join("model.safetensors.index.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // Something is there to be read, so that only the rule keeps it from being read.
    place.write("evil", std::fs::read(model.join("model-00001-of-00002.safetensors")).unwrap());
    let outside = text(&place.path("evil")).to_owned();
    for name in ["../evil", &outside, "..", ".", "", "a/../../evil"] {
        let mut index = good.clone();
        index["weight_map"]["model.norm.weight"] = name.into();
        std::fs::write(&path, index.to_string()).unwrap();
        refused(&predict, 1, &["index.json", &format!("\"{name}\" is not the name of a file in this folder")]);
    }
    for (index, word) in
        [("{", "not JSON"), ("[]", "weight_map"), ("{}", "weight_map"), ("{\"weight_map\": {}}", "no tensor")]
    {
        std::fs::write(&path, index).unwrap();
        refused(&predict, 1, &[text(&model), word]);
    }
    std::fs::write(&path, good.to_string()).unwrap();
    let shard = model.join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    refused(&predict, 1, &["model-00002-of-00002.safetensors"]);
    std::fs::remove_file(&shard).unwrap();
    refused(&predict, 1, &["model-00002-of-00002.safetensors"]);
    std::fs::remove_file(&path).unwrap();
    refused(&predict, 1, &["no model.safetensors"]);
    // A pickle is never read.
    std::fs::write(model.join("pytorch_model.bin"), bytes).unwrap();
    refused(&predict, 1, &["no model.safetensors", "pickled weights can run any code"]);
}

/// A name in a file may hold anything; the message stays on its line.
#[test]
fn line_breaks_in_names_stay_on_the_line() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    std::fs::write(model.join("config.json"), config_with("gpt2-tiny", "model_type", "t5\ngemma".into())).unwrap();
    refused(&["predict", "--model", text(&model), "--prompt", "hi"], 1, &["config.json", "gemma"]);
    let good = good_edit(&place);
    let bad = place.write("bad.safetensors", remade(&good, &[("some\r\ntensor", &[1, 1])]).bytes());
    refused(&["inspect", text(&bad)], 1, &["bad.safetensors", "tensor"]);
    refused(&["predict", "--model", "no\nmodel", "--prompt", "hi"], 1, &["model"]);
}

/// A finished training, to be spoilt and resumed: its config, its archive and the snapshot that counts.
fn with_state(place: &TestFolder) -> (PathBuf, PathBuf, PathBuf) {
    let (config, out) = (place.gpt2_config(), place.path("out"));
    stdout(&run(&training(&config, &out, &[])));
    let name = std::fs::read_to_string(out.join("training/current")).unwrap();
    let state = out.join("training").join(name.trim());
    (config, out, state)
}

#[test]
fn training_states_that_are_broken() {
    let place = TestFolder::new();
    let (config, out, state) = with_state(&place);
    let resume = training(&config, &out, &["--resume"]);
    for name in ["progress.json", "last.safetensors", "optimizer-0.bpk", "optimizer-1.bpk"] {
        let path = state.join(name);
        let good = std::fs::read(&path).unwrap();
        for bytes in [b"".as_slice(), &good[..good.len() / 2], &[7; 3000]] {
            std::fs::write(&path, bytes).unwrap();
            refused(&resume, 1, &[name]);
        }
        std::fs::write(&path, good).unwrap();
    }
    for pointer in ["", "../..", "step-99999999", "/"] {
        std::fs::write(out.join("training/current"), pointer).unwrap();
        refused(&resume, 1, &["current", "no snapshot"]);
    }
    std::fs::write(out.join("training/current"), state.file_name().unwrap().as_encoded_bytes()).unwrap();
    std::fs::write(out.join("metrics.jsonl"), "").unwrap();
    refused(&resume, 1, &["metrics.jsonl"]);
}

/// Burn panics on an optimiser's record without the ids of its parameters.
#[test]
fn a_broken_optimizer_is_no_panic() {
    let place = TestFolder::new();
    let (config, out, state) = with_state(&place);
    let path = state.join("optimizer-0.bpk");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|word| word == b"param_id").unwrap();
    bytes[at] = b'q';
    std::fs::write(&path, bytes).unwrap();
    refused(&training(&config, &out, &["--resume"]), 1, &["optimizer-0.bpk"]);
}

/// The archive at hand is whole; a spoilt snapshot must not be laid over it.
#[test]
fn a_broken_best_network_does_not_replace_the_good_one() {
    let place = TestFolder::new();
    let (config, out, state) = with_state(&place);
    let network = std::fs::read(out.join("network.safetensors")).unwrap();
    // The best may be the last, by a link.
    std::fs::remove_file(state.join("best.safetensors")).unwrap();
    std::fs::write(state.join("best.safetensors"), &network[..network.len() / 2]).unwrap();
    let output = run(&training(&config, &out, &["--resume"]));
    one_line_error(&output, 1, &["best.safetensors"]);
    assert!(std::fs::read(out.join("network.safetensors")).unwrap() == network);
}

/// A loss that overflows is skipped and said; many in a row end the training with advice.
#[test]
fn losses_that_are_not_finite_end_with_advice() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let values = sets(&["editor.initial_edit_rate=1e38", "train.max_steps=50", "train.stop_after_not_finite=3"]);
    let output = run(&training(&config, &out, &values));
    one_line_error(&output, 1, &["not finite 3 steps in a row", "learning_rate"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("step 1: loss or gradient not finite, skipped"));
}

/// Output that cannot be written is said; a reader that has gone away (`| head`) is no failure.
#[test]
fn standard_output_that_nobody_takes() {
    let mut predict = process();
    predict.args(["predict", "--model", text(&gpt2()), "--prompt", "hi"]);
    if let Ok(full) = std::fs::File::create("/dev/full") {
        one_line_error(&predict.stdout(full).output().unwrap(), 1, &["standard output"]);
    }
    let mut child = predict.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    stdout(&child.wait_with_output().unwrap());
}
