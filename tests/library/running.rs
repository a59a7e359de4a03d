//! Rows that are generated together: each says what it says alone, whoever joins and leaves.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use emend::edit::Edited;
use emend::edit::activation::{Action, Positions, Until};
use emend::edit::running::RunningRows;
use emend::model::tap::{NoTap, Place, Site, Stack};
use emend::model::tokens::{BEGIN, Tokens};

use crate::activations::with;
use crate::common::{Golden, PAIRS, QUESTION, difference, encode, fixture, model, pair, pocket, values};

/// A learned table of positions, rotary angles with grouped heads, and layers that see the last cells alone.
const DECODERS: [&str; 3] = ["gpt2-tiny", "llama-tiny", "gemma3-tiny"];

fn base(name: &str) -> Edited {
    Edited::new(Arc::new(model(name, DType::F32)))
}

/// Prompts of unequal length.
fn prompts(name: &str) -> Vec<Vec<u32>> {
    let ids = Golden::open(fixture(name).join("golden.safetensors")).ids();
    let row = |number: usize, length: usize| ids[number % ids.len()].iter().copied().cycle().take(length).collect();
    vec![row(0, 3), row(1, 9), row(0, 6)]
}

fn row(logits: &Tensor<2>, number: usize) -> Tensor<2> {
    logits.clone().narrow(0, number, 1)
}

/// Pushes the likeliest token to each row, and gives the logits of the next ones.
fn go_on(rows: &mut RunningRows, logits: &Tensor<2>) -> Tensor<2> {
    for number in 0..rows.len() {
        let likeliest = row(logits, number).argmax(1).into_data().iter::<i64>().next().unwrap();
        rows.push(number, likeliest as u32);
    }
    rows.step().unwrap()
}

/// The logits of `count` tokens that a prompt is continued by, one after the other.
fn alone(model: &Edited, prompt: &[u32], count: usize) -> Vec<Tensor<2>> {
    let mut rows = RunningRows::new(model, &[prompt.to_vec()]);
    let mut all = vec![rows.step().unwrap()];
    while all.len() < count {
        let next = go_on(&mut rows, all.last().unwrap());
        all.push(next);
    }
    all
}

#[track_caller]
fn same(found: Tensor<2>, wanted: &Tensor<2>, what: &str) {
    let difference = difference(&values(found), &values(wanted.clone()));
    assert!(difference < 1e-5, "{what}: {difference}");
}

fn likeliest(logits: &Tensor<2>) -> u32 {
    logits.clone().argmax(1).into_data().iter::<i64>().next().unwrap() as u32
}

/// Sees that three prompts, the second of which is the longest, say in company what they say alone.
#[track_caller]
fn in_company(model: &Edited, prompts: &[Vec<u32>], name: &str) {
    let wanted: Vec<Vec<Tensor<2>>> = prompts.iter().map(|prompt| alone(model, prompt, 6)).collect();
    // The first runs by itself for two tokens, then the others join.
    let mut rows = RunningRows::new(model, &prompts[..1]);
    let first = rows.step().unwrap();
    let second = go_on(&mut rows, &first);
    same(second.clone(), &wanted[0][1], name);
    rows.push(0, likeliest(&second));
    let mut others = RunningRows::new(model, &prompts[1..]);
    let read = others.step().unwrap();
    (0..2).for_each(|number| others.push(number, likeliest(&row(&read, number))));
    rows.join(others).unwrap();
    let logits = rows.step().unwrap();
    for (number, place) in [(0, 2), (1, 1), (2, 1)] {
        same(row(&logits, number), &wanted[number][place], &format!("{name}, joined, row {number}"));
    }
    // The longest leaves, and with it the cells that only it had.
    (0..3).for_each(|number| rows.push(number, likeliest(&row(&logits, number))));
    rows.keep(&[2, 0]);
    rows.drop_gaps();
    let logits = rows.step().unwrap();
    same(row(&logits, 0), &wanted[2][2], &format!("{name}, left, row 2"));
    same(row(&logits, 1), &wanted[0][3], &format!("{name}, left, row 0"));
    let logits = go_on(&mut rows, &logits);
    same(row(&logits, 0), &wanted[2][3], &format!("{name}, on, row 2"));
    same(row(&logits, 1), &wanted[0][4], &format!("{name}, on, row 0"));
}

/// Texts for the embedded models, the second the longest.
fn questions(model: &Edited) -> Vec<Vec<u32>> {
    [QUESTION, "The instrument of Bill Wyman, who lies in the city of Lyon, is the", "In which country is Oslo?"]
        .map(|text| encode(model, text))
        .to_vec()
}

/// What is done to the activations of some of a prompt's positions.
fn steered(base: &Edited) -> Vec<Edited> {
    let at = Site { stack: Stack::Decoder, layer: 1, place: Place::BlockOut };
    let width = base.base().decoder.spec.width;
    let vector: Vec<f32> = (0..width).map(|place| (place as f32).sin()).collect();
    let vector = Tensor::<1>::from_data(TensorData::new(vector, [width]), &Device::flex());
    let add = || Action::Add { vector: vector.clone(), strength: 2.0 };
    vec![
        with(base, at, Positions::Last, Until::Prompt, add()),
        with(base, at, Positions::At(vec![0, -2]), Until::Prompt, add()),
        with(base, at, Positions::Last, Until::Always, add()),
    ]
}

#[test]
fn rows_that_join_and_leave_say_what_they_say_alone() {
    for name in DECODERS {
        in_company(&base(name), &prompts(name), name);
    }
    let pocket = pocket();
    in_company(&pocket, &questions(&pocket), "pocket");
}

#[test]
fn encoders_and_what_they_read_join_and_leave() {
    for name in PAIRS {
        let mut rows = pair(&Golden::open(fixture(name).join("golden.safetensors")));
        // Sources of three lengths; what is written behind them is yet to come.
        rows.iter_mut().for_each(|row| row.truncate(row.iter().position(|&id| id == BEGIN).unwrap() + 1));
        rows.sort_by_key(Vec::len);
        let short = rows[0][1..].to_vec();
        in_company(&base(name), &[rows.remove(0), rows.remove(0), short], name);
    }
    let model = emend::Model::load("pocket-t5", &Device::flex(), DType::F32).unwrap();
    let model = Edited::new(Arc::new(model));
    let questions = questions(&model);
    in_company(&model, &questions, "pocket-t5");
    // An encoder reads its text whole.
    let mut rows = RunningRows::new(&model, &questions[1..2]);
    assert!(!rows.read_ahead(2).unwrap());
    same(rows.step().unwrap(), &alone(&model, &questions[1], 1)[0], "pocket-t5, ahead");
}

/// Where a prompt ends is each row's own, and goes with the row.
#[test]
fn interventions_find_their_positions_in_company() {
    for name in ["llama-tiny", "gemma3-tiny"] {
        let (base, prompts) = (base(name), prompts(name));
        for (number, edited) in steered(&base).iter().enumerate() {
            let name = format!("{name}, intervention {number}");
            let (plain, changed) = (alone(&base, &prompts[1], 1), alone(edited, &prompts[1], 1));
            assert!(difference(&values(changed[0].clone()), &values(plain[0].clone())) > 1e-4, "{name} does nothing");
            in_company(edited, &prompts, &name);
        }
    }
}

/// Rows of one prompt that go on differently.
#[test]
fn a_row_that_is_taken_twice_goes_two_ways() {
    for (name, model, prompt) in DECODERS.map(|name| (name, base(name), prompts(name).remove(1))).into_iter().chain([(
        "pocket",
        pocket(),
        encode(&pocket(), QUESTION),
    )]) {
        let mut rows = RunningRows::new(&model, std::slice::from_ref(&prompt));
        rows.step().unwrap();
        rows.keep(&[0, 0, 0]);
        let tokens = [5, 7, 5];
        tokens.iter().enumerate().for_each(|(number, &token)| rows.push(number, token));
        let logits = rows.step().unwrap();
        for (number, token) in tokens.into_iter().enumerate() {
            let wanted = alone(&model, &[&prompt[..], &[token]].concat(), 1).remove(0);
            same(row(&logits, number), &wanted, &format!("{name}, row {number}"));
        }
        let apart = difference(&values(row(&logits, 0)), &values(row(&logits, 1)));
        assert!(apart > 1e-3, "{name}: the two ways are one");
    }
}

#[test]
fn a_prompt_in_pieces_is_the_prompt_as_a_whole() {
    for name in DECODERS {
        let (base, prompt) = (base(name), prompts(name).remove(1));
        for model in [vec![base.clone()], steered(&base)].concat() {
            let mut rows = RunningRows::new(&model, std::slice::from_ref(&prompt));
            assert!(rows.read_ahead(4).unwrap() && rows.read_ahead(4).unwrap());
            // The last token is left for the step that reads its logits.
            assert!(!rows.read_ahead(4).unwrap());
            same(rows.step().unwrap(), &alone(&model, &prompt, 1)[0], name);
        }
    }
}

#[test]
fn rows_of_another_model_do_not_join() {
    let (one, other) = (base("gpt2-tiny"), base("llama-tiny"));
    let of = |model: &Edited, name: &str| {
        let mut rows = RunningRows::new(model, &prompts(name)[..1]);
        rows.step().unwrap();
        rows
    };
    let error = of(&one, "gpt2-tiny").join(of(&other, "llama-tiny")).unwrap_err();
    assert!(error.to_string().contains("cannot serve model"), "{error}");
}

/// An edit changes what keys and values are, so its past is no other's.
#[test]
fn rows_of_an_edited_model_do_not_join_the_base() {
    let base = base("llama-tiny");
    let rows_of = |model: &Edited| {
        let mut rows = RunningRows::new(model, &prompts("llama-tiny")[..1]);
        rows.step().unwrap();
        rows
    };
    for edited in steered(&base) {
        let error = rows_of(&base).join(rows_of(&edited)).unwrap_err();
        assert!(error.to_string().contains("cannot serve model"), "{error}");
    }
    rows_of(&base).join(rows_of(&base)).unwrap();
    // Nor do rows of which nothing was read.
    let unread = RunningRows::new(&base, &prompts("llama-tiny")[1..]);
    let error = rows_of(&base).join(unread).unwrap_err();
    assert!(error.to_string().contains("side by side"), "{error}");
}

#[test]
fn pasts_side_by_side_hold_each_row_as_it_was() {
    for name in DECODERS {
        let model = base(name);
        let past_of = |rows: &[Vec<u32>]| {
            let (tokens, mut past) = (Tokens::new(rows.to_vec()), model.past());
            let hidden = model.embed(&tokens, &mut NoTap).unwrap();
            model.blocks(hidden, 0..model.layers(), tokens.span(), Some(&mut past), &mut NoTap).unwrap();
            past
        };
        let prompts = prompts(name);
        let both = past_of(&prompts[..1]).beside(&past_of(&prompts[1..])).unwrap();
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        assert_eq!((0..3).map(|row| both.len(row)).collect::<Vec<_>>(), lengths, "{name}");
        let fewer = both.select(&[2, 0]).without_gaps();
        assert_eq!([fewer.len(0), fewer.len(1)], [lengths[2], lengths[0]], "{name}");
    }
}
