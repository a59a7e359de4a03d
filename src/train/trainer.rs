//! The loop: one step is one optimiser update over `accumulate × edits_per_step` records.
//!
//! Every draw of a step comes from a stream named by the seed and the step, and every record from its number; so a snapshot needs
//! no generator's state, and a resumed run repeats the run that was left alone bit for bit.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamConfig, AdamWConfig, GradientsAccumulator, ModuleOptimizer};
use burn::tensor::{Bytes, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gradients;
use super::learned::{Group, LearnedEditor};
use super::schedule::{Schedule, Shape};
use crate::archive::snapshot::{Progress, Snapshot, Store};
use crate::archive::{Archive, Base, Best};
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, Summary, probe_table, summarize};
use crate::network::parameters::stable_id;
use crate::panics::caught;
use crate::{files, parallel, random, tensors};

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The seed of every draw.
    #[serde(default)]
    pub seed: u64,
    /// Optimiser updates.
    pub max_steps: usize,
    /// Records that share a forward pass.
    #[serde(default = "one")]
    pub edits_per_step: usize,
    /// Records whose edits are applied together to one model.
    #[serde(default = "one")]
    pub edits_together: usize,
    /// Passes whose gradients are averaged in an update.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Memory, in GB, for the hidden states of texts that are met more than once; where they need more, none are kept.
    #[serde(default = "hidden_memory_gb")]
    pub hidden_memory_gb: f64,
    /// Steps between validations.
    #[serde(default = "validate_every")]
    pub validate_every: usize,
    /// Records of a validation.
    #[serde(default = "validation_records")]
    pub validation_records: usize,
    /// Validations without a gain until the training stops; 0 for never.
    #[serde(default)]
    pub patience: usize,
    /// The network's learning rate at its height.
    pub learning_rate: f64,
    /// The edit rates' learning rate at its height.
    pub edit_rate_learning_rate: f64,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// AdamW's decay.
    #[serde(default)]
    pub weight_decay: f32,
    /// Steps of a linear warm-up.
    #[serde(default)]
    pub warm_up: usize,
    /// How the learning rates go on.
    #[serde(default)]
    pub schedule: Shape,
    /// What a cosine leaves at the end, as a share of the height.
    #[serde(default)]
    pub schedule_end: f64,
    /// The largest global norm of the gradient.
    #[serde(default = "clip")]
    pub clip: f64,
    /// Steps in a row with a loss or gradient that is not finite until the training stops.
    #[serde(default = "stop_after")]
    pub stop_after_not_finite: usize,
}

fn one() -> usize {
    1
}

fn hidden_memory_gb() -> f64 {
    2.0
}

fn validate_every() -> usize {
    200
}

fn validation_records() -> usize {
    200
}

fn clip() -> f64 {
    100.0
}

fn stop_after() -> usize {
    10
}

/// The optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam (Kingma and Ba, 2015).
    #[default]
    Adam,
    /// Adam with decoupled decay (Loshchilov and Hutter, 2019).
    AdamW,
}

impl Settings {
    /// # Errors
    /// Names the key that is out of range.
    pub fn check(&self) -> Result<()> {
        use crate::config::within;
        within("train.max_steps", self.max_steps as f64, 1.0, 1e12)?;
        within("train.edits_per_step", self.edits_per_step as f64, 1.0, 1e6)?;
        within("train.accumulate", self.accumulate as f64, 1.0, 1e6)?;
        within("train.edits_together", self.edits_together as f64, 1.0, self.edits_per_step as f64)?;
        within("train.validate_every", self.validate_every as f64, 1.0, 1e12)?;
        within("train.validation_records", self.validation_records as f64, 1.0, 1e9)?;
        within("train.hidden_memory_gb", self.hidden_memory_gb, 0.0, 1e6)?;
        within("train.learning_rate", self.learning_rate, 0.0, 10.0)?;
        within("train.edit_rate_learning_rate", self.edit_rate_learning_rate, 0.0, 10.0)?;
        within("train.schedule_end", self.schedule_end, 0.0, 1.0)?;
        within("train.clip", self.clip, 1e-12, f64::INFINITY)?;
        within("train.stop_after_not_finite", self.stop_after_not_finite as f64, 1.0, 1e12)?;
        within("train.weight_decay", f64::from(self.weight_decay), 0.0, 10.0)
    }

    fn schedule(&self, height: f64) -> Schedule {
        Schedule { height, warm_up: self.warm_up, steps: self.max_steps, end: self.schedule_end, shape: self.schedule }
    }

    fn optimizer(&self, group: &Group) -> ModuleOptimizer {
        // A rate's logarithm has no place to decay to.
        let decay = if group.decays { self.weight_decay } else { 0.0 };
        match self.optimizer {
            Optimizer::Adam => AdamConfig::new().with_epsilon(1e-8).init(),
            Optimizer::AdamW => AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(decay).init(),
        }
    }
}

/// What a training tells whoever watches it.
pub enum Event<'a> {
    /// A part of the work was done that comes before the first step.
    Prepared {
        /// Texts done.
        done: usize,
        /// Texts in all.
        total: usize,
    },
    /// A step was done, or skipped because something was not finite.
    Step {
        /// Steps done.
        step: usize,
        /// The figures of the step, the loss first.
        figures: &'a [(&'static str, f64)],
        /// Whether it was skipped.
        skipped: bool,
    },
    /// A validation.
    Validation {
        /// After which step.
        step: usize,
        /// Its figures.
        summary: &'a Summary,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// A training of one editor into one archive.
pub struct EditTrainer<'a, E: LearnedEditor> {
    /// The editor, in the state of the last step.
    pub editor: E,
    /// The frozen model.
    pub base: Edited,
    /// `[train]`
    pub settings: Settings,
    /// The model's name and fingerprint for the archive.
    pub description: Base,
    /// The configuration, as it counts for resuming.
    pub config: serde_json::Value,
    /// Records to learn from.
    pub train: &'a Source,
    /// Records to validate on.
    pub validation: &'a [EditRecord],
    /// Probes a validation record is asked.
    pub limits: Limits,
    /// The archive's folder.
    pub folder: PathBuf,
}

impl<E: LearnedEditor> EditTrainer<'_, E> {
    /// Trains to the end, from the last snapshot where there is one, and gives where it ended; the editor is then the best one.
    ///
    /// `watch` is told what happens; `stop` is asked after each step whether to save the state and leave.
    ///
    /// # Errors
    /// A folder that cannot be written, a snapshot of another configuration, too many steps that are not finite, an interruption.
    pub fn run(&mut self, watch: &mut dyn FnMut(&Event<'_>), stop: &dyn Fn() -> bool) -> Result<Progress> {
        let store = Store::new(&self.folder);
        let groups = self.editor.groups();
        let mut optimizers: Vec<ModuleOptimizer> = groups.iter().map(|group| self.settings.optimizer(group)).collect();
        let mut progress = Progress {
            step: 0,
            metrics_bytes: 0,
            best: None,
            without_gain: 0,
            not_finite: 0,
            finished: false,
            base: self.description.fingerprint.clone(),
            data: digest(self.train, self.validation),
            config: self.config.clone(),
        };
        if let (Some(saved), Some(folder)) = (store.progress()?, store.current()?) {
            same_config(&saved.config, &self.config)?;
            if saved.base != progress.base {
                return Err(Error::OtherBase {
                    what: format!("the training in {}", self.folder.display()),
                    made_on: saved.base,
                    model: progress.base,
                });
            }
            if saved.data != progress.data {
                let message = "--resume: the records of data.train or data.validation are not those the training began with; \
                               put them back, or train with another --out";
                return Err(Error::Config(message.into()));
            }
            let last = folder.join("last.safetensors");
            self.editor.restore(tensors::read(&last)?).map_err(|error| Error::file(&last, error))?;
            for (number, optimizer) in optimizers.iter_mut().enumerate() {
                let path = folder.join(format!("optimizer-{number}.bpk"));
                let state = std::fs::read(&path).map_err(Error::io(&path))?;
                // burn panics on some broken files.
                let loaded = caught(|| optimizer.clone().from_bytes(Bytes::from_bytes_vec(state)));
                let broken = || Error::file(&path, "not a whole optimiser state; train again with another --out");
                *optimizer = loaded.and_then(|loaded| loaded.ok()).ok_or_else(broken)?;
            }
            // A broken network never takes the place of a good one.
            let best = folder.join("best.safetensors");
            if best.is_file() {
                self.editor.clone().restore(tensors::read(&best)?).map_err(|error| Error::file(&best, error))?;
            }
            progress = saved;
            store.clean(&folder)?;
            self.publish(&store, &progress)?;
        }
        let mut metrics = Metrics::open(&self.folder.join("metrics.jsonl"), progress.metrics_bytes)?;
        let of_param = group_of_params(self.editor.network(), &groups);
        let mut last_validated = progress.step;

        let settings = &self.settings;
        let draws = (settings.max_steps * settings.accumulate * settings.edits_per_step) as u64;
        if !progress.finished {
            self.editor.prepare(self.train, draws, settings.hidden_memory_gb * 1e9, &mut |done, total| {
                watch(&Event::Prepared { done, total });
                !stop()
            })?;
        }
        while !progress.finished {
            let (figures, skipped) = self.step(progress.step, &groups, &of_param, &mut optimizers)?;
            progress.step += 1;
            progress.not_finite = if skipped { progress.not_finite + 1 } else { 0 };
            metrics.line(&step_line(progress.step, &figures, skipped))?;
            watch(&Event::Step { step: progress.step, figures: &figures, skipped });
            if progress.not_finite >= self.settings.stop_after_not_finite {
                return Err(Error::Training(format!(
                    "loss or gradient was not finite {} steps in a row, last at step {}: try a lower train.learning_rate or \
                     editor.initial_edit_rate, or a longer train.warm_up",
                    progress.not_finite, progress.step
                )));
            }
            let mut gained = false;
            if progress.step.is_multiple_of(self.settings.validate_every) || progress.step == self.settings.max_steps {
                last_validated = progress.step;
                let summary = summarize(&self.evaluate(self.validation)?);
                let gain = progress.best.as_ref().is_none_or(|known| score(&summary) > score(&known.summary));
                watch(&Event::Validation { step: progress.step, summary: &summary, best: gain });
                metrics.line(&json!({"step": progress.step, "validation": summary, "best": gain}))?;
                if gain {
                    gained = true;
                    progress.best = Some(Best { step: progress.step, summary });
                    progress.without_gain = 0;
                } else {
                    progress.without_gain += 1;
                }
                let patience = self.settings.patience;
                progress.finished =
                    progress.step >= self.settings.max_steps || (patience > 0 && progress.without_gain >= patience);
            }
            let leave = stop() && !progress.finished;
            if last_validated == progress.step || leave {
                progress.metrics_bytes = metrics.sync()?;
                let optimizers = optimizers.iter().map(state_of).collect::<Result<Vec<_>>>()?;
                let last = tensors::to_bytes(&self.editor.tensors())?;
                store.write(&Snapshot { progress: progress.clone(), last, is_best: gained, optimizers })?;
                if gained {
                    self.publish(&store, &progress)?;
                }
            }
            if leave {
                let message = format!(" at step {}; --resume goes on from there", progress.step);
                return Err(Error::Interrupted(message));
            }
        }
        if progress.best.is_some() {
            self.editor.restore(tensors::read(&Archive::network_path(&self.folder))?)?;
        }
        Ok(progress)
    }

    /// One update. Gives the mean figures of its passes, and whether it was skipped.
    fn step(
        &mut self,
        step: usize,
        groups: &[Group],
        of_param: &[(ParamId, usize)],
        optimizers: &mut [ModuleOptimizer],
    ) -> Result<(Vec<(&'static str, f64)>, bool)> {
        let (accumulate, records) = (self.settings.accumulate, self.settings.edits_per_step);
        let mut rng = random::stream(self.settings.seed, "step", step as u64);
        let before = self.editor.clone();
        let mut sum = GradientsAccumulator::<E::Network>::new();
        let mut figures: Vec<(&'static str, f64)> = vec![];
        for pass in 0..accumulate {
            let first = ((step * accumulate + pass) * records) as u64;
            let records = self.train.draws(self.settings.seed, first, records, self.editor.neighbours());
            let loss = self.editor.loss(&records, &mut rng)?;
            sum.accumulate(self.editor.network(), loss.gradients);
            if figures.is_empty() {
                figures = loss.figures.iter().map(|(name, _)| (*name, 0.0)).collect();
            }
            figures.iter_mut().zip(&loss.figures).for_each(|(mean, (_, value))| mean.1 += value / accumulate as f64);
        }
        let gradients = gradients::scale(sum.grads(), self.editor.network(), 1.0 / accumulate as f64);
        let (gradients, norm) = gradients::clip(gradients, self.editor.network(), self.settings.clip);
        figures.push(("gradient_norm", norm));
        if figures.iter().any(|(_, value)| !value.is_finite()) {
            // Nothing of a step that went wrong stays, running figures included.
            self.editor = before;
            return Ok((figures, true));
        }
        drop(before);
        let part = |id| of_param.iter().find(|(known, _)| *known == id).map_or(0, |(_, group)| *group);
        let parts = gradients::split(gradients, self.editor.network(), groups.len(), part);
        for ((group, optimizer), gradients) in groups.iter().zip(optimizers).zip(parts) {
            let rate = self.settings.schedule(group.learning_rate).at(step);
            let network = self.editor.network().clone();
            self.editor.set_network(optimizer.step(rate, network, gradients));
        }
        Ok((figures, false))
    }

    /// The probe table of records, edited as they are trained: each by itself, or `edits_together` at once.
    ///
    /// # Errors
    /// A record that the model cannot take.
    pub fn evaluate(&self, records: &[EditRecord]) -> Result<Vec<ProbeRow>> {
        let numbered: Vec<(usize, &EditRecord)> = records.iter().enumerate().collect();
        let edits: Vec<&[(usize, &EditRecord)]> = numbered.chunks(self.settings.edits_together).collect();
        let device = self.base.base().decoder.device();
        let parts = edits.chunks(edits.len().div_ceil(parallel::parts(&device)).max(1));
        let tables = parallel::run(parts.collect(), |part| {
            let mut table = vec![];
            for together in part {
                let requests: Vec<EditRequest> =
                    together.iter().map(|(_, record)| EditRequest::from(*record)).collect();
                let edit = self.editor.edit(&self.base, &requests, self.settings.seed)?;
                table.extend(probe_table(&self.base, &self.base.with(edit)?, together, self.limits)?);
            }
            Ok(table)
        });
        Ok(tables?.into_iter().flatten().collect())
    }

    /// Puts the best editor of the snapshot where `apply` finds it.
    fn publish(&self, store: &Store, progress: &Progress) -> Result<()> {
        let Some(folder) = store.current()? else { return Ok(()) };
        let best = folder.join("best.safetensors");
        if best.is_file() {
            let network = std::fs::read(&best).map_err(Error::io(&best))?;
            let description =
                Archive::describe(self.description.clone(), self.editor.settings(), progress.best.clone());
            Archive::write(&self.folder, &description, &network)?;
        }
        Ok(())
    }
}

/// What a validation is judged by: the mean of edit success, generalisation and locality, as far as there are any.
pub fn score(summary: &Summary) -> f64 {
    let figures = [summary.edit_success, summary.generalization, summary.locality];
    let known: Vec<f64> = figures.into_iter().flatten().collect();
    known.iter().sum::<f64>() / known.len().max(1) as f64
}

fn step_line(step: usize, figures: &[(&'static str, f64)], skipped: bool) -> serde_json::Value {
    let mut line = serde_json::Map::new();
    line.insert("step".into(), step.into());
    // A number that is not finite has no form in JSON: null stands for it.
    line.extend(figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    if skipped {
        line.insert("skipped".into(), true.into());
    }
    line.into()
}

fn state_of(optimizer: &ModuleOptimizer) -> Result<Vec<u8>> {
    let bytes =
        optimizer.into_bytes().map_err(|error| Error::Training(format!("the optimiser cannot be saved: {error:?}")))?;
    Ok(bytes.to_vec())
}

/// BLAKE3 of all records: a training goes on with the ones it began with.
fn digest(train: &Source, validation: &[EditRecord]) -> String {
    let mut hasher = blake3::Hasher::new();
    match train {
        Source::World { .. } => {}
        Source::Records(records) => hash(&mut hasher, records.all()),
    }
    hash(&mut hasher, validation);
    hasher.finalize().to_hex().to_string()
}

fn hash(hasher: &mut blake3::Hasher, records: &[EditRecord]) {
    for record in records {
        hasher.update(serde_json::to_string(record).unwrap_or_default().as_bytes());
    }
}

fn same_config(saved: &serde_json::Value, now: &serde_json::Value) -> Result<()> {
    fn first_difference(path: String, a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
        match (a.as_object(), b.as_object()) {
            (Some(x), Some(y)) => {
                let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
                let null = serde_json::Value::Null;
                keys.into_iter().find_map(|key| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    first_difference(path, x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null))
                })
            }
            _ => (a != b).then(|| format!("{path} was {a}, now it is {b}")),
        }
    }
    match first_difference(String::new(), saved, now) {
        None => Ok(()),
        Some(difference) => Err(Error::Config(format!(
            "--resume: the training began under another configuration ({difference}); resume under the same, or train with another --out"
        ))),
    }
}

/// The group of each parameter.
fn group_of_params<M: Module>(network: &M, groups: &[Group]) -> Vec<(ParamId, usize)> {
    struct Paths(Vec<String>, Vec<String>);
    impl ModuleVisitor for Paths {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
            self.1.push(self.0.join("."));
        }
    }
    let mut paths = Paths(vec![], vec![]);
    network.visit(&mut paths);
    let group = |path: &str| groups.iter().position(|group| (group.takes)(path)).unwrap_or(0);
    paths.1.iter().map(|path| (stable_id(path), group(path))).collect()
}

/// metrics.jsonl, cut back to what a snapshot knows of it.
struct Metrics {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Metrics {
    fn open(path: &Path, bytes: u64) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length < bytes {
            return Err(Error::file(
                path,
                format!("it holds {length} bytes, the snapshot knows {bytes}; the training cannot be resumed"),
            ));
        }
        file.set_len(bytes).map_err(Error::io(path))?;
        Ok(Metrics { path: path.to_owned(), file, bytes })
    }

    fn line(&mut self, value: &serde_json::Value) -> Result<()> {
        let line = format!("{value}\n");
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Brings what was written to the disk and gives its length.
    fn sync(&self) -> Result<u64> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok(self.bytes)
    }
}

/// Makes sure that a folder can take a new training: it is new, or its training is to be resumed. What it gives keeps others from
/// training there as long as it lives.
///
/// # Errors
/// A folder that holds a training already, or none to resume, or in which another process trains.
pub fn claim_folder(folder: &Path, resume: bool) -> Result<File> {
    let store = Store::new(folder);
    let known = store.progress()?;
    match (known, resume) {
        (Some(progress), false) => Err(Error::Config(format!(
            "{} holds a training of {} steps already; --resume goes on with it, --out DIR trains elsewhere",
            folder.display(),
            progress.step
        ))),
        (None, true) if folder.join("archive.toml").is_file() => {
            Err(Error::Config(format!("{} holds no training state to resume", folder.display())))
        }
        (None, false) if folder.join("archive.toml").is_file() => {
            Err(Error::Config(format!("{} holds an archive already; --out DIR trains elsewhere", folder.display())))
        }
        _ => {
            files::check_writable(folder)?;
            let lock = store.lock()?;
            files::remove_leftovers(folder)?;
            files::remove_leftovers(&folder.join("training"))?;
            Ok(lock)
        }
    }
}
