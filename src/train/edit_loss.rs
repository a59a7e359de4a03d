//! What a model with edits is held to in training (Mitchell et al., 2022, equation 5), whichever editor makes the edits:
//!
//! ```text
//! L = c_edit · −ln p(target | rephrase; W̃) + c_loc · KL(p(· | x_loc; W) ‖ p(· | x_loc; W̃))
//! ```
//!
//! Where `loss.text` names one, a third term keeps running text as it is ([`super::text`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::learned::Watch;
use super::loss::{EditAndLocality, Reads, Weights, check_weights, edit_and_locality};
use super::lower_layers::LowerLayers;
use super::mend::MendLossSettings;
use super::methods::Beginning;
use super::text::{Window, Windows};
use crate::data::record::EditRecord;
use crate::data::source::{Source, draw_locality};
use crate::edit::likelihood::check_targets;
use crate::edit::{Edited, RecordDeltas};
use crate::error::{Error, Result};
use crate::model::tap::{NoTap, Tap};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::network::matrices::select_rows;
use crate::parallel;
use crate::sections::within;

/// Parts of a batch that run side by side, each with running figures and gradients of its own. As many as cores would give other bits
/// on other machines.
pub(super) const PARTS: usize = 2;

/// Records whose texts are tokenised between two looks at whether to go on.
const AT_ONCE: usize = 1024;

/// The loss, with the model that it is about and what is constant of it.
#[derive(Clone)]
pub(super) struct EditLoss {
    /// The model without any edit.
    pub base: Edited,
    /// The lowest layer that is edited: what is below is constant.
    lowest: usize,
    pub lower_layers: LowerLayers,
    pub settings: MendLossSettings,
    /// What its terms weigh: as `settings` say, unless an editor learns that.
    pub weights: Weights,
    /// The windows of `loss.text`.
    pub text: Option<Windows>,
}

impl EditLoss {
    /// Of edits from a layer of `base` on.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(base: Edited, lowest: usize, settings: MendLossSettings) -> Result<Self> {
        if settings.rephrases.in_scope == 0 || !(settings.edit >= 0.0 && settings.locality >= 0.0) {
            let message = "loss.in_scope must be at least 1, loss.edit and loss.locality at least 0";
            return Err(Error::Config(message.into()));
        }
        check_weights(&settings.near.mix)?;
        within("loss.out_of_scope", settings.out_of_scope as f64, 0.0, 1e4)?;
        within("loss.in_scope", settings.rephrases.in_scope as f64, 1.0, 1e4)?;
        // All graphs of a training lie over these layers.
        let base = base.in_memory_from(lowest);
        let lower_layers = LowerLayers::new(base.clone(), lowest);
        let weights = Weights { edit: settings.edit, locality: settings.locality, smoothing: 0.0 };
        Ok(EditLoss { base, lowest, lower_layers, settings, weights, text: None })
    }

    /// The same with the windows of `loss.text`.
    ///
    /// # Errors
    /// As [`Windows::open`].
    pub fn reading(self, beginning: &Beginning<'_>) -> Result<Self> {
        let open = |settings| Windows::open(settings, self.base.base(), beginning.folder, beginning.settings.seed);
        let text = self.settings.text.as_ref().map(open).transpose()?.flatten();
        Ok(EditLoss { text, ..self })
    }

    /// The texts that it stands on, with their fingerprints.
    pub fn made_of(&self) -> BTreeMap<String, String> {
        self.text.iter().map(|text| ("loss.text".to_owned(), text.fingerprint())).collect()
    }

    /// Does once what is constant in a training of `draws` records: `memory` GB of hidden states below the edits are kept.
    ///
    /// # Errors
    /// A record that cannot be tokenised, an interruption.
    pub fn prepare(&mut self, source: &Source, draws: u64, memory: f64, watch: Watch<'_>) -> Result<()> {
        if memory == 0.0 {
            return Ok(());
        }
        // Texts that are met once are not worth keeping; those of a world are drawn anew each time.
        let records = match source {
            Source::Records(records) if draws > source.len() as u64 => records.all(),
            _ => &[],
        };
        let (tokenizer, settings) = (&self.base.base().tokenizer, &self.settings);
        let threads = parallel::parts(&self.base.base().decoder.device());
        let mut texts: BTreeSet<Vec<u32>> = self.text.iter().flat_map(|text| text.all.iter().cloned()).collect();
        let mut done = 0;
        for some in records.chunks(AT_ONCE) {
            let parts = some.chunks(some.len().div_ceil(threads)).collect();
            let tokenised = parallel::run(parts, |records: &[EditRecord]| {
                records.iter().map(|record| settings.all_texts(tokenizer, record)).collect::<Result<Vec<_>>>()
            })?;
            texts.extend(tokenised.into_iter().flatten().flatten());
            done += some.len();
            if !watch(done, records.len()) {
                let message = " while texts were prepared; the same command begins with them again";
                return Err(Error::Interrupted(message.into()));
            }
        }
        if !texts.is_empty() {
            self.lower_layers.keep(texts, memory * 1e9);
        }
        Ok(())
    }

    /// What became of the hidden states that were kept.
    pub fn note(&self) -> Option<String> {
        let counts = self.lower_layers.counts().filter(|counts| counts.asked > 0)?;
        Some(format!(
            "hidden states below the edits: {:.1} % of {} texts were found kept; {:.2} GB are in use, {} passes were dropped for want \
             of train.hidden_memory_gb",
            100.0 * counts.found as f64 / counts.asked as f64,
            counts.asked,
            counts.bytes as f64 / 1e9,
            counts.dropped
        ))
    }

    /// At how many of a step's records the loss looks: at the first of them. Records are drawn, so any are as good.
    pub fn looked_at(&self, records: usize) -> usize {
        self.settings.looked_at.unwrap_or(records).min(records)
    }

    /// What is read of a step's records, `looked_at` of which the loss looks at, with the hidden states below made ready; edits of `together` records at none of which it
    /// looks add nothing to it and are left out.
    ///
    /// # Errors
    /// A record that the model cannot take.
    pub fn drawn(
        &self,
        records: &[EditRecord],
        looked_at: impl Fn(usize) -> bool,
        together: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<RecordTexts>> {
        let texts = records.iter().enumerate().map(|(number, record)| self.texts(record, looked_at(number), rng));
        let mut texts = texts.collect::<Result<Vec<_>>>()?;
        let last = texts.iter().rposition(RecordTexts::looked_at).unwrap_or(0);
        texts.truncate((last / together + 1) * together);
        if let Some(text) = &self.text {
            let looked_at: Vec<&mut RecordTexts> = texts.iter_mut().filter(|texts| texts.looked_at()).collect();
            let drawn = text.draw(looked_at.len(), rng);
            looked_at.into_iter().zip(drawn).for_each(|(texts, windows)| texts.windows = windows);
        }
        self.lower_layers.prepare(texts.iter().flat_map(RecordTexts::rows))?;
        Ok(texts)
    }

    /// The texts that a record is trained on in a step; nothing but its own edit where it is not looked at.
    fn texts(&self, record: &EditRecord, looked_at: bool, rng: &mut ChaCha8Rng) -> Result<RecordTexts> {
        let tokenizer = &self.base.base().tokenizer;
        let between = record.separator.as_deref();
        let edit = tokenizer.continuation(&record.prompt, &record.target_new, between)?;
        if !looked_at {
            return Ok(RecordTexts { edit, in_scope: vec![], out_of_scope: vec![], windows: vec![] });
        }
        let mut pool = self.settings.in_scope(record);
        let in_scope = (0..self.settings.rephrases.in_scope.min(pool.len())).map(|_| {
            let prompt = pool.swap_remove(rng.random_range(0..pool.len()));
            tokenizer.continuation(prompt, &record.target_new, between)
        });
        let in_scope = in_scope.collect::<Result<Vec<_>>>()?;
        for text in &in_scope {
            check_targets(&self.base, text.target())?;
        }
        let near = draw_locality(record, self.settings.near(), |class| self.settings.weight(class), rng);
        Ok(RecordTexts {
            edit,
            in_scope,
            out_of_scope: near
                .into_iter()
                .map(|probe| self.settings.out_of_scope(tokenizer, probe, between))
                .collect::<Result<_>>()?,
            windows: vec![],
        })
    }

    /// What some edits add to a step's loss. `tap` is what changes the model: the rows of an edit bear its number.
    pub fn part(&self, look: Look<'_>, edits: &[&[RecordTexts]], tap: &mut dyn Tap) -> Result<Share> {
        let facts = self.facts(look, edits, tap)?;
        let (surrogate, text_kl) = match self.running_text(look, edits, tap)? {
            Some(text) => (facts.surrogate + text.surrogate, text.kl),
            None => (facts.surrogate, 0.0),
        };
        Ok(Share { surrogate, terms: Terms { nll: facts.nll, kl: facts.kl, text_kl, squares: 0.0 } })
    }

    /// The part of running text, held against the model without any edit. Windows are read apart from the prompts, which are much shorter.
    pub fn running_text(
        &self,
        look: Look<'_>,
        edits: &[&[RecordTexts]],
        tap: &mut dyn Tap,
    ) -> Result<Option<EditAndLocality>> {
        let (Some(text), Some(share)) = (&self.text, look.window) else { return Ok(None) };
        let windows =
            of_owners(edits).flat_map(|(owner, texts)| texts.windows.iter().map(move |window| (owner, window)));
        let windows = windows.map(|(owner, window)| (owner, window, share / window.1.len() as f64));
        self.kept(look.model, windows, text.settings.weight, tap)
    }

    /// What the model of a look says out of scope, held against the model without any edit with this weight.
    pub fn drift(
        &self,
        look: Look<'_>,
        edits: &[&[RecordTexts]],
        weight: f64,
        tap: &mut dyn Tap,
    ) -> Result<Option<EditAndLocality>> {
        let near = of_owners(edits).flat_map(|(owner, texts)| {
            let cells: usize = texts.out_of_scope.iter().map(|(_, cells)| cells.len()).sum();
            texts.out_of_scope.iter().map(move |text| (owner, text, look.record / cells as f64))
        });
        self.kept(look.model, near, weight, tap)
    }

    /// Texts of owners, each with what its reads count, held against the model without any edit.
    fn kept<'t>(
        &self,
        model: &Edited,
        texts: impl Iterator<Item = (usize, &'t Window, f64)>,
        weight: f64,
        tap: &mut dyn Tap,
    ) -> Result<Option<EditAndLocality>> {
        let (mut rows, mut places, mut reads) = (vec![], vec![], Reads::default());
        for (owner, (ids, cells), share) in texts {
            reads.cells.extend(cells.iter().map(|&cell| (rows.len(), cell)));
            reads.weights.extend(cells.iter().map(|_| share));
            rows.push(ids.clone());
            places.push((owner, 0));
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let tokens = Tokens::placed(rows, places);
        let hidden = self.lower_layers.hidden(&tokens)?;
        let above = self.lowest..self.base.layers();
        let base = self.base.blocks(hidden.clone(), above.clone(), tokens.span(), None, &mut NoTap)?;
        let base = self.base.head(base, &reads.cells);
        let edited = model.blocks(hidden, above, tokens.span(), None, tap)?;
        let weights = Weights { locality: weight, ..Weights::default() };
        let loss = model.head_with_gradient(edited, &reads.cells, |logits| {
            Ok(edit_and_locality(logits, (&[], &[]), Some(base), &reads.weights, weights))
        })?;
        Ok(Some(loss.into()))
    }

    /// The part of the records' own texts, in scope and out of it.
    pub fn facts(&self, look: Look<'_>, edits: &[&[RecordTexts]], tap: &mut dyn Tap) -> Result<EditAndLocality> {
        let Look { model, record: share, .. } = look;
        // In-scope and out-of-scope rows of each edit stand together, so that its factors serve them in one product.
        let (mut rows, mut places) = (vec![], vec![]);
        let (mut scope, mut near) = (Reads::default(), Reads::default());
        let (mut targets, mut near_rows) = (vec![], vec![]);
        for (owner, texts) in of_owners(edits) {
            for text in &texts.in_scope {
                let weight = share / (texts.in_scope.len() * text.target().len()) as f64;
                scope.cells.extend(text.reads().map(|cell| (rows.len(), cell)));
                scope.weights.extend(text.target().iter().map(|_| weight));
                targets.extend(text.target());
                rows.push(read(text).to_vec());
                places.push((owner, 0));
            }
            let cells: usize = texts.out_of_scope.iter().map(|(_, cells)| cells.len()).sum();
            for (ids, cells_read) in &texts.out_of_scope {
                near.cells.extend(cells_read.iter().map(|&cell| (rows.len(), cell)));
                near.weights.extend(cells_read.iter().map(|_| share / cells as f64));
                near_rows.push(rows.len());
                rows.push(ids.clone());
                places.push((owner, 0));
            }
        }
        let tokens = Tokens::placed(rows, places);
        let hidden = self.lower_layers.hidden(&tokens)?;
        let above = self.lowest..self.base.layers();

        let edited = model.blocks(hidden.clone(), above.clone(), tokens.span(), None, tap)?;
        let reads: Vec<_> = scope.cells.iter().chain(&near.cells).copied().collect();
        let base = match near_rows.is_empty() {
            true => None,
            false => {
                let (base_hidden, base_span) = select_rows(hidden, &tokens, &near_rows);
                let base = model.blocks(base_hidden, above, base_span.span(), None, &mut NoTap)?;
                let row_of = |row: usize| near_rows.iter().position(|&near| near == row).unwrap_or(0);
                let cells: Vec<_> = near.cells.iter().map(|&(row, cell)| (row_of(row), cell)).collect();
                Some(model.head(base, &cells))
            }
        };
        let loss = model.head_with_gradient(edited, &reads, |logits| {
            Ok(edit_and_locality(logits, (&targets, &scope.weights), base, &near.weights, self.weights))
        })?;
        Ok(loss.into())
    }

    /// The loss's gradient with respect to a network that makes the deltas of each edit, `W̃ = W + ΔW(φ)`: what `deltas` makes of what was seen of a part's edits lies in one
    /// graph with the pass through the edited layers. What was seen is a constant, so that no second derivative is needed.
    pub fn through_deltas<N: Module + Sync, S: Send>(
        &self,
        network: &N,
        device: &Device,
        look: Look<'_>,
        seen: Vec<(&[&[RecordTexts]], S)>,
        deltas: impl Fn(&N, &S, &[&[RecordTexts]]) -> RecordDeltas + Sync,
    ) -> Result<(GradientsParams, Terms)> {
        // Graphs that share a leaf share a tape, and the first backward pass consumes it.
        let parts = seen.into_iter().map(|(part, seen)| (network.clone().fork(device), part, seen)).collect();
        let shares = parallel::run(parts, |(network, part, seen)| {
            let Share { surrogate, terms } = self.part(look, part, &mut deltas(&network, &seen, part))?;
            Ok((GradientsParams::from_grads(surrogate.backward(), &network), terms))
        })?;
        let mut sum = GradientsAccumulator::<N>::new();
        let mut terms = Terms::default();
        for (gradients, share) in shares {
            sum.accumulate(network, gradients);
            terms += share;
        }
        Ok((sum.grads(), terms))
    }

    /// Named figures of a step: the loss itself, and its terms.
    pub fn figures(&self, terms: &Terms) -> Vec<(&'static str, f64)> {
        let mut total = self.weights.edit * terms.nll + self.weights.locality * terms.kl;
        let mut parts = vec![("edit_nll", terms.nll), ("locality_kl", terms.kl)];
        if let Some(text) = &self.text {
            total += text.settings.weight * terms.text_kl;
            parts.push(("text_kl", terms.text_kl));
        }
        std::iter::once(("loss", total)).chain(parts).collect()
    }
}

/// What a step's loss is made of, before weights.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Terms {
    /// NLL in scope.
    pub nll: f64,
    /// KL out of it.
    pub kl: f64,
    /// KL on running text.
    pub text_kl: f64,
    /// Squared norm of the shifts.
    pub squares: f64,
}

impl AddAssign for Terms {
    fn add_assign(&mut self, more: Terms) {
        self.nll += more.nll;
        self.kl += more.kl;
        self.text_kl += more.text_kl;
        self.squares += more.squares;
    }
}

/// What a part of a step adds to its loss: a tensor with its gradient, and its terms.
pub(super) struct Share {
    pub surrogate: Tensor<1>,
    pub terms: Terms,
}

impl<'a> Look<'a> {
    /// How the records of a step are looked at where each counts alike.
    pub fn at(model: &'a Edited, step: &[RecordTexts]) -> Self {
        let windows: usize = step.iter().map(|texts| texts.windows.len()).sum();
        let records = step.iter().filter(|texts| texts.looked_at()).count();
        Look { model, record: 1.0 / records as f64, window: (windows > 0).then(|| 1.0 / windows as f64) }
    }
}

/// How edits are looked at.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    /// The model that they change.
    pub model: &'a Edited,
    /// What a record counts in the loss.
    pub record: f64,
    /// What a window counts; nothing where none is read.
    pub window: Option<f64>,
}

/// The texts that a record is trained on in a step.
pub(super) struct RecordTexts {
    pub edit: Continuation,
    in_scope: Vec<Continuation>,
    /// Each with the cells at which the KL term reads.
    out_of_scope: Vec<(Vec<u32>, Vec<usize>)>,
    /// Running text that is read with the record's edit.
    pub(super) windows: Vec<Window>,
}

impl RecordTexts {
    /// Whether the loss looks at it; every record has a text in scope.
    pub(super) fn looked_at(&self) -> bool {
        !self.in_scope.is_empty()
    }

    /// The rows that the model reads.
    fn rows(&self) -> impl Iterator<Item = &[u32]> {
        let own = std::iter::once(&self.edit).chain(&self.in_scope).map(read);
        own.chain(self.out_of_scope.iter().chain(&self.windows).map(|(ids, _)| ids.as_slice()))
    }
}

/// The edits of a step in the parts that run side by side.
pub(super) fn side_by_side<'e, 't>(edits: &'e [&'t [RecordTexts]]) -> Vec<&'e [&'t [RecordTexts]]> {
    edits.chunks(edits.len().div_ceil(PARTS).max(1)).collect()
}

/// The records of some edits, each with the number of its edit.
fn of_owners<'t>(edits: &[&'t [RecordTexts]]) -> impl Iterator<Item = (usize, &'t RecordTexts)> {
    edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |texts| (owner, texts)))
}

/// A continuation without its last token, which is predicted, never read.
fn read(text: &Continuation) -> &[u32] {
    &text.ids[..text.ids.len() - 1]
}
