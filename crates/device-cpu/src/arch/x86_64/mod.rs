//! x86-64: `Avx2`, the proof that this processor has AVX2 and F16C, and through it the safe door to kernels that use them.

mod attention;
mod avx2;
mod float;
mod int8;
mod lanes;
mod roof;
mod rows;
mod vector;

use bitnet_checkpoint::config::Activation;

use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Int8RowMut, Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::table::DenseRows;
use crate::tile::Tiles;

/// Exists only on processors with AVX2 and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub(crate) fn new() -> Option<Self> {
        (std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("f16c")).then_some(Self(()))
    }
}

impl Kernels for Avx2 {
    fn isa(&self) -> &'static str {
        "avx2"
    }

    fn norm(&self, row: &mut [f32], weight: &[f32], epsilon: f32) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { avx2::norm(row, weight, epsilon) }
    }

    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { rows::quantise(row, out) }
    }

    fn gate(&self, gate_up: &[f32], activation: Activation, out: &mut [f32]) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { avx2::gate(gate_up, activation, out) }
    }

    fn rotate(&self, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { avx2::rotate(heads, head_dim, cos, sin) }
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { int8::linear(x, weights, store, out, scratch) }
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { float::linear(x, weights, store, out, scratch) }
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { float::logits(x, table, out, scratch) }
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { attention::attention(step, out, scratch) }
    }

    fn argmax(&self, values: &[f32]) -> usize {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { rows::argmax(values) }
    }

    fn read_all(&self, bytes: &[u8]) -> i32 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { roof::read_all(bytes) }
    }

    fn products(&self, n_rounds: usize) -> u64 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { roof::products(n_rounds) }
    }
}
