//! What low-rank adapters are made of, whatever format they are written in.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::Edited;
use super::change::Delta;
use crate::error::{Error, Result};
use crate::model::family::InAdapter;
use crate::model::tap::Weight;

/// The changes of a stack of edits, as factors of one rank for each matrix of the adapter.
pub(super) struct Adapter {
    /// The rank of the largest; the others are filled up with zeros.
    pub rank: usize,
    /// By the matrix's name.
    pub matrices: BTreeMap<String, Factors>,
}

/// The change of one matrix of an adapter, as a sum of products of a row and a column.
pub(super) struct Factors {
    /// Its inputs.
    pub d_in: usize,
    /// Its outputs.
    pub d_out: usize,
    /// What each component reads `[d_in]` and what it adds `[d_out]`.
    components: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Factors {
    /// What reads the inputs, `[rank, d_in]`.
    pub fn down(&self, rank: usize) -> Vec<f32> {
        let mut down: Vec<f32> = self.components.iter().flat_map(|(reads, _)| reads.iter().copied()).collect();
        down.resize(rank * self.d_in, 0.0);
        down
    }

    /// What makes the outputs, `[d_out, rank]`.
    pub fn up(&self, rank: usize) -> Vec<f32> {
        let mut up = vec![0.0; self.d_out * rank];
        for (component, (_, adds)) in self.components.iter().enumerate() {
            adds.iter().enumerate().for_each(|(output, value)| up[output * rank + component] = *value);
        }
        up
    }
}

impl Adapter {
    /// The edits of a stack, each matrix where `place` has it.
    ///
    /// # Errors
    /// There is no edit; one that changes biases, or more than weights.
    pub fn of(edited: &Edited, place: impl Fn(Weight) -> InAdapter) -> Result<Self> {
        let mut matrices: BTreeMap<String, Factors> = BTreeMap::new();
        for edit in edited.edits() {
            let change = edit.exportable()?;
            if let Some(at) = change.biases.keys().next() {
                let message = format!(
                    "edit {} changes the bias of {at}, which an adapter cannot hold; export it as hf",
                    edit.id()
                );
                return Err(Error::Input(message));
            }
            for (at, delta) in &change.matrices {
                let ([d_in, count], InAdapter { name, outputs, width }) = (delta.shape(), place(*at));
                let (a, b) = factors(delta);
                let rank = a.dims()[1];
                let (a, b) = (elements(a), elements(b));
                let all = matrices.entry(name);
                let all = all.or_insert_with(|| Factors { d_in, d_out: width, components: vec![] });
                for component in 0..rank {
                    // In a matrix of several roles the outputs of the others stay zero.
                    let mut adds = vec![0.0; width];
                    let own = &b[component * count..(component + 1) * count];
                    outputs.iter().zip(own).for_each(|(output, value)| adds[*output] = *value);
                    all.components.push((a.iter().skip(component).step_by(rank).copied().collect(), adds));
                }
            }
        }
        let rank = matrices.values().map(|factors| factors.components.len()).max().unwrap_or(0);
        match rank {
            0 => Err(Error::Input("there is no edit to export".into())),
            _ => Ok(Adapter { rank, matrices }),
        }
    }
}

/// `ΔW = A·B`. A change that is stored whole has one of the two for the identity: the adapter then has the matrix's full rank.
fn factors(delta: &Delta) -> (Tensor<2>, Tensor<2>) {
    match delta {
        Delta::LowRank { a, b } => (a.clone(), b.clone()),
        Delta::Dense(whole) => {
            let [d_in, d_out] = whole.dims();
            let identity = |size| Tensor::<2>::eye(size, &whole.device()).cast(whole.dtype());
            if d_in <= d_out { (identity(d_in), whole.clone()) } else { (whole.clone(), identity(d_out)) }
        }
    }
}

fn elements(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
