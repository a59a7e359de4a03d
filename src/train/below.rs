//! The part of the model below the lowest edited layer. No edit reaches it: what it makes of a text is a constant of the training.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use super::learned::Watch;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::model::tap::NoTap;
use crate::model::tokens::Tokens;
use crate::parallel;

/// Cells of one forward pass.
const CELLS: usize = 1024;

/// The layers below the lowest edited one, with the hidden states that are kept.
#[derive(Clone)]
pub struct Below {
    base: Edited,
    layers: usize,
    /// `[tokens, width]` of each text.
    kept: Arc<HashMap<Vec<u32>, Tensor<2>>>,
}

impl Below {
    /// The first `layers` layers of `base`.
    pub fn new(base: Edited, layers: usize) -> Self {
        Below { base, layers, kept: Arc::default() }
    }

    /// What comes out of them, `[batch, tokens, width]`: from memory where all rows are kept.
    ///
    /// # Errors
    /// A text that the model cannot take.
    pub fn hidden(&self, tokens: &Tokens) -> Result<Tensor<3>> {
        match tokens.ids().iter().map(|ids| self.kept.get(ids)).collect::<Option<Vec<_>>>() {
            Some(rows) if !rows.is_empty() => Ok(padded(rows.into_iter().cloned().collect(), tokens.span().width)),
            _ => self.compute(tokens),
        }
    }

    /// Computes and keeps the hidden states of texts, unless they take more than `bytes`.
    ///
    /// Only texts of one length share a pass, in an order of their own: what is kept does not depend on when it was asked for, so
    /// that a resumed training finds the same bits. `watch` is told how many are done, and says whether to go on.
    ///
    /// # Errors
    /// A text that the model cannot take; an interruption.
    pub fn keep(&mut self, texts: BTreeSet<Vec<u32>>, bytes: f64, watch: Watch<'_>) -> Result<()> {
        let cells: usize = texts.iter().map(Vec::len).sum();
        let size = self.base.base().decoder.dtype().size();
        if self.layers == 0 || (cells * self.base.base().decoder.spec.width * size) as f64 > bytes {
            return Ok(());
        }
        let total = texts.len();
        let mut by_length: BTreeMap<usize, Vec<Vec<u32>>> = BTreeMap::new();
        texts.into_iter().for_each(|ids| by_length.entry(ids.len()).or_default().push(ids));
        let batches = by_length.into_iter().flat_map(|(length, texts)| {
            texts.chunks((CELLS / length.max(1)).max(1)).map(<[_]>::to_vec).collect::<Vec<_>>()
        });
        let batches: Vec<Vec<Vec<u32>>> = batches.collect();
        let mut kept = HashMap::with_capacity(total);
        for together in batches.chunks(parallel::parts(&self.base.base().decoder.device())) {
            let done = parallel::run(together.to_vec(), |texts| Ok((self.run(&Tokens::new(texts.clone()))?, texts)))?;
            for (hidden, texts) in done {
                let [_, cells, width] = hidden.dims();
                kept.extend(texts.into_iter().enumerate().map(|(row, ids)| {
                    (ids, hidden.clone().slice([row..row + 1, 0..cells, 0..width]).squeeze_dim::<2>(0))
                }));
            }
            if !watch(kept.len(), total) {
                return Err(Error::Interrupted(
                    " while texts were prepared; the same command begins with them again".into(),
                ));
            }
        }
        self.kept = Arc::new(kept);
        Ok(())
    }

    fn run(&self, tokens: &Tokens) -> Result<Tensor<3>> {
        let hidden = self.base.embed(tokens, &mut NoTap)?;
        self.base.blocks(hidden, 0..self.layers, tokens.span(), None, &mut NoTap)
    }

    /// Most of the model lies here, so rows of like length run together: a batch padded to its longest row would be half padding.
    fn compute(&self, tokens: &Tokens) -> Result<Tensor<3>> {
        let groups = of_like_length(tokens);
        if self.layers == 0 || groups.len() < 2 {
            return self.run(tokens);
        }
        let mut rows = vec![None; tokens.ids().len()];
        for group in groups {
            let hidden = self.run(&Tokens::new(group.iter().map(|&row| tokens.ids()[row].clone()).collect()))?;
            let [_, _, width] = hidden.dims();
            for (place, row) in group.into_iter().enumerate() {
                let cells = tokens.ids()[row].len();
                rows[row] = Some(hidden.clone().slice([place..place + 1, 0..cells, 0..width]).squeeze_dim::<2>(0));
            }
        }
        Ok(padded(rows.into_iter().flatten().collect(), tokens.span().width))
    }
}

/// Rows `[tokens, channels]` as one batch `[rows, width, channels]`, padded with zeros.
fn padded(rows: Vec<Tensor<2>>, width: usize) -> Tensor<3> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.dims()[0]).collect();
    let zero = lengths.iter().sum::<usize>() as i64;
    let mut first = 0;
    let index = lengths.iter().flat_map(|&length| {
        let start = first;
        first += length as i64;
        (start..first).chain(std::iter::repeat_n(zero, width - length))
    });
    let index: Vec<i64> = index.collect();
    let (count, channels) = (rows.len(), rows[0].dims()[1]);
    let (device, dtype) = (rows[0].device(), rows[0].dtype());
    let cells = Tensor::cat(rows.into_iter().chain([Tensor::zeros([1, channels], (&device, dtype))]).collect(), 0);
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &device);
    cells.select(0, index).reshape([count, width, channels])
}

/// The rows of a batch in groups, none of which is more than a third longer than its shortest row.
fn of_like_length(tokens: &Tokens) -> Vec<Vec<usize>> {
    let length = |row: usize| tokens.ids()[row].len();
    let mut order: Vec<usize> = (0..tokens.ids().len()).collect();
    order.sort_by_key(|&row| length(row));
    let mut groups: Vec<Vec<usize>> = vec![];
    for row in order {
        match groups.last_mut() {
            Some(group) if 3 * length(row) <= 4 * length(group[0]) => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups
}
