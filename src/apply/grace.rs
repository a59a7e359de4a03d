//! GRACE (Hartvigsen et al., 2023): a codebook at one layer. A prompt's *query* q is what goes into the layer's down-projection at the prompt's last token. Where q lies within
//! the reach ε of the nearest key, that entry's value stands in the place of the down-projection's output there; every other prompt is the model's own.
//!
//! A new edit with query q, at distance d from the nearest key, whose reach is ε:
//!
//! ```text
//! d > ε₀ + ε                    a new entry of reach ε₀
//! else, the same label          the nearest reaches as far as q:  ε ← max(ε, d)      (expand)
//! else                          a new entry of reach d/2, and ε ← d/2 − 1e-5         (split)
//! ```
//!
//! An entry is expanded where its value says the new target too; where it does not, the new edit finds a value of its own and splits. What an entry was expanded to and a later split
//! takes from it answers for itself again, with the same value: in the paper it is lost.
//!
//! The value is found by Adam from the layer's own output on, so that the target follows the prompt; all edits of a batch together. Reaches are worked out from keys and labels in
//! their order whenever entries meet, and never stored: an edit that is taken back gives the others back what it took.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Editor;
use super::contexts::RequestInContexts;
use super::memory::{Search, settings_of_causal_layer};
use super::nearest::{Nearest, Rows, distance, nearest, nearest_within};
use super::prepared::{Prepared, of_request};
use super::value::{AddedTo, Cone, Descent, descend};
use crate::edit::activation::{Action, Intervention, Positions, Until};
use crate::edit::likelihood::{Scored, buckets, score_weights};
use crate::edit::memory::{Answer, Consulted, Recall, select, settled};
use crate::edit::{Change, Edit, EditRequest, Edited, Memory, PassChange, Route};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::taps::{Recorder, cells};
use crate::model::tap::{NoTap, Place, Site, Stack};
use crate::model::tokens::Tokens;
use crate::sections::within;

/// What configs, edits and memories call it.
pub(super) const NAME: &str = "grace";

/// What a split leaves between two reaches.
const GAP: f64 = 1e-5;

/// By how much more than its distance a prompt is taken into a reach: the same prompt in another batch has other last digits.
const WIDER: f64 = 1.0 + 1e-4;

/// The reach of an entry that only widened another's: below 0, and it says in whose place that one answers.
fn in_place_of(key: usize) -> f64 {
    -1.0 - key as f64
}

/// Edits whose values are found together.
const TOGETHER: usize = 32;

/// `[editor]` of a GRACE config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraceSettings {
    /// The layer.
    pub layer: usize,
    /// ε₀, the reach of a new entry.
    pub radius: f64,
    /// Updates of a value at most.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Adam's.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Done once the target's mean −ln p a token is below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// When two labels are the same.
    #[serde(default)]
    pub compat: Compat,
}

fn steps() -> usize {
    100
}
fn learning_rate() -> f64 {
    1.0
}
fn early_stop() -> f64 {
    0.01
}

/// When two labels are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// When their tokens are.
    #[default]
    None,
    /// When the means of their tokens' ids are, as in the published code.
    LabelMeans,
}

impl super::MethodSettings for GraceSettings {
    fn layers(&self) -> (&'static str, &[usize]) {
        ("layer", std::slice::from_ref(&self.layer))
    }

    fn causal(&self) -> bool {
        true
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, _: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(Grace::new(*self, prepared)?))
    }
}

/// What consults a codebook that was read from a file.
///
/// # Errors
/// As [`GraceRoute::find`]; a codebook without values.
pub(super) fn route(_: &Edit, memory: &Memory, search: &Search<'_>) -> Result<Arc<dyn Route>> {
    let spec = &search.model.decoder.spec;
    let route = GraceRoute::find(&memory.needs, spec)?;
    match memory.values.as_ref().map(|values| values.dims()[1]) {
        Some(width) if width == spec.width => Ok(Arc::new(route)),
        Some(width) => Err(Error::Input(format!(
            "its values are {width} wide, {} are wanted: it is a codebook of another model",
            spec.width
        ))),
        None => Err(Error::Input("it is a codebook without values".into())),
    }
}

/// GRACE, ready to edit.
pub struct Grace {
    settings: GraceSettings,
    prepared: Prepared,
}

impl Grace {
    /// # Errors
    /// Numbers out of range.
    pub fn new(settings: GraceSettings, prepared: Prepared) -> Result<Self> {
        within("editor.radius", settings.radius, 0.0, 1e9)?;
        within("editor.steps", settings.steps as f64, 1.0, 1e6)?;
        let grace = Grace { settings, prepared };
        grace.descent().check()?;
        Ok(grace)
    }

    fn descent(&self) -> Descent {
        let GraceSettings { steps, learning_rate, early_stop, .. } = self.settings;
        Descent { steps: steps + 1, learning_rate, early_stop, weight_decay: 0.0, clamp: 1e9, kl: 0.0 }
    }

    /// What consults its codebooks, as they name it.
    fn needs(&self) -> Value {
        let (method, settings) = self.describe();
        let mut needs = json!({"method": method});
        for (key, value) in settings.as_object().into_iter().flatten() {
            needs[key] = value.clone();
        }
        needs
    }

    fn route(&self, model: &Edited) -> GraceRoute {
        GraceRoute::new(self.settings.clone(), &model.base().decoder.spec)
    }

    /// Finds values for some of the requests.
    fn train(
        &self,
        model: &Edited,
        requests: &[EditRequest],
        some: &[usize],
        made: &mut [Option<(Tensor<2>, Value)>],
    ) -> Result<()> {
        if some.is_empty() {
            return Ok(());
        }
        let (values, findings) = self.values(model, &some.iter().map(|&own| &requests[own]).collect::<Vec<_>>())?;
        for (place, (&own, finding)) in some.iter().zip(findings).enumerate() {
            made[own] = Some((select(values.clone(), &[place]), finding));
        }
        Ok(())
    }

    /// Whether a value in its place makes the target follow a prompt.
    fn says(&self, model: &Edited, request: &EditRequest, value: &Tensor<2>) -> Result<bool> {
        let model = model.with_change(&in_place(self.settings.layer, value.clone()))?;
        let row = request.row(&model.base().tokenizer)?;
        Ok(score_weights(&[&model], &[row])?.iter().flatten().all(Scored::exact))
    }

    /// For each request a value that makes the target follow its prompt.
    fn values(&self, model: &Edited, requests: &[&EditRequest]) -> Result<(Tensor<2>, Vec<Value>)> {
        let (mut values, mut findings) = (vec![], vec![]);
        for some in requests.chunks(TOGETHER) {
            let rows = some.iter().map(|request| RequestInContexts::at_last_token(model, request));
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let cone = Cone::new(model, self.settings.layer, &rows.iter().collect::<Vec<_>>())?;
            let found = descend(model, &cone, &self.descent(), AddedTo::Value)?;
            let origin = (0..some.len()).map(|request| cone.mean(request, &cone.values)).collect();
            values.push(Tensor::cat(origin, 0) + found.delta.clone());
            findings.extend(found.findings());
            (self.prepared.progress)(some.len());
        }
        Ok((Tensor::cat(values, 0), findings))
    }
}

impl Editor for Grace {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let requests = settled(requests);
        for (number, request) in requests.iter().enumerate() {
            RequestInContexts::at_last_token(model, request).map_err(|error| of_request(&requests, number, error))?;
        }
        let prompts: Vec<String> = requests.iter().map(|request| request.asked()).collect();
        let width = model.base().decoder.spec.width;
        let needs = self.needs();
        let keys = queries(model, self.settings.layer, &prompts)?;
        // Which of them may widen the reach of another, by their labels.
        let nothing = Tensor::zeros([requests.len(), width], (&keys.device(), keys.dtype()));
        let provenance = self.provenance(model, &requests);
        let drafted = GraceRoute { by_labels: true, ..self.route(model) };
        let draft = Memory { needs, keys, texts: vec![], values: Some(nothing), route: Some(Arc::new(drafted)) };
        let own = Edit::new(provenance.clone(), Change::Memory(draft.clone()), Default::default());
        let own = Recall::new(&own, &draft, model.clone())?;
        let whole = match model.list_of(&draft.needs) {
            Some(last) => Recall::clone(last).and(own)?,
            None => own,
        };
        // The new entries are the last; one on a question that was there has gone, and the others moved up.
        let first = whole.requests.len() - requests.len();
        let mut made: Vec<Option<(Tensor<2>, Value)>> = vec![None; requests.len()];
        let (new, widening): (Vec<usize>, Vec<usize>) =
            (0..requests.len()).partition(|&own| whole.reach[first + own] >= 0.0);
        self.train(model, &requests, &new, &mut made)?;
        let all = Rows::new(&whole.keys);
        let mut others = vec![];
        for own in widening {
            let answers = |_: usize, key: usize| whole.reach[key] >= 0.0;
            let near = nearest(&all.part(first + own..first + own + 1), &all, answers).remove(0);
            let near = near.ok_or_else(|| Error::Input("a codebook without a key".into()))?.key;
            let value = match near.checked_sub(first) {
                Some(other) => made[other].as_ref().map(|(value, _)| value.clone()),
                None => whole.values.as_ref().map(|values| select(values.clone(), &[near])),
            };
            // That its value says this target too is what the paper takes for granted.
            match value {
                Some(value) if self.says(model, &requests[own], &value)? => {
                    made[own] = Some((value, json!({"widens": whole.requests[near].prompt})));
                    (self.prepared.progress)(1);
                }
                _ => others.push(own),
            }
        }
        self.train(model, &requests, &others, &mut made)?;
        let (rows, found): (Vec<Tensor<2>>, Vec<Value>) = made.into_iter().flatten().unzip();
        let memory = Memory { values: Some(Tensor::cat(rows, 0)), route: Some(Arc::new(self.route(model))), ..draft };
        let provenance = provenance.with_findings(json!({"requests": found}));
        Ok(Edit::new(provenance, Change::Memory(memory), Default::default()))
    }

    fn describe(&self) -> (String, Value) {
        self.prepared.describe(NAME, &self.settings)
    }

    fn remembers(&self) -> bool {
        true
    }
}

/// What goes into a layer's down-projection at the last token of each prompt, `[prompts, mlp width]`.
fn queries(model: &Edited, layer: usize, prompts: &[String]) -> Result<Tensor<2>> {
    let rows = prompts.iter().map(|prompt| model.base().tokenizer.encode_prompt(prompt));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let at = Site { stack: Stack::Decoder, layer, place: Place::MlpHidden };
    let (mut parts, mut order) = (vec![], vec![]);
    for batch in buckets(rows.iter().map(Vec::len)) {
        let tokens = Tokens::new(batch.iter().map(|&row| rows[row].clone()).collect());
        let last: Vec<(usize, usize)> =
            tokens.ids().iter().enumerate().map(|(row, ids)| (row, ids.len() - 1)).collect();
        let mut recorder = Recorder::at([at]);
        let hidden = model.embed(&tokens, &mut NoTap)?;
        model.blocks(hidden, 0..layer + 1, tokens.span(), None, &mut recorder)?;
        let seen = recorder.values.remove(&at).ok_or_else(|| Error::Input(format!("layer {layer} was not reached")))?;
        parts.push(cells(seen, &last));
        order.extend(batch);
    }
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &row)| back[row] = place);
    Ok(select(Tensor::cat(parts, 0), &back))
}

/// A value `[1, width]` in the place of what an MLP says at a prompt's last token.
fn in_place(layer: usize, value: Tensor<2>) -> PassChange {
    let intervention = Intervention {
        at: Site { stack: Stack::Decoder, layer, place: Place::MlpOut },
        positions: Positions::Last,
        until: Until::Prompt,
        action: Action::Set(value.squeeze_dim(0)),
    };
    PassChange { interventions: vec![intervention], ..PassChange::default() }
}

/// Puts the nearest entry's value in its place, within that entry's reach.
pub struct GraceRoute {
    settings: GraceSettings,
    width: usize,
    /// Labels alone decide which entries are the same: before there are values.
    by_labels: bool,
}

impl GraceRoute {
    fn new(settings: GraceSettings, spec: &DecoderSpec) -> Self {
        GraceRoute { settings, width: spec.mlp.width, by_labels: false }
    }

    /// For a codebook that was read from a file.
    ///
    /// # Errors
    /// Settings that are none, a layer that the model does not have, an encoder-decoder.
    pub fn find(needs: &Value, spec: &DecoderSpec) -> Result<Self> {
        let layer = |settings: &GraceSettings| settings.layer;
        let settings = settings_of_causal_layer(needs, "codebook", spec, layer)?;
        within("radius", settings.radius, 0.0, 1e9).map_err(|error| Error::Input(error.to_string()))?;
        Ok(GraceRoute::new(settings, spec))
    }

    /// What of a request decides whether its label is another's.
    fn label(&self, recall: &Recall, entry: usize) -> Result<Vec<f64>> {
        let row = recall.requests[entry].row(&recall.model.base().tokenizer)?;
        let ids: Vec<f64> = row.target().iter().map(|&id| f64::from(id)).collect();
        Ok(match self.settings.compat {
            Compat::None => ids,
            Compat::LabelMeans => vec![ids.iter().sum::<f64>() / ids.len() as f64],
        })
    }

    /// The model in which an entry's value stands at the prompt's last token.
    fn with_entry(&self, recall: &Recall, entry: usize) -> Result<Edited> {
        let values = recall.values.as_ref().ok_or_else(|| Error::Input("it is a codebook without values".into()))?;
        recall.model.with_change(&in_place(self.settings.layer, select(values.clone(), &[entry])))
    }
}

impl Route for GraceRoute {
    fn width(&self) -> usize {
        self.width
    }

    fn settle(&self, recall: &mut Recall, from: usize) -> Result<()> {
        if recall.model.acts_on_layer(self.settings.layer) {
            let message = format!(
                "an edit below acts on what layer {} says, where this codebook puts its values; take that edit away",
                self.settings.layer
            );
            return Err(Error::Input(message));
        }
        let count = recall.requests.len();
        let keys = Rows::new(&recall.keys);
        let values = recall.values.as_ref().filter(|_| !self.by_labels).map(Rows::new);
        let same = |recall: &Recall, a: usize, b: usize| -> Result<bool> {
            let alike = values.as_ref().is_none_or(|values| values.row(a) == values.row(b));
            Ok(alike && self.label(recall, a)? == self.label(recall, b)?)
        };
        recall.reach.truncate(from);
        let apart = |a: usize, b: usize| distance(keys.row(a), keys.row(b));
        // Of each new key the nearest of those before it; where that one does not answer by itself, the nearest that does.
        let first = nearest(&keys.part(from..count), &keys, |own, key| key < from + own);
        for (own, near) in first.into_iter().enumerate() {
            let entry = from + own;
            let near = match near {
                Some(near) if recall.reach[near.key] < 0.0 => {
                    let answering = (0..entry).filter(|&key| recall.reach[key] >= 0.0);
                    let far = answering.map(|key| Nearest { key, distance: apart(entry, key) });
                    far.min_by(|a, b| a.distance.total_cmp(&b.distance))
                }
                near => near,
            };
            let Some(Nearest { key, distance }) = near else {
                recall.reach.push(self.settings.radius);
                continue;
            };
            let known = recall.reach[key];
            if distance > self.settings.radius + known {
                recall.reach.push(self.settings.radius);
            } else if same(recall, key, entry)? {
                recall.reach[key] = known.max(distance * WIDER + GAP);
                recall.reach.push(in_place_of(key));
            } else {
                let left = (distance / 2.0 - GAP).max(0.0);
                recall.reach[key] = left;
                recall.reach.push((distance / 2.0).max(GAP));
                // Those for whom it answered, and whom it does not reach any more, answer for themselves again.
                for other in (0..entry).filter(|&other| recall.reach[other] == in_place_of(key)).collect::<Vec<_>>() {
                    if apart(other, key) > left {
                        recall.reach[other] = (apart(other, entry) / 2.0).clamp(GAP, self.settings.radius.max(GAP));
                    }
                }
            }
        }
        recall.numbers = Arc::new(keys.into_heads_first());
        Ok(())
    }

    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        if prompts.is_empty() {
            return Ok(vec![]);
        }
        let found = Rows::new(&queries(&recall.model, self.settings.layer, prompts)?);
        let most = recall.reach.iter().copied().fold(0.0, f64::max);
        let answers = |key: usize| recall.reach[key] >= 0.0;
        let near = (0..prompts.len()).map(|prompt| nearest_within(found.row(prompt), &recall.numbers, most, answers));
        let mut models: BTreeMap<usize, Edited> = BTreeMap::new();
        let said = near.zip(prompts).map(|(near, prompt)| {
            let within = near.filter(|near| near.distance <= recall.reach[near.key]);
            let Some(Nearest { key: entry, distance }) = within else { return Ok(None) };
            let model = match models.get(&entry) {
                Some(model) => model.clone(),
                None => models.entry(entry).or_insert(self.with_entry(recall, entry)?).clone(),
            };
            let scope = 1.0 - distance / recall.reach[entry].max(f64::MIN_POSITIVE);
            Ok(Some(Consulted {
                entry: Some(entry),
                scope: scope.max(0.0),
                answer: Answer::Model { model, prompt: prompt.clone(), share: 1.0 },
            }))
        });
        said.collect()
    }
}
