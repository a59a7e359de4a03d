//! The two parts of the rows of an encoder-decoder: the cells that the encoder reads, and behind them the decoder's.

use burn::tensor::{Device, Int, Tensor};

use crate::model::tap::{Row, Span, Stack};

/// Which cells of a batch are whose. Positions are those in the whole row.
pub(super) struct Parts {
    whole: usize,
    /// The encoder's cells; none in a later part of a text.
    pub read: Span,
    /// The decoder's.
    pub written: Span,
}

impl Parts {
    pub fn of(span: &Span) -> Self {
        // The encoder's cells come first, and all in one pass.
        let many = |row: &Row| row.text.source.saturating_sub(row.start).min(row.len);
        let read = span.rows.iter().map(|row| Row { len: many(row), ..row.clone() });
        let written = span.rows.iter().map(|row| {
            let read = many(row);
            Row { start: row.start + read, len: row.len - read, ..row.clone() }
        });
        let of = |rows: Vec<Row>| Span { width: rows.iter().map(|row| row.len).max().unwrap_or(0), rows };
        Parts { whole: span.width, read: of(read.collect()), written: of(written.collect()) }
    }

    /// The cells of a stack.
    pub fn span(&self, stack: Stack) -> &Span {
        match stack {
            Stack::Encoder => &self.read,
            Stack::Decoder => &self.written,
        }
    }

    /// The cells of a stack out of those of whole rows, `[batch, tokens, width]`; nothing where it has none.
    pub fn take(&self, stack: Stack, hidden: &Tensor<3>) -> Option<Tensor<3>> {
        let span = self.span(stack);
        let [rows, cells, width] = hidden.dims();
        if span.width == 0 {
            return None;
        }
        let from = |row: usize| match stack {
            Stack::Encoder => 0,
            Stack::Decoder => self.read.rows[row].len,
        };
        // Padded cells repeat the row's first.
        let cell = |row: usize, cell: usize| if cell < span.rows[row].len { from(row) + cell } else { 0 };
        let index = (0..rows).flat_map(|row| (0..span.width).map(move |at| (row * cells + cell(row, at)) as i64));
        let index = indices(index.collect(), &hidden.device());
        Some(hidden.clone().reshape([rows * cells, width]).select(0, index).reshape([rows, span.width, width]))
    }

    /// Whole rows of the cells of both stacks.
    pub fn join(&self, read: Option<Tensor<3>>, written: Option<Tensor<3>>) -> Option<Tensor<3>> {
        let width = read.as_ref().or(written.as_ref())?.dims()[2];
        let rows = self.read.rows.len();
        let (many, behind) = (self.read.width, rows * self.read.width);
        let cell = |row: usize, cell: usize| {
            let own = self.read.rows[row].len;
            match cell.checked_sub(own).filter(|&at| at < self.written.rows[row].len) {
                Some(at) => behind + row * self.written.width + at,
                None if cell < own => row * many + cell,
                // Padding: any cell that there is.
                None if own > 0 => row * many,
                None => behind + row * self.written.width,
            }
        };
        let index = (0..rows).flat_map(|row| (0..self.whole).map(move |at| cell(row, at) as i64));
        let flat = |part: Tensor<3>| {
            let [rows, cells, width] = part.dims();
            part.reshape([rows * cells, width])
        };
        let both = Tensor::cat(read.into_iter().chain(written).map(flat).collect(), 0);
        let index = indices(index.collect(), &both.device());
        Some(both.select(0, index).reshape([rows, self.whole, width]))
    }
}

fn indices(index: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(index.as_slice(), &device.clone().inner())
}
