//! The planes of a head's screen × int8 tokens.

use std::arch::x86_64::*;

use super::super::vector::{load_i8, load_u8, prefetch_behind, prefetch_line_behind};
use super::super::vnni::{self, Avx512Vnni, DotRows};
use crate::screen::{COARSE_BYTES, FINE_BYTES, PLANE_TOKENS};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn coarse_sums(v: Avx512Vnni, tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
    vnni::screen::coarse_sums(v, tile, tokens, sums);
}

/// Σ code·q of one row of the fine plane. The codes of odd quarters stay where they are in half a byte and count four times, which is
/// exact.
#[target_feature(enable = "avx2,avx512vl,avx512vnni")]
pub(super) fn fine_sum(row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
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

/// Σ code·q of four rows of both planes, for each token.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn plane_sums(
    v: Avx512Vnni,
    planes: (&[[u8; COARSE_BYTES]], [&[[u8; FINE_BYTES]]; TILE_ROWS]),
    tokens: &[&[[i8; BLOCK_COLUMNS]]],
    sums: &mut [[i32; TILE_ROWS]],
) {
    const { assert!(PLANE_TOKENS == 8) };
    match *tokens {
        [token] => plane_sums_of_one(v, planes, token, &mut sums[0]),
        [a, b] => plane_sums_of(v, planes, [a, b], sums),
        [a, b, c] => plane_sums_of(v, planes, [a, b, c], sums),
        [a, b, c, d] => plane_sums_of(v, planes, [a, b, c, d], sums),
        [a, b, c, d, e] => plane_sums_of(v, planes, [a, b, c, d, e], sums),
        [a, b, c, d, e, f] => plane_sums_of(v, planes, [a, b, c, d, e, f], sums),
        [a, b, c, d, e, f, g] => plane_sums_of(v, planes, [a, b, c, d, e, f, g], sums),
        [a, b, c, d, e, f, g, h] => plane_sums_of(v, planes, [a, b, c, d, e, f, g, h], sums),
        _ => unreachable!("1..=PLANE_TOKENS tokens share a tile"),
    }
}

/// One token: plane by plane, since nothing that is unpacked is used again.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn plane_sums_of_one(
    v: Avx512Vnni,
    (tile, fine): (&[[u8; COARSE_BYTES]], [&[[u8; FINE_BYTES]]; TILE_ROWS]),
    token: &[[i8; BLOCK_COLUMNS]],
    sums: &mut [i32; TILE_ROWS],
) {
    vnni::screen::coarse_sums(v, tile, &[token], std::slice::from_mut(sums));
    for (sum, row) in sums.iter_mut().zip(fine) {
        for units in row.chunks(4) {
            prefetch_behind(units.as_flattened());
        }
        *sum = 4 * *sum + fine_sum(row, token);
    }
}

/// T tokens share what is unpacked.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn plane_sums_of<const T: usize>(
    v: Avx512Vnni,
    (tile, fine): (&[[u8; COARSE_BYTES]], [&[[u8; FINE_BYTES]]; TILE_ROWS]),
    tokens: [&[[i8; BLOCK_COLUMNS]]; T],
    sums: &mut [[i32; TILE_ROWS]],
) {
    let blocks = tile.as_chunks::<2>().0;
    let (fine, tokens) = (within(fine, blocks.len()), within(tokens, blocks.len()));
    let mut products = [v.zero(); T];
    for (index, units) in blocks.iter().enumerate() {
        v.prefetch_behind(&units[0]);
        v.prefetch_behind(&units[1]);
        for row in fine {
            prefetch_line_behind(&row[index]);
        }
        let [mut low, mut high] = [v.load(&units[0]), v.load(&units[1])];
        let mut two_bits = fine_rows(fine, index);
        for quarter in 0..BLOCK_COLUMNS / QUARTER_COLUMNS {
            let coarse = if quarter < 2 { &mut low } else { &mut high };
            // A lower code of a byte goes two bits up, an upper one two bits down.
            let codes = joined(if quarter % 2 == 0 { up(*coarse) } else { v.shifted::<2>(*coarse) }, two_bits);
            two_bits = v.shifted::<2>(two_bits);
            for (products, token) in products.iter_mut().zip(tokens) {
                *products = v.dot(*products, codes, v.load_quarter(&token[index].as_chunks().0[quarter]));
            }
        }
    }
    for (sums, products) in sums.iter_mut().zip(products) {
        *sums = v.totals(products);
    }
}

/// The first `n` of each row. (A closure's calls are not always inlined here.)
#[inline]
fn within<const N: usize, T>(mut rows: [&[T]; N], n: usize) -> [&[T]; N] {
    for row in &mut rows {
        *row = &row[..n];
    }
    rows
}

/// Unit `index` of the fine plane of each row.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
fn fine_rows(fine: [&[[u8; FINE_BYTES]]; TILE_ROWS], index: usize) -> [__m512i; 2] {
    let mut units = [_mm512_setzero_si512(); 2];
    for (unit, [low, high]) in units.iter_mut().zip(fine.as_chunks::<2>().0) {
        *unit = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load_u8(&low[index])), load_u8(&high[index]));
    }
    units
}

/// 16-bit words shifted up by two bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn up([first, second]: [__m512i; 2]) -> [__m512i; 2] {
    [_mm512_slli_epi16::<2>(first), _mm512_slli_epi16::<2>(second)]
}

/// Four bits of each byte, two above the lowest, and the lowest two bits of another.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined(mut coarse: [__m512i; 2], fine: [__m512i; 2]) -> [__m512i; 2] {
    /// Of three bits a, b, c: a where c is set, else b.
    const CHOICE: i32 = 0b1110_0100u8 as i32;
    let (upper, all) = (_mm512_set1_epi8(0b11_1100), _mm512_set1_epi8(0b11_1111));
    for (codes, fine) in coarse.iter_mut().zip(fine) {
        *codes = _mm512_and_si512(_mm512_ternarylogic_epi64::<CHOICE>(*codes, fine, upper), all);
    }
    coarse
}
