//! `[train]`: how long, how fast and how carefully an editor learns.

use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::learned::Group;
use super::schedule::{Schedule, Shape};
use crate::error::{Error, Result};
use crate::sections::choice::{self, Choice, fields};
use crate::sections::within;

/// What `[train]` says of every training; an editor may have keys of its own beside these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// The seed of every draw.
    #[serde(default)]
    pub seed: u64,
    /// Optimiser updates.
    pub max_steps: usize,
    /// Records that share a forward pass.
    #[serde(default = "one")]
    pub edits_per_step: usize,
    /// Records whose edits are applied together to one model: so many, or from so many to so many, drawn a pass.
    #[serde(default)]
    pub edits_together: Together,
    /// Passes whose gradients are averaged in an update.
    #[serde(default = "one")]
    pub accumulate: usize,
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
    /// The optimiser.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Of AdamW.
    #[serde(flatten)]
    pub adamw: AdamW,
    /// Steps of a linear warm-up.
    #[serde(default)]
    pub warm_up: usize,
    /// How the learning rates go on.
    #[serde(default)]
    pub schedule: Shape,
    /// Of a cosine.
    #[serde(flatten)]
    pub cosine: Cosine,
    /// The largest norm of the gradient; SERAC's two networks have one each.
    #[serde(default = "clip")]
    pub clip: f64,
    /// Steps in a row with a loss or gradient that is not finite until the training stops.
    #[serde(default = "stop_after")]
    pub stop_after_not_finite: usize,
    /// Minutes after which the state is saved, beside validations; 0 for never. It decides nothing, so that a training may go on under another.
    #[serde(default = "save_minutes")]
    pub save_minutes: f64,
}

fn one() -> usize {
    1
}

fn validate_every() -> usize {
    200
}

fn validation_records() -> usize {
    200
}

fn save_minutes() -> f64 {
    10.0
}

fn clip() -> f64 {
    100.0
}

fn stop_after() -> usize {
    10
}

/// How many edits share a model. In a config one number, or two for a range: `[1, 10]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Together {
    /// At least.
    pub fewest: usize,
    /// At most; so many are validated and tested together.
    pub most: usize,
}

impl Default for Together {
    fn default() -> Self {
        Together { fewest: 1, most: 1 }
    }
}

impl From<usize> for Together {
    fn from(number: usize) -> Self {
        Together { fewest: number, most: number }
    }
}

impl Together {
    /// How many it is in a pass. Where it is one number nothing is drawn.
    pub fn draw(self, rng: &mut ChaCha8Rng) -> usize {
        if self.fewest == self.most { self.most } else { rng.random_range(self.fewest..=self.most) }
    }
}

impl Serialize for Together {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.fewest == self.most {
            true => self.most.serialize(serializer),
            false => [self.fewest, self.most].serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Together {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NumberOrRange;
        impl<'de> Visitor<'de> for NumberOrRange {
            type Value = Together;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of edits, or two for a range, as in [1, 10]")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> std::result::Result<Together, E> {
                Ok((number as usize).into())
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> std::result::Result<Together, E> {
                let number = usize::try_from(number);
                number.map(Together::from).map_err(|_| E::custom("edits are counted from 1 on"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> std::result::Result<Together, A::Error> {
                let (fewest, most, more) =
                    (numbers.next_element()?, numbers.next_element()?, numbers.next_element::<usize>()?);
                match (fewest, most, more) {
                    (Some(fewest), Some(most), None) => Ok(Together { fewest, most }),
                    _ => Err(serde::de::Error::custom("a range of edits has two ends, as in [1, 10]")),
                }
            }
        }
        deserializer.deserialize_any(NumberOrRange)
    }
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

/// Keys of `optimizer = "adamw"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamW {
    /// The decay.
    pub weight_decay: f32,
}

/// Keys of `schedule = "cosine"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cosine {
    /// What is left at the end, as a share of the height.
    pub schedule_end: f64,
}

impl Choice for Optimizer {
    const KEY: &'static str = "optimizer";
    const VALUES: &'static [Self] = &[Optimizer::Adam, Optimizer::AdamW];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Optimizer::Adam => &[],
            Optimizer::AdamW => fields::<AdamW>(),
        }
    }
}

impl Choice for Shape {
    const KEY: &'static str = "schedule";
    const VALUES: &'static [Self] = &[Shape::Constant, Shape::Cosine];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Shape::Constant => &[],
            Shape::Cosine => fields::<Cosine>(),
        }
    }
}

impl TrainSettings {
    /// From the section `[train]` of a config, without the keys of the editor; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, or that the choices made do not use; a value of the wrong type or out of range.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        let settings: TrainSettings = choice::read("train", given, origin)?;
        choice::check("train", given, settings.optimizer)?;
        choice::check("train", given, settings.schedule)?;
        settings.check()?;
        Ok(settings)
    }

    /// # Errors
    /// Names the key that is out of range.
    pub fn check(&self) -> Result<()> {
        within("train.max_steps", self.max_steps as f64, 1.0, 1e12)?;
        within("train.edits_per_step", self.edits_per_step as f64, 1.0, 1e6)?;
        within("train.accumulate", self.accumulate as f64, 1.0, 1e6)?;
        let Together { fewest, most } = self.edits_together;
        within("train.edits_together", most as f64, 1.0, self.edits_per_step as f64)?;
        if fewest == 0 || fewest > most {
            let message =
                format!("train.edits_together = [{fewest}, {most}]: a range goes from 1 or more up to as many or more");
            return Err(Error::Config(message));
        }
        within("train.validate_every", self.validate_every as f64, 1.0, 1e12)?;
        within("train.validation_records", self.validation_records as f64, 1.0, 1e9)?;
        within("train.learning_rate", self.learning_rate, 0.0, 10.0)?;
        within("train.schedule_end", self.cosine.schedule_end, 0.0, 1.0)?;
        within("train.clip", self.clip, 1e-12, f64::INFINITY)?;
        within("train.save_minutes", self.save_minutes, 0.0, 1e6)?;
        within("train.stop_after_not_finite", self.stop_after_not_finite as f64, 1.0, 1e12)?;
        within("train.weight_decay", f64::from(self.adamw.weight_decay), 0.0, 10.0)
    }

    /// The learning rate's course to and from its `height`.
    pub fn schedule(&self, height: f64) -> Schedule {
        let (warm_up, steps, end) = (self.warm_up, self.max_steps, self.cosine.schedule_end);
        Schedule { height, warm_up, steps, end, shape: self.schedule }
    }

    /// The optimiser of a group of parameters, in its first state.
    pub fn optimizer(&self, group: &Group) -> ModuleOptimizer {
        // A rate's logarithm has no place to decay to.
        let decay = if group.decays { self.adamw.weight_decay } else { 0.0 };
        match self.optimizer {
            Optimizer::Adam => AdamConfig::new().with_epsilon(1e-8).init(),
            Optimizer::AdamW => AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(decay).init(),
        }
    }
}
