//! Causal tracing (Meng et al., 2022, section 2): where in the model what it knows of a subject passes.
//!
//! ```text
//! clean       the prompt as it is:                                       p(answer) = high
//! corrupted   with noise ε ~ N(0, σ²) on the embeddings of the subject:  p(answer) = low, the mean over draws of ε
//! restored    corrupted, but with chosen activations as in the clean run
//! ```
//!
//! The total effect is `high − low`; the indirect effect of a cell (token, layer) is its restored probability less `low`. A cell is the
//! block's output there, or the outputs of the MLP, or of attention, in a window of layers around it.

pub mod average;
pub mod folder;
pub mod noise;
pub mod restore;
pub mod result;

use std::ops::Range;

use burn::tensor::{Tensor, activation};

use crate::edit::likelihood::check_targets;
use crate::edit::{EditRequest, Edited};
use crate::error::{Error, Result};
use crate::model::stack::sizes::Pass;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{Place, Site, Stack};
use crate::model::tokens::check_length;
use crate::plan::{Held, Work};
use noise::Noise;
use restore::{Patch, Runs};
use result::{Map, Trace};

/// A question with the tokens of its subject, and the answer whose probability is traced.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The prompt.
    pub prompt: String,
    /// The subject as the prompt writes it.
    pub subject: String,
    /// The prompt's tokens.
    pub ids: Vec<u32>,
    /// Which of them are the subject's.
    pub at: Range<usize>,
    /// The answer's first token; where no answer was named, what the model says.
    pub answer: u32,
    /// What the model says first, and how likely that is.
    pub says: (u32, f64),
}

impl Question {
    /// A prompt, its subject (of which the last occurrence is meant, unless the request has a template), and the answer: the request's
    /// `target_new`, or what the model says where that is empty.
    ///
    /// # Errors
    /// A model that reads prompts with an encoder; a subject that does not stand in the prompt; texts without tokens.
    pub fn new(model: &Edited, request: &EditRequest) -> Result<Self> {
        let base = model.base();
        check_causal(&base.decoder.spec)?;
        if model.has_memory() {
            let message =
                "tracing follows what the weights say, and a memory lies over them; trace the model without it";
            return Err(Error::Config(message.into()));
        }
        let (subject, end) = request.subject()?;
        let begin = end - subject.len();
        let named = !request.target_new.trim().is_empty();
        let (ids, target) = match named {
            true => {
                let row = request.row(&base.tokenizer)?;
                check_targets(model, row.target())?;
                (row.ids[..row.prompt].to_vec(), Some(row.target()[0]))
            }
            false => (base.tokenizer.encode_prompt(&request.prompt)?, None),
        };
        check_length(ids.len(), base.decoder.spec.context)?;
        let at = base.tokenizer.tokens_of(&request.prompt, begin..end)?;
        if at.end > ids.len() {
            return Err(Error::Input(format!(
                "the subject \"{subject}\" ends behind the tokens of \"{}\"",
                request.prompt
            )));
        }
        let likeliest = model.next_tokens(&ids, 1)?;
        let says = likeliest.first().map_or((0, 0.0), |token| (token.id, f64::from(token.probability)));
        let (prompt, subject) = (request.prompt.clone(), subject.to_owned());
        Ok(Question { prompt, subject, ids, at, answer: target.unwrap_or(says.0), says })
    }

    /// Whether the model gives the answer: its first token is the likeliest one.
    pub fn is_answered(&self) -> bool {
        self.says.0 == self.answer
    }
}

/// Refuses an encoder-decoder.
///
/// # Errors
/// A model that reads prompts with an encoder.
pub fn check_causal(spec: &DecoderSpec) -> Result<()> {
    match spec.source {
        None => Ok(()),
        Some(_) => Err(Error::Config(
            "tracing, like ROME, follows a prompt through a causal stack, and this model has an encoder that reads it whole"
                .into(),
        )),
    }
}

/// Outputs of a place in so many layers; what is not one is a block's output.
pub type Window = (Place, usize);

/// What is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Block outputs.
    pub states: bool,
    /// Of what there are windows: MLP outputs, attention outputs.
    pub places: Vec<Place>,
    /// So many layers each.
    pub windows: Vec<usize>,
}

impl Restored {
    /// How many maps there are.
    pub fn maps(&self) -> usize {
        usize::from(self.states) + self.windows.len() * self.places.len()
    }

    /// Refuses windows that the model has no room for.
    ///
    /// # Errors
    /// A window of no layer, or of more than there are.
    pub fn check(&self, layers: usize) -> Result<()> {
        match self.windows.iter().find(|window| !(1..=layers).contains(*window)) {
            Some(window) => {
                Err(Error::Config(format!("a window of {window} layers: the model has {layers}; take 1 to {layers}")))
            }
            None => Ok(()),
        }
    }
}

/// The layers of a window of `width` around a layer: of ten, five below it and four above.
pub fn window(layer: usize, width: usize, layers: usize) -> Range<usize> {
    layer.saturating_sub(width / 2)..(layer + width.div_ceil(2)).min(layers)
}

/// Traces a question: every token and every layer, for block outputs and for each window.
///
/// # Errors
/// Noise that is not the question's; a window that the model has no room for.
pub fn trace(model: &Edited, question: &Question, noise: &Noise, restored: &Restored) -> Result<Trace> {
    let (layers, tokens) = (model.layers(), question.ids.len());
    restored.check(layers)?;
    let runs = Runs::new(model, question, noise)?;
    let site = |place, layer| Site { stack: Stack::Decoder, layer, place };
    // One map after the other, each token by token.
    let mut wanted: Vec<(Option<Window>, Vec<Patch>)> = vec![];
    let each = |of: &dyn Fn(usize) -> Vec<Site>| -> Vec<Patch> {
        let cells = (0..tokens).flat_map(|token| (0..layers).map(move |layer| (token, layer)));
        cells.map(|(token, layer)| of(layer).into_iter().map(|site| (site, token)).collect()).collect()
    };
    if restored.states {
        wanted.push((None, each(&|layer| vec![site(Place::BlockOut, layer)])));
    }
    for &width in &restored.windows {
        for &place in &restored.places {
            let of = |layer| window(layer, width, layers).map(|layer| site(place, layer)).collect();
            wanted.push((Some((place, width)), each(&of)));
        }
    }
    let patches: Vec<Patch> = wanted.iter().flat_map(|(_, patches)| patches.iter().cloned()).collect();
    let mut restored = runs.restore(model, &patches)?.into_iter();
    let mut maps = vec![];
    for (window, patches) in wanted {
        let values: Vec<Vec<f64>> = restored.by_ref().take(patches.len()).collect();
        maps.push(Map::new(window, layers, &values));
    }
    Ok(Trace { question: question.clone(), high: runs.high, low: runs.low.clone(), noise: noise.level, maps })
}

/// What tracing holds, of questions under so many draws, for so many maps: of states and of each window.
pub fn held(work: &Work<'_>, draws: usize, maps: usize) -> Vec<Held> {
    const TRACING: &str = "tracing";
    let (spec, tokens) = (work.spec, work.texts.row);
    let (one, noisy) = (Pass::new(1, tokens), Pass::new(draws, tokens));
    let layers = spec.layers as u64;
    // Attention, MLP and block outputs of the clean run; what goes into each layer of the corrupted ones, their keys and values.
    let runs = 3 * layers * spec.stream_bytes(one)
        + (layers + 1) * spec.stream_bytes(noisy)
        + spec.past_bytes(noisy, spec.layers);
    let passes = (0..tokens)
        .map(|token| restore::pass_bytes(spec, (draws, maps * spec.layers), token, tokens))
        .max()
        .unwrap_or(0);
    let head = 2 * spec.logits_bytes((AT_ONCE / spec.vocabulary.max(1)).min(draws * maps * spec.layers));
    vec![
        Held::during(TRACING, format!("the clean run of {tokens} tokens and {draws} corrupted ones"), runs)
            .lowered_by("--draws"),
        Held::during(
            TRACING,
            format!("{} passes with activations put back", work.threads),
            work.threads as u64 * passes.max(head),
        ),
    ]
}

/// Logits that are held at once.
const AT_ONCE: usize = 1 << 23;

/// The probability of a token at the last cell of each row of `hidden [rows, cells, width]` above all layers.
fn probabilities(model: &Edited, hidden: Tensor<3>, token: u32) -> Vec<f64> {
    let [rows, cells, _] = hidden.dims();
    let some = (AT_ONCE / model.base().decoder.spec.vocabulary.max(1)).max(1);
    let last: Vec<(usize, usize)> = (0..rows).map(|row| (row, cells - 1)).collect();
    let of_some = last.chunks(some).flat_map(|some| {
        let likely = activation::softmax(model.head(hidden.clone(), some), 1);
        let of_token = likely.slice([0..some.len(), token as usize..token as usize + 1]);
        of_token.into_data().iter::<f64>().collect::<Vec<_>>()
    });
    of_some.collect()
}
