//! Rows of tokens that one model continues together, a token at a time. Rows come and go between two tokens.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::Edited;
use crate::error::Result;
use crate::model::stack::past::Past;
use crate::model::tap::{NoTap, Text};
use crate::model::tokens::Tokens;

/// Rows that share the passes of a model, with the keys and values of all that they have read. It is the weights' own word: memories are
/// not consulted ([`Edited::generators`]).
pub struct RunningRows {
    model: Edited,
    past: Past,
    rows: Vec<Row>,
}

#[derive(Clone)]
struct Row {
    text: Arc<Text>,
    /// Tokens that the past holds.
    seen: usize,
    /// Tokens that the next pass reads.
    next: Vec<u32>,
}

impl RunningRows {
    /// Rows of prompts that nothing was read of.
    pub fn new(model: &Edited, prompts: &[Vec<u32>]) -> Self {
        let row = |ids: &Vec<u32>| Row { text: Text::new(ids), seen: 0, next: ids.clone() };
        RunningRows { past: model.past(), model: model.clone(), rows: prompts.iter().map(row).collect() }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Reads what each row has not been read of, and gives the logits of its next token, `[rows, outputs]`.
    ///
    /// # Errors
    /// No token to read, a token outside the vocabulary, a row longer than the context.
    pub fn step(&mut self) -> Result<Tensor<2>> {
        let reads: Vec<_> = self.rows.iter().enumerate().map(|(row, of)| (row, of.next.len() - 1)).collect();
        let hidden = self.read(usize::MAX)?;
        Ok(self.model.head(hidden, &reads))
    }

    /// Reads the first `tokens` tokens that a row has not been read of, where every row has more than these; whether they have. So a long
    /// prompt is read in pieces. What an encoder reads it reads whole.
    ///
    /// # Errors
    /// As [`RunningRows::step`].
    pub fn read_ahead(&mut self, tokens: usize) -> Result<bool> {
        let encoder = self.model.base().decoder.source.is_some();
        if encoder || self.rows.iter().any(|row| row.next.len() <= tokens) {
            return Ok(false);
        }
        self.read(tokens).map(|_| true)
    }

    /// A pass over at most so many tokens a row; `[rows, tokens, width]`.
    fn read(&mut self, most: usize) -> Result<Tensor<3>> {
        let places = self.rows.iter().enumerate().map(|(row, of)| (row, of.seen)).collect();
        let ids = self.rows.iter_mut().map(|row| {
            let behind = row.next.split_off(most.min(row.next.len()));
            let now = std::mem::replace(&mut row.next, behind);
            row.seen += now.len();
            now
        });
        let tokens = Tokens::placed(ids.collect(), places).of(self.rows.iter().map(|row| row.text.clone()));
        let hidden = self.model.embed(&tokens, &mut NoTap)?;
        self.model.blocks(hidden, 0..self.model.layers(), tokens.span(), Some(&mut self.past), &mut NoTap)
    }

    /// Appends a token to a row.
    pub fn push(&mut self, row: usize, token: u32) {
        self.rows[row].next.push(token);
    }

    /// Keeps the rows at `rows`, in that order; a row may be taken several times.
    pub fn keep(&mut self, rows: &[usize]) {
        if rows.len() == self.rows.len() && rows.iter().enumerate().all(|(place, &row)| place == row) {
            return;
        }
        self.past = self.past.select(rows);
        self.rows = rows.iter().map(|&row| self.rows[row].clone()).collect();
    }

    /// Puts other rows of the same model below its own. Both have read all but the last token.
    ///
    /// # Errors
    /// Rows of another model.
    pub fn join(&mut self, other: RunningRows) -> Result<()> {
        if self.is_empty() {
            *self = other;
            return Ok(());
        }
        self.past = self.past.beside(&other.past)?;
        self.rows.extend(other.rows);
        Ok(())
    }

    /// Lets go of what only rows needed that were not kept. Sums over fewer cells may differ in their last digits.
    pub fn drop_gaps(&mut self) {
        let past = std::mem::replace(&mut self.past, self.model.past());
        self.past = past.without_gaps();
    }
}
