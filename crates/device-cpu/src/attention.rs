//! `CpuKvCache`: the paged cache of keys and values, `rope_append` into it and `attention` over it.
//!
//! Keys and values of one head of one block lie together, `[n_layers, n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim]` each, so
//! that a block is one linear read for all query heads that share it. Every thread computes a contiguous range of query heads
//! for all tokens: equal work whatever the tokens' positions. Paging: vLLM (arXiv 2309.06180 §4).

use std::ops::Range;

use bitnet_model::batch::{BlockId, Step};
use bitnet_model::device::{DeviceError, Heads, KvLayout};
use bitnet_model::limits::BLOCK_TOKENS;

use crate::arch::Memory;
use crate::device::CpuVector;
use crate::hidden::CpuHidden;
use crate::kernels::{ATTENTION_TOKENS, Kernels, SCORES_SPARE, Scratch};
use crate::pool::{ColumnTarget, Parts, Pool};

/// Keys and values of all layers.
pub struct CpuKvCache {
    layout: KvLayout,
    keys: Memory<f32>,
    values: Memory<f32>,
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

    /// Keys of one block of a token's sequence, `[BLOCK_TOKENS, head_dim]`.
    #[inline]
    pub(crate) fn keys(&self, token: usize, block: usize, kv_head: usize) -> &[f32] {
        &self.cache.keys[self.block_range(token, block, kv_head)]
    }

    /// Values of one block of a token's sequence, `[BLOCK_TOKENS, head_dim]`.
    #[inline]
    pub(crate) fn values(&self, token: usize, block: usize, kv_head: usize) -> &[f32] {
        &self.cache.values[self.block_range(token, block, kv_head)]
    }

    fn block_range(&self, token: usize, block: usize, kv_head: usize) -> Range<usize> {
        let block = self.step.block_tables[self.step.sequences[token]][block];
        self.cache.block_range(self.layer, block, kv_head)
    }
}

impl CpuKvCache {
    pub(crate) fn new(layout: KvLayout) -> Result<Self, DeviceError> {
        let refused = |size_bytes| DeviceError::OutOfMemory { what: "key-value cache", size_bytes };
        let dims = [layout.n_layers, layout.n_blocks, layout.n_kv_heads, BLOCK_TOKENS, layout.head_dim];
        let len = dims.into_iter().try_fold(1usize, usize::checked_mul).ok_or_else(|| refused(usize::MAX))?;
        let zeros = || Memory::zeroed(len).map_err(|memory| refused(memory.size_bytes));
        Ok(Self { layout, keys: zeros()?, values: zeros()? })
    }

    /// Longest sequence that the cache can hold.
    pub(crate) fn n_positions_max(&self) -> usize {
        self.layout.n_blocks * BLOCK_TOKENS
    }

    /// Where one head's rows of a block lie.
    fn block_range(&self, layer: usize, block: BlockId, kv_head: usize) -> Range<usize> {
        let layout = &self.layout;
        assert!(layer < layout.n_layers && (block.0 as usize) < layout.n_blocks && kv_head < layout.n_kv_heads, "a block of the cache");
        let size = BLOCK_TOKENS * layout.head_dim;
        let start = ((layer * layout.n_blocks + block.0 as usize) * layout.n_kv_heads + kv_head) * size;
        start..start + size
    }

    /// Copies one token's key and value rows `[n_kv_heads · head_dim]` into their slot.
    fn append(&mut self, layer: usize, (block, slot): (BlockId, usize), keys: &[f32], values: &[f32]) {
        let dim = self.layout.head_dim;
        for (kv_head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
            let start = self.block_range(layer, block, kv_head).start + slot * dim;
            self.keys[start..start + dim].copy_from_slice(key);
            self.values[start..start + dim].copy_from_slice(value);
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
    for scratch in scratch.iter_mut().filter(|scratch| scratch.scores.len() < n_scores) {
        scratch.scores.resize(n_scores, 0.0);
    }
    out.set_rows(step.qkv.n_rows());
    let (columns, width) = (0..out.width(), out.width());
    let target = ColumnTarget { values: out.values_mut(), width, columns, granule: dim };
    pool.run_columns(scratch, target, |scratch, columns| kernels.attention(step, columns, scratch));
}
