//! f32 activations × ternary or dense weights, in the lane order of `numerics::dot`.
//!
//! Lanes 0..8 and 8..16 live in two registers that never meet before the end, so a pass may take one half alone and keep four
//! rows × two tokens in flight. Weights are multiplied, not selected, so that NaN and infinity spread as in the reference; no
//! FMA. One token widens weights as they stream by; more share a panel of four rows widened into L1.

use std::arch::x86_64::*;
use std::ops::Range;

use bitnet_checkpoint::DenseType;
use bitnet_model::numerics::{self, LANES};

use super::vector::*;
use crate::arch::portable;
use crate::kernels::{F32Rows, FLOAT_PANEL_COLUMNS, FLOAT_PANEL_TOKENS, Scratch, Store};
use crate::pool::ColumnsMut;
use crate::table::DenseRows;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// Floats of a register.
const WIDTH: usize = 8;
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
#[target_feature(enable = "avx2,f16c")]
pub(super) fn linear(x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    if !weights.has_whole_quarters() {
        return portable::linear_f32(x, weights, store, out, scratch);
    }
    let columns = out.range();
    for tokens in token_blocks(out.n_rows()) {
        for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
            let offset = tile * TILE_ROWS - columns.start;
            if tokens.len() == 1 {
                let values = to_array(stream_ternary(x.row(tokens.start), weights, tile));
                store.store(&mut out.row_mut(tokens.start)[offset..], values);
                continue;
            }
            let values = panel_ternary(x, weights, (tile, tokens.clone()), scratch);
            for (token, values) in tokens.clone().zip(values) {
                store.store(&mut out.row_mut(token)[offset..], values);
            }
        }
    }
}

/// Products with one thread's rows of a dense table.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn logits(x: F32Rows<'_>, table: &DenseRows, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    match table.dtype {
        DenseType::F32 => dense::<F32>(x, table, out, scratch),
        DenseType::F16 => dense::<F16>(x, table, out, scratch),
        DenseType::Bf16 => dense::<BF16>(x, table, out, scratch),
    }
}

fn token_blocks(n_tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_tokens).step_by(FLOAT_PANEL_TOKENS).map(move |first| first..n_tokens.min(first + FLOAT_PANEL_TOKENS))
}

/// Four outputs of one token, weights widened in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn stream_ternary(x: &[f32], weights: &Tiles, tile: usize) -> __m128 {
    let (codes, x) = (weights.tile(tile), x.as_chunks::<QUARTER_COLUMNS>().0);
    let (mut y, group_quarters) = (_mm_setzero_ps(), weights.group_quarters());
    for (group, scales) in weights.tile_scales(tile).iter().enumerate() {
        let mut sums = [[_mm256_setzero_ps(); TILE_ROWS]; 2];
        for quarter in group * group_quarters..(group + 1) * group_quarters {
            let (block, shift) = (&codes[quarter / QUARTERS], quarter_shift(quarter));
            if quarter.is_multiple_of(QUARTERS) {
                prefetch_behind(block);
            }
            add_quarter(&mut sums, block, shift, &x[quarter]);
        }
        y = _mm_add_ps(y, _mm_mul_ps(sum_lanes(sums[0], sums[1]), load_scales(scales)));
    }
    y
}

/// sums[half][row] += x · trits, for one quarter of four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn add_quarter(sums: &mut [[__m256; TILE_ROWS]; 2], block: &[u8; BLOCK_BYTES], shift: __m128i, x: &[f32; QUARTER_COLUMNS]) {
    for (step, x) in x.as_chunks().0.iter().enumerate() {
        let x = load_f32(x);
        for (row, sum) in sums[step % 2].iter_mut().enumerate() {
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(x, trits(block, row, step, shift)));
        }
    }
}

/// How far the codes of a quarter lie from the low end of their bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn quarter_shift(quarter: usize) -> __m128i {
    _mm_cvtsi32_si128(2 * (quarter % QUARTERS) as i32)
}

/// Eight trits as f32: columns `8·step..` of a quarter of one row. The lookup reads the two low bits of each lane only.
#[inline]
#[target_feature(enable = "avx2")]
fn trits(block: &[u8; BLOCK_BYTES], row: usize, step: usize, shift: __m128i) -> __m256 {
    let bytes = &block.as_chunks::<WIDTH>().0[row * (UNIT_BYTES / WIDTH) + step];
    let values = _mm256_setr_ps(-1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0);
    _mm256_permutevar_ps(values, _mm256_srl_epi32(load_widened(bytes), shift))
}

/// Four outputs of several tokens.
#[inline]
#[target_feature(enable = "avx2")]
fn panel_ternary(x: F32Rows<'_>, weights: &Tiles, (tile, tokens): (usize, Range<usize>), scratch: &mut Scratch) -> Outputs {
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
                widen_ternary(&codes[quarter / QUARTERS], quarter_shift(quarter), steps);
            }
            accumulate(panel, x, (tokens.clone(), chunk.start * QUARTER_COLUMNS), lanes);
        }
        for (y, lanes) in y.iter_mut().zip(lanes) {
            let products = _mm_mul_ps(sum_row_lanes(lanes), load_scales(scales));
            *y = to_array(_mm_add_ps(load_scales(y), products));
        }
    }
    y
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_ternary(block: &[u8; BLOCK_BYTES], shift: __m128i, steps: &mut [PanelStep; QUARTER_COLUMNS / WIDTH]) {
    for (index, step) in steps.iter_mut().enumerate() {
        for (row, out) in step.as_chunks_mut().0.iter_mut().enumerate() {
            store_f32(out, trits(block, row, index, shift));
        }
    }
}

/// lanes[token] += panel · x[token, first_column..] for all tokens.
#[inline]
#[target_feature(enable = "avx2")]
fn accumulate(panel: &[PanelStep], x: F32Rows<'_>, (tokens, first_column): (Range<usize>, usize), lanes: &mut [RowLanes]) {
    let row = |token: usize| x.row(token)[first_column..first_column + panel.len() * WIDTH].as_chunks().0;
    let (pairs, rest) = lanes.as_chunks_mut::<TOKENS>();
    for (index, lanes) in pairs.iter_mut().enumerate() {
        let token = tokens.start + index * TOKENS;
        add_products(panel, [row(token), row(token + 1)], lanes);
    }
    if let [lanes] = rest {
        add_products(panel, [row(tokens.end - 1)], std::array::from_mut(lanes));
    }
}

/// The register tile: four rows × T tokens, one half of the lanes at a time.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_products<const T: usize>(panel: &[PanelStep], rows: [&[[f32; WIDTH]]; T], lanes: &mut [RowLanes; T]) {
    let panel = panel.as_chunks::<2>().0;
    let mut pairs: [&[[[f32; WIDTH]; 2]]; T] = [&[]; T];
    for (pairs, row) in pairs.iter_mut().zip(rows) {
        *pairs = &row.as_chunks().0[..panel.len()];
    }
    for half in 0..2 {
        let mut sums = [[_mm256_setzero_ps(); TILE_ROWS]; T];
        for (sums, lanes) in sums.iter_mut().zip(&*lanes) {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = load_f32(&lanes.as_chunks().0[2 * row + half]);
            }
        }
        for (index, step) in panel.iter().enumerate() {
            // Closures do not inherit target features in time to be inlined: kernels have none.
            let mut x = [_mm256_setzero_ps(); T];
            for (x, pairs) in x.iter_mut().zip(pairs) {
                *x = load_f32(&pairs[index][half]);
            }
            let mut weights = [_mm256_setzero_ps(); TILE_ROWS];
            for (weights, step) in weights.iter_mut().zip(step[half].as_chunks().0) {
                *weights = load_f32(step);
            }
            add_outer(&mut sums, x, weights);
        }
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            for (row, sum) in sums.into_iter().enumerate() {
                store_f32(&mut lanes.as_chunks_mut().0[2 * row + half], sum);
            }
        }
    }
}

/// `numerics::sum_lanes` of four rows.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_row_lanes(lanes: &RowLanes) -> __m128 {
    let halves = lanes.as_chunks::<WIDTH>().0;
    let mut sums = [[_mm256_setzero_ps(); TILE_ROWS]; 2];
    for (index, half) in halves.iter().enumerate() {
        sums[index % 2][index / 2] = load_f32(half);
    }
    sum_lanes(sums[0], sums[1])
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
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen<const KIND: u8>(bytes: &[u8]) -> __m256 {
    if KIND == F32 {
        let (values, _) = bytes.as_chunks::<4>();
        let values: &[[u8; 4]; WIDTH] = values.try_into().expect("eight elements");
        return load_f32(&values.map(f32::from_le_bytes));
    }
    let halves = load_halves(bytes.try_into().expect("eight elements"));
    if KIND == F16 { _mm256_cvtph_ps(halves) } else { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) }
}

/// `LANES` stored elements, zeros behind the last if there are fewer.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_padded<const KIND: u8>(bytes: &[u8]) -> [__m256; 2] {
    let mut padded = [0u8; LANES * 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    let half = WIDTH * size_bytes(KIND);
    [widen::<KIND>(&padded[..half]), widen::<KIND>(&padded[half..2 * half])]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dense<const KIND: u8>(x: F32Rows<'_>, table: &DenseRows, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let columns = out.range();
    for tokens in token_blocks(x.n_rows()) {
        if tokens.len() == 1 {
            let logits = out.row_mut(tokens.start);
            for (row, logit) in columns.clone().zip(logits) {
                *logit = stream_dense::<KIND>(x.row(tokens.start), table.row(row));
            }
            continue;
        }
        for first in columns.clone().step_by(TILE_ROWS) {
            let values = panel_dense::<KIND>(x, table, (first..columns.end.min(first + TILE_ROWS), tokens.clone()), scratch);
            for (token, values) in tokens.clone().zip(values) {
                Store::Write.store(&mut out.row_mut(token)[first - columns.start..], values);
            }
        }
    }
}

/// One output of one token: one row is one linear stream.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn stream_dense<const KIND: u8>(x: &[f32], row: &[u8]) -> f32 {
    let half = WIDTH * size_bytes(KIND);
    let (chunks, mut sums) = (row.chunks_exact(2 * half), [_mm256_setzero_ps(); 2]);
    let rest = chunks.remainder();
    let mut x = x.as_chunks::<LANES>().0.iter();
    let add = |sums: &mut [__m256; 2], weights: [__m256; 2], x: &[f32; LANES]| {
        for (index, (sum, weights)) in sums.iter_mut().zip(weights).enumerate() {
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(load_f32(&x.as_chunks().0[index]), weights));
        }
    };
    for (chunk, x) in chunks.zip(&mut x) {
        prefetch_line_behind(chunk);
        add(&mut sums, [widen::<KIND>(&chunk[..half]), widen::<KIND>(&chunk[half..])], x);
    }
    if let Some(x) = x.next() {
        add(&mut sums, widen_padded::<KIND>(rest), x);
    }
    let mut lanes = [0.0f32; LANES];
    for (index, sum) in sums.into_iter().enumerate() {
        store_f32(&mut lanes.as_chunks_mut().0[index], sum);
    }
    numerics::sum_lanes(lanes)
}

/// Outputs of up to four rows for several tokens.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn panel_dense<const KIND: u8>(
    x: F32Rows<'_>,
    table: &DenseRows,
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
                prefetch_line_behind(bytes);
                store_f32(&mut steps[0].as_chunks_mut().0[index], widen::<KIND>(&bytes[..WIDTH * size]));
                store_f32(&mut steps[1].as_chunks_mut().0[index], widen::<KIND>(&bytes[WIDTH * size..]));
            }
            if let Some(steps) = steps.next() {
                let [low, high] = widen_padded::<KIND>(rest);
                store_f32(&mut steps[0].as_chunks_mut().0[index], low);
                store_f32(&mut steps[1].as_chunks_mut().0[index], high);
            }
        }
        accumulate(panel, x, (tokens.clone(), columns.start), lanes);
    }
    let mut y = [[0.0; TILE_ROWS]; FLOAT_PANEL_TOKENS];
    for (y, lanes) in y.iter_mut().zip(lanes) {
        *y = to_array(sum_row_lanes(lanes));
    }
    y
}
