//! A classifier through the binary: claims are edited, and what comes in as facts or questions is put to it as claims.

use serde_json::Value;

use crate::common::{TestFolder, fixture, json, refused, run, sets, stdout, text, training};

const CLAIM: [&str; 2] = ["--prompt", "the lake lies north of the town"];

fn model() -> std::path::PathBuf {
    fixture("bert-classifier-tiny")
}

fn top(result: &Value) -> (String, f64) {
    let first = &result["results"][0]["top"][0];
    (first["token"].as_str().unwrap().to_owned(), first["probability"].as_f64().unwrap())
}

#[test]
fn what_is_no_label_is_said() {
    let (place, model) = (TestFolder::new(), model());
    let config = place.write(
        "ft.toml",
        format!(
            "[model]\npath = {:?}\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [1]\nweights = [\"encoder.mlp.up\"]\nsteps = 2\n\
             learning_rate = 1e-3\n",
            text(&model)
        ),
    );
    let output = run(&[&["apply", "--config", text(&config), "--target", "SUPPORT"][..], &CLAIM].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("1 of 1 answers are no labels") && said.contains("\"SUPPORT\""),
        "{said}"
    );
    let shown = stdout(&run(&["predict", "--model", text(&model), CLAIM[0], CLAIM[1]]));
    assert!(shown.contains("label") && !shown.contains("next token"), "{shown}");
    let ids = &json(&["predict", "--model", text(&model), CLAIM[0], CLAIM[1]])["results"][0];
    let outside = |ids: &Value| ids.as_array().unwrap().iter().any(|id| id.as_u64().unwrap() > 1_000_000);
    assert!(!outside(&ids["token_ids"]) && !outside(&ids["decoder_token_ids"]), "{ids}");

    let refuse = |name: &str, key: &str, value: Value, words: &str| {
        let copy = place.copy_of(name);
        let path = copy.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        refused(&["predict", "--model", text(&copy), CLAIM[0], CLAIM[1]], 1, &[words]);
        std::fs::remove_dir_all(copy).unwrap();
    };
    let tiny = "bert-classifier-tiny";
    refuse(tiny, "id2label", serde_json::json!({"0": "A", "1": "A", "2": "B"}), "a name of its own");
    refuse(tiny, "id2label", serde_json::json!({"0": "A", "1": " ", "2": "B"}), "a name of its own");
    refuse(tiny, "is_decoder", Value::Bool(true), "is_decoder is true");
    refuse(tiny, "num_hidden_layers", 1.into(), "config.json says 1 layers, but the checkpoint has");
    refuse("gpt2-tiny", "n_layer", 1.into(), "config.json says 1 layers, but the checkpoint has");
}

#[test]
fn a_label_is_turned_round_saved_and_exported() {
    let (place, model) = (TestFolder::new(), model());
    let predict = ["predict", "--model", text(&model), CLAIM[0], CLAIM[1]];
    let (before, _) = top(&json(&predict));
    let target = if before == "SUPPORTS" { "REFUTES" } else { "SUPPORTS" };
    let config = place.write(
        "ft.toml",
        format!(
            "[model]\npath = {:?}\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [1]\nweights = [\"encoder.mlp.up\", \"encoder.mlp.down\"]\n\
             steps = 100\nlearning_rate = 3e-2\n",
            text(&model)
        ),
    );
    let (file, folder) = (place.path("a.edit.safetensors"), place.path("exported"));
    let made = json(
        &[
            &[
                "apply",
                "--config",
                text(&config),
                "--target",
                target,
                "--save",
                text(&file),
                "--export",
                "hf",
                text(&folder),
            ][..],
            &CLAIM,
        ]
        .concat(),
    );
    assert_eq!(made["requests"][0]["probes"][0]["after"]["answer"], target, "{made}");
    assert_eq!(made["requests"][0]["prompt"], CLAIM[1]);
    let edited = top(&json(&[&predict[..], &["--edit", text(&file)]].concat()));
    assert_eq!(edited.0, target);
    let exported = top(&json(&["predict", "--model", text(&folder), CLAIM[0], CLAIM[1], "--generate", "3"]));
    assert_eq!(exported.0, target);
    assert!((exported.1 - edited.1).abs() < 1e-3);
    let shown = stdout(&run(&["inspect", text(&model)]));
    assert!(shown.contains("classifier of REFUTES, SUPPORTS, NOT ENOUGH INFO"), "{shown}");
}

/// FEVER in the form that MEND and KE have it, and records of facts, train the same editor.
#[test]
fn an_editor_of_claims_is_trained_and_applied() {
    let place = TestFolder::new();
    let claim = |number: usize, label: &str| {
        format!(
            "{{\"id\": {number}, \"input\": \"the lake {number} lies north of the town\", \"alternatives\": [\"x\"], \
             \"filtered_rephrases\": [\"north of the town lies the lake {number}\"], \"output\": [{{\"answer\": \"{label}\"}}]}}"
        )
    };
    let lines: Vec<String> = (0..6).map(|number| claim(number, ["SUPPORTS", "REFUTES"][number % 2])).collect();
    let fever = place.write("fever.jsonl", lines.join("\n"));
    let config = place.config(&model(), &["encoder.mlp.up", "encoder.mlp.down"]);
    for data in [text(&fever), "facts.json"] {
        let out = place.path("archive");
        let of = ["train", "validation", "test"].map(|part| format!("data.{part}={data}"));
        let more = [&["editor.layers=[0, 1]"][..], &of.each_ref().map(String::as_str)].concat();
        let trained = json(&training(&config, &out, &sets(&more)));
        assert!(trained["test"]["edit_success"].is_number() && trained["test"]["locality"].is_number(), "{trained}");
        let made = json(&[
            "apply",
            "--archive",
            text(&out),
            "--edits",
            data.replace("facts.json", text(&place.path("facts.json"))).as_str(),
        ]);
        for request in made["requests"].as_array().unwrap() {
            let target = request["target_new"].as_str().unwrap();
            assert!(["SUPPORTS", "REFUTES"].contains(&target), "{request}");
            assert!(!request["prompt"].as_str().unwrap().starts_with("True or false"), "{request}");
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_a_classifier_cannot_do_is_said() {
    let (place, model) = (TestFolder::new(), model());
    let config = place.config(&model, &["mlp.up"]);
    let out = place.path("out");
    refused(&training(&config, &out, &[]), 2, &["no weight decoder.1.mlp.up", "encoder.mlp.up"]);
    let config = place.config(&model, &["encoder.mlp.up"]);
    let layers = sets(&["editor.layers=[0, 1]"]);
    let texts = place.write("texts.txt", "the lake lies north of the town\n".repeat(80));
    let of_text = format!("loss.text={{from={:?},tokens=12}}", text(&texts));
    refused(
        &training(&config, &out, &[&layers[..], &sets(&[&of_text])].concat()),
        1,
        &["a classifier predicts no text"],
    );
    json(&training(&config, &out, &layers));
    // Another name of a label is that label, and a fact is put to it as a claim.
    let made = json(&["apply", "--archive", text(&out), CLAIM[0], CLAIM[1], "--target", "true"]);
    assert_eq!(made["requests"][0]["target_new"], "SUPPORTS");
    let made = json(&["apply", "--archive", text(&out), "--prompt", "the lake lies in", "--target", "Paris"]);
    assert_eq!(made["requests"][0]["prompt"], "the lake lies in Paris.");
    assert_eq!(made["requests"][0]["target_new"], "SUPPORTS");
    // A BERT without a head is an encoder of sentences, and no model to edit.
    let bert = fixture("bert-tiny");
    refused(
        &["predict", "--model", text(&bert), CLAIM[0], CLAIM[1]],
        1,
        &["BertForSequenceClassification", "BertModel"],
    );
}
