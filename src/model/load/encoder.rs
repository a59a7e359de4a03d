//! An encoder with its tokenizer, from its files.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::folder::Folder;
use crate::error::{Error, Result};
use crate::model::family::{self, EncoderFamily};
use crate::model::stack::encoder::{Encoder, EncoderTensor};
use crate::model::stack::weights::Weights;
use crate::model::tokenizer::Tokenizer;

/// An encoder as it was loaded, with its tokenizer.
pub struct EncoderModel {
    /// The network.
    pub encoder: Encoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// BLAKE3 of config and weights, in hexadecimal.
    pub fingerprint: String,
}

impl EncoderModel {
    /// Loads an encoder from a folder in Hugging Face layout.
    ///
    /// # Errors
    /// What of the files is wrong.
    pub fn open(folder: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let files = Folder::open(folder)?;
        let encoder = read(&files, device, dtype)?;
        Ok(EncoderModel { encoder, tokenizer: Tokenizer::open(folder)?, fingerprint: files.fingerprint() })
    }
}

/// An encoder from the files of its folder, each tensor cast once to `dtype`.
///
/// # Errors
/// A family that is not known; a tensor that is missing, has another shape, or a type that is no float.
pub fn read(folder: &Folder, device: &Device, dtype: DType) -> Result<Encoder> {
    let wrong = |message: String| Error::file(folder.origin().join("config.json"), message);
    let family = family::for_encoder(folder.config()).map_err(wrong)?;
    let spec = family.spec(folder.config()).map_err(wrong)?;
    Encoder::build(spec, &mut Reader { folder, family, device, dtype })
}

struct Reader<'a> {
    folder: &'a Folder,
    family: &'static dyn EncoderFamily,
    device: &'a Device,
    dtype: DType,
}

impl Reader<'_> {
    fn read<const D: usize>(&self, at: EncoderTensor, shape: [usize; D]) -> Result<Tensor<D>> {
        let data = self.folder.read(&self.family.place(at), self.family.prefixes(), &shape)?;
        Ok(Tensor::from_data(data, (self.device, self.dtype)))
    }
}

impl Weights<EncoderTensor> for Reader<'_> {
    fn vector(&mut self, at: EncoderTensor, length: usize) -> Result<Tensor<1>> {
        self.read(at, [length])
    }

    fn matrix(&mut self, at: EncoderTensor, shape: [usize; 2]) -> Result<Tensor<2>> {
        self.read(at, shape)
    }
}
