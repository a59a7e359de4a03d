//! Attention: `softmax(q kᵀ + mask) v` for each head.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use super::{at_least_f32, soft_cap};
use crate::model::tap::{Span, Unseen};

/// Causal: a cell sees the cells at its own position and before, those apart that its row calls unseen; in a local layer the last `window`
/// positions, its own included. `[rows, 1, tokens, past + tokens]`: 0 where a cell sees another, −∞ elsewhere; nothing where every cell sees all.
pub(in crate::model) fn causal(
    span: &Span,
    seen: &[Vec<Option<usize>>],
    rows: usize,
    window: Option<usize>,
    (device, dtype): (&Device, DType),
) -> Option<Tensor<4>> {
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
                        let near = window.is_none_or(|window| key + window > query);
                        *key <= query && near && !unseen.is_some_and(hidden)
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

/// `[batch, 1, 1, tokens]`: 0 where a cell is real, −∞ where it is padding; nothing where none is.
pub(in crate::model) fn padding(span: &Span, device: &Device, dtype: DType) -> Option<Tensor<4>> {
    let lengths: Vec<usize> = span.rows.iter().map(|row| row.len).collect();
    real(&lengths, span.width, device, dtype)
}

/// The same of rows with so many real cells each among `width`.
pub(in crate::model) fn real(lengths: &[usize], width: usize, device: &Device, dtype: DType) -> Option<Tensor<4>> {
    if lengths.iter().all(|&length| length == width) {
        return None;
    }
    let cells = lengths.iter().flat_map(|&length| (0..width).map(move |cell| cell < length));
    let values: Vec<f32> = cells.map(|real| if real { 0.0 } else { f32::NEG_INFINITY }).collect();
    Some(Tensor::from_data(TensorData::new(values, [lengths.len(), 1, 1, width]), (device, dtype)))
}

/// `softmax(q kᵀ + mask) v` of queries `[batch, shared, group · tokens, width]`, already scaled, and keys and values
/// `[batch, shared, keys, width]`; gives `[batch, tokens, heads · width]`.
///
/// The query heads that share a key-value head are stacked below one another, so that keys and values are never repeated.
/// Scores are held below `cap` where there is one.
pub(in crate::model) fn weigh(
    [query, key, value]: [Tensor<4>; 3],
    heads: usize,
    cap: Option<f64>,
    mask: Option<Tensor<4>>,
) -> Tensor<3> {
    let [batch, shared, stacked, width] = query.dims();
    let (keys, tokens) = (key.dims()[2], stacked * shared / heads);
    let scores = query.matmul(key.swap_dims(2, 3)).reshape([batch, heads, tokens, keys]);
    let scores = soft_cap(scores, cap);
    let scores = match mask {
        Some(mask) => scores + mask,
        None => scores,
    };
    let dtype = scores.dtype();
    let weights = activation::softmax(at_least_f32(scores), 3).cast(dtype).reshape([batch, shared, stacked, keys]);
    let mixed = weights.matmul(value).reshape([batch, heads, tokens, width]);
    mixed.swap_dims(1, 2).reshape([batch, tokens, heads * width])
}
