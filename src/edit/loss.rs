//! Losses at the logits, with their gradients put in by hand: a pass of autodiff over the vocabulary would cost as much as the model.
//!
//! With p the softmax of the logits z, all are functions of `ln p`, `[reads, vocabulary]`; a loss is one number a read.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// A loss of each read, `[reads]`, and its gradient with respect to the logits, `[reads, vocabulary]`.
pub(crate) type WithGradient = (Tensor<1>, Tensor<2>);

/// `−ln p(target)`, with ∂/∂z = p − onehot(target).
pub(crate) fn nll(log: Tensor<2>, targets: &[u32]) -> WithGradient {
    let device = log.device();
    let index: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &device).unsqueeze_dim::<2>(1);
    let minus_one = Tensor::<2>::full([targets.len(), 1], -1.0, (&device, log.dtype()));
    let loss = log.clone().gather(1, index.clone()).squeeze_dim::<1>(1).neg();
    (loss, log.exp().scatter(1, index, minus_one, IndexingUpdateOp::Add))
}

/// `−(1 − ε) ln p(target) − ε · mean of ln p`: a target that is asked for with 1 − ε, the rest being spread over the vocabulary.
pub(crate) fn smoothed(log: Tensor<2>, targets: &[u32], smoothing: f64) -> WithGradient {
    let (loss, gradient) = nll(log.clone(), targets);
    if smoothing == 0.0 {
        return (loss, gradient);
    }
    let each = 1.0 / log.dims()[1] as f64;
    let of_all = log.clone().mean_dim(1).squeeze_dim::<1>(1).neg();
    let spread = log.exp().sub_scalar(each);
    (
        loss.mul_scalar(1.0 - smoothing) + of_all.mul_scalar(smoothing),
        gradient.mul_scalar(1.0 - smoothing) + spread.mul_scalar(smoothing),
    )
}

/// `KL(p₀ ‖ p)`, with ∂/∂z = p − p₀: p is held to what p₀ says.
pub(crate) fn kl_from(log_base: Tensor<2>, log: Tensor<2>) -> WithGradient {
    let base = log_base.clone().exp();
    let loss = (base.clone() * (log_base - log.clone())).sum_dim(1).squeeze_dim::<1>(1);
    (loss, log.exp() - base)
}

/// `KL(p ‖ p₀)`, with ∂/∂z = p ⊙ (ln p − ln p₀ − KL), as ROME's code has it.
pub(crate) fn kl_to(log: Tensor<2>, log_base: Tensor<2>) -> WithGradient {
    let p = log.clone().exp();
    let apart = log - log_base;
    let loss = (p.clone() * apart.clone()).sum_dim(1);
    (loss.clone().squeeze_dim::<1>(1), p * (apart - loss))
}
