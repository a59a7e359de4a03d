//! WISE (Wang et al., 2024): a side copy W + ΔW of one down-projection, and a number that says which of the two answers a prompt. With a(x) what goes into the matrix at the
//! tokens of a text x,
//!
//! ```text
//! Δ(x) = mean over tokens of ‖a(x) ΔW‖        x is answered by W + ΔW where Δ(x) > ε,  ε = threshold · the least Δ of the edits
//! ```
//!
//! An edit descends on ΔW, in the elements that its shard's mask leaves open, from where the edits of the shard before it left it:
//!
//! ```text
//! loss = −ln p(target)/|target|  +  max(0, β − Δ(in))  +  max(0, Δ(out) − α)  +  max(0, γ − Δ(in) + Δ(out))
//! ```
//!
//! each a mean over the edit's prompt in contexts (in), over texts about other subjects (out), and over pairs of them. `remembered` edits of the shard are held with it, as further
//! prompts inside with their targets; the paper has none, nor is its weight decay here. What goes into the matrix hangs on no step, so that the margins' gradient is a product: `aᵀ D`,
//! with a row of `D` along `a ΔW` for each token.
//!
//! Each entry keeps its own increment of ΔW and its least Δ over its contexts when it was made. Shards are merged by TIES into a side memory: at each element the mean of those
//! increments whose sign is that of their sum. Each memory has its own ε, and of several that a prompt is in reach of the one of the largest Δ is asked (the paper's WISE-Retrieve).
//!
//! An entry that is taken out takes its increment with it. What was made after it was made on it: those that lean on it may move less, and then fall silent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use rand::Rng;
use rand::seq::IteratorRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Editor;
use super::contexts::{self, Sampled};
use super::memory::Search;
use super::prepared::{Prepared, of_request, precision};
use super::tuning::{Compat, Held, Optimizer, Tuned, TunedTensor, Tuning, TuningSettings, WeightGradients};
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::likelihood::buckets;
use crate::edit::memory::{Answer, Consulted, Recall, SideMemory, settled};
use crate::edit::{Change, Delta, Edit, EditRequest, Edited, Memory, PassChange, Route};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::taps::{Inputs, cells};
use crate::model::tap::{NoTap, Role, Weight};
use crate::model::tokens::Tokens;
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

/// What of the settings decides which prompts a memory answers, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideSettings {
    /// The layer whose down-projection has a side copy.
    pub layer: usize,
    /// The share of its elements that a shard may change.
    #[serde(default = "mask")]
    pub mask: f64,
    /// The seed of masks and draws.
    #[serde(default)]
    pub seed: u64,
    /// Edits that share a mask. Those that were made apart and laid on one another later share the mask of the first shard.
    #[serde(default = "shard")]
    pub shard: usize,
    /// Shards that are merged into one memory.
    #[serde(default = "shards")]
    pub shards: usize,
    /// The share of all elements, the largest, that a shard brings into a merge: of no effect where `mask` is no larger.
    #[serde(default = "density")]
    pub density: f64,
    /// ε as a share of the least Δ of the edits.
    #[serde(default = "threshold")]
    pub threshold: f64,
    /// α: Δ of other texts is to be no more. An edit whose own Δ stays below it cannot be told from them, and does not lower ε.
    #[serde(default = "most_outside")]
    pub most_outside: f64,
    /// What Δ takes of a text's tokens.
    #[serde(default)]
    pub over: Over,
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
fn mask() -> f64 {
    0.2
}
fn shard() -> usize {
    500
}
fn shards() -> usize {
    2
}
fn density() -> f64 {
    0.53
}
fn threshold() -> f64 {
    0.88
}
fn most_outside() -> f64 {
    5.0
}

/// What Δ takes of the tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Their mean, as in the paper.
    #[default]
    Mean,
    /// The largest, as the published code does with texts of more than a hundred tokens: what stands around a fact does not thin it out.
    Max,
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

impl SideSettings {
    /// The matrix that has a side copy.
    fn at(&self) -> Weight {
        Weight::decoder(self.layer, Role::MlpDown)
    }

    /// # Errors
    /// Numbers out of range.
    fn check(&self) -> Result<()> {
        within("editor.mask", self.mask, 0.01, 1.0)?;
        within("editor.shard", self.shard as f64, 1.0, 1e9)?;
        within("editor.shards", self.shards as f64, 1.0, 1e9)?;
        within("editor.density", self.density, 0.0, 1.0)?;
        within("editor.threshold", self.threshold, 0.0, 1e9)?;
        within("editor.most_outside", self.most_outside, 0.0, 1e9)
    }

    /// The elements that a shard may change, of as many as the matrix has, in order.
    pub fn places(&self, shard: usize, elements: usize) -> Vec<usize> {
        let mut rng = random::stream(self.seed, "mask", shard as u64);
        // Files hold no places, only what stands there: they are drawn by a shuffle of our own, which no library's release changes.
        let mut all: Vec<usize> = (0..elements).collect();
        let open = self.open(elements);
        for place in 0..open {
            let other = place + (rng.next_u64() % (elements - place) as u64) as usize;
            all.swap(place, other);
        }
        all.truncate(open);
        all.sort_unstable();
        all
    }

    /// How many elements a shard may change.
    fn open(&self, elements: usize) -> usize {
        ((self.mask * elements as f64).round() as usize).clamp(1, elements)
    }

    /// Δ of texts whose tokens have these norms ‖a ΔW‖, and in each what a token's norm counts.
    fn spans(&self, norms: &[f64], lengths: &[usize]) -> Vec<(f64, Vec<f64>)> {
        let mut from = 0;
        let spans = lengths.iter().map(|&length| {
            let own = &norms[from..from + length];
            from += length;
            match self.over {
                Over::Mean => (own.iter().sum::<f64>() / length as f64, vec![1.0 / length as f64; length]),
                Over::Max => {
                    let most = (0..length).max_by(|a, b| own[*a].total_cmp(&own[*b])).unwrap_or(0);
                    (own[most], (0..length).map(|token| f64::from(token == most)).collect())
                }
            }
        });
        spans.collect()
    }
}

/// What goes into the matrix at the tokens of some texts, one text below the other, `[tokens, d_in]`, and how many tokens each has.
struct TextInputs {
    inputs: Tensor<2>,
    lengths: Vec<usize>,
}

impl TextInputs {
    fn new(model: &Edited, at: Weight, prompts: &[String]) -> Result<Self> {
        let rows = prompts.iter().map(|prompt| model.base().tokenizer.encode_prompt(prompt));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let mut parts: Vec<Option<Tensor<2>>> = vec![None; rows.len()];
        for batch in buckets(rows.iter().map(Vec::len)) {
            let tokens = Tokens::new(batch.iter().map(|&row| rows[row].clone()).collect());
            let mut seen = Inputs::of([at]);
            let hidden = model.embed(&tokens, &mut NoTap)?;
            model.blocks(hidden, 0..at.layer + 1, tokens.span(), None, &mut seen)?;
            let unreached = || Error::Input(format!("layer {} was not reached", at.layer));
            let seen = seen.values.remove(&at).ok_or_else(unreached)?;
            for (place, &row) in batch.iter().enumerate() {
                let own: Vec<(usize, usize)> = (0..rows[row].len()).map(|cell| (place, cell)).collect();
                parts[row] = Some(cells(seen.clone(), &own));
            }
        }
        let lengths = rows.iter().map(Vec::len).collect();
        Ok(TextInputs { inputs: Tensor::cat(parts.into_iter().flatten().collect(), 0), lengths })
    }

    /// ‖a ΔW‖ of each token, and `a ΔW`.
    fn moved(&self, delta: &Tensor<2>) -> (Vec<f64>, Tensor<2>) {
        let moved = self.inputs.clone().cast(delta.dtype()).matmul(delta.clone());
        (moved.clone().square().sum_dim(1).sqrt().into_data().iter::<f64>().collect(), moved)
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
        let route: Arc<dyn Route> = Arc::new(WiseRoute { settings: side.clone() });
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

/// A shard that edits are added to.
struct Shard {
    number: usize,
    /// The edits in it.
    requests: Vec<EditRequest>,
    places: Vec<usize>,
    /// ΔW at these places.
    sum: Vec<f32>,
}

impl Shard {
    fn empty(settings: &SideSettings, number: usize, elements: usize) -> Self {
        let places = settings.places(number, elements);
        Shard { number, requests: vec![], sum: vec![0.0; places.len()], places }
    }

    /// The last shard of a list, without what `requests` will take the place of.
    fn open(
        settings: &SideSettings,
        known: Option<&Recall>,
        requests: &[EditRequest],
        elements: usize,
    ) -> Result<Self> {
        let Some(known) = known else { return Ok(Shard::empty(settings, 0, elements)) };
        let keys = entry_keys(known)?;
        let number = keys.iter().map(|(_, shard)| *shard).max().unwrap_or(0);
        let mut shard = Shard::empty(settings, number, elements);
        let replaced = |entry: &EditRequest| {
            let same = |new: &EditRequest| (&new.prompt, &new.descriptor) == (&entry.prompt, &entry.descriptor);
            requests.iter().any(same)
        };
        let own: Vec<usize> = (0..keys.len()).filter(|&entry| keys[entry].1 == number).collect();
        let stay: Vec<usize> = own.iter().copied().filter(|&entry| !replaced(&known.requests[entry])).collect();
        shard.requests = stay.iter().map(|&entry| known.requests[entry].clone()).collect();
        let sums = known.sides.get(&(number / settings.shards)).and_then(|side| side.shards.get(&number));
        match sums.filter(|_| stay.len() == own.len()) {
            Some(sum) => shard.sum.clone_from(sum),
            None => {
                stay.iter().try_for_each(|&entry| increment(known, entry).map(|more| add(&mut shard.sum, &more)))?
            }
        }
        Ok(shard)
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// Of each entry its least Δ and its shard.
fn entry_keys(recall: &Recall) -> Result<Vec<(f64, usize)>> {
    let numbers: Vec<f64> = recall.keys.clone().into_data().iter::<f64>().collect();
    let keys = numbers.chunks(2).map(|pair| match pair {
        [least, shard] if *least >= 0.0 && *shard >= 0.0 && *shard <= 1e6 && shard.fract() == 0.0 => {
            Ok((*least, *shard as usize))
        }
        _ => Err(Error::Input("a side memory with a key that is no Δ and no number of a shard".into())),
    });
    keys.collect()
}

/// What an entry added to its shard's ΔW.
fn increment(recall: &Recall, entry: usize) -> Result<Vec<f32>> {
    let values = recall.values.as_ref().ok_or_else(without_values)?;
    let width = values.dims()[1];
    Ok(values.clone().slice([entry..entry + 1, 0..width]).into_data().iter::<f32>().collect())
}

fn without_values() -> Error {
    Error::Input("it is a side memory without its tensor \"memory.values\"".into())
}

/// TIES (Yadav et al., 2023): of each shard, its places with their values, the largest `density` of all elements; then at each place the mean of those values whose sign is that of
/// their sum. A single shard stays as it is.
pub fn merged(shards: &[(Vec<usize>, Vec<f32>)], elements: usize, density: f64) -> Vec<f32> {
    let mut whole = vec![0f32; elements];
    if let [(places, values)] = shards {
        places.iter().zip(values).for_each(|(&place, &value)| whole[place] = value);
        return whole;
    }
    let kept = (density * elements as f64).round() as usize;
    let trimmed: Vec<Vec<f32>> = shards.iter().map(|(_, values)| largest(values, kept)).collect();
    let mut sum = vec![0f32; elements];
    for ((places, _), values) in shards.iter().zip(&trimmed) {
        places.iter().zip(values).for_each(|(&place, value)| sum[place] += value);
    }
    let mut agreeing = vec![0f32; elements];
    for ((places, _), values) in shards.iter().zip(&trimmed) {
        for (&place, &value) in places.iter().zip(values) {
            if value * sum[place] > 0.0 {
                whole[place] += value;
                agreeing[place] += 1.0;
            }
        }
    }
    whole.iter_mut().zip(agreeing).filter(|(_, count)| *count > 0.0).for_each(|(value, count)| *value /= count);
    whole
}

/// The values with all but the largest set to 0.
fn largest(values: &[f32], kept: usize) -> Vec<f32> {
    if kept >= values.len() {
        return values.to_vec();
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    let mut trimmed = vec![0f32; values.len()];
    order[..kept].iter().for_each(|&place| trimmed[place] = values[place]);
    trimmed
}

/// What consults a side memory that was read from a file.
///
/// # Errors
/// Settings that are none, a layer that the model does not have, values of another matrix.
pub(super) fn route(_: &Edit, memory: &Memory, search: &Search<'_>) -> Result<Arc<dyn Route>> {
    let spec = &search.model.decoder.spec;
    let route = WiseRoute::find(&memory.needs, spec)?;
    let elements: usize = spec.shape(route.settings.at().role).iter().product();
    let wanted = route.settings.open(elements);
    match memory.values.as_ref().map(|values| values.dims()[1]) {
        Some(width) if width == wanted => Ok(Arc::new(route)),
        Some(width) => Err(Error::Input(format!(
            "its values are {width} wide, {wanted} are wanted: it is a side memory of another model"
        ))),
        None => Err(without_values()),
    }
}

/// Asks the side copy where it moves a prompt far enough.
pub struct WiseRoute {
    settings: SideSettings,
}

impl WiseRoute {
    /// For a memory that was read from a file.
    ///
    /// # Errors
    /// Settings that are none, a layer that the model does not have, an encoder-decoder.
    pub fn find(needs: &Value, spec: &DecoderSpec) -> Result<Self> {
        let mut settings = needs.clone();
        if let Some(settings) = settings.as_object_mut() {
            settings.remove("method");
        }
        let settings: SideSettings = serde_json::from_value(settings)
            .map_err(|error| Error::Input(format!("the side memory's settings are broken: {error}")))?;
        if spec.source.is_some() {
            return Err(Error::Input("it is a side memory of a causal stack, and this model has an encoder".into()));
        }
        if settings.layer >= spec.layers {
            return Err(Error::Input(format!(
                "it is a side memory of layer {}; this model has layers 0 to {}",
                settings.layer,
                spec.layers - 1
            )));
        }
        settings.check().map_err(|error| Error::Input(error.to_string()))?;
        Ok(WiseRoute { settings })
    }
}

impl Route for WiseRoute {
    fn width(&self) -> usize {
        2
    }

    fn settle(&self, recall: &mut Recall, from: usize) -> Result<()> {
        let at = self.settings.at();
        let dims = recall.model.base().decoder.linear(at)?.weight.dims();
        let elements = dims[0] * dims[1];
        let keys = entry_keys(recall)?;
        // Sums that later entries do not touch are known already.
        let mut sums: BTreeMap<usize, BTreeMap<usize, Vec<f32>>> = BTreeMap::new();
        for (entry, (_, shard)) in keys.iter().enumerate().skip(from) {
            let memory = shard / self.settings.shards;
            let known = || recall.sides.get(&memory).map(|side| side.shards.clone()).unwrap_or_default();
            let increment = increment(recall, entry)?;
            let sum = sums.entry(memory).or_insert_with(known).entry(*shard);
            add(sum.or_insert_with(|| vec![0.0; increment.len()]), &increment);
        }
        for (memory, shards) in sums {
            let parts: Vec<(Vec<usize>, Vec<f32>)> =
                shards.iter().map(|(&shard, sum)| (self.settings.places(shard, elements), sum.clone())).collect();
            let whole = merged(&parts, elements, self.settings.density);
            let place = (&recall.model.base().decoder.device(), precision(&recall.model));
            let delta = Tensor::<2>::from_data(TensorData::new(whole, dims), place);
            let matrices = [(at, Delta::Dense(delta.clone()))].into();
            let model = recall.model.with_change(&PassChange { matrices, ..PassChange::default() })?;
            let own = keys.iter().filter(|(_, shard)| shard / self.settings.shards == memory);
            let told = own.map(|(least, _)| *least).filter(|least| *least > self.settings.most_outside);
            let least = told.fold(f64::INFINITY, f64::min);
            recall.sides.insert(memory, SideMemory { shards, delta, model, least });
        }
        Ok(())
    }

    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        if prompts.is_empty() {
            return Ok(vec![]);
        }
        let inputs = TextInputs::new(&recall.model, self.settings.at(), prompts)?;
        let mut said: Vec<Option<(f64, &SideMemory)>> = vec![None; prompts.len()];
        for side in recall.sides.values() {
            let (norms, _) = inputs.moved(&side.delta);
            let reach = self.settings.threshold * side.least;
            for (best, (own, _)) in said.iter_mut().zip(self.settings.spans(&norms, &inputs.lengths)) {
                if own > reach && best.is_none_or(|(most, _)| own > most) {
                    *best = Some((own, side));
                }
            }
        }
        let answers = said.into_iter().zip(prompts).map(|(best, prompt)| {
            let (own, side) = best?;
            let answer = Answer::Model { model: side.model.clone(), prompt: prompt.clone(), share: 1.0 };
            Some(Consulted { entry: None, scope: 1.0 - self.settings.threshold * side.least / own, answer })
        });
        Ok(answers.collect())
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

    #[test]
    fn shards_are_merged_where_they_agree() {
        let shards = [(vec![0, 1, 2], vec![1.0, -2.0, 3.0]), (vec![1, 2, 3], vec![4.0, -1.0, 5.0])];
        // Place 1: the sum is above 0, so that 4 stays; place 2: 3 of 3 and −1.
        assert_eq!(merged(&shards, 5, 1.0), [1.0, 4.0, 3.0, 5.0, 0.0]);
        // Two elements of five a shard: −2 and 3, 4 and 5.
        assert_eq!(merged(&shards, 5, 0.4), [0.0, 4.0, 3.0, 5.0, 0.0]);
        // One of them: 3 and 5.
        assert_eq!(merged(&shards, 5, 0.2), [0.0, 0.0, 3.0, 5.0, 0.0]);
        // Those that agree are averaged, those that are as large against each other go.
        assert_eq!(merged(&[(vec![0, 1], vec![1.0, 2.0]), (vec![0, 1], vec![3.0, -2.0])], 2, 1.0), [2.0, 0.0]);
        // A shard alone is not trimmed.
        assert_eq!(merged(&shards[..1], 5, 0.2), [1.0, -2.0, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn each_shard_has_a_mask_of_its_own() {
        let side: SideSettings = toml::from_str("layer = 0\nmask = 0.25").unwrap();
        let [one, other] = [0, 1].map(|shard| side.places(shard, 400));
        assert_eq!((one.len(), other.len()), (100, 100));
        assert!(one.windows(2).all(|pair| pair[0] < pair[1]) && one[99] < 400);
        assert_ne!(one, other);
        assert_eq!(one, side.places(0, 400));
        // Files stand on these.
        assert_eq!(one[..8], [2, 4, 9, 17, 19, 20, 22, 23]);
        let seeded = SideSettings { seed: 1, ..side };
        assert_ne!(one, seeded.places(0, 400));
    }
}
