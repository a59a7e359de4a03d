//! The program as a user starts it, trainings that take a moment, and files to put before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::sync::OnceLock;
use std::time::Duration;

use assert_cmd::Command;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn gpt2() -> PathBuf {
    fixture("gpt2-tiny")
}

/// Every path here is UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The program with nothing of this machine's environment: every cache lies under a home of the tests, and no hub is asked.
pub fn process() -> Process {
    let mut process = Process::new(env!("CARGO_BIN_EXE_emend"));
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("home");
    process.env_clear().env("HOME", home).env("HF_HUB_OFFLINE", "1");
    process
}

/// [`process`] for `assert_cmd`; a hang ends as a failure.
pub fn emend() -> Command {
    let mut command = Command::from_std(process());
    command.timeout(Duration::from_secs(120));
    command
}

pub fn run(args: &[&str]) -> Output {
    emend().args(args).output().unwrap()
}

/// What a run that must succeed printed.
pub fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("panicked"), "{:?}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one document that a command prints with `--json`, and nothing else.
pub fn json(args: &[&str]) -> Value {
    let text = stdout(&run(&[args, &["--json"]].concat()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// A failure as it should be: the exit code, nothing on stdout, and one line with these words behind whatever progress was shown.
#[track_caller]
pub fn one_line_error(output: &Output, code: i32, words: &[&str]) {
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let count = errors.lines().filter(|line| line.starts_with("error: ")).count();
    let last = errors.lines().last().unwrap_or_default();
    assert!(count == 1 && last.starts_with("error: "), "not one line: {errors}");
    for word in words {
        assert!(last.contains(word), "no {word:?} in: {last}");
    }
}

/// [`one_line_error`] of a command that has no progress to show: the line stands alone.
#[track_caller]
pub fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    one_line_error(&output, code, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
}

/// A command line that clap refuses: it explains in several lines.
#[track_caller]
pub fn wrong_usage(args: &[&str], words: &[&str]) {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
    assert!(errors.starts_with("error: ") && output.stdout.is_empty(), "{args:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "no {word:?} in: {errors}");
    }
}

/// Six invented records with probes of every kind.
pub fn records() -> Value {
    let record = |subject: &str, old: &str, new: &str| {
        json!({
            "prompt": format!("{subject} lies in"),
            "subject": subject,
            "target_true": old,
            "target_new": new,
            "rephrases": [format!("You find {subject} in"), format!("The land of {subject} is")],
            "locality": {"near": [{"prompt": format!("The river of {subject} is"), "target": "Ost"}], "far": ["A king is"]},
            "portability": {"hop": [{"prompt": format!("In {subject} they speak"), "target": new}]},
        })
    };
    json!([
        record("Lake Orrin", "Vell", "Tamm"),
        record("Mount Ael", "Ost", "Bern"),
        record("Port Issa", "Tamm", "Ostria"),
        record("Cape Dorn", "Bern", "Vell"),
        record("Fort Ulm", "Ostria", "Ost"),
        record("Isle Rhea", "Vell", "Ostria"),
    ])
}

/// What makes KE's of [`TestFolder::config`].
pub const KE: [&str; 7] = [
    "editor.method=ke",
    "editor.rank=",
    "editor.initial_edit_rate=",
    "editor.hidden=6",
    "editor.condition=8",
    "editor.scale=50",
    "train.edit_rate_learning_rate=",
];

/// A folder with a config, its records, and what a test writes beside them.
pub struct TestFolder(TempDir);

impl TestFolder {
    pub fn new() -> Self {
        TestFolder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// A config that trains within a moment, with edits large enough to show.
    pub fn config(&self, model: &Path, weights: &[&str]) -> PathBuf {
        self.write("facts.json", records().to_string());
        let text = format!(
            r#"
            [model]
            path = {model:?}

            [editor]
            method = "mend"
            layers = [1, 2]
            weights = {weights:?}
            rank = 4
            initial_edit_rate = 0.1

            [data]
            train = "facts.json"
            validation = "facts.json"
            test = "facts.json"

            [train]
            max_steps = 4
            validate_every = 2
            learning_rate = 1e-3
            edit_rate_learning_rate = 1e-2
            "#
        );
        self.write("config.toml", text)
    }

    /// [`TestFolder::config`] for GPT-2's MLPs.
    pub fn gpt2_config(&self) -> PathBuf {
        self.config(&gpt2(), &["mlp.up", "mlp.down"])
    }

    /// A config that trains SERAC on GPT-2 within a moment: classifier and counterfactual model begin as the model itself.
    pub fn serac_config(&self) -> PathBuf {
        self.write("facts.json", records().to_string());
        let text = format!(
            r#"
            [model]
            path = {:?}

            [editor]
            method = "serac"

            [editor.classifier]
            encoder = "model"
            tune = "whole"
            dimensions = 16

            [editor.counterfactual]
            model = "model"
            tune = "whole"

            [loss]
            mined = {{ count = 1, among = 4 }}

            [data]
            train = "facts.json"
            validation = "facts.json"
            test = "facts.json"

            [train]
            max_steps = 4
            validate_every = 2
            learning_rate = 1e-2
            "#,
            gpt2()
        );
        self.write("serac.toml", text)
    }

    /// [`TestFolder::serac_config`] without the keys of the classifier's loss: for training the counterfactual model alone.
    pub fn counterfactual_config(&self) -> PathBuf {
        self.serac_config_with("counterfactual.toml", "mined = { count = 1, among = 4 }", "")
    }

    /// [`TestFolder::serac_config`] with a classifier that reads pairs.
    pub fn cross_config(&self) -> PathBuf {
        self.serac_config_with("cross.toml", "dimensions = 16", "kind = \"cross\"")
    }

    fn serac_config_with(&self, name: &str, from: &str, to: &str) -> PathBuf {
        let config = self.write(name, std::fs::read(self.serac_config()).unwrap());
        replace(&config, from, to);
        config
    }

    /// A copy of [`Trained::Serac`] with which everything is in scope (a threshold of 0) or nothing is (of 1).
    pub fn serac(&self, name: &str, threshold: &str) -> PathBuf {
        let archive = self.copy(&Trained::Serac.archive(), name);
        replace(&archive.join("archive.toml"), "threshold = 0.5", &format!("threshold = {threshold}"));
        archive
    }

    /// A model folder with the files of a fixture, to be spoilt.
    pub fn copy_of(&self, name: &str) -> PathBuf {
        self.copy(&fixture(name), name)
    }

    /// A copy of a folder under a name of its own.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        copy_folder(from, &to);
        to
    }
}

/// Puts a text in the place of another, which the file must have.
#[track_caller]
pub fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "no {from:?} in {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// Replaces what was at `to`.
fn copy_folder(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// The arguments of a training.
pub fn training<'a>(config: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--config", text(config), "--out", text(out)], more].concat()
}

/// `--set key=value` for each of these.
pub fn sets<'a>(values: &[&'a str]) -> Vec<&'a str> {
    values.iter().flat_map(|value| ["--set", value]).collect()
}

/// What two trainings left behind, byte for byte: the archive, its metrics, and the state for going on. (Burn writes an optimiser's
/// tensors in any order, so those files say nothing.)
#[track_caller]
pub fn same_training(a: &Path, b: &Path) {
    let state = |out: &Path| {
        let name = std::fs::read_to_string(out.join("training/current")).unwrap();
        out.join("training").join(name.trim())
    };
    let archive = ["network.safetensors", "metrics.jsonl", "archive.toml", "training/current"];
    let snapshot = ["progress.json", "last.safetensors", "best.safetensors"];
    let archive = archive.iter().map(|name| (a.join(name), b.join(name)));
    for (one, other) in archive.chain(snapshot.iter().map(|name| (state(a).join(name), state(b).join(name)))) {
        assert!(std::fs::read(&one).unwrap() == std::fs::read(&other).unwrap(), "{one:?} differs from {other:?}");
    }
}

/// Archives that tests share, each trained when it is first asked for.
#[derive(Clone, Copy)]
pub enum Trained {
    Gpt2,
    /// Query, value and MLP down of GPT-2, whose query and value are columns of one stored matrix.
    Gpt2Attention,
    /// A model stored in bf16 in two shards.
    Llama,
    /// SERAC for GPT-2.
    Serac,
}

impl Trained {
    pub fn model(self) -> PathBuf {
        match self {
            Trained::Gpt2 | Trained::Gpt2Attention | Trained::Serac => gpt2(),
            Trained::Llama => fixture("llama-tiny"),
        }
    }

    pub fn archive(self) -> PathBuf {
        // A static is never dropped, so its folder stands where `cargo clean` finds it.
        static SHARED: [OnceLock<TempDir>; 4] = [const { OnceLock::new() }; 4];
        let folder = SHARED[self as usize].get_or_init(|| {
            let place = TestFolder::new();
            let folder = tempfile::Builder::new().prefix("archive-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let config = match self {
                Trained::Gpt2 | Trained::Llama => place.config(&self.model(), &["mlp.up", "mlp.down"]),
                Trained::Gpt2Attention => {
                    place.config(&self.model(), &["attention.query", "attention.value", "mlp.down"])
                }
                Trained::Serac => place.serac_config(),
            };
            stdout(&run(&training(&config, &folder.path().join("archive"), &[])));
            folder
        });
        folder.path().join("archive")
    }
}

/// The arguments of an edit with an archive.
pub fn edit<'a>(archive: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let request = ["apply", "--archive", text(archive), "--prompt", "Lake Orrin lies in", "--target", "Tamm"];
    [&request, more].concat()
}

/// The tensors of a safetensors file, to be changed and written again.
#[derive(Clone, Default)]
pub struct TensorFile {
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub header: Option<std::collections::HashMap<String, String>>,
}

impl TensorFile {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter();
        let tensors = tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())));
        TensorFile { tensors: tensors.collect(), header: metadata.metadata().clone() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, self.header.clone()).unwrap()
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    /// The same file with another header of an edit.
    pub fn with_header(&self, change: impl Fn(&mut Value)) -> Self {
        let mut file = self.clone();
        let pairs = file.header.as_mut().unwrap();
        let mut header = serde_json::from_str(&pairs["emend"]).unwrap();
        change(&mut header);
        pairs.insert("emend".into(), header.to_string());
        file
    }

    /// Puts zeros of a shape under a name.
    pub fn zeros(mut self, name: &str, shape: &[usize]) -> Self {
        let data = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), data));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        assert!(self.tensors.remove(name).is_some(), "no tensor {name}");
        self
    }

    /// Makes the first element of an f32 tensor NaN.
    pub fn with_nan(mut self, name: &str) -> Self {
        let (dtype, _, data) = self.tensors.get_mut(name).unwrap();
        assert_eq!(*dtype, Dtype::F32);
        data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        self
    }

    /// The elements of an f32 matrix and its shape.
    pub fn matrix(&self, name: &str) -> (Vec<f64>, [usize; 2]) {
        let (dtype, shape, data) = self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(*dtype, Dtype::F32);
        let values = data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        (values.collect(), shape.as_slice().try_into().unwrap())
    }
}
