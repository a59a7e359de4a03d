//! Corrupted runs with chosen activations put back.
//!
//! An activation at token t of layer l reaches the layers from l up and the tokens from t on, and nothing else: that is all that is run
//! again. Patches whose first token is the same share a pass. It goes through the layers once; a patch joins it, with all draws, at the
//! lowest layer that it changes. To the left of t keys and values are the corrupted run's.

use std::collections::BTreeMap;

use burn::tensor::{Bool, Tensor, TensorData};

use super::noise::Noise;
use super::{Question, probabilities};
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::model::stack::past::Past;
use crate::model::stack::sizes::Pass;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::taps::Recorder;
use crate::model::tap::{NoTap, Place, Site, Span, Stack, Tap, Text};
use crate::model::tokens::Tokens;
use crate::parallel;

/// Activations that are put back to what they are in the clean run: (site, token). Sites are an embedding, attention and MLP outputs, block outputs.
pub type Patch = Vec<(Site, usize)>;

/// Cells that a pass carries at once: more of them make no product faster.
const CELLS: usize = 4096;

/// The clean run and the corrupted ones.
pub struct Runs {
    ids: Vec<u32>,
    /// The first token that is corrupted.
    first: usize,
    answer: u32,
    /// `[1, tokens, width]`
    clean: BTreeMap<Site, Tensor<3>>,
    /// What goes into each layer of the corrupted runs, `[draws, tokens, width]`.
    corrupted: Vec<Tensor<3>>,
    past: Past,
    /// p(answer) of the clean run.
    pub high: f64,
    /// p(answer) of each corrupted one.
    pub low: Vec<f64>,
}

impl Runs {
    /// Runs a question clean and with noise on its subject.
    ///
    /// # Errors
    /// A question that the model cannot take; noise of another shape.
    pub fn new(model: &Edited, question: &Question, noise: &Noise) -> Result<Self> {
        let (layers, [draws, noised, width]) = (model.layers(), noise.values.dims());
        if noised != question.at.len() || width != model.base().decoder.spec.width || draws == 0 {
            let message =
                format!("noise [{draws}, {noised}, {width}] is not that of a subject of {} tokens", question.at.len());
            return Err(Error::Input(message));
        }
        let site = |layer, place| Site { stack: Stack::Decoder, layer, place };
        let places = [Place::AttentionOut, Place::MlpOut, Place::BlockOut];
        let all = (0..layers).flat_map(|layer| places.map(|place| site(layer, place)));
        let mut recorder = Recorder::at(all.chain([site(0, Place::Embedding)]));
        let tokens = Tokens::new(vec![question.ids.clone()]);
        let embedded = model.embed(&tokens, &mut recorder)?;
        let hidden = model.blocks(embedded.clone(), 0..layers, tokens.span(), None, &mut recorder)?;
        let high = probabilities(model, hidden, question.answer)[0];

        let tokens = Tokens::new(vec![question.ids.clone(); draws]);
        let part = [0..draws, question.at.clone(), 0..width];
        let plain = embedded.repeat_dim(0, draws);
        let noisy = plain.clone().slice(part.clone()) + noise.values.clone();
        let (mut hidden, mut past, mut corrupted) = (plain.slice_assign(part, noisy), model.past(), vec![]);
        for layer in 0..layers {
            corrupted.push(hidden.clone());
            hidden = model.blocks(hidden, layer..layer + 1, tokens.span(), Some(&mut past), &mut NoTap)?;
        }
        let low = probabilities(model, hidden.clone(), question.answer);
        corrupted.push(hidden);
        if !(high.is_finite() && low.iter().all(|low| low.is_finite())) {
            return Err(Error::Input(
                "what the model says is not a number, clean or under this noise; try a smaller --noise".into(),
            ));
        }
        let (ids, first, answer) = (question.ids.clone(), question.at.start, question.answer);
        Ok(Runs { ids, first, answer, clean: recorder.values, corrupted, past, high, low })
    }

    /// p(answer) of the corrupted runs with each of the patches: for each of them one number a draw.
    ///
    /// # Errors
    /// A site or a token that there is not.
    pub fn restore(&self, model: &Edited, patches: &[Patch]) -> Result<Vec<Vec<f64>>> {
        let last = (model.layers() - 1, self.ids.len() - 1);
        let mut of_token: BTreeMap<usize, Vec<Joining>> = BTreeMap::new();
        for (number, patch) in patches.iter().enumerate() {
            if let Some((site, token)) =
                patch.iter().find(|(site, token)| *token > last.1 || !self.clean.contains_key(site))
            {
                return Err(Error::Input(format!(
                    "nothing is restored at token {token} of {site:?}: it is no block's, MLP's or attention's output"
                )));
            }
            // Left of the noise all is clean already, and above the last layer's other cells nothing is read.
            let reaches = |(site, token): &&(Site, usize)| {
                *token >= self.first && (site.layer < last.0 || *token == last.1 || site.place == Place::Embedding)
            };
            let patch: Patch = patch.iter().filter(reaches).copied().collect();
            let Some(token) = patch.iter().map(|(_, token)| *token).min() else { continue };
            let layer = patch.iter().map(|(site, _)| enters(*site)).min().unwrap_or(0);
            of_token.entry(token).or_default().push(Joining { number, layer, patch });
        }
        let draws = self.low.len();
        let mut passes = vec![];
        for (token, mut joining) in of_token {
            joining.sort_by_key(|joining| (joining.layer, joining.number));
            let some = (CELLS / (draws * (self.ids.len() - token))).max(1);
            while !joining.is_empty() {
                let rest = joining.split_off(some.min(joining.len()));
                passes.push((token, std::mem::replace(&mut joining, rest)));
            }
        }
        let done = parallel::each(&model.base().decoder.device(), passes, |(token, joining)| {
            self.pass(model, token, &joining)
        })?;
        let mut found = vec![self.low.clone(); patches.len()];
        for (number, values) in done.into_iter().flatten() {
            if values.iter().any(|value| !value.is_finite()) {
                let message = "what the model says with an activation put back is not a number; try a smaller --noise";
                return Err(Error::Input(message.into()));
            }
            found[number] = values;
        }
        Ok(found)
    }

    /// One pass of patches whose first token is the same, in the order of the layers at which they join.
    fn pass(&self, model: &Edited, token: usize, joining: &[Joining]) -> Result<Vec<(usize, Vec<f64>)>> {
        let (draws, layers, cells) = (self.low.len(), model.layers(), self.ids.len() - token);
        let left = self.past.truncated(token);
        let mut tap = Restore { clean: &self.clean, patches: vec![], draws, first: token };
        let mut hidden: Option<Tensor<3>> = None;
        for layer in joining[0].layer..=layers {
            let new: Vec<&Patch> = joining.iter().filter(|new| new.layer == layer).map(|new| &new.patch).collect();
            if !new.is_empty() {
                let [_, _, width] = self.corrupted[layer].dims();
                let corrupted = self.corrupted[layer].clone().slice([0..draws, token..token + cells, 0..width]);
                let new_rows = corrupted.repeat_dim(0, new.len());
                let mut own = Restore { patches: new.clone(), ..tap.clone() };
                let at = |place, layer| Site { stack: Stack::Decoder, layer, place };
                let below = if layer == 0 { at(Place::Embedding, 0) } else { at(Place::BlockOut, layer - 1) };
                let new_rows = own.put_back(below, new_rows);
                hidden = Some(match hidden {
                    Some(known) => Tensor::cat(vec![known, new_rows], 0),
                    None => new_rows,
                });
                tap.patches.extend(new);
            }
            let rows = tap.patches.len() * draws;
            let Some(carried) = hidden.take() else { continue };
            if layer == layers {
                let found = probabilities(model, carried, self.answer);
                let numbers = joining.iter().map(|joined| joined.number);
                return Ok(numbers.zip(found.chunks(draws).map(<[f64]>::to_vec)).collect());
            }
            let ids = vec![self.ids[token..].to_vec(); rows];
            let text = Text::new(&self.ids);
            let tokens = Tokens::placed(ids, (0..rows).map(|row| (row, token)).collect()).of(vec![text.clone(); rows]);
            let own: Vec<usize> = (0..rows).map(|row| row % draws).collect();
            let mut past = left.of_layers(layer..layer + 1).select(&own);
            let (mut carried, mut tokens) = (carried, tokens);
            // The head reads the last cell: of the others the topmost layer wants keys and values alone.
            if layer + 1 == layers && cells > 1 {
                let [_, _, width] = carried.dims();
                let part = |from: usize, to: usize| {
                    let rows = vec![self.ids[token + from..token + to].to_vec(); rows];
                    let places = (0..rows.len()).map(|row| (row, token + from)).collect();
                    let part = carried.clone().slice([0..rows.len(), from..to, 0..width]);
                    let texts = vec![text.clone(); rows.len()];
                    (part, Tokens::placed(rows, places).of(texts))
                };
                let (left, right) = (part(0, cells - 1), part(cells - 1, cells));
                model.remember(left.0, layer, left.1.span(), &mut past, &mut NoTap)?;
                (carried, tokens) = right;
                tap.first = token + cells - 1;
            }
            hidden = Some(model.blocks(carried, layer..layer + 1, tokens.span(), Some(&mut past), &mut tap)?);
        }
        Ok(vec![])
    }
}

/// What a pass from a token on holds at its largest: its rows, their keys and values in one layer, and to their left the corrupted runs' in all.
/// `patches` begin at each token.
pub(super) fn pass_bytes(spec: &DecoderSpec, (draws, patches): (usize, usize), token: usize, tokens: usize) -> u64 {
    let cells = tokens - token;
    let rows = (CELLS / (draws * cells)).clamp(1, patches.max(1)) * draws;
    let pass = Pass { rows, tokens: cells, past: token };
    let left = spec.past_bytes(Pass::new(draws, token), spec.layers) + spec.past_bytes(Pass::new(rows, tokens), 1);
    // What joins is put beside what was carried, and what is put back is mixed in: three streams more.
    spec.block_bytes(pass) + 3 * spec.stream_bytes(pass) + left
}

/// A patch on its way into a pass.
struct Joining {
    /// Its place in the list of patches.
    number: usize,
    /// The lowest layer whose input or inside it changes.
    layer: usize,
    patch: Patch,
}

/// The lowest layer that is to be run once a site is put back.
fn enters(site: Site) -> usize {
    match site.place {
        Place::BlockOut => site.layer + 1,
        _ => site.layer,
    }
}

/// Puts activations back: each patch's in its own rows, one a draw.
#[derive(Clone)]
struct Restore<'a> {
    clean: &'a BTreeMap<Site, Tensor<3>>,
    patches: Vec<&'a Patch>,
    draws: usize,
    /// The token of the first cell.
    first: usize,
}

impl Restore<'_> {
    fn put_back(&mut self, at: Site, value: Tensor<3>) -> Tensor<3> {
        let [rows, cells, width] = value.dims();
        let here = |patch: &Patch, cell: usize| patch.contains(&(at, self.first + cell));
        let wanted: Vec<Vec<bool>> =
            self.patches.iter().map(|patch| (0..cells).map(|cell| here(patch, cell)).collect()).collect();
        // Mostly it is one cell, the first.
        let Some(most) = wanted.iter().filter_map(|cells| cells.iter().rposition(|&wanted| wanted)).max() else {
            return value;
        };
        let count = most + 1;
        let mask: Vec<bool> = wanted
            .iter()
            .flat_map(|cells| std::iter::repeat_n(&cells[..count], self.draws).flatten().copied())
            .collect();
        let mask = Tensor::<3, Bool>::from_data(TensorData::new(mask, [rows, count, 1]), &value.device());
        let clean = self.clean[&at].clone().slice([0..1, self.first..self.first + count, 0..width]);
        let part = [0..rows, 0..count, 0..width];
        let clean = clean.cast(value.dtype()).expand([rows, count, width]);
        let mixed = value.clone().slice(part.clone()).mask_where(mask.expand([rows, count, width]), clean);
        if count == cells { mixed } else { value.slice_assign(part, mixed) }
    }
}

impl Tap for Restore<'_> {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        match at.place {
            Place::AttentionOut | Place::MlpOut | Place::BlockOut => self.put_back(at, value),
            Place::Embedding | Place::MlpHidden => value,
        }
    }
}
