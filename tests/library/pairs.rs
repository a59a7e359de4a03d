//! Encoder-decoders: against PyTorch, in parts, with keys and values kept.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use emend::Edited;
use emend::edit::generate::Sampling;
use emend::model::stack::taps::Recorder;
use emend::model::tap::{NoTap, Place, Site, Span, Stack, Tap, Text};
use emend::model::tokens::{BEGIN, Tokens};

use crate::common::{Golden, PAIRS, difference, fixture, model, pair, values};

const PLACES: [(Place, &str); 4] = [
    (Place::AttentionOut, "attention_out"),
    (Place::MlpHidden, "mlp_hidden"),
    (Place::MlpOut, "mlp_out"),
    (Place::BlockOut, "block_out"),
];

fn golden(name: &str) -> Golden {
    Golden::open(fixture(name).join("golden.safetensors"))
}

/// The decoder's cells.
fn written(span: &Span) -> Vec<(usize, usize)> {
    let cells = |row: usize| (span.rows[row].text.source..span.rows[row].len).map(move |cell| (row, cell));
    (0..span.rows.len()).flat_map(cells).collect()
}

fn logits(model: &Edited, tokens: &Tokens, tap: &mut dyn Tap) -> Vec<f64> {
    let hidden = model.embed(tokens, tap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, tap).unwrap();
    values(model.head(hidden, &written(tokens.span())))
}

/// The real cells of `[batch, tokens, width]`, of whose rows so many are.
fn real(values: &[f64], lengths: [usize; 2]) -> Vec<f64> {
    let rows = values.len() / 2;
    let longest = lengths.iter().max().unwrap();
    let width = rows / longest;
    (0..2).flat_map(|row| values[row * rows..row * rows + lengths[row] * width].to_vec()).collect()
}

#[test]
fn logits_and_every_site_match_pytorch() {
    for name in PAIRS {
        let (golden, model) = (golden(name), model(name, DType::F32));
        let tokens = Tokens::new(pair(&golden));
        let span = tokens.span();
        let spec = &model.decoder.spec;
        let depths = [(Stack::Encoder, "encoder", spec.source_layers()), (Stack::Decoder, "decoder", spec.layers)];
        let mut sites = vec![];
        for (stack, label, layers) in depths {
            sites.push((Site { stack, layer: 0, place: Place::Embedding }, format!("{label}.embedding")));
            for layer in 0..layers {
                let of =
                    |(place, what): (Place, &str)| (Site { stack, layer, place }, format!("{label}.{what}.{layer}"));
                sites.extend(PLACES.map(of));
            }
        }
        let mut recorder = Recorder::at(sites.iter().map(|(site, _)| *site));
        let model = Edited::new(Arc::new(model));
        let logits = logits(&model, &tokens, &mut recorder);
        let lengths = |stack| {
            [0, 1].map(|row: usize| {
                let row = &span.rows[row];
                if stack == Stack::Encoder { row.text.source } else { row.len - row.text.source }
            })
        };
        let check = |what: &str, ours: Vec<f64>, stack| {
            let apart = difference(&ours, &real(&golden.floats(what), lengths(stack)));
            assert!(apart < 2e-5, "{name} {what}: {apart:e}");
        };
        check("logits", logits, Stack::Decoder);
        for (site, what) in sites {
            let passed: Tensor<3> = recorder.values[&site].clone();
            check(&what, real(&values(passed), lengths(site.stack)), site.stack);
        }
    }
}

#[test]
fn greedy_generation_is_that_of_pytorch() {
    for name in PAIRS {
        let golden = golden(name);
        let model = Edited::new(Arc::new(model(name, DType::F32)));
        let wanted: Vec<u32> = golden.integers("generated");
        // Both rows at once: the second one's encoder cells are fewer.
        let prompts: Vec<Vec<u32>> = pair(&golden)
            .into_iter()
            .map(|row| {
                let begin = row.iter().position(|&id| id == BEGIN).unwrap();
                row[..=begin].to_vec()
            })
            .collect();
        let made = model.generate(&prompts, 8, &[], &Sampling::default()).unwrap();
        assert_eq!(made[0], wanted, "{name}");
        // With keys and values kept it is what it is without.
        let mut row = prompts[1].clone();
        for _ in 0..8 {
            row.push(model.next_tokens(&row, 1).unwrap()[0].id);
        }
        assert_eq!(made[1], row[prompts[1].len()..], "{name}");
    }
}

#[test]
fn in_parts_it_is_the_whole() {
    for name in PAIRS {
        let model = Edited::new(Arc::new(model(name, DType::F32)));
        let rows = pair(&golden(name));
        let tokens = Tokens::new(rows.clone());
        let whole = logits(&model, &tokens, &mut NoTap);
        let mut hidden = model.embed(&tokens, &mut NoTap).unwrap();
        for layer in 0..model.layers() {
            hidden = model.blocks(hidden, layer..layer + 1, tokens.span(), None, &mut NoTap).unwrap();
        }
        assert_eq!(values(model.head(hidden, &written(tokens.span()))), whole, "{name}");

        // By position: the encoder's part with one token of the decoder's, then the rest.
        let begins: Vec<usize> = tokens.texts().iter().map(|text| text.source).collect();
        let mut past = model.past();
        let (mut first, mut found) = (vec![], vec![vec![]; 2]);
        for part in 0..2 {
            let pieces: Vec<Vec<u32>> =
                (0..2)
                    .map(|row| {
                        if part == 0 {
                            rows[row][..=begins[row]].to_vec()
                        } else {
                            rows[row][begins[row] + 1..].to_vec()
                        }
                    })
                    .collect();
            let places = (0..2).map(|row| (row, if part == 0 { 0 } else { begins[row] + 1 })).collect();
            let tokens = Tokens::placed(pieces, places).of(tokens.texts());
            let hidden = model.embed(&tokens, &mut NoTap).unwrap();
            let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), Some(&mut past), &mut NoTap).unwrap();
            for (row, found) in found.iter_mut().enumerate() {
                let from = if part == 0 { begins[row] } else { 0 };
                let cells: Vec<_> = (from..tokens.span().rows[row].len).map(|cell| (row, cell)).collect();
                found.extend(values(model.head(hidden.clone(), &cells)));
            }
            first.push(past.len(0));
        }
        assert!(difference(&found.concat(), &whole) < 1e-5, "{name}");
        assert_eq!(first, [begins[0] + 1, rows[0].len()]);
    }
}

#[test]
fn a_text_that_is_no_pair_is_refused() {
    let pairs = Edited::new(Arc::new(model("t5-tiny", DType::F32)));
    let plain = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let error =
        |model: &Edited, ids: Vec<u32>| model.embed(&Tokens::new(vec![ids]), &mut NoTap).unwrap_err().to_string();
    assert!(error(&pairs, vec![4, 5]).contains("no such pair"));
    assert!(error(&plain, vec![4, BEGIN, 5]).contains("outside the model's vocabulary"));
    // What comes later wants what the encoder made.
    let later = Tokens::placed(vec![vec![5]], vec![(0, 4)]).of([Text::new(&[4, 4, 4, BEGIN])]);
    let hidden = pairs.embed(&later, &mut NoTap).unwrap();
    let apart = pairs.blocks(hidden, 0..pairs.layers(), later.span(), Some(&mut pairs.past()), &mut NoTap);
    assert!(apart.unwrap_err().to_string().contains("wants a past"));
}
