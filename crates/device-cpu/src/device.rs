//! `CpuDevice`: the operations of `bitnet_model::device::Device` on this machine's cores.
//!
//! This file only checks handles and hands work to the file of each operation; kernels are under `arch/`.

use bitnet_checkpoint::StoredTable;
use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_model::TokenId;
use bitnet_model::batch::{BestLogits, Step};
use bitnet_model::device::{Device, DeviceDescription, DeviceError, Heads, KvLayout, Norm, TableUse};
use bitnet_ternary::TernaryMatrix;

use crate::activations::CpuActivations;
use crate::ahead::Followers;
use crate::attention::{AttentionStep, CpuKvCache, attention, rope_append};
use crate::detect::CpuOptions;
use crate::error::CpuError;
use crate::hidden::CpuHidden;
use crate::kernels::{Kernels, Scratch, Store};
use crate::linear::{CpuLinear, bit_linear};
use crate::pool::{Parts, Pool};
use crate::table::CpuTable;

/// The cores of this machine as a device.
pub struct CpuDevice {
    kernels: Box<dyn Kernels>,
    pool: Pool,
    /// One for each thread.
    scratch: Vec<Scratch>,
    /// Rows that `logits` pads, kept between steps.
    padded: Vec<f32>,
    /// Which weights are read after which.
    followers: Followers,
    /// Dense tables up to this size are kept in memory.
    resident_table_bytes_max: usize,
}

/// f32 vector `[n]`.
pub struct CpuVector(Vec<f32>);

impl CpuVector {
    /// The values, `[n]`.
    pub(crate) fn values(&self) -> &[f32] {
        &self.0
    }
}

impl CpuDevice {
    /// Detects the instruction set and starts the threads.
    pub fn new(options: CpuOptions) -> Result<Self, CpuError> {
        let kernels = options.kernels()?;
        let n_threads = options.threads()?;
        let scratch: Result<Vec<Scratch>, _> = (0..n_threads).map(|_| Scratch::new()).collect();
        let scratch = scratch.map_err(|memory| CpuError::OutOfMemory { what: "scratch buffers", size_bytes: memory.size_bytes })?;
        let resident_table_bytes_max = options.resident_table_bytes_max;
        Ok(Self {
            kernels,
            pool: Pool::new(n_threads)?,
            scratch,
            padded: Vec::new(),
            followers: Followers::default(),
            resident_table_bytes_max,
        })
    }

    /// Kernels, threads and their buffers, for measuring.
    pub(crate) fn workers(&mut self) -> (&dyn Kernels, &mut Pool, &mut [Scratch]) {
        (&*self.kernels, &mut self.pool, &mut self.scratch)
    }

    /// Makes every thread's row buffer at least this wide.
    fn widen_scratch(&mut self, width: usize) {
        for scratch in self.scratch.iter_mut().filter(|scratch| scratch.row.len() < width) {
            scratch.row.resize(width, 0.0);
        }
    }
}

impl Device for CpuDevice {
    type Vector = CpuVector;
    type Linear = CpuLinear;
    type Table = CpuTable;
    type Hidden = CpuHidden;
    type Activations = CpuActivations;
    type KvCache = CpuKvCache;

    fn describe(&self) -> DeviceDescription {
        DeviceDescription { name: "cpu", isa: self.kernels.isa(), n_threads: self.pool.n_threads() }
    }

    fn vector(&mut self, values: &[f32]) -> Result<CpuVector, DeviceError> {
        Ok(CpuVector(values.to_vec()))
    }

    fn linear(&mut self, weights: &TernaryMatrix, policy: ActivationPolicy) -> Result<CpuLinear, DeviceError> {
        self.followers.expect_another();
        let linear = CpuLinear::new(weights, policy, (&mut self.pool, &mut self.scratch));
        linear.map_err(|memory| DeviceError::OutOfMemory { what: "linear layer", size_bytes: memory.size_bytes })
    }

    fn table(&mut self, rows: StoredTable, table_use: TableUse) -> Result<CpuTable, DeviceError> {
        CpuTable::new((rows, table_use), self.resident_table_bytes_max, (&mut self.pool, &mut self.scratch), &*self.kernels)
    }

    fn hidden(&mut self, n_rows_max: usize, width: usize) -> Result<CpuHidden, DeviceError> {
        CpuHidden::new(n_rows_max, width)
    }

    fn activations(&mut self, n_rows_max: usize, width_max: usize, policy: ActivationPolicy) -> Result<CpuActivations, DeviceError> {
        self.widen_scratch(width_max);
        CpuActivations::new(n_rows_max, width_max, policy)
    }

    fn kv_cache(&mut self, layout: KvLayout) -> Result<CpuKvCache, DeviceError> {
        CpuKvCache::new(layout)
    }

    fn commit(&mut self, cache: &mut CpuKvCache) -> Result<(), DeviceError> {
        cache.commit()
    }

    fn embed(&mut self, table: &CpuTable, token_ids: &[TokenId], x: &mut CpuHidden) -> Result<(), DeviceError> {
        table.embed(token_ids, x, &mut self.scratch[0].rows)
    }

    fn norm_quantize(&mut self, x: &CpuHidden, norms: &[Norm<CpuVector>], out: &mut CpuActivations) -> Result<(), DeviceError> {
        out.fill(x, norms, (&mut self.pool, &mut self.scratch), &*self.kernels);
        Ok(())
    }

    fn bit_linear(&mut self, x: &CpuActivations, weights: &CpuLinear, out: &mut CpuHidden, first_column: usize) -> Result<(), DeviceError> {
        out.set_rows(x.n_rows());
        bit_linear(x, weights, (out, first_column, Store::Write), (&mut self.pool, &mut self.scratch, &mut self.followers), &*self.kernels);
        Ok(())
    }

    fn bit_linear_add(&mut self, x: &CpuActivations, weights: &CpuLinear, residual: &mut CpuHidden) -> Result<(), DeviceError> {
        assert_eq!(residual.width(), weights.n(), "the residual is as wide as the product");
        bit_linear(x, weights, (residual, 0, Store::Add), (&mut self.pool, &mut self.scratch, &mut self.followers), &*self.kernels);
        Ok(())
    }

    fn rope_append(
        &mut self,
        qkv: &mut CpuHidden,
        heads: &Heads<'_, CpuVector>,
        step: &Step,
        (cache, layer): (&mut CpuKvCache, usize),
    ) -> Result<(), DeviceError> {
        rope_append(qkv, heads, step, (cache, layer, &*self.kernels), (&mut self.pool, &mut self.scratch));
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &CpuHidden,
        heads: &Heads<'_, CpuVector>,
        step: &Step,
        (cache, layer): (&CpuKvCache, usize),
        out: &mut CpuHidden,
    ) -> Result<(), DeviceError> {
        let step = AttentionStep { qkv, n_heads: heads.n_heads, step, cache, layer };
        attention(&step, out, (&mut self.pool, &mut self.scratch), &*self.kernels);
        Ok(())
    }

    fn gate(&mut self, gate_up: &CpuHidden, activation: Activation, out: &mut CpuHidden) -> Result<(), DeviceError> {
        let (width, n_rows) = (out.width(), gate_up.n_rows());
        assert_eq!(gate_up.width(), 2 * width, "gate and up are as wide as the output");
        out.set_rows(n_rows);
        let kernels = &*self.kernels;
        let mut rest = out.values_mut();
        let parts = Parts::new(n_rows, self.pool.n_threads(), |range| {
            let rows = rest.split_off_mut(..range.len() * width).expect("set_rows made n_rows rows");
            (range, rows)
        });
        self.pool.run_parts(&mut self.scratch, parts, |_, (range, rows)| {
            for (row, out) in range.zip(rows.chunks_exact_mut(width)) {
                kernels.gate(&gate_up.values()[row * 2 * width..(row + 1) * 2 * width], activation, out);
            }
        });
        Ok(())
    }

    fn linear_bytes(&self, weights: &CpuLinear) -> u64 {
        weights.size_bytes()
    }

    fn head_bytes(&self, head: &CpuTable) -> u64 {
        head.screened_bytes()
    }

    fn final_norm(&mut self, x: &CpuHidden, norm: &Norm<CpuVector>, rows: &[usize], out: &mut CpuHidden) -> Result<(), DeviceError> {
        let width = x.width();
        assert_eq!(out.width(), width, "normed rows keep their width");
        out.set_rows(rows.len());
        for (out, &row) in out.values_mut().chunks_exact_mut(width).zip(rows) {
            out.copy_from_slice(&x.values()[row * width..(row + 1) * width]);
            self.kernels.norm(out, norm.weight.values(), norm.epsilon);
        }
        Ok(())
    }

    fn logits(
        &mut self,
        x: &CpuHidden,
        head: &mut CpuTable,
        wanted: &[Option<BestLogits>],
        out: &mut CpuHidden,
    ) -> Result<(), DeviceError> {
        head.logits((x, wanted), (out, &mut self.padded), (&mut self.pool, &mut self.scratch), &*self.kernels)
    }

    fn argmax(&mut self, logits: &CpuHidden, out: &mut Vec<TokenId>) -> Result<(), DeviceError> {
        out.clear();
        out.extend(logits.values().chunks_exact(logits.width()).map(|row| TokenId(self.kernels.argmax(row) as u32)));
        Ok(())
    }

    fn finish<'a>(&mut self, x: &'a CpuHidden) -> Result<&'a [f32], DeviceError> {
        Ok(x.values())
    }
}
