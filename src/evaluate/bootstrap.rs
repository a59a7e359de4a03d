//! Sums over cases drawn anew, of many columns at once.

use rand::RngExt;
use rayon::prelude::*;

use super::metrics::harmonic;
use super::protocol::balanced::balanced_accuracy;
use crate::random;

/// How many times the cases are drawn.
pub(super) const RESAMPLES: u64 = 1000;

/// Columns of numbers with a row a case. Every statistic here is a function of the columns' sums.
pub(super) struct Sheet {
    cases: usize,
    columns: Vec<Vec<f64>>,
}

impl Sheet {
    pub fn new(cases: usize) -> Self {
        Sheet { cases, columns: vec![] }
    }

    /// Adds a column and says its number.
    pub fn column(&mut self, values: Vec<f64>) -> usize {
        self.columns.push(values);
        self.columns.len() - 1
    }

    /// The sums over the cases as they are.
    pub fn sums(&self) -> Vec<f64> {
        self.columns.iter().map(|column| column.iter().sum()).collect()
    }

    /// The sums over as many cases, drawn with replacement: a row a draw. Each draw has a stream of its own, so that they may be
    /// made in any order.
    pub fn resampled(&self, seed: u64) -> Vec<Vec<f64>> {
        let width = self.columns.len();
        if self.cases == 0 || width == 0 {
            return vec![];
        }
        let rows: Vec<f64> =
            (0..self.cases).flat_map(|case| self.columns.iter().map(move |column| column[case])).collect();
        let draw = |number: u64| {
            let mut rng = random::stream(seed, "bootstrap", number);
            let mut times = vec![0u32; self.cases];
            (0..self.cases).for_each(|_| times[rng.random_range(0..self.cases)] += 1);
            let mut sums = vec![0.0; width];
            for (row, times) in rows.chunks_exact(width).zip(times).filter(|(_, times)| *times > 0) {
                let times = f64::from(times);
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += times * value);
            }
            sums
        };
        (0..RESAMPLES).into_par_iter().map(draw).collect()
    }
}

/// The mean of a column over the cases that have a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mean {
    /// Taken off each value before it is summed, so that equal values have exactly themselves as mean.
    base: f64,
    sum: usize,
    /// The column of ones where there is a value; nothing where all cases have one.
    count: Option<usize>,
    cases: usize,
}

impl Mean {
    /// The mean of values, a case each; nothing where no case has one.
    pub fn of(sheet: &mut Sheet, values: &[Option<f64>]) -> Option<Mean> {
        let known = values.iter().flatten().count();
        let base = values.iter().flatten().copied().filter(|value| value.is_finite()).reduce(f64::min).unwrap_or(0.0);
        let sum = (known > 0)
            .then(|| sheet.column(values.iter().map(|value| value.map_or(0.0, |value| value - base)).collect()))?;
        let presence = || values.iter().map(|value| f64::from(u8::from(value.is_some()))).collect();
        let count = (known < values.len()).then(|| sheet.column(presence()));
        Some(Mean { base, sum, count, cases: values.len() })
    }

    /// NaN where no case that was drawn has a value.
    pub fn at(&self, sums: &[f64]) -> f64 {
        self.base + sums[self.sum] / self.count.map_or(self.cases as f64, |count| sums[count])
    }
}

/// A number that is made of sums over cases.
#[derive(Debug, Clone, Copy)]
pub(super) enum Statistic {
    Mean(Mean),
    /// The harmonic mean of three means.
    Harmonic([Mean; 3]),
    /// Balanced accuracy, by the columns of (right, asked) of each label.
    Balanced([(usize, usize); 2]),
}

impl Statistic {
    /// NaN where the cases that were drawn do not give the number.
    pub fn at(&self, sums: &[f64]) -> f64 {
        match self {
            Statistic::Mean(mean) => mean.at(sums),
            Statistic::Harmonic(parts) => harmonic(parts.map(|part| part.at(sums))),
            Statistic::Balanced(labels) => {
                balanced_accuracy(labels.map(|(right, asked)| (sums[right], sums[asked]))).unwrap_or(f64::NAN)
            }
        }
    }
}

/// The 2.5th and the 97.5th percentile of draws, linear between neighbours, widened to the number itself where rounding or very few
/// cases leave it outside. Draws without a number are left out.
pub(super) fn interval(number: f64, mut draws: Vec<f64>) -> (f64, f64) {
    draws.retain(|draw| !draw.is_nan());
    draws.sort_by(f64::total_cmp);
    let Some(last) = draws.len().checked_sub(1) else { return (number, number) };
    let at = |share: f64| {
        let place = share * last as f64;
        let (low, high) = (draws[place.floor() as usize], draws[place.ceil() as usize]);
        if low == high { low } else { low + (high - low) * place.fract() }
    };
    (at(0.025).min(number), at(0.975).max(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_linear_between_neighbours() {
        // numpy.percentile(range(11), [2.5, 97.5])
        assert_eq!(interval(5.0, (0..11).rev().map(f64::from).collect()), (0.25, 9.75));
        assert_eq!(interval(5.0, vec![f64::NAN]), (5.0, 5.0));
        // No further in than the number itself.
        assert_eq!(interval(0.5, vec![1.0, 2.0]).0, 0.5);
    }

    #[test]
    fn draws_have_as_many_cases_as_there_are() {
        let mut sheet = Sheet::new(7);
        sheet.column(vec![1.0; 7]);
        let mean = Mean::of(&mut sheet, &[Some(0.1), None, Some(0.1), None, None, None, None]).unwrap();
        let draws = sheet.resampled(3);
        assert_eq!(draws.len(), RESAMPLES as usize);
        assert!(draws.iter().all(|sums| sums[0] == 7.0));
        // A draw without either of the two cases has no mean.
        assert!(draws.iter().all(|sums| mean.at(sums) == 0.1 || mean.at(sums).is_nan()));
        assert!(draws.iter().any(|sums| mean.at(sums).is_nan()));
        assert_ne!(sheet.resampled(4), draws);
    }
}
