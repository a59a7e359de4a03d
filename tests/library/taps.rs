//! Taps, splits of the pass, and edits that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::edit::generate::Sampling;
use emend::edit::{Change, Delta, Edit, Edited, PassChange, Provenance, RecordDeltas};
use emend::model::stack::past::Past;
use emend::model::stack::taps::{Recorder, Replace};
use emend::model::tap::{Both, NoTap, Place, Role, Site, Span, Stack, Tap, Weight};
use emend::model::tokens::Tokens;

use crate::common::{FAMILIES, Golden, difference, fixture, model, values};

fn ids(name: &str) -> Vec<Vec<u32>> {
    Golden::open(fixture(name).join("golden.safetensors")).ids()
}

fn site(layer: usize, place: Place) -> Site {
    Site { stack: Stack::Decoder, layer, place }
}

/// Logits at every real cell.
fn logits(model: &Edited, tokens: &Tokens, tap: &mut dyn Tap) -> Vec<f64> {
    let hidden = model.embed(tokens, tap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, tap).unwrap();
    values(model.head(hidden, &real(tokens.span())))
}

fn real(span: &Span) -> Vec<(usize, usize)> {
    (0..span.rows.len()).flat_map(|row| (0..span.rows[row].len).map(move |cell| (row, cell))).collect()
}

fn random(shape: [usize; 2], size: f64) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, size), (&Device::flex(), DType::F32))
}

/// An edit of random changes of the weights, one of each kind of delta, attention included.
fn edit(model: &Edited, rank: usize) -> Edit {
    let spec = &model.base().decoder.spec;
    let mut change = PassChange::default();
    let top = spec.layers - 1;
    for (layer, role) in [
        (0, Role::Query),
        (0, Role::MlpDown),
        (top, Role::Key),
        (top, Role::Value),
        (top, Role::Out),
        (top, Role::MlpUp),
    ] {
        let [d_in, d_out] = spec.shape(role);
        let delta = Delta::LowRank { a: random([d_in, rank], 0.3), b: random([rank, d_out], 0.3) };
        change.matrices.insert(Weight::decoder(layer, role), delta);
    }
    let [d_in, d_out] = spec.shape(Role::MlpUp);
    change.matrices.insert(Weight::decoder(0, Role::MlpUp), Delta::Dense(random([d_in, d_out], 0.1)));
    change.biases.insert(Weight::decoder(0, Role::MlpDown), random([1, spec.width], 0.3).squeeze_dim(0));
    let provenance = Provenance {
        method: "random".into(),
        settings: serde_json::json!({}),
        requests: vec![],
        seed: 0,
        version: "0".into(),
        base: model.base().fingerprint.clone(),
        computed_on: model.edit_ids(),
        joined: vec![],
        findings: serde_json::Value::Null,
    };
    Edit::new(provenance, Change::Pass(change), BTreeMap::new())
}

#[test]
fn split_by_layer_is_the_whole_bit_for_bit() {
    for name in FAMILIES {
        let model = Edited::new(Arc::new(model(name, DType::F32)));
        let tokens = Tokens::new(ids(name));
        let whole = logits(&model, &tokens, &mut NoTap);
        let mut hidden = model.embed(&tokens, &mut NoTap).unwrap();
        for layer in 0..model.layers() {
            hidden = model.blocks(hidden, layer..layer + 1, tokens.span(), None, &mut NoTap).unwrap();
        }
        assert_eq!(values(model.head(hidden, &real(tokens.span()))), whole, "{name}");
    }
}

#[test]
fn split_by_position_is_the_whole_for_rows_split_at_different_places() {
    for name in FAMILIES {
        let base = Edited::new(Arc::new(model(name, DType::F32)));
        let model = base.with(edit(&base, 3)).unwrap();
        let rows = ids(name);
        let whole: Vec<Vec<f64>> =
            rows.iter().map(|row| logits(&model, &Tokens::new(vec![row.clone()]), &mut NoTap)).collect();
        // Row 0 is split after its 5th token, row 1 after its 2nd; then again one token before the end.
        let cuts = [[0, 5, rows[0].len() - 1, rows[0].len()], [0, 2, rows[1].len() - 1, rows[1].len()]];
        let mut past = model.past();
        let mut found = vec![vec![]; 2];
        for part in 0..3 {
            let pieces = (0..2).map(|row| rows[row][cuts[row][part]..cuts[row][part + 1]].to_vec()).collect();
            let tokens = Tokens::placed(pieces, vec![(0, cuts[0][part]), (1, cuts[1][part])]);
            let hidden = model.embed(&tokens, &mut NoTap).unwrap();
            // By layer and by position at once.
            let hidden = model.blocks(hidden, 0..1, tokens.span(), Some(&mut past), &mut NoTap).unwrap();
            let hidden = model.blocks(hidden, 1..model.layers(), tokens.span(), Some(&mut past), &mut NoTap).unwrap();
            for (row, found) in found.iter_mut().enumerate() {
                let cells: Vec<_> = (0..tokens.span().rows[row].len).map(|cell| (row, cell)).collect();
                found.extend(values(model.head(hidden.clone(), &cells)));
            }
        }
        for row in 0..2 {
            assert!(difference(&found[row], &whole[row]) < 1e-5, "{name} row {row}");
        }
        assert_eq!((past.len(0), past.len(1)), (rows[0].len(), rows[1].len()));
    }
}

#[test]
fn a_past_of_another_model_is_refused() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let other = base.with(edit(&base, 1)).unwrap();
    let tokens = Tokens::new(vec![vec![1, 2, 3]]);
    let mut past: Past = base.past();
    let hidden = base.embed(&tokens, &mut NoTap).unwrap();
    base.blocks(hidden.clone(), 0..3, tokens.span(), Some(&mut past), &mut NoTap).unwrap();
    let refused = other.blocks(hidden, 0..3, tokens.span(), Some(&mut past), &mut NoTap).unwrap_err();
    assert!(refused.to_string().contains("cannot serve"), "{refused}");
}

#[test]
fn recording_changes_nothing_and_replacing_by_the_recorded_neither() {
    let model = Edited::new(Arc::new(model("llama-tiny", DType::F32)));
    let tokens = Tokens::new(ids("llama-tiny"));
    let plain = logits(&model, &tokens, &mut NoTap);
    let at = site(1, Place::MlpOut);
    let mut recorder = Recorder::at([at]);
    assert_eq!(logits(&model, &tokens, &mut recorder), plain);
    let recorded = recorder.values[&at].clone();
    let [_, cells, width] = recorded.dims();
    let vector = recorded.reshape([2 * cells, width]).slice([4..5, 0..width]).squeeze_dim::<1>(0);
    let mut same = Replace { values: vec![(at, 0, 4, vector.clone())] };
    assert_eq!(logits(&model, &tokens, &mut same), plain);

    // Replaced by another vector, only what stands to its right changes, and only in its record.
    let mut other = Replace { values: vec![(at, 0, 4, vector.add_scalar(1.0))] };
    let changed = logits(&model, &tokens, &mut other);
    let vocabulary = model.base().decoder.spec.vocabulary;
    let lengths = [tokens.span().rows[0].len, tokens.span().rows[1].len];
    assert_eq!(changed[..4 * vocabulary], plain[..4 * vocabulary]);
    assert_ne!(changed[4 * vocabulary..lengths[0] * vocabulary], plain[4 * vocabulary..lengths[0] * vocabulary]);
    assert_eq!(changed[lengths[0] * vocabulary..], plain[lengths[0] * vocabulary..]);
}

/// Adds a constant to an activation.
struct Plus(Site, f64);

impl Tap for Plus {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at == self.0 { value.add_scalar(self.1) } else { value }
    }
}

/// Doubles an activation.
struct Double(Site);

impl Tap for Double {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at == self.0 { value.mul_scalar(2.0) } else { value }
    }
}

#[test]
fn two_taps_composed_are_one_after_the_other() {
    struct PlusThenDouble(Site);
    impl Tap for PlusThenDouble {
        fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
            if at == self.0 { value.add_scalar(0.25).mul_scalar(2.0) } else { value }
        }
    }
    let model = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let tokens = Tokens::new(ids("gpt2-tiny"));
    let at = site(1, Place::AttentionOut);
    let composed = logits(&model, &tokens, &mut Both(Plus(at, 0.25), Double(at)));
    assert_eq!(composed, logits(&model, &tokens, &mut PlusThenDouble(at)));
    assert_ne!(composed, logits(&model, &tokens, &mut Both(Double(at), Plus(at, 0.25))));
}

#[test]
fn deltas_by_record_are_those_of_separate_runs() {
    let name = "llama-tiny";
    let model = Edited::new(Arc::new(model(name, DType::F32)));
    let rows = ids(name);
    let roles = [Role::Query, Role::MlpGate, Role::MlpDown];
    let factors = |role| {
        let [d_in, d_out] = model.base().decoder.spec.shape(role);
        (
            Tensor::<3>::random([2, d_in, 3], Distribution::Normal(0.0, 0.3), (&Device::flex(), DType::F32)),
            Tensor::<3>::random([2, 3, d_out], Distribution::Normal(0.0, 0.3), (&Device::flex(), DType::F32)),
        )
    };
    let matrices: BTreeMap<_, _> = roles.into_iter().map(|role| (Weight::decoder(1, role), factors(role))).collect();
    let of = |record: usize| RecordDeltas {
        matrices: matrices
            .iter()
            .map(|(at, (a, b))| {
                let part = |x: &Tensor<3>| x.clone().slice([record..record + 1, 0..x.dims()[1], 0..x.dims()[2]]);
                (*at, (part(a), part(b)))
            })
            .collect(),
    };
    let alone: Vec<Vec<f64>> =
        (0..2).map(|row| logits(&model, &Tokens::new(vec![rows[row].clone()]), &mut of(row))).collect();
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    let vocabulary = model.base().decoder.spec.vocabulary;
    // Grouped, two rows a record; and shuffled, where rows look up their record.
    for order in [vec![0, 0, 1, 1], vec![1, 0, 1]] {
        let places = order.iter().map(|&record| (record, 0)).collect();
        let tokens = Tokens::placed(order.iter().map(|&record| rows[record].clone()).collect(), places);
        let together = logits(&model, &tokens, &mut RecordDeltas { matrices: matrices.clone() });
        let mut from = 0;
        for &record in &order {
            let to = from + lengths[record] * vocabulary;
            assert!(difference(&together[from..to], &alone[record]) < 1e-5);
            from = to;
        }
    }
}

#[test]
fn cached_generation_is_uncached_generation_under_any_edit() {
    for name in FAMILIES {
        let base = Edited::new(Arc::new(model(name, DType::F32)));
        for model in [base.clone(), base.with(edit(&base, 2)).unwrap(), base.with(edit(&base, 40)).unwrap()] {
            let prompts: Vec<Vec<u32>> =
                ids(name).into_iter().map(|row| row[..5].to_vec()).chain([vec![7, 9]]).collect();
            for sampling in [Sampling::default(), Sampling { temperature: 0.9, top_k: 7, top_p: 0.8, seed: 4 }] {
                let cached = model.generate(&prompts, 8, &[], &sampling).unwrap();
                for (prompt, cached) in prompts.iter().zip(&cached) {
                    // Teacher-forced over the whole row, without a cache: each token is the one the cached pass chose.
                    let whole: Vec<u32> = prompt.iter().chain(cached).copied().collect();
                    if sampling.temperature == 0.0 {
                        for cell in prompt.len()..whole.len() {
                            let top = model.next_tokens(&whole[..cell], 1).unwrap();
                            assert_eq!(top[0].id, whole[cell], "{name}");
                        }
                    }
                }
                assert_eq!(model.generate(&prompts, 8, &[], &sampling).unwrap(), cached);
            }
        }
    }
}

#[test]
fn greedy_generation_is_that_of_pytorch() {
    for name in ["gpt2-tiny", "llama-tiny"] {
        let model = Edited::new(Arc::new(model(name, DType::F32)));
        let text = std::fs::read_to_string(fixture(name).join("generate.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for case in cases {
            let read = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let made = model.generate(&[read("prompt")], 10, &[], &Sampling::default()).unwrap();
            assert_eq!(made[0], read("continuation"), "{name}");
        }
    }
}

#[test]
fn an_edit_taken_away_leaves_the_base_bit_for_bit() {
    for name in FAMILIES {
        let base = Edited::new(Arc::new(model(name, DType::F32)));
        let tokens = Tokens::new(ids(name));
        let plain = logits(&base, &tokens, &mut NoTap);
        let first = Arc::new(edit(&base, 2));
        let one = base.with(first.clone()).unwrap();
        let second = Arc::new(edit(&one, 40));
        let two = one.with(second.clone()).unwrap();
        assert_ne!(logits(&one, &tokens, &mut NoTap), plain);
        let (rest, dependent) = two.without(first.id()).unwrap();
        assert_eq!(dependent, [second.id()]);
        let (none, dependent) = rest.without(second.id()).unwrap();
        assert!(dependent.is_empty());
        assert_eq!(logits(&none, &tokens, &mut NoTap), plain);
        assert_eq!(none.id(), base.id());
        assert_eq!(
            logits(&two.without(second.id()).unwrap().0, &tokens, &mut NoTap),
            logits(&one, &tokens, &mut NoTap)
        );
    }
}

#[test]
fn factors_run_as_they_are_and_the_merged_sum_say_the_same() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let tokens = Tokens::new(ids("gpt2-tiny"));
    let at = Weight::decoder(1, Role::MlpDown);
    let (a, b) = (random([128, 4], 0.2), random([4, 32], 0.2));
    let with = |delta| {
        let provenance = edit(&base, 1).provenance;
        let change = PassChange { matrices: [(at, delta)].into(), ..Default::default() };
        let edited = base.with(Edit::new(provenance, Change::Pass(change), BTreeMap::new())).unwrap();
        logits(&edited, &tokens, &mut NoTap)
    };
    let dense = with(Delta::Dense(a.clone().matmul(b.clone())));
    assert!(difference(&with(Delta::LowRank { a, b }), &dense) < 1e-5);
}

#[test]
fn an_edit_file_holds_the_edit() {
    let base = Edited::new(Arc::new(model("llama3-tiny", DType::F32)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.edit.safetensors");
    let edit = edit(&base, 3);
    edit.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let loaded = Edit::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.id(), edit.id());
    assert_eq!(loaded.provenance, edit.provenance);
    loaded.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let tokens = Tokens::new(ids("llama3-tiny"));
    let (before, after) = (base.with(edit).unwrap(), base.with(loaded).unwrap());
    assert_eq!(logits(&before, &tokens, &mut NoTap), logits(&after, &tokens, &mut NoTap));
}
