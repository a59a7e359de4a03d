//! An edit as one safetensors file.
//!
//! Tensors: `change.WEIGHT.a`, `.b` (low-rank), `.dense`, `.bias`, or `memory.keys`; and `state.NAME`. The header's metadata holds one
//! key, `emend`: a JSON object with `format` ("edit/1"), `change` ("weights" or "memory"), the provenance and, of a memory, `memory`.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::change::{Change, Delta, WeightChange};
use super::memory::Memory;
use super::{Edit, Provenance};
use crate::model::load::folder::{Stored, floats};
use crate::model::tap::Weight;

const FORMAT: &str = "edit/1";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    change: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryHeader>,
    #[serde(flatten)]
    provenance: Provenance,
}

/// What of a memory is no tensor; its entries are the provenance's requests.
#[derive(Serialize, Deserialize)]
struct MemoryHeader {
    needs: serde_json::Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    texts: Vec<String>,
}

/// The bytes of the file. The same edit gives the same bytes.
pub(super) fn contents(edit: &Edit) -> Vec<u8> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut put = |name: String, shape: Vec<usize>, data: Vec<f32>| {
        tensors.insert(name, (shape, data.iter().flat_map(|value| value.to_le_bytes()).collect()));
    };
    let memory = match &edit.change {
        Change::Weights(change) => {
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
            None
        }
        Change::Memory(Memory { needs, keys, texts, .. }) => {
            put("memory.keys".into(), keys.dims().to_vec(), elements(keys));
            Some(MemoryHeader { needs: needs.clone(), texts: texts.clone() })
        }
    };
    for (name, tensor) in &edit.state {
        put(format!("state.{name}"), tensor.dims().to_vec(), elements(tensor));
    }
    let change = if memory.is_some() { "memory" } else { "weights" };
    let header = Header { format: FORMAT.into(), change: change.into(), memory, provenance: edit.provenance.clone() };
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
    let known = matches!((header.change.as_str(), &header.memory), ("weights", None) | ("memory", Some(_)));
    if header.format != FORMAT || !known {
        return Err(format!(
            "an edit of format {} with a change of kind {}; this program reads {FORMAT} with weights or a memory",
            header.format, header.change
        ));
    }
    let mut keys = None;
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
        if name == "memory.keys" && header.memory.is_some() {
            keys = Some(matrix(data)?);
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
    let Some(MemoryHeader { needs, texts }) = header.memory else {
        return Ok(Edit::new(header.provenance, Change::Weights(change), state));
    };
    if !(change.matrices.is_empty() && change.biases.is_empty()) {
        return Err("a memory that changes weights too; it holds one or the other".into());
    }
    let keys = keys.ok_or("a memory without its tensor \"memory.keys\"")?;
    let memory = Memory { needs, keys, texts, route: None };
    memory.check(header.provenance.requests.len())?;
    Ok(Edit::new(header.provenance, Change::Memory(memory), state))
}
