//! Kernels in plain Rust over `numerics`, all `inline(always)`: compiled for the baseline by `scalar` and again inside the
//! target-feature functions of each instruction set. Same source, same bits.
//!
//! Not here: anything that a compiler does not vectorise well by itself; such kernels are written per instruction set and
//! must equal these.

use bitnet_checkpoint::config::Activation;
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::numerics;
use bitnet_ternary::quantise::{self, ActivationScale};

use crate::attention::{AttentionStep, KvRow, KvRows, KvStore, gather_key};
use crate::kernels::{F32Rows, GroupRowMut, GroupRows, Int8RowMut, Int8Rows, RowScale, Scratch, Store};
use crate::lane_tile::{LANE_COLUMNS, LANE_ROWS, LINE_BYTES, LaneTiles};
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, COARSE_COLUMNS, FINE_BYTES, LEVELS, RowBound, ScreenRowMut, first_half};
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles, UNIT_BYTES};

/// `quantise::absmax` of one row, with its sums and zero padding.
#[inline(always)]
pub(super) fn quantise_row(row: &[f32], out: Int8RowMut<'_>) {
    let scale = ActivationScale::of(numerics::largest_magnitude(row));
    let (quantized, padding) = out.quantized.split_at_mut(row.len());
    for (integer, value) in quantized.iter_mut().zip(row) {
        *integer = quantise::quantise_one(*value, scale.inverse);
    }
    padding.fill(0);
    for (sum, quarter) in out.quarter_sums.iter_mut().zip(out.quantized.as_chunks::<QUARTER_COLUMNS>().0) {
        *sum = quarter.iter().map(|&integer| i32::from(integer)).sum();
    }
    *out.scale = RowScale { scale, sum: out.quarter_sums.iter().sum() };
}

/// `quantise::absmax_groups` of one row, with the sums of its groups and zero padding.
#[inline(always)]
pub(super) fn quantise_groups(row: &[f32], out: GroupRowMut<'_>) {
    let groups = row.chunks(BLOCK_COLUMNS).zip(out.quantized.chunks_exact_mut(BLOCK_COLUMNS));
    for ((values, quantized), scale) in groups.zip(out.scales) {
        let row_scale = ActivationScale::of(numerics::largest_magnitude(values));
        let (quantized, padding) = quantized.split_at_mut(values.len());
        for (integer, value) in quantized.iter_mut().zip(values) {
            *integer = quantise::quantise_one(*value, row_scale.inverse);
        }
        padding.fill(0);
        *scale = RowScale { scale: row_scale, sum: quantized.iter().map(|&integer| i32::from(integer)).sum() };
    }
}

/// `activation(gate) · up` of one row.
#[inline(always)]
pub(super) fn gate_row(gate_up: &[f32], activation: Activation, out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    match activation {
        Activation::Silu => combine(gate, up, out, numerics::silu),
        Activation::Relu2 => combine(gate, up, out, numerics::relu2),
    }
}

#[inline(always)]
fn combine(gate: &[f32], up: &[f32], out: &mut [f32], activation: impl Fn(f32) -> f32) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = activation(gate) * up;
    }
}

/// Rotates neighbouring heads by the same angles.
#[inline(always)]
pub(super) fn rotate_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in heads.chunks_exact_mut(head_dim) {
        numerics::rotate_half(head, cos, sin);
    }
}

/// int8 product of one thread's tiles, any grouping.
#[inline(always)]
pub(super) fn linear_int8(x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS) {
        let offset = tile * TILE_ROWS - columns.start;
        for token in 0..out.n_rows() {
            let values: [f32; TILE_ROWS] = std::array::from_fn(|row| {
                let inverse_scale = x.scales[token].scale.inverse;
                if weights.n_groups() == 1 {
                    let sum = group_sum(x, token, weights, (tile, row, 0));
                    return numerics::dequantise(sum, weights.tile_inverse_scales(tile)[row], inverse_scale);
                }
                let groups = weights.tile_scales(tile).iter().enumerate();
                let sums = groups.map(|(group, scales)| (group_sum(x, token, weights, (tile, row, group)), scales[row]));
                numerics::dequantise_groups(sums, inverse_scale)
            });
            store.store(&mut out.row_mut(token)[offset..], values);
        }
    }
}

/// Σ quantized · trit over one scale group of one row.
#[inline(always)]
fn group_sum(x: Int8Rows<'_>, token: usize, weights: &Tiles, (tile, row, group): (usize, usize, usize)) -> i32 {
    let activations = x.blocks(token);
    if !weights.has_whole_quarters() {
        let columns = group * weights.group_size()..(group + 1) * weights.group_size();
        let products = columns.map(|column| {
            let trit = weights.trit(tile * TILE_ROWS + row, column);
            i32::from(activations[column / BLOCK_COLUMNS][column % BLOCK_COLUMNS]) * i32::from(trit)
        });
        return products.sum();
    }
    let quarters = group * weights.group_quarters()..(group + 1) * weights.group_quarters();
    let codes = weights.tile(tile);
    let products = quarters.map(|quarter| {
        let (block, within) = (quarter / (BLOCK_COLUMNS / QUARTER_COLUMNS), quarter % (BLOCK_COLUMNS / QUARTER_COLUMNS));
        let unit = &codes[block][row * UNIT_BYTES..(row + 1) * UNIT_BYTES];
        let activations = &activations[block][within * QUARTER_COLUMNS..(within + 1) * QUARTER_COLUMNS];
        let pairs = unit.iter().zip(activations);
        pairs.map(|(byte, &activation)| (i32::from((byte >> (2 * within)) & 3) - 1) * i32::from(activation)).sum::<i32>()
    });
    products.sum()
}

/// Product of activations in groups for one thread's tiles, any grouping of the weights.
#[inline(always)]
pub(super) fn linear_groups(x: GroupRows<'_>, weights: &LaneTiles, store: Store, out: &mut ColumnsMut<'_>) {
    let columns = out.range();
    for tile in LaneTiles::tiles_of(&columns) {
        let offset = tile * LANE_ROWS - columns.start;
        for token in 0..out.n_rows() {
            let values = match weights.group_blocks() {
                Some(group_blocks) => block_sums(x, token, weights, (tile, group_blocks)),
                None => std::array::from_fn(|row| segment_sums(x, token, weights, (tile, row))),
            };
            store.store(&mut out.row_mut(token)[offset..], values);
        }
    }
}

/// Sixteen outputs of a token whose weights have groups of whole blocks.
#[inline(always)]
fn block_sums(x: GroupRows<'_>, token: usize, weights: &LaneTiles, (tile, group_blocks): (usize, usize)) -> [f32; LANE_ROWS] {
    let mut y = [0.0f32; LANE_ROWS];
    let blocks = weights.tile(tile).iter().zip(x.blocks(token)).zip(x.scales(token));
    for (index, ((lines, activations), activation_scale)) in blocks.enumerate() {
        let mut sums = [0i32; LANE_ROWS];
        for (quarter, activations) in activations.as_chunks::<QUARTER_COLUMNS>().0.iter().enumerate() {
            for (line, activations) in lines.iter().zip(activations.as_chunks::<LANE_COLUMNS>().0) {
                add_lane(&mut sums, (line, 2 * quarter), activations);
            }
        }
        let scales = weights.tile_scales(tile).group(index / group_blocks);
        for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scales) {
            *y += (sum - activation_scale.sum) as f32 * (scale * activation_scale.scale.real);
        }
    }
    y
}

/// sums + the codes that lie `shift` bits up · four columns of activations, for sixteen rows.
#[inline(always)]
fn add_lane(sums: &mut [i32; LANE_ROWS], (line, shift): (&[u8; LINE_BYTES], usize), activations: &[i8; LANE_COLUMNS]) {
    for (sum, bytes) in sums.iter_mut().zip(line.as_chunks::<LANE_COLUMNS>().0) {
        let products = bytes.iter().zip(activations);
        *sum += products.map(|(byte, &x)| i32::from((byte >> shift) & 3) * i32::from(x)).sum::<i32>();
    }
}

/// One output of a token, whatever the groups of the weights.
#[inline(always)]
fn segment_sums(x: GroupRows<'_>, token: usize, weights: &LaneTiles, (tile, row): (usize, usize)) -> f32 {
    let (activations, scales) = (x.blocks(token).as_flattened(), x.scales(token));
    numerics::dequantise_segments(quantise::segments(weights.k(), weights.group_size()).map(|columns| {
        let weight_scale = weights.tile_scales(tile).group(columns.start / weights.group_size())[row];
        let activation_scale = scales[columns.start / BLOCK_COLUMNS].scale.real;
        let products = columns.map(|column| i32::from(activations[column]) * i32::from(weights.trit(tile, row, column)));
        (products.sum(), weight_scale, activation_scale)
    }))
}

/// f32 product of one thread's tiles, any grouping.
#[inline(always)]
pub(super) fn linear_f32(x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let columns = out.range();
    let trits = row_buffer(scratch, weights.k());
    for row in columns.clone() {
        unpack_trits(weights.tile(row / TILE_ROWS), row % TILE_ROWS, trits);
        for token in 0..out.n_rows() {
            let y = scaled_dot(x.row(token), trits, weights, row);
            let out = &mut out.row_mut(token)[row - columns.start];
            match store {
                Store::Write => *out = y,
                Store::Add => *out += y,
            }
        }
    }
}

/// One output of one token.
#[inline(always)]
pub(super) fn ternary_dot_row(x: &[f32], weights: &Tiles, row: usize, scratch: &mut Scratch) -> f32 {
    let trits = row_buffer(scratch, weights.k());
    unpack_trits(weights.tile(row / TILE_ROWS), row % TILE_ROWS, trits);
    scaled_dot(x, trits, weights, row)
}

/// The first `k` places of the row buffer.
#[inline(always)]
fn row_buffer(scratch: &mut Scratch, k: usize) -> &mut [f32] {
    if scratch.row.len() < k {
        scratch.row.resize(k, 0.0);
    }
    &mut scratch.row[..k]
}

/// Σ over groups of Σ x·trit × scale, for one row.
#[inline(always)]
fn scaled_dot(x: &[f32], trits: &[f32], weights: &Tiles, row: usize) -> f32 {
    let mut y = 0.0f32;
    let groups = x[..trits.len()].chunks_exact(weights.group_size()).zip(trits.chunks_exact(weights.group_size()));
    for ((x, trits), scales) in groups.zip(weights.tile_scales(row / TILE_ROWS)) {
        y += numerics::dot_trits(x, trits) * scales[row % TILE_ROWS];
    }
    y
}

/// Trits of one row of a tile as f32, `[k]`.
#[inline(always)]
fn unpack_trits(tile: &[[u8; BLOCK_BYTES]], row: usize, trits: &mut [f32]) {
    for (trits, block) in trits.chunks_mut(BLOCK_COLUMNS).zip(tile) {
        let unit = &block[row * UNIT_BYTES..(row + 1) * UNIT_BYTES];
        for (within, trits) in trits.chunks_mut(QUARTER_COLUMNS).enumerate() {
            for (trit, byte) in trits.iter_mut().zip(unit) {
                *trit = f32::from(((byte >> (2 * within)) & 3) as i8 - 1);
            }
        }
    }
}

/// Products with one thread's rows of a dense table.
#[inline(always)]
pub(super) fn logits(x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let columns = out.range();
    if scratch.row.len() < table.k {
        scratch.row.resize(table.k, 0.0);
    }
    let values = &mut scratch.row[..table.k];
    for row in columns.clone() {
        table.read(row, values);
        for token in 0..x.n_rows() {
            out.row_mut(token)[row - columns.start] = numerics::dot(&x.row(token)[..table.k], values);
        }
    }
}

/// Attention of all tokens for one thread's query heads.
#[inline(always)]
pub(super) fn attention(step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    match step.cache.rows() {
        KvRows::F32(store) => attention_over(step, store, out, scratch),
        KvRows::F16(store) => attention_over(step, store, out, scratch),
        KvRows::Int8(store) => attention_over(step, store, out, scratch),
    }
}

#[inline(always)]
fn attention_over<R: KvRow>(step: &AttentionStep<'_>, store: &KvStore<R>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let dim = step.head_dim();
    let columns = out.range();
    for token in 0..out.n_rows() {
        let buffers = (&mut scratch.scores[..step.n_positions(token)], &mut scratch.row[..dim]);
        for head in columns.start / dim..columns.end / dim {
            let start = head * dim - columns.start;
            attend(step, store, (token, head), (buffers.0, buffers.1, &mut out.row_mut(token)[start..start + dim]));
        }
    }
}

/// One query head of one token. `row` is a buffer for a key or value.
#[inline(always)]
fn attend<R: KvRow>(
    step: &AttentionStep<'_>,
    store: &KvStore<R>,
    (token, head): (usize, usize),
    (scores, row, out): (&mut [f32], &mut [f32], &mut [f32]),
) {
    let (query, kv_head) = (step.queries(token, head..head + 1), head / step.heads_per_kv_head());
    let scale = 1.0 / (query.len() as f32).sqrt();
    for (block, scores) in scores.chunks_mut(BLOCK_TOKENS).enumerate() {
        let keys = step.keys(store, (token, block, kv_head));
        for (slot, score) in scores.iter_mut().enumerate() {
            gather_key(&keys, slot, row);
            numerics::score_block(query, row, scale, std::slice::from_mut(score));
        }
    }
    let inverse_sum = numerics::softmax_numerators(scores);
    out.fill(0.0);
    for (block, weights) in scores.chunks(BLOCK_TOKENS).enumerate() {
        let values = step.values(store, (token, block, kv_head));
        let tokens = values.rows.chunks_exact(values.rows.len() / BLOCK_TOKENS).zip(values.scales);
        for (weight, (value, scale)) in weights.iter().zip(tokens) {
            let numbers = value.iter().flat_map(KvRow::widen);
            row.iter_mut().zip(numbers).for_each(|(number, stored)| *number = stored * scale);
            numerics::accumulate_block(std::slice::from_ref(weight), row, out);
        }
    }
    out.iter_mut().for_each(|value| *value *= inverse_sum);
}

/// Codes and bounds of one row of a head (`screen`).
#[inline(always)]
pub(super) fn screen_row(row: &[f32], out: ScreenRowMut<'_>, codes: &mut Vec<u8>) -> RowBound {
    let largest = numerics::largest_magnitude(row);
    let scale = largest / (0.5 * (LEVELS - 1.0));
    let inverse_scale = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    codes.clear();
    codes.resize(out.fine.len() / FINE_BYTES * BLOCK_COLUMNS, 0);
    // Of the first half of the blocks, and of the others.
    let mut sums = [[[0.0f32; numerics::LANES]; 3]; 2];
    let n_first = first_half(out.fine.len() / FINE_BYTES) * BLOCK_COLUMNS / numerics::LANES;
    let (whole, rest) = row.as_chunks::<{ numerics::LANES }>();
    let (codes_of_whole, codes_of_rest) = codes.as_chunks_mut::<{ numerics::LANES }>().0.split_at_mut(whole.len());
    for (index, (values, codes)) in whole.iter().zip(codes_of_whole).enumerate() {
        add_levels(values, (scale, inverse_scale), codes, &mut sums[usize::from(index >= n_first)]);
    }
    if let Some(codes) = codes_of_rest.first_mut().filter(|_| !rest.is_empty()) {
        // Codes behind the last column meet activations of 0, and errors there are none of the row's.
        let mut values = [0.0; numerics::LANES];
        values[..rest.len()].copy_from_slice(rest);
        let mut sums_of_rest = [[0.0f32; numerics::LANES]; 3];
        add_levels(&values, (scale, inverse_scale), codes, &mut sums_of_rest);
        for (sums, sums_of_rest) in sums[1].iter_mut().zip(sums_of_rest) {
            sums.iter_mut().zip(sums_of_rest).take(rest.len()).for_each(|(sum, of_rest)| *sum += of_rest);
        }
    }
    for (unit, codes) in codes.as_chunks::<COARSE_COLUMNS>().0.iter().enumerate() {
        let bytes = &mut out.coarse[unit * COARSE_BYTES + out.row_in_tile * QUARTER_COLUMNS..][..QUARTER_COLUMNS];
        let (low, high) = codes.split_at(QUARTER_COLUMNS);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = (low >> 2) | ((high >> 2) << 4);
        }
    }
    for (bytes, codes) in out.fine.as_chunks_mut::<FINE_BYTES>().0.iter_mut().zip(codes.as_chunks::<BLOCK_COLUMNS>().0) {
        for (column, byte) in bytes.iter_mut().enumerate() {
            let code = |quarter: usize| (codes[column + quarter * QUARTER_COLUMNS] & 3) << (2 * quarter);
            *byte = code(0) | code(1) | code(2) | code(3);
        }
    }
    let [first, second] = sums.map(|sums| sums.map(numerics::sum_lanes));
    let norm = (first[0] + second[0]).sqrt();
    // Every norm is rounded upwards: its sum has few additions a lane, and a difference may lose half a unit of the weight.
    let upwards = |square: f32| (square.sqrt() + norm * f32::EPSILON) * (1.0 + 1.0 / 1024.0) + f32::MIN_POSITIVE;
    *out.scale = scale;
    RowBound {
        norm: upwards(first[0] + second[0]),
        coarse_error: upwards(first[1] + second[1]),
        half_error: upwards(first[2] + second[1]),
        fine_error: upwards(first[2] + second[2]),
    }
}

/// Codes of some weights, and what they add to ‖w‖², and to ‖w − ŵ‖² of the coarse plane and of both.
#[inline(always)]
fn add_levels(
    values: &[f32; numerics::LANES],
    (scale, inverse_scale): (f32, f32),
    codes: &mut [u8; numerics::LANES],
    sums: &mut [[f32; numerics::LANES]; 3],
) {
    /// Added to a small number, it leaves its integer part, rounded, in the lowest bits: a conversion that every compiler vectorises.
    const INTEGER: f32 = (3u32 << 22) as f32;
    for (lane, (&value, code)) in values.iter().zip(codes).enumerate() {
        let level = (value * inverse_scale + 0.5 * (LEVELS - 1.0)).clamp(0.0, LEVELS - 1.0) + INTEGER;
        let coarse_level = f32::from_bits(level.to_bits() & !3);
        let coarse = value - scale * (coarse_level - INTEGER - 30.0);
        let fine = value - scale * (level - INTEGER - 31.5);
        *code = level.to_bits() as u8 & (LEVELS as u8 - 1);
        sums[0][lane] += value * value;
        sums[1][lane] += coarse * coarse;
        sums[2][lane] += fine * fine;
    }
}

/// Σ code·q of four rows of the coarse plane, for each token.
#[inline(always)]
pub(super) fn coarse_sums(tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
    for (activations, sums) in tokens.iter().zip(sums) {
        let units = tile.iter().zip(activations.as_flattened().as_chunks::<COARSE_COLUMNS>().0);
        *sums = [0; TILE_ROWS];
        for (unit, activations) in units {
            let (low, high) = activations.split_at(QUARTER_COLUMNS);
            for (bytes, sum) in unit.chunks_exact(QUARTER_COLUMNS).zip(sums.iter_mut()) {
                let products = bytes.iter().zip(low).zip(high);
                *sum += products
                    .map(|((byte, &low), &high)| i32::from(byte & 15) * i32::from(low) + i32::from(byte >> 4) * i32::from(high))
                    .sum::<i32>();
            }
        }
    }
}

/// Σ code·q of one row of the fine plane.
#[inline(always)]
pub(super) fn fine_sum(row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
    let mut sum = 0;
    for (bytes, activations) in row.iter().zip(activations) {
        for (quarter, activations) in activations.chunks_exact(QUARTER_COLUMNS).enumerate() {
            let products = bytes.iter().zip(activations);
            sum += products.map(|(byte, &activation)| i32::from((byte >> (2 * quarter)) & 3) * i32::from(activation)).sum::<i32>();
        }
    }
    sum
}

/// Σ code·q of four rows of both planes, for each token.
#[inline(always)]
pub(super) fn plane_sums(
    tile: &[[u8; COARSE_BYTES]],
    fine: [&[[u8; FINE_BYTES]]; TILE_ROWS],
    tokens: &[&[[i8; BLOCK_COLUMNS]]],
    sums: &mut [[i32; TILE_ROWS]],
) {
    coarse_sums(tile, tokens, sums);
    for (activations, sums) in tokens.iter().zip(sums) {
        for (sum, row) in sums.iter_mut().zip(fine) {
            *sum = 4 * *sum + fine_sum(row, activations);
        }
    }
}

/// One exact logit.
#[inline(always)]
pub(super) fn dot_row(x: &[f32], head: &DenseRows<'_>, row: usize, scratch: &mut Scratch) -> f32 {
    if scratch.row.len() < head.k {
        scratch.row.resize(head.k, 0.0);
    }
    let values = &mut scratch.row[..head.k];
    head.read(row, values);
    numerics::dot(&x[..head.k], values)
}
