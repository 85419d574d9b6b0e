//! `ReferenceDevice`: the executable specification. Plain scalar loops over `numerics`, one row at a time, no threads, no
//! layout of its own. Slow on purpose; every device is compared with it bit for bit.

use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_checkpoint::{StoredTable, Tensor};
use bitnet_ternary::quantise::{self, ACTIVATION_GROUP, ActivationScale};
use bitnet_ternary::{TernaryMatrix, matmul};

use crate::batch::{BestLogits, BlockId, Step};
use crate::device::{Device, DeviceDescription, DeviceError, Heads, KvLayout, KvType, Norm, TableUse};
use crate::limits::BLOCK_TOKENS;
use crate::numerics;
use crate::token::TokenId;

/// The scalar specification.
#[derive(Debug, Default)]
pub struct ReferenceDevice;

/// f32 rows `[n_rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    values: Vec<f32>,
    width: usize,
}

impl Rows {
    /// Takes rows; the number of values must be a multiple of `width`.
    pub fn new(values: Vec<f32>, width: usize) -> Self {
        assert_eq!(values.len() % width, 0, "rows must be whole");
        Self { values, width }
    }

    fn set_rows(&mut self, n_rows: usize) {
        self.values.resize(n_rows * self.width, 0.0);
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.width)
    }

    fn rows_mut(&mut self) -> std::slice::ChunksExactMut<'_, f32> {
        self.values.chunks_exact_mut(self.width)
    }

    fn n_rows(&self) -> usize {
        self.values.len() / self.width
    }

    #[cfg(test)]
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// Activations as a linear layer reads them, one entry a row.
#[derive(Debug)]
pub struct ReferenceActivations {
    policy: ActivationPolicy,
    rows: Vec<ActivationRow>,
}

#[cfg(test)]
impl ReferenceActivations {
    /// Quantises again with the wrong rounding, for the planted bug of that name.
    pub(crate) fn round_half_away(&mut self, x: &Rows) {
        for (row, x) in self.rows.iter_mut().zip(x.rows()) {
            if let ActivationRow::Int8 { quantized, scale } = row {
                quantized.iter_mut().zip(x).for_each(|(q, x)| *q = (x * scale.inverse).round().clamp(-127.0, 127.0) as i8);
            }
        }
    }

    /// Gives every group the scale of the first, for the planted bug of that name.
    pub(crate) fn repeat_first_scale(&mut self) {
        for row in &mut self.rows {
            if let ActivationRow::Int8Groups { scales, .. } = row {
                let first = scales[0];
                scales.fill(first);
            }
        }
    }
}

#[derive(Debug)]
enum ActivationRow {
    Int8 {
        quantized: Vec<i8>,
        scale: ActivationScale,
    },
    /// A scale for each `ACTIVATION_GROUP` columns.
    Int8Groups {
        quantized: Vec<i8>,
        scales: Vec<f32>,
    },
    F32(Vec<f32>),
}

/// Keys and values, `[n_layers, n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim]` each.
#[derive(Debug)]
pub struct ReferenceKvCache {
    layout: KvLayout,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl ReferenceKvCache {
    /// Where one head's rows of a block begin.
    fn block_start(&self, layer: usize, block: BlockId, kv_head: usize) -> usize {
        let layout = self.layout;
        ((layer * layout.n_blocks + block.0 as usize) * layout.n_kv_heads + kv_head) * BLOCK_TOKENS * layout.head_dim
    }
}

impl ReferenceDevice {
    /// One row of x · Wᵀ, `[n]`.
    fn product(row: &ActivationRow, weights: &TernaryMatrix) -> Vec<f32> {
        match row {
            ActivationRow::Int8 { quantized, scale } => int8_product(quantized, scale.inverse, weights),
            ActivationRow::Int8Groups { quantized, scales } => int8_groups_product(quantized, scales, weights),
            ActivationRow::F32(x) => (0..weights.n_rows()).map(|n| f32_product(x, weights, n)).collect(),
        }
    }
}

/// Keeps of a key or value of one head what a cache of this type would.
fn store(kv_type: KvType, numbers: &[f32], kept: &mut [f32]) {
    match kv_type {
        KvType::F32 => kept.copy_from_slice(numbers),
        KvType::F16 => kept.iter_mut().zip(numbers).for_each(|(kept, &number)| *kept = numerics::round_to_f16(number).to_f32()),
        KvType::Int8 => {
            let scale = numerics::kv_scale(numbers);
            let rounded = |number| f32::from(quantise::quantise_one(number, scale.inverse)) * scale.real;
            kept.iter_mut().zip(numbers).for_each(|(kept, &number)| *kept = rounded(number));
        }
    }
}

fn int8_product(quantized: &[i8], inverse_scale: f32, weights: &TernaryMatrix) -> Vec<f32> {
    let group_size = weights.group_size();
    let mut accumulators = vec![vec![0i32; weights.n_rows()]; weights.n_cols() / group_size];
    for (group, sums) in accumulators.iter_mut().enumerate() {
        matmul::dot_rows(quantized, weights, group * group_size..(group + 1) * group_size, sums);
    }
    (0..weights.n_rows())
        .map(|n| match &accumulators[..] {
            [sums] => numerics::dequantise(sums[n], quantise::weight_inverse_scale(weights.scale_at(n, 0)), inverse_scale),
            groups => {
                let groups = groups.iter().enumerate().map(|(group, sums)| (sums[n], weights.scale_at(n, group * group_size)));
                numerics::dequantise_groups(groups, inverse_scale)
            }
        })
        .collect()
}

fn int8_groups_product(quantized: &[i8], activation_scales: &[f32], weights: &TernaryMatrix) -> Vec<f32> {
    let segments: Vec<_> = quantise::segments(weights.n_cols(), weights.group_size()).collect();
    let mut accumulators = vec![vec![0i32; weights.n_rows()]; segments.len()];
    for (segment, sums) in segments.iter().zip(&mut accumulators) {
        matmul::dot_rows(quantized, weights, segment.clone(), sums);
    }
    (0..weights.n_rows())
        .map(|n| {
            let sums = segments.iter().zip(&accumulators);
            numerics::dequantise_segments(
                sums.map(|(segment, sums)| {
                    (sums[n], weights.scale_at(n, segment.start), activation_scales[segment.start / ACTIVATION_GROUP])
                }),
            )
        })
        .collect()
}

/// Σ over groups of Σ x·trit × scale, for row n.
fn f32_product(x: &[f32], weights: &TernaryMatrix, n: usize) -> f32 {
    let mut trits = vec![0i8; weights.n_cols()];
    weights.unpack_row(n, &mut trits);
    let trits: Vec<f32> = trits.into_iter().map(f32::from).collect();
    let group_size = weights.group_size();
    let mut y = 0.0f32;
    for (group, (x, trits)) in x.chunks(group_size).zip(trits.chunks(group_size)).enumerate() {
        y += numerics::dot_trits(x, trits) * weights.scale_at(n, group * group_size);
    }
    y
}

impl Device for ReferenceDevice {
    type Vector = Vec<f32>;
    type Linear = TernaryMatrix;
    type Table = Tensor;
    type Hidden = Rows;
    type Activations = ReferenceActivations;
    type KvCache = ReferenceKvCache;

    fn describe(&self) -> DeviceDescription {
        DeviceDescription { name: "reference", isa: "scalar", n_threads: 1 }
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vec<f32>, DeviceError> {
        Ok(values.to_vec())
    }

    fn linear(&mut self, weights: &TernaryMatrix, _policy: ActivationPolicy) -> Result<TernaryMatrix, DeviceError> {
        Ok(weights.clone())
    }

    fn table(&mut self, rows: StoredTable, _table_use: TableUse) -> Result<Tensor, DeviceError> {
        rows.into_tensor().map_err(|error| DeviceError::unreadable(&error))
    }

    fn hidden(&mut self, _n_rows_max: usize, width: usize) -> Result<Rows, DeviceError> {
        Ok(Rows { values: Vec::new(), width })
    }

    fn activations(
        &mut self,
        _n_rows_max: usize,
        _width_max: usize,
        policy: ActivationPolicy,
    ) -> Result<ReferenceActivations, DeviceError> {
        Ok(ReferenceActivations { policy, rows: Vec::new() })
    }

    fn kv_cache(&mut self, layout: KvLayout) -> Result<ReferenceKvCache, DeviceError> {
        let n = layout.n_layers * layout.n_blocks * layout.n_kv_heads * BLOCK_TOKENS * layout.head_dim;
        Ok(ReferenceKvCache { layout, keys: vec![0.0; n], values: vec![0.0; n] })
    }

    fn embed(&mut self, table: &Tensor, token_ids: &[TokenId], x: &mut Rows) -> Result<(), DeviceError> {
        x.set_rows(token_ids.len());
        for (row, token_id) in x.rows_mut().zip(token_ids) {
            match table {
                Tensor::Dense(dense) => dense.read_f32(token_id.index() * row.len()..(token_id.index() + 1) * row.len(), row),
                Tensor::Ternary(matrix) => matrix.dequantise_row(token_id.index(), row),
            }
        }
        Ok(())
    }

    fn norm_quantize(&mut self, x: &Rows, norms: &[Norm<Vec<f32>>], out: &mut ReferenceActivations) -> Result<(), DeviceError> {
        out.rows.clear();
        for row in x.rows() {
            let mut row = row.to_vec();
            norms.iter().for_each(|norm| numerics::rms_norm(&mut row, &norm.weight, norm.epsilon));
            out.rows.push(match out.policy {
                ActivationPolicy::Int8PerToken => {
                    let mut quantized = vec![0; row.len()];
                    let scale = quantise::absmax(&row, &mut quantized);
                    ActivationRow::Int8 { quantized, scale }
                }
                ActivationPolicy::Int8PerGroup => {
                    let (mut quantized, mut scales) = (vec![0; row.len()], vec![0.0; row.len().div_ceil(ACTIVATION_GROUP)]);
                    quantise::absmax_groups(&row, &mut quantized, &mut scales);
                    ActivationRow::Int8Groups { quantized, scales }
                }
                ActivationPolicy::Unquantised => ActivationRow::F32(row),
            });
        }
        Ok(())
    }

    fn bit_linear(
        &mut self,
        x: &ReferenceActivations,
        weights: &TernaryMatrix,
        out: &mut Rows,
        first_column: usize,
    ) -> Result<(), DeviceError> {
        out.set_rows(x.rows.len());
        for (out, row) in out.rows_mut().zip(&x.rows) {
            out[first_column..first_column + weights.n_rows()].copy_from_slice(&Self::product(row, weights));
        }
        Ok(())
    }

    fn bit_linear_add(&mut self, x: &ReferenceActivations, weights: &TernaryMatrix, residual: &mut Rows) -> Result<(), DeviceError> {
        for (residual, row) in residual.rows_mut().zip(&x.rows) {
            for (sum, y) in residual.iter_mut().zip(Self::product(row, weights)) {
                *sum += y;
            }
        }
        Ok(())
    }

    fn rope_append(
        &mut self,
        qkv: &mut Rows,
        heads: &Heads<'_, Vec<f32>>,
        step: &Step,
        (cache, layer): (&mut ReferenceKvCache, usize),
    ) -> Result<(), DeviceError> {
        let (dim, n_rotated) = (heads.head_dim, heads.n_heads + heads.n_kv_heads);
        for (token, row) in qkv.rows_mut().enumerate() {
            let (cos, sin) = step.rope.token(token);
            let (queries, keys) = row[..n_rotated * dim].split_at_mut(heads.n_heads * dim);
            let (q_norm, k_norm) = heads.qk_norms.unzip();
            for (rows, norm) in [(queries, q_norm), (keys, k_norm)] {
                rows.chunks_exact_mut(dim)
                    .for_each(|head| norm_and_rotate(head, norm.map(|norm| (norm.as_slice(), heads.epsilon)), (cos, sin)));
            }
            let (block, slot) = step.slot(token);
            for kv_head in 0..heads.n_kv_heads {
                let start = cache.block_start(layer, block, kv_head) + slot * dim;
                let (key, value) = ((heads.n_heads + kv_head) * dim, (n_rotated + kv_head) * dim);
                for (numbers, column) in [(&mut cache.keys, key), (&mut cache.values, value)] {
                    store(cache.layout.kv_type, &row[column..column + dim], &mut numbers[start..start + dim]);
                }
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &Rows,
        heads: &Heads<'_, Vec<f32>>,
        step: &Step,
        (cache, layer): (&ReferenceKvCache, usize),
        out: &mut Rows,
    ) -> Result<(), DeviceError> {
        out.set_rows(qkv.n_rows());
        let dim = heads.head_dim;
        for (token, (row, out)) in qkv.rows().zip(out.rows_mut()).enumerate() {
            let n_positions = step.positions[token] + 1;
            let blocks = &step.block_tables[step.sequences[token]];
            for (head, (query, out)) in row.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
                let kv_head = head / (heads.n_heads / heads.n_kv_heads);
                attend(query, n_positions, cache, |block| cache.block_start(layer, blocks[block], kv_head), out);
            }
        }
        Ok(())
    }

    fn gate(&mut self, gate_up: &Rows, activation: Activation, out: &mut Rows) -> Result<(), DeviceError> {
        out.set_rows(gate_up.n_rows());
        for (row, out) in gate_up.rows().zip(out.rows_mut()) {
            let (gate, up) = row.split_at(out.len());
            for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = match activation {
                    Activation::Silu => numerics::silu(gate),
                    Activation::Relu2 => numerics::relu2(gate),
                } * up;
            }
        }
        Ok(())
    }

    fn linear_bytes(&self, weights: &TernaryMatrix) -> u64 {
        weights.size_bytes() as u64
    }

    fn head_bytes(&self, head: &Tensor) -> u64 {
        head.size_bytes() as u64
    }

    fn final_norm(&mut self, x: &Rows, norm: &Norm<Vec<f32>>, rows: &[usize], out: &mut Rows) -> Result<(), DeviceError> {
        out.set_rows(rows.len());
        for (out, &row) in out.rows_mut().zip(rows) {
            out.copy_from_slice(&x.values[row * x.width..(row + 1) * x.width]);
            numerics::rms_norm(out, &norm.weight, norm.epsilon);
        }
        Ok(())
    }

    fn logits(&mut self, x: &Rows, head: &mut Tensor, _wanted: &[Option<BestLogits>], out: &mut Rows) -> Result<(), DeviceError> {
        out.set_rows(x.n_rows());
        for (x, out) in x.rows().zip(out.rows_mut()) {
            let mut row = vec![0.0; x.len()];
            for (token, logit) in out.iter_mut().enumerate() {
                *logit = match head {
                    Tensor::Dense(dense) => {
                        dense.read_f32(token * x.len()..(token + 1) * x.len(), &mut row);
                        numerics::dot(x, &row)
                    }
                    Tensor::Ternary(matrix) => f32_product(x, matrix, token),
                };
            }
        }
        Ok(())
    }

    fn argmax(&mut self, logits: &Rows, out: &mut Vec<TokenId>) -> Result<(), DeviceError> {
        out.clear();
        out.extend(logits.rows().map(numerics::argmax).map(|index| TokenId(index as u32)));
        Ok(())
    }

    fn finish<'a>(&mut self, x: &'a Rows) -> Result<&'a [f32], DeviceError> {
        Ok(&x.values)
    }
}

/// One query or key head: its norm if there is one, then its rotation.
fn norm_and_rotate(head: &mut [f32], norm: Option<(&[f32], f32)>, (cos, sin): (&[f32], &[f32])) {
    if let Some((weight, epsilon)) = norm {
        numerics::rms_norm(head, weight, epsilon);
    }
    numerics::rotate_half(head, cos, sin);
}

/// One query head over positions 0..n_positions; `block_start` finds the rows of the sequence's i-th block.
fn attend(query: &[f32], n_positions: usize, cache: &ReferenceKvCache, block_start: impl Fn(usize) -> usize, out: &mut [f32]) {
    let dim = query.len();
    let scale = 1.0 / (dim as f32).sqrt();
    let mut scores = vec![0.0f32; n_positions];
    for (block, scores) in scores.chunks_mut(BLOCK_TOKENS).enumerate() {
        let start = block_start(block);
        numerics::score_block(query, &cache.keys[start..start + scores.len() * dim], scale, scores);
    }
    let inverse_sum = numerics::softmax_numerators(&mut scores);
    out.fill(0.0);
    for (block, weights) in scores.chunks(BLOCK_TOKENS).enumerate() {
        let start = block_start(block);
        numerics::accumulate_block(weights, &cache.values[start..start + weights.len() * dim], out);
    }
    out.iter_mut().for_each(|value| *value *= inverse_sum);
}
