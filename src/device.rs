//! The device that a name means: the one place that decides which devices there are.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// The device of a name: `cpu`, `cuda`, `cuda:N` or `wgpu`.
///
/// # Errors
/// A name that is none of these; a device whose support is not compiled in, that is not there, or that does not work.
pub fn open(name: &str) -> Result<Device> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    match (kind, number.parse::<usize>()) {
        ("cpu", Ok(0)) => Ok(Device::flex()),
        ("cuda", Ok(number)) => cuda(name, number),
        ("wgpu", Ok(0)) => wgpu(name),
        _ => Err(Error::Config(format!("device \"{name}\" is not known; known are cpu, cuda, cuda:N, wgpu"))),
    }
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, number: usize) -> Result<Device> {
    // Counting looks whether the driver's library is there before it is loaded: opening a device without it panics.
    let count = attempt(name, || Device::enumerate(burn::tensor::DeviceType::Cuda).len())?;
    check_there(name, number, count)?;
    working(name, Device::cuda(number))
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _number: usize) -> Result<Device> {
    Err(absent(name, "cuda"))
}

#[cfg(feature = "wgpu")]
fn wgpu(name: &str) -> Result<Device> {
    let count = attempt(name, || Device::enumerate(burn::tensor::DeviceType::Wgpu).len())?;
    check_there(name, 0, count)?;
    working(name, Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(name: &str) -> Result<Device> {
    Err(absent(name, "wgpu"))
}

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
fn absent(name: &str, feature: &str) -> Error {
    Error::Config(format!("device {name} is not in this build; build with --features {feature}, or use --device cpu"))
}

/// Refuses a device that is not among the `count` of its kind.
#[cfg(any(test, feature = "cuda", feature = "wgpu"))]
fn check_there(name: &str, number: usize, count: usize) -> Result<()> {
    let kind = name.split(':').next().unwrap_or(name);
    let missing = match (kind, count) {
        _ if number < count => return Ok(()),
        ("cuda", 0) => "no card was found; it needs an NVIDIA card and its driver (libcuda)".to_owned(),
        (_, 0) => "no adapter was found; it needs a GPU with a driver for Vulkan, Metal or DirectX 12".to_owned(),
        (_, 1) => format!("there is one only, {kind}:0"),
        (_, count) => format!("there are {count}, {kind}:0 to {kind}:{}", count - 1),
    };
    Err(Error::Config(format!("device {name}: {missing}; or use --device cpu")))
}

/// The device, seen to compute: what its driver lacks is said now and not in the middle of the work.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn working(name: &str, device: Device) -> Result<Device> {
    attempt(name, || burn::tensor::Tensor::<1>::ones([2], &device).sum().into_data())?;
    Ok(device)
}

/// The drivers' code panics where something is missing.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn attempt<T>(name: &str, run: impl FnOnce() -> T) -> Result<T> {
    let failed = |words: String| Error::Config(format!("device {name} does not work: {words}; or use --device cpu"));
    crate::panics::tried(run).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        let said = |name: &str, number: usize, count: usize| check_there(name, number, count).unwrap_err().to_string();
        assert!(check_there("cuda:1", 1, 2).is_ok() && check_there("wgpu", 0, 1).is_ok());
        assert!(said("cuda", 0, 0).contains("driver (libcuda)"));
        assert!(said("wgpu", 0, 0).contains("no adapter"));
        assert_eq!(said("cuda:1", 1, 1), "device cuda:1: there is one only, cuda:0; or use --device cpu");
        assert_eq!(said("cuda:4", 4, 2), "device cuda:4: there are 2, cuda:0 to cuda:1; or use --device cpu");
    }

    #[test]
    fn names() {
        assert!(open("cpu").is_ok() && open("cpu:0").is_ok());
        for name in ["", "gpu", "cpu:1", "cuda:", "cuda:-1", "cuda:x", "wgpu:1", "CUDA"] {
            assert!(open(name).unwrap_err().to_string().contains("known are cpu, cuda, cuda:N, wgpu"), "{name}");
        }
    }
}
