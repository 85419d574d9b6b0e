//! Why a CPU device could not be made. Errors of its operations are `bitnet_model::device::DeviceError`.

use thiserror::Error;

/// Why a CPU device could not be made.
#[derive(Debug, Error)]
pub enum CpuError {
    #[error("instruction set {isa} was asked for and this processor does not have it")]
    IsaAbsent { isa: &'static str },
    #[error("number of threads: expected 1..={limit}, got {got}")]
    ThreadCount { got: usize, limit: usize },
    #[error("thread {index} could not be started: {source}")]
    Spawn { index: usize, source: std::io::Error },
    #[error("out of memory: {what} needs {size_bytes} bytes")]
    OutOfMemory { what: &'static str, size_bytes: usize },
}
