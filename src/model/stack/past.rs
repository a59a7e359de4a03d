//! Keys and values of the positions to the left, so that they are computed once.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::model::tap::Span;

/// Keys and values `[batch, key-value heads, cells, head width]` a layer, after rotary, of all positions so far.
///
/// It belongs to the edited model it was computed on and is refused elsewhere. Rows may have
/// different lengths and start at different positions: `cells` says what each cell is.
#[derive(Debug, Clone)]
pub struct Past {
    owner: String,
    layers: Vec<Option<Layer>>,
    /// Where a decoder reads an encoder: keys and values of what that made, a layer, and how many of its cells are real, a row.
    crossed: Vec<Option<[Tensor<4>; 2]>>,
    sources: Vec<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub keys: Tensor<4>,
    pub values: Tensor<4>,
    /// For each row the absolute position of each cell, nothing where it is padding.
    pub cells: Vec<Vec<Option<usize>>>,
}

impl Past {
    /// An empty past of a model with `layers` layers, known by `owner`.
    pub fn new(owner: impl Into<String>, layers: usize) -> Self {
        Past { owner: owner.into(), layers: vec![None; layers], crossed: vec![None; layers], sources: vec![] }
    }

    /// Refuses a past that another model computed.
    ///
    /// # Errors
    /// Names both models.
    pub fn check_owner(&self, model: &str) -> Result<()> {
        if self.owner == model {
            return Ok(());
        }
        Err(Error::Input(format!(
            "keys and values computed on model {} cannot serve model {model}; compute them on it",
            self.owner
        )))
    }

    /// The number of positions a row has seen, by the cells of the first layer that holds any.
    pub fn len(&self, row: usize) -> usize {
        let layer = self.layers.iter().flatten().next();
        let source = self.sources.get(row).copied().unwrap_or(0);
        source + layer.map_or(0, |layer| layer.cells[row].iter().flatten().count())
    }

    /// Whether nothing was computed yet.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(Option::is_none)
    }

    /// The rows at `rows`, in that order; a row may be taken several times.
    pub fn select(&self, rows: &[usize]) -> Past {
        let layers = self.layers.iter().map(|layer| {
            layer.as_ref().map(|layer| {
                let device = layer.keys.device();
                let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
                let index = Tensor::<1, burn::tensor::Int>::from_data(index.as_slice(), &device);
                Layer {
                    keys: layer.keys.clone().select(0, index.clone()),
                    values: layer.values.clone().select(0, index),
                    cells: rows.iter().map(|&row| layer.cells[row].clone()).collect(),
                }
            })
        });
        let crossed = self.crossed.iter().map(|crossed| {
            crossed.as_ref().map(|[keys, values]| {
                let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
                let index = Tensor::<1, burn::tensor::Int>::from_data(index.as_slice(), &keys.device());
                [keys.clone().select(0, index.clone()), values.clone().select(0, index)]
            })
        });
        let sources =
            if self.sources.is_empty() { vec![] } else { rows.iter().map(|&row| self.sources[row]).collect() };
        Past { owner: self.owner.clone(), layers: layers.collect(), crossed: crossed.collect(), sources }
    }

    /// What it holds of some layers; nothing of the others.
    pub fn of_layers(&self, layers: Range<usize>) -> Past {
        let kept = |number: usize| layers.contains(&number);
        let own = self.layers.iter().enumerate().map(|(number, layer)| layer.clone().filter(|_| kept(number)));
        let crossed = self.crossed.iter().enumerate().map(|(number, crossed)| crossed.clone().filter(|_| kept(number)));
        Past { layers: own.collect(), crossed: crossed.collect(), ..self.clone() }
    }

    /// Its first `cells` cells; all of what an encoder made.
    pub fn truncated(&self, cells: usize) -> Past {
        let layers = self.layers.iter().map(|layer| {
            layer.as_ref().filter(|_| cells > 0).map(|layer| {
                let kept = cells.min(layer.keys.dims()[2]);
                Layer {
                    keys: layer.keys.clone().narrow(2, 0, kept),
                    values: layer.values.clone().narrow(2, 0, kept),
                    cells: layer.cells.iter().map(|row| row[..kept].to_vec()).collect(),
                }
            })
        });
        Past { layers: layers.collect(), ..self.clone() }
    }

    /// Keeps keys and values of what an encoder made of so many cells a row.
    pub(super) fn keep_crossed(&mut self, layer: usize, sources: &[usize], crossed: [Tensor<4>; 2]) {
        self.sources = sources.to_vec();
        self.crossed[layer] = Some(crossed);
    }

    /// The same again, and how many of its cells are real.
    pub(super) fn crossed(&self, layer: usize) -> Option<([Tensor<4>; 2], &[usize])> {
        Some((self.crossed[layer].clone()?, &self.sources))
    }

    /// The cells that every layer of `layers` holds before this pass, row by row.
    ///
    /// # Errors
    /// The layers hold different cells, or another number of rows.
    pub(super) fn cells(&self, layers: Range<usize>, span: &Span) -> Result<Vec<Vec<Option<usize>>>> {
        let mut held = layers.clone().map(|layer| self.layers[layer].as_ref().map(|layer| &layer.cells));
        let first = held.next().flatten();
        if !held.all(|cells| cells == first) {
            return Err(Error::Input(format!(
                "the past of layers {layers:?} holds different positions in different layers"
            )));
        }
        match first {
            None => Ok(vec![vec![]; span.rows.len()]),
            Some(cells) if cells.len() == span.rows.len() => Ok(cells.clone()),
            Some(cells) => {
                Err(Error::Input(format!("a past of {} rows cannot serve a batch of {}", cells.len(), span.rows.len())))
            }
        }
    }

    /// Appends this pass's keys and values and gives all of them back.
    pub(super) fn append(
        &mut self,
        layer: usize,
        span: &Span,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let new =
            (0..span.rows.len()).map(|row| (0..span.width).map(|cell| span.position(row, cell)).collect::<Vec<_>>());
        let layer = match self.layers[layer].take() {
            None => self.layers[layer].insert(Layer { keys, values, cells: new.collect() }),
            Some(mut old) => {
                old.cells.iter_mut().zip(new).for_each(|(old, new)| old.extend(new));
                self.layers[layer].insert(Layer {
                    keys: Tensor::cat(vec![old.keys, keys], 2),
                    values: Tensor::cat(vec![old.values, values], 2),
                    cells: old.cells,
                })
            }
        };
        (layer.keys.clone(), layer.values.clone())
    }
}
