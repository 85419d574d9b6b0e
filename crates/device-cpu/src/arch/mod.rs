//! Instruction sets: the only rooms, beside `pool`, where unsafe code may stand. One folder per processor, one file per kind of
//! kernel; `portable` holds sources that are compiled once for each, `eight` and `sixteen` those that are
//! written over registers of either.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod eight;
mod memory;
mod portable;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod sixteen;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::Neon;
pub(crate) use memory::{Memory, OutOfMemory, Plain, prefetch_line};
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Amx, Avx2, Avx512Vnni, AvxVnni};
