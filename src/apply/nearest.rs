//! The nearest of many keys, for memories that compare activations.

use burn::tensor::{DType, Tensor};

/// Rows of numbers `[rows, width]`, as a tensor for products and as numbers for single distances.
pub(super) struct Rows {
    tensor: Tensor<2>,
    numbers: Vec<f32>,
    width: usize,
}

impl Rows {
    pub fn new(tensor: &Tensor<2>) -> Self {
        let (width, tensor) = (tensor.dims()[1], tensor.clone().cast(DType::F32));
        Rows { tensor: tensor.clone(), numbers: tensor.into_data().iter::<f32>().collect(), width }
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.width..][..self.width]
    }

    /// The same numbers as [`nearest_within`] reads them: the first [`HEAD`] of each row, and behind those of all rows what is left of each.
    pub fn into_heads_first(self) -> Vec<f32> {
        let head = HEAD.min(self.width);
        let rows = || self.numbers.chunks_exact(self.width.max(1));
        rows().flat_map(|row| &row[..head]).chain(rows().flat_map(|row| &row[head..])).copied().collect()
    }

    /// Some rows that follow each other.
    pub fn part(&self, rows: std::ops::Range<usize>) -> Rows {
        Rows::new(&self.tensor.clone().slice([rows, 0..self.width]))
    }
}

/// A key and how far it is away, ‖query − key‖.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Nearest {
    pub key: usize,
    pub distance: f64,
}

/// Queries that are compared at once: the products of a thousand of them with as many keys are 4 MB.
const AT_ONCE: usize = 256;

/// For each query the nearest of the keys that `stands` says (query, key) may answer it; of equally near ones the later.
pub(super) fn nearest(queries: &Rows, keys: &Rows, stands: impl Fn(usize, usize) -> bool) -> Vec<Option<Nearest>> {
    let count = keys.numbers.len() / keys.width.max(1);
    let all = queries.numbers.len() / queries.width.max(1);
    let mut found = vec![];
    for from in (0..all).step_by(AT_ONCE) {
        let part = queries.part(from..all.min(from + AT_ONCE));
        // ‖q − k‖² = ‖q‖² + ‖k‖² − 2⟨q, k⟩, and of one query ‖q‖² is the same for all keys: one product finds the nearest.
        let squares = keys.tensor.clone().square().sum_dim(1).transpose();
        let apart = part.tensor.clone().matmul(keys.tensor.clone().transpose());
        let apart: Vec<f32> = (squares - apart.mul_scalar(2.0)).into_data().iter::<f32>().collect();
        for (number, row) in apart.chunks(count.max(1)).enumerate() {
            let standing = (0..count).filter(|&key| stands(from + number, key));
            let key = standing.min_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a)));
            // The product loses the digits of a small distance: that of the nearest is taken by itself.
            found.push(key.map(|key| Nearest { key, distance: distance(part.row(number), keys.row(key)) }));
        }
    }
    found
}

/// Numbers of a distance that are summed before it is looked at again.
const PART: usize = 64;

/// Numbers of each key that stand together: most keys are far, and are given up after these, so that of a large list little memory is read.
const HEAD: usize = 16;

/// The nearest of keys that stand and are no further than `most`; of equally near ones the later. The keys are as [`Rows::into_heads_first`] gives them.
pub(super) fn nearest_within(
    query: &[f32],
    keys: &[f32],
    most: f64,
    stands: impl Fn(usize) -> bool,
) -> Option<Nearest> {
    let mut found: Option<Nearest> = None;
    let mut bound = most * most;
    let (own, rest) = query.split_at(HEAD.min(query.len()));
    let (heads, rests) = keys.split_at(keys.len() / query.len().max(1) * own.len());
    let square =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum() };
    for (key, head) in heads.chunks_exact(own.len().max(1)).enumerate().filter(|(key, _)| stands(*key)) {
        let mut sum = square(own, head);
        let numbers = rests.get(key * rest.len()..(key + 1) * rest.len()).unwrap_or_default();
        for (a, b) in rest.chunks(PART).zip(numbers.chunks(PART)) {
            if sum > bound {
                break;
            }
            sum += square(a, b);
        }
        if sum <= bound {
            (found, bound) = (Some(Nearest { key, distance: sum.sqrt() }), sum);
        }
    }
    found
}

/// ‖a − b‖
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn the_nearest_within_is_the_nearest_where_it_is_near_enough() {
        for width in [3, 16, 17, 100] {
            let keys = Tensor::random([40, width], Distribution::Normal(0.0, 1.0), &Device::flex());
            let near = keys.clone().slice([5..9, 0..width]) + 0.1;
            let (rows, queries) = (Rows::new(&keys), Rows::new(&near));
            let wanted = nearest(&queries, &rows, |_, key| key != 6);
            let numbers = Rows::new(&keys).into_heads_first();
            for (number, wanted) in wanted.into_iter().enumerate() {
                let wanted = wanted.unwrap();
                let within = |most: f64| nearest_within(queries.row(number), &numbers, most, |key| key != 6);
                let found = within(2.0 * wanted.distance).unwrap();
                assert_eq!(found.key, wanted.key, "width {width}");
                assert!((found.distance - wanted.distance).abs() < 1e-9, "{found:?} {wanted:?}");
                assert_eq!(within(0.9 * wanted.distance), None);
            }
        }
    }
}
