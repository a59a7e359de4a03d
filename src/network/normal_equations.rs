//! One shift of a matrix that serves many edits (Tan et al., 2024, MALMEN).
//!
//! With a key k (the matrix's input) and a wanted change d of its output for each token of each edit, as rows of K and D, the
//! shift is the least-squares solution
//!
//! ```text
//! S = argmin ‖K S − D‖² + e^λ ‖S‖² = (KᵀK + e^λ I)⁻¹ Kᵀ D = Kᵀ (KKᵀ + e^λ I)⁻¹ D
//! ```
//!
//! The first form has a system of the matrix's width, the second one of the number of tokens, and leaves S in factors; the
//! smaller system is solved. Edits whose keys are orthogonal do not know of each other; those whose keys are alike are weighed
//! against each other, where a plain sum would add them up.

use burn::tensor::{DType, Device, Tensor, TensorData};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};

use crate::edit::Delta;
use crate::error::{Error, Result};

/// The system of one matrix, factored.
pub struct NormalEquations {
    /// K `[tokens, d_in]`
    keys: Mat<f64>,
    /// Of `KKᵀ + e^λ I` where there are fewer tokens than the matrix is wide, else of `KᵀK + e^λ I`.
    system: Llt<f64>,
    /// e^λ
    damping: f64,
}

impl NormalEquations {
    /// The system of keys `[tokens, d_in]` with the damping e^λ.
    ///
    /// # Errors
    /// Keys that are not finite; a damping so small that the system is singular.
    pub fn new(keys: &Tensor<2>, lambda: f64) -> Result<Self> {
        let (keys, damping) = (matrix(keys), lambda.exp());
        let mut system = if few(&keys) { &keys * keys.transpose() } else { keys.transpose() * &keys };
        for index in 0..system.nrows() {
            system[(index, index)] += damping;
        }
        let system = system.llt(Side::Lower).map_err(|_| {
            Error::Input(format!("the keys of these edits do not determine a shift with a damping of {damping:.3e}"))
        })?;
        Ok(NormalEquations { keys, system, damping })
    }

    /// What is unknown in the shift of D `[tokens, d_out]`: `X = (KKᵀ + e^λ I)⁻¹ D`, of which `S = KᵀX`; else `X = S`.
    pub fn solve(&self, wanted: &Mat<f64>) -> Mat<f64> {
        if few(&self.keys) { self.system.solve(wanted) } else { self.system.solve(self.keys.transpose() * wanted) }
    }

    /// `∂L/∂D` and `∂L/∂λ` from the solution X and `∂L/∂X`: with `M = (… + e^λ I)⁻¹ ∂L/∂X`, `∂L/∂D` is M itself where `S = KᵀX`, else
    /// `K M`; and `∂L/∂λ = −e^λ ⟨M, X⟩`.
    pub fn gradients(&self, solution: &Mat<f64>, gradient: &Mat<f64>) -> (Mat<f64>, f64) {
        let moved = self.system.solve(gradient);
        let columns = 0..moved.ncols();
        let along: f64 = columns.map(|column| moved.col(column).transpose() * solution.col(column)).sum();
        let wanted = if few(&self.keys) { moved } else { &self.keys * moved };
        (wanted, -self.damping * along)
    }

    /// The shift of a solution `[…, d_out]`, which keeps its graph: `∂L/∂X` can be read of it.
    pub fn shift(&self, solution: Tensor<2>) -> Delta {
        if few(&self.keys) {
            let keys = tensor(&self.keys, &solution.device().inner(), solution.dtype());
            Delta::LowRank { a: keys.transpose(), b: solution }
        } else {
            Delta::Dense(solution)
        }
    }
}

/// Whether there are fewer tokens than the matrix is wide.
fn few(keys: &Mat<f64>) -> bool {
    keys.nrows() < keys.ncols()
}

/// A tensor as a matrix in f64.
pub fn matrix(tensor: &Tensor<2>) -> Mat<f64> {
    let [rows, columns] = tensor.dims();
    let values: Vec<f64> = tensor.clone().into_data().iter::<f64>().collect();
    Mat::from_fn(rows, columns, |row, column| values[row * columns + column])
}

/// A matrix as a tensor.
pub fn tensor(matrix: &Mat<f64>, device: &Device, dtype: DType) -> Tensor<2> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let values: Vec<f64> = (0..rows).flat_map(|row| (0..columns).map(move |column| matrix[(row, column)])).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), (device, dtype))
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::random;

    fn drawn(rows: usize, columns: usize, stream: u64) -> Mat<f64> {
        let mut rng = random::stream(0, "normal equations", stream);
        Mat::from_fn(rows, columns, |_, _| rng.random_range(-1.0..1.0))
    }

    fn equations(keys: &Mat<f64>, lambda: f64) -> NormalEquations {
        NormalEquations::new(&tensor(keys, &Device::flex(), DType::F64), lambda).unwrap()
    }

    /// S of a solution, multiplied out.
    fn shift(equations: &NormalEquations, solution: &Mat<f64>) -> Mat<f64> {
        if few(&equations.keys) { equations.keys.transpose() * solution } else { solution.clone() }
    }

    fn apart(one: &Mat<f64>, other: &Mat<f64>) -> f64 {
        (one - other).norm_max() / other.norm_max()
    }

    #[test]
    fn both_forms_are_the_least_squares_solution() {
        // Tokens, d_in, d_out: fewer tokens than the width, and more.
        for (tokens, d_in) in [(3, 7), (9, 4)] {
            let (keys, wanted, lambda) = (drawn(tokens, d_in, 1), drawn(tokens, 5, 2), -0.7_f64);
            let equations = equations(&keys, lambda);
            let s = shift(&equations, &equations.solve(&wanted));
            // (KᵀK + e^λ I) S = KᵀD
            let left = keys.transpose() * (&keys * &s) + faer::Scale(lambda.exp()) * &s;
            assert!(apart(&left, &(keys.transpose() * &wanted)) < 1e-12);
        }
    }

    #[test]
    fn one_edit_without_damping_does_what_it_wants() {
        let (keys, wanted) = (drawn(1, 6, 3), drawn(1, 4, 4));
        let equations = equations(&keys, -60.0);
        assert!(apart(&(&keys * shift(&equations, &equations.solve(&wanted))), &wanted) < 1e-12);
    }

    #[test]
    fn edits_with_orthogonal_keys_are_single_edits() {
        let keys = Mat::from_fn(3, 6, |row, column| if column == 2 * row { 1.5 + row as f64 } else { 0.0 });
        let (wanted, lambda) = (drawn(3, 4, 5), 0.3);
        let together = equations(&keys, lambda);
        let together = shift(&together, &together.solve(&wanted));
        let mut sum = Mat::zeros(6, 4);
        for edit in 0..3 {
            let alone = equations(&keys.submatrix(edit, 0, 1, 6).to_owned(), lambda);
            sum += shift(&alone, &alone.solve(&wanted.submatrix(edit, 0, 1, 4).to_owned()));
        }
        assert!(apart(&together, &sum) < 1e-12);
    }

    #[test]
    fn gradients_are_finite_differences() {
        for (tokens, d_in) in [(3, 7), (9, 4)] {
            let (keys, wanted, lambda) = (drawn(tokens, d_in, 6), drawn(tokens, 5, 7), 0.4);
            // A loss that is not linear in S.
            let (weights, target) = (drawn(8, d_in, 8), drawn(8, 5, 9));
            let loss = |wanted: &Mat<f64>, lambda: f64| {
                let equations = equations(&keys, lambda);
                (&weights * shift(&equations, &equations.solve(wanted)) - &target).squared_norm_l2() / 2.0
            };
            let equations = equations(&keys, lambda);
            let solution = equations.solve(&wanted);
            let of_shift = weights.transpose() * (&weights * shift(&equations, &solution) - &target);
            let of_solution = if tokens < d_in { &keys * of_shift } else { of_shift };
            let (of_wanted, of_lambda) = equations.gradients(&solution, &of_solution);
            let step = 1e-5;
            for row in 0..tokens {
                for column in 0..5 {
                    let moved = |by: f64| {
                        let mut moved = wanted.clone();
                        moved[(row, column)] += by;
                        loss(&moved, lambda)
                    };
                    let slope = (moved(step) - moved(-step)) / (2.0 * step);
                    assert!((slope - of_wanted[(row, column)]).abs() < 1e-7, "{slope} {}", of_wanted[(row, column)]);
                }
            }
            let slope = (loss(&wanted, lambda + step) - loss(&wanted, lambda - step)) / (2.0 * step);
            assert!((slope - of_lambda).abs() < 1e-7, "{slope} {of_lambda}");
        }
    }
}
