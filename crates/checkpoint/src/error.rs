//! Why a model file was refused: one variant for each distinct cause, with the field, what was expected and what was found.

use std::path::PathBuf;

use bitnet_ternary::MatrixError;
use thiserror::Error;

/// A model file could not be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A file that was opened is not what it was.
    #[error("{} was changed while it was in use", path.display())]
    Changed { path: PathBuf },
    /// Nothing at that path is a model.
    #[error("{} is not a model: {reason}", path.display())]
    NotAModel { path: PathBuf, reason: String },
    /// The container's structure is wrong: header, offsets, lengths.
    #[error("malformed {format} file: {field}: {reason}")]
    Malformed { format: &'static str, field: String, reason: String },
    /// A configuration key is missing, of the wrong type, out of range, or contradicts another.
    #[error("configuration key `{key}`: {reason}")]
    Config { key: String, reason: String },
    /// The file is well formed but asks for something this version does not compute.
    #[error("unsupported: {feature}: {reason}")]
    Unsupported { feature: String, reason: String },
    /// A tensor that the configuration calls for is absent.
    #[error("tensor `{name}` is missing")]
    MissingTensor { name: String },
    /// A tensor's shape, type or bytes are not what its name calls for.
    #[error("tensor `{name}`: {reason}")]
    Tensor { name: String, reason: String },
    /// A projection holds weights that are not ternary.
    #[error("tensor `{name}` is not ternary: {reason}")]
    NotTernary { name: String, reason: String },
    /// Codes or scales that do not make a matrix.
    #[error("tensor `{name}`: {source}")]
    Matrix { name: String, source: MatrixError },
    /// The output format cannot hold what the input holds.
    #[error("cannot write {format}: {reason}")]
    CannotRepresent { format: &'static str, reason: String },
}

impl CheckpointError {
    /// A configuration key that is wrong.
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { key: key.into(), reason: reason.into() }
    }

    /// A tensor whose shape, type or bytes are wrong.
    pub fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }

    /// A container field that is wrong.
    pub fn malformed(format: &'static str, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { format, field: field.into(), reason: reason.into() }
    }
}
