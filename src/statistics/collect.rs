//! One pass over text for the second moments of all layers asked for.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};

use super::store::{Change, Moments};
use crate::data::text::Texts;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::tap::{Place, Site, Span, Tap};
use crate::model::tokens::Tokens;
use crate::parallel;

/// Rows of one batch. Sums are taken in f32 within a batch's parts, in f64 beyond.
const ROWS: usize = 16;

/// Column blocks of a symmetric product: those below the diagonal are not computed.
const BLOCKS: usize = 4;

/// How far to collect.
#[derive(Debug, Clone, Default)]
pub struct Collect {
    /// At most so many tokens.
    pub tokens: Option<u64>,
    /// Stop when C changes by less than this as the tokens double.
    pub until: Option<f64>,
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
    texts: &Texts,
    settings: &Collect,
    moments: &mut Moments,
    watch: &mut dyn FnMut(&Moments) -> Result<bool>,
) -> Result<Collected> {
    let row = moments.header.row;
    let wanted = settings.tokens.map_or(u64::MAX, |tokens| tokens.div_ceil(row as u64));
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
        tokens.extend(model.tokenizer.encode(&document)?);
        while tokens.len() >= row {
            let next: Vec<u32> = tokens.drain(..row).collect();
            if skipped < known {
                skipped += 1;
                continue;
            }
            rows.push(next);
            let full = known + rows.len() as u64;
            // Batches end where they would have ended without a break before, and where the tokens double.
            if !full.is_multiple_of(ROWS as u64) && full < wanted {
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

/// Whether the tokens have just doubled and C changed by less than `until`.
fn converged(moments: &Moments, until: Option<f64>) -> bool {
    let last = moments.header.changes.last().filter(|change| change.tokens == moments.header.tokens);
    last.zip(until).is_some_and(|(change, until)| change.largest() < until)
}

/// Adds the keys of a batch of rows.
fn add(model: &Model, rows: Vec<Vec<u32>>, moments: &mut Moments) -> Result<()> {
    let layers: Vec<usize> = moments.sums.keys().copied().collect();
    let tokens: u64 = rows.iter().map(|row| row.len() as u64).sum();
    let count = rows.len().div_ceil(parallel::parts(&model.decoder.device()));
    let parts: Vec<Vec<Vec<u32>>> = rows.chunks(count).map(<[_]>::to_vec).collect();
    let last = layers.iter().max().copied().unwrap_or(0);
    let products = parallel::run(parts, |rows| {
        let tokens = Tokens::new(rows);
        let mut products = Products { layers: layers.clone(), found: BTreeMap::new() };
        let hidden = model.decoder.embed(&tokens, &mut products)?;
        model.decoder.blocks(hidden, 0..last + 1, tokens.span(), None, &mut products)?;
        Ok(products.found)
    })?;
    let width = moments.header.width;
    for products in products {
        for (layer, blocks) in products {
            let Some(sum) = moments.sums.get_mut(&layer) else { continue };
            for (first, block) in blocks {
                let right = width - first;
                for (row, values) in block.chunks(right).enumerate() {
                    let from = (first + row) * width + first;
                    sum[from..from + right].iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value));
                }
            }
        }
    }
    // A key that is not finite shows on the diagonal.
    let broken = |sum: &[f64]| sum.iter().step_by(width + 1).any(|value| !value.is_finite());
    if let Some((layer, _)) = moments.sums.iter().find(|(_, sum)| broken(sum)) {
        return Err(Error::Input(format!("layer {layer} has keys that are not finite: the model is broken")));
    }
    moments.header.tokens += tokens;
    // 16 rows, 32, 64, …
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
            self.header.changes.push(Change { tokens: self.header.tokens, layers });
        }
        self.half = self.sums.iter().map(|(&layer, sum)| (layer, sum.iter().map(|&v| v as f32).collect())).collect();
        self.header.half = self.header.tokens;
    }
}

/// Takes `kᵀk` of the keys that pass: the blocks on and right of the diagonal, each with the number of its first row.
struct Products {
    layers: Vec<usize>,
    found: BTreeMap<usize, Vec<(usize, Vec<f32>)>>,
}

impl Tap for Products {
    fn activation(&mut self, at: Site, _span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at.place == Place::MlpHidden && self.layers.contains(&at.layer) {
            let [rows, cells, width] = value.dims();
            let keys = value.clone().reshape([rows * cells, width]).cast(DType::F32);
            let transposed = keys.clone().transpose();
            let step = width.div_ceil(BLOCKS);
            let blocks = (0..width).step_by(step).map(|first| {
                let left = transposed.clone().slice([first..(first + step).min(width), 0..rows * cells]);
                let right = keys.clone().slice([0..rows * cells, first..width]);
                let product: Vec<f32> = left.matmul(right).into_data().iter::<f32>().collect();
                (first, product)
            });
            self.found.insert(at.layer, blocks.collect());
        }
        value
    }
}
