//! A module's parameters by name: collected, restored, and with ids that stay the same from run to run.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};

use crate::error::{Error, Result};

/// The parameters of a module by their path ("transforms.0.layers.1.up"), as plain data.
pub fn collect<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    let mut collect = Collect { path: vec![], found: BTreeMap::new() };
    module.visit(&mut collect);
    collect.found
}

/// The module with its parameters replaced by name.
///
/// # Errors
/// A parameter that is missing or has another shape, or a tensor that is no parameter.
pub fn restore<M: Module>(module: M, tensors: BTreeMap<String, TensorData>) -> Result<M> {
    let mut restore = Restore { path: vec![], tensors, wrong: None };
    let module = module.map(&mut restore);
    if let Some(wrong) = restore.wrong {
        return Err(Error::Input(wrong));
    }
    match restore.tensors.keys().next() {
        Some(name) => Err(Error::Input(format!("tensor \"{name}\" is no parameter of this network"))),
        None => Ok(module),
    }
}

/// The module with ids derived from the paths, so that an optimiser's state finds its parameters again.
pub fn with_stable_ids<M: Module>(module: M) -> M {
    module.map(&mut StableIds { path: vec![] })
}

/// The id that [`with_stable_ids`] gives a path.
pub fn stable_id(path: &str) -> ParamId {
    let hash = blake3::hash(path.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    ParamId::from(u64::from_le_bytes(first))
}

struct Collect {
    path: Vec<String>,
    found: BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.insert(self.path.join("."), param.val().inner().into_data());
    }
}

struct Restore {
    path: Vec<String>,
    tensors: BTreeMap<String, TensorData>,
    wrong: Option<String>,
}

impl ModuleMapper for Restore {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let Some(data) = self.tensors.remove(&path) else {
            self.wrong.get_or_insert(format!("tensor \"{path}\" is missing"));
            return param;
        };
        let (wanted, found) = (param.val().dims().to_vec(), data.shape().to_vec());
        if wanted != found {
            self.wrong.get_or_insert(format!("tensor \"{path}\" is {found:?}, this network has it as {wanted:?}"));
            return param;
        }
        let value = param.val();
        let loaded = Tensor::<D>::from_data(data, (&value.device(), value.dtype()));
        Param::initialized(param.id, loaded.set_require_grad(value.is_require_grad()))
    }
}

struct StableIds {
    path: Vec<String>,
}

impl ModuleMapper for StableIds {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::initialized(stable_id(&self.path.join(".")), param.val())
    }
}
