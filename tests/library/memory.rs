//! Memories: who answers a prompt, what stays the model's own, and the files they stand in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use emend::apply::lookup::State;
use emend::apply::memory::{Elsewhere, bind};
use emend::apply::{Editor, Prepared};
use emend::edit::generate::Sampling;
use emend::edit::memory::{Answer, settled, without_contradictions};
use emend::edit::score::score;
use emend::edit::{Change, Delta, Edit, EditRequest, Edited, Memory, PassChange, Provenance};
use emend::model::tap::{NoTap, Role, Weight};
use emend::model::tokenizer::Continuation;
use emend::model::tokens::Tokens;
use emend::network::serac::{Serac, SeracRoute, SeracSettings};
use rand::RngExt;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::common::{FAR, QUESTION, difference, encode, music, pocket, request, scored, text, values};
use crate::without_training::{lookup, short_ike};

const WHOLE: &str = "\"whole\"";
const NOTHING: &str = "\"nothing\"";
const LORA: &str = "{ lora = { rank = 2 } }";
const TOP: &str = "{ top = 2 }";

fn settings(routing: &str, tune: &str) -> SeracSettings {
    toml::from_str(&format!(
        "routing = \"{routing}\"\n[classifier]\nencoder = \"model\"\ntune = \"nothing\"\nlayers = 2\ndimensions = 16\n\
         [counterfactual]\nmodel = \"model\"\ntune = {tune}"
    ))
    .unwrap()
}

/// Networks whose values depend on their names alone. What is pretrained is moved by up to `size`.
fn serac_on(device: &Device, routing: &str, tune: &str, size: f64) -> Serac {
    let base = pocket();
    let serac = Serac::new(settings(routing, tune), base.base(), (device, DType::F32)).unwrap();
    let tensors = serac.tensors().into_iter().map(|(name, data)| {
        let mut rng = emend::random::stream(1, &name, 0);
        let mut draw = || 2.0 * rng.random::<f64>() - 1.0;
        let shape = data.shape().to_vec();
        let values: Vec<f64> = match name.as_str() {
            "classifier.head.weight" | "classifier.head.bias" => (0..data.num_elements()).map(|_| draw()).collect(),
            "classifier.log_scale" => data.iter::<f64>().collect(),
            name if name.ends_with(".a") => (0..data.num_elements()).map(|_| 0.2 * draw()).collect(),
            _ => data.iter::<f64>().map(|value| value + size * draw()).collect(),
        };
        (name, TensorData::new(values, shape))
    });
    let tensors: BTreeMap<_, _> = tensors.collect();
    serac.restored(tensors).unwrap()
}

fn serac(routing: &str, tune: &str, size: f64) -> Serac {
    serac_on(&Device::flex(), routing, tune, size)
}

fn routed(serac: &Serac, threshold: f64) -> Arc<SeracRoute> {
    let mut serac = serac.clone();
    serac.settings.hard.threshold = threshold;
    serac.route().unwrap()
}

fn remember(serac: &Serac, threshold: f64, model: &Edited, requests: &[EditRequest]) -> Arc<Edit> {
    Arc::new(routed(serac, threshold).edit(model, requests, json!({"method": "serac"})).unwrap())
}

fn scope(serac: &Serac, edit: &Edit, prompt: &str) -> f64 {
    let keys = &edit.memory().unwrap().keys;
    routed(serac, 0.0).scopes(&edit.provenance.requests, keys, &[prompt.to_owned()]).unwrap()[0].1
}

/// A threshold with the edit's own prompts above it and the far ones below.
fn threshold(serac: &Serac, requests: &[EditRequest]) -> f64 {
    let edit = remember(serac, 0.0, &pocket(), requests);
    let own = requests.iter().map(|request| scope(serac, &edit, &request.prompt)).fold(f64::INFINITY, f64::min);
    let prompts = FAR.iter().map(|(prompt, _)| *prompt).filter(|far| requests.iter().all(|own| own.prompt != *far));
    let far = prompts.map(|prompt| scope(serac, &edit, prompt)).fold(0.0, f64::max);
    assert!(own > far, "the classifier tells the edit's own prompt from far ones: {own} and {far}");
    (own + far) / 2.0
}

/// Who answers a prompt in scope: the model, what it is asked, and its share.
fn answerer(model: &Edited, prompt: &str) -> (Edited, String, f64) {
    let said = model.consult(&[prompt.to_owned()]).unwrap().remove(0).unwrap();
    let Answer::Model { model, prompt, share } = said.answer else { panic!("another model answers") };
    (model, prompt, share)
}

pub fn random(shape: [usize; 2], size: f64, number: u64) -> Tensor<2> {
    let mut rng = emend::random::stream(3, "weights", number);
    let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| size * (2.0 * rng.random::<f64>() - 1.0)).collect();
    Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
}

/// A low-rank change of an MLP's second matrix.
pub fn weights(model: &Edited, layer: usize) -> Arc<Edit> {
    let [d_in, d_out] = model.base().decoder.spec.shape(Role::MlpDown);
    let delta = Delta::LowRank { a: random([d_in, 2], 0.3, 0), b: random([2, d_out], 0.3, 1) };
    let change = PassChange { matrices: [(Weight::decoder(layer, Role::MlpDown), delta)].into(), ..Default::default() };
    let provenance = Provenance {
        method: "random".into(),
        settings: json!({}),
        requests: vec![],
        seed: 0,
        version: "0".into(),
        base: model.base().fingerprint.clone(),
        computed_on: model.edit_ids(),
        joined: vec![],
        findings: Value::Null,
    };
    Arc::new(Edit::new(provenance, Change::Pass(change), BTreeMap::new()))
}

pub fn prepared() -> Prepared {
    Prepared { statistics: None, seed: 0, progress: Box::new(|_| {}) }
}

/// Logits at every cell of one text.
pub fn logits(model: &Edited, ids: &[u32]) -> Vec<f64> {
    let tokens = Tokens::new(vec![ids.to_vec()]);
    let hidden = model.embed(&tokens, &mut NoTap).unwrap();
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap).unwrap();
    let cells: Vec<(usize, usize)> = (0..ids.len()).map(|cell| (0, cell)).collect();
    values(model.head(hidden, &cells))
}

/// They are alike to a share of the largest, or of 1 where all are smaller.
pub fn near(a: &[f32], b: &[f32], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1.0f64, |most, &value| most.max(f64::from(value).abs()));
    let apart = a.iter().zip(b).fold(0.0f64, |most, (&a, &b)| most.max((f64::from(a) - f64::from(b)).abs()));
    assert!(apart <= tolerance * largest, "{apart:e}: {a:?} against {b:?}");
}

#[test]
fn a_question_is_in_scope_above_the_threshold() {
    let (base, serac) = (pocket(), serac("hard", WHOLE, 0.05));
    let question = "In which country is Rosario?";
    let ids = encode(&base, question);
    let own = base.next_tokens(&ids, 20).unwrap();
    let found = scope(&serac, &remember(&serac, 0.0, &base, &[request()]), question);
    assert!(found > 1e-6 && found < 1.0, "{found}");
    for (threshold, inside) in [(0.0, true), (found - 1e-9, true), (found, false), (found + 1e-9, false), (1.0, false)]
    {
        let after = base.with(remember(&serac, threshold, &base, &[request()])).unwrap();
        let said = after.consulted(question).unwrap();
        assert_eq!(said, inside.then(|| (Some(request()), found)), "at {threshold}, scope {found}");
        let next = after.next_tokens(&ids, 20).unwrap();
        if inside {
            let (model, asked, share) = answerer(&after, question);
            assert_eq!(share, 1.0);
            assert_eq!(next, model.next_tokens(&encode(&model, &asked), 20).unwrap());
            assert_ne!(next, own);
        } else {
            assert_eq!(next, own);
        }
    }
}

#[test]
fn out_of_scope_the_base_answers_and_in_scope_the_counterfactual_model() {
    let (base, serac) = (pocket(), serac("hard", WHOLE, 0.05));
    let limit = threshold(&serac, &[request()]);
    let after = base.with(remember(&serac, limit, &base, &[request()])).unwrap();
    let (counterfactual, asked, _) = answerer(&after, QUESTION);
    let prompt = |question: &str| serac.settings.counterfactual.prompt(&request().statement(), question);
    assert_eq!(asked, prompt(QUESTION));
    assert_eq!(asked, "The city of Rosario lies in Japan. The city of Rosario lies in");
    let (ids, asked) = (encode(&base, QUESTION), encode(&base, &asked));
    assert_ne!(
        counterfactual.next_tokens(&asked, 5).unwrap(),
        base.next_tokens(&asked, 5).unwrap(),
        "it is another model"
    );
    assert_eq!(after.next_tokens(&ids, 50).unwrap(), counterfactual.next_tokens(&asked, 50).unwrap());
    for (far, _) in FAR {
        assert!(after.consulted(far).unwrap().is_none(), "{far}");
        let far = encode(&base, far);
        assert_eq!(after.next_tokens(&far, 50).unwrap(), base.next_tokens(&far, 50).unwrap());
    }

    // Scores, in and out of scope among each other.
    let inside = [(QUESTION, "Japan"), (QUESTION, "Argentina"), (QUESTION, "the Soviet Union")];
    let all = [FAR[0], inside[0], FAR[1], inside[1], inside[2], FAR[2]];
    let texts: Vec<Continuation> = all.iter().map(|(prompt, target)| text(&base, prompt, target)).collect();
    let before = scored(&base, &texts);
    let both = score(&[&base, &after], &texts).unwrap();
    assert_eq!(both[0], before);
    assert_eq!(both[1], scored(&after, &texts));
    let asked: Vec<Continuation> =
        inside.iter().map(|(question, target)| text(&counterfactual, &prompt(question), target)).collect();
    let wanted = scored(&counterfactual, &asked);
    for (found, place) in [(0, 1), (1, 3), (2, 4)] {
        assert_eq!(both[1][place], wanted[found]);
        assert_ne!(both[1][place], before[place]);
    }
    for place in [0, 2, 5] {
        assert_eq!(both[1][place], before[place]);
    }

    // Generation, in and out of scope in one batch.
    let rows = [encode(&base, FAR[0].0), ids, encode(&base, FAR[2].0)];
    for sampling in [Sampling::default(), Sampling { temperature: 1.0, top_k: 20, top_p: 0.9, seed: 4 }] {
        let stop = base.base().stop_tokens();
        let made = after.generate(&rows, 6, &stop, &sampling).unwrap();
        let own = base.generate(&rows, 6, &stop, &sampling).unwrap();
        assert_eq!((&made[0], &made[2]), (&own[0], &own[2]));
        if sampling.temperature == 0.0 {
            let asked = encode(&base, &prompt(QUESTION));
            assert_eq!(made[1], counterfactual.generate(&[asked], 6, &stop, &sampling).unwrap()[0]);
        }
    }
}

#[test]
fn a_statement_that_ends_itself_gets_no_second_full_stop() {
    let settings = settings("hard", NOTHING).counterfactual;
    assert_eq!(settings.prompt("Ost is wet", "Is it?"), "Ost is wet. Is it?");
    for end in [".", "!", "?"] {
        assert_eq!(settings.prompt(&format!("Ost is wet{end}"), "Is it?"), format!("Ost is wet{end} Is it?"));
    }
}

#[test]
fn soft_routing_mixes_probabilities() {
    let (base, serac) = (pocket(), serac("soft", WHOLE, 0.05));
    let after = base.with(remember(&serac, 0.5, &base, &[request()])).unwrap();
    let vocabulary = base.base().decoder.spec.vocabulary;
    let mut shares = vec![];
    for (question, target) in [(QUESTION, "Japan"), (QUESTION, "the Soviet Union"), FAR[0], FAR[2]] {
        let (model, asked, share) = answerer(&after, question);
        assert_eq!(after.consulted(question).unwrap(), Some((Some(request()), share)));
        assert!(share > 0.0 && share < 1.0);
        shares.push(share);
        let own = text(&base, question, target);
        let mut theirs = encode(&model, &asked);
        let prompt = theirs.len();
        theirs.extend(own.target());
        let theirs = Continuation { ids: theirs, prompt, apart: false };
        let found = &scored(&after, std::slice::from_ref(&own))[0];
        assert_eq!(found.target, own.target());
        let (a, b) = (&scored(&base, std::slice::from_ref(&own))[0], &scored(&model, &[theirs])[0]);
        let each = a.log_probabilities.iter().zip(&b.log_probabilities).zip(&found.log_probabilities);
        for ((&a, &b), &found) in each {
            let wanted = ((1.0 - share) * f64::from(a).exp() + share * f64::from(b).exp()).ln();
            assert!((wanted - f64::from(found)).abs() <= 1e-5 * wanted.abs().max(1.0), "{wanted} against {found}");
        }

        // Over the vocabulary they are probabilities, each the mixture of the two.
        let mut ids = encode(&base, question);
        let mut theirs = encode(&model, &asked);
        let made = after.generate(&[ids.clone()], 4, &[], &Sampling::default()).unwrap().remove(0);
        let by_id = |model: &Edited, ids: &[u32]| {
            let mut all = vec![0.0; vocabulary];
            let next = model.next_tokens(ids, vocabulary).unwrap();
            assert_eq!(next.len(), vocabulary);
            next.iter().for_each(|next| all[next.id as usize] = f64::from(next.probability));
            all
        };
        let next = after.next_tokens(&ids, vocabulary).unwrap();
        let total: f64 = next.iter().map(|next| f64::from(next.logit).exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "{total}");
        for (step, &token) in made.iter().enumerate() {
            let (a, b) = (by_id(&base, &ids), by_id(&model, &theirs));
            let mixed: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (1.0 - share) * a + share * b).collect();
            if step == 0 {
                assert!(difference(&by_id(&after, &ids), &mixed) < 1e-5);
            }
            let largest = mixed.iter().copied().fold(0.0, f64::max);
            assert!(mixed[token as usize] > largest * (1.0 - 1e-5), "token {step} is the likeliest of the mixture");
            ids.push(token);
            theirs.push(token);
        }
    }
    assert!(shares[0] > shares[2], "{shares:?}");
    // Several at once are each alone.
    let texts: Vec<Continuation> = FAR.iter().map(|(prompt, target)| text(&base, prompt, target)).collect();
    let together = scored(&after, &texts);
    for (text, together) in texts.iter().zip(&together) {
        near(&scored(&after, std::slice::from_ref(text))[0].log_probabilities, &together.log_probabilities, 1e-5);
    }
}

#[test]
fn a_memory_taken_away_leaves_the_base_bit_for_bit() {
    let (base, serac) = (pocket(), serac("hard", WHOLE, 0.05));
    let edit = remember(&serac, 0.0, &base, &[request()]);
    let after = base.with(edit.clone()).unwrap();
    assert!(after.has_memory());
    assert_ne!(after.id(), base.id());
    assert_eq!(after.weights_id(), base.weights_id());
    let place = tempfile::tempdir().unwrap();
    let error = emend::edit::hf::export(&after, &place.path().join("hf")).unwrap_err().to_string();
    assert!(error.contains("is a memory"), "{error}");
    let ids = encode(&base, QUESTION);
    assert_ne!(after.next_tokens(&ids, 10).unwrap(), base.next_tokens(&ids, 10).unwrap());
    let (rest, dependent) = after.without(edit.id()).unwrap();
    assert!(dependent.is_empty() && !rest.has_memory());
    assert_eq!(rest.id(), base.id());
    assert_eq!(rest.next_tokens(&ids, 2400).unwrap(), base.next_tokens(&ids, 2400).unwrap());
    assert!(emend::edit::hf::export(&rest, &place.path().join("hf")).is_ok());
}

#[test]
fn a_memory_stands_beside_edits_of_weights() {
    let (base, serac) = (pocket(), serac("hard", WHOLE, 0.05));
    let limit = threshold(&serac, &[request()]);
    let (change, memory) = (weights(&base, 3), remember(&serac, limit, &base, &[request()]));
    let edited = base.with(change.clone()).unwrap();
    let alone = base.with(memory.clone()).unwrap();
    let over = edited.with(memory.clone()).unwrap();
    let under = alone.with(change.clone()).unwrap();
    assert_eq!((over.weights_id(), under.weights_id()), (edited.weights_id(), edited.weights_id()));
    assert_eq!(over.memories()[0].model.id(), edited.id());
    assert_eq!(under.memories()[0].model.id(), base.id());
    let all = [FAR[0], (QUESTION, "Japan"), FAR[1], FAR[2]];
    let texts: Vec<Continuation> = all.iter().map(|(prompt, target)| text(&base, prompt, target)).collect();
    let together = score(&[&base, &edited, &over, &under, &alone], &texts).unwrap();
    for (place, (prompt, _)) in all.iter().enumerate() {
        let ids = encode(&base, prompt);
        let next = |model: &Edited| model.next_tokens(&ids, 30).unwrap();
        assert_ne!(together[0][place], together[1][place], "the weights matter");
        if *prompt == QUESTION {
            let (counterfactual, asked, _) = answerer(&alone, QUESTION);
            let wanted = counterfactual.next_tokens(&encode(&base, &asked), 30).unwrap();
            for (number, model) in [(2, &over), (3, &under), (4, &alone)] {
                assert_eq!(next(model), wanted);
                assert_eq!(together[number][place], together[4][place]);
            }
        } else {
            assert_eq!((next(&over), next(&under)), (next(&edited), next(&edited)), "{prompt}");
            assert_eq!((&together[2][place], &together[3][place]), (&together[1][place], &together[1][place]));
            assert_eq!(together[4][place], together[0][place]);
        }
    }
    let rows: Vec<Vec<u32>> = FAR.iter().map(|(prompt, _)| encode(&base, prompt)).collect();
    let made = |model: &Edited| model.generate(&rows, 5, &[], &Sampling::default()).unwrap();
    assert_eq!((made(&over), made(&under)), (made(&edited), made(&edited)));
    assert_eq!(over.without(memory.id()).unwrap().0.id(), edited.id());
    assert_eq!(under.without(change.id()).unwrap().0.id(), alone.id());
}

#[test]
fn memories_that_want_the_same_are_one_list() {
    let (base, serac) = (pocket(), serac("hard", NOTHING, 0.0));
    let [first, second] = [request(), music()];
    let [a, b] = [&first, &second].map(|request| remember(&serac, 0.0, &base, std::slice::from_ref(request)));
    let both = base.with(a.clone()).unwrap().with(b.clone()).unwrap();
    assert_eq!(both.memories().len(), 1);
    let list = &both.memories()[0];
    assert_eq!(list.requests, [first.clone(), second.clone()]);
    assert_eq!(list.edits, [a.id(), b.id()]);
    let keys = [&a, &b].map(|edit| values(edit.memory().unwrap().keys.clone()));
    assert_eq!(values(list.keys.clone()), keys.concat());
    let questions = [QUESTION, "In which country is Rosario?", FAR[1].0, "Which instrument is Bill Wyman known for?"];
    let mut answered = [0, 0];
    for question in questions {
        let scopes = [scope(&serac, &a, question), scope(&serac, &b, question)];
        let nearer = usize::from(scopes[1] > scopes[0]);
        answered[nearer] += 1;
        let (request, scope) = both.consulted(question).unwrap().unwrap();
        assert_eq!(request.as_ref(), Some(&list.requests[nearer]), "{question}: {scopes:?}");
        assert!((scope - scopes[nearer]).abs() < 1e-5);
    }
    assert!(answered[0] > 0 && answered[1] > 0, "{answered:?}");
    assert_eq!(both.consulted(QUESTION).unwrap().unwrap().0.unwrap(), first, "though another edit came later");
    assert_eq!(both.consulted(FAR[1].0).unwrap().unwrap().0.unwrap(), second);

    // What wants something else is a list of its own, and the topmost that has a say answers.
    let mut other = b.memory().unwrap().clone();
    other.needs = json!({"method": "serac", "archive": "elsewhere"});
    let other = Edit::new(b.provenance.clone(), Change::Memory(other), BTreeMap::new());
    let apart = base.with(a.clone()).unwrap().with(other).unwrap();
    assert_eq!(apart.memories().len(), 2);
    assert_eq!(apart.consulted(QUESTION).unwrap().unwrap().0.unwrap(), second);
    // Nothing is left to ask the lower one then, and nothing at all where there is no prompt.
    assert!(answerer(&apart, QUESTION).1.starts_with("The instrument of Bill Wyman is the violin. "));
    assert!(!apart.next_tokens(&encode(&base, QUESTION), 1).unwrap().is_empty());
    assert!(apart.consult(&[]).unwrap().is_empty() && both.consult(&[]).unwrap().is_empty());
    assert_eq!(score(&[&base, &apart], &[]).unwrap(), [vec![], vec![]]);
    // And so is one on other weights.
    let split = base.with(a).unwrap().with(weights(&base, 1)).unwrap().with(b).unwrap();
    assert_eq!(split.memories().len(), 2);
}

#[test]
fn of_two_edits_on_one_question_the_later_wins() {
    let (base, serac) = (pocket(), serac("hard", NOTHING, 0.0));
    let old = request();
    let new = EditRequest { target_new: "Peru".into(), ..old.clone() };
    let [first, middle, last] =
        [&old, &music(), &new].map(|request| remember(&serac, 0.0, &base, std::slice::from_ref(request)));
    let mut model = base.clone();
    for edit in [&first, &middle, &last] {
        model = model.with(edit.clone()).unwrap();
    }
    let list = &model.memories()[0];
    assert_eq!(list.requests, [music(), new.clone()]);
    assert_eq!(list.edits, [middle.id(), last.id()]);
    let keys = [&middle, &last].map(|edit| values(edit.memory().unwrap().keys.clone()));
    assert_eq!(values(list.keys.clone()), keys.concat());
    assert_eq!(model.consulted(QUESTION).unwrap().unwrap().0.unwrap(), new);
    assert!(answerer(&model, QUESTION).1.starts_with("The city of Rosario lies in Peru. "));
    // Taken away again, the older one is back.
    let (before, _) = model.without(last.id()).unwrap();
    assert_eq!(before.consulted(QUESTION).unwrap().unwrap().0.unwrap(), old);

    // In one edit too; a descriptor makes another question of the same prompt.
    let told = |descriptor: &str| EditRequest { descriptor: Some(descriptor.into()), ..old.clone() };
    let all = [old.clone(), told("A text."), music(), new.clone(), told("Another."), told("A text.")];
    assert_eq!(without_contradictions(&all), (vec![2, 3, 4, 5], vec![(0, 3), (1, 5)]));
    assert_eq!(settled(&all), [all[2].clone(), all[3].clone(), all[4].clone(), all[5].clone()]);
    assert_eq!(without_contradictions(&[]), (vec![], vec![]));
    let edit = remember(&serac, 0.0, &base, &[old, music(), new.clone()]);
    assert_eq!(edit.provenance.requests, [music(), new]);
    assert_eq!(edit.memory().unwrap().keys.dims()[0], 2);
}

#[test]
fn memories_are_joined_and_forgotten() {
    let (base, serac) = (pocket(), serac("hard", NOTHING, 0.0));
    let new = EditRequest { target_new: "Peru".into(), ..request() };
    let third = EditRequest::new(FAR[0].0, "Leo Tolstoy");
    let a = remember(&serac, 0.0, &base, &[request(), music()]);
    let on_a = base.with(a.clone()).unwrap();
    let b = remember(&serac, 0.0, &on_a, &[third.clone(), new.clone()]);
    assert_eq!(b.provenance.computed_on, [a.id()]);
    let joined = Edit::join_memories(&[a.clone(), b.clone()]).unwrap();
    assert_eq!(joined.provenance.requests, [music(), third.clone(), new.clone()]);
    assert!(joined.provenance.computed_on.is_empty());
    let keys = |edit: &Edit| -> Vec<Vec<f64>> {
        values(edit.memory().unwrap().keys.clone()).chunks(16).map(<[f64]>::to_vec).collect()
    };
    assert_eq!(keys(&joined), [keys(&a)[1].clone(), keys(&b)[0].clone(), keys(&b)[1].clone()]);
    assert_eq!(Edit::join(&[a.clone(), b.clone()]).unwrap().id(), joined.id());
    // Joined they say what the stack says.
    let (stack, one) = (on_a.with(b.clone()).unwrap(), base.with(joined.clone()).unwrap());
    for prompt in [QUESTION, FAR[0].0, FAR[1].0, FAR[2].0] {
        assert_eq!(stack.consulted(prompt).unwrap(), one.consulted(prompt).unwrap());
    }
    let change = weights(&base, 0);
    let refused = |edits: &[Arc<Edit>]| Edit::join_memories(edits).unwrap_err().to_string();
    assert!(refused(&[]).contains("no memory"));
    assert!(refused(&[a.clone(), change.clone()]).contains("do not join"));
    let mut other = b.memory().unwrap().clone();
    other.needs = json!({"method": "lookup"});
    let other = Edit::new(b.provenance.clone(), Change::Memory(other), BTreeMap::new());
    assert!(refused(&[a, Arc::new(other)]).contains("different editors"));

    let rest = joined.forget(&[1]).unwrap();
    assert_eq!(rest.provenance.requests, [music(), new.clone()]);
    assert_eq!(keys(&rest), [keys(&joined)[0].clone(), keys(&joined)[2].clone()]);
    assert_ne!(rest.id(), joined.id());
    let last = joined.forget(&[1, 0]).unwrap();
    assert_eq!(last.provenance.requests, [new]);
    assert_eq!(keys(&last), [keys(&joined)[2].clone()]);
    let after = base.with(last.clone()).unwrap();
    assert_eq!(after.consulted(FAR[1].0).unwrap().unwrap().0.unwrap().target_new, "Peru");
    let refused = |edit: &Edit, entries: &[usize]| edit.forget(entries).unwrap_err().to_string();
    assert!(refused(&joined, &[0, 3]).contains("no entry 3; it has entries 0 to 2"));
    assert!(refused(&joined, &[2, 0, 1]).contains("nothing would be left"));
    assert!(refused(&last, &[0]).contains("nothing would be left"));
    assert!(refused(&change, &[0]).contains("is no memory"));
}

#[test]
fn a_memory_file_holds_the_memory() {
    let (base, serac) = (pocket(), serac("hard", WHOLE, 0.05));
    let edit = remember(&serac, 0.0, &base, &[request(), music()]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.edit.safetensors");
    edit.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let loaded = Edit::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.id(), edit.id());
    assert_eq!(loaded.provenance, edit.provenance);
    let (saved, found) = (edit.memory().unwrap(), loaded.memory().unwrap());
    assert_eq!((&found.needs, &found.texts), (&saved.needs, &saved.texts));
    assert_eq!(found.keys.dims(), [2, 16]);
    assert_eq!(values(found.keys.clone()), values(saved.keys.clone()));
    loaded.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    // Nothing consults it until its networks are found; then it says what it said.
    let Err(refused) = base.with(loaded.clone()) else { panic!("nothing consults it") };
    assert!(refused.to_string().contains("nothing here consults"), "{refused}");
    let after = base.with(loaded.bound(serac.route().unwrap())).unwrap();
    let wanted = base.with(remember(&serac, 0.5, &base, &[request(), music()])).unwrap();
    for prompt in [QUESTION, FAR[0].0, FAR[1].0] {
        let ids = encode(&base, prompt);
        assert_eq!(after.next_tokens(&ids, 10).unwrap(), wanted.next_tokens(&ids, 10).unwrap());
    }
}

/// An edit file of a header and of tensors filled with one number.
fn file(header: &Value, tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape)| 0.5f32.to_le_bytes().repeat(shape.iter().product())).collect();
    let views = tensors.iter().zip(&data);
    let views = views.map(|((name, shape), data)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, Some(HashMap::from([("emend".to_owned(), header.to_string())]))).unwrap()
}

#[test]
fn files_that_are_no_whole_memory_are_refused() {
    let (base, serac) = (pocket(), serac("hard", NOTHING, 0.0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.edit.safetensors");
    remember(&serac, 0.0, &base, &[request(), music()]).save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let header: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["emend"]).unwrap();
    let with = |key: &str, value: Value| {
        let mut header = header.clone();
        header[key] = value;
        header
    };
    let without = |key: &str| {
        let mut header = header.clone();
        header.as_object_mut().unwrap().remove(key);
        header
    };
    let texts = |texts: &[&str]| with("memory", json!({"needs": header["memory"]["needs"], "texts": texts}));
    let load = |header: &Value, tensors: &[(&str, &[usize])]| {
        std::fs::write(&path, file(header, tensors)).unwrap();
        Edit::load(&path, &Device::flex())
    };
    let keys: (&str, &[usize]) = ("memory.keys", &[2, 16]);
    assert_eq!(load(&header, &[keys]).unwrap().provenance.requests, [request(), music()]);
    assert_eq!(load(&texts(&["a", "b"]), &[keys]).unwrap().memory().unwrap().texts, ["a", "b"]);
    let factors: [(&str, &[usize]); 2] =
        [("change.decoder.1.mlp.down.a", &[896, 1]), ("change.decoder.1.mlp.down.b", &[1, 224])];
    /// A header, the tensors by name and shape, and what is said.
    type Broken<'a> = (Value, Vec<(&'a str, &'a [usize])>, &'a str);
    let cases: Vec<Broken<'_>> = vec![
        (header.clone(), vec![("memory.keys", &[1, 16])], "the memory is not whole: 2 edits, 1 keys"),
        (header.clone(), vec![("memory.keys", &[3, 16])], "the memory is not whole: 2 edits, 3 keys"),
        (header.clone(), vec![("memory.keys", &[0, 16])], "the memory is empty"),
        (header.clone(), vec![], "a memory without its tensor \"memory.keys\""),
        (header.clone(), vec![("memory.keys", &[32])], "rank 1"),
        (with("requests", json!([])), vec![keys], "the memory is empty: it holds no edit"),
        (texts(&["one"]), vec![keys], "2 edits, 2 keys, 1 texts"),
        (header.clone(), vec![factors[0], factors[1], keys], "it holds one or the other"),
        (header.clone(), vec![("change.decoder.1.mlp.down.bias", &[224]), keys], "it holds one or the other"),
        (with("change", json!("weights")), vec![keys], "an edit of format"),
        (without("memory"), vec![keys], "an edit of format"),
        (with("format", json!("edit/2")), vec![keys], "an edit of format edit/2"),
        (header.clone(), vec![keys, ("memory.more", &[2, 16])], "belongs to no edit"),
    ];
    for (header, tensors, message) in cases {
        let refused = load(&header, &tensors).unwrap_err().to_string();
        assert!(refused.contains(message), "\"{message}\": {refused}");
        assert!(refused.starts_with(&path.display().to_string()) && !refused.contains('\n'), "{refused}");
    }
}

#[test]
fn memories_read_from_files_are_bound_again() {
    let base = pocket();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.edit.safetensors");
    let requests = [request(), music()];
    let ids = encode(&base, QUESTION);
    let saved = |edit: &Edit| {
        edit.save(&path).unwrap();
        Edit::load(&path, &Device::flex()).unwrap()
    };
    let editors: [(&dyn Editor, usize); 3] =
        [(&lookup(2, 0.1, State::Mean), 2), (&short_ike(&base), 2), (&short_ike(&base), 1)];
    for (editor, count) in editors {
        let edit = editor.edit(&base, &requests[..count]).unwrap();
        let loaded = saved(&edit);
        assert_eq!(loaded.id(), edit.id());
        let bound = bind(loaded, base.base(), Elsewhere::Nowhere, false).unwrap();
        let (wanted, found) = (base.with(edit).unwrap(), base.with(bound).unwrap());
        assert_eq!(found.next_tokens(&ids, 10).unwrap(), wanted.next_tokens(&ids, 10).unwrap());
    }
    let change = |edit: &Edit, of: &dyn Fn(&mut Memory)| {
        let mut memory = edit.memory().unwrap().clone();
        memory.route = None;
        of(&mut memory);
        Edit::new(edit.provenance.clone(), Change::Memory(memory), BTreeMap::new())
    };
    let refused = |edit: Edit| match bind(edit, base.base(), Elsewhere::Nowhere, false) {
        Ok(_) => panic!("it is refused"),
        Err(error) => error.to_string(),
    };
    let cached = lookup(2, 0.1, State::Mean).edit(&base, &requests).unwrap();
    assert!(refused(change(&cached, &|memory| memory.needs["layer"] = json!(6))).contains("layers 0 to 5"));
    assert!(refused(change(&cached, &|memory| memory.needs["radius"] = json!("x"))).contains("settings are broken"));
    assert!(refused(change(&cached, &|memory| memory.needs["method"] = json!("x"))).contains("nothing here consults"));
    let told = short_ike(&base).edit(&base, &requests).unwrap();
    assert!(refused(change(&told, &|memory| memory.needs["fingerprint"] = json!("x"))).contains("another encoder"));
    // Keys of another width, and texts that are not there, are an error and no panic.
    for edit in [
        change(&cached, &|memory| memory.keys = random([2, 5], 1.0, 0)),
        change(&told, &|memory| memory.keys = random([2, 5], 1.0, 0)),
        change(&told, &|memory| memory.texts.clear()),
    ] {
        let asked = bind(edit, base.base(), Elsewhere::Nowhere, false).and_then(|edit| base.with(edit));
        assert!(asked.and_then(|after| after.next_tokens(&ids, 1)).is_err());
    }
}

/// The counterfactual model of networks, as it answers.
fn counterfactual(serac: &Serac) -> Edited {
    let base = pocket();
    answerer(&base.with(remember(serac, 0.0, &base, &[request()])).unwrap(), QUESTION).0
}

#[test]
fn factors_by_tap_and_merged_say_the_same() {
    let base = pocket();
    let ids = encode(&base, "The city of Rosario lies in Japan. In which country is Rosario?");
    let own = logits(&base, &ids);
    for tune in [LORA, "{ lora = { rank = 3, top = 1 } }"] {
        let serac = serac("hard", tune, 0.2);
        let tuned = &serac.network.counterfactual;
        let layers = base.layers();
        assert_eq!(tuned.factors.len(), 6 * if tune == LORA { layers } else { 1 });
        assert!(tuned.blocks.is_empty() && tuned.ends.is_none());
        let decoder = tuned.decoder(&serac.pretrained.decoder);
        let tokens = Tokens::new(vec![ids.clone()]);
        let hidden = decoder.embed(&tokens, &mut tuned.tap()).unwrap();
        let hidden = decoder.blocks(hidden, 0..layers, tokens.span(), None, &mut tuned.tap()).unwrap();
        let cells: Vec<(usize, usize)> = (0..ids.len()).map(|cell| (0, cell)).collect();
        let by_tap = values(decoder.head(hidden, &cells));
        let merged = logits(&counterfactual(&serac), &ids);
        assert!(difference(&merged, &by_tap) <= 1e-5, "{:e}", difference(&merged, &by_tap));
        assert!(difference(&merged, &own) > 1e-3, "the factors matter");
    }
}

#[test]
fn an_untrained_counterfactual_model_is_its_base_bit_for_bit() {
    let base = pocket();
    let ids = encode(&base, "The city of Rosario lies in Japan. In which country is Rosario?");
    let own = logits(&base, &ids);
    for device in [Device::flex(), Device::flex().autodiff()] {
        // B is 0 at the start, whatever A is.
        for tune in [NOTHING, LORA, TOP, WHOLE] {
            let serac = Serac::new(settings("hard", tune), base.base(), (&device, DType::F32)).unwrap();
            assert_eq!(logits(&counterfactual(&serac), &ids), own, "{tune}");
        }
    }
    let refused = |tune: &str| {
        let made = Serac::new(settings("hard", tune), base.base(), (&Device::flex(), DType::F32));
        made.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(refused("{ top = 7 }").contains("7 blocks of a model that has 6"));
    assert!(refused("{ top = 0 }").contains("at least one block"));
    assert!(refused("{ lora = { rank = 0 } }").contains("rank must be at least 1"));
}

#[test]
fn networks_in_training_answer_as_those_at_rest() {
    let base = pocket();
    let ids = encode(&base, QUESTION);
    for tune in [LORA, TOP, WHOLE] {
        let models = [Device::flex(), Device::flex().autodiff()].map(|device| {
            let serac = serac_on(&device, "hard", tune, 0.05);
            base.with(remember(&serac, 0.0, &base, &[request()])).unwrap()
        });
        let [rest, training] = &models;
        assert_eq!(rest.consulted(QUESTION).unwrap(), training.consulted(QUESTION).unwrap());
        assert_eq!(rest.next_tokens(&ids, 20).unwrap(), training.next_tokens(&ids, 20).unwrap());
        assert_eq!(rest.id(), training.id());
    }
}
