//! int8 activations × ternary weights: which loop does which tokens, and the loop for one token, by any of `Products`.
//!
//! The sum of the activations is subtracted at the end: Σ(code − 1)·q = Σ code·q − Σ q. Codes stay at their place in the byte
//! where the sums have room, so that most quarters cost one mask. Many tokens go through `panel`, pairs of tokens on processors
//! with `smmla` through `matrix`. What this leaves out: groups that are not whole quarters (`portable`).

use std::arch::aarch64::*;
use std::ops::Range;

use super::matrix;
use super::panel::{self, RowPanel};
use super::products::{Dot, Matrix, PLACES, Products, QUARTERS, joined, quarter_codes, quarters, sum_rows, widened};
use super::vector::*;
use crate::arch::portable;
use crate::kernels::{Int8Rows, PANEL_TOKENS, RowScale, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// Bytes of activations that a block of tokens may take of the L2 cache.
const TOKEN_BLOCK_BYTES: usize = 256 << 10;
/// Block sizes are multiples of this: whole register tiles.
const TOKEN_GRANULE: usize = 8;

/// One product: what is multiplied and what becomes of the result.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) x: Int8Rows<'a>,
    pub(super) weights: &'a Tiles,
    pub(super) store: Store,
}

/// Product of one thread's tiles by `smlal` or `sdot`.
#[target_feature(enable = "neon")]
pub(super) fn linear<P: Products>(products: P, job: Product<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    if !job.weights.has_whole_quarters() {
        return portable::linear_int8(job.x, job.weights, job.store, out);
    }
    for tokens in token_blocks(job.x.stride, out.n_rows()) {
        if job.weights.n_groups() == 1 && tokens.len() >= panel::TOKENS_FROM {
            panel::linear(RowPanel(products), job, tokens, out, scratch);
        } else {
            singles(products, job, tokens, out);
        }
    }
}

/// Product of one thread's tiles by `smmla`, and by `sdot` where a token is alone.
#[target_feature(enable = "neon")]
pub(super) fn linear_matrix((dot, matrix): (Dot, Matrix), job: Product<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    if !job.weights.has_whole_quarters() {
        return portable::linear_int8(job.x, job.weights, job.store, out);
    }
    for tokens in token_blocks(job.x.stride, out.n_rows()) {
        if job.weights.n_groups() == 1 && tokens.len() >= panel::TOKENS_FROM {
            panel::linear(matrix, job, tokens, out, scratch);
            continue;
        }
        let paired = tokens.start..tokens.end - tokens.len() % 2;
        matrix::pairs(matrix, job, paired.clone(), out);
        singles(dot, job, paired.end..tokens.end, out);
    }
}

/// Tokens whose activations stay in cache together.
fn token_blocks(stride: usize, n_tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let in_cache = (TOKEN_BLOCK_BYTES / stride / TOKEN_GRANULE * TOKEN_GRANULE).clamp(2 * TOKEN_GRANULE, PANEL_TOKENS);
    (0..n_tokens).step_by(in_cache).map(move |first| first..n_tokens.min(first + in_cache))
}

/// Every tile for one token at a time, codes unpacked in registers.
#[inline]
#[target_feature(enable = "neon")]
fn singles<P: Products>(products: P, job: Product<'_>, tokens: Range<usize>, out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let offset = tile * TILE_ROWS - columns.start;
        for token in tokens.clone() {
            let values = single(products, job, tile, token);
            job.store.store(&mut out.row_mut(token)[offset..], to_array(values));
        }
    }
}

/// Four outputs of one token, epilogue included.
#[inline]
#[target_feature(enable = "neon")]
fn single<P: Products>(products: P, Product { x, weights, .. }: Product<'_>, tile: usize, token: usize) -> float32x4_t {
    let (codes, activations) = (weights.tile(tile), x.blocks(token));
    if weights.n_groups() == 1 {
        return dequantised(sum_blocks(products, codes, activations), x.scales[token], weights.tile_inverse_scales(tile));
    }
    let group_quarters = weights.group_quarters();
    let in_blocks = group_quarters.is_multiple_of(QUARTERS);
    let mut y = vdupq_n_f32(0.0);
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let group = group * group_quarters..(group + 1) * group_quarters;
        let sums = if in_blocks {
            let blocks = group.start / QUARTERS..group.end / QUARTERS;
            sum_blocks(products, &codes[blocks.clone()], &activations[blocks])
        } else {
            sum_quarters(products, codes, activations, group.clone())
        };
        y = vaddq_f32(y, scaled(sums, x.quarter_sums(token)[group].iter().sum(), scales));
    }
    vdivq_f32(y, vdupq_n_f32(x.scales[token].scale.inverse))
}

/// `numerics::dequantise` of four rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn dequantised(sums: int32x4_t, row: RowScale, inverse_scales: &[f32; TILE_ROWS]) -> float32x4_t {
    let accumulators = vcvtq_f32_s32(vsubq_s32(sums, vdupq_n_s32(row.sum)));
    vdivq_f32(accumulators, vmulq_n_f32(load_f32(inverse_scales), row.scale.inverse))
}

/// (Σ code·q − Σ q) · scale.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scaled(sums: int32x4_t, sum: i32, scales: &[f32; TILE_ROWS]) -> float32x4_t {
    vmulq_f32(vcvtq_f32_s32(vsubq_s32(sums, vdupq_n_s32(sum))), load_f32(scales))
}

/// Σ code·q over whole blocks, four rows.
#[inline]
#[target_feature(enable = "neon")]
fn sum_blocks<P: Products>(products: P, codes: &[[u8; BLOCK_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> int32x4_t {
    let mut wide = [vdupq_n_s32(0); TILE_ROWS];
    let n_deferred = P::DEFERRED_COLUMNS / BLOCK_COLUMNS;
    for (codes, activations) in codes.chunks(n_deferred).zip(activations.chunks(n_deferred)) {
        let mut sums = [[vdupq_n_s32(0); PLACES]; TILE_ROWS];
        for (block, x) in codes.iter().zip(activations) {
            // Rows by name: sums that a loop indexes are registers only if it is unrolled, and it is too long for that.
            let ([a, b, c, d], x) = (rows_of(block), block_registers(x));
            sums = [
                add_row(products, sums[0], a, x),
                add_row(products, sums[1], b, x),
                add_row(products, sums[2], c, x),
                add_row(products, sums[3], d, x),
            ];
        }
        for (wide, sums) in wide.iter_mut().zip(sums) {
            *wide = widened::<P>(*wide, joined::<P>(sums));
        }
    }
    sum_rows(wide)
}

/// Activations of a block, low and high half of each quarter.
#[inline]
#[target_feature(enable = "neon")]
fn block_registers(activations: &[i8; BLOCK_COLUMNS]) -> [[int8x16_t; 2]; QUARTERS] {
    let [a, b, c, d] = quarters_of(activations);
    [[load_i8(&a[0]), load_i8(&a[1])], [load_i8(&b[0]), load_i8(&b[1])], [load_i8(&c[0]), load_i8(&c[1])], [load_i8(&d[0]), load_i8(&d[1])]]
}

/// sums + one block of one row · one block of activations.
#[inline]
#[target_feature(enable = "neon")]
fn add_row<P: Products>(
    products: P,
    sums: [int32x4_t; PLACES],
    [low, high]: &[[u8; REGISTER]; 2],
    x: [[int8x16_t; 2]; QUARTERS],
) -> [int32x4_t; PLACES] {
    let sums = add_codes(products, sums, quarters::<P>(load_u8(low)), [x[0][0], x[1][0], x[2][0], x[3][0]]);
    add_codes(products, sums, quarters::<P>(load_u8(high)), [x[0][1], x[1][1], x[2][1], x[3][1]])
}

/// sums + the codes of four quarters at their places · activations.
#[inline]
#[target_feature(enable = "neon")]
fn add_codes<P: Products>(
    products: P,
    mut sums: [int32x4_t; PLACES],
    codes: [int8x16_t; QUARTERS],
    x: [int8x16_t; QUARTERS],
) -> [int32x4_t; PLACES] {
    let [a, b, c, d] = P::QUARTER_PLACES;
    sums[a] = products.add(sums[a], codes[0], x[0]);
    sums[b] = products.add(sums[b], codes[1], x[1]);
    sums[c] = products.add(sums[c], codes[2], x[2]);
    sums[d] = products.add(sums[d], codes[3], x[3]);
    sums
}

/// Σ code·q over any quarters, four rows.
#[inline]
#[target_feature(enable = "neon")]
fn sum_quarters<P: Products>(
    products: P,
    codes: &[[u8; BLOCK_BYTES]],
    activations: &[[i8; BLOCK_COLUMNS]],
    group: Range<usize>,
) -> int32x4_t {
    let mut wide = [vdupq_n_s32(0); TILE_ROWS];
    for quarter in group {
        let within = quarter % QUARTERS;
        let x = &activations[quarter / QUARTERS].as_chunks::<QUARTER_COLUMNS>().0[within];
        let units = codes[quarter / QUARTERS].as_chunks::<UNIT_BYTES>().0;
        for (wide, unit) in wide.iter_mut().zip(units) {
            let mut sum = vdupq_n_s32(0);
            for (bytes, x) in unit.as_chunks().0.iter().zip(x.as_chunks().0) {
                sum = products.add(sum, quarter_codes(load_u8(bytes), within), load_i8(x));
            }
            *wide = widened::<P>(*wide, sum);
        }
    }
    sum_rows(wide)
}
