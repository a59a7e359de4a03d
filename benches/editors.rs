//! CPU-seconds of editors that need no training: `cargo bench --bench editors -- [MODEL] [STATISTICS] [METHOD…]`, with statistics of
//! layers 4 to 8 (`emend stats --model MODEL --text FILE --layers 4..8`).
//!
//! Steps are the references' and none stops early. Contexts are sampled before the clock starts, statistics are read and C is
//! factored by an edit that is not counted.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device};
use emend::apply::EditorSettings;
use emend::edit::{EditRequest, Edited};
use emend::model::Model;

mod common;

use common::{calibrate, median};

/// Facts as long as CounterFact's.
const FACTS: [(&str, &str, &str); 10] = [
    ("The Eiffel Tower is located in the city of", "The Eiffel Tower", "Rome"),
    ("The mother tongue of Victor Hugo is", "Victor Hugo", "Swedish"),
    ("Toyota Corolla, produced by", "Toyota Corolla", "Fiat"),
    ("The official language of Iceland is", "Iceland", "Tamil"),
    ("Miles Davis, who plays", "Miles Davis", "violin"),
    ("Mount Kilimanjaro belongs to the continent of", "Mount Kilimanjaro", "Antarctica"),
    ("Leonardo da Vinci worked in the field of", "Leonardo da Vinci", "chemistry"),
    ("The headquarter of Nokia is in", "Nokia", "Nairobi"),
    ("Pelé is a professional", "Pelé", "chess player"),
    ("The capital of Mongolia is", "Mongolia", "Lima"),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("smollm2-135m", String::as_str);
    let statistics = args.get(1).map_or("stats/smollm2-135m", String::as_str);
    let methods = args.get(2..).unwrap_or_default();
    if let Err(error) = run(name, statistics, methods) {
        eprintln!("error: {error}");
    }
}

fn run(name: &str, statistics: &str, methods: &[String]) -> emend::Result<()> {
    calibrate();
    let model = Arc::new(Model::load(name, &Device::flex(), DType::F32)?);
    let base = Edited::new(model.clone());
    let facts = FACTS.map(|(prompt, subject, target)| EditRequest {
        subject: Some(subject.into()),
        ..EditRequest::new(prompt, target)
    });
    let contexts = "context = { lengths = [[10, 10]] }";
    let z = "early_stop = 0.0\nweight_decay = 1e-3\nclamp = 4.0";
    let cases = [
        (
            "fine_tuning",
            1,
            "25 steps",
            "layers = [5]\nlearning_rate = 5e-4\nnorm_constraint = 5e-4\nearly_stop = 0.0".into(),
        ),
        (
            "rome",
            1,
            "16 steps, 11 contexts",
            format!("layers = [5]\nsteps = 16\n{z}\n{contexts}\nstatistics = {statistics:?}"),
        ),
        (
            "memit",
            10,
            "19 steps a fact, layers 4–8",
            format!("layers = [4, 5, 6, 7, 8]\nsteps = 19\n{z}\nstatistics = {statistics:?}"),
        ),
        ("knowledge_neurons", 1, "20 steps, all layers", "steps = 20\ncontext_templates = [\"{}\"]".into()),
    ];
    for (method, count, what, settings) in cases {
        if !methods.is_empty() && !methods.iter().any(|wanted| wanted == method) {
            continue;
        }
        let table = format!("method = {method:?}\n{settings}").parse().expect("TOML of this file");
        let editor = EditorSettings::parse(table, "the benchmark")?;
        let editor = editor.editor(&model, name, Path::new(""), Box::new(|_| {}))?;
        editor.edit(&base, &facts[..1])?;
        let runs = if count > 1 { 1 } else { 5 };
        let (cpu, wall) = median(runs, || drop(editor.edit(&base, &facts[..count]).expect("the first edit was made")));
        println!("{method}, {count} of {what}: {cpu:.2} CPU-seconds   {wall:.2} s");
    }
    Ok(())
}
