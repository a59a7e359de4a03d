//! A batch of token rows, padded on the right.

use std::ops::Range;
use std::sync::Arc;

use super::tap::{Row, Span, Stack, Text};
use crate::error::{Error, Result};

/// Stands in a row of an encoder-decoder for the token that begins the decoder's part: what is before it the encoder reads.
pub const BEGIN: u32 = u32::MAX;

/// The first token of a row that is predicted: of what an encoder reads none is, and of other texts all but the first.
pub fn first_predicted(ids: &[u32]) -> usize {
    ids.iter().position(|&id| id == BEGIN).map_or(1, |begin| begin + 1)
}

impl Text {
    /// The text of which these tokens are the prompt.
    pub fn new(prompt: &[u32]) -> Arc<Self> {
        let source = prompt.iter().position(|&id| id == BEGIN).unwrap_or(0);
        Arc::new(Text { prompt: prompt.to_vec(), source })
    }

    /// The positions of the prompt that are a stack's cells.
    pub fn cells(&self, stack: Stack) -> Range<usize> {
        match stack {
            Stack::Encoder => 0..self.source,
            Stack::Decoder => self.source..self.prompt.len().max(self.source),
        }
    }
}

/// Token rows of unequal length, and what each row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<Vec<u32>>,
    span: Span,
}

impl Tokens {
    /// Rows from position 0, each its own record, and all of it a prompt.
    pub fn new(ids: Vec<Vec<u32>>) -> Self {
        let places = (0..ids.len()).map(|record| (record, 0)).collect();
        Tokens::placed(ids, places)
    }

    /// Rows with the record and the absolute first position of each. What begins at 0 is taken for a prompt; see [`Tokens::of`].
    pub fn placed(ids: Vec<Vec<u32>>, places: Vec<(usize, usize)>) -> Self {
        let rows = ids.iter().zip(places).map(|(ids, (record, start))| Row {
            record,
            start,
            len: ids.len(),
            text: Text::new(if start == 0 { ids } else { &[] }),
            unseen: None,
        });
        let span = Span { rows: rows.collect(), width: ids.iter().map(Vec::len).max().unwrap_or(0) };
        Tokens { ids, span }
    }

    /// The same rows as parts of these texts.
    pub fn of(mut self, texts: impl IntoIterator<Item = Arc<Text>>) -> Self {
        self.span.rows.iter_mut().zip(texts).for_each(|(row, text)| row.text = text);
        self
    }

    /// The texts that the rows are parts of.
    pub fn texts(&self) -> Vec<Arc<Text>> {
        self.span.rows.iter().map(|row| row.text.clone()).collect()
    }

    /// Some of the rows, each a record of its own.
    pub fn chosen(&self, rows: &[usize]) -> Self {
        let texts = rows.iter().map(|&row| self.span.rows[row].text.clone());
        Tokens::new(rows.iter().map(|&row| self.ids[row].clone()).collect()).of(texts)
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
            let source = row.text.source;
            check_length(source, context)?;
            check_length((row.start + row.len).saturating_sub(source), context)?;
            if begins && source == 0 {
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
