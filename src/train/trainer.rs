//! The loop: one step is one optimiser update over `accumulate × edits_per_step` records.
//!
//! Every draw of a step comes from a stream named by the seed and the step, and every record from its number; so a snapshot needs
//! no generator's state, and a resumed run repeats the run that was left alone bit for bit.

use std::path::PathBuf;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, ModuleOptimizer};
use burn::tensor::Tensor;
use serde_json::json;

use super::learned::{Group, LearnedEditor};
use super::metrics::Metrics;
use super::settings::Settings;
use super::{gradients, resume};
use crate::archive::snapshot::{Progress, Snapshot, Store};
use crate::archive::{Archive, Base, Best};
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::probes::Limits;
use crate::evaluate::{ProbeRow, Summary, probe_table, summarize};
use crate::network::parameters::stable_id;
use crate::{parallel, random, tensors};

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
            data: resume::digest(self.train, self.validation),
            config: self.config.clone(),
        };
        if let Some(saved) = resume::resume(&store, &progress, &mut self.editor, &mut optimizers)? {
            progress = saved;
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
