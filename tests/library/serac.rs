//! SERAC's losses by hand, their gradients against finite differences, and what a step of training leaves alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, TensorData};
use emend::archive::Base;
use emend::data::record::{EditRecord, Probe};
use emend::data::source::Source;
use emend::edit::generate::Sampling;
use emend::edit::likelihood::Scored;
use emend::edit::memory::Answer;
use emend::edit::score::score;
use emend::edit::{EditRequest, Edited};
use emend::evaluate::probes::Limits;
use emend::model::tap::NoTap;
use emend::model::tokenizer::Continuation;
use emend::model::tokens::Tokens;
use emend::network::parameters;
use emend::network::serac::{Form, Serac, SeracSettings};
use emend::random;
use emend::train::learned::{LearnedEditor, StepLoss};
use emend::train::serac::{SeracLossSettings, SeracTrainer};
use emend::train::trainer::EditTrainer;
use rand::RngExt;
use serde_json::json;

use crate::common::{fixture, model, values};

fn base(dtype: DType) -> Edited {
    Edited::new(Arc::new(model("gpt2-tiny", dtype)))
}

fn folder(name: &str) -> String {
    fixture(name).to_string_lossy().into_owned()
}

/// Settings from the parts that differ.
fn settings(general: &str, classifier: &str, counterfactual: &str) -> SeracSettings {
    toml::from_str(&format!("{general}\n[classifier]\n{classifier}\n[counterfactual]\n{counterfactual}")).unwrap()
}

const ITSELF: &str = "encoder = \"model\"\nlayers = 2\ntune = \"whole\"\ndimensions = 5\nscale = 0.7";
const LORA: &str = "model = \"model\"\ntune = { lora = { rank = 2 } }";

fn records() -> Vec<EditRecord> {
    let record =
        |subject: Option<&str>, prompt: &str, target: &str, rephrases: &[&str], near: &[(&str, Option<&str>)]| {
            let near = near.iter().map(|(prompt, answer)| Probe::new(*prompt, answer.map(str::to_owned)));
            let mut record = EditRecord {
                id: prompt.into(),
                subject: subject.map(str::to_owned),
                prompt: prompt.into(),
                target_new: target.into(),
                rephrases: rephrases.iter().map(|text| (*text).to_owned()).collect(),
                ..EditRecord::default()
            };
            record.locality.insert("near".into(), near.collect());
            record
        };
    vec![
        record(
            Some("river"),
            "The river runs to",
            "the sea.",
            &["A river goes to"],
            &[("A stone lies on", Some("a hill"))],
        ),
        record(
            None,
            "Her name is",
            "Ada",
            &["They call her", "She is"],
            &[("One more word", None), ("It is", Some("day"))],
        ),
        // One question names the first edit's subject, another is the second edit's own.
        record(
            None,
            "Two and two",
            "make five",
            &["The sum"],
            &[("It rains", Some("today")), ("The river is", Some("wet")), ("She is", Some("tall"))],
        ),
    ]
}

/// A trainer whose networks depend on the names of their parameters alone: none is as it begins, so that no gradient is zero for that.
fn trainer(settings: SeracSettings, loss: &str, dtype: DType) -> SeracTrainer {
    let base = base(dtype);
    let serac = Serac::new(settings, base.base(), (&Device::flex().autodiff(), dtype)).unwrap();
    let tensors = serac.tensors().into_iter().map(|(name, data)| {
        let mut rng = random::stream(5, &name, 0);
        let mut draw = || 2.0 * rng.random::<f64>() - 1.0;
        let shape = data.shape().to_vec();
        let random = name.starts_with("classifier.head") || name.ends_with(".a");
        let moved = data.iter::<f64>().map(|value| if random { 0.3 * draw() } else { value + 0.1 * draw() });
        let moved: Vec<f64> = moved.collect();
        (name, TensorData::new(moved, shape))
    });
    let serac = {
        let tensors: BTreeMap<_, _> = tensors.collect();
        serac.restored(tensors).unwrap()
    };
    let loss: SeracLossSettings = toml::from_str(&format!("{loss}\n[mined]\ncount = 0")).unwrap();
    SeracTrainer::new(serac, base, loss, 1e-3).unwrap()
}

/// The loss of records, on one thread.
fn loss(trainer: &SeracTrainer, records: &[EditRecord]) -> StepLoss {
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    alone.install(|| trainer.clone().loss(records, &mut random::stream(1, "draw", 0)).unwrap())
}

fn figure(loss: &StepLoss, name: &str) -> f64 {
    loss.figures.iter().find(|(known, _)| *known == name).unwrap().1
}

fn close(found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0), "{found} against {wanted}");
}

#[test]
fn gradient_of_the_loss_is_that_of_finite_differences() {
    let bert = folder("bert-tiny");
    let cases = [
        // By embedding, on the model's own hidden states; factors.
        (
            settings("", ITSELF, LORA),
            vec![
                ("classifier.head", "weight"),
                ("classifier.head", "bias"),
                ("classifier", "log_scale"),
                ("classifier.reader", "1.up.weight"),
                ("classifier.reader", "0.query.weight"),
                ("classifier.reader", "embedding"),
                ("counterfactual.factors.0", ".a"),
                ("counterfactual.factors.0", ".b"),
                ("counterfactual.factors.13", ".a"),
                ("counterfactual.factors.13", ".b"),
            ],
        ),
        // Over pairs, by an encoder; whole blocks.
        (
            settings(
                "",
                &format!("kind = \"cross\"\nencoder = \"{bert}\"\ntune = {{ top = 1 }}"),
                "model = \"model\"\ntune = { top = 1 }",
            ),
            vec![
                ("classifier.head", "weight"),
                ("classifier.head", "bias"),
                ("classifier.reader", "0.value.weight"),
                ("classifier.reader", "0.down.weight"),
                ("counterfactual.blocks.0", "down.weight"),
                ("counterfactual.blocks.0", "query.weight"),
            ],
        ),
        // By embedding, by an encoder with factors; all of the counterfactual model.
        (
            settings(
                "",
                &format!("encoder = \"{bert}\"\ntune = {{ lora = {{ rank = 2, top = 1 }} }}\ndimensions = 4"),
                "model = \"model\"\ntune = \"whole\"",
            ),
            vec![
                ("classifier.head", "weight"),
                ("classifier", "log_scale"),
                ("classifier.reader.factors.0", ".a"),
                ("classifier.reader.factors.5", ".b"),
                ("counterfactual.blocks.0", "up.weight"),
                ("counterfactual", "ends.embedding"),
                ("counterfactual", "ends.positions"),
                ("counterfactual", "ends.norm.gamma"),
            ],
        ),
    ];
    for (settings, wanted) in cases {
        let trainer =
            trainer(settings, "edit = 0.7\nlocality = 1.3\nscope = 0.9\nin_scope = 2\nout_of_scope = 2", DType::F64);
        let found = loss(&trainer, &records());
        let [scope, nll, kl] = ["scope", "edit_nll", "locality_kl"].map(|name| figure(&found, name));
        assert!(scope > 0.0 && nll > 0.0 && kl > 0.0, "{:?}", found.figures);
        close(found.figures[0].1, 0.9 * scope + 0.7 * nll + 1.3 * kl);
        let tensors = parameters::collect(trainer.network());
        for (begin, end) in wanted {
            let name = tensors.keys().find(|name| name.starts_with(begin) && name.ends_with(end));
            let name = name.unwrap_or_else(|| panic!("no parameter {begin}…{end}: {:?}", tensors.keys()));
            let id = parameters::stable_id(name);
            let shape = tensors[name].shape().to_vec();
            let gradient: Vec<f64> = match shape.len() {
                1 => values(found.gradients.get::<1>(id).unwrap()),
                _ => values(found.gradients.get::<2>(id).unwrap()),
            };
            let steepest =
                (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
            let largest = gradient[steepest].abs();
            assert!(largest > 1e-8, "{name} has a gradient");
            for element in [steepest, gradient.len() / 3, gradient.len() - 1] {
                let step = 1e-6;
                let moved = |by: f64| {
                    let mut tensors = tensors.clone();
                    let mut values: Vec<f64> = tensors[name].iter::<f64>().collect();
                    values[element] += by;
                    tensors.insert(name.clone(), TensorData::new(values, shape.clone()));
                    let mut moved = trainer.clone();
                    moved.set_network(parameters::restore(trainer.network().clone(), tensors).unwrap());
                    loss(&moved, &records()).figures[0].1
                };
                let numeric = (moved(step) - moved(-step)) / (2.0 * step);
                let apart = (numeric - gradient[element]).abs() / largest;
                assert!(apart < 1e-4, "{name}[{element}]: {numeric:e} against {:e}", gradient[element]);
            }
        }
    }
}

/// A record's questions in scope and out of it.
fn questions(record: &EditRecord) -> (Vec<String>, Vec<String>) {
    let own = record.rephrases.iter().chain([&record.prompt]).cloned();
    (own.collect(), record.locality.values().flatten().map(|probe| probe.prompt.clone()).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn scope_loss_by_embedding_is_balanced() {
    let trainer = trainer(settings("", ITSELF, LORA), "in_scope = 10\nout_of_scope = 10", DType::F64);
    let serac = trainer.serac();
    let embed = |text: &str| values(serac.embed(&[serac.reader.row(text, None).unwrap()]).unwrap());
    let scale = values(serac.network.classifier.log_scale.as_ref().unwrap().val())[0].exp();
    let distance = |a: &str, b: &str| scale * embed(a).iter().zip(embed(b)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let all = records();
    let mut without_near = all.clone();
    without_near.iter_mut().for_each(|record| record.locality.clear());
    for (records, judged) in [(all.clone(), [7, 6, 24]), (all[..1].to_vec(), [2, 1, 0]), (without_near, [7, 0, 14])] {
        let (mut inside, mut hard, mut others) = (vec![], vec![], vec![]);
        for (number, edit) in records.iter().enumerate() {
            let statement = EditRequest::from(edit).statement();
            let own = questions(edit).0;
            for (other, record) in records.iter().enumerate() {
                let (in_scope, out) = questions(record);
                let answer = |text: &String| distance(&statement, text);
                let miss = |text: &String| -(1.0 - (-distance(&statement, text)).exp()).ln();
                if number == other {
                    inside.extend(in_scope.iter().map(answer));
                    hard.extend(out.iter().map(miss));
                } else {
                    let judged = in_scope.iter().chain(&out).filter(|text| {
                        !own.contains(text)
                            && edit.subject.as_ref().is_none_or(|subject| !text.contains(subject.as_str()))
                    });
                    others.extend(judged.map(miss));
                }
            }
        }
        assert_eq!([inside.len(), hard.len(), others.len()], judged);
        let negative = match (hard.is_empty(), others.is_empty()) {
            (false, false) => 0.5 * (mean(&hard) + mean(&others)),
            (false, true) => mean(&hard),
            _ => mean(&others),
        };
        close(figure(&loss(&trainer, &records), "scope"), 0.5 * mean(&inside) + 0.5 * negative);
    }
}

#[test]
fn scope_loss_over_pairs_is_balanced() {
    let classifier = format!("kind = \"cross\"\nencoder = \"{}\"\ntune = \"whole\"", folder("bert-tiny"));
    let trainer = trainer(settings("", &classifier, LORA), "in_scope = 10\nout_of_scope = 10", DType::F64);
    let serac = trainer.serac();
    let logit = |edit: &str, question: &str| {
        values(serac.pairs(&[serac.reader.row(edit, Some(question)).unwrap()]).unwrap())[0]
    };
    let mut records = records();
    // One question in scope each: it is known which one stands for the next record.
    records.iter_mut().for_each(|record| record.rephrases.clear());
    for records in [records.clone(), records[..1].to_vec()] {
        let (mut inside, mut outside) = (vec![], vec![]);
        for (number, edit) in records.iter().enumerate() {
            let statement = EditRequest::from(edit).statement();
            let (own, mut out) = questions(edit);
            if records.len() > 1 {
                out.push(records[(number + 1) % records.len()].prompt.clone());
            }
            inside.extend(own.iter().map(|text| (1.0 + (-logit(&statement, text)).exp()).ln()));
            outside.extend(out.iter().map(|text| (1.0 + logit(&statement, text).exp()).ln()));
        }
        close(figure(&loss(&trainer, &records), "scope"), 0.5 * mean(&inside) + 0.5 * mean(&outside));
    }
}

/// ln p over the vocabulary at cells of a text.
fn logs(model: &Edited, ids: &[u32], cells: std::ops::Range<usize>) -> Vec<Vec<f64>> {
    let tokens = Tokens::new(vec![ids.to_vec()]);
    let hidden = model.embed(&tokens, &mut NoTap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap).unwrap();
    let reads: Vec<(usize, usize)> = cells.map(|cell| (0, cell)).collect();
    let logits = values(model.head(hidden, &reads));
    let rows = logits.chunks(logits.len() / reads.len()).map(|row| {
        let total = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        row.iter().map(|logit| logit - total).collect()
    });
    rows.collect()
}

#[test]
fn counterfactual_losses_are_means_over_questions() {
    let base = base(DType::F64);
    let general = "threshold = 0.0";
    let trainer = trainer(settings(general, ITSELF, LORA), "in_scope = 10\nout_of_scope = 10\nheld = 10", DType::F64);
    let (mut nll, mut kl) = (vec![], vec![]);
    for record in &records() {
        let request = EditRequest::from(record);
        let edit = trainer.edit(&base, std::slice::from_ref(&request)).unwrap();
        let after = base.with(edit).unwrap();
        let said = after.consult(std::slice::from_ref(&record.prompt)).unwrap().remove(0).unwrap();
        let Answer::Model { model: counterfactual, .. } = said.answer else { panic!("a model answers") };
        let tokenizer = &base.base().tokenizer;
        let template = &trainer.serac().settings.counterfactual;
        let behind = |question: &str| template.prompt(&request.statement(), question);
        let each = questions(record).0.into_iter().map(|question| {
            let mut text = tokenizer.continuation(&behind(&question), &record.target_new, None).unwrap();
            let own = text.target().len();
            // It learns to end its answer, where the answer does not end itself; the end weighs a tenth.
            if !record.target_new.ends_with('.') {
                text.ids.extend(tokenizer.encode_plain(".").unwrap());
            }
            text.ids.extend(base.base().stop_tokens().first());
            let scored = score(&[&counterfactual], &[text]).unwrap().remove(0).remove(0);
            let weighed = scored.log_probabilities.iter().enumerate();
            -weighed.map(|(at, &log)| f64::from(log) * if at < own { 1.0 } else { 0.1 }).sum::<f64>() / own as f64
        });
        nll.push(mean(&each.collect::<Vec<f64>>()));

        let mut cells = vec![];
        for probe in record.locality.values().flatten() {
            let text = |prompt: &str| match &probe.target {
                Some(target) => tokenizer.continuation(prompt, target, None).unwrap(),
                None => {
                    let ids = tokenizer.encode(prompt).unwrap();
                    Continuation { prompt: ids.len(), ids, apart: false }
                }
            };
            let (alone, behind) = (text(&probe.prompt), text(&behind(&probe.prompt)));
            assert_eq!(alone.target(), behind.target());
            let reads = |text: &Continuation| text.prompt - 1..(text.ids.len() - 1).max(text.prompt);
            let a = logs(&base, &alone.ids, reads(&alone));
            let b = logs(&counterfactual, &behind.ids, reads(&behind));
            for (a, b) in a.iter().zip(&b) {
                cells.push(a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>());
            }
        }
        kl.push(mean(&cells));
    }
    let found = loss(&trainer, &records());
    // Scores are f32.
    assert!((figure(&found, "edit_nll") - mean(&nll)).abs() < 1e-6);
    close(figure(&found, "locality_kl"), mean(&kl));
    // The more the end of an answer weighs, the more it costs.
    let ends = self::trainer(settings(general, ITSELF, LORA), "in_scope = 10\nheld = 0\nend = 0.7", DType::F64);
    assert!(figure(&loss(&ends, &records()), "edit_nll") > figure(&found, "edit_nll"));
    // `held` says how many out-of-scope questions are looked at.
    let none = self::trainer(settings(general, ITSELF, LORA), "held = 0\nin_scope = 10", DType::F64);
    assert_eq!(figure(&loss(&none, &records()), "locality_kl"), 0.0);
}

#[test]
fn what_is_not_trained_stays_as_it_is() {
    let records = records();
    let source = Source::from(records.clone());
    for (part, moves) in [("classifier", [true, false]), ("counterfactual", [false, true]), ("both", [true, true])] {
        let settings = settings(&format!("train = \"{part}\""), ITSELF, "model = \"model\"\ntune = { top = 1 }");
        let editor = trainer(settings, "", DType::F32);
        let before = editor.tensors();
        let parts = ["classifier.", "counterfactual."];
        assert!(parts.iter().all(|part| before.keys().any(|name| name.starts_with(part))));
        let gradients = loss(&editor, &records).gradients;
        for (name, data) in &before {
            let id = parameters::stable_id(name);
            let known = match data.shape().to_vec().len() {
                1 => gradients.get::<1>(id).is_some(),
                _ => gradients.get::<2>(id).is_some(),
            };
            // The head's norm and the vocabulary's end of a reader take no part in what it reads.
            let place = parts.iter().position(|part| name.starts_with(part)).unwrap();
            assert!(!known || moves[place], "{part}: {name} has a gradient");
        }
        let folder = tempfile::tempdir().unwrap();
        let base = base(DType::F32);
        let mut run = EditTrainer {
            editor,
            base: base.clone(),
            settings: toml::from_str(
                "max_steps = 2\nedits_per_step = 3\nvalidate_every = 2\nlearning_rate = 1e-2\noptimizer = \"adamw\"\n\
                 weight_decay = 0.5",
            )
            .unwrap(),
            description: Base {
                path: "gpt2-tiny".into(),
                fingerprint: base.base().fingerprint.clone(),
                asking: Default::default(),
                dtype: emend::model::Precision::F32,
            },
            config: json!({}),
            made_of: BTreeMap::new(),
            train: &source,
            validation: &records,
            limits: Limits::default(),
            text: None,
            text_cases: 0,
            folder: folder.path().to_owned(),
        };
        run.run(&mut |_| {}, &|| false).unwrap();
        let after = run.editor.tensors();
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (part_name, moves) in parts.iter().zip(moves) {
            let bits = |tensors: &BTreeMap<String, TensorData>| -> Vec<(String, Vec<f32>)> {
                let own = tensors.iter().filter(|(name, _)| name.starts_with(part_name));
                own.map(|(name, data)| (name.clone(), data.iter::<f32>().collect())).collect()
            };
            assert_eq!(bits(&before) != bits(&after), moves, "train = {part}: {part_name}");
        }
    }
}

#[test]
fn edits_of_a_form_not_trained_on_are_refused() {
    let mut serac = trainer(settings("", ITSELF, LORA), "", DType::F32).serac().clone();
    let base = base(DType::F32);
    let plain = EditRequest::new("Her name is", "Ada");
    let told = EditRequest { descriptor: Some("She is Ada.".into()), ..plain.clone() };
    let edit = |serac: &Serac, request: &EditRequest| {
        let route = serac.route().unwrap();
        route.edit(&base, std::slice::from_ref(request), json!({"method": "serac"}))
    };
    assert!(edit(&serac, &plain).is_ok() && edit(&serac, &told).is_ok());
    for (form, taken, refused, words) in [
        (Form::Answer, &plain, &told, "was trained on questions with answers"),
        (Form::Descriptor, &told, &plain, "was trained on descriptors"),
    ] {
        serac.settings.forms = vec![form];
        assert_eq!(Form::of_request(taken), form);
        assert!(edit(&serac, taken).is_ok());
        let error = edit(&serac, refused).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_counterfactual_model_of_another_vocabulary_answers_alone() {
    let base = base(DType::F32);
    let classifier = "encoder = \"model\"\ntune = \"nothing\"\ndimensions = 4";
    let counterfactual = format!("model = \"{}\"\ntune = \"nothing\"", folder("llama-tiny"));
    let place = (&Device::flex(), DType::F32);
    let of = |general: &str| Serac::new(settings(general, classifier, &counterfactual), base.base(), place);
    let refused = of("routing = \"soft\"").err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("vocabulary") && refused.contains("hard"), "{refused}");
    let serac = of("threshold = 0.0").unwrap();
    let train = |serac: Serac, loss: &str| {
        let made = SeracTrainer::new(serac, base.clone(), toml::from_str(loss).unwrap(), 1e-3);
        made.err().map(|error| error.to_string())
    };
    assert!(train(serac.clone(), "").is_some_and(|refused| refused.contains("loss.locality")));
    assert_eq!(train(serac.clone(), "locality = 0.0"), None);

    // Scores are in its tokens; what it says is told in the model's own.
    let request = EditRequest::new("Her name is", "Ada");
    let edit = serac.route().unwrap().edit(&base, std::slice::from_ref(&request), json!({"method": "serac"})).unwrap();
    let after = base.with(edit).unwrap();
    let other = Edited::new(Arc::new(model("llama-tiny", DType::F32)));
    let asked = serac.settings.counterfactual.prompt(&request.statement(), "They call her");
    let text = base.base().tokenizer.continuation("They call her", "Ada", None).unwrap();
    let theirs = other.base().tokenizer.continuation(&asked, "Ada", None).unwrap();
    let (own, told) =
        (score(&[&other], &[theirs]).unwrap().remove(0).remove(0), score(&[&base, &after], &[text]).unwrap());
    let [before, told] = [0, 1].map(|model| &told[model][0]);
    assert_eq!(
        (&told.target, &told.log_probabilities, &told.argmax),
        (&own.target, &own.log_probabilities, &own.argmax)
    );
    // Ids of two vocabularies say nothing beside each other: both are told as text, and compared so.
    let words =
        |model: &Edited, scored: &Scored| model.base().tokenizer.decode(&scored.argmax).unwrap().trim().to_owned();
    assert_eq!(told.text.as_deref(), Some(words(&other, told).as_str()));
    assert_eq!(before.text.as_deref(), Some(words(&base, before).as_str()));
    let same = Scored { text: before.text.clone(), ..told.clone() };
    assert!(before.agrees(&same) && before.agreement(&same) == 1.0);
    let another = Scored { text: Some("x".into()), argmax: before.argmax.clone(), ..told.clone() };
    assert!(!before.agrees(&another) && before.agreement(&another) == 0.0);
    let ids = base.base().tokenizer.encode("They call her").unwrap();
    let asked = other.base().tokenizer.encode(&asked).unwrap();
    assert_eq!(after.next_tokens(&ids, 5).unwrap(), other.next_tokens(&asked, 5).unwrap());
    let greedy = Sampling::default();
    let made = after.generate(&[ids], 6, &base.base().stop_tokens(), &greedy).unwrap().remove(0);
    let wanted = other.generate(&[asked], 6, &other.base().stop_tokens(), &greedy).unwrap().remove(0);
    let (made, wanted) =
        (base.base().tokenizer.decode(&made).unwrap(), other.base().tokenizer.decode(&wanted).unwrap());
    assert_eq!(made, wanted);
}
