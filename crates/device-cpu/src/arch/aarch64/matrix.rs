//! int8 products of pairs of tokens by `smmla`, which multiplies two rows × two tokens of eight columns at once.
//!
//! Rows and tokens are paired by exchanging 64-bit halves of their registers: weights when their bytes are loaded, before
//! they are unpacked, activations in every pass. The register tile of a panel is eight rows × eight tokens: 16 sums. Nothing
//! here does a token without a partner unless it is the last of a panel, which is then its own.

use std::arch::aarch64::*;
use std::ops::Range;

use super::int8::{Product, group_sum, scaled};
use super::panel::{Panel, PanelCodes, PanelStep, TileSums};
use super::products::{Dot, Matrix, PLACES, Products, QUARTERS, joined, quarters, unpacked};
use super::vector::*;
use crate::kernels::{DEFERRED_COLUMNS, Int8Rows, PANEL_TILES};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// Pairs of rows of a tile.
const ROW_PAIRS: usize = TILE_ROWS / 2;
/// Most pairs of tokens that share weights in registers, without and with a panel.
const STREAM_PAIRS: usize = 2;
const PANEL_PAIRS: usize = 4;
/// Columns of one product.
const STEP_COLUMNS: usize = 8;

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
        let mut token = tokens.start;
        while token + 2 * STREAM_PAIRS <= tokens.end {
            stream::<STREAM_PAIRS>(matrix, job, (tile, offset, token), out);
            token += 2 * STREAM_PAIRS;
        }
        while token < tokens.end {
            stream::<1>(matrix, job, (tile, offset, token), out);
            token += 2;
        }
    }
}

/// Four outputs of each token of T pairs, epilogue included.
#[inline]
#[target_feature(enable = "neon")]
fn stream<const T: usize>(matrix: Matrix, job: Product<'_>, (tile, offset, first): (usize, usize, usize), out: &mut ColumnsMut<'_>) {
    let Product { x, weights, store } = job;
    let mut y = [[vdupq_n_f32(0.0); 2]; T];
    let group_quarters = weights.group_quarters();
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let group = group * group_quarters..(group + 1) * group_quarters;
        let sums = sum_group::<T>(matrix, (x, weights), (tile, first), group.clone());
        for (index, (y, sums)) in y.as_flattened_mut().iter_mut().zip(sums.into_iter().flatten()).enumerate() {
            *y = vaddq_f32(*y, scaled(sums, group_sum(x, weights, first + index, group.clone()), scales));
        }
    }
    for (index, y) in y.into_iter().flatten().enumerate() {
        let token = first + index;
        store.store(&mut out.row_mut(token)[offset..], to_array(vmulq_n_f32(y, x.scales[token].scale)));
    }
}

/// Σ code·q of one group, four rows for each token of T pairs.
#[inline]
#[target_feature(enable = "neon")]
fn sum_group<const T: usize>(
    matrix: Matrix,
    (x, weights): (Int8Rows<'_>, &Tiles),
    (tile, first): (usize, usize),
    group: Range<usize>,
) -> [[int32x4_t; 2]; T] {
    let mut rows = [[&[] as &[[i8; BLOCK_COLUMNS]]; 2]; T];
    for (index, row) in rows.as_flattened_mut().iter_mut().enumerate() {
        *row = x.blocks(first + index);
    }
    let codes = weights.tile(tile);
    let mut sums = [[[vdupq_n_s32(0); PLACES]; ROW_PAIRS]; T];
    if group.start.is_multiple_of(QUARTERS) && group.end.is_multiple_of(QUARTERS) {
        for block in group.start / QUARTERS..group.end / QUARTERS {
            add_block(matrix, &mut sums, &codes[block], rows.map(|pair| pair.map(|row| &row[block])));
        }
    } else {
        for quarter in group {
            let block = quarter / QUARTERS;
            add_quarter(matrix, &mut sums, (&codes[block], quarter % QUARTERS), rows.map(|pair| pair.map(|row| &row[block])));
        }
    }
    sums.map(|rows| part_tokens(rows.map(|sums| joined::<Dot>(sums))))
}

/// sums += one block of four rows · one block of each token.
#[inline]
#[target_feature(enable = "neon")]
fn add_block<const T: usize>(
    matrix: Matrix,
    sums: &mut [[[PairSums; PLACES]; ROW_PAIRS]; T],
    block: &[u8; BLOCK_BYTES],
    activations: [[&[i8; BLOCK_COLUMNS]; 2]; T],
) {
    let rows = block.as_chunks::<REGISTER>().0;
    for half in 0..UNIT_BYTES / REGISTER {
        let mut codes = [[[vdupq_n_s8(0); QUARTERS]; 2]; ROW_PAIRS];
        for (index, codes) in codes.iter_mut().enumerate() {
            let [a, b] = [0, 1].map(|row| load_u8(&rows[(2 * index + row) * (UNIT_BYTES / REGISTER) + half]));
            *codes = pair_codes(a, b).map(|bytes| quarters::<Dot>(bytes));
        }
        for (sums, [a, b]) in sums.iter_mut().zip(activations) {
            for quarter in 0..QUARTERS {
                let part = quarter * (QUARTER_COLUMNS / REGISTER) + half;
                let x = pair_tokens(&a.as_chunks().0[part], &b.as_chunks().0[part]);
                for (sums, codes) in sums.iter_mut().zip(&codes) {
                    let sum = &mut sums[Dot::QUARTER_PLACES[quarter]];
                    *sum = matrix.add(matrix.add(*sum, x[0], codes[0][quarter]), x[1], codes[1][quarter]);
                }
            }
        }
    }
}

/// sums += one quarter of a block of four rows · that quarter of each token.
#[inline]
#[target_feature(enable = "neon")]
fn add_quarter<const T: usize>(
    matrix: Matrix,
    sums: &mut [[[PairSums; PLACES]; ROW_PAIRS]; T],
    (block, quarter): (&[u8; BLOCK_BYTES], usize),
    activations: [[&[i8; BLOCK_COLUMNS]; 2]; T],
) {
    let rows = block.as_chunks::<REGISTER>().0;
    for half in 0..UNIT_BYTES / REGISTER {
        let part = quarter * (QUARTER_COLUMNS / REGISTER) + half;
        for index in 0..ROW_PAIRS {
            let [a, b] = [0, 1].map(|row| load_u8(&rows[(2 * index + row) * (UNIT_BYTES / REGISTER) + half]));
            let codes = pair_codes(a, b).map(|bytes| unpacked(bytes)[quarter]);
            for (sums, [a, b]) in sums.iter_mut().zip(activations) {
                let x = pair_tokens(&a.as_chunks().0[part], &b.as_chunks().0[part]);
                sums[index][0] = matrix.add(matrix.add(sums[index][0], x[0], codes[0]), x[1], codes[1]);
            }
        }
    }
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

/// Each step becomes `[QUARTER_COLUMNS / 8, ROW_PAIRS]` of `CodePair`.
#[inline]
#[target_feature(enable = "neon")]
fn unpack_pairs(codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelStep]) {
    for (block, steps) in codes.iter().zip(panel.as_chunks_mut::<QUARTERS>().0) {
        let rows = block.as_chunks::<REGISTER>().0;
        for (pair, half) in (0..ROW_PAIRS).flat_map(|pair| [(pair, 0), (pair, 1)]) {
            let [a, b] = [0, 1].map(|row| load_u8(&rows[(2 * pair + row) * (UNIT_BYTES / REGISTER) + half]));
            for (part, bytes) in pair_codes(a, b).into_iter().enumerate() {
                for (step, codes) in steps.iter_mut().zip(unpacked(bytes)) {
                    let pairs: &mut [CodePair] = step.as_chunks_mut().0;
                    store_codes(&mut pairs[(2 * half + part) * ROW_PAIRS + pair], codes);
                }
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
    let mut rows = [[&[] as &[[i8; QUARTER_COLUMNS]]; 2]; T];
    for (index, row) in rows.as_flattened_mut().iter_mut().enumerate() {
        *row = panel.activations(x, (tokens.start + index).min(tokens.end - 1));
    }
    let mut tiles = panel.tiles();
    match (tiles.next(), tiles.next()) {
        (Some(a), Some(b)) => keep(panel, sum_steps([a, b], rows, matrix), tokens.len(), sums),
        (Some(a), None) => keep(panel, sum_steps([a], rows, matrix), tokens.len(), sums),
        _ => {}
    }
}

/// Keeps the sums of those tokens that are there.
#[inline]
#[target_feature(enable = "neon")]
fn keep<const N: usize, const T: usize>(
    panel: PanelCodes<'_>,
    tiles: [[[PairSums; ROW_PAIRS]; T]; N],
    n_tokens: usize,
    sums: &mut [TileSums],
) {
    for (tile, pairs) in tiles.into_iter().enumerate() {
        for (index, products) in pairs.into_iter().flat_map(|rows| part_tokens(rows)).enumerate().take(n_tokens) {
            panel.keep(products, &mut sums[index * PANEL_TILES + tile]);
        }
    }
}

/// Σ code·q of N tiles for T pairs of tokens: the register tile.
#[inline]
#[target_feature(enable = "neon")]
fn sum_steps<const N: usize, const T: usize>(
    mut tiles: [&[PanelStep]; N],
    mut rows: [[&[[i8; QUARTER_COLUMNS]]; 2]; T],
    matrix: Matrix,
) -> [[[PairSums; ROW_PAIRS]; T]; N] {
    let n_steps = tiles[0].len();
    for tile in &mut tiles {
        *tile = &tile[..n_steps];
    }
    for row in rows.as_flattened_mut() {
        *row = &row[..n_steps];
    }
    let mut sums = [[[vdupq_n_s32(0); ROW_PAIRS]; T]; N];
    for index in 0..n_steps {
        for half in 0..QUARTER_COLUMNS / REGISTER {
            let mut x = [[vdupq_n_s8(0); 2]; T];
            for (x, [a, b]) in x.iter_mut().zip(rows) {
                *x = pair_tokens(&a[index].as_chunks().0[half], &b[index].as_chunks().0[half]);
            }
            for (sums, tile) in sums.iter_mut().zip(tiles) {
                let pairs: &[CodePair] = tile[index].as_chunks().0;
                for (part, row) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let codes = vreinterpretq_s8_u8(load_u8(&pairs[(2 * half + part) * ROW_PAIRS + row]));
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[row] = matrix.add(sums[row], x[part], codes);
                    }
                }
            }
        }
    }
    sums
}

const _: () = assert!(QUARTER_COLUMNS == 4 * STEP_COLUMNS && REGISTER == 2 * STEP_COLUMNS);
