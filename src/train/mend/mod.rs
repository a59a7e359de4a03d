//! The loss that trains MEND (Mitchell et al., 2022, equation 5):
//!
//! ```text
//! L = c_edit · −ln p(target | rephrase; W̃) + c_loc · KL(p(· | x_loc; W) ‖ p(· | x_loc; W̃)),   W̃ = W − α ũᵀδ̃
//! ```
//!
//! Where `loss.text` names one, a third term keeps running text as it is ([`super::text`]).
//!
//! u and δ are constants of the outer loop, so one backward pass through the edited layers, with the deltas as factors
//! `(x·A)·B`, gives the network's gradient exactly; no second derivative is needed.

mod held;
mod settings;

pub(in crate::train) use held::held;
pub use settings::{KlTokens, MendLossSettings, MendTrainSettings, Near, Rephrases, Scope};

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::archive::LearnedEditorSettings;
use crate::data::record::EditRecord;
use crate::data::source::{Source, draw_locality};
use crate::edit::likelihood::check_targets;
use crate::edit::{Edit, EditRequest, Edited, Editor};
use crate::error::{Error, Result};
use crate::model::tap::{NoTap, Tap};
use crate::model::tokenizer::Continuation;
use crate::model::tokens::Tokens;
use crate::network::matrices::{Captured, select_rows, without_last};
use crate::network::mend::{Aggregation, Mend, MendNetwork, MendSettings, Ridge};
use crate::network::parameters;
use crate::parallel;
use crate::plan::Held;
use crate::sections::choice::fields;
use crate::sections::within;
use crate::train::learned::{Group, LearnedEditor, StepLoss, Watch};
use crate::train::loss::{EditAndLocality, Reads, check_classes, check_weights, edit_and_locality};
use crate::train::lower_layers::LowerLayers;
use crate::train::methods::{self, Beginning, Planned, Sections};
use crate::train::rledit::{Compat, Episode};
use crate::train::settings::Together;
use crate::train::text::{Window, Windows};

/// What a config says of MEND.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: MendSettings,
    /// `[loss]`
    pub loss: MendLossSettings,
    /// Its own keys of `[train]`.
    pub train: MendTrainSettings,
}

impl methods::Training for Training {
    type Editor = MendTrainer;

    fn own_keys() -> &'static [&'static str] {
        fields::<MendTrainSettings>()
    }

    fn read(sections: &Sections<'_>) -> Result<Self> {
        Ok(Training {
            editor: MendSettings::read(sections.editor, sections.origin)?,
            loss: MendLossSettings::read(sections.loss, sections.origin)?,
            train: MendTrainSettings::read(sections.train, sections.origin)?,
        })
    }

    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        held::held(&self.editor, &self.loss, &self.train, planned)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<MendTrainer> {
        let Beginning { base, settings, place, .. } = beginning;
        let mend = Mend::new(self.editor.clone(), &base.base().decoder.spec, *place)?;
        let (loss, own) = (self.loss.clone(), self.train.clone());
        MendTrainer::new(mend, (*base).clone(), loss, settings.edits_together, settings.learning_rate, own)?
            .reading(beginning)
    }
}

/// MEND with what it learns from.
#[derive(Clone)]
pub struct MendTrainer {
    pub(in crate::train) mend: Mend,
    /// What an archive of it has as its settings.
    settings: LearnedEditorSettings,
    pub(in crate::train) base: Edited,
    lower_layers: LowerLayers,
    loss: MendLossSettings,
    /// The windows of `loss.text`.
    text: Option<Windows>,
    /// Records whose edits are applied together.
    together: Together,
    /// Where edits follow each other: how a step looks back.
    pub(in crate::train) episode: Option<Episode>,
    /// The norm to which the running sum of an episode's gradients is clipped after each turn, where that is done at all.
    pub(in crate::train) clip_of_turns: Option<f64>,
    learning_rate: f64,
    own: MendTrainSettings,
}

/// Parts of a batch that run side by side, each with running figures and gradients of its own. As many as cores would give other bits
/// on other machines.
pub(in crate::train) const PARTS: usize = 2;

/// Records whose texts are tokenised between two looks at whether to go on.
const AT_ONCE: usize = 1024;

impl MendTrainer {
    /// A trainer of `mend` on `base`.
    ///
    /// # Errors
    /// Numbers out of range.
    pub fn new(
        mut mend: Mend,
        base: Edited,
        loss: MendLossSettings,
        together: impl Into<Together>,
        learning_rate: f64,
        own: MendTrainSettings,
    ) -> Result<Self> {
        let together = together.into();
        if loss.rephrases.in_scope == 0 || together.fewest == 0 || !(loss.edit >= 0.0 && loss.locality >= 0.0) {
            let message =
                "loss.in_scope and train.edits_together must be at least 1, loss.edit and loss.locality at least 0";
            return Err(Error::Config(message.into()));
        }
        check_weights(&loss.near.mix)?;
        within("loss.out_of_scope", loss.out_of_scope as f64, 0.0, 1e4)?;
        within("loss.in_scope", loss.rephrases.in_scope as f64, 1.0, 1e4)?;
        own.check()?;
        mend.network = parameters::with_stable_ids(mend.network);
        // All graphs of a training lie over these layers.
        let base = base.in_memory_from(mend.lowest_layer());
        let lower_layers = LowerLayers::new(base.clone(), mend.lowest_layer());
        let settings = LearnedEditorSettings::Mend(mend.settings.clone());
        Ok(MendTrainer {
            mend,
            settings,
            base,
            lower_layers,
            loss,
            text: None,
            together,
            episode: None,
            clip_of_turns: None,
            learning_rate,
            own,
        })
    }

    /// The same with the windows of `loss.text`.
    ///
    /// # Errors
    /// As [`Windows::open`].
    pub fn reading(self, beginning: &Beginning<'_>) -> Result<Self> {
        let open = |settings| Windows::open(settings, self.base.base(), beginning.folder, beginning.settings.seed);
        let text = self.loss.text.as_ref().map(open).transpose()?.flatten();
        if text.is_none() && self.mend.settings.normal.ridge == Ridge::Text {
            let message =
                "editor.ridge = \"text\" is made of loss.text, which must be there with a weight and a share above 0";
            return Err(Error::Config(message.into()));
        }
        Ok(MendTrainer { text, ..self })
    }

    /// The same under another method's settings in archives.
    pub fn archived_as(self, settings: LearnedEditorSettings) -> Self {
        MendTrainer { settings, ..self }
    }

    /// The same on edits that follow each other, in episodes; `clip` is the training's.
    pub fn in_episodes(self, episode: Episode, clip: f64) -> Self {
        let clip_of_turns = (episode.compat == Compat::Published).then_some(clip);
        MendTrainer { episode: Some(episode), clip_of_turns, ..self }
    }

    /// The editor.
    pub fn mend(&self) -> &Mend {
        &self.mend
    }

    /// The records of a step at which the loss looks: its first; in an episode as many of each turn. Records are drawn, so any are as good.
    fn looked_at(&self, records: usize, together: usize) -> Vec<bool> {
        let most = self.loss.looked_at.unwrap_or(records);
        let turns = records.div_ceil(together);
        let looked_at = |number: usize| match self.episode {
            Some(_) => number % together < most.div_ceil(turns),
            None => number < most,
        };
        (0..records).map(looked_at).collect()
    }

    /// The texts that a record is trained on in a step; nothing but its own edit where it is not looked at.
    fn texts(&self, record: &EditRecord, looked_at: bool, rng: &mut ChaCha8Rng) -> Result<RecordTexts> {
        let tokenizer = &self.base.base().tokenizer;
        let between = record.separator.as_deref();
        let edit = tokenizer.continuation(&record.prompt, &record.target_new, between)?;
        if !looked_at {
            return Ok(RecordTexts { edit, in_scope: vec![], out_of_scope: vec![], windows: vec![] });
        }
        let mut pool = self.loss.in_scope(record);
        let in_scope = (0..self.loss.rephrases.in_scope.min(pool.len())).map(|_| {
            let prompt = pool.swap_remove(rng.random_range(0..pool.len()));
            tokenizer.continuation(prompt, &record.target_new, between)
        });
        let in_scope = in_scope.collect::<Result<Vec<_>>>()?;
        for text in &in_scope {
            check_targets(&self.base, text.target())?;
        }
        let near = draw_locality(record, self.loss.near(), |class| self.loss.weight(class), rng);
        Ok(RecordTexts {
            edit,
            in_scope,
            out_of_scope: near
                .into_iter()
                .map(|probe| self.loss.out_of_scope(tokenizer, probe, between))
                .collect::<Result<_>>()?,
            windows: vec![],
        })
    }

    /// How many tokens of a record's own edit are looked at.
    fn edit_tokens(&self, record: &EditRecord) -> Result<usize> {
        let edit = EditRequest::from(record).row(&self.base.base().tokenizer)?;
        Ok(self.mend.settings.edit_tokens.of(&edit))
    }

    /// The edits' own gradients, on the model as it is.
    pub(in crate::train) fn capture(&self, model: &Edited, edits: &[&[RecordTexts]]) -> Result<Captured> {
        let rows: Vec<&Continuation> = edits.iter().flat_map(|edit| edit.iter().map(|texts| &texts.edit)).collect();
        let owners: Vec<usize> =
            edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |_| owner)).collect();
        let tokens = without_last(&rows);
        self.mend.capture(model, self.lower_layers.hidden(&tokens)?, &tokens, &rows, &owners)
    }

    /// What some edits add to a step's loss. `tap` is what changes the model: the rows of an edit bear its number.
    pub(in crate::train) fn part(&self, look: Look<'_>, edits: &[&[RecordTexts]], tap: &mut dyn Tap) -> Result<Share> {
        let facts = self.facts(look, edits, tap)?;
        let (surrogate, text_kl) = match self.running_text(look, edits, tap)? {
            Some(text) => (facts.surrogate + text.surrogate, text.kl),
            None => (facts.surrogate, 0.0),
        };
        Ok(Share { surrogate, terms: Terms { nll: facts.nll, kl: facts.kl, text_kl, squares: 0.0 } })
    }

    /// The part of running text, held against the model without any edit. Windows are read apart from the prompts, which are much shorter.
    fn running_text(
        &self,
        look: Look<'_>,
        edits: &[&[RecordTexts]],
        tap: &mut dyn Tap,
    ) -> Result<Option<EditAndLocality>> {
        let (Some(text), Some(share)) = (&self.text, look.window) else { return Ok(None) };
        let (mut rows, mut places, mut reads) = (vec![], vec![], Reads::default());
        for (owner, texts) in edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |t| (owner, t))) {
            for (ids, cells) in &texts.windows {
                reads.cells.extend(cells.iter().map(|&cell| (rows.len(), cell)));
                reads.weights.extend(cells.iter().map(|_| share / cells.len() as f64));
                rows.push(ids.clone());
                places.push((owner, 0));
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let tokens = Tokens::placed(rows, places);
        let hidden = self.lower_layers.hidden(&tokens)?;
        let above = self.mend.lowest_layer()..self.base.layers();
        let base = self.base.blocks(hidden.clone(), above.clone(), tokens.span(), None, &mut NoTap)?;
        let base = self.base.head(base, &reads.cells);
        let edited = look.model.blocks(hidden, above, tokens.span(), None, tap)?;
        let weights = (0.0, text.settings.weight);
        let loss = look.model.head_with_gradient(edited, &reads.cells, |logits| {
            Ok(edit_and_locality(logits, (&[], &[]), Some(base), &reads.weights, weights))
        })?;
        Ok(Some(loss.into()))
    }

    /// The part of the records' own texts, in scope and out of it.
    fn facts(&self, look: Look<'_>, edits: &[&[RecordTexts]], tap: &mut dyn Tap) -> Result<EditAndLocality> {
        let Look { model, record: share, .. } = look;
        // In-scope and out-of-scope rows of each edit stand together, so that its factors serve them in one product.
        let (mut rows, mut places) = (vec![], vec![]);
        let (mut scope, mut near) = (Reads::default(), Reads::default());
        let (mut targets, mut near_rows) = (vec![], vec![]);
        for (owner, texts) in edits.iter().enumerate().flat_map(|(owner, edit)| edit.iter().map(move |t| (owner, t))) {
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
        let above = self.mend.lowest_layer()..self.base.layers();

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
        let weights = (self.loss.edit, self.loss.locality);
        let loss = model.head_with_gradient(edited, &reads, |logits| {
            Ok(edit_and_locality(logits, (&targets, &scope.weights), base, &near.weights, weights))
        })?;
        Ok(loss.into())
    }

    /// The loss of edits whose changes are sums: one pass through the edited layers, with the network below it in one graph.
    fn loss_of_sums(&mut self, texts: &[RecordTexts], together: usize) -> Result<(GradientsParams, Terms)> {
        let base = self.base.clone();
        let look = Look::at(&base, texts);
        // Edits that are applied together stay together.
        let edits: Vec<&[RecordTexts]> = texts.chunks(together).collect();
        let parts: Vec<&[&[RecordTexts]]> = edits.chunks(edits.len().div_ceil(PARTS).max(1)).collect();
        let captured = parallel::run(parts.clone(), |part| self.capture(look.model, part))?;
        for (captured, part) in captured.iter().zip(&parts) {
            self.mend.observe(captured, part.iter().map(|edit| edit.len()).sum());
        }
        let parts = parts.into_iter().zip(captured).map(|(part, captured)| (self.own(), part, captured)).collect();
        let shares = parallel::run(parts, |(mend, part, captured)| {
            let Share { surrogate, terms } = self.part(look, part, &mut mend.deltas(&captured, part.len()))?;
            Ok((GradientsParams::from_grads(surrogate.backward(), &mend.network), terms))
        })?;
        let mut sum = GradientsAccumulator::<MendNetwork>::new();
        let mut terms = Terms::default();
        for (gradients, share) in shares {
            sum.accumulate(&self.mend.network, gradients);
            terms += share;
        }
        Ok((sum.grads(), terms))
    }

    /// The editor with leaves of its own. Graphs that share a leaf share a tape, and the first backward pass consumes it.
    pub(in crate::train) fn own(&self) -> Mend {
        let mut mend = self.mend.clone();
        mend.network = mend.network.clone().fork(&mend.network.rates.val().device());
        mend
    }
}

/// What a step's loss is made of, before weights.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::train) struct Terms {
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
pub(in crate::train) struct Share {
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
pub(in crate::train) struct Look<'a> {
    /// The model that they change.
    pub model: &'a Edited,
    /// What a record counts in the loss.
    pub record: f64,
    /// What a window counts; nothing where none is read.
    pub window: Option<f64>,
}

/// The texts that a record is trained on in a step.
pub(in crate::train) struct RecordTexts {
    edit: Continuation,
    in_scope: Vec<Continuation>,
    /// Each with the cells at which the KL term reads.
    out_of_scope: Vec<(Vec<u32>, Vec<usize>)>,
    /// Running text that is read with the record's edit.
    pub(in crate::train) windows: Vec<Window>,
}

impl RecordTexts {
    /// Whether the loss looks at it; every record has a text in scope.
    pub(in crate::train) fn looked_at(&self) -> bool {
        !self.in_scope.is_empty()
    }

    /// The rows that the model reads.
    fn rows(&self) -> impl Iterator<Item = &[u32]> {
        let own = std::iter::once(&self.edit).chain(&self.in_scope).map(read);
        own.chain(self.out_of_scope.iter().chain(&self.windows).map(|(ids, _)| ids.as_slice()))
    }
}

/// A continuation without its last token, which is predicted, never read.
fn read(text: &Continuation) -> &[u32] {
    &text.ids[..text.ids.len() - 1]
}

impl LearnedEditor for MendTrainer {
    type Network = MendNetwork;

    fn network(&self) -> &MendNetwork {
        &self.mend.network
    }

    fn set_network(&mut self, network: MendNetwork) {
        self.mend.network = network;
    }

    fn groups(&self) -> Vec<Group> {
        vec![
            Group {
                name: "edit rates",
                learning_rate: self.own.edit_rate_learning_rate,
                decays: false,
                norm: "gradient_norm",
                takes: |path| path == "rates" || path == "dampings",
            },
            Group {
                name: "network",
                learning_rate: self.learning_rate,
                decays: true,
                norm: "gradient_norm",
                takes: |_| true,
            },
        ]
    }

    fn made_of(&self) -> BTreeMap<String, String> {
        self.text.iter().map(|text| ("loss.text".to_owned(), text.fingerprint())).collect()
    }

    fn prepare(&mut self, source: &Source, draws: u64, watch: Watch<'_>) -> Result<()> {
        check_classes(&self.loss.near.mix, source)?;
        if self.mend.settings.aggregation == Aggregation::NormalEquations {
            let together = source.draws(0, 0, self.together.most, 0);
            let tokens = together.iter().map(|record| self.edit_tokens(record)).collect::<Result<Vec<_>>>()?;
            self.mend.check_memory(&tokens)?;
        }
        if let Some(text) = &self.text {
            self.mend.learn_moments(&self.base, &text.all)?;
        }
        if self.own.hidden_memory_gb == 0.0 {
            return Ok(());
        }
        // Texts that are met once are not worth keeping; those of a world are drawn anew each time.
        let records = match source {
            Source::Records(records) if draws > source.len() as u64 => records.all(),
            _ => &[],
        };
        let (tokenizer, loss) = (&self.base.base().tokenizer, &self.loss);
        let threads = parallel::parts(&self.base.base().decoder.device());
        let mut texts: BTreeSet<Vec<u32>> = self.text.iter().flat_map(|text| text.all.iter().cloned()).collect();
        let mut done = 0;
        for some in records.chunks(AT_ONCE) {
            let parts = some.chunks(some.len().div_ceil(threads)).collect();
            let tokenised = parallel::run(parts, |records: &[EditRecord]| {
                records.iter().map(|record| loss.all_texts(tokenizer, record)).collect::<Result<Vec<_>>>()
            })?;
            texts.extend(tokenised.into_iter().flatten().flatten());
            done += some.len();
            if !watch(done, records.len()) {
                let message = " while texts were prepared; the same command begins with them again";
                return Err(Error::Interrupted(message.into()));
            }
        }
        if !texts.is_empty() {
            self.lower_layers.keep(texts, self.own.hidden_memory_gb * 1e9);
        }
        Ok(())
    }

    fn note(&self) -> Option<String> {
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

    fn loss(&mut self, records: &[EditRecord], rng: &mut ChaCha8Rng) -> Result<StepLoss> {
        let together = self.together.draw(rng);
        let looked_at = self.looked_at(records.len(), together);
        let texts = records.iter().zip(looked_at).map(|(record, looked_at)| self.texts(record, looked_at, rng));
        let mut texts = texts.collect::<Result<Vec<_>>>()?;
        // Edits at none of which the loss looks add nothing to it.
        let last = texts.iter().rposition(RecordTexts::looked_at).unwrap_or(0);
        texts.truncate((last / together + 1) * together);
        if let Some(text) = &self.text {
            let looked_at: Vec<&mut RecordTexts> = texts.iter_mut().filter(|texts| texts.looked_at()).collect();
            let drawn = text.draw(looked_at.len(), rng);
            looked_at.into_iter().zip(drawn).for_each(|(texts, windows)| texts.windows = windows);
        }
        self.lower_layers.prepare(texts.iter().flat_map(RecordTexts::rows))?;
        let (gradients, Terms { nll, kl, text_kl, squares }) = match self.mend.settings.aggregation {
            Aggregation::Sum => self.loss_of_sums(&texts, together)?,
            Aggregation::NormalEquations => self.loss_of_solutions(&texts, together)?,
        };
        let mut total = self.loss.edit * nll + self.loss.locality * kl;
        let mut parts = vec![("edit_nll", nll), ("locality_kl", kl)];
        if let Some(text) = &self.text {
            total += text.settings.weight * text_kl;
            parts.push(("text_kl", text_kl));
        }
        if let Some(episode) = &self.episode {
            total += episode.shift * squares;
            parts.push(("shift_squares", squares));
        }
        Ok(StepLoss { gradients, figures: std::iter::once(("loss", total)).chain(parts).collect() })
    }

    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.mend.edit(model, requests)
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.mend.tensors()
    }

    fn restore(&mut self, tensors: BTreeMap<String, TensorData>) -> Result<()> {
        self.mend = self.mend.clone().restored(tensors)?;
        Ok(())
    }

    fn settings(&self) -> LearnedEditorSettings {
        self.settings.clone()
    }

    fn sequential(&self) -> bool {
        self.episode.is_some()
    }

    fn neighbours(&self) -> usize {
        self.loss.near()
    }
}
