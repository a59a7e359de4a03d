//! The matrices that an editor of gradients changes, and the gradients of edits at them, decomposed.
//!
//! The gradient of a matrix is a sum over tokens, `Σ uᵀδ`: the input u of the matrix times the gradient δ at its output.

use burn::tensor::{Int, Tensor, TensorData};
use faer::Mat;
use serde::{Deserialize, Serialize};

use super::normal_equations::matrix as matrix_of;
use crate::edit::likelihood::check_targets;
use crate::edit::loss::nll;
use crate::edit::{EditRequest, Edited, RecordDeltas};
use crate::error::{Error, Result};
use crate::model::stack::sizes::Pass;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::taps::{GradientProbes, Inputs, cells};
use crate::model::tap::{Both, NoTap, Role, Tap, Weight};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::plan::{Lengths, Work, size};
use crate::process;

/// Edits whose gradients are taken in one pass, where there are many.
pub const AT_ONCE: usize = 32;

/// Bytes of a token of an edit in a matrix, a channel: its key and gradient, with the copies that a solution in f64 takes.
const BYTES: u64 = 20;

/// The tokens of an edit whose gradients are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditTokens {
    /// Every token that the loss reaches.
    #[default]
    All,
    /// Those that predict the answer.
    Answer,
}

impl EditTokens {
    /// How many these are at most.
    pub fn of(self, edit: &Continuation) -> usize {
        match self {
            EditTokens::All => edit.ids.len() - 1,
            EditTokens::Answer => edit.target().len(),
        }
    }
}

/// An edited matrix: of which shape it is, and the number it has among those of this shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EditedMatrix {
    /// Its name.
    pub weight: Weight,
    /// The index of its shape.
    pub shape: usize,
    /// Its number among the matrices of this shape.
    pub number: usize,
    /// The number of its block in a pass.
    pub place: usize,
}

/// The edited matrices and their shapes.
#[derive(Debug, Clone)]
pub struct Matrices {
    /// Layer by layer.
    pub each: Vec<EditedMatrix>,
    /// `[d_in, d_out]`, each once.
    pub shapes: Vec<[usize; 2]>,
}

/// A gradient `Σ uᵀδ` for each of some owners: the tokens' `u [tokens, d_in]`, `δ [tokens, d_out]`, and whose each is.
pub type Factors = (Tensor<2>, Tensor<2>, Vec<usize>);

/// The decomposed gradients of edits.
pub struct Captured {
    /// In the order of [`Matrices::each`].
    pub factors: Vec<Factors>,
    /// Of each row the likeliest tokens where its target is read.
    pub likeliest: Vec<Vec<u32>>,
}

impl Captured {
    /// How many tokens there are of each matrix.
    pub fn tokens(&self) -> Vec<usize> {
        self.factors.iter().map(|(_, _, owners)| owners.len()).collect()
    }
}

impl Matrices {
    /// The matrices of these names ("mlp.up", …) in these layers; of an encoder's "encoder.mlp.up".
    ///
    /// # Errors
    /// Nothing named, a matrix that the model does not have, or one that is named twice.
    pub fn new(layers: &[usize], weights: &[String], spec: &DecoderSpec) -> Result<Self> {
        let named = Weight::all_named(layers, weights)?;
        if named.is_empty() {
            return Err(Error::Config(
                "editor.layers and editor.weights must name at least one layer and one weight".into(),
            ));
        }
        let mut each: Vec<EditedMatrix> = vec![];
        let mut shapes: Vec<[usize; 2]> = vec![];
        for weight in named {
            let role = weight.role;
            if !spec.has(weight) {
                return Err(Error::Config(format!(
                    "editor: the model has no weight {weight}; it has {}{}",
                    spec.places(),
                    if spec.mlp.gated { "" } else { ", without mlp.gate" }
                )));
            }
            if each.iter().any(|matrix| matrix.weight == weight) {
                return Err(Error::Config(format!("editor: {weight} is named twice")));
            }
            let found = shapes.iter().position(|shape| *shape == spec.shape(role));
            let shape = found.unwrap_or_else(|| {
                shapes.push(spec.shape(role));
                shapes.len() - 1
            });
            let number = each.iter().filter(|matrix| matrix.shape == shape).count();
            each.push(EditedMatrix { weight, shape, number, place: spec.place(weight) });
        }
        Ok(Matrices { each, shapes })
    }

    /// The lowest block that is edited, as a pass counts them: everything below is constant.
    pub fn lowest_layer(&self) -> usize {
        self.each.iter().map(|matrix| matrix.place).min().unwrap_or(0)
    }

    /// The matrices of a shape, by their places in [`Matrices::each`].
    pub fn of_shape(&self, shape: usize) -> Vec<usize> {
        (0..self.each.len()).filter(|&place| self.each[place].shape == shape).collect()
    }

    /// The decomposed gradients of `L = −mean ln p(target | prompt)` of each row, on the model as it is under `tap`.
    ///
    /// `hidden [batch, tokens, width]` is the input of the lowest edited layer, the rows of `tokens` are the continuations without
    /// their last token, and each row has the number of the edit that it belongs to.
    ///
    /// # Errors
    /// What the model says of the batch.
    pub fn capture(
        &self,
        model: &Edited,
        hidden: Tensor<3>,
        tokens: &Tokens,
        (rows, groups): (&[&Continuation], &[usize]),
        of: EditTokens,
        tap: &mut dyn Tap,
    ) -> Result<Captured> {
        for row in rows {
            check_targets(model, row.target())?;
        }
        let mut probes = GradientProbes::at(self.each.iter().map(|matrix| matrix.weight));
        let layers = self.lowest_layer()..model.layers();
        let hidden = model.blocks(hidden, layers, tokens.span(), None, &mut Both(tap, &mut probes))?;
        let reads: Vec<_> =
            rows.iter().enumerate().flat_map(|(row, text)| text.reads().map(move |cell| (row, cell))).collect();
        let targets: Vec<u32> = rows.iter().flat_map(|text| text.target().iter().copied()).collect();
        let weights: Vec<f32> =
            rows.iter().flat_map(|text| vec![1.0 / text.target().len() as f32; text.target().len()]).collect();
        let (loss, likeliest) = model.head_with_gradient(hidden, &reads, |logits| {
            let likeliest: Vec<u32> = logits.clone().argmax(1).into_data().iter::<u32>().collect();
            let log = burn::tensor::activation::log_softmax(logits, 1);
            let weights = Tensor::<1>::from_data(weights.as_slice(), (&log.device(), log.dtype()));
            let (_, gradient) = nll(log, &targets);
            Ok((gradient * weights.unsqueeze_dim(1), likeliest))
        })?;
        let mut likeliest = likeliest.into_iter();
        let likeliest = rows.iter().map(|row| likeliest.by_ref().take(row.target().len()).collect()).collect();
        let mut read = probes.read(&loss.backward());
        let factors = self.each.iter().map(|matrix| {
            let (u, delta) = read
                .remove(&matrix.weight)
                .ok_or_else(|| Error::Input(format!("the loss does not reach {}", matrix.weight)))?;
            let reached: Vec<_> = match of {
                // Among the cells of the decoder, behind those that an encoder reads.
                EditTokens::Answer => {
                    reads.iter().map(|&(row, cell)| (row, cell - tokens.span().rows[row].text.source)).collect()
                }
                EditTokens::All => reached(&delta),
            };
            let owners = reached.iter().map(|&(row, _)| groups[row]).collect();
            Ok((cells(u, &reached), cells(delta, &reached), owners))
        });
        Ok(Captured { factors: factors.collect::<Result<_>>()?, likeliest })
    }

    /// As [`Matrices::capture`], from the tokens up.
    ///
    /// # Errors
    /// What the model says of the batch.
    pub fn capture_rows(
        &self,
        model: &Edited,
        (rows, groups): (&[&Continuation], &[usize]),
        of: EditTokens,
    ) -> Result<Captured> {
        let tokens = without_last(rows);
        let hidden = model.embed(&tokens, &mut NoTap)?;
        let hidden = model.blocks(hidden, 0..self.lowest_layer(), tokens.span(), None, &mut NoTap)?;
        self.capture(model, hidden, &tokens, (rows, groups), of, &mut NoTap)
    }

    /// What a pass that captures the gradients of so many requests holds.
    pub fn bytes_of_capture(&self, work: &Work<'_>, requests: usize) -> u64 {
        let (spec, Lengths { row, target, .. }) = (work.spec, work.texts);
        let (pass, above) = (Pass::new(requests, row), spec.depth() - self.lowest_layer());
        let channels: usize = self.each.iter().map(|matrix| self.shapes[matrix.shape].iter().sum::<usize>()).sum();
        // Of the lowest layer what is above its edited matrices, the down-projection at least.
        let of_lowest = 4 * spec.shape(Role::MlpDown).iter().product::<usize>() as u64;
        let cast = if work.in_file { spec.layers_bytes(self.lowest_layer() + 1) + of_lowest } else { 0 };
        let factors = 2 * 4 * (pass.cells() * channels) as u64;
        spec.graph_bytes(pass, above) + 5 * spec.logits_bytes(requests * target) + factors + cast
    }

    /// What an edit of so many requests holds where their gradients are taken a pass at a time and solved in f64, so many tokens of each: the last pass, and the keys
    /// and gradients of all.
    pub fn bytes_of_edit(&self, work: &Work<'_>, requests: usize, tokens: usize) -> u64 {
        let channels: usize = self.each.iter().map(|matrix| self.shapes[matrix.shape].iter().sum::<usize>()).sum();
        self.bytes_of_capture(work, requests.min(AT_ONCE)) + BYTES * (requests * tokens * channels) as u64
    }

    /// What the normal equations of all matrices hold for edits of so many tokens in all, in f64: keys and changes, the smaller of both systems, and its factor.
    pub fn bytes_of_equations(&self, tokens: usize) -> u64 {
        let of_matrix = |[d_in, d_out]: [usize; 2]| 2 * (tokens * (2 * d_in + 2 * d_out) + 2 * tokens.min(d_in).pow(2));
        4 * self.each.iter().map(|matrix| of_matrix(self.shapes[matrix.shape])).sum::<usize>() as u64
    }

    /// Second moments of all matrices' inputs in f64.
    pub fn bytes_of_moments(&self) -> u64 {
        8 * self.each.iter().map(|matrix| self.shapes[matrix.shape][0].pow(2)).sum::<usize>() as u64
    }

    /// The second moments `Σ k kᵀ [d_in, d_in]` of each matrix's keys over windows of text.
    ///
    /// # Errors
    /// What the model says of the windows.
    pub fn moments(&self, model: &Edited, windows: &[Vec<u32>]) -> Result<Vec<Mat<f64>>> {
        let widths = self.each.iter().map(|matrix| self.shapes[matrix.shape][0]);
        let mut sums: Vec<Mat<f64>> = widths.map(|width| Mat::zeros(width, width)).collect();
        let highest = self.each.iter().map(|matrix| matrix.place).max().unwrap_or(0);
        for some in windows.chunks(AT_ONCE) {
            let tokens = Tokens::new(some.to_vec());
            // Of an encoder-decoder each matrix sees one part of the rows.
            let sources: Vec<usize> = tokens.texts().iter().map(|text| text.source).collect();
            let of_rows = |reads_encoder: bool| -> Vec<(usize, usize)> {
                let count = |row: usize| if reads_encoder { sources[row] } else { some[row].len() - sources[row] };
                (0..some.len()).flat_map(|row| (0..count(row)).map(move |cell| (row, cell))).collect()
            };
            let places = [of_rows(false), of_rows(true)];
            let mut inputs = Inputs::of(self.each.iter().map(|matrix| matrix.weight));
            let hidden = model.embed(&tokens, &mut NoTap)?;
            model.blocks(hidden, 0..highest + 1, tokens.span(), None, &mut inputs)?;
            for (matrix, sum) in self.each.iter().zip(&mut sums) {
                let keys = inputs.values.remove(&matrix.weight);
                let keys = keys.ok_or_else(|| Error::Input(format!("nothing passes {}", matrix.weight)))?;
                let keys = matrix_of(&cells(keys, &places[usize::from(matrix.weight.reads_encoder())]));
                *sum += keys.transpose() * &keys;
            }
        }
        Ok(sums)
    }

    /// Sees that the keys and gradients of edits fit into memory before any is computed: `tokens` of each edit.
    ///
    /// # Errors
    /// Says how many edits would fit.
    pub fn check_memory(&self, tokens: &[usize]) -> Result<()> {
        let channels: usize = self.each.iter().map(|matrix| self.shapes[matrix.shape].iter().sum::<usize>()).sum();
        let token = BYTES * channels as u64;
        let Some(most) = process::memory_at_hand() else { return Ok(()) };
        let mut used = 0;
        let fit = tokens.iter().take_while(|tokens| {
            used += **tokens as u64 * token;
            used <= most
        });
        let fit = fit.count();
        if fit == tokens.len() {
            return Ok(());
        }
        let all: u64 = tokens.iter().map(|tokens| *tokens as u64 * token).sum();
        // No edit is at fault: none is left out for it.
        Err(Error::Config(format!(
            "{} edits at once take {} of keys and gradients, of {} at hand; {fit} would fit at once",
            tokens.len(),
            size(all),
            size(most)
        )))
    }

    /// The decomposed gradients of requests, all one edit, `at_once` requests a pass.
    ///
    /// # Errors
    /// What the model says of the batch.
    pub fn of_requests(
        &self,
        model: &Edited,
        requests: &[EditRequest],
        of: EditTokens,
        at_once: usize,
    ) -> Result<Vec<Captured>> {
        let tokenizer = &model.base().tokenizer;
        let rows: Vec<Continuation> = requests.iter().map(|request| request.row(tokenizer)).collect::<Result<_>>()?;
        let rows: Vec<&Continuation> = rows.iter().collect();
        self.check_memory(&rows.iter().map(|row| of.of(row)).collect::<Vec<_>>())?;
        let at_once = at_once.min(rows.len()).max(1);
        rows.chunks(at_once).map(|rows| self.capture_rows(model, (rows, &vec![0; rows.len()]), of)).collect()
    }
}

/// Some rows of a batch.
pub fn select_rows(hidden: Tensor<3>, tokens: &Tokens, rows: &[usize]) -> (Tensor<3>, Tokens) {
    let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let index = Tensor::<1, Int>::from_data(index.as_slice(), &hidden.device());
    let chosen = tokens.chosen(rows);
    let [_, _, width] = hidden.dims();
    let cells = chosen.span().width;
    (hidden.select(0, index).slice([0..rows.len(), 0..cells, 0..width]), chosen)
}

/// The rows that predict: each continuation without its last token.
pub fn without_last(rows: &[&Continuation]) -> Tokens {
    Tokens::new(rows.iter().map(|text| text.ids[..text.ids.len() - 1].to_vec()).collect())
        .of(rows.iter().map(|text| text.text()))
}

/// The cells of a gradient `[rows, cells, d_out]` that a loss reaches: another has δ = 0 and changes nothing.
pub fn reached(delta: &Tensor<3>) -> Vec<(usize, usize)> {
    let [_, width, _] = delta.dims();
    let sizes: Vec<f64> = delta.clone().abs().sum_dim(2).into_data().iter::<f64>().collect();
    let reached = (0..sizes.len()).filter(|&cell| sizes[cell] != 0.0);
    reached.map(|cell| (cell / width, cell % width)).collect()
}

/// `⟨G, H⟩` of each owner's two gradients: with `G = Σ uᵀδ` it is the sum of `(u·u')(δ·δ')` over both's tokens.
pub fn products((u, delta, owners): &Factors, (u_other, delta_other, others): &Factors, count: usize) -> Vec<f64> {
    let gram = |one: &Tensor<2>, other: &Tensor<2>| one.clone().matmul(other.clone().transpose());
    let each: Vec<f64> = (gram(u, u_other) * gram(delta, delta_other)).into_data().iter::<f64>().collect();
    let mut sums = vec![0.0; count];
    for (at, product) in each.into_iter().enumerate() {
        let (one, other) = (owners[at / others.len()], others[at % others.len()]);
        if one == other {
            sums[one] += product;
        }
    }
    sums
}

/// Gradients of some owners as deltas of rows: each list's with a factor for each owner, all together.
pub fn record_deltas(matrices: &Matrices, lists: &[(&[Factors], &[Vec<f64>])], owners: usize) -> RecordDeltas {
    let mut deltas = RecordDeltas::default();
    for (slot, at) in matrices.each.iter().enumerate() {
        let scaled: Vec<Factors> = lists.iter().map(|(list, factors)| scaled(&list[slot], &factors[slot])).collect();
        if scaled.is_empty() {
            continue;
        }
        let (u, delta, owner_of) = joined(scaled);
        let [d_in, d_out] = matrices.shapes[at.shape];
        let zero = |width: usize| Tensor::<2>::zeros([1, width], (&u.device(), u.dtype()));
        let (index, rank) = by_owner(&owner_of, owners, 0, owner_of.len());
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &u.device());
        let placed = |tensor: &Tensor<2>, width: usize| -> Tensor<3> {
            Tensor::cat(vec![tensor.clone(), zero(width)], 0).select(0, index.clone()).reshape([owners, rank, width])
        };
        deltas.matrices.insert(at.weight, (placed(&u, d_in).swap_dims(1, 2), placed(&delta, d_out)));
    }
    deltas
}

/// Gradients times a factor for each owner.
pub fn scaled((u, delta, owners): &Factors, factors: &[f64]) -> Factors {
    let each: Vec<f64> = owners.iter().map(|&owner| factors[owner]).collect();
    let each = Tensor::<2>::from_data(TensorData::new(each, [owners.len(), 1]), (&delta.device(), delta.dtype()));
    (u.clone(), delta.clone() * each, owners.clone())
}

/// The sum of gradients, as a longer list.
pub fn joined(lists: Vec<Factors>) -> Factors {
    let owners = lists.iter().flat_map(|(_, _, owners)| owners.iter().copied()).collect();
    let (u, delta): (Vec<_>, Vec<_>) = lists.into_iter().map(|(u, delta, _)| (u, delta)).unzip();
    (Tensor::cat(u, 0), Tensor::cat(delta, 0), owners)
}

/// Where each group's tokens stand: `[groups · rank]` row numbers from `first` on, `zero` where a group has fewer than the rank.
pub(super) fn by_owner(owners: &[usize], groups: usize, first: usize, zero: usize) -> (Vec<i64>, usize) {
    let mut rows = vec![vec![]; groups];
    for (token, &owner) in owners.iter().enumerate() {
        rows[owner].push((first + token) as i64);
    }
    let rank = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let padded = rows.into_iter().flat_map(|mut rows| {
        rows.resize(rank, zero as i64);
        rows
    });
    (padded.collect(), rank)
}
