//! AlphaEdit: MEMIT's update, projected where it cannot disturb what C knows (Fang et al., 2025).
//!
//! With P the projection on the eigenvectors of C whose eigenvalues are below a threshold, and Kₚ the keys of earlier
//! edits,
//!
//! ```text
//! ΔW = (P (K Kᵀ + Kₚ Kₚᵀ) P + l2)⁻¹ P K Rᵀ
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use faer::linalg::solvers::Solve;
use faer::{Mat, Scale, Side};
use serde::{Deserialize, Serialize};

use super::Editor;
use super::association::{Association, defaults_of_many};

use super::memit::{Spread, TOGETHER, singular, spread};
use super::prepared::{Prepared, columns, tensor};
use crate::edit::{Change, Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{OfEditor, Work};

/// What configs and edits call it.
pub(super) const NAME: &str = "alphaedit";

/// `[editor]` of an AlphaEdit config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlphaEditSettings {
    /// Where the associations go, and how they are found.
    #[serde(flatten)]
    pub association: Association,
    /// Eigenvalues of C below this span the null space.
    #[serde(default = "null_space_threshold")]
    pub null_space_threshold: f64,
    /// The ridge.
    #[serde(default = "l2")]
    pub l2: f64,
}

fn null_space_threshold() -> f64 {
    0.02
}

fn l2() -> f64 {
    10.0
}

impl super::MethodSettings for AlphaEditSettings {
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
        let held = self.association.held(work, requests.min(TOGETHER * work.threads));
        // The basis of each layer's null space, in f64.
        let bases = 8 * (self.association.layers.len() * work.spec.mlp.width.pow(2)) as u64;
        Ok(OfEditor { kept: held.kept + bases, ..held })
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(AlphaEdit::new(*self, prepared)?))
    }
}

/// AlphaEdit, ready to edit.
pub struct AlphaEdit {
    settings: AlphaEditSettings,
    prepared: Prepared,
    /// For each layer a basis `[width, rank]` of the null space.
    bases: BTreeMap<usize, Mat<f64>>,
}

impl AlphaEdit {
    /// # Errors
    /// Settings out of range, no statistics, or no null space under the threshold.
    pub fn new(settings: AlphaEditSettings, prepared: Prepared) -> Result<Self> {
        settings.association.descent.check()?;
        crate::sections::within("editor.l2", settings.l2, 1e-12, 1e15)?;
        crate::sections::within("editor.null_space_threshold", settings.null_space_threshold, 0.0, 1e15)?;
        let Some(statistics) = &prepared.statistics else {
            let message = "editor.statistics: AlphaEdit's null space is that of C; it cannot go without";
            return Err(Error::Config(message.into()));
        };
        let mut bases = BTreeMap::new();
        for &layer in &settings.association.layers {
            let c = statistics.second_moment(layer)?;
            bases.insert(layer, null_space(&c, settings.null_space_threshold, layer)?);
        }
        Ok(AlphaEdit { settings, prepared, bases })
    }
}

impl Editor for AlphaEdit {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let mut state: BTreeMap<String, Tensor<2>> = BTreeMap::new();
        let Spread { change, mut findings } =
            spread(model, requests, &self.settings.association, &self.prepared.progress, &mut |layer, keys| {
                let basis = self.bases.get(&layer).ok_or_else(singular)?;
                let name = format!("keys.{layer}");
                let mine = |edit: &&Arc<Edit>| edit.provenance.method == NAME;
                let earlier: Vec<_> = model
                    .edits()
                    .iter()
                    .filter(mine)
                    .filter_map(|edit| Some((edit.id(), edit.state.get(&name)?)))
                    .collect();
                if let Some((id, _)) = earlier.iter().find(|(_, keys)| keys.dims()[0] != basis.nrows()) {
                    let message = format!("edit {id}: its state \"{name}\" holds no keys of width {}", basis.nrows());
                    return Err(Error::Input(message));
                }
                // Each edit's state holds its own keys, `[width, requests]`.
                let earlier: Vec<Mat<f64>> =
                    earlier.iter().map(|(_, keys)| columns(&(*keys).clone().transpose())).collect();
                state.insert(name, tensor(model, keys));
                projected(basis, keys, &earlier, self.settings.l2)
            })?;
        let ranks: BTreeMap<usize, usize> = self.bases.iter().map(|(&layer, basis)| (layer, basis.ncols())).collect();
        findings["null_space_ranks"] = serde_json::json!(ranks);
        let provenance = self.provenance(model, requests).with_findings(findings);
        Ok(Edit::new(provenance, Change::Pass(change), state))
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, serde_json::Value) {
        self.prepared.describe(NAME, &self.settings)
    }
}

/// An orthonormal basis `[width, rank]` of the eigenvectors of C with eigenvalues below the threshold.
///
/// # Errors
/// There are none, or C has no eigenvalues that can be computed.
pub fn null_space(c: &Mat<f64>, threshold: f64, layer: usize) -> Result<Mat<f64>> {
    let eigen = c.self_adjoint_eigen(Side::Lower);
    let eigen = eigen.map_err(|error| Error::Input(format!("C of layer {layer} has no eigenvalues: {error:?}")))?;
    let (values, vectors) = (eigen.S(), eigen.U());
    // In rising order.
    let rank = (0..c.nrows()).take_while(|&index| values[index] < threshold).count();
    if rank == 0 {
        return Err(Error::Config(format!(
            "editor.null_space_threshold = {threshold}: no eigenvalue of layer {layer}'s C is below it (least: {:.2e})",
            values[0]
        )));
    }
    Ok(vectors.subcols(0, rank).to_owned())
}

/// `(P (K Kᵀ + Σ Kₚ Kₚᵀ) P + l2)⁻¹ P K`, by Woodbury in the space of the keys.
///
/// # Errors
/// A singular system.
pub fn projected(basis: &Mat<f64>, keys: &Mat<f64>, earlier: &[Mat<f64>], l2: f64) -> Result<Mat<f64>> {
    // In the basis, with G all keys: (G Gᵀ + l2)⁻¹ g = (g − G (l2 + GᵀG)⁻¹ Gᵀ g) / l2.
    let own = basis.transpose() * keys;
    let count = keys.ncols() + earlier.iter().map(|keys| keys.ncols()).sum::<usize>();
    let mut all = Mat::<f64>::zeros(basis.ncols(), count);
    let mut next = 0;
    for part in std::iter::once(keys).chain(earlier) {
        let part = basis.transpose() * part;
        all.as_mut().subcols_mut(next, part.ncols()).copy_from(&part);
        next += part.ncols();
    }
    let mut small = all.transpose() * &all;
    for index in 0..count {
        small[(index, index)] += l2;
    }
    let factor = small.llt(Side::Lower).map_err(|_| singular())?;
    let solved = factor.solve(all.transpose() * &own);
    let inside = (&own - &all * solved) * Scale(1.0 / l2);
    Ok(basis * inside)
}
