//! BERT as a classifier: against PyTorch, and what its tokenizer makes of claims and labels.

use std::sync::Arc;

use burn::tensor::{DType, Device};
use emend::Edited;
use emend::edit::generate::Sampling;
use emend::edit::score::score;
use emend::model::Model;
use emend::model::stack::taps::Recorder;
use emend::model::tap::{Place, Site, Stack};
use emend::model::tokenizer::Tokenizer;
use emend::model::tokens::{BEGIN, Tokens};

use crate::common::{Golden, difference, fixture, values};

const NAME: &str = "bert-classifier-tiny";

fn model(dtype: DType) -> Model {
    Model::load(fixture(NAME).to_str().unwrap(), &Device::flex(), dtype).unwrap()
}

const PLACES: [(Place, &str); 4] = [
    (Place::AttentionOut, "attention_out"),
    (Place::MlpHidden, "mlp_hidden"),
    (Place::MlpOut, "mlp_out"),
    (Place::BlockOut, "block_out"),
];

#[test]
fn logits_and_every_site_match_pytorch() {
    let golden = Golden::open(fixture(NAME).join("golden.safetensors"));
    let model = Edited::new(Arc::new(model(DType::F32)));
    let (ids, mask): (Vec<u32>, Vec<u32>) = (golden.integers("input_ids"), golden.integers("attention_mask"));
    let width = ids.len() / 2;
    let row = |row: usize| -> Vec<u32> {
        let cells = (row * width..(row + 1) * width).filter(|&cell| mask[cell] == 1).map(|cell| ids[cell]);
        cells.chain([BEGIN]).collect()
    };
    let tokens = Tokens::new(vec![row(0), row(1)]);
    assert!(tokens.ids()[0].len() != tokens.ids()[1].len());
    let site = |layer, place| Site { stack: Stack::Encoder, layer, place };
    let mut sites = vec![(site(0, Place::Embedding), "encoder.embedding".to_owned())];
    for layer in 0..2 {
        sites.extend(PLACES.map(|(place, what)| (site(layer, place), format!("encoder.{what}.{layer}"))));
    }
    let mut recorder = Recorder::at(sites.iter().map(|(site, _)| *site));
    let hidden = model.embed(&tokens, &mut recorder).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut recorder).unwrap();
    let reads: Vec<(usize, usize)> = tokens.ids().iter().enumerate().map(|(row, ids)| (row, ids.len() - 1)).collect();
    let apart = difference(&values(model.head(hidden, &reads)), &golden.floats("logits"));
    assert!(apart < 2e-5, "logits: {apart:e}");
    for (site, what) in sites {
        let (ours, theirs) = (values(recorder.values[&site].clone()), golden.floats(&what));
        let wide = ours.len() / (2 * width);
        let real = |values: &[f64]| -> Vec<f64> {
            (0..2 * width)
                .filter(|&cell| mask[cell] == 1)
                .flat_map(|cell| values[cell * wide..][..wide].to_vec())
                .collect()
        };
        let apart = difference(&real(&ours), &real(&theirs));
        assert!(apart < 2e-5, "{what}: {apart:e}");
    }
}

#[test]
fn labels_are_what_it_answers() {
    let model = Edited::new(Arc::new(model(DType::F32)));
    let tokenizer = &model.base().tokenizer;
    let prompt = "the lake lies north of the town";
    let asked = |label: &str| tokenizer.continuation(prompt, label, None);
    let labels = ["REFUTES", "SUPPORTS", "NOT ENOUGH INFO"];
    let rows: Vec<_> = labels.iter().map(|label| asked(label).unwrap()).collect();
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.target(), [number as u32]);
        assert_eq!(row.ids[row.prompt - 1], BEGIN);
    }
    assert!(asked("maybe").unwrap_err().to_string().contains("its labels are REFUTES, SUPPORTS, NOT ENOUGH INFO"));
    let scored = score(&[&model], &rows).unwrap().remove(0);
    let total: f64 = scored.iter().map(|scored| f64::from(scored.log_probabilities[0]).exp()).sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");
    // One label, and no more, however many tokens are asked for.
    let ids = tokenizer.encode_prompt(prompt).unwrap();
    let made = model.generate(std::slice::from_ref(&ids), 5, &[], &Sampling::default()).unwrap().remove(0);
    let likeliest = model.next_tokens(&ids, 3).unwrap();
    assert_eq!(made, [likeliest[0].id]);
    assert!(labels.contains(&tokenizer.decode(&made).unwrap().as_str()));
    assert_eq!(likeliest[0].token, tokenizer.decode(&made).unwrap());
    assert_eq!(tokenizer.prompt_text(&ids).unwrap(), prompt);
}

/// WordPiece, with a token before and one behind every text.
#[test]
fn claims_are_the_tokens_of_transformers() {
    let tokenizer = Tokenizer::open(&fixture("bert-tiny")).unwrap().for_labels(vec!["no".into(), "yes".into()]);
    let text = std::fs::read_to_string(fixture("bert-tiny").join("tokens.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut seen = 0;
    for case in cases {
        let Some(text) = case["text"].as_str().filter(|text| !text.is_empty() && case["pair"].is_null()) else {
            continue;
        };
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), [&ids[..], &[BEGIN]].concat(), "{text}");
        assert_eq!(tokenizer.continuation(text, "yes", None).unwrap().ids, [&ids[..], &[BEGIN, 1]].concat());
        seen += 1;
    }
    assert!(seen > 3);
}
