//! What edit losses have in common: the negative log-likelihood of targets in scope, and the KL divergence from the base out of it.

use burn::tensor::{Tensor, TensorData, activation};

use crate::edit::loss;

/// Where a batch of rows is read, and with what weight each read counts.
#[derive(Default)]
pub(super) struct Reads {
    pub cells: Vec<(usize, usize)>,
    pub weights: Vec<f64>,
}

/// `c_edit · Σ w NLL + c_loc · Σ w KL`, as a tensor that has its gradient, and both sums.
pub(super) struct Loss {
    pub surrogate: Tensor<1>,
    pub nll: f64,
    pub kl: f64,
}

/// The loss of logits `[reads, vocabulary]`, those of the `targets` in scope first, then those out of scope, whose base logits are
/// `base`; each read has its weight.
///
/// The logits z times ∂L/∂z, taken as a constant, have the loss's gradient (`edit::loss`), without a pass of autodiff over the vocabulary.
pub(super) fn edit_and_locality(
    logits: Tensor<2>,
    (targets, scope_weights): (&[u32], &[f64]),
    base: Option<Tensor<2>>,
    near_weights: &[f64],
    (edit, locality): (f64, f64),
) -> Loss {
    let log = activation::log_softmax(logits.clone().inner(), 1);
    let ([count, vocabulary], in_scope) = (log.dims(), targets.len());
    let (device, dtype) = (log.device(), log.dtype());
    let weights = |of: &[f64]| Tensor::<1>::from_data(TensorData::new(of.to_vec(), [of.len()]), (&device, dtype));
    let number = |tensor: Tensor<1>| tensor.into_data().iter::<f64>().sum::<f64>();
    let mut towards = vec![];
    let (mut nll, mut kl) = (0.0, 0.0);
    if in_scope > 0 {
        let (each, gradient) = loss::nll(log.clone().slice([0..in_scope, 0..vocabulary]), targets);
        let scope_weights = weights(scope_weights);
        nll = number(each * scope_weights.clone());
        towards.push(gradient * scope_weights.unsqueeze_dim(1).mul_scalar(edit));
    }
    if let Some(base) = base {
        let log_near = log.slice([in_scope..count, 0..vocabulary]);
        let (each, gradient) = loss::kl_from(activation::log_softmax(base, 1), log_near);
        let near_weights = weights(near_weights);
        kl = number(each * near_weights.clone());
        towards.push(gradient * near_weights.unsqueeze_dim(1).mul_scalar(locality));
    }
    Loss { surrogate: (logits * Tensor::cat(towards, 0)).sum(), nll, kl }
}
