//! f32 activations × ternary or dense weights, in the lane order of `numerics::dot`.
//!
//! Lanes 0..8 and 8..16 never meet before the end, so a pass may take one half alone and keep four rows × two tokens in flight.
//! Weights are multiplied, not selected, so that NaN and infinity spread as in the reference; no FMA. One token widens weights as
//! they stream by; more share a panel of four rows widened into L1.

use std::ops::Range;

use bitnet_checkpoint::DenseType;
use bitnet_model::numerics::{self, LANES};

use super::{Eight, WIDTH, add_outer};
use crate::arch::portable;
use crate::kernels::{F32Rows, FLOAT_PANEL_COLUMNS, FLOAT_PANEL_TOKENS, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// Bytes of a cache line, for prefetches.
const LINE: usize = 64;
/// Quarters in a block.
const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Tokens that share the weights in registers.
const TOKENS: usize = 2;

/// Eight columns of four rows of a panel.
pub(super) type PanelStep = [f32; TILE_ROWS * WIDTH];
/// Lanes of four rows for one token, `[TILE_ROWS, LANES]`.
type RowLanes = [f32; TILE_ROWS * LANES];
/// Outputs of four rows for some tokens.
type Outputs = [[f32; TILE_ROWS]; FLOAT_PANEL_TOKENS];

/// Product of one thread's tiles.
#[inline(always)]
pub(in crate::arch) fn linear<I: Eight>(
    isa: I,
    (x, weights): (F32Rows<'_>, &Tiles),
    store: Store,
    out: &mut ColumnsMut<'_>,
    scratch: &mut Scratch,
) {
    if !weights.has_whole_quarters() {
        return portable::linear_f32(x, weights, store, out, scratch);
    }
    let columns = out.range();
    for tokens in token_blocks(out.n_rows()) {
        for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
            let offset = tile * TILE_ROWS - columns.start;
            if tokens.len() == 1 {
                let values = stream_ternary(isa, x.row(tokens.start), weights, tile);
                store.store(&mut out.row_mut(tokens.start)[offset..], values);
                continue;
            }
            let values = panel_ternary(isa, (x, weights), (tile, tokens.clone()), scratch);
            for (token, values) in tokens.clone().zip(values) {
                store.store(&mut out.row_mut(token)[offset..], values);
            }
        }
    }
}

/// Products with one thread's rows of a dense table.
#[inline(always)]
pub(in crate::arch) fn logits<I: Eight>(isa: I, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    match table.dtype {
        DenseType::F32 => dense::<I, F32>(isa, x, table, out, scratch),
        DenseType::F16 => dense::<I, F16>(isa, x, table, out, scratch),
        DenseType::Bf16 => dense::<I, BF16>(isa, x, table, out, scratch),
    }
}

/// One exact logit, of a row whose neighbours are not wanted.
#[inline(always)]
pub(in crate::arch) fn dot_row<I: Eight>(isa: I, x: &[f32], table: &DenseRows<'_>, row: usize) -> f32 {
    match table.dtype {
        DenseType::F32 => stream_dense::<I, F32, false>(isa, x, table.row(row)),
        DenseType::F16 => stream_dense::<I, F16, false>(isa, x, table.row(row)),
        DenseType::Bf16 => stream_dense::<I, BF16, false>(isa, x, table.row(row)),
    }
}

fn token_blocks(n_tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_tokens).step_by(FLOAT_PANEL_TOKENS).map(move |first| first..n_tokens.min(first + FLOAT_PANEL_TOKENS))
}

/// Four outputs of one token, weights widened in registers.
#[inline(always)]
fn stream_ternary<I: Eight>(isa: I, x: &[f32], weights: &Tiles, tile: usize) -> [f32; TILE_ROWS] {
    let (codes, x) = (weights.tile(tile), x.as_chunks::<QUARTER_COLUMNS>().0);
    let (mut y, group_quarters) = ([0.0; TILE_ROWS], weights.group_quarters());
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let mut sums = [[isa.splat(0.0); TILE_ROWS]; 2];
        for quarter in group * group_quarters..(group + 1) * group_quarters {
            let block = &codes[quarter / QUARTERS];
            if quarter.is_multiple_of(QUARTERS) {
                block.chunks_exact(LINE).for_each(|line| isa.prefetch_behind(line));
            }
            add_quarter(isa, &mut sums, (block, quarter_shift(quarter)), &x[quarter]);
        }
        add_scaled(&mut y, isa.sum_lanes(sums[0], sums[1]), scales);
    }
    y
}

/// y += sums · scales.
#[inline(always)]
fn add_scaled(y: &mut [f32; TILE_ROWS], sums: [f32; TILE_ROWS], scales: &[f32; TILE_ROWS]) {
    for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scales) {
        *y += sum * scale;
    }
}

/// sums[half][row] += x · trits, for one quarter of four rows.
#[inline(always)]
fn add_quarter<I: Eight>(
    isa: I,
    sums: &mut [[I::Floats; TILE_ROWS]; 2],
    (block, shift): (&[u8; BLOCK_BYTES], i32),
    x: &[f32; QUARTER_COLUMNS],
) {
    for (step, x) in x.as_chunks().0.iter().enumerate() {
        let x = isa.load(x);
        for (row, sum) in sums[step % 2].iter_mut().enumerate() {
            *sum = isa.add(*sum, isa.mul(x, isa.trits(eight_codes(block, row, step), shift)));
        }
    }
}

/// How far the codes of a quarter lie from the low end of their bytes.
#[inline(always)]
fn quarter_shift(quarter: usize) -> i32 {
    2 * (quarter % QUARTERS) as i32
}

/// The bytes that hold columns `8·step..` of each quarter of one row.
#[inline(always)]
fn eight_codes(block: &[u8; BLOCK_BYTES], row: usize, step: usize) -> &[u8; WIDTH] {
    &block.as_chunks().0[row * (UNIT_BYTES / WIDTH) + step]
}

/// Four outputs of several tokens.
#[inline(always)]
fn panel_ternary<I: Eight>(
    isa: I,
    (x, weights): (F32Rows<'_>, &Tiles),
    (tile, tokens): (usize, Range<usize>),
    scratch: &mut Scratch,
) -> Outputs {
    let codes = weights.tile(tile);
    let mut y = [[0.0f32; TILE_ROWS]; FLOAT_PANEL_TOKENS];
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let quarters = group * weights.group_quarters()..(group + 1) * weights.group_quarters();
        let lanes: &mut [RowLanes] = &mut scratch.lanes.as_chunks_mut().0[..tokens.len()];
        lanes.as_flattened_mut().fill(0.0);
        for first in quarters.clone().step_by(FLOAT_PANEL_COLUMNS / QUARTER_COLUMNS) {
            let chunk = first..quarters.end.min(first + FLOAT_PANEL_COLUMNS / QUARTER_COLUMNS);
            let panel: &mut [PanelStep] = scratch.float_panel.as_chunks_mut().0;
            let panel = &mut panel[..chunk.len() * (QUARTER_COLUMNS / WIDTH)];
            for (quarter, steps) in chunk.clone().zip(panel.as_chunks_mut::<{ QUARTER_COLUMNS / WIDTH }>().0) {
                widen_ternary(isa, &codes[quarter / QUARTERS], quarter_shift(quarter), steps);
            }
            accumulate(isa, panel, (x, tokens.clone(), chunk.start * QUARTER_COLUMNS), lanes);
        }
        for (y, lanes) in y.iter_mut().zip(lanes) {
            add_scaled(y, sum_row_lanes(isa, lanes), scales);
        }
    }
    y
}

#[inline(always)]
fn widen_ternary<I: Eight>(isa: I, block: &[u8; BLOCK_BYTES], shift: i32, steps: &mut [PanelStep; QUARTER_COLUMNS / WIDTH]) {
    for (index, step) in steps.iter_mut().enumerate() {
        for (row, out) in step.as_chunks_mut().0.iter_mut().enumerate() {
            isa.store(out, isa.trits(eight_codes(block, row, index), shift));
        }
    }
}

/// lanes[token] += panel · x[token, first_column..] for all tokens.
#[inline(always)]
fn accumulate<I: Eight>(
    isa: I,
    panel: &[PanelStep],
    (x, tokens, first_column): (F32Rows<'_>, Range<usize>, usize),
    lanes: &mut [RowLanes],
) {
    let row = |token: usize| x.row(token)[first_column..first_column + panel.len() * WIDTH].as_chunks().0;
    let (pairs, rest) = lanes.as_chunks_mut::<TOKENS>();
    for (index, lanes) in pairs.iter_mut().enumerate() {
        let token = tokens.start + index * TOKENS;
        add_products(isa, panel, [row(token), row(token + 1)], lanes);
    }
    if let [lanes] = rest {
        add_products(isa, panel, [row(tokens.end - 1)], std::array::from_mut(lanes));
    }
}

/// The register tile: four rows × T tokens, one half of the lanes at a time.
#[inline(always)]
fn add_products<I: Eight, const T: usize>(isa: I, panel: &[PanelStep], rows: [&[[f32; WIDTH]]; T], lanes: &mut [RowLanes; T]) {
    let panel = panel.as_chunks::<2>().0;
    let mut pairs: [&[[[f32; WIDTH]; 2]]; T] = [&[]; T];
    for (pairs, row) in pairs.iter_mut().zip(rows) {
        *pairs = &row.as_chunks().0[..panel.len()];
    }
    for half in 0..2 {
        let mut sums = [[isa.splat(0.0); TILE_ROWS]; T];
        for (sums, lanes) in sums.iter_mut().zip(&*lanes) {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = isa.load(&lanes.as_chunks().0[2 * row + half]);
            }
        }
        for (index, step) in panel.iter().enumerate() {
            let mut x = [isa.splat(0.0); T];
            for (x, pairs) in x.iter_mut().zip(pairs) {
                *x = isa.load(&pairs[index][half]);
            }
            let mut weights = [isa.splat(0.0); TILE_ROWS];
            for (weights, step) in weights.iter_mut().zip(step[half].as_chunks().0) {
                *weights = isa.load(step);
            }
            add_outer(isa, &mut sums, x, weights);
        }
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            for (row, sum) in sums.into_iter().enumerate() {
                isa.store(&mut lanes.as_chunks_mut().0[2 * row + half], sum);
            }
        }
    }
}

/// `numerics::sum_lanes` of four rows.
#[inline(always)]
fn sum_row_lanes<I: Eight>(isa: I, lanes: &RowLanes) -> [f32; TILE_ROWS] {
    let halves = lanes.as_chunks::<WIDTH>().0;
    let mut sums = [[isa.splat(0.0); TILE_ROWS]; 2];
    for (index, half) in halves.iter().enumerate() {
        sums[index % 2][index / 2] = isa.load(half);
    }
    isa.sum_lanes(sums[0], sums[1])
}

/// Element types, as const parameters.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// Bytes of an element.
const fn size_bytes(kind: u8) -> usize {
    if kind == F32 { 4 } else { 2 }
}

/// Eight stored elements as f32. Panics if there are not eight.
#[inline(always)]
fn widen<I: Eight, const KIND: u8>(isa: I, bytes: &[u8]) -> I::Floats {
    if KIND == F32 {
        let (values, _) = bytes.as_chunks::<4>();
        let values: &[[u8; 4]; WIDTH] = values.try_into().expect("eight elements");
        return isa.load(&values.map(f32::from_le_bytes));
    }
    let halves = bytes.try_into().expect("eight elements");
    if KIND == F16 { isa.widen_f16(halves) } else { isa.widen_bf16(halves) }
}

/// `LANES` stored elements, zeros behind the last if there are fewer.
#[inline(always)]
fn widen_padded<I: Eight, const KIND: u8>(isa: I, bytes: &[u8]) -> [I::Floats; 2] {
    let mut padded = [0u8; LANES * 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    let half = WIDTH * size_bytes(KIND);
    [widen::<I, KIND>(isa, &padded[..half]), widen::<I, KIND>(isa, &padded[half..2 * half])]
}

#[inline(always)]
fn dense<I: Eight, const KIND: u8>(isa: I, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let columns = out.range();
    for tokens in token_blocks(x.n_rows()) {
        if tokens.len() == 1 {
            let logits = out.row_mut(tokens.start);
            for (row, logit) in columns.clone().zip(logits) {
                *logit = stream_dense::<I, KIND, true>(isa, x.row(tokens.start), table.row(row));
            }
            continue;
        }
        for first in columns.clone().step_by(TILE_ROWS) {
            let values = panel_dense::<I, KIND>(isa, (x, table), (first..columns.end.min(first + TILE_ROWS), tokens.clone()), scratch);
            for (token, values) in tokens.clone().zip(values) {
                Store::Write.store(&mut out.row_mut(token)[first - columns.start..], values);
            }
        }
    }
}

/// One output of one token: one row is one linear stream, which goes on with the next row if that is wanted, too.
#[inline(always)]
fn stream_dense<I: Eight, const KIND: u8, const GOES_ON: bool>(isa: I, x: &[f32], row: &[u8]) -> f32 {
    let half = WIDTH * size_bytes(KIND);
    let (chunks, mut sums) = (row.chunks_exact(2 * half), [isa.splat(0.0); 2]);
    let rest = chunks.remainder();
    let mut x = x.as_chunks::<LANES>().0.iter();
    let add = |sums: &mut [I::Floats; 2], weights: [I::Floats; 2], x: &[f32; LANES]| {
        for (index, (sum, weights)) in sums.iter_mut().zip(weights).enumerate() {
            *sum = isa.add(*sum, isa.mul(isa.load(&x.as_chunks().0[index]), weights));
        }
    };
    for (chunk, x) in chunks.zip(&mut x) {
        if GOES_ON {
            isa.prefetch_behind(chunk);
        }
        add(&mut sums, [widen::<I, KIND>(isa, &chunk[..half]), widen::<I, KIND>(isa, &chunk[half..])], x);
    }
    if let Some(x) = x.next() {
        add(&mut sums, widen_padded::<I, KIND>(isa, rest), x);
    }
    let mut lanes = [0.0f32; LANES];
    for (index, sum) in sums.into_iter().enumerate() {
        isa.store(&mut lanes.as_chunks_mut().0[index], sum);
    }
    numerics::sum_lanes(lanes)
}

/// Outputs of up to four rows for several tokens.
#[inline(always)]
fn panel_dense<I: Eight, const KIND: u8>(
    isa: I,
    (x, table): (F32Rows<'_>, &DenseRows<'_>),
    (rows, tokens): (Range<usize>, Range<usize>),
    scratch: &mut Scratch,
) -> Outputs {
    let lanes: &mut [RowLanes] = &mut scratch.lanes.as_chunks_mut().0[..tokens.len()];
    lanes.as_flattened_mut().fill(0.0);
    let k = table.k.next_multiple_of(LANES);
    for first in (0..k).step_by(FLOAT_PANEL_COLUMNS) {
        let columns = first..k.min(first + FLOAT_PANEL_COLUMNS);
        let panel: &mut [PanelStep] = scratch.float_panel.as_chunks_mut().0;
        let panel = &mut panel[..columns.len() / WIDTH];
        for (index, row) in rows.clone().enumerate() {
            let size = size_bytes(KIND);
            let bytes = &table.row(row)[columns.start * size..columns.end.min(table.k) * size];
            let (chunks, mut steps) = (bytes.chunks_exact(LANES * size), panel.as_chunks_mut::<2>().0.iter_mut());
            let rest = chunks.remainder();
            for (bytes, steps) in chunks.zip(&mut steps) {
                isa.prefetch_behind(bytes);
                isa.store(&mut steps[0].as_chunks_mut().0[index], widen::<I, KIND>(isa, &bytes[..WIDTH * size]));
                isa.store(&mut steps[1].as_chunks_mut().0[index], widen::<I, KIND>(isa, &bytes[WIDTH * size..]));
            }
            if let Some(steps) = steps.next() {
                let [low, high] = widen_padded::<I, KIND>(isa, rest);
                isa.store(&mut steps[0].as_chunks_mut().0[index], low);
                isa.store(&mut steps[1].as_chunks_mut().0[index], high);
            }
        }
        accumulate(isa, panel, (x, tokens.clone(), columns.start), lanes);
    }
    let mut y = [[0.0; TILE_ROWS]; FLOAT_PANEL_TOKENS];
    for (y, lanes) in y.iter_mut().zip(lanes) {
        *y = sum_row_lanes(isa, lanes);
    }
    y
}
