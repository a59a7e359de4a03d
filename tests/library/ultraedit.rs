//! UltraEdit: its figures and its equation.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use emend::apply::ultraedit::{UltraEdit, UltraEditSettings};
use emend::edit::{Change, Edit, EditRequest, Edited, Editor};
use emend::network::gradient_transform::Normalizer;

use crate::common::{difference, model, values};

fn editor(base: &Edited, edit_rate: f64) -> UltraEdit {
    let weights = ["mlp.up", "mlp.down"].map(str::to_owned).to_vec();
    UltraEdit::new(UltraEditSettings { layers: vec![1, 2], weights, edit_rate, ridge: 0.5 }, base.base()).unwrap()
}

fn requests() -> Vec<EditRequest> {
    [("The river runs to", "the sea"), ("Her name is", "Ada"), ("Two and two", "make five")]
        .map(|(prompt, target)| EditRequest::new(prompt, target))
        .to_vec()
}

fn figures(edit: &Edit, weight: &str) -> Normalizer {
    let figure = |name: &str| edit.state[&format!("{name}.decoder.{weight}")].clone();
    Normalizer {
        count: figure("count").into_data().iter::<f64>().sum(),
        mean: figure("mean").squeeze_dim(1),
        squares: figure("squares").squeeze_dim(1),
    }
}

#[test]
fn figures_of_turns_are_those_of_all_at_once() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    // Edits that change nothing: the gradients of each turn are those of the model as it was.
    let still = editor(&base, 0.0);
    let first = still.edit(&base, &requests()[..1]).unwrap();
    let on_first = base.with(first.clone()).unwrap();
    let second = still.edit(&on_first, &requests()[1..]).unwrap();
    let all = still.edit(&base, &requests()).unwrap();
    for weight in ["1.mlp.up", "2.mlp.down"] {
        let joined = figures(&first, weight).joined(&figures(&second, weight));
        let whole = figures(&all, weight);
        assert_eq!(joined.count, whole.count);
        let flat = |tensor: &Tensor<1>| values(tensor.clone());
        assert!(difference(&flat(&joined.mean), &flat(&whole.mean)) < 1e-9);
        assert!(difference(&flat(&joined.squares), &flat(&whole.squares)) < 1e-9);
    }
}

#[test]
fn a_later_turn_is_normalised_by_all_so_far() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let first = editor(&base, 0.0).edit(&base, &requests()[..1]).unwrap();
    let on_first = base.with(first).unwrap();
    let change = |edit: Edit| {
        let Change::Pass(change) = edit.change else { panic!("weights change") };
        change.matrices.values().flat_map(|delta| values(delta.dense())).collect::<Vec<f64>>()
    };
    let own = editor(&base, 0.1);
    let (alone, later) = (own.edit(&base, &requests()[1..]).unwrap(), own.edit(&on_first, &requests()[1..]).unwrap());
    // The models are the same; the figures are not.
    assert!(difference(&change(alone), &change(later.clone())) > 1e-3);
    // Of two edits that were joined both count.
    let second = editor(&base, 0.0).edit(&on_first, &requests()[1..2]).unwrap();
    let on_both = on_first.with(second).unwrap();
    let joined = Edit::join(on_both.edits()).unwrap();
    let on_joined = base.with(joined).unwrap();
    let [apart, together] = [&on_both, &on_joined].map(|model| change(own.edit(model, &requests()[2..]).unwrap()));
    assert!(difference(&apart, &together) < 1e-12);
    // An edit that is taken out takes its figures along.
    let (without, _) = on_first.without(&on_first.edit_ids()[0]).unwrap();
    let again = own.edit(&without, &requests()[1..]).unwrap();
    assert!(difference(&change(own.edit(&base, &requests()[1..]).unwrap()), &change(again)) < 1e-12);
    assert!(change(later).iter().any(|value| *value != 0.0));
}
