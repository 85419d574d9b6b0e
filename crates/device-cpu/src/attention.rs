//! `CpuKvCache`: the paged cache of keys and values, `rope_append` into it and `attention` over it.
//!
//! Keys and values of one head of one block lie together, so that a block is one linear read for all query heads that share
//! it, in rows of sixteen numbers, f32, IEEE half or int8 ([`KvRow`]): a row of values is sixteen neighbouring columns of one token; a row
//! of keys is one column of all sixteen tokens of the block, so that their scores lie side by side in a register ([`key_row`]).
//! Every thread computes a contiguous range of query heads for all tokens: equal work whatever the tokens' positions. Paging:
//! vLLM (arXiv 2309.06180 §4).

use std::ops::Range;

use bitnet_model::batch::{BlockId, Step};
use bitnet_model::device::{DeviceError, Heads, KvLayout, KvType};
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::numerics::{self, LANES};
use bitnet_ternary::quantise;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::ahead::LINE_BYTES;
use crate::arch::{Memory, OutOfMemory, Plain};
use crate::device::CpuVector;
use crate::hidden::CpuHidden;
use crate::kernels::{ATTENTION_TOKENS, Kernels, SCORES_SPARE, Scratch};
use crate::pool::{ColumnTarget, Parts, Pool};

const _: () = assert!(BLOCK_TOKENS == LANES);

/// Sixteen numbers of the cache as they are stored.
pub(crate) trait KvRow: Plain {
    /// Whether a key or value has a scale, by which its numbers are multiplied when they are read.
    const HAS_SCALE: bool = false;

    /// Every number as f32 (exact), without its scale.
    fn widen(&self) -> [f32; LANES];
    /// Stores sixteen numbers, or fewer and zeros (`numerics::round_to_f16` for a half, `quantise_one` by the inverse scale for int8).
    fn store(numbers: &[f32], inverse_scale: f32) -> Self;
    /// Copies one number of another row.
    fn set(&mut self, lane: usize, from: (&Self, usize));
}

impl KvRow for [f32; LANES] {
    #[inline(always)]
    fn widen(&self) -> [f32; LANES] {
        *self
    }

    #[inline(always)]
    fn store(numbers: &[f32], _: f32) -> Self {
        let mut row = [0.0; LANES];
        row[..numbers.len()].copy_from_slice(numbers);
        row
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, (from, from_lane): (&Self, usize)) {
        self[lane] = from[from_lane];
    }
}

/// Little-endian IEEE halves.
pub(crate) type HalfRow = [u8; 2 * LANES];

impl KvRow for HalfRow {
    #[inline(always)]
    fn widen(&self) -> [f32; LANES] {
        let halves = self.as_chunks().0;
        std::array::from_fn(|lane| f16::from_le_bytes(halves[lane]).to_f32())
    }

    #[inline(always)]
    fn store(numbers: &[f32], _: f32) -> Self {
        let mut clamped = [0.0f32; LANES];
        clamped.iter_mut().zip(numbers).for_each(|(clamped, &number)| *clamped = numerics::clamp_to_f16(number));
        let mut halves = [f16::ZERO; LANES];
        halves.convert_from_f32_slice(&clamped);
        let mut row = [0; 2 * LANES];
        row.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(bytes, half)| *bytes = half.to_le_bytes());
        row
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, (from, from_lane): (&Self, usize)) {
        self.as_chunks_mut::<2>().0[lane] = from.as_chunks().0[from_lane];
    }
}

impl KvRow for [i8; LANES] {
    const HAS_SCALE: bool = true;

    #[inline(always)]
    fn widen(&self) -> [f32; LANES] {
        self.map(f32::from)
    }

    #[inline(always)]
    fn store(numbers: &[f32], inverse_scale: f32) -> Self {
        let mut row = [0; LANES];
        row.iter_mut().zip(numbers).for_each(|(integer, &number)| *integer = quantise::quantise_one(number, inverse_scale));
        row
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, (from, from_lane): (&Self, usize)) {
        self[lane] = from[from_lane];
    }
}

/// Where column `column` of a head lies among its `[head_dim padded]` rows of keys: the order in which `numerics::dot` adds up,
/// lane by lane and the lanes by its tree, so that a kernel reads the rows one after another.
#[inline(always)]
fn key_row(column: usize, n_chunks: usize) -> usize {
    LANE_ORDER[column % LANES] * n_chunks + column / LANES
}

/// The lanes of `numerics::sum_lanes` in the order of its leaves: the four bits of a number reversed (its own inverse).
pub(crate) const LANE_ORDER: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// Keys and values of all layers.
pub struct CpuKvCache {
    layout: KvLayout,
    rows: KvRows,
}

/// The numbers of a cache.
pub(crate) enum KvRows {
    F32(KvStore<[f32; LANES]>),
    F16(KvStore<HalfRow>),
    Int8(KvStore<[i8; LANES]>),
}

/// `[n_layers, n_blocks, n_kv_heads, BLOCK_TOKENS · n_chunks]` rows each of keys and values, n_chunks = head_dim / 16, rounded up.
pub(crate) struct KvStore<R: Plain> {
    keys: Memory<R>,
    values: Memory<R>,
    /// Scales of the keys and of the values of one head of one block; empty if numbers have none.
    scales: Memory<[BlockScales; 2]>,
}

/// A scale for each token of a block.
pub(crate) type BlockScales = [f32; BLOCK_TOKENS];

/// Keys, or values, of one head of one block.
pub(crate) struct KvBlock<'a, R> {
    pub(crate) rows: &'a [R],
    /// All 1 if numbers have no scale.
    pub(crate) scales: &'a BlockScales,
}

impl<R: KvRow> KvStore<R> {
    /// `n_heads` heads of blocks, `n_rows` rows each.
    fn new(n_heads: usize, n_rows: usize) -> Result<Self, OutOfMemory> {
        let n_all = n_heads.saturating_mul(n_rows);
        let scales = Memory::zeroed(if R::HAS_SCALE { n_heads } else { 0 })?;
        Ok(Self { keys: Memory::zeroed(n_all)?, values: Memory::zeroed(n_all)?, scales })
    }

    /// Has the system give all memory now.
    fn commit(&mut self) -> Result<(), OutOfMemory> {
        self.keys.commit().and_then(|()| self.values.commit()).and_then(|()| self.scales.commit())
    }

    /// Keys of the head of a block that lies in `rows`.
    fn keys(&self, rows: Range<usize>) -> KvBlock<'_, R> {
        KvBlock { scales: self.scales(&rows, 0), rows: &self.keys[rows] }
    }

    /// Its values.
    fn values(&self, rows: Range<usize>) -> KvBlock<'_, R> {
        KvBlock { scales: self.scales(&rows, 1), rows: &self.values[rows] }
    }

    fn scales(&self, rows: &Range<usize>, which: usize) -> &BlockScales {
        if R::HAS_SCALE { &self.scales[rows.start / rows.len()][which] } else { &[1.0; BLOCK_TOKENS] }
    }

    /// Stores one token's key and value of one head, `[head_dim]` each, in its slot of a block.
    fn append(&mut self, rows: Range<usize>, slot: usize, (key, value): (&[f32], &[f32])) {
        let n_chunks = rows.len() / BLOCK_TOKENS;
        let mut inverse_scales = [1.0; 2];
        if R::HAS_SCALE {
            let scales = &mut self.scales[rows.start / rows.len()];
            for ((inverse_scale, scales), numbers) in inverse_scales.iter_mut().zip(scales).zip([key, value]) {
                let scale = numerics::kv_scale(numbers);
                (*inverse_scale, scales[slot]) = (scale.inverse, scale.real);
            }
        }
        let (keys, values) = (&mut self.keys[rows.clone()], &mut self.values[rows]);
        for (chunk, numbers) in key.chunks(LANES).enumerate() {
            let stored = R::store(numbers, inverse_scales[0]);
            for lane in 0..numbers.len() {
                keys[key_row(chunk * LANES + lane, n_chunks)].set(slot, (&stored, lane));
            }
        }
        for (row, numbers) in values[slot * n_chunks..].iter_mut().zip(value.chunks(LANES)) {
            *row = R::store(numbers, inverse_scales[1]);
        }
    }
}

/// The key of one token of a block, `[head_dim]`, gathered from its rows.
pub(crate) fn gather_key<R: KvRow>(keys: &KvBlock<'_, R>, slot: usize, key: &mut [f32]) {
    let n_chunks = keys.rows.len() / BLOCK_TOKENS;
    for (column, number) in key.iter_mut().enumerate() {
        *number = keys.rows[key_row(column, n_chunks)].widen()[slot] * keys.scales[slot];
    }
}

/// Everything that attention reads.
pub(crate) struct AttentionStep<'a> {
    /// Rows whose first `n_heads · head_dim` columns are the rotated queries.
    pub(crate) qkv: &'a CpuHidden,
    pub(crate) n_heads: usize,
    pub(crate) step: &'a Step,
    pub(crate) cache: &'a CpuKvCache,
    pub(crate) layer: usize,
}

impl AttentionStep<'_> {
    /// Width of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.cache.layout.head_dim
    }

    /// Query heads that share a key head.
    pub(crate) fn heads_per_kv_head(&self) -> usize {
        self.n_heads / self.cache.layout.n_kv_heads
    }

    /// Positions that a token attends to.
    pub(crate) fn n_positions(&self, token: usize) -> usize {
        self.step.positions[token] + 1
    }

    /// Neighbouring query heads of one token, `[heads.len(), head_dim]`.
    pub(crate) fn queries(&self, token: usize, heads: Range<usize>) -> &[f32] {
        let (start, dim) = (token * self.qkv.width(), self.head_dim());
        &self.qkv.values()[start + heads.start * dim..start + heads.end * dim]
    }

    /// Keys of one block of a token's sequence, `[head_dim padded]` rows of its tokens.
    #[inline]
    pub(crate) fn keys<'a, R: KvRow>(&self, store: &'a KvStore<R>, (token, block, kv_head): (usize, usize, usize)) -> KvBlock<'a, R> {
        store.keys(self.block_rows(token, block, kv_head))
    }

    /// Values of one block of a token's sequence, `[BLOCK_TOKENS, n_chunks]`.
    #[inline]
    pub(crate) fn values<'a, R: KvRow>(&self, store: &'a KvStore<R>, (token, block, kv_head): (usize, usize, usize)) -> KvBlock<'a, R> {
        store.values(self.block_rows(token, block, kv_head))
    }

    fn block_rows(&self, token: usize, block: usize, kv_head: usize) -> Range<usize> {
        let block = self.step.block_tables[self.step.sequences[token]][block];
        self.cache.block_rows(self.layer, block, kv_head)
    }
}

impl CpuKvCache {
    pub(crate) fn new(layout: KvLayout) -> Result<Self, DeviceError> {
        let refused = |size_bytes| DeviceError::OutOfMemory { what: "key-value cache", size_bytes };
        let n_heads = layout.n_blocks.checked_mul(layout.n_kv_heads).and_then(|heads| heads.checked_mul(layout.n_layers));
        let (n_heads, n_rows) = (n_heads.ok_or_else(|| refused(usize::MAX))?, BLOCK_TOKENS * layout.head_dim.div_ceil(LANES));
        let rows = match layout.kv_type {
            KvType::F32 => KvStore::new(n_heads, n_rows).map(KvRows::F32),
            KvType::F16 => KvStore::new(n_heads, n_rows).map(KvRows::F16),
            KvType::Int8 => KvStore::new(n_heads, n_rows).map(KvRows::Int8),
        };
        Ok(Self { layout, rows: rows.map_err(|memory| refused(memory.size_bytes))? })
    }

    /// Has the system give all memory now.
    pub(crate) fn commit(&mut self) -> Result<(), DeviceError> {
        let committed = match &mut self.rows {
            KvRows::F32(store) => store.commit(),
            KvRows::F16(store) => store.commit(),
            KvRows::Int8(store) => store.commit(),
        };
        committed.map_err(|memory| DeviceError::OutOfMemory { what: "key-value cache", size_bytes: memory.size_bytes })
    }

    /// The numbers, by type.
    pub(crate) fn rows(&self) -> &KvRows {
        &self.rows
    }

    /// Longest sequence that the cache can hold.
    pub(crate) fn n_positions_max(&self) -> usize {
        self.layout.n_blocks * BLOCK_TOKENS
    }

    /// Where one head's rows of a block lie.
    fn block_rows(&self, layer: usize, block: BlockId, kv_head: usize) -> Range<usize> {
        let layout = &self.layout;
        assert!(layer < layout.n_layers && (block.0 as usize) < layout.n_blocks && kv_head < layout.n_kv_heads, "a block of the cache");
        let size = BLOCK_TOKENS * layout.head_dim.div_ceil(LANES);
        let start = ((layer * layout.n_blocks + block.0 as usize) * layout.n_kv_heads + kv_head) * size;
        start..start + size
    }

    /// Stores one token's key and value rows `[n_kv_heads · head_dim]` in their slot.
    fn append(&mut self, layer: usize, (block, slot): (BlockId, usize), keys: &[f32], values: &[f32]) {
        let dim = self.layout.head_dim;
        for (kv_head, head) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
            let range = self.block_rows(layer, block, kv_head);
            match &mut self.rows {
                KvRows::F32(store) => store.append(range, slot, head),
                KvRows::F16(store) => store.append(range, slot, head),
                KvRows::Int8(store) => store.append(range, slot, head),
            }
        }
    }
}

/// Norms and rotates queries and keys in place, then writes keys and values to their slots.
pub(crate) fn rope_append(
    qkv: &mut CpuHidden,
    heads: &Heads<'_, CpuVector>,
    step: &Step,
    (cache, layer, kernels): (&mut CpuKvCache, usize, &dyn Kernels),
    (pool, scratch): (&mut Pool, &mut [Scratch]),
) {
    let (dim, width) = (heads.head_dim, qkv.width());
    let (q_size, kv_size) = (heads.n_heads * dim, heads.n_kv_heads * dim);
    assert_eq!(width, q_size + 2 * kv_size, "qkv rows are q, k and v");
    assert_eq!((cache.layout.n_kv_heads, cache.layout.head_dim), (heads.n_kv_heads, dim), "the cache was made for these heads");
    assert_eq!(qkv.n_rows(), step.n_tokens(), "a row for each token");
    let mut rest = qkv.values_mut();
    let parts = Parts::new(step.n_tokens(), pool.n_threads(), |range| {
        let rows = rest.split_off_mut(..range.len() * width).expect("a row for each token");
        (range, rows)
    });
    pool.run_parts(scratch, parts, |_, (range, rows)| {
        for (token, row) in range.zip(rows.chunks_exact_mut(width)) {
            let (cos, sin) = step.rope.token(token);
            if let Some((q_norm, k_norm)) = heads.qk_norms {
                let (queries, keys) = row[..q_size + kv_size].split_at_mut(q_size);
                queries.chunks_exact_mut(dim).for_each(|head| kernels.norm(head, q_norm.values(), heads.epsilon));
                keys.chunks_exact_mut(dim).for_each(|head| kernels.norm(head, k_norm.values(), heads.epsilon));
            }
            kernels.rotate(&mut row[..q_size + kv_size], dim, cos, sin);
        }
    });
    for (token, row) in qkv.values().chunks_exact(width).enumerate() {
        let (keys, values) = row[q_size..].split_at(kv_size);
        cache.append(layer, step.slot(token), keys, values);
    }
}

/// Causal attention of every token over its sequence.
pub(crate) fn attention(
    step: &AttentionStep<'_>,
    out: &mut CpuHidden,
    (pool, scratch): (&mut Pool, &mut [Scratch]),
    kernels: &dyn Kernels,
) {
    let dim = step.head_dim();
    assert_eq!(step.qkv.n_rows(), step.step.n_tokens(), "a row for each token");
    assert_eq!(out.width(), step.n_heads * dim, "an output column for each query column");
    assert!(step.n_heads.is_multiple_of(step.cache.layout.n_kv_heads), "query heads share key heads evenly");
    let longest = step.step.positions.iter().max().map_or(0, |position| position + 1);
    assert!(longest <= step.cache.n_positions_max(), "positions lie in the cache");
    let n_scores = ATTENTION_TOKENS * step.heads_per_kv_head() * (step.cache.n_positions_max() + SCORES_SPARE);
    let n_padded = ATTENTION_TOKENS * step.heads_per_kv_head() * dim.next_multiple_of(LANES) + LINE_BYTES / size_of::<f32>();
    for scratch in scratch.iter_mut() {
        scratch.scores.resize(scratch.scores.len().max(n_scores), 0.0);
        scratch.padded_heads.resize(scratch.padded_heads.len().max(n_padded), 0.0);
        scratch.row.resize(scratch.row.len().max(dim), 0.0);
    }
    out.set_rows(step.qkv.n_rows());
    let (columns, width) = (0..out.width(), out.width());
    let target = ColumnTarget { values: out.values_mut(), width, columns, granule: dim };
    pool.run_columns(scratch, target, |scratch, columns| kernels.attention(step, columns, scratch));
}
