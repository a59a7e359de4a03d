//! CPU-seconds of looking at one edit: `cargo bench --bench evaluation -- [MODEL] [RECORDS] [COUNT]`.
//!
//! A record of CounterFact's form (a prompt, a rephrase, ten neighbors, each with two targets) is scored, against one full forward
//! pass, logits at every position, for each probe and target. Without a file of records one of our own stands in.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::data::record::{EditRecord, Probe};
use emend::data::source::Source;
use emend::data::world::Split;
use emend::edit::{Change, Delta, Edit, Edited, PassChange, Provenance};
use emend::evaluate::probe_table;
use emend::evaluate::probes::Limits;
use emend::model::Model;
use emend::model::tap::{NoTap, Role, Weight};
use emend::model::tokens::Tokens;

mod common;

use common::{calibrate, median};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("smollm2-135m", String::as_str);
    let count = args.get(2).and_then(|arg| arg.parse().ok()).unwrap_or(5);
    if let Err(error) = run(name, args.get(1).map(String::as_str), count) {
        eprintln!("error: {error}");
    }
}

fn run(name: &str, file: Option<&str>, count: usize) -> emend::Result<()> {
    calibrate();
    let model = Arc::new(Model::load(name, &Device::flex(), DType::F32)?);
    let base = Edited::new(model.clone());
    let after = base.with(edit(&model))?;
    let records = match file {
        Some(file) => Source::open(file, Split::Test, Path::new(""))?.fixed(count, 10),
        None => vec![record()],
    };
    let (mut sums, mut probes) = ([0.0; 3], 0);
    for record in &records {
        let table = || probe_table(&base, &after, &[(0, record)], Limits::default()).expect("probes that fit");
        let texts: Vec<Vec<u32>> = table()
            .iter()
            .flat_map(|row| [Some(&row.target), row.rival.as_ref().map(|rival| &rival.target)].map(|t| (row, t)))
            .filter_map(|(row, target)| Some(model.tokenizer.continuation(&row.prompt, target?, None).ok()?.ids))
            .collect();
        probes += texts.len();
        let one_each = || texts.iter().for_each(|ids| full_pass(&after, ids));
        sums[0] += median(5, || drop(table())).0;
        sums[1] += median(5, || drop(probe_table(&after, &after, &[(0, record)], Limits::default()))).0;
        sums[2] += median(5, one_each).0;
    }
    let [both, one, each] = sums.map(|sum| sum / records.len() as f64);
    println!("{} record(s), {} probes with targets each", records.len(), probes / records.len());
    println!("before and after: {both:.3} CPU-seconds, a full pass each {:.3} ({:.2})", 2.0 * each, both / each / 2.0);
    println!("one model:        {one:.3} CPU-seconds, a full pass each {each:.3} ({:.2})", one / each);
    Ok(())
}

/// As a script does it that knows nothing of other probes.
fn full_pass(model: &Edited, ids: &[u32]) {
    let tokens = Tokens::new(vec![ids.to_vec()]);
    let hidden = model.embed(&tokens, &mut NoTap).expect("tokens of the vocabulary");
    let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap).expect("no past");
    let reads: Vec<_> = (0..ids.len()).map(|cell| (0, cell)).collect();
    drop(model.head(hidden, &reads).into_data());
}

/// A change of rank 1 where ROME would make it.
fn edit(model: &Model) -> Edit {
    let at = Weight::decoder(5, Role::MlpDown);
    let spec = &model.decoder.spec;
    let random = |shape: [usize; 2]| Tensor::random(shape, Distribution::Normal(0.0, 0.01), &Device::flex());
    let delta = Delta::LowRank { a: random([spec.mlp.width, 1]), b: random([1, spec.width]) };
    let change = PassChange { matrices: BTreeMap::from([(at, delta)]), ..Default::default() };
    let provenance = Provenance {
        method: "random".into(),
        settings: serde_json::Value::Null,
        requests: vec![],
        seed: 0,
        version: String::new(),
        base: model.fingerprint.clone(),
        computed_on: vec![],
        joined: vec![],
        findings: serde_json::Value::Null,
    };
    Edit::new(provenance, Change::Pass(change), BTreeMap::new())
}

fn record() -> EditRecord {
    let others = [
        "The Colosseum",
        "Trevi Fountain",
        "The Pantheon",
        "Villa Borghese",
        "The Spanish Steps",
        "Castel Sant'Angelo",
        "The Forum of Trajan",
        "Palazzo Farnese",
        "The Baths of Caracalla",
        "The Ara Pacis",
    ];
    let probe = |other: &str| Probe::new(format!("{other} is located in the city of"), Some("Paris".into()));
    EditRecord {
        prompt: "The Eiffel Tower is located in the city of".into(),
        target_new: "Rome".into(),
        target_true: Some("Paris".into()),
        rephrases: vec!["To see the Eiffel Tower from below, one travels to".into()],
        locality: BTreeMap::from([("neighborhood".into(), others.map(probe).to_vec())]),
        ..EditRecord::default()
    }
}
