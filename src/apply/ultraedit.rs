//! UltraEdit: many facts in one closed form, without training (Gu et al., 2025).
//!
//! For each edited matrix, with a key k (its input) and the gradient v at its output for each answer token of each edit, and hats for both
//! normalised by the mean and deviation over all edits so far,
//!
//! ```text
//! D = −η ‖k̂‖² v̂        ΔW = (KᵀK + ridge)⁻¹ Kᵀ D
//! ```
//!
//! Edits in turn go on with the figures of those before them, which each edit bears as its state.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Editor;
use super::prepared::Prepared;
use crate::edit::{Change, Edit, EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::network::gradient_transform::Normalizer;
use crate::network::matrices::{AT_ONCE, EditTokens, Matrices};
use crate::network::normal_equations::{NormalEquations, matrix, tensor};
use crate::plan::{OfEditor, Work};
use crate::sections::within;

/// What configs and edits call it.
pub(super) const NAME: &str = "ultraedit";

/// `[editor]` of an UltraEdit config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UltraEditSettings {
    /// The layers whose weights are edited.
    pub layers: Vec<usize>,
    /// The weights edited in each ("mlp.up", "mlp.down", …).
    pub weights: Vec<String>,
    /// η: how far an output moves against its gradient.
    #[serde(default = "edit_rate")]
    pub edit_rate: f64,
    /// The ridge of the normal equations.
    #[serde(default = "ridge")]
    pub ridge: f64,
}

fn edit_rate() -> f64 {
    1e-6
}

fn ridge() -> f64 {
    1.0
}

impl super::MethodSettings for UltraEditSettings {
    fn layers(&self) -> (&'static str, &[usize]) {
        ("layers", &self.layers)
    }

    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        let matrices = Matrices::new(&self.layers, &self.weights, work.spec)?;
        Ok(OfEditor { kept: 0, edit: matrices.bytes_of_edit(work, requests, work.texts.target) })
    }

    fn editor(self: Box<Self>, _: Prepared, model: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(UltraEdit::new(*self, model)?))
    }
}

/// UltraEdit, ready to edit.
pub struct UltraEdit {
    settings: UltraEditSettings,
    matrices: Matrices,
    /// Whether it was said that there are too few tokens.
    warned: AtomicBool,
}

/// Tokens of which mean and deviation say little.
const FEW: f64 = 8.0;

impl UltraEdit {
    /// # Errors
    /// Settings out of range, a matrix that the model does not have.
    pub fn new(settings: UltraEditSettings, model: &Model) -> Result<Self> {
        within("editor.edit_rate", settings.edit_rate, 0.0, 1e9)?;
        within("editor.ridge", settings.ridge, 1e-12, 1e15)?;
        let matrices = Matrices::new(&settings.layers, &settings.weights, &model.decoder.spec)?;
        Ok(UltraEdit { settings, matrices, warned: AtomicBool::new(false) })
    }
}

/// The names of a matrix's figures in the state of an edit.
fn names(weight: impl std::fmt::Display) -> [String; 3] {
    ["count", "mean", "squares"].map(|figure| format!("{figure}.{weight}"))
}

impl Editor for UltraEdit {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let captured = self.matrices.of_requests(model, requests, EditTokens::Answer, AT_ONCE)?;
        let mut state: BTreeMap<String, Tensor<2>> = BTreeMap::new();
        let mut change = PassChange { matrices: BTreeMap::new(), ..Default::default() };
        for (place, edited) in self.matrices.each.iter().enumerate() {
            let all = |part: fn(&(Tensor<2>, Tensor<2>, Vec<usize>)) -> &Tensor<2>| {
                Tensor::cat(captured.iter().map(|some| part(&some.factors[place]).clone()).collect(), 0)
            };
            let (keys, gradients) = (all(|factors| &factors.0), all(|factors| &factors.1));
            let ([tokens, d_in], d_out) = (keys.dims(), gradients.dims()[1]);
            let rows = Tensor::cat(vec![keys.clone(), gradients], 1);
            let mut own = Normalizer::new(d_in + d_out, (&rows.device(), rows.dtype()));
            own.update(rows.clone());
            let names = names(edited.weight);
            let mut so_far = own.clone();
            for earlier in model.edits().iter().filter(|edit| edit.provenance.method == NAME) {
                let figure =
                    |name: &String| earlier.state.get(name).map(|figure| figure.clone().to_device(&rows.device()));
                let (Some(count), Some(mean), Some(squares)) =
                    (figure(&names[0]), figure(&names[1]), figure(&names[2]))
                else {
                    continue;
                };
                // An edit that was joined of several has a column of each.
                let edits = count.dims()[1];
                if count.dims()[0] != 1 || [mean.dims(), squares.dims()] != [[d_in + d_out, edits]; 2] {
                    let message = format!("edit {}: its state holds no figures of {}", earlier.id(), edited.weight);
                    return Err(Error::Input(message));
                }
                let counts: Vec<f64> = count.into_data().iter::<f64>().collect();
                for (column, count) in counts.into_iter().enumerate() {
                    let of = |figure: &Tensor<2>| figure.clone().narrow(1, column, 1).squeeze_dim::<1>(1);
                    so_far = so_far.joined(&Normalizer { count, mean: of(&mean), squares: of(&squares) });
                }
            }
            if so_far.count < FEW && !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "UltraEdit normalises by the mean and deviation of all tokens edited so far, and these are {}: so few facts barely move; give it \
                     ten or more at once",
                    so_far.count
                );
            }
            let hats = so_far.normalize(rows);
            let key = hats.clone().slice([0..tokens, 0..d_in]);
            let gradient = hats.slice([0..tokens, d_in..d_in + d_out]);
            let wanted = gradient * key.square().sum_dim(1).mul_scalar(-self.settings.edit_rate);
            let equations = NormalEquations::new(&keys, false, self.settings.ridge.ln(), None)?;
            let solution = equations.solve(&matrix(&wanted));
            let solution = tensor(&solution, &keys.device(), keys.dtype());
            change.matrices.insert(edited.weight, equations.shift(&[solution]).smaller());
            let count = Tensor::<2>::full([1, 1], own.count, (&keys.device(), keys.dtype()));
            let figures = [count, own.mean.unsqueeze_dim(1), own.squares.unsqueeze_dim(1)];
            state.extend(names.into_iter().zip(figures));
        }
        Ok(Edit::new(self.provenance(model, requests), Change::Pass(change), state))
    }

    fn describe(&self) -> (String, Value) {
        (NAME.into(), serde_json::to_value(&self.settings).unwrap_or_default())
    }
}
