//! The float kernels of `arch/eight`, compiled for AVX2 and F16C.

use super::Avx2;
use crate::arch::{eight, sixteen};
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::tile::Tiles;

/// f32 activations × ternary weights.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn linear(x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    // Who may call this has the features, as an Avx2 says.
    eight::linear(Avx2(()), (x, weights), store, out, scratch);
}

/// f32 activations × dense weights.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn logits(x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    eight::logits(Avx2(()), x, table, out, scratch);
}

/// One row of it.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_row(x: &[f32], table: &DenseRows<'_>, row: usize) -> f32 {
    eight::dot_row(Avx2(()), x, table, row)
}

/// Attention over the paged cache.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn attention(step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    sixteen::attention(Avx2(()), step, out, scratch);
}
