//! WISE: a side copy of one matrix that answers what it moves far enough.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use emend::apply::Editor;
use emend::apply::memory::{Elsewhere, bind};
use emend::edit::generate::Sampling;
use emend::edit::memory::Recall;
use emend::edit::{Change, Edit, EditRequest, Memory, Provenance};
use serde_json::json;

use crate::common::{
    FAR, QUESTION, editor, encode, music, pocket, request, same_scores, says, text, through_a_file, values,
};
use crate::memory::weights;

fn wise(more: &str) -> Box<dyn Editor> {
    editor(&format!(
        "method = \"wise\"\nlayer = 3\nlearning_rate = 10.0\nlocality = \"pocket\"\ncontext_templates = [\"{{}}\", \"It is said. {{}}\"]\n{more}"
    ))
    .unwrap()
}

#[test]
fn it_answers_its_own_prompts_and_leaves_the_others() {
    let base = pocket();
    let requests = [request(), music()];
    let edit = Arc::new(wise("").edit(&base, &requests).unwrap());
    let model = base.with(edit.clone()).unwrap();
    for request in &requests {
        assert!(says(&model, request) && !says(&base, request), "{}", request.prompt);
        // Which of its edits it is that answers nobody can say: they are one matrix.
        let (entry, scope) = model.consulted(&request.prompt).unwrap().unwrap();
        assert!(entry.is_none() && scope > 0.0 && scope < 1.0, "{scope}");
        // What is generated, with keys and values kept, is what is scored.
        let row = text(&base, &request.prompt, &request.target_new);
        let made = model.generate(&[encode(&base, &request.prompt)], row.target().len(), &[], &Sampling::default());
        assert_eq!(made.unwrap()[0], row.target());
    }
    for far in [FAR[0], FAR[2]] {
        same_scores(&base, &model, far);
    }
    same_scores(&through_a_file(&base, &edit), &model, (QUESTION, "Japan"));
    // On a model whose weights are changed, and taken back from it.
    let heavy = base.with(weights(&base, 0)).unwrap();
    let both = heavy.with(wise("").edit(&heavy, &[request()]).unwrap()).unwrap();
    assert!(says(&both, &request()));
    let (left, _) = both.without(both.edits()[1].id()).unwrap();
    assert_eq!(left.id(), heavy.id());
}

#[test]
fn one_after_the_other_is_all_of_them() {
    let base = pocket();
    let requests = [request(), music(), EditRequest::new("The author of Crooked House is", "Jane Austen")];
    // A mask for two edits: the third begins another, and the two are merged.
    let editor = wise("shard = 2");
    let mut model = base.clone();
    for request in &requests {
        model = model.with(editor.edit(&model, std::slice::from_ref(request)).unwrap()).unwrap();
    }
    let at_once = base.with(editor.edit(&base, &requests).unwrap()).unwrap();
    let [one, other]: [&Recall; 2] = [&model.memories()[0], &at_once.memories()[0]];
    assert_eq!(values(one.keys.clone()), values(other.keys.clone()));
    assert_eq!(values(one.values.clone().unwrap()), values(other.values.clone().unwrap()));
    assert_eq!(values(one.sides[&0].delta.clone()), values(other.sides[&0].delta.clone()));
    assert_eq!((one.sides.len(), one.sides[&0].shards.len()), (1, 2));
    // Merged, the shards still say what their edits want.
    requests.iter().for_each(|request| assert!(says(&model, request), "{}", request.prompt));
    // An edit that is taken out leaves what the others added.
    let (left, _) = model.without(model.edits()[1].id()).unwrap();
    let kept = at_once.edits()[0].forget(&[1]).unwrap();
    let kept = base.with(bind(kept, base.base(), Elsewhere::Nowhere, false).unwrap()).unwrap();
    assert_eq!(values(left.memories()[0].sides[&0].delta.clone()), values(kept.memories()[0].sides[&0].delta.clone()));
    // Asked again with another answer, the later stays, and the earlier one's increment has gone.
    let again = editor.edit(&model, &[EditRequest::new(QUESTION, "Chile")]).unwrap();
    let model = model.with(again).unwrap();
    let list = &model.memories()[0];
    assert_eq!(list.requests.len(), 3);
    assert!(says(&model, &list.requests[2]) && list.requests[2].target_new == "Chile");
    let sum = |shard: usize| {
        let (keys, rows) = (values(list.keys.clone()), values(list.values.clone().unwrap()));
        let own = rows.chunks(rows.len() / 3).zip(keys.chunks(2)).filter(|(_, key)| key[1] == shard as f64);
        own.fold(vec![0.0; rows.len() / 3], |sum, (row, _)| sum.iter().zip(row).map(|(a, b)| a + b).collect())
    };
    for (shard, of) in &list.sides[&0].shards {
        assert!(of.iter().zip(sum(*shard)).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "shard {shard}");
    }
    // Of the first shard one entry is left.
    assert_eq!(values(list.keys.clone()).chunks(2).filter(|key| key[1] == 0.0).count(), 1);
}

#[test]
fn an_edit_of_weights_between_two_begins_another_list() {
    let base = pocket();
    let editor = wise("");
    let below = base.with(editor.edit(&base, &[music()]).unwrap()).unwrap();
    let between = below.with(weights(&base, 0)).unwrap();
    let both = between.with(editor.edit(&between, &[request()]).unwrap()).unwrap();
    assert_eq!(both.memories().len(), 2);
    assert!(says(&both, &request()));
}

#[test]
fn what_cannot_be_edited_is_said() {
    let base = pocket();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.json");
    std::fs::write(&path, serde_json::to_string(&[json!({"prompt": QUESTION, "target_new": "Japan"})]).unwrap())
        .unwrap();
    let section = format!("method = \"wise\"\nlayer = 3\nlocality = {path:?}\ncontext_templates = [\"{{}}\"]");
    let error = editor(&section).unwrap().edit(&base, &[request()]).unwrap_err().to_string();
    assert!(error.contains("other subjects"), "{error}");
    for (more, word) in [
        ("mask = 0.0", "mask"),
        ("shard = 0", "shard"),
        ("shards = 0", "shards"),
        ("context = { lengths = [[3, 1]] }", "context"),
    ] {
        let section =
            format!("method = \"wise\"\nlayer = 3\nlocality = \"pocket\"\ncontext_templates = [\"{{}}\"]\n{more}");
        assert!(editor(&section).err().unwrap().to_string().contains(word), "{more}");
    }
}

#[test]
fn of_several_memories_the_one_that_is_moved_most_answers() {
    let base = pocket();
    let requests = [request(), music()];
    let edit = wise("shard = 1\nshards = 1").edit(&base, &requests).unwrap();
    let model = base.with(edit).unwrap();
    assert_eq!(model.memories()[0].sides.len(), 2);
    for request in &requests {
        assert!(says(&model, request), "{}", request.prompt);
    }
}

/// A side memory made by hand: its one entry's own Δ, the number of its shard, and as many values as the mask has places.
fn by_hand(least: f32, shard: f32, spare: usize) -> Edit {
    let model = pocket();
    let [d_in, d_out] = [model.base().decoder.spec.mlp.width, model.base().decoder.spec.width];
    let open = (0.2 * (d_in * d_out) as f64).round() as usize + spare;
    let keys = Tensor::from_data(TensorData::new(vec![least, shard], [1, 2]), &Device::flex());
    let values = Some(Tensor::ones([1, open], &Device::flex()) * 0.01);
    let memory = Memory { needs: json!({"method": "wise", "layer": 3}), keys, texts: vec![], values, route: None };
    let provenance = Provenance::new("wise", json!({}), 0, &model, vec![request()]);
    Edit::new(provenance, Change::Memory(memory), Default::default())
}

#[test]
fn files_that_hold_no_side_memory_are_refused() {
    let base = pocket();
    let laid = |edit: Edit| {
        let bound = bind(edit, base.base(), Elsewhere::Nowhere, false)?;
        base.with(bound).map(drop)
    };
    laid(by_hand(6.0, 0.0, 0)).unwrap();
    assert!(laid(by_hand(6.0, 0.0, 1)).unwrap_err().to_string().contains("another model"));
    for (least, shard) in [(-1.0, 0.0), (6.0, -1.0), (6.0, 0.5), (6.0, 1e30)] {
        let error = laid(by_hand(least, shard, 0)).unwrap_err().to_string();
        assert!(error.contains("number of a shard"), "{error}");
    }
    // An edit whose own prompts are moved no further than others are answers nothing.
    let silent = base.with(bind(by_hand(1.0, 0.0, 0), base.base(), Elsewhere::Nowhere, false).unwrap()).unwrap();
    assert!(silent.consulted(QUESTION).unwrap().is_none());
}
