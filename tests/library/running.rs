//! Rows that are generated together: each says what it says alone, whoever joins and leaves.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use emend::edit::Edited;
use emend::edit::running::RunningRows;

use crate::common::{Golden, difference, fixture, model, values};

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

#[test]
fn rows_that_join_and_leave_say_what_they_say_alone() {
    for name in DECODERS {
        let model = base(name);
        let prompts = prompts(name);
        let wanted: Vec<Vec<Tensor<2>>> = prompts.iter().map(|prompt| alone(&model, prompt, 6)).collect();
        // The first runs by itself for two tokens, then the others join.
        let mut rows = RunningRows::new(&model, &prompts[..1]);
        let first = rows.step().unwrap();
        let second = go_on(&mut rows, &first);
        same(second.clone(), &wanted[0][1], name);
        let likeliest = |logits: &Tensor<2>| logits.clone().argmax(1).into_data().iter::<i64>().next().unwrap() as u32;
        rows.push(0, likeliest(&second));
        let mut others = RunningRows::new(&model, &prompts[1..]);
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
}

#[test]
fn a_prompt_in_pieces_is_the_prompt_as_a_whole() {
    for name in DECODERS {
        let (model, prompt) = (base(name), prompts(name).remove(1));
        let mut rows = RunningRows::new(&model, std::slice::from_ref(&prompt));
        assert!(rows.read_ahead(4).unwrap() && rows.read_ahead(4).unwrap());
        // The last token is left for the step that reads its logits.
        assert!(!rows.read_ahead(4).unwrap());
        same(rows.step().unwrap(), &alone(&model, &prompt, 1)[0], name);
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
