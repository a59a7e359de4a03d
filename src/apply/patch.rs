//! Neurons that are trained beside one MLP of a frozen model: what T-Patcher and CaliNet have in common. Everything below the MLP is a constant and is run once.

use burn::tensor::{Gradients, Tensor, TensorData, activation};

use super::tuning::{Optimizer, TunedTensor};
use crate::edit::likelihood::{check_targets, read_log};
use crate::edit::neurons::{AddedNeurons, Neurons};
use crate::edit::{EditRequest, Edited, PassChange, loss};
use crate::error::{Error, Result};
use crate::model::layers::mlp::Activation;
use crate::model::stack::sizes::Pass;
use crate::model::stack::taps::{Inputs, cells};
use crate::model::tap::{NoTap, Role, Stack, Weight};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::{Tokens, check_length};
use crate::network::matrices::select_rows;
use crate::plan::Work;

/// Neurons on their way.
pub(super) struct Patch {
    /// The decoder's layer.
    layer: usize,
    activation: Activation,
    keys: TunedTensor<2>,
    biases: TunedTensor<1>,
    values: TunedTensor<2>,
}

impl Patch {
    pub fn new(layer: usize, neurons: Neurons) -> Self {
        let Neurons { keys, biases, values, activation } = neurons;
        let (keys, biases, values) = (TunedTensor::new(keys), TunedTensor::new(biases), TunedTensor::new(values));
        Patch { layer, activation, keys, biases, values }
    }

    /// As they are now.
    pub fn neurons(&self) -> Neurons {
        let (keys, biases, values) = (self.keys.value.clone(), self.biases.value.clone(), self.values.value.clone());
        Neurons { keys, biases, values, activation: self.activation }
    }

    /// As they are now, with gradients to be taken.
    pub fn leaves(&self) -> Neurons {
        let Neurons { keys, biases, values, activation } = self.neurons();
        Neurons {
            keys: Tensor::from_inner(keys).require_grad(),
            biases: Tensor::from_inner(biases).require_grad(),
            values: Tensor::from_inner(values).require_grad(),
            activation,
        }
    }

    /// A step of Adam down the gradients at the leaves; `decay` is that of the weights (L2).
    pub fn step(&mut self, leaves: &Neurons, gradients: &Gradients, (rate, decay): (f64, f64), step: usize) {
        fn down<const D: usize>(
            tuned: &mut TunedTensor<D>,
            gradient: Option<Tensor<D>>,
            (rate, decay): (f64, f64),
            step: usize,
        ) {
            if let Some(gradient) = gradient {
                let gradient = gradient + tuned.value.clone().mul_scalar(decay);
                tuned.descend(gradient, (Optimizer::Adam, rate), step);
            }
        }
        down(&mut self.keys, leaves.keys.grad(gradients), (rate, decay), step);
        down(&mut self.biases, leaves.biases.grad(gradients), (rate, decay), step);
        down(&mut self.values, leaves.values.grad(gradients), (rate, decay), step);
    }

    /// What they change of a model.
    pub fn change(&self) -> PassChange {
        PassChange { neurons: added(self.layer, self.neurons()), ..PassChange::default() }
    }
}

fn added(layer: usize, neurons: Neurons) -> AddedNeurons {
    [((Stack::Decoder, layer), vec![neurons])].into()
}

/// Prompts with their targets, carried to what goes into a layer.
pub(super) struct Patched {
    rows: Vec<Continuation>,
    tokens: Tokens,
    hidden: Tensor<3>,
    /// The decoder's layer, and its place among all blocks of a pass.
    layer: usize,
    block: usize,
    reads: Vec<(usize, usize)>,
    targets: Vec<u32>,
}

/// What a pass over them says.
pub(super) struct Said {
    /// A number with the gradient of the loss, the mean over requests of −ln p a token of the target.
    pub surrogate: Tensor<1>,
    /// The loss.
    pub loss: f64,
    /// Whether each token of all targets is the likeliest.
    pub right: Vec<bool>,
}

impl Patched {
    /// # Errors
    /// A request that the model cannot take.
    pub fn new(model: &Edited, layer: usize, requests: &[EditRequest]) -> Result<Self> {
        let tokenizer = &model.base().tokenizer;
        let rows = requests.iter().enumerate().map(|(number, request)| {
            let row = request.row(tokenizer).and_then(|row| {
                check_targets(model, row.target())?;
                check_length(row.ids.len() - 1, model.base().decoder.spec.context)?;
                Ok(row)
            });
            row.map_err(|error| super::prepared::of_request(requests, number, error))
        });
        Patched::of(model, layer, rows.collect::<Result<Vec<_>>>()?)
    }

    fn of(model: &Edited, layer: usize, rows: Vec<Continuation>) -> Result<Self> {
        let (spec, at) = (&model.base().decoder.spec, Weight::decoder(layer, Role::MlpUp));
        if !spec.has(at) {
            let message = format!(
                "editor.layer: neurons stand beside a decoder's MLP, and there is none in layer {layer}; the model has {}",
                spec.places()
            );
            return Err(Error::Config(message));
        }
        if model.acts_on_layer(layer) {
            let message = format!(
                "an edit below acts on what layer {layer} says, and this editor works there; take that edit away, or another layer"
            );
            return Err(Error::Input(message));
        }
        let tokens = Tokens::new(rows.iter().map(|text| text.ids[..text.ids.len() - 1].to_vec()).collect())
            .of(rows.iter().map(Continuation::text));
        let hidden = model.embed(&tokens, &mut NoTap)?;
        let block = spec.place(at);
        let hidden = model.blocks(hidden, 0..block, tokens.span(), None, &mut NoTap)?;
        let (reads, targets) = read(&rows);
        Ok(Patched { rows, tokens, hidden, layer, block, reads, targets })
    }

    /// Some of them; what lies below the layer is not run again.
    pub fn chosen(&self, chosen: &[usize]) -> Self {
        let rows: Vec<Continuation> = chosen.iter().map(|&row| self.rows[row].clone()).collect();
        let (hidden, tokens) = select_rows(self.hidden.clone(), &self.tokens, chosen);
        let (reads, targets) = read(&rows);
        Patched { rows, tokens, hidden, layer: self.layer, block: self.block, reads, targets }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// What goes into the layer's MLP where targets are predicted, `[tokens of targets, width]`.
    pub fn queries(&self, model: &Edited) -> Result<Tensor<2>> {
        let at = Weight::decoder(self.layer, Role::MlpUp);
        let mut inputs = Inputs::of([at]);
        let layers = self.block..self.block + 1;
        model.blocks(self.hidden.clone(), layers, self.tokens.span(), None, &mut inputs)?;
        let seen = inputs.values.remove(&at);
        seen.map(|seen| cells(seen, &self.reads))
            .ok_or_else(|| Error::Input(format!("layer {} was not reached", self.layer)))
    }

    /// ln p of each token of all targets on the model as it is, and whether it is the likeliest.
    pub fn likelihoods(&self, model: &Edited) -> Result<Vec<(f64, bool)>> {
        let layers = self.block..model.layers();
        let hidden = model.blocks(self.hidden.clone(), layers, self.tokens.span(), None, &mut NoTap)?;
        let log = activation::log_softmax(model.head(hidden, &self.reads), 1);
        let (log, likeliest) = read_log(log, &self.targets);
        let right = likeliest.iter().zip(&self.targets).map(|(said, wanted)| said == wanted);
        Ok(log.into_iter().map(f64::from).zip(right).collect())
    }

    /// A pass with neurons beside the MLP.
    pub fn said(&self, model: &Edited, neurons: &Neurons) -> Result<Said> {
        // Laid down as they will be once they are an edit: below what acts on the MLP's output.
        let neurons = added(self.layer, neurons.clone());
        let model = model.with_change(&PassChange { neurons, ..PassChange::default() })?;
        let layers = self.block..model.layers();
        let hidden = model.blocks(self.hidden.clone(), layers, self.tokens.span(), None, &mut NoTap)?;
        let shares = self.rows.iter().flat_map(|text| {
            let count = text.target().len();
            vec![1.0 / (self.rows.len() * count) as f64; count]
        });
        let shares: Vec<f64> = shares.collect();
        let (surrogate, (each, likeliest)) = model.head_with_gradient(hidden, &self.reads, |logits| {
            let log = activation::log_softmax(logits, 1);
            let likeliest: Vec<i64> = log.clone().argmax(1).into_data().iter::<i64>().collect();
            let (each, gradient) = loss::nll(log, &self.targets);
            let data = TensorData::new(shares.clone(), [shares.len()]);
            let weights = Tensor::<1>::from_data(data, (&each.device(), each.dtype()));
            Ok((gradient * weights.unsqueeze_dim(1), (each, likeliest)))
        })?;
        let each: Vec<f64> = each.into_data().iter::<f64>().collect();
        let loss: f64 = each.iter().zip(&shares).map(|(each, share)| each * share).sum();
        if !loss.is_finite() {
            return Err(Error::Input("the loss is not finite; try a lower editor.learning_rate".into()));
        }
        let right = likeliest.iter().zip(&self.targets).map(|(&said, &wanted)| said == i64::from(wanted));
        Ok(Said { surrogate, loss, right: right.collect() })
    }
}

/// Where targets are predicted, and these.
fn read(rows: &[Continuation]) -> (Vec<(usize, usize)>, Vec<u32>) {
    let reads = rows.iter().enumerate().flat_map(|(row, text)| text.reads().map(move |cell| (row, cell))).collect();
    (reads, rows.iter().flat_map(|text| text.target().iter().copied()).collect())
}

/// What a step over so many requests holds: a graph from the layer on.
pub(super) fn bytes_of_step(work: &Work<'_>, layer: usize, requests: usize) -> u64 {
    let (spec, texts) = (work.spec, work.texts);
    let above = spec.layers.saturating_sub(layer);
    let cast = if work.in_file { spec.layers_bytes(spec.source_layers() + layer) } else { 0 };
    spec.graph_bytes(Pass::new(requests, texts.row), above) + 5 * spec.logits_bytes(requests * texts.target) + cast
}
