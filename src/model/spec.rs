//! What a decoder is made of. A family maps its Hugging Face config to this and nothing else.

use burn::tensor::{Tensor, activation};

/// The architecture of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; each serves `heads / key_value_heads` query heads.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Width of the MLP's hidden layer.
    pub mlp_width: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// The norm before attention, before the MLP and at the end.
    pub norm: NormKind,
    /// Added to the variance.
    pub norm_epsilon: f64,
    /// How positions enter.
    pub positions: Positions,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Whether the MLP is gated: `down(f(gate x) * up x)`, else `down(f(up x))`.
    pub gated: bool,
    /// Which projections carry a bias.
    pub biases: Biases,
    /// Whether the head is the embedding, transposed.
    pub tied_head: bool,
}

/// Which projections carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value.
    pub query_key_value: bool,
    /// Attention's output projection.
    pub attention_out: bool,
    /// The MLP's projections.
    pub mlp: bool,
}

/// The norm of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x − mean) / sqrt(var + ε) · γ + β`
    LayerNorm,
    /// `x / sqrt(mean(x²) + ε) · γ`
    RmsNorm,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A learned vector for each position, added to the embedding.
    Learned,
    /// Rotated queries and keys (Su et al., 2021).
    Rotary(Rotary),
}

/// Rotary position embedding of whole heads, pairs of channels standing half a head apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// The base θ of the frequencies `θ^(−2i/width)`.
    pub theta: f64,
    /// Width of a head; even.
    pub width: usize,
    /// How frequencies are stretched for contexts longer than those trained on.
    pub scaling: RotaryScaling,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor.
    Linear(f64),
    /// Llama 3: slow frequencies divided by `factor`, fast ones kept, those between blended.
    Llama3 {
        /// Divides the slow frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are slow.
        low: f64,
        /// Wavelengths below `original_context / high` are fast.
        high: f64,
        /// The context the model was first trained on.
        original_context: f64,
    },
}

impl Rotary {
    /// The angle a position adds, for each of the `width / 2` pairs.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain = (0..self.width / 2).map(|pair| self.theta.powf(-2.0 * pair as f64 / self.width as f64));
        let scale = |frequency: f64| match self.scaling {
            RotaryScaling::None => frequency,
            RotaryScaling::Linear(factor) => frequency / factor,
            RotaryScaling::Llama3 { factor, low, high, original_context } => {
                let turns = original_context * frequency / (2.0 * std::f64::consts::PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
        };
        plain.map(scale).collect()
    }
}

/// The MLP's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
