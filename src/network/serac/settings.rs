//! What a SERAC config says.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::edit::EditRequest;
use crate::error::{Error, Result};
use crate::network::tuned::Tune;
use crate::paths;
use crate::sections::choice::{self, Choice, fields};
use crate::sections::within;

/// What stands in a config for the edited model itself.
pub const ITSELF: &str = "model";

/// `[editor]` of a SERAC config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeracSettings {
    /// How a question in scope is answered.
    #[serde(default)]
    pub routing: Routing,
    /// Of hard routing.
    #[serde(flatten)]
    pub hard: HardRouting,
    /// What is trained.
    #[serde(default)]
    pub train: TrainedNetworks,
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

/// Keys of `routing = "hard"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HardRouting {
    /// The scope above which a question is in scope.
    pub threshold: f64,
}

impl Default for HardRouting {
    fn default() -> Self {
        HardRouting { threshold: 0.5 }
    }
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
pub enum TrainedNetworks {
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
    pub fn of_request(request: &EditRequest) -> Self {
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
pub struct ClassifierSettings {
    /// How a question is compared with an edit.
    #[serde(default)]
    pub kind: ClassifierKind,
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
    /// Of comparing embeddings.
    #[serde(flatten)]
    pub embedding: ByEmbedding,
    /// Of reading pairs.
    #[serde(flatten)]
    pub pairs: OverPairs,
    /// Where it is trained.
    #[serde(flatten)]
    pub learning: Learning,
}

/// Keys of `kind = "embedding"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ByEmbedding {
    /// Width of the embeddings that are compared.
    pub dimensions: usize,
    /// σ at the start.
    pub scale: f64,
}

impl Default for ByEmbedding {
    fn default() -> Self {
        ByEmbedding { dimensions: 128, scale: 4.0 }
    }
}

/// Keys of `kind = "cross"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OverPairs {
    /// Edits that a question is compared with over the pair: the nearest by the pretrained reader.
    pub candidates: usize,
}

impl Default for OverPairs {
    fn default() -> Self {
        OverPairs { candidates: 8 }
    }
}

/// Keys of a network that is trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learning {
    /// Its learning rate, where it is not `train.learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
}

/// How a question is compared with an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassifierKind {
    /// By the distance of their embeddings: one product over the memory.
    #[default]
    Embedding,
    /// By reading both as one text.
    Cross,
}

/// `[editor.counterfactual]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Where it is trained.
    #[serde(flatten)]
    pub learning: Learning,
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

impl Choice for Routing {
    const KEY: &'static str = "routing";
    const VALUES: &'static [Self] = &[Routing::Hard, Routing::Soft];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Routing::Hard => fields::<HardRouting>(),
            Routing::Soft => &[],
        }
    }
}

impl Choice for ClassifierKind {
    const KEY: &'static str = "kind";
    const VALUES: &'static [Self] = &[ClassifierKind::Embedding, ClassifierKind::Cross];

    fn keys(self) -> &'static [&'static str] {
        match self {
            ClassifierKind::Embedding => fields::<ByEmbedding>(),
            ClassifierKind::Cross => fields::<OverPairs>(),
        }
    }
}

impl SeracSettings {
    /// From the section `[editor]` of a config; `origin` names its file in errors.
    ///
    /// # Errors
    /// A key that is not known, or that the choices made do not use; a value of the wrong type.
    pub fn read(given: &toml::Table, origin: &str) -> Result<Self> {
        let settings: SeracSettings = choice::read("editor", given, origin)?;
        choice::check("editor", given, settings.routing)?;
        for (network, part) in
            [("classifier", TrainedNetworks::Classifier), ("counterfactual", TrainedNetworks::Counterfactual)]
        {
            let Some(given) = given.get(network).and_then(toml::Value::as_table) else { continue };
            let section = format!("editor.{network}");
            if part == TrainedNetworks::Classifier {
                choice::check(&section, given, settings.classifier.kind)?;
            }
            settings.refuse_untrained(&section, given, part, fields::<Learning>())?;
        }
        check(&settings)?;
        Ok(settings)
    }

    /// Whether a network is trained.
    pub fn trains(&self, part: TrainedNetworks) -> bool {
        [TrainedNetworks::Both, part].contains(&self.train)
            && (part == TrainedNetworks::Classifier || self.counterfactual.tune != Tune::Nothing)
    }

    /// Refuses `keys`, which say how a network is trained, where it is not.
    ///
    /// # Errors
    /// Names the key, and what leaves the network as it is.
    pub fn refuse_untrained(
        &self,
        section: &str,
        given: &toml::Table,
        part: TrainedNetworks,
        keys: &[&str],
    ) -> Result<()> {
        let key = match self.trains(part) {
            true => None,
            false => given.keys().find(|key| keys.contains(&key.as_str())),
        };
        let Some(key) = key else { return Ok(()) };
        let (chosen, other) = match (part, self.train) {
            (TrainedNetworks::Classifier, _) => ("train = \"counterfactual\"", "\"both\" or \"classifier\""),
            (_, TrainedNetworks::Classifier) => ("train = \"classifier\"", "\"both\" or \"counterfactual\""),
            _ => ("counterfactual.tune = \"nothing\"", "every other"),
        };
        Err(choice::unused(section, key, &format!("editor.{chosen}"), other))
    }
}

/// # Errors
/// Numbers out of range, a template that is none, nothing to train.
pub(super) fn check(settings: &SeracSettings) -> Result<()> {
    let (classifier, counterfactual) = (&settings.classifier, &settings.counterfactual);
    within("editor.threshold", settings.hard.threshold, 0.0, 1.0)?;
    within("editor.classifier.dimensions", classifier.embedding.dimensions as f64, 1.0, 1e5)?;
    within("editor.classifier.scale", classifier.embedding.scale, 1e-6, 1e6)?;
    for (network, learning) in [("classifier", &classifier.learning), ("counterfactual", &counterfactual.learning)] {
        within(&format!("editor.{network}.learning_rate"), learning.learning_rate.unwrap_or(0.0), 0.0, 10.0)?;
    }
    if settings.train == TrainedNetworks::Counterfactual && counterfactual.tune == Tune::Nothing {
        let message =
            "editor.counterfactual.tune = \"nothing\" leaves nothing to train with editor.train = \"counterfactual\"";
        return Err(Error::Config(message.into()));
    }
    within("editor.classifier.candidates", classifier.pairs.candidates as f64, 1.0, 1e6)?;
    let template = &counterfactual.template;
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
        name => paths::folder_or_name(name, folder),
    }
}
