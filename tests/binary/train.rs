//! What a training promises: settings that are used or refused, the same bytes everywhere, and nothing lost.

use crate::common::{Place, Tensors, edit, json, run, sets, stdout, text, training};

/// The settings of two trainings may be the same: the archive's fingerprint tells whose edit it is.
#[test]
fn an_edit_names_the_archive_it_was_made_with() {
    let place = Place::new();
    let config = place.gpt2_config();
    let made = ["1", "2"].map(|seed| {
        let (archive, saved) = (place.path(seed), place.path(&format!("{seed}.safetensors")));
        stdout(&run(&training(&config, &archive, &sets(&[&format!("train.seed={seed}")]))));
        stdout(&run(&edit(&archive, &["--save", text(&saved)])));
        let mut settings = json(&["inspect", text(&saved)])["provenance"]["settings"].clone();
        let fingerprint = settings.as_object_mut().unwrap().remove("archive_fingerprint").unwrap();
        (settings, fingerprint.as_str().unwrap().to_owned())
    });
    assert_eq!(made[0].0, made[1].0);
    assert!(made[0].1 != made[1].1 && made[0].1.len() == 64, "{made:?}");
}

/// With a small rate, steps in 16 bits would move next to no weight.
#[test]
fn what_is_trained_on_a_base_in_16_bits_is_f32() {
    let place = Place::new();
    let (config, out) = (place.serac_config(), place.path("out"));
    for tune in ["whole", "{top=1}"] {
        let _ = std::fs::remove_dir_all(&out);
        let tunes = [format!("editor.classifier.tune={tune}"), format!("editor.counterfactual.tune={tune}")];
        let values = sets(&["model.dtype=bf16", "train.learning_rate=1e-5", &tunes[0], &tunes[1]]);
        stdout(&run(&training(&config, &out, &values)));
        let network = Tensors::read(&out.join("network.safetensors"));
        for part in ["classifier.reader", "counterfactual"] {
            let last = if tune == "whole" { 2 } else { 0 };
            let (values, _) = network.matrix(&format!("{part}.blocks.{last}.up.weight"));
            // What training left alone has a value of 16 bits, as it was loaded.
            let moved = values.iter().filter(|value| (**value as f32).to_bits() & 0xffff != 0).count();
            assert!(moved * 100 > values.len() * 95, "{tune}, {part}: {moved} of {}", values.len());
        }
        stdout(&run(&edit(&out, &[])));
    }
}

/// Two trainings are told apart by their test figures only where both answer the same questions.
#[test]
fn test_questions_belong_to_the_data() {
    let place = Place::new();
    let config = place.gpt2_config();
    let tested = |name: &str, values: &[&str]| {
        let world = ["data.validation=pocket", "data.test=pocket", "data.test_records=12", "train.validation_records=4"];
        // Nothing is learnt: all that could differ are the questions.
        let still = ["train.learning_rate=0.0", "train.edit_rate_learning_rate=0.0", "editor.normalization=off"];
        let (out, rate) = (place.path(name), ["editor.initial_edit_rate=0.01"]);
        let values = sets(&[&world[..], &still, &rate, values].concat());
        json(&training(&config, &out, &[&["--model", "pocket"], &values[..]].concat()))["test"].clone()
    };
    let first = tested("first", &["train.seed=1"]);
    assert_eq!(first, tested("second", &["train.seed=2"]));
    assert_ne!(first, tested("third", &["data.seed=1"]));
}
