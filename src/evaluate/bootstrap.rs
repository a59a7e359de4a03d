//! Sums over cases drawn anew, of many columns at once.

use rand::RngExt;
use rayon::prelude::*;

use super::metrics::harmonic;
use super::protocol::Unit;
use super::protocol::balanced::balanced_accuracy;
use crate::random;

/// How many times the cases are drawn.
pub(super) const RESAMPLES: u64 = 1000;

/// The standard normal's 97.5th percentile.
const Z: f64 = 1.96;

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
    pub fn of_column(sheet: &mut Sheet, values: &[Option<f64>]) -> Option<Mean> {
        let known = values.iter().flatten().count();
        let base = values.iter().flatten().copied().filter(|value| value.is_finite()).reduce(f64::min).unwrap_or(0.0);
        let sum = (known > 0)
            .then(|| sheet.column(values.iter().map(|value| value.map_or(0.0, |value| value - base)).collect()))?;
        let presence = || values.iter().map(|value| f64::from(u8::from(value.is_some()))).collect();
        let count = (known < values.len()).then(|| sheet.column(presence()));
        Some(Mean { base, sum, count, cases: values.len() })
    }

    /// What each case adds to the sum of the values and to their number.
    fn summands(&self, sheet: &Sheet) -> [Vec<f64>; 2] {
        let count = self.count.map_or(vec![1.0; self.cases], |count| sheet.columns[count].clone());
        let values = sheet.columns[self.sum].iter().zip(&count).map(|(value, known)| value + self.base * known);
        [values.collect(), count]
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

    /// What each case adds to the sums that [`Statistic::value_of`] makes the number of: those of which there is a share, and how many there
    /// are, in turn.
    pub fn summands(&self, sheet: &Sheet) -> Vec<Vec<f64>> {
        let shares: Vec<[Vec<f64>; 2]> = match self {
            Statistic::Mean(mean) => vec![mean.summands(sheet)],
            Statistic::Harmonic(parts) => parts.iter().map(|part| part.summands(sheet)).collect(),
            Statistic::Balanced(labels) => {
                labels.iter().map(|&(right, asked)| [right, asked].map(|at| sheet.columns[at].clone())).collect()
            }
        };
        (0..sheet.cases).map(|case| shares.iter().flatten().map(|column| column[case]).collect()).collect()
    }

    /// The number, of the sums of [`Statistic::summands`].
    pub fn value_of(&self, sums: &[f64]) -> f64 {
        match self {
            Statistic::Mean(_) => sums[0] / sums[1],
            Statistic::Harmonic(_) => harmonic([0, 2, 4].map(|at| sums[at] / sums[at + 1])),
            Statistic::Balanced(_) => balanced_accuracy([0, 2].map(|at| (sums[at], sums[at + 1]))).unwrap_or(f64::NAN),
        }
    }
}

/// What a number can be at all: how far cases that were not seen could take it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bounds {
    /// A share, from 0 to 1.
    Share,
    /// No further from 0 than this, either way.
    Within(f64),
    /// Anything.
    Open,
}

impl Bounds {
    /// Those of a number.
    pub fn of_unit(unit: Unit) -> Self {
        match unit {
            Unit::Share => Bounds::Share,
            Unit::Difference => Bounds::Within(1.0),
            Unit::Bits | Unit::Seconds | Unit::Bytes | Unit::Number => Bounds::Open,
        }
    }

    /// Those of the difference of two such numbers.
    pub fn of_difference(unit: Unit) -> Self {
        match Bounds::of_unit(unit) {
            Bounds::Share => Bounds::Within(1.0),
            Bounds::Within(most) => Bounds::Within(2.0 * most),
            Bounds::Open => Bounds::Open,
        }
    }

    fn ends(self) -> Option<(f64, f64)> {
        match self {
            Bounds::Share => Some((0.0, 1.0)),
            Bounds::Within(most) => Some((-most, most)),
            Bounds::Open => None,
        }
    }
}

/// The score interval (Wilson, 1927) of a share p of n cases of which each is 0 or 1:
///
/// ```text
/// (p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n),   z = 1.96
/// ```
///
/// At p = 1 it begins at n / (n + z²): twelve of twelve say no more than 75.7 % and above.
pub(super) fn wilson(share: f64, cases: usize) -> (f64, f64) {
    let (n, z2) = (cases as f64, Z * Z);
    let centre = share + z2 / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let whole = 1.0 + z2 / n;
    (((centre - half) / whole).clamp(0.0, share), ((centre + half) / whole).clamp(share, 1.0))
}

/// The 2.5th and the 97.5th percentile of draws, linear between neighbours, widened to the number itself where rounding or very few
/// cases leave it outside. Draws without a number are left out.
///
/// Cases that do not vary say nothing of those that were not seen, and those that hardly vary say little. Of n cases none was the other
/// way: by Wilson's interval a share of up to w = z² / (n + z²) of all may be. So
///
/// ```text
/// a share's interval begins at 1 − w at the most, and ends at w at the least; a difference's, at m − 2mw and 2mw − m, m the most it can be
/// where the draws do not vary, it is the number, moved by w towards either end of what it can be
/// ```
///
/// and of an open number that does not vary there is none.
pub(super) fn interval(number: f64, mut draws: Vec<f64>, cases: usize, bounds: Bounds) -> Option<(f64, f64)> {
    draws.retain(|draw| !draw.is_nan());
    draws.sort_by(f64::total_cmp);
    let last = draws.len().checked_sub(1)?;
    let unseen = Z * Z / (cases as f64 + Z * Z);
    if draws[0] == draws[last] {
        let (least, most) = bounds.ends()?;
        return Some((number - unseen * (number - least), number + unseen * (most - number)));
    }
    let at = |share: f64| {
        let place = share * last as f64;
        let (low, high) = (draws[place.floor() as usize], draws[place.ceil() as usize]);
        if low == high { low } else { low + (high - low) * place.fract() }
    };
    let (low, high) = (at(0.025).min(number), at(0.975).max(number));
    Some(match bounds {
        Bounds::Share => (low.min(1.0 - unseen), high.max(unseen)),
        Bounds::Within(most) => (low.min(most - 2.0 * most * unseen), high.max(2.0 * most * unseen - most)),
        Bounds::Open => (low, high),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_linear_between_neighbours() {
        // numpy.percentile(range(11), [2.5, 97.5])
        let draws = (0..11).rev().map(f64::from).collect();
        assert_eq!(interval(5.0, draws, 11, Bounds::Open), Some((0.25, 9.75)));
        assert_eq!(interval(5.0, vec![f64::NAN], 1, Bounds::Open), None);
        // No further in than the number itself.
        assert_eq!(interval(0.5, vec![1.0, 2.0], 2, Bounds::Open), Some((0.5, 1.975)));
    }

    fn close(found: (f64, f64), wanted: (f64, f64)) {
        assert!((found.0 - wanted.0).abs() < 1e-4 && (found.1 - wanted.1).abs() < 1e-4, "{found:?} {wanted:?}");
    }

    /// Expected values: SciPy 1.17.1, `stats.binomtest(k, n).proportion_ci(method="wilson")`.
    #[test]
    fn a_share_of_zeros_and_ones_has_wilsons_interval() {
        close(wilson(1.0, 12), (0.75751, 1.0));
        close(wilson(0.0, 12), (0.0, 0.24249));
        close(wilson(0.5, 10), (0.23659, 0.76341));
        close(wilson(0.97, 100), (0.91549, 0.98974));
        assert_eq!((wilson(1.0, 7).1, wilson(0.0, 7).0), (1.0, 0.0));
    }

    #[test]
    fn a_few_cases_are_no_certainty() {
        let unseen = Z * Z / (12.0 + Z * Z);
        let all = |value: f64| vec![value; 1000];
        close(interval(1.0, all(1.0), 12, Bounds::Share).unwrap(), (1.0 - unseen, 1.0));
        close(interval(0.25, all(0.25), 12, Bounds::Share).unwrap(), (0.25 * (1.0 - unseen), 0.25 + 0.75 * unseen));
        close(interval(0.0, all(0.0), 12, Bounds::Within(1.0)).unwrap(), (-unseen, unseen));
        assert_eq!(interval(3.0, all(3.0), 12, Bounds::Open), None);
        // Draws that hardly vary, close to either end; and those in the middle are left alone.
        let draws = |number: f64| (0..1000).map(|draw| number + f64::from(draw) * 1e-5).collect::<Vec<f64>>();
        assert_eq!(interval(0.98, draws(0.98), 12, Bounds::Share).unwrap().0, 1.0 - unseen);
        assert_eq!(interval(0.01, draws(0.01), 12, Bounds::Share).unwrap().1, unseen);
        assert!(interval(0.5, draws(0.5), 12, Bounds::Share).unwrap().1 < 0.52);
    }

    #[test]
    fn draws_have_as_many_cases_as_there_are() {
        let mut sheet = Sheet::new(7);
        sheet.column(vec![1.0; 7]);
        let mean = Mean::of_column(&mut sheet, &[Some(0.1), None, Some(0.1), None, None, None, None]).unwrap();
        let draws = sheet.resampled(3);
        assert_eq!(draws.len(), RESAMPLES as usize);
        assert!(draws.iter().all(|sums| sums[0] == 7.0));
        // A draw without either of the two cases has no mean.
        assert!(draws.iter().all(|sums| mean.at(sums) == 0.1 || mean.at(sums).is_nan()));
        assert!(draws.iter().any(|sums| mean.at(sums).is_nan()));
        assert_ne!(sheet.resampled(4), draws);
    }
}
