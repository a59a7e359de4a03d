//! Second moments on disk: one safetensors file, with what they were made of in its metadata.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::model::chat::AskedInChat;

const FORMAT: &str = "statistics/1";

/// What moments were made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// "statistics/1".
    pub format: String,
    /// The model's fingerprint.
    pub model: String,
    /// The tokenizer's fingerprint, or [`UNKNOWN`].
    pub tokenizer: String,
    /// Width of the keys.
    pub width: usize,
    /// The layers, in order.
    pub layers: Vec<usize>,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens a row of text.
    pub row: usize,
    /// The seed of the texts' order.
    pub seed: u64,
    /// The key that held the texts of JSON records.
    pub field: String,
    /// That the texts were turns of a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<AskedInChat>,
    /// The texts.
    pub sources: Vec<Source>,
    /// Tokens at the last doubling.
    pub half: u64,
    /// How C changed each time the tokens doubled.
    pub changes: Vec<MomentChange>,
}

/// What stands where a published file does not say which tokenizer was used.
pub const UNKNOWN: &str = "unknown";

impl Header {
    /// Whether they are others' work.
    pub fn imported(&self) -> bool {
        self.tokenizer == UNKNOWN
    }
}

/// A file of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Its name, without the folder.
    pub name: String,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
}

/// `‖C₂ₙ − Cₙ‖ / ‖C₂ₙ‖` (Frobenius) of each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MomentChange {
    /// 2n.
    pub tokens: u64,
    /// By layer.
    pub layers: BTreeMap<usize, f64>,
}

impl MomentChange {
    /// That of the layer that changed most.
    pub fn largest(&self) -> f64 {
        self.layers.values().copied().fold(0.0, f64::max)
    }
}

/// Sums `Σ k kᵀ` of some layers over the same tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// What they were made of.
    pub header: Header,
    /// By layer `[width · width]`; symmetric once [`Moments::mirror`] has filled the half below the diagonal.
    pub sums: BTreeMap<usize, Vec<f64>>,
    /// The sums at the last doubling.
    pub(super) half: BTreeMap<usize, Vec<f32>>,
}

impl Moments {
    /// Sums of nothing.
    pub fn empty(mut header: Header) -> Self {
        header.format = FORMAT.into();
        let width = header.width;
        let sums = header.layers.iter().map(|&layer| (layer, vec![0.0; width * width])).collect();
        Moments { header, sums, half: BTreeMap::new() }
    }

    /// Where moments of a name lie: `NAME`, or `NAME.safetensors`.
    pub fn path(name: &Path) -> PathBuf {
        if name.is_file() || name.extension().is_some_and(|extension| extension == "safetensors") {
            return name.to_owned();
        }
        let mut path = name.as_os_str().to_owned();
        path.push(".safetensors");
        path.into()
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let broken = |error: safetensors::SafeTensorError| Error::file(path, error);
        let shape = [self.header.width; 2];
        let sums =
            self.sums.iter().map(|(layer, sum)| (format!("sum.{layer}"), Square { shape, values: Values::F64(sum) }));
        let half =
            self.half.iter().map(|(layer, sum)| (format!("half.{layer}"), Square { shape, values: Values::F32(sum) }));
        let views: Vec<(String, Square<'_>)> = sums.chain(half).collect();
        let header = serde_json::to_string(&self.header).map_err(|error| Error::file(path, error))?;
        let metadata = HashMap::from([("emend".to_owned(), header)]);
        files::write_by(path, |temporary| {
            safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(broken)
        })
    }

    /// Reads a file: of all its layers, or of some.
    ///
    /// # Errors
    /// A file that is missing, broken, or no statistics.
    pub fn load(path: &Path, some: Option<&[usize]>) -> Result<Self> {
        let bytes = files::map(path)?;
        let wrong = |problem: String| Error::file(path, problem);
        let whole = |error: safetensors::SafeTensorError| wrong(format!("not a whole safetensors file ({error})"));
        let file = SafeTensors::deserialize(&bytes).map_err(whole)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(whole)?;
        let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get("emend"));
        let header = header.ok_or_else(|| wrong("no statistics: `emend stats` writes them".into()))?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| wrong(format!("no statistics that can be read: {error}")))?;
        if header.format != FORMAT {
            return Err(wrong(format!("format {}; this program reads {FORMAT}", header.format)));
        }
        let mut moments = Moments { header, sums: BTreeMap::new(), half: BTreeMap::new() };
        for (name, view) in file.tensors() {
            let layer = name.split_once('.').and_then(|(_, layer)| layer.parse::<usize>().ok());
            let (Some(layer), true) = (layer, view.shape() == [moments.header.width; 2]) else {
                return Err(wrong(format!("tensor \"{name}\" is no second moment of width {}", moments.header.width)));
            };
            if !moments.header.layers.contains(&layer) {
                return Err(wrong(format!("tensor \"{name}\" is of a layer that the header does not name")));
            }
            if some.is_some_and(|some| !some.contains(&layer)) {
                continue;
            }
            if name.starts_with("sum.") && view.dtype() == Dtype::F64 {
                let sum = view.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
                moments.sums.insert(layer, sum.collect());
            } else if name.starts_with("half.") && view.dtype() == Dtype::F32 {
                let sum = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                moments.half.insert(layer, sum.collect());
            } else {
                return Err(wrong(format!("tensor \"{name}\" is no second moment")));
            }
        }
        if let Some(layer) = moments
            .header
            .layers
            .iter()
            .find(|layer| some.is_none_or(|some| some.contains(layer)) && !moments.sums.contains_key(layer))
        {
            return Err(wrong(format!("the second moment of layer {layer} is missing")));
        }
        if moments.header.layers.is_empty() || moments.header.tokens == 0 {
            return Err(wrong("statistics of nothing".into()));
        }
        if moments.sums.values().flatten().any(|value| !value.is_finite()) {
            return Err(wrong("second moments that are not finite".into()));
        }
        // What was saved on the way has only the half above the diagonal.
        moments.mirror();
        Ok(moments)
    }
}

/// A matrix that becomes bytes when it is written: one at a time.
struct Square<'a> {
    shape: [usize; 2],
    values: Values<'a>,
}

enum Values<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
}

impl View for Square<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::F64(_) => Dtype::F64,
            Values::F32(_) => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.values {
            Values::F64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        match self.values {
            Values::F64(values) => size_of_val(values),
            Values::F32(values) => size_of_val(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_on_the_way_is_symmetric_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.safetensors");
        let header = Header {
            format: String::new(),
            model: "m".into(),
            tokenizer: "t".into(),
            width: 2,
            layers: vec![3],
            tokens: 1,
            row: 1,
            seed: 0,
            field: "text".into(),
            chat: None,
            sources: vec![],
            half: 0,
            changes: vec![MomentChange { tokens: 1, layers: [(3, 0.5)].into() }],
        };
        let mut moments = Moments::empty(header);
        moments.sums.insert(3, vec![1.0, 2.0, 0.0, 4.0]);
        moments.half.insert(3, vec![1.0, 2.0, 2.0, 4.0]);
        // A second time over the first.
        for _ in 0..2 {
            moments.save(&path).unwrap();
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
            }
        }
        let found = Moments::load(&path, None).unwrap();
        moments.mirror();
        assert_eq!(found.sums[&3], [1.0, 2.0, 2.0, 4.0]);
        assert_eq!(found, moments);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
