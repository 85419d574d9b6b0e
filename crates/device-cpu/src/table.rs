//! `CpuTable`: an embedding or head `[n_vocab, k]`, dense in its stored precision (two bytes stay two bytes) or ternary, with
//! `embed` and `logits`.

use bitnet_checkpoint::{DenseTensor, DenseType, Tensor};
use bitnet_model::TokenId;
use bitnet_model::batch::BestLogits;
use bitnet_model::device::{DeviceError, TableUse};
use bitnet_model::numerics::LANES;
use half::{bf16, f16};

use crate::arch::{Memory, OutOfMemory};
use crate::hidden::CpuHidden;
use crate::kernels::{F32Rows, Kernels, Scratch};
use crate::pool::{ColumnTarget, Parts, Pool};
use crate::screen::{Screen, Screening};
use crate::tile::{BLOCK_COLUMNS, TILE_ROWS, Tiles};

/// A head is screened for at most one of this many of its rows.
const WORTH_SCREENING: usize = 16;

/// An embedding or head on the CPU.
pub struct CpuTable {
    rows: TableRows,
    /// What finds the best logits of a dense head without reading all of it.
    screen: Option<Screen>,
}

enum TableRows {
    Dense(DenseRows),
    Ternary(Tiles),
}

/// Dense rows `[n, k]`, little-endian, in stored precision.
pub(crate) struct DenseRows {
    pub(crate) bytes: Memory<u8>,
    pub(crate) dtype: DenseType,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl DenseRows {
    /// Bytes of one row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.k * self.dtype.size_bytes()
    }

    /// One row as stored.
    #[inline]
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.row_bytes();
        &self.bytes[row * row_bytes..(row + 1) * row_bytes]
    }

    /// One row as f32 (exact), into `values[k]`.
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, values: &mut [f32]) {
        assert_eq!(values.len(), self.k, "a buffer of one row");
        let bytes = self.row(row);
        match self.dtype {
            DenseType::F32 => convert(bytes, values, f32::from_le_bytes),
            DenseType::F16 => convert(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
            DenseType::Bf16 => convert(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }
}

#[inline(always)]
fn convert<const SIZE: usize>(bytes: &[u8], values: &mut [f32], number: impl Fn([u8; SIZE]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
        *value = number(*bytes);
    }
}

impl CpuTable {
    pub(crate) fn new(
        (rows, table_use): (&Tensor, TableUse),
        (pool, scratch): (&mut Pool, &mut [Scratch]),
        kernels: &dyn Kernels,
    ) -> Result<Self, DeviceError> {
        let refused = |memory: OutOfMemory| DeviceError::OutOfMemory { what: "table", size_bytes: memory.size_bytes };
        let rows = match rows {
            Tensor::Ternary(matrix) => TableRows::Ternary(Tiles::new(matrix, pool, scratch).map_err(refused)?),
            Tensor::Dense(dense) => TableRows::Dense(dense_rows(dense, refused)?),
        };
        let screen = match (&rows, table_use) {
            (TableRows::Dense(dense), TableUse::Head) => Screen::new(dense, (pool, scratch), kernels).map_err(refused)?,
            _ => None,
        };
        Ok(Self { rows, screen })
    }

    /// Rows and columns.
    fn shape(&self) -> (usize, usize) {
        match &self.rows {
            TableRows::Dense(dense) => (dense.n, dense.k),
            TableRows::Ternary(tiles) => (tiles.n(), tiles.k()),
        }
    }

    /// Bytes that finding the best logits reads at least.
    pub(crate) fn screened_bytes(&self) -> u64 {
        match (&self.rows, &self.screen) {
            (_, Some(screen)) => screen.read_bytes(),
            (TableRows::Dense(dense), None) => dense.bytes.len() as u64,
            (TableRows::Ternary(tiles), None) => tiles.size_bytes(),
        }
    }

    /// `x[i] = table[token_ids[i]]`.
    pub(crate) fn embed(&self, token_ids: &[TokenId], x: &mut CpuHidden) {
        let (n, k) = self.shape();
        assert_eq!(x.width(), k, "hidden rows are as wide as the table");
        x.set_rows(token_ids.len());
        for (values, token_id) in x.values_mut().chunks_exact_mut(k).zip(token_ids) {
            let row = token_id.index();
            assert!(row < n, "token {token_id} of {n}");
            match &self.rows {
                TableRows::Dense(dense) => dense.read(row, values),
                TableRows::Ternary(tiles) => {
                    for (column, value) in values.iter_mut().enumerate() {
                        *value = f32::from(tiles.trit(row, column)) * tiles.scale(row, column);
                    }
                }
            }
        }
    }

    /// `out[r, v] = x[r] · table[v]`, or −∞ where that is proved not to be wanted. `padded` is a buffer that is kept between calls.
    pub(crate) fn logits(
        &mut self,
        (x, wanted): (&CpuHidden, &[Option<BestLogits>]),
        (out, padded): (&mut CpuHidden, &mut Vec<f32>),
        (pool, scratch): (&mut Pool, &mut [Scratch]),
        kernels: &dyn Kernels,
    ) {
        let (n, k) = self.shape();
        assert_eq!((x.width(), out.width()), (k, n), "hidden rows and logits fit the head");
        out.set_rows(x.n_rows());
        let rows = match &self.rows {
            TableRows::Ternary(_) => pad_rows(x, BLOCK_COLUMNS, padded, (pool, scratch)),
            TableRows::Dense(_) => pad_rows(x, LANES, padded, (pool, scratch)),
        };
        if let (TableRows::Dense(head), Some(screen)) = (&self.rows, &mut self.screen)
            && wanted.iter().all(|wanted| wanted.is_some_and(|best| best.n <= n / WORTH_SCREENING))
        {
            let screening = Screening { head, x: rows, kernels };
            if screening.run(screen, (x, wanted), out, (pool, scratch)) {
                return;
            }
        }
        let target = ColumnTarget { values: out.values_mut(), width: n, columns: 0..n, granule: TILE_ROWS };
        match &self.rows {
            TableRows::Dense(dense) => pool.run_columns(scratch, target, |scratch, columns| {
                kernels.logits(rows, dense, columns, scratch);
            }),
            TableRows::Ternary(tiles) => pool.run_columns(scratch, target, |scratch, columns| {
                kernels.linear_f32(rows, tiles, crate::kernels::Store::Write, columns, scratch);
            }),
        }
    }
}

/// The rows of `x` with zeros up to a multiple of `granule` columns: `x` itself where it has that width.
fn pad_rows<'a>(x: &'a CpuHidden, granule: usize, padded: &'a mut Vec<f32>, (pool, scratch): (&mut Pool, &mut [Scratch])) -> F32Rows<'a> {
    let (width, stride) = (x.width(), x.width().next_multiple_of(granule));
    if width == stride {
        return F32Rows { values: x.values(), stride };
    }
    padded.resize(x.n_rows() * stride, 0.0);
    let mut rest = &mut padded[..];
    let parts = Parts::new(x.n_rows(), pool.n_threads(), |range| {
        let part = rest.split_off_mut(..range.len() * stride).expect("sized above");
        (range, part)
    });
    pool.run_parts(scratch, parts, |_, (range, part)| {
        for (row, padded) in range.zip(part.chunks_exact_mut(stride)) {
            let (values, padding) = padded.split_at_mut(width);
            values.copy_from_slice(&x.values()[row * width..(row + 1) * width]);
            padding.fill(0.0);
        }
    });
    F32Rows { values: padded, stride }
}

fn dense_rows(dense: &DenseTensor, refused: impl Fn(OutOfMemory) -> DeviceError) -> Result<DenseRows, DeviceError> {
    let &[n, k] = dense.shape() else {
        let reason = format!("expected 2 dimensions, got {:?}", dense.shape());
        return Err(DeviceError::Unsupported { what: "a table", reason });
    };
    if k == 0 || n == 0 {
        return Err(DeviceError::Unsupported { what: "a table", reason: format!("expected rows and columns, got {n} x {k}") });
    }
    let mut bytes = Memory::zeroed(dense.bytes().len()).map_err(refused)?;
    bytes.copy_from_slice(dense.bytes());
    Ok(DenseRows { bytes, dtype: dense.dtype(), n, k })
}
