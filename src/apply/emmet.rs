//! EMMET: a batch of associations under equality constraints (Gupta et al., 2024): `ΔW = C⁻¹K (KᵀC⁻¹K + ridge)⁻¹ Rᵀ`
//! maps every key to its value exactly where the ridge is 0.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use faer::linalg::solvers::Solve;
use faer::{Mat, Scale, Side};
use serde::{Deserialize, Serialize};

use super::Editor;
use super::association::{Association, defaults_of_many};

use super::memit::{Spread, TOGETHER, singular, spread};
use super::prepared::Prepared;
use crate::edit::{Change, Edit, EditRequest, Edited};
use crate::error::Result;
use crate::model::Model;
use crate::plan::{OfEditor, Work};

/// What configs and edits call it.
pub(super) const NAME: &str = "emmet";

/// `[editor]` of an EMMET config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmmetSettings {
    /// Where the associations go, and how they are found.
    #[serde(flatten)]
    pub association: Association,
    /// λ: C is scaled by it, so that the ridge counts for less or more.
    #[serde(default = "covariance_weight")]
    pub covariance_weight: f64,
    /// Added to the diagonal of KᵀC⁻¹K.
    #[serde(default = "ridge")]
    pub ridge: f64,
}

fn covariance_weight() -> f64 {
    10_000.0
}

fn ridge() -> f64 {
    0.1
}

impl super::MethodSettings for EmmetSettings {
    fn defaults() -> toml::Table {
        defaults_of_many()
    }

    fn association(&self) -> Option<&Association> {
        Some(&self.association)
    }

    fn association_mut(&mut self) -> Option<&mut Association> {
        Some(&mut self.association)
    }

    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        Ok(self.association.held(work, requests.min(TOGETHER * work.threads)))
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(Emmet::new(*self, prepared)?))
    }
}

/// EMMET, ready to edit.
pub struct Emmet {
    settings: EmmetSettings,
    prepared: Prepared,
}

impl Emmet {
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: EmmetSettings, prepared: Prepared) -> Result<Self> {
        settings.association.descent.check()?;
        crate::sections::within("editor.covariance_weight", settings.covariance_weight, 1e-12, 1e15)?;
        crate::sections::within("editor.ridge", settings.ridge, 0.0, 1e15)?;
        Ok(Emmet { settings, prepared })
    }
}

impl Editor for Emmet {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let Spread { change, findings } =
            spread(model, requests, &self.settings.association, &self.prepared.progress, &mut |layer, keys| {
                let x = self.prepared.whiten(layer, keys.clone())? * Scale(1.0 / self.settings.covariance_weight);
                constrained(&x, keys, self.settings.ridge)
            })?;
        let provenance = self.provenance(model, requests).with_findings(findings);
        Ok(Edit::new(provenance, Change::Pass(change), BTreeMap::new()))
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}

/// `X (KᵀX + ridge)⁻¹` with `X = C⁻¹K`.
///
/// # Errors
/// A singular system: two requests with one key, and no ridge.
pub fn constrained(x: &Mat<f64>, keys: &Mat<f64>, ridge: f64) -> Result<Mat<f64>> {
    let mut d = keys.transpose() * x;
    for index in 0..keys.ncols() {
        d[(index, index)] += ridge;
    }
    let factor = d.llt(Side::Lower).map_err(|_| singular())?;
    // A key that others make up leaves a pivot that is 0 but for rounding.
    let pivots = factor.L();
    let lost = |index: usize| pivots[(index, index)].powi(2) <= 1e-14 * d[(index, index)];
    if (0..d.ncols()).any(lost) {
        return Err(singular());
    }
    Ok(factor.solve(x.transpose()).transpose().to_owned())
}
