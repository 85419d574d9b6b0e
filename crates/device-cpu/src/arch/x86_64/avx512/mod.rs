//! Kernels of processors with AVX-512 VNNI: `vnni` for int8 products, 512-bit floats for attention and float products, AVX2 for
//! what is not worth 512 bits.

mod float;
mod lanes;
mod vector;

use std::arch::x86_64::*;

use super::vector::{load_i8, load_u8};
use super::vnni::{self, Avx512Vnni};
use crate::arch::sixteen;
use crate::attention::AttentionStep;
use crate::kernels::{F32Rows, Int8Rows, Kernels, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, FINE_BYTES};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles};

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
        unsafe { coarse_sums(*self, tile, tokens, sums) }
    }

    fn fine_sum(&self, row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { fine_sum(row, activations) }
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

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn coarse_sums(v: Avx512Vnni, tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
    vnni::screen::coarse_sums(v, tile, tokens, sums);
}

/// Σ code·q of one row of the fine plane. The codes of odd quarters stay where they are in half a byte and count four times, which is
/// exact.
#[target_feature(enable = "avx2,avx512vl,avx512vnni")]
fn fine_sum(row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
    let (even_mask, odd_mask) = (_mm256_set1_epi8(0b0011), _mm256_set1_epi8(0b1100));
    let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (bytes, activations) in row.iter().zip(activations) {
        let x = activations.as_chunks::<QUARTER_COLUMNS>().0;
        let low = load_u8(bytes);
        let high = _mm256_srli_epi16::<4>(low);
        for (half, codes) in [low, high].into_iter().enumerate() {
            even = _mm256_dpbusd_epi32(even, _mm256_and_si256(codes, even_mask), load_i8(&x[2 * half]));
            odd = _mm256_dpbusd_epi32(odd, _mm256_and_si256(codes, odd_mask), load_i8(&x[2 * half + 1]));
        }
    }
    let sums = _mm256_add_epi32(even, _mm256_srai_epi32::<2>(odd));
    let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn attention(v: Avx512Vnni, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    sixteen::attention(v, step, out, scratch);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn products(v: Avx512Vnni, n_rounds: usize) -> u64 {
    vnni::roof::products::<_, 6>(v, n_rounds)
}
