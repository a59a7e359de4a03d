//! What an edit changes, as taps.

use std::collections::BTreeMap;

use burn::tensor::{DType, Int, Tensor};

use super::activation::Intervention;
use super::memory::Memory;
use super::neurons::{self, AddedNeurons};
use crate::model::tap::{Span, Tap, Weight};
use crate::tensors::sum_of_squares;

/// What an edit changes.
// Tensors are handles: one in place costs less than a box.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Change {
    /// What is done on the way of a pass: deltas of weights and biases, interventions on activations.
    Pass(PassChange),
    /// A list that is consulted once a prompt; the pass stays as it is.
    Memory(Memory),
}

/// What an edit changes of a pass: weights by their names, and activations.
#[derive(Debug, Clone, Default)]
pub struct PassChange {
    /// Added to weight matrices.
    pub matrices: BTreeMap<Weight, Delta>,
    /// Added to the biases of the matrices, `[d_out]`.
    pub biases: BTreeMap<Weight, Tensor<1>>,
    /// Neurons beside MLPs. They read what the weights below made.
    pub neurons: AddedNeurons,
    /// What is done to activations, in this order. They see what weights and neurons made.
    pub interventions: Vec<Intervention>,
}

impl PassChange {
    /// Whether weights are all that it changes.
    pub fn is_of_weights(&self) -> bool {
        self.interventions.is_empty() && self.neurons.is_empty()
    }

    /// The sum of changes; low-rank deltas stay factors, and interventions follow each other.
    pub fn sum<'a>(changes: impl Iterator<Item = &'a PassChange>) -> Self {
        let mut sum = PassChange::default();
        for change in changes {
            for (at, delta) in &change.matrices {
                let delta = match sum.matrices.remove(at) {
                    None => delta.clone(),
                    Some(known) => known.plus(delta),
                };
                sum.matrices.insert(*at, delta);
            }
            for (at, bias) in &change.biases {
                let bias = match sum.biases.remove(at) {
                    None => bias.clone(),
                    Some(known) => {
                        let dtype = wider(known.dtype(), bias.dtype());
                        known.cast(dtype) + bias.clone().cast(dtype)
                    }
                };
                sum.biases.insert(*at, bias);
            }
            for (&at, list) in &change.neurons {
                list.iter().for_each(|more| neurons::add(&mut sum.neurons, at, more, None));
            }
            sum.interventions.extend(change.interventions.iter().cloned());
        }
        sum
    }
}

/// The element type of changes of a model in `dtype`: the model's, but no less than 32 bits.
pub fn exact(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The wider of two element types of changes.
fn wider(a: DType, b: DType) -> DType {
    if [a, b].contains(&DType::F64) { DType::F64 } else { a }
}

/// A change of one matrix `[d_in, d_out]`.
// Tensors are handles: two of them in place cost less than a box.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Delta {
    /// `ΔW = A·B`.
    LowRank {
        /// `[d_in, rank]`
        a: Tensor<2>,
        /// `[rank, d_out]`
        b: Tensor<2>,
    },
    /// `ΔW` itself, `[d_in, d_out]`.
    Dense(Tensor<2>),
}

impl Delta {
    /// `[d_in, d_out]`
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Delta::LowRank { a, b } => [a.dims()[0], b.dims()[1]],
            Delta::Dense(delta) => delta.dims(),
        }
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        match self {
            Delta::LowRank { a, .. } => a.dtype(),
            Delta::Dense(delta) => delta.dtype(),
        }
    }

    /// The rank it is stored with: an upper bound of its rank.
    pub fn rank(&self) -> usize {
        match self {
            Delta::LowRank { a, .. } => a.dims()[1],
            Delta::Dense(delta) => delta.dims()[0].min(delta.dims()[1]),
        }
    }

    /// The same change with elements of another type.
    pub fn cast(self, dtype: DType) -> Self {
        match self {
            Delta::LowRank { a, b } => Delta::LowRank { a: a.cast(dtype), b: b.cast(dtype) },
            Delta::Dense(delta) => Delta::Dense(delta.cast(dtype)),
        }
    }

    /// The form that holds fewer numbers: factors `rank·(d_in + d_out)`, the product `d_in·d_out`.
    pub fn smaller(self) -> Self {
        let [d_in, d_out] = self.shape();
        match &self {
            Delta::LowRank { .. } if self.rank() * (d_in + d_out) >= d_in * d_out => Delta::Dense(self.dense()),
            _ => self,
        }
    }

    /// The sum of two changes of one matrix, in the wider of their element types.
    fn plus(self, other: &Delta) -> Delta {
        let dtype = wider(self.dtype(), other.dtype());
        match (self.cast(dtype), other.clone().cast(dtype)) {
            (Delta::LowRank { a, b }, Delta::LowRank { a: more_a, b: more_b }) => {
                Delta::LowRank { a: Tensor::cat(vec![a, more_a], 1), b: Tensor::cat(vec![b, more_b], 0) }
            }
            (one, other) => Delta::Dense(one.dense() + other.dense()),
        }
    }

    /// ΔW, multiplied out.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Delta::LowRank { a, b } => a.clone().matmul(b.clone()),
            Delta::Dense(delta) => delta.clone(),
        }
    }

    /// The Frobenius norm ‖ΔW‖, without multiplying out: `‖AB‖² = ⟨AᵀA, BBᵀ⟩`.
    pub fn norm(&self) -> f64 {
        let square: f64 = match self {
            Delta::LowRank { a, b } => {
                let left = a.clone().transpose().matmul(a.clone());
                let right = b.clone().matmul(b.clone().transpose());
                left.mul(right).sum().into_data().iter::<f64>().sum()
            }
            Delta::Dense(delta) => sum_of_squares(delta.clone()),
        };
        square.max(0.0).sqrt()
    }
}

/// Adds `(x·A)·B` and biases to the outputs of weights, the same for every row.
#[derive(Debug, Clone, Default)]
pub(super) struct Deltas {
    pub(super) matrices: BTreeMap<Weight, (Tensor<2>, Tensor<2>)>,
    pub(super) biases: BTreeMap<Weight, Tensor<1>>,
}

impl Tap for &Deltas {
    fn linear(&mut self, at: Weight, _span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        let mut output = output;
        if let Some((a, b)) = self.matrices.get(&at) {
            let [rows, cells, d_in] = input.dims();
            let change = input.clone().reshape([rows * cells, d_in]).matmul(a.clone()).matmul(b.clone());
            output = output + change.reshape([rows, cells, b.dims()[1]]);
        }
        if let Some(bias) = self.biases.get(&at) {
            output = output + bias.clone().unsqueeze();
        }
        output
    }
}

/// Changes of weights, the same for every row; on an autodiff device what they are made of can be learned.
#[derive(Debug, Clone, Default)]
pub struct SharedDeltas(pub BTreeMap<Weight, Delta>);

impl Tap for SharedDeltas {
    fn linear(&mut self, at: Weight, _span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        let Some(delta) = self.0.get(&at) else { return output };
        let [rows, cells, d_in] = input.dims();
        let input = input.clone().reshape([rows * cells, d_in]);
        let change = match delta {
            Delta::LowRank { a, b } => input.matmul(a.clone()).matmul(b.clone()),
            Delta::Dense(delta) => input.matmul(delta.clone()),
        };
        output.clone() + change.reshape(output.dims())
    }
}

/// A low-rank delta for each record of a batch, so that independent edits share one forward pass.
#[derive(Debug, Clone, Default)]
pub struct RecordDeltas {
    /// For each weight `A [records, d_in, rank]` and `B [records, rank, d_out]`.
    pub matrices: BTreeMap<Weight, (Tensor<3>, Tensor<3>)>,
}

impl Tap for RecordDeltas {
    fn linear(&mut self, at: Weight, span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        let Some((a, b)) = self.matrices.get(&at) else { return output };
        let [rows, cells, d_in] = input.dims();
        let [records, _, d_out] = b.dims();
        let per_record = rows / records;
        let grouped = rows == records * per_record
            && span.rows.iter().enumerate().all(|(index, row)| row.record == index / per_record.max(1));
        if grouped {
            // Rows of one record stand together: its factors serve them in one product.
            let x = input.clone().reshape([records, per_record * cells, d_in]);
            let change = x.matmul(a.clone()).matmul(b.clone());
            return output + change.reshape([rows, cells, d_out]);
        }
        let index: Vec<i64> = span.rows.iter().map(|row| row.record as i64).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &input.device().inner());
        let change = input.clone().matmul(a.clone().select(0, index.clone())).matmul(b.clone().select(0, index));
        output + change
    }
}
