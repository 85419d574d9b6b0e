//! Model files in and out. Everything here reads untrusted bytes: sizes are checked before anything is allocated, every
//! refusal is a typed error that names the field, nothing panics.
//!
//! A file of any format opens as a [`Checkpoint`]: one [`ModelConfig`], one [`TokenizerFiles`], and tensors under canonical
//! (Hugging Face) names that load as [`Tensor`]s. What a format does differently (names, row order, scale meaning, packing) is
//! undone inside its own module and never seen outside.
#![forbid(unsafe_code)]

pub mod config;
mod convert;
mod error;
pub mod gguf;
mod hf_config;
mod hf_names;
mod hf_tokenizer;
mod inspect;
mod json;
pub mod limits;
mod mlx;
mod note;
mod open;
mod positioned;
mod quantise;
mod rows;
mod safetensors;
pub mod sentencepiece;
mod tensor;
mod tokenizer_files;
pub mod tokenizer_json;

pub use config::ModelConfig;
pub use convert::{ConvertProgress, ConvertReport, ConvertStage, ConvertTarget, ExistingOutput, Loss, convert};
pub use error::CheckpointError;
pub use hf_config::read_config_json;
pub use inspect::{Inspection, TensorInspection, TernaryInspection, Totals, inspect};
pub use note::Note;
pub use open::{Checkpoint, OpenOptions, StoredFormat, TensorInfo};
pub use rows::{RowSource, StoredTable, read_all};
pub use tensor::{DenseTensor, DenseType, Tensor};
pub use tokenizer_files::{GenerationDefaults, GgufVocabulary, SPECIAL_TOKENS, TokenizerFiles, Vocabulary};
