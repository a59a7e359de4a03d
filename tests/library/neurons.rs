//! Neurons beside an MLP: the formula, their files, and the editors that add them.

use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor, activation};
use emend::edit::neurons::{AddedNeurons, Firing, Neurons};
use emend::edit::{Change, Edit, EditRequest, Edited, PassChange, Provenance};
use emend::model::layers::mlp::Activation;
use emend::model::stack::taps::{Inputs, Recorder};
use emend::model::tap::{Both, NoTap, Place, Role, Site, Span, Stack, Tap, Weight};
use emend::model::tokens::Tokens;

use crate::common::{
    FAMILIES, FAR, Golden, difference, editor, fixture, model, music, pocket, request, same_scores, says, values,
};

fn base(name: &str) -> Edited {
    Edited::new(Arc::new(model(name, DType::F32)))
}

fn tokens(name: &str) -> Tokens {
    Tokens::new(Golden::open(fixture(name).join("golden.safetensors")).ids())
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.5), (&Device::flex(), DType::F32))
}

fn neurons(width: usize, count: usize, activation: Activation) -> Neurons {
    Neurons { keys: random([width, count]), biases: random([count]), values: random([count, width]), activation }
}

fn edit(model: &Edited, neurons: AddedNeurons) -> Edit {
    let provenance = Provenance::new("random", serde_json::json!({}), 0, model, vec![]);
    Edit::new(provenance, Change::Pass(PassChange { neurons, ..PassChange::default() }), Default::default())
}

fn hidden(model: &Edited, tokens: &Tokens, tap: &mut dyn Tap) -> Vec<f64> {
    let hidden = model.embed(tokens, &mut NoTap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, tap).unwrap();
    let cells: Vec<_> = (0..tokens.span().rows[0].len).map(|cell| (0, cell)).collect();
    values(model.head(hidden, &cells))
}

/// Adds what it holds to what an MLP says.
struct Adds(Site, Tensor<3>);

impl Tap for Adds {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at == self.0 { value + self.1.clone() } else { value }
    }
}

#[test]
fn they_say_what_the_formula_says() {
    for name in FAMILIES {
        let base = base(name);
        let (tokens, width, layer) = (tokens(name), base.base().decoder.spec.width, base.layers() - 1);
        let added = neurons(width, 3, Activation::Relu);
        let edited = base.with(edit(&base, [((Stack::Decoder, layer), vec![added.clone()])].into())).unwrap();
        let mut inputs = Inputs::of([Weight::decoder(layer, Role::MlpUp)]);
        hidden(&base, &tokens, &mut inputs);
        let q = inputs.values.remove(&Weight::decoder(layer, Role::MlpUp)).unwrap();
        // max(0, q·K + b)·V, a neuron at a time.
        let [rows, cells, _] = q.dims();
        let mut said = Tensor::<3>::zeros([rows, cells, width], &Device::flex());
        for neuron in 0..3 {
            let column = |x: &Tensor<2>| x.clone().slice([0..width, neuron..neuron + 1]).reshape([1, 1, width]);
            let bias = added.biases.clone().narrow(0, neuron, 1).reshape([1, 1, 1]);
            let loud = activation::relu((q.clone() * column(&added.keys)).sum_dim(2) + bias);
            let value = added.values.clone().slice([neuron..neuron + 1, 0..width]).reshape([1, 1, width]);
            said = said + loud * value;
        }
        let at = Site { stack: Stack::Decoder, layer, place: Place::MlpOut };
        let wanted = hidden(&base, &tokens, &mut Adds(at, said));
        let found = hidden(&edited, &tokens, &mut NoTap);
        assert!(difference(&found, &wanted) < 1e-5, "{name}");
        assert!(difference(&found, &hidden(&base, &tokens, &mut NoTap)) > 1e-4, "{name}");
    }
}

#[test]
fn many_are_the_sum_of_each_and_the_file_holds_them() {
    let base = base("llama-tiny");
    let (tokens, width) = (tokens("llama-tiny"), base.base().decoder.spec.width);
    let place = (Stack::Decoder, 0);
    let parts = [Activation::Relu, Activation::Silu, Activation::Relu].map(|activation| neurons(width, 2, activation));
    let edits: Vec<Arc<Edit>> =
        parts.iter().map(|part| Arc::new(edit(&base, [(place, vec![part.clone()])].into()))).collect();
    let mut stacked = base.clone();
    for edit in &edits {
        stacked = stacked.with(edit.clone()).unwrap();
    }
    let joined = Edit::join(&edits).unwrap();
    // Those of one activation are one.
    let lists = &joined.pass().unwrap().neurons[&place];
    assert_eq!(lists.iter().map(Neurons::count).collect::<Vec<_>>(), [4, 2]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("neurons.safetensors");
    joined.save(&path).unwrap();
    let loaded = Edit::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.id(), joined.id());
    let [one, other, third] = [&stacked, &base.with(joined).unwrap(), &base.with(loaded).unwrap()]
        .map(|model| hidden(model, &tokens, &mut NoTap));
    assert!(difference(&one, &other) < 1e-5);
    assert_eq!(other, third);
    // By a tap they are the same, beside another tap.
    let added = [(place, parts.to_vec())].into();
    let mut recorder = Recorder::at([]);
    let by_tap = hidden(&base, &tokens, &mut Both(Firing::new(&added), &mut recorder));
    assert!(difference(&by_tap, &one) < 1e-5);
    let (left, _) = stacked.without(edits[1].id()).unwrap();
    let (left, _) = left.without(edits[0].id()).unwrap();
    let (left, _) = left.without(edits[2].id()).unwrap();
    assert_eq!(hidden(&left, &tokens, &mut NoTap), hidden(&base, &tokens, &mut NoTap));
}

#[test]
fn what_does_not_fit_is_refused() {
    let base = base("gpt2-tiny");
    let width = base.base().decoder.spec.width;
    for (place, added, words) in [
        ((Stack::Decoder, 9), neurons(width, 1, Activation::Relu), "layer 9"),
        ((Stack::Encoder, 0), neurons(width, 1, Activation::Relu), "layer 0"),
        ((Stack::Decoder, 0), neurons(width + 1, 1, Activation::Relu), "the model wants"),
    ] {
        let error = base.with(edit(&base, [(place, vec![added])].into())).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn t_patcher_says_its_target_and_is_silent_elsewhere() {
    let base = pocket();
    let editor = editor("method = \"t_patcher\"\nlayer = 5\nmemory = \"pocket\"\nqueries = 2000\nsteps = 400").unwrap();
    let requests = [request(), music()];
    let edit = editor.edit(&base, &requests).unwrap();
    let counts: usize = edit.pass().unwrap().neurons.values().flatten().map(Neurons::count).sum();
    assert!((2..=10).contains(&counts), "{counts}");
    let model = base.with(edit).unwrap();
    for request in &requests {
        assert!(says(&model, request), "{}", request.prompt);
    }
    same_scores(&base, &model, FAR[2]);
}

#[test]
fn calinet_learns_a_batch() {
    let base = pocket();
    let editor = editor("method = \"calinet\"\nlayer = 5\nslots = 16\nsteps = 200").unwrap();
    let requests = [request(), music(), EditRequest::new("The author of Crooked House is", "Jane Austen")];
    let edit = editor.edit(&base, &requests).unwrap();
    assert_eq!(edit.id(), editor.edit(&base, &requests).unwrap().id());
    let model = base.with(edit).unwrap();
    for request in &requests {
        assert!(says(&model, request), "{}", request.prompt);
    }
}
