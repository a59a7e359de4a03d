//! ENN as it is trained (Sinitsin et al., 2020): the base's chosen matrices, `W = W₀ + D`, so that a gradient step edits them.
//!
//! With `W_k` the matrices after the k steps of an edit,
//!
//! ```text
//! L = c_edit · −ln p(target | rephrase; W_k) + c_loc · KL(p(· | x_loc; W) ‖ p(· | x_loc; W_k)) + c_base · KL(p(· | x_loc; W₀) ‖ p(· | x_loc; W))
//! ```
//!
//! and running text as `train/edit_loss.rs` has it, against W₀. The first KL term holds an edit to the model as it is now, which is its constant; the last holds this to what
//! it once was.
//!
//! Its gradient is put together by hand. Of every matrix a pass gives `G = Σ uᵀδ` as its tokens' factors, so that nothing but factors is kept. With
//! `W_{j+1} = W_j − α g(W_j)`, g the gradient of the edit's own loss and H its Hessian, one goes back from `v_k = ∂L/∂W_k`:
//!
//! ```text
//! ∂L/∂α += −⟨v_{j+1}, g(W_j)⟩        v_j = v_{j+1} − H(W_j) (α v_{j+1})        ∂L/∂D = v_0
//! ```
//!
//! H is needed along one direction alone, `H p = (g(W + ε p) − g(W − ε p)) / 2ε`: two more passes that every kind of model has, with an error of ε². With ε p
//! a share of the edit's own step the whole gradient agrees with finite differences of the loss to 1e-6 in 64 bits, and in 32 bits with that in 64 to 3e-3. With `second_order = false` H is left out, as in first-order MAML.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::edit_loss::{EditLoss, Look, PARTS, RecordTexts, Terms, side_by_side};
use super::learned::{Group, LearnedEditor, StepLoss, Watch};
use super::loss::{EditAndLocality, check_classes};
use super::mend::{MendLossSettings, MendTrainSettings, held_of_step};
use super::methods::{self, Beginning, Planned, Sections, TESTING, TRAINING};
use super::settings::Together;
use crate::archive::LearnedEditorSettings;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{Edit, EditRequest, Edited, RecordDeltas};
use crate::error::{Error, Result};
use crate::evaluate::probes::Limits;
use crate::evaluate::{probe_table, summarize};
use crate::model::stack::taps::{GradientProbes, cells};
use crate::model::tap::{Both, NoTap, Tap};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::network::enn::{Enn, EnnNetwork, EnnSettings};
use crate::network::matrices::{EditTokens, Factors, Matrices, joined, products, reached, record_deltas, scaled};
use crate::network::parameters;
use crate::parallel;
use crate::plan::Held;
use crate::sections::choice::{self, fields};
use crate::sections::within;

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnnLossSettings {
    /// MEND's.
    #[serde(flatten)]
    pub mend: MendLossSettings,
    /// c_base
    #[serde(default = "one")]
    pub base: f64,
}

fn one() -> f64 {
    1.0
}

/// Keys of `[train]` that ENN alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EnnTrainSettings {
    /// Whether the gradient goes through the edit's own.
    pub second_order: bool,
    /// The learning rate of ln α at its height.
    pub edit_rate_learning_rate: f64,
    /// Memory, in GB, for the hidden states of texts that are met more than once.
    pub hidden_memory_gb: f64,
}

impl Default for EnnTrainSettings {
    fn default() -> Self {
        let MendTrainSettings { hidden_memory_gb, .. } = MendTrainSettings::default();
        EnnTrainSettings { second_order: true, edit_rate_learning_rate: 1e-2, hidden_memory_gb }
    }
}

/// What a config says of ENN.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: EnnSettings,
    /// `[loss]`
    pub loss: EnnLossSettings,
    /// Its own keys of `[train]`.
    pub train: EnnTrainSettings,
}

impl methods::Training for Training {
    type Editor = EnnTrainer;

    fn own_keys() -> &'static [&'static str] {
        fields::<EnnTrainSettings>()
    }

    fn read(sections: &Sections<'_>) -> Result<Self> {
        let loss: EnnLossSettings = choice::read("loss", sections.loss, sections.origin)?;
        loss.mend.check(sections.loss)?;
        within("loss.base", loss.base, 0.0, 1e9)?;
        if loss.base > 0.0 && loss.mend.near() == 0 {
            let message = "loss.base holds the adapted base on texts out of scope, and loss.locality = 0 or loss.out_of_scope = 0 draws none; set loss.base = 0 too, \
                           or both above 0";
            return Err(Error::Config(message.into()));
        }
        let train: EnnTrainSettings = choice::read("train", sections.train, sections.origin)?;
        within("train.hidden_memory_gb", train.hidden_memory_gb, 0.0, 1e6)?;
        within("train.edit_rate_learning_rate", train.edit_rate_learning_rate, 0.0, 10.0)?;
        Ok(Training { editor: EnnSettings::read(sections.editor, sections.origin)?, loss, train })
    }

    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        let Planned { work, settings, .. } = planned;
        let matrices = Matrices::new(&self.editor.layers, &self.editor.weights, work.spec)?;
        let of = |count: fn([usize; 2]) -> usize| -> usize {
            matrices.each.iter().map(|slot| count(matrices.shapes[slot.shape])).sum()
        };
        let (trained, channels) = (4 * of(|[d_in, d_out]| d_in * d_out) as u64, of(|[d_in, d_out]| d_in + d_out));
        let threads = work.threads.max(1) as u64;
        // D, two moments, the gradients of both parts, and the weights with D in them; in a test those of each edited model too.
        let mut all = vec![
            Held::during(TRAINING, "the trained weights, their gradients and the optimiser's moments", 6 * trained),
            Held::during(TESTING, "the trained weights and the optimiser's moments", (4 + threads) * trained),
        ];
        let texts = 1 + self.loss.mend.rephrases.in_scope + self.loss.mend.near();
        let tokens = settings.edits_per_step.div_ceil(PARTS) * texts * work.texts.mean;
        let factors = 4 * (tokens * channels * (2 + self.editor.steps)) as u64;
        all.extend(held_of_step(&matrices, &self.loss.mend, self.train.hidden_memory_gb, factors, planned)?);
        Ok(all)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<EnnTrainer> {
        let Beginning { base, settings, place, .. } = beginning;
        let dtype = base.base().decoder.dtype();
        if self.train.second_order && !matches!(dtype, DType::F32 | DType::F64) {
            let message = format!(
                "train.second_order: in {dtype:?} rounding is larger than what a gradient changes by in a small step; take model.dtype = \"f32\", or \
                 train.second_order = false"
            );
            return Err(Error::Config(message));
        }
        let mut enn = Enn::new(self.editor.clone(), &base.base().decoder.spec, *place)?;
        let loss = EditLoss::new((*base).clone(), enn.matrices().lowest_layer(), self.loss.mend.clone())?;
        enn.network = parameters::with_stable_ids(enn.network);
        Ok(EnnTrainer {
            enn,
            loss: loss.reading(beginning)?,
            together: settings.edits_together,
            learning_rate: settings.learning_rate,
            own: self.clone(),
        })
    }
}

/// ENN with what it learns from.
#[derive(Clone)]
pub struct EnnTrainer {
    enn: Enn,
    loss: EditLoss,
    together: Together,
    learning_rate: f64,
    own: Training,
}

/// What a part of a step adds to the gradient.
struct Part {
    /// Of D, `[d_in, d_out]` each.
    adapted: Vec<Tensor<2>>,
    /// Of α.
    rates: Vec<f64>,
    terms: Terms,
    /// KL of the adapted base from the base.
    drift: f64,
}

impl EnnTrainer {
    /// The editor.
    pub fn enn(&self) -> &Enn {
        &self.enn
    }

    fn matrices(&self) -> &Matrices {
        self.enn.matrices()
    }

    /// The gradients of edits' own losses on a model under a tap.
    fn own_gradients(&self, now: &Edited, edits: &[&[RecordTexts]], tap: &mut dyn Tap) -> Result<Vec<Factors>> {
        let of_edits =
            edits.iter().enumerate().flat_map(|(edit, all)| all.iter().map(move |texts| (edit, &texts.edit)));
        let (owners, rows): (Vec<usize>, Vec<&Continuation>) = of_edits.unzip();
        let ids = rows.iter().map(|row| row.ids[..row.ids.len() - 1].to_vec()).collect();
        let tokens = Tokens::placed(ids, owners.iter().map(|&owner| (owner, 0)).collect());
        let tokens = tokens.of(rows.iter().map(|row| row.text()));
        let hidden = self.loss.lower_layers.hidden(&tokens)?;
        let rows_of = (rows.as_slice(), owners.as_slice());
        Ok(self.matrices().capture(now, hidden, &tokens, rows_of, EditTokens::All, tap)?.factors)
    }

    /// The gradient of a loss as factors, and its terms; nothing where there is no loss.
    fn of_loss(
        &self,
        under: &mut dyn Tap,
        loss: impl FnOnce(&mut dyn Tap) -> Result<Option<EditAndLocality>>,
    ) -> Result<Option<(Vec<Factors>, EditAndLocality)>> {
        let mut probes = GradientProbes::at(self.matrices().each.iter().map(|matrix| matrix.weight));
        let Some(loss) = loss(&mut Both(under, &mut probes))? else { return Ok(None) };
        let owners = probes.records().to_vec();
        let mut read = probes.read(&loss.surrogate.backward());
        let factors = self.matrices().each.iter().map(|matrix| {
            let unreached = || Error::Input(format!("the loss does not reach {}", matrix.weight));
            let (u, delta) = read.remove(&matrix.weight).ok_or_else(unreached)?;
            let reached = reached(&delta);
            let owners = reached.iter().map(|&(row, _)| owners[row]).collect();
            Ok((cells(u, &reached), cells(delta, &reached), owners))
        });
        Ok(Some((factors.collect::<Result<_>>()?, loss)))
    }

    /// The model after some steps of each edit, as deltas.
    fn stepped(&self, steps: &[Vec<Factors>], edits: usize) -> RecordDeltas {
        let down: Vec<Vec<f64>> = self.enn.rates().into_iter().map(|rate| vec![-rate; edits]).collect();
        let lists: Vec<(&[Factors], &[Vec<f64>])> =
            steps.iter().map(|step| (step.as_slice(), down.as_slice())).collect();
        record_deltas(self.matrices(), &lists, edits)
    }

    /// What some edits add to the gradient; `now` is the adapted base.
    fn part(&self, now: &Edited, look: Look<'_>, edits: &[&[RecordTexts]]) -> Result<Part> {
        let (count, rates) = (edits.len(), self.enn.rates());
        let mut steps: Vec<Vec<Factors>> = vec![];
        for _ in 0..self.enn.settings.steps {
            let gradients = self.own_gradients(now, edits, &mut self.stepped(&steps, count))?;
            steps.push(gradients);
        }
        let mut after = self.stepped(&steps, count);
        let facts = self.of_loss(&mut after, |tap| self.loss.facts(look, edits, tap).map(Some))?;
        let text = self.of_loss(&mut after, |tap| self.loss.running_text(look, edits, tap))?;
        let mut terms = Terms::default();
        let mut lists: Vec<Vec<Factors>> = vec![];
        if let Some((factors, loss)) = facts {
            (terms.nll, terms.kl) = (loss.nll, loss.kl);
            lists.push(factors);
        }
        if let Some((factors, loss)) = text {
            terms.text_kl = loss.kl;
            lists.push(factors);
        }
        let sum = |lists: &[Vec<Factors>]| -> Vec<Factors> {
            (0..rates.len()).map(|slot| joined(lists.iter().map(|list| list[slot].clone()).collect())).collect()
        };
        let mut of_rates = vec![0.0; rates.len()];
        let mut back = sum(&lists);
        for (number, gradients) in steps.iter().enumerate().rev() {
            for (of_rate, (back, own)) in of_rates.iter_mut().zip(back.iter().zip(gradients)) {
                *of_rate -= products(back, own, count).iter().sum::<f64>();
            }
            if self.own.train.second_order {
                let curved = self.curved(now, edits, &steps[..number], gradients, &back)?;
                back = sum(&[vec![back], curved].concat());
            }
        }
        let drift = match self.own.loss.base {
            0.0 => None,
            base => self.of_loss(&mut NoTap, |tap| self.loss.drift(look, edits, base, tap))?,
        };
        let drifted = drift.as_ref().map_or(0.0, |(_, loss)| loss.kl);
        if let Some((factors, _)) = drift {
            back = sum(&[back, factors]);
        }
        let adapted = back.into_iter().map(|(u, delta, _)| u.transpose().matmul(delta)).collect();
        Ok(Part { adapted, rates: of_rates, terms, drift: drifted })
    }

    /// `−H (α v)` of each edit at the model after some of its steps, as two lists of factors: the gradients a little ahead along `α v` and a little behind.
    fn curved(
        &self,
        now: &Edited,
        edits: &[&[RecordTexts]],
        steps: &[Vec<Factors>],
        gradients: &[Factors],
        back: &[Factors],
    ) -> Result<Vec<Vec<Factors>>> {
        let (count, rates) = (edits.len(), self.enn.rates());
        // How long the edit's own step is, and the direction.
        let norms = |lists: &[Factors]| {
            let mut squares = vec![0.0; count];
            for (list, rate) in lists.iter().zip(&rates) {
                let own = products(list, list, count);
                squares.iter_mut().zip(own).for_each(|(sum, square)| *sum += square * rate * rate);
            }
            squares.into_iter().map(f64::sqrt).collect::<Vec<_>>()
        };
        let share = match now.base().decoder.dtype() {
            DType::F64 => EXACT,
            _ => COARSE,
        };
        let lengths = norms(gradients).into_iter().zip(norms(back));
        // An edit that asks for nothing, or at which no loss looks, has no direction.
        let ahead = lengths.map(|(step, along)| if step * along > 0.0 { share * step / along } else { 0.0 });
        let ahead: Vec<f64> = ahead.collect();
        let along = |sign: f64| -> Vec<Vec<f64>> {
            rates.iter().map(|rate| ahead.iter().map(|ahead| sign * ahead * rate).collect()).collect()
        };
        let down: Vec<Vec<f64>> = rates.iter().map(|rate| vec![-rate; count]).collect();
        let at = |sign: f64| -> Result<Vec<Factors>> {
            let along = along(sign);
            let mut lists: Vec<(&[Factors], &[Vec<f64>])> = vec![(back, &along)];
            lists.extend(steps.iter().map(|step| (step.as_slice(), down.as_slice())));
            let found = self.own_gradients(now, edits, &mut record_deltas(self.matrices(), &lists, count))?;
            let each = ahead.iter().map(|&ahead| if ahead > 0.0 { -sign / (2.0 * ahead) } else { 0.0 });
            let each: Vec<f64> = each.collect();
            Ok(found.iter().map(|factors| scaled(factors, &each)).collect())
        };
        Ok(vec![at(1.0)?, at(-1.0)?])
    }
}

/// The share of an edit's own step at which gradients are taken for its curvature: the error is the square of it, and what rounding leaves divided by it.
const EXACT: f64 = 1e-5;
/// The same in 32 bits.
const COARSE: f64 = 1e-2;

impl LearnedEditor for EnnTrainer {
    type Network = EnnNetwork;

    fn network(&self) -> &EnnNetwork {
        &self.enn.network
    }

    fn set_network(&mut self, network: EnnNetwork) {
        self.enn.network = network;
    }

    fn groups(&self) -> Vec<Group> {
        vec![
            Group {
                name: "edit rates",
                learning_rate: self.own.train.edit_rate_learning_rate,
                decays: false,
                norm: "rate_gradient",
                takes: |path| path == "rates",
            },
            Group {
                name: "adapted weights",
                learning_rate: self.learning_rate,
                decays: true,
                norm: "gradient_norm",
                takes: |_| true,
            },
        ]
    }

    fn made_of(&self) -> BTreeMap<String, String> {
        self.loss.made_of()
    }

    fn prepare(&mut self, source: &Source, draws: u64, watch: Watch<'_>) -> Result<()> {
        check_classes(&self.loss.settings.near.mix, source)?;
        self.loss.prepare(source, draws, self.own.train.hidden_memory_gb, watch)
    }

    fn note(&self) -> Option<String> {
        self.loss.note()
    }

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss> {
        let (together, most) = (self.together.draw(rng), self.loss.looked_at(records.len()));
        let texts = self.loss.drawn(records, |number| number < most, together, rng)?;
        let now = self.loss.base.with_change(&self.enn.adapted())?;
        let edits: Vec<&[RecordTexts]> = texts.chunks(together).collect();
        let parts = side_by_side(&edits);
        let look = Look::at(&now, &texts);
        let parts = parallel::run(parts, |part| self.part(&now, look, part))?;
        let (mut terms, mut drift) = (Terms::default(), 0.0);
        let network = &self.enn.network;
        let (mut adapted, mut of_rates): (Vec<Tensor<2>>, _) = (vec![], vec![0.0; network.adapted.len()]);
        for part in parts {
            terms += part.terms;
            drift += part.drift;
            of_rates.iter_mut().zip(part.rates).for_each(|(sum, more)| *sum += more);
            adapted = match adapted.is_empty() {
                true => part.adapted,
                false => adapted.into_iter().zip(part.adapted).map(|(sum, more)| sum + more).collect(),
            };
        }
        let mut gradients = GradientsParams::new();
        for (param, gradient) in network.adapted.iter().zip(adapted) {
            gradients.register(param.id, gradient.cast(param.val().dtype()));
        }
        // Of ln α.
        let of_rates: Vec<f64> =
            of_rates.into_iter().zip(self.enn.rates()).map(|(of_rate, rate)| of_rate * rate).collect();
        let rates = network.rates.val().inner();
        let of_rates = TensorData::new(of_rates, [network.adapted.len()]);
        gradients.register(network.rates.id, Tensor::<1>::from_data(of_rates, (&rates.device(), rates.dtype())));
        let mut figures = self.loss.figures(&terms);
        figures[0].1 += self.own.loss.base * drift;
        figures.push(("base_kl", drift));
        Ok(StepLoss { gradients, figures })
    }

    fn adapted(&self, base: &Edited) -> Result<Edited> {
        base.with(self.enn.adaptation(&base.base().fingerprint))
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.enn.stepped(model, requests)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.enn.tensors()
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.enn = self.enn.clone().restored(tensors)?;
        Ok(())
    }

    fn settings(&self) -> LearnedEditorSettings {
        LearnedEditorSettings::Enn(self.own.editor.clone())
    }

    fn neighbours(&self) -> usize {
        self.loss.settings.near()
    }

    fn examine(&self, records: &[EditRecord], limits: Limits) -> Result<Vec<(&'static str, f64)>> {
        let records: Vec<(usize, &EditRecord)> = records.iter().enumerate().collect();
        let limits = Limits { rephrases: 0, rivals: false, ..limits };
        let summary = summarize(&probe_table(&self.loss.base, &self.adapted(&self.loss.base)?, &records, limits)?);
        let figures = [("adapted_locality", summary.locality), ("adapted_drawdown", summary.drawdown)];
        Ok(figures.into_iter().filter_map(|(name, figure)| Some((name, figure?))).collect())
    }
}
