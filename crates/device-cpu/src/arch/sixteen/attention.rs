//! Attention over the paged cache: a block of keys or values is read into L1 once for several tokens of a sequence and all
//! query heads that share it.
//!
//! A tile of scores is a block's sixteen keys side by side × up to four query heads of one token (two where there are registers for
//! them), summed column by column in the order of `numerics::dot` (the cache's keys lie in that order), so no register is ever added up
//! across its lanes. Outputs are summed position by position, each column by itself, as `numerics::accumulate_block` does. Heads that are
//! not whole rows are filled up with zeros, as the cache has them. Idea: FlashAttention's reuse of blocks (arXiv 2205.14135) without its rescaling, which would change the order
//! of summation.

use std::ops::Range;

use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::numerics::{self, LANES};

use super::{LoadRow, Sixteen};
use crate::ahead::LINE_BYTES;
use crate::arch::prefetch_line;
use crate::attention::{AttentionStep, KvBlock, KvRow, KvRows, KvStore, LANE_ORDER};
use crate::kernels::{ATTENTION_TOKENS, SCORES_SPARE, Scratch};
use crate::pool::ColumnsMut;

/// Levels of the tree that adds the lanes up.
const LEVELS: usize = LANES.ilog2() as usize;

/// Tokens of one sequence and query heads of one key head, computed together.
#[derive(Clone)]
struct Unit {
    tokens: Range<usize>,
    heads: Range<usize>,
    kv_head: usize,
    /// Whether no unit before it read these keys and values, so that they are not in a cache yet.
    is_first: bool,
}

impl Unit {
    /// Blocks that the last of its tokens reaches.
    fn n_blocks(&self, step: &AttentionStep<'_>) -> usize {
        let longest = self.tokens.clone().map(|token| step.n_positions(token)).max().unwrap_or(0);
        longest.div_ceil(BLOCK_TOKENS)
    }

    #[inline(always)]
    fn keys<'a, R: KvRow>(&self, (step, store): (&AttentionStep<'_>, &'a KvStore<R>), block: usize) -> KvBlock<'a, R> {
        step.keys(store, (self.tokens.start, block, self.kv_head))
    }

    #[inline(always)]
    fn values<'a, R: KvRow>(&self, (step, store): (&AttentionStep<'_>, &'a KvStore<R>), block: usize) -> KvBlock<'a, R> {
        step.values(store, (self.tokens.start, block, self.kv_head))
    }
}

/// Asks the memory for a block of keys or values.
#[inline(always)]
fn prefetch<R>(block: &KvBlock<'_, R>) {
    let lines = block.rows.as_ptr_range();
    (lines.start.addr()..lines.end.addr()).step_by(LINE_BYTES).for_each(prefetch_line);
}

/// Attention of all tokens for one thread's query heads.
#[inline(always)]
pub(in crate::arch) fn attention<I: Sixteen>(isa: I, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    match step.cache.rows() {
        KvRows::F32(store) => attention_over(isa, (step, store), out, scratch),
        KvRows::F16(store) => attention_over(isa, (step, store), out, scratch),
        KvRows::Int8(store) => attention_over(isa, (step, store), out, scratch),
    }
}

#[inline(always)]
fn attention_over<I: Sixteen, R: LoadRow>(
    isa: I,
    (step, store): (&AttentionStep<'_>, &KvStore<R>),
    out: &mut ColumnsMut<'_>,
    scratch: &mut Scratch,
) {
    let columns = out.range();
    let heads = columns.start / step.head_dim()..columns.end / step.head_dim();
    let mut next = next_unit(step, &heads, None);
    while let Some(unit) = next {
        next = next_unit(step, &heads, Some(&unit));
        attend(isa, (step, store), (&unit, next.as_ref().filter(|unit| unit.is_first)), (scratch, out));
    }
}

/// The unit after another of a thread's heads: all tokens of one key head, then of the next.
fn next_unit(step: &AttentionStep<'_>, all_heads: &Range<usize>, after: Option<&Unit>) -> Option<Unit> {
    let (sequences, shared) = (&step.step.sequences, step.heads_per_kv_head());
    let (first, kv_head) = match after {
        None => (0, all_heads.start / shared),
        Some(unit) if unit.tokens.end == sequences.len() => (0, unit.kv_head + 1),
        Some(unit) => (unit.tokens.end, unit.kv_head),
    };
    let heads = all_heads.start.max(kv_head * shared)..all_heads.end.min((kv_head + 1) * shared);
    let same = |&token: &usize| sequences[token] == sequences[first];
    let n_tokens = (first..sequences.len()).take(ATTENTION_TOKENS).take_while(same).count();
    let is_first = first == 0 || sequences[first - 1] != sequences[first];
    let unit = Unit { tokens: first..first + n_tokens, heads, kv_head, is_first };
    (!unit.heads.is_empty() && n_tokens > 0).then_some(unit)
}

/// Scores are `[tokens, heads, stride]`: one for each position, then the inverse sum in the last place.
#[inline(always)]
fn attend<I: Sixteen, R: LoadRow>(
    isa: I,
    (step, store): (&AttentionStep<'_>, &KvStore<R>),
    (unit, ask_for): (&Unit, Option<&Unit>),
    (scratch, out): (&mut Scratch, &mut ColumnsMut<'_>),
) {
    let (dim, n_heads) = (step.head_dim(), unit.heads.len());
    let padded = dim.next_multiple_of(LANES);
    let n_blocks = unit.n_blocks(step);
    let stride = n_blocks * BLOCK_TOKENS + SCORES_SPARE;
    let token_stride = n_heads * stride;
    let scores = &mut scratch.scores[..unit.tokens.len() * token_stride];
    // Outputs go in and out by rows, which then lie in one cache line each.
    let aligned = scratch.padded_heads.as_ptr().align_offset(LINE_BYTES);
    let padded_heads = &mut scratch.padded_heads[aligned..][..unit.tokens.len() * n_heads * padded];
    for (token, ordered) in unit.tokens.clone().zip(padded_heads.chunks_exact_mut(n_heads * padded)) {
        order_queries(step.queries(token, unit.heads.clone()), dim, ordered);
    }
    for block in 0..n_blocks {
        if unit.is_first {
            prefetch(&unit.values((step, store), block));
        }
        let keys = unit.keys((step, store), block);
        score_tokens(isa, (step, unit, block), (padded_heads, &keys), (scores, stride));
    }
    // The queries are not wanted any more: their place is the outputs'.
    let outputs = padded_heads;
    outputs.fill(0.0);
    for (token, scores) in unit.tokens.clone().zip(scores.chunks_exact_mut(token_stride)) {
        for scores in scores.chunks_exact_mut(stride) {
            scores[stride - 1] = softmax_numerators(isa, &mut scores[..step.n_positions(token)]);
        }
    }
    let mut next_keys = ask_for.into_iter().flat_map(|next| (0..next.n_blocks(step)).map(|block| next.keys((step, store), block)));
    for block in 0..n_blocks {
        next_keys.next().iter().for_each(prefetch);
        let values = unit.values((step, store), block);
        let of_tokens = scores.chunks_exact(token_stride).zip(outputs.chunks_exact_mut(n_heads * padded));
        for (token, (scores, outputs)) in unit.tokens.clone().zip(of_tokens) {
            let first = block * BLOCK_TOKENS;
            let positions = first..step.n_positions(token).clamp(first, first + BLOCK_TOKENS);
            accumulate_block(isa, (scores, stride, positions), &values, outputs);
        }
    }
    let first_column = unit.heads.start * dim - out.range().start;
    let of_tokens = scores.chunks_exact(token_stride).zip(outputs.chunks_exact(n_heads * padded));
    for (token, (scores, outputs)) in unit.tokens.clone().zip(of_tokens) {
        let out = &mut out.row_mut(token)[first_column..first_column + n_heads * dim];
        let heads = outputs.chunks_exact(padded).zip(scores.chunks_exact(stride));
        for (out, (output, scores)) in out.chunks_exact_mut(dim).zip(heads) {
            out.iter_mut().zip(output).for_each(|(out, value)| *out = value * scores[stride - 1]);
        }
    }
}

/// Numbers of the cache by their scales.
#[inline(always)]
fn scaled<I: Sixteen, R: LoadRow>(isa: I, row: I::Row, scales: I::Row) -> I::Row {
    if R::HAS_SCALE { isa.mul(row, scales) } else { row }
}

/// The next heads that make a tile: four, two or one.
#[inline(always)]
fn tile_heads(n_left: usize) -> usize {
    if n_left >= 4 { 4 } else { n_left.min(2) }
}

/// Queries `[heads, dim]` tile by tile as `[dim padded, heads of the tile]`, columns in the order of the cache's keys.
#[inline(always)]
fn order_queries(queries: &[f32], dim: usize, ordered: &mut [f32]) {
    let (mut queries, mut ordered) = (queries, ordered);
    while !queries.is_empty() {
        let n_heads = tile_heads(queries.len() / dim);
        let (tile, rest) = queries.split_at(n_heads * dim);
        let (ordered_tile, ordered_rest) = ordered.split_at_mut(n_heads * dim.next_multiple_of(LANES));
        match n_heads {
            4 => order_tile::<4>(tile, dim, ordered_tile.as_chunks_mut().0),
            2 => order_tile::<2>(tile, dim, ordered_tile.as_chunks_mut().0),
            _ => order_tile::<1>(tile, dim, ordered_tile.as_chunks_mut().0),
        }
        (queries, ordered) = (rest, ordered_rest);
    }
}

#[inline(always)]
fn order_tile<const Q: usize>(queries: &[f32], dim: usize, ordered: &mut [[f32; Q]]) {
    let n_chunks = ordered.len() / LANES;
    for (ordered, lane) in ordered.chunks_exact_mut(n_chunks).zip(LANE_ORDER) {
        for (chunk, ordered) in ordered.iter_mut().enumerate() {
            for (query, head) in ordered.iter_mut().zip(queries.chunks_exact(dim)) {
                *query = head.get(chunk * LANES + lane).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Scores of a unit's tokens that reach a block, against its keys.
#[inline(always)]
fn score_tokens<I: Sixteen, R: LoadRow>(
    isa: I,
    (step, unit, block): (&AttentionStep<'_>, &Unit, usize),
    (queries, keys): (&[f32], &KvBlock<'_, R>),
    (scores, stride): (&mut [f32], usize),
) {
    let first = block * BLOCK_TOKENS;
    let scale = isa.splat(1.0 / (step.head_dim() as f32).sqrt());
    let at_once = if I::HAS_ROOM { 2 } else { 1 };
    let (token_queries, token_scores) = (queries.len() / unit.tokens.len(), scores.len() / unit.tokens.len());
    let groups = queries.chunks(at_once * token_queries).zip(scores.chunks_mut(at_once * token_scores));
    for (token, (queries, scores)) in unit.tokens.clone().step_by(at_once).zip(groups) {
        let n_tokens = queries.len() / token_queries;
        // A block that only the later token reaches: the other's scores are written and never read.
        if (token..token + n_tokens).all(|token| step.n_positions(token) <= first) {
            continue;
        }
        match n_tokens {
            2 => score_block::<I, R, 2>((isa, scale), queries, keys, (scores, stride, first)),
            _ => score_block::<I, R, 1>((isa, scale), queries, keys, (scores, stride, first)),
        }
    }
}

/// Scores of the query heads of T tokens, `[T, heads, stride]`, against a block of keys, positions past the last included (they are
/// never read). Queries are `[T, tiles of heads]`.
#[inline(always)]
fn score_block<I: Sixteen, R: LoadRow, const T: usize>(
    by_scale: (I, I::Row),
    queries: &[f32],
    keys: &KvBlock<'_, R>,
    (scores, stride, first): (&mut [f32], usize, usize),
) {
    let (dim, token_queries, token_scores) = (keys.rows.len(), queries.len() / T, scores.len() / T);
    let n_heads = token_queries / dim;
    let mut head = 0;
    while head < n_heads {
        let of_tile = tile_heads(n_heads - head);
        let tile = |token: usize| &queries[token * token_queries..][head * dim..(head + of_tile) * dim];
        let to = |token: usize| token * token_scores + head * stride + first;
        match of_tile {
            4 => score_heads::<I, R, 4, T>(by_scale, tile, keys, (scores, stride, to)),
            2 => score_heads::<I, R, 2, T>(by_scale, tile, keys, (scores, stride, to)),
            _ => score_heads::<I, R, 1, T>(by_scale, tile, keys, (scores, stride, to)),
        }
        head += of_tile;
    }
}

/// Scores of one tile of Q heads of each token: its queries, and where its first head's scores are written.
#[inline(always)]
fn score_heads<'a, I: Sixteen, R: LoadRow, const Q: usize, const T: usize>(
    (isa, scale): (I, I::Row),
    queries: impl Fn(usize) -> &'a [f32],
    keys: &KvBlock<'_, R>,
    (scores, stride, to): (&mut [f32], usize, impl Fn(usize) -> usize),
) {
    let products = score_tile::<I, R, Q, T>(isa, std::array::from_fn(|token| queries(token).as_chunks().0), keys);
    for (token, products) in products.into_iter().enumerate() {
        for (head, products) in products.into_iter().enumerate() {
            if let Some(scores) = scores[to(token) + head * stride..].first_chunk_mut() {
                isa.store(scores, isa.mul(products, scale));
            }
        }
    }
}

/// `numerics::dot` of Q queries of T tokens with sixteen keys: each lane's sum in turn, and the tree as soon as two are there.
#[inline(always)]
fn score_tile<I: Sixteen, R: LoadRow, const Q: usize, const T: usize>(
    isa: I,
    queries: [&[[f32; Q]]; T],
    keys: &KvBlock<'_, R>,
) -> [[I::Row; Q]; T] {
    let n_chunks = keys.rows.len() / LANES;
    let scales = isa.load(keys.scales);
    let mut waiting = [[[isa.splat(0.0); Q]; T]; LEVELS];
    for (lane, keys) in keys.rows.chunks_exact(n_chunks).enumerate() {
        let queries: [&[[f32; Q]]; T] = std::array::from_fn(|token| &queries[token][lane * n_chunks..(lane + 1) * n_chunks]);
        let mut sums = [[isa.splat(0.0); Q]; T];
        for (chunk, key) in keys.iter().enumerate() {
            let key = scaled::<I, R>(isa, key.load(isa), scales);
            for (sums, queries) in sums.iter_mut().zip(queries) {
                add_products(isa, sums, queries[chunk], key);
            }
        }
        let n_merged = lane.trailing_ones() as usize;
        for waiting in &waiting[..n_merged] {
            for (sum, &waiting) in sums.as_flattened_mut().iter_mut().zip(waiting.as_flattened()) {
                *sum = isa.add(waiting, *sum);
            }
        }
        if n_merged == LEVELS {
            return sums;
        }
        waiting[n_merged] = sums;
    }
    waiting[0]
}

/// sums[q] += queries[q] · key.
#[inline(always)]
fn add_products<I: Sixteen, const Q: usize>(isa: I, sums: &mut [I::Row; Q], queries: [f32; Q], key: I::Row) {
    for (sum, query) in sums.iter_mut().zip(queries) {
        *sum = isa.add(*sum, isa.mul(isa.splat(query), key));
    }
}

/// `numerics::softmax_numerators`: the maximum is the same in any order, save the sign of a zero, which the subtraction drops.
#[inline(always)]
fn softmax_numerators<I: Sixteen>(isa: I, scores: &mut [f32]) -> f32 {
    let (chunks, tail) = scores.as_chunks::<LANES>();
    let mut largest = isa.splat(f32::NEG_INFINITY);
    for chunk in chunks {
        largest = isa.larger(largest, isa.load(chunk));
    }
    let mut lanes = [0.0; LANES];
    isa.store(&mut lanes, largest);
    let largest = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |largest, &score| if score > largest { score } else { largest });
    for score in scores.iter_mut() {
        *score = numerics::exp(*score - largest);
    }
    1.0 / numerics::sum(scores)
}

/// out[head] += Σ over positions of weight · value, positions ascending.
#[inline(always)]
fn accumulate_block<I: Sixteen, R: LoadRow>(
    isa: I,
    (scores, stride, positions): (&[f32], usize, Range<usize>),
    values: &KvBlock<'_, R>,
    out: &mut [f32],
) {
    let n_chunks = values.rows.len() / BLOCK_TOKENS;
    let values = KvBlock { rows: &values.rows[..positions.len() * n_chunks], scales: values.scales };
    let (mut scores, mut out) = (scores, out.as_chunks_mut().0);
    while !out.is_empty() {
        let n_heads = tile_heads(out.len() / n_chunks);
        let (tile, rest) = out.split_at_mut(n_heads * n_chunks);
        let weights = |head: usize| &scores[head * stride..][positions.clone()];
        match n_heads {
            4 => accumulate_heads(isa, [weights(0), weights(1), weights(2), weights(3)], &values, tile),
            2 => accumulate_heads(isa, [weights(0), weights(1)], &values, tile),
            _ => accumulate_heads(isa, [weights(0)], &values, tile),
        }
        (scores, out) = (&scores[n_heads * stride..], rest);
    }
}

/// `values` is `[positions, n_chunks]`, `out` `[Q, n_chunks]`.
#[inline(always)]
fn accumulate_heads<I: Sixteen, R: LoadRow, const Q: usize>(
    isa: I,
    weights: [&[f32]; Q],
    values: &KvBlock<'_, R>,
    out: &mut [[f32; LANES]],
) {
    let n_chunks = out.len() / Q;
    let in_pairs = if I::HAS_ROOM { n_chunks / 2 * 2 } else { 0 };
    for chunk in (0..in_pairs).step_by(2) {
        accumulate_chunks::<I, R, Q, 2>(isa, weights, values, (out, chunk));
    }
    for chunk in in_pairs..n_chunks {
        accumulate_chunks::<I, R, Q, 1>(isa, weights, values, (out, chunk));
    }
}

/// C neighbouring chunks of it.
#[inline(always)]
fn accumulate_chunks<I: Sixteen, R: LoadRow, const Q: usize, const C: usize>(
    isa: I,
    weights: [&[f32]; Q],
    values: &KvBlock<'_, R>,
    (out, chunk): (&mut [[f32; LANES]], usize),
) {
    let n_chunks = out.len() / Q;
    let mut sums = [[isa.splat(0.0); Q]; C];
    for (index, sums) in sums.iter_mut().enumerate() {
        for (sum, out) in sums.iter_mut().zip(out.chunks_exact(n_chunks)) {
            *sum = isa.load(&out[chunk + index]);
        }
    }
    for ((position, row), &scale) in values.rows.chunks_exact(n_chunks).enumerate().zip(values.scales) {
        // A loop: `array::from_fn` is compiled without the processor's features wherever it is not inlined.
        let mut splats = [isa.splat(0.0); Q];
        for (splat, weights) in splats.iter_mut().zip(weights) {
            *splat = isa.splat(weights[position]);
        }
        for (value, sums) in row[chunk..chunk + C].iter().zip(&mut sums) {
            let value = scaled::<I, R>(isa, value.load(isa), isa.splat(scale));
            for (sum, weight) in sums.iter_mut().zip(splats) {
                *sum = isa.add(*sum, isa.mul(weight, value));
            }
        }
    }
    for (index, sums) in sums.into_iter().enumerate() {
        for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(n_chunks)) {
            isa.store(&mut out[chunk + index], sum);
        }
    }
}
