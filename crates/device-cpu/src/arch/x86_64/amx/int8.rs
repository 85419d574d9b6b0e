//! int8 activations × ternary weights in AMX registers, for 16 tokens and more and one scale group: Σ(code − 1)·q = Σ code·q − Σ q.
//!
//! Activations are loaded as they lie. Codes are unpacked into a panel in the order that the product wants (four neighbouring
//! columns of 16 out features, then the next four columns), transposed while they are still four to a byte. A panel of 32 out
//! features stays in L1, a block of tokens in L2, and sums wait in scratch while the panel is short of the whole row.

use std::arch::x86_64::*;
use std::ops::Range;

use bitnet_model::numerics;

use super::Amx;
use super::tmm::{CodeStep, Registers, SIDE, STEP_COLUMNS, Sums};
use crate::kernels::{Int8Rows, PANEL_BYTES, PANEL_SUMS, RowScale, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// Fewest tokens.
pub(super) const TOKENS_MIN: usize = SIDE;
/// Tokens, and out features, of a product: two registers of each.
const PAIR: usize = 2 * SIDE;
/// Tiles that share a register.
const SIDE_TILES: usize = SIDE / TILE_ROWS;
/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Steps in a block.
const BLOCK_STEPS: usize = BLOCK_COLUMNS / STEP_COLUMNS;
/// Quadruples of columns in a quarter.
const QUADS: usize = QUARTER_COLUMNS / 4;
/// Blocks of a panel.
const PANEL_BLOCKS: usize = PANEL_BYTES / (PAIR * BLOCK_COLUMNS);
/// Tokens whose sums fit in scratch.
const SUM_TOKENS: usize = PANEL_SUMS / PAIR;
/// Bytes of activations that a block of tokens may take of the L2 cache.
const TOKEN_BLOCK_BYTES: usize = 1 << 20;

const _: () = assert!(PANEL_BLOCKS > 0 && SUM_TOKENS.is_multiple_of(PAIR) && SUM_TOKENS >= 2 * PAIR);

/// Scales of the out features of a product.
type Scales = [[f32; TILE_ROWS]; PAIR / TILE_ROWS];

/// A block of tokens of a product.
struct Product<'a> {
    x: Int8Rows<'a>,
    weights: &'a Tiles,
    store: Store,
    tokens: Range<usize>,
}

impl Product<'_> {
    /// Where a register of tokens from `token` on starts: earlier if there were not 16 left, so that no load leaves the rows.
    fn start(&self, token: usize) -> usize {
        token.min(self.x.scales.len() - SIDE)
    }

    /// Activations of the register of tokens from `token` on.
    fn activations(&self, token: usize, blocks: &Range<usize>) -> &[i8] {
        &self.x.quantized[self.start(token) * self.x.stride + blocks.start * BLOCK_COLUMNS..]
    }
}

/// Product of one thread's tiles. Panics if there are fewer tokens than `TOKENS_MIN` or several scale groups.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
pub(super) fn linear(amx: Amx, (x, weights, store): (Int8Rows<'_>, &Tiles, Store), out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let n_tokens = out.n_rows();
    assert!(n_tokens >= TOKENS_MIN && weights.n_groups() == 1, "{n_tokens} tokens, {} scale groups", weights.n_groups());
    let registers = Registers::new(amx);
    let in_cache = (TOKEN_BLOCK_BYTES / x.stride / PAIR * PAIR).clamp(2 * PAIR, SUM_TOKENS);
    for first in (0..n_tokens).step_by(in_cache) {
        let product = Product { x, weights, store, tokens: first..n_tokens.min(first + in_cache) };
        let columns = out.range();
        let tiles = columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS);
        for first_tile in tiles.clone().step_by(PAIR / TILE_ROWS) {
            sum_panel(&registers, &product, first_tile..tiles.end, scratch);
            finish_panel(&product, first_tile..tiles.end, out, scratch);
        }
    }
}

/// Sums of a panel's out features, the first of `tiles`, for all tokens of the block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sum_panel(registers: &Registers, product: &Product<'_>, tiles: Range<usize>, scratch: &mut Scratch) {
    let n_blocks = product.weights.n_blocks();
    let chunk_blocks = n_blocks.div_ceil(n_blocks.div_ceil(PANEL_BLOCKS));
    let sums: &mut [[Sums; 4]] = scratch.sums.as_chunks_mut().0.as_chunks_mut().0;
    let panel: &mut [CodeStep] = scratch.panel.as_chunks_mut().0;
    for first_block in (0..n_blocks).step_by(chunk_blocks) {
        let blocks = first_block..n_blocks.min(first_block + chunk_blocks);
        let (low, high) = panel[..2 * blocks.len() * BLOCK_STEPS].split_at_mut(blocks.len() * BLOCK_STEPS);
        unpack(product.weights, tiles.clone(), &blocks, low);
        unpack(product.weights, (tiles.start + SIDE_TILES).min(tiles.end - 1)..tiles.end, &blocks, high);
        for (token, sums) in product.tokens.clone().step_by(PAIR).zip(&mut *sums) {
            let activations = [product.activations(token, &blocks), product.activations(token + SIDE, &blocks)];
            registers.multiply(activations, product.x.stride, [low, high], (sums, first_block > 0));
        }
    }
}

/// Codes of the first four of `tiles` in the order of the product, the last tile again where there are fewer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(weights: &Tiles, tiles: Range<usize>, blocks: &Range<usize>, steps: &mut [CodeStep]) {
    let mut rows: [&[[u8; BLOCK_BYTES]]; SIDE_TILES] = [&[]; SIDE_TILES];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = &weights.tile((tiles.start + index).min(tiles.end - 1))[blocks.clone()];
    }
    for (index, steps) in steps.as_chunks_mut::<BLOCK_STEPS>().0.iter_mut().enumerate() {
        let mut quads = transposed([&rows[0][index], &rows[1][index], &rows[2][index], &rows[3][index]]);
        for quarter in 0..QUARTERS {
            let first_quad = quarter % BLOCK_STEPS * QUADS;
            let lines = steps[quarter / BLOCK_STEPS].as_chunks_mut().0[first_quad..].iter_mut();
            for (line, quad) in lines.zip(&mut quads) {
                store_line(line, _mm512_and_si512(*quad, _mm512_set1_epi8(3)));
                *quad = _mm512_srli_epi16::<2>(*quad);
            }
        }
    }
}

/// The packed bytes of 16 rows of a block as eight quadruples of bytes × 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(blocks: [&[u8; BLOCK_BYTES]; SIDE_TILES]) -> [__m512i; QUADS] {
    // Quadruple by quadruple of rows 0 and 1 (first register) and 2 and 3 (second), for quadruples 0..4.
    let order = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    let next = _mm512_add_epi32(order, _mm512_set1_epi32(4));
    let (mut low, mut high) = ([_mm512_setzero_si512(); SIDE_TILES], [_mm512_setzero_si512(); SIDE_TILES]);
    for ((low, high), block) in low.iter_mut().zip(&mut high).zip(blocks) {
        let [rows_01, rows_23] = load_pairs(block);
        *low = _mm512_permutex2var_epi32(rows_01, order, rows_23);
        *high = _mm512_permutex2var_epi32(rows_01, next, rows_23);
    }
    let ([a, b, c, d], [e, f, g, h]) = (transposed_lanes(low), transposed_lanes(high));
    [a, b, c, d, e, f, g, h]
}

/// The 4 × 4 transpose of 128-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
    let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(c, d), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_low, cd_low),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_low, cd_low),
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_high, cd_high),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_high, cd_high),
    ]
}

/// Rows 0 and 1, rows 2 and 3 of a block.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_pairs(block: &[u8; BLOCK_BYTES]) -> [__m512i; 2] {
    let mut pairs = [_mm512_setzero_si512(); 2];
    for (pair, bytes) in pairs.iter_mut().zip(block.as_chunks::<{ 2 * UNIT_BYTES }>().0) {
        // SAFETY: a reference to 64 bytes is readable for 64 bytes; the load is unaligned.
        *pair = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    }
    pairs
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_line(line: &mut [u8; 64], value: __m512i) {
    // SAFETY: a reference to 64 bytes is writable for 64 bytes; the store is unaligned.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), value) };
}

/// The epilogue of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn finish_panel(product: &Product<'_>, tiles: Range<usize>, out: &mut ColumnsMut<'_>, scratch: &Scratch) {
    let mut inverse_scales: Scales = [[0.0; TILE_ROWS]; PAIR / TILE_ROWS];
    for (scales, tile) in inverse_scales.iter_mut().zip(tiles.clone()) {
        *scales = *product.weights.tile_inverse_scales(tile);
    }
    let offset = tiles.start * TILE_ROWS - out.range().start;
    let n_columns = (tiles.len() * TILE_ROWS).min(PAIR).min(out.range().len() - offset);
    let sums: &[Sums] = scratch.sums.as_chunks().0;
    for (index, sums) in (0..product.tokens.len()).step_by(SIDE).zip(sums.as_chunks::<2>().0) {
        let first = product.tokens.start + index;
        let start = product.start(first);
        for token in first..product.tokens.end.min(first + SIDE) {
            let row = product.x.scales[token];
            let line = token - start;
            let mut values = [0.0; PAIR];
            for ((values, sums), scales) in
                values.as_chunks_mut::<SIDE>().0.iter_mut().zip(sums).zip(inverse_scales.as_chunks::<SIDE_TILES>().0)
            {
                *values = dequantised(&sums.as_chunks().0[line], row, scales);
            }
            let out = &mut out.row_mut(token)[offset..offset + n_columns];
            for (out, values) in out.chunks_mut(TILE_ROWS).zip(values.as_chunks::<TILE_ROWS>().0) {
                product.store.store(out, *values);
            }
        }
    }
}

/// `numerics::dequantise` of 16 out features of one token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn dequantised(sums: &[i32; SIDE], row: RowScale, inverse_scales: &[[f32; TILE_ROWS]; SIDE_TILES]) -> [f32; SIDE] {
    let mut values = [0.0f32; SIDE];
    for ((value, sum), inverse_scale) in values.iter_mut().zip(sums).zip(inverse_scales.as_flattened()) {
        *value = numerics::dequantise(sum - row.sum, *inverse_scale, row.scale.inverse);
    }
    values
}
