//! A batch of token rows, padded on the right.

use super::tap::{Row, Span};
use crate::error::{Error, Result};

/// Stands in a row of an encoder-decoder for the token that begins the decoder's part: what is before it the encoder reads.
pub const BEGIN: u32 = u32::MAX;

/// The first token of a row that is predicted: of what an encoder reads none is, and of other texts all but the first.
pub fn first_predicted(ids: &[u32]) -> usize {
    ids.iter().position(|&id| id == BEGIN).map_or(1, |begin| begin + 1)
}

/// Token rows of unequal length, and what each row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<Vec<u32>>,
    span: Span,
}

impl Tokens {
    /// Rows from position 0, each its own record.
    pub fn new(ids: Vec<Vec<u32>>) -> Self {
        let places = (0..ids.len()).map(|record| (record, 0)).collect();
        Tokens::placed(ids, places)
    }

    /// Rows with the record and the absolute first position of each.
    pub fn placed(ids: Vec<Vec<u32>>, places: Vec<(usize, usize)>) -> Self {
        let source = |ids: &[u32]| ids.iter().position(|&id| id == BEGIN).unwrap_or(0);
        let rows = ids.iter().zip(places).map(|(ids, (record, start))| Row {
            record,
            start,
            len: ids.len(),
            source: source(ids),
            unseen: None,
        });
        let span = Span { rows: rows.collect(), width: ids.iter().map(Vec::len).max().unwrap_or(0) };
        Tokens { ids, span }
    }

    /// The same rows as later parts of texts of which an encoder reads so many positions each.
    pub fn behind(mut self, sources: &[usize]) -> Self {
        self.span.rows.iter_mut().zip(sources).for_each(|(row, &source)| row.source = source);
        self
    }

    /// How many positions of each row's text an encoder reads.
    pub fn sources(&self) -> Vec<usize> {
        self.span.rows.iter().map(|row| row.source).collect()
    }

    /// What the rows and cells are.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The rows without padding.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// Row by row, padded with token 0; `begin` is the token for which [`BEGIN`] stands.
    pub(super) fn padded_ids(&self, begin: u32) -> Vec<i64> {
        let rows = self.ids.iter();
        let known = |&id: &u32| i64::from(if id == BEGIN { begin } else { id });
        rows.flat_map(|ids| ids.iter().map(known).chain(std::iter::repeat_n(0, self.span.width - ids.len()))).collect()
    }

    /// `begins` says whether there is an encoder, and so a [`BEGIN`] in each text.
    pub(super) fn check(&self, vocabulary: usize, context: usize, begins: bool) -> Result<()> {
        if self.span.width == 0 {
            return Err(Error::Input("there is no token to read; give a prompt that is not empty".into()));
        }
        for (ids, row) in self.ids.iter().zip(&self.span.rows) {
            check_length(row.source, context)?;
            check_length((row.start + row.len).saturating_sub(row.source), context)?;
            if begins && row.source == 0 {
                let message = "an encoder-decoder reads a prompt and writes an answer; this text is no such pair";
                return Err(Error::Input(message.into()));
            }
            let known = |id: u32| (begins && id == BEGIN) || (id as usize) < vocabulary;
            if let Some(id) = ids.iter().find(|&&id| !known(id)) {
                return Err(Error::Input(format!("token {id} is outside the model's vocabulary of {vocabulary}")));
            }
        }
        Ok(())
    }
}

/// Refuses a text of more tokens than a model's context.
///
/// # Errors
/// Names both.
pub fn check_length(tokens: usize, context: usize) -> Result<()> {
    if tokens <= context {
        return Ok(());
    }
    Err(Error::Input(format!("a text of {tokens} tokens is longer than the model's context of {context}; shorten it")))
}
