//! The bytes of a GGUF file, read by position: a file on disk or a model embedded in the program.
//!
//! Nothing is mapped, so a file that shrinks while it is read is a typed error and not a signal. Reads do not move a shared cursor,
//! so several threads can load tensors from one source.
#![deny(clippy::arithmetic_side_effects)]

use std::borrow::Cow;
use std::path::Path;

use super::extent::Extent;
use super::malformed;
use crate::error::CheckpointError;
use crate::positioned::PositionedFile;

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum StoredBytes {
    /// An open file.
    File(PositionedFile),
    /// Bytes of the program itself.
    Static(&'static [u8]),
}

impl StoredBytes {
    /// Opens a regular file.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let absent = || CheckpointError::NotAModel { path: path.to_path_buf(), reason: "there is nothing at that path".into() };
        PositionedFile::open(path)?.map(Self::File).ok_or_else(absent)
    }

    /// Length in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.size_bytes(),
            // A slice is never longer than u64 can say.
            Self::Static(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        }
    }

    /// The bytes of `extent`, copied only if they come from a file. Errors: an extent past the end, or a file that has shrunk.
    pub(super) fn read(&self, field: &str, extent: Extent) -> Result<Cow<'static, [u8]>, CheckpointError> {
        self.check(field, extent)?;
        match self {
            Self::Static(bytes) => part(bytes, field, extent).map(Cow::Borrowed),
            Self::File(file) => named(field, file.read_at(extent.start(), extent.size_bytes())).map(Cow::Owned),
        }
    }

    /// The bytes of `extent`, copied to `bytes`, which is as long. Allocates nothing unless it fails. Errors as [`Self::read`].
    pub(super) fn read_into(&self, field: &str, extent: Extent, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        self.check(field, extent)?;
        match self {
            Self::Static(all) => part(all, field, extent).map(|part| bytes.copy_from_slice(part)),
            Self::File(file) => named(field, file.read_into(extent.start(), bytes)),
        }
    }

    /// The bytes of `extent`, if they are in memory.
    pub(super) fn resident(&self, extent: Extent) -> Option<&'static [u8]> {
        match self {
            Self::Static(bytes) => part(bytes, "", extent).ok(),
            Self::File(_) => None,
        }
    }

    fn check(&self, field: &str, extent: Extent) -> Result<(), CheckpointError> {
        if extent.is_within(self.size_bytes()) {
            return Ok(());
        }
        let reason = format!("bytes {}..{} are past the end of the file at {}", extent.start(), extent.end(), self.size_bytes());
        Err(malformed(field, reason))
    }
}

fn part(bytes: &'static [u8], field: &str, extent: Extent) -> Result<&'static [u8], CheckpointError> {
    let too_large = || malformed(field, format!("{} bytes do not fit this machine's memory", extent.size_bytes()));
    let start = usize::try_from(extent.start()).map_err(|_| too_large())?;
    let end = usize::try_from(extent.end()).map_err(|_| too_large())?;
    bytes.get(start..end).ok_or_else(too_large)
}

/// Says which field a file ended in.
fn named<T>(field: &str, outcome: Result<T, CheckpointError>) -> Result<T, CheckpointError> {
    match outcome {
        Err(CheckpointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(malformed(field, "the file was truncated while it was being read"))
        }
        other => other,
    }
}
