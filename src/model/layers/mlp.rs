//! The MLP of a block: `down(f(up x))`, or `down(f(gate x) · up x)` where it is gated.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

/// The MLP's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// Applies it to each element.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Activation::Gelu => activation::gelu(x),
            // (1 + tanh z) / 2 = sigmoid(2z): one exponential an element, where a tanh costs several.
            Activation::GeluTanh => {
                let twice = 2.0 * std::f64::consts::FRAC_2_PI.sqrt();
                let z = (x.clone() * x.clone()).mul_scalar(0.044715 * twice).add_scalar(twice) * x.clone();
                x * activation::sigmoid(z)
            }
            Activation::Silu => activation::silu(x),
            Activation::Relu => activation::relu(x),
        }
    }

    /// By the names that Hugging Face configs use.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
            "silu" | "swish" => Some(Activation::Silu),
            "relu" => Some(Activation::Relu),
            _ => None,
        }
    }
}
