//! int8 products of pairs of tokens by `smmla`, which multiplies two rows × two tokens of eight columns at once.
//!
//! Rows and tokens are paired by exchanging 64-bit halves of their registers: weights when their bytes are loaded, before
//! they are unpacked, activations in every pass. The register tile of a panel is eight rows × eight tokens: 16 sums. Nothing
//! here does a token without a partner unless it is the last of a panel, which is then its own.

use std::arch::aarch64::*;
use std::ops::Range;

use super::int8::{Product, dequantised, scaled};
use super::panel::{Panel, PanelCodes, PanelStep, TileSums, store_unpacked};
use super::products::{Dot, Matrix, PLACES, Products, QUARTERS, joined, quarter_codes, quarters};
use super::vector::*;
use crate::kernels::{DEFERRED_COLUMNS, Int8Rows, PANEL_TILES};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// Pairs of rows of a tile.
const ROW_PAIRS: usize = TILE_ROWS / 2;
/// Most pairs of tokens that share the weights of a panel in registers.
const PANEL_PAIRS: usize = 4;
/// Parts of a quarter that one product covers: eight columns.
const PARTS: usize = 4;

/// Two rows of eight columns of unpacked codes.
type CodePair = [u8; REGISTER];
/// Sums of two tokens × two rows.
type PairSums = int32x4_t;

/// Bytes of two rows as pairs of their low and their high eight.
#[inline]
#[target_feature(enable = "neon")]
fn pair_codes(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
    let (a, b) = (vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b));
    [vreinterpretq_u8_u64(vzip1q_u64(a, b)), vreinterpretq_u8_u64(vzip2q_u64(a, b))]
}

/// The same for activations of two tokens.
#[inline]
#[target_feature(enable = "neon")]
fn pair_tokens(a: &[i8; REGISTER], b: &[i8; REGISTER]) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s64_s8(load_i8(a)), vreinterpretq_s64_s8(load_i8(b)));
    [vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))]
}

/// Sums of four rows for each token of a pair, from those of both pairs of rows.
#[inline]
#[target_feature(enable = "neon")]
fn part_tokens([low, high]: [PairSums; ROW_PAIRS]) -> [int32x4_t; 2] {
    let (low, high) = (vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
    [vreinterpretq_s32_s64(vzip1q_s64(low, high)), vreinterpretq_s32_s64(vzip2q_s64(low, high))]
}

/// Every tile for an even number of tokens, codes unpacked in registers.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn pairs(matrix: Matrix, job: Product<'_>, tokens: Range<usize>, out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let offset = tile * TILE_ROWS - columns.start;
        for first in tokens.clone().step_by(2) {
            let values = pair(matrix, job, tile, first);
            for (token, values) in (first..).zip(values) {
                job.store.store(&mut out.row_mut(token)[offset..], to_array(values));
            }
        }
    }
}

/// Four outputs of two tokens, epilogue included.
#[inline]
#[target_feature(enable = "neon")]
fn pair(matrix: Matrix, Product { x, weights, .. }: Product<'_>, tile: usize, first: usize) -> [float32x4_t; 2] {
    let (codes, activations) = (weights.tile(tile), [x.blocks(first), x.blocks(first + 1)]);
    let mut y = [vdupq_n_f32(0.0); 2];
    if weights.n_groups() == 1 {
        for (index, (y, sums)) in y.iter_mut().zip(sum_blocks(matrix, codes, activations)).enumerate() {
            *y = dequantised(sums, x.scales[first + index], weights.tile_inverse_scales(tile));
        }
        return y;
    }
    let group_quarters = weights.group_quarters();
    let in_blocks = group_quarters.is_multiple_of(QUARTERS);
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let group = group * group_quarters..(group + 1) * group_quarters;
        let sums = if in_blocks {
            let blocks = group.start / QUARTERS..group.end / QUARTERS;
            sum_blocks(matrix, &codes[blocks.clone()], [&activations[0][blocks.clone()], &activations[1][blocks]])
        } else {
            sum_quarters(matrix, codes, activations, group.clone())
        };
        for (index, (y, sums)) in y.iter_mut().zip(sums).enumerate() {
            *y = vaddq_f32(*y, scaled(sums, x.quarter_sums(first + index)[group.clone()].iter().sum(), scales));
        }
    }
    for (index, y) in y.iter_mut().enumerate() {
        *y = vdivq_f32(*y, vdupq_n_f32(x.scales[first + index].scale.inverse));
    }
    y
}

/// Σ code·q over whole blocks, four rows for each of two tokens.
#[inline]
#[target_feature(enable = "neon")]
fn sum_blocks(matrix: Matrix, codes: &[[u8; BLOCK_BYTES]], [a, b]: [&[[i8; BLOCK_COLUMNS]]; 2]) -> [int32x4_t; 2] {
    let mut wide = [vdupq_n_s32(0); 2];
    let n_deferred = Dot::DEFERRED_COLUMNS / BLOCK_COLUMNS;
    for ((codes, a), b) in codes.chunks(n_deferred).zip(a.chunks(n_deferred)).zip(b.chunks(n_deferred)) {
        let mut sums = [[vdupq_n_s32(0); PLACES]; ROW_PAIRS];
        for ((block, a), b) in codes.iter().zip(a).zip(b) {
            add_block(matrix, &mut sums, pair_rows(block), [quarters_of(a), quarters_of(b)]);
        }
        let sums = part_tokens([joined::<Dot>(sums[0]), joined::<Dot>(sums[1])]);
        wide = [vaddq_s32(wide[0], sums[0]), vaddq_s32(wide[1], sums[1])];
    }
    wide
}

/// Σ code·q over any quarters, four rows for each of two tokens.
#[inline]
#[target_feature(enable = "neon")]
fn sum_quarters(matrix: Matrix, codes: &[[u8; BLOCK_BYTES]], [a, b]: [&[[i8; BLOCK_COLUMNS]]; 2], group: Range<usize>) -> [int32x4_t; 2] {
    let mut sums = [vdupq_n_s32(0); ROW_PAIRS];
    for quarter in group {
        let (block, within) = (quarter / QUARTERS, quarter % QUARTERS);
        let (rows, [a, b]) = (pair_rows(&codes[block]), [&quarters_of(&a[block])[within], &quarters_of(&b[block])[within]]);
        let [low, high] = [pair_tokens(&a[0], &b[0]), pair_tokens(&a[1], &b[1])];
        for (sum, rows) in sums.iter_mut().zip(rows) {
            for (bytes, x) in rows.into_iter().zip([low[0], low[1], high[0], high[1]]) {
                *sum = matrix.add(*sum, x, quarter_codes(bytes, within));
            }
        }
    }
    part_tokens(sums)
}

/// Packed codes of pairs of rows of a block: for each pair four times eight bytes of two rows.
#[inline]
#[target_feature(enable = "neon")]
fn pair_rows(block: &[u8; BLOCK_BYTES]) -> [[uint8x16_t; PARTS]; ROW_PAIRS] {
    let [a, b, c, d] = rows_of(block);
    [pair_units(a, b), pair_units(c, d)]
}

/// The same of one pair of rows.
#[inline]
#[target_feature(enable = "neon")]
fn pair_units(a: &Halves<u8>, b: &Halves<u8>) -> [uint8x16_t; PARTS] {
    let [low, high] = [pair_codes(load_u8(&a[0]), load_u8(&b[0])), pair_codes(load_u8(&a[1]), load_u8(&b[1]))];
    [low[0], low[1], high[0], high[1]]
}

/// Sums of four rows for two tokens at each place.
type PlacedSums = [[PairSums; PLACES]; ROW_PAIRS];

/// sums += one block of four rows · one block of two tokens. Quarters by name: sums that a loop indexes are registers only if it
/// is unrolled.
#[inline]
#[target_feature(enable = "neon")]
fn add_block(matrix: Matrix, sums: &mut PlacedSums, [a, b]: [[uint8x16_t; PARTS]; ROW_PAIRS], [x, y]: [&[Halves<i8>; QUARTERS]; 2]) {
    let low = [[a[0], a[1]], [b[0], b[1]]];
    add_columns::<0>(matrix, sums, low, pair_tokens(&x[0][0], &y[0][0]));
    add_columns::<1>(matrix, sums, low, pair_tokens(&x[1][0], &y[1][0]));
    add_columns::<2>(matrix, sums, low, pair_tokens(&x[2][0], &y[2][0]));
    add_columns::<3>(matrix, sums, low, pair_tokens(&x[3][0], &y[3][0]));
    let high = [[a[2], a[3]], [b[2], b[3]]];
    add_columns::<0>(matrix, sums, high, pair_tokens(&x[0][1], &y[0][1]));
    add_columns::<1>(matrix, sums, high, pair_tokens(&x[1][1], &y[1][1]));
    add_columns::<2>(matrix, sums, high, pair_tokens(&x[2][1], &y[2][1]));
    add_columns::<3>(matrix, sums, high, pair_tokens(&x[3][1], &y[3][1]));
}

/// sums += sixteen columns of four rows, which lie in quarter Q of their bytes, · those of two tokens.
#[inline]
#[target_feature(enable = "neon")]
fn add_columns<const Q: usize>(matrix: Matrix, sums: &mut PlacedSums, [a, b]: [[uint8x16_t; 2]; ROW_PAIRS], x: [int8x16_t; 2]) {
    let place = Dot::QUARTER_PLACES[Q];
    sums[0][place] = matrix.add(sums[0][place], x[0], quarters::<Dot>(a[0])[Q]);
    sums[1][place] = matrix.add(sums[1][place], x[0], quarters::<Dot>(b[0])[Q]);
    sums[0][place] = matrix.add(sums[0][place], x[1], quarters::<Dot>(a[1])[Q]);
    sums[1][place] = matrix.add(sums[1][place], x[1], quarters::<Dot>(b[1])[Q]);
}

impl Panel for Matrix {
    const COLUMNS_MAX: usize = DEFERRED_COLUMNS;

    #[inline(always)]
    fn unpack(self, codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelStep]) {
        // SAFETY: a panel is used only by kernels of `Neon`, which exists only where NEON was detected.
        unsafe { unpack_pairs(codes, panel) }
    }

    #[inline(always)]
    fn sum(self, panel: PanelCodes<'_>, x: Int8Rows<'_>, tokens: Range<usize>, sums: &mut [TileSums]) {
        // SAFETY: as in `unpack`.
        unsafe { sum_pairs_of_panel(self, panel, x, tokens, sums) }
    }
}

/// Each step becomes `[PARTS, ROW_PAIRS]` registers of two rows of eight columns.
#[inline]
#[target_feature(enable = "neon")]
fn unpack_pairs(codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelStep]) {
    for (block, steps) in codes.iter().zip(panel.as_chunks_mut::<QUARTERS>().0) {
        for (pair, parts) in pair_rows(block).into_iter().enumerate() {
            for (part, bytes) in parts.into_iter().enumerate() {
                store_unpacked(bytes, steps, (part, pair));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn sum_pairs_of_panel(matrix: Matrix, panel: PanelCodes<'_>, x: Int8Rows<'_>, tokens: Range<usize>, sums: &mut [TileSums]) {
    let mut token = tokens.start;
    while token < tokens.end {
        let sums = &mut sums[(token - tokens.start) * PANEL_TILES..];
        let end = tokens.end;
        match (end - token).div_ceil(2) {
            1 => sum_tokens::<1>(matrix, panel, (x, token..end), sums),
            2 => sum_tokens::<2>(matrix, panel, (x, token..end), sums),
            3 => sum_tokens::<3>(matrix, panel, (x, token..end), sums),
            _ => sum_tokens::<PANEL_PAIRS>(matrix, panel, (x, token..end.min(token + 2 * PANEL_PAIRS)), sums),
        }
        token += 2 * PANEL_PAIRS;
    }
}

/// T pairs of tokens, the last of which may be one token only.
#[inline]
#[target_feature(enable = "neon")]
fn sum_tokens<const T: usize>(matrix: Matrix, panel: PanelCodes<'_>, (x, tokens): (Int8Rows<'_>, Range<usize>), sums: &mut [TileSums]) {
    let mut rows = [[&[] as &[Halves<i8>]; 2]; T];
    for (index, row) in rows.as_flattened_mut().iter_mut().enumerate() {
        *row = panel.activations(x, (tokens.start + index).min(tokens.end - 1));
    }
    // A tile without a neighbour is multiplied twice and kept once: the last of an odd number.
    let (n_tiles, mut tiles) = (panel.tiles().len(), panel.tiles().cycle());
    let (Some(first), Some(second)) = (tiles.next(), tiles.next()) else { return };
    for (tile, pairs) in sum_steps(matrix, [first, second], rows).into_iter().enumerate().take(n_tiles) {
        for (index, products) in pairs.into_iter().flat_map(|rows| part_tokens(rows)).enumerate().take(tokens.len()) {
            panel.keep(products, &mut sums[index * PANEL_TILES + tile]);
        }
    }
}

/// Sums of one tile for T pairs of tokens.
type TilePairs<const T: usize> = [[PairSums; ROW_PAIRS]; T];

/// Σ code·q of two tiles for T pairs of tokens: the register tile.
#[inline]
#[target_feature(enable = "neon")]
fn sum_steps<const T: usize>(
    matrix: Matrix,
    [first, second]: [&[PanelStep]; PANEL_TILES],
    rows: [[&[Halves<i8>]; 2]; T],
) -> [TilePairs<T>; PANEL_TILES] {
    assert!(rows.as_flattened().iter().all(|row| row.len() == first.len()), "sixteen bytes twice of each token for each step");
    let mut sums = [[[vdupq_n_s32(0); ROW_PAIRS]; T]; PANEL_TILES];
    for (index, (first, second)) in first.iter().zip(second).enumerate() {
        // SAFETY: index < first.len(), which is the length of every row (asserted above).
        let x = unsafe { pair_step(&rows, index, 0) };
        add_half(matrix, &mut sums[0], [&first[0], &first[1]], x);
        add_half(matrix, &mut sums[1], [&second[0], &second[1]], x);
        // SAFETY: index < first.len(), which is the length of every row (asserted above).
        let x = unsafe { pair_step(&rows, index, 1) };
        add_half(matrix, &mut sums[0], [&first[2], &first[3]], x);
        add_half(matrix, &mut sums[1], [&second[2], &second[3]], x);
    }
    sums
}

/// Half a quarter of T pairs of tokens. Without bounds checks: the compiler keeps all of them, a third of the loop.
///
/// # Safety
/// Every row has a step `index`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn pair_step<const T: usize>(rows: &[[&[Halves<i8>]; 2]; T], index: usize, half: usize) -> [[int8x16_t; 2]; T] {
    let mut x = [[vdupq_n_s8(0); 2]; T];
    for (x, [a, b]) in x.iter_mut().zip(rows) {
        // SAFETY: the caller vouches for the index.
        let a = unsafe { a.get_unchecked(index) };
        // SAFETY: the caller vouches for the index.
        let b = unsafe { b.get_unchecked(index) };
        *x = pair_tokens(&a[half], &b[half]);
    }
    x
}

/// sums += sixteen columns of a tile · those of T pairs of tokens.
#[inline]
#[target_feature(enable = "neon")]
fn add_half<const T: usize>(matrix: Matrix, sums: &mut TilePairs<T>, [low, high]: [&[CodePair; ROW_PAIRS]; 2], x: [[int8x16_t; 2]; T]) {
    let ([a, b], [c, d]) = ([load_codes(&low[0]), load_codes(&low[1])], [load_codes(&high[0]), load_codes(&high[1])]);
    for (sums, x) in sums.iter_mut().zip(x) {
        *sums = [matrix.add(matrix.add(sums[0], x[0], a), x[1], c), matrix.add(matrix.add(sums[1], x[0], b), x[1], d)];
    }
}

const _: () = assert!(QUARTER_COLUMNS == 8 * PARTS && REGISTER == 16 && TILE_ROWS == PARTS);
