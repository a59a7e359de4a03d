//! Layer norm and RMS norm.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::at_least_f32;

/// The norm of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Its formula.
    pub kind: NormKind,
    /// ε, added to the variance.
    pub epsilon: f64,
    /// What is stored of the gain.
    pub gain: Gain,
}

/// The formula of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x − mean) / sqrt(var + ε) · γ + β`
    LayerNorm,
    /// `x / sqrt(mean(x²) + ε) · γ`
    RmsNorm,
}

/// What is stored of a norm's gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gain {
    /// γ
    Whole,
    /// γ − 1, so that weights of 0 change nothing.
    AboveOne,
}

/// Layer norm, or RMS norm where there is no `beta`.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[width]`
    pub gamma: Param<Tensor<1>>,
    /// `[width]`
    pub beta: Option<Param<Tensor<1>>>,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether the mean is taken off.
    pub centred: bool,
    /// Whether 1 is added to `gamma`.
    pub above_one: bool,
}

impl Norm {
    /// A norm of its parts.
    pub fn new(spec: NormSpec, gamma: Tensor<1>, beta: Option<Tensor<1>>) -> Self {
        Norm {
            gamma: Param::from_tensor(gamma),
            beta: beta.map(Param::from_tensor),
            epsilon: spec.epsilon,
            centred: spec.kind == NormKind::LayerNorm,
            above_one: spec.gain == Gain::AboveOne,
        }
    }

    /// Of each row of `x [batch, tokens, width]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gamma = self.gamma.val();
        if self.centred {
            let beta = self.beta.as_ref().map(|beta| beta.val());
            return burn::tensor::module::layer_norm(x, gamma, beta, self.epsilon);
        }
        // Scaling the rows by one number each is a pass less than dividing by a broadcast root.
        let dtype = x.dtype();
        let x = at_least_f32(x);
        let scale = x.clone().square().mean_dim(2).add_scalar(self.epsilon).sqrt().recip();
        if self.above_one {
            // 1 + γ in 16 bits would lose most of γ.
            let gain = at_least_f32(gamma).add_scalar(1.0);
            return (x * scale * gain.unsqueeze()).cast(dtype);
        }
        (x * scale).cast(dtype) * gamma.unsqueeze()
    }

    /// Of each head of `x [batch, tokens, heads · width]`, the same for all.
    pub fn forward_heads(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let [width] = self.gamma.dims();
        let heads = x.reshape([batch, tokens * channels / width, width]);
        self.forward(heads).reshape([batch, tokens, channels])
    }
}

/// A norm where there is one.
pub(in crate::model) fn if_there(norm: &Option<Norm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
