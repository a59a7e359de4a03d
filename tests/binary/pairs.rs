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
    for name in ["rome-gpt2.toml", "kn-gpt2.toml", "ike-smollm2.toml", "lookup-smollm2.toml"] {
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
    let texts = place.write("texts.txt", "The lake lies north of the old town.\n".repeat(80));
    let config = place.write(
        "ft.toml",
        "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [0]\nsteps = 1\nlearning_rate = 1e-3\n",
    );
    let args = ["apply", "--config", text(&config), "--model", text(&model), "--text", text(&texts)];
    refused(&[&args[..], &FACT].concat(), 1, &["no such pair"]);
}
