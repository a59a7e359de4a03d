//! Edits that leave for other engines, and adapters of others that come in.

use std::path::{Path, PathBuf};

use serde_json::{Value, json as value};

use crate::common::{
    TensorFile, TestFolder, Trained, edit, fixture, gpt2, json, records, refused, run, stdout, text, wrong_usage,
};

const POCKET: [&str; 10] = [
    "apply",
    "--config",
    "configs/ft-l-pocket.toml",
    "--prompt",
    "The city of Oslo lies in",
    "--subject",
    "Oslo",
    "--target=Chile",
    // An adapter holds none.
    "--set",
    "editor.biases=false",
];

/// Two edits of GPT-2 that lie one on the other.
fn two_edits(place: &TestFolder) -> [PathBuf; 2] {
    let archive = Trained::Gpt2Attention.archive();
    let (one, two) = (place.path("one.safetensors"), place.path("two.safetensors"));
    stdout(&run(&edit(&archive, &["--save", text(&one)])));
    let facts = place.write("facts.json", records().to_string());
    let more = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", "batch", "--edit", text(&one)];
    stdout(&run(&[&more[..], &["--save", text(&two)]].concat()));
    [one, two]
}

/// The likeliest tokens of a model under edits, with their logits.
fn top(model: &Path, edits: &[&Path]) -> Vec<(u64, f64)> {
    let edits = edits.iter().flat_map(|edit| ["--edit", text(edit)]);
    let said = ["predict", "--model", text(model), "--prompt", "Lake Orrin lies in", "--top", "40"].into_iter();
    let document = json(&said.chain(edits).collect::<Vec<_>>());
    let tokens = document["results"][0]["top"].as_array().unwrap().iter();
    tokens.map(|token| (token["id"].as_u64().unwrap(), token["logit"].as_f64().unwrap())).collect()
}

#[track_caller]
fn same(a: &[(u64, f64)], b: &[(u64, f64)]) {
    let logit = |id: u64| b.iter().find(|(known, _)| *known == id).map(|(_, logit)| *logit);
    for (id, value) in &a[..10] {
        let other = logit(*id).unwrap_or_else(|| panic!("{id} is not in {b:?}"));
        assert!((other - value).abs() < 1e-4, "{id}: {value} {other}");
    }
}

/// `emend export` of saved edits writes what `emend apply --export` writes of the same stack.
#[test]
fn saved_edits_are_exported() {
    let place = TestFolder::new();
    let [one, two] = two_edits(&place);
    for (format, file) in [
        ("hf", "model.safetensors"),
        ("peft", "adapter_model.safetensors"),
        ("peft", "adapter_config.json"),
        ("gguf-lora", "adapter.gguf"),
    ] {
        let (now, later) = (place.path(&format!("now-{file}")), place.path(&format!("later-{file}")));
        let facts = place.write("facts.json", records().to_string());
        let archive = Trained::Gpt2Attention.archive();
        let apply = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--mode", "batch"];
        stdout(&run(&[&apply[..], &["--edit", text(&one), "--export", format, text(&now)]].concat()));
        let (gpt2, two) = (gpt2(), &two);
        let export = ["export", text(&one), text(two), "--model", text(&gpt2), "--format", format];
        let document = json(&[&export[..], &["--out", text(&later)]].concat());
        assert_eq!(document["format"], format);
        assert!(std::fs::read(now.join(file)).unwrap() == std::fs::read(later.join(file)).unwrap(), "{format}");
        // What is there stays as it is.
        refused(&[&export[..], &["--out", text(&later)]].concat(), 1, &[text(&later), "not empty"]);
    }
}

/// The embedded model is a GPT-2: its edits go out to all three.
#[test]
fn the_pocket_model_exports() {
    let place = TestFolder::new();
    let saved = place.path("oslo.safetensors");
    let out = |format: &str| place.path(format);
    let (hf, peft, gguf) = (out("hf"), out("peft"), out("gguf"));
    let exports = ["--export", "hf", text(&hf), "--export", "peft", text(&peft), "--export", "gguf-lora", text(&gguf)];
    let made = json(&[&POCKET[..], &exports, &["--save", text(&saved)]].concat());
    let formats: Vec<&Value> = made["exported"].as_array().unwrap().iter().map(|one| &one["format"]).collect();
    assert_eq!(formats, ["hf", "peft", "gguf-lora"]);
    assert!(std::fs::read(gguf.join("adapter.gguf")).unwrap().starts_with(b"GGUF\x03"));
    let said =
        stdout(&run(&["export", text(&saved), "--model", "pocket", "--format", "hf", "--out", text(&out("again"))]));
    assert!(said.contains("1 of 1 edits hold in the rounded weights"), "{said}");
}

#[test]
fn what_cannot_leave() {
    let place = TestFolder::new();
    let out = place.path("out");
    let export = |file: &Path, model: &str, format: &str| {
        ["export", text(file), "--model", model, "--format", format, "--out", text(&out)].map(str::to_owned)
    };
    let refuse = |file: &Path, model: &str, format: &str, words: &[&str]| {
        let args = export(file, model, format);
        refused(&args.each_ref().map(String::as_str), 1, words);
        assert!(!out.exists());
    };
    // An intervention, and a memory whose archive is gone: it is what it is.
    let steer = place.path("steer.safetensors");
    let scale = ["steer", "--model", "pocket", "--at", "2.block", "--scale", "0.5", "--save", text(&steer)];
    stdout(&run(&scale));
    for format in ["hf", "peft", "gguf-lora"] {
        refuse(&steer, "pocket", format, &["does more than change weights", "cannot be exported"]);
    }
    let (archive, memory) = (place.serac("archive", "0.0"), place.path("memory.safetensors"));
    stdout(&run(&edit(&archive, &["--memory", text(&memory)])));
    std::fs::remove_dir_all(&archive).unwrap();
    refuse(&memory, text(&gpt2()), "hf", &["is a memory", "cannot be exported"]);

    let weights = place.path("weights.safetensors");
    stdout(&run(&edit(&Trained::Gpt2.archive(), &["--save", text(&weights)])));
    refuse(&weights, "pocket", "peft", &["made on base", "weights.safetensors"]);
    refuse(&place.path("none.safetensors"), "pocket", "peft", &["none.safetensors"]);
    wrong_usage(&["export", "--model", "pocket", "--format", "peft", "--out", text(&out)], &["<EDIT>"]);
    wrong_usage(
        &["export", text(&weights), "--model", "pocket", "--format", "onnx", "--out", text(&out)],
        &["hf, peft, gguf-lora"],
    );

    // llama.cpp's names are known of some families; others are refused before anything is edited.
    let config = place.write(
        "ft.toml",
        "[model]\npath = \"pocket-t5\"\n[editor]\nmethod = \"fine_tuning\"\nlayers = [1]\nsteps = 2\nlearning_rate = 0.05\n",
    );
    let apply = ["apply", "--config", text(&config), "--prompt", "Lake Orrin lies in", "--target", "Tamm"];
    let words = ["family t5 is not known", "gpt2", "llama", "qwen2"];
    refused(&[&apply[..], &["--export", "gguf-lora", text(&out)]].concat(), 1, &words);
    let saved = place.path("t5.safetensors");
    stdout(&run(&[&apply[..], &["--save", text(&saved)]].concat()));
    refuse(&saved, "pocket-t5", "gguf-lora", &words);
}

/// An adapter of GPT-2 in a folder, with its base and the edit that it was made of.
struct Adapter {
    place: TestFolder,
    folder: PathBuf,
    saved: PathBuf,
}

impl Adapter {
    fn new() -> Self {
        let place = TestFolder::new();
        let (folder, saved) = (place.path("adapter"), place.path("saved.safetensors"));
        let archive = Trained::Gpt2Attention.archive();
        stdout(&run(&edit(&archive, &["--save", text(&saved), "--export", "peft", text(&folder)])));
        Adapter { place, folder, saved }
    }

    fn config(&self, change: impl Fn(&mut Value)) {
        let path = self.folder.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }

    fn tensors(&self) -> (PathBuf, TensorFile) {
        let path = self.folder.join("adapter_model.safetensors");
        let file = TensorFile::read(&path);
        (path, file)
    }

    fn import(&self, model: &Path, file: &Path) -> [String; 6] {
        ["import-lora", text(&self.folder), "--model", text(model), "--save", text(file)].map(str::to_owned)
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let file = self.place.path("refused.safetensors");
        refused(&self.import(&gpt2(), &file).each_ref().map(String::as_str), 1, words);
        assert!(!file.exists());
    }
}

/// An imported adapter is an edit like any other, though nothing was asked for: it answers as the edit that it was made of, and everything
/// that reads edits reads it.
#[test]
fn an_adapter_comes_in() {
    let adapter = Adapter::new();
    let (file, base) = (adapter.place.path("in.safetensors"), gpt2());
    let import = adapter.import(&base, &file);
    let said = stdout(&run(&import.each_ref().map(String::as_str)));
    assert!(said.contains("6 weights changed; it says that it was made on"), "{said}");
    same(&top(&base, &[&file]), &top(&base, &[&adapter.saved]));

    let seen = json(&["inspect", text(&file)]);
    assert_eq!(seen["provenance"]["method"], "imported-lora");
    assert_eq!(seen["provenance"]["settings"]["r"], seen["provenance"]["settings"]["lora_alpha"]);
    assert_eq!(seen["weights"].as_array().unwrap().len(), 6);
    assert!(stdout(&run(&["inspect", text(&file)])).contains("by imported-lora"));

    // With another edit on it, one file of both, and out again.
    let archive = Trained::Gpt2.archive();
    let above = adapter.place.path("above.safetensors");
    stdout(&run(&edit(&archive, &["--edit", text(&file), "--subject", "Orrin", "--save", text(&above)])));
    let both = adapter.place.path("both.safetensors");
    stdout(&run(&["squash", text(&file), text(&above), "--out", text(&both)]));
    same(&top(&base, &[&both]), &top(&base, &[&file, &above]));
    let out = adapter.place.path("out");
    let export = ["export", text(&file), "--model", text(&base), "--out", text(&out), "--format"];
    let said = stdout(&run(&[&export[..], &["hf"]].concat()));
    assert!(!said.contains("edits hold"), "{said}");
    same(&top(&out, &[]), &top(&base, &[&file]));
    refused(&["forget", text(&file), "0"], 1, &["is no memory"]);
    refused(&["import-lora", text(&adapter.folder), "--model", text(&base), "--save", text(&out)], 1, &["directory"]);
}

/// What PEFT itself scales: twice alpha is twice the change, by the root of the rank with `use_rslora`, and by a module's own pattern.
#[test]
fn an_adapter_is_scaled_as_its_config_says() {
    let adapter = Adapter::new();
    let base = gpt2();
    let norms = |name: &str| {
        let file = adapter.place.path(name);
        stdout(&run(&adapter.import(&base, &file).each_ref().map(String::as_str)));
        let seen = json(&["inspect", text(&file)]);
        let weights = seen["weights"].as_array().unwrap().iter();
        weights
            .map(|one| (one["weight"].as_str().unwrap().to_owned(), one["norm"].as_f64().unwrap()))
            .collect::<Vec<_>>()
    };
    let once = norms("once.safetensors");
    let rank = json(&["inspect", text(&adapter.place.path("once.safetensors"))])["provenance"]["settings"]["r"]
        .as_f64()
        .unwrap();
    let more = |name: &str, change: &dyn Fn(&mut Value), factor: &dyn Fn(&str) -> f64| {
        adapter.config(|config| change(config));
        for ((weight, one), (_, other)) in once.iter().zip(norms(name)) {
            assert!((other / one - factor(weight)).abs() < 1e-3, "{name} {weight}: {one} {other}");
        }
    };
    more("twice.safetensors", &|config| config["lora_alpha"] = value!(2.0 * rank), &|_| 2.0);
    more("root.safetensors", &|config| config["use_rslora"] = value!(true), &|_| 2.0 * rank.sqrt());
    more(
        "pattern.safetensors",
        &|config| {
            config["use_rslora"] = value!(false);
            config["alpha_pattern"] = value!({"mlp.c_proj": 3.0 * rank});
        },
        &|weight| if weight.ends_with("mlp.down") { 3.0 } else { 2.0 },
    );
}

#[test]
fn adapters_with_a_name_between_come_in() {
    let adapter = Adapter::new();
    let (path, mut file) = adapter.tensors();
    let named = |name: &str| name.replace(".weight", ".default.weight");
    file.tensors = std::mem::take(&mut file.tensors).into_iter().map(|(name, data)| (named(&name), data)).collect();
    file.write(&path);
    let saved = adapter.place.path("named.safetensors");
    stdout(&run(&adapter.import(&gpt2(), &saved).each_ref().map(String::as_str)));
    let first = file.tensors.keys().next().unwrap().clone();
    let tensor = file.tensors[&first].clone();
    file.tensors.insert(first.replace(".default.", ".other."), tensor);
    file.write(&path);
    adapter.refused(&["several adapters", "default", "other"]);
}

/// What is no LoRA adapter of this model, or more than one: each is named, and nothing is written.
#[test]
fn adapters_that_are_refused() {
    let adapter = Adapter::new();
    let (path, good) = adapter.tensors();
    let config = std::fs::read(adapter.folder.join("adapter_config.json")).unwrap();
    let restore = || std::fs::write(adapter.folder.join("adapter_config.json"), &config).unwrap();
    for (key, found, words) in [
        ("peft_type", value!("LOHA"), ["peft_type is \"LOHA\"", "only LORA"]),
        ("peft_type", value!(null), ["\"peft_type\" is missing", "no config of a PEFT adapter"]),
        ("use_dora", value!(true), ["use_dora", "DoRA"]),
        ("modules_to_save", value!(["lm_head"]), ["modules_to_save", "lm_head"]),
        ("bias", value!("all"), ["bias is \"all\"", "not read"]),
        ("lora_bias", value!(true), ["lora_bias", "biases"]),
        ("init_lora_weights", value!("pissa"), ["pissa", "changed base"]),
        ("layer_replication", value!([[0, 2]]), ["layer_replication", "another model"]),
        ("r", value!(5), ["its rank is 5", "lora_A"]),
        ("r", value!(0), ["its rank is 0", "lora_A"]),
        ("r", value!(-1), ["adapter_config.json: r", "-1"]),
        ("lora_alpha", value!("much"), ["lora_alpha", "much"]),
        ("lora_alpha", value!(1e300), ["not finite", "scaled"]),
        ("rank_pattern", value!({"mlp.c_proj": 7}), ["its rank is 7", "mlp.c_proj"]),
        ("rank_pattern", value!({"(q|k)_proj": 7}), ["rank_pattern", "(q|k)_proj"]),
        ("alpha_pattern", value!({"mlp.c_proj": "a"}), ["alpha_pattern", "mlp.c_proj"]),
    ] {
        adapter.config(|config| config[key] = found.clone());
        adapter.refused(&words);
        restore();
    }
    std::fs::write(adapter.folder.join("adapter_config.json"), "{").unwrap();
    adapter.refused(&["adapter_config.json", "not JSON"]);
    std::fs::remove_file(adapter.folder.join("adapter_config.json")).unwrap();
    adapter.refused(&["no adapter_config.json"]);
    restore();

    let first = good.tensors.keys().next().unwrap();
    let wrong = |file: TensorFile, words: &[&str]| {
        file.write(&path);
        adapter.refused(words);
    };
    wrong(good.clone().without(first), &["has no lora_A", "c_attn"]);
    wrong(good.clone().with_nan(first), &["not finite", first]);
    wrong(good.clone().zeros("base_model.model.transformer.wte.lora_embedding_A", &[1, 4]), &["lora_embedding_A"]);
    wrong(good.clone().zeros(first, &[4]), &["[4]", "a factor is a matrix"]);
    let rank = good.tensors[first].1[0];
    let strange = good.clone().zeros("base_model.model.lm_head.lora_A.weight", &[rank, 32]);
    let strange = strange.zeros("base_model.model.lm_head.lora_B.weight", &[64, rank]);
    wrong(strange, &["module \"lm_head\"", "none of this model's"]);
    let nothing =
        good.tensors.iter().fold(TensorFile::default(), |file, (name, (_, shape, _))| file.zeros(name, shape));
    wrong(nothing, &["changes nothing"]);
    good.write(&path);

    // Of another base: another width, or another family.
    let file = adapter.place.path("refused.safetensors");
    let llama = adapter.import(&fixture("llama-tiny"), &file);
    refused(&llama.each_ref().map(String::as_str), 1, &["none of this model's", "c_attn"]);
    let pocket = adapter.import(Path::new("pocket"), &file);
    refused(&pocket.each_ref().map(String::as_str), 1, &["c_attn", "[96,", "made for another model"]);

    // A pickle is named, not read.
    std::fs::rename(&path, adapter.folder.join("adapter_model.bin")).unwrap();
    adapter.refused(&["adapter_model.bin", "never read", "safe_serialization=True"]);
    std::fs::remove_file(adapter.folder.join("adapter_model.bin")).unwrap();
    adapter.refused(&["no adapter_model.safetensors"]);
    std::fs::remove_dir_all(&adapter.folder).unwrap();
    adapter.refused(&["no folder"]);
}
