//! `emend stats --import` and `--export npz`: second moments from and for the authors' code of ROME and MEMIT.

use std::fs;
use std::path::{Path, PathBuf};

use super::print;
use super::stats::{Args, begun, row_length, target};
use crate::error::{Error, Result};
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::{hub, pocket};
use crate::model::tap::{Role, Weight};
use crate::statistics::npz::{self, Published};
use crate::statistics::{Header, Moments, Source, UNKNOWN};

/// Writes a statistics file of published ones, one file a layer.
///
/// # Errors
/// Files that are broken, or of keys of another width; another number of files than of layers.
pub fn import(args: &Args, layers: &[usize]) -> Result<()> {
    if args.import.len() != layers.len() {
        return Err(Error::Config(format!(
            "--import: {} files for the layers {layers:?}; each file holds one layer, in the order of --layers",
            args.import.len()
        )));
    }
    let checkpoint = checkpoint(&args.model)?;
    row_length(args, layers, checkpoint.spec())?;
    let width = checkpoint.spec().mlp.width;
    let mut read = vec![];
    for path in &args.import {
        let published = npz::read(path)?;
        if published.width != width {
            let message =
                format!("second moments of width {}; the keys of {} are {width} wide", published.width, args.model);
            return Err(Error::file(path, message));
        }
        read.push(published);
    }
    // One number of tokens stands for all layers; each keeps its C.
    let tokens = read.iter().map(|published| published.count).min().unwrap_or(0);
    let header = Header {
        format: String::new(),
        model: checkpoint.fingerprint(),
        tokenizer: UNKNOWN.into(),
        width,
        layers: layers.to_vec(),
        tokens: 0,
        row: 0,
        seed: 0,
        field: String::new(),
        chat: None,
        sources: args.import.iter().map(|path| source(path)).collect::<Result<_>>()?,
        half: 0,
        changes: vec![],
    };
    let path = target(args)?;
    let mut moments = begun(&path, header, args.again)?;
    moments.header.tokens = tokens;
    for (&layer, Published { sum, count, .. }) in layers.iter().zip(read) {
        let share = tokens as f64 / count as f64;
        moments.sums.insert(layer, sum.into_iter().map(|value| value * share).collect());
    }
    moments.save(&path)?;
    print(&format!(
        "C over {tokens} tokens, as published: which tokenizer read which texts for it, the files do not say\nsaved {}\n",
        path.display()
    ))
}

fn source(path: &Path) -> Result<Source> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Source { name, blake3: blake3::hash(&bytes).to_hex().to_string() })
}

/// Writes the statistics of layers as files of the authors' form, under the names that their code looks for where it is asked for all of a text.
///
/// # Errors
/// Statistics that are missing or of another model; a folder that cannot be written.
pub fn export(args: &Args, layers: &[usize]) -> Result<()> {
    let [format, folder] = args.export.as_slice() else { return Ok(()) };
    if format != "npz" {
        return Err(Error::Config(format!("--export {format}: the one format is npz")));
    }
    let checkpoint = checkpoint(&args.model)?;
    row_length(args, layers, checkpoint.spec())?;
    let path = target(args)?;
    if !path.is_file() {
        return Err(Error::file(
            &path,
            "there are no statistics here to export; `emend stats --text FILE` collects them",
        ));
    }
    let moments = Moments::load(&path, None)?;
    let found = checkpoint.fingerprint();
    if moments.header.model != found {
        return Err(Error::file(
            &path,
            format!("statistics of the model {}, this one is {found}", moments.header.model),
        ));
    }
    let mut text = String::new();
    for &layer in layers {
        let Some(sum) = moments.sums.get(&layer) else {
            return Err(Error::file(
                &path,
                format!("no statistics of layer {layer}; there are {:?}", moments.header.layers),
            ));
        };
        let module = checkpoint.family().module(Weight::decoder(layer, Role::MlpDown), checkpoint.spec());
        let prefix = checkpoint.family().prefixes().first().copied().unwrap_or_default();
        let file: PathBuf = Path::new(folder).join(format!("{prefix}{module}_float32_mom2.npz"));
        let published = Published { width: moments.header.width, count: moments.header.tokens, sum: sum.clone() };
        npz::write(&file, &published)?;
        text += &format!("exported {}\n", file.display());
    }
    print(&text)
}

/// A model's files; its weights are read for its fingerprint alone.
fn checkpoint(name: &str) -> Result<Checkpoint> {
    match pocket::find(name) {
        Some(embedded) => embedded.checkpoint(),
        None => Checkpoint::open(&hub::resolve(name)?),
    }
}
