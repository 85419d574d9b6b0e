//! Rows of a dense GGUF tensor: read by position, and decoded where they land if their type is one of blocks.

use std::ops::Range;
use std::sync::Arc;

use super::dense;
use super::extent::Extent;
use super::ggml_type::GgmlType;
use super::malformed;
use super::stored_bytes::StoredBytes;
use crate::error::CheckpointError;
use crate::rows::RowSource;
use crate::tensor::DenseType;

/// Rows along the last dimension of a tensor.
#[derive(Debug)]
pub(super) struct GgufRows {
    name: String,
    bytes: Arc<StoredBytes>,
    extent: Extent,
    ggml_type: GgmlType,
    n_rows: usize,
    n_cols: usize,
    /// Bytes of a row in the file.
    stored_row_bytes: usize,
}

impl GgufRows {
    /// The rows of a tensor of `shape` in `extent`. Errors: a size that is not that of the shape.
    pub(super) fn new(
        name: &str,
        (bytes, extent): (&Arc<StoredBytes>, Extent),
        shape: &[usize],
        ggml_type: GgmlType,
    ) -> Result<Self, CheckpointError> {
        let n_cols = shape.last().copied().unwrap_or(1);
        let n_rows: usize = shape.iter().rev().skip(1).product();
        let row_bytes = ggml_type.size_bytes(n_cols as u64, n_cols as u64);
        let fits = |row_bytes: &u64| row_bytes.checked_mul(n_rows as u64) == Some(extent.size_bytes());
        let stored_row_bytes = row_bytes.filter(fits).and_then(|bytes| usize::try_from(bytes).ok());
        let stored_row_bytes = stored_row_bytes.ok_or_else(|| malformed(name, format!("its size is not that of shape {shape:?}")))?;
        Ok(Self { name: name.into(), bytes: Arc::clone(bytes), extent, ggml_type, n_rows, n_cols, stored_row_bytes })
    }
}

impl RowSource for GgufRows {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn dtype(&self) -> DenseType {
        dense::dense_type(self.ggml_type)
    }

    fn resident(&self) -> Option<&[u8]> {
        if self.stored_row_bytes == self.row_bytes() { self.bytes.resident(self.extent) } else { None }
    }

    fn read_rows(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        assert!(rows.end <= self.n_rows, "rows {rows:?} of {}", self.n_rows);
        assert_eq!(bytes.len(), rows.len() * self.row_bytes(), "a buffer of the rows' size");
        let size_bytes = rows.len() * self.stored_row_bytes;
        let start = self.extent.start() + (rows.start * self.stored_row_bytes) as u64;
        let extent = Extent::new(start, size_bytes as u64).ok_or_else(|| malformed(&self.name, "its place wraps"))?;
        // Blocks are decoded from the end of the room for their elements.
        let first = bytes.len() - size_bytes;
        self.bytes.read_into(&self.name, extent, &mut bytes[first..])?;
        dense::decode(self.ggml_type, bytes);
        Ok(())
    }
}
