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

use std::sync::Arc;

use crate::edit::Delta;
use crate::error::{Error, Result};

/// What a shift is held back by beside `e^λ ‖S‖²`: with C, the second moments of keys of running text, it is `e^λ ⟨S, C S⟩`, how far the
/// outputs of that text move. The equations are then those above with `e^λ C` for `e^λ I`.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Of C `[d_in, d_in]`
    factored: Llt<f64>,
}

impl Moments {
    /// Of a symmetric matrix. It is scaled to a mean diagonal of 1, so that λ means the same with it and without; a hundredth of that is
    /// added to the diagonal, for keys that are fewer than they are wide leave directions of which they say nothing.
    ///
    /// # Errors
    /// Keys that are not finite, or all 0.
    pub fn new(matrix: &Mat<f64>) -> Result<Self> {
        let width = matrix.nrows();
        let mean = (0..width).map(|index| matrix[(index, index)]).sum::<f64>() / width as f64;
        let mut matrix = faer::Scale(1.0 / mean) * matrix;
        for index in 0..width {
            matrix[(index, index)] += 0.01;
        }
        let factored = matrix.llt(Side::Lower);
        let factored =
            factored.map_err(|_| Error::Input("the keys of running text are not finite, or all 0".to_owned()))?;
        Ok(Moments { factored })
    }

    /// C X
    fn times(&self, unknown: &Mat<f64>) -> Mat<f64> {
        self.factored.L() * (self.factored.L().transpose() * unknown)
    }

    /// As archives hold them, `[d_in, d_in]` in f32.
    pub fn data(&self) -> TensorData {
        let width = self.factored.L().nrows();
        let matrix = self.times(&Mat::identity(width, width));
        let places = (0..width).flat_map(|row| (0..width).map(move |column| (row, column)));
        TensorData::new(places.map(|place| matrix[place] as f32).collect::<Vec<f32>>(), [width, width])
    }

    /// Those of an archive; nothing where they are of another width, or no moments.
    pub fn from_data(data: &TensorData, width: usize) -> Option<Self> {
        if data.shape().to_vec() != [width, width] {
            return None;
        }
        let values: Vec<f64> = data.iter::<f64>().collect();
        let matrix = Mat::from_fn(width, width, |row, column| values[row * width + column]);
        Some(Moments { factored: matrix.llt(Side::Lower).ok()? })
    }
}

/// The loss's gradient with respect to what a shift is made of.
pub struct OfSolution {
    /// ∂L/∂X
    pub unknown: Mat<f64>,
    /// ∂L/∂A, where keys are learned and tokens are few.
    pub outputs: Option<Mat<f64>>,
}

/// The loss's gradient with respect to what the equations are made of.
pub struct Gradients {
    /// ∂L/∂D `[tokens, d_out]`
    pub wanted: Mat<f64>,
    /// ∂L/∂K `[tokens, d_in]`, where keys are learned.
    pub keys: Option<Mat<f64>>,
    /// ∂L/∂λ
    pub damping: f64,
}

/// The system of one matrix, factored.
pub struct NormalEquations {
    /// Whether keys are learned.
    learned: bool,
    /// K `[tokens, d_in]`
    keys: Mat<f64>,
    /// K C⁻¹, where there are few tokens and a C.
    outputs: Option<Mat<f64>>,
    /// Of `K C⁻¹ Kᵀ + e^λ I` where there are fewer tokens than the matrix is wide, else of `KᵀK + e^λ C`.
    system: Llt<f64>,
    /// e^λ
    damping: f64,
    moments: Option<Arc<Moments>>,
}

impl NormalEquations {
    /// The system of keys `[tokens, d_in]`, which may be learned, with the damping e^λ, of I or of the moments.
    ///
    /// # Errors
    /// Keys that are not finite; a damping so small that the system is singular.
    pub fn new(keys: &Tensor<2>, learned: bool, lambda: f64, moments: Option<Arc<Moments>>) -> Result<Self> {
        let (keys, damping) = (matrix(keys), lambda.exp());
        let of_few = moments.as_ref().filter(|_| few(&keys));
        let outputs = of_few.map(|moments| moments.factored.solve(keys.transpose()).transpose().to_owned());
        let mut system = match few(&keys) {
            true => outputs.as_ref().unwrap_or(&keys) * keys.transpose(),
            false => keys.transpose() * &keys,
        };
        match moments.as_ref().filter(|_| !few(&keys)) {
            Some(moments) => {
                let width = keys.ncols();
                system += faer::Scale(damping) * moments.times(&Mat::identity(width, width));
            }
            None => (0..system.nrows()).for_each(|index| system[(index, index)] += damping),
        }
        let system = system.llt(Side::Lower).map_err(|_| {
            Error::Input(format!("the keys of these edits do not determine a shift with a damping of {damping:.3e}"))
        })?;
        Ok(NormalEquations { learned, keys, outputs, system, damping, moments })
    }

    /// What the unknown is multiplied by in a shift, transposed.
    fn outputs(&self) -> &Mat<f64> {
        self.outputs.as_ref().unwrap_or(&self.keys)
    }

    /// What is unknown in the shift of D `[tokens, d_out]`: `X = (K C⁻¹ Kᵀ + e^λ I)⁻¹ D`, of which `S = C⁻¹ KᵀX`; else `X = S`.
    pub fn solve(&self, wanted: &Mat<f64>) -> Mat<f64> {
        if few(&self.keys) { self.system.solve(wanted) } else { self.system.solve(self.keys.transpose() * wanted) }
    }

    /// `∂L/∂D` and `∂L/∂λ` from the solution X and `∂L/∂X`: with `M = (…)⁻¹ ∂L/∂X`, `∂L/∂D` is M itself where there are few tokens, else
    /// `K M`; and `∂L/∂λ` is `−e^λ ⟨M, X⟩`, else `−e^λ ⟨M, C X⟩`.
    ///
    /// Where keys are learned, ∂L/∂K too. A shift of few tokens is `A X` with `A = C⁻¹Kᵀ`: from ∂L/∂A as well,
    /// `∂L/∂K = (C⁻¹ ∂L/∂A)ᵀ − (M Xᵀ + X Mᵀ) Aᵀ`; else `(D − K S) Mᵀ − K M Sᵀ`.
    pub fn gradients(&self, wanted: &Mat<f64>, solution: &Mat<f64>, of: &OfSolution) -> Gradients {
        let moved = self.system.solve(&of.unknown);
        let keys = self.learned.then(|| match &of.outputs {
            Some(outputs) => {
                let held = self.moments.as_ref().map(|moments| moments.factored.solve(outputs));
                let along = &moved * solution.transpose();
                let both = &along + along.transpose();
                held.as_ref().unwrap_or(outputs).transpose() - both * self.outputs()
            }
            None => {
                let left = wanted - &self.keys * solution;
                left * moved.transpose() - &self.keys * &moved * solution.transpose()
            }
        });
        let weighed = match self.moments.as_ref().filter(|_| !few(&self.keys)) {
            Some(moments) => moments.times(solution),
            None => solution.clone(),
        };
        let columns = 0..moved.ncols();
        let along: f64 = columns.map(|column| moved.col(column).transpose() * weighed.col(column)).sum();
        let wanted = if few(&self.keys) { moved } else { &self.keys * moved };
        Gradients { wanted, keys, damping: -self.damping * along }
    }

    /// `‖S‖²` and its gradient.
    pub fn squares(&self, solution: &Mat<f64>) -> (f64, OfSolution) {
        let double = |gradient: Mat<f64>| faer::Scale(2.0) * gradient;
        if !few(&self.keys) {
            return (solution.squared_norm_l2(), OfSolution { unknown: double(solution.clone()), outputs: None });
        }
        let shift = self.outputs().transpose() * solution;
        let unknown = double(self.outputs() * &shift);
        let outputs = self.learned.then(|| double(&shift * solution.transpose()));
        (shift.squared_norm_l2(), OfSolution { unknown, outputs })
    }

    /// What a shift is made of, as tensors: X, and where keys are learned and tokens are few `A = C⁻¹Kᵀ`.
    pub fn parts(&self, solution: &Mat<f64>, device: &Device, dtype: DType) -> Vec<Tensor<2>> {
        let outputs = (self.learned && few(&self.keys)).then(|| tensor(self.outputs(), device, dtype).transpose());
        std::iter::once(tensor(solution, device, dtype)).chain(outputs).collect()
    }

    /// The shift of its parts, which keep their graph: the loss's gradients with respect to them can be read of it.
    pub fn shift(&self, parts: &[Tensor<2>]) -> Delta {
        let solution = parts[0].clone();
        if !few(&self.keys) {
            return Delta::Dense(solution);
        }
        let known = || tensor(self.outputs(), &solution.device().inner(), solution.dtype()).transpose();
        Delta::LowRank { a: parts.get(1).cloned().unwrap_or_else(known), b: solution }
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
        with_moments(keys, lambda, None)
    }

    fn with_moments(keys: &Mat<f64>, lambda: f64, moments: Option<&Arc<Moments>>) -> NormalEquations {
        NormalEquations::new(&tensor(keys, &Device::flex(), DType::F64), true, lambda, moments.cloned()).unwrap()
    }

    /// None, and those of other keys.
    fn both(d_in: usize) -> [Option<Arc<Moments>>; 2] {
        let others = drawn(3 * d_in, d_in, 10);
        [None, Some(Arc::new(Moments::new(&(others.transpose() * &others)).unwrap()))]
    }

    /// S of a solution, multiplied out.
    fn shift(equations: &NormalEquations, solution: &Mat<f64>) -> Mat<f64> {
        if few(&equations.keys) { equations.outputs().transpose() * solution } else { solution.clone() }
    }

    fn apart(one: &Mat<f64>, other: &Mat<f64>) -> f64 {
        (one - other).norm_max() / other.norm_max()
    }

    #[test]
    fn both_forms_are_the_least_squares_solution() {
        // Tokens, d_in, d_out: fewer tokens than the width, and more.
        for (tokens, d_in) in [(3, 7), (9, 4)] {
            let (keys, wanted, lambda) = (drawn(tokens, d_in, 1), drawn(tokens, 5, 2), -0.7_f64);
            for moments in both(d_in) {
                let equations = with_moments(&keys, lambda, moments.as_ref());
                let s = shift(&equations, &equations.solve(&wanted));
                // (KᵀK + e^λ C) S = KᵀD
                let held = moments.map_or_else(|| s.clone(), |moments| moments.times(&s));
                let left = keys.transpose() * (&keys * &s) + faer::Scale(lambda.exp()) * &held;
                assert!(apart(&left, &(keys.transpose() * &wanted)) < 1e-12);
            }
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
        let cases =
            [(3, 7), (9, 4)].into_iter().flat_map(|(tokens, d_in)| both(d_in).map(|moments| (tokens, d_in, moments)));
        for (tokens, d_in, moments) in cases {
            let (keys, wanted, lambda) = (drawn(tokens, d_in, 6), drawn(tokens, 5, 7), 0.4);
            // A loss that is not linear in S.
            let (weights, target) = (drawn(8, d_in, 8), drawn(8, 5, 9));
            let loss = |wanted: &Mat<f64>, lambda: f64| {
                let equations = with_moments(&keys, lambda, moments.as_ref());
                (&weights * shift(&equations, &equations.solve(wanted)) - &target).squared_norm_l2() / 2.0
            };
            let equations = with_moments(&keys, lambda, moments.as_ref());
            let solution = equations.solve(&wanted);
            let of_shift = weights.transpose() * (&weights * shift(&equations, &solution) - &target);
            let (squares, of_squares) = equations.squares(&solution);
            assert!((squares - shift(&equations, &solution).squared_norm_l2()).abs() < 1e-9 * squares);
            let of_squares = of_squares.unknown;
            let moved = shift(&equations, &(&solution + faer::Scale(1e-6) * &of_squares)).squared_norm_l2();
            assert!(((moved - squares) / 1e-6 / of_squares.squared_norm_l2() - 1.0).abs() < 1e-3);
            let of = match tokens < d_in {
                true => OfSolution {
                    unknown: equations.outputs() * &of_shift,
                    outputs: Some(&of_shift * solution.transpose()),
                },
                false => OfSolution { unknown: of_shift, outputs: None },
            };
            let Gradients { wanted: of_wanted, keys: of_keys, damping: of_lambda } =
                equations.gradients(&wanted, &solution, &of);
            let of_keys = of_keys.unwrap();
            for row in 0..tokens {
                for column in 0..d_in {
                    let moved = |by: f64| {
                        let mut moved = keys.clone();
                        moved[(row, column)] += by;
                        let equations = with_moments(&moved, lambda, moments.as_ref());
                        let s = shift(&equations, &equations.solve(&wanted));
                        (&weights * s - &target).squared_norm_l2() / 2.0
                    };
                    let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let found = of_keys[(row, column)];
                    assert!((slope - found).abs() < 1e-6 * slope.abs().max(1.0), "{slope} {found}");
                }
            }
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
