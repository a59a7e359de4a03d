//! The loss that trains MEND (Mitchell et al., 2022, equation 5):
//!
//! ```text
//! L = c_edit · −ln p(target | rephrase; W̃) + c_loc · KL(p(· | x_loc; W) ‖ p(· | x_loc; W̃)),   W̃ = W − α ũᵀδ̃
//! ```
//!
//! u and δ are constants of the outer loop, so one backward pass through the edited layers, with the deltas as factors
//! `(x·A)·B`, gives the network's gradient exactly; no second derivative is needed.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor, TensorData, activation};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::learned::{Group, LearnedEditor, Loss};
use crate::archive::{self, EditorSettings};
use crate::config::within;
use crate::data::record::EditRecord;
use crate::data::source::draw_locality;
use crate::edit::score::{check_targets, target_log_probabilities};
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::tap::NoTap;
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::network::mend::{Mend, MendNetwork, without_last};
use crate::network::parameters;

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
        Ok(MendTrainer { mend, base, loss, together, learning_rate, rate_learning_rate })
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

    /// The in-scope texts of a record.
    fn in_scope(&self, record: &EditRecord, rng: &mut ChaCha8Rng) -> Result<Vec<Continuation>> {
        let mut pool: Vec<&String> = match self.loss.scope {
            Scope::Rephrase => record.rephrases.iter().collect(),
            Scope::Both => record.rephrases.iter().chain([&record.prompt]).collect(),
            Scope::Edit => vec![],
        };
        if pool.is_empty() {
            pool.push(&record.prompt);
        }
        let tokenizer = &self.base.base().tokenizer;
        let texts = (0..self.loss.in_scope.min(pool.len())).map(|_| {
            let prompt = pool.swap_remove(rng.random_range(0..pool.len()));
            tokenizer.continuation(prompt, &record.target_new)
        });
        texts.collect()
    }

    /// The out-of-scope texts of a record, each with the cells at which the KL term reads.
    fn out_of_scope(&self, record: &EditRecord, rng: &mut ChaCha8Rng) -> Result<Vec<(Vec<u32>, Vec<usize>)>> {
        let tokenizer = &self.base.base().tokenizer;
        let probes = draw_locality(record, self.loss.out_of_scope, |class| self.weight(class), rng);
        let texts = probes.into_iter().map(|probe| match &probe.target {
            Some(target) => {
                let text = tokenizer.continuation(&probe.prompt, target)?;
                let cells = match self.loss.kl {
                    KlTokens::All => (0..text.ids.len()).collect(),
                    KlTokens::Answer => text.reads().collect(),
                };
                Ok((text.ids, cells))
            }
            None => {
                let ids = tokenizer.encode_prompt(&probe.prompt)?;
                let cells = match self.loss.kl {
                    KlTokens::All => (0..ids.len()).collect(),
                    KlTokens::Answer => vec![ids.len() - 1],
                };
                Ok((ids, cells))
            }
        });
        texts.collect()
    }

    /// Hidden states below the lowest edited layer: constant in every edit.
    ///
    /// Most of the model lies there, so rows of like length run together: a batch padded to its longest row would be half padding.
    fn below(&self, tokens: &Tokens) -> Result<Tensor<3>> {
        let run = |tokens: &Tokens| {
            let hidden = self.base.embed(tokens, &mut NoTap)?;
            self.base.blocks(hidden, 0..self.mend.lowest_layer(), tokens.span(), None, &mut NoTap)
        };
        let groups = of_like_length(tokens);
        if self.mend.lowest_layer() == 0 || groups.len() < 2 {
            return run(tokens);
        }
        let width = tokens.span().width;
        let mut parts = vec![];
        for group in &groups {
            let hidden = run(&Tokens::new(group.iter().map(|&row| tokens.ids()[row].clone()).collect()))?;
            let [rows, cells, channels] = hidden.dims();
            let padding = Tensor::zeros([rows, width - cells, channels], (&hidden.device(), hidden.dtype()));
            parts.push(if cells < width { Tensor::cat(vec![hidden, padding], 1) } else { hidden });
        }
        let order: Vec<usize> = groups.concat();
        let mut place = vec![0i64; order.len()];
        order.iter().enumerate().for_each(|(at, &row)| place[row] = at as i64);
        let hidden = Tensor::cat(parts, 0);
        let place = Tensor::<1, Int>::from_data(place.as_slice(), &hidden.device());
        Ok(hidden.select(0, place))
    }
}

/// Where a batch of in-scope and out-of-scope rows is read, and with what weight each read counts.
#[derive(Default)]
struct Reads {
    cells: Vec<(usize, usize)>,
    weights: Vec<f64>,
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

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<Loss> {
        let tokenizer = &self.base.base().tokenizer;
        let groups = records.len().div_ceil(self.together);

        // The edits' own gradients, on the model as it is.
        let edits = records.iter().map(|record| tokenizer.continuation(&record.prompt, &record.target_new));
        let edits = edits.collect::<Result<Vec<_>>>()?;
        let edits: Vec<&Continuation> = edits.iter().collect();
        let tokens = without_last(&edits);
        let owners: Vec<usize> = (0..records.len()).map(|record| record / self.together).collect();
        let captured = self.mend.capture(&self.base, self.below(&tokens)?, &tokens, &edits, &owners)?;
        self.mend.observe(&captured, records.len());

        // In-scope and out-of-scope rows of each edit stand together, so that its factors serve them in one product.
        let (mut rows, mut places) = (vec![], vec![]);
        let (mut scope, mut near) = (Reads::default(), Reads::default());
        let (mut targets, mut near_rows) = (vec![], vec![]);
        let share = 1.0 / records.len() as f64;
        for (number, record) in records.iter().enumerate() {
            let texts = self.in_scope(record, rng)?;
            for text in &texts {
                let weight = share / (texts.len() * text.target().len()) as f64;
                scope.cells.extend(text.reads().map(|cell| (rows.len(), cell)));
                scope.weights.extend(text.target().iter().map(|_| weight));
                targets.extend_from_slice(text.target());
                check_targets(&self.base, text.target())?;
                rows.push(text.ids[..text.ids.len() - 1].to_vec());
                places.push((owners[number], 0));
            }
            let texts = self.out_of_scope(record, rng)?;
            let cells: usize = texts.iter().map(|(_, cells)| cells.len()).sum();
            for (ids, cells_read) in texts {
                near.cells.extend(cells_read.iter().map(|&cell| (rows.len(), cell)));
                near.weights.extend(cells_read.iter().map(|_| share / cells as f64));
                near_rows.push(rows.len());
                rows.push(ids);
                places.push((owners[number], 0));
            }
        }
        let tokens = Tokens::placed(rows, places);
        let hidden = self.below(&tokens)?;
        let above = self.mend.lowest_layer()..self.base.layers();

        let mut deltas = self.mend.deltas(&captured, groups);
        let edited = self.base.blocks(hidden.clone(), above.clone(), tokens.span(), None, &mut deltas)?;
        let reads: Vec<_> = scope.cells.iter().chain(&near.cells).copied().collect();
        let logits = self.base.head(edited, &reads);
        let log = activation::log_softmax(logits.clone().inner(), 1);
        let [count, vocabulary] = log.dims();
        let in_scope = scope.cells.len();
        let (device, dtype) = (log.device(), log.dtype());
        let weights = |of: &Reads| {
            Tensor::<1>::from_data(TensorData::new(of.weights.clone(), [of.weights.len()]), (&device, dtype))
        };

        // With p the softmax of the logits z, ∂NLL/∂z = p − onehot and ∂KL/∂z = p − p_base: z times this constant has the loss's
        // gradient, without a pass of autodiff over the vocabulary.
        let log_scope = log.clone().slice([0..in_scope, 0..vocabulary]);
        let scope_weights = weights(&scope);
        let nll = (target_log_probabilities(log_scope.clone(), &targets) * scope_weights.clone()).sum().neg();
        let targets: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
        let index = Tensor::<1, Int>::from_data(targets.as_slice(), &device).unsqueeze_dim::<2>(1);
        let minus_one = Tensor::<2>::full([in_scope, 1], -1.0, (&device, dtype));
        let towards_targets = log_scope.exp().scatter(1, index, minus_one, burn::tensor::IndexingUpdateOp::Add);
        let mut towards = vec![towards_targets * scope_weights.unsqueeze_dim(1).mul_scalar(self.loss.edit)];
        let mut kl = Tensor::<1>::zeros([1], (&device, dtype));
        if !near_rows.is_empty() {
            let (base_hidden, base_span) = select_rows(hidden, &tokens, &near_rows);
            let base = self.base.blocks(base_hidden, above, base_span.span(), None, &mut NoTap)?;
            let row_of = |row: usize| near_rows.iter().position(|&near| near == row).unwrap_or(0);
            let cells: Vec<_> = near.cells.iter().map(|&(row, cell)| (row_of(row), cell)).collect();
            let log_base = activation::log_softmax(self.base.head(base, &cells), 1);
            let log_near = log.slice([in_scope..count, 0..vocabulary]);
            let near_weights = weights(&near);
            let p_base = log_base.clone().exp();
            let each = (p_base.clone() * (log_base - log_near.clone())).sum_dim(1).squeeze_dim::<1>(1);
            kl = (each * near_weights.clone()).sum();
            towards.push((log_near.exp() - p_base) * near_weights.unsqueeze_dim(1).mul_scalar(self.loss.locality));
        }
        let surrogate = (logits * Tensor::cat(towards, 0)).sum();
        let gradients = GradientsParams::from_grads(surrogate.backward(), &self.mend.network);
        let number = |tensor: Tensor<1>| tensor.into_data().iter::<f64>().sum::<f64>();
        let (nll, kl) = (number(nll), number(kl));
        let total = self.loss.edit * nll + self.loss.locality * kl;
        Ok(Loss { gradients, figures: vec![("loss", total), ("edit_nll", nll), ("locality_kl", kl)] })
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest], seed: u64) -> Result<Edit> {
        self.mend.edit(model, requests, seed)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        archive::mend_tensors(&self.mend)
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.mend = archive::restore_mend(self.mend.clone(), tensors)?;
        Ok(())
    }

    fn settings(&self) -> EditorSettings {
        EditorSettings::Mend(self.mend.settings.clone())
    }

    fn neighbours(&self) -> usize {
        self.loss.out_of_scope
    }
}

/// The rows of a batch in groups, none of which is more than a third longer than its shortest row.
fn of_like_length(tokens: &Tokens) -> Vec<Vec<usize>> {
    let length = |row: usize| tokens.ids()[row].len();
    let mut order: Vec<usize> = (0..tokens.ids().len()).collect();
    order.sort_by_key(|&row| length(row));
    let mut groups: Vec<Vec<usize>> = vec![];
    for row in order {
        match groups.last_mut() {
            Some(group) if 3 * length(row) <= 4 * length(group[0]) => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups
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
