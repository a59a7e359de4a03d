//! Against tiny random models and their activations written by `transformers` (tests/fixtures/README.md).

use burn::tensor::{DType, Device, Tensor};
use emend::Model;
use emend::model::load::checkpoint::Checkpoint;
use emend::model::stack::taps::{GradientProbes, Recorder};
use emend::model::tap::{Place, Role, Site, Stack, Tap, Weight};
use emend::model::tokenizer::Tokenizer;
use emend::model::tokens::Tokens;

use crate::common::{FAMILIES, Golden, difference, downloaded, fixture, model, real, values};

const TOLERANCE: f64 = 2e-5;

#[test]
fn logits_and_every_site_match_pytorch() {
    for name in FAMILIES {
        let golden = Golden::open(fixture(name).join("golden.safetensors"));
        let model = model(name, DType::F32);
        let decoder = &model.decoder;
        let tokens = Tokens::new(golden.ids());
        let span = tokens.span();
        let layers = decoder.spec.layers;
        let places = [
            (Place::AttentionOut, "attention_out"),
            (Place::MlpHidden, "mlp_hidden"),
            (Place::MlpOut, "mlp_out"),
            (Place::BlockOut, "block_out"),
        ];
        let site = |layer, place| Site { stack: Stack::Decoder, layer, place };
        let sites = (0..layers).flat_map(|layer| places.map(|(place, _)| site(layer, place)));
        let mut recorder = Recorder::at(sites.chain([site(0, Place::Embedding)]));
        let hidden = decoder.embed(&tokens, &mut recorder).unwrap();
        let hidden = decoder.blocks(hidden, 0..layers, span, None, &mut recorder).unwrap();
        let cells: Vec<_> = (0..2).flat_map(|row| (0..span.width).map(move |cell| (row, cell))).collect();
        let logits = decoder.head(hidden, &cells).reshape([2, span.width, decoder.spec.vocabulary]);

        let check = |what: &str, ours: Tensor<3>| {
            let apart = difference(&real(ours, span), &golden.floats(what));
            assert!(apart < TOLERANCE, "{name} {what}: {apart:e}");
        };
        check("logits", logits);
        check("embedding", recorder.values[&site(0, Place::Embedding)].clone());
        for layer in 0..layers {
            for (place, label) in places {
                check(&format!("{label}.{layer}"), recorder.values[&site(layer, place)].clone());
            }
        }
    }
}

/// The NLL that the golden gradients belong to: the summed NLL of the last three tokens of row 0.
fn golden_nll(logits: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let log = burn::tensor::activation::log_softmax(logits, 1);
    let index: Vec<i64> = targets.iter().map(|&id| id as i64).collect();
    let index =
        Tensor::<1, burn::tensor::Int>::from_data(index.as_slice(), &log.device().inner()).unsqueeze_dim::<2>(1);
    log.gather(1, index).sum().neg()
}

#[test]
fn probes_give_the_gradients_of_pytorch() {
    for name in ["gpt2-tiny", "llama-tiny"] {
        let golden = Golden::open(fixture(name).join("golden.safetensors"));
        let model = model(name, DType::F64);
        let decoder = &model.decoder;
        let ids = golden.ids()[..1].to_vec();
        let tokens = Tokens::new(ids.clone());
        let roles = [Role::Query, Role::Key, Role::Value, Role::Out, Role::MlpGate, Role::MlpUp, Role::MlpDown];
        let weights = roles.map(|role| Weight::decoder(1, role));
        let mut probes = GradientProbes::at(weights);
        let hidden = decoder.embed(&tokens, &mut probes).unwrap();
        let hidden = decoder.blocks(hidden, 0..decoder.spec.layers, tokens.span(), None, &mut probes).unwrap();
        let last = ids[0].len();
        let reads: Vec<_> = (last - 4..last - 1).map(|cell| (0, cell)).collect();
        let loss = golden_nll(decoder.head(hidden, &reads), &ids[0][last - 3..]);
        let gradients = loss.backward();
        assert!(difference(&values(loss.inner()), &golden.floats("nll")) < 1e-5);
        let read = probes.read(&gradients);
        for weight in weights {
            let key = format!("grad.1.{}", weight.role);
            if !golden.has(&key) {
                assert_eq!(weight.role, Role::MlpGate);
                continue;
            }
            let (u, delta) = read[&weight].clone();
            let gradient = u.squeeze_dim::<2>(0).transpose().matmul(delta.squeeze_dim(0));
            let apart = difference(&values(gradient), &golden.floats(&key));
            assert!(apart < TOLERANCE, "{name} {key}: {apart:e}");
        }
    }
}

/// A tap that changes nothing, to see that a pass with taps is the pass without.
struct Idle;
impl Tap for Idle {}

/// Next-token logits of a real model against PyTorch's: the likeliest ten of each prompt.
fn predicts_what_pytorch_predicts(name: &str) {
    let folder = downloaded(name);
    let (checkpoint, tokenizer) = (Checkpoint::open(&folder).unwrap(), Tokenizer::open(&folder).unwrap());
    let model = Model::from_parts(checkpoint, tokenizer, &Device::flex(), DType::F32).unwrap();
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    for case in golden.as_array().expect("a list of prompts") {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(model.tokenizer.encode(prompt).unwrap(), ids);
        let tokens = Tokens::new(vec![ids.clone()]);
        let hidden = model.decoder.embed(&tokens, &mut Idle).unwrap();
        let layers = 0..model.decoder.spec.layers;
        let hidden = model.decoder.blocks(hidden, layers, tokens.span(), None, &mut Idle).unwrap();
        let logits = values(model.decoder.head(hidden, &[(0, ids.len() - 1)]));
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        for (rank, entry) in case["top"].as_array().unwrap().iter().enumerate() {
            assert_eq!(order[rank] as u64, entry["id"].as_u64().unwrap(), "{prompt}");
            let apart = (logits[order[rank]] - entry["logit"].as_f64().unwrap()).abs();
            assert!(apart < 2e-4, "{prompt}: {apart:e}");
        }
    }
}

#[test]
#[cfg_attr(not(downloaded = "smollm2-135m"), ignore = "no smollm2-135m under $EMEND_MODELS")]
fn smollm2_predicts_what_pytorch_predicts() {
    predicts_what_pytorch_predicts("smollm2-135m");
}

/// The last prompt goes beyond the sliding window.
#[test]
#[cfg_attr(not(downloaded = "gemma3-270m"), ignore = "no gemma3-270m under $EMEND_MODELS")]
fn gemma3_predicts_what_pytorch_predicts() {
    predicts_what_pytorch_predicts("gemma3-270m");
}

#[test]
fn llama3_frequencies_are_those_of_transformers() {
    use emend::model::layers::rotary::{Pairs, Rotary, RotaryScaling};
    let text = std::fs::read_to_string(fixture("rope-llama3.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    for case in cases {
        let number = |key: &str| case["rope_scaling"][key].as_f64().unwrap();
        let rotary = Rotary {
            theta: case["rope_theta"].as_f64().unwrap(),
            width: case["head_dim"].as_u64().unwrap() as usize,
            pairs: Pairs::Halves,
            scaling: RotaryScaling::Llama3 {
                factor: number("factor"),
                low: number("low_freq_factor"),
                high: number("high_freq_factor"),
                original_context: number("original_max_position_embeddings"),
            },
        };
        let wanted: Vec<f64> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        for (found, wanted) in rotary.frequencies().iter().zip(&wanted) {
            assert!((found / wanted - 1.0).abs() < 1e-5, "{found} {wanted}");
        }
    }
}
