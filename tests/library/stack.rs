//! Edits laid one over the other: element types, foreign weights, trials on the way to an edit, joining.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::edit::join::Joined;
use emend::edit::score::score;
use emend::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange, Provenance};
use emend::evaluate::{PerplexityRatio, WatchedText, perplexity};
use emend::model::tap::{NoTap, Role, Unseen, Weight};
use emend::model::tokens::Tokens;

use crate::common::{difference, model, values};

const AT: Weight = Weight { stack: emend::model::tap::Stack::Decoder, layer: 1, role: Role::MlpDown };

/// A change of one matrix, of low rank or not.
fn change(base: &Edited, at: Weight, dense: bool, dtype: DType) -> PassChange {
    let [d_in, d_out] = base.weight(at).unwrap().0.dims();
    let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.1), (&Device::flex(), dtype));
    let delta = match dense {
        true => Delta::Dense(random([d_in, d_out])),
        false => Delta::LowRank { a: random([d_in, 2]), b: random([2, d_out]) },
    };
    PassChange { matrices: [(at, delta)].into(), ..Default::default() }
}

fn edit(base: &Edited, change: PassChange) -> Edit {
    let provenance = Provenance::new("test", serde_json::Value::Null, 0, base, [EditRequest::new("a", "b")]);
    Edit::new(provenance, Change::Pass(change), BTreeMap::new())
}

/// What a model says at the last token of a text.
fn logits(model: &Edited) -> Vec<f64> {
    let tokens = Tokens::new(vec![vec![3, 1, 4, 1, 5]]);
    let hidden = model.embed(&tokens, &mut NoTap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap).unwrap();
    values(model.head(hidden, &[(0, 4)]))
}

#[test]
fn edits_of_other_element_types_are_cast_where_they_are_laid_on() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let base = Edited::new(Arc::new(model("gpt2-tiny", dtype)));
        for (dense, other) in [(false, false), (false, true), (true, false), (true, true)] {
            // As a file gives it, and as an editor of this model does.
            let loaded = edit(&base, change(&base, AT, dense, DType::F32));
            let own = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let made = edit(&base, change(&base, AT, other, own));
            let stack = base.with(loaded.clone()).unwrap().with(made.clone()).unwrap();
            let both = [&loaded, &made].map(|edit| values(edit.pass().unwrap().matrices[&AT].dense()));
            let before = values(base.weight(AT).unwrap().0);
            let wanted: Vec<f64> = (0..before.len()).map(|i| before[i] + both[0][i] + both[1][i]).collect();
            let most = if dtype == DType::BF16 { 1e-2 } else { 1e-6 };
            assert!(difference(&values(stack.weight(AT).unwrap().0), &wanted) < most, "{dtype:?}");
            // Joined into one they are the same.
            let joined = Edit::join(&[Arc::new(loaded), Arc::new(made)]).unwrap();
            let one = base.with(joined).unwrap();
            assert!(difference(&logits(&one), &logits(&stack)) < most);
        }
    }
}

#[test]
fn a_decoder_that_was_laid_in_stays_under_edits() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let other = base.with(edit(&base, change(&base, AT, true, DType::F32))).unwrap();
    let (weight, bias) = other.weight(AT).unwrap();
    let decoder = base.base().decoder.clone().with_linear(AT, weight, bias).unwrap();
    let laid = Edited::with_decoder(base.base().clone(), decoder, "another".into());
    assert_eq!(logits(&laid), logits(&other));
    let further = edit(&laid, change(&base, Weight::decoder(0, Role::MlpUp), false, DType::F32));
    let id = further.id().to_owned();
    let (on_laid, on_base) = (laid.with(further.clone()).unwrap(), base.with(further.clone()).unwrap());
    assert_eq!(logits(&on_laid), logits(&other.with(further).unwrap()));
    assert_ne!(logits(&on_laid), logits(&on_base));
    assert_ne!(on_laid.weights_id(), on_base.weights_id());
    // Taken away, the decoder is still there.
    let (without, _) = on_laid.without(&id).unwrap();
    assert_eq!((logits(&without), without.id()), (logits(&laid), "another"));
}

#[test]
fn a_trial_change_is_what_an_edit_would_be() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    for dense in [false, true] {
        let change = change(&base, AT, dense, DType::F32);
        let trial = base.with_change(&change).unwrap();
        assert_eq!(logits(&trial), logits(&base.with(edit(&base, change.clone())).unwrap()));
        assert!(trial.edits().is_empty());
        // Scoring and kept keys know it from the base and from another trial.
        assert_eq!(base.first_difference(&trial), 1);
        let text = base.base().tokenizer.continuation("The river", "Ost", None).unwrap();
        let scored = score(&[&base, &trial], &[text]).unwrap();
        assert_ne!(scored[0], scored[1]);
        let again = base.with_change(&change).unwrap();
        let tokens = Tokens::new(vec![vec![1, 2]]);
        let mut past = trial.past();
        let hidden = trial.embed(&tokens, &mut NoTap).unwrap();
        trial.blocks(hidden.clone(), 0..3, tokens.span(), Some(&mut past), &mut NoTap).unwrap();
        assert!(again.blocks(hidden, 0..3, tokens.span(), Some(&mut past), &mut NoTap).is_err());
    }
}

#[test]
fn a_sequence_whose_edits_let_go_says_the_same() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let (mut whole, mut light, mut joined) = (base.clone(), base.clone(), Joined::default());
    let mut edits = vec![];
    for dense in [false, true, false] {
        let edit = Arc::new(edit(&whole, change(&base, AT, dense, DType::F32)));
        whole = whole.with(edit.clone()).unwrap();
        light = light.with(edit.clone()).unwrap().without_changes();
        joined.add(&edit).unwrap();
        edits.push(edit);
    }
    assert_eq!(logits(&light), logits(&whole));
    assert_eq!(light.edit_ids(), whole.edit_ids());
    assert!(light.edits().iter().all(|edit| edit.pass().unwrap().matrices.is_empty()));
    // What was let go is still known to be different from the base.
    assert_eq!(base.first_difference(&light), 1);
    assert_eq!(joined.edit().unwrap().id(), Edit::join(&edits).unwrap().id());
}

#[test]
fn states_of_different_widths_do_not_join() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let with_state = |name: &str, rows: usize| {
        let plain = edit(&base, change(&base, AT, false, DType::F32));
        let state = Tensor::<2>::ones([rows, 1], &Device::flex());
        Arc::new(Edit::new(plain.provenance, plain.change, [(name.to_owned(), state)].into()))
    };
    let edits = [with_state("keys.1", 5), with_state("keys.1", 4)];
    let error = Edit::join(&edits).unwrap_err().to_string();
    for word in [edits[0].id(), edits[1].id(), "keys.1", "5 and 4 wide"] {
        assert!(error.contains(word), "{error}");
    }
    let joined = Edit::join(&[with_state("keys.1", 5), with_state("keys.1", 5), with_state("keys.2", 4)]).unwrap();
    assert_eq!(joined.state["keys.1"].dims(), [5, 2]);
    assert_eq!(joined.state["keys.2"].dims(), [4, 1]);
}

/// What a cell may not see, it does not know of.
#[test]
fn unseen_cells_tell_those_behind_them_nothing() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let cells = |token: u32, unseen: Option<Unseen>| {
        let tokens = Tokens::new(vec![vec![3, token, 4, 1, 5]]);
        let mut span = tokens.span().clone();
        span.rows[0].unseen = unseen;
        let hidden = base.embed(&tokens, &mut NoTap).unwrap();
        let hidden = base.blocks(hidden, 0..base.layers(), &span, None, &mut NoTap).unwrap();
        values(hidden).chunks(base.base().decoder.spec.width).map(<[f64]>::to_vec).collect::<Vec<_>>()
    };
    let unseen = Some(Unseen { from: 1, to: 2, by: 3 });
    let (one, other) = (cells(9, unseen), cells(7, unseen));
    // The cell itself and the one before `by` differ; those from there on do not.
    assert!(one[0] == other[0] && one[1] != other[1] && one[2] != other[2]);
    // Cell 2 saw it, and cells 3 and 4 see cell 2.
    assert!(one[3] != other[3]);
    let unseen = Some(Unseen { from: 1, to: 2, by: 2 });
    let (one, other) = (cells(9, unseen), cells(7, unseen));
    assert!(one[1] != other[1] && one[2..] == other[2..]);
    let (one, other) = (cells(9, None), cells(7, None));
    assert!(one[4] != other[4]);
}

/// A text that is watched is read from below the lowest changed layer: its perplexity is that of a whole pass, whatever was read before.
#[test]
fn a_watched_text_is_read_as_a_whole_pass_reads_it() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let rows: Vec<Vec<u32>> = (0..5).map(|row| (row..12 + 3 * row).collect()).collect();
    let text = WatchedText::new("numbers", rows.clone());
    assert_eq!(text.unedited(&base).unwrap(), Some(perplexity(&base, &rows).unwrap()));
    let at = |layer| Weight { layer, ..AT };
    for (layer, dense) in [(2, false), (1, true), (2, true), (0, false)] {
        let edited = base.with(edit(&base, change(&base, at(layer), dense, DType::F64))).unwrap();
        let (whole, watched) = (perplexity(&edited, &rows).unwrap(), text.edited(&base, &edited).unwrap());
        assert!((whole - watched).abs() < 1e-9 * whole, "{whole} {watched}");
        assert_ne!(Some(watched), text.unedited(&base).unwrap());
        // In the weights as well.
        let kept = edited.without_changes();
        assert!((text.edited(&base, &kept).unwrap() - whole).abs() < 1e-9 * whole);
    }
    assert_eq!(PerplexityRatio::of(&[]), None);
    let found = PerplexityRatio::of(&[1.0, f64::NAN, 1.2, 1.1]).unwrap();
    assert!((found.median - 1.15).abs() < 1e-12 && found.worst > 1e9 && found.cases == 4, "{found:?}");
}
