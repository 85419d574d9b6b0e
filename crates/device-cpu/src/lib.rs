//! The CPU device: exact SIMD kernels, an own thread pool and paged attention behind `bitnet_model::device::Device`.
//!
//! Every operation gives the bits of `ReferenceDevice` on every instruction set and with every number of threads: integers
//! are exact in any order, floats follow `bitnet_model::numerics`, and no sum is split between threads. Unsafe code lives in
//! `arch/` and `pool.rs` only. What it deliberately does not do: choose what is computed (the walk does), read files, or know
//! requests.

mod activations;
mod ahead;
mod arch;
mod attention;
mod candidates;
mod detect;
mod device;
mod error;
mod hidden;
mod kernels;
mod lane_tile;
pub mod limits;
mod linear;
mod pool;
mod roof;
mod rows;
mod screen;
mod table;
mod ternary_screen;
mod tile;

pub use activations::CpuActivations;
pub use attention::CpuKvCache;
pub use detect::{CpuOptions, IsaChoice};
pub use device::{CpuDevice, CpuVector};
pub use error::CpuError;
pub use hidden::CpuHidden;
pub use linear::CpuLinear;
pub use roof::{RoofMeter, Roofs};
pub use table::CpuTable;
