//! KE as it is trained (De Cao et al., 2021): answers are to change, under a constraint on everything else.
//!
//! ```text
//! min over φ of  −ln p(target | rephrase; W̃)    with  KL(p(· | x_loc; W) ‖ p(· | x_loc; W̃)) ≤ m
//! ```
//!
//! as the Lagrangian `NLL + α (KL − m)`: φ descends it, and α ≥ 0 ascends, so that it grows as long as the constraint is broken. The margin m is annealed:
//! it shrinks after each validation at which most edits hold. With `constraint = "penalty"` it is MEND's loss, with weights of its own.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::edit_loss::{EditLoss, Look, PARTS, RecordTexts, side_by_side};
use super::learned::{Group, LearnedEditor, StepLoss, Watch};
use super::loss::check_classes;
use super::mend::{MendLossSettings, held_of_step};
use super::methods::{self, Beginning, Planned, Sections, TESTING, TRAINING};
use super::settings::Together;
use crate::archive::LearnedEditorSettings;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::edit::{Edit, EditRequest, Edited, Editor};
use crate::error::{Error, Result};
use crate::evaluate::Summary;
use crate::model::tap::NoTap;
use crate::model::tokenizer::Continuation;
use crate::network::ke::{CONSTRAINT, Ke, KeNetwork, KeSettings, Seen};
use crate::network::matrices::{EditTokens, Matrices, without_last};
use crate::network::parameters;
use crate::parallel;
use crate::plan::Held;
use crate::sections::choice::{self, Choice, fields};
use crate::sections::within;

/// `[loss]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeLossSettings {
    /// What MEND's has: with a constraint `edit` is 1 and `locality` where α begins.
    #[serde(flatten)]
    pub mend: MendLossSettings,
    /// ε: a target is asked for with 1 − ε, the rest is spread over the vocabulary.
    #[serde(default = "smoothing")]
    pub smoothing: f64,
    /// How what is out of scope is held.
    #[serde(default)]
    pub constraint: Constraint,
    /// Of the margin.
    #[serde(flatten)]
    pub margin: Margin,
}

/// How what is out of scope is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Its KL divergence stays within a margin, by a multiplier that is learned.
    #[default]
    Margin,
    /// It is one more term of the loss, with a weight that stays.
    Penalty,
}

/// Keys of `constraint = "margin"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Margin {
    /// m at the start.
    pub margin: f64,
    /// m at the end.
    pub smallest_margin: f64,
    /// What m is times after a validation at which enough edits hold.
    pub margin_decay: f64,
    /// How many are enough: their share.
    pub margin_success: f64,
    /// The multiplier rises no further. A training at whose every step the constraint is broken even so ends: the margin cannot be met.
    pub largest_multiplier: f64,
}

impl Default for Margin {
    fn default() -> Self {
        Margin { margin: 1e-3, smallest_margin: 1e-5, margin_decay: 0.8, margin_success: 0.9, largest_multiplier: 50.0 }
    }
}

impl Choice for Constraint {
    const KEY: &'static str = "constraint";
    const VALUES: &'static [Self] = &[Constraint::Margin, Constraint::Penalty];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Constraint::Margin => fields::<Margin>(),
            Constraint::Penalty => &[],
        }
    }
}

impl KeLossSettings {
    fn check_margin(&self) -> Result<()> {
        let Margin { margin, smallest_margin, margin_decay, margin_success, largest_multiplier } = self.margin;
        if self.mend.near() == 0 {
            let message = "loss.locality and loss.out_of_scope must be above 0: the constraint is about texts out of scope, and its multiplier begins at loss.locality; \
                           constraint = \"penalty\" wants neither";
            return Err(Error::Config(message.into()));
        }
        within("loss.margin", margin, 0.0, 1e6)?;
        within("loss.smallest_margin", smallest_margin, 0.0, margin)?;
        within("loss.margin_decay", margin_decay, 0.0, 1.0)?;
        within("loss.margin_success", margin_success, 0.0, 1.0)?;
        within("loss.largest_multiplier", largest_multiplier, self.mend.locality, 1e12)
    }
}

fn smoothing() -> f64 {
    0.1
}

/// Keys of `[train]` that KE alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeTrainSettings {
    /// The multiplier's learning rate.
    pub multiplier_learning_rate: f64,
    /// Memory, in GB, for the hidden states of texts that are met more than once.
    pub hidden_memory_gb: f64,
}

impl Default for KeTrainSettings {
    fn default() -> Self {
        KeTrainSettings { multiplier_learning_rate: 0.1, hidden_memory_gb: 2.0 }
    }
}

/// What a config says of KE.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: KeSettings,
    /// `[loss]`
    pub loss: KeLossSettings,
    /// Its own keys of `[train]`.
    pub train: KeTrainSettings,
}

impl methods::Training for Training {
    type Editor = KeTrainer;

    fn own_keys() -> &'static [&'static str] {
        fields::<KeTrainSettings>()
    }

    fn read(sections: &Sections<'_>) -> Result<Self> {
        let loss: KeLossSettings = choice::read("loss", sections.loss, sections.origin)?;
        loss.mend.check(sections.loss)?;
        choice::check("loss", sections.loss, loss.constraint)?;
        if loss.constraint == Constraint::Margin && sections.loss.contains_key("edit") {
            return Err(choice::unused("loss", "edit", "constraint = \"margin\"", "constraint = \"penalty\""));
        }
        within("loss.smoothing", loss.smoothing, 0.0, 0.99)?;
        let train: KeTrainSettings = choice::read("train", sections.train, sections.origin)?;
        match loss.constraint {
            Constraint::Margin => loss.check_margin()?,
            Constraint::Penalty if sections.train.contains_key("multiplier_learning_rate") => {
                let (chosen, using) = ("loss.constraint = \"penalty\"", "loss.constraint = \"margin\"");
                return Err(choice::unused("train", "multiplier_learning_rate", chosen, using));
            }
            Constraint::Penalty => {}
        }
        within("train.hidden_memory_gb", train.hidden_memory_gb, 0.0, 1e6)?;
        within("train.multiplier_learning_rate", train.multiplier_learning_rate, 0.0, 1e6)?;
        Ok(Training { editor: KeSettings::read(sections.editor, sections.origin)?, loss, train })
    }

    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        let Planned { work, settings, .. } = planned;
        let matrices = Matrices::new(&self.editor.layers, &self.editor.weights, work.spec)?;
        let network = self.editor.network_bytes(&matrices, work.spec.width);
        let mut all = vec![
            Held::during(TRAINING, "the network, its gradients and the optimiser's moments", 5 * network)
                .lowered_by("editor.condition"),
            Held::during(TESTING, "the network and the optimiser's moments", 3 * network),
        ];
        // What the heads say of each matrix of a record, and the factors made of it.
        let channels: usize = matrices.each.iter().map(|slot| matrices.shapes[slot.shape].iter().sum::<usize>()).sum();
        let graph = 4 * (settings.edits_per_step.div_ceil(PARTS) * channels * (6 + 4 * work.texts.mean)) as u64;
        all.extend(held_of_step(&matrices, &self.loss.mend, self.train.hidden_memory_gb, graph, planned)?);
        Ok(all)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<KeTrainer> {
        let Beginning { base, settings, place, .. } = beginning;
        let mut ke = Ke::new(self.editor.clone(), base.base(), *place)?;
        let loss = EditLoss::new((*base).clone(), ke.matrices().lowest_layer(), self.loss.mend.clone())?;
        let mut loss = loss.reading(beginning)?;
        loss.weights.smoothing = self.loss.smoothing;
        if self.loss.constraint == Constraint::Margin {
            loss.weights.edit = 1.0;
        }
        let multiplier = Tensor::full([1], self.loss.mend.locality, *place);
        let trained = Constrained { network: ke.network, multiplier: Param::from_tensor(multiplier) };
        let trained = parameters::with_stable_ids(trained);
        // With the same ids, under which an optimiser's state finds what a snapshot puts back.
        ke.network = trained.network.clone();
        Ok(KeTrainer {
            ke,
            trained,
            loss,
            margin: self.loss.margin.margin,
            broken: 0,
            together: settings.edits_together,
            learning_rate: settings.learning_rate,
            own: self.clone(),
        })
    }
}

/// Steps in a row after which a constraint that is broken all the time cannot be met.
const HOPELESS: usize = 20;

/// What is trained: the network, and the multiplier of its constraint.
#[derive(Module, Debug)]
pub struct Constrained {
    /// The network.
    pub network: KeNetwork,
    /// α `[1]`
    pub multiplier: Param<Tensor<1>>,
}

/// KE with what it learns from.
#[derive(Clone)]
pub struct KeTrainer {
    /// The editor; its network is that of `trained`.
    ke: Ke,
    trained: Constrained,
    loss: EditLoss,
    /// m
    margin: f64,
    /// Steps in a row at which the constraint was broken though α could rise no further.
    broken: usize,
    together: Together,
    learning_rate: f64,
    own: Training,
}

impl KeTrainer {
    /// The editor.
    pub fn ke(&self) -> &Ke {
        &self.ke
    }

    /// α
    pub fn multiplier(&self) -> f64 {
        self.trained.multiplier.val().inner().into_data().iter::<f64>().sum()
    }

    /// m
    pub fn margin(&self) -> f64 {
        self.margin
    }

    fn constrained(&self) -> bool {
        self.own.loss.constraint == Constraint::Margin
    }

    /// The gradients of some edits' requests on the model as it is, with what the network is to read of them.
    fn seen(&self, edits: &[&[RecordTexts]]) -> Result<Seen> {
        let rows: Vec<&Continuation> = edits.iter().flat_map(|edit| edit.iter().map(|texts| &texts.edit)).collect();
        let (tokens, owners) = (without_last(&rows), (0..rows.len()).collect::<Vec<_>>());
        let hidden = self.loss.lower_layers.hidden(&tokens)?;
        let rows_of = (rows.as_slice(), owners.as_slice());
        let (matrices, base) = (self.ke.matrices(), &self.loss.base);
        let captured = matrices.capture(base, hidden, &tokens, rows_of, EditTokens::All, &mut NoTap)?;
        Ok(self.ke.seen(captured, &rows))
    }
}

impl LearnedEditor for KeTrainer {
    type Network = Constrained;

    fn network(&self) -> &Constrained {
        &self.trained
    }

    fn set_network(&mut self, mut network: Constrained) {
        // α ≥ 0: a constraint that is met with room to spare is not to be broken on purpose.
        let most = self.own.loss.margin.largest_multiplier;
        network.multiplier =
            network.multiplier.map(|multiplier| Tensor::from_inner(multiplier.inner().clamp(0.0, most)).require_grad());
        self.ke.network = network.network.clone();
        self.trained = network;
    }

    fn groups(&self) -> Vec<Group> {
        vec![
            Group {
                name: "multiplier",
                learning_rate: self.own.train.multiplier_learning_rate,
                decays: false,
                norm: "constraint_gradient",
                takes: |path| path == "multiplier",
            },
            Group {
                name: "network",
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
        let constraint = self.constrained().then(|| {
            format!("the multiplier of the constraint is {:.3}, its margin {:.1e}", self.multiplier(), self.margin)
        });
        let notes: Vec<String> = constraint.into_iter().chain(self.loss.note()).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss> {
        if self.constrained() {
            self.loss.weights.locality = self.multiplier();
        }
        let (together, most) = (self.together.draw(rng), self.loss.looked_at(records.len()));
        let texts = self.loss.drawn(records, |number| number < most, together, rng)?;
        let edits: Vec<&[RecordTexts]> = texts.chunks(together).collect();
        let parts = side_by_side(&edits);
        let seen = parallel::run(parts.clone(), |part| self.seen(part))?;
        let look = Look::at(&self.loss.base, &texts);
        let device = self.trained.multiplier.val().device();
        let seen = parts.into_iter().zip(seen).collect();
        let (mut gradients, terms) =
            self.loss.through_deltas(&self.trained, &device, look, seen, |trained, seen: &Seen, part| {
                let edit_of: Vec<usize> =
                    part.iter().enumerate().flat_map(|(edit, records)| records.iter().map(move |_| edit)).collect();
                self.ke.with_network(&trained.network).deltas(seen, &edit_of, part.len())
            })?;
        let mut figures = self.loss.figures(&terms);
        if self.constrained() {
            let broken = terms.kl - self.margin;
            let most = self.own.loss.margin.largest_multiplier;
            let hopeless = broken > 0.0 && self.loss.weights.locality >= most;
            self.broken = if hopeless { self.broken + 1 } else { 0 };
            if self.broken >= HOPELESS {
                return Err(Error::Training(format!(
                    "the constraint was broken for {HOPELESS} steps: out of scope the KL divergence is {:.1e}, above the margin of {:.1e}, though its \
                     multiplier has risen to {most}; raise loss.margin (or loss.smallest_margin), lower editor.scale, or take constraint = \"penalty\"",
                    terms.kl, self.margin
                )));
            }
            // Optimisers descend: α ascends along KL − m.
            let multiplier = self.trained.multiplier.val().inner();
            let ascent = Tensor::<1>::full([1], -broken, (&multiplier.device(), multiplier.dtype()));
            gradients.register(self.trained.multiplier.id, ascent);
            figures.extend([("multiplier", self.loss.weights.locality), ("margin", self.margin)]);
        }
        Ok(StepLoss { gradients, figures })
    }

    fn validated(&mut self, summary: &Summary) {
        let Margin { smallest_margin, margin_decay, margin_success, .. } = self.own.loss.margin;
        if summary.edit_success.is_some_and(|success| success > margin_success) {
            self.margin = (self.margin * margin_decay).max(smallest_margin);
        }
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.ke.edit(model, requests)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let mut tensors = self.ke.tensors();
        tensors.insert(format!("{CONSTRAINT}multiplier"), self.trained.multiplier.val().inner().into_data());
        tensors.insert(format!("{CONSTRAINT}margin"), TensorData::new(vec![self.margin], [1]));
        tensors.insert(format!("{CONSTRAINT}broken"), TensorData::new(vec![self.broken as f64], [1]));
        tensors
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        let of = |name: &str| {
            let found = tensors.get(&format!("{CONSTRAINT}{name}")).filter(|data| data.shape().to_vec() == [1]);
            found
                .cloned()
                .ok_or_else(|| Error::Input(format!("tensor \"{CONSTRAINT}{name}\" is missing or has another shape")))
        };
        let (multiplier, margin) = (of("multiplier")?, of("margin")?);
        self.margin = margin.iter::<f64>().sum();
        self.broken = of("broken")?.iter::<f64>().sum::<f64>() as usize;
        self.ke = self.ke.clone().restored(tensors)?;
        let known = self.trained.multiplier.val();
        let multiplier = Tensor::<1>::from_data(multiplier, (&known.device(), known.dtype()));
        let multiplier = Param::initialized(self.trained.multiplier.id, multiplier.require_grad());
        self.set_network(Constrained { network: self.ke.network.clone(), multiplier });
        Ok(())
    }

    fn settings(&self) -> LearnedEditorSettings {
        LearnedEditorSettings::Ke(self.own.editor.clone())
    }

    fn neighbours(&self) -> usize {
        self.loss.settings.near()
    }
}
