//! A weight matrix `W [d_in, d_out]`: a tensor, or what lies in a file in 16 bits, cast a few columns at a time where a product wants them.
//!
//! A frozen model in 16 bits takes half the memory that way, and the pages of its file are the system's to keep or to drop. What a product
//! casts is as large as a core's cache, so that the cast numbers never reach the memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::parallel::parts;

/// Elements that are cast at once, at least one column of them: 2 MB in f32.
const AT_ONCE: usize = 1 << 19;

/// A matrix of a model.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// As a tensor.
    Held(Param<Tensor<2>>),
    /// As it is stored.
    Stored(Stored),
}

/// What stored matrices lie in: a mapped file.
pub trait Backing: Send + Sync {
    /// All of it.
    fn bytes(&self) -> &[u8];
    /// Tells the system that the memory of a part may be used for something else until it is read again.
    fn release(&self, part: Range<usize>);
}

/// A matrix in 16 bits as a file has it; products with it are in f32.
#[derive(Clone)]
pub struct Stored {
    /// What holds it.
    pub backing: Arc<dyn Backing>,
    /// Where in them the stored tensor begins.
    pub first: usize,
    /// Whether it is bf16, else f16.
    pub brain: bool,
    /// `[d_in, d_out]`, of ours.
    pub shape: [usize; 2],
    /// Whether it is stored `[d_out, d_in]`.
    pub transposed: bool,
    /// Elements of a stored row.
    pub row: usize,
    /// The stored columns `[d_in, …]`, or rows where it is transposed, that are ours: runs of a beginning and a length.
    pub runs: Arc<[(usize, usize)]>,
    /// The device that products are made on.
    pub device: Device,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("shape", &self.shape).field("transposed", &self.transposed).finish()
    }
}

impl Stored {
    /// Casts `count` stored elements from `from` on.
    fn cast(&self, from: usize, into: &mut [f32]) {
        let begin = self.first + 2 * from;
        let bytes = &self.backing.bytes()[begin..begin + 2 * into.len()];
        // SAFETY: every pattern of 16 bits is an f16 and a bf16; what is not aligned comes back in the ends.
        if self.brain {
            let (ends, numbers, _) = unsafe { bytes.align_to::<bf16>() };
            if ends.is_empty() && numbers.len() == into.len() {
                return numbers.convert_to_f32_slice(into);
            }
        } else {
            let (ends, numbers, _) = unsafe { bytes.align_to::<f16>() };
            if ends.is_empty() && numbers.len() == into.len() {
                return numbers.convert_to_f32_slice(into);
            }
        }
        let pairs = bytes.as_chunks::<2>().0;
        for (number, pair) in into.iter_mut().zip(pairs) {
            *number = if self.brain { bf16::from_le_bytes(*pair).to_f32() } else { f16::from_le_bytes(*pair).to_f32() };
        }
    }

    /// The stored runs that our columns of a range are: for each the first stored one and how many.
    fn runs(&self, columns: &Range<usize>) -> Vec<(usize, usize)> {
        let (mut ours, mut found) = (0, vec![]);
        for &(first, length) in &*self.runs {
            let (from, to) = (columns.start.max(ours), columns.end.min(ours + length));
            if from < to {
                found.push((first + from - ours, to - from));
            }
            ours += length;
        }
        found
    }

    /// Some of our columns in f32, `[d_in, count]`, or `[count, d_in]` where the matrix is stored so.
    fn columns(&self, columns: Range<usize>) -> Tensor<2> {
        let ([d_in, _], count) = (self.shape, columns.len());
        let mut values = vec![0.0; d_in * count];
        let runs = self.runs(&columns);
        if self.transposed {
            let mut at = 0;
            for (first, length) in runs {
                self.cast(first * self.row, &mut values[at * d_in..(at + length) * d_in]);
                at += length;
            }
            return Tensor::from_data(TensorData::new(values, [count, d_in]), &self.device);
        }
        for (row, values) in values.chunks_mut(count).enumerate() {
            let mut at = 0;
            for &(first, length) in &runs {
                self.cast(row * self.row + first, &mut values[at..at + length]);
                at += length;
            }
        }
        Tensor::from_data(TensorData::new(values, [d_in, count]), &self.device)
    }

    /// Some of our columns as rows, `[count, d_in]`.
    fn gathered(&self, index: &Tensor<1, Int>) -> Tensor<2> {
        let d_in = self.shape[0];
        let index: Vec<usize> = index.to_data().iter::<i64>().map(|at| at as usize).collect();
        let mut values = vec![0.0; index.len() * d_in];
        for (&at, values) in index.iter().zip(values.chunks_mut(d_in)) {
            let first = self.runs(&(at..at + 1))[0].0;
            match self.transposed {
                true => self.cast(first * self.row, values),
                false => values.iter_mut().enumerate().for_each(|(row, value)| {
                    self.cast(row * self.row + first, std::slice::from_mut(value));
                }),
            }
        }
        Tensor::from_data(TensorData::new(values, [index.len(), d_in]), &self.device)
    }

    /// Says that it is not wanted for a while: the next product reads it from the file again, or from where the system keeps it.
    fn release(&self) {
        let rows = if self.transposed { self.runs.iter().map(|(_, length)| length).sum() } else { self.shape[0] };
        self.backing.release(self.first..self.first + 2 * rows * self.row);
    }

    /// Our columns in blocks of a size, in order.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let [d_in, d_out] = self.shape;
        // Whole registers of a product's kernel.
        let some = (AT_ONCE / d_in.max(1)).next_multiple_of(64).max(64);
        (0..d_out).step_by(some).map(move |from| from..(from + some).min(d_out))
    }
}

impl Matrix {
    /// A tensor `[d_in, d_out]`.
    pub fn held(tensor: Tensor<2>) -> Self {
        Matrix::Held(Param::from_tensor(tensor))
    }

    /// `[d_in, d_out]`
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Matrix::Held(tensor) => tensor.val().dims(),
            Matrix::Stored(stored) => stored.shape,
        }
    }

    /// The element type of products with it.
    pub fn dtype(&self) -> DType {
        match self {
            Matrix::Held(tensor) => tensor.val().dtype(),
            Matrix::Stored(_) => DType::F32,
        }
    }

    /// Where products with it are made.
    pub fn device(&self) -> Device {
        match self {
            Matrix::Held(tensor) => tensor.val().device(),
            Matrix::Stored(stored) => stored.device.clone(),
        }
    }

    /// The whole of it as a tensor `[d_in, d_out]`.
    pub fn val(&self) -> Tensor<2> {
        match self {
            Matrix::Held(tensor) => tensor.val(),
            Matrix::Stored(stored) => {
                let all = stored.columns(0..stored.shape[1]);
                if stored.transposed { all.transpose() } else { all }
            }
        }
    }

    /// `x W` of `x [rows, d_in]`: `[rows, d_out]`.
    pub fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let stored = match self {
            Matrix::Held(tensor) => return product(x, tensor.val()),
            Matrix::Stored(stored) => stored,
        };
        let block = |columns: Range<usize>| {
            let columns = stored.columns(columns);
            x.clone().matmul(if stored.transposed { columns.transpose() } else { columns })
        };
        let product = Tensor::cat(stored.blocks().map(block).collect(), 1);
        stored.release();
        product
    }

    /// `x Wᵀ` of `x [rows, d_out]`: `[rows, d_in]`. An embedding that is stored by its rows is cast a few rows at a time, as `W` is in a product.
    pub fn product_transposed(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Matrix::Held(tensor) => product(x, tensor.val().transpose()),
            Matrix::Stored(stored) => Matrix::Stored(stored.turned()).product(x),
        }
    }

    /// Some rows of it `[count, d_out]`.
    pub fn rows(&self, index: Tensor<1, Int>) -> Tensor<2> {
        match self {
            Matrix::Held(tensor) => tensor.val().select(0, index),
            Matrix::Stored(stored) => stored.turned().gathered(&index),
        }
    }

    /// Some columns of it as rows, `[count, d_in]`.
    pub fn columns(&self, index: Tensor<1, Int>) -> Tensor<2> {
        match self {
            Matrix::Held(tensor) => tensor.val().select(1, index).transpose(),
            Matrix::Stored(stored) => stored.gathered(&index),
        }
    }

    /// The same as a tensor, so that it can be trained.
    pub fn in_memory(self) -> Self {
        match self {
            Matrix::Stored(_) => Matrix::held(self.val()),
            held => held,
        }
    }
}

/// Rows of `x` up to which a product is divided by columns of W: all that such a product does is to read W, which the backend leaves to one core.
const FEW: usize = 8;

/// Elements of W from which dividing it pays.
const WIDE: usize = 1 << 17;

/// `x W`, by columns of W on all cores where `x` has few rows, as when a text is written token by token.
fn product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let (device, [d_in, d_out]) = (x.device(), weight.dims());
    let cores = parts(&device);
    if x.dims()[0] > FEW || d_in * d_out < WIDE || cores < 2 || device.is_autodiff() {
        return x.matmul(weight);
    }
    // Whole cache lines for each.
    let width = d_out.div_ceil(cores).next_multiple_of(16);
    let columns: Vec<usize> = (0..d_out).step_by(width).collect();
    let part = |first: usize| x.clone().matmul(weight.clone().narrow(1, first, width.min(d_out - first)));
    Tensor::cat(columns.into_par_iter().map(part).collect(), 1)
}

impl Stored {
    /// Its transpose, of the same bytes.
    fn turned(&self) -> Self {
        let [d_in, d_out] = self.shape;
        let whole = *self.runs == [(0, d_out)];
        debug_assert!(whole, "parts of a stored matrix are not turned round");
        Stored { shape: [d_out, d_in], transposed: !self.transposed, runs: [(0, d_in)].into(), ..self.clone() }
    }
}

/// A stored matrix has no parameter: nothing of it is trained, moved or saved.
impl Module for Matrix {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Matrix::Held(tensor) => tensor.collect_devices(devices),
            Matrix::Stored(_) => devices,
        }
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|tensor| tensor.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|tensor| tensor.to_device(device))
    }

    fn train(self) -> Self {
        self.each(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().each(|tensor| tensor.valid())
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if let Matrix::Held(tensor) = self {
            tensor.visit(visitor);
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        self.each(|tensor| Module::map(tensor, mapper))
    }
}

impl Matrix {
    fn each(self, make: impl FnOnce(Param<Tensor<2>>) -> Param<Tensor<2>>) -> Self {
        match self {
            Matrix::Held(tensor) => Matrix::Held(make(tensor)),
            stored @ Matrix::Stored(_) => stored,
        }
    }
}

impl ModuleDisplayDefault for Matrix {
    fn content(&self, content: Content) -> Option<Content> {
        Some(content.add_formatted(&format!("{:?}", self.dims())))
    }
}

impl ModuleDisplay for Matrix {}

/// `x W + b`
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`
    pub weight: Matrix,
    /// `[d_out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Of `x [rows, d_in]`: `[rows, d_out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        if let Matrix::Held(weight) = &self.weight
            && x.dims()[0] > FEW
        {
            return linear(x, weight.val(), self.bias.as_ref().map(|bias| bias.val()));
        }
        let product = self.weight.product(x);
        match &self.bias {
            Some(bias) => product + bias.val().unsqueeze(),
            None => product,
        }
    }
}
