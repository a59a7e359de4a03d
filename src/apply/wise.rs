//! WISE (Wang et al., 2024): a side copy W + ΔW of one down-projection answers the prompts that it moves far enough, by Δ(x) > ε: the [side memory](super::side_memory) says what these
//! are. An edit descends on ΔW, in the elements that its shard's mask leaves open, from where the edits of the shard before it left it:
//!
//! ```text
//! loss = −ln p(target)/|target|  +  max(0, β − Δ(in))  +  max(0, Δ(out) − α)  +  max(0, γ − Δ(in) + Δ(out))
//! ```
//!
//! each a mean over the edit's prompt in contexts (in), over texts about other subjects (out), and over pairs of them. `remembered` edits of the shard are held with it, as further
//! prompts inside with their targets; the paper has none, nor is its weight decay here. What goes into the matrix hangs on no step, so that the margins' gradient is a product: `aᵀ D`,
//! with a row of `D` along `a ΔW` for each token.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use rand::seq::IteratorRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Editor;
use super::contexts::{self, Sampled};
use super::prepared::{Prepared, of_request, precision};
use super::side_memory::{Shard, SideRoute, SideSettings, TextInputs, add};
use super::tuning::{Compat, Held, Optimizer, Tuned, TunedTensor, Tuning, TuningSettings, WeightGradients};
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::memory::settled;
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, Memory, PassChange, Route};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{OfEditor, Work};
use crate::random;
use crate::sections::within;

/// What configs, edits and memories call it.
pub(super) const NAME: &str = "wise";

/// `[editor]` of a WISE config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WiseSettings {
    /// What consulting the memory hangs on, too.
    #[serde(flatten)]
    pub side: SideSettings,
    /// Updates of an edit at most.
    #[serde(default = "steps")]
    pub steps: usize,
    /// The optimiser's.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// The optimiser.
    #[serde(default = "sgd")]
    pub optimizer: Optimizer,
    /// Done once the target's mean −ln p a token and the margins' loss are below this.
    #[serde(default = "early_stop")]
    pub early_stop: f64,
    /// No element of a shard's ΔW gets larger than this.
    #[serde(default = "clamp")]
    pub clamp: f64,
    /// β: Δ of the edit's own texts is to be no less.
    #[serde(default = "least_inside")]
    pub least_inside: f64,
    /// γ: and larger by this than that of others.
    #[serde(default = "apart")]
    pub apart: f64,
    /// Facts about other subjects, that the texts out of scope are made of.
    pub locality: String,
    /// Facts that an edit draws of them. Each gives two texts: its own prompt, and the edit's prompt about its subject.
    #[serde(default = "locality_facts")]
    pub locality_facts: usize,
    /// Edits of the shard so far that an edit draws, to be held with it: each is one more prompt inside, with its target. 0 in the paper.
    #[serde(default = "remembered")]
    pub remembered: usize,
    /// Texts with `{}` where the prompt stands; sampled where there are none.
    #[serde(default)]
    pub context_templates: Vec<String>,
    /// How contexts are sampled.
    pub context: Sampled,
}

fn steps() -> usize {
    70
}
fn learning_rate() -> f64 {
    1.0
}
fn sgd() -> Optimizer {
    Optimizer::Sgd
}
fn early_stop() -> f64 {
    0.01
}
fn clamp() -> f64 {
    1.0
}
fn least_inside() -> f64 {
    20.0
}
fn apart() -> f64 {
    10.0
}
fn locality_facts() -> usize {
    4
}
fn remembered() -> usize {
    16
}

impl super::MethodSettings for WiseSettings {
    fn defaults() -> toml::Table {
        toml::toml! {
            context = { lengths = [[10, 10]] }
        }
    }

    fn check_used(&self, given: &toml::Table) -> Result<()> {
        contexts::check_used(given)
    }

    fn layers(&self) -> (&'static str, &[usize]) {
        ("layer", std::slice::from_ref(&self.side.layer))
    }

    fn causal(&self) -> bool {
        true
    }

    fn contexts(&mut self) -> Option<(&mut Vec<String>, &Sampled)> {
        Some((&mut self.context_templates, &self.context))
    }

    fn seed(&self) -> u64 {
        self.side.seed
    }

    /// ΔW with its mask, its gradient and what makes a step, and the step's graph over all contexts.
    fn held(&self, work: &Work<'_>, requests: usize) -> Result<OfEditor> {
        let whole: usize = work.spec.shape(self.side.at().role).iter().product();
        let sampled: usize = self.context.lengths.iter().map(|[_, count]| count).sum();
        let contexts = if self.context_templates.is_empty() { 1 + sampled } else { self.context_templates.len() };
        let held = (contexts + self.remembered) * requests.min(1);
        let step = self.tuning().bytes_of_step(work, held)?;
        // An increment stands in its edit, in the list of all, and in the file that the edit is known by.
        let increments = 4 * 4 * self.side.open(whole) * requests;
        Ok(OfEditor { kept: 0, edit: (4 * 8 * whole + increments) as u64 + step })
    }

    fn editor(self: Box<Self>, prepared: Prepared, _: &Arc<Model>, folder: &Path) -> Result<Box<dyn Editor>> {
        let facts = match Source::open(&self.locality, Split::Train, folder)? {
            Source::Records(records) => records.all().to_vec(),
            world => world.fixed(usize::MAX, 1),
        };
        let facts: Vec<EditRequest> = facts.iter().map(EditRequest::from).collect();
        Ok(Box::new(Wise::new(*self, prepared, facts)?))
    }
}

impl WiseSettings {
    /// The descent, as fine-tuning's.
    fn tuning(&self) -> TuningSettings {
        TuningSettings {
            layers: vec![self.side.layer],
            weights: vec!["mlp.down".into()],
            steps: self.steps,
            learning_rate: self.learning_rate,
            optimizer: self.optimizer,
            early_stop: self.early_stop,
            kl: 0.0,
            held: Held::default(),
            compat: Compat::None,
        }
    }
}

/// ΔW of a shard on its way.
struct Side {
    settings: WiseSettings,
    /// ΔW `[d_in, d_out]`, what the edits before have made of it included.
    tuned: TunedTensor<2>,
    /// 1 where the shard's mask leaves an element open.
    mask: Tensor<2>,
    inside: TextInputs,
    outside: TextInputs,
    /// Steps taken.
    updates: usize,
}

/// What the margins say of ΔW.
struct Margins {
    loss: f64,
    /// Δ of each text inside.
    inside: Vec<f64>,
    gradient: Tensor<2>,
}

impl Side {
    /// The margins' loss, with its gradient at ΔW.
    fn margins(&self) -> Margins {
        let WiseSettings { side, least_inside, apart, .. } = &self.settings;
        let delta = &self.tuned.value;
        let ((norms_in, moved_in), (norms_out, moved_out)) = (self.inside.moved(delta), self.outside.moved(delta));
        let inside = side.spans(&norms_in, &self.inside.lengths);
        let outside = side.spans(&norms_out, &self.outside.lengths);
        let (each_in, each_out) = (1.0 / inside.len() as f64, 1.0 / outside.len().max(1) as f64);
        let mut loss = 0.0;
        let (mut up, mut down) = (vec![0.0; inside.len()], vec![0.0; outside.len()]);
        let mut hinge = |by: f64, share: f64| {
            loss += share * by.max(0.0);
            if by > 0.0 { share } else { 0.0 }
        };
        for (number, (own, _)) in inside.iter().enumerate() {
            up[number] -= hinge(least_inside - own, each_in);
            for (other, (theirs, _)) in outside.iter().enumerate() {
                let slope = hinge(apart - own + theirs, each_in * each_out);
                up[number] -= slope;
                down[other] += slope;
            }
        }
        for (number, (theirs, _)) in outside.iter().enumerate() {
            down[number] += hinge(theirs - side.most_outside, each_out);
        }
        // ∂Δ/∂ΔW of a text is Σ over tokens of share · aᵀ (a ΔW)/‖a ΔW‖.
        let part = |texts: &TextInputs, spans: &[(f64, Vec<f64>)], slopes: &[f64], norms: &[f64], moved: Tensor<2>| {
            let shares =
                spans.iter().zip(slopes).flat_map(|((_, shares), slope)| shares.iter().map(move |s| s * slope));
            let rows: Vec<f64> =
                shares.zip(norms).map(|(share, norm)| if *norm > 0.0 { share / norm } else { 0.0 }).collect();
            let place = (&moved.device(), moved.dtype());
            let rows = Tensor::<1>::from_data(TensorData::new(rows, [norms.len()]), place).unsqueeze_dim::<2>(1);
            texts.inputs.clone().cast(moved.dtype()).transpose().matmul(moved * rows)
        };
        let gradient = part(&self.inside, &inside, &up, &norms_in, moved_in)
            + part(&self.outside, &outside, &down, &norms_out, moved_out);
        Margins { loss, inside: inside.into_iter().map(|(own, _)| own).collect(), gradient }
    }
}

impl Tuned for Side {
    fn change(&self) -> PassChange {
        let matrices = [(self.settings.side.at(), Delta::Dense(self.tuned.value.clone()))].into();
        PassChange { matrices, ..Default::default() }
    }

    fn step(&mut self, mut gradients: WeightGradients, settings: &TuningSettings, step: usize) {
        let Some((target, _)) = gradients.remove(&self.settings.side.at()) else { return };
        let gradient = target.cast(self.mask.dtype()) + self.margins().gradient;
        self.tuned.step(gradient * self.mask.clone(), settings, step);
        self.updates = step;
        let most = self.settings.clamp;
        self.tuned.value = self.tuned.value.clone().clamp(-most, most);
    }

    fn holds(&self) -> bool {
        self.margins().loss < self.settings.early_stop
    }
}

/// WISE, ready to edit.
pub struct Wise {
    settings: WiseSettings,
    prepared: Prepared,
    tuning: Tuning,
    /// Facts about other subjects.
    facts: Vec<EditRequest>,
}

impl Wise {
    /// `facts` are those that texts out of scope are made of.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(settings: WiseSettings, prepared: Prepared, facts: Vec<EditRequest>) -> Result<Self> {
        settings.side.check()?;
        within("editor.clamp", settings.clamp, 0.0, 1e9)?;
        within("editor.least_inside", settings.least_inside, 0.0, 1e9)?;
        within("editor.apart", settings.apart, 0.0, 1e9)?;
        within("editor.locality_facts", settings.locality_facts as f64, 1.0, 1e4)?;
        if facts.is_empty() {
            return Err(Error::Config(format!("editor.locality = \"{}\": there is no fact in it", settings.locality)));
        }
        let tuning = Tuning::new(settings.tuning(), vec![])?;
        Ok(Wise { settings, prepared, tuning, facts })
    }

    /// What consults its memories, as they name it.
    fn needs(&self) -> Value {
        let mut needs = json!({"method": NAME});
        let side = serde_json::to_value(&self.settings.side).unwrap_or_default();
        for (key, value) in side.as_object().into_iter().flatten() {
            needs[key] = value.clone();
        }
        needs
    }

    /// Texts that an edit must leave alone: prompts of other facts, and the edit's prompt about their subjects.
    fn outside(&self, request: &EditRequest) -> Result<Vec<String>> {
        let subject = request.subject().ok();
        let about = |fact: &EditRequest| fact.subject.as_ref().is_some_and(|theirs| request.prompt.contains(theirs));
        let other = |fact: &&EditRequest| fact.prompt != request.prompt && !about(fact);
        let mut rng = random::stream_of(self.settings.side.seed, "outside", &request.prompt);
        let drawn = self.facts.iter().filter(other).sample(&mut rng, self.settings.locality_facts);
        let texts = drawn.iter().flat_map(|fact| {
            let theirs = fact.subject.as_ref().filter(|theirs| !theirs.is_empty());
            let swapped = subject.zip(theirs).map(|((own, end), theirs)| {
                let prompt = &request.prompt;
                let prompt = format!("{}{theirs}{}", &prompt[..end - own.len()], &prompt[end..]);
                EditRequest { prompt, ..request.clone() }.asked()
            });
            std::iter::once(fact.asked()).chain(swapped)
        });
        let texts: Vec<String> = texts.collect();
        match texts.is_empty() {
            true => Err(Error::Input(format!(
                "editor.locality = \"{}\": every fact in it is about what \"{}\" is about; give facts about other subjects",
                self.settings.locality, request.prompt
            ))),
            false => Ok(texts),
        }
    }

    /// Descends on one request from what its shard's ΔW is, `begun [d_in, d_out]`.
    fn train(
        &self,
        model: &Edited,
        request: &EditRequest,
        before: &[EditRequest],
        (begun, mask): (Tensor<2>, Tensor<2>),
    ) -> Result<Side> {
        let in_contexts = self.settings.context_templates.iter().map(|template| EditRequest {
            prompt: template.replace("{}", &request.prompt),
            template: None,
            ..request.clone()
        });
        let mut rng = random::stream_of(self.settings.side.seed, "remembered", &request.prompt);
        // Two of one prompt, told apart by a descriptor alone, would contradict each other.
        let mut prompts = BTreeSet::from([request.prompt.as_str()]);
        let before = before.iter().rev().filter(|known| prompts.insert(&known.prompt)).cloned();
        let before = before.sample(&mut rng, self.settings.remembered);
        let held: Vec<EditRequest> = in_contexts.chain(before).collect();
        let prompts: Vec<String> = held.iter().map(EditRequest::asked).collect();
        let at = self.settings.side.at();
        let inside = TextInputs::new(model, at, &prompts)?;
        let outside = TextInputs::new(model, at, &self.outside(request)?)?;
        self.tuning
            .tune(model, &held, || {
                let tuned = TunedTensor::new(begun);
                Ok(Side { settings: self.settings.clone(), tuned, mask, inside, outside, updates: 0 })
            })
            .map_err(|error| match error {
                // The number is that of a context.
                Error::Record { message, .. } => Error::Input(message),
                other => other,
            })
    }
}

impl Editor for Wise {
    /// Several requests are edited one after the other.
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let requests = settled(requests);
        let (side, needs) = (&self.settings.side, self.needs());
        let known = model.list_of(&needs);
        if model.acts_on_layer(side.layer) {
            return Err(Error::Input(format!(
                "an edit below acts on what layer {} says, and this editor works there; take that edit away, or another layer",
                side.layer
            )));
        }
        let [d_in, d_out] = model.base().decoder.linear(side.at())?.weight.dims();
        let place = (&model.base().decoder.device(), precision(model));
        let whole = |places: &[usize], values: &[f32]| {
            let mut all = vec![0f32; d_in * d_out];
            places.iter().zip(values).for_each(|(&place, &value)| all[place] = value);
            Tensor::<2>::from_data(TensorData::new(all, [d_in, d_out]), place)
        };
        let mut shard = Shard::open(side, known.map(AsRef::as_ref), &requests, d_in * d_out)?;
        let (mut keys, mut values, mut findings) = (vec![], vec![], vec![]);
        for (number, request) in requests.iter().enumerate() {
            if shard.requests.len() >= side.shard {
                shard = Shard::empty(side, shard.number + 1, d_in * d_out);
            }
            let mask = whole(&shard.places, &vec![1.0; shard.places.len()]);
            let begun = whole(&shard.places, &shard.sum);
            let trained = self.train(model, request, &shard.requests, (begun, mask));
            let trained = trained.map_err(|error| of_request(&requests, number, error))?;
            let margins = trained.margins();
            let own = &margins.inside[..self.settings.context_templates.len()];
            let least = own.iter().copied().fold(f64::INFINITY, f64::min);
            if least <= side.most_outside {
                tracing::warn!(
                    "\"{}\": moved by {least:.2}, no further than other texts may be ({}): it will not be answered; try a higher editor.learning_rate or more editor.steps",
                    request.prompt,
                    side.most_outside
                );
            }
            let all: Vec<f32> = trained.tuned.value.into_data().iter::<f32>().collect();
            let increment: Vec<f32> =
                shard.places.iter().zip(&shard.sum).map(|(&place, before)| all[place] - before).collect();
            // Summed up as it will be out of the file, so that a sequence and a batch are the same.
            add(&mut shard.sum, &increment);
            values.extend(increment);
            keys.extend([least, shard.number as f64]);
            findings.push(json!({"updates": trained.updates, "shard": shard.number, "least_inside": least, "margin_loss": margins.loss}));
            shard.requests.push(request.clone());
            (self.prepared.progress)(1);
        }
        let (count, open) = (requests.len(), shard.places.len());
        let keys = Tensor::from_data(TensorData::new(keys, [count, 2]), place);
        let values = Some(Tensor::from_data(TensorData::new(values, [count, open]), place));
        let route: Arc<dyn Route> = Arc::new(SideRoute { settings: side.clone() });
        let memory = Memory { needs, keys, texts: vec![], values, route: Some(route) };
        let provenance = self.provenance(model, &requests).with_findings(json!({"requests": findings}));
        Ok(Edit::new(provenance, Change::Memory(memory), BTreeMap::new()))
    }

    fn describe(&self) -> (String, Value) {
        self.prepared.describe(NAME, &self.settings)
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn remembers(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;

    fn numbers(shape: [usize; 2], seed: u64) -> Tensor<2> {
        use rand::RngExt;
        let mut rng = random::stream(seed, "test", 0);
        let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F64))
    }

    #[test]
    fn the_margins_gradient_is_that_of_finite_differences() {
        let text = "layer = 0\nlocality = \"pocket\"\nover = OVER\nleast_inside = 3.0\nmost_outside = 0.5\napart = 2.0\n\
                    context = { lengths = [[4, 1]] }";
        for over in ["\"mean\"", "\"max\""] {
            let settings: WiseSettings = toml::from_str(&text.replace("OVER", over)).unwrap();
            let side = |delta: Tensor<2>| Side {
                settings: settings.clone(),
                mask: delta.ones_like(),
                tuned: TunedTensor::new(delta),
                updates: 0,
                inside: TextInputs { inputs: numbers([7, 4], 1), lengths: vec![3, 4] },
                outside: TextInputs { inputs: numbers([6, 4], 2), lengths: vec![2, 1, 3] },
            };
            let delta = numbers([4, 3], 3);
            let gradient: Vec<f64> = side(delta.clone()).margins().gradient.into_data().iter::<f64>().collect();
            for (place, found) in gradient.into_iter().enumerate() {
                let step = 1e-6;
                let moved = |by: f64| {
                    let mut values: Vec<f64> = delta.clone().into_data().iter::<f64>().collect();
                    values[place] += by;
                    side(Tensor::from_data(TensorData::new(values, [4, 3]), (&Device::flex(), DType::F64)))
                        .margins()
                        .loss
                };
                let wanted = (moved(step) - moved(-step)) / (2.0 * step);
                assert!((found - wanted).abs() < 1e-6, "{over} {place}: {found} {wanted}");
            }
        }
    }
}
