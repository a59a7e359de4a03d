//! An edited model as a checkpoint in Hugging Face layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use super::Edited;
use super::change::PassChange;
use crate::error::{Error, Result};
use crate::model::family::StoredAt;
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::folder::{Stored, floats};
use crate::model::stack::build::DecoderTensor;

/// What rounding to the stored type did to an edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exported {
    /// Tensors that were changed.
    pub changed: usize,
    /// Tensors in all.
    pub tensors: usize,
    /// Share of the changed tensors' elements whose change was lost to rounding; 0 in 32 bits but for the smallest changes.
    pub lost_to_rounding: f64,
}

/// Writes the model with its edits merged into `folder`, whole or not at all. Tensors that no edit touches are kept byte for byte,
/// every tensor keeps its stored type, and no tensor is added. The edits' provenance goes into `emend.json`.
///
/// # Errors
/// A folder that is not empty or cannot be written.
pub fn export(edited: &Edited, folder: &Path) -> Result<Exported> {
    let checkpoint = &edited.base().checkpoint;
    let changes = changes(edited)?;
    new_folder(folder, |temporary| {
        let mut report = Exported { changed: 0, tensors: 0, lost_to_rounding: 0.0 };
        let (mut moved, mut lost) = (0usize, 0usize);
        for file in checkpoint.files() {
            let mut written: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = vec![];
            let mut kept = vec![];
            for (name, stored) in file.tensors() {
                report.tensors += 1;
                match changes.get(&name) {
                    None => kept.push((name, stored)),
                    Some(changes) => {
                        report.changed += 1;
                        let (bytes, elements_moved, elements_lost) = changed(&name, stored, changes)?;
                        moved += elements_moved;
                        lost += elements_lost;
                        written.push((name, stored.dtype, stored.shape.to_vec(), bytes));
                    }
                }
            }
            let path = temporary.join(&file.name);
            let wrong = |error: safetensors::SafeTensorError| Error::file(folder.join(&file.name), error);
            let mut views = vec![];
            for (name, stored) in &kept {
                views.push((
                    name.as_str(),
                    TensorView::new(stored.dtype, stored.shape.to_vec(), stored.bytes).map_err(wrong)?,
                ));
            }
            for (name, dtype, shape, bytes) in &written {
                views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(wrong)?));
            }
            safetensors::serialize_to_file(views, file.header(), &path).map_err(wrong)?;
        }
        for (name, contents) in checkpoint.side_files()? {
            let path = temporary.join(&name);
            fs::write(&path, contents).map_err(Error::io(folder.join(name)))?;
        }
        let edits: Vec<_> = edited.edits().iter().map(|edit| (edit.id(), &edit.provenance)).collect();
        let provenance = serde_json::json!({"base": edited.base().fingerprint, "edits": edits.iter().map(|(id, provenance)| {
            serde_json::json!({"id": id, "provenance": provenance})
        }).collect::<Vec<_>>()});
        fs::write(temporary.join("emend.json"), format!("{provenance:#}\n"))
            .map_err(Error::io(folder.join("emend.json")))?;
        report.lost_to_rounding = if moved == 0 { 0.0 } else { lost as f64 / moved as f64 };
        Ok(report)
    })
}

/// Fills a folder beside the target, then gives it the target's name.
pub(super) fn new_folder<T>(folder: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if folder.exists() && fs::read_dir(folder).map_err(Error::io(folder))?.next().is_some() {
        return Err(Error::file(folder, "the folder is not empty; give a new one"));
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let temporary = tempfile::Builder::new().prefix(".emend-").tempdir_in(parent).map_err(Error::io(parent))?;
    let made = fill(temporary.path())?;
    // What is written privately becomes as readable as any other file.
    for entry in fs::read_dir(temporary.path()).map_err(Error::io(folder))?.flatten() {
        fs::File::open(entry.path()).and_then(|file| file.sync_all()).map_err(Error::io(folder))?;
        crate::files::make_readable(&entry.path(), 0o644)?;
    }
    crate::files::make_readable(temporary.path(), 0o755)?;
    fs::rename(temporary.path(), folder).map_err(Error::io(folder))?;
    // It bears the target's name now: nothing is left to clean up.
    let _ = temporary.keep();
    Ok(made)
}

/// A change `[d_in, d_out]` (a bias is one row), and where in the stored tensor it goes.
type Placed = (StoredAt, Vec<f32>, [usize; 2]);

/// The changes by the name of the stored tensor.
fn changes(edited: &Edited) -> Result<BTreeMap<String, Vec<Placed>>> {
    let checkpoint = &edited.base().checkpoint;
    let mut found: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
    let mut put = |at: DecoderTensor, delta: Tensor<2>| -> Result<()> {
        let place = checkpoint.family().place(at, checkpoint.spec());
        let missing = || Error::file(checkpoint.origin(), format!("the checkpoint has no tensor \"{}\"", place.name));
        let name = checkpoint.full_name(&place).ok_or_else(missing)?;
        let shape = delta.dims();
        found.entry(name).or_default().push((place, delta.into_data().iter::<f32>().collect(), shape));
        Ok(())
    };
    let parts = edited.edits().iter().map(|edit| edit.exportable()).collect::<Result<Vec<_>>>()?;
    let sum = PassChange::sum(parts.into_iter());
    for (at, delta) in &sum.matrices {
        put(DecoderTensor::Matrix(*at), delta.dense())?;
    }
    for (at, bias) in &sum.biases {
        put(DecoderTensor::Bias(*at), bias.clone().unsqueeze())?;
    }
    Ok(found)
}

/// A stored tensor with changes added, in its stored type; how many elements were to move, and how many rounding held in place.
fn changed(name: &str, stored: Stored<'_>, changes: &[Placed]) -> Result<(Vec<u8>, usize, usize)> {
    let wrong =
        || Error::Input(format!("tensor \"{name}\" is {:?}; F32, F16, BF16 and F64 can be edited", stored.dtype));
    let before = floats(stored).ok_or_else(wrong)?;
    let width = stored.shape.last().copied().unwrap_or(1);
    let mut delta = vec![0.0f32; before.len()];
    for (place, values, [rows, columns]) in changes {
        let stored = place.outputs(*columns);
        for row in 0..*rows {
            for column in 0..*columns {
                let at = stored[column];
                let index = if place.transposed { at * width + row } else { row * width + at };
                delta[index] += values[row * columns + column];
            }
        }
    }
    let mut bytes = Vec::with_capacity(stored.bytes.len());
    let (mut moved, mut lost) = (0, 0);
    for (element, (value, delta)) in before.iter().zip(&delta).enumerate() {
        let sum = value + delta;
        let size = stored.bytes.len() / before.len();
        let from = bytes.len();
        match stored.dtype {
            Dtype::F16 => bytes.extend(f16::from_f32(sum).to_le_bytes()),
            Dtype::BF16 => bytes.extend(bf16::from_f32(sum).to_le_bytes()),
            Dtype::F64 => bytes.extend(f64::from(sum).to_le_bytes()),
            _ => bytes.extend(sum.to_le_bytes()),
        }
        if *delta == 0.0 {
            // Not a bit of what no edit touches changes.
            bytes.truncate(from);
            bytes.extend(&stored.bytes[element * size..(element + 1) * size]);
            continue;
        }
        moved += 1;
        lost += usize::from(bytes[from..] == stored.bytes[element * size..(element + 1) * size]);
    }
    Ok((bytes, moved, lost))
}

impl Checkpoint {
    /// The files that are no weights: config, tokenizer and what else says how to use the model.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn side_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        if let Some(files) = self.embedded_files() {
            return Ok(files.iter().map(|(name, contents)| ((*name).to_owned(), contents.to_vec())).collect());
        }
        let folder = self.origin();
        let mut files = vec![];
        for entry in fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
            let path = entry.path();
            let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_file() && matches!(kind, "json" | "txt" | "model" | "jinja") && name != "emend.json" {
                files.push((name, fs::read(&path).map_err(Error::io(&path))?));
            }
        }
        Ok(files)
    }
}
