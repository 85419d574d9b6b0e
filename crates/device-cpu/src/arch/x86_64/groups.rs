//! int8 activations in groups × ternary weights with rows in lanes: the sums of 128 columns stand in the lane of their row and are
//! scaled there.
//!
//! The sum of the activations, by which Σ code·q exceeds Σ trit·q, is taken off by starting the sums at its negative. 16-bit sums
//! are widened once a block, where they are scaled anyway. Few tokens take codes from their packed bytes as these stream by: odd
//! quarters stay where they are in their byte, which makes their sums four times too large, exactly. More tokens share a panel of
//! codes unpacked into L1. Weights with groups of whole quarters that end inside blocks have a slower loop of their own, for one token.
//! What this leaves out: groups that are not whole quarters (`portable`).

use std::arch::x86_64::*;
use std::ops::Range;

use bitnet_ternary::ACTIVATION_MAX;

use super::rows::sum_i8;
use super::vector::*;
use crate::arch::portable;
use crate::kernels::{FLOAT_PANEL_TOKENS, GroupRows, PANEL_BYTES, RowScale, Scratch, Store};
use crate::lane_tile::{LANE_COLUMNS, LANE_ROWS, LINE_BYTES, LINES, LaneBlock, LaneTiles, TileScales};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Lanes of four columns in a row of a block.
const STEPS: usize = BLOCK_COLUMNS / LANE_COLUMNS;
/// Registers that the sixteen rows fill.
const HALVES: usize = LINE_BYTES / 32;
/// From this many tokens on a panel pays.
const PANEL_FROM: usize = 7;
/// Tokens that share the weights in registers.
const TOKENS: usize = 4;
/// Tokens whose outputs wait in scratch while panels are in use.
const PANEL_TOKENS: usize = 128;
/// Blocks of the longest panel.
const PANEL_BLOCKS: usize = 8;
/// Bytes of activations that a block of tokens may take of the L2 cache.
const TOKEN_BLOCK_BYTES: usize = 256 << 10;

/// Largest 16-bit sum of a block: a product adds two columns to a lane.
const fn lane_max(steps: usize, code_max: usize) -> usize {
    steps * 2 * code_max * ACTIVATION_MAX as usize
}

/// Largest |Σ q| of a block, with which one lane of two starts.
const START_MAX: usize = BLOCK_COLUMNS * ACTIVATION_MAX as usize;
// In the panel; in the stream, where even and odd quarters have sums of their own and are joined in 16 bits.
const _: () = assert!(lane_max(STEPS, 2) + START_MAX <= i16::MAX as usize);
const _: () = assert!(lane_max(STEPS / 2, 2 << 2) <= i16::MAX as usize);
const _: () = assert!(PANEL_BLOCKS * size_of::<PanelBlock>() <= PANEL_BYTES);
const _: () = assert!(PANEL_TOKENS * LANE_ROWS == FLOAT_PANEL_TOKENS * TILE_ROWS * bitnet_model::numerics::LANES);
const _: () = assert!(PANEL_TOKENS.is_multiple_of(TOKENS));

/// Unpacked codes of sixteen rows of one block, `[STEPS, LANE_ROWS, LANE_COLUMNS]`, columns ascending.
type PanelBlock = [[u8; LINE_BYTES]; STEPS];
/// Sums of sixteen rows for each of T tokens.
type Sums<const T: usize> = [[__m256i; HALVES]; T];
/// Sixteen outputs in memory.
type OutputRow = [f32; LANE_ROWS];

/// Product of one thread's tiles.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn linear(x: GroupRows<'_>, weights: &LaneTiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let Some(group_blocks) = weights.group_blocks() else {
        if weights.group_size().is_multiple_of(QUARTER_COLUMNS) {
            return quarters((x, weights, store), out);
        }
        return portable::linear_groups(x, weights, store, out);
    };
    let product = Product { x, weights, group_blocks, store };
    let n_tokens = out.n_rows();
    if n_tokens < PANEL_FROM {
        return streams(product, out);
    }
    let in_cache = (TOKEN_BLOCK_BYTES / x.stride / TOKENS * TOKENS).clamp(4 * TOKENS, PANEL_TOKENS);
    for first in (0..n_tokens).step_by(in_cache) {
        panels(product, first..n_tokens.min(first + in_cache), out, scratch);
    }
}

/// What is multiplied and what becomes of the result.
#[derive(Clone, Copy)]
struct Product<'a> {
    x: GroupRows<'a>,
    weights: &'a LaneTiles,
    /// Blocks that share a weight scale.
    group_blocks: usize,
    store: Store,
}

/// Every tile for one or two tokens at a time, codes unpacked in registers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn streams(product: Product<'_>, out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    let n_tokens = out.n_rows();
    for tile in LaneTiles::tiles_of(&columns) {
        for first in (0..n_tokens - n_tokens % 2).step_by(2) {
            stream::<2>(product, (tile, first), out);
        }
        if !n_tokens.is_multiple_of(2) {
            stream::<1>(product, (tile, n_tokens - 1), out);
        }
    }
}

/// One token's blocks.
#[derive(Clone, Copy, Default)]
struct Token<'a> {
    activations: &'a [[i8; BLOCK_COLUMNS]],
    scales: &'a [RowScale],
}

impl<'a> Token<'a> {
    #[inline(always)]
    fn new(x: GroupRows<'a>, token: usize) -> Self {
        Self { activations: x.blocks(token), scales: x.scales(token) }
    }

    /// Some of its blocks.
    #[inline(always)]
    fn within(self, blocks: Range<usize>) -> Self {
        Self { activations: &self.activations[blocks.clone()], scales: &self.scales[blocks] }
    }
}

/// Sixteen outputs of T tokens from `first` on.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn stream<const T: usize>(product: Product<'_>, (tile, first): (usize, usize), out: &mut ColumnsMut<'_>) {
    let Product { x, weights, group_blocks, store } = product;
    let mut rows: [Token<'_>; T] = [Token::default(); T];
    for (token, row) in rows.iter_mut().enumerate() {
        *row = Token::new(x, first + token);
    }
    let mut y = [[_mm256_setzero_ps(); HALVES]; T];
    let scales = weights.tile_scales(tile);
    for (group, blocks) in weights.tile(tile).chunks(group_blocks).enumerate() {
        let scales = load_scales_of(scales, group);
        for (within, block) in blocks.iter().enumerate() {
            let index = group * group_blocks + within;
            let sums = sum_block(block, rows, index);
            for ((y, sums), row) in y.iter_mut().zip(sums).zip(rows) {
                *y = plus_scaled(*y, sums, scales, row.scales[index].scale.real);
            }
        }
    }
    let offset = tile * LANE_ROWS - out.range().start;
    for (token, y) in y.into_iter().enumerate() {
        store.store(&mut out.row_mut(first + token)[offset..], to_row(y));
    }
}

/// Scales of sixteen rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_scales_of(scales: TileScales<'_>, group: usize) -> [__m256; HALVES] {
    match scales {
        TileScales::F32(scales) => load_row(&scales[group]),
        TileScales::F16(scales) => {
            let [low, high] = halves(&scales[group]);
            [widen_half_bits(low), widen_half_bits(high)]
        }
    }
}

/// Sixteen floats.
#[inline]
#[target_feature(enable = "avx2")]
fn load_row(row: &OutputRow) -> [__m256; HALVES] {
    let [low, high] = halves(row);
    [load_f32(low), load_f32(high)]
}

#[inline(always)]
fn halves<E>(row: &[E; LANE_ROWS]) -> [&[E; 8]; HALVES] {
    let (halves, _) = row.as_chunks::<8>();
    [&halves[0], &halves[1]]
}

/// y + (the sum of each pair of 16-bit sums) · (scale · activation scale), as `numerics::dequantise_segments` does for each segment.
#[inline]
#[target_feature(enable = "avx2")]
fn plus_scaled(mut y: [__m256; HALVES], sums: [__m256i; HALVES], scales: [__m256; HALVES], activation_scale: f32) -> [__m256; HALVES] {
    for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scales) {
        let integers = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
        let scale = _mm256_mul_ps(scale, _mm256_set1_ps(activation_scale));
        *y = _mm256_add_ps(*y, _mm256_mul_ps(_mm256_cvtepi32_ps(integers), scale));
    }
    y
}

/// −Σ q of a block in the lower of each pair of 16-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn start(scale: RowScale) -> __m256i {
    _mm256_set1_epi32(scale.sum.wrapping_neg() & 0xffff)
}

/// Σ trit·q of one block from its packed codes, in pairs of 16-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_block<const T: usize>(block: &LaneBlock, rows: [Token<'_>; T], index: usize) -> Sums<T> {
    let mut sums = BlockSums { even: [[_mm256_setzero_si256(); HALVES]; T], odd: [[_mm256_setzero_si256(); HALVES]; T] };
    let mut activations = [&[0i8; BLOCK_COLUMNS]; T];
    for ((even, activations), row) in sums.even.iter_mut().zip(&mut activations).zip(rows) {
        *even = [start(row.scales[index]); HALVES];
        *activations = &row.activations[index];
    }
    for (line, bytes) in block.iter().enumerate() {
        prefetch_line_behind(bytes);
        for (half, bytes) in bytes.as_chunks().0.iter().enumerate() {
            let low = load_u8(bytes);
            add_pair(&mut sums, (half, low), activations, line);
            add_pair(&mut sums, (half, _mm256_srli_epi16::<4>(low)), activations, 2 * LINES + line);
        }
    }
    for (even, odd) in sums.even.as_flattened_mut().iter_mut().zip(sums.odd.as_flattened()) {
        *even = _mm256_add_epi16(*even, _mm256_srai_epi16::<2>(*odd));
    }
    sums.even
}

/// Sums of even quarters, and four times those of odd ones.
struct BlockSums<const T: usize> {
    even: Sums<T>,
    odd: Sums<T>,
}

/// Adds the two quarters whose codes lie lowest in their bytes, for one half of the rows; `lane` is where the activations of the first
/// begin.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pair<const T: usize>(sums: &mut BlockSums<T>, (half, codes): (usize, __m256i), activations: [&[i8; BLOCK_COLUMNS]; T], lane: usize) {
    let (even_codes, odd_codes) = (_mm256_and_si256(codes, _mm256_set1_epi8(0b0011)), _mm256_and_si256(codes, _mm256_set1_epi8(0b1100)));
    for ((even, odd), activations) in sums.even.iter_mut().zip(&mut sums.odd).zip(activations) {
        let (x, x_odd) = (lane_of(activations, lane), lane_of(activations, LINES + lane));
        even[half] = _mm256_add_epi16(even[half], _mm256_maddubs_epi16(even_codes, x));
        odd[half] = _mm256_add_epi16(odd[half], _mm256_maddubs_epi16(odd_codes, x_odd));
    }
}

/// Four columns of a block of activations, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn lane_of(activations: &[i8; BLOCK_COLUMNS], lane: usize) -> __m256i {
    let [a, b, c, d] = activations.as_chunks::<LANE_COLUMNS>().0[lane];
    _mm256_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]))
}

/// Sixteen outputs as an array.
#[inline]
#[target_feature(enable = "avx2")]
fn to_row(y: [__m256; HALVES]) -> OutputRow {
    let mut row = [0.0; LANE_ROWS];
    for (values, y) in row.as_chunks_mut().0.iter_mut().zip(y) {
        store_f32(values, y);
    }
    row
}

/// Every tile for one token at a time, where groups end inside blocks, at whole quarters.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn quarters((x, weights, store): (GroupRows<'_>, &LaneTiles, Store), out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in LaneTiles::tiles_of(&columns) {
        for token in 0..out.n_rows() {
            let y = sum_quarters(Token::new(x, token), weights, tile);
            store.store(&mut out.row_mut(token)[tile * LANE_ROWS - columns.start..], to_row(y));
        }
    }
}

/// Sixteen outputs of a token. Sums go on from quarter to quarter until a group of weights or of activations ends.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn sum_quarters(row: Token<'_>, weights: &LaneTiles, tile: usize) -> [__m256; HALVES] {
    let (codes, scales, group_size) = (weights.tile(tile), weights.tile_scales(tile), weights.group_size());
    let (mut y, mut sums) = ([_mm256_setzero_ps(); HALVES], [_mm256_setzero_si256(); HALVES]);
    for quarter in 0..weights.k() / QUARTER_COLUMNS {
        let (block, within) = (quarter / QUARTERS, quarter % QUARTERS);
        let activations = &row.activations[block];
        let sum = sum_i8(load_i8(&activations.as_chunks().0[within]));
        for half in &mut sums {
            *half = _mm256_add_epi16(*half, start(RowScale { sum, ..RowScale::default() }));
        }
        let shift = _mm_cvtsi32_si128(2 * within as i32);
        for (line, bytes) in codes[block].iter().enumerate() {
            prefetch_line_behind(bytes);
            let x = lane_of(activations, within * LINES + line);
            for (half, bytes) in sums.iter_mut().zip(bytes.as_chunks().0) {
                let codes = _mm256_and_si256(_mm256_srl_epi16(load_u8(bytes), shift), _mm256_set1_epi8(3));
                *half = _mm256_add_epi16(*half, _mm256_maddubs_epi16(codes, x));
            }
        }
        let end = (quarter + 1) * QUARTER_COLUMNS;
        if end.is_multiple_of(group_size) || end.is_multiple_of(BLOCK_COLUMNS) {
            y = plus_scaled(y, sums, load_scales_of(scales, (end - 1) / group_size), row.scales[block].scale.real);
            sums = [_mm256_setzero_si256(); HALVES];
        }
    }
    y
}

/// Every tile for a block of tokens, through panels of unpacked codes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn panels(product: Product<'_>, tokens: Range<usize>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let columns = out.range();
    let n_blocks = product.weights.n_blocks();
    let chunk_blocks = n_blocks.div_ceil(n_blocks.div_ceil(PANEL_BLOCKS));
    for tile in LaneTiles::tiles_of(&columns) {
        let outputs: &mut [OutputRow] = &mut scratch.lanes.as_chunks_mut().0[..tokens.len()];
        outputs.fill([0.0; LANE_ROWS]);
        for first_block in (0..n_blocks).step_by(chunk_blocks) {
            let blocks = first_block..n_blocks.min(first_block + chunk_blocks);
            let panel: &mut [PanelBlock] = &mut scratch.panel.as_chunks_mut().0.as_chunks_mut().0[..blocks.len()];
            unpack(&product.weights.tile(tile)[blocks.clone()], panel);
            multiply_panel(product, (tile, tokens.clone(), blocks), panel, outputs);
        }
        for (token, y) in tokens.clone().zip(outputs) {
            product.store.store(&mut out.row_mut(token)[tile * LANE_ROWS - columns.start..], *y);
        }
    }
}

/// Codes of whole blocks, one byte each.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack(blocks: &[LaneBlock], panel: &mut [PanelBlock]) {
    for (block, steps) in blocks.iter().zip(panel) {
        for (line, bytes) in block.iter().enumerate() {
            prefetch_line_behind(bytes);
            let [mut low, mut high] = load_halves_of(bytes);
            for step in steps.iter_mut().skip(line).step_by(LINES) {
                let [low_codes, high_codes] = step.as_chunks_mut::<32>().0 else { unreachable!("a line is two registers") };
                store_u8(low_codes, _mm256_and_si256(low, _mm256_set1_epi8(3)));
                store_u8(high_codes, _mm256_and_si256(high, _mm256_set1_epi8(3)));
                (low, high) = (_mm256_srli_epi16::<2>(low), _mm256_srli_epi16::<2>(high));
            }
        }
    }
}

/// A line as two registers.
#[inline]
#[target_feature(enable = "avx2")]
fn load_halves_of(line: &[u8; LINE_BYTES]) -> [__m256i; HALVES] {
    let halves = line.as_chunks().0;
    [load_u8(&halves[0]), load_u8(&halves[1])]
}

/// Adds the products of some blocks of a tile to the outputs of all tokens of the block.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn multiply_panel(
    Product { x, weights, group_blocks, .. }: Product<'_>,
    (tile, tokens, blocks): (usize, Range<usize>, Range<usize>),
    panel: &[PanelBlock],
    outputs: &mut [OutputRow],
) {
    let scales = weights.tile_scales(tile);
    for (first, outputs) in tokens.clone().step_by(TOKENS).zip(outputs.chunks_mut(TOKENS)) {
        let mut rows = [Token::default(); TOKENS];
        for (index, row) in rows.iter_mut().enumerate() {
            // Places without a token of their own repeat the last one; nothing of them is kept.
            *row = Token::new(x, first + index.min(outputs.len() - 1)).within(blocks.clone());
        }
        let mut y = [[_mm256_setzero_ps(); HALVES]; TOKENS];
        for (y, output) in y.iter_mut().zip(&*outputs) {
            *y = load_row(output);
        }
        for (index, steps) in panel.iter().enumerate() {
            let sums = sum_steps(steps, rows, index);
            let scales = load_scales_of(scales, (blocks.start + index) / group_blocks);
            for ((y, sums), row) in y.iter_mut().zip(sums).zip(rows) {
                *y = plus_scaled(*y, sums, scales, row.scales[index].scale.real);
            }
        }
        for (output, y) in outputs.iter_mut().zip(y) {
            *output = to_row(y);
        }
    }
}

/// Sixteen rows × one token of one step, whose codes are in `{w0}` and `{w1}`.
#[rustfmt::skip]
macro_rules! token_of_step {
    ($x:literal, $offset:literal, $low:literal, $high:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{", $x, "} + ", $offset, "]\n",
            "vpmaddubsw {t0}, {w0}, {x}\n",
            "vpmaddubsw {t1}, {w1}, {x}\n",
            "vpaddw ", $low, ", ", $low, ", {t0}\n",
            "vpaddw ", $high, ", ", $high, ", {t1}\n",
        )
    };
}

/// Sixteen rows × four tokens of four columns: six loads, eight products, eight sums, thirteen registers.
#[rustfmt::skip]
macro_rules! step_of_panel {
    ($panel:literal, $x:literal) => {
        concat!(
            "vmovdqu {w0}, ymmword ptr [{panel} + ", $panel, "]\n",
            "vmovdqu {w1}, ymmword ptr [{panel} + ", $panel, " + 32]\n",
            token_of_step!("a", $x, "{a0}", "{a1}"),
            token_of_step!("b", $x, "{b0}", "{b1}"),
            token_of_step!("c", $x, "{c0}", "{c1}"),
            token_of_step!("d", $x, "{d0}", "{d1}"),
        )
    };
}

/// Σ trit·q of one block of sixteen rows for four tokens, in pairs of 16-bit lanes: the register tile. In assembly for the reason
/// that `int8` gives.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_steps(steps: &PanelBlock, rows: [Token<'_>; TOKENS], index: usize) -> Sums<TOKENS> {
    let mut sums = [[_mm256_setzero_si256(); HALVES]; TOKENS];
    let mut activations = [&[0i8; BLOCK_COLUMNS]; TOKENS];
    for ((sums, activations), row) in sums.iter_mut().zip(&mut activations).zip(rows) {
        *sums = [start(row.scales[index]); HALVES];
        *activations = &row.activations[index];
    }
    let [[a0, a1], [b0, b1], [c0, c1], [d0, d1]] = &mut sums;
    let [a, b, c, d] = activations;
    // SAFETY: the loop runs STEPS / 4 times and each time reads 256 bytes of `steps`, which has STEPS lines of 64, and 16 bytes of each of
    // four blocks of 128 activations. It writes registers only.
    unsafe {
        std::arch::asm!(
            "2:",
            step_of_panel!("0", "0"),
            step_of_panel!("64", "4"),
            step_of_panel!("128", "8"),
            step_of_panel!("192", "12"),
            "add {panel}, 256",
            "add {a}, 16",
            "add {b}, 16",
            "add {c}, 16",
            "add {d}, 16",
            "dec {n}",
            "jnz 2b",
            panel = inout(reg) steps.as_ptr() => _,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            c = inout(reg) c.as_ptr() => _,
            d = inout(reg) d.as_ptr() => _,
            n = inout(reg) STEPS / 4 => _,
            a0 = inout(ymm_reg) *a0,
            a1 = inout(ymm_reg) *a1,
            b0 = inout(ymm_reg) *b0,
            b1 = inout(ymm_reg) *b1,
            c0 = inout(ymm_reg) *c0,
            c1 = inout(ymm_reg) *c1,
            d0 = inout(ymm_reg) *d0,
            d1 = inout(ymm_reg) *d1,
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            x = out(ymm_reg) _,
            t0 = out(ymm_reg) _,
            t1 = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}
