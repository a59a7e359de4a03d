//! Edits of activations: at a site of the pass and at some positions of a prompt, a value is set, moved, scaled, kept within bounds, or freed of a
//! direction. They are declared, not programmed: a file of them holds numbers and names, and nothing in it is run.

use std::ops::Range;

use burn::tensor::{Bool, DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{Place, Row, Site, Span, Stack, Tap, Text};
use crate::model::tokenizer::Tokenizer;

/// What is done to an activation x at chosen positions.
#[derive(Debug, Clone)]
pub struct Intervention {
    /// Where in the pass.
    pub at: Site,
    /// Where in the prompt.
    pub positions: Positions,
    /// Whether it goes on behind the prompt.
    pub until: Until,
    /// What becomes of x.
    pub action: Action,
}

/// What becomes of an activation x. Vectors are `[width]`, as wide as the site.
#[derive(Debug, Clone)]
pub enum Action {
    /// `v`
    Set(Tensor<1>),
    /// `x + strength · v`
    Add {
        /// v
        vector: Tensor<1>,
        /// How much of it.
        strength: f64,
    },
    /// `factor · x`
    Scale(f64),
    /// Each element within `[low, high]`.
    Clamp {
        /// The least.
        low: f64,
        /// The largest.
        high: f64,
    },
    /// `x − (x·v̂) v̂`, where v̂ = v / ‖v‖: what is left has no component along v.
    ProjectOut(Tensor<1>),
}

/// At which of a prompt's positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// The prompt's last token.
    Last,
    /// All of its tokens.
    All,
    /// Its first token.
    First,
    /// These, from 0; negative ones count from the prompt's end. Those that a prompt does not have are passed over.
    At(Vec<i64>),
    /// The token in which the last occurrence of a text ends: a subject's last token, say. A prompt without the text is left alone.
    After(String),
}

/// Whether an intervention goes on while a model writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// It acts on the prompt alone.
    #[default]
    Prompt,
    /// It also acts on each token that follows the prompt, whether the model wrote it or it is a given answer.
    Always,
}

impl Action {
    /// Its name in files.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Set(_) => "set",
            Action::Add { .. } => "add",
            Action::Scale(_) => "scale",
            Action::Clamp { .. } => "clamp",
            Action::ProjectOut(_) => "project_out",
        }
    }

    /// The vector that it has.
    pub fn vector(&self) -> Option<&Tensor<1>> {
        match self {
            Action::Set(vector) | Action::Add { vector, .. } | Action::ProjectOut(vector) => Some(vector),
            Action::Scale(_) | Action::Clamp { .. } => None,
        }
    }

    /// What becomes of all activations `x [batch, tokens, width]`.
    fn of(&self, x: &Tensor<3>) -> Tensor<3> {
        let along = |vector: &Tensor<1>| vector.clone().cast(x.dtype()).unsqueeze::<3>();
        match self {
            Action::Set(vector) => along(vector).expand(x.dims()),
            Action::Add { vector, strength } => x.clone() + along(vector).mul_scalar(*strength),
            Action::Scale(factor) => x.clone().mul_scalar(*factor),
            Action::Clamp { low, high } => x.clone().clamp(*low, *high),
            Action::ProjectOut(vector) => {
                let unit = direction(vector).cast(x.dtype()).unsqueeze::<3>();
                x.clone() - (x.clone() * unit.clone()).sum_dim(2) * unit
            }
        }
    }
}

impl Intervention {
    /// Refuses what a model has no place for, and what cannot be meant. `what` names it in errors.
    ///
    /// # Errors
    /// A layer or site that the model does not have; a vector of another width, or of length 0 where a direction is asked for; bounds that
    /// exclude everything; no position; positions that end in the prompt of an intervention that goes on behind it.
    pub fn check(&self, spec: &DecoderSpec, what: &str) -> Result<()> {
        let wrong = |message: String| Err(Error::Input(format!("{what}, at {}: {message}", self.at)));
        let layers = match self.at.stack {
            Stack::Decoder => spec.layers,
            Stack::Encoder if spec.source.is_none() => return wrong("the model has no encoder".into()),
            Stack::Encoder => spec.source_layers(),
        };
        if self.at.layer >= layers {
            let encoder =
                if spec.source.is_some() { " (those of the encoder are written \"encoder.3.block\")" } else { "" };
            return wrong(format!("the model has {}{encoder}", spec.places()));
        }
        let width = if self.at.place == Place::MlpHidden { spec.mlp.width } else { spec.width };
        if let Some(vector) = self.action.vector() {
            let [own] = vector.dims();
            if own != width {
                return wrong(format!("the vector is {own} wide, but the activation is {width} wide"));
            }
        }
        let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
        match &self.action {
            Action::Clamp { low, high } if !(finite(&[*low, *high]) && low <= high) => {
                return wrong(format!("no value lies within {low} and {high}"));
            }
            Action::Scale(factor) if !factor.is_finite() => return wrong(format!("a factor of {factor} is no number")),
            Action::Add { strength, .. } if !strength.is_finite() => {
                return wrong(format!("a strength of {strength} is no number"));
            }
            Action::ProjectOut(vector) if length(vector) == 0.0 => {
                return wrong("a vector of zeros has no direction that could be projected out".into());
            }
            _ => {}
        }
        match &self.positions {
            Positions::At(list) if list.is_empty() => wrong("no position is named".into()),
            Positions::After(text) if text.trim().is_empty() => wrong("there is no text behind which it acts".into()),
            Positions::After(_) if spec.source.is_some() && self.at.stack == Stack::Decoder => wrong(
                "the prompt's text is read by the encoder; take a site of the encoder, such as \"encoder.3.block\""
                    .into(),
            ),
            Positions::First | Positions::At(_) | Positions::After(_) if self.until == Until::Always => wrong(
                "what is to go on behind the prompt acts on \"last\" or on \"all\" positions, not on chosen ones"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// Why it acts at fewer positions of a prompt than it names; nothing where it acts at all of them.
    ///
    /// # Errors
    /// A prompt that is no text.
    pub fn misses(&self, prompt: &[u32], tokenizer: &Tokenizer) -> Result<Option<String>> {
        let text = Text::new(prompt);
        let cells = text.cells(self.at.stack);
        Ok(match &self.positions {
            Positions::At(list) => {
                let outside = |at: &&i64| position(**at, &cells).is_none();
                list.iter()
                    .find(outside)
                    .map(|at| format!("position {at} is outside this prompt of {} tokens", cells.len()))
            }
            Positions::After(after) if after_text(prompt, after, tokenizer)?.is_none() => {
                Some(format!("\"{}\" does not stand in this prompt", after.trim()))
            }
            _ => None,
        })
    }

    /// Where it acts in a row: positions of the prompt, and the first from which on it acts everywhere.
    fn places(&self, row: &Row, tokenizer: &Tokenizer) -> Result<Acts> {
        let (text, prompt) = (&row.text, row.text.cells(self.at.stack));
        let on = match (self.until, self.at.stack) {
            (Until::Always, Stack::Decoder) => Some(prompt.end),
            _ => None,
        };
        // A later part of a text, behind the prompt.
        if row.start >= prompt.end {
            return Ok(Acts { on: vec![], from: on });
        }
        let on_prompt = match &self.positions {
            Positions::All => prompt.collect(),
            Positions::Last => prompt.last().into_iter().collect(),
            Positions::First => prompt.take(1).collect(),
            Positions::At(list) => list.iter().filter_map(|&at| position(at, &prompt)).collect(),
            Positions::After(after) => after_text(&text.prompt, after, tokenizer)?.into_iter().collect(),
        };
        Ok(Acts { on: on_prompt, from: on })
    }
}

/// v / ‖v‖, by way of v / max|v|, whose squares neither vanish nor overflow.
fn direction(vector: &Tensor<1>) -> Tensor<1> {
    let vector = vector.clone().cast(DType::F32);
    let vector = vector.clone() / vector.abs().max();
    vector.clone() / vector.square().sum().sqrt()
}

/// The position that a number names among a prompt's cells: from 0, or from their end where it is negative.
pub(crate) fn position(at: i64, cells: &Range<usize>) -> Option<usize> {
    let far = usize::try_from(at.unsigned_abs()).ok()?;
    let place = if at < 0 { cells.end.checked_sub(far) } else { cells.start.checked_add(far) };
    place.filter(|place| cells.contains(place))
}

/// ‖v‖
pub fn length(vector: &Tensor<1>) -> f64 {
    vector.clone().into_data().iter::<f64>().map(|value| value * value).sum::<f64>().sqrt()
}

/// The token of a prompt in which the last occurrence of a text ends.
pub(crate) fn after_text(prompt: &[u32], after: &str, tokenizer: &Tokenizer) -> Result<Option<usize>> {
    let text = tokenizer.prompt_text(prompt)?;
    let Some(begin) = text.rfind(after.trim()) else { return Ok(None) };
    Ok(Some(tokenizer.last_token(&text, begin + after.trim().len())?).filter(|token| *token < prompt.len()))
}

/// Positions of a row at which something is done.
struct Acts {
    on: Vec<usize>,
    from: Option<usize>,
}

/// Interventions on the rows of one pass.
pub(super) struct Acting<'a>(Vec<(&'a Intervention, Vec<Acts>)>);

impl<'a> Acting<'a> {
    /// Of all interventions of a model, in the order of its edits.
    pub fn new(interventions: &'a [Intervention], span: &Span, tokenizer: &Tokenizer) -> Result<Self> {
        let on_rows = |intervention: &'a Intervention| {
            let places = span.rows.iter().map(|row| intervention.places(row, tokenizer));
            Ok((intervention, places.collect::<Result<_>>()?))
        };
        Ok(Acting(interventions.iter().map(on_rows).collect::<Result<_>>()?))
    }

    /// What becomes of the input of the lowest block. It belongs to the first stage of a pass, but is done at the beginning of the second: models with
    /// different edits share the first.
    pub fn embedding(&self, span: &Span, mut hidden: Tensor<3>) -> Tensor<3> {
        for (intervention, places) in
            self.0.iter().filter(|(intervention, _)| intervention.at.place == Place::Embedding)
        {
            hidden = act(&intervention.action, places, span, hidden);
        }
        hidden
    }
}

impl Tap for &Acting<'_> {
    fn activation(&mut self, at: Site, span: &Span, mut value: Tensor<3>) -> Tensor<3> {
        for (intervention, places) in self.0.iter().filter(|(intervention, _)| intervention.at == at) {
            value = act(&intervention.action, places, span, value);
        }
        value
    }
}

/// An action on the cells of a batch that stand at such places of their rows.
fn act(action: &Action, places: &[Acts], span: &Span, value: Tensor<3>) -> Tensor<3> {
    let acts = |row: usize, cell: usize| {
        let Acts { on, from } = &places[row];
        span.position(row, cell).is_some_and(|at| on.contains(&at) || from.is_some_and(|from| at >= from))
    };
    let cells = (0..span.rows.len()).flat_map(|row| (0..span.width).map(move |cell| (row, cell)));
    let acts: Vec<bool> = cells.map(|(row, cell)| acts(row, cell)).collect();
    if !acts.contains(&true) {
        return value;
    }
    let changed = action.of(&value);
    // What is set depends on nothing: by itself it would cut the graph of a loss.
    if !acts.contains(&false) && !matches!(action, Action::Set(_)) {
        return changed;
    }
    let [rows, cells, _] = value.dims();
    let mask = TensorData::new(acts, [rows, cells, 1]);
    let mask = Tensor::<3, Bool>::from_data(mask, &value.device().inner()).expand(value.dims());
    value.mask_where(mask, changed)
}

/// An intervention in a file's header: all of it but its vector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    at: Site,
    positions: Positions,
    #[serde(default)]
    until: Until,
    action: WrittenAction,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WrittenAction {
    Set,
    Add { strength: f64 },
    Scale { factor: f64 },
    Clamp { low: f64, high: f64 },
    ProjectOut,
}

impl Written {
    pub fn of(intervention: &Intervention) -> Self {
        let Intervention { at, positions, until, action } = intervention;
        let action = match action {
            Action::Set(_) => WrittenAction::Set,
            Action::Add { strength, .. } => WrittenAction::Add { strength: *strength },
            Action::Scale(factor) => WrittenAction::Scale { factor: *factor },
            Action::Clamp { low, high } => WrittenAction::Clamp { low: *low, high: *high },
            Action::ProjectOut(_) => WrittenAction::ProjectOut,
        };
        Written { at: *at, positions: positions.clone(), until: *until, action }
    }

    /// The intervention, with the vector that the file has for it.
    ///
    /// # Errors
    /// One line: a vector that is missing, or that nothing wants.
    pub fn with(self, vector: Option<Tensor<1>>) -> Result<Intervention, String> {
        let Written { at, positions, until, action } = self;
        let action = match (action, vector) {
            (WrittenAction::Set, Some(vector)) => Action::Set(vector),
            (WrittenAction::Add { strength }, Some(vector)) => Action::Add { vector, strength },
            (WrittenAction::ProjectOut, Some(vector)) => Action::ProjectOut(vector),
            (WrittenAction::Scale { factor }, None) => Action::Scale(factor),
            (WrittenAction::Clamp { low, high }, None) => Action::Clamp { low, high },
            (_, None) => return Err(format!("the intervention at {at} has no vector")),
            (_, Some(_)) => return Err(format!("the intervention at {at} has a vector that nothing wants")),
        };
        Ok(Intervention { at, positions, until, action })
    }
}
