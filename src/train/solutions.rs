//! The loss of edits whose changes are met by normal equations (MALMEN), on the base or one on the other (RLEdit).

use std::collections::BTreeMap;

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Tensor, TensorData};

use super::edit_loss::{Look, PARTS, RecordTexts, Terms};
use super::gradients;
use super::mend::MendTrainer;
use super::rledit::Compat;
use crate::edit::{PassChange, SharedDeltas};
use crate::error::Result;
use crate::network::matrices::{AT_ONCE, Captured};
use crate::network::mend::{Asked, MendNetwork, Solved};
use crate::parallel;

impl MendTrainer {
    /// Base and network meet in the closed form alone:
    ///
    /// ```text
    /// D = D(φ)    X = solution(D, λ)    ∂L/∂X from passes through the base    ∂L/∂D, ∂L/∂λ in closed form    ∂L/∂φ = ∇ ⟨∂L/∂D, D(φ)⟩
    /// ```
    ///
    /// Each is computed some records at a time, so that memory holds the keys and gradients of all edits, and the graph of a few. In an
    /// episode each edit is made on the model that the last one left, and looks back on those before it ([`super::rledit`]).
    pub(super) fn loss_of_solutions(
        &mut self,
        texts: &[RecordTexts],
        together: usize,
    ) -> Result<(GradientsParams, Terms)> {
        let mut sum = GradientsAccumulator::<MendNetwork>::new();
        let mut terms = Terms::default();
        let edits: Vec<&[RecordTexts]> = texts.chunks(together).collect();
        let mut model = self.loss.base.clone();
        for (number, edit) in edits.iter().enumerate() {
            let whole = Look::at(&model, texts);
            let captured = in_turn(&in_parts(edit), |records| self.capture(&model, &[*records]))?;
            for (captured, records) in captured.iter().zip(in_parts(edit)) {
                self.mend.observe(captured, records.len());
            }
            let solved = self.mend.solved(&captured)?;
            // This edit's records, then the earlier ones it must not undo.
            let mut looked: Vec<(Look<'_>, &[RecordTexts])> =
                in_parts(looked_at(edit)).into_iter().map(|part| (whole, part)).collect();
            if let Some(episode) = &self.episode {
                for age in 1..=episode.back_depth.min(number) {
                    let look = Look { record: whole.record * episode.decay.powi(age as i32), window: None, ..whole };
                    looked.extend(in_parts(looked_at(edits[number - age])).into_iter().map(|part| (look, part)));
                }
            }
            let (mut of_solutions, share) = self.gradients_of_solutions(&solved, &looked)?;
            terms += share;
            // What comes behind a turn that went wrong would be errors, not numbers: the step is skipped for its terms.
            if !(terms.nll + terms.kl + terms.text_kl).is_finite() {
                break;
            }
            if let Some(episode) = &self.episode {
                let share = 1.0 / edits.len() as f64;
                for (solved, gradients) in solved.iter().zip(&mut of_solutions) {
                    let (squares, of_squares) = solved.squares();
                    terms.squares += squares * share;
                    if episode.compat == Compat::Published {
                        continue;
                    }
                    for (gradient, of_squares) in gradients.iter_mut().zip(of_squares) {
                        *gradient = gradient.clone() + of_squares.mul_scalar(episode.shift * share);
                    }
                }
            }
            self.gradient_of_network(&captured, &solved, &of_solutions, &mut sum)?;
            if let Some(clip) = self.clip_of_turns {
                let network = &self.mend.network;
                let (clipped, _) = gradients::clip(sum.grads(), network, clip);
                sum = GradientsAccumulator::new();
                sum.accumulate(network, clipped);
            }
            if self.episode.is_some() {
                let matrices: BTreeMap<_, _> =
                    solved.iter().map(|solved| (solved.weight, solved.change().smaller())).collect();
                model = model.with_change(&PassChange { matrices, ..Default::default() })?;
            }
        }
        Ok((sum.grads(), terms))
    }

    /// The loss's gradients with respect to the parts of each matrix's shift, and what the looks came to.
    fn gradients_of_solutions(
        &self,
        solved: &[Solved],
        looked: &[(Look<'_>, &[RecordTexts])],
    ) -> Result<(Vec<Vec<Tensor<2>>>, Terms)> {
        let shares = in_turn(looked, |(look, records)| {
            let device = self.mend.network.rates.val().device();
            let leaves = |solved: &Solved| solved.parts(&device).into_iter().map(Tensor::require_grad).collect();
            let leaves: Vec<Vec<Tensor<2>>> = solved.iter().map(leaves).collect();
            let shifts = solved.iter().zip(&leaves).map(|(solved, leaves)| (solved.weight, solved.shift(leaves)));
            let share = self.loss.part(*look, &[*records], &mut SharedDeltas(shifts.collect()))?;
            let gradients = share.surrogate.backward();
            let of_leaf = |leaf: &Tensor<2>| leaf.grad(&gradients).unwrap_or_else(|| leaf.clone().inner().zeros_like());
            let of_leaves = leaves.iter().map(|leaves| leaves.iter().map(of_leaf).collect::<Vec<_>>());
            Ok((of_leaves.collect::<Vec<_>>(), share.terms))
        })?;
        let mut terms = Terms::default();
        let mut sum: Vec<Vec<Tensor<2>>> = vec![];
        for (gradients, share) in shares {
            terms += share;
            if sum.is_empty() {
                sum = gradients;
                continue;
            }
            for (sum, more) in sum.iter_mut().flatten().zip(gradients.into_iter().flatten()) {
                *sum = sum.clone() + more;
            }
        }
        Ok((sum, terms))
    }

    /// From ∂L/∂X to the network's gradient.
    fn gradient_of_network(
        &self,
        captured: &[Captured],
        solved: &[Solved],
        of_solutions: &[Vec<Tensor<2>>],
        sum: &mut GradientsAccumulator<MendNetwork>,
    ) -> Result<()> {
        let (of_asked, of_dampings): (Vec<Asked>, Vec<f64>) =
            solved.iter().zip(of_solutions).map(|(solved, gradients)| solved.gradients(gradients)).unzip();
        // Where each part's tokens stand in those of all.
        let mut first = vec![0; of_asked.len()];
        let mut places = vec![];
        for captured in captured {
            let tokens = captured.tokens();
            places.push((captured, first.clone()));
            first.iter_mut().zip(tokens).for_each(|(first, tokens)| *first += tokens);
        }
        let shares = in_turn(&places, |(captured, first)| {
            let mend = self.own();
            let terms = mend.asked(captured).into_iter().flat_map(|(slot, asked)| {
                let towards = |own: Tensor<2>, all: &Tensor<2>| {
                    let [tokens, width] = own.dims();
                    (own * all.clone().slice([first[slot]..first[slot] + tokens, 0..width])).sum()
                };
                let wanted = towards(asked.wanted, &of_asked[slot].wanted);
                let keys = asked.keys.zip(of_asked[slot].keys.as_ref()).map(|(keys, all)| towards(keys, all));
                std::iter::once(wanted).chain(keys)
            });
            let surrogate = terms.reduce(|sum, more| sum + more);
            let gradients = surrogate.map(|sum| GradientsParams::from_grads(sum.backward(), &mend.network));
            Ok(gradients.unwrap_or_default())
        })?;
        shares.into_iter().for_each(|share| sum.accumulate(&self.mend.network, share));
        let mend = self.own();
        if let Some(dampings) = &mend.network.dampings {
            let (device, dtype) = (dampings.val().device().inner(), dampings.val().dtype());
            let towards = Tensor::<1>::from_data(TensorData::new(of_dampings, [solved.len()]), (&device, dtype));
            let surrogate = (dampings.val() * towards).sum();
            sum.accumulate(&self.mend.network, GradientsParams::from_grads(surrogate.backward(), &mend.network));
        }
        Ok(())
    }
}

/// The records of an edit at which the loss looks: its first.
fn looked_at(edit: &[RecordTexts]) -> &[RecordTexts] {
    &edit[..edit.iter().take_while(|texts| texts.looked_at()).count()]
}

/// The records of an edit in parts that fit a pass, at least one a thread.
fn in_parts(edit: &[RecordTexts]) -> Vec<&[RecordTexts]> {
    edit.chunks(AT_ONCE.min(edit.len().div_ceil(PARTS)).max(1)).collect()
}

/// Parts of a batch through `work`, [`PARTS`] at a time, in their order.
fn in_turn<T: Sync, R: Send>(parts: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let mut done = vec![];
    for some in parts.chunks(PARTS) {
        done.extend(parallel::run(some.iter().collect(), &work)?);
    }
    Ok(done)
}
