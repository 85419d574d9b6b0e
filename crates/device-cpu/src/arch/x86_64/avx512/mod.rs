//! Kernels of processors with AVX-512 VNNI: `vnni` for int8 products, 512-bit floats for attention and float products, AVX2 for
//! what is not worth 512 bits.

mod float;
mod lanes;
mod screen;
mod vector;

use super::vnni::{self, Avx512Vnni};
use crate::arch::sixteen;
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, FINE_BYTES, SCREEN_TOKENS};
use crate::tile::{BLOCK_COLUMNS, TILE_ROWS, Tiles};

impl Kernels for Avx512Vnni {
    fn isa(&self) -> &'static str {
        "avx512-vnni"
    }

    fn base(&self) -> &dyn Kernels {
        self.avx2()
    }

    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { linear_int8(*self, (x, weights, store), out, scratch) }
    }

    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { float::linear(x, weights, store, out, scratch) }
    }

    fn logits(&self, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, _scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { float::logits(x, table, out) }
    }

    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { attention(*self, step, out, scratch) }
    }

    fn coarse_sums(&self, tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { screen::coarse_sums(*self, tile, tokens, sums) }
    }

    fn fine_sum(&self, row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { screen::fine_sum(row, activations) }
    }

    fn wants_both_planes(&self, n_tokens: usize, is_flat: bool) -> bool {
        is_flat || n_tokens > SCREEN_TOKENS
    }

    fn plane_sums(
        &self,
        tile: &[[u8; COARSE_BYTES]],
        fine: [&[[u8; FINE_BYTES]]; TILE_ROWS],
        tokens: &[&[[i8; BLOCK_COLUMNS]]],
        sums: &mut [[i32; TILE_ROWS]],
        _scratch: &mut Scratch,
    ) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { screen::plane_sums(*self, (tile, fine), tokens, sums) }
    }

    fn products(&self, n_rounds: usize) -> u64 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { products(*self, n_rounds) }
    }
}

/// A panel's register tile is 8 rows × 6 tokens; up to 8 tokens share codes in registers.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn linear_int8(v: Avx512Vnni, product: (Int8Rows<'_>, &Tiles, Store), out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    vnni::int8::linear::<_, 2, 8, 2, 6>(v, product, out, scratch);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn attention(v: Avx512Vnni, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    sixteen::attention(v, step, out, scratch);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn products(v: Avx512Vnni, n_rounds: usize) -> u64 {
    vnni::roof::products::<_, 6>(v, n_rounds)
}
