//! Least squares: how much of a score layers explain, and how much the tracing effect, alone and beside them.

use faer::Mat;
use faer::linalg::solvers::SolveLstsq;
use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF, FisherSnedecor, Normal};

use crate::report::table::counted;

/// One edit: its score, the layer it was made at, and the fact's tracing effect there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// What came of it.
    pub score: f64,
    /// The layer.
    pub layer: usize,
    /// The effect.
    pub effect: f64,
}

/// What a linear model leaves unexplained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// 1 − residual sum of squares ÷ total sum of squares.
    pub r2: f64,
    /// The residual sum of squares.
    pub residual: f64,
    /// Coefficients that the data decide.
    pub rank: usize,
    /// Observations.
    pub count: usize,
}

/// A test of a model against one with fewer terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FTest {
    /// The statistic.
    pub f: f64,
    /// How likely so large a one is where the further terms say nothing.
    pub p: f64,
}

/// A correlation with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correlation {
    /// Pearson's.
    pub r: f64,
    /// By Fisher's transform; nothing of fewer than four pairs.
    pub interval: Option<(f64, f64)>,
    /// Pairs.
    pub count: usize,
}

/// The regressions of some edits.
#[derive(Debug, Clone)]
pub struct Regressions {
    /// On the layer, each by itself.
    pub layer: Fit,
    /// On the effect.
    pub effect: Fit,
    /// On both, and their interaction.
    pub both: Fit,
    /// Both against the layer alone.
    pub test: Option<FTest>,
    /// Of score and effect over all of them.
    pub correlation: Option<Correlation>,
}

/// Fits `y` by the columns of a design; nothing where `y` does not vary or there are no more observations than coefficients.
pub fn fit(design: &Mat<f64>, y: &[f64]) -> Option<Fit> {
    let count = y.len();
    let mean = y.iter().sum::<f64>() / count.max(1) as f64;
    let total: f64 = y.iter().map(|y| (y - mean).powi(2)).sum();
    let design = independent(design);
    let rank = design.ncols();
    // What varies in the last digit only does not vary.
    if count <= rank || total <= 1e-18 * count as f64 {
        return None;
    }
    let target = Mat::from_fn(count, 1, |row, _| y[row]);
    let solution = design.qr().solve_lstsq(&target);
    let rest = &target - &design * &solution;
    let residual: f64 = (0..count).map(|row| rest[(row, 0)].powi(2)).sum();
    Some(Fit { r2: 1.0 - residual / total, residual, rank, count })
}

/// The columns that are no sum of those before them (modified Gram-Schmidt).
fn independent(design: &Mat<f64>) -> Mat<f64> {
    let rows = design.nrows();
    let column = |at: usize| (0..rows).map(|row| design[(row, at)]).collect::<Vec<f64>>();
    let length = |of: &[f64]| of.iter().map(|value| value * value).sum::<f64>().sqrt();
    let (mut kept, mut basis): (Vec<usize>, Vec<Vec<f64>>) = (vec![], vec![]);
    for at in 0..design.ncols() {
        let own = column(at);
        let (whole, mut rest) = (length(&own), own);
        for direction in &basis {
            let along: f64 = direction.iter().zip(&rest).map(|(a, b)| a * b).sum();
            rest.iter_mut().zip(direction).for_each(|(rest, direction)| *rest -= along * direction);
        }
        let left = length(&rest);
        if left > 1e-9 * whole && left > 0.0 {
            basis.push(rest.into_iter().map(|value| value / left).collect());
            kept.push(at);
        }
    }
    Mat::from_fn(rows, kept.len(), |row, at| design[(row, kept[at])])
}

/// Whether the terms that `large` has beyond `small` explain more than chance; nothing where it has none, or leaves nothing unexplained.
pub fn f_test(small: Fit, large: Fit) -> Option<FTest> {
    let (more, left) = (large.rank.checked_sub(small.rank)?, large.count.checked_sub(large.rank)?);
    if more == 0 || left == 0 || large.residual <= 0.0 {
        return None;
    }
    let f = ((small.residual - large.residual).max(0.0) / more as f64) / (large.residual / left as f64);
    let p = FisherSnedecor::new(more as f64, left as f64).ok()?.sf(f);
    Some(FTest { f, p })
}

/// Pearson's correlation of pairs; nothing where one of both does not vary.
pub fn correlation(pairs: &[(f64, f64)]) -> Option<Correlation> {
    let count = pairs.len();
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / count.max(1) as f64;
    let (x, y) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let sum = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>();
    let along = sum(&|pair| (pair.0 - x) * (pair.1 - y));
    let (of_x, of_y) = (sum(&|pair| (pair.0 - x).powi(2)), sum(&|pair| (pair.1 - y).powi(2)));
    // What varies in the last digit only does not vary.
    if count < 3 || of_x.min(of_y) <= 1e-18 * count as f64 {
        return None;
    }
    let r = (along / (of_x * of_y).sqrt()).clamp(-1.0, 1.0);
    let half = Normal::new(0.0, 1.0)
        .ok()
        .filter(|_| count > 3)
        .map(|normal| normal.inverse_cdf(0.975) / (count as f64 - 3.0).sqrt());
    let interval = half.map(|half| ((r.atanh() - half).tanh(), (r.atanh() + half).tanh()));
    Some(Correlation { r, interval, count })
}

impl Regressions {
    /// Of edits at several layers.
    ///
    /// # Errors
    /// Why there is nothing to regress, in words.
    pub fn of(observations: &[Observation]) -> Result<Self, String> {
        let mut layers: Vec<usize> = observations.iter().map(|one| one.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        if layers.len() < 2 {
            return Err(format!("{}: a regression on layers wants at least two", counted(layers.len(), "layer")));
        }
        let (rows, count) = (observations.len(), layers.len());
        let y: Vec<f64> = observations.iter().map(|one| one.score).collect();
        let is = |row: usize, layer: usize| f64::from(u8::from(observations[row].layer == layers[layer]));
        let effect = |row: usize| observations[row].effect;
        let of_layer = Mat::from_fn(rows, count, is);
        let of_effect = Mat::from_fn(rows, 2, |row, column| if column == 0 { 1.0 } else { effect(row) });
        let of_both = Mat::from_fn(rows, 2 * count, |row, column| {
            if column < count { is(row, column) } else { is(row, column - count) * effect(row) }
        });
        let few = || format!("{rows} edits whose scores do not vary, or too few for {count} layers");
        let fitted = |design: &Mat<f64>| fit(design, &y).ok_or_else(few);
        let (layer, effect, both) = (fitted(&of_layer)?, fitted(&of_effect)?, fitted(&of_both)?);
        let pairs: Vec<(f64, f64)> = observations.iter().map(|one| (one.effect, one.score)).collect();
        Ok(Regressions { layer, effect, both, test: f_test(layer, both), correlation: correlation(&pairs) })
    }

    /// How much R² would rise on the mean from the layer to both if effects were numbers without meaning: of what the layer leaves, each further coefficient takes as much as each
    /// observation that is not used up yet.
    pub fn by_chance(&self) -> f64 {
        let (more, left) = (self.both.rank - self.layer.rank, self.layer.count - self.layer.rank);
        (1.0 - self.layer.r2) * more as f64 / left.max(1) as f64
    }

    /// As JSON.
    pub fn document(&self) -> Value {
        json!({
            "r2": {
                "layer": self.layer.r2, "effect": self.effect.r2, "both": self.both.r2, "difference": self.both.r2 - self.layer.r2,
                "by_chance": self.by_chance(),
            },
            "f": self.test.map(|test| test.f),
            "p": self.test.map(|test| test.p),
            "correlation": self.correlation.map(|of| json!({ "r": of.r, "interval": of.interval })),
            "edits": self.layer.count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twelve edits, and what R's `lm` and `anova` say of them.
    fn edits() -> Vec<Observation> {
        let scores = [0.91, 0.95, 0.88, 0.99, 0.71, 0.80, 0.66, 0.78, 0.30, 0.52, 0.41, 0.35];
        let effects = [0.10, 0.30, 0.05, 0.40, 0.20, 0.50, 0.15, 0.35, 0.05, 0.60, 0.30, 0.20];
        let one = |number: usize| Observation { score: scores[number], layer: number / 4 * 3, effect: effects[number] };
        (0..12).map(one).collect()
    }

    #[test]
    fn regressions_are_those_of_the_normal_equations() {
        let found = Regressions::of(&edits()).unwrap();
        // Within a layer the best is its mean.
        let (mut rest, mut total) = (0.0, 0.0);
        let all: Vec<f64> = edits().iter().map(|one| one.score).collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
        for own in all.chunks(4) {
            rest += own.iter().map(|y| (y - mean(own)).powi(2)).sum::<f64>();
        }
        total += all.iter().map(|y| (y - mean(&all)).powi(2)).sum::<f64>();
        assert!((found.layer.r2 - (1.0 - rest / total)).abs() < 1e-12);
        // A line's R² is the square of the correlation.
        let r = found.correlation.unwrap();
        assert!((found.effect.r2 - r.r * r.r).abs() < 1e-12);
        // Layers with lines of their own: each layer's line by itself.
        let mut own_rest = 0.0;
        for own in edits().chunks(4) {
            let pairs: Vec<(f64, f64)> = own.iter().map(|one| (one.effect, one.score)).collect();
            let scores: Vec<f64> = own.iter().map(|one| one.score).collect();
            let whole: f64 = scores.iter().map(|y| (y - mean(&scores)).powi(2)).sum();
            own_rest += whole * (1.0 - correlation(&pairs).unwrap().r.powi(2));
        }
        assert!((found.both.residual - own_rest).abs() < 1e-12);
        let test = found.test.unwrap();
        let f = ((rest - own_rest) / 3.0) / (own_rest / 6.0);
        assert!((test.f - f).abs() < 1e-9 && test.p > 0.0 && test.p < 0.05, "{test:?}");
        assert_eq!((found.layer.rank, found.effect.rank, found.both.rank), (3, 2, 6));
    }

    #[test]
    fn numbers_without_meaning_explain_what_chance_gives() {
        use rand::RngExt;
        let mut rng = crate::random::stream(0, "test", 0);
        let (mut risen, mut told, rounds) = (0.0, 0.0, 400);
        for _ in 0..rounds {
            let mut one = |number: usize| {
                let score = f64::from(u8::from(number.is_multiple_of(3))) + rng.random_range(-1.0..1.0);
                Observation { score, layer: number % 3, effect: rng.random_range(0.0..1.0) }
            };
            let found = Regressions::of(&(0..24).map(&mut one).collect::<Vec<_>>()).unwrap();
            risen += found.both.r2 - found.layer.r2;
            told += found.by_chance();
        }
        assert!((risen - told).abs() < 0.1 * told, "{risen} {told}");
    }

    #[test]
    fn what_cannot_be_regressed_is_said() {
        let one = |score, layer| Observation { score, layer, effect: 0.0 };
        assert!(Regressions::of(&[one(0.1, 3), one(0.2, 3)]).unwrap_err().contains("at least two"));
        assert!(Regressions::of(&[one(0.1, 3), one(0.2, 4)]).is_err());
        let alike: Vec<Observation> = (0..8).map(|number| one(1.0, number % 2)).collect();
        assert!(Regressions::of(&alike).unwrap_err().contains("do not vary"));
        // Effects that do not vary add nothing, and are no error.
        let flat: Vec<Observation> = (0..8).map(|number| one(f64::from(number), number as usize % 2)).collect();
        let found = Regressions::of(&flat).unwrap();
        assert!((found.both.r2 - found.layer.r2).abs() < 1e-12 && found.test.is_none() && found.correlation.is_none());
    }
}
