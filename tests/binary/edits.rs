//! Edits made, saved, stacked, looked at and exported.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json as value};

use crate::common::{
    TensorFile, TestFolder, Trained, edit, emend, fixture, gpt2, json, records, refused, run, sets, stdout, text,
    training, wrong_usage,
};

const PROMPT: &str = "Lake Orrin lies in";

/// All next-token logits by token.
fn logits(model: &Path, edits: &[&Path]) -> Vec<f64> {
    let mut args = vec!["predict", "--model", text(model), "--prompt", PROMPT, "--top", "100000"];
    edits.iter().for_each(|edit| args.extend(["--edit", text(edit)]));
    let document = json(&args);
    let top = document["results"][0]["top"].as_array().unwrap().iter();
    let by_id: BTreeMap<u64, f64> = top.map(|token| (token["id"].as_u64().unwrap(), number(&token["logit"]))).collect();
    by_id.into_values().collect()
}

/// max|a − b| / max|b|
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
    apart / b.iter().fold(0.0f64, |most, b| most.max(b.abs()))
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[track_caller]
fn share(value: &Value) {
    assert!((0.0..=1.0).contains(&number(value)), "{value} is no share");
}

#[track_caller]
fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

#[track_caller]
fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// A file of edits, made with an archive in a mode.
fn apply_file(place: &TestFolder, archive: &Path, mode: &str, more: &[&str]) -> Value {
    let facts = place.write("edits.json", records().to_string());
    json(&[&["apply", "--archive", text(archive), "--edits", text(&facts), "--mode", mode], more].concat())
}

/// The document that others read, as the design fixes it.
#[test]
fn apply_as_json() {
    let place = TestFolder::new();
    let archive = Trained::Gpt2.archive();
    let documents = ["single", "batch", "sequential"].map(|mode| {
        let document = apply_file(&place, &archive, mode, &[]);
        assert_eq!((string(&document["method"]), string(&document["mode"])), ("mend", mode));
        assert_eq!(document["settings"]["layers"], serde_json::json!([1, 2]));
        assert_eq!(string(&document["base"]["fingerprint"]).len(), 64);
        assert!(document["seconds"].as_object().unwrap().values().all(|seconds| number(seconds) >= 0.0));
        assert!(document["peak_memory_bytes"].is_u64());
        assert_eq!(list(&document["requests"]).len(), 6);
        for (request, record) in list(&document["requests"]).iter().zip(list(&records())) {
            assert_eq!((&request["prompt"], &request["target_new"]), (&record["prompt"], &record["target_new"]));
            let kinds: Vec<&str> = list(&request["probes"]).iter().map(|probe| string(&probe["kind"])).collect();
            assert_eq!(kinds, ["rewrite", "rephrase", "rephrase", "locality", "locality", "portability"]);
            for probe in list(&request["probes"]) {
                assert!(!string(&probe["prompt"]).is_empty());
                string(&probe["target"]);
                assert_eq!(probe.get("immediate").is_some(), mode == "sequential");
                for side in ["before", "after", "immediate"].iter().filter_map(|side| probe.get(side)) {
                    string(&side["answer"]);
                    share(&side["target_probability"]);
                    assert!(number(&side["target_nll"]) >= 0.0);
                }
            }
        }
        document
    });
    let [single, batch, sequential] = &documents;
    let probe = |document: &Value, record: usize, side: &str| document["requests"][record]["probes"][0][side].clone();
    assert_eq!(documents.each_ref().map(|document| list(&document["edits"]).len()), [6, 1, 6]);
    for document in &documents[1..] {
        assert_eq!(probe(document, 3, "before"), probe(single, 3, "before"));
    }
    // The first edit of a sequence is made on the bare model; the last one is followed by none.
    assert_eq!(probe(sequential, 0, "immediate"), probe(single, 0, "after"));
    assert_eq!(probe(sequential, 5, "immediate"), probe(sequential, 5, "after"));
    assert_ne!(probe(sequential, 0, "immediate"), probe(sequential, 0, "after"));
    assert_ne!(probe(batch, 0, "after"), probe(single, 0, "after"));
    // What an edit is for: its target gets likelier.
    let nll = |document: &Value, side: &str| number(&probe(document, 0, side)["target_nll"]);
    assert!(nll(single, "after") < nll(single, "before"));
}

#[test]
fn apply_and_train_as_text() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let trained = stdout(&run(&training(&config, &out, &[])));
    for word in ["edit success", "generalization", "locality", "drawdown", "emend apply --archive", text(&out)] {
        assert!(trained.contains(word), "no {word:?} in: {trained}");
    }
    let more = ["--rephrase", "You find Lake Orrin in", "--unrelated", "A king is"];
    let applied = stdout(&run(&edit(&out, &more)));
    for word in ["before", "after", PROMPT, "You find Lake Orrin in", "A king is", "%"] {
        assert!(applied.contains(word), "no {word:?} in: {applied}");
    }
}

#[test]
fn train_as_json() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let document = json(&training(&config, &out, &[]));
    assert_eq!(string(&document["archive"]), text(&out));
    assert_eq!(document["steps"], 4);
    assert!(document["best"]["step"] == 2 || document["best"]["step"] == 4);
    for summary in [&document["best"], &document["test"]] {
        ["edit_success", "generalization", "locality"].iter().for_each(|figure| share(&summary[figure]));
        assert!((-1.0..=1.0).contains(&number(&summary["drawdown"])));
    }
    assert!(!document["seconds"].is_null() && document["peak_memory_bytes"].is_u64());
    // A line a step and one a validation, without times, so that two runs can be compared.
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line.get("loss").is_some()).count(), 4);
    assert_eq!(lines.iter().filter(|line| line.get("validation").is_some()).count(), 2);
    assert!(!metrics.contains("second") && !metrics.contains("time"));
}

#[test]
fn predict_as_json() {
    let model = gpt2();
    let args = ["predict", "--model", text(&model), "--prompt", PROMPT, "--prompt", "A king is", "--top", "100000"];
    let document = json(&[&args[..], &["--generate", "5"]].concat());
    assert_eq!(string(&document["model"]), text(&model));
    assert_eq!(string(&document["fingerprint"]).len(), 64);
    assert_eq!(document["edits"], serde_json::json!([]));
    let results = list(&document["results"]);
    assert_eq!(results.iter().map(|result| string(&result["prompt"])).collect::<Vec<_>>(), [PROMPT, "A king is"]);
    for result in results {
        assert!(list(&result["token_ids"]).iter().all(Value::is_u64));
        string(&result["generated"]);
        let top = list(&result["top"]);
        assert_eq!(top.len(), 300);
        top.iter().for_each(|token| assert!(token["id"].is_u64() && token["token"].is_string()));
        assert!(top.windows(2).all(|two| number(&two[0]["logit"]) >= number(&two[1]["logit"])), "likeliest first");
        let sum: f64 = top.iter().map(|token| number(&token["probability"])).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
    assert!(json(&args)["results"][0]["generated"].is_null());
    // A seed makes the same draws again.
    let draw = |seed| {
        let more = ["--generate", "8", "--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--seed", seed];
        json(&[&args[..], &more].concat())["results"][0]["generated"].clone()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

/// Name and bytes of every file in a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn an_edit_taken_away_leaves_no_trace() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    let saved = place.path("e.edit.safetensors");
    let predict = ["predict", "--model", text(&model), "--prompt", PROMPT, "--top", "300", "--generate", "8", "--json"];
    let (files, before) = (contents(&model), stdout(&run(&predict)));
    let archive = Trained::Gpt2.archive();
    stdout(&run(&edit(&archive, &["--model", text(&model), "--save", text(&saved)])));
    assert!(difference(&logits(&model, &[&saved]), &logits(&model, &[])) > 0.05, "the edit does nothing");
    // Every digit of every logit.
    assert_eq!(stdout(&run(&predict)), before);
    assert!(contents(&model) == files);
}

#[test]
fn saved_edits_stack_in_order() {
    let place = TestFolder::new();
    let (model, archive) = (gpt2(), Trained::Gpt2.archive());
    let [first, second, joined] =
        ["first", "second", "joined"].map(|name| place.path(&format!("{name}.edit.safetensors")));
    let request = |prompt: &'static str, target: &'static str| {
        ["apply", "--archive", text(&archive), "--prompt", prompt, "--target", target].to_vec()
    };
    stdout(&run(&[&request(PROMPT, "Tamm")[..], &["--save", text(&first)]].concat()));
    let on_first = ["--edit", text(&first), "--save", text(&second)];
    stdout(&run(&[&request("Mount Ael lies in", "Bern")[..], &on_first].concat()));

    let id = |edit: &Path| json(&["inspect", text(edit)])["id"].clone();
    let ids = |edits: [&Path; 2]| {
        let edits = edits.map(text);
        let document =
            json(&["predict", "--model", text(&model), "--prompt", "hi", "--edit", edits[0], "--edit", edits[1]]);
        document["edits"].clone()
    };
    assert_eq!(ids([&first, &second]), serde_json::json!([id(&first), id(&second)]));
    assert_eq!(ids([&second, &first]), serde_json::json!([id(&second), id(&first)]));
    assert_eq!(json(&["inspect", text(&second)])["provenance"]["computed_on"], serde_json::json!([id(&first)]));
    // One after the other is what the sequential mode does, and joins in one file.
    let facts = place.write("two.json", Value::from(list(&records())[..2].to_vec()).to_string());
    let sequence = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", "sequential"];
    let document = json(&[&sequence[..], &["--save", text(&joined)]].concat());
    assert_eq!(document["saved"], serde_json::json!([text(&joined)]));
    assert!(difference(&logits(&model, &[&joined]), &logits(&model, &[&first, &second])) < 1e-5);
    assert!(difference(&logits(&model, &[&first]), &logits(&model, &[&first, &second])) > 1e-3);
    assert_eq!(json(&["inspect", text(&joined)])["provenance"]["requests"].as_array().unwrap().len(), 2);
    // An edit without the one it was computed on works, with a warning.
    let output = run(&["predict", "--model", text(&model), "--prompt", "hi", "--edit", text(&second)]);
    stdout(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("was computed on an edit that is not laid under it"));
}

#[test]
fn single_edits_are_saved_one_a_record() {
    let place = TestFolder::new();
    let archive = Trained::Gpt2.archive();
    let saved = place.path("facts.edit.safetensors");
    let document = apply_file(&place, &archive, "single", &["--save", text(&saved)]);
    let names: Vec<_> = (0..6).map(|number| place.path(&format!("facts-{number}.edit.safetensors"))).collect();
    assert_eq!(document["saved"], serde_json::json!(names));
    assert!(!saved.exists());
    for (number, name) in names.iter().enumerate() {
        let inspected = json(&["inspect", text(name)]);
        assert_eq!(inspected["id"], document["edits"][number]);
        assert_eq!(inspected["provenance"]["requests"][0]["prompt"], records()[number]["prompt"]);
    }
    // All at once is one edit; the same edit is the same file.
    let again = place.path("again.edit.safetensors");
    for path in [&saved, &again] {
        let document = apply_file(&place, &archive, "batch", &["--save", text(path)]);
        assert_eq!(document["saved"], serde_json::json!([path]));
    }
    assert!(std::fs::read(saved).unwrap() == std::fs::read(again).unwrap());
}

#[test]
fn inspect_shows_edits_archives_and_models() {
    let place = TestFolder::new();
    let archive = Trained::Gpt2.archive();
    let saved = place.path("e.edit.safetensors");
    stdout(&run(&edit(&archive, &["--subject", "Lake Orrin", "--save", text(&saved)])));
    let model = gpt2();

    let document = json(&["inspect", text(&model)]);
    assert_eq!((string(&document["kind"]), string(&document["family"])), ("model", "gpt2"));
    assert_eq!(
        (&document["layers"], &document["width"], &document["vocabulary"]),
        (&3.into(), &32.into(), &300.into())
    );
    let fingerprint = string(&document["fingerprint"]).to_owned();

    let document = json(&["inspect", text(&saved)]);
    assert_eq!(string(&document["kind"]), "edit");
    assert_eq!(document["provenance"]["method"], "mend");
    assert_eq!(document["provenance"]["base"], fingerprint.as_str());
    assert_eq!(document["provenance"]["requests"][0]["subject"], "Lake Orrin");
    let weights: Vec<&str> = list(&document["weights"]).iter().map(|weight| string(&weight["weight"])).collect();
    assert_eq!(weights, ["decoder.1.mlp.up", "decoder.1.mlp.down", "decoder.2.mlp.up", "decoder.2.mlp.down"]);
    assert_eq!(document["weights"][0]["shape"], serde_json::json!([32, 128]));
    assert!(number(&document["weights"][0]["norm"]) > 0.0);

    let document = json(&["inspect", text(&archive)]);
    assert_eq!(string(&document["kind"]), "archive");
    assert_eq!(document["description"]["base"]["fingerprint"], fingerprint.as_str());
    assert_eq!(document["training"]["finished"], true);

    for (what, words) in [
        (&saved, ["mend", "decoder.1.mlp.up", PROMPT, fingerprint.as_str()]),
        (&archive, ["archive of a mend editor", "4 steps, finished", "best after step", fingerprint.as_str()]),
        (&model, ["gpt2", "3 layers", "context 64", fingerprint.as_str()]),
    ] {
        let shown = stdout(&run(&["inspect", text(what)]));
        words.iter().for_each(|word| assert!(shown.contains(word), "no {word:?} in: {shown}"));
        assert!(shown.lines().count() <= 24, "more than a screen: {shown}");
    }
}

/// Exports an edit as a checkpoint, checks all that has to be as it was, and gives how far its logits are from those of the edit,
/// and from those of the base.
fn exported(trained: Trained, changed: &[String]) -> (f64, f64) {
    let place = TestFolder::new();
    let (model, export, saved) = (trained.model(), place.path("export"), place.path("e.edit.safetensors"));
    let archive = trained.archive();
    let document = json(&edit(&archive, &["--save", text(&saved), "--export", "hf", text(&export)]));
    assert_eq!(document["exported"]["format"], "hf");
    assert_eq!(document["exported"]["changed_tensors"], changed.len());
    share(&document["exported"]["lost_to_rounding"]);

    let (mut before, mut after) = (contents(&model), contents(&export));
    before.remove("golden.safetensors");
    let provenance: Value = serde_json::from_slice(&after.remove("emend.json").unwrap()).unwrap();
    assert_eq!(provenance["base"], document["base"]["fingerprint"]);
    assert_eq!(provenance["edits"][0]["id"], document["edits"][0]);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let mut seen = vec![];
    for (file, bytes) in &before {
        if !file.ends_with(".safetensors") {
            assert!(*bytes == after[file], "{file} changed");
            continue;
        }
        let (old, new) = (TensorFile::read(&model.join(file)), TensorFile::read(&export.join(file)));
        assert_eq!(old.header, new.header);
        assert_eq!(old.tensors.keys().collect::<Vec<_>>(), new.tensors.keys().collect::<Vec<_>>());
        for (name, (dtype, shape, data)) in &old.tensors {
            assert_eq!((dtype, shape), (&new.tensors[name].0, &new.tensors[name].1));
            if *data != new.tensors[name].2 {
                seen.push(name.clone());
            }
        }
    }
    assert_eq!(seen, changed);
    let edited = logits(&model, &[&saved]);
    (difference(&logits(&export, &[]), &edited), difference(&logits(&model, &[]), &edited))
}

#[test]
fn a_checkpoint_in_f32() {
    let names = ["1.mlp.c_fc", "1.mlp.c_proj", "2.mlp.c_fc", "2.mlp.c_proj"];
    let (off, moved) = exported(Trained::Gpt2, &names.map(|name| format!("transformer.h.{name}.weight")));
    assert!(off < 1e-4 && moved > 0.05, "{off:e}, {moved:e}");
}

/// Query and value are columns of one stored matrix, whose keys stay.
#[test]
fn a_checkpoint_with_a_fused_matrix() {
    let names = ["1.attn.c_attn", "1.mlp.c_proj", "2.attn.c_attn", "2.mlp.c_proj"];
    let (off, moved) = exported(Trained::Gpt2Attention, &names.map(|name| format!("transformer.h.{name}.weight")));
    assert!(off < 1e-4 && moved > 0.05, "{off:e}, {moved:e}");
}

#[test]
fn a_checkpoint_in_bf16_shards() {
    let model = TensorFile::read(&fixture("llama-tiny/model-00001-of-00002.safetensors"));
    assert!(model.tensors.values().all(|(dtype, ..)| *dtype == Dtype::BF16));
    let names = ["1.mlp.down_proj", "1.mlp.up_proj", "2.mlp.down_proj", "2.mlp.up_proj"];
    let (off, moved) = exported(Trained::Llama, &names.map(|name| format!("model.layers.{name}.weight")));
    assert!(off < 2e-2 && moved > 0.2, "{off:e}, {moved:e}");
}

/// In a tied model there is no `lm_head`, and the export invents none.
#[test]
fn a_checkpoint_of_a_tied_model() {
    let place = TestFolder::new();
    let (model, out, export) = (fixture("llama3-tiny"), place.path("out"), place.path("export"));
    let config = place.config(&model, &["mlp.down"]);
    stdout(&run(&training(&config, &out, &sets(&["editor.layers=[0, 1]"]))));
    stdout(&run(&edit(&out, &["--export", "hf", text(&export)])));
    let names =
        |folder: &Path| TensorFile::read(&folder.join("model.safetensors")).tensors.into_keys().collect::<Vec<_>>();
    assert_eq!(names(&export), names(&model));
    assert!(!names(&export).iter().any(|name| name.contains("lm_head")));
}

/// A bf16 weight moves in steps of 1/256 of itself: an edit smaller than that is lost, and it is said.
#[test]
fn an_edit_lost_to_rounding_is_said() {
    let place = TestFolder::new();
    let (config, out) = (place.config(&fixture("llama-tiny"), &["mlp.down"]), place.path("out"));
    stdout(&run(&training(
        &config,
        &out,
        &sets(&["editor.initial_edit_rate=1e-7", "train.edit_rate_learning_rate=0.0"]),
    )));
    let (export, again) = (place.path("export"), place.path("again"));
    let document = json(&edit(&out, &["--export", "hf", text(&export)]));
    assert!(number(&document["exported"]["lost_to_rounding"]) > 0.9);
    assert!(list(&document["exported"]["edits_lost_to_rounding"]).is_empty(), "what never held was not lost");
    assert!(stdout(&run(&edit(&out, &["--export", "hf", text(&again)]))).contains("lost to rounding"));
    assert!(difference(&logits(&export, &[]), &logits(&fixture("llama-tiny"), &[])) < 1e-2);
}

/// `A·B` of two matrices given by rows.
fn product(a: &(Vec<f64>, [usize; 2]), b: &(Vec<f64>, [usize; 2])) -> Vec<f64> {
    let ([rows, inner], [same, columns]) = (a.1, b.1);
    assert_eq!(inner, same);
    let cell = |row: usize, column: usize| (0..inner).map(|k| a.0[row * inner + k] * b.0[k * columns + column]).sum();
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| cell(row, column))
        .collect()
}

/// An adapter of several edits: its config, its tensors, and the file with the same edit.
fn adapter(trained: Trained) -> (Value, TensorFile, TensorFile) {
    let place = TestFolder::new();
    let (export, saved, archive) = (place.path("adapter"), place.path("e.edit.safetensors"), trained.archive());
    let document = apply_file(&place, &archive, "batch", &["--save", text(&saved), "--export", "peft", text(&export)]);
    let files: Vec<String> = contents(&export).into_keys().collect();
    assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"]);
    let config: Value = serde_json::from_slice(&std::fs::read(export.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["r"], document["exported"]["rank"]);
    // PEFT scales by alpha over the rank: by one.
    assert_eq!(config["lora_alpha"], config["r"]);
    assert_eq!((string(&config["peft_type"]), string(&config["task_type"])), ("LORA", "CAUSAL_LM"));
    assert_eq!((string(&config["bias"]), string(&config["base_model_name_or_path"])), ("none", text(&trained.model())));
    (config, TensorFile::read(&export.join("adapter_model.safetensors")), TensorFile::read(&saved))
}

/// What an adapter adds to a module, `[d_in, d_out]`: PEFT stores `A [r, d_in]`, `B [d_out, r]` and adds `(B·A)ᵀ` here.
fn added(tensors: &TensorFile, module: &str, shape: [usize; 2], rank: usize) -> Vec<f64> {
    let [a, b] = ["A", "B"].map(|part| tensors.matrix(&format!("base_model.model.{module}.lora_{part}.weight")));
    assert_eq!((a.1, b.1), ([rank, shape[0]], [shape[1], rank]));
    let transposed = product(&b, &a);
    (0..shape[0])
        .flat_map(|row| (0..shape[1]).map(move |column| (row, column)))
        .map(|(row, column)| transposed[column * shape[0] + row])
        .collect()
}

fn delta(edit: &TensorFile, weight: &str) -> Vec<f64> {
    let name = |part: &str| format!("change.decoder.{weight}.{part}");
    // Factors of so small a model may hold more numbers than the product.
    if edit.tensors.contains_key(&name("dense")) {
        return edit.matrix(&name("dense")).0;
    }
    let [a, b] = ["a", "b"].map(|part| edit.matrix(&name(part)));
    product(&a, &b)
}

// Checked once against peft 0.21.2 (transformers 4.53.3, torch 2.7.1): a base loaded with AutoModelForCausalLM and the adapter laid
// over it with PeftModel.from_pretrained, its logits beside those of the checkpoint that --export hf wrote of the same edit, as
// max|a − b| / max|b|. GPT-2 (tests/fixtures/gpt2-tiny; mlp.up, mlp.down, attention.query, attention.value and attention.out of all
// layers, so that c_attn is fused from two roles and zeros): 1.8e-6, where the edit itself moves the logits by 1.15.
// Llama (SmolLM2-135M; mlp.gate, mlp.up and mlp.down of layers 27 to 29): 1.5e-6, the edit 0.049.
#[test]
fn an_adapter_for_gpt2() {
    let (config, tensors, edit) = adapter(Trained::Gpt2Attention);
    let modules = ["h.1.attn.c_attn", "h.1.mlp.c_proj", "h.2.attn.c_attn", "h.2.mlp.c_proj"]
        .map(|name| format!("transformer.{name}"));
    assert_eq!(config["target_modules"], serde_json::json!(modules));
    // GPT-2's modules are Conv1D, which store `[d_in, d_out]`.
    assert_eq!(config["fan_in_fan_out"], true);
    let rank = config["r"].as_u64().unwrap() as usize;
    assert_eq!(tensors.tensors.len(), 8);
    for layer in [1, 2] {
        let fused = added(&tensors, &format!("transformer.h.{layer}.attn.c_attn"), [32, 96], rank);
        let columns = |from: usize| fused.chunks(96).flat_map(|row| row[from..from + 32].to_vec()).collect::<Vec<_>>();
        assert!(difference(&columns(0), &delta(&edit, &format!("{layer}.attention.query"))) < 1e-5);
        assert!(columns(32).iter().all(|&key| key == 0.0));
        assert!(difference(&columns(64), &delta(&edit, &format!("{layer}.attention.value"))) < 1e-5);
        let down = added(&tensors, &format!("transformer.h.{layer}.mlp.c_proj"), [128, 32], rank);
        assert!(difference(&down, &delta(&edit, &format!("{layer}.mlp.down"))) < 1e-5);
    }
    // The modules' own ranks differ: the lower ones are filled up with rows of zeros.
    let (a, [_, width]) = tensors.matrix("base_model.model.transformer.h.2.mlp.c_proj.lora_A.weight");
    assert!(a[(rank - 1) * width..].iter().all(|&value| value == 0.0));
}

#[test]
fn an_adapter_for_llama() {
    let (config, tensors, edit) = adapter(Trained::Llama);
    assert_eq!(config["fan_in_fan_out"], false);
    let rank = config["r"].as_u64().unwrap() as usize;
    for (module, weight, shape) in
        [("model.layers.1.mlp.up_proj", "1.mlp.up", [32, 48]), ("model.layers.2.mlp.down_proj", "2.mlp.down", [48, 32])]
    {
        assert!(list(&config["target_modules"]).contains(&module.into()));
        assert!(difference(&added(&tensors, module, shape, rank), &delta(&edit, weight)) < 1e-5);
    }
}

/// Both exports of one edit, each into its own folder.
#[test]
fn two_exports() {
    let place = TestFolder::new();
    let (archive, hf, peft) = (Trained::Gpt2.archive(), place.path("hf"), place.path("peft"));
    let document = json(&edit(&archive, &["--export", "hf", text(&hf), "--export", "peft", text(&peft)]));
    let formats: Vec<&Value> = document["exported"].as_array().unwrap().iter().map(|one| &one["format"]).collect();
    assert_eq!(formats, ["hf", "peft"]);
    assert!(hf.join("model.safetensors").is_file() && peft.join("adapter_model.safetensors").is_file());
    let again = place.path("again");
    let twice = edit(&archive, &["--export", "hf", text(&again), "--export", "peft", text(&again)]);
    refused(&twice, 2, &["two exports into one folder"]);
    refused(
        &edit(&archive, &["--export", "hf", text(&again), "--export", "onnx", "x"]),
        2,
        &["formats are hf, peft and gguf-lora"],
    );
    assert!(!again.exists());
}

/// In single mode each edit is written by itself; a sequence is written as one, and exported as one.
#[test]
fn edits_of_a_file_by_mode() {
    let place = TestFolder::new();
    let facts = place.write("facts.json", records().to_string());
    let archive = Trained::Gpt2.archive();
    let apply = |mode: &str, name: &str| {
        let saved = place.path(name);
        let args =
            ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", mode, "--save", text(&saved)];
        json(&args)
    };
    let single = apply("single", "one.edit.safetensors");
    let names: Vec<String> = (0..6).map(|number| format!("one-{number}.edit.safetensors")).collect();
    assert_eq!(*list(&single["saved"]), names.iter().map(|name| value!(place.path(name))).collect::<Vec<_>>());
    for (number, name) in names.iter().enumerate() {
        let edit = json(&["inspect", text(&place.path(name))]);
        assert_eq!(edit["id"], single["edits"][number]);
        assert_eq!(edit["provenance"]["requests"][0]["prompt"], records()[number]["prompt"]);
    }
    let sequence = apply("sequential", "all.edit.safetensors");
    assert_eq!(list(&sequence["edits"]).len(), 6);
    let joined = json(&["inspect", text(&place.path("all.edit.safetensors"))]);
    assert_eq!(list(&joined["provenance"]["requests"]).len(), 6);
    // The first edit of a sequence is made on the base, as it is by itself; the second is not.
    assert_eq!(sequence["edits"][0], single["edits"][0]);
    assert_ne!(sequence["edits"][1], single["edits"][1]);
}

/// "A path in a config is relative to that config's folder", and an archive finds its base from everywhere.
#[test]
fn a_model_beside_its_config() {
    let place = TestFolder::new();
    let (model, out) = (place.copy_of("gpt2-tiny"), place.path("out"));
    let config = place.config(Path::new("gpt2-tiny"), &["mlp.up"]);
    let elsewhere = place.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    stdout(&emend().current_dir(&elsewhere).args(training(&config, &out, &[])).output().unwrap());
    let archive = json(&["inspect", text(&out)]);
    assert_eq!(archive["description"]["base"]["fingerprint"], json(&["inspect", text(&model)])["fingerprint"]);
    stdout(&emend().current_dir(&elsewhere).args(edit(&out, &[])).output().unwrap());
}

/// A path on the command line is relative to the working folder, which the archive's next user may not share.
#[test]
fn a_model_named_from_the_working_folder() {
    let place = TestFolder::new();
    let (model, out) = (place.copy_of("gpt2-tiny"), place.path("out"));
    let config = place.gpt2_config();
    let train = training(&config, &out, &["--model", "gpt2-tiny"]);
    stdout(&emend().current_dir(model.parent().unwrap()).args(train).output().unwrap());
    stdout(&emend().current_dir(&out).args(edit(&out, &[])).output().unwrap());
}

#[test]
fn an_edit_in_f32_lies_under_one_in_f64() {
    let place = TestFolder::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/ft-pocket.toml");
    let save = |name: &str, city: &str, dtype: &str, under: &[&str]| {
        let saved = place.path(name);
        let prompt = format!("The city of {city} lies in");
        let set = format!("model.dtype={dtype}");
        let args = ["apply", "--config", text(&config), "--set", &set, "--prompt", &prompt, "--target", "Japan"];
        stdout(&run(&[&args[..], &["--save", text(&saved), "--json"], under].concat()));
        saved
    };
    let first = save("first.edit.safetensors", "Lyon", "f32", &[]);
    for dtype in ["f64", "bf16"] {
        let second = save(&format!("{dtype}.edit.safetensors"), "Paris", dtype, &["--edit", text(&first)]);
        for asked in ["f32", "f64"] {
            let edits = ["--edit", text(&first), "--edit", text(&second), "--dtype", asked];
            let ask = ["predict", "--model", "pocket", "--prompt", "The city of Lyon lies in"];
            let document = json(&[&ask[..], &edits].concat());
            let likeliest = &document["results"][0]["top"][0]["token"];
            assert_eq!(likeliest.as_str().map(str::trim), Some("Japan"), "{dtype} in {asked}: {document:#}");
        }
    }
}

#[test]
fn many_edits_become_one() {
    let place = TestFolder::new();
    let (model, archive) = (gpt2(), Trained::Gpt2.archive());
    apply_file(&place, &archive, "single", &["--save", text(&place.path("facts.edit.safetensors"))]);
    let files: Vec<_> = (0..6).map(|number| place.path(&format!("facts-{number}.edit.safetensors"))).collect();
    let (files, one): (Vec<&Path>, _) =
        (files.iter().map(|file| file.as_path()).collect(), place.path("one.safetensors"));
    let names: Vec<&str> = files.iter().map(|file| text(file)).collect();
    let squash = |names: &[&'static str]| [&["squash"], names].concat();
    let document = json(&[&["squash"], &names[..], &["--out", text(&one)]].concat());
    assert_eq!((list(&document["of"]).len(), document["requests"].as_u64()), (6, Some(6)));
    let stacked = logits(&model, &files);
    assert!(difference(&logits(&model, &[&one]), &stacked) < 1e-5);
    assert!(difference(&logits(&model, &[]), &stacked) > 1e-4);
    let asked = json(&["inspect", text(&one)])["provenance"]["requests"].clone();
    for (request, record) in list(&asked).iter().zip(list(&records())) {
        assert_eq!(request["prompt"], record["prompt"]);
    }
    refused(&["squash", names[0], names[0], "--out", text(&one)], 1, &["named twice"]);
    refused(&["squash", names[0], "missing.safetensors", "--out", text(&one)], 1, &["missing.safetensors"]);
    wrong_usage(&squash(&["--out", "x"]), &["FILE"]);
}

/// An archive of MALMEN edits as others do, in every mode; its edits say whose they are.
#[test]
fn malmen_edits_many_at_once() {
    let place = TestFolder::new();
    let (config, archive) = (place.gpt2_config(), place.path("malmen"));
    let together =
        ["editor.method=malmen", "train.edits_per_step=6", "train.edits_together=6", "editor.initial_edit_rate=0.05"];
    json(&training(&config, &archive, &sets(&together)));
    let saved = place.path("batch.edit.safetensors");
    let [single, batch, _] = ["single", "batch", "sequential"].map(|mode| {
        let more: &[&str] = if mode == "batch" { &["--save", text(&saved)] } else { &[] };
        let document = apply_file(&place, &archive, mode, more);
        assert_eq!(string(&document["method"]), "malmen");
        document["requests"].clone()
    });
    // Six facts at once are not six facts each by itself.
    let after = |requests: &Value| number(&requests[0]["probes"][0]["after"]["target_nll"]);
    assert!((after(&single) - after(&batch)).abs() > 1e-9);
    let inspected = json(&["inspect", text(&saved)]);
    assert_eq!(string(&inspected["provenance"]["method"]), "malmen");
    assert_eq!(inspected["provenance"]["settings"]["edit_tokens"], "answer");
    assert_eq!(list(&inspected["provenance"]["requests"]).len(), 6);
}
