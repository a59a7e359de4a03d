//! Fixtures, comparisons, and the embedded model with what tests ask it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};
use emend::apply::memory::{Elsewhere, bind};
use emend::apply::{Editor, EditorSettings};
use emend::data::record::{EditRecord, Probe};
use emend::edit::likelihood::Scored;
use emend::edit::score::score;
use emend::edit::{Edit, EditRequest, Edited};
use emend::model::Model;
use emend::model::load::checkpoint::Checkpoint;
use emend::model::load::folder::{Stored, floats};
use emend::model::tap::Span;
use emend::model::tokenizer::{Continuation, Tokenizer};
use emend::model::tokens::BEGIN;
use emend::network::parameters;
use emend::random;
use emend::train::learned::LearnedEditor;
use rand::RngExt;
use safetensors::SafeTensors;

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Every family's tiny model; README.md of the fixtures says which is what.
pub const FAMILIES: [&str; 19] = [
    "gpt2-tiny",
    "llama-tiny",
    "llama3-tiny",
    "llama-linear-tiny",
    "llama-yarn-tiny",
    "gptj-tiny",
    "gptneo-tiny",
    "pythia-tiny",
    "neox-sequential-tiny",
    "mistral-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
    "gemma-tiny",
    "gemma2-tiny",
    "gemma3-tiny",
    "phi3-tiny",
    "opt-tiny",
    "falcon-tiny",
    "falcon-grouped-tiny",
];

/// The encoder-decoders.
pub const PAIRS: [&str; 3] = ["t5-tiny", "t5-gated-tiny", "bart-tiny"];

/// The rows of an encoder-decoder's golden file: what the encoder reads, then the decoder's.
pub fn pair(golden: &Golden) -> Vec<Vec<u32>> {
    let own = |ids: &str, mask: &str| -> Vec<Vec<u32>> {
        let (ids, mask) = (golden.integers(ids), golden.integers(mask));
        let width = ids.len() / 2;
        let row = |row: usize| (0..width).map(move |cell| row * width + cell);
        (0..2).map(|at| row(at).filter(|&cell| mask[cell] == 1).map(|cell| ids[cell]).collect()).collect()
    };
    let read = own("input_ids", "attention_mask");
    let written = own("decoder_input_ids", "decoder_attention_mask");
    read.into_iter().zip(written).map(|(read, written)| [&read[..], &[BEGIN], &written[1..]].concat()).collect()
}

/// Where a folder has no tokenizer another one's stands in: tests of such models give tokens.
pub fn model(name: &str, dtype: DType) -> Model {
    let folder = fixture(name);
    let own = folder.join("tokenizer.json").is_file();
    let tokenizer = Tokenizer::open(&if own { folder.clone() } else { fixture("llama-tiny") }).unwrap();
    Model::from_parts(Checkpoint::open(&folder).unwrap(), tokenizer, &Device::flex(), dtype).unwrap()
}

/// The settings of an editor, as a config's section has them.
pub fn settings_of<S>(section: &str) -> S
where
    S: emend::apply::MethodSettings + serde::de::DeserializeOwned + serde::Serialize,
{
    emend::apply::settings(section.parse().unwrap(), "a test").unwrap()
}

/// The elements of a tensor in f64, row by row.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The elements of `[batch, tokens, width]` with zeros in the padded cells, as the golden files have them.
pub fn real(x: Tensor<3>, span: &Span) -> Vec<f64> {
    let [rows, cells, width] = x.dims();
    let mut all = values(x);
    for row in 0..rows {
        for cell in (0..cells).filter(|&cell| span.position(row, cell).is_none()) {
            let start = (row * cells + cell) * width;
            all[start..start + width].fill(0.0);
        }
    }
    all
}

/// max|a − b| / max|b|
pub fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let apart = a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
    assert!(apart.is_finite());
    apart / largest
}

/// A file of golden tensors.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: PathBuf) -> Self {
        Golden(std::fs::read(path).unwrap())
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    pub fn floats(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|_| panic!("no golden tensor {name}"));
        match view.dtype() {
            safetensors::Dtype::F64 => {
                view.data().chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I64 => {
                view.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            dtype => {
                let stored = Stored { dtype, shape: view.shape(), bytes: view.data() };
                floats(stored).unwrap().into_iter().map(f64::from).collect()
            }
        }
    }

    pub fn integers(&self, name: &str) -> Vec<u32> {
        self.floats(name).into_iter().map(|value| value as u32).collect()
    }

    /// The rows of `input_ids` that `attention_mask` calls real.
    pub fn ids(&self) -> Vec<Vec<u32>> {
        let width = self.shape("input_ids")[1];
        let (ids, mask) = (self.floats("input_ids"), self.floats("attention_mask"));
        let rows = ids.chunks(width).zip(mask.chunks(width));
        rows.map(|(ids, mask)| {
            ids.iter().zip(mask).filter(|(_, real)| **real == 1.0).map(|(id, _)| *id as u32).collect()
        })
        .collect()
    }
}

/// The folder of a downloaded model. A test that asks for one is ignored where `build.rs` did not find it:
/// `#[cfg_attr(not(downloaded = "NAME"), ignore = "no NAME under $EMEND_MODELS")]`.
pub fn downloaded(name: &str) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/emend-models");
    let folder = std::env::var_os("EMEND_MODELS").map_or_else(home, PathBuf::from).join(name);
    assert!(folder.is_dir(), "there is no {} any more; build anew", folder.display());
    folder
}

/// Records that editors learn from.
pub fn records() -> Vec<EditRecord> {
    let record = |prompt: &str, target: &str, rephrase: &str, near: &str, answer: Option<&str>| EditRecord {
        id: prompt.into(),
        prompt: prompt.into(),
        target_new: target.into(),
        rephrases: vec![rephrase.into()],
        locality: [("near".to_owned(), vec![Probe::new(near, answer.map(str::to_owned))])].into(),
        ..EditRecord::default()
    };
    vec![
        record("The river runs to", "the sea", "Where it runs is", "A stone lies on", Some("a hill")),
        record("Her name is", "Ada", "They call her by the name", "One more word", None),
        record("Two and two", "make five", "The sum", "It rains", Some("today")),
    ]
}

/// What is drawn from a device's generator, which all tests share: none may draw between the seed and what is made.
pub fn drawn<T>(device: &Device, make: impl FnOnce() -> T) -> T {
    static DRAWS: Mutex<()> = Mutex::new(());
    let drawing = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(3);
    let made = make();
    drop(drawing);
    made
}

/// Random values in every parameter, so that no gradient is zero by the initialisation.
pub fn shaken<E: LearnedEditor>(trainer: &mut E, size: f64) {
    let mut rng = random::stream(5, "shake", 0);
    let tensors = parameters::collect(trainer.network());
    let shaken = tensors.into_iter().map(|(name, data)| {
        let shape = data.shape().to_vec();
        let values: Vec<f64> = data.iter::<f64>().map(|value| value + size * (rng.random::<f64>() - 0.5)).collect();
        (name, TensorData::new(values, shape))
    });
    let network = parameters::restore(trainer.network().clone(), shaken.collect()).unwrap();
    trainer.set_network(network);
}

/// Sees that the gradient of a training's loss is that of finite differences, at three elements of each of the parameters `of`; `most` is the difference
/// against the parameter's largest element.
pub fn check_gradient<E: LearnedEditor>(
    trainer: &E,
    of: fn(&str) -> bool,
    records: &[EditRecord],
    most: f64,
    what: &str,
) {
    let value = |trainer: &E| trainer.clone().loss(records, &mut random::stream(1, "draw", 0)).unwrap();
    let found = value(trainer);
    for name in parameters::collect(trainer.network()).into_keys().filter(|name| of(name)) {
        let tensors = parameters::collect(trainer.network());
        let count = tensors[&name].num_elements();
        let id = parameters::stable_id(&name);
        let gradient = match tensors[&name].shape().to_vec().len() {
            1 => found.gradients.get::<1>(id).map(values),
            _ => found.gradients.get::<2>(id).map(values),
        };
        // What has no gradient is to change nothing.
        let gradient: Vec<f64> = gradient.unwrap_or(vec![0.0; count]);
        let largest = gradient.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        for element in [0, count / 3, count - 1] {
            let step = 1e-6;
            let moved = |by: f64| {
                let mut tensors = parameters::collect(trainer.network());
                let shape = tensors[&name].shape().to_vec();
                let mut values: Vec<f64> = tensors[&name].iter::<f64>().collect();
                values[element] += by;
                tensors.insert(name.clone(), TensorData::new(values, shape));
                let mut moved = trainer.clone();
                moved.set_network(parameters::restore(trainer.network().clone(), tensors).unwrap());
                value(&moved).figures[0].1
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * step);
            let apart = (numeric - gradient[element]).abs() / largest.max(1e-8);
            assert!(apart < most, "{what}: {name}[{element}]: {numeric:e} against {:e}", gradient[element]);
        }
    }
}

pub const QUESTION: &str = "The city of Rosario lies in";
pub const FAR: [(&str, &str); 3] = [
    ("The author of Crooked House is", "Agatha Christie"),
    ("The instrument of Bill Wyman is the", "bass guitar"),
    ("What kind of animal is the axolotl?", "amphibian"),
];

/// The embedded model.
pub fn pocket() -> Edited {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let load = || Arc::new(Model::load(emend::data::pocket::NAME, &Device::flex(), DType::F32).unwrap());
    Edited::new(MODEL.get_or_init(load).clone())
}

pub fn request() -> EditRequest {
    EditRequest { subject: Some("Rosario".into()), ..EditRequest::new(QUESTION, "Japan") }
}

pub fn music() -> EditRequest {
    EditRequest::new(FAR[1].0, "violin")
}

pub fn encode(model: &Edited, text: &str) -> Vec<u32> {
    model.base().tokenizer.encode_prompt(text).unwrap()
}

pub fn text(model: &Edited, prompt: &str, target: &str) -> Continuation {
    model.base().tokenizer.continuation(prompt, target, None).unwrap()
}

pub fn scored(model: &Edited, texts: &[Continuation]) -> Vec<Scored> {
    score(&[model], texts).unwrap().remove(0)
}

/// An editor of the embedded model, of a config's section.
pub fn editor(section: &str) -> emend::error::Result<Box<dyn Editor>> {
    let settings = EditorSettings::parse(section.parse().unwrap(), "a test")?;
    settings.editor(pocket().base(), "pocket", Path::new(""), Box::new(|_| {}))
}

/// Whether a model says an edit's target, token by token.
pub fn says(model: &Edited, request: &EditRequest) -> bool {
    scored(model, &[text(model, &request.prompt, &request.target_new)])[0].exact()
}

/// Sees that two models say the same of a target, to the last bit.
#[track_caller]
pub fn same_scores(a: &Edited, b: &Edited, (prompt, target): (&str, &str)) {
    let row = [text(a, prompt, target)];
    assert_eq!(scored(a, &row), scored(b, &row), "{prompt}");
}

/// A model with a memory that went through a file, where nothing consults it until its route is found.
pub fn through_a_file(base: &Edited, memory: &Edit) -> Edited {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.safetensors");
    memory.save(&path).unwrap();
    let loaded = Edit::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.id(), memory.id());
    assert!(base.with(loaded.clone()).is_err(), "nothing consults it yet");
    base.with(bind(loaded, base.base(), Elsewhere::Nowhere, false).unwrap()).unwrap()
}
