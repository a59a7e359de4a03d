//! Interventions on activations, against taps that do the same by hand.

use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::apply::steering::{captured, mean_difference};
use emend::data::pairs::Pair;
use emend::edit::activation::{Action, Intervention, Positions, Until};
use emend::edit::generate::Sampling;
use emend::edit::score::score;
use emend::edit::{Change, Delta, Edit, Edited, PassChange, Provenance};
use emend::model::stack::taps::Recorder;
use emend::model::tap::{NoTap, Place, Role, Site, Span, Stack, Tap, Text, Weight};
use emend::model::tokenizer::Continuation;
use emend::model::tokens::{BEGIN, Tokens};

use crate::common::{Golden, difference, fixture, model, pair, values};

const DECODERS: [&str; 4] = ["gpt2-tiny", "llama-tiny", "gemma3-tiny", "falcon-tiny"];

fn base(name: &str) -> Edited {
    Edited::new(Arc::new(model(name, DType::F32)))
}

fn ids(name: &str) -> Vec<Vec<u32>> {
    Golden::open(fixture(name).join("golden.safetensors")).ids()
}

fn vector(width: usize) -> Tensor<1> {
    Tensor::random([width], Distribution::Normal(0.0, 1.0), (&Device::flex(), DType::F32))
}

fn width(model: &Edited, at: Site) -> usize {
    let spec = &model.base().decoder.spec;
    if at.place == Place::MlpHidden { spec.mlp.width } else { spec.width }
}

fn edit(model: &Edited, interventions: Vec<Intervention>) -> Edit {
    let provenance = Provenance::new("steer", serde_json::json!({}), 0, model, vec![]);
    Edit::new(provenance, Change::Pass(PassChange { interventions, ..PassChange::default() }), Default::default())
}

pub fn with(model: &Edited, at: Site, positions: Positions, until: Until, action: Action) -> Edited {
    model.with(edit(model, vec![Intervention { at, positions, until, action }])).unwrap()
}

/// Rows of which the last two tokens are an answer.
fn answered(rows: &[Vec<u32>]) -> Tokens {
    Tokens::new(rows.to_vec()).of(rows.iter().map(|row| Text::new(&row[..row.len() - 2])))
}

fn logits(model: &Edited, tokens: &Tokens, tap: &mut dyn Tap) -> Vec<f64> {
    let hidden = model.embed(tokens, tap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, tap).unwrap();
    let span = tokens.span();
    let real = (0..span.rows.len()).flat_map(|row| (0..span.rows[row].len).map(move |cell| (row, cell)));
    values(model.head(hidden, &real.collect::<Vec<_>>()))
}

/// One number after the other, where it is asked to.
struct ByHand<'a> {
    at: Site,
    cells: &'a dyn Fn(usize, usize) -> bool,
    of: &'a dyn Fn(&[f32]) -> Vec<f32>,
}

impl Tap for ByHand<'_> {
    fn activation(&mut self, at: Site, span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at != self.at {
            return value;
        }
        let (shape, device) = (value.dims(), value.device());
        let mut numbers: Vec<f32> = value.into_data().iter::<f32>().collect();
        for (index, cell) in numbers.chunks_mut(shape[2]).enumerate() {
            let (row, column) = (index / shape[1], index % shape[1]);
            if column < span.rows[row].len && (self.cells)(row, span.rows[row].start + column) {
                cell.copy_from_slice(&(self.of)(cell));
            }
        }
        Tensor::from_data(burn::tensor::TensorData::new(numbers, shape), &device)
    }
}

fn sites(layer: usize) -> [Site; 5] {
    [Place::Embedding, Place::AttentionOut, Place::MlpHidden, Place::MlpOut, Place::BlockOut].map(|place| Site {
        stack: Stack::Decoder,
        layer: if place == Place::Embedding { 0 } else { layer },
        place,
    })
}

/// An action, and the same by hand.
type Pairing = (Action, Box<dyn Fn(&[f32]) -> Vec<f32>>);

/// Whether something is done at a row's position.
type Cells<'a> = Box<dyn Fn(usize, usize) -> bool + 'a>;

fn actions(width: usize) -> Vec<Pairing> {
    let v = vector(width);
    let w: Vec<f32> = v.clone().into_data().iter::<f32>().collect();
    let (set, add, out) = (w.clone(), w.clone(), w);
    let along = move |x: &[f32]| {
        let square: f64 = out.iter().map(|v| f64::from(*v).powi(2)).sum();
        let share = x.iter().zip(&out).map(|(x, v)| f64::from(*x) * f64::from(*v)).sum::<f64>() / square;
        x.iter().zip(&out).map(|(x, v)| (f64::from(*x) - share * f64::from(*v)) as f32).collect()
    };
    vec![
        (Action::Set(v.clone()), Box::new(move |_| set.clone())),
        (
            Action::Add { vector: v.clone(), strength: -1.5 },
            Box::new(move |x| x.iter().zip(&add).map(|(x, v)| x - 1.5 * v).collect()),
        ),
        (Action::Scale(0.25), Box::new(|x| x.iter().map(|x| 0.25 * x).collect())),
        (Action::Clamp { low: -0.1, high: 0.2 }, Box::new(|x| x.iter().map(|x| x.clamp(-0.1, 0.2)).collect())),
        (Action::ProjectOut(v), Box::new(along)),
    ]
}

#[test]
fn what_is_done_is_what_a_tap_does_by_hand() {
    for name in DECODERS {
        let base = base(name);
        let rows = ids(name);
        let tokens = answered(&rows);
        let prompts: Vec<usize> = rows.iter().map(|row| row.len() - 2).collect();
        for at in sites(1) {
            for (action, of) in actions(width(&base, at)) {
                let cases: [(Positions, Until, Cells<'_>); 6] = [
                    (Positions::Last, Until::Prompt, Box::new(|row, place| place == prompts[row] - 1)),
                    (Positions::Last, Until::Always, Box::new(|row, place| place >= prompts[row] - 1)),
                    (Positions::All, Until::Prompt, Box::new(|row, place| place < prompts[row])),
                    (Positions::All, Until::Always, Box::new(|_, _| true)),
                    (Positions::First, Until::Prompt, Box::new(|_, place| place == 0)),
                    (
                        Positions::At(vec![1, -2, 99, -99]),
                        Until::Prompt,
                        Box::new(|row, place| place == 1 || place == prompts[row] - 2),
                    ),
                ];
                for (positions, until, cells) in cases {
                    let edited = with(&base, at, positions.clone(), until, action.clone());
                    let found = logits(&edited, &tokens, &mut NoTap);
                    let wanted = logits(&base, &tokens, &mut ByHand { at, cells: &cells, of: &of });
                    let apart = difference(&found, &wanted);
                    assert!(apart < 2e-5, "{name} {at} {} {positions:?} {until:?}: {apart}", action.name());
                    // It does something.
                    assert!(
                        difference(&found, &logits(&base, &tokens, &mut NoTap)) > 1e-6,
                        "{name} {at} {}",
                        action.name()
                    );
                }
            }
        }
    }
}

#[test]
fn an_encoder_decoder_has_both_stacks_sites() {
    for name in ["t5-tiny", "bart-tiny"] {
        let base = base(name);
        let rows = pair(&Golden::open(fixture(name).join("golden.safetensors")));
        let source = |row: usize| rows[row].iter().position(|&id| id == BEGIN).unwrap();
        let tokens = Tokens::new(rows.clone()).of((0..rows.len()).map(|row| Text::new(&rows[row][..source(row) + 1])));
        for (stack, place) in [
            (Stack::Encoder, Place::Embedding),
            (Stack::Decoder, Place::Embedding),
            (Stack::Encoder, Place::BlockOut),
            (Stack::Decoder, Place::MlpOut),
        ] {
            let at = Site { stack, layer: 0, place };
            let last = |row: usize| if stack == Stack::Encoder { source(row) - 1 } else { source(row) };
            let v = vector(base.base().decoder.spec.width);
            let numbers: Vec<f32> = v.clone().into_data().iter::<f32>().collect();
            let edited = with(&base, at, Positions::Last, Until::Prompt, Action::Set(v));
            let cells = |row: usize, cell: usize| cell == last(row);
            let of = |_: &[f32]| numbers.clone();
            let found = logits(&edited, &tokens, &mut NoTap);
            let wanted = logits(&base, &tokens, &mut ByHand { at, cells: &cells, of: &of });
            assert!(difference(&found, &wanted) < 1e-5, "{name} {at}");
            assert!(difference(&found, &logits(&base, &tokens, &mut NoTap)) > 1e-6, "{name} {at}");
        }
    }
}

#[test]
fn what_changes_nothing_changes_no_bit() {
    for name in DECODERS {
        let base = base(name);
        let tokens = answered(&ids(name));
        let plain = logits(&base, &tokens, &mut NoTap);
        for at in sites(1) {
            for positions in [Positions::Last, Positions::All] {
                for action in [
                    Action::Scale(1.0),
                    Action::Add { vector: vector(width(&base, at)), strength: 0.0 },
                    Action::Clamp { low: -1e9, high: 1e9 },
                ] {
                    let edited = with(&base, at, positions.clone(), Until::Always, action);
                    assert_eq!(logits(&edited, &tokens, &mut NoTap), plain, "{name} {at}");
                }
            }
        }
    }
}

#[test]
fn a_captured_vector_over_its_own_prompt_changes_nothing() {
    let base = base("llama-tiny");
    let prompt = "The tower stands in the city of";
    let ids = base.base().tokenizer.encode_prompt(prompt).unwrap();
    let tokens = Tokens::new(vec![ids.clone()]);
    let plain = logits(&base, &tokens, &mut NoTap);
    for at in sites(1) {
        for position in [Positions::Last, Positions::First, Positions::At(vec![-2]), Positions::After("tower".into())] {
            let v = captured(&base, at, prompt, &position).unwrap();
            let edited = with(&base, at, position.clone(), Until::Prompt, Action::Set(v.clone()));
            assert_eq!(logits(&edited, &tokens, &mut NoTap), plain, "{at} {position:?}");
            let elsewhere = with(&base, at, Positions::At(vec![1]), Until::Prompt, Action::Set(v));
            if !matches!(position, Positions::At(_)) {
                assert_ne!(logits(&elsewhere, &tokens, &mut NoTap), plain, "{at} {position:?}");
            }
        }
    }
    let twice = captured(&base, sites(1)[4], prompt, &Positions::At(vec![0, 1])).unwrap_err();
    assert!(twice.to_string().contains("name one"), "{twice}");
    let far = captured(&base, sites(1)[4], prompt, &Positions::At(vec![50])).unwrap_err();
    assert!(far.to_string().contains("none at position 50"), "{far}");
    let absent = captured(&base, sites(1)[4], prompt, &Positions::After("castle".into())).unwrap_err();
    assert!(absent.to_string().contains("does not stand in"), "{absent}");
}

#[test]
fn a_text_is_found_where_it_stands_last_and_prompts_without_it_are_left_alone() {
    let base = base("llama-tiny");
    let tokenizer = &base.base().tokenizer;
    let at = sites(1)[4];
    let v = vector(base.base().decoder.spec.width);
    let edited = with(&base, at, Positions::After(" tower ".into()), Until::Prompt, Action::Set(v.clone()));
    let prompt = "A tower is a tower on a hill";
    let end = prompt.rfind("tower").unwrap() + "tower".len();
    let place = tokenizer.last_token(prompt, end).unwrap();
    let tokens = Tokens::new(vec![tokenizer.encode_prompt(prompt).unwrap()]);
    let wanted = with(&base, at, Positions::At(vec![place as i64]), Until::Prompt, Action::Set(v));
    assert_eq!(logits(&edited, &tokens, &mut NoTap), logits(&wanted, &tokens, &mut NoTap));
    let other = Tokens::new(vec![tokenizer.encode_prompt("A house is on a hill").unwrap()]);
    assert_eq!(logits(&edited, &other, &mut NoTap), logits(&base, &other, &mut NoTap));
}

#[test]
fn projected_out_leaves_no_component() {
    let base = base("gpt2-tiny");
    let at = sites(1)[4];
    let v = vector(base.base().decoder.spec.width);
    let edited = with(&base, at, Positions::All, Until::Always, Action::ProjectOut(v.clone()));
    let tokens = answered(&ids("gpt2-tiny")[..1]);
    let mut recorder = Recorder::at([at]);
    logits(&edited, &tokens, &mut recorder);
    let seen = recorder.values.remove(&at).unwrap();
    let along = (seen.clone() * v.clone().unsqueeze()).sum_dim(2).abs().max().into_scalar::<f32>();
    assert!(along < 1e-5, "{along}");
    assert!(seen.abs().max().into_scalar::<f32>() > 0.1);
}

#[test]
fn cached_is_uncached() {
    for name in DECODERS {
        let base = base(name);
        let rows = ids(name);
        for at in sites(1) {
            for (action, _) in actions(width(&base, at)) {
                for (positions, until) in [
                    (Positions::Last, Until::Prompt),
                    (Positions::Last, Until::Always),
                    (Positions::All, Until::Prompt),
                    (Positions::All, Until::Always),
                    (Positions::At(vec![2, -1]), Until::Prompt),
                ] {
                    let edited = with(&base, at, positions.clone(), until, action.clone());
                    let whole = logits(&edited, &answered(&rows), &mut NoTap);
                    // Each row in parts, the second of them within the prompt, the others behind it.
                    let mut past = edited.past();
                    let texts = answered(&rows).texts();
                    let ends: Vec<[usize; 4]> =
                        rows.iter().map(|row| [2, row.len() - 2, row.len() - 1, row.len()]).collect();
                    let (mut found, mut from) = (vec![vec![]; rows.len()], vec![0; rows.len()]);
                    for part in 0..4 {
                        let pieces =
                            (0..rows.len()).map(|row| rows[row][from[row]..ends[row][part]].to_vec()).collect();
                        let places = (0..rows.len()).map(|row| (row, from[row])).collect();
                        let tokens = Tokens::placed(pieces, places).of(texts.clone());
                        let hidden = edited.embed(&tokens, &mut NoTap).unwrap();
                        let hidden = edited
                            .blocks(hidden, 0..edited.layers(), tokens.span(), Some(&mut past), &mut NoTap)
                            .unwrap();
                        for (row, found) in found.iter_mut().enumerate() {
                            let cells: Vec<_> = (0..tokens.span().rows[row].len).map(|cell| (row, cell)).collect();
                            found.extend(values(edited.head(hidden.clone(), &cells)));
                            from[row] = ends[row][part];
                        }
                    }
                    let apart = difference(&found.concat(), &whole);
                    assert!(apart < 1e-5, "{name} {at} {} {positions:?} {until:?}: {apart}", action.name());
                }
            }
        }
    }
}

#[test]
fn generated_is_read_again() {
    let base = base("llama-tiny");
    let at = sites(1)[4];
    for until in [Until::Prompt, Until::Always] {
        let v = vector(base.base().decoder.spec.width).mul_scalar(3.0);
        let edited = with(&base, at, Positions::Last, until, Action::Add { vector: v, strength: 2.0 });
        let rows = ids("llama-tiny");
        let made = edited.generate(&rows, 6, &[], &Sampling::default()).unwrap();
        assert_ne!(made, base.generate(&rows, 6, &[], &Sampling::default()).unwrap(), "{until:?}");
        for (row, made) in rows.iter().zip(&made) {
            let text = Continuation { ids: [&row[..], &made[..]].concat(), prompt: row.len(), apart: false };
            let scored = score(&[&edited], &[text]).unwrap().remove(0).remove(0);
            assert_eq!(&scored.argmax, made, "{until:?}");
        }
    }
}

#[test]
fn prompts_that_end_elsewhere_are_read_apart() {
    let base = base("llama-tiny");
    let row = ids("llama-tiny").remove(0);
    let text = |prompt: usize, len: usize| Continuation { ids: row[..len].to_vec(), prompt, apart: false };
    let texts = [text(3, 5), text(4, 6), text(3, 7), text(5, 6)];
    let v = vector(base.base().decoder.spec.width);
    let edited = with(&base, sites(1)[4], Positions::Last, Until::Prompt, Action::Set(v));
    let together = score(&[&base, &edited], &texts).unwrap().remove(1);
    for (text, found) in texts.iter().zip(&together) {
        let alone = score(&[&edited], std::slice::from_ref(text)).unwrap().remove(0).remove(0);
        assert_eq!(found.argmax, alone.argmax);
        let of = |scored: &emend::edit::likelihood::Scored| {
            scored.log_probabilities.iter().map(|&value| f64::from(value)).collect::<Vec<_>>()
        };
        assert!(difference(&of(found), &of(&alone)) < 1e-5);
    }
}

#[test]
fn embeddings_are_changed_once_however_a_pass_is_cut() {
    let base = base("llama-tiny");
    let row = ids("llama-tiny").remove(0);
    let at = sites(1)[0];
    let edited = with(&base, at, Positions::All, Until::Always, Action::Scale(0.5));
    let half = |x: &[f32]| x.iter().map(|x| 0.5 * x).collect();
    let text = Continuation { ids: row.clone(), prompt: 2, apart: false };
    let tokens = Tokens::new(vec![row[..row.len() - 1].to_vec()]);
    let all = |_: usize, _: usize| true;
    let wanted = logits(&base, &tokens, &mut ByHand { at, cells: &all, of: &half });
    let vocabulary = base.base().decoder.spec.outputs();
    let log = |cell: usize, id: u32| {
        let logits = &wanted[cell * vocabulary..][..vocabulary];
        logits[id as usize] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln()
    };
    let wanted: Vec<f64> = (1..row.len() - 1).map(|cell| log(cell, row[cell + 1])).collect();
    for models in [vec![&edited], vec![&base, &edited], vec![&edited, &edited]] {
        let scored = score(&models, std::slice::from_ref(&text)).unwrap();
        let found = &scored[models.len() - 1][0].log_probabilities;
        let found: Vec<f64> = found.iter().map(|&value| f64::from(value)).collect();
        assert!(difference(&found, &wanted) < 1e-4, "{found:?} {wanted:?}");
    }
    // The base beside it stays what it is.
    let alone = score(&[&base], std::slice::from_ref(&text)).unwrap();
    assert_eq!(score(&[&edited, &base], std::slice::from_ref(&text)).unwrap()[1], alone[0]);
    let whole: f64 = (0..row.len() - 1)
        .map(|cell| {
            let logits = logits(&base, &tokens, &mut ByHand { at, cells: &all, of: &half });
            let logits = &logits[cell * vocabulary..][..vocabulary];
            logits[row[cell + 1] as usize] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln()
        })
        .sum();
    let found = emend::evaluate::perplexity(&edited, std::slice::from_ref(&row)).unwrap();
    let wanted = (-whole / (row.len() - 1) as f64).exp();
    assert!((found / wanted - 1.0).abs() < 1e-4, "{found} {wanted}");
}

/// A change of weights at the layer of the intervention, and below and above it.
fn weights(model: &Edited) -> Edit {
    let spec = &model.base().decoder.spec;
    let mut change = PassChange::default();
    for layer in 0..spec.layers {
        for role in [Role::MlpDown, Role::Key] {
            let [d_in, d_out] = spec.shape(role);
            let part = |shape: [usize; 2]| {
                Tensor::random(shape, Distribution::Normal(0.0, 0.2), (&Device::flex(), DType::F32))
            };
            let delta = Delta::LowRank { a: part([d_in, 2]), b: part([2, d_out]) };
            change.matrices.insert(Weight::decoder(layer, role), delta);
        }
    }
    Edit::new(
        Provenance::new("random", serde_json::json!({}), 0, model, vec![]),
        Change::Pass(change),
        Default::default(),
    )
}

#[test]
fn stacked_with_weights_in_both_orders_and_taken_back() {
    let base = base("gemma3-tiny");
    let tokens = answered(&ids("gemma3-tiny"));
    let plain = logits(&base, &tokens, &mut NoTap);
    let (heavy, at) = (Arc::new(weights(&base)), sites(1)[3]);
    let v = vector(base.base().decoder.spec.width);
    let first = Intervention {
        at,
        positions: Positions::Last,
        until: Until::Always,
        action: Action::Add { vector: v.clone(), strength: 2.0 },
    };
    let second = Intervention { action: Action::Scale(0.5), ..first.clone() };
    let steered = Arc::new(edit(&base, vec![first.clone(), second]));
    let one = base.with(heavy.clone()).unwrap().with(steered.clone()).unwrap();
    let other = base.with(steered.clone()).unwrap().with(heavy.clone()).unwrap();
    assert_eq!(logits(&one, &tokens, &mut NoTap), logits(&other, &tokens, &mut NoTap));
    assert_ne!(logits(&one, &tokens, &mut NoTap), logits(&base.with(heavy.clone()).unwrap(), &tokens, &mut NoTap));
    // Of one edit or of two, as one file or as two.
    let apart: Vec<Arc<Edit>> =
        steered.pass().unwrap().interventions.iter().map(|one| Arc::new(edit(&base, vec![one.clone()]))).collect();
    let joined = Edit::join(&[heavy.clone(), apart[0].clone(), apart[1].clone()]).unwrap();
    assert_eq!(logits(&base.with(joined).unwrap(), &tokens, &mut NoTap), logits(&one, &tokens, &mut NoTap));
    for id in [steered.id(), heavy.id()] {
        let (left, _) = one.without(id).unwrap();
        let (left, _) = left.without(if id == heavy.id() { steered.id() } else { heavy.id() }).unwrap();
        assert_eq!(logits(&left, &tokens, &mut NoTap), plain);
    }
    // Without the changes in its list, as in a long sequence, the model stays what it is.
    assert_eq!(logits(&one.clone().without_changes(), &tokens, &mut NoTap), logits(&one, &tokens, &mut NoTap));
}

#[test]
fn saved_and_loaded() {
    let base = base("gpt2-tiny");
    let tokens = answered(&ids("gpt2-tiny"));
    let folder = tempfile::tempdir().unwrap();
    for (number, at) in sites(1).into_iter().enumerate() {
        let interventions: Vec<Intervention> = actions(width(&base, at))
            .into_iter()
            .zip([
                Positions::Last,
                Positions::All,
                Positions::First,
                Positions::At(vec![0, -1]),
                Positions::After("tower".into()),
            ])
            .map(|((action, _), positions)| Intervention { at, positions, until: Until::Prompt, action })
            .collect();
        let made = edit(&base, interventions);
        let path = folder.path().join(format!("{number}.safetensors"));
        made.save(&path).unwrap();
        let loaded = Edit::load(&path, &Device::flex()).unwrap();
        assert_eq!(loaded.id(), made.id());
        let (loaded, made) = (base.with(loaded).unwrap(), base.with(made).unwrap());
        assert_eq!(logits(&loaded, &tokens, &mut NoTap), logits(&made, &tokens, &mut NoTap), "{at}");
    }
}

#[test]
fn the_mean_difference_of_pairs() {
    let base = base("llama-tiny");
    let at = sites(1)[4];
    let texts = [("The tower", "A hill"), ("Big red towers of stone", "No"), ("It", "It is")];
    let pairs: Vec<Pair> = texts
        .iter()
        .map(|(positive, negative)| Pair { prompt: None, positive: (*positive).into(), negative: (*negative).into() })
        .collect();
    let found = values(mean_difference(&base, at, &pairs).unwrap());
    let of = |text: &str| values(captured(&base, at, text, &Positions::Last).unwrap());
    let mut wanted = vec![0.0; found.len()];
    for (positive, negative) in texts {
        for (wanted, (positive, negative)) in wanted.iter_mut().zip(of(positive).iter().zip(of(negative))) {
            *wanted += (positive - negative) / 3.0;
        }
    }
    assert!(difference(&found, &wanted) < 1e-5);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let base = base("gpt2-tiny");
    let wide = base.base().decoder.spec.width;
    let at = |text: &str| text.parse::<Site>().unwrap();
    let refused = |at: Site, positions: Positions, until: Until, action: Action, words: &str| {
        let made = edit(&base, vec![Intervention { at, positions, until, action }]);
        let error = base.with(made).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(words), "{error:?} wants {words:?}");
    };
    let set = || Action::Set(vector(wide));
    refused(at("9.block"), Positions::Last, Until::Prompt, set(), "layers 0 to");
    refused(at("encoder.0.block"), Positions::Last, Until::Prompt, set(), "no encoder");
    refused(at("0.mlp_hidden"), Positions::Last, Until::Prompt, set(), "wide");
    refused(at("0.block"), Positions::At(vec![]), Until::Prompt, set(), "no position");
    refused(at("0.block"), Positions::After(" ".into()), Until::Prompt, set(), "no text");
    refused(at("0.block"), Positions::First, Until::Always, set(), "last");
    refused(at("0.block"), Positions::Last, Until::Prompt, Action::Clamp { low: 1.0, high: -1.0 }, "no value");
    refused(at("0.block"), Positions::Last, Until::Prompt, Action::Scale(f64::NAN), "no number");
    let zeros = Tensor::zeros([wide], &Device::flex());
    refused(at("0.block"), Positions::Last, Until::Prompt, Action::ProjectOut(zeros), "no direction");
    for wrong in ["11", "x.block", "1.blocks", "block", "", "encoder", "-1.block"] {
        assert!(wrong.parse::<Site>().is_err(), "{wrong}");
    }
    for right in
        ["11.block", "0.mlp", "3.attention", "2.mlp_hidden", "embedding", "encoder.3.block", "encoder.embedding"]
    {
        assert_eq!(at(right).to_string(), right);
    }
}
