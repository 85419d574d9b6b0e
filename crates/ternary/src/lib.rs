//! What 1.58 bits means: trits, how they are made (absmean), how activations meet them (absmax int8), how every public
//! format packs them, and the exact scalar product that all kernels must equal.
//!
//! A leaf: it knows no file, no model and no device, and holds no unsafe code. Sources: BitNet b1.58 (arXiv 2402.17764 §2),
//! and per layout the implementation that defined it.
#![forbid(unsafe_code)]

pub mod layout;
pub mod matmul;
mod matrix;
pub mod quantise;

pub use matrix::{ACTIVATION_MAX, K_MAX, MatrixError, Scales, TernaryMatrix};
