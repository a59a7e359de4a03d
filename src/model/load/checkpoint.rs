//! A decoder's checkpoint: its files, what its family says of them, and the decoder built of them.

use std::ops::Deref;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::folder::Folder;
use crate::error::{Error, Result};
use crate::model::family::{self, Family, StoredAt};
use crate::model::layers::matrix::Matrix;
use crate::model::stack::build::DecoderTensor;
use crate::model::stack::decoder::Decoder;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::weights::Weights;
use crate::model::tap::{Role, Stack, Weight};

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

    /// How the decoder's matrices are best held: a large model in 16 bits stays in its file. Cast as a whole it would take twice the memory; a
    /// small one has room for that, and its products need no cast. Whatever the machine, a model is held in one way, so that its bits are its own.
    pub fn hold(&self, device: &Device, dtype: DType) -> Hold {
        let stays = *device == Device::flex() && dtype == DType::F32 && self.half_bytes() > STAYS;
        if stays { Hold::InFile } else { Hold::Cast }
    }

    /// Builds the decoder on a device, to compute in `dtype`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or a type that is no float.
    pub fn decoder(&self, device: &Device, dtype: DType, hold: Hold) -> Result<Decoder> {
        self.check_depth()?;
        let mut reader = Reader { checkpoint: self, device, dtype, hold };
        Decoder::build(self.spec.clone(), &mut reader)
    }

    /// Sees that no layer is stored above those that the config speaks of: the model would be another one, and would speak nonsense.
    fn check_depth(&self) -> Result<()> {
        let of_encoder = self.spec.source.as_ref().map(|source| (Stack::Encoder, source.layers));
        let stacks = of_encoder.into_iter().chain([(Stack::Decoder, self.spec.layers)]);
        // A classifier has no decoder.
        for (stack, layers) in stacks.filter(|(_, layers)| *layers > 0) {
            let above = DecoderTensor::Matrix(Weight { stack, layer: layers, role: Role::MlpDown });
            if let Some(name) = self.full_name(&self.family.place(above, &self.spec)) {
                let message = format!(
                    "config.json says {layers} layers, but the checkpoint has \"{name}\": one of the two is another model's"
                );
                return Err(Error::file(self.folder.origin(), message));
            }
        }
        Ok(())
    }
}

/// How a model's matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Each cast once when it is loaded.
    Cast,
    /// Those in 16 bits in their mapped file; products cast what they need.
    InFile,
}

/// Bytes of weights in 16 bits above which they stay in their file.
const STAYS: usize = 1 << 30;

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    dtype: DType,
    hold: Hold,
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

    fn weight(&mut self, at: DecoderTensor, shape: [usize; 2]) -> Result<Matrix> {
        let Checkpoint { folder, family, spec } = self.checkpoint;
        let mapped = match self.hold {
            Hold::InFile => folder.mapped(&family.place(at, spec), family.prefixes(), shape, self.device)?,
            Hold::Cast => None,
        };
        match mapped {
            Some(stored) => Ok(Matrix::Stored(stored)),
            None => self.matrix(at, shape).map(Matrix::held),
        }
    }
}
