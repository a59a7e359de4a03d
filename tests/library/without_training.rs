//! Editors that need no training and whose edits are memories: the lookup cache, and in-context editing.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device};
use emend::Model;
use emend::apply::Editor;
use emend::apply::ike::{Ike, IkeSettings, Order, Roles};
use emend::apply::lookup::{Lookup, LookupSettings, State};
use emend::data::pocket as world;
use emend::edit::generate::Sampling;
use emend::edit::likelihood::Scored;
use emend::edit::{Edit, EditRequest, Edited};
use emend::model::load::checkpoint::Checkpoint;
use emend::model::sentences::nearest;
use emend::model::tap::NoTap;
use emend::model::tokenizer::{Continuation, Tokenizer};
use emend::model::tokens::Tokens;
use emend::network::reader::{Pretrained, Reader};
use serde_json::Value;

use crate::common::{FAR, QUESTION, difference, encode, fixture, music, pocket, request, scored, text, values};
use crate::memory::{near, prepared, weights};

/// What a prompt is known by, in f64.
pub fn state(model: &Edited, layer: usize, state: State, prompt: &str) -> Vec<f64> {
    let tokens = Tokens::new(vec![encode(model, prompt)]);
    let hidden = model.embed(&tokens, &mut NoTap).unwrap();
    let hidden = values(model.blocks(hidden, 0..layer + 1, tokens.span(), None, &mut NoTap).unwrap());
    let width = model.base().decoder.spec.width;
    let cells: Vec<&[f64]> = hidden.chunks(width).collect();
    let read = match state {
        State::Last => &cells[cells.len() - 1..],
        State::Mean => &cells[1..],
    };
    (0..width).map(|column| read.iter().map(|cell| cell[column]).sum::<f64>() / read.len() as f64).collect()
}

pub fn lookup(layer: usize, radius: f64, state: State) -> Lookup {
    Lookup::new(LookupSettings { layer, radius, state }, prepared()).unwrap()
}

#[test]
fn the_cache_answers_within_its_radius() {
    let base = pocket();
    let close = "The city of Neuquén lies in";
    for (layer, kind) in [(0, State::Last), (2, State::Last), (1, State::Mean), (3, State::Mean)] {
        let key = state(&base, layer, kind, QUESTION);
        let length = key.iter().map(|value| value * value).sum::<f64>().sqrt();
        let distance = |prompt: &str| {
            let apart = state(&base, layer, kind, prompt);
            apart.iter().zip(&key).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt() / length
        };
        let measured = distance(close);
        assert!(measured > 1e-2, "layer {layer} {kind:?}: {measured}");
        let edit = lookup(layer, 1.0, kind).edit(&base, &[request()]).unwrap();
        assert!(difference(&values(edit.memory().unwrap().keys.clone()), &key) < 1e-5);
        for (share, inside) in [(0.98, false), (1.02, true), (2.0, true), (10.0, true)] {
            let radius = share * measured;
            let after = base.with(lookup(layer, radius, kind).edit(&base, &[request()]).unwrap()).unwrap();
            let said = after.consulted(close).unwrap();
            assert_eq!(said.is_some(), inside, "layer {layer} {kind:?}: {measured} within {radius}");
            if let Some((found, scope)) = said {
                assert_eq!(found, Some(request()));
                assert!((scope - (1.0 - 1.0 / share)).abs() < 1e-2, "{scope} at {share} of the distance");
            }
            // The very prompt lies at distance 0.
            let (found, scope) = after.consulted(QUESTION).unwrap().unwrap();
            assert_eq!(found, Some(request()));
            assert!(scope > 0.9, "layer {layer} {kind:?}: {scope}");
        }
    }
}

#[test]
fn a_cached_prompt_is_answered_with_its_target_and_no_other() {
    let base = pocket();
    let requests = [request(), music(), EditRequest::new(FAR[0].0, "Leo Tolstoy")];
    let edit = lookup(2, 1e-2, State::Last).edit(&base, &requests).unwrap();
    let after = base.with(edit).unwrap();
    let stop = base.base().stop_tokens();
    for request in &requests {
        let ids = encode(&base, &request.prompt);
        let told = text(&base, &request.prompt, &request.target_new);
        let found = &scored(&after, std::slice::from_ref(&told))[0];
        assert!(found.exact());
        assert_eq!((found.argmax.as_slice(), found.probability()), (told.target(), 1.0));
        let other = text(&base, &request.prompt, "Spain");
        let other_found = &scored(&after, &[other])[0];
        assert!(!other_found.exact() && other_found.probability() < 1e-10 && other_found.nll().is_finite());
        let next = after.next_tokens(&ids, 3).unwrap();
        assert_eq!(next[0].id, told.target()[0]);
        assert!(next[0].probability > 0.999);
        assert_eq!(after.generate(&[ids], 12, &stop, &Sampling::default()).unwrap()[0], told.target());
    }
    // The model's own word everywhere else.
    let far = ["In which country is Rosario?", FAR[2].0, "Who wrote Crooked House?"];
    let texts: Vec<Continuation> = far.iter().map(|prompt| text(&base, prompt, "Argentina")).collect();
    assert_eq!(scored(&after, &texts), scored(&base, &texts));
    for prompt in far {
        let ids = encode(&base, prompt);
        assert!(after.consulted(prompt).unwrap().is_none());
        assert_eq!(after.next_tokens(&ids, 20).unwrap(), base.next_tokens(&ids, 20).unwrap());
    }

    // Keys are states of the model below: a cache finds its prompts over a change of weights, and under one.
    let edited = base.with(weights(&base, 0)).unwrap();
    let over = edited.with(lookup(2, 1e-2, State::Last).edit(&edited, &requests).unwrap()).unwrap();
    let under = after.with(weights(&base, 0)).unwrap();
    for model in [over, under] {
        for request in &requests {
            let told = text(&base, &request.prompt, &request.target_new);
            assert!(scored(&model, &[told])[0].exact());
        }
        assert_eq!(scored(&model, &texts), scored(&edited, &texts));
    }
}

#[test]
fn a_radius_of_zero_finds_the_very_prompt() {
    let base = pocket();
    for kind in [State::Last, State::Mean] {
        for layer in 0..4 {
            for prompt in [QUESTION, FAR[0].0, FAR[1].0, FAR[2].0] {
                let edit = lookup(layer, 0.0, kind).edit(&base, &[EditRequest::new(prompt, "Japan")]).unwrap();
                let after = base.with(edit).unwrap();
                assert!(after.consulted(prompt).unwrap().is_some(), "layer {layer} {kind:?}: {prompt}");
                let beside = "In which country is Rosario?";
                assert!(after.consulted(beside).unwrap().is_none(), "layer {layer} {kind:?}: {beside}");
            }
        }
    }
}

pub fn ike_settings(roles: [usize; 3], final_copy: bool, room: usize) -> IkeSettings {
    let [copy, update, retain] = roles;
    IkeSettings {
        encoder: "model".into(),
        demonstrations: world::NAME.into(),
        roles: Roles { copy, update, retain },
        order: Order::NearestLast,
        final_copy,
        room,
        seed: 0,
    }
}

pub fn short_ike(base: &Edited) -> Ike {
    Ike::new(ike_settings([0, 0, 0], false, 16), prepared(), base.base(), Path::new("")).unwrap()
}

pub fn prefixes(edit: &Edit) -> &[String] {
    &edit.memory().unwrap().texts
}

#[test]
fn behind_a_shared_prefix_texts_score_as_the_whole_does() {
    let base = pocket();
    let edit = Arc::new(short_ike(&base).edit(&base, &[request()]).unwrap());
    assert_eq!(prefixes(&edit), ["New Fact: The city of Rosario lies in Japan\nPrompt:"]);
    let whole = |prompt: &str| format!("{} {prompt}", prefixes(&edit)[0]);
    let probes = [
        (QUESTION, "Japan"),
        FAR[0],
        ("In which country is Rosario?", "the Soviet Union"),
        (FAR[1].0, "violin"),
        ("Who wrote Crooked House?", "Agatha Christie"),
    ];
    let edited = base.with(weights(&base, 1)).unwrap();
    // The prefix is computed anew for other weights, and for the first ones again.
    for model in [&base, &edited, &base] {
        let after = model.with(edit.clone()).unwrap();
        let wanted: Vec<Scored> = probes
            .iter()
            .map(|(prompt, target)| scored(model, &[text(model, &whole(prompt), target)]).remove(0))
            .collect();
        let texts: Vec<Continuation> = probes.iter().map(|(prompt, target)| text(model, prompt, target)).collect();
        let same = |found: &Scored, wanted: &Scored| {
            assert_eq!((&found.target, &found.argmax), (&wanted.target, &wanted.argmax));
            near(&found.log_probabilities, &wanted.log_probabilities, 1e-5);
        };
        // Alone, together, in another order, and more than share a pass.
        for (text, wanted) in texts.iter().zip(&wanted) {
            same(&scored(&after, std::slice::from_ref(text))[0], wanted);
        }
        let order: Vec<usize> = [4, 2, 0, 3, 1].into_iter().cycle().take(23).collect();
        let many: Vec<Continuation> = order.iter().map(|&index| texts[index].clone()).collect();
        let found = scored(&after, &many);
        assert_eq!(found.len(), many.len());
        order.iter().zip(&found).for_each(|(&index, found)| same(found, &wanted[index]));
        scored(&after, &texts).iter().zip(&wanted).for_each(|(found, wanted)| same(found, wanted));

        for (prompt, _) in probes {
            let (ids, asked) = (encode(model, prompt), encode(model, &whole(prompt)));
            let logits = |model: &Edited, ids: &[u32]| -> Vec<f32> {
                let mut next = model.next_tokens(ids, 2400).unwrap();
                next.sort_by_key(|next| next.id);
                next.iter().map(|next| next.logit).collect()
            };
            near(&logits(&after, &ids), &logits(model, &asked), 1e-5);
            let made = |model: &Edited, ids: &[u32]| model.generate(&[ids.to_vec()], 6, &[], &Sampling::default());
            assert_eq!(made(&after, &ids).unwrap(), made(model, &asked).unwrap(), "{prompt}");
        }
        assert!(after.consulted(FAR[0].0).unwrap().is_some(), "it stands before every prompt");
    }
}

#[test]
fn of_several_edits_in_context_the_nearest_is_read() {
    let base = pocket();
    let requests = [request(), music(), EditRequest::new(FAR[0].0, "Leo Tolstoy")];
    let edit = short_ike(&base).edit(&base, &requests).unwrap();
    let after = base.with(edit.clone()).unwrap();
    let reader = Reader::new(Pretrained::Decoder(base.base().clone()), 0).unwrap();
    let statements: Vec<String> = requests.iter().map(EditRequest::statement).collect();
    let known = reader.embed(&statements.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    assert_eq!(values(known.clone()), values(edit.memory().unwrap().keys.clone()));
    for question in [QUESTION, FAR[1].0, FAR[0].0, "Which instrument is Bill Wyman known for?"] {
        let entry = nearest(reader.embed(&[question]).unwrap(), &known, 1)[0][0].0;
        assert_eq!(after.consulted(question).unwrap().unwrap().0.as_ref(), Some(&requests[entry]), "{question}");
        let whole = format!("{} {question}", prefixes(&edit)[entry]);
        let made =
            |model: &Edited, text: &str| model.generate(&[encode(&base, text)], 4, &[], &Sampling::default()).unwrap();
        assert_eq!(made(&after, question), made(&base, &whole), "{question}");
    }
}

/// `llama-tiny` with room for demonstrations: its positions are rotary, so that it can have any number of them.
fn roomy(folder: &Path) -> Edited {
    for entry in std::fs::read_dir(fixture("llama-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let roomier = config.replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 2048");
    assert_ne!(roomier, config);
    std::fs::write(folder.join("config.json"), roomier).unwrap();
    let (checkpoint, tokenizer) = (Checkpoint::open(folder).unwrap(), Tokenizer::open(folder).unwrap());
    Edited::new(Arc::new(Model::from_parts(checkpoint, tokenizer, &Device::flex(), DType::F32).unwrap()))
}

/// Facts that demonstrations are made of, and what each reads in the roles copy, update, retain.
const FACTS: [(&str, &str, [&str; 3]); 4] = [
    (
        "Ost lies in",
        r#"{"prompt": "Ost lies in", "target_new": "Vell", "subject": "Ost", "rephrases": ["One finds Ost in"],
            "locality": [{"prompt": "Orr lies in", "target": "Tamm"}]}"#,
        [
            "New Fact: Ost lies in Vell\nPrompt: Ost lies in Vell\n\n",
            "New Fact: Ost lies in Vell\nPrompt: One finds Ost in Vell\n\n",
            "New Fact: Ost lies in Vell\nPrompt: Orr lies in Tamm\n\n",
        ],
    ),
    (
        "The river Kem runs to",
        r#"{"prompt": "The river Kem runs to", "target_new": "the south", "subject": "Kem",
            "rephrases": ["Kem flows to", "Where Kem goes is"],
            "locality": {"near": ["What is a hill?", {"prompt": "The river Lo runs to", "target": "the sea"}]}}"#,
        [
            "New Fact: The river Kem runs to the south\nPrompt: The river Kem runs to the south\n\n",
            "New Fact: The river Kem runs to the south\nPrompt: Kem flows to the south\n\n",
            "New Fact: The river Kem runs to the south\nPrompt: The river Lo runs to the sea\n\n",
        ],
    ),
    (
        "Ada plays the",
        r#"{"prompt": "Ada plays the", "target_new": "harp", "subject": "Ada", "rephrases": ["Heard from Ada:"],
            "locality": [{"prompt": "Ida plays the", "target": "horn"}]}"#,
        [
            "New Fact: Ada plays the harp\nPrompt: Ada plays the harp\n\n",
            "New Fact: Ada plays the harp\nPrompt: Heard from Ada: harp\n\n",
            "New Fact: Ada plays the harp\nPrompt: Ida plays the horn\n\n",
        ],
    ),
    // The edit's own subject: never shown.
    (
        "Brin stands in",
        r#"{"prompt": "Brin stands in", "target_new": "Gorm", "subject": "Brin", "rephrases": ["Brin is seen in"]}"#,
        ["", "", ""],
    ),
];

#[test]
fn demonstrations_stand_before_the_edit_as_their_roles_say() {
    let folder = tempfile::tempdir().unwrap();
    let base = roomy(folder.path());
    let records: Vec<&str> = FACTS.iter().map(|(_, record, _)| *record).collect();
    std::fs::write(folder.path().join("facts.json"), format!("[{}]", records.join(","))).unwrap();
    let request = EditRequest { subject: Some("Brin".into()), ..EditRequest::new("Brin lies in", "Dunn") };
    let prefix_of = |settings: IkeSettings| {
        let settings = IkeSettings { demonstrations: "facts.json".into(), ..settings };
        let ike = Ike::new(settings, prepared(), base.base(), folder.path())?;
        Ok::<_, emend::Error>(prefixes(&ike.edit(&base, std::slice::from_ref(&request))?)[0].clone())
    };
    let end = "New Fact: Brin lies in Dunn\nPrompt:";
    let copied = "New Fact: Brin lies in Dunn\nPrompt: Brin lies in Dunn\n\nNew Fact: Brin lies in Dunn\nPrompt:";
    assert_eq!(prefix_of(ike_settings([0, 0, 0], false, 16)).unwrap(), end);
    assert_eq!(prefix_of(ike_settings([0, 0, 0], true, 16)).unwrap(), copied);

    // The facts by their likeness to the edit's, without the one about its subject: the nearest first.
    let reader = Reader::new(Pretrained::Decoder(base.base().clone()), 0).unwrap();
    let statement = |place: usize| {
        let record: Value = serde_json::from_str(FACTS[place].1).unwrap();
        format!("{} {}", FACTS[place].0, record["target_new"].as_str().unwrap())
    };
    let embed = |text: &str| values(reader.embed(&[text]).unwrap());
    let own = embed("Brin lies in Dunn");
    let likeness = |place: usize| embed(&statement(place)).iter().zip(&own).map(|(a, b)| a * b).sum::<f64>();
    let mut order: Vec<usize> = (0..3).collect();
    order.sort_by(|&a, &b| likeness(b).total_cmp(&likeness(a)));
    // What is shown in a role each, the nearest last.
    let shown = |count: usize, roles: [usize; 3]| -> String {
        (0..count).rev().map(|place| FACTS[order[place]].2[roles[place]]).collect()
    };
    for (role, roles) in [[3, 0, 0], [0, 3, 0], [0, 0, 3]].into_iter().enumerate() {
        let found = prefix_of(ike_settings(roles, false, 16)).unwrap();
        assert_eq!(found, shown(3, [role; 3]) + end);
        assert_eq!(prefix_of(ike_settings(roles, true, 16)).unwrap(), shown(3, [role; 3]) + copied);
        let first = IkeSettings { order: Order::NearestFirst, ..ike_settings(roles, false, 16) };
        let turned: String = order.iter().map(|&place| FACTS[place].2[role]).collect();
        assert_eq!(prefix_of(first).unwrap(), turned + end);
    }
    // More than there are; and fewer: the nearest.
    assert_eq!(prefix_of(ike_settings([9, 0, 0], false, 16)).unwrap(), shown(3, [0; 3]) + end);
    assert_eq!(prefix_of(ike_settings([0, 2, 0], false, 16)).unwrap(), shown(2, [1; 3]) + end);

    // One of each: dealt out in one of six ways, always the same for a seed, not the same for all seeds.
    let ways = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut dealt = std::collections::BTreeSet::new();
    for seed in 0..12 {
        let settings = IkeSettings { seed, ..ike_settings([1, 1, 1], true, 16) };
        let found = prefix_of(settings.clone()).unwrap();
        let way = ways.iter().position(|&way| found == shown(3, way) + copied);
        dealt.insert(way.unwrap_or_else(|| panic!("{found}")));
        assert_eq!(prefix_of(settings).unwrap(), found);
    }
    assert!(dealt.len() > 1);

    // A request has the same demonstrations alone, in a batch and in a sequence.
    let settings = IkeSettings { demonstrations: "facts.json".into(), ..ike_settings([1, 1, 1], true, 16) };
    let ike = Ike::new(settings, prepared(), base.base(), folder.path()).unwrap();
    let others = ["Ost", "Ulm", "Rhea"].map(|name| EditRequest::new(format!("{name} lies in"), "Dunn"));
    let requests = [&others[..], std::slice::from_ref(&request)].concat();
    let batch = ike.edit(&base, &requests).unwrap();
    let mut below = base.clone();
    for (request, together) in requests.iter().zip(prefixes(&batch)) {
        let one = std::slice::from_ref(request);
        assert_eq!(&prefixes(&ike.edit(&base, one).unwrap())[0], together);
        let edit = ike.edit(&below, one).unwrap();
        assert_eq!(&prefixes(&edit)[0], together);
        below = below.with(edit).unwrap();
    }

    // What finds no room gives way, the farthest first.
    let context = base.base().decoder.spec.context;
    for count in [2, 1, 0] {
        let wanted = shown(count, [0; 3]) + end;
        let room = context - encode(&base, &wanted).len();
        assert_eq!(prefix_of(ike_settings([3, 0, 0], false, room)).unwrap(), wanted);
    }
    let refused = prefix_of(ike_settings([3, 0, 0], false, context - encode(&base, end).len() + 1)).unwrap_err();
    assert!(refused.to_string().contains("more than the context of 2048"), "{refused}");

    // Behind three demonstrations too the whole is what is scored.
    let settings = IkeSettings { demonstrations: "facts.json".into(), ..ike_settings([1, 1, 1], true, 16) };
    let ike = Ike::new(settings, prepared(), base.base(), folder.path()).unwrap();
    let edit = ike.edit(&base, std::slice::from_ref(&request)).unwrap();
    let prefix = prefixes(&edit)[0].clone();
    let after = base.with(edit).unwrap();
    let probes = [("Brin lies in", "Dunn"), ("The river runs to", "the sea"), ("Who is it", "Ada")];
    let texts: Vec<Continuation> = probes.iter().map(|(prompt, target)| text(&base, prompt, target)).collect();
    for (found, (prompt, target)) in scored(&after, &texts).iter().zip(probes) {
        let whole = scored(&base, &[text(&base, &format!("{prefix} {prompt}"), target)]).remove(0);
        assert_eq!(found.target, whole.target);
        near(&found.log_probabilities, &whole.log_probabilities, 1e-5);
    }
}
