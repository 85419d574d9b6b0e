//! NumPy's file format, version 1.0, as far as it is needed: a two-dimensional float32 array, written row by row.
//!
//! Source: numpy/numpy:doc/neps/nep-0001-npy-format.rst.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The header, magic included, is padded to a multiple of this, so that the data is aligned.
const ALIGNMENT: usize = 64;

/// An array file being written. Its name exists only once it is complete.
pub(crate) struct NpyWriter {
    out: BufWriter<File>,
    unfinished: PathBuf,
    path: PathBuf,
}

impl NpyWriter {
    /// Begins an array `[n_rows, n_cols]` that will be at `path`, replacing what is there.
    pub(crate) fn create(path: &Path, n_rows: usize, n_cols: usize) -> io::Result<Self> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(format!(".{}.unfinished", std::process::id()));
        let unfinished = PathBuf::from(unfinished);
        let mut writer = Self { out: BufWriter::with_capacity(1 << 20, File::create(&unfinished)?), unfinished, path: path.to_owned() };
        writer.out.write_all(&header(n_rows, n_cols))?;
        Ok(writer)
    }

    /// Appends rows.
    pub(crate) fn write(&mut self, values: &[f32]) -> io::Result<()> {
        values.iter().try_for_each(|value| self.out.write_all(&value.to_le_bytes()))
    }

    /// Gives the file its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        std::fs::rename(&self.unfinished, &self.path)
    }
}

impl Drop for NpyWriter {
    fn drop(&mut self) {
        // After `finish` there is nothing to remove.
        let _ = std::fs::remove_file(&self.unfinished);
    }
}

fn header(n_rows: usize, n_cols: usize) -> Vec<u8> {
    const BEFORE_DICTIONARY: usize = 10;
    let mut dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_cols}), }}");
    let length = (BEFORE_DICTIONARY + dictionary.len() + 1).next_multiple_of(ALIGNMENT) - BEFORE_DICTIONARY;
    dictionary.extend(std::iter::repeat_n(' ', length - 1 - dictionary.len()));
    dictionary.push('\n');
    let length = u16::try_from(length).expect("two numbers of at most 20 digits make a dictionary shorter than 128 bytes");
    [&b"\x93NUMPY\x01\x00"[..], &length.to_le_bytes(), dictionary.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_file_has_header_then_rows() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.npy");
        let mut writer = NpyWriter::create(&path, 1, 2).expect("created");
        assert!(!path.exists(), "the name appears with the last byte");
        writer.write(&[1.0, -2.0]).expect("written");
        writer.finish().expect("finished");
        let bytes = std::fs::read(&path).expect("readable");
        let header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";
        assert!(bytes.starts_with(header));
        assert_eq!(&bytes[127..], b"\n\0\0\x80\x3f\0\0\0\xc0");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn abandoned_npy_file_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        drop(NpyWriter::create(&folder.path().join("x.npy"), 1, 2).expect("created"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}
