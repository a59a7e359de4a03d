//! The layers below the lowest edited one. No edit changes them: the hidden states of a text that they give are constants of the training.
//!
//! Texts that come again are kept. Which texts share a pass is fixed before the first step, from all of them in order, and the pass
//! is made when one of its texts is first asked for: what comes out does not depend on when that was, on how much memory there is,
//! or on how many threads work, so that a resumed training finds the same bits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Int, Tensor};

use crate::edit::Edited;
use crate::error::Result;
use crate::model::tap::NoTap;
use crate::model::tokens::Tokens;
use crate::parallel;

/// Cells of a pass whose texts are kept. A text that is met for the first time brings the others of its pass with it: more of them
/// would delay the first steps, fewer would read all weights for next to nothing.
pub(super) const CELLS: usize = 192;

/// The layers below the lowest edited one, with the hidden states that are kept. Clones share them.
#[derive(Clone)]
pub struct LowerLayers {
    base: Edited,
    layers: usize,
    passes: Arc<Passes>,
    kept: Arc<Mutex<KeptStates>>,
}

/// Which texts share a pass.
#[derive(Default)]
struct Passes {
    /// All texts, by length, then by their tokens.
    texts: Vec<Vec<u32>>,
    /// The pass of each.
    pass_of: Vec<usize>,
    /// The texts of each pass.
    texts_of: Vec<Range<usize>>,
}

/// What was computed, as far as it fits.
#[derive(Default)]
struct KeptStates {
    /// By the number of the pass: `[texts, tokens, width]`, and when it was last asked for.
    passes: BTreeMap<usize, (Tensor<3>, u64)>,
    /// Steps so far, by which passes age.
    now: u64,
    bytes: usize,
    most: usize,
    asked: u64,
    found: u64,
    dropped: u64,
}

/// How many of the texts that were asked for had their hidden states kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptCounts {
    /// Texts asked for.
    pub asked: u64,
    /// Those whose hidden states were at hand.
    pub found: u64,
    /// Passes that were dropped to make room.
    pub dropped: u64,
    /// Bytes of what is kept.
    pub bytes: usize,
}

impl Passes {
    fn new(texts: BTreeSet<Vec<u32>>) -> Self {
        let mut texts: Vec<Vec<u32>> = texts.into_iter().collect();
        // Texts of one length stay in the order of their tokens.
        texts.sort_by_key(Vec::len);
        let (mut pass_of, mut texts_of) = (Vec::with_capacity(texts.len()), vec![]);
        for alike in texts.chunk_by(|a, b| a.len() == b.len()) {
            for together in alike.chunks((CELLS / alike[0].len().max(1)).max(1)) {
                let first = pass_of.len();
                pass_of.extend(together.iter().map(|_| texts_of.len()));
                texts_of.push(first..pass_of.len());
            }
        }
        Passes { texts, pass_of, texts_of }
    }

    /// The number of a text.
    fn find(&self, ids: &[u32]) -> Option<usize> {
        self.texts.binary_search_by(|known| known.len().cmp(&ids.len()).then_with(|| known.as_slice().cmp(ids))).ok()
    }
}

impl LowerLayers {
    /// The first `layers` layers of `base`.
    pub fn new(base: Edited, layers: usize) -> Self {
        LowerLayers { base, layers, passes: Arc::default(), kept: Arc::default() }
    }

    /// Fixes which of the texts to keep share a pass; what was computed is kept in at most `bytes`. Nothing is computed yet.
    pub fn keep(&mut self, texts: BTreeSet<Vec<u32>>, bytes: f64) {
        // Without layers or memory there is nothing to keep.
        let texts = if self.layers == 0 || bytes == 0.0 { BTreeSet::new() } else { texts };
        self.passes = Arc::new(Passes::new(texts));
        self.kept = Arc::new(Mutex::new(KeptStates { most: bytes as usize, ..KeptStates::default() }));
    }

    /// Computes what a step's texts lack, side by side; `rows` are the texts of all its batches. What does not fit is dropped by age.
    ///
    /// # Errors
    /// A text that the model cannot take.
    pub fn prepare<'a>(&self, rows: impl Iterator<Item = &'a [u32]>) -> Result<()> {
        let wanted: Vec<usize> = rows.filter_map(|ids| Some(self.passes.pass_of[self.passes.find(ids)?])).collect();
        let missing = self.kept().ask(&wanted);
        let parts = parallel::parts(&self.base.base().decoder.device()).min(missing.len());
        // Dealt out like cards: every part gets short and long texts.
        let parts: Vec<Vec<usize>> =
            (0..parts).map(|part| missing.iter().copied().skip(part).step_by(parts).collect()).collect();
        let computed = parallel::run(parts, |passes| {
            let texts = |pass: usize| self.passes.texts[self.passes.texts_of[pass].clone()].to_vec();
            let compute = |pass: usize| Ok((pass, self.run(&Tokens::new(texts(pass)))?));
            passes.into_iter().map(compute).collect::<Result<Vec<_>>>()
        })?;
        let size = self.base.base().decoder.dtype().size();
        self.kept().put(computed.into_iter().flatten(), size);
        Ok(())
    }

    /// The hidden states above the layers, `[batch, tokens, width]`: from memory where all rows were prepared.
    ///
    /// # Errors
    /// A text that the model cannot take.
    pub fn hidden(&self, tokens: &Tokens) -> Result<Tensor<3>> {
        let kept = {
            let kept = self.kept();
            tokens.ids().iter().map(|ids| self.row(&kept, ids)).collect::<Option<Vec<_>>>()
        };
        match kept {
            Some(rows) if !rows.is_empty() => Ok(padded(rows, tokens.span().width)),
            _ => self.compute(tokens),
        }
    }

    /// The counts so far; nothing where nothing is kept.
    pub fn counts(&self) -> Option<KeptCounts> {
        let kept = self.kept();
        let KeptStates { asked, found, dropped, bytes, .. } = *kept;
        (!self.passes.texts.is_empty()).then_some(KeptCounts { asked, found, dropped, bytes })
    }

    fn kept(&self) -> MutexGuard<'_, KeptStates> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hidden states of one text, `[tokens, width]`.
    fn row(&self, kept: &KeptStates, ids: &[u32]) -> Option<Tensor<2>> {
        let text = self.passes.find(ids)?;
        let pass = self.passes.pass_of[text];
        let (hidden, _) = kept.passes.get(&pass)?;
        let row = text - self.passes.texts_of[pass].start;
        let [_, cells, width] = hidden.dims();
        Some(hidden.clone().slice([row..row + 1, 0..cells, 0..width]).squeeze_dim::<2>(0))
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
            let hidden = self.run(&tokens.chosen(&group))?;
            let [_, _, width] = hidden.dims();
            for (place, row) in group.into_iter().enumerate() {
                let cells = tokens.ids()[row].len();
                rows[row] = Some(hidden.clone().slice([place..place + 1, 0..cells, 0..width]).squeeze_dim::<2>(0));
            }
        }
        Ok(padded(rows.into_iter().flatten().collect(), tokens.span().width))
    }
}

impl KeptStates {
    /// Begins a step that wants a pass for each of its texts, and gives the passes that are not here, each once.
    fn ask(&mut self, wanted: &[usize]) -> Vec<usize> {
        self.now += 1;
        self.asked += wanted.len() as u64;
        let mut missing = BTreeSet::new();
        for pass in wanted {
            match self.passes.get_mut(pass) {
                Some((_, used)) => {
                    *used = self.now;
                    self.found += 1;
                }
                None => {
                    missing.insert(*pass);
                }
            }
        }
        missing.into_iter().collect()
    }

    /// Takes passes in and drops the oldest until all fit. What the step at hand uses stays, whatever it takes.
    fn put(&mut self, computed: impl Iterator<Item = (usize, Tensor<3>)>, size: usize) {
        let bytes = |hidden: &Tensor<3>| hidden.dims().iter().product::<usize>() * size;
        for (pass, hidden) in computed {
            self.bytes += bytes(&hidden);
            self.passes.insert(pass, (hidden, self.now));
        }
        if self.bytes <= self.most {
            return;
        }
        let mut by_age: Vec<(u64, usize)> = self.passes.iter().map(|(pass, (_, used))| (*used, *pass)).collect();
        by_age.sort_unstable();
        for (used, pass) in by_age {
            if self.bytes <= self.most || used == self.now {
                break;
            }
            if let Some((hidden, _)) = self.passes.remove(&pass) {
                self.bytes -= bytes(&hidden);
                self.dropped += 1;
            }
        }
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
