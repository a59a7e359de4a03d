//! An edit as one safetensors file.
//!
//! Tensors: `change.WEIGHT.a`, `.b` (low-rank), `.dense`, `.bias`, `intervention.N.vector` (N from 0, in the header's order), or `memory.keys` and `memory.values`; and
//! `neurons.PLACE.N.{keys,biases,values}` (PLACE such as "11.mlp"); and `state.NAME`. The header's metadata holds one key, `emend`: a JSON object with `format` ("edit/1"), `change` ("weights", "activations" where there are
//! interventions, or "memory"), the provenance and, where they belong, `interventions` or `memory`.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::activation::Written;
use super::change::{Change, Delta, PassChange};
use super::memory::Memory;
use super::neurons::Neurons;
use super::{Edit, Provenance};
use crate::model::layers::mlp::Activation;
use crate::model::load::folder::{Stored, floats};
use crate::model::tap::{Place, Site, Weight};

const FORMAT: &str = "edit/1";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    change: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryHeader>,
    /// What is beside the MLP of a layer, by the layer's output ("11.mlp"), as the tensors `neurons.PLACE.N.{keys,biases,values}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    neurons: BTreeMap<Site, Vec<Activation>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    interventions: Vec<Written>,
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
    let (memory, neurons, interventions) = match &edit.change {
        Change::Pass(change) => {
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
            for (number, intervention) in change.interventions.iter().enumerate() {
                if let Some(vector) = intervention.action.vector() {
                    put(format!("intervention.{number}.vector"), vector.dims().to_vec(), elements(vector));
                }
            }
            let mut neurons = BTreeMap::new();
            for (&(stack, layer), list) in &change.neurons {
                let at = Site { stack, layer, place: Place::MlpOut };
                for (number, one) in list.iter().enumerate() {
                    put(format!("neurons.{at}.{number}.keys"), one.keys.dims().to_vec(), elements(&one.keys));
                    put(format!("neurons.{at}.{number}.biases"), one.biases.dims().to_vec(), elements(&one.biases));
                    put(format!("neurons.{at}.{number}.values"), one.values.dims().to_vec(), elements(&one.values));
                }
                neurons.insert(at, list.iter().map(|one| one.activation).collect());
            }
            (None, neurons, change.interventions.iter().map(Written::of).collect())
        }
        Change::Memory(Memory { needs, keys, texts, values, .. }) => {
            put("memory.keys".into(), keys.dims().to_vec(), elements(keys));
            if let Some(values) = values {
                put("memory.values".into(), values.dims().to_vec(), elements(values));
            }
            (Some(MemoryHeader { needs: needs.clone(), texts: texts.clone() }), BTreeMap::new(), vec![])
        }
    };
    for (name, tensor) in &edit.state {
        put(format!("state.{name}"), tensor.dims().to_vec(), elements(tensor));
    }
    let change = match (&memory, interventions.is_empty() && neurons.is_empty()) {
        (Some(_), _) => "memory",
        (None, false) => "activations",
        (None, true) => "weights",
    };
    let provenance = edit.provenance.clone();
    let header = Header { format: FORMAT.into(), change: change.into(), memory, neurons, interventions, provenance };
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
    let known = matches!(
        (header.change.as_str(), &header.memory, header.interventions.is_empty() && header.neurons.is_empty()),
        ("weights", None, true) | ("activations", None, false) | ("memory", Some(_), true)
    );
    if header.format != FORMAT || !known {
        return Err(format!(
            "an edit of format {} with a change of kind {} that it does not hold so; this program reads {FORMAT} with weights, activations or a memory",
            header.format, header.change
        ));
    }
    let mut vectors: BTreeMap<usize, Tensor<1>> = BTreeMap::new();
    // By place, number and part.
    let mut parts_of_neurons: BTreeMap<(Site, usize, String), burn::tensor::TensorData> = BTreeMap::new();
    let (mut keys, mut memory_values) = (None, None);
    let mut change = PassChange::default();
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
        if let Some(number) = name.strip_prefix("intervention.").and_then(|rest| rest.strip_suffix(".vector")) {
            let number = number.parse().ok().filter(|&number| number < header.interventions.len());
            let number: usize = number.ok_or_else(|| format!("tensor \"{name}\" belongs to no intervention"))?;
            if view.shape().len() != 1 {
                return Err(format!("tensor \"{name}\" has rank {}, not 1", view.shape().len()));
            }
            vectors.insert(number, Tensor::from_data(data, (device, DType::F32)));
            continue;
        }
        if let Some(rest) = name.strip_prefix("neurons.") {
            let strange = || format!("tensor \"{name}\" belongs to no neurons");
            let (rest, part) = rest.rsplit_once('.').ok_or_else(strange)?;
            let (at, number) = rest.rsplit_once('.').ok_or_else(strange)?;
            let (at, number) = (at.parse::<Site>().map_err(|_| strange())?, number.parse().map_err(|_| strange())?);
            if header.neurons.get(&at).is_none_or(|list| number >= list.len()) {
                return Err(strange());
            }
            parts_of_neurons.insert((at, number, part.to_owned()), data);
            continue;
        }
        if name == "memory.keys" && header.memory.is_some() {
            keys = Some(matrix(data)?);
            continue;
        }
        if name == "memory.values" && header.memory.is_some() {
            memory_values = Some(matrix(data)?);
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
    for (at, activations) in header.neurons {
        if at.place != Place::MlpOut {
            return Err(format!("neurons at {at}: they stand beside an MLP, such as \"3.mlp\""));
        }
        for (number, activation) in activations.into_iter().enumerate() {
            let mut part = |name: &str, rank: usize| {
                let data = parts_of_neurons.remove(&(at, number, name.to_owned()));
                let data = data.ok_or_else(|| format!("the {name} of the neurons at {at} are missing"))?;
                match data.shape().len() == rank {
                    true => Ok(data),
                    false => {
                        Err(format!("the {name} of the neurons at {at} have rank {}, not {rank}", data.shape().len()))
                    }
                }
            };
            let place = (device, DType::F32);
            let (keys, biases) =
                (Tensor::from_data(part("keys", 2)?, place), Tensor::from_data(part("biases", 1)?, place));
            let values = Tensor::from_data(part("values", 2)?, place);
            let neurons = Neurons { keys, biases, values, activation };
            if !neurons.fit() {
                return Err(format!("the keys, biases and values of the neurons at {at} do not fit each other"));
            }
            change.neurons.entry((at.stack, at.layer)).or_default().push(neurons);
        }
    }
    if let Some((at, _, part)) = parts_of_neurons.keys().next() {
        return Err(format!("the neurons at {at} have a tensor \"{part}\" that nothing wants"));
    }
    for (number, written) in header.interventions.into_iter().enumerate() {
        change.interventions.push(written.with(vectors.remove(&number))?);
    }
    let Some(MemoryHeader { needs, texts }) = header.memory else {
        return Ok(Edit::new(header.provenance, Change::Pass(change), state));
    };
    if !(change.matrices.is_empty() && change.biases.is_empty()) {
        return Err("a memory that changes weights too; it holds one or the other".into());
    }
    let keys = keys.ok_or("a memory without its tensor \"memory.keys\"")?;
    let memory = Memory { needs, keys, texts, values: memory_values, route: None };
    memory.check(header.provenance.requests.len())?;
    Ok(Edit::new(header.provenance, Change::Memory(memory), state))
}
