//! int8 activations × ternary weights. Codes 0..=2 are multiplied as they are (`maddubs`) and the sum of the activations is
//! subtracted at the end: Σ(code − 1)·q = Σ code·q − Σ q.
//!
//! 16-bit lanes are widened once for every `DEFERRED_COLUMNS` columns, the most for which they cannot overflow (const assert
//! in `kernels`). A few tokens unpack codes in registers as they stream by, two or four at a time; more tokens share a panel of
//! codes unpacked into L1, and take turns in blocks whose activations stay in L2. What this leaves out: groups that are not whole quarters (`portable`).

use std::arch::x86_64::*;
use std::ops::Range;

use super::vector::*;
use crate::arch::portable;
use crate::kernels::{DEFERRED_COLUMNS, Int8Rows, PANEL_TILES, PANEL_TOKENS, RowScale, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles};

/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Blocks whose sums fit 16-bit lanes.
const DEFERRED_BLOCKS: usize = DEFERRED_COLUMNS / BLOCK_COLUMNS;
/// The same where the codes of odd quarters count four times.
const ODD_BLOCKS: usize = DEFERRED_BLOCKS / 2;
const _: () = assert!(ODD_BLOCKS * 2 * 2 * 8 * 127 <= i16::MAX as usize);
/// From this many tokens on a panel pays.
const PANEL_FROM: usize = 3;
/// Below this many tokens codes are unpacked in registers again for every four of them, which is less work than a panel.
const QUADS_BELOW: usize = 24;
/// Tokens that share codes in registers.
const QUAD: usize = 4;
/// Bytes of activations that a block of tokens may take of the L2 cache.
const TOKEN_BLOCK_BYTES: usize = 352 << 10;
/// Tokens that share the weights in registers.
const TOKENS: usize = 2;

/// 16-bit or 32-bit sums of four rows for each of T tokens.
type Sums<const T: usize> = [[__m256i; TILE_ROWS]; T];

/// Product of one thread's tiles.
#[target_feature(enable = "avx2")]
pub(super) fn linear(x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    if !weights.has_whole_quarters() {
        return portable::linear_int8(x, weights, store, out);
    }
    let n_tokens = out.n_rows();
    let in_cache = (TOKEN_BLOCK_BYTES / x.stride / TOKENS * TOKENS).clamp(8 * TOKENS, PANEL_TOKENS);
    // Blocks of equal size: a short last one would unpack a panel for a few tokens.
    let block = n_tokens.div_ceil(n_tokens.div_ceil(in_cache).max(1)).next_multiple_of(TOKENS).max(TOKENS);
    for first in (0..n_tokens).step_by(block) {
        let tokens = first..n_tokens.min(first + block);
        if weights.n_groups() > 1 || tokens.len() < PANEL_FROM {
            streams(x, weights, (tokens, store), out);
        } else if tokens.len() < QUADS_BELOW {
            let in_quads = tokens.start..tokens.start + tokens.len() / QUAD * QUAD;
            quads(x, weights, (in_quads.clone(), store), out);
            streams(x, weights, (in_quads.end..tokens.end, store), out);
        } else {
            panels(x, weights, (tokens, store), out, scratch);
        }
    }
}

/// Every tile for one or two tokens at a time, codes unpacked in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn streams(x: Int8Rows<'_>, weights: &Tiles, (tokens, store): (Range<usize>, Store), out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let offset = tile * TILE_ROWS - columns.start;
        let mut token = tokens.start;
        while token + 2 <= tokens.end {
            let values = stream::<2>(x, weights, tile, [token, token + 1]);
            for (index, values) in values.into_iter().enumerate() {
                store.store(&mut out.row_mut(token + index)[offset..], to_array(values));
            }
            token += 2;
        }
        if token < tokens.end {
            let [values] = stream::<1>(x, weights, tile, [token]);
            store.store(&mut out.row_mut(token)[offset..], to_array(values));
        }
    }
}

/// Σ code·q over whole blocks of one token, 32-bit. The codes of odd quarters stay where they lie in half a byte and count four times, which
/// leaves registers and a quarter of the shifts, and 16-bit lanes that must be widened twice as often.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_blocks_of_one(codes: &[[u8; BLOCK_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> [__m256i; TILE_ROWS] {
    let (even_mask, odd_mask) = (_mm256_set1_epi8(0b0011), _mm256_set1_epi8(0b1100));
    let mut wide = [_mm256_setzero_si256(); TILE_ROWS];
    for (codes, activations) in codes.chunks(ODD_BLOCKS).zip(activations.chunks(ODD_BLOCKS)) {
        let (mut even, mut odd) = ([_mm256_setzero_si256(); TILE_ROWS], [_mm256_setzero_si256(); TILE_ROWS]);
        for (block, activations) in codes.iter().zip(activations) {
            prefetch_behind(block);
            let x = activations.as_chunks::<QUARTER_COLUMNS>().0;
            let (x0, x1, x2, x3) = (load_i8(&x[0]), load_i8(&x[1]), load_i8(&x[2]), load_i8(&x[3]));
            for (row, unit) in block.as_chunks().0.iter().enumerate() {
                let low = load_u8(unit);
                let high = _mm256_srli_epi16::<4>(low);
                even[row] = _mm256_add_epi16(even[row], _mm256_maddubs_epi16(_mm256_and_si256(low, even_mask), x0));
                odd[row] = _mm256_add_epi16(odd[row], _mm256_maddubs_epi16(_mm256_and_si256(low, odd_mask), x1));
                even[row] = _mm256_add_epi16(even[row], _mm256_maddubs_epi16(_mm256_and_si256(high, even_mask), x2));
                odd[row] = _mm256_add_epi16(odd[row], _mm256_maddubs_epi16(_mm256_and_si256(high, odd_mask), x3));
            }
        }
        for ((wide, even), odd) in wide.iter_mut().zip(even).zip(odd) {
            let sums = _mm256_add_epi16(even, _mm256_srai_epi16::<2>(odd));
            *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
        }
    }
    wide
}

/// Four outputs of T tokens, epilogue included.
#[inline]
#[target_feature(enable = "avx2")]
fn stream<const T: usize>(x: Int8Rows<'_>, weights: &Tiles, tile: usize, tokens: [usize; T]) -> [__m128; T] {
    let codes = weights.tile(tile);
    let mut activations: [&[[i8; BLOCK_COLUMNS]]; T] = [&[]; T];
    for (rows, token) in activations.iter_mut().zip(tokens) {
        *rows = x.blocks(token);
    }
    let mut y = [_mm_setzero_ps(); T];
    if weights.n_groups() == 1 {
        let sums = if T == 1 { [sum_blocks_of_one(codes, activations[0]); T] } else { sum_blocks(codes, activations) };
        for ((y, token), sums) in y.iter_mut().zip(tokens).zip(sums) {
            *y = dequantised(sum_rows(sums), x.scales[token], weights.tile_inverse_scales(tile));
        }
        return y;
    }
    let group_quarters = weights.group_quarters();
    let in_blocks = group_quarters.is_multiple_of(QUARTERS);
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let quarters = group * group_quarters..(group + 1) * group_quarters;
        let sums = if in_blocks {
            let blocks = quarters.start / QUARTERS..quarters.end / QUARTERS;
            sum_blocks(&codes[blocks.clone()], within(activations, blocks))
        } else {
            sum_quarters(codes, activations, quarters.clone())
        };
        for (index, token) in tokens.into_iter().enumerate() {
            let sum = x.quarter_sums(token)[quarters.clone()].iter().sum();
            y[index] = _mm_add_ps(y[index], scaled(sum_rows(sums[index]), sum, scales));
        }
    }
    for (y, token) in y.iter_mut().zip(tokens) {
        *y = _mm_div_ps(*y, _mm_set1_ps(x.scales[token].scale.inverse));
    }
    y
}

/// `numerics::dequantise` of four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn dequantised(sums: __m128i, row: RowScale, inverse_scales: &[f32; TILE_ROWS]) -> __m128 {
    let accumulators = _mm_cvtepi32_ps(_mm_sub_epi32(sums, _mm_set1_epi32(row.sum)));
    _mm_div_ps(accumulators, _mm_mul_ps(_mm_set1_ps(row.scale.inverse), load_scales(inverse_scales)))
}

/// (Σ code·q − Σ q) · scale.
#[inline]
#[target_feature(enable = "avx2")]
fn scaled(sums: __m128i, sum: i32, scales: &[f32; TILE_ROWS]) -> __m128 {
    _mm_mul_ps(_mm_cvtepi32_ps(_mm_sub_epi32(sums, _mm_set1_epi32(sum))), load_scales(scales))
}

/// Adds 16-bit sums to 32-bit ones.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const T: usize>(wide: &mut Sums<T>, narrow: &Sums<T>) {
    for (wide, narrow) in wide.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
        *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*narrow, _mm256_set1_epi16(1)));
    }
}

/// sums += code pairs · activation pairs, for four rows × T tokens.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products<const T: usize>(sums: &mut Sums<T>, codes: [__m256i; TILE_ROWS], x: [__m256i; T]) {
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sum, codes) in sums.iter_mut().zip(codes) {
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, x));
        }
    }
}

/// The quarter of a block that lies `shift` bits up, four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack_quarter(block: &[u8; BLOCK_BYTES], shift: __m128i) -> [__m256i; TILE_ROWS] {
    let mut codes = [_mm256_setzero_si256(); TILE_ROWS];
    for (codes, unit) in codes.iter_mut().zip(block.as_chunks().0) {
        *codes = _mm256_and_si256(_mm256_srl_epi16(load_u8(unit), shift), _mm256_set1_epi8(3));
    }
    codes
}

/// Where the codes of a quarter lie in their bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn quarter_shift(quarter: usize) -> __m128i {
    _mm_cvtsi32_si128(2 * (quarter % QUARTERS) as i32)
}

/// Σ code·q over whole blocks, 32-bit.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_blocks<const T: usize>(codes: &[[u8; BLOCK_BYTES]], activations: [&[[i8; BLOCK_COLUMNS]]; T]) -> Sums<T> {
    let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; T];
    for (chunk, codes) in codes.chunks(DEFERRED_BLOCKS).enumerate() {
        let activations = within(activations, chunk * DEFERRED_BLOCKS..chunk * DEFERRED_BLOCKS + codes.len());
        let mut narrow = [[_mm256_setzero_si256(); TILE_ROWS]; T];
        for (index, block) in codes.iter().enumerate() {
            prefetch_behind(block);
            for quarter in 0..QUARTERS {
                add_products(&mut narrow, unpack_quarter(block, quarter_shift(quarter)), load_quarters(activations, index, quarter));
            }
        }
        widen(&mut wide, &narrow);
    }
    wide
}

/// Σ code·q over any quarters, 32-bit.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_quarters<const T: usize>(codes: &[[u8; BLOCK_BYTES]], activations: [&[[i8; BLOCK_COLUMNS]]; T], quarters: Range<usize>) -> Sums<T> {
    let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; T];
    for first in quarters.clone().step_by(DEFERRED_BLOCKS * QUARTERS) {
        let mut narrow = [[_mm256_setzero_si256(); TILE_ROWS]; T];
        for quarter in first..quarters.end.min(first + DEFERRED_BLOCKS * QUARTERS) {
            let block = quarter / QUARTERS;
            let x = load_quarters(activations, block, quarter % QUARTERS);
            add_products(&mut narrow, unpack_quarter(&codes[block], quarter_shift(quarter)), x);
        }
        widen(&mut wide, &narrow);
    }
    wide
}

/// Every tile for four tokens at a time, codes unpacked in registers. One scale group only.
#[inline]
#[target_feature(enable = "avx2")]
fn quads(x: Int8Rows<'_>, weights: &Tiles, (tokens, store): (Range<usize>, Store), out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    let chunk_blocks = weights.n_blocks().div_ceil(weights.n_blocks().div_ceil(DEFERRED_BLOCKS));
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let (codes, offset) = (weights.tile(tile), tile * TILE_ROWS - columns.start);
        for first in tokens.clone().step_by(QUAD) {
            let rows = [x.blocks(first), x.blocks(first + 1), x.blocks(first + 2), x.blocks(first + 3)];
            let mut wide = [[_mm256_setzero_si256(); TILE_ROWS]; QUAD];
            for first_block in (0..codes.len()).step_by(chunk_blocks) {
                let blocks = first_block..codes.len().min(first_block + chunk_blocks);
                let (codes, rows) = (&codes[blocks.clone()], within(rows, blocks));
                add_wide::<0>(&mut wide, sum_blocks_of_quad::<0>(codes, rows));
                add_wide::<2>(&mut wide, sum_blocks_of_quad::<2>(codes, rows));
            }
            for (index, sums) in wide.into_iter().enumerate() {
                let row = x.scales[first + index];
                let values = dequantised(sum_rows(sums), row, weights.tile_inverse_scales(tile));
                store.store(&mut out.row_mut(first + index)[offset..], to_array(values));
            }
        }
    }
}

/// Adds the 16-bit sums of two rows, the first of which is `FIRST`, to the 32-bit ones of four.
#[inline]
#[target_feature(enable = "avx2")]
fn add_wide<const FIRST: usize>(wide: &mut [[__m256i; TILE_ROWS]; QUAD], narrow: [[__m256i; 2]; QUAD]) {
    for (wide, narrow) in wide.iter_mut().zip(narrow) {
        for (row, sum) in narrow.into_iter().enumerate() {
            wide[FIRST + row] = _mm256_add_epi32(wide[FIRST + row], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
        }
    }
}

/// Two rows × four tokens of one quarter: two codes unpacked, eight products, eight sums, fifteen registers.
#[rustfmt::skip]
macro_rules! quarter_of_quad {
    ($x:literal) => {
        concat!(
            "vpand {u0}, {w0}, {mask}\n",
            "vpand {u1}, {w1}, {mask}\n",
            "vpsrlw {w0}, {w0}, 2\n",
            "vpsrlw {w1}, {w1}, 2\n",
            token_of_quad!("{a}", $x, "{s00}", "{s01}"),
            token_of_quad!("{b}", $x, "{s10}", "{s11}"),
            token_of_quad!("{c}", $x, "{s20}", "{s21}"),
            token_of_quad!("{d}", $x, "{s30}", "{s31}"),
        )
    };
}

/// One token of it meets both rows' codes.
#[rustfmt::skip]
macro_rules! token_of_quad {
    ($token:literal, $x:literal, $first:literal, $second:literal) => {
        concat!(
            "vpmaddubsw {t0}, {u0}, ymmword ptr [", $token, " + ", $x, "]\n",
            "vpmaddubsw {t1}, {u1}, ymmword ptr [", $token, " + ", $x, "]\n",
            "vpaddw ", $first, ", ", $first, ", {t0}\n",
            "vpaddw ", $second, ", ", $second, ", {t1}\n",
        )
    };
}

/// Σ code·q of rows `FIRST` and `FIRST + 1` for four tokens in 16-bit lanes: at most `DEFERRED_COLUMNS` columns. In assembly for the
/// reason that `sum_blocks_of_panel` gives.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_blocks_of_quad<const FIRST: usize>(codes: &[[u8; BLOCK_BYTES]], rows: [&[[i8; BLOCK_COLUMNS]]; QUAD]) -> [[__m256i; 2]; QUAD] {
    const { assert!(FIRST + 2 <= TILE_ROWS) };
    assert!(codes.len() <= DEFERRED_BLOCKS, "16-bit lanes would overflow");
    let [a, b, c, d] = within(rows, 0..codes.len());
    let mut sums = [[_mm256_setzero_si256(); 2]; QUAD];
    if codes.is_empty() {
        return sums;
    }
    let [[s00, s01], [s10, s11], [s20, s21], [s30, s31]] = &mut sums;
    let mask = _mm256_set1_epi8(3);
    // SAFETY: the loop reads `codes.len()` > 0 blocks of 128 bytes from `codes` (two rows of 32 bytes of each, `FIRST` + 2 <= 4) and
    // of 128 bytes from each token, which is what the slices hold (`within` cut them to one length). It writes registers only; a
    // prefetch reads nothing.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu {w0}, ymmword ptr [{codes} + {first}]",
            "vmovdqu {w1}, ymmword ptr [{codes} + {first} + 32]",
            "prefetcht0 byte ptr [{codes} + {first} + {ahead}]",
            quarter_of_quad!("0"),
            quarter_of_quad!("32"),
            quarter_of_quad!("64"),
            quarter_of_quad!("96"),
            "add {codes}, 128",
            "add {a}, 128",
            "add {b}, 128",
            "add {c}, 128",
            "add {d}, 128",
            "dec {n}",
            "jnz 2b",
            first = const FIRST * QUARTER_COLUMNS,
            ahead = const PREFETCH_BYTES,
            codes = inout(reg) codes.as_ptr() => _,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            c = inout(reg) c.as_ptr() => _,
            d = inout(reg) d.as_ptr() => _,
            n = inout(reg) codes.len() => _,
            s00 = inout(ymm_reg) *s00,
            s01 = inout(ymm_reg) *s01,
            s10 = inout(ymm_reg) *s10,
            s11 = inout(ymm_reg) *s11,
            s20 = inout(ymm_reg) *s20,
            s21 = inout(ymm_reg) *s21,
            s30 = inout(ymm_reg) *s30,
            s31 = inout(ymm_reg) *s31,
            mask = in(ymm_reg) mask,
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            u0 = out(ymm_reg) _,
            u1 = out(ymm_reg) _,
            t0 = out(ymm_reg) _,
            t1 = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}

/// Unpacked codes of one block of a tile, `[QUARTERS, TILE_ROWS, QUARTER_COLUMNS]`.
type PanelBlock = [u8; QUARTERS * BLOCK_BYTES];

/// Every tile for a block of tokens, through panels of unpacked codes. One scale group only.
#[inline]
#[target_feature(enable = "avx2")]
fn panels(x: Int8Rows<'_>, weights: &Tiles, (tokens, store): (Range<usize>, Store), out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let columns = out.range();
    let n_chunks = weights.n_blocks().div_ceil(DEFERRED_BLOCKS);
    let chunk_blocks = weights.n_blocks().div_ceil(n_chunks);
    let end = columns.end.div_ceil(TILE_ROWS);
    for first_tile in (columns.start / TILE_ROWS..end).step_by(PANEL_TILES) {
        let tiles = first_tile..end.min(first_tile + PANEL_TILES);
        for first_block in (0..weights.n_blocks()).step_by(chunk_blocks) {
            let blocks = first_block..weights.n_blocks().min(first_block + chunk_blocks);
            sum_panel(x, weights, (tokens.clone(), tiles.clone(), blocks), (out, scratch));
        }
        finish_panel(x, weights, (tokens.clone(), tiles, store), out, scratch);
    }
}

/// Adds the products of some blocks of a panel's tiles to the lanes of all tokens of the block; the first blocks write them. Lanes
/// are summed up once, in `finish_panel`: that takes longer than a short run of products. Outputs are asked for meanwhile.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_panel(
    x: Int8Rows<'_>,
    weights: &Tiles,
    (tokens, tiles, blocks): (Range<usize>, Range<usize>, Range<usize>),
    (out, scratch): (&mut ColumnsMut<'_>, &mut Scratch),
) {
    let offset = tiles.start * TILE_ROWS - out.range().start;
    let panel: &mut [PanelBlock] = scratch.panel.as_chunks_mut().0;
    for (tile, panel) in tiles.clone().zip(panel.chunks_exact_mut(blocks.len())) {
        unpack(&weights.tile(tile)[blocks.clone()], panel);
    }
    let panels = scratch.panel.as_chunks().0.chunks_exact(blocks.len()).take(tiles.len());
    let is_first = blocks.start == 0;
    let lanes: &mut [TileLanes] = scratch.sums.as_chunks_mut().0;
    let pairs = lanes.chunks_mut(TOKENS * PANEL_TILES);
    for (first, lanes) in tokens.clone().step_by(TOKENS).zip(pairs) {
        let n = TOKENS.min(tokens.end - first);
        let mut rows: [&[[i8; BLOCK_COLUMNS]]; TOKENS] = [&[]; TOKENS];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = &x.blocks(first + index.min(n - 1))[blocks.clone()];
        }
        for token in first..first + n {
            prefetch_line(&out.row_mut(token)[offset..]);
        }
        for (tile, panel) in panels.clone().enumerate() {
            let sums = sum_blocks_of_panel(panel, rows);
            for (lanes, sums) in lanes.iter_mut().skip(tile).step_by(PANEL_TILES).zip(sums).take(n) {
                keep(lanes, sums, is_first);
            }
        }
    }
}

/// 32-bit lanes of four rows.
type TileLanes = [i32; TILE_ROWS * 8];

/// Writes (first blocks) or adds widened sums to where they wait.
#[inline]
#[target_feature(enable = "avx2")]
fn keep(lanes: &mut TileLanes, sums: [__m256i; TILE_ROWS], is_first: bool) {
    for (lanes, sum) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        let wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
        store_i32(lanes, if is_first { wide } else { _mm256_add_epi32(load_i32(lanes), wide) });
    }
}

/// Codes of whole blocks, one byte each.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack(codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelBlock]) {
    let mask = _mm256_set1_epi8(3);
    for (block, unpacked) in codes.iter().zip(panel) {
        prefetch_behind(block);
        for (row, unit) in block.as_chunks().0.iter().enumerate() {
            let mut codes = load_u8(unit);
            for step in unpacked.as_chunks_mut::<BLOCK_BYTES>().0 {
                store_u8(&mut step.as_chunks_mut().0[row], _mm256_and_si256(codes, mask));
                codes = _mm256_srli_epi16::<2>(codes);
            }
        }
    }
}

/// Four rows × two tokens of one quarter: six loads, eight products, eight sums, thirteen registers.
#[rustfmt::skip]
macro_rules! quarter_of_panel {
    ($panel:literal, $x:literal) => {
        concat!(
            "vmovdqu {x0}, ymmword ptr [{a} + ", $x, "]\n",
            "vmovdqu {x1}, ymmword ptr [{b} + ", $x, "]\n",
            row_of_panel!("{s00}", "{s10}", $panel, " + 0"),
            row_of_panel!("{s01}", "{s11}", $panel, " + 32"),
            row_of_panel!("{s02}", "{s12}", $panel, " + 64"),
            row_of_panel!("{s03}", "{s13}", $panel, " + 96"),
        )
    };
}

/// One row of it: its codes meet both tokens.
#[rustfmt::skip]
macro_rules! row_of_panel {
    ($first:literal, $second:literal, $panel:literal, $row:literal) => {
        concat!(
            "vmovdqu {w}, ymmword ptr [{panel} + ", $panel, $row, "]\n",
            "vpmaddubsw {t0}, {w}, {x0}\n",
            "vpmaddubsw {t1}, {w}, {x1}\n",
            "vpaddw ", $first, ", ", $first, ", {t0}\n",
            "vpaddw ", $second, ", ", $second, ", {t1}\n",
        )
    };
}

/// Σ code·q of four rows for two tokens in 16-bit lanes: the register tile. At most `DEFERRED_COLUMNS` columns, which is what they
/// hold. In assembly, because LLVM adds products up before it adds them to the sums, and then spills half of these.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_blocks_of_panel(panel: &[PanelBlock], rows: [&[[i8; BLOCK_COLUMNS]]; TOKENS]) -> Sums<TOKENS> {
    assert!(panel.len() <= DEFERRED_BLOCKS, "16-bit lanes would overflow");
    let [a, b] = within(rows, 0..panel.len());
    let mut sums = [[_mm256_setzero_si256(); TILE_ROWS]; TOKENS];
    if panel.is_empty() {
        return sums;
    }
    let [[s00, s01, s02, s03], [s10, s11, s12, s13]] = &mut sums;
    // SAFETY: the loop reads `panel.len()` > 0 blocks of 512 bytes from `panel` and of 128 bytes from `a` and from `b`, which is what
    // the three slices hold (`within` cut them to one length). It writes registers only.
    unsafe {
        std::arch::asm!(
            "2:",
            quarter_of_panel!("0", "0"),
            quarter_of_panel!("128", "32"),
            quarter_of_panel!("256", "64"),
            quarter_of_panel!("384", "96"),
            "add {panel}, 512",
            "add {a}, 128",
            "add {b}, 128",
            "dec {n}",
            "jnz 2b",
            panel = inout(reg) panel.as_ptr() => _,
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            n = inout(reg) panel.len() => _,
            s00 = inout(ymm_reg) *s00,
            s01 = inout(ymm_reg) *s01,
            s02 = inout(ymm_reg) *s02,
            s03 = inout(ymm_reg) *s03,
            s10 = inout(ymm_reg) *s10,
            s11 = inout(ymm_reg) *s11,
            s12 = inout(ymm_reg) *s12,
            s13 = inout(ymm_reg) *s13,
            x0 = out(ymm_reg) _,
            x1 = out(ymm_reg) _,
            w = out(ymm_reg) _,
            t0 = out(ymm_reg) _,
            t1 = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}

/// The epilogue of a panel.
#[inline]
#[target_feature(enable = "avx2")]
fn finish_panel(
    x: Int8Rows<'_>,
    weights: &Tiles,
    (tokens, tiles, store): (Range<usize>, Range<usize>, Store),
    out: &mut ColumnsMut<'_>,
    scratch: &Scratch,
) {
    let first_column = out.range().start;
    let lanes: &[TileLanes] = scratch.sums.as_chunks().0;
    for (token, lanes) in tokens.zip(lanes.chunks_exact(PANEL_TILES)) {
        let row = x.scales[token];
        let out = out.row_mut(token);
        for (tile, lanes) in tiles.clone().zip(lanes) {
            let mut rows = [_mm256_setzero_si256(); TILE_ROWS];
            for (row, lanes) in rows.iter_mut().zip(lanes.as_chunks().0) {
                *row = load_i32(lanes);
            }
            let values = dequantised(sum_rows(rows), row, weights.tile_inverse_scales(tile));
            store.store(&mut out[tile * TILE_ROWS - first_column..], to_array(values));
        }
    }
}
