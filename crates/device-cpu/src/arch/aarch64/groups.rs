//! int8 activations in groups × ternary weights with rows in lanes, by `sdot`: four columns of a row are one lane, which is what the
//! instruction adds up. Four tokens share the codes that were unpacked in registers.
//!
//! Codes 0..=2 are multiplied as they are and the activations' sum is subtracted where a block is scaled. What this leaves out: groups
//! that are not whole blocks (`portable`).

use std::arch::aarch64::*;

use super::products::{Dot, Products, QUARTERS};
use super::vector::*;
use crate::arch::portable;
use crate::kernels::{GroupRows, Store};
use crate::lane_tile::{LANE_COLUMNS, LANE_ROWS, LINES, LaneBlock, LaneTiles};
use crate::pool::ColumnsMut;
use crate::tile::BLOCK_COLUMNS;

/// Registers that the sixteen rows fill.
const REGISTERS: usize = LANE_ROWS / 4;
/// Tokens that share the weights in registers.
const TOKENS: usize = 4;

// A lane adds up all columns of a block of its row.
const _: () = assert!(BLOCK_COLUMNS * 2 * 127 <= i32::MAX as usize);

/// What is multiplied and what becomes of the result.
#[derive(Clone, Copy)]
struct Product<'a> {
    x: GroupRows<'a>,
    weights: &'a LaneTiles,
    /// Blocks that share a weight scale.
    group_blocks: usize,
    store: Store,
}

/// Product of one thread's tiles.
#[target_feature(enable = "neon")]
pub(super) fn linear(dot: Dot, (x, weights, store): (GroupRows<'_>, &LaneTiles, Store), out: &mut ColumnsMut<'_>) {
    let Some(group_blocks) = weights.group_blocks() else {
        return portable::linear_groups(x, weights, store, out);
    };
    let product = Product { x, weights, group_blocks, store };
    let n_shared = out.n_rows() - out.n_rows() % TOKENS;
    for tile in LaneTiles::tiles_of(&out.range()) {
        for first in (0..n_shared).step_by(TOKENS) {
            stream::<TOKENS>(dot, product, (tile, first), out);
        }
        for token in n_shared..out.n_rows() {
            stream::<1>(dot, product, (tile, token), out);
        }
    }
}

/// Sixteen outputs of T tokens from `first` on.
#[inline]
#[target_feature(enable = "neon")]
fn stream<const T: usize>(dot: Dot, product: Product<'_>, (tile, first): (usize, usize), out: &mut ColumnsMut<'_>) {
    let Product { x, weights, group_blocks, store } = product;
    let mut y = [[0.0f32; LANE_ROWS]; T];
    for (index, block) in weights.tile(tile).iter().enumerate() {
        let mut activations = [&[0i8; BLOCK_COLUMNS]; T];
        for (token, activations) in activations.iter_mut().enumerate() {
            *activations = &x.blocks(first + token)[index];
        }
        let sums = sum_block(dot, block, activations);
        let scales = weights.tile_scales(tile).group(index / group_blocks);
        for (token, (y, sums)) in y.iter_mut().zip(sums).enumerate() {
            let group = x.scales(first + token)[index];
            let rows = y.as_chunks_mut::<4>().0.iter_mut().zip(scales.as_chunks::<4>().0);
            for ((y, scales), sums) in rows.zip(sums) {
                let scales = vmulq_n_f32(load_f32(scales), group.scale.real);
                let products = vmulq_f32(vcvtq_f32_s32(vsubq_s32(sums, vdupq_n_s32(group.sum))), scales);
                *y = to_array(vaddq_f32(load_f32(y), products));
            }
        }
    }
    let offset = tile * LANE_ROWS - out.range().start;
    for (token, y) in y.into_iter().enumerate() {
        store.store(&mut out.row_mut(first + token)[offset..], y);
    }
}

/// Σ code·q of one block, a row a lane.
#[inline]
#[target_feature(enable = "neon")]
fn sum_block<const T: usize>(dot: Dot, block: &LaneBlock, activations: [&[i8; BLOCK_COLUMNS]; T]) -> [[int32x4_t; REGISTERS]; T] {
    let mut sums = [[vdupq_n_s32(0); REGISTERS]; T];
    for (line, bytes) in block.iter().enumerate() {
        let mut packed = [vdupq_n_u8(0); REGISTERS];
        for (packed, bytes) in packed.iter_mut().zip(bytes.as_chunks().0) {
            *packed = load_u8(bytes);
        }
        for quarter in 0..QUARTERS {
            let codes = take_codes(&mut packed);
            for (sums, activations) in sums.iter_mut().zip(activations) {
                add_lane(dot, sums, codes, lane_of(activations, quarter * LINES + line));
            }
        }
    }
    sums
}

/// The codes of the lowest quarter; the next one comes down.
#[inline]
#[target_feature(enable = "neon")]
fn take_codes(packed: &mut [uint8x16_t; REGISTERS]) -> [int8x16_t; REGISTERS] {
    let mut codes = [vdupq_n_s8(0); REGISTERS];
    for (codes, packed) in codes.iter_mut().zip(packed) {
        *codes = vreinterpretq_s8_u8(vandq_u8(*packed, vdupq_n_u8(3)));
        *packed = vshrq_n_u8::<2>(*packed);
    }
    codes
}

/// sums + codes · four columns of activations, for sixteen rows.
#[inline]
#[target_feature(enable = "neon")]
fn add_lane(dot: Dot, sums: &mut [int32x4_t; REGISTERS], codes: [int8x16_t; REGISTERS], x: int8x16_t) {
    for (sum, codes) in sums.iter_mut().zip(codes) {
        *sum = dot.add(*sum, codes, x);
    }
}

/// Four columns of a block of activations, in every lane.
#[inline]
#[target_feature(enable = "neon")]
fn lane_of(activations: &[i8; BLOCK_COLUMNS], lane: usize) -> int8x16_t {
    let [a, b, c, d] = activations.as_chunks::<LANE_COLUMNS>().0[lane];
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])))
}
