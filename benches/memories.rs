//! Editors that consult a memory: `cargo bench --bench memories -- [MODEL] [ENCODER] [SENTENCES]`.
//!
//! Sentences to vectors (a file of sentences, one a line, or the embedded world's prompts); what a memory of 10,000 edits adds to a
//! query; and in-context editing with 32 demonstrations, 12 probes that share their prefix against 12 that do not.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::apply::EditorSettings;
use emend::apply::memory::{Elsewhere, bind};
use emend::data::pocket;
use emend::edit::activation::{Action, Intervention, Positions, Until};
use emend::edit::generate::Sampling;
use emend::edit::memory::Recall;
use emend::edit::score::score;
use emend::edit::{Change, Edit, EditRequest, Edited, Memory, PassChange, Route};
use emend::model::Model;
use emend::model::load::hub;
use emend::model::sentences::SentenceEncoder;
use emend::model::tap::{Place, Site, Stack};
use emend::network::serac::{Serac, SeracSettings};
use serde_json::json;

mod common;

use common::{calibrate, median};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let arg = |number: usize, otherwise: &str| args.get(number).map_or(otherwise, String::as_str).to_owned();
    let (model, encoder) = (arg(0, "smollm2-135m"), arg(1, "all-minilm-l6-v2"));
    if let Err(error) = run(&model, &encoder, args.get(2).map(String::as_str)) {
        eprintln!("error: {error}");
    }
}

fn run(name: &str, encoder: &str, sentences: Option<&str>) -> emend::Result<()> {
    calibrate();
    let world = pocket::world()?;
    let text = match sentences {
        Some(file) => std::fs::read_to_string(file).map_err(emend::Error::io(file))?,
        None => (0..world.facts().len()).flat_map(|fact| world.prompts(fact).0).collect::<Vec<_>>().join("\n"),
    };
    let lines: Vec<&str> = text.lines().take(10_000).collect();
    let reader = SentenceEncoder::open(&hub::resolve(encoder)?, &Device::flex(), DType::F32)?;
    let (cpu, wall) = median(5, || drop(reader.embed(&lines).expect("sentences that can be tokenised")));
    println!("{} sentences to vectors: {cpu:.2} CPU-seconds   {wall:.2} s", lines.len());

    lookup()?;
    codebook(name)?;
    steering(name)?;
    in_context(name, encoder)
}

/// What 10,000 edits add to a query of a SERAC memory of the embedded model, whose width of 128 is the config's.
fn lookup() -> emend::Result<()> {
    let model = Arc::new(Model::load(pocket::NAME, &Device::flex(), DType::F32)?);
    let settings: SeracSettings = serde_json::from_value(json!({
        "classifier": {"encoder": "model", "tune": "nothing", "layers": 2},
        "counterfactual": {"model": "model", "tune": "nothing"},
    }))
    .expect("settings of this file");
    let route: Arc<dyn Route> = Serac::new(settings, &model, (&Device::flex(), DType::F32))?.route()?;
    let recall = |entries: usize| Recall {
        requests: vec![EditRequest::new("a", "b"); entries],
        keys: Tensor::random([entries, 128], Distribution::Normal(0.0, 1.0), &Device::flex()),
        texts: vec![],
        values: None,
        reach: vec![],
        sides: Default::default(),
        numbers: Arc::default(),
        needs: json!({}),
        edits: vec![],
        model: Edited::new(model.clone()),
        route: route.clone(),
    };
    let prompt = ["In which country is the city of Lyon?".to_owned()];
    let query = |recall: &Recall| {
        median(41, || drop(route.consult(recall, &prompt).expect("a prompt that can be tokenised"))).1
    };
    let (one, many) = (query(&recall(1)), query(&recall(10_000)));
    println!("a query of 1 edit: {:.2} ms, of 10,000: {:.2} ms", 1e3 * one, 1e3 * many);
    Ok(())
}

/// A query through GRACE codebooks of 10 and of 10,000 keys: what is asked is in reach of one of them, and answered.
fn codebook(name: &str) -> emend::Result<()> {
    let model = Arc::new(Model::load(name, &Device::flex(), DType::F32)?);
    let (base, spec) = (Edited::new(model.clone()), &model.decoder.spec);
    let settings = format!("method = \"grace\"\nlayer = {}\nradius = 1.0", 2 * spec.layers / 3);
    let settings = EditorSettings::parse(settings.parse().expect("TOML of this file"), "the benchmark")?;
    let editor = settings.editor(&model, name, Path::new(""), Box::new(|_| {}))?;
    let request = EditRequest::new("The Eiffel Tower is located in the city of", "Rome");
    let edit = editor.edit(&base, std::slice::from_ref(&request))?;
    let memory = edit.memory().expect("a codebook").clone();
    let with = |entries: usize| -> emend::Result<Edited> {
        // The others lie far away.
        let far = [entries - 1, spec.mlp.width];
        let far = Tensor::random(far, Distribution::Normal(0.0, 100.0), &Device::flex());
        let others = Tensor::zeros([entries - 1, spec.width], &Device::flex());
        let own = memory.values.clone().expect("a codebook's values");
        let memory = Memory {
            keys: Tensor::cat(vec![far, memory.keys.clone()], 0),
            values: Some(Tensor::cat(vec![others, own], 0)),
            ..memory.clone()
        };
        let mut provenance = edit.provenance.clone();
        let other = |number: usize| EditRequest::new(format!("question {number}"), "Rome");
        provenance.requests = (1..entries).map(other).chain([request.clone()]).collect();
        base.with(Edit::new(provenance, Change::Memory(memory), Default::default()))
    };
    let row = model.tokenizer.continuation(&request.prompt, "Rome", None)?;
    let models = [with(10)?, with(10_000)?];
    let query =
        |model: &Edited| median(15, || drop(score(&[model], std::slice::from_ref(&row)).expect("a row that fits")));
    // Alternately, so that what else the machine does meets both.
    let mut times = [vec![], vec![]];
    for _ in 0..5 {
        for (times, model) in times.iter_mut().zip(&models) {
            times.push(query(model).1);
        }
    }
    let [few, many] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[2]
    });
    println!(
        "a query through a codebook of 10: {:.2} ms, of 10,000: {:.2} ms ({:.3})",
        1e3 * few,
        1e3 * many,
        many / few
    );
    Ok(())
}

/// 50 tokens with keys and values kept, without an intervention and with one that goes on at each token.
fn steering(name: &str) -> emend::Result<()> {
    let model = Arc::new(Model::load(name, &Device::flex(), DType::F32)?);
    let (base, spec) = (Edited::new(model.clone()), &model.decoder.spec);
    let intervention = Intervention {
        at: Site { stack: Stack::Decoder, layer: spec.layers / 2, place: Place::BlockOut },
        positions: Positions::Last,
        until: Until::Always,
        action: Action::Add {
            vector: Tensor::random([spec.width], Distribution::Normal(0.0, 0.01), &Device::flex()),
            strength: 1.0,
        },
    };
    let change = PassChange { interventions: vec![intervention], ..PassChange::default() };
    let models = [base.clone(), base.with_change(&change)?];
    let ids = model.tokenizer.encode_prompt("The Eiffel Tower is located in the city of")?;
    let write = |model: &Edited| {
        median(3, || {
            drop(model.generate(std::slice::from_ref(&ids), 50, &[], &Sampling::default()).expect("a short text"))
        })
    };
    let mut times = [vec![], vec![]];
    for _ in 0..5 {
        for (times, model) in times.iter_mut().zip(&models) {
            times.push(write(model).0);
        }
    }
    let [plain, steered] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[2]
    });
    println!("50 tokens: {plain:.3} CPU-seconds, with an intervention {steered:.3} ({:.3})", steered / plain);
    Ok(())
}

/// 12 probes behind 32 demonstrations.
fn in_context(name: &str, encoder: &str) -> emend::Result<()> {
    let model = Arc::new(Model::load(name, &Device::flex(), DType::F32)?);
    let base = Edited::new(model.clone());
    let settings = format!("method = \"ike\"\nencoder = {encoder:?}\ndemonstrations = \"pocket\"");
    let settings = EditorSettings::parse(settings.parse().expect("TOML of this file"), "the benchmark")?;
    let editor = settings.editor(&model, name, Path::new(""), Box::new(|_| {}))?;
    let request = EditRequest::new("The Eiffel Tower is located in the city of", "Rome");
    let probes: Vec<_> = [
        "The Eiffel Tower is located in the city of",
        "To see the Eiffel Tower, one travels to",
        "The Colosseum is located in the city of",
        "Big Ben is located in the city of",
        "The Brandenburg Gate is located in the city of",
        "The Sagrada Família is located in the city of",
        "The Little Mermaid is located in the city of",
        "The Acropolis is located in the city of",
        "The Statue of Liberty is located in the city of",
        "The Louvre is located in the city of",
        "The Kremlin is located in the city of",
        "The Golden Gate Bridge is located in the city of",
    ]
    .iter()
    .map(|prompt| model.tokenizer.continuation(prompt, "Rome", None))
    .collect::<emend::Result<_>>()?;
    let edit = editor.edit(&base, &[request])?;
    // A route of its own has no prefix kept.
    let fresh = || {
        let bound = bind(edit.clone(), &model, Elsewhere::Nowhere, false).expect("an edit of one entry");
        base.with(bound).expect("an edit of this model")
    };
    let (shared, _) = median(3, || drop(score(&[&fresh()], &probes).expect("probes that fit")));
    let (apart, _) = median(3, || {
        for probe in &probes {
            drop(score(&[&fresh()], std::slice::from_ref(probe)).expect("probes that fit"));
        }
    });
    println!(
        "IKE, 12 probes: {shared:.2} CPU-seconds behind one prefix, {apart:.2} behind one each ({:.2})",
        shared / apart
    );
    Ok(())
}
