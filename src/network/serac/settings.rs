//! What a SERAC config says.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::within;
use crate::edit::EditRequest;
use crate::error::{Error, Result};
use crate::network::tuned::Tune;

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

    pub(super) fn name(self) -> &'static str {
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

/// # Errors
/// Numbers out of range, a template that is none, nothing to train.
pub(super) fn check(settings: &Settings) -> Result<()> {
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
