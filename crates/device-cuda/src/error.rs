//! Why a GPU is not used. Errors of its operations are `bitnet_model::device::DeviceError`.

use thiserror::Error;

/// Why a CUDA device could not be made.
#[derive(Debug, Error)]
pub enum CudaError {
    #[error("NVIDIA's driver is not installed (libcuda is not found)")]
    NoDriver,
    #[error("NVIDIA's driver sees no GPU")]
    NoDevice,
    #[error("there is no GPU number {ordinal}")]
    NoSuchDevice { ordinal: usize },
    #[error("{name} has compute capability {major}.{minor}, and the kernels need {needed}.0")]
    TooOld { name: String, major: u32, minor: u32, needed: u32 },
    #[error("NVIDIA's run-time compiler (libnvrtc) is in none of {n_places} places; ${variable} may name it")]
    NoCompiler { variable: &'static str, n_places: usize },
    #[error("kernel file {name} does not compile: {log}")]
    Compile { name: String, log: String },
    #[error("{call}: {reason}")]
    Driver { call: &'static str, reason: String },
    #[error("a buffer of the device cannot be made: {0}")]
    Buffer(#[from] bitnet_model::device::DeviceError),
}
