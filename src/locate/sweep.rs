//! The sweep: each fact of each problem, edited by each editor at each layer. Every edit is a case of a comparison, in a folder of its own for each
//! problem, editor and layer, so that what was stopped or killed goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::apply::Mode;
use crate::compare::compared_editor::ComparedEditor;
use crate::compare::layout::Run;
use crate::compare::shard::Shard;
use crate::compare::{Looks, Watch, run as run_cases};
use crate::config::locate::{Config, Swept};
use crate::config::{
    self,
    compare::{self, Compare, Competitor},
};
use crate::data::objective::{Hidden, Objective};
use crate::data::record::EditRecord;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::WatchedText;
use crate::evaluate::probes::Limits;
use crate::evaluate::problem::{Problem, is_known};
use crate::files;
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::Place;
use crate::plan::{OfEditor, Work};
use crate::report::table::counted;
use crate::trace::folder::{Traces, begun};
use crate::trace::{Restored, check_causal, window};

/// A sweep that is ready to run: facts that the model knows, posed as problems, and all editors at all layers.
pub struct Sweep<'a> {
    config: &'a Config,
    place: &'a Path,
    base: Edited,
    /// The facts that the model knows.
    pub facts: Vec<EditRecord>,
    /// How many facts the model was asked for them and cannot read: too long, say.
    pub unread: usize,
    /// The problems, each with its records.
    pub posed: Vec<(Problem, Vec<EditRecord>)>,
    /// The layers that are edited.
    pub layers: Vec<usize>,
    /// The noise of tracing, reversal and forcing.
    pub noise: Hidden,
}

/// One cell of a sweep.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The problem.
    pub problem: Problem,
    /// The editor's name.
    pub editor: String,
    /// The layer.
    pub layer: usize,
}

impl Cell {
    /// The folder of its cases.
    pub fn name(&self) -> String {
        format!("{}.{}.L{:02}", self.problem.name(), self.editor, self.layer)
    }
}

impl<'a> Sweep<'a> {
    /// Finds the facts that the model knows among `candidates`, and poses the problems.
    ///
    /// # Errors
    /// An encoder-decoder; no fact is left; a layer that does not exist; a window that there is no room for.
    pub fn new(config: &'a Config, place: &'a Path, base: &Edited, candidates: &[EditRecord]) -> Result<Self> {
        let layers = layers(config, &base.base().decoder.spec)?;
        Sweep::check_files(config, place, base.base(), &layers)?;
        let (mut facts, mut unread) = (vec![], 0);
        for fact in candidates.iter().filter(|fact| fact.subject.is_some() && fact.also.is_empty()) {
            if facts.len() == config.data.limit {
                break;
            }
            match is_known(base, fact, config.data.known) {
                Ok(true) => facts.push(fact.clone()),
                Ok(false) => {}
                Err(Error::Input(why)) => {
                    unread += 1;
                    tracing::warn!("fact {} is left out: {why}", fact.id);
                }
                Err(error) => return Err(error),
            }
        }
        if facts.is_empty() {
            let read = if unread == 0 { String::new() } else { format!("cannot read {unread} and ") };
            let message = format!(
                "{}: no fact is left: of {} the model {read}knows none (the true answer in what it writes, with a probability above {})",
                config.data.facts,
                counted(candidates.len(), "record"),
                config.data.known
            );
            return Err(Error::Input(message));
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = facts.iter().find(|fact| !ids.insert(&fact.id)) {
            return Err(Error::Input(format!(
                "{}: two facts have the id {}; give each its own",
                config.data.facts, twice.id
            )));
        }
        let requests: Vec<EditRequest> = facts.iter().map(EditRequest::from).collect();
        let sigma = config.locate.noise.for_requests(base, &requests)?;
        let noise = Hidden { sigma, draws: config.locate.draws, seed: config.locate.seed };
        let pose = |&problem: &Problem| -> Result<(Problem, Vec<EditRecord>)> {
            let posed = facts.iter().map(|fact| problem.pose(base, fact, noise)).collect::<Result<Vec<_>>>()?;
            Ok((problem, posed.into_iter().flatten().collect()))
        };
        let posed = config.locate.problems.iter().map(pose).collect::<Result<Vec<_>>>()?;
        for (problem, records) in posed.iter().filter(|(_, records)| records.len() < facts.len()) {
            tracing::warn!("{}: {} of {} can be posed", problem.title(), records.len(), counted(facts.len(), "fact"));
        }
        Ok(Sweep { config, place, base: base.clone(), facts, unread, posed, layers, noise })
    }

    /// Sees that every editor can be made, at all its layers, and takes every problem's objective, before hours of others' work.
    ///
    /// # Errors
    /// A config or statistics that are missing or wrong, an objective that an editor does not take; the editor is named.
    pub fn check(&self) -> Result<()> {
        for (problem, records) in &self.posed {
            for swept in &self.config.editors {
                let cell = Cell { problem: *problem, editor: swept.name.clone(), layer: self.layers[0] };
                let config = self.comparison(swept, &cell);
                let opened =
                    ComparedEditor::open(&config.editors[0], self.place, self.base.base(), &config.model.path)?;
                let (editor, _) = opened.editor(&config, self.base.base(), records, &[])?;
                let objective = records.first().and_then(|record| record.objective).unwrap_or(Objective::Raise);
                if !editor.takes(&objective) {
                    let message = format!(
                        "editors: {} takes no objective \"{}\", which {} wants; fine_tuning, lora, rome and memit do",
                        swept.name,
                        objective.name(),
                        problem.title()
                    );
                    return Err(Error::Config(message));
                }
            }
        }
        Ok(())
    }

    /// Sees that every editor's config reads, and that there are statistics of all layers that it is going to edit.
    ///
    /// # Errors
    /// What is missing or wrong; the command that makes statistics names all layers.
    pub fn check_files(config: &Config, place: &Path, model: &Arc<Model>, layers: &[usize]) -> Result<()> {
        let count = model.decoder.spec.depth();
        for swept in &config.editors {
            if swept.width > count {
                let (name, width) = (&swept.name, swept.width);
                return Err(Error::Config(format!(
                    "editors: {name} is to edit {width} layers, and the model has {count}"
                )));
            }
            let path = place.join(&swept.config);
            if config::apply::Config::read(&path, &swept.set)?.editor.layers().is_empty() {
                let message = format!("editors: {} ({}) has no layers to sweep", swept.name, path.display());
                return Err(Error::Config(message));
            }
            let all: BTreeSet<usize> = layers.iter().flat_map(|&layer| window(layer, swept.width, count)).collect();
            let all: Vec<usize> = all.into_iter().collect();
            let sets = [swept.set.clone(), vec![format!("editor.layers={all:?}")]].concat();
            let settings = config::apply::Config::read(&path, &sets)?.editor;
            settings.check(model, &config.model.path, path.parent().unwrap_or(Path::new("")))?;
        }
        Ok(())
    }

    /// Takes a folder, or goes on in one that holds a part of this very sweep.
    ///
    /// # Errors
    /// A folder with results of another sweep, or of something else.
    pub fn begin(&self, folder: &Path) -> Result<()> {
        let facts = serde_json::to_vec(&self.facts).unwrap_or_default();
        let Config { model, data, locate, editors } = self.config;
        let params = json!({
            "format": "sweep/1",
            "fingerprint": self.base.base().fingerprint,
            "dtype": model.dtype,
            "facts": self.facts.len(),
            "hash": blake3::hash(&facts).to_hex()[..16],
            "data": { "rephrases": data.rephrases, "per_class": data.per_class },
            "locate": locate,
            "editors": editors,
        });
        let path = folder.join("sweep.json");
        if begun(&path, "sweep", &params)? {
            return Ok(());
        }
        let own: BTreeSet<String> = self.cells().iter().map(Cell::name).collect();
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let strange = entries.map(|entry| entry.path()).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Run::any(path) && !own.contains(name.as_ref())
        });
        if let Some(strange) = strange {
            let message = "results that are none of this sweep; give another --out";
            return Err(Error::file(strange, message));
        }
        files::write(&path, format!("{params:#}\n").as_bytes())
    }

    /// What the editor holds that takes most, at the lowest layer, whose edits have most above them. What is laid over its config for each problem is read.
    ///
    /// # Errors
    /// A config that is missing or wrong, an encoder-decoder, layers that the model does not have.
    pub fn held(config: &Config, place: &Path, work: &Work<'_>) -> Result<OfEditor> {
        let count = work.spec.depth();
        let lowest = layers(config, work.spec)?.into_iter().min().unwrap_or(0);
        let hidden = config.locate.problems.contains(&Problem::Forcing);
        let work = Work { draws: if hidden { config.locate.draws } else { 1 }, ..*work };
        let mut most = OfEditor::default();
        for swept in &config.editors {
            let layers: Vec<usize> = window(lowest, swept.width, count).collect();
            for &problem in &config.locate.problems {
                let sets = [swept.sets(problem), vec![format!("editor.layers={layers:?}")]].concat();
                let held = config::apply::Config::read(&place.join(&swept.config), &sets)?.editor.held(&work, 1)?;
                let taken = |held: OfEditor| held.kept + work.threads as u64 * held.edit;
                if taken(held) > taken(most) {
                    most = held;
                }
            }
        }
        Ok(most)
    }

    /// How many layers the model has.
    pub fn depth(&self) -> usize {
        self.base.layers()
    }

    /// All cells, problem by problem.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![];
        for (problem, _) in self.posed.iter().filter(|(_, records)| !records.is_empty()) {
            for editor in &self.config.editors {
                let cell = |&layer: &usize| Cell { problem: *problem, editor: editor.name.clone(), layer };
                cells.extend(self.layers.iter().map(cell));
            }
        }
        cells
    }

    /// Edits in all.
    pub fn edits(&self) -> usize {
        self.posed.iter().map(|(_, records)| records.len()).sum::<usize>()
            * self.config.editors.len()
            * self.layers.len()
    }

    /// Traces the facts into a folder, and gives it. `watch` is called after each.
    ///
    /// # Errors
    /// As [`Traces::begin`] and [`Traces::trace`].
    pub fn trace(&self, folder: &Path, watch: &dyn Fn()) -> Result<Traces> {
        let requests = self.facts.iter().map(|fact| {
            let truth = fact.target_true.clone().unwrap_or_default();
            EditRequest { target_new: truth, ..EditRequest::from(fact) }
        });
        let requests: Vec<EditRequest> = requests.collect();
        let digest = blake3::hash(serde_json::to_string(&requests).unwrap_or_default().as_bytes()).to_hex();
        let restored = restored(self.config);
        let params = json!({
            "format": "trace/1",
            "fingerprint": self.base.base().fingerprint,
            "facts": digest[..16],
            "noise": { "sigma": self.noise.sigma, "draws": self.noise.draws, "seed": self.noise.seed },
            "windows": restored.windows,
            "dtype": self.config.model.dtype,
        });
        let traces = Traces::begin(folder, &params)?;
        for (number, request) in requests.iter().enumerate() {
            if !traces.path(number).is_file() {
                traces.trace(number, &self.base, request, self.noise, &restored)?;
            }
            watch();
        }
        Ok(traces)
    }

    /// Runs the cases of one cell that are left, and gives where they lie.
    ///
    /// # Errors
    /// A config that is wrong; files that cannot be written.
    pub fn run(&self, cell: &Cell, folder: &Path, watch: Watch<'_>) -> Result<PathBuf> {
        let Some(swept) = self.config.editors.iter().find(|swept| swept.name == cell.editor) else {
            return Err(Error::Config(format!("there is no editor {}", cell.editor)));
        };
        let records = self.posed.iter().find(|(problem, _)| *problem == cell.problem);
        let records: &[EditRecord] = records.map_or(&[], |(_, records)| records);
        let config = self.comparison(swept, cell);
        let model: &Arc<_> = self.base.base();
        let competitor = &config.editors[0];
        let (editor, params) = ComparedEditor::open(competitor, self.place, model, &config.model.path)?.editor(
            &config,
            model,
            records,
            &[],
        )?;
        let run = Run::shared(&folder.join(&competitor.name), params)?;
        run.cases()?;
        let looks = Looks {
            limits: Limits { rephrases: config.data.rephrases, per_class: config.data.per_class, rivals: false },
            generate: 0,
            answer_tokens: None,
            texts: config.compare.texts,
            perplexity: 0,
            text: &WatchedText::default(),
            seed: config.compare.seed,
            memory_before: None,
        };
        run_cases(editor.as_ref(), &self.base, records, Mode::Single, looks, (&run, Shard::default()), watch)?;
        Ok(run.folder)
    }

    /// A comparison of one editor at one layer.
    fn comparison(&self, swept: &Swept, cell: &Cell) -> compare::Config {
        let data = &self.config.data;
        let layers: Vec<usize> = window(cell.layer, swept.width, self.base.layers()).collect();
        let mut set = swept.sets(cell.problem);
        set.push(format!("editor.layers={layers:?}"));
        compare::Config {
            model: self.config.model.clone(),
            data: compare::Data {
                cases: data.facts.clone(),
                chat: false,
                system: None,
                separator: None,
                limit: 0,
                rephrases: data.rephrases,
                per_class: data.per_class,
                plain_questions: false,
                note: String::new(),
            },
            compare: Compare {
                seed: self.config.locate.seed,
                texts: self.config.locate.essence,
                perplexity: Some(0),
                ..Compare::default()
            },
            editors: vec![Competitor {
                name: cell.name(),
                archive: None,
                config: Some(swept.config.clone()),
                set,
                curve: false,
            }],
        }
    }
}

/// The layers that are swept.
///
/// # Errors
/// A model that cannot be traced; a layer that does not exist; a window that there is no room for.
fn layers(config: &Config, spec: &DecoderSpec) -> Result<Vec<usize>> {
    check_causal(spec)?;
    let count = spec.layers;
    let layers = if config.locate.layers.is_empty() { (0..count).collect() } else { config.locate.layers.clone() };
    if let Some(layer) = layers.iter().find(|&&layer| layer >= count) {
        return Err(Error::Config(format!(
            "locate.layers: the model has no layer {layer}; it has layers 0 to {}",
            count - 1
        )));
    }
    restored(config).check(count)?;
    Ok(layers)
}

fn restored(config: &Config) -> Restored {
    Restored { states: false, places: vec![Place::MlpOut], windows: config.locate.windows.clone() }
}
