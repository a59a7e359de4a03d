//! A batch of token rows, padded on the right.

use super::tap::{Row, Span};
use crate::error::{Error, Result};

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
        let rows =
            ids.iter().zip(places).map(|(ids, (record, start))| Row { record, start, len: ids.len(), unseen: None });
        let span = Span { rows: rows.collect(), width: ids.iter().map(Vec::len).max().unwrap_or(0) };
        Tokens { ids, span }
    }

    /// What the rows and cells are.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The rows without padding.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// Row by row, padded with token 0.
    pub(super) fn padded_ids(&self) -> Vec<i64> {
        let rows = self.ids.iter();
        rows.flat_map(|ids| ids.iter().map(|&id| id as i64).chain(std::iter::repeat_n(0, self.span.width - ids.len())))
            .collect()
    }

    pub(super) fn check(&self, vocabulary: usize, context: usize) -> Result<()> {
        if self.span.width == 0 {
            return Err(Error::Input("there is no token to read; give a prompt that is not empty".into()));
        }
        for (ids, row) in self.ids.iter().zip(&self.span.rows) {
            check_length(row.start + row.len, context)?;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
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
