//! A side memory, as WISE keeps one (Wang et al., 2024): what its entries add to one down-projection W, and a number that says which of W and W + ΔW answers a prompt. With a(x) what
//! goes into the matrix at the tokens of a text x,
//!
//! ```text
//! Δ(x) = mean over tokens of ‖a(x) ΔW‖        x is answered by W + ΔW where Δ(x) > ε,  ε = threshold · the least Δ of the edits
//! ```
//!
//! Each entry keeps its own increment of ΔW, in the elements that its shard's mask leaves open, and its least Δ over its contexts when it was made. Shards are merged by TIES into a side
//! memory: at each element the mean of those increments whose sign is that of their sum. Each memory has its own ε, and of several that a prompt is in reach of the one of the largest Δ
//! is asked (the paper's WISE-Retrieve).
//!
//! An entry that is taken out takes its increment with it. What was made after it was made on it: those that lean on it may move less, and then fall silent.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::memory::{Search, settings_of_causal_layer};
use super::prepared::precision;
use crate::edit::likelihood::buckets;
use crate::edit::memory::{Answer, Consulted, Recall, SideMemory};
use crate::edit::{Delta, Edit, EditRequest, Edited, Memory, PassChange, Route};
use crate::error::{Error, Result};
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::taps::{Inputs, cells};
use crate::model::tap::{NoTap, Role, Weight};
use crate::model::tokens::Tokens;
use crate::random;
use crate::sections::within;

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

impl SideSettings {
    /// The matrix that has a side copy.
    pub(super) fn at(&self) -> Weight {
        Weight::decoder(self.layer, Role::MlpDown)
    }

    /// # Errors
    /// Numbers out of range.
    pub(super) fn check(&self) -> Result<()> {
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
    pub(super) fn open(&self, elements: usize) -> usize {
        ((self.mask * elements as f64).round() as usize).clamp(1, elements)
    }

    /// Δ of texts whose tokens have these norms ‖a ΔW‖, and in each what a token's norm counts.
    pub(super) fn spans(&self, norms: &[f64], lengths: &[usize]) -> Vec<(f64, Vec<f64>)> {
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
pub(super) struct TextInputs {
    pub inputs: Tensor<2>,
    pub lengths: Vec<usize>,
}

impl TextInputs {
    pub fn new(model: &Edited, at: Weight, prompts: &[String]) -> Result<Self> {
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
    pub fn moved(&self, delta: &Tensor<2>) -> (Vec<f64>, Tensor<2>) {
        let moved = self.inputs.clone().cast(delta.dtype()).matmul(delta.clone());
        (moved.clone().square().sum_dim(1).sqrt().into_data().iter::<f64>().collect(), moved)
    }
}

/// A shard that edits are added to.
pub(super) struct Shard {
    pub number: usize,
    /// The edits in it.
    pub requests: Vec<EditRequest>,
    pub places: Vec<usize>,
    /// ΔW at these places.
    pub sum: Vec<f32>,
}

impl Shard {
    pub fn empty(settings: &SideSettings, number: usize, elements: usize) -> Self {
        let places = settings.places(number, elements);
        Shard { number, requests: vec![], sum: vec![0.0; places.len()], places }
    }

    /// The last shard of a list, without what `requests` will take the place of.
    pub fn open(
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

/// Adds an increment to what stands at a shard's places.
pub(super) fn add(sum: &mut [f32], more: &[f32]) {
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
    let route = SideRoute::find(&memory.needs, spec)?;
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
pub struct SideRoute {
    pub(super) settings: SideSettings,
}

impl SideRoute {
    /// For a memory that was read from a file.
    ///
    /// # Errors
    /// Settings that are none, a layer that the model does not have, an encoder-decoder.
    pub fn find(needs: &Value, spec: &DecoderSpec) -> Result<Self> {
        let layer = |settings: &SideSettings| settings.layer;
        let settings = settings_of_causal_layer(needs, "side memory", spec, layer)?;
        settings.check().map_err(|error| Error::Input(error.to_string()))?;
        Ok(SideRoute { settings })
    }
}

impl Route for SideRoute {
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
    use super::*;

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
