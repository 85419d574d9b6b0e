//! Files read by position: a length is checked against the file before a buffer of that length exists, and no read moves a
//! cursor, so any number of threads may load tensors from one open file.
//!
//! Nothing is mapped: a file that shrinks meanwhile is an error, not a SIGBUS. So is one that was written to since it was opened, as
//! far as its length and time say: what is read belongs to one version of it. Pipes and devices are refused before they are opened,
//! because opening one can hang.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::CheckpointError;

/// A regular file, open for reading.
#[derive(Debug)]
pub(crate) struct PositionedFile {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    /// When it was last written to, when opened; where the system keeps that.
    modified: Option<SystemTime>,
}

impl PositionedFile {
    /// Opens a regular file. `None` if nothing is there.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        Ok(Some(Self { file, path: path.to_owned(), size_bytes: metadata.len(), modified: metadata.modified().ok() }))
    }

    /// Length when opened.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `size_bytes` bytes from `offset`; an error, before anything is allocated, if the file does not have them.
    pub(crate) fn read_at(&self, offset: u64, size_bytes: u64) -> Result<Vec<u8>, CheckpointError> {
        let inside = offset.checked_add(size_bytes).is_some_and(|end| end <= self.size_bytes);
        let length =
            usize::try_from(size_bytes).ok().filter(|_| inside).ok_or_else(|| self.io(std::io::ErrorKind::UnexpectedEof.into()))?;
        let mut bytes = vec![0; length];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// As many bytes from `offset` as `bytes` has room for. Allocates nothing unless it fails.
    pub(crate) fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        read_exact_at(&self.file, bytes, offset).map_err(|source| self.io(source))?;
        let metadata = self.file.metadata().map_err(|source| self.io(source))?;
        let is_same = metadata.len() == self.size_bytes && metadata.modified().ok() == self.modified;
        if is_same { Ok(()) } else { Err(CheckpointError::Changed { path: self.path.clone() }) }
    }

    fn io(&self, source: std::io::Error) -> CheckpointError {
        CheckpointError::Io { path: self.path.clone(), source }
    }
}

/// A whole small file. `None` if nothing is there; an error if it is longer than `size_bytes_max`.
pub(crate) fn read_small_file(path: &Path, size_bytes_max: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
    let Some(file) = PositionedFile::open(path)? else { return Ok(None) };
    if file.size_bytes() > size_bytes_max {
        let reason = format!("{} bytes, at most {size_bytes_max} are read", file.size_bytes());
        return Err(CheckpointError::NotAModel { path: path.to_owned(), reason });
    }
    file.read_at(0, file.size_bytes()).map(Some)
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_outside_the_file_are_errors_before_they_allocate() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("ten");
        std::fs::write(&path, [7; 10]).expect("written");
        let file = PositionedFile::open(&path).expect("opens").expect("is there");
        assert_eq!(file.read_at(8, 2).expect("inside"), [7, 7]);
        for (offset, size) in [(8, 3), (11, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, 1)] {
            assert!(matches!(file.read_at(offset, size), Err(CheckpointError::Io { .. })), "{offset} {size}");
        }
        std::fs::write(&path, [7; 4]).expect("truncated");
        assert!(matches!(file.read_at(0, 10), Err(CheckpointError::Io { .. })), "a file that shrank");
        assert!(matches!(file.read_at(0, 4), Err(CheckpointError::Changed { .. })), "what is left of it");
    }

    #[test]
    fn file_that_was_written_to_is_an_error() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("ten");
        std::fs::write(&path, [7; 10]).expect("written");
        let file = PositionedFile::open(&path).expect("opens").expect("is there");
        assert_eq!(file.read_at(0, 10).expect("unchanged"), [7; 10]);
        let writer = File::options().write(true).open(&path).expect("writable");
        writer.set_modified(SystemTime::now() + std::time::Duration::from_secs(1)).expect("a new time");
        let error = file.read_at(0, 10).expect_err("changed");
        assert!(matches!(error, CheckpointError::Changed { .. }), "{error}");
    }

    #[test]
    fn folders_and_absent_files_are_told_apart() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert!(PositionedFile::open(&folder.path().join("absent")).expect("no error").is_none());
        assert!(PositionedFile::open(folder.path()).is_err());
        std::fs::write(folder.path().join("a"), [0; 11]).expect("written");
        assert!(read_small_file(&folder.path().join("a"), 10).is_err());
        assert!(read_small_file(&folder.path().join("a"), 11).expect("fits").is_some());
    }
}
