//! Relative positions (Raffel et al., 2020): a learned number for each head and distance between two cells, added to their score.

use burn::tensor::{Device, Int, Tensor};

/// Which distances share a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// Rows of the table. Half of them are for near distances, one each; the others for ranges that grow towards `farthest`.
    pub buckets: usize,
    /// From here on all share one.
    pub farthest: usize,
}

impl Relative {
    /// The row of the table for a key so many positions behind (below 0) or before its query. Where both sides are seen each has half of the rows.
    pub fn bucket(self, distance: i64, both_sides: bool) -> usize {
        let (buckets, first, distance) = match both_sides {
            true => {
                (self.buckets / 2, if distance > 0 { self.buckets / 2 } else { 0 }, distance.unsigned_abs() as usize)
            }
            false => (self.buckets, 0, (-distance).max(0) as usize),
        };
        let near = buckets / 2;
        if distance < near {
            return first + distance;
        }
        let share = (distance as f64 / near as f64).ln() / (self.farthest as f64 / near as f64).ln();
        first + (near + (share * (buckets - near) as f64) as usize).min(buckets - 1)
    }

    /// Of `table [buckets, heads]` what is added to the scores of rows of queries and keys by their positions, `[rows, heads, queries, keys]`.
    pub(in crate::model) fn bias(
        self,
        table: Tensor<2>,
        positions: &[(Vec<usize>, Vec<usize>)],
        both_sides: bool,
        device: &Device,
    ) -> Tensor<4> {
        let (queries, keys) = positions.first().map_or((0, 0), |(queries, keys)| (queries.len(), keys.len()));
        let rows = positions.iter().flat_map(|(queries, keys)| {
            queries.iter().flat_map(move |&query| {
                keys.iter().map(move |&key| self.bucket(key as i64 - query as i64, both_sides) as i64)
            })
        });
        let rows: Vec<i64> = rows.collect();
        let heads = table.dims()[1];
        let chosen = table.select(0, Tensor::<1, Int>::from_data(rows.as_slice(), &device.clone().inner()));
        chosen.reshape([positions.len(), queries, keys, heads]).permute([0, 3, 1, 2])
    }
}
