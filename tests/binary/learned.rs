//! KE and ENN as a user runs them: trained, applied, saved, laid down again, and what they refuse.

use crate::common::{KE, TestFolder, json, one_line_error, run, sets, stdout, text, training};

const ENN: [&str; 2] = ["editor.method=enn", "editor.rank="];

/// The adapted base and the edit are two files, which together say what the edited model said; the base alone is told from the adapted one.
#[test]
fn enns_edit_is_two_edits() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let told = stdout(&run(&training(&config, &out, &sets(&ENN))));
    assert!(told.contains("adapted locality"), "{told}");
    let (saved, adapted) = (place.path("ost.edit.safetensors"), place.path("ost-adapted.edit.safetensors"));
    let request = ["apply", "--archive", text(&out), "--prompt", "Ost is", "--target", "Vell"];
    let found = json(&[&request[..], &["--save", text(&saved)]].concat());
    let files: Vec<&str> = found["saved"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert_eq!(files, [text(&adapted), text(&saved)]);
    let model = crate::common::gpt2();
    let says = |edits: &[&str]| {
        let edits: Vec<&str> = edits.iter().flat_map(|file| ["--edit", *file]).collect();
        let prompt = ["predict", "--model", text(&model), "--prompt", "Ost is"];
        json(&[&prompt[..], &edits].concat())["results"][0]["top"].clone()
    };
    let base = says(&[]);
    let (alone, both) = (says(&[text(&adapted)]), says(&[text(&adapted), text(&saved)]));
    assert!(base != alone && alone != both);
    // The edit knows what it lies on, and that says what it is.
    let told = stdout(&run(&["inspect", text(&adapted)]));
    assert!(told.contains("adapts the base"), "{told}");
    let on = json(&["inspect", text(&adapted)])["id"].clone();
    assert_eq!(json(&["inspect", text(&saved)])["provenance"]["computed_on"][0], on);
    let output = run(&["predict", "--model", text(&model), "--prompt", "Ost is", "--edit", text(&saved)]);
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("computed on an edit that is not laid under it"), "{warned}");
    // The adapted base is not laid twice: not where it lies by itself, nor where it was joined with an edit.
    let (joined, again) = (place.path("joined.edit.safetensors"), place.path("again.edit.safetensors"));
    stdout(&run(&["squash", text(&adapted), text(&saved), "--out", text(&joined)]));
    for under in [&adapted, &joined] {
        let more = ["--edit", text(under), "--save", text(&again)];
        let found = json(&[&request[..], &more].concat());
        assert_eq!(found["saved"].as_array().unwrap().len(), 1, "{}", under.display());
    }
    // In a batch and in a sequence as well, and as a checkpoint, where it is all in the weights.
    let (facts, all) = (place.path("facts.json"), place.path("all.edit.safetensors"));
    for mode in ["batch", "sequential"] {
        let exported = place.path(mode);
        let args = ["apply", "--archive", text(&out), "--edits", text(&facts), "--mode", mode];
        let found = json(&[&args[..], &["--save", text(&all)]].concat());
        assert_eq!(found["saved"].as_array().unwrap().len(), 2, "{mode}");
        stdout(&run(&[&args[..], &["--export", "hf", text(&exported)]].concat()));
        let both = says_of(text(&model), &[&place.path("all-adapted.edit.safetensors"), &all]);
        let whole = says_of(text(&exported), &[]);
        assert!((both - whole).abs() < 1e-4, "{mode}: {both} against {whole}");
    }
}

/// The probability of what is likeliest behind a prompt.
fn says_of(model: &str, edits: &[&std::path::Path]) -> f64 {
    let edits: Vec<&str> = edits.iter().flat_map(|file| ["--edit", text(file)]).collect();
    let prompt = ["predict", "--model", model, "--prompt", "Ost is"];
    json(&[&prompt[..], &edits].concat())["results"][0]["top"][0]["probability"].as_f64().unwrap()
}

#[test]
fn ke_edits_in_every_mode() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    stdout(&run(&training(&config, &out, &sets(&KE))));
    let facts = place.path("facts.json");
    for mode in ["single", "batch", "sequential"] {
        let found = json(&["apply", "--archive", text(&out), "--edits", text(&facts), "--mode", mode]);
        assert_eq!(found["method"], "ke");
        assert!(!found["requests"].as_array().unwrap().is_empty());
    }
    let shown = json(&["inspect", text(&out)]);
    assert_eq!(shown["description"]["editor"]["method"], "ke");
}

#[test]
fn what_they_refuse() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let refused = |own: &[&str], code: i32, parts: &[&str]| {
        one_line_error(&run(&training(&config, &out, &sets(own))), code, parts);
    };
    // A margin that cannot be met ends the training, with what would help.
    let hopeless = [
        "train.max_steps=60",
        "loss.margin=0",
        "loss.smallest_margin=0",
        "loss.largest_multiplier=1.0",
        "train.multiplier_learning_rate=1",
    ];
    let lost = place.path("lost");
    let output = run(&training(&config, &lost, &sets(&[&KE[..], &hopeless].concat())));
    one_line_error(&output, 1, &["the constraint was broken for 20 steps", "raise loss.margin"]);
    refused(&[&ENN[..], &["editor.steps=0"]].concat(), 2, &["editor.steps = 0", "at least one"]);
    refused(&[&ENN[..], &["editor.initial_edit_rate=-1"]].concat(), 2, &["editor.initial_edit_rate", "above 0"]);
    let without_scale: Vec<&str> = KE.iter().copied().filter(|set| !set.starts_with("editor.scale")).collect();
    refused(&[&without_scale[..], &["editor.scale=0"]].concat(), 2, &["editor.scale", "above 0"]);
    refused(&[&KE[..], &["loss.edit=0.5"]].concat(), 2, &["loss.edit", "constraint = \"margin\"", "penalty"]);
    refused(
        &[&KE[..], &["loss.constraint=penalty", "loss.margin=1"]].concat(),
        2,
        &["loss.margin", "penalty", "margin"],
    );
    refused(&[&KE[..], &["loss.out_of_scope=0"]].concat(), 2, &["loss.out_of_scope", "penalty"]);
    let rate = ["loss.constraint=penalty", "train.multiplier_learning_rate=1"];
    refused(&[&KE[..], &rate].concat(), 2, &["train.multiplier_learning_rate", "penalty"]);
    refused(&[&ENN[..], &["loss.locality=0"]].concat(), 2, &["loss.base", "loss.locality"]);
    refused(&[&ENN[..], &["model.dtype=bf16"]].concat(), 2, &["train.second_order", "f32"]);
    refused(&[&KE[..], &["loss.smallest_margin=1"]].concat(), 2, &["loss.smallest_margin"]);
    refused(&[&KE[..], &["editor.weights=[\"mlp.gate\"]"]].concat(), 2, &["mlp.gate"]);

    // Each knows the base that it was trained on.
    let other = place.copy_of("llama-tiny");
    for (name, own) in [("ke-archive", &KE[..]), ("enn-archive", &ENN[..])] {
        let archive = place.path(name);
        stdout(&run(&training(&config, &archive, &sets(own))));
        let apply =
            ["apply", "--archive", text(&archive), "--model", text(&other), "--prompt", "Ost is", "--target", "Vell"];
        one_line_error(&run(&apply), 1, &["base"]);
    }

    // Weights that an archive's settings name and that were not trained are named.
    let archive = place.path("enn");
    stdout(&run(&training(&config, &archive, &sets(&[&ENN[..], &["editor.layers=[1]"]].concat()))));
    let path = archive.join("archive.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    let more = settings.replace("layers = [1]", "layers = [1, 2]");
    assert!(more != settings, "{settings}");
    std::fs::write(&path, more).unwrap();
    let apply = run(&["apply", "--archive", text(&archive), "--prompt", "Ost is", "--target", "Vell"]);
    one_line_error(&apply, 1, &["network.safetensors", "decoder.2.mlp.up was not trained"]);
}
