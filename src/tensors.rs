//! Named tensors as safetensors: the same tensors give the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

use crate::error::{Error, Result};

/// The bytes of a safetensors file.
///
/// # Errors
/// A tensor whose data does not fit its shape.
pub fn to_bytes(tensors: &BTreeMap<String, TensorData>) -> Result<Vec<u8>> {
    with_views(tensors, |views| safetensors::serialize(views, None::<HashMap<String, String>>))
}

/// Writes a safetensors file, one tensor after the other.
///
/// # Errors
/// As [`to_bytes`], and a file that cannot be written.
pub fn write(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    with_views(tensors, |views| safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path))
}

fn with_views<T>(
    tensors: &BTreeMap<String, TensorData>,
    make: impl FnOnce(Vec<(&str, TensorView<'_>)>) -> std::result::Result<T, SafeTensorError>,
) -> Result<T> {
    let broken = |name: &str, error| Error::Input(format!("tensor \"{name}\" cannot be written: {error}"));
    // Shorter floats are written as 32 bits: what trains in them is small, and every reader knows these.
    let wide: BTreeMap<&String, TensorData> = tensors
        .iter()
        .filter(|(_, data)| !matches!(data.dtype(), DType::F32 | DType::F64))
        .map(|(name, data)| (name, data.clone().convert::<f32>()))
        .collect();
    let views = tensors.iter().map(|(name, data)| {
        let data = wide.get(name).unwrap_or(data);
        let dtype = match data.dtype() {
            DType::F64 => Dtype::F64,
            _ => Dtype::F32,
        };
        let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
        Ok((name.as_str(), view.map_err(|error| broken(name, error))?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    make(views).map_err(|error| broken("", error))
}

/// The tensors of a safetensors file of f32 and f64.
///
/// # Errors
/// A file that is missing, broken, or holds other types.
pub fn read(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    let bytes = crate::files::read(path)?;
    let wrong = |message: String| Error::file(path, message);
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("not a whole safetensors file ({error})")))?;
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let data = match view.dtype() {
            Dtype::F32 => {
                let values: Vec<f32> =
                    view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                TensorData::new(values, view.shape().to_vec())
            }
            Dtype::F64 => {
                let values: Vec<f64> =
                    view.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
                TensorData::new(values, view.shape().to_vec())
            }
            other => return Err(wrong(format!("tensor \"{name}\" holds {other:?}, not F32 or F64"))),
        };
        if data.iter::<f64>().any(|value| !value.is_finite()) {
            return Err(wrong(format!("tensor \"{name}\" holds values that are not finite")));
        }
        Ok((name, data))
    });
    tensors.collect()
}

/// Σ x², row by row and then down the rows. A sum over the whole of a large tensor at once is split among as many threads as there
/// are, and its last digits depend on how.
pub fn sum_of_squares(x: Tensor<2>) -> f64 {
    x.square().sum_dim(1).into_data().iter::<f64>().sum()
}
