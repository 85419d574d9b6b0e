//! GGUF in and out: every tensor type of ggml and its forks that holds ternary weights, under the canonical names, row order and
//! configuration of the rest of this crate.
//!
//! [`GgufSource`] reads and [`write::GgufWriter`] writes. Inside: `read` is the container, `kv` its typed values, `ggml_type` what
//! a type id means, `ternary` and `dense` the tensor contents, `names` the table of names, `model_config`, `vocabulary` and
//! `metadata` the keys. Deliberately not here: rotated weights (`prism.hadamard.*`), lookup-table types (TL1, TL2), split files
//! and architectures whose graph is not computed; they are refused by name, never misread.

mod dense;
mod extent;
mod ggml_type;
mod keys;
mod kv;
mod metadata;
mod model_config;
mod names;
mod read;
mod row_order;
mod rows;
mod source;
mod stored_bytes;
mod ternary;
mod vocabulary;
mod vocabulary_arrays;
pub mod write;

pub use bitnet_ternary::layout::i2_s::I2sLayout;
pub use bitnet_ternary::layout::i2_s_detect::Detection as I2sDetection;
pub use source::{GgufOptions, GgufSource, I2sChoice};

use crate::error::CheckpointError;

fn malformed(field: impl Into<String>, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::malformed("GGUF", field, reason)
}
