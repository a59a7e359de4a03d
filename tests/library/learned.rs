//! KE and ENN: gradients against finite differences, what makes them differ from MEND, and their edits.

use std::sync::Arc;

use burn::tensor::{DType, Device};
use emend::edit::{EditRequest, Edited, Editor};
use emend::evaluate::Summary;
use emend::network::parameters;
use emend::random;
use emend::train::learned::LearnedEditor;
use emend::train::methods::{Beginning, Sections, Training};
use emend::train::settings::TrainSettings;
use emend::train::{enn, ke};
use toml::Table;

use crate::common::{check_gradient, difference, drawn, model, records, shaken, values};

const PLACES: &str = "layers = [1, 2]\nweights = [\"mlp.up\", \"mlp.down\", \"attention.query\"]\n";
const TEXT: &str = "text = { from = \"prose.txt\", weight = 2.0, share = 1.4, tokens = 6, positions = 3 }\n";

/// An editor of `T` on a tiny model, as a config's sections begin it.
fn begun<T: Training>(editor: &str, loss: &str, own: &str, together: usize, dtype: DType) -> T::Editor {
    let base = Edited::new(Arc::new(model("gpt2-tiny", dtype)));
    let device = Device::flex().autodiff();
    let table = |text: &str| -> Table { toml::from_str(text).unwrap() };
    let (editor, loss, own) = (table(&format!("{PLACES}{editor}")), table(loss), table(own));
    let training = T::read(&Sections { editor: &editor, loss: &loss, train: &own, origin: "test.toml" }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("prose.txt"), "It rains on the hill today.\nA long way to the sea it is.\n")
        .unwrap();
    let mut settings: TrainSettings = toml::from_str("max_steps = 1\nlearning_rate = 1e-3").unwrap();
    settings.edits_together = together.into();
    let source = records().into();
    let place = (&device, dtype);
    let beginning = Beginning { base: &base, settings: &settings, place, source: &source, folder: folder.path() };
    let mut trainer = drawn(&device, || training.begin(&beginning).unwrap());
    trainer.prepare(&source, 0, &mut |_, _| true).unwrap();
    trainer
}

#[test]
fn kes_gradient_is_that_of_finite_differences() {
    let small = "hidden = 4\ncondition = 6\nscale = 20.0\n";
    for (editor, loss, together) in [
        ("gradient = \"raw\"", "constraint = \"penalty\"\nsmoothing = 0.0", 1),
        ("", "constraint = \"penalty\"\nsmoothing = 0.2\nscope = \"both\"\nin_scope = 2", 2),
        ("", "constraint = \"penalty\"\nlooked_at = 2\nkl = \"answer\"", 3),
    ] {
        let loss = format!("{loss}\n{TEXT}");
        let mut trainer = begun::<ke::Training>(&format!("{small}{editor}"), &loss, "", together, DType::F64);
        shaken(&mut trainer, 0.3);
        // The LSTM is Burn's, in 32 bits.
        let ours = |name: &str| name.contains("heads") || name == "multiplier";
        check_gradient(&trainer, ours, &records(), 1e-4, &format!("{editor} {loss}"));
    }
}

/// The constraint's multiplier ascends while it is broken, falls while it is met, and never below 0; the margin shrinks when most edits hold.
#[test]
fn kes_multiplier_ascends_while_the_constraint_is_broken() {
    let small = "hidden = 4\ncondition = 6\nscale = 20.0\n";
    let loss = |margin: f64| format!("margin = {margin}\nsmallest_margin = 0.0\nlocality = 0.5");
    let step = |margin: f64| {
        let mut trainer = begun::<ke::Training>(small, &loss(margin), "", 1, DType::F64);
        shaken(&mut trainer, 0.3);
        let kl = |found: &[(&str, f64)]| found.iter().find(|(name, _)| *name == "locality_kl").unwrap().1;
        let found = trainer.loss(&records(), &mut random::stream(1, "draw", 0)).unwrap();
        let id = parameters::stable_id("multiplier");
        let gradient = values(found.gradients.get::<1>(id).unwrap())[0];
        assert!((gradient - (margin - kl(&found.figures))).abs() < 1e-12);
        (kl(&found.figures), gradient, trainer)
    };
    let (kl, broken, _) = step(0.0);
    assert!(kl > 0.0 && broken < 0.0, "descent along {broken} would not raise it");
    let (_, met, mut trainer) = step(2.0 * kl);
    assert!(met > 0.0);
    let mut network = trainer.network().clone();
    network.multiplier = network.multiplier.map(|multiplier| multiplier.sub_scalar(9.0));
    trainer.set_network(network);
    assert_eq!(trainer.multiplier(), 0.0);

    let mut summary: Summary = emend::evaluate::summarize(&[]);
    for (success, margin) in [(None, 2.0), (Some(0.9), 2.0), (Some(0.91), 1.6)] {
        summary.edit_success = success;
        trainer.validated(&summary);
        assert!((trainer.margin() - margin * kl).abs() < 1e-12);
    }
    // Both are in what is saved.
    let mut fresh = begun::<ke::Training>(small, &loss(1.0), "", 1, DType::F64);
    fresh.restore(trainer.tensors()).unwrap();
    assert_eq!((fresh.multiplier(), fresh.margin()), (trainer.multiplier(), trainer.margin()));
}

#[test]
fn enns_second_order_is_that_of_finite_differences() {
    // The KL divergence that an edit is held by has the model as it is now as its constant: it weighs next to nothing here.
    let terms = format!("edit = 0.7\nlocality = 1e-12\nbase = 1.5\n{TEXT}");
    for (editor, loss, together) in [
        ("initial_edit_rate = 0.5", "", 1),
        ("initial_edit_rate = 0.5", "scope = \"both\"\nin_scope = 2", 2),
        ("initial_edit_rate = 0.3\nsteps = 3", "kl = \"answer\"\nlooked_at = 2", 1),
    ] {
        let mut trainer = begun::<enn::Training>(editor, &format!("{loss}\n{terms}"), "", together, DType::F64);
        shaken(&mut trainer, 0.05);
        check_gradient(&trainer, |_| true, &records(), 1e-6, &format!("{editor} {loss}"));
    }
}

fn gradient_of_weights(trainer: &enn::EnnTrainer) -> Vec<f64> {
    let found = trainer.clone().loss(&records(), &mut random::stream(1, "draw", 0)).unwrap();
    let of = |slot: usize| found.gradients.get::<2>(parameters::stable_id(&format!("adapted.{slot}"))).unwrap();
    (0..trainer.network().adapted.len()).flat_map(|slot| values(of(slot))).collect()
}

/// Both orders agree where a step is short, and differ where it is not; in 32 bits the curvature is that of 64.
#[test]
fn enns_orders_agree_where_they_must() {
    let at = |rate: f64, own: &str, dtype: DType| {
        let mut trainer = begun::<enn::Training>(&format!("initial_edit_rate = {rate}"), "", own, 1, dtype);
        shaken(&mut trainer, 0.05);
        gradient_of_weights(&trainer)
    };
    let first = "second_order = false";
    assert!(difference(&at(1e-9, "", DType::F64), &at(1e-9, first, DType::F64)) < 1e-7);
    let (exact, cut) = (at(0.5, "", DType::F64), at(0.5, first, DType::F64));
    assert!(difference(&exact, &cut) > 0.05);
    let coarse = difference(&at(0.5, "", DType::F32), &exact);
    assert!(coarse < 3e-3, "{coarse:e}");
}

/// An edit is its gradient steps on the adapted base, which is an edit by itself; without both the base is what it was.
#[test]
fn enns_edit_lies_on_the_adapted_base() {
    let mut trainer = begun::<enn::Training>("initial_edit_rate = 0.2\nsteps = 2", "", "", 1, DType::F64);
    shaken(&mut trainer, 0.1);
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let request = EditRequest::from(&records()[0]);
    let adapted = trainer.adapted(&base).unwrap();
    let edit = trainer.edit(&adapted, std::slice::from_ref(&request)).unwrap();
    assert_eq!(edit.provenance.computed_on, adapted.edit_ids());
    let logits = |model: &Edited| -> Vec<f64> {
        let row = request.row(&model.base().tokenizer).unwrap();
        let tokens = emend::network::matrices::without_last(&[&row]);
        let hidden = model.embed(&tokens, &mut emend::model::tap::NoTap).unwrap();
        let hidden =
            model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut emend::model::tap::NoTap).unwrap();
        values::<2>(model.head(hidden, &row.reads().map(|cell| (0, cell)).collect::<Vec<_>>()))
    };
    let nll = |model: &Edited| {
        let row = request.row(&model.base().tokenizer).unwrap();
        let (all, width) = (logits(model), model.base().decoder.embedding.dims()[0]);
        row.target()
            .iter()
            .enumerate()
            .map(|(at, &id)| {
                let row = &all[at * width..(at + 1) * width];
                row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[id as usize]
            })
            .sum::<f64>()
    };
    let both = adapted.with(edit.clone()).unwrap();
    assert!(nll(&both) < nll(&adapted), "two steps down its gradient");
    let id = adapted.edit_ids()[0].clone();
    let (back, _) = both.without(edit.id()).unwrap();
    assert_eq!(logits(&back), logits(&adapted));
    assert_eq!(logits(&back.without(&id).unwrap().0), logits(&base));
}

/// What an edit of KE does, it does again as long as the model does not say the target.
#[test]
fn kes_edit_is_applied_until_the_answer_is_there() {
    let applied = |applications: usize| {
        let editor = format!("hidden = 4\ncondition = 6\nscale = 0.01\napplications = {applications}");
        let mut trainer = begun::<ke::Training>(&editor, "", "", 1, DType::F64);
        shaken(&mut trainer, 0.3);
        let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
        let edit = trainer.ke().edit(&base, &[EditRequest::from(&records()[0])]).unwrap();
        edit.provenance.findings["applications"].as_u64().unwrap()
    };
    assert_eq!([applied(1), applied(3)], [1, 3]);
}
