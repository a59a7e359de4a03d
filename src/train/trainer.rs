//! The loop: one step is one optimiser update over `accumulate × edits_per_step` records.
//!
//! Every draw of a step comes from a stream named by the seed and the step, and every record from its number; so a snapshot needs
//! no generator's state, and a resumed run repeats the run that was left alone bit for bit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use serde_json::json;

use super::learned::{Group, LearnedEditor};
use super::metrics::Metrics;
use super::settings::TrainSettings;
use super::{gradients, resume};
use crate::archive::snapshot::{Progress, Snapshot, Store, Write};
use crate::archive::{Archive, Base, Best};
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::metrics::locality;
use crate::evaluate::probes::Limits;
use crate::evaluate::{
    PerplexityRatio, ProbeRow, Side, Summary, WatchedText, balanced, completion, probe_table, sentiment, summarize,
};
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
        /// What the edits did to running text, where one is watched.
        perplexity: Option<PerplexityRatio>,
        /// What it is judged by.
        score: f64,
        /// Whether it is the best so far.
        best: bool,
    },
    /// Something to be said at the end.
    Note(&'a str),
}

/// A training of one editor into one archive.
pub struct EditTrainer<'a, E: LearnedEditor> {
    /// The editor, in the state of the last step.
    pub editor: E,
    /// The frozen model.
    pub base: Edited,
    /// `[train]`
    pub settings: TrainSettings,
    /// The model's name and fingerprint for the archive.
    pub description: Base,
    /// The configuration, as it counts for resuming.
    pub config: serde_json::Value,
    /// What the training stands on beside base, records and the editor's own models, by its key in the config with its fingerprint.
    pub made_of: BTreeMap<String, String>,
    /// Records to learn from.
    pub train: &'a Source,
    /// Records to validate on.
    pub validation: &'a [EditRecord],
    /// Probes a validation record is asked.
    pub limits: Limits,
    /// A text that is read after the first edits of a validation.
    pub text: Option<&'a WatchedText>,
    /// After how many models, each with what is edited together.
    pub text_cases: usize,
    /// The archive's folder.
    pub folder: PathBuf,
}

/// A training on its way.
struct Course {
    store: Store,
    groups: Vec<Group>,
    /// The group of each parameter.
    group_of: Vec<(ParamId, usize)>,
    /// One a group.
    optimizers: Vec<ModuleOptimizer>,
    progress: Progress,
    metrics: Metrics,
}

/// Named figures of a step.
type Figures = Vec<(&'static str, f64)>;

impl<E: LearnedEditor> EditTrainer<'_, E> {
    /// Trains to the end, from the last snapshot where there is one, and gives where it ended; the editor is then the best one.
    /// `stop` is asked after every step whether to save the state and leave.
    ///
    /// # Errors
    /// A folder that cannot be written, a snapshot of another configuration, too many steps that are not finite, an interruption; a
    /// record that the model cannot take, after the state before it is saved.
    pub fn run(&mut self, watch: &mut dyn FnMut(&Event<'_>), stop: &dyn Fn() -> bool) -> Result<Progress> {
        let mut course = self.begin(watch, stop)?;
        let mut saved = Instant::now();
        while !course.progress.finished {
            if !course.progress.unjudged {
                self.step(&mut course, watch)?;
            }
            let judged = match course.progress.unjudged {
                true => Some(self.judge(&mut course, watch)?),
                false => None,
            };
            let leave = stop() && !course.progress.finished;
            let minutes = saved.elapsed().as_secs_f64() / 60.0;
            let due = self.settings.save_minutes > 0.0 && minutes >= self.settings.save_minutes;
            if judged.is_some() || leave || due {
                self.save(&mut course, judged == Some(true))?;
                saved = Instant::now();
            }
            if leave {
                let message = format!(" at step {}; --resume goes on from there", course.progress.step);
                return Err(Error::Interrupted(message));
            }
        }
        self.end(course, watch)
    }

    /// The first state, or that of the last snapshot, with all that comes before a step.
    fn begin(&mut self, watch: &mut dyn FnMut(&Event<'_>), stop: &dyn Fn() -> bool) -> Result<Course> {
        let store = Store::new(&self.folder);
        let groups = self.editor.groups();
        let mut optimizers: Vec<ModuleOptimizer> = groups.iter().map(|group| self.settings.optimizer(group)).collect();
        let mut made_of = self.made_of.clone();
        made_of.extend(self.editor.made_of());
        made_of.insert("data.train".into(), self.train.fingerprint());
        made_of.insert("data.validation".into(), resume::digest(self.validation));
        if let Some(text) = self.text {
            made_of
                .insert("data.text".into(), blake3::hash(format!("{:?}", text.rows).as_bytes()).to_hex().to_string());
        }
        let mut progress = Progress {
            step: 0,
            metrics_bytes: 0,
            best: None,
            best_score: None,
            scores_vary: false,
            unjudged: false,
            without_gain: 0,
            not_finite: 0,
            finished: false,
            base: self.description.fingerprint.clone(),
            made_of,
            config: self.config.clone(),
        };
        if let Some(saved) = resume::resume(&store, &progress, &mut self.editor, &mut optimizers)? {
            progress = saved;
            self.publish(&store, &progress)?;
        }
        if !progress.finished {
            self.prepare(watch, stop)?;
        }
        let metrics = Metrics::open(&self.folder.join("metrics.jsonl"), progress.metrics_bytes)?;
        let group_of = group_of_params(self.editor.network(), &groups);
        Ok(Course { store, groups, group_of, optimizers, progress, metrics })
    }

    /// What is constant in the training.
    fn prepare(&mut self, watch: &mut dyn FnMut(&Event<'_>), stop: &dyn Fn() -> bool) -> Result<()> {
        let settings = &self.settings;
        let draws = (settings.max_steps * settings.accumulate * settings.edits_per_step) as u64;
        self.editor.prepare(self.train, draws, &mut |done, total| {
            watch(&Event::Prepared { done, total });
            !stop()
        })
    }

    /// One step: an update, a line of metrics, and whether a validation is due.
    fn step(&mut self, course: &mut Course, watch: &mut dyn FnMut(&Event<'_>)) -> Result<()> {
        let updated = self.update(course);
        let (figures, skipped) = self.saved_if_wrong(course, updated)?;
        let progress = &mut course.progress;
        progress.step += 1;
        progress.not_finite = if skipped { progress.not_finite + 1 } else { 0 };
        course.metrics.line(&step_line(progress.step, &figures, skipped))?;
        watch(&Event::Step { step: progress.step, figures: &figures, skipped });
        if progress.not_finite >= self.settings.stop_after_not_finite {
            return Err(Error::Training(format!(
                "loss or gradient was not finite {} steps in a row, last at step {}: try a lower train.learning_rate or \
                 editor.initial_edit_rate, or a longer train.warm_up",
                progress.not_finite, progress.step
            )));
        }
        progress.unjudged =
            progress.step.is_multiple_of(self.settings.validate_every) || progress.step >= self.settings.max_steps;
        Ok(())
    }

    /// One update. Gives the mean figures of its passes, and whether it was skipped. Where it fails, the editor is as before.
    fn update(&mut self, course: &mut Course) -> Result<(Figures, bool)> {
        let before = self.editor.clone();
        let (gradients, mut figures) = match self.mean_gradient(course.progress.step) {
            Ok(found) => found,
            Err(error) => {
                self.editor = before;
                return Err(error);
            }
        };
        let (parts, norms) = self.clipped(gradients, course);
        figures.extend(norms);
        if figures.iter().any(|(_, value)| !value.is_finite()) {
            // Nothing of a step that went wrong stays, running figures included.
            self.editor = before;
            return Ok((figures, true));
        }
        drop(before);
        for ((group, optimizer), gradients) in course.groups.iter().zip(&mut course.optimizers).zip(parts) {
            let rate = self.settings.schedule(group.learning_rate).at(course.progress.step);
            let network = self.editor.network().clone();
            self.editor.set_network(optimizer.step(rate, network, gradients));
        }
        Ok((figures, false))
    }

    /// The mean gradient of a step's passes, and the means of their figures.
    fn mean_gradient(&mut self, step: usize) -> Result<(GradientsParams, Figures)> {
        let (accumulate, records) = (self.settings.accumulate, self.settings.edits_per_step);
        let mut rng = random::stream(self.settings.seed, "step", step as u64);
        let mut sum = GradientsAccumulator::<E::Network>::new();
        let mut figures: Figures = vec![];
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
        Ok((gradients::scale(sum.grads(), self.editor.network(), 1.0 / accumulate as f64), figures))
    }

    /// The gradient of each group, and the norms before clipping. Groups that share the name of their norm are clipped together, the
    /// others apart: how far one network is off does not slow another.
    fn clipped(&self, gradients: GradientsParams, course: &Course) -> (Vec<GradientsParams>, Figures) {
        let network = self.editor.network();
        let group_of =
            |id: ParamId| course.group_of.iter().find(|(known, _)| *known == id).map_or(0, |(_, group)| *group);
        let mut names: Vec<&'static str> = vec![];
        for group in &course.groups {
            if !names.contains(&group.norm) {
                names.push(group.norm);
            }
        }
        let name_of = |group: usize| names.iter().position(|name| *name == course.groups[group].norm).unwrap_or(0);
        let mut groups: Vec<GradientsParams> = course.groups.iter().map(|_| GradientsParams::new()).collect();
        let mut norms = vec![];
        let together = gradients::split(gradients, network, names.len(), |id| name_of(group_of(id)));
        for (number, gradients) in together.into_iter().enumerate() {
            let (gradients, norm) = gradients::clip(gradients, network, self.settings.clip);
            norms.push((names[number], norm));
            let own = gradients::split(gradients, network, course.groups.len(), group_of);
            for (group, own) in own.into_iter().enumerate().filter(|(group, _)| name_of(*group) == number) {
                groups[group] = own;
            }
        }
        (groups, norms)
    }

    /// A validation: whether the editor is the best so far, and whether the training has ended.
    fn judge(&mut self, course: &mut Course, watch: &mut dyn FnMut(&Event<'_>)) -> Result<bool> {
        // Sentiment and verdicts are told by answers that must lose.
        let rivals = self.limits.rivals || self.validation.iter().any(|record| record.descriptor.is_some());
        let rows = self.table(self.validation, Limits { rivals, ..self.limits });
        let rows = self.saved_if_wrong(course, rows)?;
        let perplexity = self.text.map_or(Ok(None), |text| self.perplexity_ratio(self.validation, text));
        let perplexity = self.saved_if_wrong(course, perplexity)?;
        let completions = self.validation.iter().all(|record| record.completion.is_some());
        let judged = if completions { score_of_completions(&rows) } else { score(&rows) };
        let (summary, score) = (summarize(&rows), with_text(judged, perplexity));
        let progress = &mut course.progress;
        let gain = progress.best_score.is_none_or(|known| score > known);
        let same = progress.best_score == Some(score);
        // As long as no figure tells states apart, the one that learnt the longest is taken.
        let best = gain || same && !progress.scores_vary;
        progress.scores_vary |= progress.best_score.is_some() && !same;
        progress.without_gain = if gain { 0 } else { progress.without_gain + 1 };
        watch(&Event::Validation { step: progress.step, summary: &summary, perplexity, score, best });
        let mut line = json!({"step": progress.step, "validation": summary, "score": score, "best": best});
        if let Some(ratio) = perplexity {
            line["perplexity_ratio"] = json!(ratio);
        }
        course.metrics.line(&line)?;
        if let Some(note) = self.editor.note() {
            tracing::info!("{note}");
        }
        self.editor.validated(&summary);
        if best {
            // No more were edited together than there are records.
            let most = |count: usize| Some(count.min(summary.edits.max(1)));
            let in_a_row = self.editor.sequential().then(|| most(self.settings.edits_per_step)).flatten();
            let edits_together = most(self.settings.edits_together.most);
            let (step, perplexity_ratio) = (progress.step, perplexity);
            progress.best = Some(Best { step, edits_together, in_a_row, perplexity_ratio, summary });
            progress.best_score = Some(score);
        }
        let patience = self.settings.patience;
        progress.finished =
            progress.step >= self.settings.max_steps || (patience > 0 && progress.without_gain >= patience);
        progress.unjudged = false;
        Ok(best)
    }

    /// Writes a snapshot; with `is_best` the archive too.
    fn save(&self, course: &mut Course, is_best: bool) -> Result<()> {
        course.progress.metrics_bytes = course.metrics.sync()?;
        let optimizers = course.optimizers.iter().map(|optimizer| -> Write<'_> {
            Box::new(move |path| {
                let wrong = |error| Error::Training(format!("the optimiser cannot be saved: {error:?}"));
                optimizer.save(path).map_err(wrong)
            })
        });
        course.store.write(&Snapshot {
            progress: course.progress.clone(),
            last: Box::new(|path| tensors::write(path, &self.editor.tensors())),
            is_best,
            optimizers: optimizers.collect(),
        })?;
        if is_best { self.publish(&course.store, &course.progress) } else { Ok(()) }
    }

    /// A result that may be an error, before which the state is saved: what was learnt until then is not lost.
    fn saved_if_wrong<T>(&self, course: &mut Course, result: Result<T>) -> Result<T> {
        if result.is_err() && course.progress.step > 0 {
            self.save(course, false)?;
        }
        result
    }

    /// The best editor, and what is to be said of the whole.
    fn end(&mut self, course: Course, watch: &mut dyn FnMut(&Event<'_>)) -> Result<Progress> {
        let progress = course.progress;
        if let Some(note) = self.editor.note() {
            watch(&Event::Note(&note));
        }
        if !progress.scores_vary && progress.without_gain > 0 {
            watch(&Event::Note(
                "all validations gave the same score, so none is the best: the archive holds the editor as it was after the last one",
            ));
        }
        if progress.best.is_some() {
            self.editor.restore(tensors::read(&Archive::network_path(&self.folder))?)?;
        }
        Ok(progress)
    }

    /// The probe table of records, edited as they are trained: each by itself, `edits_together` at once, or one on the other.
    ///
    /// # Errors
    /// A record that the model cannot take.
    pub fn evaluate(&self, records: &[EditRecord]) -> Result<Vec<ProbeRow>> {
        self.table(records, self.limits)
    }

    /// How many records one model takes in: those of an edit, or where edits follow each other those of a step.
    fn of_a_model(&self) -> usize {
        if self.editor.sequential() { self.settings.edits_per_step } else { self.settings.edits_together.most }
    }

    /// The adapted model with the edits of some records: one edit, or one after the other, `edits_together` records each.
    fn edited<'r>(&self, adapted: &Edited, records: impl Iterator<Item = &'r EditRecord>) -> Result<Edited> {
        let requests: Vec<EditRequest> = records.map(EditRequest::from).collect();
        let mut edited = adapted.clone();
        for together in requests.chunks(self.settings.edits_together.most) {
            // In the weights, so that a sequence costs the same at its end as at its beginning.
            edited = edited.without_changes();
            let edit = self.editor.edit(&edited, together)?;
            let ruined = !edit.is_finite();
            edited = edited.with(edit)?;
            // No edit can be made on a model that has no numbers left.
            if ruined {
                break;
            }
        }
        Ok(edited)
    }

    /// What the edits of the first records do to a text, edited as they are trained. The same edits give the same figures, however many
    /// threads there are.
    ///
    /// # Errors
    /// A record that the model cannot take.
    pub fn perplexity_ratio(&self, records: &[EditRecord], text: &WatchedText) -> Result<Option<PerplexityRatio>> {
        let Some(before) = text.unedited(&self.base)? else { return Ok(None) };
        let adapted = self.editor.adapted(&self.base)?;
        let models = records.chunks(self.of_a_model()).take(self.text_cases);
        let ratios =
            models.map(|records| Ok(text.edited(&self.base, &self.edited(&adapted, records.iter())?)? / before));
        Ok(PerplexityRatio::of(&ratios.collect::<Result<Vec<f64>>>()?))
    }

    fn table(&self, records: &[EditRecord], limits: Limits) -> Result<Vec<ProbeRow>> {
        let numbered: Vec<(usize, &EditRecord)> = records.iter().enumerate().collect();
        let models: Vec<&[(usize, &EditRecord)]> = numbered.chunks(self.of_a_model()).collect();
        let device = self.base.base().decoder.device();
        let adapted = self.editor.adapted(&self.base)?;
        // Each model is looked at by itself: how they are shared among threads changes nothing.
        let parts = models.chunks(models.len().div_ceil(parallel::parts(&device)).max(1));
        let tables = parallel::run(parts.collect(), |part| {
            let mut table = vec![];
            for records in part {
                let edited = self.edited(&adapted, records.iter().map(|(_, record)| *record))?;
                table.extend(probe_table(&self.base, &edited, records, limits)?);
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

/// What a validation is judged by: the mean over the kinds of records that occur of what can tell better from worse there, as far as
/// it is known.
///
/// ```text
/// plain facts                  edit success, generalisation, locality
/// records with a descriptor    success of the protocol `sentiment`, both accuracies of `balanced`, locality
/// ```
///
/// A whole reply is hardly ever the likeliest to the word, so that edit success says nothing of a sentiment; it is taken only where
/// a descriptor's record has no rivals to be judged by.
pub fn score(rows: &[ProbeRow]) -> f64 {
    let (described, plain): (Vec<ProbeRow>, Vec<ProbeRow>) = rows.iter().cloned().partition(|row| row.described);
    let facts = |rows: &[ProbeRow]| {
        let summary = summarize(rows);
        [summary.edit_success, summary.generalization, summary.locality]
    };
    let (told, labels) = (sentiment(&described, Side::After), balanced(&described, Side::After));
    let described = match (told.success, labels.in_scope) {
        (None, None) => facts(&described).to_vec(),
        _ => vec![told.success, labels.in_scope, labels.out_of_scope, locality(&described, None)],
    };
    let kinds = [facts(&plain).to_vec(), described].map(|figures| mean(figures.into_iter().flatten()));
    mean(kinds.into_iter().flatten()).unwrap_or(0.0)
}

/// What a validation on completions of passages is judged by: the shares of their tokens, for ten of them are hardly ever all right.
fn score_of_completions(rows: &[ProbeRow]) -> f64 {
    let figures = completion(rows);
    mean([figures.tokens, figures.cut_tokens].into_iter().flatten()).unwrap_or(0.0)
}

/// A score with what is kept of running text as one more figure beside three: 1 where its perplexity is as before, ½ where it has doubled.
fn with_text(score: f64, perplexity: Option<PerplexityRatio>) -> f64 {
    let kept = perplexity.map(|ratio| ratio.median.recip().min(1.0));
    kept.map_or(score, |kept| (3.0 * score + kept) / 4.0)
}

/// The mean of figures, of which one that is no number counts for nothing; none where there are none.
fn mean(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let known: Vec<f64> = figures.map(|figure| if figure.is_finite() { figure } else { 0.0 }).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
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
