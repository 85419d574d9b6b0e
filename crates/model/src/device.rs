//! `Device`: the narrow seam. A dozen fused operations that the walk (`transformer`) is written over, once, for every machine.
//!
//! A device owns all memory that the operations touch; the walk holds opaque handles. Every device must give the bits of
//! [`crate::reference::ReferenceDevice`] — integers always, floats because they all follow `numerics` — and shows it by passing
//! [`crate::conformance`]. In this file m = tokens of the step, n = out features, k = in features.
//!
//! It deliberately has no general tensor algebra: an operation exists because the walk needs it fused.

use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_checkpoint::{CheckpointError, StoredTable};
use bitnet_ternary::TernaryMatrix;
use thiserror::Error;

use crate::batch::{BestLogits, Step};
use crate::token::TokenId;

/// Why a device could not do what was asked.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DeviceError {
    #[error("out of memory: {what} needs {size_bytes} bytes")]
    OutOfMemory { what: &'static str, size_bytes: usize },
    #[error("the device cannot hold {what}: {reason}")]
    Unsupported { what: &'static str, reason: String },
    #[error("rows of a table could not be read: {reason}")]
    TableUnreadable { reason: String },
    #[error("the device failed: {reason}")]
    Failed { reason: String },
    /// Nothing that is on it can be used any more.
    #[error("the device is lost: {reason}")]
    Lost { reason: String },
}

impl DeviceError {
    /// A table whose rows are read when they are needed, and now cannot be.
    pub fn unreadable(error: &CheckpointError) -> Self {
        Self::TableUnreadable { reason: error.to_string() }
    }
}

/// What a device has taken of its own memory and of its host's, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All buffers on the device.
    pub used_bytes: u64,
    /// Of these, keys and values.
    pub kv_cache_bytes: u64,
    /// On the host, for the device to read and write.
    pub host_bytes: u64,
}

/// What a device says of itself, for people and benchmarks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceDescription {
    /// `reference`, `cpu`.
    pub name: &'static str,
    /// Instruction set in use: `scalar`, `avx2`.
    pub isa: &'static str,
    /// Threads that compute.
    pub n_threads: usize,
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// As computed.
    F32,
    /// Rounded to IEEE halves (`numerics::round_to_f16`): half the memory and traffic, 11 bits.
    F16,
    /// int8 with one scale for each key and each value of a head (`numerics::kv_scale`): a quarter of the memory.
    Int8,
}

/// Size of a paged KV cache: keys and values of `n_blocks` × `BLOCK_TOKENS` tokens in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers, each with its own keys and values.
    pub n_layers: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Blocks, shared by all layers: block b holds the same tokens in each.
    pub n_blocks: usize,
    /// How the numbers are stored.
    pub kv_type: KvType,
}

/// What a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableUse {
    /// Rows are looked up.
    Embedding,
    /// Rows are multiplied, and may be looked up as well: the head of a model, tied or not.
    Head,
}

/// An RMSNorm. A list of them is applied one after another: none, one, or two (a projection's own norm, which may have another ε).
pub struct Norm<V> {
    /// Weight, `[k]`.
    pub weight: V,
    /// ε.
    pub epsilon: f32,
}

/// What [`Device::repeat`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeated {
    /// Nothing: the step is to be walked.
    Not,
    /// All of the step; `damaged` is the first row that holds NaN or +∞, if there is one.
    Whole { damaged: Option<usize> },
}

/// How query, key and value rows divide into heads, and the norms on them.
pub struct Heads<'a, V> {
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// RMSNorm weights `[head_dim]` on each query head and each key head, before rotation.
    pub qk_norms: Option<(&'a V, &'a V)>,
    /// ε of those norms.
    pub epsilon: f32,
}

/// The fused operations of one decoder step. Shapes are `[rows, width]`, row-major, f32 unless said otherwise.
///
/// Contract for all operations: shapes were fixed when the handles were made, and a handle of another device is never passed;
/// a violated shape is a bug and panics. After warm-up an operation allocates nothing.
pub trait Device: Send {
    /// f32 vector `[n]`: a norm weight.
    type Vector: Send;
    /// Ternary weights `[n, k]` in the device's own layout, with their scales.
    type Linear: Send;
    /// Embedding or head `[n_vocab, k]`, dense in stored precision or ternary.
    type Table: Send;
    /// f32 rows `[m, width]`, m changing from step to step.
    type Hidden: Send;
    /// What a linear layer reads, `[m, k]`: int8 with one scale a row or a group of columns, or f32, by the model's policy.
    type Activations: Send;
    /// Keys and values of all layers.
    type KvCache: Send;

    /// What this device is.
    fn describe(&self) -> DeviceDescription;

    /// Uploads a vector.
    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, DeviceError>;
    /// Uploads a linear layer. `policy` says what it will be multiplied with.
    fn linear(&mut self, weights: &TernaryMatrix, policy: ActivationPolicy) -> Result<Self::Linear, DeviceError>;
    /// Takes an embedding or head `[n_vocab, k]`. Dense rows may stay where they are and be read as they are needed; an operation on
    /// such a table can fail with `TableUnreadable`.
    fn table(&mut self, rows: StoredTable, table_use: TableUse) -> Result<Self::Table, DeviceError>;
    /// Makes room for `[n_rows_max, width]`.
    fn hidden(&mut self, n_rows_max: usize, width: usize) -> Result<Self::Hidden, DeviceError>;
    /// Makes room for `[n_rows_max, width_max]`; the width in use is that of the last `norm_quantize`.
    fn activations(&mut self, n_rows_max: usize, width_max: usize, policy: ActivationPolicy) -> Result<Self::Activations, DeviceError>;
    /// Makes an empty cache.
    fn kv_cache(&mut self, layout: KvLayout) -> Result<Self::KvCache, DeviceError>;
    /// Takes all memory of a cache now, where it is otherwise taken when it is first written.
    fn commit(&mut self, _cache: &mut Self::KvCache) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Output rows that are computed at once: bounds the logits buffer.
    fn n_output_rows(&self) -> usize {
        32
    }

    /// `x[i] = table[token_ids[i]]`; sets x to `[m, k]`. Begins a step: every [`Step`] that operations get until the next call is the same.
    fn embed(&mut self, table: &Self::Table, token_ids: &[TokenId], x: &mut Self::Hidden) -> Result<(), DeviceError>;

    /// Applies `norms` to each row of `x[m, k]`, then quantises it by the policy of `out` (`quantise::absmax`, `quantise::absmax_groups`,
    /// or not at all).
    fn norm_quantize(&mut self, x: &Self::Hidden, norms: &[Norm<Self::Vector>], out: &mut Self::Activations) -> Result<(), DeviceError>;

    /// `out[:, first_column..first_column + n] = x · Wᵀ`; sets out's rows to m. Integers are exact; the float epilogue is
    /// `numerics::dequantise` (int8 per token), `numerics::dequantise_segments` (int8 per group), or per group `numerics::dot_trits` ×
    /// scale, added up ascending (f32).
    fn bit_linear(
        &mut self,
        x: &Self::Activations,
        weights: &Self::Linear,
        out: &mut Self::Hidden,
        first_column: usize,
    ) -> Result<(), DeviceError>;

    /// `residual[m, n] += x · Wᵀ`.
    fn bit_linear_add(&mut self, x: &Self::Activations, weights: &Self::Linear, residual: &mut Self::Hidden) -> Result<(), DeviceError>;

    /// Takes rows `qkv[m, (n_heads + 2·n_kv_heads)·head_dim]` = q | k | v: norms each query and key head if there are norms,
    /// rotates them by the step's angles, leaves q in place and writes k and v into their cache slots of `layer`. Behind `attention` nobody looks at the
    /// rows again, so a device may put off for it what only it needs.
    fn rope_append(
        &mut self,
        qkv: &mut Self::Hidden,
        heads: &Heads<'_, Self::Vector>,
        step: &Step,
        cache: (&mut Self::KvCache, usize),
    ) -> Result<(), DeviceError>;

    /// Causal attention of each token over positions 0..=its own of its sequence, through the block table:
    /// `out[m, n_heads·head_dim]`, scores scaled by 1/√head_dim, summed in position order (`numerics`).
    fn attention(
        &mut self,
        qkv: &Self::Hidden,
        heads: &Heads<'_, Self::Vector>,
        step: &Step,
        cache: (&Self::KvCache, usize),
        out: &mut Self::Hidden,
    ) -> Result<(), DeviceError>;

    /// Memory that the device has taken, where it can tell. A device counts its own buffers, and not what its driver takes for itself.
    fn memory(&self, _cache: &Self::KvCache) -> Option<DeviceMemory> {
        None
    }

    /// Bytes of a linear layer that a step reads.
    fn linear_bytes(&self, weights: &Self::Linear) -> u64;
    /// Bytes of a head that a step reads at least to find the best logits.
    fn head_bytes(&self, head: &Self::Table) -> u64;

    /// `out[m, f] = activation(gate_up[:, ..f]) · gate_up[:, f..]`.
    fn gate(&mut self, gate_up: &Self::Hidden, activation: Activation, out: &mut Self::Hidden) -> Result<(), DeviceError>;

    /// `out[r] = rms_norm(x[rows[r]])`; sets out to `[rows.len(), k]`.
    fn final_norm(
        &mut self,
        x: &Self::Hidden,
        norm: &Norm<Self::Vector>,
        rows: &[usize],
        out: &mut Self::Hidden,
    ) -> Result<(), DeviceError>;

    /// `out[r, v] = x[r] · head[v]`; sets out to `[rows, n_vocab]`. `wanted[r]` says how much of row r is needed: a logit that is
    /// proved to be outside may be −∞ instead. The head is mutable for what a device keeps beside it between steps.
    fn logits(
        &mut self,
        x: &Self::Hidden,
        head: &mut Self::Table,
        wanted: &[Option<BestLogits>],
        out: &mut Self::Hidden,
    ) -> Result<(), DeviceError>;

    /// Index of the largest value of each row of `logits`, the lowest index where several are equal.
    fn argmax(&mut self, logits: &Self::Hidden, out: &mut Vec<TokenId>) -> Result<(), DeviceError>;

    /// As [`Self::argmax`] for callers who do not look at the logits: the first row that holds NaN or +∞ (−∞ marks what
    /// was not wanted), if there is one.
    fn argmax_checked(&mut self, logits: &Self::Hidden, out: &mut Vec<TokenId>) -> Result<Option<usize>, DeviceError> {
        self.argmax(logits, out)?;
        let width = self.finish(logits)?.len() / out.len().max(1);
        let is_damaged = |value: &f32| value.is_nan() || *value == f32::INFINITY;
        Ok(self.finish(logits)?.chunks(width.max(1)).position(|row| row.iter().any(is_damaged)))
    }

    /// Does at once what a walk over `step` from [`Self::embed`] to [`Self::argmax_checked`] does, if such a walk over a step of the same shape is
    /// remembered: its tokens are in `out` afterwards, and what rows hold is undefined until the next `embed`. For callers whose walks are
    /// the same for all steps but for ids, positions and block tables, and who look at no logits of this one (all of `step.wanted` is
    /// [`BestLogits::GREATEST`], no more rows than [`Self::n_output_rows`]).
    fn repeat(&mut self, _step: &Step, _out: &mut Vec<TokenId>) -> Result<Repeated, DeviceError> {
        Ok(Repeated::Not)
    }

    /// Ends the step: waits for everything submitted and yields the rows of `x`, `[rows, width]`, on the host.
    fn finish<'a>(&mut self, x: &'a Self::Hidden) -> Result<&'a [f32], DeviceError>;
}
