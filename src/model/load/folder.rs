//! The files of a model folder: its config and its stored tensors, none of them copied into memory. What they mean is said elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;
use crate::model::family::StoredAt;
use crate::model::layers::matrix;

/// How much of a stored tensor is read before its memory is given back; whole elements of every type.
const AT_ONCE: usize = 16 << 20;

/// Keys of config.json that say nothing of what the model computes.
const VOLATILE: [&str; 6] =
    ["_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"];

/// A folder in Hugging Face layout, or a model that is part of the program.
pub struct Folder {
    origin: PathBuf,
    config: Value,
    files: Vec<File>,
    /// Tensor name to the file that holds it.
    index: BTreeMap<String, usize>,
    /// The other files of a model that is part of the program.
    embedded: Option<&'static [(&'static str, &'static [u8])]>,
}

/// One safetensors file.
pub struct File {
    /// Its name in the folder.
    pub name: String,
    bytes: Bytes,
    header: usize,
    metadata: Metadata,
}

#[derive(Clone)]
enum Bytes {
    Mapped(Arc<Mmap>),
    Static(&'static [u8]),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// One stored tensor.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements, little-endian, row by row.
    pub bytes: &'a [u8],
}

impl matrix::Backing for Bytes {
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }

    fn release(&self, part: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            let unneeded = memmap2::UncheckedAdvice::DontNeed;
            let end = part.end.min(map.len());
            // SAFETY: the map is read-only and of a file: a page that was given back is read from the file again.
            if let Err(error) =
                unsafe { map.unchecked_advise_range(unneeded, part.start, end.saturating_sub(part.start)) }
            {
                tracing::debug!("a part of a mapped file: {error}");
            }
        }
    }
}

impl File {
    fn new(name: String, path: &Path, bytes: Bytes) -> Result<Self> {
        let (header, metadata) = SafeTensors::read_metadata(bytes.as_ref()).map_err(|error| {
            Error::file(path, format!("not a whole safetensors file ({error}); fetch or write it again"))
        })?;
        Ok(File { name, bytes, header: header + 8, metadata })
    }

    /// The tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Stored<'_>)> {
        self.metadata.tensors().into_iter().map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let bytes = &self.bytes.as_ref()[self.header + from..self.header + to];
            (name, Stored { dtype: info.dtype, shape: &info.shape, bytes })
        })
    }

    /// The string pairs of its header.
    pub fn header(&self) -> Option<std::collections::HashMap<String, String>> {
        self.metadata.metadata().clone()
    }
}

impl Folder {
    /// Opens a folder: config.json and model.safetensors, or the shards that model.safetensors.index.json names.
    ///
    /// # Errors
    /// A file that is missing, broken, or of a family not known.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.extension().is_some_and(|kind| kind == "gguf") {
            return Err(Error::file(folder, GGUF));
        }
        if folder.is_file() {
            return Err(Error::file(
                folder,
                "this is a file; a model is a folder with config.json, tokenizer.json and model.safetensors",
            ));
        }
        let config_path = folder.join("config.json");
        let other = others(folder);
        if !config_path.is_file() {
            let found = other.unwrap_or("a model folder holds config.json, tokenizer.json and model.safetensors");
            return Err(Error::file(folder, format!("no config.json here; {found}")));
        }
        let config = fs::read(&config_path).map_err(Error::io(&config_path))?;
        let single = folder.join("model.safetensors");
        let listing = folder.join("model.safetensors.index.json");
        let names = if single.is_file() {
            vec!["model.safetensors".to_owned()]
        } else if listing.is_file() {
            shards(&listing)?
        } else {
            let found = other.unwrap_or("other formats are not read");
            return Err(Error::file(
                folder,
                format!("no model.safetensors and no model.safetensors.index.json here; {found}"),
            ));
        };
        let open = |name: String| {
            let path = folder.join(&name);
            let bytes = Bytes::Mapped(Arc::new(files::map(&path)?));
            File::new(name, &path, bytes)
        };
        let files = names.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        Folder::new(folder.to_owned(), &config, files, None)
    }

    /// A model that is part of the program.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn embedded(
        name: &str,
        side: &'static [(&'static str, &'static [u8])],
        weights: &'static [u8],
    ) -> Result<Self> {
        let origin = PathBuf::from(name);
        let file = File::new("model.safetensors".into(), &origin, Bytes::Static(weights))?;
        let config = side.iter().find(|(name, _)| *name == "config.json").map_or(&b""[..], |(_, contents)| contents);
        Folder::new(origin, config, vec![file], Some(side))
    }

    fn new(
        origin: PathBuf,
        config: &[u8],
        files: Vec<File>,
        embedded: Option<&'static [(&'static str, &'static [u8])]>,
    ) -> Result<Self> {
        let wrong = |message: String| Error::file(origin.join("config.json"), message);
        let config: Value = serde_json::from_slice(config).map_err(|error| wrong(format!("not JSON: {error}")))?;
        let mut index = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.metadata.offset_keys() {
                index.insert(name, number);
            }
        }
        Ok(Folder { origin, config, files, index, embedded })
    }

    /// The folder, or the embedded model's name.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The other files of a model that is part of the program, by name.
    pub fn embedded_files(&self) -> Option<&'static [(&'static str, &'static [u8])]> {
        self.embedded
    }

    /// config.json.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The safetensors files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// A stored tensor by its name in the files.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let file = &self.files[*self.index.get(name)?];
        let info = file.metadata.info(name)?;
        let (from, to) = info.data_offsets;
        let bytes = &file.bytes.as_ref()[file.header + from..file.header + to];
        Some(Stored { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// The full name of a tensor in the files: a family's name behind the first of its prefixes that this folder uses.
    pub fn full_name(&self, place: &StoredAt, prefixes: &[&str]) -> Option<String> {
        let prefixes = prefixes.iter().chain(&[""]);
        prefixes.map(|prefix| format!("{prefix}{}", place.name)).find(|name| self.index.contains_key(name))
    }

    /// BLAKE3 of the config (without what says nothing of the computation) and of every tensor's name, type, shape and bytes.
    pub fn fingerprint(&self) -> String {
        let mut config: BTreeMap<_, _> = self.config.as_object().into_iter().flatten().collect();
        config.retain(|key, _| !VOLATILE.contains(&key.as_str()));
        let mut hasher = blake3::Hasher::new();
        hasher.update(serde_json::to_string(&config).unwrap_or_default().as_bytes());
        for name in self.index.keys() {
            if let Some(stored) = self.stored(name) {
                hasher.update(format!("\n{name} {:?} {:?}\n", stored.dtype, stored.shape).as_bytes());
                for (part, bytes) in stored.bytes.chunks(AT_ONCE).enumerate() {
                    hasher.update(bytes);
                    self.release(name, part);
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Gives the memory of a part of a tensor, `AT_ONCE` bytes, in its mapped file back to the system. It can be read again at any time.
    fn release(&self, name: &str, part: usize) {
        if let Some(file) = self.index.get(name).map(|&number| &self.files[number])
            && let Some(info) = file.metadata.info(name)
        {
            let (begin, end) = info.data_offsets;
            let from = (begin + part * AT_ONCE).min(end);
            let to = (from + AT_ONCE).min(end);
            matrix::Backing::release(&file.bytes, file.header + from..file.header + to);
        }
    }

    /// A stored tensor of which ours is `shape` (`[d_in, d_out]` for a matrix): its full name, what is stored, and the last of its own
    /// dimensions as we see it. Nothing where a checkpoint without it means zeros.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    fn found(
        &self,
        place: &StoredAt,
        prefixes: &[&str],
        shape: &[usize],
    ) -> Result<Option<(String, Stored<'_>, usize)>> {
        let wrong = |message: String| Error::file(&self.origin, message);
        let full_name = self.full_name(place, prefixes);
        if place.zero_if_missing && full_name.is_none() {
            return Ok(None);
        }
        let name = full_name.ok_or_else(|| wrong(format!("the checkpoint has no tensor \"{}\"", place.name)))?;
        let stored = self.stored(&name).ok_or_else(|| wrong(format!("the checkpoint has no tensor \"{name}\"")))?;
        let mut found = stored.shape.to_vec();
        if place.transposed {
            found.reverse();
        }
        // A bias may be stored as one row.
        if found.len() == 2 && found[0] == 1 && shape.len() == 1 {
            found.remove(0);
        }
        let count = shape.last().copied().unwrap_or(0);
        let (rows, width) = found.split_at(found.len().saturating_sub(1));
        let fits = match place.columns {
            None => found == shape,
            Some(columns) => {
                rows == &shape[..shape.len() - 1] && width.first().is_some_and(|&width| columns.end(count) <= width)
            }
        };
        match fits {
            true => Ok(Some((name, stored, width.first().copied().unwrap_or(1)))),
            false => Err(wrong(format!("tensor \"{name}\" is {:?}, the config wants {shape:?}", stored.shape))),
        }
    }

    /// Our part of a stored matrix `[d_in, d_out]`, left in its mapped file; nothing where it is not there in 16 bits.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn mapped(
        &self,
        place: &StoredAt,
        prefixes: &[&str],
        shape: [usize; 2],
        device: &Device,
    ) -> Result<Option<matrix::Stored>> {
        let Some((name, stored, width)) = self.found(place, prefixes, &shape)? else { return Ok(None) };
        let brain = match stored.dtype {
            Dtype::BF16 => true,
            Dtype::F16 => false,
            _ => return Ok(None),
        };
        let file = &self.files[self.index[&name]];
        let Some(info) = file.metadata.info(&name) else { return Ok(None) };
        let runs = match place.columns {
            Some(columns) => columns.runs(shape[1]).map(|(_, stored, length)| (stored, length)).collect(),
            None => [(0, shape[1])].into(),
        };
        Ok(Some(matrix::Stored {
            backing: Arc::new(file.bytes.clone()),
            first: file.header + info.data_offsets.0,
            brain,
            shape,
            transposed: place.transposed,
            row: if place.transposed { shape[0] } else { width },
            runs,
            device: device.clone(),
        }))
    }

    /// The bytes of all tensors in 16 bits.
    pub fn half_bytes(&self) -> usize {
        let stored = self.index.keys().filter_map(|name| self.stored(name));
        stored.filter(|stored| matches!(stored.dtype, Dtype::F16 | Dtype::BF16)).map(|stored| stored.bytes.len()).sum()
    }

    /// All tensors, in f32.
    pub fn bytes_in_f32(&self) -> u64 {
        let stored = self.index.keys().filter_map(|name| self.stored(name));
        stored.map(|stored| 4 * stored.shape.iter().product::<usize>() as u64).sum()
    }

    /// The elements of our part of a stored tensor, `shape` (`[d_in, d_out]` for a matrix).
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or a type that is no float.
    pub fn read(&self, place: &StoredAt, prefixes: &[&str], shape: &[usize]) -> Result<TensorData> {
        let wrong = |message: String| Error::file(&self.origin, message);
        let Some((name, stored, width)) = self.found(place, prefixes, shape)? else {
            return Ok(TensorData::new(vec![0.0f32; shape.iter().product()], shape.to_vec()));
        };
        let count = shape.last().copied().unwrap_or(0);
        // Held twice, a model would need twice the memory while it is loaded.
        let mut values = Vec::with_capacity(stored.shape.iter().product());
        for (part, bytes) in stored.bytes.chunks(AT_ONCE).enumerate() {
            let some = floats(Stored { bytes, ..stored }).ok_or_else(|| {
                wrong(format!("tensor \"{name}\" is {:?}; F32, F16, BF16 and F64 are read", stored.dtype))
            })?;
            values.extend(some);
            self.release(&name, part);
        }
        let values = match (place.columns, place.transposed) {
            // Stored as rows: ours are those of a smaller matrix.
            (Some(columns), true) => {
                let d_in = shape[0];
                let runs = columns.runs(count);
                runs.flat_map(|(_, from, length)| values[from * d_in..(from + length) * d_in].iter().copied()).collect()
            }
            (Some(columns), false) => {
                let ours = |row: &[f32]| -> Vec<f32> {
                    columns.runs(count).flat_map(|(_, from, length)| row[from..from + length].to_vec()).collect()
                };
                values.chunks(width).flat_map(ours).collect()
            }
            (None, _) => values,
        };
        let values = if place.transposed { transpose(&values, shape[1], shape[0]) } else { values };
        Ok(TensorData::new(values, shape.to_vec()))
    }
}

const GGUF: &str = "a GGUF file is made for running, with weights in few bits, and is not read; take the model's folder in Hugging Face layout, with model.safetensors";

/// What weights in another format lie in a folder, and what to do.
fn others(folder: &Path) -> Option<&'static str> {
    let names: Vec<String> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let has = |endings: &[&str]| names.iter().any(|name| endings.iter().any(|ending| name.ends_with(ending)));
    if has(&[".gguf"]) {
        return Some(GGUF);
    }
    has(&[".bin", ".pt", ".pth", ".ckpt"]).then_some(
        "pickled weights can run any code and are never read; load them once in PyTorch and save them with safe_serialization = True",
    )
}

fn shards(listing: &Path) -> Result<Vec<String>> {
    let text = fs::read(listing).map_err(Error::io(listing))?;
    let listed: Value =
        serde_json::from_slice(&text).map_err(|error| Error::file(listing, format!("not JSON: {error}")))?;
    let Some(map) = listed.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(listing, "\"weight_map\" is missing"));
    };
    let mut names: Vec<String> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    // A name that leaves the folder is not a shard.
    if let Some(name) = names.iter().find(|name| Path::new(name).components().count() != 1 || name.starts_with('.')) {
        return Err(Error::file(listing, format!("\"{name}\" is not the name of a file in this folder")));
    }
    Ok(names)
}

/// A stored tensor's elements as f32, or nothing where they are no floats.
pub fn floats(stored: Stored<'_>) -> Option<Vec<f32>> {
    let bytes = stored.bytes;
    let values = match stored.dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    };
    Some(values)
}

/// `[rows, columns]` to `[columns, rows]`, in blocks that stay in the cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut turned = vec![0.0; values.len()];
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            for row in top..(top + BLOCK).min(rows) {
                for column in left..(left + BLOCK).min(columns) {
                    turned[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    turned
}
