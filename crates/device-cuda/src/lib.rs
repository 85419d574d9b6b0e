//! The NVIDIA device behind `bitnet_model::device::Device`: exact kernels, compiled at first use for the GPU at hand.
//!
//! It needs no toolkit to build and no GPU to start: NVIDIA's driver and run-time compiler are loaded while the program runs. Every
//! operation gives the bits of `ReferenceDevice` (decision 0015 says at what price), but attention over a cache of halves (0017). Operations are recorded and a whole step is
//! queued at once, as one graph where it has been seen before. Unsafe code lives in `driver/` only. What it deliberately does not do:
//! choose what is computed (the walk does), read files, or know requests.

mod activations;
mod attention;
mod device;
mod driver;
mod error;
mod hidden;
mod kernels;
pub mod limits;
mod linear;
mod queue;
mod roof;
mod screen;
mod step;
mod table;
mod tiles;

pub use activations::CudaActivations;
pub use attention::CudaKvCache;
pub use device::{CudaDevice, CudaOptions, CudaVector, check_gpu};
pub use driver::{EnergyMeter, GpuDescription, driver_version, gpus};
pub use error::CudaError;
pub use hidden::CudaHidden;
pub use kernels::{compile_all, compiler_version};
pub use linear::CudaLinear;
pub use roof::{CudaRoofMeter, CudaRoofs};
pub use table::{CudaTable, TablePlace};
