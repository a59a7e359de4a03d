//! A decoder's checkpoint: its files, what its family says of them, and the decoder built of them.

use std::ops::Deref;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::folder::Folder;
use crate::error::{Error, Result};
use crate::model::family::{self, Family, StoredAt};
use crate::model::stack::build::DecoderTensor;
use crate::model::stack::decoder::Decoder;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::weights::Weights;

/// The files of a decoder.
pub struct Checkpoint {
    folder: Folder,
    family: &'static dyn Family,
    spec: DecoderSpec,
}

impl Deref for Checkpoint {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Checkpoint {
    /// Opens a folder: config.json and model.safetensors, or the shards that model.safetensors.index.json names.
    ///
    /// # Errors
    /// A file that is missing, broken, or of a family not known.
    pub fn open(folder: &Path) -> Result<Self> {
        Checkpoint::new(Folder::open(folder)?)
    }

    /// A model that is part of the program.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn embedded(
        name: &str,
        side: &'static [(&'static str, &'static [u8])],
        weights: &'static [u8],
    ) -> Result<Self> {
        Checkpoint::new(Folder::embedded(name, side, weights)?)
    }

    fn new(folder: Folder) -> Result<Self> {
        let wrong = |message: String| Error::file(folder.origin().join("config.json"), message);
        let family = family::for_decoder(folder.config()).map_err(wrong)?;
        let spec = family.spec(folder.config()).map_err(wrong)?;
        Ok(Checkpoint { folder, family, spec })
    }

    /// The family.
    pub fn family(&self) -> &'static dyn Family {
        self.family
    }

    /// The architecture.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The full name of a tensor in the files: the family's name behind the prefix this checkpoint uses.
    pub fn full_name(&self, place: &StoredAt) -> Option<String> {
        self.folder.full_name(place, self.family.prefixes())
    }

    /// Builds the decoder on a device, each tensor cast once to `dtype`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or a type that is no float.
    pub fn decoder(&self, device: &Device, dtype: DType) -> Result<Decoder> {
        let mut reader = Reader { checkpoint: self, device, dtype };
        Decoder::build(self.spec.clone(), &mut reader)
    }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    dtype: DType,
}

impl Reader<'_> {
    fn read<const D: usize>(&self, at: DecoderTensor, shape: [usize; D]) -> Result<Tensor<D>> {
        let Checkpoint { folder, family, spec } = self.checkpoint;
        let data = folder.read(&family.place(at, spec), family.prefixes(), &shape)?;
        Ok(Tensor::from_data(data, (self.device, self.dtype)))
    }
}

impl Weights<DecoderTensor> for Reader<'_> {
    fn vector(&mut self, at: DecoderTensor, length: usize) -> Result<Tensor<1>> {
        self.read(at, [length])
    }

    fn matrix(&mut self, at: DecoderTensor, shape: [usize; 2]) -> Result<Tensor<2>> {
        self.read(at, shape)
    }
}
