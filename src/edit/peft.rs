//! Edits as a LoRA adapter that the PEFT library loads.
//!
//! PEFT adds `B·A·(alpha / r)` to a module's weight, with `A [r, d_in]` and `B [d_out, r]`: the transposes of our factors. All modules
//! share one rank: factors of a lower rank are padded with zeros.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::TensorData;
use serde_json::json;

use super::Edited;
use super::adapter::Adapter;
use super::hf::new_folder;
use crate::error::{Error, Result};
use crate::model::family::InAdapter;
use crate::model::load::checkpoint::Checkpoint;
use crate::model::stack::build::DecoderTensor;
use crate::model::tap::{Role, Weight};
use crate::tensors;

/// The files of an adapter.
pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";

/// Writes adapter_config.json and adapter_model.safetensors into `folder`, whole or not at all. Gives the adapter's rank.
///
/// # Errors
/// A folder that is not empty or cannot be written; a change of biases, or a memory.
pub fn export(edited: &Edited, folder: &Path) -> Result<usize> {
    let checkpoint = &edited.base().checkpoint;
    let (family, spec) = (checkpoint.family(), checkpoint.spec());
    let Adapter { rank, matrices } = Adapter::of(edited, |at| {
        let place = module(checkpoint, at);
        InAdapter { name: format!("{}{}", family.prefixes()[0], place.name), ..place }
    })?;
    let mut named: BTreeMap<String, TensorData> = BTreeMap::new();
    for (module, factors) in &matrices {
        let mut put = |part: &str, values, shape| {
            let name = format!("base_model.model.{module}.lora_{part}.weight");
            named.insert(name, TensorData::new(values, shape));
        };
        put("A", factors.down(rank), [rank, factors.d_in]);
        put("B", factors.up(rank), [factors.d_out, rank]);
    }
    let any = DecoderTensor::Matrix(Weight::decoder(0, Role::MlpDown));
    let config = json!({
        "peft_type": "LORA",
        "task_type": if spec.source.is_some() { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" },
        "base_model_name_or_path": checkpoint.origin(),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        // All matrices of a family are stored one way.
        "fan_in_fan_out": !family.place(any, spec).transposed,
        "target_modules": matrices.keys().collect::<Vec<_>>(),
        "inference_mode": true,
    });
    new_folder(folder, |temporary| {
        let write = |name: &str, contents: &[u8]| {
            fs::write(temporary.join(name), contents).map_err(Error::io(folder.join(name)))
        };
        write(WEIGHTS, &tensors::to_bytes(&named)?)?;
        write(CONFIG, format!("{config:#}\n").as_bytes())
    })?;
    Ok(rank)
}

/// The module that a matrix stands in, by its name without prefix. Some families keep several matrices in one.
pub(super) fn module(checkpoint: &Checkpoint, at: Weight) -> InAdapter {
    let (family, spec) = (checkpoint.family(), checkpoint.spec());
    let name = family.module(at, spec);
    let outputs = |role: Role| spec.shape(role)[1];
    let others = Role::all().map(|role| Weight { role, ..at });
    let within = others.filter(|one| spec.has(*one) && family.module(*one, spec) == name);
    let width = within.map(|one| outputs(one.role)).sum();
    let place = family.place(DecoderTensor::Matrix(at), spec);
    InAdapter { outputs: place.outputs(outputs(at.role)), width, name }
}
