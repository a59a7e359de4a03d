//! What a training promises: settings that are used or refused, the same bytes everywhere, and nothing lost.

use crate::common::{Place, edit, json, run, sets, stdout, text, training};

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
