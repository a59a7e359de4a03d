//! Gradients of a whole module: their norm, their mean, their parts.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// Runs over the gradients of a module's parameters, in the module's order.
struct Visit<'a, F> {
    gradients: &'a mut GradientsParams,
    map: F,
}

/// What is done to the gradient of a parameter, whatever its rank.
trait GradientMap {
    fn map<const D: usize>(&mut self, gradient: Tensor<D>) -> Tensor<D>;
}

impl<F: GradientMap> ModuleVisitor for Visit<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, self.map.map(gradient));
        }
    }
}

struct SumOfSquares(f64);

/// Elements that are summed at once. A backend may share larger sums among threads, in an order that depends on how many there are.
const AT_ONCE: usize = 1 << 21;

impl GradientMap for SumOfSquares {
    fn map<const D: usize>(&mut self, gradient: Tensor<D>) -> Tensor<D> {
        let count: usize = gradient.dims().iter().product();
        let number = |sum: Tensor<1>| sum.into_data().iter::<f64>().sum::<f64>();
        if count <= AT_ONCE {
            self.0 += number(gradient.clone().square().sum());
            return gradient;
        }
        let flat = gradient.clone().reshape([count]);
        for first in (0..count).step_by(AT_ONCE) {
            self.0 += number(flat.clone().narrow(0, first, AT_ONCE.min(count - first)).square().sum());
        }
        gradient
    }
}

struct Scale(f64);

impl GradientMap for Scale {
    fn map<const D: usize>(&mut self, gradient: Tensor<D>) -> Tensor<D> {
        gradient.mul_scalar(self.0)
    }
}

/// The norm of all gradients of a module taken together: the same bits on any number of threads.
pub fn norm<M: Module>(gradients: &mut GradientsParams, module: &M) -> f64 {
    let mut visit = Visit { gradients, map: SumOfSquares(0.0) };
    module.visit(&mut visit);
    visit.map.0.sqrt()
}

/// All gradients times a factor.
pub fn scale<M: Module>(mut gradients: GradientsParams, module: &M, factor: f64) -> GradientsParams {
    if factor == 1.0 {
        return gradients;
    }
    module.visit(&mut Visit { gradients: &mut gradients, map: Scale(factor) });
    gradients
}

/// The gradients shrunk so that their global norm is at most `most`, and the norm they had.
pub fn clip<M: Module>(mut gradients: GradientsParams, module: &M, most: f64) -> (GradientsParams, f64) {
    let norm = norm(&mut gradients, module);
    if norm > most {
        gradients = scale(gradients, module, most / norm);
    }
    (gradients, norm)
}

struct Split<'a, F> {
    gradients: &'a mut GradientsParams,
    parts: Vec<GradientsParams>,
    part: F,
}

impl<F: Fn(ParamId) -> usize> ModuleVisitor for Split<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.parts[(self.part)(param.id)].register(param.id, gradient);
        }
    }
}

/// The gradients in `count` parts; `part` says where a parameter's gradient goes.
pub fn split<M: Module>(
    mut gradients: GradientsParams,
    module: &M,
    count: usize,
    part: impl Fn(ParamId) -> usize,
) -> Vec<GradientsParams> {
    let parts = (0..count).map(|_| GradientsParams::new()).collect();
    let mut split = Split { gradients: &mut gradients, parts, part };
    module.visit(&mut split);
    split.parts
}
