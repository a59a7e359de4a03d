//! The loss that trains MEND (Mitchell et al., 2022, equation 5):
//!
//! ```text
//! L = c_edit · −ln p(target | rephrase; W̃) + c_loc · KL(p(· | x_loc; W) ‖ p(· | x_loc; W̃)),   W̃ = W − α ũᵀδ̃
//! ```
//!
//! u and δ are constants of the outer loop, so one backward pass through the edited layers, with the deltas as factors
//! `(x·A)·B`, gives the network's gradient exactly; no second derivative is needed.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::below::Below;
use super::learned::{self, Group, LearnedEditor, Watch};
use super::loss::{Loss, Reads, edit_and_locality};
use crate::archive::EditorSettings;
use crate::config::within;
use crate::data::record::{EditRecord, Probe};
use crate::data::source::{OTHER_RECORDS, Source, draw_locality};
use crate::data::world::SAME_OLD_OBJECT;
use crate::edit::score::check_targets;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::tap::NoTap;
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::network::mend::{Captured, Mend, MendNetwork, without_last};
use crate::network::parameters;
use crate::parallel;

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSettings {
    /// c_edit.
    #[serde(default = "edit")]
    pub edit: f64,
    /// c_loc.
    #[serde(default = "locality")]
    pub locality: f64,
    /// Where the edit loss is taken.
    #[serde(default)]
    pub scope: Scope,
    /// In-scope prompts a record.
    #[serde(default = "one")]
    pub in_scope: usize,
    /// Out-of-scope prompts a record.
    #[serde(default = "one")]
    pub out_of_scope: usize,
    /// Which tokens of an out-of-scope text the KL term reads.
    #[serde(default)]
    pub kl: KlTokens,
    /// Weights of the classes of out-of-scope prompts; a class not named weighs 1 where none is named, else 0.
    #[serde(default)]
    pub mix: BTreeMap<String, f64>,
}

fn edit() -> f64 {
    0.1
}

fn locality() -> f64 {
    1.0
}

fn one() -> usize {
    1
}

/// Where the edit loss is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// On rephrases: the edit has to generalise.
    #[default]
    Rephrase,
    /// On rephrases and the edit's own prompt alike.
    Both,
    /// On the edit's own prompt, as EasyEdit has it: nothing asks it to generalise.
    Edit,
}

/// Which tokens the KL term reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlTokens {
    /// Every token of prompt and answer.
    #[default]
    All,
    /// The answer's tokens, as EasyEdit has it.
    Answer,
}

/// MEND with what it learns from.
#[derive(Clone)]
pub struct MendTrainer {
    mend: Mend,
    base: Edited,
    below: Below,
    loss: LossSettings,
    /// Records whose edits are applied together.
    together: usize,
    learning_rate: f64,
    rate_learning_rate: f64,
}

impl MendTrainer {
    /// A trainer of `mend` on `base`.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(
        mut mend: Mend,
        base: Edited,
        loss: LossSettings,
        together: usize,
        learning_rate: f64,
        rate_learning_rate: f64,
    ) -> Result<Self> {
        if loss.in_scope == 0 || together == 0 || !(loss.edit >= 0.0 && loss.locality >= 0.0) {
            let message =
                "loss.in_scope and train.edits_together must be at least 1, loss.edit and loss.locality at least 0";
            return Err(Error::Config(message.into()));
        }
        for (class, weight) in &loss.mix {
            within(&format!("loss.mix.\"{class}\""), *weight, 0.0, 1e9)?;
        }
        within("loss.out_of_scope", loss.out_of_scope as f64, 0.0, 1e4)?;
        within("loss.in_scope", loss.in_scope as f64, 1.0, 1e4)?;
        mend.network = parameters::with_stable_ids(mend.network);
        let below = Below::new(base.clone(), mend.lowest_layer());
        Ok(MendTrainer { mend, base, below, loss, together, learning_rate, rate_learning_rate })
    }

    /// The editor.
    pub fn mend(&self) -> &Mend {
        &self.mend
    }

    fn weight(&self, class: &str) -> f64 {
        match self.loss.mix.is_empty() {
            true => 1.0,
            false => self.loss.mix.get(class).copied().unwrap_or(0.0),
        }
    }

    /// The prompts of a record at which the edit loss may be taken.
    fn in_scope<'a>(&self, record: &'a EditRecord) -> Vec<&'a String> {
        let pool: Vec<&String> = match self.loss.scope {
            Scope::Rephrase => record.rephrases.iter().collect(),
            Scope::Both => record.rephrases.iter().chain([&record.prompt]).collect(),
            Scope::Edit => vec![],
        };
        if pool.is_empty() { vec![&record.prompt] } else { pool }
    }

    /// An out-of-scope text up to the last cell at which the KL term reads, and these cells.
    fn out_of_scope(&self, probe: &Probe) -> Result<(Vec<u32>, Vec<usize>)> {
        let tokenizer = &self.base.base().tokenizer;
        let (mut ids, answer) = match &probe.target {
            Some(target) => {
                let text = tokenizer.continuation(&probe.prompt, target)?;
                let answer = text.reads();
                (text.ids, answer)
            }
            None => {
                let ids = tokenizer.encode_prompt(&probe.prompt)?;
                let last = ids.len() - 1;
                (ids, last..last + 1)
            }
        };
        let cells = match self.loss.kl {
            KlTokens::All => 0..ids.len(),
            KlTokens::Answer => answer,
        };
        ids.truncate(cells.end);
        Ok((ids, cells.collect()))
    }

    /// What a record asks in a step.
    fn texts(&self, record: &EditRecord, rng: &mut ChaCha8Rng) -> Result<Texts> {
        let tokenizer = &self.base.base().tokenizer;
        let mut pool = self.in_scope(record);
        let in_scope = (0..self.loss.in_scope.min(pool.len())).map(|_| {
            let prompt = pool.swap_remove(rng.random_range(0..pool.len()));
            tokenizer.continuation(prompt, &record.target_new)
        });
        let in_scope = in_scope.collect::<Result<Vec<_>>>()?;
        for text in &in_scope {
            check_targets(&self.base, text.target())?;
        }
        let near = draw_locality(record, self.loss.out_of_scope, |class| self.weight(class), rng);
        Ok(Texts {
            edit: tokenizer.continuation(&record.prompt, &record.target_new)?,
            in_scope,
            out_of_scope: near.into_iter().map(|probe| self.out_of_scope(probe)).collect::<Result<_>>()?,
        })
    }

    /// The edits' own gradients, on the model as it is.
    fn capture(&self, edits: &[&[Texts]]) -> Result<Captured> {
        let rows: Vec<&Continuation> = edits.iter().flat_map(|edit| edit.iter().map(|texts| &texts.edit)).collect();
        let owners: Vec<usize> =
            edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |_| owner)).collect();
        let tokens = without_last(&rows);
        self.mend.capture(&self.base, self.below.hidden(&tokens)?, &tokens, &rows, &owners)
    }

    /// What some edits add to the mean loss over `records` records.
    fn part(&self, mend: &Mend, edits: &[&[Texts]], captured: &Captured, records: usize) -> Result<Part> {
        // In-scope and out-of-scope rows of each edit stand together, so that its factors serve them in one product.
        let (mut rows, mut places) = (vec![], vec![]);
        let (mut scope, mut near) = (Reads::default(), Reads::default());
        let (mut targets, mut near_rows) = (vec![], vec![]);
        let share = 1.0 / records as f64;
        for (owner, texts) in edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |t| (owner, t))) {
            for text in &texts.in_scope {
                let weight = share / (texts.in_scope.len() * text.target().len()) as f64;
                scope.cells.extend(text.reads().map(|cell| (rows.len(), cell)));
                scope.weights.extend(text.target().iter().map(|_| weight));
                targets.extend(text.target());
                rows.push(text.ids[..text.ids.len() - 1].to_vec());
                places.push((owner, 0));
            }
            let cells: usize = texts.out_of_scope.iter().map(|(_, cells)| cells.len()).sum();
            for (ids, cells_read) in &texts.out_of_scope {
                near.cells.extend(cells_read.iter().map(|&cell| (rows.len(), cell)));
                near.weights.extend(cells_read.iter().map(|_| share / cells as f64));
                near_rows.push(rows.len());
                rows.push(ids.clone());
                places.push((owner, 0));
            }
        }
        let tokens = Tokens::placed(rows, places);
        let hidden = self.below.hidden(&tokens)?;
        let above = mend.lowest_layer()..self.base.layers();

        let mut deltas = mend.deltas(captured, edits.len());
        let edited = self.base.blocks(hidden.clone(), above.clone(), tokens.span(), None, &mut deltas)?;
        let reads: Vec<_> = scope.cells.iter().chain(&near.cells).copied().collect();
        let logits = self.base.head(edited, &reads);
        let base = match near_rows.is_empty() {
            true => None,
            false => {
                let (base_hidden, base_span) = select_rows(hidden, &tokens, &near_rows);
                let base = self.base.blocks(base_hidden, above, base_span.span(), None, &mut NoTap)?;
                let row_of = |row: usize| near_rows.iter().position(|&near| near == row).unwrap_or(0);
                let cells: Vec<_> = near.cells.iter().map(|&(row, cell)| (row_of(row), cell)).collect();
                Some(self.base.head(base, &cells))
            }
        };
        let Loss { surrogate, nll, kl } = edit_and_locality(
            logits,
            (&targets, &scope.weights),
            base,
            &near.weights,
            (self.loss.edit, self.loss.locality),
        );
        Ok(Part { gradients: GradientsParams::from_grads(surrogate.backward(), &mend.network), nll, kl })
    }
}

/// What a record asks in a step.
struct Texts {
    edit: Continuation,
    in_scope: Vec<Continuation>,
    /// Each with the cells at which the KL term reads.
    out_of_scope: Vec<(Vec<u32>, Vec<usize>)>,
}

/// The share of some edits in the loss and in its gradient.
struct Part {
    gradients: GradientsParams,
    nll: f64,
    kl: f64,
}

impl LearnedEditor for MendTrainer {
    type Network = MendNetwork;

    fn network(&self) -> &MendNetwork {
        &self.mend.network
    }

    fn set_network(&mut self, network: MendNetwork) {
        self.mend.network = network;
    }

    fn groups(&self) -> Vec<Group> {
        vec![
            Group {
                name: "edit rates",
                learning_rate: self.rate_learning_rate,
                decays: false,
                takes: |path| path == "rates",
            },
            Group { name: "network", learning_rate: self.learning_rate, decays: true, takes: |_| true },
        ]
    }

    fn prepare(&mut self, source: &Source, draws: u64, bytes: f64, watch: Watch<'_>) -> Result<()> {
        // Texts that are met once are not worth keeping; those of a world are drawn anew each time.
        let Source::Records(records) = source else { return Ok(()) };
        if draws <= source.len() as u64 {
            return Ok(());
        }
        let tokenizer = &self.base.base().tokenizer;
        let mut kept = BTreeSet::new();
        for record in records.all() {
            for prompt in self.in_scope(record).into_iter().chain([&record.prompt]) {
                let mut ids = tokenizer.continuation(prompt, &record.target_new)?.ids;
                ids.pop();
                kept.insert(ids);
            }
            let drawn = record.locality.iter().filter(|(class, _)| self.weight(class) > 0.0);
            // Its own fact is a neighbour of the other records.
            let own = [OTHER_RECORDS, SAME_OLD_OBJECT].iter().any(|class| self.weight(class) > 0.0);
            let own = if own { record.fact() } else { None };
            for probe in drawn.flat_map(|(_, probes)| probes).chain(&own) {
                kept.insert(self.out_of_scope(probe)?.0);
            }
        }
        self.below.keep(kept, bytes, watch)
    }

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<learned::Loss> {
        let texts = records.iter().map(|record| self.texts(record, rng)).collect::<Result<Vec<_>>>()?;
        // Edits that are applied together stay together.
        let edits: Vec<&[Texts]> = texts.chunks(self.together).collect();
        let count = edits.len().div_ceil(parallel::parts(&self.base.base().decoder.device()));
        let parts: Vec<&[&[Texts]]> = edits.chunks(count).collect();
        let captured = parallel::run(parts.clone(), |part| self.capture(part))?;
        for (captured, part) in captured.iter().zip(&parts) {
            self.mend.observe(captured, part.iter().map(|edit| edit.len()).sum());
        }
        // Graphs that share a leaf share a tape, and the first backward pass consumes it: each part has leaves of its own.
        let own = || {
            let mut mend = self.mend.clone();
            mend.network = mend.network.clone().fork(&mend.network.rates.val().device());
            mend
        };
        let parts = parts.into_iter().zip(captured).map(|(part, captured)| (own(), part, captured)).collect();
        let losses = parallel::run(parts, |(mend, part, captured)| self.part(&mend, part, &captured, records.len()))?;
        let mut sum = GradientsAccumulator::<MendNetwork>::new();
        let (mut nll, mut kl) = (0.0, 0.0);
        for part in losses {
            sum.accumulate(&self.mend.network, part.gradients);
            nll += part.nll;
            kl += part.kl;
        }
        let total = self.loss.edit * nll + self.loss.locality * kl;
        Ok(learned::Loss {
            gradients: sum.grads(),
            figures: vec![("loss", total), ("edit_nll", nll), ("locality_kl", kl)],
        })
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest], seed: u64) -> Result<Edit> {
        self.mend.edit(model, requests, seed)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.mend.tensors()
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.mend = self.mend.clone().restored(tensors)?;
        Ok(())
    }

    fn settings(&self) -> EditorSettings {
        EditorSettings::Mend(self.mend.settings.clone())
    }

    fn neighbours(&self) -> usize {
        self.loss.out_of_scope
    }
}

/// Some rows of a batch.
fn select_rows(hidden: Tensor<3>, tokens: &Tokens, rows: &[usize]) -> (Tensor<3>, Tokens) {
    let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &hidden.device());
    let chosen = Tokens::new(rows.iter().map(|&row| tokens.ids()[row].clone()).collect());
    let [_, _, width] = hidden.dims();
    let cells = chosen.span().width;
    (hidden.select(0, index).slice([0..rows.len(), 0..cells, 0..width]), chosen)
}
