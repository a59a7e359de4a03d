//! Neurons added to an MLP: for its input q they say `act(q·K + b)·V`, added to what the MLP says, before any norm behind it.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};

use crate::error::{Error, Result};
use crate::model::layers::mlp::Activation;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{Place, Role, Site, Span, Stack, Tap, Weight};

/// Neurons beside one MLP.
#[derive(Debug, Clone)]
pub struct Neurons {
    /// K `[width, neurons]`
    pub keys: Tensor<2>,
    /// b `[neurons]`
    pub biases: Tensor<1>,
    /// V `[neurons, width]`
    pub values: Tensor<2>,
    /// act
    pub activation: Activation,
}

/// Neurons by the stack and layer of the MLP beside which they stand; of different activations several.
pub type AddedNeurons = BTreeMap<(Stack, usize), Vec<Neurons>>;

impl Neurons {
    /// `act(q·K + b)·V` for `q [batch, tokens, width]`.
    pub fn said(&self, q: &Tensor<3>) -> Tensor<3> {
        let [rows, cells, width] = q.dims();
        let along = q.clone().reshape([rows * cells, width]).matmul(self.keys.clone());
        let said = self.activation.apply(along + self.biases.clone().unsqueeze()).matmul(self.values.clone());
        said.reshape([rows, cells, width])
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.biases.dims()[0]
    }

    fn width(&self) -> usize {
        self.keys.dims()[0]
    }

    /// Whether keys, biases and values are those of as many neurons of one width.
    pub fn fit(&self) -> bool {
        let (count, width) = (self.count(), self.width());
        count > 0 && self.keys.dims() == [width, count] && self.values.dims() == [count, width]
    }

    /// Both as one; they have the same activation.
    fn and(self, more: &Neurons) -> Self {
        let dtype = self.keys.dtype();
        Neurons {
            keys: Tensor::cat(vec![self.keys, more.keys.clone().cast(dtype)], 1),
            biases: Tensor::cat(vec![self.biases, more.biases.clone().cast(dtype)], 0),
            values: Tensor::cat(vec![self.values, more.values.clone().cast(dtype)], 0),
            activation: self.activation,
        }
    }

    /// The same with elements of another type.
    fn cast(self, dtype: DType) -> Self {
        Neurons {
            keys: self.keys.cast(dtype),
            biases: self.biases.cast(dtype),
            values: self.values.cast(dtype),
            activation: self.activation,
        }
    }

    /// Refuses what a model has no place for. `what` names it in errors.
    ///
    /// # Errors
    /// A layer that the model does not have; neurons of another width, or that do not fit each other.
    pub fn check(&self, spec: &DecoderSpec, (stack, layer): (Stack, usize), what: &str) -> Result<()> {
        if !spec.has(Weight { stack, layer, role: Role::MlpDown }) {
            return Err(Error::Input(format!("{what} adds neurons to layer {layer}; the model has {}", spec.places())));
        }
        let (count, width) = (self.count(), spec.width);
        if self.keys.dims() != [width, count] || self.values.dims() != [count, width] {
            return Err(Error::Input(format!(
                "{what} adds {count} neurons with keys {:?} and values {:?}; the model wants [{width}, {count}] and [{count}, {width}]",
                self.keys.dims(),
                self.values.dims()
            )));
        }
        Ok(())
    }
}

/// Puts neurons beside others: those of one MLP and one activation become one.
pub(super) fn add(to: &mut AddedNeurons, at: (Stack, usize), more: &Neurons, dtype: Option<DType>) {
    let list = to.entry(at).or_default();
    let more = dtype.map_or_else(|| more.clone(), |dtype| more.clone().cast(dtype));
    match list.iter().position(|known| known.activation == more.activation && known.width() == more.width()) {
        Some(place) => {
            let known = list.remove(place);
            list.insert(place, known.and(&more));
        }
        None => list.push(more),
    }
}

/// Added neurons in a pass: what goes into an MLP is kept until the MLP has said its own.
#[derive(Debug)]
pub struct Firing<'a> {
    neurons: &'a AddedNeurons,
    inputs: BTreeMap<(Stack, usize), Tensor<3>>,
}

impl<'a> Firing<'a> {
    /// Of these neurons; on an autodiff device what they are made of can be learned.
    pub fn new(neurons: &'a AddedNeurons) -> Self {
        Firing { neurons, inputs: BTreeMap::new() }
    }
}

impl Tap for Firing<'_> {
    fn linear(&mut self, at: Weight, _span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        if at.role == Role::MlpUp && self.neurons.contains_key(&(at.stack, at.layer)) {
            self.inputs.insert((at.stack, at.layer), input.clone());
        }
        output
    }

    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at.place != Place::MlpOut {
            return value;
        }
        let place = (at.stack, at.layer);
        match (self.neurons.get(&place), self.inputs.remove(&place)) {
            (Some(list), Some(q)) => list.iter().fold(value, |value, neurons| value + neurons.said(&q)),
            _ => value,
        }
    }
}
