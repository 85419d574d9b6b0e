//! Entry points of the AVX2 kernels. For now every one is the portable source compiled for AVX2.

use bitnet_checkpoint::config::Activation;
use bitnet_model::numerics;

use crate::arch::portable;
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Int8RowMut, Int8Rows, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::table::DenseRows;
use crate::tile::Tiles;

#[target_feature(enable = "avx2,f16c")]
pub(super) fn norm(row: &mut [f32], weight: &[f32], epsilon: f32) {
    numerics::rms_norm(row, weight, epsilon);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn quantise(row: &[f32], out: Int8RowMut<'_>) {
    portable::quantise_row(row, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn gate(gate_up: &[f32], activation: Activation, out: &mut [f32]) {
    portable::gate_row(gate_up, activation, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn rotate(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    portable::rotate_heads(heads, head_dim, cos, sin);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn linear_int8(x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, _scratch: &mut Scratch) {
    portable::linear_int8(x, weights, store, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn linear_f32(x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    portable::linear_f32(x, weights, store, out, scratch);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn logits(x: F32Rows<'_>, table: &DenseRows, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    portable::logits(x, table, out, scratch);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn attention(step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    portable::attention(step, out, scratch);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn argmax(values: &[f32]) -> usize {
    numerics::argmax(values)
}
