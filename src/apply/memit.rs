//! MEMIT: many associations in several layers at once (Meng et al., 2023).
//!
//! For each request a stream z at the last of the layers is found that makes the model answer. Then, from the lowest
//! layer up, each takes its share of what is still missing: with keys K and `R = (z − stream) / layers left`,
//!
//! ```text
//! ΔW = (λC + K Kᵀ)⁻¹ K Rᵀ
//! ```
//!
//! where later layers see what earlier ones changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use faer::linalg::solvers::Solve;
use faer::{Mat, Scale, Side};
use serde::{Deserialize, Serialize};

use super::Editor;
use super::association::{Association, defaults_of_many};
use super::contexts::{RequestInContexts, templates};
use super::prepared::{Prepared, Progress, check, columns, of_request, tensor};
use super::value::{AddedTo, Cone, descend};
use crate::data::objective::Objective;
use crate::edit::noise::Noise;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::layers::norm::Norm;
use crate::model::stack::taps::{Recorder, cells};
use crate::model::tap::{NoTap, Place, Role, Site, Stack, Weight};
use crate::model::tokens::Tokens;
use crate::parallel;
use crate::plan::{OfEditor, Work};

/// Requests whose z are found together: what autodiff keeps of each is 50 MB on a model of 30 layers.
pub(super) const TOGETHER: usize = 5;

/// Rows of a batch of texts.
const ROWS: usize = 128;

/// What configs and edits call it.
pub(super) const NAME: &str = "memit";

/// `[editor]` of a MEMIT config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemitSettings {
    /// Where the associations go, and how they are found.
    #[serde(flatten)]
    pub association: Association,
    /// λ: how much C counts against the new keys.
    #[serde(default = "covariance_weight")]
    pub covariance_weight: f64,
}

fn covariance_weight() -> f64 {
    15_000.0
}

impl super::MethodSettings for MemitSettings {
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
        Ok(Box::new(Memit::new(*self, prepared)?))
    }
}

/// MEMIT, ready to edit.
pub struct Memit {
    settings: MemitSettings,
    prepared: Prepared,
}

impl Memit {
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: MemitSettings, prepared: Prepared) -> Result<Self> {
        settings.association.descent.check()?;
        crate::sections::within("editor.covariance_weight", settings.covariance_weight, 1e-12, 1e15)?;
        Ok(Memit { settings, prepared })
    }
}

impl Editor for Memit {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let weight = self.settings.covariance_weight;
        let Spread { change, findings } =
            spread(model, requests, &self.settings.association, &self.prepared.progress, &mut |layer, keys| {
                if keys.ncols() < keys.nrows() {
                    // The cached factor of C serves every edit.
                    let whitened = self.prepared.whiten(layer, keys.clone())? * Scale(1.0 / weight);
                    return woodbury(&whitened, keys);
                }
                let c = match &self.prepared.statistics {
                    Some(statistics) => statistics.second_moment(layer)?,
                    None => Mat::identity(keys.nrows(), keys.nrows()),
                };
                direct(&(c * Scale(weight)), keys)
            })?;
        let provenance = self.provenance(model, requests).with_findings(findings);
        Ok(Edit::new(provenance, Change::Pass(change), BTreeMap::new()))
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

/// `(A + K Kᵀ)⁻¹ K` with `X = A⁻¹K`, by Woodbury: `X (1 + KᵀX)⁻¹`, a system as large as the keys are many.
///
/// # Errors
/// A singular system.
pub fn woodbury(x: &Mat<f64>, keys: &Mat<f64>) -> Result<Mat<f64>> {
    let count = keys.ncols();
    let mut small = keys.transpose() * x;
    for index in 0..count {
        small[(index, index)] += 1.0;
    }
    // X S⁻¹ = (S⁻¹ Xᵀ)ᵀ, S being symmetric.
    let factor = small.llt(Side::Lower).map_err(|_| singular())?;
    Ok(factor.solve(x.transpose()).transpose().to_owned())
}

/// `(A + K Kᵀ)⁻¹ K` itself.
///
/// # Errors
/// A singular system.
pub fn direct(a: &Mat<f64>, keys: &Mat<f64>) -> Result<Mat<f64>> {
    let system = a + keys * keys.transpose();
    Ok(system.llt(Side::Lower).map_err(|_| singular())?.solve(keys))
}

pub(super) fn singular() -> Error {
    let message = "the system of the keys is singular: two requests may be one, or statistics of more tokens may help";
    Error::Input(message.into())
}

/// `(layer, K [mlp width, requests])` → `A [mlp width, requests]`, with which a layer's change is `A Rᵀ`.
pub(super) type Adjust<'a> = &'a mut dyn FnMut(usize, &Mat<f64>) -> Result<Mat<f64>>;

/// The result of spreading.
pub(super) struct Spread {
    /// Of each layer's down-projection.
    pub change: PassChange,
    /// How z was found.
    pub findings: serde_json::Value,
}

/// Finds z for all requests, and spreads what is missing over the layers. `adjust` turns a layer's keys
/// `[width, requests]` into the left factor of its update.
pub(super) fn spread(
    model: &Edited,
    requests: &[EditRequest],
    settings: &Association,
    progress: &Progress,
    adjust: Adjust<'_>,
) -> Result<Spread> {
    check(requests)?;
    let (Some(&lowest), Some(&last)) = (settings.layers.first(), settings.layers.last()) else {
        return Err(Error::Config("editor.layers must name at least one layer".into()));
    };
    if settings.layers.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(Error::Config("editor.layers must be in order, each once".into()));
    }
    let templates = templates(model, &settings.context_templates, &settings.context)?;
    let in_contexts = requests.iter().enumerate().map(|(number, request)| {
        RequestInContexts::new(model, request, &templates).map_err(|error| of_request(requests, number, error))
    });
    let in_contexts = in_contexts.collect::<Result<Vec<_>>>()?;
    let found =
        parallel::each(&model.base().decoder.device(), together(&in_contexts), |together: &[RequestInContexts]| {
            let cone = Cone::new(model, last, &together.iter().collect::<Vec<_>>())?;
            let found = descend(model, &cone, &settings.descent, AddedTo::Stream)?;
            progress(together.len());
            let firsts = (0..together.len()).map(|request| (0, cone.contexts(request).start)).collect::<Vec<_>>();
            Ok((cells(cone.streams.clone().unsqueeze_dim(0), &firsts) + found.delta.clone(), found.findings()))
        })?;
    let (wanted, findings): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let findings = findings.concat();
    let wanted = columns(&Tensor::cat(wanted, 0));

    let mut texts = SubjectTexts::new(model, &in_contexts, lowest)?;
    let mut current = model.clone();
    let mut change = PassChange::default();
    for (number, &layer) in settings.layers.iter().enumerate() {
        let Seen { keys, values, streams } = texts.seen(&current, layer, last)?;
        let left = settings.layers.len() - number;
        let missing = (&wanted - streams) * Scale(1.0 / left as f64);
        let missing = match current.norm_behind_mlp(layer) {
            Some(norm) => before_norm(norm, &values, &missing),
            None => missing,
        };
        let adjusted = adjust(layer, &keys)?;
        let (a, b) = (tensor(model, &adjusted), tensor(model, &missing.transpose().to_owned()));
        let delta = Delta::LowRank { a, b }.smaller();
        let at = Weight::decoder(layer, Role::MlpDown);
        change.matrices.insert(at, delta.clone());
        if left == 1 {
            break;
        }
        // The next layer sees this one's change.
        current = current.with_change(&PassChange { matrices: [(at, delta)].into(), ..Default::default() })?;
    }
    Ok(Spread { change, findings: serde_json::json!({"requests": findings}) })
}

/// What MLPs must say otherwise, `[width, requests]`, so that the norm behind them gives `missing` more than it does of `values`.
fn before_norm(norm: &Norm, values: &Mat<f64>, missing: &Mat<f64>) -> Mat<f64> {
    let column = |of: &Mat<f64>, request: usize| (0..of.nrows()).map(|row| of[(row, request)]).collect::<Vec<f64>>();
    let changes =
        (0..values.ncols()).map(|request| norm.change_before(&column(values, request), &column(missing, request)));
    let changes: Vec<Vec<f64>> = changes.collect();
    Mat::from_fn(values.nrows(), values.ncols(), |row, request| changes[request][row])
}

/// What is seen of all requests at a layer.
struct Seen {
    /// `[mlp width, requests]`: the mean of its first context's and of the mean of the others: the bare prompt counts half.
    keys: Mat<f64>,
    /// What its MLP says in the first context, `[width, requests]`.
    values: Mat<f64>,
    /// The streams above the last layer in the first context, `[width, requests]`.
    streams: Mat<f64>,
}

/// The requests whose z are found together: two halves, each in parts of at most [`TOGETHER`], so that two cores share a few requests and
/// the parts do not depend on how many cores there are.
fn together(in_contexts: &[RequestInContexts]) -> Vec<&[RequestInContexts]> {
    in_contexts.chunks(in_contexts.len().div_ceil(2)).flat_map(|half| half.chunks(TOGETHER)).collect()
}

/// The texts of all requests up to their subjects, as far as the layers have carried them.
struct SubjectTexts {
    batches: Vec<(Tokens, Tensor<3>)>,
    /// For each batch the subject's cell of each row.
    subjects: Vec<Vec<(usize, usize)>>,
    /// Rows of each request: the first is the prompt in its first context.
    rows: usize,
    /// The layer whose input the hidden states are.
    at_layer: usize,
}

impl SubjectTexts {
    fn new(model: &Edited, in_contexts: &[RequestInContexts], layer: usize) -> Result<Self> {
        let rows = in_contexts[0].rows.len();
        let (mut batches, mut subjects) = (vec![], vec![]);
        for together in in_contexts.chunks((ROWS / rows).max(1)) {
            let texts = together.iter().flat_map(|request| request.rows.iter().zip(&request.subjects));
            let whole = texts.clone().map(|(text, _)| text.text());
            let texts: Vec<Vec<u32>> = texts.clone().map(|(text, &subject)| text.ids[..=subject].to_vec()).collect();
            subjects.push(texts.iter().enumerate().map(|(row, ids)| (row, ids.len() - 1)).collect());
            let tokens = Tokens::new(texts).of(whole);
            let noise = together.iter().flat_map(|request| request.noise.0.iter().cloned());
            let hidden = model.embed(&tokens, &mut Noise(noise.collect()))?;
            let hidden = model.blocks(hidden, 0..layer, tokens.span(), None, &mut NoTap)?;
            batches.push((tokens, hidden));
        }
        Ok(SubjectTexts { batches, subjects, rows, at_layer: layer })
    }

    /// What is seen at a layer, on the model as it is now.
    fn seen(&mut self, model: &Edited, layer: usize, last: usize) -> Result<Seen> {
        let site = |place| Site { stack: Stack::Decoder, layer, place };
        let (mut keys, mut values, mut streams) = (vec![], vec![], vec![]);
        for ((tokens, hidden), subjects) in self.batches.iter_mut().zip(&self.subjects) {
            *hidden = model.blocks(hidden.clone(), self.at_layer..layer, tokens.span(), None, &mut NoTap)?;
            let mut recorder = Recorder::at([site(Place::MlpHidden), site(Place::MlpOut)]);
            let above = model.blocks(hidden.clone(), layer..layer + 1, tokens.span(), None, &mut recorder)?;
            let mut at = |place| {
                let seen = recorder.values.remove(&site(place)).map(|seen| cells(seen, subjects));
                seen.ok_or_else(|| Error::Input(format!("layer {layer} was not reached")))
            };
            let (seen, said) = (at(Place::MlpHidden)?, at(Place::MlpOut)?);
            let [count, width] = seen.dims();
            let requests = count / self.rows;
            let seen = seen.reshape([requests, self.rows, width]);
            let first = seen.clone().slice([0..requests, 0..1, 0..width]).squeeze_dim::<2>(1);
            keys.push(match self.rows {
                1 => first,
                rows => {
                    let others = seen.slice([0..requests, 1..rows, 0..width]).mean_dim(1).squeeze_dim::<2>(1);
                    (first + others).mul_scalar(0.5)
                }
            });
            // Only the first context's stream is asked for.
            let firsts: Vec<usize> = (0..requests).map(|request| request * self.rows).collect();
            let index: Vec<i64> = firsts.iter().map(|&row| row as i64).collect();
            let index = Tensor::<1, Int>::from_data(index.as_slice(), &above.device());
            values.push(said.select(0, index.clone()));
            let some = tokens.chosen(&firsts);
            let [_, _, channels] = above.dims();
            let above = above.select(0, index).slice([0..requests, 0..some.span().width, 0..channels]);
            let above = model.blocks(above, layer + 1..last + 1, some.span(), None, &mut NoTap)?;
            let ends = some.ids().iter().enumerate().map(|(row, ids)| (row, ids.len() - 1));
            let ends: Vec<(usize, usize)> = ends.collect();
            streams.push(cells(above, &ends));
        }
        self.at_layer = layer;
        let columns = |parts: Vec<Tensor<2>>| columns(&Tensor::cat(parts, 0));
        Ok(Seen { keys: columns(keys), values: columns(values), streams: columns(streams) })
    }
}
