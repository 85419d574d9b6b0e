//! int8 activations × ternary weights by `vpdpbusd`, for any width of register. Codes 0..=2 are multiplied as they are and the
//! sum of the activations is subtracted at the end: Σ(code − 1)·q = Σ code·q − Σ q.
//!
//! One or two tokens take codes from their packed bytes as they stream by: the odd quarters stay where they are in their byte,
//! which makes their sums four times too large, exactly, and saves half of the shifts. A few more share each code in its register
//! (`shared`), if there are registers for their sums. More tokens share a panel of codes unpacked into L1, and take turns in blocks
//! whose activations stay in L2. What this leaves out: groups that are not whole quarters (`portable`).

use std::ops::Range;

use bitnet_checkpoint::limits::WIDTH_MAX;
use bitnet_model::numerics;

use super::DotRows;
use crate::arch::portable;
use crate::kernels::{Int8Rows, PANEL_BYTES, PANEL_SUMS, PANEL_TILES, PANEL_TOKENS, RowScale, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles};

/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// From this many tokens on a panel pays.
const PANEL_FROM: usize = 3;
/// Groups of tokens that share codes in registers, from which on a panel pays.
const SHARED_BELOW: usize = 2;
/// Bytes of activations that a block of tokens may take of the L2 cache.
const TOKEN_BLOCK_BYTES: usize = 384 << 10;
/// Blocks of the longest panel: with the activations that pass by it stays in an L1 cache of 48 KiB.
const PANEL_BLOCKS: usize = 28;

/// Where the codes of even and odd quarters lie, the upper two quarters shifted down by four bits.
const MASKS: [u8; 2] = [0b0011, 0b1100];

const _: () = assert!(PANEL_TILES * PANEL_BLOCKS * QUARTERS * BLOCK_BYTES <= PANEL_BYTES);
// Sums of odd quarters are four times too large, and must fit a lane even if all of a row fell into one.
const _: () = assert!(WIDTH_MAX * (2 << 2) * 127 <= i32::MAX as usize);

/// Unpacked codes of one quarter of a tile, a byte each.
type PanelStep = [u8; BLOCK_BYTES];
/// Outputs of a tile.
type Outputs = [f32; TILE_ROWS];

/// Tiles of a panel with their codes unpacked, and which blocks of their rows these are.
struct Panel<'a, const TILES: usize> {
    tiles: [&'a [PanelStep]; TILES],
    blocks: Range<usize>,
}

/// Product of one thread's tiles. Registers must hold the sums of `FEW` tokens × two tiles, of `SHARED` tokens × one tile and of
/// `MANY` tokens × `TILES` tiles.
#[inline(always)]
pub(in super::super) fn linear<V: DotRows, const FEW: usize, const SHARED: usize, const TILES: usize, const MANY: usize>(
    v: V,
    (x, weights, store): (Int8Rows<'_>, &Tiles, Store),
    out: &mut ColumnsMut<'_>,
    scratch: &mut Scratch,
) {
    const { assert!(TILES <= PANEL_TILES && MANY <= TOKENS_MAX && MANY <= PANEL_TOKENS) };
    if !weights.has_whole_quarters() {
        return portable::linear_int8(x, weights, store, out);
    }
    let n_tokens = out.n_rows();
    if weights.n_groups() > 1 || n_tokens < PANEL_FROM {
        return streams::<V, FEW>(v, x, (weights, store), out);
    }
    if SHARED > FEW && n_tokens < SHARED_BELOW * SHARED {
        return shared::<V, SHARED>(v, x, (weights, store), (out, scratch));
    }
    // Blocks of nearly equal size: one of few tokens would unpack all codes for them alone.
    let in_cache = (TOKEN_BLOCK_BYTES / x.stride).clamp(8 * MANY, PANEL_TOKENS);
    let size = n_tokens.div_ceil(n_tokens.div_ceil(in_cache));
    for first in (0..n_tokens).step_by(size) {
        let tokens = first..n_tokens.min(first + size);
        panels::<V, TILES, MANY>(v, x, (weights, tokens, store), (out, scratch));
    }
}

/// Every tile for `FEW` tokens or one at a time, codes unpacked in registers.
#[inline(always)]
fn streams<V: DotRows, const FEW: usize>(v: V, x: Int8Rows<'_>, (weights, store): (&Tiles, Store), out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let offset = tile * TILE_ROWS - columns.start;
        let mut token = 0;
        while token + FEW <= out.n_rows() {
            for (index, values) in stream::<V, FEW>(v, x, weights, (tile, token)).into_iter().enumerate() {
                store.store(&mut out.row_mut(token + index)[offset..], values);
            }
            token += FEW;
        }
        while token < out.n_rows() {
            let [values] = stream::<V, 1>(v, x, weights, (tile, token));
            store.store(&mut out.row_mut(token)[offset..], values);
            token += 1;
        }
    }
}

/// Four outputs of T tokens from `token` on, epilogue included.
#[inline(always)]
fn stream<V: DotRows, const T: usize>(v: V, x: Int8Rows<'_>, weights: &Tiles, (tile, token): (usize, usize)) -> [Outputs; T] {
    let codes = weights.tile(tile);
    let mut activations: [&[[i8; BLOCK_COLUMNS]]; T] = [&[]; T];
    for (index, rows) in activations.iter_mut().enumerate() {
        *rows = x.blocks(token + index);
    }
    if weights.n_groups() == 1 {
        let totals = sum_blocks::<V, T>(v, codes, activations);
        return std::array::from_fn(|index| dequantised(totals[index], x.scales[token + index], weights.tile_inverse_scales(tile)));
    }
    let mut y = [[0.0; TILE_ROWS]; T];
    let group_quarters = weights.group_quarters();
    let in_blocks = group_quarters.is_multiple_of(QUARTERS);
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let quarters = group * group_quarters..(group + 1) * group_quarters;
        let totals = if in_blocks {
            let blocks = quarters.start / QUARTERS..quarters.end / QUARTERS;
            sum_blocks::<V, T>(v, &codes[blocks.clone()], within(activations, blocks))
        } else {
            sum_quarters::<V, T>(v, codes, activations, quarters.clone())
        };
        for (index, (y, totals)) in y.iter_mut().zip(totals).enumerate() {
            let token = token + index;
            let sum = x.quarter_sums(token)[quarters.clone()].iter().sum();
            add_scaled(y, totals, sum, scales);
        }
    }
    for (index, y) in y.iter_mut().enumerate() {
        y.iter_mut().for_each(|value| *value /= x.scales[token + index].scale.inverse);
    }
    y
}

/// The same range of each token's row.
#[inline(always)]
fn within<const T: usize, E>(mut rows: [&[E]; T], range: Range<usize>) -> [&[E]; T] {
    for row in &mut rows {
        *row = &row[range.clone()];
    }
    rows
}

/// y += (Σ code·q − Σ q) · scale, as `numerics::dequantise` does for each group.
#[inline(always)]
fn add_scaled(y: &mut Outputs, totals: [i32; TILE_ROWS], sum: i32, scales: &[f32; TILE_ROWS]) {
    for ((y, total), scale) in y.iter_mut().zip(totals).zip(scales) {
        *y += (total - sum) as f32 * scale;
    }
}

/// Σ code·q over whole blocks.
#[inline(always)]
fn sum_blocks<V: DotRows, const T: usize>(v: V, codes: &[PackedBlock], activations: [&[[i8; BLOCK_COLUMNS]]; T]) -> [[i32; TILE_ROWS]; T] {
    let activations = within(activations, 0..codes.len());
    let (mut even, mut odd) = ([v.zero(); T], [v.zero(); T]);
    for (index, block) in codes.iter().enumerate() {
        v.prefetch_behind(block);
        let low = v.load(block);
        let high = v.shifted::<4>(low);
        for (half, codes) in [low, high].into_iter().enumerate() {
            let (even_codes, odd_codes) = (v.masked(codes, MASKS[0]), v.masked(codes, MASKS[1]));
            for (row, (even, odd)) in activations.iter().zip(even.iter_mut().zip(&mut odd)) {
                let quarters = row[index].as_chunks::<QUARTER_COLUMNS>().0;
                *even = v.dot(*even, even_codes, v.load_quarter(&quarters[2 * half]));
                *odd = v.dot(*odd, odd_codes, v.load_quarter(&quarters[2 * half + 1]));
            }
        }
    }
    joined(v, even, odd)
}

/// Tiles whose sums wait for each other, so that outputs are made and stored by many.
const STRIP_TILES: usize = 16;
/// The same for a panel's.
const PANEL_STRIP_TILES: usize = 8;
/// Outputs in a cache line.
const LINE_FLOATS: usize = 16;
/// Most tokens that share codes in registers.
const SHARED_MAX: usize = 8;

const _: () = assert!(STRIP_TILES * TILE_ROWS * SHARED_MAX <= PANEL_SUMS);
const _: () = assert!(PANEL_STRIP_TILES * TILE_ROWS * PANEL_TOKENS <= PANEL_SUMS && PANEL_STRIP_TILES.is_multiple_of(PANEL_TILES));

/// Every tile for groups of at most `SHARED` tokens of nearly equal size, which share each code as it is unpacked. One scale group
/// only.
#[inline(always)]
fn shared<V: DotRows, const SHARED: usize>(
    v: V,
    x: Int8Rows<'_>,
    (weights, store): (&Tiles, Store),
    (out, scratch): (&mut ColumnsMut<'_>, &mut Scratch),
) {
    const { assert!(SHARED <= SHARED_MAX) };
    let columns = out.range();
    let n_tokens = out.n_rows();
    let size = n_tokens.div_ceil(n_tokens.div_ceil(SHARED));
    let end = columns.end.div_ceil(TILE_ROWS);
    let sums = scratch.sums.as_chunks_mut::<TILE_ROWS>().0;
    for first_tile in (columns.start / TILE_ROWS..end).step_by(STRIP_TILES) {
        let tiles = first_tile..end.min(first_tile + STRIP_TILES);
        for first in (0..n_tokens).step_by(size) {
            let tokens = first..n_tokens.min(first + size);
            for tile in tiles.clone() {
                share_tile::<V>(v, x, (weights.tile(tile), tokens.clone()), &mut sums[tile - first_tile..]);
            }
            for (token, sums) in tokens.zip(sums.chunks_exact(STRIP_TILES)) {
                let out = &mut out.row_mut(token)[first_tile * TILE_ROWS - columns.start..];
                store_tiles((store, x.scales[token]), (weights, tiles.clone()), sums, out);
            }
        }
    }
}

/// Outputs of one token from the sums of some neighbouring tiles, as many as there is room for.
#[inline(always)]
fn store_tiles((store, row): (Store, RowScale), (weights, tiles): (&Tiles, Range<usize>), sums: &[[i32; TILE_ROWS]], out: &mut [f32]) {
    let totals = sums.as_flattened().iter().zip(weights.inverse_scales(tiles));
    for (out, (total, &inverse_scale)) in out.iter_mut().zip(totals) {
        *out = store.stored(*out, numerics::dequantise(total - row.sum, inverse_scale, row.scale.inverse));
    }
}

/// Sums of one tile for some tokens, every `STRIP_TILES`th of `sums`.
#[inline(always)]
fn share_tile<V: DotRows>(v: V, x: Int8Rows<'_>, (codes, tokens): (&[PackedBlock], Range<usize>), sums: &mut [[i32; TILE_ROWS]]) {
    let first = tokens.start;
    match tokens.len() {
        1 => share::<V, 1>(v, x, (codes, first), sums),
        2 => share::<V, 2>(v, x, (codes, first), sums),
        3 => share::<V, 3>(v, x, (codes, first), sums),
        4 => share::<V, 4>(v, x, (codes, first), sums),
        5 => share::<V, 5>(v, x, (codes, first), sums),
        6 => share::<V, 6>(v, x, (codes, first), sums),
        7 => share::<V, 7>(v, x, (codes, first), sums),
        SHARED_MAX => share::<V, SHARED_MAX>(v, x, (codes, first), sums),
        _ => unreachable!("groups have 1..=SHARED tokens"),
    }
}

/// The same for T tokens from `token` on.
#[inline(always)]
fn share<V: DotRows, const T: usize>(v: V, x: Int8Rows<'_>, (codes, token): (&[PackedBlock], usize), out: &mut [[i32; TILE_ROWS]]) {
    let mut activations: [&[[i8; BLOCK_COLUMNS]]; T] = [&[]; T];
    for (index, rows) in activations.iter_mut().enumerate() {
        *rows = &x.blocks(token + index)[..codes.len()];
    }
    let mut sums = [v.zero(); T];
    for (index, block) in codes.iter().enumerate() {
        v.prefetch_behind(block);
        let mut packed = v.load(block);
        for quarter in 0..QUARTERS {
            let codes = v.masked(packed, MASKS[0]);
            packed = v.shifted::<2>(packed);
            for (sums, row) in sums.iter_mut().zip(activations) {
                *sums = v.dot(*sums, codes, v.load_quarter(&row[index].as_chunks().0[quarter]));
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out.iter_mut().step_by(STRIP_TILES)) {
        *out = v.totals(sums);
    }
}

/// Σ code·q over any quarters.
#[inline(always)]
fn sum_quarters<V: DotRows, const T: usize>(
    v: V,
    codes: &[PackedBlock],
    activations: [&[[i8; BLOCK_COLUMNS]]; T],
    quarters: Range<usize>,
) -> [[i32; TILE_ROWS]; T] {
    let (mut even, mut odd) = ([v.zero(); T], [v.zero(); T]);
    for quarter in quarters {
        let (block, within) = (quarter / QUARTERS, quarter % QUARTERS);
        let packed = v.load(&codes[block]);
        let codes = if within < 2 { packed } else { v.shifted::<4>(packed) };
        let (sums, mask) = if within.is_multiple_of(2) { (&mut even, MASKS[0]) } else { (&mut odd, MASKS[1]) };
        for (sum, row) in sums.iter_mut().zip(activations) {
            let x = v.load_quarter(&row[block].as_chunks().0[within]);
            *sum = v.dot(*sum, v.masked(codes, mask), x);
        }
    }
    joined(v, even, odd)
}

/// Four codes in each byte.
type PackedBlock = [u8; BLOCK_BYTES];

/// Sums of even quarters and a fourth of those of odd quarters, whose codes count four times.
#[inline(always)]
fn joined<V: DotRows, const T: usize>(v: V, even: [V::Rows; T], odd: [V::Rows; T]) -> [[i32; TILE_ROWS]; T] {
    let mut totals = [[0; TILE_ROWS]; T];
    for ((totals, even), odd) in totals.iter_mut().zip(even).zip(odd) {
        *totals = v.totals(v.plus_fourth(even, odd));
    }
    totals
}

/// Every tile for a block of tokens, through panels of unpacked codes. One scale group only.
#[inline(always)]
fn panels<V: DotRows, const TILES: usize, const MANY: usize>(
    v: V,
    x: Int8Rows<'_>,
    (weights, tokens, store): (&Tiles, Range<usize>, Store),
    (out, scratch): (&mut ColumnsMut<'_>, &mut Scratch),
) {
    let columns = out.range();
    let end = columns.end.div_ceil(TILE_ROWS);
    for first in (columns.start / TILE_ROWS..end).step_by(PANEL_STRIP_TILES) {
        let strip = first..end.min(first + PANEL_STRIP_TILES);
        let outputs = first * TILE_ROWS - columns.start..columns.end.min(strip.end * TILE_ROWS) - columns.start;
        for first_tile in strip.clone().step_by(TILES) {
            // The lines of outputs are asked for while the last panel is multiplied.
            let asked = if first_tile + TILES >= strip.end { outputs.clone() } else { 0..0 };
            let ask = |token: usize| out.row_mut(token)[asked.clone()].chunks(LINE_FLOATS).for_each(|line| v.prefetch_line(line));
            sum_tiles::<V, TILES, MANY>(v, x, (weights, tokens.clone(), first_tile..end), (scratch, first_tile - first), ask);
        }
        let sums = scratch.sums.as_chunks::<TILE_ROWS>().0;
        for (token, sums) in tokens.clone().zip(sums.chunks_exact(PANEL_STRIP_TILES)) {
            store_tiles((store, x.scales[token]), (weights, strip.clone()), sums, &mut out.row_mut(token)[outputs.clone()]);
        }
    }
}

/// Sums of the first `TILES` of some tiles for a block of tokens, from `sums[.., in_strip]` on.
#[inline(always)]
fn sum_tiles<V: DotRows, const TILES: usize, const MANY: usize>(
    v: V,
    x: Int8Rows<'_>,
    (weights, tokens, tiles): (&Tiles, Range<usize>, Range<usize>),
    (scratch, in_strip): (&mut Scratch, usize),
    mut ask: impl FnMut(usize),
) {
    let chunk_blocks = weights.n_blocks().div_ceil(weights.n_blocks().div_ceil(PANEL_BLOCKS));
    let (panel_bytes, sums) = (scratch.panel.as_chunks_mut().0, scratch.sums.as_chunks_mut().0);
    for first_block in (0..weights.n_blocks()).step_by(chunk_blocks) {
        let blocks = first_block..weights.n_blocks().min(first_block + chunk_blocks);
        let panel = unpacked::<V, TILES>(v, weights, (tiles.start, tiles.end, blocks), panel_bytes);
        sum_panel::<V, TILES, MANY>(v, x, (tokens.clone(), &panel), &mut sums[in_strip..], &mut ask);
    }
}

/// `numerics::dequantise` of four rows.
#[inline(always)]
fn dequantised(totals: [i32; TILE_ROWS], row: RowScale, inverse_scales: &[f32; TILE_ROWS]) -> Outputs {
    std::array::from_fn(|index| numerics::dequantise(totals[index] - row.sum, inverse_scales[index], row.scale.inverse))
}

/// Unpacks some blocks of `TILES` tiles, the last one again where there are fewer.
#[inline(always)]
fn unpacked<'a, V: DotRows, const TILES: usize>(
    v: V,
    weights: &Tiles,
    (first_tile, end, blocks): (usize, usize, Range<usize>),
    panel: &'a mut [PanelStep],
) -> Panel<'a, TILES> {
    let n_steps = blocks.len() * QUARTERS;
    for (index, steps) in panel.chunks_exact_mut(n_steps).take(TILES).enumerate() {
        let tile = weights.tile((first_tile + index).min(end - 1));
        for (block, steps) in tile[blocks.clone()].iter().zip(steps.as_chunks_mut::<QUARTERS>().0) {
            v.prefetch_behind(block);
            unpack_block(v, block, steps);
        }
    }
    let mut tiles: [&[PanelStep]; TILES] = [&[]; TILES];
    for (tile, steps) in tiles.iter_mut().zip(panel.chunks_exact(n_steps)) {
        *tile = steps;
    }
    Panel { tiles, blocks }
}

/// Codes of a block, a byte each.
#[inline(always)]
fn unpack_block<V: DotRows>(v: V, block: &PackedBlock, steps: &mut [PanelStep; QUARTERS]) {
    let mut codes = v.load(block);
    for step in steps {
        v.store(step, v.masked(codes, MASKS[0]));
        codes = v.shifted::<2>(codes);
    }
}

/// Most tokens of a register tile.
const TOKENS_MAX: usize = 6;

/// Sums of a panel for all tokens of a block, written (first blocks) or added to the first of `sums[tokens, PANEL_STRIP_TILES]`. Tokens
/// go through registers in groups of nearly equal sizes; `ask` is called for each before its turn.
#[inline(always)]
fn sum_panel<V: DotRows, const TILES: usize, const MANY: usize>(
    v: V,
    x: Int8Rows<'_>,
    (tokens, panel): (Range<usize>, &Panel<'_, TILES>),
    sums: &mut [[i32; TILE_ROWS]],
    mut ask: impl FnMut(usize),
) {
    let mut left = tokens.clone();
    while !left.is_empty() {
        let n = left.len().div_ceil(left.len().div_ceil(MANY));
        (left.start..left.start + n).for_each(&mut ask);
        let sums = &mut sums[(left.start - tokens.start) * PANEL_STRIP_TILES..];
        match n {
            1 => sum_tokens::<V, TILES, 1>(v, x, (left.start, panel), sums),
            2 => sum_tokens::<V, TILES, 2>(v, x, (left.start, panel), sums),
            3 => sum_tokens::<V, TILES, 3>(v, x, (left.start, panel), sums),
            4 if MANY >= 4 => sum_tokens::<V, TILES, 4>(v, x, (left.start, panel), sums),
            5 if MANY >= 5 => sum_tokens::<V, TILES, 5>(v, x, (left.start, panel), sums),
            TOKENS_MAX if MANY >= TOKENS_MAX => sum_tokens::<V, TILES, TOKENS_MAX>(v, x, (left.start, panel), sums),
            _ => unreachable!("groups have 1..=MANY tokens"),
        }
        left.start += n;
    }
}

/// Sums of a panel for T tokens from `token` on, written or added to the first of `sums[T, PANEL_STRIP_TILES]`.
#[inline(always)]
fn sum_tokens<V: DotRows, const TILES: usize, const T: usize>(
    v: V,
    x: Int8Rows<'_>,
    (token, panel): (usize, &Panel<'_, TILES>),
    sums: &mut [[i32; TILE_ROWS]],
) {
    let mut rows: [&[[i8; QUARTER_COLUMNS]]; T] = [&[]; T];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = x.blocks(token + index)[panel.blocks.clone()].as_flattened().as_chunks().0;
    }
    let products = sum_steps::<V, TILES, T>(v, panel.tiles, rows);
    let is_first = panel.blocks.start == 0;
    for (sums, products) in sums.chunks_mut(PANEL_STRIP_TILES).zip(products) {
        for (sums, products) in sums.iter_mut().zip(products) {
            keep(sums, v.totals(products), is_first);
        }
    }
}

/// Writes (first blocks) or adds totals to where they wait.
#[inline(always)]
fn keep(sums: &mut [i32; TILE_ROWS], totals: [i32; TILE_ROWS], is_first: bool) {
    for (sum, total) in sums.iter_mut().zip(totals) {
        *sum = if is_first { total } else { *sum + total };
    }
}

/// Σ code·q of some steps: the register tile.
#[inline(always)]
fn sum_steps<V: DotRows, const TILES: usize, const T: usize>(
    v: V,
    tiles: [&[PanelStep]; TILES],
    rows: [&[[i8; QUARTER_COLUMNS]]; T],
) -> [[V::Rows; TILES]; T] {
    let n_steps = tiles[0].len();
    let (tiles, rows) = (within(tiles, 0..n_steps), within(rows, 0..n_steps));
    let mut sums = [[v.zero(); TILES]; T];
    for step in 0..n_steps {
        let mut codes = [v.zero(); TILES];
        for (codes, tile) in codes.iter_mut().zip(tiles) {
            *codes = v.load(&tile[step]);
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            let x = v.load_quarter(&row[step]);
            for (sum, codes) in sums.iter_mut().zip(codes) {
                *sum = v.dot(*sum, codes, x);
            }
        }
    }
    sums
}
