//! The fence around NVIDIA's driver: the only room of this crate with unsafe code. Both libraries (driver and run-time compiler) are
//! loaded while the program runs, so that it builds without a toolkit and starts without a GPU.
//!
//! Kernels are trusted as foreign functions are: what they may touch follows from their arguments, which `launch` takes as one plain
//! block whose size each kernel's file fixes. What is checked here: that memory lives as long as work that names it (`memory`), that
//! copies fit, and that every call's status is looked at.

#![allow(unsafe_code)]

mod graph;
mod memory;
mod module;
mod nvml;
mod nvrtc;
mod stream;

use std::ffi::CStr;

use bitnet_model::device::DeviceError;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

pub(crate) use graph::Graph;
pub(crate) use memory::{Buffer, HostBuffer, Memory};
pub(crate) use module::{Kernel, Module};
pub use nvml::EnergyMeter;
pub(crate) use nvrtc::Compiler;
pub(crate) use stream::{Launch, Stream};

use crate::error::CudaError;

/// What the driver says of one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDescription {
    /// Number by which it is chosen.
    pub ordinal: usize,
    /// As NVIDIA names it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Memory of the card.
    pub memory_bytes: usize,
    /// Processors that run blocks.
    pub n_multiprocessors: usize,
    /// Shared memory that one block may have.
    pub shared_bytes_max: usize,
}

/// Every GPU that the driver lists, or why there is none.
pub fn gpus() -> Result<Vec<GpuDescription>, CudaError> {
    start_driver()?;
    let n = result::device::get_count().map_err(driver_failed("cuDeviceGetCount"))?;
    (0..n).map(describe).collect()
}

/// Version of the installed driver's interface, major and minor.
pub fn driver_version() -> Result<(u32, u32), CudaError> {
    start_driver()?;
    let mut version = 0;
    // SAFETY: the library is loaded (start_driver) and the pointer is a live integer.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    status.result().map_err(driver_failed("cuDriverGetVersion"))?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

/// Loads the driver's library and starts it. Calls after the first cost nothing.
fn start_driver() -> Result<(), CudaError> {
    // SAFETY: loading NVIDIA's driver library runs its initialisers, which it is made for.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    result::init().map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => CudaError::NoDevice,
        _ => driver_failed("cuInit")(error),
    })
}

fn describe(ordinal: i32) -> Result<GpuDescription, CudaError> {
    let failed = driver_failed("cuDeviceGet");
    let device = result::device::get(ordinal).map_err(&failed)?;
    let name = result::device::get_name(device).map_err(&failed)?;
    // SAFETY: `device` is what the driver gave.
    let memory_bytes = unsafe { result::device::total_mem(device) }.map_err(&failed)?;
    let attribute = |attribute| {
        // SAFETY: `device` is what the driver gave.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value.map(|value| value as usize).map_err(&failed)
    };
    use sys::CUdevice_attribute::*;
    Ok(GpuDescription {
        ordinal: ordinal as usize,
        name,
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        memory_bytes,
        n_multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

/// The driver's words for a failed call.
fn reason(error: DriverError) -> String {
    error.error_string().map_or_else(|_| format!("error {:?}", error.0), |text: &CStr| text.to_string_lossy().into_owned())
}

fn driver_failed(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { call, reason: reason(error) }
}

/// A failed call while a model runs.
fn failed(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| {
        let reason = format!("{call}: {}", reason(error));
        if is_final(error) { DeviceError::Lost { reason } } else { DeviceError::Failed { reason } }
    }
}

/// Whether every later call on the context will fail as well: it is destroyed, or a kernel or the card itself has failed in a way after which
/// the driver lets this process do no more with the GPU (CUDA driver API, `CUresult`).
fn is_final(error: DriverError) -> bool {
    use sys::CUresult::*;
    matches!(
        error.0,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_INVALID_CONTEXT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_NO_DEVICE
            | CUDA_ERROR_INVALID_DEVICE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_MPS_RPC_FAILURE
            | CUDA_ERROR_UNKNOWN
    )
}
