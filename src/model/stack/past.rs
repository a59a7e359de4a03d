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

/// Cells of zeros before and behind those of `x`.
fn with_cells(x: &Tensor<4>, before: usize, behind: usize) -> Tensor<4> {
    let [rows, heads, _, width] = x.dims();
    let zeros = |cells: usize| Tensor::<4>::zeros([rows, heads, cells, width], (&x.device(), x.dtype()));
    let parts = [(before > 0).then(|| zeros(before)), Some(x.clone()), (behind > 0).then(|| zeros(behind))];
    let parts: Vec<Tensor<4>> = parts.into_iter().flatten().collect();
    if parts.len() == 1 { x.clone() } else { Tensor::cat(parts, 2) }
}

impl Layer {
    /// So many cells a row, the new ones in front.
    fn padded(&self, width: usize) -> Layer {
        let new = width - self.keys.dims()[2];
        let padded = |row: &Vec<Option<usize>>| std::iter::repeat_n(None, new).chain(row.iter().copied()).collect();
        Layer {
            keys: with_cells(&self.keys, new, 0),
            values: with_cells(&self.values, new, 0),
            cells: self.cells.iter().map(padded).collect(),
        }
    }

    fn drop_gaps(&mut self) {
        let width = self.keys.dims()[2];
        let held: Vec<usize> = (0..width).filter(|&cell| self.cells.iter().any(|row| row[cell].is_some())).collect();
        if held.len() == width {
            return;
        }
        let index: Vec<i64> = held.iter().map(|&cell| cell as i64).collect();
        let index = Tensor::<1, burn::tensor::Int>::from_data(index.as_slice(), &self.keys.device());
        self.keys = self.keys.clone().select(2, index.clone());
        self.values = self.values.clone().select(2, index);
        for row in &mut self.cells {
            *row = held.iter().map(|&cell| row[cell]).collect();
        }
    }
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

    /// The rows of another past of the same model below its own. A row with fewer cells than another is padded in front, with cells that no
    /// row sees.
    ///
    /// # Errors
    /// A past of another model, or one that holds other layers.
    pub fn beside(&self, other: &Past) -> Result<Past> {
        other.check_owner(&self.owner)?;
        let apart = || Error::Input("pasts that hold different layers cannot stand side by side".into());
        let layers = self.layers.iter().zip(&other.layers).map(|pair| match pair {
            (None, None) => Ok(None),
            (Some(own), Some(theirs)) => {
                let width = own.keys.dims()[2].max(theirs.keys.dims()[2]);
                let (own, theirs) = (own.padded(width), theirs.padded(width));
                Ok(Some(Layer {
                    keys: Tensor::cat(vec![own.keys, theirs.keys], 0),
                    values: Tensor::cat(vec![own.values, theirs.values], 0),
                    cells: own.cells.into_iter().chain(theirs.cells).collect(),
                }))
            }
            _ => Err(apart()),
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let crossed = self.crossed.iter().zip(&other.crossed).map(|pair| match pair {
            (None, None) => Ok(None),
            (Some([keys, values]), Some([more_keys, more_values])) => {
                let width = keys.dims()[2].max(more_keys.dims()[2]);
                // What is real of these is told by its length: padding stands behind.
                let join = |own: &Tensor<4>, theirs: &Tensor<4>| {
                    let wide = |x: &Tensor<4>| with_cells(x, 0, width - x.dims()[2]);
                    Tensor::cat(vec![wide(own), wide(theirs)], 0)
                };
                Ok(Some([join(keys, more_keys), join(values, more_values)]))
            }
            _ => Err(apart()),
        });
        let crossed = crossed.collect::<Result<Vec<_>>>()?;
        let sources = self.sources.iter().chain(&other.sources).copied().collect();
        Ok(Past { owner: self.owner.clone(), layers, crossed, sources })
    }

    /// The same without the cells that are padding in every row.
    pub fn without_gaps(mut self) -> Past {
        self.layers.iter_mut().flatten().for_each(Layer::drop_gaps);
        let source = self.sources.iter().copied().max().unwrap_or(0);
        for [keys, values] in self.crossed.iter_mut().flatten() {
            if keys.dims()[2] > source {
                (*keys, *values) = (keys.clone().narrow(2, 0, source), values.clone().narrow(2, 0, source));
            }
        }
        self
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
