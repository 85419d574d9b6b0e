//! The planes of a head's screen × int8 tokens. Codes are unsigned, so `maddubs` takes them as they are; 16-bit lanes are widened
//! before they can overflow (const asserts).

use std::arch::x86_64::*;

use super::vector::*;
use crate::arch::portable;
use crate::kernels::Scratch;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, FINE_BYTES, RowBound, ScreenRowMut};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// Blocks of the coarse plane whose sums fit 16-bit lanes: each adds four pairs of codes 0..=15.
const COARSE_BLOCKS: usize = 2;
const _: () = assert!(COARSE_BLOCKS * 4 * 2 * 15 * 127 <= i16::MAX as usize);
/// The same for the fine plane: four pairs of codes 0..=3.
const FINE_BLOCKS: usize = 8;
const _: () = assert!(FINE_BLOCKS * 4 * 2 * 3 * 127 <= i16::MAX as usize);

/// `portable::screen_row`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn screen_row(row: &[f32], out: ScreenRowMut<'_>, codes: &mut Vec<u8>) -> RowBound {
    portable::screen_row(row, out, codes)
}

/// `portable::dot_row`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn dot_row(x: &[f32], head: &DenseRows<'_>, row: usize, scratch: &mut Scratch) -> f32 {
    portable::dot_row(x, head, row, scratch)
}

/// Σ code·q of four rows of the coarse plane, for each token.
#[target_feature(enable = "avx2")]
pub(super) fn coarse_sums(tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
    let (pairs, rest) = tokens.as_chunks::<2>();
    let (pair_sums, rest_sums) = sums.split_at_mut(2 * pairs.len());
    for (pair, sums) in pairs.iter().zip(pair_sums.as_chunks_mut::<2>().0) {
        coarse_sums_of(tile, *pair, sums);
    }
    for (token, sums) in rest.iter().zip(rest_sums) {
        coarse_sums_of(tile, [token], std::array::from_mut(sums));
    }
}

/// T tokens share what is unpacked.
#[inline]
#[target_feature(enable = "avx2")]
fn coarse_sums_of<const T: usize>(tile: &[[u8; COARSE_BYTES]], tokens: [&[[i8; BLOCK_COLUMNS]]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
    let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; T];
    let blocks = tile.as_chunks::<2>().0;
    for (index, blocks) in blocks.chunks(COARSE_BLOCKS).enumerate() {
        let mut narrow = [[_mm256_setzero_si256(); TILE_ROWS]; T];
        for (within, units) in blocks.iter().enumerate() {
            prefetch_behind(&units[0]);
            prefetch_behind(&units[1]);
            let block = index * COARSE_BLOCKS + within;
            add_unit(&mut narrow, &units[0], load_quarters(tokens, block, 0), load_quarters(tokens, block, 1));
            add_unit(&mut narrow, &units[1], load_quarters(tokens, block, 2), load_quarters(tokens, block, 3));
        }
        for (wide, narrow) in wide.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
            *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*narrow, _mm256_set1_epi16(1)));
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        store_sums(sums, sum_rows(wide));
    }
}

/// One quarter of one block of each token.
#[inline]
#[target_feature(enable = "avx2")]
fn load_quarters<const T: usize>(tokens: [&[[i8; BLOCK_COLUMNS]]; T], block: usize, quarter: usize) -> [__m256i; T] {
    let mut x = [_mm256_setzero_si256(); T];
    for (x, token) in x.iter_mut().zip(tokens) {
        *x = load_i8(&token[block].as_chunks().0[quarter]);
    }
    x
}

/// sums += codes · (low | high), for 64 columns of four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn add_unit<const T: usize>(sums: &mut [[__m256i; TILE_ROWS]; T], unit: &[u8; COARSE_BYTES], low: [__m256i; T], high: [__m256i; T]) {
    let mask = _mm256_set1_epi8(15);
    for (row, bytes) in unit.as_chunks().0.iter().enumerate() {
        let codes = load_u8(bytes);
        let (first, second) = (_mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask));
        for (token, sums) in sums.iter_mut().enumerate() {
            let products = _mm256_add_epi16(_mm256_maddubs_epi16(first, low[token]), _mm256_maddubs_epi16(second, high[token]));
            sums[row] = _mm256_add_epi16(sums[row], products);
        }
    }
}

/// Σ code·q of one row of the fine plane.
#[target_feature(enable = "avx2")]
pub(super) fn fine_sum(row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
    fine_sums([activations], row)[0]
}

/// T tokens share what is unpacked.
#[inline]
#[target_feature(enable = "avx2")]
fn fine_sums<const T: usize>(mut tokens: [&[[i8; BLOCK_COLUMNS]]; T], row: &[[u8; FINE_BYTES]]) -> [i32; T] {
    for token in &mut tokens {
        *token = &token[..row.len()];
    }
    let mut wide = [_mm256_setzero_si256(); T];
    for (chunk, blocks) in row.chunks(FINE_BLOCKS).enumerate() {
        let mut narrow = [_mm256_setzero_si256(); T];
        for (within, bytes) in blocks.iter().enumerate() {
            add_fine_block(&mut narrow, load_u8(bytes), tokens, chunk * FINE_BLOCKS + within);
        }
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
        }
    }
    let mut sums = [0; T];
    for (sum, wide) in sums.iter_mut().zip(wide) {
        let four = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        *sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)));
    }
    sums
}

/// sums += codes · activations, for one block of a row of the fine plane.
#[inline]
#[target_feature(enable = "avx2")]
fn add_fine_block<const T: usize>(sums: &mut [__m256i; T], mut packed: __m256i, tokens: [&[[i8; BLOCK_COLUMNS]]; T], block: usize) {
    for quarter in 0..BLOCK_COLUMNS / QUARTER_COLUMNS {
        let codes = _mm256_and_si256(packed, _mm256_set1_epi8(3));
        packed = _mm256_srli_epi16::<2>(packed);
        for (sum, x) in sums.iter_mut().zip(load_quarters(tokens, block, quarter)) {
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, x));
        }
    }
}

/// Tokens that share codes of the fine plane: with four codes and four sums there is room for no more.
const FINE_TOKENS: usize = 4;

/// Σ code·q of four rows of both planes, for each token.
#[target_feature(enable = "avx2")]
pub(super) fn plane_sums(
    (tile, fine): (&[[u8; COARSE_BYTES]], [&[[u8; FINE_BYTES]]; TILE_ROWS]),
    tokens: &[&[[i8; BLOCK_COLUMNS]]],
    sums: &mut [[i32; TILE_ROWS]],
) {
    coarse_sums(tile, tokens, sums);
    sums.as_flattened_mut().iter_mut().for_each(|sum| *sum *= 4);
    for (row, bytes) in fine.into_iter().enumerate() {
        for units in bytes.chunks(4) {
            prefetch_behind(units.as_flattened());
        }
        let (fours, rest) = tokens.as_chunks::<FINE_TOKENS>();
        let (sums_of_fours, sums_of_rest) = sums.split_at_mut(fours.len() * FINE_TOKENS);
        for (tokens, sums) in fours.iter().zip(sums_of_fours.as_chunks_mut::<FINE_TOKENS>().0) {
            for (sums, fine) in sums.iter_mut().zip(fine_sums(*tokens, bytes)) {
                sums[row] += fine;
            }
        }
        for (token, sums) in rest.iter().zip(sums_of_rest) {
            sums[row] += fine_sum(bytes, token);
        }
    }
}
