//! Editors that need no training, by their closed forms.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, activation};
use emend::apply::alphaedit::{AlphaEdit, null_space, projected};
use emend::apply::contexts::{RequestInContexts, Sampled, templates};
use emend::apply::emmet::constrained;
use emend::apply::fine_tuning::FineTuning;
use emend::apply::knowledge_neurons::{KnowledgeNeurons, attributions};
use emend::apply::memit::{Memit, direct, woodbury};
use emend::apply::prepared::{Prepared, check, columns};
use emend::apply::rome::Rome;
use emend::apply::value::{AddedTo, Cone, Descent, descend};
use emend::apply::{Editor, Mode, apply};
use emend::data::text::Documents;
use emend::edit::{Change, Delta, Edit, EditRequest, Edited, Provenance};
use emend::model::Model;
use emend::model::load::checkpoint::Hold;
use emend::model::stack::taps::{Recorder, Replace, cells};
use emend::model::tap::{NoTap, Place, Role, Site, Stack, Weight};
use emend::model::tokenizer::Continuation;
use emend::model::tokens::Tokens;
use emend::statistics::{Collect, Collected, Header, Moments, Source, Statistics, collect};
use faer::{Mat, Scale};
use rand::RngExt;

use crate::common::{difference, model, settings_of, values};

const PROMPT: &str = "The river that runs through Ost is the";

pub fn request() -> EditRequest {
    EditRequest { subject: Some("Ost".into()), ..EditRequest::new(PROMPT, "Vell") }
}

fn random(rows: usize, columns: usize, stream: u64) -> Mat<f64> {
    let mut rng = emend::random::stream(7, "matrix", stream);
    Mat::from_fn(rows, columns, |_, _| rng.random::<f64>() - 0.5)
}

pub fn prepared(statistics: Option<Statistics>) -> Prepared {
    Prepared { statistics, seed: 0, progress: Box::new(|_| {}) }
}

/// A second moment of full rank.
fn moment(width: usize, stream: u64) -> Mat<f64> {
    let keys = random(width, 3 * width, stream);
    &keys * keys.transpose() * Scale(1.0 / (3 * width) as f64)
}

fn apart(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    (a - b).norm_max() / b.norm_max()
}

fn header(model: &Model, row: usize, layers: &[usize]) -> Header {
    Header {
        format: String::new(),
        model: model.fingerprint.clone(),
        tokenizer: model.tokenizer.fingerprint().unwrap(),
        width: model.decoder.spec.mlp.width,
        layers: layers.to_vec(),
        tokens: 0,
        row,
        seed: 3,
        field: "text".into(),
        chat: None,
        sources: vec![Source { name: "t".into(), blake3: String::new() }],
        half: 0,
        changes: vec![],
    }
}

/// Lines of words, none of them twice the same.
fn texts(folder: &tempfile::TempDir, lines: usize) -> Documents {
    let mut rng = emend::random::stream(11, "words", 0);
    let words =
        ["river", "stone", "Ost", "Vell", "runs", "under", "a", "the", "hill", "seven", "names", "of", "old", "kings"];
    let text: String = (0..lines)
        .map(|_| {
            let line: Vec<&str> = (0..20).map(|_| words[rng.random_range(0..words.len())]).collect();
            line.join(" ") + "\n"
        })
        .collect();
    let path = folder.path().join("texts.txt");
    std::fs::write(&path, text).unwrap();
    Documents { files: vec![path], field: "text".into() }
}

pub fn statistics(model: &Model, layers: &[usize]) -> Statistics {
    let folder = tempfile::tempdir().unwrap();
    let mut moments = Moments::empty(header(model, 16, layers));
    let settings = Collect::default();
    collect(model, &texts(&folder, 400), &settings, &mut moments, &mut |_| Ok(true)).unwrap();
    moments.mirror();
    Statistics::new(moments, "statistics of a test".into())
}

#[test]
fn second_moments_are_those_of_the_keys() {
    let model = model("gpt2-tiny", DType::F64);
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(&folder, 60);
    let row = 16;
    let mut moments = Moments::empty(header(&model, row, &[0, 1]));
    let end = collect(&model, &texts, &Collect::default(), &mut moments, &mut |_| Ok(true)).unwrap();
    assert_eq!(end, Collected::All);
    moments.mirror();
    let all = Statistics::new(moments.clone(), String::new());

    // Pass two: the same rows, the keys of each by themselves.
    let mut tokens = vec![];
    texts
        .shuffled(3, &mut |document| {
            tokens.extend(model.tokenizer.encode(&document)?);
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
    for layer in [0, 1] {
        let site = Site { stack: Stack::Decoder, layer, place: Place::MlpHidden };
        let (mut sum, mut count) = (Mat::<f64>::zeros(moments.header.width, moments.header.width), 0);
        for ids in tokens.chunks_exact(row) {
            let text = Tokens::new(vec![ids.to_vec()]);
            let mut recorder = Recorder::at([site]);
            let hidden = model.decoder.embed(&text, &mut recorder).unwrap();
            model.decoder.blocks(hidden, 0..layer + 1, text.span(), None, &mut recorder).unwrap();
            let keys = columns(&recorder.values.remove(&site).unwrap().squeeze_dim(0));
            sum += &keys * keys.transpose();
            count += row;
        }
        assert_eq!(count as u64, moments.header.tokens);
        let found = all.second_moment(layer).unwrap();
        assert!(apart(&found, &(sum * Scale(1.0 / count as f64))) < 1e-5);
        // C⁻¹ by the factor.
        let keys = random(moments.header.width, 3, 5);
        assert!(apart(&(&found * all.solve(layer, keys.as_ref()).unwrap()), &keys) < 1e-6);
    }
}

#[test]
fn statistics_that_go_on_are_those_of_one_run() {
    let model = model("gpt2-tiny", DType::F32);
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(&folder, 200);
    let start = || Moments::empty(header(&model, 16, &[1]));
    let mut whole = start();
    let all = Collect { tokens: Some(4 * 16 * 7), until: None, chat: None };
    assert_eq!(collect(&model, &texts, &all, &mut whole, &mut |_| Ok(true)).unwrap(), Collected::Enough);

    // Stopped after each batch, saved and read again.
    let path = folder.path().join("moments");
    let mut batches = 0;
    let mut broken = start();
    loop {
        let result = collect(&model, &texts, &all, &mut broken, &mut |_| Ok(false));
        batches += 1;
        broken.mirror();
        broken.save(&Moments::path(&path)).unwrap();
        broken = Moments::load(&Moments::path(&path), None).unwrap();
        if result.is_ok() || batches == 20 {
            break;
        }
    }
    assert_eq!(batches, 8);
    whole.mirror();
    assert_eq!(whole, broken);
    assert_eq!(whole.header.changes.iter().map(|change| change.tokens).collect::<Vec<_>>(), [128, 256]);

    // Until C stands still.
    let mut still = start();
    let until = Collect { tokens: None, until: Some(0.9), chat: None };
    assert_eq!(collect(&model, &texts, &until, &mut still, &mut |_| Ok(true)).unwrap(), Collected::Converged);
    assert_eq!(still.header.tokens, 128);
}

#[test]
fn woodbury_is_the_direct_solution() {
    let (c, keys) = (moment(24, 0), random(24, 5, 1));
    for weight in [1e-3, 1.0, 1e4] {
        let scaled = &c * Scale(weight);
        let x = statistics_of(&scaled).solve(0, keys.as_ref()).unwrap();
        let found = woodbury(&x, &keys).unwrap();
        assert!(apart(&found, &direct(&scaled, &keys).unwrap()) < 1e-8);
        // λ → 0: one key is mapped to all of its residual, along C⁻¹k. λ → ∞: nothing changes.
        let one = keys.subcols(0, 1_usize).to_owned();
        let x = x.subcols(0, 1_usize).to_owned();
        let along = (one.transpose() * woodbury(&x, &one).unwrap())[(0, 0)];
        match weight {
            1e-3 => assert!((along - 1.0).abs() < 0.01, "{along}"),
            1e4 => assert!(along < 1e-2, "{along}"),
            _ => {}
        }
        let direction = woodbury(&x, &one).unwrap();
        let scale = direction.norm_l2() / x.norm_l2();
        assert!(apart(&(x * Scale(scale)), &direction) < 1e-9);
    }
}

/// Statistics whose C is the one given.
fn statistics_of(c: &Mat<f64>) -> Statistics {
    let model = model("gpt2-tiny", DType::F32);
    let mut header = header(&model, 16, &[0]);
    (header.width, header.tokens) = (c.nrows(), 1);
    let mut moments = Moments::empty(header);
    let sum = (0..c.nrows()).flat_map(|row| (0..c.ncols()).map(move |column| c[(row, column)]));
    moments.sums.insert(0, sum.collect());
    Statistics::new(moments, "a test".into())
}

#[test]
fn emmet_holds_its_constraints() {
    let (c, keys, residual) = (moment(24, 2), random(24, 5, 3), random(7, 5, 4));
    let x = statistics_of(&c).solve(0, keys.as_ref()).unwrap();
    let a = constrained(&x, &keys, 0.0).unwrap();
    // k ΔW = r for every key.
    let delta = &a * residual.transpose();
    assert!(apart(&(keys.transpose() * delta).transpose().to_owned(), &residual) < 1e-8);
    let twice = Mat::from_fn(keys.nrows(), 2_usize, |row, _| keys[(row, 0)]);
    let x = statistics_of(&c).solve(0, twice.as_ref()).unwrap();
    assert!(constrained(&x, &twice, 0.0).is_err());
}

#[test]
fn alphaedit_leaves_the_preserved_space_alone() {
    // C of rank 15 in 24 dimensions.
    let known = random(24, 15, 5);
    let c = &known * known.transpose();
    let basis = null_space(&c, 1e-9, 0).unwrap();
    assert_eq!(basis.ncols(), 9);
    let (keys, earlier) = (random(24, 4, 6), random(24, 3, 7));
    let a = projected(&basis, &keys, std::slice::from_ref(&earlier), 0.5).unwrap();
    assert!((known.transpose() * &a).norm_max() < 1e-9);
    // The equation itself: (P (KKᵀ + KₚKₚᵀ) P + l2) A = P K.
    let p = &basis * basis.transpose();
    let m = &keys * keys.transpose() + &earlier * earlier.transpose();
    let left = (&p * m * &p) * &a + &a * Scale(0.5);
    assert!(apart(&left, &(&p * &keys)) < 1e-9);
    assert!(null_space(&moment(24, 8), 1e-9, 0).is_err());
}

fn rome(model: &Model, compat: &str) -> Rome {
    let settings = format!(
        "layers = [1]\nstatistics = \"s\"\nsteps = 8\nweight_decay = 0.01\ncompat = \"{compat}\"\n\
         context_templates = [\"{{}}\", \"A hill. {{}}\", \"Seven names of old. {{}}\"]"
    );
    Rome::new(settings_of(&settings), prepared(Some(statistics(model, &[1])))).unwrap()
}

#[test]
fn rome_maps_the_key_to_the_value() {
    for name in ["gpt2-tiny", "llama-tiny"] {
        let model = Arc::new(model(name, DType::F64));
        let base = Edited::new(model.clone());
        let edit = rome(&model, "none").edit(&base, &[request()]).unwrap();
        let templates = ["{}", "A hill. {}", "Seven names of old. {}"].map(str::to_owned);
        let in_contexts = RequestInContexts::new(&base, &request(), &templates).unwrap();
        let cone = Cone::new(&base, 1, &[&in_contexts]).unwrap();
        let descent =
            Descent { steps: 8, learning_rate: 0.5, early_stop: 0.05, weight_decay: 0.01, clamp: 4.0, kl: 0.0625 };
        let found = descend(&base, &cone, &descent, AddedTo::Value).unwrap();
        let width = model.decoder.spec.width;
        let wanted = cone.values.clone().slice([0..1, 0..width]) + found.delta;
        let after = base.with(edit).unwrap();
        let (weight, bias) = after.weight(Weight::decoder(1, Role::MlpDown)).unwrap();
        let mut mapped = cone.mean(0, &cone.keys).matmul(weight);
        if let Some(bias) = bias {
            mapped = mapped + bias.unsqueeze();
        }
        assert!(difference(&values(mapped), &values(wanted)) < 1e-6, "{name}");
    }
}

/// Where a norm stands behind the MLP, as in Gemma 2 and 3, the edited model still says what the descent saw: its loss on the contexts is the one found.
#[test]
fn a_value_is_found_before_the_norm_behind_it() {
    for name in ["gemma2-tiny", "gemma3-tiny", "gpt2-tiny"] {
        let model = Arc::new(model(name, DType::F64));
        let base = Edited::new(model.clone());
        // These fixtures have no tokenizer of their own.
        let in_contexts = RequestInContexts {
            rows: vec![Continuation { ids: vec![5, 9, 11, 3, 20, 31], prompt: 4, apart: false }],
            subjects: vec![2],
            essence: vec![9, 11, 7],
            essence_subject: 1,
            noise: Default::default(),
            objective: emend::data::objective::Objective::Raise,
        };
        let cone = Cone::new(&base, 0, &[&in_contexts]).unwrap();
        // The last evaluation has all updates: none is made after it.
        let descent =
            Descent { steps: 6, learning_rate: 0.05, early_stop: 0.0, weight_decay: 0.0, clamp: 4.0, kl: 0.0 };
        let found = descend(&base, &cone, &descent, AddedTo::Value).unwrap();
        let text = &in_contexts.rows[0];
        let tokens = Tokens::new(vec![text.ids[..text.ids.len() - 1].to_vec()]);
        let width = model.decoder.spec.width;
        let site = Site { stack: Stack::Decoder, layer: 0, place: Place::MlpOut };
        let value = cone.values.clone().slice([0..1, 0..width]) + found.delta.clone();
        let mut replace = Replace { values: vec![(site, 0, in_contexts.subjects[0], value.squeeze_dim(0))] };
        let hidden = base.embed(&tokens, &mut NoTap).unwrap();
        let hidden = base.blocks(hidden, 0..base.layers(), tokens.span(), None, &mut replace).unwrap();
        let reads: Vec<_> = text.reads().map(|cell| (0, cell)).collect();
        let log = activation::log_softmax(base.head(hidden, &reads), 1);
        let log = values(emend::edit::likelihood::target_log_probabilities(log, text.target()));
        let nll = -log.iter().sum::<f64>() / log.len() as f64;
        assert!((nll - found.nll[0]).abs() < 1e-6, "{name}: {nll} {}", found.nll[0]);
    }
}

/// On a model that stays in its file the descent goes layer by layer, each in a graph of its own.
#[test]
fn a_value_is_the_same_on_a_model_in_its_file() {
    for name in ["gpt2-tiny", "llama-tiny"] {
        let place = crate::families::in_16_bits(name, false);
        let model = Arc::new(Model::load(place.path().to_str().unwrap(), &Device::flex(), DType::F32).unwrap());
        let templates = ["{}", "A hill. {}"].map(str::to_owned);
        let descent =
            Descent { steps: 6, learning_rate: 0.2, early_stop: 0.0, weight_decay: 0.01, clamp: 4.0, kl: 0.0625 };
        let found = |hold| {
            let decoder = model.checkpoint.decoder(&Device::flex(), DType::F32, hold).unwrap();
            let base = Edited::with_decoder(model.clone(), decoder, model.fingerprint.clone());
            assert_eq!(base.in_file(1..2), hold == Hold::InFile);
            let in_contexts = RequestInContexts::new(&base, &request(), &templates).unwrap();
            let cone = Cone::new(&base, 0, &[&in_contexts]).unwrap();
            values(descend(&base, &cone, &descent, AddedTo::Value).unwrap().delta)
        };
        let (cast, in_file) = (found(Hold::Cast), found(Hold::InFile));
        let length = cast.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!(difference(&cast, &in_file) < 1e-3 * length, "{name}: {}", difference(&cast, &in_file) / length);
    }
}

#[test]
fn the_descent_goes_down_and_its_cone_is_the_whole_model() {
    let model = Arc::new(model("llama-tiny", DType::F64));
    let base = Edited::new(model.clone());
    let templates = ["{}", "A hill. {}"].map(str::to_owned);
    let in_contexts = RequestInContexts::new(&base, &request(), &templates).unwrap();
    let cone = Cone::new(&base, 0, &[&in_contexts]).unwrap();
    let descent =
        |steps| Descent { steps, learning_rate: 0.1, early_stop: 0.0, weight_decay: 0.0, clamp: 1e3, kl: 0.0 };
    let nll = |steps| descend(&base, &cone, &descent(steps), AddedTo::Stream).unwrap().nll[0];
    let first = nll(1);
    assert!(nll(10) < first && nll(20) < nll(10));

    // The same δ put into a whole pass gives the same loss.
    let found = descend(&base, &cone, &descent(5), AddedTo::Stream).unwrap();
    let site = Site { stack: Stack::Decoder, layer: 0, place: Place::BlockOut };
    let mut whole = 0.0;
    for (text, &subject) in in_contexts.rows.iter().zip(&in_contexts.subjects) {
        let tokens = Tokens::new(vec![text.ids[..text.ids.len() - 1].to_vec()]);
        let mut recorder = Recorder::at([site]);
        let hidden = base.embed(&tokens, &mut NoTap).unwrap();
        base.blocks(hidden.clone(), 0..1, tokens.span(), None, &mut recorder).unwrap();
        let stream = cells(recorder.values.remove(&site).unwrap(), &[(0, subject)]) + found.delta.clone();
        let mut replace = Replace { values: vec![(site, 0, subject, stream.squeeze_dim(0))] };
        let hidden = base.blocks(hidden, 0..base.layers(), tokens.span(), None, &mut replace).unwrap();
        let reads: Vec<_> = text.reads().map(|cell| (0, cell)).collect();
        let log = activation::log_softmax(base.head(hidden, &reads), 1);
        let log = values(emend::edit::likelihood::target_log_probabilities(log, text.target()));
        whole -= log.iter().sum::<f64>() / (log.len() * in_contexts.rows.len()) as f64;
    }
    // The figure told is that of the last evaluation, before which 4 updates were made: δ has them all.
    let told = found.nll[0];
    assert!((told - whole).abs() < 1e-9 * told.abs(), "{told} {whole}");
    assert_eq!(found.updates, [4]);
}

#[test]
fn memit_reaches_its_streams_and_requests_do_not_mix() {
    let model = Arc::new(model("gpt2-tiny", DType::F64));
    let base = Edited::new(model.clone());
    let settings = |layers: &str, weight: f64| {
        format!(
            "layers = {layers}\nstatistics = \"s\"\nsteps = 6\nclamp = 4.0\ncovariance_weight = {weight:e}\n\
             context_templates = [\"{{}}\"]"
        )
    };
    let memit = |layers: &str, all: &[usize], weight| {
        Memit::new(settings_of(&settings(layers, weight)), prepared(Some(statistics(&model, all)))).unwrap()
    };
    // One layer, one request, λ → 0: the stream above the layer is z.
    let in_contexts = RequestInContexts::new(&base, &request(), &["{}".to_owned()]).unwrap();
    let cone = Cone::new(&base, 1, &[&in_contexts]).unwrap();
    let descent = Descent { steps: 6, learning_rate: 0.5, early_stop: 0.05, weight_decay: 0.5, clamp: 4.0, kl: 0.0625 };
    let found = descend(&base, &cone, &descent, AddedTo::Stream).unwrap();
    let width = model.decoder.spec.width;
    let z = cone.streams.clone().slice([0..1, 0..width]) + found.delta;
    let streams = |edited: &Edited| {
        let cone = Cone::new(edited, 1, &[&in_contexts]).unwrap();
        cone.streams.slice([0..1, 0..width])
    };
    let light = base.with(memit("[1]", &[1], 1e-9).edit(&base, &[request()]).unwrap()).unwrap();
    assert!(difference(&values(streams(&light)), &values(z.clone())) < 1e-5);
    // Over two layers as well: the second sees what the first did.
    let two = base.with(memit("[0, 1]", &[0, 1], 1e-9).edit(&base, &[request()]).unwrap()).unwrap();
    assert!(difference(&values(streams(&two)), &values(z)) < 1e-5);
    // λ → ∞: no change.
    let heavy = memit("[1]", &[1], 1e14).edit(&base, &[request()]).unwrap();
    let Change::Pass(change) = &heavy.change else { unreachable!() };
    assert!(change.matrices.values().all(|delta| delta.norm() < 1e-6));
    // More requests than the width of the keys: the direct solution, dense deltas.
    let many: Vec<EditRequest> = (0..model.decoder.spec.mlp.width + 3)
        .map(|number| {
            let subject = Some(format!("{number}"));
            EditRequest { subject, ..EditRequest::new(format!("The name of {number} is"), "Vell") }
        })
        .collect();
    let dense = memit("[1]", &[1], 10.0).edit(&base, &many).unwrap();
    let Change::Pass(change) = &dense.change else { unreachable!() };
    assert!(change.matrices.values().all(|delta| matches!(delta, Delta::Dense(_))));
    base.with(dense).unwrap();
}

#[test]
fn constrained_fine_tuning_stays_within_its_bound() {
    for (name, extra, bound) in [
        ("gpt2-tiny", "norm_constraint = 1e-3", 1e-3),
        ("llama-tiny", "norm_constraint = 1e-3", 1e-3),
        ("gpt2-tiny", "", f64::MAX),
    ] {
        let model = Arc::new(model(name, DType::F64));
        let base = Edited::new(model.clone());
        let settings = settings_of(&format!("layers = [0, 1]\nlearning_rate = 5e-3\nsteps = 10\n{extra}"));
        let tuning = FineTuning::new(settings, prepared(None), vec![]).unwrap();
        let edit = tuning.edit(&base, &[request()]).unwrap();
        let Change::Pass(change) = &edit.change else { unreachable!() };
        let matrices: Vec<f64> = change.matrices.values().flat_map(|delta| values(delta.dense())).collect();
        let biases: Vec<f64> = change.biases.values().flat_map(|bias| values(bias.clone())).collect();
        assert_eq!(biases.is_empty(), name == "llama-tiny");
        assert!(matrices.iter().chain(&biases).all(|value| value.abs() <= bound));
        assert!(matrices.iter().any(|value| value.abs() > 5e-4));
        let text = model.tokenizer.continuation(PROMPT, "Vell", None).unwrap();
        let id = edit.id().to_owned();
        let after = base.with(edit).unwrap();
        let scored = emend::edit::score::score(&[&base, &after], std::slice::from_ref(&text)).unwrap();
        assert!(scored[1][0].nll() < scored[0][0].nll());
        // Taken away, nothing of it stays.
        let (without, _) = after.without(&id).unwrap();
        let again = emend::edit::score::score(&[&base, &without], &[text]).unwrap();
        assert_eq!(again[0], again[1]);
    }
}

#[test]
fn attributions_sum_to_what_the_layer_brings() {
    let model = Arc::new(model("llama-tiny", DType::F64));
    let base = Edited::new(model.clone());
    let ids = model.tokenizer.encode(PROMPT).unwrap();
    let answer = base.next_tokens(&ids, 1).unwrap()[0].id;
    let layers: Vec<usize> = (0..base.layers()).collect();
    let p = |replace: &mut Replace| {
        let tokens = Tokens::new(vec![ids.clone()]);
        let hidden = base.embed(&tokens, &mut NoTap).unwrap();
        let hidden = base.blocks(hidden, 0..base.layers(), tokens.span(), None, replace).unwrap();
        let p = activation::softmax(base.head(hidden, &[(0, ids.len() - 1)]), 1);
        values(p)[answer as usize]
    };
    let whole = p(&mut Replace::default());
    let coarse = attributions(&base, (&ids, ids.len()), answer, &layers, 200).unwrap();
    for (layer, found) in attributions(&base, (&ids, ids.len()), answer, &layers, 400).unwrap() {
        let site = Site { stack: Stack::Decoder, layer, place: Place::MlpHidden };
        let nothing = Tensor::<1>::zeros([model.decoder.spec.mlp.width], (&Device::flex(), DType::F64));
        let without = p(&mut Replace { values: vec![(site, 0, ids.len() - 1, nothing)] });
        let (half, sum): (f64, f64) = (coarse[&layer].iter().sum(), found.iter().sum());
        let brought = whole - without;
        // The error halves as the steps double: of twice the finer sum less the coarser one its first order is gone.
        assert!((2.0 * sum - half - brought).abs() < 1e-3 * brought.abs() + 1e-7, "layer {layer}: {sum} {brought}");
        assert!((sum - brought).abs() < 0.6 * (half - brought).abs() + 1e-7, "layer {layer}: {half} {sum} {brought}");
    }
}

#[test]
fn neurons_are_erased_amplified_and_rewritten() {
    let model = Arc::new(model("gpt2-tiny", DType::F64));
    let base = Edited::new(model.clone());
    let ids = model.tokenizer.encode(PROMPT).unwrap();
    let (old, new) =
        (base.next_tokens(&ids, 1).unwrap()[0].id, model.tokenizer.continuation(PROMPT, "Vell", None).unwrap());
    let new = new.target()[0];
    assert_ne!(old, new);
    let width = model.decoder.spec.width;
    let embedding = |id: u32| {
        let table = values(model.decoder.embedding.val());
        table[id as usize * width..][..width].to_vec()
    };
    let length = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>().sqrt();
    for (operation, factor) in [
        ("erase", Some(0.0)),
        ("amplify", Some(2.0)),
        ("rewrite\"\nscale = \"paper", None),
        ("rewrite\"\nscale = \"row", None),
    ] {
        let settings = format!(
            "operation = \"{operation}\"\nsteps = 10\nmost = 3\ncontext_templates = [\"{{}}\", \"A hill. {{}}\"]"
        );
        let editor = KnowledgeNeurons::new(settings_of(&settings), prepared(None)).unwrap();
        let edit = editor.edit(&base, &[request()]).unwrap();
        let neurons = edit.provenance.findings["neurons"][0].as_array().unwrap().clone();
        assert!(!neurons.is_empty() && neurons.len() <= 3);
        let after = base.with(edit).unwrap();
        for neuron in neurons {
            let number = |key: &str| neuron[key].as_u64().unwrap() as usize;
            let (layer, row) = (number("layer"), number("neuron"));
            let at = Weight::decoder(layer, Role::MlpDown);
            let row = |edited: &Edited| {
                let weight = edited.weight(at).unwrap().0;
                let width = weight.dims()[1];
                values(weight.slice([row..row + 1, 0..width]))
            };
            let (before, now) = (row(&base), row(&after));
            match factor {
                Some(factor) => {
                    before.iter().zip(&now).for_each(|(before, now)| assert!((factor * before - now).abs() < 1e-12));
                }
                None => {
                    // λ₁ = 1 of the old answer's embedding, λ₂ = 8 of the new one's: as they are, or in lengths of the row.
                    let of = |id| match operation.ends_with("paper") {
                        true => embedding(id),
                        false => {
                            let factor = length(&before) / length(&embedding(id));
                            embedding(id).iter().map(|value| value * factor).collect::<Vec<f64>>()
                        }
                    };
                    let (old, new) = (of(old), of(new));
                    for channel in 0..width {
                        let wanted = before[channel] - old[channel] + 8.0 * new[channel];
                        assert!((now[channel] - wanted).abs() < 1e-12, "{operation}: {} {wanted}", now[channel]);
                    }
                }
            }
        }
    }
}

#[test]
fn requests_that_no_edit_can_serve() {
    assert!(check(&[]).unwrap_err().to_string().contains("no request"));
    let other = EditRequest { target_new: "Ost".into(), ..request() };
    let error = check(&[request(), other]).unwrap_err().to_string();
    assert!(error.contains("edits 0 and 1 contradict each other"), "{error}");
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    for (subject, word) in
        [(None, "names no subject"), (Some(" "), "names no subject"), (Some("Vell"), "does not occur")]
    {
        let request = EditRequest { subject: subject.map(str::to_owned), ..request() };
        let error = RequestInContexts::new(&base, &request, &["{}".to_owned()]).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    // A subject of one token that stands first has nothing to its left, in one row of several.
    let first = EditRequest { subject: Some("The".into()), ..EditRequest::new("The river is", "Vell") };
    let editor = rome(base.base(), "rome");
    let applied =
        apply(&editor, &base, &[vec![first], vec![request()]], Mode::Sequential, &|_, _, _| Ok(()), &|| false).unwrap();
    assert_eq!(applied.end.unwrap().1.edits().len(), 2);
    let sampled = Sampled { lengths: vec![[3, 2]], starts: vec!["The".into()], seed: 1 };
    let drawn = templates(&base, &[], &sampled).unwrap();
    assert_eq!((drawn.len(), drawn[0].as_str()), (3, "{}"));
    assert!(drawn.iter().all(|template| template.matches("{}").count() == 1));
    assert_eq!(drawn, templates(&base, &[], &sampled).unwrap());
    assert!(templates(&base, &["no place".to_owned()], &sampled).is_err());
}

#[test]
fn keys_of_another_width_in_a_stacked_edit_are_refused() {
    let model = Arc::new(model("gpt2-tiny", DType::F32));
    let base = Edited::new(model.clone());
    let settings =
        "layers = [1]\nstatistics = \"\"\nnull_space_threshold = 1e9\ncontext_templates = [\"{}\"]\nsteps = 2";
    let prepared = prepared(Some(statistics(&model, &[1])));
    let provenance = Provenance::new("alphaedit", serde_json::Value::Null, 0, &base, [request()]);
    let editor = AlphaEdit::new(settings_of(settings), prepared).unwrap();
    let good = editor.edit(&base, &[request()]).unwrap();
    assert!(editor.edit(&base.with(good.clone()).unwrap(), &[request()]).is_ok());

    let keys = Tensor::<2>::zeros([5, 3], &Device::flex());
    let foreign = Edit::new(provenance, good.change, [("keys.1".to_owned(), keys)].into());
    let error = editor.edit(&base.with(foreign).unwrap(), &[request()]).unwrap_err().to_string();
    assert!(error.contains("keys.1") && error.contains("width"), "{error}");
}

#[test]
fn the_published_denominator_is_that_of_the_prompt_alone() {
    let model = Arc::new(model("gpt2-tiny", DType::F64));
    let base = Edited::new(model.clone());
    let alone = RequestInContexts::new(&base, &request(), &["{}".to_owned()]).unwrap();
    let alone = Cone::new(&base, 1, &[&alone]).unwrap();
    // Wherever the prompt alone stands among the contexts, and where it is none of them.
    for contexts in ["[\"{}\", \"A hill. {}\"]", "[\"A hill. {}\", \"{}\"]", "[\"A hill. {}\", \"Old. {}\"]"] {
        let settings = format!(
            "layers = [1]\nstatistics = \"s\"\nsteps = 8\nweight_decay = 0.01\ncompat = \"rome\"\ncontext_templates = {contexts}"
        );
        let editor = Rome::new(settings_of(&settings), prepared(Some(statistics(&model, &[1])))).unwrap();
        let after = base.with(editor.edit(&base, &[request()]).unwrap()).unwrap();
        // v* = v₀ + δ, v₀ that of the first context; the key of the prompt alone is mapped to it.
        let templates: Vec<String> = toml::from_str::<toml::Table>(&format!("t = {contexts}")).unwrap()["t"]
            .as_array()
            .unwrap()
            .iter()
            .map(|template| template.as_str().unwrap().to_owned())
            .collect();
        let in_contexts = RequestInContexts::new(&base, &request(), &templates).unwrap();
        let cone = Cone::new(&base, 1, &[&in_contexts]).unwrap();
        let descent =
            Descent { steps: 8, learning_rate: 0.5, early_stop: 0.05, weight_decay: 0.01, clamp: 4.0, kl: 0.0625 };
        let found = descend(&base, &cone, &descent, AddedTo::Value).unwrap();
        let width = model.decoder.spec.width;
        let wanted = cone.values.clone().slice([0..1, 0..width]) + found.delta;
        let (weight, bias) = after.weight(Weight::decoder(1, Role::MlpDown)).unwrap();
        let keys = alone.keys.dims()[1];
        let mapped = alone.keys.clone().slice([0..1, 0..keys]).matmul(weight) + bias.unwrap().unsqueeze();
        assert!(difference(&values(mapped), &values(wanted)) < 1e-9, "{contexts}");
    }
}

#[test]
fn contexts_of_two_seeds_have_nothing_in_common() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let drawn = |seed: u64| {
        let sampled = Sampled { lengths: vec![[10, 3], [20, 3]], starts: vec!["The".into()], seed };
        templates(&base, &[], &sampled).unwrap()
    };
    let beginning = |template: &str| template.trim_end_matches(". {}").to_owned();
    let all: Vec<Vec<String>> =
        (0..4).map(|seed| drawn(seed)[1..].iter().map(|text| beginning(text)).collect()).collect();
    for (one, other) in [(0, 1), (1, 2), (2, 3), (1, 0)] {
        for short in &all[one][..3] {
            assert!(all[other][3..].iter().all(|long| !long.starts_with(short.as_str())), "{one} {other}: {short}");
        }
    }
    // The long ones of a seed do not go on from its short ones either.
    assert!(all[0][..3].iter().all(|short| all[0][3..].iter().all(|long| !long.starts_with(short.as_str()))));
}
