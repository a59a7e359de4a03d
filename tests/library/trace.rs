//! Causal tracing: what is put back, and that only what changes is run again.

use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor, activation};
use emend::data::objective::Hidden;
use emend::edit::{EditRequest, Edited};
use emend::model::stack::taps::{Recorder, Replace};
use emend::model::tap::{Both, Place, Site, Span, Stack, Tap};
use emend::model::tokens::Tokens;
use emend::trace::noise::{Noise, Strength};
use emend::trace::restore::{Patch, Runs};
use emend::trace::{Question, Restored, trace, window};

use crate::common::{FAMILIES, model, values};

fn site(place: Place, layer: usize) -> Site {
    Site { stack: Stack::Decoder, layer, place }
}

/// A question of tokens: models without weights of their own know no words.
fn question(at: std::ops::Range<usize>) -> Question {
    let ids = vec![3, 7, 12, 5, 9, 4];
    Question { prompt: String::new(), subject: String::new(), ids, at, answer: 8, says: (8, 0.0) }
}

fn noise(model: &Edited, question: &Question, draws: usize) -> Noise {
    let decoder = &model.base().decoder;
    let shape = [draws, question.at.len(), decoder.spec.width];
    let place = (&Device::flex(), decoder.dtype());
    Noise { values: Tensor::random(shape, Distribution::Normal(0.0, 1.0), place), level: None }
}

/// Adds noise to the embeddings of a row.
struct Noisy(Tensor<3>, usize);

impl Tap for Noisy {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at.place != Place::Embedding {
            return value;
        }
        let [_, noised, width] = self.0.dims();
        let part = [0..1, self.1..self.1 + noised, 0..width];
        let sum = value.clone().slice(part.clone()) + self.0.clone();
        value.slice_assign(part, sum)
    }
}

/// The whole model run again for every draw: what a patch comes to without any of our savings.
fn by_whole_runs(model: &Edited, question: &Question, noise: &Noise, patch: &Patch) -> Vec<f64> {
    let tokens = Tokens::new(vec![question.ids.clone()]);
    let run = |tap: &mut dyn Tap| {
        let hidden = model.embed(&tokens, tap).unwrap();
        let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, tap).unwrap();
        let likely = activation::softmax(model.head(hidden, &[(0, question.ids.len() - 1)]), 1);
        values(likely)[question.answer as usize]
    };
    let mut recorder = Recorder::at(patch.iter().map(|(site, _)| *site));
    run(&mut recorder);
    let draws = (0..noise.draws()).map(|draw| {
        let [_, noised, width] = noise.values.dims();
        let own = noise.values.clone().slice([draw..draw + 1, 0..noised, 0..width]);
        let clean = |&(site, token): &(Site, usize)| {
            let value = recorder.values[&site].clone().slice([0..1, token..token + 1, 0..width]);
            (site, 0, token, value.reshape([width]))
        };
        let restore = Replace { values: patch.iter().map(clean).collect() };
        run(&mut Both(Noisy(own, question.at.start), restore))
    });
    draws.collect()
}

fn close(ours: &[f64], theirs: &[f64], what: &str) {
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-3), "{what}: {a} is not {b}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn the_cone_gives_what_whole_runs_give_in_every_family() {
    for family in FAMILIES {
        let model = Edited::new(Arc::new(model(family, DType::F64)));
        let question = question(1..3);
        let noise = noise(&model, &question, 3);
        let runs = Runs::new(&model, &question, &noise).unwrap();
        let top = model.layers() - 1;
        let mut patches: Vec<Patch> = vec![];
        for token in 0..question.ids.len() {
            for layer in 0..=top {
                patches.push(vec![(site(Place::BlockOut, layer), token)]);
                for place in [Place::MlpOut, Place::AttentionOut] {
                    patches.push(window(layer, 2, top + 1).map(|layer| (site(place, layer), token)).collect());
                }
            }
        }
        // At several tokens and places at once.
        patches.push(vec![
            (site(Place::BlockOut, 0), 2),
            (site(Place::MlpOut, top), 5),
            (site(Place::AttentionOut, 0), 4),
        ]);
        patches.push(vec![(site(Place::Embedding, 0), 1), (site(Place::BlockOut, top), 5)]);
        let restored = runs.restore(&model, &patches).unwrap();
        for (patch, ours) in patches.iter().zip(&restored) {
            let theirs = by_whole_runs(&model, &question, &noise, patch);
            close(ours, &theirs, &format!("{family}, {patch:?}"));
        }
    }
}

#[test]
fn everything_restored_is_the_clean_run_and_nothing_the_corrupted_one() {
    let model = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let question = question(2..4);
    let runs = Runs::new(&model, &question, &noise(&model, &question, 2)).unwrap();
    let embeddings: Patch = question.at.clone().map(|token| (site(Place::Embedding, 0), token)).collect();
    let states: Patch = (0..question.ids.len()).map(|token| (site(Place::BlockOut, 0), token)).collect();
    // Left of the subject all is clean already.
    let outside: Patch = vec![(site(Place::BlockOut, 0), 0), (site(Place::MlpOut, 1), 1)];
    let restored = runs.restore(&model, &[embeddings, states, vec![], outside]).unwrap();
    close(&restored[0], &[runs.high; 2], "embeddings");
    close(&restored[1], &[runs.high; 2], "states");
    assert_eq!(restored[2], runs.low);
    assert_eq!(restored[3], runs.low);
    assert!((runs.high - runs.low[0]).abs() > 1e-9);
}

#[test]
fn a_window_of_one_is_a_single_patch() {
    let model = Edited::new(Arc::new(model("llama-tiny", DType::F64)));
    let question = question(1..2);
    let noise = noise(&model, &question, 2);
    let places = vec![Place::MlpOut, Place::AttentionOut];
    let found = trace(&model, &question, &noise, &Restored { states: true, places, windows: vec![1] }).unwrap();
    let runs = Runs::new(&model, &question, &noise).unwrap();
    for (map, place) in found.maps.iter().zip([Place::BlockOut, Place::MlpOut, Place::AttentionOut]) {
        for token in 0..question.ids.len() {
            for layer in 0..model.layers() {
                let single = runs.restore(&model, &[vec![(site(place, layer), token)]]).unwrap().remove(0);
                let mean = single.iter().sum::<f64>() / 2.0;
                assert!((map.probability[token][layer] - mean).abs() < 1e-12, "{place:?} {token} {layer}");
            }
        }
    }
    // The last token's topmost state is all that is read.
    assert!((found.maps[0].probability[5][model.layers() - 1] - found.high).abs() < 1e-12);
    let too_wide = Restored { states: false, places: vec![Place::MlpOut], windows: vec![model.layers() + 1] };
    assert!(trace(&model, &question, &noise, &too_wide).is_err());
}

#[test]
fn windows_lie_around_their_layer() {
    assert_eq!((window(10, 5, 30), window(10, 10, 30), window(10, 1, 30)), (8..13, 5..15, 10..11));
    assert_eq!((window(0, 10, 30), window(29, 10, 30)), (0..5, 24..30));
}

#[test]
fn a_further_draw_changes_none_before_and_deviations_are_those_of_the_embeddings() {
    let model = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let question = question(1..3);
    let draw = |count| values(Noise::draw(&model, &question, Hidden { sigma: 0.5, draws: count, seed: 3 }).values);
    let (two, three) = (draw(2), draw(3));
    assert_eq!(two, three[..two.len()]);
    let sigma = Strength::Times(3.0).sigma(&model, &question.ids[1..3]).unwrap();
    let tokens = Tokens::new(vec![question.ids[1..3].to_vec()]);
    let embedded = model
        .base()
        .decoder
        .embedding
        .val()
        .slice([tokens.ids()[0][0] as usize..tokens.ids()[0][0] as usize + 1, 0..model.base().decoder.spec.width]);
    let other = model
        .base()
        .decoder
        .embedding
        .val()
        .slice([tokens.ids()[0][1] as usize..tokens.ids()[0][1] as usize + 1, 0..model.base().decoder.spec.width]);
    let all: Vec<f64> = values(embedded).into_iter().chain(values(other)).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let variance = all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (all.len() - 1) as f64;
    assert!((sigma - 3.0 * variance.sqrt()).abs() < 1e-6);
}

#[test]
fn a_question_knows_its_subject_and_what_the_model_says() {
    let model = Edited::new(Arc::new(emend::Model::load("pocket", &Device::flex(), DType::F32).unwrap()));
    let of = |prompt: &str, subject: &str, answer: &str| {
        let request = EditRequest { subject: Some(subject.into()), ..EditRequest::new(prompt, answer) };
        Question::new(&model, &request)
    };
    let lyon = of("The city of Lyon lies in", "Lyon", "").unwrap();
    let tokens: String = lyon.ids[lyon.at.clone()].iter().map(|&id| model.base().tokenizer.token(id)).collect();
    assert_eq!(tokens.trim(), "Lyon");
    assert!(lyon.is_answered());
    assert_eq!(model.base().tokenizer.token(lyon.answer).trim(), "France");
    let wrong = of("The city of Lyon lies in", "Lyon", "Japan").unwrap();
    assert!(!wrong.is_answered() && wrong.says == lyon.says);
    assert!(of("The city of Lyon lies in", "Paris", "").is_err());
    // With what the pocket model learnt, the answer passes the subject's last token in the lower layers.
    let sigma = Strength::Times(3.0).sigma(&model, &lyon.ids[lyon.at.clone()]).unwrap();
    let noise = Noise::draw(&model, &lyon, Hidden { sigma, draws: 10, seed: 0 });
    let found = trace(&model, &lyon, &noise, &Restored { states: true, places: vec![], windows: vec![] }).unwrap();
    let early = found.maps[0].probability[lyon.at.end - 1][0];
    assert!(found.high > 0.9 && found.low() < 0.5 && early > 0.8, "{} {} {early}", found.high, found.low());
}
