//! MEND's network over gradients (Mitchell et al., 2022, section 3 and equation 4).
//!
//! The gradient of a weight is `uᵀδ`: its input u times the gradient δ at its output. Instead of the `d_in × d_out` product, the
//! network takes the `d_in + d_out` numbers of each token, normalised and side by side, `z = [û; δ̂]`, through two layers
//!
//! ```text
//! z ← z + max(s_m ⊙ (z·V·U + b) + o_m, 0)
//! ```
//!
//! of low rank, with a scale `s_m` and a shift `o_m` for each matrix m that shares the network. With `U = 0` it begins as the identity.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, activation};
use serde::{Deserialize, Serialize};

/// Where a layer of the network is not linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nonlinearity {
    /// `z + max(s ⊙ (z·V·U + b) + o, 0)`, the paper's: a layer adds to each number and can take nothing from it.
    #[default]
    Outer,
    /// `z + s ⊙ (max(z·V, 0)·U + b) + o`: a layer can also silence what it was given.
    Inner,
    /// `z + s ⊙ max(z·V·U + b, 0) + o`, MALMEN's.
    Between,
}

/// The network for all matrices of one shape.
#[derive(Module, Debug)]
pub struct GradientTransform {
    /// Two, in the paper.
    pub layers: Vec<LowRankLayer>,
}

/// One residual layer.
#[derive(Module, Debug)]
pub struct LowRankLayer {
    /// V `[d, rank]`
    pub down: Param<Tensor<2>>,
    /// U `[rank, d]`
    pub up: Param<Tensor<2>>,
    /// b `[d]`
    pub bias: Param<Tensor<1>>,
    /// s `[matrices, d]`
    pub scale: Param<Tensor<2>>,
    /// o `[matrices, d]`
    pub shift: Param<Tensor<2>>,
}

impl LowRankLayer {
    fn new(d: usize, rank: usize, matrices: usize, std: f64, place: (&Device, DType)) -> Self {
        LowRankLayer {
            down: Param::from_tensor(Tensor::random([d, rank], Distribution::Normal(0.0, std), place)),
            up: Param::from_tensor(Tensor::zeros([rank, d], place)),
            bias: Param::from_tensor(Tensor::zeros([d], place)),
            scale: Param::from_tensor(Tensor::ones([matrices, d], place)),
            shift: Param::from_tensor(Tensor::zeros([matrices, d], place)),
        }
    }

    fn forward(&self, z: Tensor<2>, matrix: &Tensor<1, Int>, at: Nonlinearity) -> Tensor<2> {
        let inner = z.clone().matmul(self.down.val());
        let inner = if at == Nonlinearity::Inner { activation::relu(inner) } else { inner };
        let mixed = inner.matmul(self.up.val()) + self.bias.val().unsqueeze();
        // The gradient of clamp_min at its bound is 1, that of a ReLU at 0 is 0: from the identity, where all is 0, a ReLU never learns.
        let mixed = if at == Nonlinearity::Between { mixed.clamp_min(0.0) } else { mixed };
        let scale = self.scale.val().select(0, matrix.clone());
        let shift = self.shift.val().select(0, matrix.clone());
        let moved = mixed * scale + shift;
        z + if at == Nonlinearity::Outer { moved.clamp_min(0.0) } else { moved }
    }
}

impl GradientTransform {
    /// The identity in `layers` layers, for `matrices` matrices with `d = d_in + d_out`; V is drawn from N(0, std²).
    pub fn new(d: usize, rank: usize, layers: usize, matrices: usize, std: f64, place: (&Device, DType)) -> Self {
        GradientTransform {
            layers: (0..layers).map(|_| LowRankLayer::new(d, rank.min(d), matrices, std, place)).collect(),
        }
    }

    /// `z [tokens, d]` with the number of each token's matrix.
    pub fn forward(&self, z: Tensor<2>, matrix: &Tensor<1, Int>, at: Nonlinearity) -> Tensor<2> {
        self.layers.iter().fold(z, |z, layer| layer.forward(z, matrix, at))
    }
}

/// Running mean and spread of u and δ for all matrices of one shape (Welford, a batch at a time).
#[derive(Debug, Clone)]
pub struct Normalizer {
    /// Rows seen.
    pub count: f64,
    /// Mean of each channel `[d]`.
    pub mean: Tensor<1>,
    /// Sum of squared distances from the mean `[d]`.
    pub squares: Tensor<1>,
}

/// Whether the normaliser sees new rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Rows are normalised by the running figures.
    Running,
    /// Rows are taken as they are.
    Off,
}

impl Normalizer {
    /// One that has seen nothing.
    pub fn new(d: usize, place: (&Device, DType)) -> Self {
        Normalizer { count: 0.0, mean: Tensor::zeros([d], place), squares: Tensor::zeros([d], place) }
    }

    /// Takes rows `[rows, d]` in.
    pub fn update(&mut self, rows: Tensor<2>) {
        let new = rows.dims()[0] as f64;
        if new == 0.0 {
            return;
        }
        let mean = rows.clone().mean_dim(0).squeeze_dim::<1>(0);
        let squares = (rows - mean.clone().unsqueeze()).square().sum_dim(0).squeeze_dim::<1>(0);
        *self = self.joined(&Normalizer { count: new, mean, squares });
    }

    /// The figures of the rows of both.
    pub fn joined(&self, other: &Normalizer) -> Self {
        let total = self.count + other.count;
        let apart = other.mean.clone() - self.mean.clone();
        let between = apart.clone().square().mul_scalar(self.count * other.count / total);
        Normalizer {
            count: total,
            mean: self.mean.clone() + apart.mul_scalar(other.count / total),
            squares: self.squares.clone() + other.squares.clone() + between,
        }
    }

    /// `(x − μ) / (σ + 1e-7)` for each row; rows as they are until two were seen.
    pub fn normalize(&self, rows: Tensor<2>) -> Tensor<2> {
        if self.count < 2.0 {
            return rows;
        }
        let std = self.squares.clone().div_scalar(self.count - 1.0).sqrt().add_scalar(1e-7);
        (rows - self.mean.clone().unsqueeze()) * std.recip().unsqueeze()
    }
}
