//! An edit as one safetensors file.
//!
//! Tensors: `change.WEIGHT.a`, `.b` (low-rank), `.dense`, `.bias`, and `state.NAME`. The header's metadata holds one key, `emend`:
//! a JSON object with `format` ("edit/1"), `change` ("weights") and the provenance.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::change::{Change, Delta, WeightChange};
use super::{Edit, Provenance};
use crate::model::checkpoint::{Stored, floats};
use crate::model::tap::Weight;

const FORMAT: &str = "edit/1";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    change: String,
    #[serde(flatten)]
    provenance: Provenance,
}

/// The bytes of the file. The same edit gives the same bytes.
pub(super) fn contents(edit: &Edit) -> Vec<u8> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut put = |name: String, shape: Vec<usize>, data: Vec<f32>| {
        tensors.insert(name, (shape, data.iter().flat_map(|value| value.to_le_bytes()).collect()));
    };
    let Change::Weights(change) = &edit.change;
    for (at, delta) in &change.matrices {
        match delta {
            Delta::LowRank { a, b } => {
                put(format!("change.{at}.a"), a.dims().to_vec(), elements(a));
                put(format!("change.{at}.b"), b.dims().to_vec(), elements(b));
            }
            Delta::Dense(delta) => put(format!("change.{at}.dense"), delta.dims().to_vec(), elements(delta)),
        }
    }
    for (at, bias) in &change.biases {
        put(format!("change.{at}.bias"), bias.dims().to_vec(), elements(bias));
    }
    for (name, tensor) in &edit.state {
        put(format!("state.{name}"), tensor.dims().to_vec(), elements(tensor));
    }
    let header = Header { format: FORMAT.into(), change: "weights".into(), provenance: edit.provenance.clone() };
    let header = serde_json::to_string(&header).unwrap_or_default();
    let views = tensors.iter().filter_map(|(name, (shape, bytes))| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).ok().map(|view| (name.as_str(), view))
    });
    // One key only: the order of several would differ from run to run.
    safetensors::serialize(views, Some(HashMap::from([("emend".to_owned(), header)]))).unwrap_or_default()
}

fn elements<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().iter::<f32>().collect()
}

/// An edit from the bytes of its file.
///
/// # Errors
/// One line that says what is wrong with the contents.
pub(super) fn read(bytes: &[u8], device: &Device) -> Result<Edit, String> {
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| format!("not a whole safetensors file ({error})"))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("not a whole safetensors file ({error})"))?;
    let header = metadata.metadata().as_ref().and_then(|pairs| pairs.get("emend"));
    let header = header.ok_or("a safetensors file, but no edit: `emend apply --save` writes edits")?;
    let header: Header =
        serde_json::from_str(header).map_err(|error| format!("the edit's header is broken: {error}"))?;
    if header.format != FORMAT || header.change != "weights" {
        return Err(format!(
            "an edit of format {} with a change of kind {}; this program reads {FORMAT} with weights",
            header.format, header.change
        ));
    }
    let mut change = WeightChange::default();
    let mut state = BTreeMap::new();
    let mut factors: BTreeMap<Weight, [Option<Tensor<2>>; 2]> = BTreeMap::new();
    for (name, view) in file.tensors() {
        let stored = Stored { dtype: view.dtype(), shape: view.shape(), bytes: view.data() };
        let values = floats(stored).ok_or_else(|| format!("tensor \"{name}\" holds {:?}, not floats", view.dtype()))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(format!("tensor \"{name}\" holds values that are not finite"));
        }
        let data = burn::tensor::TensorData::new(values, view.shape().to_vec());
        let matrix = |data| match view.shape().len() {
            2 => Ok(Tensor::<2>::from_data(data, (device, DType::F32))),
            rank => Err(format!("tensor \"{name}\" has rank {rank}, not 2")),
        };
        if let Some(name) = name.strip_prefix("state.") {
            state.insert(name.to_owned(), matrix(data)?);
            continue;
        }
        let parts = name.strip_prefix("change.").and_then(|rest| rest.rsplit_once('.'));
        let (weight, part) = parts.ok_or_else(|| format!("tensor \"{name}\" belongs to no edit"))?;
        let weight: Weight = weight.parse().map_err(|error: crate::Error| error.to_string())?;
        match part {
            "a" => factors.entry(weight).or_default()[0] = Some(matrix(data)?),
            "b" => factors.entry(weight).or_default()[1] = Some(matrix(data)?),
            "dense" => {
                change.matrices.insert(weight, Delta::Dense(matrix(data)?));
            }
            "bias" if view.shape().len() == 1 => {
                change.biases.insert(weight, Tensor::from_data(data, (device, DType::F32)));
            }
            _ => return Err(format!("tensor \"{name}\" belongs to no edit")),
        }
    }
    for (weight, factors) in factors {
        let [Some(a), Some(b)] = factors else { return Err(format!("one factor of {weight} is missing")) };
        if a.dims()[1] != b.dims()[0] || change.matrices.contains_key(&weight) {
            return Err(format!("the factors of {weight} do not fit: {:?} and {:?}", a.dims(), b.dims()));
        }
        change.matrices.insert(weight, Delta::LowRank { a, b });
    }
    Ok(Edit::new(header.provenance, Change::Weights(change), state))
}
