//! Bounds on what a model file may claim. At a bound the file is refused with an error that names the field.

/// Largest hidden or feed-forward width.
pub const WIDTH_MAX: usize = 1 << 20;
/// Most transformer layers.
pub const N_LAYERS_MAX: usize = 1024;
/// Most attention heads.
pub const N_HEADS_MAX: usize = 1024;
/// Widest attention head.
pub const HEAD_DIM_MAX: usize = 4096;
/// Largest vocabulary.
pub const N_VOCAB_MAX: usize = 1 << 24;
/// Longest context, in tokens.
pub const CONTEXT_MAX: usize = 1 << 24;
/// Most tensors in a file.
pub const N_TENSORS_MAX: usize = 1 << 17;
/// Most dimensions of a tensor.
pub const N_DIMS_MAX: usize = 4;
/// Longest `config.json`, `generation_config.json` or `tokenizer_config.json`, in bytes.
pub const CONFIG_JSON_BYTES_MAX: u64 = 16 << 20;
/// Longest `tokenizer.json`, in bytes.
pub const TOKENIZER_JSON_BYTES_MAX: u64 = 256 << 20;
/// Longest `tokenizer.model`, in bytes.
pub const SENTENCEPIECE_BYTES_MAX: u64 = 64 << 20;
/// Longest safetensors header, in bytes.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 100_000_000;
/// Most shards of a sharded checkpoint.
pub const N_SHARDS_MAX: usize = 4096;
/// Longest `model.safetensors.index.json`, in bytes.
pub const SAFETENSORS_INDEX_BYTES_MAX: u64 = 32 << 20;
/// Longest `chat_template.jinja`, in bytes.
pub const CHAT_TEMPLATE_BYTES_MAX: u64 = 1 << 20;
/// Longest GGUF metadata (everything before the tensors), in bytes.
pub const GGUF_METADATA_BYTES_MAX: u64 = 1 << 30;
/// Most GGUF metadata keys.
pub const GGUF_N_KEYS_MAX: u64 = 1 << 16;
/// Longest GGUF metadata key or tensor name, in bytes.
pub const GGUF_NAME_BYTES_MAX: u64 = 1 << 12;
/// Largest GGUF alignment, in bytes.
pub const GGUF_ALIGNMENT_MAX: u64 = 1 << 20;
