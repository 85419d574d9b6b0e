//! Kernels that are the portable source compiled for AVX2: same source, same bits.

use bitnet_checkpoint::config::Activation;
use bitnet_model::numerics;

use crate::arch::portable;

#[target_feature(enable = "avx2,f16c")]
pub(super) fn norm(row: &mut [f32], weight: &[f32], epsilon: f32) {
    numerics::rms_norm(row, weight, epsilon);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn gate(gate_up: &[f32], activation: Activation, out: &mut [f32]) {
    portable::gate_row(gate_up, activation, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn rotate(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    portable::rotate_heads(heads, head_dim, cos, sin);
}
