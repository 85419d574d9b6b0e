//! Attention over the paged cache, as `super::super::attention` does it, with the 16 lanes of `numerics` in one register: a block
//! of keys or values is read into L1 once for several tokens of a sequence and all query heads that share it.
//!
//! Scores are tiles of four keys × two query heads; outputs are summed position by position, each element of a head by itself.
//! Heads that are not whole registers are left to `portable`.

use std::arch::x86_64::*;
use std::ops::Range;

use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::numerics::{self, LANES};

use super::super::vector::to_array;
use super::vector::*;
use crate::arch::portable;
use crate::attention::AttentionStep;
use crate::kernels::{ATTENTION_TOKENS, SCORES_SPARE, Scratch};
use crate::pool::ColumnsMut;

/// Keys of a score tile.
const KEYS: usize = 4;
/// Query heads of a tile.
const QUERIES: usize = 2;
/// Registers of columns of an output tile.
const COLUMNS: usize = 4;

const _: () = assert!(BLOCK_TOKENS.is_multiple_of(KEYS));

/// Tokens of one sequence and query heads of one key head, computed together.
struct Unit {
    tokens: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
}

/// Attention of all tokens for one thread's query heads.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
pub(super) fn attention(step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    let (dim, shared) = (step.head_dim(), step.heads_per_kv_head());
    if !dim.is_multiple_of(LANES) {
        return portable::attention(step, out, scratch);
    }
    let columns = out.range();
    let all_heads = columns.start / dim..columns.end / dim;
    for kv_head in all_heads.start / shared..all_heads.end.div_ceil(shared) {
        let heads = all_heads.start.max(kv_head * shared)..all_heads.end.min((kv_head + 1) * shared);
        let mut first = 0;
        while first < out.n_rows() {
            let n_tokens = same_sequence(&step.step.sequences[first..out.n_rows()]);
            let unit = Unit { tokens: first..first + n_tokens, heads: heads.clone(), kv_head };
            attend(step, &unit, &mut scratch.scores, out);
            first += n_tokens;
        }
    }
}

/// How many of the next tokens belong to the sequence of the first, at most `ATTENTION_TOKENS`.
fn same_sequence(sequences: &[usize]) -> usize {
    sequences.iter().take(ATTENTION_TOKENS).take_while(|sequence| **sequence == sequences[0]).count()
}

/// `scores` is `[tokens, heads, stride]`: a score for each position, then the inverse sum in the last place.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn attend(step: &AttentionStep<'_>, unit: &Unit, scores: &mut [f32], out: &mut ColumnsMut<'_>) {
    let (dim, n_heads) = (step.head_dim(), unit.heads.len());
    let last = unit.tokens.end - 1;
    let longest = unit.tokens.clone().fold(step.n_positions(last), |longest, token| longest.max(step.n_positions(token)));
    let n_blocks = longest.div_ceil(BLOCK_TOKENS);
    let stride = n_blocks * BLOCK_TOKENS + SCORES_SPARE;
    let token_stride = n_heads * stride;
    for block in 0..n_blocks {
        let keys = step.keys(unit.tokens.start, block, unit.kv_head);
        for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact_mut(token_stride)) {
            if block * BLOCK_TOKENS < step.n_positions(token) {
                score_block(step.queries(token, unit.heads.clone()), keys, dim, (scores, stride, block * BLOCK_TOKENS));
            }
        }
    }
    let first_column = unit.heads.start * dim - out.range().start;
    for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact_mut(token_stride)) {
        for scores in scores.chunks_exact_mut(stride) {
            scores[stride - 1] = softmax_numerators(&mut scores[..step.n_positions(token)]);
        }
        out.row_mut(token)[first_column..first_column + n_heads * dim].fill(0.0);
    }
    for block in 0..n_blocks {
        let values = step.values(unit.tokens.start, block, unit.kv_head);
        for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact(token_stride)) {
            let first = block * BLOCK_TOKENS;
            let positions = first..step.n_positions(token).clamp(first, first + BLOCK_TOKENS);
            let out = &mut out.row_mut(token)[first_column..first_column + n_heads * dim];
            accumulate_block((scores, stride, positions), values, dim, out);
        }
    }
    for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact(token_stride)) {
        let out = &mut out.row_mut(token)[first_column..first_column + n_heads * dim];
        for (out, scores) in out.chunks_exact_mut(dim).zip(scores.chunks_exact(stride)) {
            for value in out {
                *value *= scores[stride - 1];
            }
        }
    }
}

/// Scores of the query heads of one token against a block of keys, positions past the last included (they are never read).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn score_block(queries: &[f32], keys: &[f32], dim: usize, (scores, stride, first): (&mut [f32], usize, usize)) {
    let pairs = queries.chunks_exact(QUERIES * dim);
    let rest = pairs.remainder();
    let n_paired = pairs.len() * QUERIES;
    for (pair, scores) in pairs.zip(scores.chunks_exact_mut(QUERIES * stride)) {
        let (a, b) = pair.split_at(dim);
        score_heads([a, b], keys, dim, (scores, stride, first));
    }
    if !rest.is_empty() {
        score_heads([rest], keys, dim, (&mut scores[n_paired * stride..], stride, first));
    }
}

/// Scores of Q query heads of one token against a block of keys.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn score_heads<const Q: usize>(queries: [&[f32]; Q], keys: &[f32], dim: usize, (scores, stride, first): (&mut [f32], usize, usize)) {
    let scale = _mm_set1_ps(1.0 / (dim as f32).sqrt());
    for (tile, keys) in keys.chunks_exact(KEYS * dim).enumerate() {
        for (head, products) in score_tile(queries, keys, dim).into_iter().enumerate() {
            let start = head * stride + first + tile * KEYS;
            scores[start..start + KEYS].copy_from_slice(&to_array(_mm_mul_ps(products, scale)));
        }
    }
}

/// `numerics::dot` of Q queries with four keys.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn score_tile<const Q: usize>(queries: [&[f32]; Q], keys: &[f32], dim: usize) -> [__m128; Q] {
    let n_chunks = dim / LANES;
    let mut query_chunks: [&[[f32; LANES]]; Q] = [&[]; Q];
    for (chunks, query) in query_chunks.iter_mut().zip(queries) {
        *chunks = &query.as_chunks().0[..n_chunks];
    }
    let mut key_chunks: [&[[f32; LANES]]; KEYS] = [&[]; KEYS];
    for (chunks, key) in key_chunks.iter_mut().zip(keys.chunks_exact(dim)) {
        *chunks = &key.as_chunks().0[..n_chunks];
    }
    let mut sums = [[_mm512_setzero_ps(); KEYS]; Q];
    for chunk in 0..n_chunks {
        // Closures do not inherit target features in time to be inlined: kernels have none.
        let mut queries = [_mm512_setzero_ps(); Q];
        for (query, chunks) in queries.iter_mut().zip(query_chunks) {
            *query = load_f32(&chunks[chunk]);
        }
        let mut keys = [_mm512_setzero_ps(); KEYS];
        for (key, chunks) in keys.iter_mut().zip(key_chunks) {
            *key = load_f32(&chunks[chunk]);
        }
        add_outer(&mut sums, queries, keys);
    }
    let mut products = [_mm_setzero_ps(); Q];
    for (product, sums) in products.iter_mut().zip(sums) {
        *product = sum_lanes(sums);
    }
    products
}

/// `numerics::softmax_numerators`: the maximum is the same in any order, save the sign of a zero, which the subtraction drops.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn softmax_numerators(scores: &mut [f32]) -> f32 {
    let (chunks, tail) = scores.as_chunks::<LANES>();
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for chunk in chunks {
        // maxps yields its second operand where either is NaN: NaN is passed over.
        largest = _mm512_max_ps(load_f32(chunk), largest);
    }
    let mut lanes = [0.0; LANES];
    store_f32(&mut lanes, largest);
    let mut largest = f32::NEG_INFINITY;
    for &score in lanes.iter().chain(tail) {
        largest = if score > largest { score } else { largest };
    }
    for score in scores.iter_mut() {
        *score = numerics::exp(*score - largest);
    }
    1.0 / numerics::sum(scores)
}

/// out[head] += Σ over positions of weight · value, positions ascending.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn accumulate_block((scores, stride, positions): (&[f32], usize, Range<usize>), values: &[f32], dim: usize, out: &mut [f32]) {
    let mut heads = scores.chunks_exact(stride);
    let mut pairs = out.chunks_exact_mut(QUERIES * dim);
    for out in &mut pairs {
        if let (Some(a), Some(b)) = (heads.next(), heads.next()) {
            accumulate_heads([&a[positions.clone()], &b[positions.clone()]], values, dim, out);
        }
    }
    let rest = pairs.into_remainder();
    if let (Some(scores), false) = (heads.next(), rest.is_empty()) {
        accumulate_heads([&scores[positions]], values, dim, rest);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn accumulate_heads<const Q: usize>(weights: [&[f32]; Q], values: &[f32], dim: usize, out: &mut [f32]) {
    let mut column = 0;
    while column + COLUMNS * LANES <= dim {
        accumulate_tile::<Q, COLUMNS>(weights, values, (dim, column), out);
        column += COLUMNS * LANES;
    }
    while column < dim {
        accumulate_tile::<Q, 1>(weights, values, (dim, column), out);
        column += LANES;
    }
}

/// Q heads × C registers of columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn accumulate_tile<const Q: usize, const C: usize>(weights: [&[f32]; Q], values: &[f32], (dim, column): (usize, usize), out: &mut [f32]) {
    let n = weights[0].len();
    let mut sums = [[_mm512_setzero_ps(); C]; Q];
    for (sums, out) in sums.iter_mut().zip(out.chunks_exact(dim)) {
        for (sum, out) in sums.iter_mut().zip(out[column..column + C * LANES].as_chunks().0) {
            *sum = load_f32(out);
        }
    }
    for (position, row) in values.chunks_exact(dim).take(n).enumerate() {
        let mut values = [_mm512_setzero_ps(); C];
        for (value, row) in values.iter_mut().zip(row[column..column + C * LANES].as_chunks().0) {
            *value = load_f32(row);
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = _mm512_set1_ps(weights[position]);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(weight, value));
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(dim)) {
        for (out, sum) in out[column..column + C * LANES].as_chunks_mut().0.iter_mut().zip(sums) {
            store_f32(out, sum);
        }
    }
}
