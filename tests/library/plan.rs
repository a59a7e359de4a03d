//! Sizes that follow from a model's shapes, against what the model is when it is loaded.

use burn::module::Module;
use burn::tensor::{DType, Device};

use emend::Model;
use emend::model::stack::sizes::Pass;
use emend::model::tap::{Role, Stack, Weight};

#[test]
fn weights_are_reckoned_from_shapes() {
    for name in ["pocket", "pocket-t5"] {
        let model = Model::load(name, &Device::flex(), DType::F32).unwrap();
        let spec = &model.decoder.spec;
        let (reckoned, held) = (spec.weights_bytes() as f64, 4.0 * model.decoder.num_params() as f64);
        // Norms, biases and tables of distances are not counted.
        assert!((0.98..=1.0).contains(&(reckoned / held)), "{name}: {reckoned} of {held}");
        let blocks: usize = [(Stack::Encoder, spec.source_layers()), (Stack::Decoder, spec.layers)]
            .into_iter()
            .flat_map(|(stack, layers)| (0..layers).map(move |layer| (stack, layer)))
            .flat_map(|(stack, layer)| Role::all().map(move |role| Weight { stack, layer, role }))
            .filter_map(|at| model.decoder.linear(at).ok())
            .map(|linear| linear.weight.dims().iter().product::<usize>())
            .sum();
        assert_eq!(spec.layers_bytes(0), 4 * blocks as u64, "{name}");
        assert_eq!(spec.layers_bytes(spec.depth()), 0, "{name}");
    }
}

#[test]
fn passes_grow_with_their_cells() {
    let model = Model::load("pocket", &Device::flex(), DType::F32).unwrap();
    let spec = &model.decoder.spec;
    let (one, two) = (Pass::new(1, 16), Pass::new(2, 16));
    assert_eq!(2 * spec.graph_bytes(one, 3), spec.graph_bytes(two, 3));
    assert_eq!(2 * spec.block_bytes(one), spec.block_bytes(two));
    assert_eq!(spec.graph_bytes(one, 0), 0);
    assert!(spec.graph_bytes(Pass { past: 16, ..one }, 3) > spec.graph_bytes(one, 3));
    assert_eq!(spec.past_bytes(two, 3), 2 * spec.past_bytes(one, 3));
}
