//! The bytes of a GGUF file, read by position: a file on disk or a model embedded in the program.
//!
//! Nothing is mapped, so a file that shrinks while it is read is a typed error and not a signal. Reads do not move a shared cursor,
//! so several threads can load tensors from one source.
#![deny(clippy::arithmetic_side_effects)]

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::extent::Extent;
use super::malformed;
use crate::error::CheckpointError;

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum StoredBytes {
    /// An open file and its length at opening.
    File { file: File, path: PathBuf, size_bytes: u64 },
    /// Bytes of the program itself.
    Static(&'static [u8]),
}

impl StoredBytes {
    /// Opens a regular file.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(CheckpointError::NotAModel { path: path.to_path_buf(), reason: "it is not a regular file".into() });
        }
        Ok(Self::File { file, path: path.to_path_buf(), size_bytes: metadata.len() })
    }

    /// Length in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::File { size_bytes, .. } => *size_bytes,
            // A slice is never longer than u64 can say.
            Self::Static(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        }
    }

    /// The bytes of `extent`, copied only if they come from a file. Errors: an extent past the end, or a file that has shrunk.
    pub(super) fn read(&self, field: &str, extent: Extent) -> Result<Cow<'static, [u8]>, CheckpointError> {
        if !extent.is_within(self.size_bytes()) {
            return Err(malformed(
                field,
                format!("bytes {}..{} are past the end of the file at {}", extent.start(), extent.end(), self.size_bytes()),
            ));
        }
        let too_large = || malformed(field, format!("{} bytes do not fit this machine's memory", extent.size_bytes()));
        let n_bytes = usize::try_from(extent.size_bytes()).map_err(|_| too_large())?;
        match self {
            Self::Static(bytes) => {
                let start = usize::try_from(extent.start()).map_err(|_| too_large())?;
                let end = usize::try_from(extent.end()).map_err(|_| too_large())?;
                bytes.get(start..end).map(Cow::Borrowed).ok_or_else(too_large)
            }
            Self::File { file, path, .. } => {
                let mut buffer = vec![0; n_bytes];
                read_exact_at(file, &mut buffer, extent.start()).map_err(|source| match source.kind() {
                    std::io::ErrorKind::UnexpectedEof => malformed(field, "the file was truncated while it was being read"),
                    _ => CheckpointError::Io { path: path.clone(), source },
                })?;
                Ok(Cow::Owned(buffer))
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        offset = offset.saturating_add(n as u64);
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    static CURSOR: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = CURSOR.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut cursor = file;
    cursor.seek(SeekFrom::Start(offset))?;
    cursor.read_exact(buffer)
}
