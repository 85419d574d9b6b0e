//! The portable kernels compiled for the baseline of the target: what every processor can run and what tests compare with.

use bitnet_checkpoint::config::Activation;
use bitnet_model::numerics;

use crate::arch::portable;
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, GroupRowMut, GroupRows, Int8RowMut, Int8Rows, Kernels, Scratch, Store};
use crate::lane_tile::LaneTiles;
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, FINE_BYTES, RowBound, ScreenRowMut};
use crate::tile::{BLOCK_COLUMNS, TILE_ROWS, Tiles};

/// Portable kernels.
pub(crate) struct Scalar;

impl Kernels for Scalar {
    fn isa(&self) -> &'static str {
        "scalar"
    }

    fn base(&self) -> &dyn Kernels {
        self
    }

    fn norm(&self, row: &mut [f32], weight: &[f32], epsilon: f32) {
        numerics::rms_norm(row, weight, epsilon);
    }

    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        portable::quantise_row(row, out);
    }

    fn quantise_groups(&self, row: &[f32], out: GroupRowMut<'_>) {
        portable::quantise_groups(row, out);
    }

    fn gate(&self, gate_up: &[f32], activation: Activation, out: &mut [f32]) {
        portable::gate_row(gate_up, activation, out);
    }

    fn rotate(&self, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        portable::rotate_heads(heads, head_dim, cos, sin);
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, _scratch: &mut Scratch) {
        portable::linear_int8(x, weights, store, out);
    }

    fn linear_groups(&self, x: GroupRows<'_>, weights: &LaneTiles, store: Store, out: &mut ColumnsMut<'_>, _scratch: &mut Scratch) {
        portable::linear_groups(x, weights, store, out);
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        portable::linear_f32(x, weights, store, out, scratch);
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        portable::logits(x, table, out, scratch);
    }

    fn screen_row(&self, row: &[f32], out: ScreenRowMut<'_>, codes: &mut Vec<u8>) -> RowBound {
        portable::screen_row(row, out, codes)
    }

    fn coarse_sums(&self, tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
        portable::coarse_sums(tile, tokens, sums);
    }

    fn fine_sum(&self, row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
        portable::fine_sum(row, activations)
    }

    fn wants_both_planes(&self, _n_tokens: usize, _is_flat: bool) -> bool {
        false
    }

    fn plane_sums(
        &self,
        tile: &[[u8; COARSE_BYTES]],
        fine: [&[[u8; FINE_BYTES]]; TILE_ROWS],
        tokens: &[&[[i8; BLOCK_COLUMNS]]],
        sums: &mut [[i32; TILE_ROWS]],
        _scratch: &mut Scratch,
    ) {
        portable::plane_sums(tile, fine, tokens, sums);
    }

    fn prefetch(&self, _bytes: &[u8]) {}

    fn dot_row(&self, x: &[f32], head: &DenseRows<'_>, row: usize, scratch: &mut Scratch) -> f32 {
        portable::dot_row(x, head, row, scratch)
    }

    fn ternary_dot_row(&self, x: &[f32], weights: &Tiles, row: usize, scratch: &mut Scratch) -> f32 {
        portable::ternary_dot_row(x, weights, row, scratch)
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        portable::attention(step, out, scratch);
    }

    fn argmax(&self, values: &[f32]) -> usize {
        numerics::argmax(values)
    }

    fn read_all(&self, bytes: &[u8]) -> i32 {
        bytes.as_chunks().0.iter().fold(0, |sum, word| sum ^ i32::from_le_bytes(*word))
    }

    fn products(&self, _n_rounds: usize) -> u64 {
        0
    }
}
