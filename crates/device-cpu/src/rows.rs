//! Rows of a dense table as kernels read them. A table that is in memory is one block of rows; any other is read from its source
//! block by block into a buffer of each thread, which stays in the second-level cache, so that it takes no memory of its own.
//!
//! Deliberately no cache of rows: those that are read again and again are in the system's page cache, which can give them up.

use std::ops::Range;
use std::sync::Arc;

use bitnet_checkpoint::{DenseType, RowSource, read_all};
use bitnet_model::device::DeviceError;
use half::{bf16, f16};

use crate::kernels::Scratch;
use crate::limits::ROW_BUFFER_BYTES;
use crate::tile::TILE_ROWS;

/// Neighbouring rows of a dense table, `[_, k]`, little-endian, in stored precision.
#[derive(Clone, Copy)]
pub(crate) struct DenseRows<'a> {
    bytes: &'a [u8],
    /// The table's row that comes first.
    first: usize,
    pub(crate) dtype: DenseType,
    pub(crate) k: usize,
}

impl<'a> DenseRows<'a> {
    /// A row of the table as stored. Panics if it is not among these.
    #[inline]
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        let row_bytes = self.k * self.dtype.size_bytes();
        let start = (row - self.first) * row_bytes;
        &self.bytes[start..start + row_bytes]
    }

    /// A row of the table as f32 (exact), into `values[k]`.
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

/// A dense table `[n, k]`, wherever its rows are.
pub(crate) struct DenseTable {
    source: Arc<dyn RowSource>,
}

impl DenseTable {
    /// Takes a table, reads it if it has at most `resident_bytes_max`, and makes room in `scratch` for what is read later.
    pub(crate) fn new(source: Arc<dyn RowSource>, resident_bytes_max: usize, scratch: &mut [Scratch]) -> Result<Self, DeviceError> {
        let (n, k) = (source.n_rows(), source.n_cols());
        if k == 0 || n == 0 {
            return Err(DeviceError::Unsupported { what: "a table", reason: format!("expected rows and columns, got {n} x {k}") });
        }
        let is_small = n.saturating_mul(source.row_bytes()) <= resident_bytes_max;
        let source = if is_small && source.resident().is_none() {
            Arc::new(read_all(&*source).map_err(|error| DeviceError::unreadable(&error))?)
        } else {
            source
        };
        let table = Self { source };
        if table.source.resident().is_none() {
            let size_bytes = table.block_rows() * table.source.row_bytes();
            scratch.iter_mut().for_each(|scratch| scratch.rows.resize(scratch.rows.len().max(size_bytes), 0));
        }
        Ok(table)
    }

    /// Rows.
    pub(crate) fn n(&self) -> usize {
        self.source.n_rows()
    }

    /// Columns.
    pub(crate) fn k(&self) -> usize {
        self.source.n_cols()
    }

    /// Bytes of all rows.
    pub(crate) fn size_bytes(&self) -> u64 {
        (self.n() * self.source.row_bytes()) as u64
    }

    /// Rows that are read at once: whole tiles, so that the blocks of a thread's rows begin with one.
    fn block_rows(&self) -> usize {
        (ROW_BUFFER_BYTES / self.source.row_bytes()).max(1).next_multiple_of(TILE_ROWS)
    }

    /// `rows` in the blocks in which [`Self::read`] takes them.
    pub(crate) fn blocks(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = if self.source.resident().is_some() { rows.len().max(1) } else { self.block_rows() };
        rows.clone().step_by(step).map(move |first| first..rows.end.min(first + step))
    }

    /// A row as stored, if the table is in memory.
    #[inline]
    pub(crate) fn resident_row(&self, row: usize) -> Option<&[u8]> {
        let row_bytes = self.source.row_bytes();
        self.source.resident().map(|bytes| &bytes[row * row_bytes..][..row_bytes])
    }

    /// A block of rows, in `buffer` unless they are in memory; `buffer` is a thread's [`Scratch::rows`].
    #[inline]
    pub(crate) fn read<'a>(&'a self, rows: Range<usize>, buffer: &'a mut [u8]) -> Result<DenseRows<'a>, DeviceError> {
        let (dtype, k) = (self.source.dtype(), self.k());
        if let Some(bytes) = self.source.resident() {
            return Ok(DenseRows { bytes, first: 0, dtype, k });
        }
        let bytes = &mut buffer[..rows.len() * self.source.row_bytes()];
        self.source.read_rows(rows.clone(), bytes).map_err(|error| DeviceError::unreadable(&error))?;
        Ok(DenseRows { bytes, first: rows.start, dtype, k })
    }
}
