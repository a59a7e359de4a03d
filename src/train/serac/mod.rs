//! The losses that train SERAC: balanced binary cross-entropy for the scope classifier; for the counterfactual model the negative
//! log-likelihood of answers behind their edit, and the KL divergence from the base on questions that the edit says nothing of.
//!
//! ```text
//! L = c_scope · (½ mean₊ −ln s(e, q) + ½ mean₋ −ln(1 − s(e, q)))
//!   + c_edit · −ln p_cf(y | e, q₊)  +  c_loc · KL(p_base(· | q₋) ‖ p_cf(· | e, q₋))
//! ```
//!
//! The two networks share no parameter: one backward pass trains both, or one alone.

mod mining;
mod scope;
mod start;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::TensorData;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use mining::Pool;
pub use mining::{Mined, MiningSearch};
pub use start::Training;

use super::learned::{Group, LearnedEditor, StepLoss, Watch};
use super::loss::{EditAndLocality, Reads, Weights, check_classes, check_weights, edit_and_locality, weight_of};
use crate::archive::LearnedEditorSettings;
use crate::data::record::{EditRecord, Probe};
use crate::data::source::{Source, draw_locality};
use crate::data::unicode;
use crate::edit::likelihood::check_targets;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::probes::Limits;
use crate::model::sentences::nearest;
use crate::model::tap::NoTap;
use crate::model::tokenizer::{Continuation, Tokenizer};
use crate::model::tokens::Tokens;
use crate::network::parameters;
use crate::network::serac::{ClassifierKind, NAME, Serac, SeracNetwork, SeracRoute, SeracSettings, TrainedNetworks};
use crate::sections::choice::{self, fields, refuse_at_zero};
use crate::sections::within;
use crate::{parallel, random};

/// `[loss]` of a SERAC config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeracLossSettings {
    /// Of the classifier, where it is trained.
    #[serde(flatten)]
    pub classifier: ClassifierLoss,
    /// Of the counterfactual model, where it is trained.
    #[serde(flatten)]
    pub counterfactual: CounterfactualLoss,
    /// In-scope questions a record.
    #[serde(default = "two")]
    pub in_scope: usize,
    /// Out-of-scope questions a record, of its own.
    #[serde(default = "two")]
    pub out_of_scope: usize,
    /// Weights of the classes of out-of-scope questions; a class not named weighs 1 where none is named, else 0.
    #[serde(default)]
    pub mix: BTreeMap<String, f64>,
}

/// Keys of the classifier's loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassifierLoss {
    /// c_scope.
    pub scope: f64,
    /// Hard negatives that are mined among the questions of other records.
    pub mined: Mined,
}

impl Default for ClassifierLoss {
    fn default() -> Self {
        ClassifierLoss { scope: 1.0, mined: Mined::default() }
    }
}

/// Keys of the counterfactual model's loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterfactualLoss {
    /// c_edit.
    pub edit: f64,
    /// c_loc; 0 for a counterfactual model of another vocabulary.
    pub locality: f64,
    /// On how many of a record's out-of-scope questions it is held to the base.
    pub held: usize,
    /// What a token of an answer's end weighs beside one of the answer. The full stop and the token that ends a text are the same
    /// behind every answer and learnt within a few steps; weighed like the answer, the two would be most of the loss of a short one.
    pub end: f64,
}

impl Default for CounterfactualLoss {
    fn default() -> Self {
        CounterfactualLoss { edit: 1.0, locality: 1.0, held: 2, end: 0.1 }
    }
}

fn two() -> usize {
    2
}

impl SeracLossSettings {
    /// From the section `[loss]` of a config whose section `[editor]` is `editor`; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, or of a loss that is not taken; a value of the wrong type.
    pub fn read(given: &toml::Table, editor: &SeracSettings, origin: &str) -> Result<Self> {
        let settings: SeracLossSettings = choice::read("loss", given, origin)?;
        for (part, keys) in [
            (TrainedNetworks::Classifier, fields::<ClassifierLoss>()),
            (TrainedNetworks::Counterfactual, fields::<CounterfactualLoss>()),
        ] {
            editor.refuse_untrained("loss", given, part, keys)?;
        }
        let SeracLossSettings { classifier, counterfactual, .. } = &settings;
        refuse_at_zero("loss", given, ("edit", counterfactual.edit), &["end"])?;
        refuse_at_zero("loss", given, ("locality", counterfactual.locality), &["held"])?;
        refuse_at_zero("loss", given, ("out_of_scope", settings.out_of_scope as f64), &["mix"])?;
        if let Some(given) = given.get("mined").and_then(toml::Value::as_table) {
            let count = classifier.mined.count as f64;
            refuse_at_zero("loss.mined", given, ("count", count), fields::<MiningSearch>())?;
        }
        Ok(settings)
    }
}

/// SERAC with what it learns from.
#[derive(Clone)]
pub struct SeracTrainer {
    serac: Serac,
    base: Edited,
    loss: SeracLossSettings,
    learning_rate: f64,
    pool: Arc<Pool>,
    /// The fingerprint of the archive whose networks it began with.
    start: Option<String>,
    /// The networks as they answer, put together when they are asked for.
    route: Arc<Mutex<Option<Arc<SeracRoute>>>>,
}

/// The questions that a record is trained on in a step.
struct RecordQuestions {
    statement: String,
    subject: Option<String>,
    in_scope: Vec<(String, String)>,
    out_of_scope: Vec<Probe>,
    mined: Vec<Probe>,
    /// What stands between its questions and their answers, where the record says so.
    separator: Option<String>,
}

/// Questions in scope with their answers: the edit's own, its rephrases, and its consequences, which have answers of their own.
fn in_scope(record: &EditRecord) -> Vec<(&str, &str)> {
    let own =
        record.rephrases.iter().chain([&record.prompt]).map(|prompt| (prompt.as_str(), record.target_new.as_str()));
    let further = record.portability.values().flatten();
    own.chain(further.filter_map(|probe| Some((probe.prompt.as_str(), probe.target.as_deref()?)))).collect()
}

impl SeracTrainer {
    /// A trainer of `serac` on `base`.
    ///
    /// # Errors
    /// Numbers out of range; a KL loss between models of different vocabularies.
    pub fn new(mut serac: Serac, base: Edited, loss: SeracLossSettings, learning_rate: f64) -> Result<Self> {
        let (scope, answers) = (&loss.classifier, &loss.counterfactual);
        for (key, value) in
            [("edit", answers.edit), ("locality", answers.locality), ("end", answers.end), ("scope", scope.scope)]
        {
            within(&format!("loss.{key}"), value, 0.0, 1e9)?;
        }
        within("loss.in_scope", loss.in_scope as f64, 1.0, 1e4)?;
        within("loss.out_of_scope", loss.out_of_scope as f64, 0.0, 1e4)?;
        within("loss.mined.among", scope.mined.search.among as f64, 1.0, 1e6)?;
        within("loss.mined.temperature", scope.mined.search.temperature, 1e-6, 1e6)?;
        check_weights(&loss.mix)?;
        let vocabularies = [&serac.pretrained, base.base()].map(|model| model.decoder.spec.outputs());
        let alike = vocabularies[0] == vocabularies[1]
            && serac.pretrained.tokenizer.fingerprint()? == base.base().tokenizer.fingerprint()?;
        if answers.locality > 0.0 && !alike && serac.settings.train != TrainedNetworks::Classifier {
            return Err(Error::Config(format!(
                "loss.locality = {}: the KL loss wants equal vocabularies, the counterfactual model has {} tokens of its own, the model {}; \
                 set loss.locality = 0 and leave loss.held out",
                answers.locality, vocabularies[0], vocabularies[1]
            )));
        }
        serac.network = parameters::with_stable_ids(serac.network);
        Ok(SeracTrainer { serac, base, loss, learning_rate, pool: Arc::default(), start: None, route: Arc::default() })
    }

    /// The networks.
    pub fn serac(&self) -> &Serac {
        &self.serac
    }

    /// The networks as they answer.
    ///
    /// # Errors
    /// A model that cannot be put together.
    pub fn route(&self) -> Result<Arc<SeracRoute>> {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        match route.as_ref() {
            Some(route) => Ok(route.clone()),
            None => Ok(route.insert(self.serac.route()?).clone()),
        }
    }

    fn weight(&self, class: &str) -> f64 {
        weight_of(&self.loss.mix, class)
    }

    fn trains(&self, part: TrainedNetworks) -> bool {
        self.serac.settings.trains(part)
    }

    /// The questions that some records are trained on in a step.
    fn ask(&self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<Vec<RecordQuestions>> {
        let mined = self.pool.mine(records, &self.loss.classifier.mined, &self.serac.reader, rng)?;
        let asked = records.iter().zip(mined).map(|(record, mined)| {
            let mut pool = in_scope(record);
            let in_scope = (0..self.loss.in_scope.min(pool.len())).map(|_| {
                let (prompt, target) = pool.swap_remove(rng.random_range(0..pool.len()));
                (prompt.to_owned(), target.to_owned())
            });
            let in_scope = in_scope.collect();
            let near = draw_locality(record, self.loss.out_of_scope, |class| self.weight(class), rng);
            RecordQuestions {
                statement: EditRequest::from(record).statement(),
                subject: record.subject.clone(),
                in_scope,
                out_of_scope: near.into_iter().cloned().collect(),
                mined,
                separator: record.separator.clone(),
            }
        });
        Ok(asked.collect())
    }

    /// What some records add to a mean loss over `records` of them.
    fn part(&self, serac: &Serac, asked: &[RecordQuestions], records: usize) -> Result<SeracLossShare> {
        let mut losses = vec![];
        let mut figures = [0.0; 3];
        let share = asked.len() as f64 / records as f64;
        if self.trains(TrainedNetworks::Classifier) && self.loss.classifier.scope > 0.0 {
            let loss = match serac.settings.classifier.kind {
                ClassifierKind::Embedding => scope::by_embedding(serac, asked)?,
                ClassifierKind::Cross => scope::by_pairs(serac, asked)?,
            };
            figures[0] = share * loss.clone().into_data().iter::<f64>().sum::<f64>();
            losses.push(loss.mul_scalar(share * self.loss.classifier.scope));
        }
        let CounterfactualLoss { edit, locality, .. } = self.loss.counterfactual;
        if self.trains(TrainedNetworks::Counterfactual) && (edit > 0.0 || locality > 0.0) {
            let EditAndLocality { surrogate, nll, kl } = self.counterfactual(serac, asked, records)?;
            (figures[1], figures[2]) = (nll, kl);
            losses.push(surrogate);
        }
        let gradients = match losses.into_iter().reduce(|a, b| a + b) {
            Some(loss) => GradientsParams::from_grads(loss.backward(), &serac.network),
            None => GradientsParams::new(),
        };
        Ok(SeracLossShare { gradients, figures })
    }

    /// Sees whether the counterfactual model can read an edit with a question and its answer, and the answer's end where it learns it.
    fn answerable(&self, statement: &str, question: &str, answer: &str, learnt: bool) -> Result<()> {
        let Serac { settings, pretrained, .. } = &self.serac;
        let asked = settings.counterfactual.prompt(statement, question);
        let context = pretrained.decoder.spec.context;
        // No token is shorter than a byte; what stands around a text are a token or two.
        if asked.len() + answer.len() + 4 <= context {
            return Ok(());
        }
        let tokens = match answer.is_empty() {
            true => pretrained.tokenizer.encode_prompt(&asked)?.len(),
            false => self.with_end(&asked, answer, None, learnt)?.0.ids.len() - 1,
        };
        if tokens > context { Err(too_long(tokens, context, "counterfactual model")) } else { Ok(()) }
    }

    /// Sees whether the classifier can read an edit, with a question where it reads pairs.
    fn readable(&self, statement: &str, question: &str) -> Result<()> {
        let Serac { settings, reader, .. } = &self.serac;
        let second = (settings.classifier.kind == ClassifierKind::Cross).then_some(question);
        let Some(context) = reader.context().filter(|context| statement.len() + question.len() + 4 > *context) else {
            return Ok(());
        };
        let tokens = reader.row(statement, second)?.0.len();
        if tokens > context { Err(too_long(tokens, context, "classifier")) } else { Ok(()) }
    }

    /// A prompt with its answer, and with the answer's end where that is learnt too: a full stop, and the token that ends a text. Also
    /// how many of the target's tokens are the answer's own.
    fn with_end(
        &self,
        prompt: &str,
        answer: &str,
        between: Option<&str>,
        learnt: bool,
    ) -> Result<(Continuation, usize)> {
        let Serac { pretrained, .. } = &self.serac;
        let mut text = pretrained.tokenizer.continuation(prompt, answer, between)?;
        let own = text.target().len();
        // A label has no end.
        let learnt = learnt && pretrained.tokenizer.labels().is_none();
        if learnt && !answer.ends_with(['.', '!', '?']) {
            text.ids.extend(pretrained.tokenizer.encode_end(".")?);
        }
        text.ids.extend(pretrained.stop_tokens().first().filter(|_| learnt));
        Ok((text, own))
    }

    /// The counterfactual model's loss.
    fn counterfactual(&self, serac: &Serac, asked: &[RecordQuestions], records: usize) -> Result<EditAndLocality> {
        let tokenizer = &serac.pretrained.tokenizer;
        let settings = &serac.settings.counterfactual;
        let (share, context) = (1.0 / records as f64, serac.pretrained.decoder.spec.context);
        let mut rows: Vec<Vec<u32>> = vec![];
        let (mut scope, mut near) = (Reads::default(), Reads::default());
        let mut targets = vec![];
        let (mut base_rows, mut base_cells): (Vec<Vec<u32>>, Vec<(usize, usize)>) = (vec![], vec![]);
        for asked in asked {
            let between = asked.separator.as_deref();
            for (question, answer) in &asked.in_scope {
                let prompt = settings.prompt(&asked.statement, question);
                let (text, own) = self.with_end(&prompt, answer, between, true)?;
                let weight = share / (asked.in_scope.len() * own) as f64;
                scope.cells.extend(text.reads().map(|cell| (rows.len(), cell)));
                let end_weight = self.loss.counterfactual.end * weight;
                scope.weights.extend((0..text.target().len()).map(|at| if at < own { weight } else { end_weight }));
                targets.extend(text.target());
                rows.push(text.ids[..text.ids.len() - 1].to_vec());
            }
            if self.loss.counterfactual.locality == 0.0 {
                continue;
            }
            let texts = asked.out_of_scope.iter().take(self.loss.counterfactual.held).map(|probe| {
                let behind = settings.prompt(&asked.statement, &probe.prompt);
                Ok((text_of(tokenizer, &probe.prompt, probe, between)?, text_of(tokenizer, &behind, probe, between)?))
            });
            let texts = texts.collect::<Result<Vec<_>>>()?;
            // An answer that is tokenised otherwise behind the edit cannot be compared; nor can a question about another record that
            // is too long behind this one's edit.
            let comparable = |(alone, behind): &(Continuation, Continuation)| {
                alone.target() == behind.target() && (behind.ids.len() - 1).max(behind.prompt) <= context
            };
            let texts: Vec<_> = texts.into_iter().filter(comparable).collect();
            let cells: usize = texts.iter().map(|(alone, _)| alone.target().len().max(1)).sum();
            for (alone, behind) in texts {
                let reads = |text: &Continuation| text.prompt - 1..(text.ids.len() - 1).max(text.prompt);
                near.cells.extend(reads(&behind).map(|cell| (rows.len(), cell)));
                near.weights.extend(reads(&behind).map(|_| share / cells as f64));
                base_cells.extend(reads(&alone).map(|cell| (base_rows.len(), cell)));
                let without_last = |text: &Continuation| text.ids[..reads(text).end].to_vec();
                rows.push(without_last(&behind));
                base_rows.push(without_last(&alone));
            }
        }
        check_targets(&Edited::new(serac.pretrained.clone()), &targets)?;
        let tokens = Tokens::new(rows);
        let tuned = &serac.network.counterfactual;
        let decoder = tuned.decoder(&serac.pretrained.decoder);
        let hidden = decoder.embed(&tokens, &mut tuned.tap())?;
        let hidden = decoder.blocks(hidden, 0..decoder.spec.depth(), tokens.span(), None, &mut tuned.tap())?;
        let reads: Vec<_> = scope.cells.iter().chain(&near.cells).copied().collect();
        let base = match base_rows.is_empty() {
            true => None,
            false => {
                let tokens = Tokens::new(base_rows);
                let hidden = self.base.embed(&tokens, &mut NoTap)?;
                let hidden = self.base.blocks(hidden, 0..self.base.layers(), tokens.span(), None, &mut NoTap)?;
                Some(self.base.head(hidden, &base_cells))
            }
        };
        let (edit, locality) = (self.loss.counterfactual.edit, self.loss.counterfactual.locality);
        let weights = Weights { edit, locality, ..Weights::default() };
        let loss = decoder.head_with_gradient(hidden, &reads, |logits| {
            Ok(edit_and_locality(logits, (&targets, &scope.weights), base, &near.weights, weights))
        })?;
        Ok(loss.into())
    }
}

fn too_long(tokens: usize, context: usize, network: &str) -> Error {
    Error::Input(format!(
        "edit, question and answer are {tokens} tokens together, more than the {network}'s context of {context}; shorten it or \
         leave it out"
    ))
}

/// A question with its answer, where one is known; the question alone is read at its end.
fn text_of(tokenizer: &Tokenizer, prompt: &str, probe: &Probe, between: Option<&str>) -> Result<Continuation> {
    match &probe.target {
        Some(target) => tokenizer.continuation(prompt, target, between),
        None => {
            let ids = tokenizer.encode_prompt(prompt)?;
            let prompt = ids.len();
            Ok(Continuation { ids, prompt, apart: false })
        }
    }
}

/// The share of some records in the loss and in its gradient; the figures are scope, edit NLL and KL.
struct SeracLossShare {
    gradients: GradientsParams,
    figures: [f64; 3],
}

/// Parts of a batch that run side by side: questions of a part are each other's negatives, so there must be as many on every machine.
const PARTS: usize = 2;

/// Records of a part at least: fewer have too few negatives.
const LEAST: usize = 4;

/// Questions of other records that an edit's scope is examined on: of so many nearest, so many that are about another subject, so many
/// of these are drawn. A record has about four out-of-scope questions of its own, so that both kinds count alike; drawn from the
/// nearest twenty, they are hard without all being the same fact again.
const NEAR: [usize; 3] = [40, 20, 4];

impl LearnedEditor for SeracTrainer {
    type Network = SeracNetwork;

    fn network(&self) -> &SeracNetwork {
        &self.serac.network
    }

    fn set_network(&mut self, network: SeracNetwork) {
        self.serac.network = network;
        self.route = Arc::default();
    }

    fn groups(&self) -> Vec<Group> {
        let settings = &self.serac.settings;
        vec![
            Group {
                name: "classifier",
                learning_rate: settings.classifier.learning.learning_rate.unwrap_or(self.learning_rate),
                decays: true,
                norm: "gradient_norm",
                takes: |path| path.starts_with("classifier."),
            },
            Group {
                name: "counterfactual model",
                learning_rate: settings.counterfactual.learning.learning_rate.unwrap_or(self.learning_rate),
                decays: true,
                norm: "gradient_norm_counterfactual",
                takes: |_| true,
            },
        ]
    }

    fn check(&self, record: &EditRecord) -> Result<()> {
        let statement = EditRequest::from(record).statement();
        let learnt = in_scope(record).into_iter().map(|(question, answer)| (question, answer, true));
        let near = record.locality.values().chain(record.portability.values()).flatten();
        let near = near.flat_map(|probe| {
            let answers = [probe.target.as_deref(), probe.rival.as_deref()];
            answers.into_iter().map(move |answer| (probe.prompt.as_str(), answer.unwrap_or_default(), false))
        });
        let old = record.target_true.as_deref().unwrap_or_default();
        let own = record.rephrases.iter().chain([&record.prompt]).map(|question| (question.as_str(), old, false));
        for (question, answer, learnt) in learnt.chain(own).chain(near) {
            self.answerable(&statement, question, answer, learnt)?;
            self.readable(&statement, question)?;
        }
        Ok(())
    }

    fn made_of(&self) -> BTreeMap<String, String> {
        let SeracSettings { classifier, counterfactual, .. } = &self.serac.settings;
        let named = [
            ("editor.classifier.encoder", &classifier.fingerprint),
            ("editor.counterfactual.model", &counterfactual.fingerprint),
            ("editor.start", &self.start),
        ];
        named.into_iter().filter_map(|(key, found)| Some((key.to_owned(), found.clone()?))).collect()
    }

    fn prepare(&mut self, source: &Source, _draws: u64, watch: Watch<'_>) -> Result<()> {
        check_classes(&self.loss.mix, source)?;
        let mined = &self.loss.classifier.mined;
        if mined.count == 0 || !self.trains(TrainedNetworks::Classifier) {
            return Ok(());
        }
        self.pool = Arc::new(Pool::build(source, mined.search.pool, &self.serac.reader, watch)?);
        Ok(())
    }

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss> {
        let asked = self.ask(records, rng)?;
        let parts: Vec<&[RecordQuestions]> = asked.chunks(asked.len().div_ceil(PARTS).max(LEAST)).collect();
        // Graphs that share a leaf share a tape, and the first backward pass consumes it: each part has leaves of its own.
        let device = self.serac.network.classifier.head.weight.val().device();
        let own = || Serac { network: self.serac.network.clone().fork(&device), ..self.serac.clone() };
        let parts = parts.into_iter().map(|part| (own(), part)).collect();
        let shares = parallel::run(parts, |(serac, part)| self.part(&serac, part, records.len()))?;
        let mut sum = GradientsAccumulator::<SeracNetwork>::new();
        let mut figures = [0.0; 3];
        for share in shares {
            sum.accumulate(&self.serac.network, share.gradients);
            figures.iter_mut().zip(share.figures).for_each(|(sum, figure)| *sum += figure);
        }
        let [scope, nll, kl] = figures;
        let CounterfactualLoss { edit, locality, .. } = self.loss.counterfactual;
        let total = self.loss.classifier.scope * scope + edit * nll + locality * kl;
        let figures = vec![("loss", total), ("scope", scope), ("edit_nll", nll), ("locality_kl", kl)];
        Ok(StepLoss { gradients: sum.grads(), figures })
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.route()?.edit(model, requests, json!({"method": NAME}))
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.serac.tensors()
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.serac = self.serac.clone().restored(tensors)?;
        self.route = Arc::default();
        Ok(())
    }

    fn settings(&self) -> LearnedEditorSettings {
        LearnedEditorSettings::Serac(self.serac.settings.clone())
    }

    fn neighbours(&self) -> usize {
        self.loss.out_of_scope
    }

    /// The classifier's accuracy on each record's edit: questions in scope (its own, rephrases, consequences), and out of it (its
    /// locality prompts, and mined ones among the questions of the other records). Balanced: the mean of the two shares.
    fn examine(&self, records: &[EditRecord], _limits: Limits) -> Result<Vec<(&'static str, f64)>> {
        let route = self.route()?;
        let texts: Vec<&str> = records.iter().map(|record| record.prompt.as_str()).collect();
        let near = match records.len() {
            0 => vec![],
            count => nearest(self.serac.reader.embed(&texts)?, &self.serac.reader.embed(&texts)?, count.min(NEAR[0])),
        };
        let (mut right, mut all) = ([0usize; 2], [0usize; 2]);
        for (number, (record, near)) in records.iter().zip(near).enumerate() {
            let request = EditRequest::from(record);
            let about = |text: &str| record.subject.as_ref().is_some_and(|subject| unicode::contains(text, subject));
            let mined =
                near.iter().map(|&(other, _)| texts[other]).filter(|text| !about(text) && *text != record.prompt);
            let statement = request.statement();
            let mined = mined.filter(|text| self.readable(&statement, text).is_ok());
            let mined: Vec<&str> = mined.take(NEAR[1]).collect();
            let mut rng = random::stream(0, "examine", number as u64);
            let mined = mined.sample(&mut rng, NEAR[2]).copied();
            let inside: Vec<String> = in_scope(record).into_iter().map(|(prompt, _)| prompt.to_owned()).collect();
            let outside = record.locality.values().flatten().map(|probe| probe.prompt.as_str()).chain(mined);
            let outside: Vec<String> = outside.map(str::to_owned).collect();
            let edit = route.edit(&self.base, std::slice::from_ref(&request), json!({}))?;
            let Some(memory) = edit.memory() else { continue };
            for (part, prompts) in [inside, outside].into_iter().enumerate() {
                if prompts.is_empty() {
                    continue;
                }
                let scopes = route.scopes(std::slice::from_ref(&request), &memory.keys, &prompts)?;
                let said_in = |scope: f64| scope > self.serac.settings.hard.threshold;
                right[part] += scopes.iter().filter(|(_, scope)| said_in(*scope) == (part == 0)).count();
                all[part] += scopes.len();
            }
        }
        let share = |part: usize| right[part] as f64 / all[part].max(1) as f64;
        Ok(vec![("scope_accuracy", 0.5 * (share(0) + share(1))), ("scope_in", share(0)), ("scope_out", share(1))])
    }
}
