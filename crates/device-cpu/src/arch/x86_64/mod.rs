//! x86-64: `Avx2`, the proof that this processor has AVX2 and F16C, and through it the safe door to kernels that use them; and
//! `AvxVnni`, `Avx512Vnni` and `Amx`, which replace some of these kernels.

mod amx;
mod avx2;
mod avx512;
mod avx_vnni;
mod float;
mod groups;
mod int8;
mod lanes;
mod roof;
mod rows;
mod screen;
mod vector;
mod vnni;

use bitnet_checkpoint::config::Activation;

use crate::arch::Scalar;
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, GroupRowMut, GroupRows, Int8RowMut, Int8Rows, Kernels, Scratch, Store};
use crate::lane_tile::LaneTiles;
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, FINE_BYTES, RowBound, ScreenRowMut};
use crate::tile::{BLOCK_COLUMNS, TILE_ROWS, Tiles};

pub(crate) use amx::Amx;
pub(crate) use vnni::{Avx512Vnni, AvxVnni};

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

    fn base(&self) -> &dyn Kernels {
        &Scalar
    }

    fn norm(&self, row: &mut [f32], weight: &[f32], epsilon: f32) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { avx2::norm(row, weight, epsilon) }
    }

    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { rows::quantise(row, out) }
    }

    fn quantise_groups(&self, row: &[f32], out: GroupRowMut<'_>) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { rows::quantise_groups(row, out) }
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

    fn linear_groups(&self, x: GroupRows<'_>, weights: &LaneTiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { groups::linear(x, weights, store, out, scratch) }
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { float::linear(x, weights, store, out, scratch) }
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { float::logits(x, table, out, scratch) }
    }

    fn screen_row(&self, row: &[f32], out: ScreenRowMut<'_>, codes: &mut Vec<u8>) -> RowBound {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { screen::screen_row(row, out, codes) }
    }

    fn coarse_sums(&self, tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { screen::coarse_sums(tile, tokens, sums) }
    }

    fn fine_sum(&self, row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { screen::fine_sum(row, activations) }
    }

    fn wants_both_planes(&self, _n_tokens: usize, is_flat: bool) -> bool {
        is_flat
    }

    fn plane_sums(
        &self,
        tile: &[[u8; COARSE_BYTES]],
        fine: [&[[u8; FINE_BYTES]]; TILE_ROWS],
        tokens: &[&[[i8; BLOCK_COLUMNS]]],
        sums: &mut [[i32; TILE_ROWS]],
        scratch: &mut Scratch,
    ) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { screen::plane_sums((tile, fine), tokens, sums, scratch) }
    }

    fn prefetch(&self, bytes: &[u8]) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::prefetch(bytes) }
    }

    fn dot_row(&self, x: &[f32], head: &DenseRows<'_>, row: usize, _scratch: &mut Scratch) -> f32 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { float::dot_row(x, head, row) }
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { float::attention(step, out, scratch) }
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
