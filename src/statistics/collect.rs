//! One pass over text for the second moments of all layers asked for.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};

use super::store::{MomentChange, Moments};
use crate::data::text::Documents;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::chat::Chat;
use crate::model::stack::sizes::Pass;
use crate::model::stack::taps::Recorder;
use crate::model::tap::{Place, Site, Stack};
use crate::model::tokens::Tokens;
use crate::parallel;
use crate::plan::{Held, Work};

/// Rows of one batch. Sums are taken in f32 within a batch's parts, in f64 beyond; more rows are no faster, and take
/// more memory.
const ROWS: usize = 4;

/// Parts of a batch that run side by side. It does not depend on how many cores there are, for the sums' last digits depend on it.
const PARTS: usize = 2;

/// Column blocks of a symmetric product: those below the diagonal are not computed.
const BLOCKS: usize = 4;

/// How far to collect.
#[derive(Debug, Clone, Default)]
pub struct Collect {
    /// So many tokens, rounded up to whole batches of 4 rows.
    pub tokens: Option<u64>,
    /// Stop when C changes by less than this as the tokens double.
    pub until: Option<f64>,
    /// Texts are turns of a chat, written by this template.
    pub chat: Option<Chat>,
}

/// Why a collection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// It has the tokens it was to have.
    Enough,
    /// C changes by less than asked for.
    Converged,
    /// The texts have no more.
    All,
}

/// Goes on from `moments` (of the same texts, or empty) and adds what is missing.
///
/// `watch` is shown the moments after each batch, and says whether to go on.
///
/// # Errors
/// Texts that cannot be read, an interruption, and what `watch` says.
pub fn collect(
    model: &Model,
    texts: &Documents,
    settings: &Collect,
    moments: &mut Moments,
    watch: &mut dyn FnMut(&Moments) -> Result<bool>,
) -> Result<Collected> {
    let row = moments.header.row;
    // Whole batches: where a collection goes on later, batches begin where they would have begun without a stop.
    let batch = (ROWS * row) as u64;
    let wanted = settings.tokens.map_or(u64::MAX, |tokens| tokens.div_ceil(batch) * ROWS as u64);
    let mut known = moments.header.tokens / row as u64;
    let (mut skipped, mut tokens, mut rows) = (0, vec![], vec![]);
    let mut end = Collected::All;
    if known >= wanted {
        return Ok(Collected::Enough);
    }
    // What converged before does not go on to the next doubling.
    if converged(moments, settings.until) {
        return Ok(Collected::Converged);
    }
    texts.shuffled(moments.header.seed, &mut |document| {
        let document = match &settings.chat {
            Some(chat) => chat.turn(&document)?,
            None => document.text,
        };
        tokens.extend(model.tokenizer.encode(&document)?);
        while tokens.len() >= row {
            let next: Vec<u32> = tokens.drain(..row).collect();
            if skipped < known {
                skipped += 1;
                continue;
            }
            rows.push(next);
            let full = known + rows.len() as u64;
            if !full.is_multiple_of(ROWS as u64) {
                continue;
            }
            add(model, std::mem::take(&mut rows), moments)?;
            known = full;
            skipped = full;
            if !watch(moments)? {
                return Err(Error::Interrupted(format!(" after {} tokens", moments.header.tokens)));
            }
            if converged(moments, settings.until) {
                end = Collected::Converged;
                return Ok(ControlFlow::Break(()));
            }
            if full >= wanted {
                end = Collected::Enough;
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if !rows.is_empty() {
        add(model, rows, moments)?;
        watch(moments)?;
    }
    if moments.header.tokens == 0 {
        return Err(Error::Input(format!("the texts have fewer than {row} tokens; give more, or a smaller --row")));
    }
    Ok(end)
}

/// What a collection of so many layers over rows of so many tokens holds.
pub fn held(work: &Work<'_>, layers: usize, row: usize) -> Vec<Held> {
    let (width, spec) = (work.spec.mlp.width as u64, work.spec);
    let keys = 4 * (ROWS * row * layers) as u64 * width;
    let parts = work.threads.min(PARTS) as u64;
    // A block of columns, turned round, and its product, as a tensor and as numbers.
    let products = parts * 4 * width / BLOCKS as u64 * (2 * width + (ROWS * row) as u64);
    let passes = parts * spec.block_bytes(Pass::new(ROWS / PARTS, row));
    vec![
        Held::always(
            format!("second moments of {layers} layers in f64, and as they were at the last doubling in f32"),
            12 * layers as u64 * width * width,
        )
        .lowered_by("--layers"),
        Held::during(COLLECTING, format!("the keys of {ROWS} rows of {row} tokens"), keys).lowered_by("--row"),
        Held::during(COLLECTING, "passes through the model, and products of keys", passes.max(products)),
    ]
}

/// The part of the work that [`held`] speaks of.
const COLLECTING: &str = "collecting";

/// Whether the tokens have just doubled and C changed by less than `until`.
fn converged(moments: &Moments, until: Option<f64>) -> bool {
    let last = moments.header.changes.last().filter(|change| change.tokens == moments.header.tokens);
    last.zip(until).is_some_and(|(change, until)| change.largest() < until)
}

/// Adds the keys of a batch of rows.
fn add(model: &Model, rows: Vec<Vec<u32>>, moments: &mut Moments) -> Result<()> {
    let sites = moments.sums.keys().map(|&layer| Site { stack: Stack::Decoder, layer, place: Place::MlpHidden });
    let sites: Vec<Site> = sites.collect();
    let last = moments.sums.keys().max().copied().unwrap_or(0);
    let tokens: u64 = rows.iter().map(|row| row.len() as u64).sum();
    let parts: Vec<Vec<Vec<u32>>> = rows.chunks(rows.len().div_ceil(PARTS)).map(<[_]>::to_vec).collect();
    let mut keys = parallel::run(parts, |rows| {
        let tokens = Tokens::new(rows);
        let mut recorder = Recorder::at(sites.iter().copied());
        let hidden = model.decoder.embed(&tokens, &mut recorder)?;
        model.decoder.blocks(hidden, 0..last + 1, tokens.span(), None, &mut recorder)?;
        Ok(recorder.values)
    })?;
    // A layer's sum is one thread's: the order of its additions is always the same.
    let mut shares: Vec<Vec<_>> = keys.iter().map(|_| vec![]).collect();
    for (number, (site, (_, sum))) in sites.iter().zip(&mut moments.sums).enumerate() {
        let mine: Vec<Tensor<3>> = keys.iter_mut().filter_map(|part| part.remove(site)).collect();
        shares[number % keys.len()].push((sum, mine));
    }
    parallel::run(shares, |share| {
        for (sum, keys) in share {
            keys.into_iter().for_each(|keys| add_products(sum, keys));
        }
        Ok(())
    })?;
    let width = moments.header.width;
    // A key that is not finite shows on the diagonal.
    let broken = |sum: &[f64]| sum.iter().step_by(width + 1).any(|value| !value.is_finite());
    if let Some((layer, _)) = moments.sums.iter().find(|(_, sum)| broken(sum)) {
        return Err(Error::Input(format!("layer {layer} has keys that are not finite: the model is broken")));
    }
    moments.header.tokens += tokens;
    // Batches 1, 2, 4, 8, …
    let batches = moments.header.tokens / (ROWS * moments.header.row) as u64;
    let whole = moments.header.tokens.is_multiple_of((ROWS * moments.header.row) as u64);
    if whole && batches.is_power_of_two() {
        moments.doubled();
    }
    Ok(())
}

impl Moments {
    /// Fills the half below the diagonal, which is not computed.
    pub fn mirror(&mut self) {
        let width = self.header.width;
        for sum in self.sums.values_mut() {
            for row in 0..width {
                for column in 0..row {
                    sum[row * width + column] = sum[column * width + row];
                }
            }
        }
    }

    /// Notes the change since the tokens were half as many.
    fn doubled(&mut self) {
        self.mirror();
        let (now, then) = (self.header.tokens as f64, self.header.half as f64);
        let changes = self.sums.iter().filter_map(|(layer, sum)| {
            let half = self.half.get(layer)?;
            let (mut apart, mut whole) = (0.0_f64, 0.0_f64);
            for (&sum, &half) in sum.iter().zip(half) {
                apart += (sum / now - f64::from(half) / then).powi(2);
                whole += (sum / now).powi(2);
            }
            // Keys that are all 0 have not changed.
            Some((*layer, if whole > 0.0 { (apart / whole).sqrt() } else { 0.0 }))
        });
        let layers: BTreeMap<usize, f64> = changes.collect();
        if !layers.is_empty() {
            self.header.changes.push(MomentChange { tokens: self.header.tokens, layers });
        }
        for (&layer, sum) in &self.sums {
            // In the old one's place: both at once would be a matrix more.
            let half = self.half.entry(layer).or_insert_with(|| vec![0.0; sum.len()]);
            half.iter_mut().zip(sum).for_each(|(half, &sum)| *half = sum as f32);
        }
        self.header.half = self.header.tokens;
    }
}

/// Adds `kᵀk` of keys `[rows, cells, width]` to a sum: the blocks on and right of the diagonal.
fn add_products(sum: &mut [f64], keys: Tensor<3>) {
    let [rows, cells, width] = keys.dims();
    let keys = keys.reshape([rows * cells, width]).cast(DType::F32);
    let transposed = keys.clone().transpose();
    let step = width.div_ceil(BLOCKS);
    for first in (0..width).step_by(step) {
        let left = transposed.clone().slice([first..(first + step).min(width), 0..rows * cells]);
        let right = keys.clone().slice([0..rows * cells, first..width]);
        let product: Vec<f32> = left.matmul(right).into_data().iter::<f32>().collect();
        for (row, values) in product.chunks(width - first).enumerate() {
            let from = (first + row) * width + first;
            sum[from..from + values.len()].iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value));
        }
    }
}
