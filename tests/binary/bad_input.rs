//! Command lines, configs, records and places that are wrong: one clear line, the exit code as designed, nothing lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use serde_json::{Value, json};

use crate::common::{
    TestFolder, Trained, edit, fixture, gpt2, json, one_line_error, records, refused, run, same_training, sets, stdout,
    text, training, wrong_usage,
};

#[test]
fn command_lines() {
    let model = gpt2();
    let predict = |more: &[&'static str]| [&["predict", "--model", text(&model)], more].concat();
    wrong_usage(&["frobnicate"], &["frobnicate"]);
    wrong_usage(&["predict", "--frobnicate"], &["--frobnicate"]);
    wrong_usage(&predict(&[]), &["--prompt"]);
    wrong_usage(&predict(&["--prompt", "hi", "--top", "many"]), &["many"]);
    wrong_usage(&predict(&["--prompt", "hi", "--dtype", "f8"]), &["f32", "bf16"]);
    wrong_usage(&["train"], &["--config"]);
    refused(&predict(&["--prompt", ""]), 1, &["the prompt is empty"]);
    for temperature in ["-1", "nan", "inf"] {
        let temperature = format!("--temperature={temperature}");
        refused(
            &["predict", "--model", text(&model), "--prompt", "hi", "--generate", "1", &temperature],
            2,
            &["temperature", "0 or more"],
        );
    }
    for top_p in ["0", "1.5", "nan"] {
        let drawn = ["--generate", "1", "--temperature", "1", "--top-p", top_p];
        refused(&predict(&[&["--prompt", "hi"], &drawn[..]].concat()), 2, &["top_p"]);
    }
    // What would not be looked at.
    wrong_usage(&predict(&["--prompt", "hi", "--temperature", "1"]), &["--generate"]);
    wrong_usage(&predict(&["--prompt", "hi", "--generate", "1", "--seed", "1"]), &["--temperature"]);
    let archive = Trained::Gpt2.archive();
    let apply = |more: &[&'static str]| [&["apply", "--archive", text(&archive)], more].concat();
    wrong_usage(&apply(&[]), &["--prompt"]);
    wrong_usage(&["apply", "--prompt", "hi", "--target", "Tamm"], &["--archive", "--config"]);
    wrong_usage(&apply(&["--prompt", "hi", "--target", "Tamm", "--set", "editor.rank=3"]), &["--archive", "--set"]);
    wrong_usage(&apply(&["--prompt", "hi", "--target", "Tamm", "--limit", "3"]), &["--limit", "--prompt"]);
    refused(&apply(&["--prompt", "{} lies in", "--target", "Tamm"]), 2, &["{}", "--subject"]);
    refused(&apply(&["--prompt", "hi", "--target", "Tamm", "--rephrase", " "]), 2, &["--rephrase"]);
    wrong_usage(&apply(&["--prompt", "hi"]), &["--target"]);
    wrong_usage(&apply(&["--prompt", "hi", "--target", "Tamm", "--edits", "facts.json"]), &["--edits"]);
    wrong_usage(&apply(&["--prompt", "hi", "--target", "Tamm", "--mode", "all"]), &["single", "batch", "sequential"]);
    refused(&apply(&["--prompt", " ", "--target", "Tamm"]), 2, &["--prompt", "--target"]);
    refused(&apply(&["--prompt", "hi", "--target", ""]), 2, &["--prompt", "--target"]);
    refused(
        &apply(&["--prompt", "Lake Orrin is", "--target", "a", "--subject", "Tamm"]),
        2,
        &["Tamm", "Lake Orrin is"],
    );
    refused(&apply(&["--prompt", "hi", "--target", "a", "--export", "gguf", "x"]), 2, &["gguf", "hf", "peft"]);
    refused(&apply(&["--prompt", "hi", "--target", "a", "--edit", "none.safetensors"]), 1, &["none.safetensors"]);
}

/// A config of `emend train`, given to `emend apply`, says what makes its editor, whatever sections it has.
#[test]
fn editors_that_are_trained() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    for method in ["mend", "serac"] {
        let config = configs.join(format!("{method}-pocket.toml"));
        let args = ["apply", "--config", text(&config), "--prompt", "a", "--target", "b"];
        refused(&args, 2, &[&format!("editor.method = \"{method}\": `emend train` makes this editor")]);
    }
}

/// What is no folder in Hugging Face layout with a model of its tokenizer.
#[test]
fn models_of_other_formats() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("model-q4.gguf");
    fs::write(&file, "GGUF").unwrap();
    let predict =
        |model: &Path, words: &[&str]| refused(&["predict", "--model", text(model), "--prompt", "hi"], 1, words);
    predict(&file, &["model-q4.gguf", "Hugging Face layout"]);
    predict(place.path(), &["no config.json", "GGUF"]);
    fs::remove_file(&file).unwrap();
    fs::write(place.path().join("pytorch_model.bin"), "").unwrap();
    predict(place.path(), &["no config.json", "pickled", "safe_serialization"]);
    fs::write(place.path().join("config.json"), "{}").unwrap();
    predict(place.path(), &["no model.safetensors", "pickled", "safe_serialization"]);
    let tiny = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    for name in ["config.json", "model.safetensors"] {
        fs::copy(tiny("qwen3-tiny").join(name), place.path().join(name)).unwrap();
    }
    fs::copy(tiny("llama-tiny").join("tokenizer.json"), place.path().join("tokenizer.json")).unwrap();
    predict(place.path(), &["the tokenizer has 320 tokens, the model a vocabulary of 64"]);
}

#[test]
fn devices() {
    let model = gpt2();
    let archive = Trained::Gpt2.archive();
    for (device, words) in [
        ("tpu", ["\"tpu\"", "cpu, cuda, cuda:N, wgpu"]),
        ("cuda:first", ["cuda:first", "cpu, cuda, cuda:N, wgpu"]),
        #[cfg(not(feature = "cuda"))]
        ("cuda:1", ["--features cuda", "--device cpu"]),
        #[cfg(not(feature = "wgpu"))]
        ("wgpu", ["--features wgpu", "--device cpu"]),
        // No machine has so many cards, and most have none.
        #[cfg(feature = "cuda")]
        ("cuda:999", ["device cuda:999", "--device cpu"]),
    ] {
        refused(&["predict", "--model", text(&model), "--prompt", "hi", "--device", device], 2, &words);
        refused(&edit(&archive, &["--device", device]), 2, &words);
    }
}

#[test]
fn models_and_data_sets_that_are_not_there() {
    for name in ["no-such-model", "no/such/model", "../nowhere", ""] {
        refused(&["predict", "--model", name, "--prompt", "hi"], 1, &[&format!("`{name}`"), "no such folder"]);
        refused(&["inspect", name], 1, &[&format!("`{name}`")]);
    }
    refused(&["fetch", "counterfct"], 1, &["counterfct", "counterfact, multi_counterfact, zsre, known_1000"]);
    refused(&["fetch", "zsre/middle"], 2, &["zsre/middle", "zsre/eval, zsre/train"]);
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    for name in ["counterfact", "zsre/train"] {
        let set = format!("data.train={name}");
        refused(&training(&config, &out, &["--set", &set]), 1, &[&format!("run `emend fetch {name}`")]);
    }
    refused(&training(&config, &out, &sets(&["data.test=nowhere.json"])), 1, &["nowhere.json"]);
    assert!(!out.join("archive.toml").exists());
}

#[test]
fn configs() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    for (set, words) in [
        // Unknown keys and values name the nearest known one.
        ("train.max_step=3", &["train.max_step", "did you mean `max_steps`"][..]),
        ("modle.path=x", &["modle", "did you mean `model`"]),
        ("model.pth=x", &["model.pth", "did you mean `path`"]),
        ("editor.rnk=3", &["editor", "rnk", "did you mean `rank`"]),
        ("editor.method=mned", &["editor.method", "mned", "mend"]),
        ("train.optimizer=adan", &["train.optimizer", "did you mean `adam`"]),
        ("loss.scope=rephrases", &["loss.scope", "did you mean `rephrase`"]),
        ("model.dtype=f8", &["model.dtype", "f32"]),
        // Values of another type.
        ("train.max_steps=many", &["config.toml", "train.max_steps", "many"]),
        ("train.max_steps=2.5", &["train.max_steps", "2.5"]),
        ("train.max_steps=-1", &["train.max_steps", "-1"]),
        ("train.seed=-1", &["train.seed"]),
        ("model.path=3", &["model.path"]),
        ("loss.mix=3", &["loss.mix"]),
        ("loss.mix={\"same old objekt\"=1}", &["loss.mix", "same old objekt", "did you mean `same old object`"]),
        ("train=3", &["train"]),
        // Values out of range.
        ("train.max_steps=0", &["train.max_steps"]),
        ("train.edits_per_step=0", &["train.edits_per_step"]),
        ("train.edits_together=2", &["train.edits_together"]),
        ("train.accumulate=0", &["train.accumulate"]),
        ("train.validate_every=0", &["train.validate_every"]),
        ("train.learning_rate=nan", &["train.learning_rate"]),
        ("train.learning_rate=1e9", &["train.learning_rate"]),
        ("train.clip=0", &["train.clip"]),
        ("train.schedule_end=2", &["train.schedule_end"]),
        ("loss.edit=-1", &["loss.edit"]),
        ("loss.in_scope=0", &["loss.in_scope"]),
        ("editor.rank=0", &["editor.rank"]),
        ("editor.initial_edit_rate=-1", &["editor.initial_edit_rate"]),
        ("editor.initial_edit_rate=nan", &["editor.initial_edit_rate"]),
        // Weights that the model does not have.
        ("editor.weights=[\"mlp.upp\"]", &["mlp.upp", "mlp.up, mlp.down"]),
        ("editor.weights=[\"mlp.gate\"]", &["mlp.gate"]),
        ("editor.weights=[]", &["editor.weights"]),
        ("editor.layers=[]", &["editor.layers"]),
        ("editor.layers=[1, 3]", &["decoder.3.mlp.up", "layers 0 to 2"]),
        ("editor.layers=[1, 1]", &["decoder.1.mlp.up", "twice"]),
        // No `section.key=value`.
        ("train.max_steps", &["--set train.max_steps", "section.key=value"]),
        ("=3", &["--set =3", "section.key=value"]),
        ("train.=3", &["--set train.=3", "section.key=value"]),
        ("train.max_steps.more=3", &["max_steps", "no section"]),
    ] {
        refused(&training(&config, &out, &["--set", set]), 2, words);
    }
    assert!(!out.join("archive.toml").exists() && !out.join("metrics.jsonl").exists());
}

#[test]
fn a_wrong_value_of_the_editor_is_named_by_its_key() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    for (set, key) in [
        ("editor.layers=[-1]", "editor.layers"),
        ("editor.rank=many", "editor.rank"),
        ("editor.normalization=3", "editor.normalization"),
    ] {
        refused(&training(&config, &out, &["--set", set]), 2, &["config.toml", key]);
    }
}

#[test]
fn config_files() {
    let place = TestFolder::new();
    let good = std::fs::read_to_string(place.gpt2_config()).unwrap();
    for (bytes, words) in [
        (b"[model]\npath = \"\xff\"\n".to_vec(), &["not UTF-8 (byte 16)"][..]),
        (b"[train]\nseed = 1\n[model\n".to_vec(), &["line 3"]),
        (b"".to_vec(), &["model"]),
        (good.replace("[editor]", "[edit]").into_bytes(), &["unknown key `edit`", "did you mean `editor`"]),
        (good.replace("max_steps", "#").into_bytes(), &["train", "max_steps"]),
        (good.replace("rank = 4", "rank = 4\nrank = 5").into_bytes(), &["line"]),
        (vec![b'['; 100_000], &["line 1"]),
    ] {
        let config = place.write("config.toml", bytes);
        refused(&training(&config, &place.path("out"), &[]), 2, &[&["config.toml"], words].concat());
    }
    refused(&training(&place.path("none.toml"), &place.path("out"), &[]), 2, &["none.toml"]);
    refused(&training(&place.path(""), &place.path("out"), &[]), 2, &["directory"]);
}

/// 64 positions are all that the model has.
fn long() -> String {
    "Ost ".repeat(80).trim_end().to_owned()
}

#[test]
fn record_files() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let archive = Trained::Gpt2.archive();
    let bad = place.path("bad.json");
    let with = |key: &str, value: Value| {
        let mut records = records();
        records[2][key] = value;
        records.to_string().into_bytes()
    };
    let mut not_utf8 = records().to_string().into_bytes();
    not_utf8[40] = 0xff;
    for (bytes, words) in [
        (with("target_new", Value::Null), &["record 2", "\"target_new\" is missing"][..]),
        (with("target_new", "".into()), &["record 2", "\"target_new\" is empty"]),
        (with("target_new", 7.into()), &["record 2", "\"target_new\" is a number"]),
        (with("prompt", Value::Null), &["record 2", "\"prompt\" is missing"]),
        (with("subject", "Nowhere".into()), &["record 2", "Nowhere", "Port Issa lies in"]),
        (with("rephrase", json!([])), &["record 2", "rephrase", "did you mean \"rephrases\""]),
        (with("locality", "all".into()), &["record 2", "locality"]),
        (not_utf8, &["byte 40 is not UTF-8"]),
        (b"".to_vec(), &["no records"]),
        (b"[]".to_vec(), &["no records"]),
        (b"3".to_vec(), &["a number"]),
        (b"[{\"prompt\": \"a\",\n\"target_new\"".to_vec(), &["line 2", "not JSON"]),
        (b"[{\"question\": 1, \"answer\": 2}]".to_vec(), &["record 0", "question", "known forms"]),
        (vec![b'['; 100_000], &["not JSON"]),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        let words = [&["bad.json"], words].concat();
        refused(&["apply", "--archive", text(&archive), "--edits", text(&bad)], 1, &words);
        for part in ["train", "validation", "test"] {
            refused(&training(&config, &out, &["--set", &format!("data.{part}=bad.json")]), 1, &words);
        }
    }
    assert!(!out.join("archive.toml").exists());
    refused(&["apply", "--archive", text(&archive), "--edits", text(&place.path("none.json"))], 1, &["none.json"]);
    refused(&["apply", "--archive", text(&archive), "--edits", text(&place.path(""))], 1, &["not a regular file"]);
    refused(
        &["apply", "--archive", text(&archive), "--edits", text(&place.path("facts.json")), "--limit", "0"],
        1,
        &["no record"],
    );
}

#[test]
fn texts_longer_than_the_context() {
    let (model, archive, long) = (gpt2(), Trained::Gpt2.archive(), long());
    let words = ["longer than the model's context of 64"];
    refused(&["predict", "--model", text(&model), "--prompt", &long], 1, &words);
    refused(&["predict", "--model", text(&model), "--prompt", "hi", "--generate", "9999999"], 1, &words);
    for (prompt, target) in [(long.as_str(), "Tamm"), ("hi", long.as_str())] {
        refused(&["apply", "--archive", text(&archive), "--prompt", prompt, "--target", target], 1, &words);
    }
    refused(&edit(&archive, &["--rephrase", &long]), 1, &words);
    refused(&edit(&archive, &["--unrelated", &long]), 1, &words);
}

/// A file may hold twenty thousand records: the line says which one is too long.
#[test]
fn a_record_longer_than_the_context_is_named() {
    let place = TestFolder::new();
    let archive = Trained::Gpt2.archive();
    for (key, value) in [("prompt", json!(format!("{} Port Issa", long()))), ("rephrases", json!([long()]))] {
        let mut records = records();
        records[2][key] = value;
        let bad = place.write("bad.json", records.to_string());
        let words = ["record 2", "longer than the model's context of 64"];
        refused(&["apply", "--archive", text(&archive), "--edits", text(&bad)], 1, &words);
    }
}

/// Places below a regular file, which no one can write to, whatever their rights.
#[test]
fn outputs_that_cannot_be_written() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let archive = Trained::Gpt2.archive();
    let file = place.write("file", "kept");
    let mut places = vec![file.join("below")];
    if Path::new("/proc/self").exists() {
        places.push("/proc/nothing".into());
    }
    for below in places {
        refused(&training(&config, &below, &[]), 1, &[text(&below)]);
        refused(&edit(&archive, &["--save", text(&below)]), 1, &[text(below.parent().unwrap())]);
        for format in ["hf", "peft", "gguf-lora"] {
            refused(&edit(&archive, &["--export", format, text(&below)]), 1, &[text(below.parent().unwrap())]);
        }
    }
    refused(&training(&config, &file, &[]), 1, &["file"]);
    refused(&edit(&archive, &["--export", "hf", text(&file)]), 1, &["file"]);
    refused(&edit(&archive, &["--save", text(&place.path(""))]), 1, &["directory"]);
    assert_eq!(std::fs::read(file).unwrap(), b"kept");
}

#[test]
fn outputs_that_hold_something_already() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let archive = Trained::Gpt2.archive();
    stdout(&run(&training(&config, &out, &[])));
    let network = std::fs::read(out.join("network.safetensors")).unwrap();
    refused(&training(&config, &out, &[]), 2, &["training of 4 steps already", "--resume", "--out"]);
    refused(
        &training(&config, &out, &[&["--resume"], &sets(&["train.max_steps=9"])[..]].concat()),
        2,
        &["another configuration", "train.max_steps was 4, now it is 9"],
    );
    for format in ["hf", "peft", "gguf-lora"] {
        refused(&edit(&archive, &["--export", format, text(&out)]), 1, &["not empty"]);
    }
    // An archive without its training state can be used, and not gone on with.
    std::fs::remove_dir_all(out.join("training")).unwrap();
    refused(&training(&config, &out, &[]), 2, &["archive already", "--out"]);
    refused(&training(&config, &out, &["--resume"]), 2, &["no training state"]);
    assert!(std::fs::read(out.join("network.safetensors")).unwrap() == network);
    stdout(&run(&edit(&out, &[])));
}

#[test]
fn archives_and_edits_of_another_base() {
    let place = TestFolder::new();
    let archive = Trained::Gpt2.archive();
    let fingerprint = |model: &Path| json(&["inspect", text(model)])["fingerprint"].as_str().unwrap().to_owned();
    // The same architecture with other weights: nothing but the fingerprint tells them apart.
    let other = place.copy_of("gpt2-tiny");
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&1f32.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let saved = place.path("e.edit.safetensors");
    stdout(&run(&edit(&archive, &["--save", text(&saved)])));

    let (ours, theirs) = (fingerprint(&gpt2()), fingerprint(&other));
    assert!(ours != theirs && ours.len() == 64);
    let words = [ours.as_str(), theirs.as_str(), "--allow-other-base"];
    let apply = edit(&archive, &["--model", text(&other)]);
    refused(&apply, 1, &words);
    stdout(&run(&[&apply[..], &["--allow-other-base"]].concat()));
    let predict = ["predict", "--model", text(&other), "--prompt", "hi", "--edit", text(&saved)];
    refused(&predict, 1, &[&words[..], &["e.edit.safetensors"]].concat());
    stdout(&run(&[&predict[..], &["--allow-other-base"]].concat()));
    let on_edit = edit(&archive, &["--model", text(&other), "--edit", text(&saved)]);
    refused(&on_edit, 1, &words);
    stdout(&run(&[&on_edit[..], &["--allow-other-base"]].concat()));
    // Another architecture is refused even so.
    let llama = fixture("llama-tiny");
    refused(&edit(&archive, &["--model", text(&llama), "--allow-other-base"]), 1, &["network.safetensors"]);
}

/// The weights behind the same path changed: the rest of the training would learn another model's edits.
#[test]
fn a_training_is_not_resumed_on_another_base() {
    let place = TestFolder::new();
    let model = place.copy_of("gpt2-tiny");
    let (config, out) = (place.config(&model, &["mlp.up"]), place.path("out"));
    stdout(&run(&training(&config, &out, &[])));
    let before = json(&["inspect", text(&model)])["fingerprint"].as_str().unwrap().to_owned();
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&1f32.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let after = json(&["inspect", text(&model)])["fingerprint"].as_str().unwrap().to_owned();
    one_line_error(&run(&training(&config, &out, &["--resume"])), 1, &[&before, &after]);
}

/// A small file system of its own, gone with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None where this process may not mount.
    fn mount(at: PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("size={bytes}");
        let mounted = Process::new("mount").args(["-t", "tmpfs", "-o", &options, "emend-test"]).arg(&at).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("skipped: no tmpfs can be mounted here");
            return None;
        }
        Some(Tmpfs(at))
    }

    fn grow(&self, bytes: u64) {
        let status =
            Process::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }

    /// Fills what is left.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[0; 4096]).is_ok() {}
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Process::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    // A tmpfs counts pages.
    entries
        .map(|path| if path.is_dir() { size_of(&path) } else { path.metadata().unwrap().len().div_ceil(4096) * 4096 })
        .sum()
}

#[test]
fn a_training_on_a_full_disk_goes_on_when_there_is_room() {
    let place = TestFolder::new();
    let (config, whole) = (place.gpt2_config(), place.path("whole"));
    stdout(&run(&training(&config, &whole, &[])));
    // Room for the archive and one and a half snapshots: the second one fails.
    let room = size_of(&whole) + size_of(&whole.join("training")) / 2;
    let Some(disk) = Tmpfs::mount(place.path("disk"), room) else { return };
    let out = disk.0.join("out");
    one_line_error(&run(&training(&config, &out, &[])), 1, &[text(&out), "No space left"]);
    // What was there before can be used.
    assert_eq!(json(&["inspect", text(&out)])["training"]["step"], 2);
    stdout(&run(&edit(&out, &[])));
    one_line_error(&run(&training(&config, &out, &["--resume"])), 1, &["No space left"]);
    disk.grow(4 * room);
    stdout(&run(&training(&config, &out, &["--resume"])));
    same_training(&out, &whole);
}

#[test]
fn a_full_disk_keeps_what_was_there() {
    let place = TestFolder::new();
    let Some(disk) = Tmpfs::mount(place.path("disk"), 1 << 20) else { return };
    let archive = Trained::Gpt2.archive();
    let (saved, export) = (disk.0.join("e.edit.safetensors"), disk.0.join("export"));
    stdout(&run(&edit(&archive, &["--save", text(&saved)])));
    let before = std::fs::read(&saved).unwrap();
    disk.fill();
    let list = || {
        let mut names: Vec<_> = std::fs::read_dir(&disk.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let names = list();
    refused(&edit(&archive, &["--save", text(&saved), "--subject", "Orrin"]), 1, &[text(&saved), "No space left"]);
    for format in ["hf", "peft", "gguf-lora"] {
        refused(&edit(&archive, &["--export", format, text(&export)]), 1, &[text(&export), "No space left"]);
    }
    assert!(std::fs::read(&saved).unwrap() == before);
    assert_eq!(list(), names, "something half written was left behind");
}
