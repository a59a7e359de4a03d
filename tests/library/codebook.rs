//! GRACE: what its codebook makes of keys and labels, what it answers, and what stays the model's own.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use emend::apply::Editor;
use emend::apply::grace::GraceRoute;
use emend::edit::activation::{Action, Intervention, Positions, Until};
use emend::edit::generate::Sampling;
use emend::edit::memory::Recall;
use emend::edit::{Change, Edit, EditRequest, Edited, Memory, PassChange, Provenance};
use serde_json::json;

use crate::common::{
    FAR, QUESTION, editor, encode, music, pocket, request, same_scores, says, text, through_a_file, values,
};
use crate::memory::weights;

fn grace(radius: f64) -> Box<dyn Editor> {
    editor(&format!("method = \"grace\"\nlayer = 3\nradius = {radius:?}")).unwrap()
}

/// A codebook whose keys stand on a line at these places, with these labels.
fn line(places: &[f64], labels: &[&str], radius: f64, compat: &str) -> Edit {
    let model = pocket();
    let (wide, width) = (model.base().decoder.spec.mlp.width, model.base().decoder.spec.width);
    let keys: Vec<f64> = places.iter().flat_map(|place| [vec![*place], vec![0.0; wide - 1]].concat()).collect();
    let keys = Tensor::from_data(TensorData::new(keys, [places.len(), wide]), &Device::flex());
    let requests: Vec<EditRequest> = labels
        .iter()
        .enumerate()
        .map(|(number, label)| EditRequest::new(format!("Question {number} is"), *label))
        .collect();
    let needs = json!({"method": "grace", "layer": 3, "radius": radius, "steps": 1, "learning_rate": 1.0, "early_stop": 0.1, "compat": compat});
    let route = Arc::new(GraceRoute::find(&needs, &model.base().decoder.spec).unwrap());
    let values = Some(Tensor::zeros([places.len(), width], &Device::flex()));
    let memory = Memory { needs, keys, texts: vec![], values, route: Some(route) };
    let provenance = Provenance::new("grace", json!({}), 0, &model, requests);
    Edit::new(provenance, Change::Memory(memory), Default::default())
}

fn reach(edits: &[Edit]) -> Vec<f64> {
    let mut model = pocket();
    for edit in edits {
        model = model.with(edit.clone()).unwrap();
    }
    model.memories()[0].reach.clone()
}

fn close(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len(), "{found:?} {wanted:?}");
    assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 3e-4), "{found:?} {wanted:?}");
}

#[test]
fn keys_expand_and_split() {
    // Far away: an entry of its own.
    close(&reach(&[line(&[0.0, 5.0], &["Japan", "Chile"], 1.0, "none")]), &[1.0, 1.0]);
    // Near, with the same label: the first reaches as far as the second, which answers nothing by itself.
    close(&reach(&[line(&[0.0, 1.5], &["Japan", "Japan"], 1.0, "none")]), &[1.5, -1.0]);
    // Within the reach already: nothing changes.
    close(&reach(&[line(&[0.0, 0.4], &["Japan", "Japan"], 1.0, "none")]), &[1.0, -1.0]);
    // Near, with another label: both reach half way.
    close(&reach(&[line(&[0.0, 1.5], &["Japan", "Chile"], 1.0, "none")]), &[0.75, 0.75]);
    // The third is nearest to the second, which only widens the first: it is the first that it meets.
    // A split takes the second from it again: that one answers for itself, half way to the third.
    close(&reach(&[line(&[0.0, 1.5, 2.0], &["Japan", "Japan", "Chile"], 1.0, "none")]), &[1.0, 0.25, 1.0]);
    close(&reach(&[line(&[0.0, 0.4, -1.5], &["Japan", "Japan", "Chile"], 1.0, "none")]), &[0.75, -1.0, 0.75]);
    // A third between two of other labels.
    close(&reach(&[line(&[0.0, 5.0, 4.0], &["Japan", "Chile", "Peru"], 1.0, "none")]), &[1.0, 0.5, 0.5]);
    // Two labels with one mean of ids are the same in the published code only.
    let model = pocket();
    let id = |word: &str| text(&model, "It is", word).target().to_vec();
    assert_ne!(id("Japan"), id("Chile"));
}

#[test]
fn edits_that_meet_settle_as_one_and_taken_back_give_back_what_they_took() {
    let all = line(&[0.0, 1.5, 5.0], &["Japan", "Chile", "Peru"], 1.0, "none");
    let one = |entry: usize| {
        let others: Vec<usize> = (0..3).filter(|other| *other != entry).collect();
        all.forget(&others).unwrap()
    };
    let edits = [one(0), one(1), one(2)];
    close(&reach(&edits), &reach(std::slice::from_ref(&all)));
    close(&reach(&edits), &[0.75, 0.75, 1.0]);
    let mut model = pocket();
    for edit in &edits {
        model = model.with(edit.clone()).unwrap();
    }
    let (left, _) = model.without(edits[1].id()).unwrap();
    close(&left.memories()[0].reach, &[1.0, 1.0]);
    // As one file too.
    let joined = Edit::join(&edits.map(Arc::new)).unwrap();
    close(&reach(std::slice::from_ref(&joined)), &[0.75, 0.75, 1.0]);
    close(&reach(&[joined.forget(&[1]).unwrap()]), &[1.0, 1.0]);
}

#[test]
fn it_answers_its_own_prompt_and_leaves_the_others() {
    let base = pocket();
    let requests = [request(), music()];
    let edit = Arc::new(grace(1.0).edit(&base, &requests).unwrap());
    let model = base.with(edit.clone()).unwrap();
    for request in &requests {
        assert!(says(&model, request) && !says(&base, request), "{}", request.prompt);
        assert_eq!(model.consulted(&request.prompt).unwrap().unwrap().0.unwrap().target_new, request.target_new);
        // What is generated, with keys and values kept, is what is scored.
        let (ids, row) = (encode(&base, &request.prompt), text(&base, &request.prompt, &request.target_new));
        let made = model.generate(&[ids], row.target().len(), &[], &Sampling::default()).unwrap();
        assert_eq!(made[0], row.target());
    }
    for far in [FAR[0], FAR[2]] {
        same_scores(&base, &model, far);
    }
    // In a file, and on top of a change of weights that is made later.
    same_scores(&through_a_file(&base, &edit), &model, (QUESTION, "Japan"));
    let heavy = base.with(weights(&base, 0)).unwrap();
    let both = heavy.with(grace(1.0).edit(&heavy, &[request()]).unwrap()).unwrap();
    assert!(says(&both, &request()));
    let (left, _) = both.without(both.edits()[1].id()).unwrap();
    assert_eq!(left.id(), heavy.id());
}

#[test]
fn one_after_the_other_is_all_of_them() {
    let base = pocket();
    let requests = [request(), music(), EditRequest::new("The author of Crooked House is", "Jane Austen")];
    let editor = grace(1.0);
    let mut model = base.clone();
    for request in &requests {
        let edit = editor.edit(&model, std::slice::from_ref(request)).unwrap();
        model = model.with(edit).unwrap();
    }
    let at_once = base.with(editor.edit(&base, &requests).unwrap()).unwrap();
    let [one, other]: [&Recall; 2] = [&model.memories()[0], &at_once.memories()[0]];
    close(&one.reach, &other.reach);
    close(&values(one.keys.clone())[..768], &values(other.keys.clone())[..768]);
    for request in &requests {
        assert!(says(&model, request) && says(&at_once, request), "{}", request.prompt);
    }
    // Asked again with another answer, the later stays.
    let other = [EditRequest::new(QUESTION, "Chile")];
    let model = model.with(editor.edit(&model, &other).unwrap()).unwrap();
    assert_eq!(model.memories()[0].requests.len(), 3);
    assert!(says(&model, &other[0]));
}

#[test]
fn a_widened_entry_answers_the_prompt_that_it_was_widened_for() {
    // The distance is no sum of few digits, and every key is asked for by its own numbers.
    let base = pocket();
    let wide = grace(1000.0);
    let prompts = ["The city of Lima lies in", "In which country is Oslo?", "You will find the streets of Nara in"];
    let mut model = base.clone();
    for prompt in [QUESTION].iter().chain(&prompts) {
        let edit = wide.edit(&model, &[EditRequest::new(*prompt, "Japan")]).unwrap();
        model = model.with(edit).unwrap();
    }
    for prompt in [QUESTION].iter().chain(&prompts) {
        assert!(says(&model, &EditRequest::new(*prompt, "Japan")), "{prompt}");
    }
}

#[test]
fn on_a_model_whose_activations_are_changed() {
    let base = pocket();
    let steered = |at: &str, positions: Positions, until: Until| {
        let vector = Tensor::ones([base.base().decoder.spec.width], &Device::flex());
        let intervention = Intervention { at: at.parse().unwrap(), positions, until, action: Action::Set(vector) };
        base.with_change(&PassChange { interventions: vec![intervention], ..PassChange::default() }).unwrap()
    };
    // Above it all is set: nothing that the editor does is seen, which is said or comes to nothing, and no panic.
    for model in [steered("5.block", Positions::Last, Until::Prompt), steered("5.block", Positions::All, Until::Always)]
    {
        if let Ok(edit) = grace(1.0).edit(&model, &[request()]) {
            model.with(edit).unwrap();
        }
    }
    let error = grace(1.0).edit(&steered("3.block", Positions::Last, Until::Prompt), &[request()]).unwrap_err();
    assert!(error.to_string().contains("acts on what layer 3 says"), "{error}");
}

/// An edit of the codebook that the model has, and not of the model without it.
#[test]
fn a_label_that_is_there_widens_its_entry() {
    let base = pocket();
    let wide = grace(1000.0);
    let first = request();
    let second = EditRequest::new("The city of Lima lies in", "Japan");
    let model: Edited = base.with(wide.edit(&base, std::slice::from_ref(&first)).unwrap()).unwrap();
    let edit = wide.edit(&model, std::slice::from_ref(&second)).unwrap();
    assert_eq!(edit.provenance.findings["requests"][0]["widens"], first.prompt);
    // It has the value that answers, so that it can stand alone.
    let alone = model.edits()[0].memory().unwrap().values.clone().unwrap();
    assert_eq!(values(edit.memory().unwrap().values.clone().unwrap()), values(alone));
    let both = model.with(edit).unwrap();
    assert_eq!(both.memories()[0].reach[1], -1.0);
    assert!(both.memories()[0].reach[0] >= 1000.0);
    // Where reaches are small they are apart.
    let edit = grace(0.01).edit(&base, &[first, second]).unwrap();
    assert!(base.with(edit).unwrap().memories()[0].reach.iter().all(|reach| *reach > 0.0));
}
