//! Attention over the paged cache: a block of keys or values is read into L1 once for several tokens of a sequence and all
//! query heads that share it.
//!
//! Scores are tiles of four keys × two query heads in the lane order of `numerics::dot`; outputs are summed position by
//! position, each element of a head by itself, as `numerics::accumulate_block` does. Heads that are not whole
//! sixteens of lanes are left to `portable`. Idea: FlashAttention's reuse of blocks (arXiv 2205.14135) without its rescaling,
//! which would change the order of summation.

use std::ops::Range;

use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::numerics::{self, LANES};

use super::{Eight, WIDTH, add_outer};
use crate::arch::portable;
use crate::attention::AttentionStep;
use crate::kernels::{ATTENTION_TOKENS, SCORES_SPARE, Scratch};
use crate::pool::ColumnsMut;

/// Keys of a score tile.
const KEYS: usize = 4;

const _: () = assert!(BLOCK_TOKENS.is_multiple_of(KEYS) && LANES == 2 * WIDTH);

/// Tokens of one sequence and query heads of one key head, computed together.
struct Unit {
    tokens: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
}

/// Attention of all tokens for one thread's query heads.
#[inline(always)]
pub(in crate::arch) fn attention<I: Eight>(isa: I, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
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
            let same = |&token: &usize| step.step.sequences[token] == step.step.sequences[first];
            let n_tokens = (first..out.n_rows()).take(ATTENTION_TOKENS).take_while(same).count();
            let unit = Unit { tokens: first..first + n_tokens, heads: heads.clone(), kv_head };
            attend(isa, step, &unit, (&mut scratch.scores, out));
            first += n_tokens;
        }
    }
}

/// `scores` is `[tokens, heads, stride]`: a score for each position, then the inverse sum in the last place.
#[inline(always)]
fn attend<I: Eight>(isa: I, step: &AttentionStep<'_>, unit: &Unit, (scores, out): (&mut [f32], &mut ColumnsMut<'_>)) {
    let (dim, n_heads) = (step.head_dim(), unit.heads.len());
    let longest = unit.tokens.clone().map(|token| step.n_positions(token)).max().unwrap_or(0);
    let n_blocks = longest.div_ceil(BLOCK_TOKENS);
    let stride = n_blocks * BLOCK_TOKENS + SCORES_SPARE;
    let token_stride = n_heads * stride;
    for block in 0..n_blocks {
        let keys = step.keys(unit.tokens.start, block, unit.kv_head);
        for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact_mut(token_stride)) {
            if block * BLOCK_TOKENS < step.n_positions(token) {
                score_block(isa, step.queries(token, unit.heads.clone()), (keys, dim), (scores, stride, block * BLOCK_TOKENS));
            }
        }
    }
    let first_column = unit.heads.start * dim - out.range().start;
    for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact_mut(token_stride)) {
        for scores in scores.chunks_exact_mut(stride) {
            scores[stride - 1] = softmax_numerators(isa, &mut scores[..step.n_positions(token)]);
        }
        out.row_mut(token)[first_column..first_column + n_heads * dim].fill(0.0);
    }
    for block in 0..n_blocks {
        let values = step.values(unit.tokens.start, block, unit.kv_head);
        for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact(token_stride)) {
            let first = block * BLOCK_TOKENS;
            let positions = first..step.n_positions(token).clamp(first, first + BLOCK_TOKENS);
            let out = &mut out.row_mut(token)[first_column..first_column + n_heads * dim];
            accumulate_block(isa, (scores, stride, positions), (values, dim), out);
        }
    }
    for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact(token_stride)) {
        let out = &mut out.row_mut(token)[first_column..first_column + n_heads * dim];
        for (out, scores) in out.chunks_exact_mut(dim).zip(scores.chunks_exact(stride)) {
            out.iter_mut().for_each(|value| *value *= scores[stride - 1]);
        }
    }
}

/// Scores of the query heads of one token against a block of keys, positions past the last included (they are never read).
#[inline(always)]
fn score_block<I: Eight>(isa: I, queries: &[f32], (keys, dim): (&[f32], usize), (scores, stride, first): (&mut [f32], usize, usize)) {
    let scale = 1.0 / (dim as f32).sqrt();
    let mut pairs = queries.chunks_exact(2 * dim);
    let mut index = 0;
    for pair in &mut pairs {
        let (a, b) = pair.split_at(dim);
        for (offset, keys) in keys.chunks_exact(KEYS * dim).enumerate() {
            let tile = score_tile(isa, [a, b], keys, dim);
            for (query, products) in tile.into_iter().enumerate() {
                let start = (index + query) * stride + first + offset * KEYS;
                let scaled = products.map(|product| product * scale);
                scores[start..start + KEYS].copy_from_slice(&scaled);
            }
        }
        index += 2;
    }
    let rest = pairs.remainder();
    if !rest.is_empty() {
        for (offset, keys) in keys.chunks_exact(KEYS * dim).enumerate() {
            let [products] = score_tile(isa, [rest], keys, dim);
            let start = index * stride + first + offset * KEYS;
            scores[start..start + KEYS].copy_from_slice(&products.map(|product| product * scale));
        }
    }
}

/// `numerics::dot` of Q queries with four keys.
#[inline(always)]
fn score_tile<I: Eight, const Q: usize>(isa: I, queries: [&[f32]; Q], keys: &[f32], dim: usize) -> [[f32; KEYS]; Q] {
    let n_chunks = dim / LANES;
    let mut query_chunks: [&[[f32; LANES]]; Q] = [&[]; Q];
    for (chunks, query) in query_chunks.iter_mut().zip(queries) {
        *chunks = &query.as_chunks().0[..n_chunks];
    }
    let mut key_chunks: [&[[f32; LANES]]; KEYS] = [&[]; KEYS];
    for (chunks, key) in key_chunks.iter_mut().zip(keys.chunks_exact(dim)) {
        *chunks = &key.as_chunks().0[..n_chunks];
    }
    let mut halves = [[[isa.splat(0.0); KEYS]; Q]; 2];
    for (half, sums) in halves.iter_mut().enumerate() {
        for chunk in 0..n_chunks {
            let mut queries = [isa.splat(0.0); Q];
            for (query, chunks) in queries.iter_mut().zip(query_chunks) {
                *query = isa.load(&chunks[chunk].as_chunks().0[half]);
            }
            let mut keys = [isa.splat(0.0); KEYS];
            for (key, chunks) in keys.iter_mut().zip(key_chunks) {
                *key = isa.load(&chunks[chunk].as_chunks().0[half]);
            }
            add_outer(isa, sums, queries, keys);
        }
    }
    let mut products = [[0.0; KEYS]; Q];
    for (query, product) in products.iter_mut().enumerate() {
        *product = isa.sum_lanes(halves[0][query], halves[1][query]);
    }
    products
}

/// `numerics::softmax_numerators`: the maximum is the same in any order, save the sign of a zero, which the subtraction drops.
#[inline(always)]
fn softmax_numerators<I: Eight>(isa: I, scores: &mut [f32]) -> f32 {
    let (chunks, tail) = scores.as_chunks::<WIDTH>();
    let mut largest = isa.splat(f32::NEG_INFINITY);
    for chunk in chunks {
        largest = isa.larger(largest, isa.load(chunk));
    }
    let mut lanes = [0.0; WIDTH];
    isa.store(&mut lanes, largest);
    let largest = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |largest, &score| if score > largest { score } else { largest });
    for score in scores.iter_mut() {
        *score = numerics::exp(*score - largest);
    }
    1.0 / numerics::sum(scores)
}

/// out[head] += Σ over positions of weight · value, positions ascending.
#[inline(always)]
fn accumulate_block<I: Eight>(
    isa: I,
    (scores, stride, positions): (&[f32], usize, Range<usize>),
    (values, dim): (&[f32], usize),
    out: &mut [f32],
) {
    let mut weights = scores.chunks_exact(stride).map(|scores| &scores[positions.clone()]);
    let mut pairs = out.chunks_exact_mut(2 * dim);
    for out in &mut pairs {
        if let (Some(a), Some(b)) = (weights.next(), weights.next()) {
            accumulate_heads(isa, [a, b], (values, dim), out);
        }
    }
    if let Some(weights) = weights.next() {
        accumulate_heads(isa, [weights], (values, dim), pairs.into_remainder());
    }
}

#[inline(always)]
fn accumulate_heads<I: Eight, const Q: usize>(isa: I, weights: [&[f32]; Q], (values, dim): (&[f32], usize), out: &mut [f32]) {
    let mut column = 0;
    while column + 4 * WIDTH <= dim {
        accumulate_tile::<I, Q, 4>(isa, weights, (values, dim, column), out);
        column += 4 * WIDTH;
    }
    if column < dim {
        accumulate_tile::<I, Q, 2>(isa, weights, (values, dim, column), out);
    }
}

/// Q heads × C registers of columns.
#[inline(always)]
fn accumulate_tile<I: Eight, const Q: usize, const C: usize>(
    isa: I,
    weights: [&[f32]; Q],
    (values, dim, column): (&[f32], usize, usize),
    out: &mut [f32],
) {
    let n = weights[0].len();
    let mut sums = [[isa.splat(0.0); C]; Q];
    for (sums, out) in sums.iter_mut().zip(out.chunks_exact(dim)) {
        for (sum, out) in sums.iter_mut().zip(out[column..column + C * WIDTH].as_chunks().0) {
            *sum = isa.load(out);
        }
    }
    for (position, row) in values.chunks_exact(dim).take(n).enumerate() {
        let mut values = [isa.splat(0.0); C];
        for (value, row) in values.iter_mut().zip(row[column..column + C * WIDTH].as_chunks().0) {
            *value = isa.load(row);
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = isa.splat(weights[position]);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = isa.add(*sum, isa.mul(weight, value));
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(dim)) {
        for (out, sum) in out[column..column + C * WIDTH].as_chunks_mut().0.iter_mut().zip(sums) {
            isa.store(out, sum);
        }
    }
}
