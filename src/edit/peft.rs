//! Edits as a LoRA adapter that the PEFT library loads.
//!
//! PEFT adds `B·A·(alpha / r)` to a module's weight, with `A [r, d_in]` and `B [d_out, r]`: the transposes of our factors. All modules
//! share one rank: factors of a lower rank are padded with zeros.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use serde_json::json;

use super::Edited;
use super::change::Delta;
use super::hf::new_folder;
use crate::error::{Error, Result};
use crate::model::load::folder::Stored;
use crate::model::stack::build::DecoderTensor;
use crate::tensors;

/// Writes adapter_config.json and adapter_model.safetensors into `folder`, whole or not at all. Gives the adapter's rank.
///
/// # Errors
/// A folder that is not empty or cannot be written; a change of biases, or a memory.
pub fn export(edited: &Edited, folder: &Path) -> Result<usize> {
    let checkpoint = &edited.base().checkpoint;
    let (family, spec) = (checkpoint.family(), checkpoint.spec());
    // Module name to factors `A [d_in, r]`, `B [r, module's d_out]`.
    let mut modules: BTreeMap<String, Vec<(Tensor<2>, Tensor<2>)>> = BTreeMap::new();
    let mut fan_in_fan_out = false;
    for edit in edited.edits() {
        let change = Edited::exportable(edit)?;
        if let Some(at) = change.biases.keys().next() {
            let message =
                format!("edit {} changes the bias of {at}, which an adapter cannot hold; use --export hf", edit.id());
            return Err(Error::Input(message));
        }
        for (at, delta) in &change.matrices {
            let (a, b) = factors(delta);
            let place = family.place(DecoderTensor::Matrix(*at), spec);
            fan_in_fan_out = !place.transposed;
            // In a fused matrix the other roles' columns stay zero.
            let b = match place.columns {
                None => b,
                Some(columns) => {
                    let stored = checkpoint.full_name(&place).and_then(|name| checkpoint.stored(&name));
                    let [rank, count] = b.dims();
                    let axis = |stored: Stored<'_>| {
                        if place.transposed { stored.shape.first() } else { stored.shape.last() }.copied()
                    };
                    let width = stored.and_then(axis).unwrap_or(columns.end(count));
                    let whole = Tensor::<2>::zeros([rank, width], (&b.device(), b.dtype()));
                    columns.runs(count).fold(whole, |whole, (ours, from, length)| {
                        let run = b.clone().slice([0..rank, ours..ours + length]);
                        whole.slice_assign([0..rank, from..from + length], run)
                    })
                }
            };
            let module = format!("{}{}", family.prefixes()[0], family.module(*at, spec));
            modules.entry(module).or_default().push((a, b));
        }
    }
    let joined: BTreeMap<&String, (Tensor<2>, Tensor<2>)> = modules
        .iter()
        .map(|(module, factors)| {
            let (a, b): (Vec<_>, Vec<_>) = factors.iter().cloned().unzip();
            (module, (Tensor::cat(a, 1), Tensor::cat(b, 0)))
        })
        .collect();
    let rank = joined.values().map(|(a, _)| a.dims()[1]).max().unwrap_or(0);
    if rank == 0 {
        return Err(Error::Input("there is no edit to export".into()));
    }
    let mut named: BTreeMap<String, TensorData> = BTreeMap::new();
    for (module, (a, b)) in &joined {
        let padded = |x: Tensor<2>| {
            let [own, width] = x.dims();
            let zeros = Tensor::<2>::zeros([rank, width], (&x.device(), x.dtype()));
            zeros.slice_assign([0..own, 0..width], x)
        };
        let (down, up) = (padded(a.clone().transpose()), padded(b.clone()).transpose());
        for (part, tensor) in [("A", down), ("B", up)] {
            let data = tensor.into_data();
            let shape = data.shape().to_vec();
            let values: Vec<f32> = data.iter::<f32>().collect();
            named.insert(format!("base_model.model.{module}.lora_{part}.weight"), TensorData::new(values, shape));
        }
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": if spec.source.is_some() { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" },
        "base_model_name_or_path": checkpoint.origin(),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": modules.keys().collect::<Vec<_>>(),
        "inference_mode": true,
    });
    new_folder(folder, |temporary| {
        let write = |name: &str, contents: &[u8]| {
            fs::write(temporary.join(name), contents).map_err(Error::io(folder.join(name)))
        };
        write("adapter_model.safetensors", &tensors::to_bytes(&named)?)?;
        write("adapter_config.json", format!("{config:#}\n").as_bytes())
    })?;
    Ok(rank)
}

/// `ΔW = A·B`. A change that is stored whole has one of the two for the identity: the adapter then has the matrix's full rank.
fn factors(delta: &Delta) -> (Tensor<2>, Tensor<2>) {
    match delta {
        Delta::LowRank { a, b } => (a.clone(), b.clone()),
        Delta::Dense(whole) => {
            let [d_in, d_out] = whole.dims();
            let identity = |size| Tensor::<2>::eye(size, &whole.device()).cast(whole.dtype());
            if d_in <= d_out { (identity(d_in), whole.clone()) } else { (whole.clone(), identity(d_out)) }
        }
    }
}
