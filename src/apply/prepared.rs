//! What editors that need no training are given beside their settings.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor, TensorData};
use faer::Mat;
use serde::Serialize;
use serde_json::Value;

use crate::edit::change::exact;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::statistics::Statistics;

/// What an editor was given beside its settings.
pub struct Prepared {
    /// Second moments; nothing for C = 1.
    pub statistics: Option<Statistics>,
    /// The seed of random draws.
    pub seed: u64,
    /// Called with the number of requests of a batch that the long part of the work was just done for.
    pub progress: Progress,
}

/// See [`Prepared::progress`].
pub type Progress = Box<dyn Fn(usize) + Send + Sync>;

impl Prepared {
    /// `C⁻¹ K` of a layer for keys `K [width, count]`.
    ///
    /// # Errors
    /// C is singular, or not known for the layer.
    pub fn whiten(&self, layer: usize, keys: Mat<f64>) -> Result<Mat<f64>> {
        match &self.statistics {
            Some(statistics) => statistics.solve(layer, keys.as_ref()),
            None => Ok(keys),
        }
    }

    /// An editor's name and settings, and what the statistics that it uses are known by.
    pub fn describe(&self, method: &str, settings: &impl Serialize) -> (String, Value) {
        let mut settings = serde_json::to_value(settings).unwrap_or_default();
        if let (Some(statistics), Some(settings)) = (&self.statistics, settings.as_object_mut()) {
            settings.insert("statistics_id".into(), statistics.id().into());
            settings.extend(statistics.unknown().map(|what| ("statistics_unknown".to_owned(), what.into())));
        }
        (method.into(), settings)
    }
}

/// Refuses requests that no single edit can serve.
///
/// # Errors
/// No request, or two with one prompt and different targets.
pub fn check(requests: &[EditRequest]) -> Result<()> {
    if requests.is_empty() {
        return Err(Error::Input("there is no request to edit".into()));
    }
    let mut known: HashMap<&str, (usize, &str)> = HashMap::new();
    for (number, request) in requests.iter().enumerate() {
        let (first, target) = *known.entry(&request.prompt).or_insert((number, &request.target_new));
        if target != request.target_new {
            return Err(Error::Input(format!(
                "edits {first} and {number} contradict each other: \"{}\" is to be \"{target}\" and \"{}\"",
                request.prompt, request.target_new
            )));
        }
    }
    Ok(())
}

/// An error about one of some requests, with its number where they are several: of a single one the caller knows it.
pub(super) fn of_request(requests: &[EditRequest], number: usize, error: Error) -> Error {
    if requests.len() > 1 { error.of_record(number) } else { error }
}

/// Rows `[rows, n]` as columns `[n, rows]` in f64.
pub fn columns(rows: &Tensor<2>) -> Mat<f64> {
    let [count, width] = rows.dims();
    let values: Vec<f64> = rows.clone().into_data().iter::<f64>().collect();
    Mat::from_fn(width, count, |row, column| values[column * width + row])
}

/// The element type of a model's deltas.
pub(super) fn precision(model: &Edited) -> DType {
    exact(model.base().decoder.dtype())
}

/// A matrix as a tensor beside the model's weights.
pub fn tensor(model: &Edited, matrix: &Mat<f64>) -> Tensor<2> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let values: Vec<f64> = (0..rows).flat_map(|row| (0..columns).map(move |column| matrix[(row, column)])).collect();
    let values = TensorData::new(values, [rows, columns]);
    Tensor::from_data(values, (&model.base().decoder.device(), precision(model)))
}
