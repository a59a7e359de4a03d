//! Where a stack that is built gets its tensors from.

use burn::tensor::Tensor;

use crate::error::Result;
use crate::model::layers::matrix::Matrix;

/// Gives the tensors of a stack by their place `At` in it.
pub trait Weights<At> {
    /// A tensor of rank 1.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    fn vector(&mut self, at: At, length: usize) -> Result<Tensor<1>>;
    /// A matrix, in the stack's own orientation (`[d_in, d_out]`).
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    fn matrix(&mut self, at: At, shape: [usize; 2]) -> Result<Tensor<2>>;
    /// A matrix that rows are taken of or multiplied with, and nothing else: it may stay in the file.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    fn weight(&mut self, at: At, shape: [usize; 2]) -> Result<Matrix> {
        self.matrix(at, shape).map(Matrix::held)
    }
}
