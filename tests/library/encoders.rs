//! Encoders against tiny random models and MiniLM as PyTorch has them (tests/fixtures/README.md), and what embeddings do not depend on.

use burn::tensor::{DType, Device, Tensor, TensorData};
use emend::model::load::encoder::EncoderModel;
use emend::model::sentences::{SentenceEncoder, nearest, normalized};
use emend::model::stack::taps::Recorder;
use emend::model::tap::{NoTap, Place, Site, Stack};
use emend::model::tokenizer::Tokenizer;
use emend::model::tokens::Tokens;
use proptest::prelude::*;

use crate::common::{Golden, difference, downloaded, fixture, real, values};

const MODELS: [&str; 2] = ["bert-tiny", "distilbert-tiny"];
const TOLERANCE: f64 = 1e-5;

fn encoder(name: &str) -> EncoderModel {
    EncoderModel::open(&fixture(name), &Device::flex(), DType::F32).unwrap()
}

/// For each golden row the cell at which its second text begins; nothing where the model knows no token types.
fn second(golden: &Golden) -> Vec<usize> {
    if !golden.has("token_type_ids") {
        return vec![];
    }
    let width = golden.shape("token_type_ids")[1];
    let kinds = golden.floats("token_type_ids");
    kinds.chunks(width).map(|row| row.iter().position(|&kind| kind == 1.0).unwrap_or(width)).collect()
}

/// The last hidden states of rows, `[rows, cells, width]`.
fn hidden(model: &EncoderModel, tokens: &Tokens, second: &[usize]) -> Tensor<3> {
    let hidden = model.encoder.embed(tokens, second, &mut NoTap).unwrap();
    model.encoder.blocks(hidden, 0..model.encoder.spec.layers, tokens.span(), &mut NoTap)
}

fn rows_of(tensor: Tensor<2>) -> Vec<Vec<f64>> {
    let [_, width] = tensor.dims();
    values(tensor).chunks(width).map(<[f64]>::to_vec).collect()
}

#[test]
fn every_site_matches_pytorch() {
    for name in MODELS {
        let golden = Golden::open(fixture(name).join("golden.safetensors"));
        let model = encoder(name);
        let layers = model.encoder.spec.layers;
        let tokens = Tokens::new(golden.ids());
        let span = tokens.span();
        let second = second(&golden);
        assert_eq!(second, if name == "bert-tiny" { vec![6, 12] } else { vec![] });
        let places = [
            (Place::AttentionOut, "attention_out"),
            (Place::MlpHidden, "mlp_hidden"),
            (Place::MlpOut, "mlp_out"),
            (Place::BlockOut, "block_out"),
        ];
        let site = |layer, place| Site { stack: Stack::Encoder, layer, place };
        let sites = (0..layers).flat_map(|layer| places.map(|(place, _)| site(layer, place)));
        let mut recorder = Recorder::at(sites.chain([site(0, Place::Embedding)]));
        let hidden = model.encoder.embed(&tokens, &second, &mut recorder).unwrap();
        let hidden = model.encoder.blocks(hidden, 0..layers, span, &mut recorder);

        let check = |what: &str, ours: Tensor<3>| {
            let apart = difference(&real(ours, span), &golden.floats(what));
            assert!(apart <= TOLERANCE, "{name} {what}: {apart:e}");
        };
        check("embedding", recorder.values[&site(0, Place::Embedding)].clone());
        for layer in 0..layers {
            for (place, label) in places {
                check(&format!("{label}.{layer}"), recorder.values[&site(layer, place)].clone());
            }
        }
        check(&format!("block_out.{}", layers - 1), hidden);
    }
}

#[test]
fn the_second_text_begins_where_it_is_said_to() {
    let golden = Golden::open(fixture("bert-tiny").join("golden.safetensors"));
    let model = encoder("bert-tiny");
    let tokens = Tokens::new(golden.ids());
    let wanted = golden.floats("block_out.1");
    // Told nothing, or one cell beside, it is another text.
    for wrong in [vec![], vec![5, 12], vec![7, 12]] {
        let apart = difference(&real(hidden(&model, &tokens, &wrong), tokens.span()), &wanted);
        assert!(apart > 1e-2, "{wrong:?}: {apart:e}");
    }
    // A row behind the end of the list has no second text; neither has one whose second begins at its end.
    let said = real(hidden(&model, &tokens, &[6]), tokens.span());
    assert_eq!(said, real(hidden(&model, &tokens, &[6, 7]), tokens.span()));
}

#[test]
fn ids_are_those_of_transformers() {
    for name in MODELS {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let text = std::fs::read_to_string(fixture(name).join("tokens.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let mut pairs = 0;
        for case in cases {
            let read = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let (ids, text) = (read("ids"), case["text"].as_str().unwrap());
            match case["pair"].as_str() {
                Some(pair) => {
                    let from = read("type_ids").iter().position(|&kind| kind == 1).unwrap();
                    assert_eq!(tokenizer.encode_pair(text, Some(pair), 512).unwrap(), (ids, from), "{name}: {text}");
                    pairs += 1;
                }
                None => {
                    assert_eq!(tokenizer.encode_whole(text, 512).unwrap(), ids, "{name}: {text}");
                    let length = ids.len();
                    assert_eq!(tokenizer.encode_pair(text, None, 512).unwrap(), (ids, length), "{name}: {text}");
                }
            }
        }
        assert_eq!(pairs, 1);
    }
}

#[test]
fn what_is_too_long_is_cut_before_its_closing_token() {
    let tokenizer = Tokenizer::open(&fixture("bert-tiny")).unwrap();
    let (first, pair) = ("The river runs past the old mill.", "Where was the mountain?");
    let whole = tokenizer.encode_whole(first, 512).unwrap();
    for most in 3..=whole.len() {
        let cut = tokenizer.encode_whole(first, most).unwrap();
        assert_eq!(cut.len(), most);
        assert_eq!((&cut[..most - 1], cut[most - 1]), (&whole[..most - 1], 3));
    }
    let (both, from) = tokenizer.encode_pair(first, Some(pair), 512).unwrap();
    // The longer one gives way; the shorter one stays whole, and the second begins where it does.
    let (cut, cut_from) = tokenizer.encode_pair(first, Some(pair), both.len() - 2).unwrap();
    assert_eq!(cut.len(), both.len() - 2);
    assert_eq!(cut_from, from - 2);
    assert_eq!(cut[cut_from..], both[from..]);
    assert_eq!((&cut[..cut_from - 1], cut[cut_from - 1]), (&both[..from - 3], 3));
}

#[test]
fn padding_changes_nothing() {
    for name in MODELS {
        let model = encoder(name);
        let rows = Golden::open(fixture(name).join("golden.safetensors")).ids();
        let long: Vec<u32> = rows[0].iter().chain(&rows[1]).chain(&rows[0]).copied().collect();
        let short = rows[1].clone();
        let alone = values(hidden(&model, &Tokens::new(vec![short.clone()]), &[]));
        for beside in [rows[0].clone(), long] {
            let tokens = Tokens::new(vec![beside, short.clone()]);
            let width = model.encoder.spec.width;
            let padded = hidden(&model, &tokens, &[]).slice([1..2, 0..short.len(), 0..width]);
            let apart = difference(&values(padded), &alone);
            assert!(apart <= 2e-6, "{name} in {} cells: {apart:e}", tokens.span().width);
        }
    }
}

#[test]
fn split_by_layer_is_the_whole_bit_for_bit() {
    for name in MODELS {
        let model = encoder(name);
        let golden = Golden::open(fixture(name).join("golden.safetensors"));
        let (tokens, second) = (Tokens::new(golden.ids()), second(&golden));
        let whole = values(hidden(&model, &tokens, &second));
        let lower = model.encoder.embed(&tokens, &second, &mut NoTap).unwrap();
        let lower = model.encoder.blocks(lower, 0..1, tokens.span(), &mut NoTap);
        let upper = model.encoder.blocks(lower, 1..model.encoder.spec.layers, tokens.span(), &mut NoTap);
        assert_eq!(values(upper), whole, "{name}");
    }
}

/// Each sentence alone, and all of them in several orders and company.
fn alone_and_together(encoder: &SentenceEncoder, sentences: &[&str]) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let alone: Vec<Vec<f64>> =
        sentences.iter().map(|text| rows_of(encoder.embed(&[text]).unwrap()).remove(0)).collect();
    let together = rows_of(encoder.embed(sentences).unwrap());
    for (index, text) in sentences.iter().enumerate() {
        assert_eq!(together[index], alone[index], "\"{text}\" among all");
    }
    let mut order: Vec<usize> = (0..sentences.len()).rev().chain(0..sentences.len()).collect();
    order.rotate_left(sentences.len() / 2);
    let shuffled = rows_of(encoder.embed(&order.iter().map(|&index| sentences[index]).collect::<Vec<_>>()).unwrap());
    for (&index, row) in order.iter().zip(&shuffled) {
        assert_eq!(*row, alone[index], "\"{}\" among all, twice", sentences[index]);
    }
    (alone, together)
}

#[test]
fn an_embedding_does_not_depend_on_what_stands_beside_it() {
    for name in MODELS {
        let encoder = SentenceEncoder::open(&fixture(name), &Device::flex(), DType::F32).unwrap();
        // Several of one length, so that they share a pass.
        let sentences = [
            "The river runs past the old mill.",
            "The mill runs past the old river.",
            "the old river runs past the mill.",
            "Where was the mountain?",
            "Where was the river?",
            "",
            "mill",
        ];
        let (alone, _) = alone_and_together(&encoder, &sentences);
        assert_ne!(alone[0], alone[1]);
        for row in &alone {
            assert_eq!(row.len(), encoder.width());
            assert!((row.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-6);
        }
        // It is the mean over the tokens, scaled to length one.
        let model = encoder.model();
        let ids = model.tokenizer.encode_whole(sentences[3], 512).unwrap();
        let states = hidden(model, &Tokens::new(vec![ids]), &[]).squeeze_dim::<2>(0);
        let mean = normalized(states.mean_dim(0));
        assert!(difference(&values(mean), &alone[3]) < 1e-6);
    }
}

#[test]
#[cfg_attr(not(downloaded = "all-minilm-l6-v2"), ignore = "no all-minilm-l6-v2 under $EMEND_MODELS")]
fn minilm_is_that_of_pytorch() {
    let folder = downloaded("all-minilm-l6-v2");
    let encoder = SentenceEncoder::open(&folder, &Device::flex(), DType::F32).unwrap();
    let text = std::fs::read_to_string(fixture("minilm.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let golden = golden["sentences"].as_array().unwrap();
    let sentences: Vec<&str> = golden.iter().map(|case| case["text"].as_str().unwrap()).collect();
    assert!(sentences.len() >= 12);
    let (alone, together) = alone_and_together(&encoder, &sentences);
    for (index, case) in golden.iter().enumerate() {
        let wanted: Vec<f64> = serde_json::from_value(case["embedding"].clone()).unwrap();
        for found in [&alone[index], &together[index]] {
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let cosine = product(found, &wanted) / (product(found, found) * product(&wanted, &wanted)).sqrt();
            assert!(cosine >= 0.99999, "\"{}\": {cosine}", sentences[index]);
            let apart = difference(found, &wanted);
            assert!(apart < 1e-4, "\"{}\": {apart:e}", sentences[index]);
        }
    }
}

proptest! {
    #[test]
    fn the_nearest_are_those_of_a_plain_loop(
        width in 1usize..4,
        queries in 1usize..5,
        rows in 1usize..40,
        k in 0usize..45,
        // Few values, so that many products are equal; each is exact.
        numbers in proptest::collection::vec(proptest::sample::select(vec![-2i8, -1, 1, 2]), 3 * 45),
    ) {
        let number = |index: usize| f32::from(numbers[index % numbers.len()]);
        let query = |row: usize, column: usize| number(row * width + column);
        let known = |row: usize, column: usize| number((queries + row) * width + column);
        let tensor = |count: usize, of: &dyn Fn(usize, usize) -> f32| {
            let all: Vec<f32> = (0..count * width).map(|index| of(index / width, index % width)).collect();
            Tensor::<2>::from_data(TensorData::new(all, [count, width]), (&Device::flex(), DType::F32))
        };
        let found = nearest(tensor(queries, &query), &tensor(rows, &known), k);
        prop_assert_eq!(found.len(), queries);
        for (row, found) in found.iter().enumerate() {
            let product = |other: usize| (0..width).map(|column| query(row, column) * known(other, column)).sum::<f32>();
            let mut left: Vec<(usize, f32)> = (0..rows).map(|other| (other, product(other))).collect();
            let mut wanted = vec![];
            while wanted.len() < k && !left.is_empty() {
                let mut best = 0;
                for other in 1..left.len() {
                    if left[other].1 > left[best].1 {
                        best = other;
                    }
                }
                wanted.push(left.remove(best));
            }
            prop_assert_eq!(found, &wanted);
        }
    }
}
