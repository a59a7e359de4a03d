//! Low-rank fine-tuning on the edit alone (LoRA, Hu et al., 2022): `ΔW = (α / r) A B` with `A [d_in, r]` drawn and `B [r, d_out]` zero at first.
//! [`super::tuning`] is the descent; the edit is a LoRA adapter as it stands, and `--export peft` writes it as one.
//!
//! With `G = uᵀδ` the gradient of the matrix, that of A is `(α / r) G Bᵀ` and that of B `(α / r) Aᵀ G`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::Editor;
use super::prepared::{Prepared, precision};
use super::tuning::{Tuned, TunedTensor, Tuning, TuningSettings, WeightGradients};
use crate::data::objective::Objective;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::tap::Weight;
use crate::plan::{OfEditor, Work};
use crate::random;
use crate::sections::choice;
use crate::sections::within;

/// What configs and edits call it.
pub(super) const NAME: &str = "lora";

/// `[editor]` of a LoRA config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// The descent. Its seed draws A, too.
    #[serde(flatten)]
    pub tuning: TuningSettings,
    /// r
    #[serde(default = "rank")]
    pub rank: usize,
    /// α: the change is `(α / r) A B`.
    #[serde(default = "alpha")]
    pub alpha: f64,
}

fn rank() -> usize {
    8
}
fn alpha() -> f64 {
    32.0
}

impl super::MethodSettings for LoraSettings {
    fn defaults() -> toml::Table {
        toml::toml! {
            steps = 200
            weights = ["attention.query", "attention.value"]
        }
    }

    fn check_used(&self, given: &toml::Table) -> Result<()> {
        let of_texts = ["locality", "locality_texts", "locality_field"];
        choice::refuse_at_zero("editor", given, ("kl", self.tuning.kl), &of_texts)
    }

    fn layers(&self) -> (&'static str, &[usize]) {
        ("layers", &self.tuning.layers)
    }

    fn seed(&self) -> u64 {
        self.tuning.held.seed
    }

    /// The gradients of whole matrices, and the step's graph; the factors are small.
    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        let weights = Weight::all_named(&self.tuning.layers, &self.tuning.weights)?;
        let whole: usize = weights.iter().map(|at| work.spec.shape(at.role).iter().product::<usize>()).sum();
        Ok(OfEditor { kept: 0, edit: 4 * whole as u64 + self.tuning.bytes_of_step(work, requests)? })
    }

    fn editor(self: Box<Self>, prepared: Prepared, model: &Arc<Model>, folder: &Path) -> Result<Box<dyn Editor>> {
        let texts = self.tuning.texts(model, folder)?;
        Ok(Box::new(Lora::new(*self, prepared, texts)?))
    }
}

/// LoRA, ready to edit.
pub struct Lora {
    settings: LoraSettings,
    prepared: Prepared,
    tuning: Tuning,
}

impl Lora {
    /// `texts` are those of `locality`, as tokens.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: LoraSettings, prepared: Prepared, texts: Vec<Vec<u32>>) -> Result<Self> {
        within("editor.rank", settings.rank as f64, 1.0, 1e5)?;
        within("editor.alpha", settings.alpha, 0.0, 1e6)?;
        let tuning = Tuning::new(settings.tuning.clone(), texts)?;
        Ok(Lora { settings, prepared, tuning })
    }

    /// A from U(−1/√d_in, 1/√d_in), each matrix's from a stream of its own; B = 0.
    fn begin(&self, model: &Edited) -> Result<Factors> {
        let (rank, seed) = (self.settings.rank, self.settings.tuning.held.seed);
        let place = (&model.base().decoder.device(), precision(model));
        let mut factors = BTreeMap::new();
        for &at in &self.tuning.weights {
            let [d_in, d_out] = model.base().decoder.linear(at)?.weight.dims();
            if rank > d_in.min(d_out) {
                let message =
                    format!("editor.rank = {rank}: {at} is [{d_in}, {d_out}], and no rank is above its smaller side");
                return Err(Error::Config(message));
            }
            let mut rng = random::stream(seed, &format!("lora {at}"), 0);
            let most = 1.0 / (d_in as f64).sqrt();
            let drawn: Vec<f64> = (0..d_in * rank).map(|_| rng.random_range(-most..most)).collect();
            let a = Tensor::from_data(TensorData::new(drawn, [d_in, rank]), place);
            factors.insert(at, [TunedTensor::new(a), TunedTensor::new(Tensor::zeros([rank, d_out], place))]);
        }
        Ok(Factors { factors, scale: self.settings.alpha / rank as f64 })
    }
}

/// A and B of each matrix.
struct Factors {
    factors: BTreeMap<Weight, [TunedTensor<2>; 2]>,
    /// α / r
    scale: f64,
}

impl Tuned for Factors {
    fn change(&self) -> PassChange {
        let delta = |[a, b]: &[TunedTensor<2>; 2]| Delta::LowRank {
            a: a.value.clone().mul_scalar(self.scale),
            b: b.value.clone(),
        };
        let matrices = self.factors.iter().map(|(&at, factors)| (at, delta(factors))).collect();
        PassChange { matrices, ..Default::default() }
    }

    fn step(&mut self, gradients: WeightGradients, settings: &TuningSettings, step: usize) {
        for (at, (whole, _)) in gradients {
            let Some([a, b]) = self.factors.get_mut(&at) else { continue };
            let whole = whole.cast(a.value.dtype()).mul_scalar(self.scale);
            let of_a = whole.clone().matmul(b.value.clone().transpose());
            let of_b = a.value.clone().transpose().matmul(whole);
            a.step(of_a, settings, step);
            b.step(of_b, settings, step);
        }
    }
}

impl Editor for Lora {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let change = self.tuning.tune(model, requests, || self.begin(model))?.change();
        Ok(Edit::new(self.provenance(model, requests), Change::Pass(change), BTreeMap::new()))
    }

    fn takes(&self, _: &Objective) -> bool {
        true
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}
