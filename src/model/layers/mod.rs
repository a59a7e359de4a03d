//! What blocks are made of. Each file has its formula; none knows a stack or a family.

pub mod attention;
pub mod matrix;
pub mod mlp;
pub mod norm;
pub mod relative;
pub mod rotary;

use burn::tensor::{DType, Tensor};

use matrix::Linear;

use super::tap::{Span, Tap, Weight};

/// Probabilities, norms and the like are never computed in 16 bits.
pub(super) fn at_least_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if matches!(x.dtype(), DType::F16 | DType::BF16) { x.cast(DType::F32) } else { x }
}

/// A tensor in an element type; as it is where it has that type.
pub(super) fn in_type<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// One product for the whole batch: `[batch · tokens, d_in] × [d_in, d_out]`, then the tap.
pub(super) fn project(linear: &Linear, at: Weight, span: &Span, input: &Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
    let [rows, cells, d_in] = input.dims();
    let output = linear.forward(input.clone().reshape([rows * cells, d_in]));
    let d_out = output.dims()[1];
    tap.linear(at, span, input, output.reshape([rows, cells, d_out]))
}

/// `c · tanh(x / c)`: as x where x is small, never beyond ±c.
pub(super) fn soft_cap<const D: usize>(x: Tensor<D>, cap: Option<f64>) -> Tensor<D> {
    match cap {
        Some(cap) => x.div_scalar(cap).tanh().mul_scalar(cap),
        None => x,
    }
}
