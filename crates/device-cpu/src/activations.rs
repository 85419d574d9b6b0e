//! `CpuActivations`: what a linear layer reads — int8 rows with their scales and sums, a scale a row or a block, or f32 rows — and the operation that
//! makes them, `norm_quantize`.
//!
//! Rows are padded with zeros to whole blocks, so that kernels have no tails.

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_model::device::{DeviceError, Norm};

use crate::arch::{Memory, OutOfMemory};
use crate::device::CpuVector;
use crate::hidden::CpuHidden;
use crate::kernels::{F32Rows, GroupRowMut, GroupRows, Int8RowMut, Int8Rows, Kernels, RowScale, Scratch};
use crate::pool::{Parts, Pool};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS};

/// Activations `[m, k]`, at most as many and as wide as were asked for.
pub struct CpuActivations {
    rows: Rows,
    n_rows_max: usize,
    width_max: usize,
    n_rows: usize,
    width: usize,
}

enum Rows {
    /// int8 with one scale a row.
    Int8 { quantized: Memory<i8>, quarter_sums: Memory<i32>, scales: Vec<RowScale> },
    /// int8 with one scale a block.
    Groups { quantized: Memory<i8>, scales: Vec<RowScale> },
    /// f32.
    F32(Memory<f32>),
}

impl CpuActivations {
    pub(crate) fn new(n_rows_max: usize, width_max: usize, policy: ActivationPolicy) -> Result<Self, DeviceError> {
        let n_padded = width_max.checked_next_multiple_of(BLOCK_COLUMNS).and_then(|width| width.checked_mul(n_rows_max));
        let size_bytes = n_padded.unwrap_or(usize::MAX);
        let refused = DeviceError::OutOfMemory { what: "activations", size_bytes };
        let n_padded = n_padded.ok_or_else(|| refused.clone())?;
        let rows = Rows::new(n_padded, n_rows_max, policy).map_err(|_| refused)?;
        Ok(Self { rows, n_rows_max, width_max, n_rows: 0, width: 0 })
    }

    /// Rows in use.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Width in use, without padding.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// int8 rows or f32 rows, by the policy.
    pub(crate) fn view(&self) -> ActivationRows<'_> {
        let stride = self.width.next_multiple_of(BLOCK_COLUMNS);
        match &self.rows {
            Rows::Int8 { quantized, quarter_sums, scales } => ActivationRows::Int8(Int8Rows {
                quantized: &quantized[..self.n_rows * stride],
                stride,
                quarter_sums: &quarter_sums[..self.n_rows * stride / QUARTER_COLUMNS],
                scales: &scales[..self.n_rows],
            }),
            Rows::Groups { quantized, scales } => ActivationRows::Groups(GroupRows {
                quantized: &quantized[..self.n_rows * stride],
                stride,
                scales: &scales[..self.n_rows * stride / BLOCK_COLUMNS],
            }),
            Rows::F32(values) => ActivationRows::F32(F32Rows { values: &values[..self.n_rows * stride], stride }),
        }
    }

    /// Norms and quantises the rows of `x` into this.
    pub(crate) fn fill(&mut self, x: &CpuHidden, norms: &[Norm<CpuVector>], workers: (&mut Pool, &mut [Scratch]), kernels: &dyn Kernels) {
        let (n_rows, width) = (x.n_rows(), x.width());
        let (rows_max, width_max) = (self.n_rows_max, self.width_max);
        assert!(n_rows <= rows_max && width <= width_max, "{n_rows} x {width} activations in room for {rows_max} x {width_max}");
        (self.n_rows, self.width) = (n_rows, width);
        let stride = width.next_multiple_of(BLOCK_COLUMNS);
        let (pool, scratch) = workers;
        let input = Input { x, norms, kernels };
        match &mut self.rows {
            Rows::Int8 { quantized, quarter_sums, scales } => {
                let mut rest = (&mut quantized[..], &mut quarter_sums[..], &mut scales[..]);
                let parts = Parts::new(n_rows, pool.n_threads(), |range| {
                    let quantized = rest.0.split_off_mut(..range.len() * stride).expect("the capacity was asserted");
                    let sums = rest.1.split_off_mut(..range.len() * stride / QUARTER_COLUMNS).expect("the capacity was asserted");
                    let scales = rest.2.split_off_mut(..range.len()).expect("the capacity was asserted");
                    (range, quantized, sums, scales)
                });
                pool.run_parts(scratch, parts, |scratch, (range, quantized, sums, scales)| {
                    let out = quantized.chunks_exact_mut(stride).zip(sums.chunks_exact_mut(stride / QUARTER_COLUMNS)).zip(scales);
                    for (row, ((quantized, quarter_sums), scale)) in range.zip(out) {
                        kernels.quantise(input.normed(row, scratch), Int8RowMut { quantized, quarter_sums, scale });
                    }
                });
            }
            Rows::Groups { quantized, scales } => {
                let mut rest = (&mut quantized[..], &mut scales[..]);
                let parts = Parts::new(n_rows, pool.n_threads(), |range| {
                    let quantized = rest.0.split_off_mut(..range.len() * stride).expect("the capacity was asserted");
                    let scales = rest.1.split_off_mut(..range.len() * stride / BLOCK_COLUMNS).expect("the capacity was asserted");
                    (range, quantized, scales)
                });
                pool.run_parts(scratch, parts, |scratch, (range, quantized, scales)| {
                    let out = quantized.chunks_exact_mut(stride).zip(scales.chunks_exact_mut(stride / BLOCK_COLUMNS));
                    for (row, (quantized, scales)) in range.zip(out) {
                        kernels.quantise_groups(input.normed(row, scratch), GroupRowMut { quantized, scales });
                    }
                });
            }
            Rows::F32(values) => {
                let mut rest = &mut values[..];
                let parts = Parts::new(n_rows, pool.n_threads(), |range| {
                    let part = rest.split_off_mut(..range.len() * stride).expect("the capacity was asserted");
                    (range, part)
                });
                pool.run_parts(scratch, parts, |_, (range, part)| {
                    for (row, out) in range.zip(part.chunks_exact_mut(stride)) {
                        let (out, padding) = out.split_at_mut(width);
                        input.norm_into(row, out);
                        padding.fill(0.0);
                    }
                });
            }
        }
    }
}

/// Rows to be normed.
struct Input<'a> {
    x: &'a CpuHidden,
    norms: &'a [Norm<CpuVector>],
    kernels: &'a dyn Kernels,
}

impl<'a> Input<'a> {
    fn row(&self, row: usize) -> &'a [f32] {
        &self.x.values()[row * self.x.width()..(row + 1) * self.x.width()]
    }

    fn norm_into(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(self.row(row));
        self.norms.iter().for_each(|norm| self.kernels.norm(out, norm.weight.values(), norm.epsilon));
    }

    /// The row after its norms: itself where there are none.
    fn normed<'s>(&self, row: usize, scratch: &'s mut Scratch) -> &'s [f32]
    where
        'a: 's,
    {
        if self.norms.is_empty() {
            return self.row(row);
        }
        let normed = &mut scratch.row[..self.x.width()];
        self.norm_into(row, normed);
        normed
    }
}

/// Activations as a kernel reads them.
#[derive(Clone, Copy)]
pub(crate) enum ActivationRows<'a> {
    Int8(Int8Rows<'a>),
    Groups(GroupRows<'a>),
    F32(F32Rows<'a>),
}

impl Rows {
    fn new(n_padded: usize, n_rows: usize, policy: ActivationPolicy) -> Result<Self, OutOfMemory> {
        Ok(match policy {
            ActivationPolicy::Int8PerToken => Self::Int8 {
                quantized: Memory::zeroed(n_padded)?,
                quarter_sums: Memory::zeroed(n_padded / QUARTER_COLUMNS)?,
                scales: vec![RowScale::default(); n_rows],
            },
            ActivationPolicy::Int8PerGroup => {
                Self::Groups { quantized: Memory::zeroed(n_padded)?, scales: vec![RowScale::default(); n_padded / BLOCK_COLUMNS] }
            }
            ActivationPolicy::Unquantised => Self::F32(Memory::zeroed(n_padded)?),
        })
    }
}
