//! Attention: causal over absolute positions, with rotary embedding and shared key-value heads; and over all cells, for encoders.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use super::decoder::at_least_f32;
use super::past::Past;
use super::spec::{DecoderSpec, Positions, Rotary};
use super::tap::{Row, Span, Unseen};

/// What all layers of one pass share: rotary angles of the batch's cells and who sees whom.
pub(super) struct Geometry {
    /// Cosines and sines `[batch or 1, tokens, 1, width / 2]`.
    rotary: Option<[Tensor<4>; 2]>,
    /// `[batch or 1, 1, tokens, past + tokens]`: 0 where a cell sees another, −∞ elsewhere. Nothing where every cell sees all.
    mask: Option<Tensor<4>>,
}

impl Geometry {
    pub(super) fn new(
        spec: &DecoderSpec,
        span: &Span,
        seen: &[Vec<Option<usize>>],
        device: &Device,
        dtype: DType,
    ) -> Self {
        // Rows that stand alike share one mask and one table of angles.
        let stands = |row: &Row| (row.start, row.len, row.unseen);
        let alike = span.rows.windows(2).all(|pair| stands(&pair[0]) == stands(&pair[1]))
            && seen.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if alike { 1 } else { span.rows.len() };
        let rotary = match &spec.positions {
            Positions::Rotary(rotary) => Some(angles(rotary, span, rows, device, dtype)),
            Positions::Learned => None,
        };
        Geometry { rotary, mask: mask(span, seen, rows, device, dtype) }
    }
}

fn angles(rotary: &Rotary, span: &Span, rows: usize, device: &Device, dtype: DType) -> [Tensor<4>; 2] {
    let frequencies = rotary.frequencies();
    let cells = (0..rows).flat_map(|row| (0..span.width).map(move |cell| (row, cell)));
    let positions: Vec<f64> = cells.map(|(row, cell)| span.position(row, cell).unwrap_or(0) as f64).collect();
    [f64::cos, f64::sin].map(|of: fn(f64) -> f64| {
        let values: Vec<f64> =
            positions.iter().flat_map(|position| frequencies.iter().map(move |f| of(position * f))).collect();
        Tensor::from_data(TensorData::new(values, [rows, span.width, 1, frequencies.len()]), (device, dtype))
    })
}

/// Causal: a cell sees the cells at its own position and before, those apart that its row calls unseen.
fn mask(span: &Span, seen: &[Vec<Option<usize>>], rows: usize, device: &Device, dtype: DType) -> Option<Tensor<4>> {
    let before = seen.first().map_or(0, Vec::len);
    let mut values = Vec::with_capacity(rows * span.width * (before + span.width));
    for (row, seen) in seen.iter().enumerate().take(rows) {
        let new = (0..span.width).map(|cell| span.position(row, cell));
        let keys: Vec<Option<usize>> = seen.iter().copied().chain(new).collect();
        let unseen = span.rows[row].unseen;
        for cell in 0..span.width {
            let query = span.position(row, cell);
            values.extend(keys.iter().enumerate().map(|(index, key)| {
                let visible = match (query, key) {
                    (Some(query), Some(key)) => {
                        let hidden = |unseen: Unseen| {
                            cell >= unseen.by && (before + unseen.from..before + unseen.to).contains(&index)
                        };
                        *key <= query && !unseen.is_some_and(hidden)
                    }
                    // A padded cell sees itself, so that its softmax is finite; nobody reads it.
                    (None, _) => index == before + cell,
                    (Some(_), None) => false,
                };
                if visible { 0.0 } else { f32::NEG_INFINITY }
            }));
        }
    }
    if values.iter().all(|&value| value == 0.0) {
        return None;
    }
    let data = TensorData::new(values, [rows, 1, span.width, before + span.width]);
    Some(Tensor::from_data(data, (device, dtype)))
}

/// Rotates the pairs of channels `(a, b)` of each head of `x [batch, tokens, heads, head width]`, `b` half a head behind `a`:
/// `(a cos − b sin, b cos + a sin)`.
fn rotate(x: Tensor<4>, [cos, sin]: &[Tensor<4>; 2]) -> Tensor<4> {
    let [batch, tokens, heads, width] = x.dims();
    let half = width / 2;
    let part = |from: usize| x.clone().slice([0..batch, 0..tokens, 0..heads, from..from + half]);
    let (a, b) = (part(0), part(half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos.clone() + a * sin.clone();
    Tensor::cat(vec![first, second], 3)
}

/// `softmax(q kᵀ / √d + mask) v` for each head; queries, keys and values `[batch, tokens, heads · head width]`.
///
/// The query heads that share a key-value head are stacked below one another, so that keys and values are never repeated.
pub(super) fn attend(
    spec: &DecoderSpec,
    layer: usize,
    span: &Span,
    geometry: &Geometry,
    [query, key, value]: [Tensor<3>; 3],
    past: Option<&mut Past>,
) -> Tensor<3> {
    let [batch, tokens, _] = query.dims();
    let (shared, width) = (spec.key_value_heads, spec.head_width);
    let group = spec.heads / shared;
    let turn = |x: Tensor<4>| match &geometry.rotary {
        Some(angles) => rotate(x, angles),
        None => x,
    };
    let query = query.mul_scalar(1.0 / (width as f64).sqrt());
    let query = turn(query.reshape([batch, tokens, spec.heads, width]));
    let query = query.swap_dims(1, 2).reshape([batch, shared, group * tokens, width]);
    let key = turn(key.reshape([batch, tokens, shared, width])).swap_dims(1, 2);
    let value = value.reshape([batch, tokens, shared, width]).swap_dims(1, 2);
    let (key, value) = match past {
        Some(past) => past.append(layer, span, key, value),
        None => (key, value),
    };
    weigh([query, key, value], spec.heads, geometry.mask.clone())
}

/// `softmax(q kᵀ + mask) v` of queries `[batch, shared, group · tokens, width]`, already scaled, and keys and values
/// `[batch, shared, keys, width]`; gives `[batch, tokens, heads · width]`.
pub(super) fn weigh([query, key, value]: [Tensor<4>; 3], heads: usize, mask: Option<Tensor<4>>) -> Tensor<3> {
    let [batch, shared, stacked, width] = query.dims();
    let (keys, tokens) = (key.dims()[2], stacked * shared / heads);
    let scores = query.matmul(key.swap_dims(2, 3)).reshape([batch, heads, tokens, keys]);
    let scores = match mask {
        Some(mask) => scores + mask,
        None => scores,
    };
    let dtype = scores.dtype();
    let weights = activation::softmax(at_least_f32(scores), 3).cast(dtype).reshape([batch, shared, stacked, keys]);
    let mixed = weights.matmul(value).reshape([batch, heads, tokens, width]);
    mixed.swap_dims(1, 2).reshape([batch, tokens, heads * width])
}

/// `[batch, 1, 1, tokens]`: 0 where a cell is real, −∞ where it is padding; nothing where none is.
pub(super) fn padding(span: &Span, device: &Device, dtype: DType) -> Option<Tensor<4>> {
    if span.rows.iter().all(|row| row.len == span.width) {
        return None;
    }
    let cells = span.rows.iter().flat_map(|row| (0..span.width).map(|cell| cell < row.len));
    let values: Vec<f32> = cells.map(|real| if real { 0.0 } else { f32::NEG_INFINITY }).collect();
    Some(Tensor::from_data(TensorData::new(values, [span.rows.len(), 1, 1, span.width]), (device, dtype)))
}
