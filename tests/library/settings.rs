//! Every number in the settings of an editor that needs no training changes what the editor does. (Those of in-context editing and of the
//! lookup cache are looked at one by one in `without_training`.)

use std::sync::Arc;

use burn::tensor::DType;
use emend::apply::alphaedit::{AlphaEdit, AlphaEditSettings};
use emend::apply::emmet::{Emmet, EmmetSettings};
use emend::apply::fine_tuning::{FineTuning, FineTuningSettings};
use emend::apply::knowledge_neurons::{KnowledgeNeurons, KnowledgeNeuronsSettings};
use emend::apply::lora::{Lora, LoraSettings};
use emend::apply::memit::{Memit, MemitSettings};
use emend::apply::rome::{Rome, RomeSettings};
use emend::apply::{Editor, MethodSettings};
use emend::edit::{Change, EditRequest, Edited};
use emend::train::settings::{Together, TrainSettings};
use faer::Side;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::attribution::{prepared, request, statistics};
use crate::common::{model, settings_of, values};

/// The paths of all numbers, and of lists of numbers, in settings.
pub fn numbers(settings: &Value, path: &str, found: &mut Vec<String>) {
    let is_number =
        |value: &Value| value.is_number() || value.as_array().is_some_and(|list| list.iter().all(Value::is_number));
    match settings {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            numbers(value, &path, found);
        }),
        Value::Number(_) => found.push(path.to_owned()),
        Value::Array(list) if list.iter().any(is_number) => found.push(path.to_owned()),
        _ => {}
    }
}

/// What an editor of these settings makes of a request: all it changes, and what it came upon.
fn made(base: &Edited, editor: &dyn Editor) -> (Vec<Vec<f64>>, Value) {
    let other = EditRequest { subject: Some("Vell".into()), ..EditRequest::new("The old king of Vell is", "Ost") };
    let edit = editor.edit(base, &[request(), other]).unwrap();
    let Change::Pass(change) = &edit.change else { unreachable!() };
    let deltas = change.matrices.values().map(|delta| values(delta.dense())).collect();
    (deltas, edit.provenance.findings)
}

/// Sees that each number has another value here, and that each such value changes the edit.
#[track_caller]
fn each_counts<S: MethodSettings + DeserializeOwned + Serialize>(
    section: &str,
    others: &[(&str, &str)],
    editor: impl Fn(S) -> Box<dyn Editor>,
) {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let table: toml::Table = section.parse().unwrap();
    let settings: S = settings_of(section);
    let mut found = vec![];
    numbers(&serde_json::to_value(&settings).unwrap(), "", &mut found);
    let known = made(&base, editor(settings).as_ref());
    for path in &found {
        let (_, value) =
            others.iter().find(|(key, _)| key == path).unwrap_or_else(|| panic!("no other value of {path}"));
        let mut changed = table.clone();
        let value = format!("value = {value}").parse::<toml::Table>().unwrap()["value"].clone();
        match path.split_once('.') {
            Some((outer, inner)) => {
                changed[outer].as_table_mut().unwrap().insert(inner.to_owned(), value);
            }
            None => {
                changed.insert(path.clone(), value);
            }
        }
        let settings: S = settings_of(&changed.to_string());
        assert!(made(&base, editor(settings).as_ref()) != known, "{path} changes nothing");
    }
    assert_eq!(found.len(), others.len(), "{found:?}");
}

const CONTEXT: &str = "context = { lengths = [[4, 2]], starts = [\"The\"], seed = 0 }";

/// What the associations' settings share.
const ASSOCIATION: [(&str, &str); 9] = [
    ("layers", "[0]"),
    ("steps", "3"),
    ("learning_rate", "0.1"),
    ("early_stop", "1e9"),
    ("weight_decay", "5.0"),
    ("clamp", "0.1"),
    ("kl", "5.0"),
    ("context.lengths", "[[6, 2]]"),
    ("context.seed", "1"),
];

fn association(more: &str) -> String {
    format!("layers = [1]\nstatistics = \"s\"\nsteps = 6\nclamp = 4.0\nweight_decay = 0.01\n{more}\n{CONTEXT}")
}

#[test]
fn of_lora() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let texts = ["Under the hill seven stone names", "The river of kings", "A stone is old", "Names of Ost"];
    let texts: Vec<Vec<u32>> = texts.iter().map(|text| base.base().tokenizer.encode(text).unwrap()).collect();
    let section = "layers = [1]\nlearning_rate = 1e-2\nsteps = 4\nrank = 2\nkl = 1.0\nlocality = \"f\"";
    let others = [
        ("layers", "[0]"),
        ("learning_rate", "2e-2"),
        ("steps", "2"),
        ("rank", "3"),
        ("early_stop", "1e9"),
        ("kl", "50.0"),
        ("locality_texts", "1"),
        ("seed", "1"),
        ("alpha", "8.0"),
    ];
    each_counts::<LoraSettings>(section, &others, |settings| {
        Box::new(Lora::new(settings, prepared(None), texts.clone()).unwrap())
    });
}

#[test]
fn of_fine_tuning() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let texts = ["Under the hill seven stone names", "The river of kings", "A stone is old", "Names of Ost"];
    let texts: Vec<Vec<u32>> = texts.iter().map(|text| base.base().tokenizer.encode(text).unwrap()).collect();
    let section = "layers = [1]\nlearning_rate = 1e-3\nsteps = 4\nnorm_constraint = 3e-3\nkl = 1.0\nlocality = \"f\"";
    let others = [
        ("layers", "[0]"),
        ("learning_rate", "2e-3"),
        ("steps", "2"),
        ("norm_constraint", "1e-3"),
        ("early_stop", "1e9"),
        ("kl", "50.0"),
        ("locality_texts", "1"),
        ("seed", "1"),
    ];
    each_counts::<FineTuningSettings>(section, &others, |settings| {
        Box::new(FineTuning::new(settings, prepared(None), texts.clone()).unwrap())
    });
}

#[test]
fn of_rome_memit_and_emmet() {
    let of = || Some(statistics(&model("gpt2-tiny", DType::F64), &[0, 1]));
    each_counts::<RomeSettings>(&association(""), &ASSOCIATION, |settings| {
        Box::new(Rome::new(settings, prepared(of())).unwrap())
    });
    let others = [&ASSOCIATION[..], &[("covariance_weight", "1.0")]].concat();
    each_counts::<MemitSettings>(&association(""), &others, |settings| {
        Box::new(Memit::new(settings, prepared(of())).unwrap())
    });
    let others = [&others[..], &[("ridge", "1.0")]].concat();
    each_counts::<EmmetSettings>(&association(""), &others, |settings| {
        Box::new(Emmet::new(settings, prepared(of())).unwrap())
    });
}

#[test]
fn of_alphaedit() {
    let of = || statistics(&model("gpt2-tiny", DType::F64), &[0, 1]);
    // Half of the eigenvalues lie below the one in the middle.
    let c = of().second_moment(1).unwrap();
    let eigen = c.self_adjoint_eigen(Side::Lower).unwrap();
    let middle = format!("{:e}", eigen.S()[c.nrows() / 2]);
    let others = [&ASSOCIATION[..], &[("null_space_threshold", middle.as_str()), ("l2", "1.0")]].concat();
    each_counts::<AlphaEditSettings>(&association("null_space_threshold = 1e9"), &others, |settings| {
        Box::new(AlphaEdit::new(settings, prepared(Some(of()))).unwrap())
    });
}

#[test]
fn of_knowledge_neurons() {
    let section = format!("layers = [0, 1]\nsteps = 6\nshare = 0.5\nnew_weight = 2.0\n{CONTEXT}");
    let others = [
        ("layers", "[1]"),
        ("steps", "2"),
        ("threshold", "0.9"),
        ("share", "1.0"),
        ("most", "1"),
        ("old_weight", "0.5"),
        ("new_weight", "3.0"),
        ("context.lengths", "[[6, 2]]"),
        ("context.seed", "1"),
    ];
    each_counts::<KnowledgeNeuronsSettings>(&section, &others, |settings| {
        Box::new(KnowledgeNeurons::new(settings, prepared(None)).unwrap())
    });
}

/// What a choice makes of no use is refused.
#[test]
fn that_do_nothing_are_refused() {
    fn refused<S: MethodSettings + DeserializeOwned + Serialize>(section: &str, word: &str) {
        let read = emend::apply::settings::<S>(section.parse().unwrap(), "a.toml");
        let error = read.map(drop).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let given = "context_templates = [\"{}\"]\ncontext = { lengths = [[4, 2]] }";
    let both = "editor.context: editor.context_templates are given";
    refused::<RomeSettings>(&format!("layers = [1]\nstatistics = \"s\"\n{given}"), both);
    refused::<MemitSettings>(&format!("layers = [1]\nstatistics = \"s\"\n{given}"), both);
    refused::<KnowledgeNeuronsSettings>(given, both);
    let erase = "operation = \"erase\"\nnew_weight = 3.0";
    refused::<KnowledgeNeuronsSettings>(
        erase,
        r#"editor.new_weight: operation = "erase" does not use it; "rewrite" does"#,
    );
    let free = "layers = [1]\nlearning_rate = 1.0\nlocality = \"nofile\"";
    refused::<FineTuningSettings>(free, "editor.locality: kl = 0 does not use it; above 0 does");
    refused::<RomeSettings>("layers = [1]\nstatistics = \"s\"\nstepps = 3", "did you mean `steps`");
    refused::<RomeSettings>("layers = [1]\nstatistics = \"s\"\nsteps = \"many\"", "editor.steps: invalid type");
}

#[test]
fn edits_together_are_a_number_or_a_range() {
    let read = |value: &str| {
        let table: toml::Table =
            format!("max_steps = 1\nlearning_rate = 1e-3\nedits_per_step = 20\nedits_together = {value}")
                .parse()
                .unwrap();
        TrainSettings::read(&table, "t.toml").map(|settings| settings.edits_together).map_err(|error| error.to_string())
    };
    assert_eq!(read("5").unwrap(), Together { fewest: 5, most: 5 });
    assert_eq!(read("[1, 10]").unwrap(), Together { fewest: 1, most: 10 });
    for wrong in ["0", "21", "[0, 4]", "[4, 3]", "[1, 30]", "[1]", "[1, 2, 3]", "-1", "\"many\""] {
        let said = read(wrong).unwrap_err();
        assert!(said.contains("train.edits_together"), "{wrong}: {said}");
    }
    let range = Together { fewest: 2, most: 4 };
    let drawn: std::collections::BTreeSet<usize> =
        (0..50).map(|number| range.draw(&mut emend::random::stream(0, "t", number))).collect();
    assert!(drawn.into_iter().eq(2..=4));
    let written = serde_json::to_value([Together::from(3), range]).unwrap();
    assert_eq!(written, serde_json::json!([3, [2, 4]]));
}

/// Each config that is shipped says what its command reads, with its includes.
#[test]
fn every_shipped_config_is_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".toml")) else {
            continue;
        };
        let trained =
            ["mend-", "malmen-", "rledit-", "serac-", "ke-", "enn-"].iter().any(|method| name.starts_with(method));
        let outcome = match name {
            "pocket.toml" | "pocket-t5.toml" | "pocket-claims.toml" => {
                emend::config::pretrain::Config::read(&path, &[]).map(|_| ())
            }
            _ if name.starts_with("compare") => emend::config::compare::Config::read(&path, &[]).map(|_| ()),
            _ if name.starts_with("locate") => emend::config::locate::Config::read(&path, &[]).map(|_| ()),
            _ if trained => emend::config::train::Config::read(&path, &[]).map(|_| ()),
            _ => emend::config::apply::Config::read(&path, &[]).map(|_| ()),
        };
        assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
        read += 1;
    }
    assert!(read > 200);
}
