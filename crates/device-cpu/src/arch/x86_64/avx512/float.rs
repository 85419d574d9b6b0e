//! f32 activations × ternary or dense weights, with the 16 lanes of `numerics::dot` in one register.
//!
//! A register tile is four rows × up to four tokens; weights are widened in it, again for the next tokens, from the L1 cache:
//! no panels. Weights are multiplied, not selected, so that NaN and infinity spread as in the reference; no FMA.

use std::arch::x86_64::*;

use bitnet_checkpoint::DenseType;
use bitnet_model::numerics::LANES;

use super::super::vector::{load_halves, load_scales, load_u8, prefetch_behind, to_array};
use super::vector::*;
use crate::arch::portable;
use crate::kernels::{F32Rows, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Most tokens of a register tile.
const TOKENS: usize = 4;

/// Four rows of lanes for each of T tokens.
type Sums<const T: usize> = [[__m512; TILE_ROWS]; T];

/// Product of one thread's tiles.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
pub(super) fn linear(x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    if !weights.has_whole_quarters() {
        return portable::linear_f32(x, weights, store, out, scratch);
    }
    let columns = out.range();
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let destination = (tile * TILE_ROWS - columns.start, store);
        let mut token = 0;
        while token < out.n_rows() {
            let n = next_tokens(out.n_rows() - token);
            match n {
                1 => write(out, token, destination, ternary_tile::<1>(x, weights, (tile, token))),
                2 => write(out, token, destination, ternary_tile::<2>(x, weights, (tile, token))),
                3 => write(out, token, destination, ternary_tile::<3>(x, weights, (tile, token))),
                _ => write(out, token, destination, ternary_tile::<TOKENS>(x, weights, (tile, token))),
            }
            token += n;
        }
    }
}

/// Products with one thread's rows of a dense table.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
pub(super) fn logits(x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>) {
    match table.dtype {
        DenseType::F32 => dense::<F32>(x, table, out),
        DenseType::F16 => dense::<F16>(x, table, out),
        DenseType::Bf16 => dense::<BF16>(x, table, out),
    }
}

/// Tokens of the next register tile: as few tiles as can be, of nearly equal sizes.
fn next_tokens(n_left: usize) -> usize {
    n_left.div_ceil(n_left.div_ceil(TOKENS))
}

/// Stores the outputs of a tile for T tokens from `token` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn write<const T: usize>(out: &mut ColumnsMut<'_>, token: usize, (offset, store): (usize, Store), values: [__m128; T]) {
    for (index, values) in values.into_iter().enumerate() {
        store.store(&mut out.row_mut(token + index)[offset..], to_array(values));
    }
}

/// Rows of T tokens from `token` on, as lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn token_rows<const T: usize>(x: F32Rows<'_>, token: usize) -> [&[[f32; LANES]]; T] {
    let mut rows: [&[[f32; LANES]]; T] = [&[]; T];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = x.row(token + index).as_chunks().0;
    }
    rows
}

/// sums[token][row] += x[token][chunk] · weights[row].
#[inline]
#[target_feature(enable = "avx512f")]
fn add_products<const T: usize>(sums: &mut Sums<T>, rows: [&[[f32; LANES]]; T], chunk: usize, weights: [__m512; TILE_ROWS]) {
    let mut x = [_mm512_setzero_ps(); T];
    for (x, row) in x.iter_mut().zip(rows) {
        *x = load_f32(&row[chunk]);
    }
    add_outer(sums, x, weights);
}

/// Four outputs of T tokens.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn ternary_tile<const T: usize>(x: F32Rows<'_>, weights: &Tiles, (tile, token): (usize, usize)) -> [__m128; T] {
    let (codes, group_quarters) = (weights.tile(tile), weights.group_quarters());
    let rows = token_rows::<T>(x, token);
    let mut y = [_mm_setzero_ps(); T];
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let mut sums = [[_mm512_setzero_ps(); TILE_ROWS]; T];
        for quarter in group * group_quarters..(group + 1) * group_quarters {
            let block = &codes[quarter / QUARTERS];
            if quarter.is_multiple_of(QUARTERS) {
                prefetch_behind(block);
            }
            let shift = _mm_cvtsi32_si128(2 * (quarter % QUARTERS) as i32);
            add_products(&mut sums, rows, 2 * quarter, trits(block, 0, shift));
            add_products(&mut sums, rows, 2 * quarter + 1, trits(block, 1, shift));
        }
        for (y, sums) in y.iter_mut().zip(sums) {
            *y = _mm_add_ps(*y, _mm_mul_ps(sum_lanes(sums), load_scales(scales)));
        }
    }
    y
}

/// Trits of four rows as f32: columns `16·half..` of the quarter that lies `shift` bits up. The lookup reads the two low bits of
/// each lane only.
#[inline]
#[target_feature(enable = "avx512f")]
fn trits(block: &[u8; BLOCK_BYTES], half: usize, shift: __m128i) -> [__m512; TILE_ROWS] {
    let values = _mm512_setr_ps(-1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0);
    let mut trits = [values; TILE_ROWS];
    for (trits, unit) in trits.iter_mut().zip(block.as_chunks::<UNIT_BYTES>().0) {
        let codes = _mm512_cvtepu8_epi32(load_halves(&unit.as_chunks().0[half]));
        *trits = _mm512_permutevar_ps(values, _mm512_srl_epi32(codes, shift));
    }
    trits
}

/// Element types, as const parameters.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// Bytes of `LANES` elements.
const fn chunk_bytes(kind: u8) -> usize {
    if kind == F32 { LANES * 4 } else { LANES * 2 }
}

/// `LANES` stored elements as f32. Panics if there are not as many.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn widen<const KIND: u8>(bytes: &[u8]) -> __m512 {
    if KIND == F32 {
        return load_f32_bytes(bytes.try_into().expect("16 elements"));
    }
    let halves = load_u8(bytes.try_into().expect("16 elements"));
    if KIND == F16 { _mm512_cvtph_ps(halves) } else { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))) }
}

/// All tokens with one thread's rows, four rows at a time.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn dense<const KIND: u8>(x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for first in columns.clone().step_by(TILE_ROWS) {
        let mut rows: [&[u8]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (index, row) in rows.iter_mut().enumerate() {
            // The last row again where there are fewer than four.
            *row = table.row((first + index).min(columns.end - 1));
        }
        let destination = (first - columns.start, Store::Write);
        let mut token = 0;
        while token < x.n_rows() {
            let n = next_tokens(x.n_rows() - token);
            match n {
                1 => write(out, token, destination, dense_tile::<KIND, 1>(x, rows, token)),
                2 => write(out, token, destination, dense_tile::<KIND, 2>(x, rows, token)),
                3 => write(out, token, destination, dense_tile::<KIND, 3>(x, rows, token)),
                _ => write(out, token, destination, dense_tile::<KIND, TOKENS>(x, rows, token)),
            }
            token += n;
        }
    }
}

/// Four outputs of T tokens.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn dense_tile<const KIND: u8, const T: usize>(x: F32Rows<'_>, table: [&[u8]; TILE_ROWS], token: usize) -> [__m128; T] {
    let size = chunk_bytes(KIND);
    let x = token_rows::<T>(x, token);
    let mut sums = [[_mm512_setzero_ps(); TILE_ROWS]; T];
    let n_chunks = table[0].len() / size;
    for chunk in 0..n_chunks {
        let mut weights = [_mm512_setzero_ps(); TILE_ROWS];
        for (weights, row) in weights.iter_mut().zip(table) {
            let bytes = &row[chunk * size..(chunk + 1) * size];
            // The same place of the next four rows, which lie behind these.
            prefetch_line(bytes, TILE_ROWS * row.len());
            *weights = widen::<KIND>(bytes);
        }
        add_products(&mut sums, x, chunk, weights);
    }
    if n_chunks * size < table[0].len() {
        let mut weights = [_mm512_setzero_ps(); TILE_ROWS];
        for (weights, row) in weights.iter_mut().zip(table) {
            // Zeros behind the last element: x is padded with zeros, too.
            let mut padded = [0u8; LANES * 4];
            let rest = &row[n_chunks * size..];
            padded[..rest.len()].copy_from_slice(rest);
            *weights = widen::<KIND>(&padded[..size]);
        }
        add_products(&mut sums, x, n_chunks, weights);
    }
    let mut y = [_mm_setzero_ps(); T];
    for (y, sums) in y.iter_mut().zip(sums) {
        *y = sum_lanes(sums);
    }
    y
}
