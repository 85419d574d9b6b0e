//! Writing a safetensors file in one pass: all tensors are declared, the header goes out first, then each tensor's bytes in the
//! declared order. Memory is one tensor.
//!
//! Order: widest element type first, then by name, as huggingface/safetensors:safetensors/src/tensor.rs does, so that every
//! tensor is aligned to its element and equal models give equal files. One file, no shards.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};

use super::element_size_bytes;
use crate::error::CheckpointError;
use crate::limits;

const FORMAT: &str = "safetensors";
/// The header is padded with spaces to this, so that the data is aligned for every element type.
const HEADER_ALIGNMENT: usize = 8;

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorDeclaration {
    /// Name in the file.
    pub(crate) name: String,
    /// Element type; whole bytes.
    pub(crate) dtype: Dtype,
    /// Shape.
    pub(crate) shape: Vec<usize>,
}

impl TensorDeclaration {
    fn size_bytes(&self) -> Option<usize> {
        let element = usize::try_from(element_size_bytes(self.dtype)?).ok()?;
        self.shape.iter().try_fold(element, |size, &dim| size.checked_mul(dim))
    }
}

/// A file being written.
pub(crate) struct SafetensorsWriter {
    out: BufWriter<File>,
    path: PathBuf,
    declarations: Vec<TensorDeclaration>,
    n_written: usize,
}

impl SafetensorsWriter {
    /// Creates the file, which must not exist, and writes its header. `framework` is the metadata key `format` (`pt`, `mlx`).
    pub(crate) fn create(path: &Path, framework: &str, mut declarations: Vec<TensorDeclaration>) -> Result<Self, CheckpointError> {
        declarations.sort_by(|left, right| right.dtype.bitsize().cmp(&left.dtype.bitsize()).then_with(|| left.name.cmp(&right.name)));
        let header = header(framework, &declarations)?;
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = File::options().write(true).create_new(true).open(path).map_err(io)?;
        let mut writer = Self { out: BufWriter::with_capacity(1 << 20, file), path: path.to_owned(), declarations, n_written: 0 };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(&header)?;
        Ok(writer)
    }

    /// The tensors in the order in which [`Self::write`] must be called.
    pub(crate) fn order(&self) -> &[TensorDeclaration] {
        &self.declarations
    }

    /// The bytes of the next tensor.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let next = self.declarations.get(self.n_written);
        let next = next.ok_or_else(|| CheckpointError::malformed(FORMAT, "tensors", "more were written than declared"))?;
        if next.size_bytes() != Some(bytes.len()) {
            let reason = format!("declared as {:?} {:?}, but {} bytes were written", next.dtype, next.shape, bytes.len());
            return Err(CheckpointError::tensor(&next.name, reason));
        }
        self.n_written += 1;
        self.put(bytes)
    }

    /// Ends the file and waits until it is on the disk.
    pub(crate) fn finish(mut self) -> Result<(), CheckpointError> {
        if self.n_written != self.declarations.len() {
            let reason = format!("{} were declared, {} written", self.declarations.len(), self.n_written);
            return Err(CheckpointError::malformed(FORMAT, "tensors", reason));
        }
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        done.map_err(|source| CheckpointError::Io { path: self.path, source })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.out.write_all(bytes).map_err(|source| CheckpointError::Io { path: self.path.clone(), source })
    }
}

fn header(framework: &str, declarations: &[TensorDeclaration]) -> Result<Vec<u8>, CheckpointError> {
    let mut next = 0usize;
    let mut tensors = Vec::with_capacity(declarations.len());
    for declaration in declarations {
        let end = declaration.size_bytes().and_then(|size| next.checked_add(size));
        let end = end.ok_or_else(|| CheckpointError::tensor(&declaration.name, "its size in bytes is not representable"))?;
        let info = TensorInfo { dtype: declaration.dtype, shape: declaration.shape.clone(), data_offsets: (next, end) };
        tensors.push((declaration.name.clone(), info));
        next = end;
    }
    let metadata = HashMap::from([("format".to_owned(), framework.to_owned())]);
    let malformed = |reason: String| CheckpointError::malformed(FORMAT, "header", reason);
    let metadata = Metadata::new(Some(metadata), tensors).map_err(|error| malformed(error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| malformed(error.to_string()))?;
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    if header.len() as u64 > limits::SAFETENSORS_HEADER_BYTES_MAX {
        return Err(malformed(format!("{} bytes, at most {} are allowed", header.len(), limits::SAFETENSORS_HEADER_BYTES_MAX)));
    }
    Ok(header)
}
