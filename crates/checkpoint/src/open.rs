//! `Checkpoint`: a model file or folder of any format, opened. Opening reads and validates headers, configuration and tokenizer;
//! tensors are read one by one with positioned reads, so nothing is mapped, a file that shrinks meanwhile is an error and not
//! a SIGBUS, and once a model is loaded its file may go.

/// How a tensor lies in its file; shown by `inspect`, decided on by `convert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFormat {
    /// The format's own name for the type: `BF16`, `I2_S`, `TQ2_0`, `U8 packed`, `MLX 2-bit`.
    pub type_name: String,
    /// Bytes in the file, scales included.
    pub size_bytes: u64,
}

/// A tensor of an opened checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Canonical (Hugging Face) name.
    pub name: String,
    /// Logical shape, outermost first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub stored: StoredFormat,
}
