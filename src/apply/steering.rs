//! Vectors for interventions on activations: what another prompt's run has at a site, or the mean difference between the runs of pairs of texts
//! (contrastive activation addition):
//!
//! ```text
//! v = (1/n) Σ over pairs of h(positive) − h(negative),   h the activation at the text's last token
//! ```

use burn::tensor::Tensor;

use crate::data::pairs::Pair;
use crate::edit::Edited;
use crate::edit::activation::{Positions, after_text, position as position_of};
use crate::error::{Error, Result};
use crate::model::tap::{Site, Span, Stack, Tap};
use crate::model::tokens::Tokens;

/// Texts that share a pass.
const ROWS: usize = 16;

/// The activation that a prompt's run has at a site, `[width]`, at one position of the prompt.
///
/// # Errors
/// A position that the prompt does not have, or more than one; a site that the model does not have.
pub fn captured(model: &Edited, at: Site, prompt: &str, position: &Positions) -> Result<Tensor<1>> {
    let ids = model.base().tokenizer.encode_prompt(prompt)?;
    let place = place(model, at, prompt, &ids, position)?;
    let seen = seen(model, at, &[(ids, place)])?;
    Ok(seen.squeeze_dim(0))
}

/// The mean over pairs of what the positive text's run has more than the negative one's at a site, at their last tokens, `[width]`.
///
/// # Errors
/// No pair; a text that the model cannot take; a site that it does not have.
pub fn mean_difference(model: &Edited, at: Site, pairs: &[Pair]) -> Result<Tensor<1>> {
    if pairs.is_empty() {
        return Err(Error::Input("there is no pair of texts to take a difference of".into()));
    }
    let mean = |side: &dyn Fn(&Pair) -> String| -> Result<Tensor<1>> {
        let rows = pairs.iter().map(|pair| {
            let text = side(pair);
            let ids = model.base().tokenizer.encode_prompt(&text)?;
            let place = place(model, at, &text, &ids, &Positions::Last)?;
            Ok((ids, place))
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let parts = rows.chunks(ROWS).map(|rows| seen(model, at, rows)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(parts, 0).mean_dim(0).squeeze_dim(0))
    };
    Ok(mean(&Pair::positive)? - mean(&Pair::negative)?)
}

/// The one position that is meant, counted over the whole row of tokens.
fn place(model: &Edited, at: Site, prompt: &str, ids: &[u32], position: &Positions) -> Result<usize> {
    let (tokenizer, row) = (&model.base().tokenizer, Tokens::new(vec![ids.to_vec()]));
    let cells = row.texts()[0].cells(at.stack);
    let far = |at: i64| {
        position_of(at, &cells).ok_or_else(|| {
            Error::Input(format!("\"{prompt}\" has {} tokens there, and none at position {at}", cells.len()))
        })
    };
    match position {
        Positions::Last => far(-1),
        Positions::First => far(0),
        Positions::At(list) => match list.as_slice() {
            [one] => far(*one),
            _ => Err(Error::Config("an activation is taken from one position; name one".into())),
        },
        Positions::All => Err(Error::Config("an activation is taken from one position, not from all".into())),
        Positions::After(_) if at.stack == Stack::Decoder && model.base().decoder.spec.source.is_some() => {
            let message =
                "the prompt's text is read by the encoder; take a place of the encoder, such as \"encoder.3.block\"";
            Err(Error::Config(message.into()))
        }
        Positions::After(text) => after_text(ids, text, tokenizer)?
            .ok_or_else(|| Error::Input(format!("\"{}\" does not stand in \"{prompt}\"", text.trim()))),
    }
}

/// What passes a site at a position of each row, `[rows, width]`.
fn seen(model: &Edited, at: Site, rows: &[(Vec<u32>, usize)]) -> Result<Tensor<2>> {
    let tokens = Tokens::new(rows.iter().map(|(ids, _)| ids.clone()).collect());
    let mut tap = Seen { at, places: rows.iter().map(|(_, place)| *place).collect(), seen: None };
    let hidden = model.embed(&tokens, &mut tap)?;
    model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut tap)?;
    tap.seen.ok_or_else(|| {
        Error::Input(format!("the model has no place {at}; it has {}", model.base().decoder.spec.places()))
    })
}

struct Seen {
    at: Site,
    /// One position a row.
    places: Vec<usize>,
    seen: Option<Tensor<2>>,
}

impl Tap for Seen {
    fn activation(&mut self, at: Site, span: &Span, value: Tensor<3>) -> Tensor<3> {
        if at == self.at {
            let cells: Vec<(usize, usize)> = self
                .places
                .iter()
                .enumerate()
                .filter_map(|(row, &place)| Some((row, span.cell(row, place)?)))
                .collect();
            self.seen =
                (cells.len() == self.places.len()).then(|| crate::model::stack::taps::cells(value.clone(), &cells));
        }
        value
    }
}
