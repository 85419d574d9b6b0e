//! `RowSource`: the rows of a dense matrix, read when they are needed. An embedding or a head of hundreds of megabytes has few rows
//! that one token needs, so whoever computes with it may leave it where it is: in a file, in the program, in a generator.
//!
//! Rows come in the precision they are stored in; those of block-quantised types are decoded to f32 as [`crate::Checkpoint::load`] does.
//! Nothing is mapped and nothing is cached here: the system's page cache does that.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bitnet_ternary::TernaryMatrix;

use crate::error::CheckpointError;
use crate::positioned::PositionedFile;
use crate::tensor::{DenseTensor, DenseType, Tensor};

/// Rows `[n_rows, n_cols]` of numbers.
pub trait RowSource: Send + Sync + Debug {
    /// Rows.
    fn n_rows(&self) -> usize;

    /// Numbers of a row.
    fn n_cols(&self) -> usize;

    /// What [`Self::read_rows`] yields.
    fn dtype(&self) -> DenseType;

    /// All rows, little-endian, where they are in memory anyway.
    fn resident(&self) -> Option<&[u8]> {
        None
    }

    /// Copies `rows`, little-endian, to `bytes[rows.len(), row_bytes]`. Allocates nothing unless it fails; several threads may read at
    /// once. Errors: what can happen to a file. Panics if there are no such rows or `bytes` has another length.
    fn read_rows(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), CheckpointError>;

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.n_cols() * self.dtype().size_bytes()
    }
}

/// An embedding or head as a model's files hold it.
#[derive(Debug, Clone)]
pub enum StoredTable {
    /// Numbers, wherever they are.
    Dense(Arc<dyn RowSource>),
    /// Trits with scales.
    Ternary(TernaryMatrix),
}

impl StoredTable {
    /// Bytes that all of it takes in memory, as [`Tensor::size_bytes`].
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Dense(rows) => rows.n_rows() * rows.row_bytes(),
            Self::Ternary(matrix) => matrix.size_bytes(),
        }
    }

    /// Reads all of it.
    pub fn into_tensor(self) -> Result<Tensor, CheckpointError> {
        match self {
            Self::Dense(rows) => read_all(&*rows).map(Tensor::Dense),
            Self::Ternary(matrix) => Ok(Tensor::Ternary(matrix)),
        }
    }
}

impl From<Tensor> for StoredTable {
    fn from(tensor: Tensor) -> Self {
        match tensor {
            Tensor::Dense(dense) => Self::Dense(Arc::new(dense)),
            Tensor::Ternary(matrix) => Self::Ternary(matrix),
        }
    }
}

/// All rows, in memory.
pub fn read_all(rows: &dyn RowSource) -> Result<DenseTensor, CheckpointError> {
    let mut bytes = vec![0; rows.n_rows() * rows.row_bytes()];
    rows.read_rows(0..rows.n_rows(), &mut bytes)?;
    let dense = DenseTensor::from_bytes(vec![rows.n_rows(), rows.n_cols()], rows.dtype(), bytes);
    Ok(dense.expect("the bytes were made for this shape"))
}

/// Rows along the last dimension.
impl RowSource for DenseTensor {
    fn n_rows(&self) -> usize {
        self.shape().iter().rev().skip(1).product()
    }

    fn n_cols(&self) -> usize {
        self.shape().last().copied().unwrap_or(1)
    }

    fn dtype(&self) -> DenseType {
        self.dtype()
    }

    fn resident(&self) -> Option<&[u8]> {
        Some(self.bytes())
    }

    fn read_rows(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let row_bytes = self.row_bytes();
        bytes.copy_from_slice(&self.bytes()[rows.start * row_bytes..rows.end * row_bytes]);
        Ok(())
    }
}

/// Rows that lie in a file one after the other as they are.
#[derive(Debug)]
pub(crate) struct FileRows {
    pub(crate) file: Arc<PositionedFile>,
    /// Where the first row begins.
    pub(crate) offset: u64,
    /// `[n_rows, n_cols]`.
    pub(crate) shape: [usize; 2],
    pub(crate) dtype: DenseType,
}

impl RowSource for FileRows {
    fn n_rows(&self) -> usize {
        self.shape[0]
    }

    fn n_cols(&self) -> usize {
        self.shape[1]
    }

    fn dtype(&self) -> DenseType {
        self.dtype
    }

    fn read_rows(&self, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        assert!(rows.end <= self.n_rows(), "rows {rows:?} of {}", self.n_rows());
        assert_eq!(bytes.len(), rows.len() * self.row_bytes(), "a buffer of the rows' size");
        self.file.read_into(self.offset + (rows.start * self.row_bytes()) as u64, bytes)
    }
}
