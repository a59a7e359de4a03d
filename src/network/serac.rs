//! SERAC (Mitchell et al., 2022): a memory of edits, a classifier that says whether a question is in the scope of one, and a
//! counterfactual model that reads that edit before the question. No weight of the model changes.
//!
//! ```text
//! s(e, q) = exp(−σ ‖f(e) − f(q)‖²)          scope, by embedding; or σ(g(e, q)) over the pair
//! p(y | q) = p_base(y | q)                   where s ≤ ½ for every e
//!          = p_counterfactual(y | e*, q)     else, e* the nearest; or (1 − s) p_base + s p_counterfactual, with soft mixing
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parameters;
use super::reader::{Pretrained, Reader, Row};
use super::tuned::{Tune, Tuned};
use crate::edit::memory::{Answer, Consulted, Recall, settled};
use crate::edit::{Change, Edit, EditRequest, Edited, Memory, Provenance, Route};
use crate::error::{Error, Result};
use crate::model::sentences::{SentenceEncoder, nearest, normalized};
use crate::model::{Model, hub};

/// What stands in a config for the edited model itself.
pub const ITSELF: &str = "model";

/// `[editor]` of a SERAC config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How a question in scope is answered.
    #[serde(default)]
    pub routing: Routing,
    /// The scope above which a question is in scope, with hard routing.
    #[serde(default = "half")]
    pub threshold: f64,
    /// What is trained.
    #[serde(default)]
    pub train: Part,
    /// An archive whose networks are the start, so that the two can be trained apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The scope classifier.
    pub classifier: ClassifierSettings,
    /// The counterfactual model.
    pub counterfactual: CounterfactualSettings,
    /// The forms of edits it was trained on; filled in by the training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<Form>,
}

fn half() -> f64 {
    0.5
}

/// How a question in scope is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// By the counterfactual model alone, in scope; by the model alone, out of it.
    #[default]
    Hard,
    /// By both, mixed by the scope.
    Soft,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Both, side by side: their losses share no parameter.
    #[default]
    Both,
    /// The scope classifier.
    Classifier,
    /// The counterfactual model.
    Counterfactual,
}

/// What states an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A question with its answer.
    Answer,
    /// A text of its own.
    Descriptor,
}

impl Form {
    /// Of a request.
    pub fn of(request: &EditRequest) -> Self {
        if request.descriptor.is_some() { Form::Descriptor } else { Form::Answer }
    }

    fn name(self) -> &'static str {
        match self {
            Form::Answer => "questions with answers",
            Form::Descriptor => "descriptors",
        }
    }
}

/// `[editor.classifier]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierSettings {
    /// How a question is compared with an edit.
    #[serde(default)]
    pub kind: Kind,
    /// The reader: an encoder's folder or name, or `model` for the edited model's own hidden states.
    pub encoder: String,
    /// The reader's fingerprint; filled in by the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Blocks of the reader that are used, from the lowest; 0 for all.
    #[serde(default)]
    pub layers: usize,
    /// How much of the reader is trained.
    pub tune: Tune,
    /// Width of the embeddings that are compared.
    #[serde(default = "dimensions")]
    pub dimensions: usize,
    /// σ at the start.
    #[serde(default = "scale")]
    pub scale: f64,
    /// Edits that a question is compared with over the pair: the nearest by the pretrained reader.
    #[serde(default = "candidates")]
    pub candidates: usize,
    /// Its learning rate, where it is not `train.learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
}

fn dimensions() -> usize {
    128
}

fn scale() -> f64 {
    4.0
}

fn candidates() -> usize {
    8
}

/// How a question is compared with an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// By the distance of their embeddings: one product over the memory.
    #[default]
    Embedding,
    /// By reading both as one text.
    Cross,
}

/// `[editor.counterfactual]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CounterfactualSettings {
    /// A language model's folder or name, or `model` for the edited model itself.
    pub model: String,
    /// Its fingerprint; filled in by the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// How much of it is trained.
    pub tune: Tune,
    /// What it reads: `{edit}`, then `{question}`.
    #[serde(default = "template")]
    pub template: String,
    /// Its learning rate, where it is not `train.learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
}

fn template() -> String {
    "{edit}. {question}".into()
}

impl CounterfactualSettings {
    /// What the counterfactual model reads of an edit and a question.
    pub fn prompt(&self, edit: &str, question: &str) -> String {
        // An edit that ends as a sentence does wants no second full stop.
        let template = match edit.ends_with(['.', '!', '?']) {
            true => self.template.replacen("{edit}.", "{edit}", 1),
            false => self.template.clone(),
        };
        let (before, after) = template.split_once("{edit}").unwrap_or((&template, ""));
        format!("{before}{edit}{}{question}", after.strip_suffix("{question}").unwrap_or(after))
    }
}

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
    pub settings: Settings,
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
    pub fn new(mut settings: Settings, base: &Arc<Model>, place: (&Device, DType)) -> Result<Self> {
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
        same(
            "classifier.encoder",
            &settings.classifier.encoder,
            &mut settings.classifier.fingerprint,
            reader.fingerprint(),
        )?;
        let found = pretrained.fingerprint.clone();
        same("counterfactual.model", &settings.counterfactual.model, &mut settings.counterfactual.fingerprint, &found)?;
        if settings.routing == Routing::Soft {
            let vocabulary = |model: &Model| model.decoder.spec.vocabulary;
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
            Kind::Embedding => settings.classifier.dimensions,
            Kind::Cross => 1,
        };
        let log_scale = match settings.classifier.kind {
            Kind::Embedding => Some(Param::from_tensor(Tensor::full([1], settings.classifier.scale.ln(), place))),
            Kind::Cross => None,
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
        weight: Param::from_tensor(Tensor::random([d_in, d_out], spread, place)),
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

fn check(settings: &Settings) -> Result<()> {
    use crate::config::within;
    within("editor.threshold", settings.threshold, 0.0, 1.0)?;
    within("editor.classifier.dimensions", settings.classifier.dimensions as f64, 1.0, 1e5)?;
    within("editor.classifier.scale", settings.classifier.scale, 1e-6, 1e6)?;
    for (network, rate) in
        [("classifier", settings.classifier.learning_rate), ("counterfactual", settings.counterfactual.learning_rate)]
    {
        within(&format!("editor.{network}.learning_rate"), rate.unwrap_or(0.0), 0.0, 10.0)?;
    }
    if settings.train == Part::Counterfactual && settings.counterfactual.tune == Tune::Nothing {
        let message =
            "editor.counterfactual.tune = \"nothing\" leaves nothing to train with editor.train = \"counterfactual\"";
        return Err(Error::Config(message.into()));
    }
    within("editor.classifier.candidates", settings.classifier.candidates as f64, 1.0, 1e6)?;
    let template = &settings.counterfactual.template;
    if template.matches("{edit}").count() != 1
        || template.matches("{question}").count() != 1
        || !template.ends_with("{question}")
    {
        return Err(Error::Config(format!(
            "editor.counterfactual.template = \"{template}\": it must hold {{edit}} once and end with {{question}}"
        )));
    }
    Ok(())
}

/// SERAC's networks as they answer.
pub struct SeracRoute {
    serac: Serac,
    counterfactual: Edited,
}

impl SeracRoute {
    /// The networks.
    pub fn serac(&self) -> &Serac {
        &self.serac
    }

    /// What edits are found by, `[edits, width]`.
    fn keys(&self, statements: &[&str]) -> Result<Tensor<2>> {
        let Serac { settings, reader, .. } = &self.serac;
        if settings.classifier.kind == Kind::Cross {
            return reader.embed(statements);
        }
        let rows = statements.iter().map(|text| reader.row(text, None)).collect::<Result<Vec<_>>>()?;
        let device = self.serac.network.classifier.head.weight.val().device();
        reader.batched(&rows, &device, |rows| self.serac.embed(rows))
    }

    /// The scope of each prompt: the nearest entry, and how sure it is that it is meant.
    ///
    /// # Errors
    /// Keys that are not this classifier's; a prompt that it cannot take.
    pub fn scopes(&self, requests: &[EditRequest], keys: &Tensor<2>, prompts: &[String]) -> Result<Vec<(usize, f64)>> {
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let Serac { settings, reader, .. } = &self.serac;
        let width = self.width();
        debug_assert_eq!(keys.dims()[1], width);
        let questions = self.keys(&texts)?;
        let keys = &keys.clone().cast(questions.dtype());
        if settings.classifier.kind == Kind::Embedding {
            let scale = self.serac.network.classifier.log_scale.as_ref();
            let scale = scale.map_or(1.0, |log| log.val().exp().into_data().iter::<f64>().sum::<f64>());
            let products = questions.matmul(keys.clone().transpose());
            let entries = keys.dims()[0];
            let products: Vec<f32> = products.into_data().iter::<f32>().collect();
            let best = |row: &[f32]| {
                // Of equally near ones the later.
                let by_product = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]);
                let entry = (0..entries).max_by(by_product).unwrap_or(0);
                let square = (2.0 - 2.0 * f64::from(row[entry])).max(0.0);
                (entry, (-scale * square).exp())
            };
            return Ok(products.chunks(entries).map(best).collect());
        }
        let near = nearest(questions, keys, settings.classifier.candidates);
        let pairs: Vec<(usize, usize)> =
            near.iter().enumerate().flat_map(|(row, near)| near.iter().map(move |&(entry, _)| (row, entry))).collect();
        let rows = pairs.iter().map(|&(row, entry)| reader.row(&requests[entry].statement(), Some(texts[row])));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let device = keys.device();
        let logits = reader.batched(&rows, &device, |rows| Ok(self.serac.pairs(rows)?.unsqueeze_dim::<2>(1)))?;
        let scopes: Vec<f64> = activation::sigmoid(logits).into_data().iter::<f64>().collect();
        let mut best = vec![(0, f64::NEG_INFINITY); texts.len()];
        for (&(row, entry), scope) in pairs.iter().zip(scopes) {
            if scope > best[row].1 || (scope == best[row].1 && entry > best[row].0) {
                best[row] = (entry, scope);
            }
        }
        Ok(best)
    }

    /// One edit that remembers all requests. `needs` is written into its file.
    ///
    /// # Errors
    /// A request that the classifier cannot take, or of a form it was not trained on.
    pub fn edit(self: &Arc<Self>, model: &Edited, requests: &[EditRequest], needs: Value, seed: u64) -> Result<Edit> {
        let settings = &self.serac.settings;
        if let Some(strange) =
            requests.iter().find(|request| !settings.forms.is_empty() && !settings.forms.contains(&Form::of(request)))
        {
            let known: Vec<&str> = settings.forms.iter().map(|form| form.name()).collect();
            return Err(Error::Input(format!(
                "\"{}\" is stated by {}; this archive was trained on {}",
                strange.statement(),
                if strange.descriptor.is_some() { "a descriptor" } else { "a question with its answer" },
                known.join(" and ")
            )));
        }
        let requests = settled(requests);
        let statements: Vec<String> = requests.iter().map(EditRequest::statement).collect();
        let keys = self.keys(&statements.iter().map(String::as_str).collect::<Vec<_>>())?;
        let provenance = Provenance {
            method: "serac".into(),
            settings: serde_json::to_value(settings).unwrap_or_default(),
            requests,
            seed,
            version: env!("CARGO_PKG_VERSION").into(),
            base: model.base().fingerprint.clone(),
            computed_on: model.edit_ids(),
            findings: Value::Null,
        };
        let route: Arc<dyn Route> = self.clone();
        let memory = Memory { needs, keys, texts: vec![], route: Some(route) };
        Ok(Edit::new(provenance, Change::Memory(memory), Default::default()))
    }
}

impl Route for SeracRoute {
    fn width(&self) -> usize {
        match self.serac.settings.classifier.kind {
            Kind::Embedding => self.serac.settings.classifier.dimensions,
            Kind::Cross => self.serac.reader.width(),
        }
    }

    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        let Settings { routing, threshold, counterfactual, .. } = &self.serac.settings;
        let scopes = self.scopes(&recall.requests, &recall.keys, prompts)?;
        let answers = scopes.into_iter().zip(prompts).map(|((entry, scope), prompt)| {
            let share = match routing {
                Routing::Hard if scope > *threshold => 1.0,
                Routing::Hard => return None,
                Routing::Soft => scope,
            };
            let prompt = counterfactual.prompt(&recall.requests[entry].statement(), prompt);
            Some(Consulted {
                entry,
                scope,
                answer: Answer::Model { model: self.counterfactual.clone(), prompt, share },
            })
        });
        Ok(answers.collect())
    }
}

/// The folder of a base as an archive names it, or its name.
pub fn located(name: &str, folder: &Path) -> String {
    match name {
        ITSELF => name.to_owned(),
        name => {
            let beside = folder.join(name);
            let whole = beside.is_dir().then(|| beside.canonicalize().ok()).flatten();
            whole.map_or_else(|| name.to_owned(), |folder| folder.to_string_lossy().into_owned())
        }
    }
}
