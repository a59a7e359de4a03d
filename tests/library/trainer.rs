//! The loop: what is left when a step or a validation goes wrong, and what a validation is judged by.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{DType, Device, TensorData};
use emend::archive::{Base, LearnedEditorSettings};
use emend::data::record::{EditRecord, Probe};
use emend::data::source::Source;
use emend::edit::likelihood::Scored;
use emend::edit::{Edit, EditRequest, Edited};
use emend::error::{Error, Result};
use emend::evaluate::probes::Limits;
use emend::evaluate::{Kind, ProbeRow, Rival};
use emend::network::mend::{Mend, MendNetwork};
use emend::network::parameters;
use emend::random;
use emend::train::learned::{Group, LearnedEditor, StepLoss, Watch};
use emend::train::mend::{MendLossSettings, MendTrainSettings, MendTrainer};
use emend::train::trainer::{EditTrainer, score};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::common::model;

/// MEND, whose losses and edits go wrong from the one on that the counters say.
#[derive(Clone)]
struct Failing {
    mend: MendTrainer,
    losses: Arc<AtomicUsize>,
    edits: Arc<AtomicUsize>,
}

/// Counts down; an error at 0.
fn count(left: &AtomicUsize, what: &str) -> Result<()> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Input(format!("{what} went wrong"))),
    }
}

impl LearnedEditor for Failing {
    type Network = MendNetwork;

    fn network(&self) -> &MendNetwork {
        self.mend.network()
    }

    fn set_network(&mut self, network: MendNetwork) {
        self.mend.set_network(network);
    }

    fn groups(&self) -> Vec<Group> {
        self.mend.groups()
    }

    fn prepare(&mut self, source: &Source, draws: u64, watch: Watch<'_>) -> Result<()> {
        self.mend.prepare(source, draws, watch)
    }

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss> {
        let loss = self.mend.loss(records, rng);
        count(&self.losses, "a step")?;
        loss
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        count(&self.edits, "a validation")?;
        self.mend.edit(model, requests)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.mend.tensors()
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.mend.restore(tensors)
    }

    fn settings(&self) -> LearnedEditorSettings {
        self.mend.settings()
    }

    fn neighbours(&self) -> usize {
        self.mend.neighbours()
    }
}

fn records() -> Vec<EditRecord> {
    let record = |prompt: &str, target: &str, near: &str| EditRecord {
        id: prompt.into(),
        prompt: prompt.into(),
        target_new: target.into(),
        locality: [("near".to_owned(), vec![Probe::new(near, None)])].into(),
        ..EditRecord::default()
    };
    vec![record("The river runs to", "the sea", "A stone lies on"), record("Her name is", "Ada", "One more word")]
}

/// A training of ten steps, validated after every fifth, whose losses and edits go wrong behind so many.
fn train(folder: &Path, losses: usize, edits: usize) -> Result<()> {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F32)));
    let device = Device::flex().autodiff();
    let settings =
        toml::from_str("layers = [1, 2]\nweights = [\"mlp.up\"]\nrank = 3\ninitial_edit_rate = 0.1").unwrap();
    let mend = Mend::new(settings, &base.base().decoder.spec, (&device, DType::F32)).unwrap();
    let loss: MendLossSettings = toml::from_str("").unwrap();
    let mut mend = MendTrainer::new(mend, base.clone(), loss, 1, 1e-2, MendTrainSettings::default()).unwrap();
    // The device's generator is shared with the other tests: what is drawn at the start is drawn anew.
    let drawn = parameters::collect(mend.network()).into_iter().map(|(name, data)| {
        let mut rng = random::stream(5, &name, 0);
        let mut draw = |value| if name.ends_with("down") { 0.1 * (rng.random::<f64>() - 0.5) } else { value };
        let values: Vec<f64> = data.iter::<f64>().map(&mut draw).collect();
        let shape = data.shape().to_vec();
        (name, TensorData::new(values, shape))
    });
    let drawn = drawn.collect();
    mend.set_network(parameters::restore(mend.network().clone(), drawn).unwrap());
    let (source, validation) = (Source::from(records()), records());
    let mut run = EditTrainer {
        editor: Failing { mend, losses: Arc::new(losses.into()), edits: Arc::new(edits.into()) },
        base: base.clone(),
        settings: toml::from_str("max_steps = 10\naccumulate = 2\nvalidate_every = 5\nlearning_rate = 1e-2").unwrap(),
        description: Base {
            path: "gpt2-tiny".into(),
            fingerprint: base.base().fingerprint.clone(),
            asking: Default::default(),
            dtype: emend::model::Precision::F32,
        },
        config: json!({}),
        made_of: BTreeMap::new(),
        train: &source,
        validation: &validation,
        limits: Limits::default(),
        text: None,
        text_cases: 0,
        folder: folder.to_owned(),
    };
    run.run(&mut |_| {}, &|| false).map(drop)
}

/// What the loss and the edits of a training that goes right come to.
const ENOUGH: usize = 1000;

/// The bytes of what a training left behind.
fn left(folder: &Path) -> Vec<Vec<u8>> {
    let state = std::fs::read_to_string(folder.join("training/current")).unwrap();
    let state = folder.join("training").join(state);
    let files = [folder.join("network.safetensors"), folder.join("metrics.jsonl"), state.join("last.safetensors")];
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn an_error_loses_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    train(&whole, ENOUGH, ENOUGH).unwrap();
    // In the second pass of step 8, in the validation after step 5, and in the second edit of the one after step 10.
    for (losses, edits, words, state) in [
        (15, ENOUGH, "a step went wrong", "step-00000007"),
        (ENOUGH, 0, "a validation went wrong", "step-00000005-unjudged"),
        (ENOUGH, 3, "a validation went wrong", "step-00000010-unjudged"),
    ] {
        let _ = std::fs::remove_dir_all(&broken);
        let error = train(&broken, losses, edits).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(std::fs::read_to_string(broken.join("training/current")).unwrap(), state);
        train(&broken, ENOUGH, ENOUGH).unwrap();
        assert!(left(&broken) == left(&whole), "{words} and was resumed from {state}");
    }
    // Before the first step there is nothing to lose.
    let _ = std::fs::remove_dir_all(&broken);
    train(&broken, 0, ENOUGH).unwrap_err();
    assert!(!broken.join("training/current").exists());
}

/// A word on one target of one token.
fn scored(nll: f32, exact: bool) -> Scored {
    Scored { target: vec![1], log_probabilities: vec![-nll], argmax: vec![u32::from(exact)], text: None }
}

/// A row of a record, with the right answer and the wrong one before and after.
fn row(kind: Kind, described: bool, answers: [&str; 2], after: [f32; 2]) -> ProbeRow {
    let exact = after[0] < 0.1;
    ProbeRow {
        record: 0,
        described,
        kind,
        class: None,
        prompt: "What of it?".into(),
        target: answers[0].into(),
        given: true,
        aliases: vec![],
        test: None,
        separator: None,
        lowered: false,
        apart: false,
        before: scored(1.0, false),
        after: scored(after[0], exact),
        rival: Some(Rival { target: answers[1].into(), before: scored(1.0, false), after: scored(after[1], false) }),
    }
}

/// Whatever the kind of records, the state that answers better has the better score, though no reply is exact to the word.
#[test]
fn a_score_tells_better_from_worse() {
    let kept = || row(Kind::Locality, true, ["x", "y"], [1.0, 1.0]);
    for (described, answers) in [(true, ["I love it", "I hate it"]), (true, ["True", "False"])] {
        let of = |right: f32, wrong: f32| score(&[row(Kind::Rewrite, described, answers, [right, wrong]), kept()]);
        let (good, none, bad) = (of(0.5, 2.0), of(1.0, 1.0), of(2.0, 0.5));
        // A verdict that is as likely as the other is as wrong as one that is less likely.
        assert!(good > none && none >= bad, "{answers:?}: {good} {none} {bad}");
    }
    // Plain facts: the mean of edit success, generalisation and locality, as far as there are any.
    let fact = |kind, exact: bool| row(kind, false, ["Ost", "Vell"], [if exact { 0.0 } else { 1.0 }, 1.0]);
    assert_eq!(score(&[fact(Kind::Rewrite, true), fact(Kind::Rephrase, false)]), 0.5);
    assert_eq!(score(&[fact(Kind::Rewrite, true)]), 1.0);
    // Each kind counts alike.
    let mixed = [fact(Kind::Rewrite, true), row(Kind::Rewrite, true, ["True", "False"], [2.0, 1.0])];
    assert_eq!(score(&mixed), 0.5);
    // A descriptor's record with nothing to be judged by.
    let mut alone = row(Kind::Rewrite, true, ["Ost", "Vell"], [0.0, 1.0]);
    alone.rival = None;
    assert_eq!(score(&[alone]), 1.0);
    assert_eq!(score(&[]), 0.0);
}
