//! Fine-tuning's losses and optimisers, against finite differences in 64 bits.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use emend::apply::fine_tuning::FineTuning;
use emend::apply::lora::Lora;
use emend::apply::{Editor, Prepared};
use emend::edit::{Change, Delta, EditRequest, Edited, PassChange};
use emend::model::tap::{NoTap, Role, Weight};
use emend::model::tokens::Tokens;

use crate::common::{difference, model, settings_of, values};

const PROMPT: &str = "The river that runs through Ost is the";
/// Of several tokens, so that it matters where each is read.
const TARGET: &str = "seven old kings of Vell";

fn base() -> Edited {
    Edited::new(Arc::new(model("gpt2-tiny", DType::F64)))
}

fn at() -> Weight {
    Weight::decoder(1, Role::MlpDown)
}

/// What one step of an optimiser makes of the down-projection, `[d_in · d_out]`, and its shape.
fn step(base: &Edited, settings: &str, texts: Vec<Vec<u32>>) -> (Vec<f64>, [usize; 2]) {
    let settings = format!("layers = [1]\nsteps = 1\nbiases = false\nearly_stop = 0.0\n{settings}");
    let prepared = Prepared { statistics: None, seed: 0, progress: Box::new(|_| {}) };
    let tuning = FineTuning::new(settings_of(&settings), prepared, texts).unwrap();
    let edit = tuning.edit(base, &[EditRequest::new(PROMPT, TARGET)]).unwrap();
    let Change::Pass(change) = &edit.change else { unreachable!() };
    let delta = &change.matrices[&at()];
    (values(delta.dense()), delta.shape())
}

/// ln p at the cells of a text, `[cells][vocabulary]`.
fn log(model: &Edited, ids: &[u32]) -> Vec<Vec<f64>> {
    let tokens = Tokens::new(vec![ids.to_vec()]);
    let hidden = model.embed(&tokens, &mut NoTap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap).unwrap();
    let cells: Vec<(usize, usize)> = (0..ids.len()).map(|cell| (0, cell)).collect();
    let log = activation::log_softmax(model.head(hidden, &cells), 1);
    let width = log.dims()[1];
    values(log).chunks(width).map(<[f64]>::to_vec).collect()
}

/// The change of a loss by a small change of one element, per unit.
fn derivative(base: &Edited, place: usize, shape: [usize; 2], loss: impl Fn(&Edited) -> f64) -> f64 {
    let moved = |size: f64| {
        let mut delta = vec![0.0; shape[0] * shape[1]];
        delta[place] = size;
        let delta = Tensor::<2>::from_data(TensorData::new(delta, shape), (&Device::flex(), DType::F64));
        let change = PassChange { matrices: [(at(), Delta::Dense(delta))].into(), ..Default::default() };
        loss(&base.with_change(&change).unwrap())
    };
    (moved(1e-5) - moved(-1e-5)) / 2e-5
}

/// A few elements that a step moved much, and one that it moved little.
fn places(delta: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..delta.len()).collect();
    order.sort_by(|a, b| delta[*b].abs().total_cmp(&delta[*a].abs()));
    vec![order[0], order[1], order[7], order[order.len() / 2]]
}

#[test]
fn plain_descent_goes_down_the_gradient_of_its_loss() {
    let base = base();
    let text = base.base().tokenizer.continuation(PROMPT, TARGET, None).unwrap();
    let (ids, prompt, target) = (text.ids[..text.ids.len() - 1].to_vec(), text.prompt, text.target().to_vec());
    assert!(target.len() > 2);
    let mean = |model: &Edited, cell: &dyn Fn(usize) -> usize| {
        let log = log(model, &ids);
        let each = target.iter().enumerate().map(|(number, &id)| -log[cell(number)][id as usize]);
        each.sum::<f64>() / target.len() as f64
    };
    // Each token where it is predicted, or all of them at the prompt's last token.
    for (compat, cell) in [("none", true), ("prompt_last", false)] {
        let cell = |number: usize| if cell { prompt - 1 + number } else { prompt - 1 };
        let settings = format!("optimizer = \"sgd\"\nlearning_rate = 0.5\ncompat = \"{compat}\"");
        let (delta, shape) = step(&base, &settings, vec![]);
        for place in places(&delta) {
            let wanted = -0.5 * derivative(&base, place, shape, |model| mean(model, &cell));
            assert!((delta[place] - wanted).abs() < 1e-7 * wanted.abs() + 1e-11, "{compat}: {} {wanted}", delta[place]);
        }
    }
}

#[test]
fn rmsprop_and_adam_scale_each_element_by_its_own_gradient() {
    let base = base();
    let (gradient, _) = step(&base, "optimizer = \"sgd\"\nlearning_rate = 1.0", vec![]);
    // √(0.01 g²) = 0.1 |g| after one step; Adam's two moments cancel but for the sign.
    type Rule = fn(f64) -> f64;
    let rules: [(&str, Rule); 2] = [("rmsprop", |g| g / (0.1 * g.abs() + 1e-8)), ("adam", |g| g / (g.abs() + 1e-8))];
    for (name, rule) in rules {
        let (delta, _) = step(&base, &format!("optimizer = \"{name}\"\nlearning_rate = 1e-3"), vec![]);
        for (delta, gradient) in delta.iter().zip(&gradient) {
            let wanted = 1e-3 * rule(*gradient);
            assert!((delta - wanted).abs() < 1e-9, "{name}: {delta} {wanted}");
        }
    }
}

#[test]
fn the_kl_term_holds_the_model_to_what_it_said_of_other_texts() {
    let base = base();
    let held = base.base().tokenizer.encode("Under the hill seven stone names").unwrap();
    let text = base.base().tokenizer.continuation(PROMPT, TARGET, None).unwrap();
    // At its first step the divergence is 0 and has no gradient: it is seen from the second on.
    let settings = |kl: f64| {
        format!("optimizer = \"sgd\"\nlearning_rate = 0.5\nkl = {kl:e}\nlocality = \"f\"\nlocality_texts = 3")
    };
    let first = step(&base, &settings(40.0), vec![held.clone()]);
    let free = step(&base, "optimizer = \"sgd\"\nlearning_rate = 0.5", vec![]);
    assert!(difference(&first.0, &free.0) < 1e-12);
    let two = |kl: f64| {
        let settings = settings(kl).replace("optimizer", "weights = [\"mlp.down\"]\noptimizer");
        let settings = format!("layers = [1]\nsteps = 2\nbiases = false\nearly_stop = 0.0\n{settings}");
        let prepared = Prepared { statistics: None, seed: 0, progress: Box::new(|_| {}) };
        let tuning = FineTuning::new(settings_of(&settings), prepared, vec![held.clone()]).unwrap();
        let edit = tuning.edit(&base, &[EditRequest::new(PROMPT, TARGET)]).unwrap();
        let Change::Pass(change) = &edit.change else { unreachable!() };
        values(change.matrices[&at()].dense())
    };
    let (delta, shape) = first;
    let matrices = |delta: &[f64]| {
        let delta = Tensor::<2>::from_data(TensorData::new(delta.to_vec(), shape), (&Device::flex(), DType::F64));
        PassChange { matrices: [(at(), Delta::Dense(delta))].into(), ..Default::default() }
    };
    let moved = base.with_change(&matrices(&delta)).unwrap();
    let before = log(&base, &held);
    let kl = |model: &Edited| {
        let now = log(model, &held);
        let each = before.iter().zip(&now).map(|(before, now)| {
            before.iter().zip(now).map(|(before, now)| before.exp() * (before - now)).sum::<f64>()
        });
        each.sum::<f64>() / held.len() as f64
    };
    let nll = |model: &Edited| {
        let log = log(model, &text.ids[..text.ids.len() - 1]);
        let each = text.reads().zip(text.target()).map(|(cell, &id)| -log[cell][id as usize]);
        each.sum::<f64>() / text.target().len() as f64
    };
    assert!(kl(&moved) > 1e-6);
    let after = two(40.0);
    for place in places(&delta) {
        let wanted = delta[place] - 0.5 * derivative(&moved, place, shape, |model| nll(model) + 40.0 * kl(model));
        assert!((after[place] - wanted).abs() < 1e-6 * wanted.abs() + 1e-10, "{} {wanted}", after[place]);
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let refused = |settings: &str, word: &str| {
        let settings = settings_of(&format!("layers = [1]\nlearning_rate = 1.0\n{settings}"));
        let prepared = Prepared { statistics: None, seed: 0, progress: Box::new(|_| {}) };
        let error = FineTuning::new(settings, prepared, vec![]).map(drop).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused("early_stop = nan", "editor.early_stop = NaN");
    refused("kl = 1.0", "name a file of texts");
}

/// Two plain steps of LoRA, from fine-tuning's own: a step of it is `−lr · G`, and G is all that LoRA's gradients are made of.
#[test]
fn factors_follow_the_gradient_of_their_product() {
    const RATE: f64 = 0.05;
    let base = base();
    let request = EditRequest::new(PROMPT, TARGET);
    let shared = "layers = [1]\nearly_stop = 0.0\noptimizer = \"sgd\"\nlearning_rate = 0.05\nweights = [\"mlp.down\"]";
    let prepared = || Prepared { statistics: None, seed: 0, progress: Box::new(|_| {}) };
    let factors = |steps: usize| -> [Tensor<2>; 2] {
        let settings = format!("{shared}\nsteps = {steps}\nrank = 3\nalpha = 6.0");
        let lora = Lora::new(settings_of(&settings), prepared(), vec![]).unwrap();
        let edit = lora.edit(&base, std::slice::from_ref(&request)).unwrap();
        let Change::Pass(mut change) = edit.change else { unreachable!() };
        match change.matrices.remove(&at()).unwrap() {
            // The edit holds (α / r) A.
            Delta::LowRank { a, b } => [a.div_scalar(2.0), b],
            Delta::Dense(_) => panic!("not in factors"),
        }
    };
    let gradient = |model: &Edited| -> Tensor<2> {
        let settings = format!("{shared}\nsteps = 1\nbiases = false");
        let tuning = FineTuning::new(settings_of(&settings), prepared(), vec![]).unwrap();
        let edit = tuning.edit(model, std::slice::from_ref(&request)).unwrap();
        let Change::Pass(mut change) = edit.change else { unreachable!() };
        change.matrices.remove(&at()).unwrap().dense().div_scalar(-RATE)
    };
    // B is 0 at first: A has no gradient, and stays.
    let ([a1, b1], g0) = (factors(1), gradient(&base));
    let step = a1.clone().transpose().matmul(g0).mul_scalar(-2.0 * RATE);
    assert!(difference(&values(b1.clone()), &values(step)) < 1e-12);
    assert!(values(a1.clone()).iter().all(|value| value.abs() <= 1.0 / (a1.dims()[0] as f64).sqrt()));
    let delta = Delta::LowRank { a: a1.clone().mul_scalar(2.0), b: b1.clone() };
    let change = PassChange { matrices: [(at(), delta)].into(), ..Default::default() };
    let g1 = gradient(&base.with_change(&change).unwrap());
    let [a2, b2] = factors(2);
    let a = a1.clone() - g1.clone().matmul(b1.clone().transpose()).mul_scalar(2.0 * RATE);
    let b = b1 - a1.transpose().matmul(g1).mul_scalar(2.0 * RATE);
    assert!(difference(&values(a2), &values(a)) < 1e-12 && difference(&values(b2), &values(b)) < 1e-12);
}
