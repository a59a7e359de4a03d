//! SERAC (Mitchell et al., 2022): a memory of edits, a classifier that says whether a question is in the scope of one, and a
//! counterfactual model that reads that edit before the question. No weight of the model changes.
//!
//! ```text
//! s(e, q) = exp(−σ ‖f(e) − f(q)‖²)          scope, by embedding; or σ(g(e, q)) over the pair
//! p(y | q) = p_base(y | q)                   where s ≤ ½ for every e
//!          = p_counterfactual(y | e*, q)     else, e* the nearest; or (1 − s) p_base + s p_counterfactual, with soft mixing
//! ```

mod route;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};

pub use route::SeracRoute;
use settings::check;
pub use settings::{
    ByEmbedding, ClassifierKind, ClassifierSettings, CounterfactualSettings, Form, HardRouting, ITSELF, Learning,
    OverPairs, Routing, SeracSettings, TrainedNetworks, located,
};

use super::parameters;
use super::reader::{Pretrained, Reader, Row};
use super::tuned::Tuned;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::layers::matrix::{Linear, Matrix};
use crate::model::load::hub;
use crate::model::sentences::{SentenceEncoder, normalized};

/// What configs, archives, edits and memories call it.
pub(crate) const NAME: &str = "serac";

/// What is trained.
#[derive(Module, Debug)]
pub struct SeracNetwork {
    /// The scope classifier.
    pub classifier: Classifier,
    /// The trained part of the counterfactual model.
    pub counterfactual: Tuned,
}

/// The scope classifier.
#[derive(Module, Debug)]
pub struct Classifier {
    /// The trained part of the reader.
    pub reader: Tuned,
    /// `[width, dimensions]` by embedding, `[width, 1]` over pairs.
    pub head: Linear,
    /// ln σ, `[1]`, by embedding.
    pub log_scale: Option<Param<Tensor<1>>>,
}

/// SERAC's networks on their pretrained bases.
#[derive(Clone)]
pub struct Serac {
    /// The settings.
    pub settings: SeracSettings,
    /// What is trained.
    pub network: SeracNetwork,
    /// What the classifier reads with.
    pub reader: Reader,
    /// The counterfactual model, as it is pretrained.
    pub pretrained: Arc<Model>,
}

impl Serac {
    /// Networks that begin with their pretrained bases; `base` is the edited model.
    ///
    /// # Errors
    /// Settings that do not fit, a base that is missing or another than the settings name.
    pub fn new(mut settings: SeracSettings, base: &Arc<Model>, place: (&Device, DType)) -> Result<Self> {
        check(&settings)?;
        let plain = place.0.clone().inner();
        let stack = match settings.classifier.encoder.as_str() {
            ITSELF => Pretrained::Decoder(base.clone()),
            name => Pretrained::Encoder(Arc::new(SentenceEncoder::open(&hub::resolve(name)?, &plain, place.1)?)),
        };
        let reader = Reader::new(stack, settings.classifier.layers)
            .map_err(|error| Error::Config(format!("editor.classifier.layers: {error}")))?;
        let pretrained = match settings.counterfactual.model.as_str() {
            ITSELF => base.clone(),
            name => Arc::new(Model::load(name, &plain, place.1)?),
        };
        if pretrained.tokenizer.labels() != base.tokenizer.labels() {
            return Err(Error::Config(format!(
                "editor.counterfactual.model = \"{}\" does not say what the edited model says, {}; \"model\" is the edited model itself",
                settings.counterfactual.model,
                base.tokenizer.labels().map_or("tokens of a text".to_owned(), |labels| labels.join(", "))
            )));
        }
        same(
            "classifier.encoder",
            &settings.classifier.encoder,
            &mut settings.classifier.fingerprint,
            reader.fingerprint(),
        )?;
        let found = pretrained.fingerprint.clone();
        same("counterfactual.model", &settings.counterfactual.model, &mut settings.counterfactual.fingerprint, &found)?;
        if settings.routing == Routing::Soft {
            let vocabulary = |model: &Model| model.decoder.spec.outputs();
            let alike = base.tokenizer.fingerprint()? == pretrained.tokenizer.fingerprint()?;
            if vocabulary(base) != vocabulary(&pretrained) || !alike {
                return Err(Error::Config(format!(
                    "editor.routing = \"soft\" wants a counterfactual model with the edited model's vocabulary: {} tokens against \
                     {} of other kinds; use routing = \"hard\"",
                    vocabulary(base),
                    vocabulary(&pretrained)
                )));
            }
        }
        let outputs = match settings.classifier.kind {
            ClassifierKind::Embedding => settings.classifier.embedding.dimensions,
            ClassifierKind::Cross => 1,
        };
        let log_scale = match settings.classifier.kind {
            ClassifierKind::Embedding => {
                let scale = settings.classifier.embedding.scale;
                Some(Param::from_tensor(Tensor::full([1], scale.ln(), place)))
            }
            ClassifierKind::Cross => None,
        };
        let head = linear(reader.width(), outputs, place);
        let of = |network: &'static str| {
            move |error: Error| match error {
                Error::Config(message) => Error::Config(format!("editor.{network}.tune: {message}")),
                other => other,
            }
        };
        let tuned = reader.tuned(&settings.classifier.tune, place).map_err(of("classifier"))?;
        let classifier = Classifier { reader: tuned, head, log_scale };
        let counterfactual = Tuned::of_decoder(&settings.counterfactual.tune, &pretrained.decoder, place)
            .map_err(of("counterfactual"))?;
        Ok(Serac { settings, network: SeracNetwork { classifier, counterfactual }, reader, pretrained })
    }

    /// Embeddings that are compared by distance, `[rows, dimensions]`, each of length one.
    ///
    /// # Errors
    /// A row longer than the reader's context.
    pub fn embed(&self, rows: &[Row]) -> Result<Tensor<2>> {
        let classifier = &self.network.classifier;
        let means = self.reader.means(&classifier.reader, rows)?.cast(classifier.head.weight.val().dtype());
        Ok(normalized(classifier.head.forward(means)))
    }

    /// `σ ‖e − q‖²` of all pairs, `[edits, questions]`, from embeddings of length one.
    pub fn distances(&self, edits: Tensor<2>, questions: Tensor<2>) -> Tensor<2> {
        let squares = edits.matmul(questions.transpose()).mul_scalar(-2.0).add_scalar(2.0).clamp_min(0.0);
        match &self.network.classifier.log_scale {
            Some(log) => squares * log.val().exp().unsqueeze(),
            None => squares,
        }
    }

    /// The logits of pairs, `[rows]`.
    ///
    /// # Errors
    /// A row longer than the reader's context.
    pub fn pairs(&self, rows: &[Row]) -> Result<Tensor<1>> {
        let classifier = &self.network.classifier;
        let pairs = self.reader.pairs(&classifier.reader, rows)?.cast(classifier.head.weight.val().dtype());
        Ok(classifier.head.forward(pairs).squeeze_dim(1))
    }

    /// What is trained, by name.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        parameters::collect(&self.network)
    }

    /// Puts [`Serac::tensors`] back.
    ///
    /// # Errors
    /// Tensors that are missing, too many, or of another shape.
    pub fn restored(mut self, tensors: BTreeMap<String, TensorData>) -> Result<Self> {
        self.network = parameters::restore(self.network, tensors)?;
        Ok(self)
    }

    /// The networks as they answer: nothing of them learns any more.
    ///
    /// # Errors
    /// A model that cannot be put together.
    pub fn route(&self) -> Result<Arc<SeracRoute>> {
        let serac = Serac { network: self.network.clone().valid(), ..self.clone() };
        let tensors = parameters::collect(&serac.network.counterfactual);
        let id = blake3::hash(&crate::tensors::to_bytes(&tensors)?).to_hex().to_string();
        let tuned = &serac.network.counterfactual;
        let mut decoder = tuned.decoder(&serac.pretrained.decoder);
        for factors in &tuned.factors {
            let linear = decoder.linear(factors.at)?;
            let bias = linear.bias.as_ref().map(|bias| bias.val());
            let weight = linear.weight.val();
            let delta = factors.a.val().matmul(factors.b.val()).cast(weight.dtype());
            decoder = decoder.with_linear(factors.at, weight + delta, bias)?;
        }
        let counterfactual =
            Edited::with_decoder(serac.pretrained.clone(), decoder, format!("{}/{id}", serac.pretrained.fingerprint));
        Ok(Arc::new(SeracRoute { serac, counterfactual }))
    }
}

/// A linear layer at its start, as Burn has it, in the element type of the network.
fn linear(d_in: usize, d_out: usize, place: (&Device, DType)) -> Linear {
    let most = 1.0 / (d_in as f64).sqrt();
    let spread = Distribution::Uniform(-most, most);
    Linear {
        weight: Matrix::held(Tensor::random([d_in, d_out], spread, place)),
        bias: Some(Param::from_tensor(Tensor::random([d_out], spread, place))),
    }
}

/// A base is the one that settings name; where they name none yet, it is written into them.
fn same(key: &str, name: &str, known: &mut Option<String>, found: &str) -> Result<()> {
    match known {
        Some(known) if known != found => Err(Error::Config(format!(
            "editor.{key} = \"{name}\" is {found}, but {known} is wanted; put the files back that it was trained with"
        ))),
        _ => {
            *known = Some(found.to_owned());
            Ok(())
        }
    }
}
