//! Encoder-decoders through the binary: edited by gradients, saved, taken back, exported.

use crate::common::{TestFolder, fixture, json, refused, sets, stdout, text, training};

const FACT: [&str; 4] = ["--prompt", "The lake lies north of", "--target", "the old town"];

/// Both stacks are edited; the file brings the edit back, and so does the exported folder.
#[test]
fn edits_of_both_stacks() {
    for name in ["t5-tiny", "bart-tiny"] {
        let (place, model) = (TestFolder::new(), fixture(name));
        let config = place.write(
            "ft.toml",
            format!(
                "[model]\npath = \"{}\"\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [0, 1]\n\
                 weights = [\"encoder.mlp.up\", \"decoder.mlp.down\", \"decoder.cross.value\"]\nsteps = 400\nlearning_rate = 1e-2\n",
                text(&model)
            ),
        );
        let (file, folder) = (place.path("town.edit.safetensors"), place.path("exported"));
        let more = ["--save", text(&file), "--export", "hf", text(&folder)];
        let apply = [&["apply", "--config", text(&config)][..], &FACT, &more].concat();
        let made = json(&apply);
        let probe = &made["requests"][0]["probes"][0];
        let nll = |when: &str| probe[when]["target_nll"].as_f64().unwrap();
        assert!(nll("after") < nll("before") - 0.5, "{name}: {probe}");

        let predict = |model: &std::path::Path, more: &[&str]| {
            json(&[&["predict", "--model", text(model), "--prompt", FACT[1], "--generate", "3"][..], more].concat())["results"][0].clone()
        };
        let edited = predict(&model, &["--edit", text(&file)]);
        let exported = predict(&folder, &[]);
        assert_eq!(edited["top"][0]["id"], exported["top"][0]["id"]);
        assert_ne!(edited["top"], predict(&model, &[])["top"]);
        assert_eq!(edited["generated"], exported["generated"]);
        let inspected = stdout(&crate::common::run(&["inspect", text(&file)]));
        for weight in ["encoder.0.mlp.up", "decoder.1.mlp.down", "decoder.0.cross.value"] {
            assert!(inspected.contains(weight), "{inspected}");
        }
    }
}

/// A learned editor over both stacks: trained, resumed, applied.
#[test]
fn a_learned_editor_over_both_stacks() {
    let place = TestFolder::new();
    let config = place.config(&fixture("t5-tiny"), &["encoder.mlp.up", "decoder.mlp.down"]);
    let out = place.path("archive");
    let trained = json(&training(&config, &out, &sets(&["editor.layers=[0, 1]"])));
    assert!(trained["steps"].as_u64().unwrap() > 0);
    let apply = [&["apply", "--archive", text(&out)][..], &FACT].concat();
    let made = json(&apply);
    assert!(made["requests"][0]["probes"][0]["after"]["target_probability"].is_number(), "{made}");
}

#[test]
fn what_does_not_go_with_an_encoder_is_said() {
    let (place, model) = (TestFolder::new(), fixture("t5-tiny"));
    let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    for name in ["rome-gpt2.toml", "kn-gpt2.toml"] {
        let config = configs.join(name);
        let args = ["apply", "--config", text(&config), "--model", text(&model), "--subject", "lake"];
        refused(&[&args[..], &FACT].concat(), 2, &["has an encoder that reads it whole", "fine_tuning"]);
    }
    let config = place.config(&model, &["encoder.mlp.gate"]);
    let out = place.path("out");
    refused(&training(&config, &out, &[]), 2, &["no weight encoder.1.mlp.gate", "0 to 1 in the encoder"]);
    let config = place.config(&model, &["encoder.mlp.up"]);
    refused(&training(&config, &out, &[]), 2, &["no weight encoder.2.mlp.up"]);
    let answer = sets(&["editor.edit_tokens=answer", "editor.layers=[1]"]);
    refused(&training(&config, &out, &answer), 2, &["edit_tokens", "encoder.1.mlp.up"]);
}

/// Running text: the encoder reads the first half of each row, and the decoder predicts the rest. It is learnt from, and watched.
#[test]
fn running_text_is_read_in_halves() {
    let place = TestFolder::new();
    let texts = place.write("texts.txt", "The lake lies north of the old town, and the river west.\n".repeat(80));
    let config = place.config(&fixture("t5-tiny"), &["encoder.mlp.up", "decoder.mlp.down"]);
    let out = place.path("archive");
    let of_text = format!("loss.text={{from={:?},tokens=12}}", text(&texts));
    let watched = format!("data.text={:?}", text(&texts));
    let more = sets(&["editor.layers=[0, 1]", &of_text, &watched]);
    let trained = json(&training(&config, &out, &more));
    assert!(trained["perplexity"]["ratio"]["median"].as_f64().unwrap() > 0.0, "{trained}");
    // And it is what holds back changes that are met by normal equations.
    let ridge = sets(&["editor.aggregation=normal_equations", "editor.ridge=text"]);
    let held = place.path("held");
    json(&[&training(&config, &held, &more)[..], &ridge].concat());
    let apply = ["apply", "--archive", text(&out), "--text", text(&texts), "--text-tokens", "64"];
    let made = json(&[&apply[..], &FACT].concat());
    let seen = &made["perplexity"];
    assert!(seen["before"].as_f64().unwrap() > 1.0 && seen["ratio"]["median"].as_f64().unwrap() != 1.0, "{made}");
}

/// Editors that stand beside the model: SERAC with both of its networks begun as it, a lookup cache, and a prefix.
#[test]
fn memories_beside_an_encoder_decoder() {
    for name in ["t5-tiny", "bart-tiny"] {
        let (place, model) = (TestFolder::new(), fixture(name));
        let config = place.serac_config();
        let out = place.path("serac");
        // The context of the tiny BART has no room for an edit before a question.
        let roomy = name == "t5-tiny";
        if roomy {
            json(&[&training(&config, &out, &[])[..], &["--model", text(&model)]].concat());
            crate::common::replace(&out.join("archive.toml"), "threshold = 0.5", "threshold = 0.0");
        }
        let write = |name: &str, editor: &str| {
            place.write(name, format!("[model]\npath = {:?}\n\n[editor]\n{editor}\n", text(&model)))
        };
        let lookup = write("lookup.toml", "method = \"lookup\"\nlayer = 1\nradius = 0.1");
        let of_ike = "encoder = \"model\"\ndemonstrations = \"facts.json\"\nroles = { copy = 0, update = 0, retain = 0 }\nroom = 8";
        let ike = write("ike.toml", &format!("method = \"ike\"\n{of_ike}"));
        let ways = [("--config", &lookup), ("--archive", &out), ("--config", &ike)];
        for (way, from) in ways.into_iter().take(if roomy { 3 } else { 1 }) {
            let memory = place.path(&format!("{}.safetensors", from.file_stem().unwrap().to_string_lossy()));
            let args = [&["apply", way, text(from), "--memory", text(&memory)][..], &FACT].concat();
            let made = json(&args);
            let probe = &made["requests"][0]["probes"][0];
            assert_ne!(probe["before"]["target_nll"], probe["after"]["target_nll"], "{name} {from:?}: {made}");
            // From its file it says the same.
            let predict =
                ["predict", "--model", text(&model), "--edit", text(&memory), "--prompt", FACT[1], "--generate", "3"];
            let told = json(&predict)["results"][0].clone();
            let plain = json(&["predict", "--model", text(&model), "--prompt", FACT[1], "--generate", "3"])["results"]
                [0]
            .clone();
            assert_ne!(told["top"], plain["top"], "{name} {from:?}");
            assert!(told["generated"].is_string(), "{told}");
        }
    }
}

/// Stacks of unequal depth: a weight may be named with its layer.
#[test]
fn a_weight_may_have_a_layer_of_its_own() {
    let place = TestFolder::new();
    let config = place.config(&fixture("t5-tiny"), &["encoder.0.mlp.up", "decoder.2.mlp.down", "mlp.up"]);
    let out = place.path("archive");
    json(&training(&config, &out, &[]));
    let file = place.path("a.edit.safetensors");
    json(&[&["apply", "--archive", text(&out), "--save", text(&file)][..], &FACT].concat());
    let inspected = stdout(&crate::common::run(&["inspect", text(&file)]));
    for weight in ["encoder.0.mlp.up", "decoder.2.mlp.down", "decoder.1.mlp.up", "decoder.2.mlp.up"] {
        assert!(inspected.contains(weight), "{inspected}");
    }
    assert!(!inspected.contains("encoder.1"), "{inspected}");
}
