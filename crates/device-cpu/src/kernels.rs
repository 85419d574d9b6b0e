//! `Kernels`: what an instruction set must provide, and the views that kernels read and write. One implementation per
//! instruction set under `arch/`; all give the same bits.
//!
//! A kernel works on one thread's part and never splits a sum; dividing the work is `pool`'s, shapes are checked by the
//! operations that call it.

use bitnet_checkpoint::config::Activation;
use bitnet_model::device::DeviceError;
use bitnet_ternary::quantise::ActivationScale;

use crate::arch::{Memory, OutOfMemory};
use crate::attention::AttentionStep;
use crate::candidates::Candidates;
use crate::lane_tile::LaneTiles;
use crate::pool::ColumnsMut;
use crate::rows::DenseRows;
use crate::screen::{COARSE_BYTES, FINE_BYTES, RowBound, ScreenRowMut};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS, Tiles};

/// Most columns whose codes are summed in one 16-bit lane: a pair of codes 0..=2 times ±127 is at most 508 in magnitude, and
/// one maddubs of a quarter adds one pair to each lane.
pub(crate) const DEFERRED_COLUMNS: usize = 2048;
const DEFERRED_PAIRS: usize = DEFERRED_COLUMNS / QUARTER_COLUMNS;
const _: () = assert!(DEFERRED_PAIRS * 2 * 2 * 127 <= i16::MAX as usize && DEFERRED_COLUMNS.is_multiple_of(BLOCK_COLUMNS));

/// Tiles whose codes are unpacked together for a product of many tokens.
pub(crate) const PANEL_TILES: usize = 2;
/// Tokens whose sums wait in scratch while a panel is in use.
pub(crate) const PANEL_TOKENS: usize = 128;
/// Bytes of a panel of unpacked codes, whatever its shape.
pub(crate) const PANEL_BYTES: usize = 32 << 10;
/// Sums that wait in scratch while a panel is in use, whatever its shape.
pub(crate) const PANEL_SUMS: usize = 16 << 10;
const _: () = assert!(PANEL_TILES * TILE_ROWS * DEFERRED_COLUMNS <= PANEL_BYTES);
const _: () = assert!(PANEL_TOKENS * PANEL_TILES * TILE_ROWS * 8 <= PANEL_SUMS);
/// Columns of an f32 panel of one tile.
pub(crate) const FLOAT_PANEL_COLUMNS: usize = 512;
/// Tokens whose lanes wait in scratch while an f32 panel is in use.
pub(crate) const FLOAT_PANEL_TOKENS: usize = 32;

/// Tokens of a sequence whose attention is computed together.
pub(crate) const ATTENTION_TOKENS: usize = 4;
/// Places behind the scores of a query head.
pub(crate) const SCORES_SPARE: usize = 16;

/// One quantised row's scale and the sum of its integers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowScale {
    pub(crate) scale: ActivationScale,
    pub(crate) sum: i32,
}

/// int8 activations of a step.
#[derive(Clone, Copy)]
pub(crate) struct Int8Rows<'a> {
    /// `[m, stride]`, columns past k are 0.
    pub(crate) quantized: &'a [i8],
    /// k padded to `BLOCK_COLUMNS`.
    pub(crate) stride: usize,
    /// Sums of each quarter of a block, `[m, stride / QUARTER_COLUMNS]`.
    pub(crate) quarter_sums: &'a [i32],
    /// `[m]`.
    pub(crate) scales: &'a [RowScale],
}

impl<'a> Int8Rows<'a> {
    /// Blocks of one token, `[stride / BLOCK_COLUMNS]`.
    #[inline]
    pub(crate) fn blocks(&self, token: usize) -> &'a [[i8; BLOCK_COLUMNS]] {
        self.quantized[token * self.stride..(token + 1) * self.stride].as_chunks().0
    }

    /// Sums of the quarters of one token, `[stride / QUARTER_COLUMNS]`.
    #[inline]
    pub(crate) fn quarter_sums(&self, token: usize) -> &'a [i32] {
        let n_quarters = self.stride / QUARTER_COLUMNS;
        &self.quarter_sums[token * n_quarters..(token + 1) * n_quarters]
    }
}

/// One row being quantised.
pub(crate) struct Int8RowMut<'a> {
    /// `[stride]`, all written.
    pub(crate) quantized: &'a mut [i8],
    /// `[stride / QUARTER_COLUMNS]`, all written.
    pub(crate) quarter_sums: &'a mut [i32],
    pub(crate) scale: &'a mut RowScale,
}

/// int8 activations of a step, with a scale for each block.
#[derive(Clone, Copy)]
pub(crate) struct GroupRows<'a> {
    /// `[m, stride]`, columns past k are 0.
    pub(crate) quantized: &'a [i8],
    /// k padded to `BLOCK_COLUMNS`.
    pub(crate) stride: usize,
    /// Each block's scale and sum, `[m, stride / BLOCK_COLUMNS]`.
    pub(crate) scales: &'a [RowScale],
}

impl<'a> GroupRows<'a> {
    /// Blocks of one token, `[stride / BLOCK_COLUMNS]`.
    #[inline(always)]
    pub(crate) fn blocks(&self, token: usize) -> &'a [[i8; BLOCK_COLUMNS]] {
        self.quantized[token * self.stride..(token + 1) * self.stride].as_chunks().0
    }

    /// Scales and sums of the blocks of one token.
    #[inline(always)]
    pub(crate) fn scales(&self, token: usize) -> &'a [RowScale] {
        let n_blocks = self.stride / BLOCK_COLUMNS;
        &self.scales[token * n_blocks..(token + 1) * n_blocks]
    }
}

/// One row being quantised in groups.
pub(crate) struct GroupRowMut<'a> {
    /// `[stride]`, all written.
    pub(crate) quantized: &'a mut [i8],
    /// `[stride / BLOCK_COLUMNS]`, all written.
    pub(crate) scales: &'a mut [RowScale],
}

/// f32 activations of a step.
#[derive(Clone, Copy)]
pub(crate) struct F32Rows<'a> {
    /// `[m, stride]`, columns past k are 0.
    pub(crate) values: &'a [f32],
    /// k, padded to `BLOCK_COLUMNS` where kernels of ternary weights read it.
    pub(crate) stride: usize,
}

impl<'a> F32Rows<'a> {
    /// One token, `[stride]`.
    #[inline]
    pub(crate) fn row(&self, token: usize) -> &'a [f32] {
        &self.values[token * self.stride..(token + 1) * self.stride]
    }

    /// Tokens.
    pub(crate) fn n_rows(&self) -> usize {
        self.values.len() / self.stride
    }
}

/// What a product does to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// Replaces it.
    Write,
    /// Adds to it.
    Add,
}

impl Store {
    /// Stores as many neighbouring outputs of a row as there is room for, at most `ROWS`.
    #[inline(always)]
    pub(crate) fn store<const ROWS: usize>(self, out: &mut [f32], values: [f32; ROWS]) {
        // Room for all is the rule; of known length they stay in one register.
        if let Some(out) = out.first_chunk_mut::<ROWS>() {
            *out = std::array::from_fn(|index| self.stored(out[index], values[index]));
        } else {
            out.iter_mut().zip(values).for_each(|(out, value)| *out = self.stored(*out, value));
        }
    }

    /// What stands there afterwards.
    #[inline(always)]
    pub(crate) fn stored(self, before: f32, value: f32) -> f32 {
        match self {
            Self::Write => value,
            Self::Add => before + value,
        }
    }
}

/// Buffers of one thread, made once.
pub(crate) struct Scratch {
    /// A row under way, as wide as the widest activations or hidden rows.
    pub(crate) row: Vec<f32>,
    /// Codes of a row of a head under way.
    pub(crate) codes: Vec<u8>,
    /// Rows of a table that are not kept in memory.
    pub(crate) rows: Vec<u8>,
    /// Why this thread could not do its part.
    pub(crate) failure: Option<DeviceError>,
    /// Rows of a head that may hold the best logits.
    pub(crate) candidates: Candidates,
    /// Attention scores of `ATTENTION_TOKENS` tokens of the query heads that share a key head.
    pub(crate) scores: Vec<f32>,
    /// Queries of the same tokens and heads, in the order of the cache's keys, then their outputs; heads filled up to whole rows.
    pub(crate) padded_heads: Vec<f32>,
    /// Unpacked codes, `PANEL_BYTES`: `[PANEL_TILES, quarters, TILE_ROWS, QUARTER_COLUMNS]`.
    pub(crate) panel: Memory<u8>,
    /// Sums of a panel, `PANEL_SUMS`: `[tokens, PANEL_TILES, TILE_ROWS]`, with eight lanes each (AVX2), or as AMX stores them.
    pub(crate) sums: Memory<i32>,
    /// Unpacked weights, `[FLOAT_PANEL_COLUMNS / 8, TILE_ROWS, 8]`.
    pub(crate) float_panel: Memory<f32>,
    /// Lanes of an f32 panel, `[FLOAT_PANEL_TOKENS, TILE_ROWS, LANES]`.
    pub(crate) lanes: Memory<f32>,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            row: Vec::new(),
            codes: Vec::new(),
            rows: Vec::new(),
            failure: None,
            candidates: Candidates::default(),
            scores: Vec::new(),
            padded_heads: Vec::new(),
            panel: Memory::zeroed(PANEL_BYTES)?,
            sums: Memory::zeroed(PANEL_SUMS)?,
            float_panel: Memory::zeroed(TILE_ROWS * FLOAT_PANEL_COLUMNS)?,
            lanes: Memory::zeroed(FLOAT_PANEL_TOKENS * TILE_ROWS * bitnet_model::numerics::LANES)?,
        })
    }
}

impl Scratch {
    /// Calls `part` with the buffer for rows and the rest, and keeps why it failed for [`first_failure`].
    pub(crate) fn with_rows(&mut self, part: impl FnOnce(&mut [u8], &mut Self) -> Result<(), DeviceError>) {
        let mut rows = std::mem::take(&mut self.rows);
        let outcome = part(&mut rows, self);
        self.rows = rows;
        if let Err(failure) = outcome {
            self.failure = Some(failure);
        }
    }
}

/// Ends an operation whose parts can fail: with why the first of them did.
pub(crate) fn first_failure(scratch: &mut [Scratch]) -> Result<(), DeviceError> {
    let failures = scratch.iter_mut().filter_map(|scratch| scratch.failure.take());
    failures.reduce(|first, _| first).map_or(Ok(()), Err)
}

/// The kernels of one instruction set.
pub(crate) trait Kernels: Send + Sync {
    /// As `IsaChoice` names it: `scalar`, `avx2`.
    fn isa(&self) -> &'static str;

    /// The next simpler instruction set, which does whatever is not written for this one.
    fn base(&self) -> &dyn Kernels;

    /// RMSNorm in place (`numerics::rms_norm`).
    fn norm(&self, row: &mut [f32], weight: &[f32], epsilon: f32) {
        self.base().norm(row, weight, epsilon);
    }

    /// `quantise::absmax` of one row, with its sums and zero padding.
    fn quantise(&self, row: &[f32], out: Int8RowMut<'_>) {
        self.base().quantise(row, out);
    }

    /// `quantise::absmax_groups` of one row, with the sums of its groups and zero padding.
    fn quantise_groups(&self, row: &[f32], out: GroupRowMut<'_>) {
        self.base().quantise_groups(row, out);
    }

    /// `activation(gate) · up` for one row.
    fn gate(&self, gate_up: &[f32], activation: Activation, out: &mut [f32]) {
        self.base().gate(gate_up, activation, out);
    }

    /// Rotates neighbouring heads of one row by the same angles.
    fn rotate(&self, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        self.base().rotate(heads, head_dim, cos, sin);
    }

    /// `x · Wᵀ` of int8 activations for one thread's out features.
    fn linear_int8(&self, x: Int8Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.base().linear_int8(x, weights, store, out, scratch);
    }

    /// `x · Wᵀ` of int8 activations in groups for one thread's out features.
    fn linear_groups(&self, x: GroupRows<'_>, weights: &LaneTiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.base().linear_groups(x, weights, store, out, scratch);
    }

    /// `x · Wᵀ` of f32 activations for one thread's out features.
    fn linear_f32(&self, x: F32Rows<'_>, weights: &Tiles, store: Store, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.base().linear_f32(x, weights, store, out, scratch);
    }

    /// `x · tableᵀ` for one thread's rows of a dense table.
    fn logits(&self, x: F32Rows<'_>, table: &DenseRows<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.base().logits(x, table, out, scratch);
    }

    /// Codes and bounds of one row of a head.
    fn screen_row(&self, row: &[f32], out: ScreenRowMut<'_>, codes: &mut Vec<u8>) -> RowBound {
        self.base().screen_row(row, out, codes)
    }

    /// Σ code·q of four rows of the coarse plane of a screen, for each token.
    fn coarse_sums(&self, tile: &[[u8; COARSE_BYTES]], tokens: &[&[[i8; BLOCK_COLUMNS]]], sums: &mut [[i32; TILE_ROWS]]) {
        self.base().coarse_sums(tile, tokens, sums);
    }

    /// Σ code·q of one row of the fine plane.
    fn fine_sum(&self, row: &[[u8; FINE_BYTES]], activations: &[[i8; BLOCK_COLUMNS]]) -> i32 {
        self.base().fine_sum(row, activations)
    }

    /// Whether `plane_sums` of all rows pays for so many tokens; of a flat head the coarse plane leaves many rows a chance.
    fn wants_both_planes(&self, n_tokens: usize, is_flat: bool) -> bool {
        self.base().wants_both_planes(n_tokens, is_flat)
    }

    /// Σ code·q of four rows of both planes of a screen, for each token: its coarse tile and each row of its fine plane.
    fn plane_sums(
        &self,
        tile: &[[u8; COARSE_BYTES]],
        fine: [&[[u8; FINE_BYTES]]; TILE_ROWS],
        tokens: &[&[[i8; BLOCK_COLUMNS]]],
        sums: &mut [[i32; TILE_ROWS]],
        scratch: &mut Scratch,
    ) {
        self.base().plane_sums(tile, fine, tokens, sums, scratch);
    }

    /// Hints that these bytes are needed soon.
    fn prefetch(&self, bytes: &[u8]) {
        self.base().prefetch(bytes);
    }

    /// One logit, as `logits` computes it.
    fn dot_row(&self, x: &[f32], head: &DenseRows<'_>, row: usize, scratch: &mut Scratch) -> f32 {
        self.base().dot_row(x, head, row, scratch)
    }

    /// One output of one token, as `linear_f32` computes it.
    fn ternary_dot_row(&self, x: &[f32], weights: &Tiles, row: usize, scratch: &mut Scratch) -> f32 {
        self.base().ternary_dot_row(x, weights, row, scratch)
    }

    /// Attention of all tokens for one thread's query heads.
    fn attention(&self, step: &AttentionStep<'_>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
        self.base().attention(step, out, scratch);
    }

    /// `numerics::argmax`.
    fn argmax(&self, values: &[f32]) -> usize {
        self.base().argmax(values)
    }

    /// Reads all bytes, as fast as can be, for `roof`.
    fn read_all(&self, bytes: &[u8]) -> i32 {
        self.base().read_all(bytes)
    }

    /// Does `n_rounds` rounds of int8 products from registers, for `roof`; yields the multiply-adds done.
    fn products(&self, n_rounds: usize) -> u64 {
        self.base().products(n_rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Scalar;
    use crate::detect::{CpuOptions, IsaChoice};
    use crate::screen::{PLANE_TOKENS, SCREEN_TOKENS};

    /// Bytes of a small generator.
    fn bytes(n: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn sums_of_planes_are_those_of_portable_code() {
        const BLOCKS: usize = 13;
        let (coarse, fine) = (bytes(BLOCKS * 2 * COARSE_BYTES, 1), bytes(BLOCKS * TILE_ROWS * FINE_BYTES, 2));
        let mut rows = fine.as_chunks::<FINE_BYTES>().0.chunks_exact(BLOCKS);
        let fine: [&[[u8; FINE_BYTES]]; TILE_ROWS] = std::array::from_fn(|_| rows.next().expect("four rows"));
        let activations: Vec<i8> = bytes(PLANE_TOKENS * BLOCKS * BLOCK_COLUMNS, 3).into_iter().map(|byte| byte as i8).collect();
        let activations: Vec<&[[i8; BLOCK_COLUMNS]]> = activations.as_chunks().0.chunks_exact(BLOCKS).collect();
        let mut scratch = Scratch::new().expect("memory");
        let mut sums = |kernels: &dyn Kernels, n_tokens: usize| {
            let (mut of_coarse, mut of_both) = ([[0; TILE_ROWS]; PLANE_TOKENS], [[0; TILE_ROWS]; PLANE_TOKENS]);
            let n_coarse = n_tokens.min(SCREEN_TOKENS);
            kernels.coarse_sums(coarse.as_chunks().0, &activations[..n_coarse], &mut of_coarse[..n_coarse]);
            kernels.plane_sums(coarse.as_chunks().0, fine, &activations[..n_tokens], &mut of_both[..n_tokens], &mut scratch);
            (of_coarse, of_both, fine.map(|row| kernels.fine_sum(row, activations[n_tokens - 1])))
        };
        for isa in IsaChoice::NAMED {
            let Ok(kernels) = (CpuOptions { isa, ..CpuOptions::default() }).kernels() else { continue };
            for n_tokens in 1..=PLANE_TOKENS {
                assert_eq!(sums(&*kernels, n_tokens), sums(&Scalar, n_tokens), "{isa:?}, {n_tokens} tokens");
            }
        }
    }
}
