//! Reads sentences, and pairs of them, into vectors: a pretrained encoder, or the hidden states of a language model.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::tuned::{Tune, Tuned};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::load::encoder::EncoderModel;
use crate::model::sentences::{SentenceEncoder, alike_together, normalized};
use crate::model::stack::decoder::Decoder;
use crate::model::stack::encoder::Encoder;
use crate::model::tap::{Row as TapRow, Span};
use crate::model::tokens::Tokens;

/// Cells of one forward pass, padding included.
const CELLS: usize = 1024;

/// A pretrained model that reads sentences.
#[derive(Clone)]
pub enum Pretrained {
    /// An encoder.
    Encoder(Arc<SentenceEncoder>),
    /// A language model.
    Decoder(Arc<Model>),
}

/// Its lowest blocks, as far as they are used.
#[derive(Clone)]
pub struct Reader {
    stack: Pretrained,
    layers: usize,
}

/// The cells of a row in which a text is read: the encoder's, where there is one.
fn read_cells(row: &TapRow) -> usize {
    if row.text.source > 0 { row.text.source } else { row.len }
}

/// One sentence or a pair as tokens, with the index at which the second begins.
pub type Row = (Vec<u32>, usize);

impl Reader {
    /// The lowest `layers` blocks of a model; all of them where `layers` is 0.
    ///
    /// # Errors
    /// More layers than there are.
    pub fn new(stack: Pretrained, layers: usize) -> Result<Self> {
        let all = match &stack {
            Pretrained::Encoder(model) => model.model().encoder.spec.layers,
            Pretrained::Decoder(model) => match &model.decoder.spec.source {
                Some(source) => source.layers,
                None => model.decoder.spec.layers,
            },
        };
        if layers > all {
            return Err(Error::Config(format!("{layers} blocks of a model that has {all}")));
        }
        Ok(Reader { stack, layers: if layers == 0 { all } else { layers } })
    }

    /// BLAKE3 of its config and weights, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        match &self.stack {
            Pretrained::Encoder(model) => &model.model().fingerprint,
            Pretrained::Decoder(model) => &model.fingerprint,
        }
    }

    /// Width of its hidden states.
    pub fn width(&self) -> usize {
        match &self.stack {
            Pretrained::Encoder(model) => model.model().encoder.spec.width,
            Pretrained::Decoder(model) => model.decoder.spec.width,
        }
    }

    /// Tokens of a row at most, where longer ones are not cut.
    pub fn context(&self) -> Option<usize> {
        match &self.stack {
            Pretrained::Encoder(_) => None,
            Pretrained::Decoder(model) => Some(model.decoder.spec.context),
        }
    }

    /// The part of it that is trained, as it is pretrained.
    ///
    /// # Errors
    /// More blocks than there are.
    pub fn tuned(&self, tune: &Tune, place: (&Device, DType)) -> Result<Tuned> {
        match &self.stack {
            Pretrained::Encoder(model) => Tuned::of_encoder(tune, &self.encoder(model.model()), place),
            Pretrained::Decoder(model) => Tuned::of_decoder(tune, &self.decoder(model), place),
        }
    }

    /// The tokens of a text, or of a pair.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn row(&self, text: &str, second: Option<&str>) -> Result<Row> {
        match &self.stack {
            Pretrained::Encoder(model) => model.model().tokenizer.encode_pair(text, second, model.longest()),
            Pretrained::Decoder(model) => {
                let first = model.tokenizer.encode_prompt(text)?.len();
                let whole = match second {
                    Some(second) => model.tokenizer.encode_prompt(&format!("{text}\n{second}"))?,
                    None => model.tokenizer.encode_prompt(text)?,
                };
                Ok((whole, first))
            }
        }
    }

    /// The part of an encoder that is used.
    fn encoder(&self, model: &EncoderModel) -> Encoder {
        let mut encoder = model.encoder.clone();
        encoder.blocks.truncate(self.layers);
        encoder
    }

    /// The part of a language model that is used.
    fn decoder(&self, model: &Model) -> Decoder {
        let mut decoder = model.decoder.clone();
        match &mut decoder.source {
            Some(source) => {
                source.blocks.truncate(self.layers);
                decoder.blocks.clear();
            }
            None => decoder.blocks.truncate(self.layers),
        }
        decoder
    }

    /// The last hidden states of rows, `[rows, cells, width]`, through the trained part.
    fn hidden(&self, tuned: &Tuned, rows: &[Row]) -> Result<(Tensor<3>, Span)> {
        let tokens = Tokens::new(rows.iter().map(|(ids, _)| ids.clone()).collect());
        let span = tokens.span().clone();
        let hidden = match &self.stack {
            Pretrained::Encoder(model) => {
                let encoder = tuned.encoder(&self.encoder(model.model()));
                let pairs = rows.iter().any(|(ids, second)| *second < ids.len());
                let second: Vec<usize> = rows.iter().filter(|_| pairs).map(|(_, second)| *second).collect();
                let hidden = encoder.embed(&tokens, &second, &mut tuned.tap())?;
                encoder.blocks(hidden, 0..self.layers, &span, &mut tuned.tap())
            }
            Pretrained::Decoder(model) => {
                let decoder = tuned.decoder(&self.decoder(model));
                let hidden = decoder.embed(&tokens, &mut tuned.tap())?;
                decoder.blocks(hidden, 0..self.layers, &span, None, &mut tuned.tap())?
            }
        };
        Ok((hidden, span))
    }

    /// The means of the hidden states over each row's cells, `[rows, width]`.
    ///
    /// # Errors
    /// A row longer than the context.
    pub fn means(&self, tuned: &Tuned, rows: &[Row]) -> Result<Tensor<2>> {
        let (hidden, span) = self.hidden(tuned, rows)?;
        let shares = span.rows.iter().flat_map(|row| {
            let cells = read_cells(row);
            let share = 1.0 / cells as f32;
            (0..span.width).map(move |cell| if cell < cells { share } else { 0.0 })
        });
        let shares = TensorData::new(shares.collect::<Vec<_>>(), [rows.len(), span.width, 1]);
        let shares = Tensor::<3>::from_data(shares, (&hidden.device().inner(), hidden.dtype()));
        Ok((hidden * shares).sum_dim(1).squeeze_dim(1))
    }

    /// The vectors that stand for whole pairs, `[rows, width]`: an encoder's first cell, a decoder's last.
    ///
    /// # Errors
    /// A row longer than the context.
    pub fn pairs(&self, tuned: &Tuned, rows: &[Row]) -> Result<Tensor<2>> {
        let (hidden, span) = self.hidden(tuned, rows)?;
        let cell = |row: usize| match &self.stack {
            Pretrained::Encoder(_) => 0,
            Pretrained::Decoder(_) => read_cells(&span.rows[row]) - 1,
        };
        let cells: Vec<(usize, usize)> = (0..rows.len()).map(|row| (row, cell(row))).collect();
        Ok(crate::model::stack::taps::cells(hidden, &cells))
    }

    /// `of` on all rows, in batches of like length side by side; gives its rows `[rows, width]` in their order.
    ///
    /// # Errors
    /// What `of` says.
    pub fn batched(
        &self,
        rows: &[Row],
        device: &Device,
        of: impl Fn(&[Row]) -> Result<Tensor<2>> + Sync,
    ) -> Result<Tensor<2>> {
        alike_together(&rows.iter().map(|(ids, _)| ids.len()).collect::<Vec<_>>(), CELLS, device, |batch| {
            of(&batch.iter().map(|&row| rows[row].clone()).collect::<Vec<_>>())
        })
    }

    /// The embeddings of texts by the pretrained reader alone, `[texts, width]`, each of length one.
    ///
    /// # Errors
    /// A text that it cannot take.
    pub fn embed(&self, texts: &[&str]) -> Result<Tensor<2>> {
        if let Pretrained::Encoder(sentences) = &self.stack
            && self.layers == sentences.model().encoder.spec.layers
        {
            return sentences.embed(texts);
        }
        let rows = texts.iter().map(|text| self.row(text, None)).collect::<Result<Vec<_>>>()?;
        let untouched = Tuned { blocks: vec![], ends: None, factors: vec![] };
        let device = match &self.stack {
            Pretrained::Encoder(model) => model.model().encoder.embedding.device(),
            Pretrained::Decoder(model) => model.decoder.device(),
        };
        self.batched(&rows, &device, |rows| Ok(normalized(self.means(&untouched, rows)?)))
    }
}
