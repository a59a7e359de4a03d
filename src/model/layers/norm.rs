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

    /// How an RMS norm's input `x` must change so that its output changes by `share`, as nearly as it can, all `[width]`.
    ///
    /// The output is γ ⊙ u with u of mean square 1. Of all such u the one with γ ⊙ u nearest to y, what is wanted, is `γ y / (γ² + λ)`, λ such that
    /// its mean square is 1; x keeps its length, which the norm takes away.
    pub fn change_before(&self, x: &[f64], share: &[f64]) -> Vec<f64> {
        debug_assert!(!self.centred, "no model has a layer norm behind its MLP");
        let gamma = self.gamma.val().into_data();
        let gain: Vec<f64> =
            gamma.iter::<f64>().map(|gamma| if self.above_one { gamma + 1.0 } else { gamma }).collect();
        let count = x.len() as f64;
        let mean_square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / count;
        let length = (mean_square(x) + self.epsilon).sqrt();
        let wanted: Vec<f64> = (0..x.len()).map(|at| gain[at] * x[at] / length + share[at]).collect();
        let nearest = |lambda: f64| -> Vec<f64> {
            gain.iter().zip(&wanted).map(|(gain, wanted)| gain * wanted / (gain * gain + lambda)).collect()
        };
        let squares = gain.iter().map(|gain| gain * gain);
        let (least, most) =
            squares.fold((f64::INFINITY, 0.0f64), |(least, most), square| (least.min(square), most.max(square)));
        // The mean square falls from λ = −min γ² on.
        let (mut low, mut high) = (-least + 1e-9 * most, most);
        while mean_square(&nearest(high)) > 1.0 {
            high *= 2.0;
        }
        for _ in 0..100 {
            let middle = (low + high) / 2.0;
            if mean_square(&nearest(middle)) > 1.0 { low = middle } else { high = middle }
        }
        let nearest = nearest(high);
        let scale = length / mean_square(&nearest).sqrt().max(1e-30);
        nearest.iter().zip(x).map(|(u, x)| u * scale - x).collect()
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

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;

    #[test]
    fn an_input_is_changed_so_that_the_output_is_as_wanted() {
        let place = (&Device::flex(), DType::F64);
        let gamma = [0.5, -0.2, 1.5, 0.9, 0.1, 2.0];
        let spec = NormSpec { kind: NormKind::RmsNorm, epsilon: 1e-12, gain: Gain::AboveOne };
        let norm = Norm::new(spec, Tensor::from_data(TensorData::from(gamma), place), None);
        let of = |x: &[f64]| -> Vec<f64> {
            let x = Tensor::<3>::from_data(TensorData::new(x.to_vec(), [1, 1, x.len()]), place);
            norm.forward(x).into_data().iter::<f64>().collect()
        };
        let x = [0.3, -0.7, 0.2, 1.1, -0.4, 0.6];
        assert!(norm.change_before(&x, &[0.0; 6]).iter().all(|change| change.abs() < 1e-6));
        // What another input gives can be had.
        let other = [0.5, 0.1, -0.9, 0.4, 0.2, 0.8];
        let share: Vec<f64> = of(&other).iter().zip(of(&x)).map(|(new, old)| new - old).collect();
        let changed: Vec<f64> = x.iter().zip(norm.change_before(&x, &share)).map(|(x, change)| x + change).collect();
        let apart = of(&changed).iter().zip(of(&other)).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart < 1e-6, "{apart:e}");
        // What no input gives is come near to: no small turn comes nearer.
        let share = [2.0, -1.0, 0.5, 0.0, 1.0, -3.0];
        let far = |x: &[f64]| -> f64 {
            of(x)
                .iter()
                .zip(of(&[0.3, -0.7, 0.2, 1.1, -0.4, 0.6]))
                .zip(share)
                .map(|((y, old), share)| (y - old - share).powi(2))
                .sum()
        };
        let best: Vec<f64> = x.iter().zip(norm.change_before(&x, &share)).map(|(x, change)| x + change).collect();
        for at in 0..6 {
            for by in [-1e-3, 1e-3] {
                let mut moved = best.clone();
                moved[at] += by;
                assert!(far(&moved) >= far(&best) - 1e-9);
            }
        }
    }
}
