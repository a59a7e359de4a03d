//! MEND's network against PyTorch, and its gradient against finite differences.

use std::sync::Arc;

use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use emend::data::record::EditRecord;
use emend::data::source::Source;
use emend::edit::{Change, EditRequest, Edited};
use emend::network::gradient_transform::{GradientTransform, LowRankLayer, Nonlinearity, Normalizer};
use emend::network::mend::{Mend, MendSettings};
use emend::network::parameters;
use emend::random;
use emend::train::learned::LearnedEditor;
use emend::train::mend::{MendLossSettings, MendTrainSettings, MendTrainer};
use emend::train::methods::Beginning;
use emend::train::rledit::{Compat, Episode};
use emend::train::settings::TrainSettings;

use crate::common::{Golden, check_gradient, difference, drawn, fixture, model, records, shaken, values};

fn tensor<const D: usize>(golden: &Golden, name: &str, device: &Device) -> Tensor<D> {
    let data = TensorData::new(golden.floats(name), golden.shape(name));
    Tensor::from_data(data, (device, DType::F64))
}

fn normalizer(golden: &Golden, device: &Device) -> Normalizer {
    // A running figure of 101 rows with the golden mean and spread.
    let join = |part: &str| {
        let [x, delta] = ["x", "delta"].map(|of| tensor::<1>(golden, &format!("norm.{of}_{part}"), device));
        Tensor::cat(vec![x, delta], 0)
    };
    Normalizer { count: 101.0, mean: join("mean"), squares: join("std").square().mul_scalar(100.0) }
}

#[test]
fn transform_and_its_gradients_match_pytorch() {
    let golden = Golden::open(fixture("mend-transform.safetensors"));
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    for (parameters, gradients, outputs) in
        [("param.", "grad.", "output."), ("init.param.", "init.grad.", "init.output.")]
    {
        let layer = |number: usize| {
            let name = |part: &str| format!("{parameters}layer.{number}.{part}");
            let matrix = |part: &str| tensor::<2>(&golden, &name(part), &device);
            LowRankLayer {
                down: Param::from_tensor(matrix("v").transpose()),
                up: Param::from_tensor(matrix("u").transpose()),
                bias: Param::from_tensor(tensor::<1>(&golden, &name("bias"), &device)),
                scale: Param::from_tensor(matrix("scale")),
                shift: Param::from_tensor(matrix("shift")),
            }
        };
        let transform = GradientTransform { layers: vec![layer(0), layer(1)] };
        let (x, delta) = (tensor::<2>(&golden, "input.x", &plain), tensor::<2>(&golden, "input.delta", &plain));
        let z = normalizer(&golden, &plain).normalize(Tensor::cat(vec![x, delta], 1));
        let mode: Vec<i64> = golden.floats("input.mode").iter().map(|&mode| mode as i64).collect();
        let out = transform.forward(z, &Tensor::<1, Int>::from_data(mode.as_slice(), &plain), Nonlinearity::Outer);
        let widths = [golden.shape("input.x")[1], golden.shape("input.delta")[1]];
        let rows = out.dims()[0];
        let x_tilde = out.clone().inner().slice([0..rows, 0..widths[0]]);
        let delta_tilde = out.clone().inner().slice([0..rows, widths[0]..widths[0] + widths[1]]);
        assert!(difference(&values(x_tilde), &golden.floats(&format!("{outputs}x_tilde"))) < 1e-9);
        assert!(difference(&values(delta_tilde), &golden.floats(&format!("{outputs}delta_tilde"))) < 1e-9);

        let loss = (out * tensor::<2>(&golden, "loss_weight", &plain)).sum();
        let grads = GradientsParams::from_grads(loss.backward(), &transform);
        for (number, layer) in transform.layers.iter().enumerate() {
            let matrix = |param: &Param<Tensor<2>>| grads.get::<2>(param.id).unwrap();
            let found = [
                ("v", values(matrix(&layer.down).transpose())),
                ("u", values(matrix(&layer.up).transpose())),
                ("bias", values(grads.get::<1>(layer.bias.id).unwrap())),
                ("scale", values(matrix(&layer.scale))),
                ("shift", values(matrix(&layer.shift))),
            ];
            for (part, found) in found {
                let wanted = golden.floats(&format!("{gradients}layer.{number}.{part}"));
                if wanted.iter().all(|&value| value == 0.0) {
                    assert!(found.iter().all(|&value| value == 0.0), "{gradients}{number}.{part}");
                } else {
                    assert!(difference(&found, &wanted) < 1e-9, "{gradients}{number}.{part}");
                }
            }
        }
    }
}

#[test]
fn running_figures_are_those_of_all_rows() {
    let device = Device::flex();
    let rows: Vec<f64> = (0..60).map(|i| ((i * 37 % 17) as f64).sin() * 3.0 + f64::from(i % 5)).collect();
    let all = Tensor::<2>::from_data(TensorData::new(rows.clone(), [12, 5]), (&device, DType::F64));
    let mut running = Normalizer::new(5, (&device, DType::F64));
    for (from, to) in [(0, 1), (1, 4), (4, 12)] {
        running.update(all.clone().slice([from..to, 0..5]));
    }
    for column in 0..5 {
        let values: Vec<f64> = (0..12).map(|row| rows[row * 5 + column]).collect();
        let mean = values.iter().sum::<f64>() / 12.0;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let at = |tensor: &Tensor<1>| tensor.clone().into_data().iter::<f64>().nth(column).unwrap();
        assert!((at(&running.mean) - mean).abs() < 1e-12);
        assert!((at(&running.squares) - squares).abs() < 1e-10);
    }
}

fn settings(extra: &str) -> MendSettings {
    toml::from_str(&format!(
        "layers = [1, 2]\nweights = [\"mlp.up\", \"mlp.down\", \"attention.query\"]\nrank = 5\n{extra}"
    ))
    .unwrap()
}

fn trainer(settings_extra: &str, loss: &str, together: usize) -> MendTrainer {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let device = Device::flex().autodiff();
    let mend = || Mend::new(settings(settings_extra), &base.base().decoder.spec, (&device, DType::F64)).unwrap();
    let mend = drawn(&device, mend);
    let loss: MendLossSettings = toml::from_str(loss).unwrap();
    let trainer = MendTrainer::new(mend, base.clone(), loss, together, 1e-3, MendTrainSettings::default()).unwrap();
    // Texts of a loss lie here.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("prose.txt"), "It rains on the hill today.\nA long way to the sea it is.\n")
        .unwrap();
    let settings: TrainSettings = toml::from_str("max_steps = 1\nlearning_rate = 1e-3").unwrap();
    let source = Source::from(records());
    let beginning = Beginning {
        base: &base,
        settings: &settings,
        place: (&device, DType::F64),
        source: &source,
        folder: folder.path(),
    };
    let mut trainer = trainer.reading(&beginning).unwrap();
    trainer.prepare(&source, 0, &mut |_, _| true).unwrap();
    trainer
}

const TEXT: &str = "text = { from = \"prose.txt\", weight = 2.0, share = 1.4, tokens = 6, positions = 3 }";

#[test]
fn gradient_of_the_loss_is_that_of_finite_differences() {
    for (extra, loss, together) in [
        ("initial_edit_rate = 0.02", "edit = 0.7\nlocality = 1.3", 1),
        (
            "initial_edit_rate = 0.02\nedit_rates = \"raw\"\ndirection = \"ascent\"",
            "kl = \"answer\"\nscope = \"edit\"",
            2,
        ),
        ("initial_edit_rate = 0.02\nnonlinearity = \"inner\"", "scope = \"both\"\nin_scope = 2", 1),
        // One edit after the other, two at once and one left over, and more tokens than a matrix is wide.
        ("initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nedit_tokens = \"answer\"", "", 1),
        (
            "initial_edit_rate = 0.02\naggregation = \"normal_equations\"\ninitial_damping = -1.0\nnonlinearity = \"inner\"",
            "scope = \"both\"\nin_scope = 2",
            2,
        ),
        ("initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nblocks = 3", "", 3),
        // Keys of the network, of few tokens and of more than a matrix is wide; a sample looked at.
        (
            "initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nkeys = \"transformed\"\nedit_tokens = \"answer\"",
            "",
            2,
        ),
        ("initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nkeys = \"transformed\"", "looked_at = 2", 3),
        // A term on running text; and a ridge that is made of it.
        ("initial_edit_rate = 0.02", TEXT, 1),
        ("initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nridge = \"text\"", TEXT, 2),
        (
            "initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nridge = \"text\"\nkeys = \"transformed\"\nedit_tokens = \"answer\"",
            TEXT,
            2,
        ),
    ] {
        let mut trainer = trainer(extra, loss, together);
        shaken(&mut trainer, 0.3);
        // The running figures are constants of the loss: seen once, then frozen.
        trainer.loss(&records(), &mut random::stream(1, "draw", 0)).unwrap();
        // The same figures go in each time: loss() on a clone moves the clone's only, by the same rows.
        check_gradient(&trainer, |_| true, &records(), 1e-4, &format!("{extra} {loss}"));
    }
}

/// At the network's keys one edit of one token without damping is MEND's own update; a loss that looks at all edits is that without the key.
#[test]
fn one_edit_at_the_networks_key_is_mends() {
    let request = EditRequest::from(&EditRecord { target_new: "the".into(), ..records()[0].clone() });
    let fresh = |extra: &str| trainer(&format!("initial_edit_rate = 0.02\nedit_tokens = \"answer\"\n{extra}"), "", 1);
    let mut shaking = fresh("");
    shaken(&mut shaking, 0.3);
    let made = |extra: &str| {
        let mut trainer = fresh(extra);
        let mut tensors = parameters::collect(trainer.network());
        tensors.extend(parameters::collect(shaking.network()));
        trainer.set_network(parameters::restore(trainer.network().clone(), tensors).unwrap());
        let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
        let edit = trainer.edit(&base, std::slice::from_ref(&request)).unwrap();
        let Change::Pass(change) = edit.change else { panic!("no weights") };
        change.matrices.values().flat_map(|delta| values(delta.dense())).collect::<Vec<f64>>()
    };
    let normal = "aggregation = \"normal_equations\"\ninitial_damping = -40.0";
    let tokens = request.row(&model("gpt2-tiny", DType::F64).tokenizer).unwrap().target().len();
    assert_eq!(tokens, 1, "the test wants an answer of one token");
    let plain = made("");
    assert!(difference(&made(&format!("{normal}\nkeys = \"transformed\"")), &plain) < 1e-5);
    assert!(difference(&made(normal), &plain) > 1e-2);

    let step = |loss: &str| {
        let mut trainer = trainer("aggregation = \"normal_equations\"", loss, 3);
        trainer.loss(&records(), &mut random::stream(1, "draw", 0)).unwrap().figures
    };
    assert_eq!(step("looked_at = 3"), step(""));
    assert_ne!(step("looked_at = 1"), step(""));
}

/// An episode of one turn is a step of MALMEN, but for ‖S‖², whose weight is then 0; one of several turns is not.
#[test]
fn an_episode_of_one_turn_is_malmens_step() {
    let extra = "initial_edit_rate = 0.02\naggregation = \"normal_equations\"\nedit_tokens = \"answer\"";
    let step = |together: usize, episode: Option<Episode>| {
        let mut trainer = trainer(extra, "", together);
        shaken(&mut trainer, 0.3);
        let mut trainer = match episode {
            Some(episode) => trainer.in_episodes(episode, 1e-3),
            None => trainer,
        };
        let found = trainer.loss(&records(), &mut random::stream(1, "draw", 0)).unwrap();
        let id = parameters::stable_id("rates");
        (values(found.gradients.get::<1>(id).unwrap()), found.figures[0].1)
    };
    let episode = Episode { back_depth: 10, decay: 0.95, shift: 0.0, compat: Compat::None };
    assert_eq!(step(3, Some(episode.clone())), step(3, None));
    assert_ne!(step(1, Some(episode.clone())), step(1, None));
    // ‖S‖² has a gradient.
    let (gradient, loss) = step(3, Some(Episode { shift: 1.0, ..episode.clone() }));
    let (without, less) = step(3, None);
    assert!(loss > less && gradient != without);
    // As published, it has none, and the sum over turns is clipped: of one turn, it is the other times a number.
    let (clipped, as_much) = step(3, Some(Episode { shift: 1.0, compat: Compat::Published, ..episode }));
    assert_eq!(as_much, loss);
    let factor = clipped[0] / without[0];
    assert!(0.0 < factor && factor < 1.0, "{factor}");
    for (clipped, whole) in clipped.iter().zip(&without) {
        assert!((clipped - factor * whole).abs() < 1e-9 * whole.abs());
    }
}

#[test]
fn inner_layers_are_their_equation() {
    let device = Device::flex().autodiff();
    let param = |values: &[f64], shape: [usize; 2]| {
        Param::from_tensor(Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), (&device, DType::F64)))
    };
    // z = (1, −2); z·V = (−1, 3); max(·, 0)·U = (−6, 3); ⊙ s + o = (−12 + 0.5, 1.5 − 0.5).
    let layer = LowRankLayer {
        down: param(&[1.0, 1.0, 1.0, -1.0], [2, 2]),
        up: param(&[5.0, 5.0, -2.0, 1.0], [2, 2]),
        bias: Param::from_tensor(Tensor::<1>::zeros([2], (&device, DType::F64))),
        scale: param(&[1.0, 1.0, 2.0, 0.5], [2, 2]),
        shift: param(&[0.0, 0.0, 0.5, -0.5], [2, 2]),
    };
    let z = Tensor::<2>::from_data(TensorData::new(vec![1.0, -2.0], [1, 2]), (&Device::flex(), DType::F64));
    let second = Tensor::<1, Int>::from_data([1i64], &Device::flex());
    let out = GradientTransform { layers: vec![layer] }.forward(z, &second, Nonlinearity::Inner);
    assert_eq!(values(out.inner()), [1.0 - 11.5, -2.0 + 1.0]);
}

/// A trainer of the same network with so much memory for hidden states, in GB, that was told of a training of so many draws.
fn keeping(trainer: &MendTrainer, loss: &str, memory: f64, draws: u64) -> MendTrainer {
    let own = MendTrainSettings { hidden_memory_gb: memory, ..MendTrainSettings::default() };
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let loss: MendLossSettings = toml::from_str(loss).unwrap();
    let mut kept = MendTrainer::new(trainer.mend().clone(), base, loss, 1, 1e-3, own).unwrap();
    kept.prepare(&Source::from(records()), draws, &mut |_, _| true).unwrap();
    kept
}

#[test]
fn kept_hidden_states_change_no_loss() {
    for kl in ["all", "answer"] {
        let loss = format!("kl = \"{kl}\"\nscope = \"both\"\nin_scope = 2\nout_of_scope = 2");
        let mut computed = trainer("initial_edit_rate = 0.02", &loss, 1);
        shaken(&mut computed, 0.3);
        let source = Source::from(records());
        let drawn = source.draws(0, 0, 5, 2);
        let of = |trainer: &mut MendTrainer| trainer.loss(&drawn, &mut random::stream(1, "draw", 0)).unwrap();
        let start = computed.clone();
        let a = of(&mut computed);
        // With no memory, and of texts that are met once, nothing is kept.
        for (memory, draws) in [(0.0, 4), (1.0, 3)] {
            let mut none = keeping(&start, &loss, memory, draws);
            assert_eq!(of(&mut none).figures, a.figures);
            assert_eq!(none.note(), None);
        }
        let mut kept = keeping(&start, &loss, 1.0, 4);
        assert_eq!(kept.note(), None, "nothing is computed before it is asked for");
        let b = of(&mut kept);
        assert!((a.figures[0].1 - b.figures[0].1).abs() < 1e-12 * a.figures[0].1, "{:?} {:?}", a.figures, b.figures);
        let id = parameters::stable_id("transforms.0.layers.0.down");
        assert!(
            difference(&values(a.gradients.get::<2>(id).unwrap()), &values(b.gradients.get::<2>(id).unwrap())) < 1e-9
        );
        let mut interrupted = kept.clone();
        assert!(interrupted.prepare(&source, 4, &mut |_, _| false).is_err());
    }
}

/// When a text is first met, and whether it was dropped since, changes no bit: a resumed training finds the same.
#[test]
fn hidden_states_do_not_depend_on_when_they_were_computed() {
    let loss = "scope = \"both\"\nin_scope = 2\nout_of_scope = 2";
    let mut start = trainer("initial_edit_rate = 0.02\nnormalization = \"off\"", loss, 1);
    shaken(&mut start, 0.3);
    let source = Source::from(records());
    let steps: Vec<Vec<EditRecord>> = (0..4).map(|step| source.draws(0, 2 * step, 2, 2)).collect();
    let figures = |trainer: &mut MendTrainer, step: usize| {
        trainer.loss(&steps[step], &mut random::stream(1, "draw", step as u64)).unwrap().figures
    };
    // Room for all, for one byte, and taken up at the last step; on one thread and on three.
    let mut all = keeping(&start, loss, 1.0, 8);
    let whole: Vec<_> = (0..4).map(|step| figures(&mut all, step)).collect();
    let mut least = keeping(&start, loss, 1e-9, 8);
    assert_eq!((0..4).map(|step| figures(&mut least, step)).collect::<Vec<_>>(), whole);
    assert!(all.note().unwrap().contains(" 0 passes were dropped"), "{:?}", all.note());
    assert!(!least.note().unwrap().contains(" 0 passes were dropped"), "{:?}", least.note());
    assert_eq!(figures(&mut keeping(&start, loss, 1.0, 8), 3), whole[3]);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let step = |step| pool.install(|| figures(&mut keeping(&start, loss, 1.0, 8), step));
        assert_eq!([step(0), step(3)], [whole[0].clone(), whole[3].clone()], "{threads} threads");
    }
}

#[test]
fn untrained_mend_steps_down_the_gradient() {
    let trainer = trainer("initial_edit_rate = 1e-3\nnormalization = \"off\"", "", 1);
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let request = EditRequest::from(&EditRecord { target_new: "the".into(), ..records()[0].clone() });
    let edit = trainer.edit(&base, std::slice::from_ref(&request)).unwrap();
    let text = base.base().tokenizer.continuation(&request.prompt, &request.target_new, None).unwrap();
    let after = base.with(edit).unwrap();
    let scored = emend::edit::score::score(&[&base, &after], &[text]).unwrap();
    assert!(scored[1][0].nll() < scored[0][0].nll(), "{} then {}", scored[0][0].nll(), scored[1][0].nll());
}
