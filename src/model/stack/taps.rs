//! Taps that serve many: record, replace, and read gradients.

use std::collections::BTreeMap;

use burn::tensor::{Device, Gradients, Int, Tensor};

use crate::model::tap::{Site, Span, Tap, Weight};

/// Keeps the activations of the sites asked for.
#[derive(Debug, Default)]
pub struct Recorder {
    wanted: Vec<Site>,
    /// What passed, `[batch, tokens, width]` each.
    pub values: BTreeMap<Site, Tensor<3>>,
}

impl Recorder {
    /// Records at these sites.
    pub fn at(wanted: impl IntoIterator<Item = Site>) -> Self {
        Recorder { wanted: wanted.into_iter().collect(), values: BTreeMap::new() }
    }
}

impl Tap for Recorder {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if self.wanted.contains(&at) {
            self.values.insert(at, value.clone());
        }
        value
    }
}

/// Puts vectors in the place of activations, at one absolute position of a record each.
#[derive(Debug, Default)]
pub struct Replace {
    /// (site, record, absolute position) and the vector `[width]` that stands there.
    pub values: Vec<(Site, usize, usize, Tensor<1>)>,
}

impl Tap for Replace {
    fn activation(&mut self, at: Site, span: &Span, value: Tensor<3>) -> Tensor<3> {
        let [rows, cells, width] = value.dims();
        let mut flat = value.reshape([rows * cells, width]);
        for (_, record, position, vector) in self.values.iter().filter(|(site, ..)| *site == at) {
            let here = (0..rows).filter(|&row| span.rows[row].record == *record);
            for (row, cell) in here.filter_map(|row| Some((row, span.cell(row, *position)?))) {
                let index = row * cells + cell;
                flat = flat.slice_assign([index..index + 1, 0..width], vector.clone().unsqueeze());
            }
        }
        flat.reshape([rows, cells, width])
    }
}

/// Reads, for chosen weights, the input `u` and the gradient `δ` at the output, so that `uᵀδ` is the weight's gradient.
///
/// A probe is a tensor of zeros added to the output: nothing below the first one is recorded by autodiff.
#[derive(Debug)]
pub struct GradientProbes {
    wanted: Vec<Weight>,
    seen: BTreeMap<Weight, (Tensor<3>, Tensor<3>)>,
    records: Vec<usize>,
}

impl GradientProbes {
    /// Probes the outputs of these weights.
    pub fn at(wanted: impl IntoIterator<Item = Weight>) -> Self {
        GradientProbes { wanted: wanted.into_iter().collect(), seen: BTreeMap::new(), records: vec![] }
    }

    /// The record of each row that passed.
    pub fn records(&self) -> &[usize] {
        &self.records
    }

    /// For each weight the input `u [batch, tokens, d_in]` and the gradient `δ [batch, tokens, d_out]`, both plain.
    /// A weight that the loss does not depend on has none.
    pub fn read(self, gradients: &Gradients) -> BTreeMap<Weight, (Tensor<3>, Tensor<3>)> {
        let read = |(at, (input, probe)): (Weight, (Tensor<3>, Tensor<3>))| Some((at, (input, probe.grad(gradients)?)));
        self.seen.into_iter().filter_map(read).collect()
    }
}

impl Tap for GradientProbes {
    fn linear(&mut self, at: Weight, span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        if !self.wanted.contains(&at) {
            return output;
        }
        if self.records.is_empty() {
            self.records = span.rows.iter().map(|row| row.record).collect();
        }
        let device: Device = output.device().autodiff();
        let probe = Tensor::<3>::zeros(output.dims(), (&device, output.dtype())).require_grad();
        self.seen.insert(at, (input.clone().inner(), probe.clone()));
        output + probe
    }
}

/// Records the inputs of weights, `[batch, tokens, d_in]`.
#[derive(Debug, Default)]
pub struct Inputs {
    wanted: Vec<Weight>,
    /// What was seen.
    pub values: BTreeMap<Weight, Tensor<3>>,
}

impl Inputs {
    /// Records those of these weights.
    pub fn of(wanted: impl IntoIterator<Item = Weight>) -> Self {
        Inputs { wanted: wanted.into_iter().collect(), values: BTreeMap::new() }
    }
}

impl Tap for Inputs {
    fn linear(&mut self, at: Weight, _span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        if self.wanted.contains(&at) {
            self.values.insert(at, input.clone());
        }
        output
    }
}

/// The rows of `x [batch, tokens, width]` at (row, cell) pairs, `[pairs, width]`.
pub fn cells(x: Tensor<3>, pairs: &[(usize, usize)]) -> Tensor<2> {
    let [rows, cells, width] = x.dims();
    let index: Vec<i64> = pairs.iter().map(|(row, cell)| (row * cells + cell) as i64).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &x.device().inner());
    x.reshape([rows * cells, width]).select(0, index)
}
