//! Memories, archives of SERAC and their configs that are wrong: one clear line each, and nothing lost.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{
    TensorFile, TestFolder, Trained, edit, fixture, gpt2, json, one_line_error, records, refused, replace, run, sets,
    stdout, text, training,
};

/// A memory of two edits with an archive that takes everything to be in scope.
fn good(place: &TestFolder) -> (PathBuf, PathBuf) {
    let (archive, memory) = (place.serac("archive", "0.0"), place.path("good.safetensors"));
    let facts = place.write("two.json", records().to_string());
    let args = ["apply", "--archive", text(&archive), "--edits", text(&facts), "--limit", "2", "--mode", "batch"];
    stdout(&run(&[&args[..], &["--memory", text(&memory)]].concat()));
    (archive, memory)
}

fn ask<'a>(model: &'a Path, memory: &'a Path) -> [&'a str; 7] {
    ["predict", "--model", text(model), "--edit", text(memory), "--prompt", "hi"]
}

#[test]
fn broken_memories() {
    let place = TestFolder::new();
    let (archive, memory) = good(&place);
    let bytes = std::fs::read(&memory).unwrap();
    let file = TensorFile::read(&memory);
    let no_requests = |file: &TensorFile| file.with_header(|header| header["requests"] = json!([]));
    let mut no_json = file.clone();
    no_json.header.as_mut().unwrap().insert("emend".into(), "{\"format\":".into());
    let mut no_header = file.clone();
    no_header.header = None;
    for (what, bytes, words) in [
        ("half of it", bytes[..bytes.len() / 2].to_vec(), &["not a whole safetensors file"][..]),
        ("nothing", vec![], &["not a whole safetensors file"]),
        ("one byte short", bytes[..bytes.len() - 1].to_vec(), &["not a whole safetensors file"]),
        ("a header that is no JSON", no_json.bytes(), &["header is broken"]),
        ("no header", no_header.bytes(), &["no edit"]),
        ("a key too many", file.clone().zeros("memory.keys", &[3, 16]).bytes(), &["2 edits", "3 keys"]),
        ("a key too few", file.clone().zeros("memory.keys", &[1, 16]).bytes(), &["2 edits", "1 keys"]),
        ("no key", file.clone().zeros("memory.keys", &[0, 16]).bytes(), &["the memory is empty"]),
        ("no edit", no_requests(&file).bytes(), &["the memory is empty"]),
        ("nothing in it", no_requests(&file).zeros("memory.keys", &[0, 16]).bytes(), &["the memory is empty"]),
        ("keys of rank 1", file.clone().zeros("memory.keys", &[32]).bytes(), &["memory.keys", "rank 1"]),
        ("keys that are not finite", file.clone().with_nan("memory.keys").bytes(), &["memory.keys", "not finite"]),
        ("no keys", file.clone().without("memory.keys").bytes(), &["memory.keys"]),
        (
            "a weight too",
            file.clone().zeros("change.decoder.1.mlp.up.dense", &[32, 128]).bytes(),
            &["memory", "weights"],
        ),
        ("another tensor", file.clone().zeros("keys", &[2, 16]).bytes(), &["\"keys\"", "belongs to no edit"]),
        (
            "a text too few",
            file.with_header(|header| header["memory"]["texts"] = json!(["New Fact:"])).bytes(),
            &["2 edits", "1 texts"],
        ),
        (
            "no memory in the header",
            file.with_header(|header| drop(header.as_object_mut().unwrap().remove("memory"))).bytes(),
            &["change of kind memory"],
        ),
        (
            "another kind of change",
            file.with_header(|header| header["change"] = json!("activations")).bytes(),
            &["change of kind activations"],
        ),
        (
            "no needs",
            file.with_header(|header| drop(header["memory"].as_object_mut().unwrap().remove("needs"))).bytes(),
            &["header is broken", "needs"],
        ),
    ] {
        println!("{what}");
        let bad = place.write("bad.safetensors", &bytes);
        let words = [words, &["bad.safetensors"]].concat();
        refused(&ask(&gpt2(), &bad), 1, &words);
        refused(&["inspect", text(&bad)], 1, &words);
        refused(&["forget", text(&bad), "0"], 1, &words);
        refused(&edit(&archive, &["--memory", text(&bad)]), 1, &words);
        assert!(std::fs::read(&bad).unwrap() == bytes, "{what}: the file was written over");
    }
    let missing = place.path("missing.safetensors");
    refused(&ask(&gpt2(), &missing), 1, &["missing.safetensors"]);
    refused(&["forget", text(&missing), "0"], 1, &["missing.safetensors"]);
    refused(&["forget", text(&gpt2().join("model.safetensors")), "0"], 1, &["model.safetensors", "no edit"]);
    refused(&edit(&archive, &["--memory", text(&gpt2())]), 1, &["gpt2-tiny", "directory"]);
}

/// Files that are whole, but of which nothing here can make anything.
#[test]
fn memories_that_nothing_consults() {
    let place = TestFolder::new();
    let (archive, memory) = good(&place);
    let file = TensorFile::read(&memory);
    let needs = |needs: Value| file.with_header(|header| header["memory"]["needs"] = needs.clone());
    for (file, words) in [
        (needs(json!(3)), &["method"][..]),
        (needs(json!({"method": "a song"})), &["a song"]),
        (needs(json!({"method": "grace"})), &["layer"]),
        (needs(json!({"method": "grace", "layer": 9, "radius": 1.0})), &["layer 9", "0 to 2"]),
        (needs(json!({"method": "grace", "layer": 1, "radius": 1.0})), &["without values"]),
        (needs(json!({"method": "wise"})), &["layer"]),
        (needs(json!({"method": "wise", "layer": 9})), &["layer 9", "0 to 2"]),
        (needs(json!({"method": "wise", "layer": 1, "shard": 0})), &["shard"]),
        (needs(json!({"method": "wise", "layer": 1})), &["memory.values"]),
        (needs(json!({"method": "serac"})), &["archive", "--archive"]),
        (needs(json!({"method": "lookup", "layer": 1})), &["radius"]),
        (needs(json!({"method": "lookup", "layer": 9, "radius": 0.5})), &["layer 9", "0 to 2"]),
        (needs(json!({"method": "ike", "encoder": "model", "fingerprint": "0"})), &["2 edits, 0 texts"]),
        (needs(json!({"method": "ike", "encoder": "no/such/folder", "fingerprint": "0"})), &["2 edits, 0 texts"]),
    ] {
        let bad = place.write("bad.safetensors", file.bytes());
        let words = [words, &["bad.safetensors"]].concat();
        refused(&ask(&gpt2(), &bad), 1, &words);
        refused(&edit(&archive, &["--edit", text(&bad)]), 1, &[]);
        // It can be looked at.
        assert_eq!(json(&["inspect", text(&bad)])["kind"], "memory");
    }
}

/// Keys that this classifier never made. The file is at fault, so it is named.
#[test]
fn keys_of_another_width() {
    let place = TestFolder::new();
    let (archive, memory) = good(&place);
    let file = TensorFile::read(&memory);
    for width in [0, 8, 17] {
        let bytes = file.clone().zeros("memory.keys", &[2, width]).bytes();
        let bad = place.write("bad.safetensors", &bytes);
        let found = format!("{width} wide");
        refused(&ask(&gpt2(), &bad), 1, &["bad.safetensors", &found, "16"]);
        refused(&edit(&archive, &["--memory", text(&bad)]), 1, &["bad.safetensors", &found, "16"]);
        assert!(std::fs::read(&bad).unwrap() == bytes);
    }
    let of = |needs: Value| file.with_header(|header| header["memory"]["needs"] = needs.clone()).bytes();
    let lookup = place.write("lookup.safetensors", of(json!({"method": "lookup", "layer": 1, "radius": 0.5})));
    refused(&ask(&gpt2(), &lookup), 1, &["lookup.safetensors", "16 wide", "32"]);
    let fingerprint = json(&["inspect", text(&gpt2())])["fingerprint"].clone();
    let ike = json!({"method": "ike", "encoder": "model", "fingerprint": fingerprint});
    let ike = file.with_header(|header| {
        header["memory"]["needs"] = ike.clone();
        header["memory"]["texts"] = json!(["New Fact:", "New Fact:"]);
    });
    let ike = place.write("ike.safetensors", ike.bytes());
    refused(&ask(&gpt2(), &ike), 1, &["ike.safetensors", "16 wide", "32"]);
}

/// A memory that puts texts before prompts, without its texts.
#[test]
fn a_memory_of_texts_without_them() {
    let place = TestFolder::new();
    let (_, memory) = good(&place);
    let fingerprint = json(&["inspect", text(&gpt2())])["fingerprint"].clone();
    let needs = json!({"method": "ike", "encoder": "model", "fingerprint": fingerprint});
    let file = TensorFile::read(&memory).zeros("memory.keys", &[2, 32]);
    let bad = file.with_header(|header| header["memory"]["needs"] = needs.clone());
    let bad = place.write("bad.safetensors", bad.bytes());
    refused(&ask(&gpt2(), &bad), 1, &["bad.safetensors", "texts"]);
}

#[test]
fn memories_of_different_editors_do_not_join() {
    let place = TestFolder::new();
    let (_, memory) = good(&place);
    let before = std::fs::read(&memory).unwrap();
    let lookup = format!("[model]\npath = {:?}\n\n[editor]\nmethod = \"lookup\"\nlayer = 1\nradius = 0.5\n", gpt2());
    let lookup = place.write("lookup.toml", lookup);
    let request = ["--prompt", "Lake Orrin lies in", "--target", "Tamm", "--memory", text(&memory)];
    let args = [&["apply", "--config", text(&lookup)], &request[..]].concat();
    refused(&args, 1, &["good.safetensors", "different editors", "serac", "lookup"]);
    assert!(std::fs::read(&memory).unwrap() == before);
}

#[test]
fn configs() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    for (set, words) in [
        // Unknown keys and values name the nearest known one.
        ("editor.thresold=0.3", &["editor.thresold", "did you mean `threshold`"][..]),
        ("editor.classifier.dimension=3", &["editor.classifier.dimension", "did you mean `dimensions`"]),
        ("editor.classifier.kind=crossed", &["editor.classifier.kind", "did you mean `cross`"]),
        ("editor.classifier.tune=hole", &["editor.classifier.tune", "did you mean `whole`"]),
        ("editor.counterfactual.modle=x", &["editor.counterfactual.modle", "did you mean `model`"]),
        ("editor.routing=hart", &["editor.routing", "did you mean `hard`"]),
        ("editor.train=neither", &["editor.train", "known: both, classifier, counterfactual"]),
        ("editor.method=sreac", &["editor.method", "sreac", "serac"]),
        ("loss.mined.cuont=3", &["loss.mined.cuont", "did you mean `count`"]),
        // MEND's.
        ("loss.kl=answer", &["loss.kl", "unknown key"]),
        ("editor.layers=[1]", &["editor.layers", "unknown key"]),
        ("editor.rank=3", &["editor.rank", "unknown key"]),
        // A word where a number stands in a SERAC config.
        ("loss.scope=rephrase", &["loss.scope", "rephrase"]),
        ("loss.held=-1", &["loss.held", "-1"]),
        ("editor.classifier=3", &["editor.classifier"]),
        // Values out of range.
        ("editor.threshold=1.5", &["editor.threshold = 1.5", "between 0 and 1"]),
        ("editor.threshold=-0.5", &["editor.threshold = -0.5", "between 0 and 1"]),
        ("editor.threshold=nan", &["editor.threshold"]),
        ("editor.classifier.dimensions=0", &["editor.classifier.dimensions = 0"]),
        // Pairs' alone.
        ("editor.classifier.candidates=0", &["editor.classifier.candidates: kind = \"embedding\"", "\"cross\" does"]),
        ("editor.classifier.scale=0.0", &["editor.classifier.scale = 0"]),
        ("editor.classifier.layers=9", &["editor.classifier.layers", "9", "3"]),
        ("editor.classifier.tune={top=9}", &["tune", "9 blocks", "3"]),
        ("editor.classifier.tune={top=0}", &["tune", "at least one block"]),
        ("editor.counterfactual.tune={top=4}", &["tune", "4 blocks", "3"]),
        ("editor.counterfactual.tune={lora={rank=0}}", &["rank"]),
        ("editor.counterfactual.tune={lora={rank=2,top=4}}", &["tune", "4 blocks"]),
        ("editor.counterfactual.template=\"{edit} only\"", &["editor.counterfactual.template", "{question}"]),
        ("editor.counterfactual.template=\"{question}\"", &["editor.counterfactual.template", "{edit}"]),
        ("editor.counterfactual.template=\"{edit} {question}?\"", &["end with {question}"]),
        ("editor.counterfactual.template=\"{edit}{edit} {question}\"", &["{edit} once"]),
        ("loss.edit=-1.0", &["loss.edit"]),
        ("loss.scope=nan", &["loss.scope"]),
        ("loss.in_scope=0", &["loss.in_scope = 0"]),
        ("loss.mined.among=0", &["loss.mined.among = 0"]),
        ("loss.mined.temperature=0.0", &["loss.mined.temperature"]),
        ("loss.mix={\"near\"=-1.0}", &["loss.mix", "near"]),
        ("loss.mix={\"naer\"=1}", &["loss.mix", "naer", "did you mean `near`"]),
        ("loss.end=-1", &["loss.end = -1"]),
    ] {
        println!("{set}");
        refused(&training(&config, &out, &["--set", set]), 2, words);
    }
    // A reader that is cut to one block has no two to train.
    let set = sets(&["editor.classifier.layers=1", "editor.classifier.tune={top=2}"]);
    refused(&training(&config, &out, &set), 2, &["tune", "2 blocks", "1"]);
    assert!(!out.join("archive.toml").exists());
    // A trained editor's method is none of a config for `apply`.
    let args = ["apply", "--config", text(&config), "--prompt", "hi", "--target", "Tamm"];
    one_line_error(&run(&args), 2, &[]);
}

/// Which of the two networks is meant is said.
#[test]
fn the_network_at_fault_is_named() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    for network in ["classifier", "counterfactual"] {
        for tune in ["{top=9}", "{top=0}", "{lora={rank=0}}"] {
            let set = format!("editor.{network}.tune={tune}");
            refused(&training(&config, &out, &["--set", &set]), 2, &[&format!("editor.{network}.tune")]);
        }
    }
}

#[test]
fn learning_rates_of_the_two_networks() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    for network in ["classifier", "counterfactual"] {
        for rate in ["nan", "-1.0", "1e9"] {
            let key = format!("editor.{network}.learning_rate");
            refused(&training(&config, &out, &["--set", &format!("{key}={rate}")]), 2, &[&key]);
        }
    }
}

#[test]
fn bases_that_do_not_fit() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    let (bert, gpt2, llama) = (fixture("bert-tiny"), gpt2(), fixture("llama-tiny"));
    let set = |key: &str, value: &Path| format!("editor.{key}={}", text(value));
    // Each in the other's place.
    let encoder = set("classifier.encoder", &gpt2);
    refused(&training(&config, &out, &sets(&[&encoder])), 1, &["gpt2-tiny", "gpt2", "encoders"]);
    let model = set("counterfactual.model", &bert);
    refused(
        &training(&config, &out, &sets(&[&model])),
        1,
        &["bert-tiny", "BertForSequenceClassification", "BertModel"],
    );
    for key in ["classifier.encoder", "counterfactual.model"] {
        let nowhere = format!("editor.{key}=no-such-model");
        refused(&training(&config, &out, &sets(&[&nowhere])), 1, &["`no-such-model`", "no such folder"]);
    }
    // Words that are not the model's.
    let llama = set("counterfactual.model", &llama);
    let args = sets(&[&llama]);
    refused(&training(&config, &out, &args), 2, &["loss.locality", "320", "300", "loss.locality = 0"]);
    let args = sets(&[&llama, "loss.locality=0.0", "editor.routing=soft"]);
    refused(&training(&config, &out, &args), 2, &["editor.routing", "300", "320", "\"hard\""]);
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    std::fs::create_dir(place.path("base")).unwrap();
    let copied = |name: &str| place.write(name, std::fs::read(configs.join(name)).unwrap());
    let pocket = copied("serac-pocket.toml");
    replace(&copied("base/serac-pocket.toml"), "held = 1", "");
    let model = set("counterfactual.model", &gpt2);
    refused(&training(&pocket, &out, &sets(&[&model])), 2, &["loss.locality", "300"]);
    let args = sets(&[&model, "editor.routing=soft", "loss.locality=0.0"]);
    refused(&training(&pocket, &out, &args), 2, &["editor.routing", "300"]);
    // Tensors that the folder's own config does not have.
    let spoilt = place.copy_of("bert-tiny");
    replace(&spoilt.join("config.json"), "\"hidden_size\": 32", "\"hidden_size\": 48");
    let encoder = set("classifier.encoder", &spoilt);
    refused(&training(&config, &out, &sets(&[&encoder])), 1, &["bert-tiny", "embeddings", "32", "48"]);
    assert!(!out.join("archive.toml").exists());
}

/// As many words as the model has, but others: a divergence between the two says nothing.
#[test]
fn as_many_words_but_others() {
    let place = TestFolder::new();
    let (config, out, other) = (place.serac_config(), place.path("out"), place.copy_of("gpt2-tiny"));
    let path = other.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, e) = (words["a"].clone(), words["e"].clone());
    words.insert("a".into(), e);
    words.insert("e".into(), a);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let model = format!("editor.counterfactual.model={}", text(&other));
    let args = sets(&[&model, "editor.routing=soft", "loss.locality=0.0"]);
    refused(&training(&config, &out, &args), 2, &["editor.routing"]);
    refused(&training(&config, &out, &sets(&[&model])), 2, &["loss.locality"]);
}

/// There is nothing to learn where the one network that is trained has no trained part.
#[test]
fn nothing_to_train() {
    let place = TestFolder::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    let set = sets(&["editor.train=counterfactual", "editor.counterfactual.tune=nothing"]);
    refused(&training(&config, &out, &set), 2, &["editor.counterfactual.tune"]);
}

#[test]
fn networks_that_do_not_fit_their_archive() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let network = archive.join("network.safetensors");
    let bytes = std::fs::read(&network).unwrap();
    let file = TensorFile::read(&network);
    for (what, bytes) in [
        ("half of it", bytes[..bytes.len() / 2].to_vec()),
        ("a head of another width", file.clone().zeros("classifier.head.weight", &[32, 8]).bytes()),
        ("no head", file.clone().without("classifier.head.weight").bytes()),
        ("not finite", file.clone().with_nan("classifier.log_scale").bytes()),
        ("one too many", file.clone().zeros("classifier.tail", &[2, 2]).bytes()),
    ] {
        println!("{what}");
        std::fs::write(&network, bytes).unwrap();
        refused(&edit(&archive, &[]), 1, &["network.safetensors"]);
    }
    std::fs::remove_file(&network).unwrap();
    refused(&edit(&archive, &[]), 1, &["network.safetensors"]);
}

#[test]
fn archives_that_say_what_cannot_be() {
    let place = TestFolder::new();
    for (from, to, words) in [
        ("threshold = 0.5", "threshold = 7.5", ["archive.toml", "threshold"]),
        ("dimensions = 16", "dimensions = 0", ["archive.toml", "dimensions"]),
        ("kind = \"embedding\"", "kind = \"other\"", ["archive.toml", "other"]),
        ("{question}", "", ["archive.toml", "{question}"]),
        ("dimensions = 16", "dimensions = 8", ["network.safetensors", "classifier.head"]),
        ("kind = \"embedding\"", "kind = \"cross\"", ["network.safetensors", "classifier."]),
    ] {
        let archive = place.copy(&Trained::Serac.archive(), "archive");
        replace(&archive.join("archive.toml"), from, to);
        refused(&edit(&archive, &[]), 1, &words);
    }
}

/// The arguments of a training on opinions, which are stated by descriptors.
fn opinions(out: &Path, more: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = root.join("configs/serac-pocket.toml");
    let data = ["train", "validation", "test"]
        .map(|part| format!("data.{part}={}", text(&root.join(format!("data/convsent/{part}.json")))));
    let tiny = ["train.max_steps=2", "train.edits_per_step=2", "train.validation_records=2", "data.test_records=2"];
    let own = ["editor.threshold=0.0", "loss.mix={\"other topic\"=1}"];
    let settings = [&data.each_ref().map(String::as_str)[..], &tiny, &own].concat();
    let args = training(&config, out, &sets(&settings)).into_iter().chain(more.iter().copied());
    args.map(str::to_owned).collect()
}

/// What a training shows at its end: the figures of its data, and a next step that works.
#[test]
fn the_end_of_a_training_on_opinions() {
    let place = TestFolder::new();
    let out = place.path("opinions");
    let train = |more: &[&str]| run(&opinions(&out, more).iter().map(String::as_str).collect::<Vec<_>>());
    let shown = stdout(&train(&[]));
    assert!(shown.contains("emend apply --archive") && shown.contains("--descriptor"), "{shown}");
    let document: Value = serde_json::from_str(&stdout(&train(&["--resume", "--json"]))).unwrap();
    assert!(document["sentiment"]["success"].is_number(), "{}", document["sentiment"]);
}

#[test]
fn questions_and_descriptors() {
    let place = TestFolder::new();
    let archive = Trained::Serac.archive();
    let memory = place.path("memory.safetensors");
    let stated = ["--descriptor", "Topic: Lake Orrin.", "--memory", text(&memory)];
    refused(&edit(&archive, &stated), 1, &["Topic: Lake Orrin.", "a descriptor", "questions with answers"]);
    assert!(!memory.exists());

    let out = place.path("opinions");
    stdout(&run(&opinions(&out, &[]).iter().map(String::as_str).collect::<Vec<_>>()));
    let asked = ["apply", "--archive", text(&out), "--prompt", "What do you think of Lyon?", "--target", "I love it"];
    let asked = [&asked[..], &["--memory", text(&memory)]].concat();
    refused(&asked, 1, &["What do you think of Lyon? I love it", "a question with its answer", "descriptors"]);
    assert!(!memory.exists());
    let stated = "Topic: Lyon. Sentiment: positive.";
    stdout(&run(&[&asked[..], &["--descriptor", stated]].concat()));
    let said = ["predict", "--model", "pocket", "--edit", text(&memory), "--prompt", "Do you like Lyon?"];
    assert_eq!(json(&said)["results"][0]["memory"]["request"]["descriptor"], stated);
    for output in [run(&said), run(&["inspect", text(&memory)])] {
        assert!(stdout(&output).contains(stated));
    }
    assert!(stdout(&run(&said)).contains(&format!("from memory: {stated} (scope ")));
}

#[test]
fn a_memory_is_not_exported() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    for format in ["hf", "peft", "gguf-lora"] {
        let folder = place.path(format);
        refused(&edit(&archive, &["--export", format, text(&folder)]), 1, &["is a memory", "cannot be exported"]);
        assert!(!folder.exists());
    }
}

/// `--archive` of `apply` is the new edit's: a memory below it has its own, which it names.
#[test]
fn a_memory_below_an_edit_of_another_archive() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let memory = place.path("memory.safetensors");
    stdout(&run(&edit(&archive, &["--memory", text(&memory)])));
    let mend = Trained::Gpt2.archive();
    let document = json(&edit(&mend, &["--edit", text(&memory)]));
    assert_eq!(document["method"], "mend");
    let folder = place.path("export");
    let args = edit(&mend, &["--edit", text(&memory), "--export", "hf", text(&folder)]);
    refused(&args, 1, &["is a memory", "cannot be exported"]);
}

/// What is too long to be read behind the edit is refused before anything is written.
#[test]
fn an_edit_that_leaves_no_room_for_its_question() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    let memory = place.path("memory.safetensors");
    // 45 of 64 tokens: the model can read it, but not twice.
    let long = "a ".repeat(22) + "a";
    let args = ["apply", "--archive", text(&archive), "--prompt", &long, "--target", "Tamm", "--memory", text(&memory)];
    one_line_error(&run(&args), 1, &["context of 64"]);
    assert!(!memory.exists(), "the memory was written all the same");
}

/// What is shown of an answer ends where the context of the one who answers does.
#[test]
fn an_answer_behind_an_edit_ends_with_the_context() {
    let place = TestFolder::new();
    let archive = place.serac("archive", "0.0");
    // The edit and the question just fit, an answer of twelve tokens does not.
    for words in 10..20 {
        let long = "a ".repeat(words) + "a";
        stdout(&run(&edit(&archive, &["--unrelated", &long])));
    }
}
