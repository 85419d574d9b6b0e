//! What a checkpoint says about text: vocabulary, chat template, special tokens and generation defaults. Interpreted in
//! `model/text`; here it is only carried from file to file.

use std::collections::BTreeMap;

/// Names of special tokens besides the beginning and end of sequence (huggingface/transformers:
/// src/transformers/tokenization_utils_base.py, `SPECIAL_TOKENS_ATTRIBUTES`).
pub const SPECIAL_TOKENS: [&str; 5] = ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Where the vocabulary comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Vocabulary {
    /// Contents of `tokenizer.json` (also embedded in GGUF as `tokenizer.huggingface.json`).
    Json(Vec<u8>),
    /// GGUF metadata `tokenizer.ggml.*`.
    Gguf(GgufVocabulary),
    /// The checkpoint has no tokenizer: only token ids can be run.
    #[default]
    Absent,
}

/// `tokenizer.ggml.*` as stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: name of the pre-tokenizer.
    pub pre: Option<String>,
    /// Token strings, by id.
    pub tokens: Vec<String>,
    /// SentencePiece scores, `[n_vocab]` or empty.
    pub scores: Vec<f32>,
    /// ggml token types (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte), `[n_vocab]` or empty.
    pub token_types: Vec<i32>,
    /// BPE merges, `left right`.
    pub merges: Vec<String>,
    /// Prepend the beginning-of-sequence token when encoding.
    pub add_bos: Option<bool>,
    /// Append the end-of-sequence token when encoding.
    pub add_eos: Option<bool>,
    /// SentencePiece: put a space before the text.
    pub add_space_prefix: Option<bool>,
    /// Id of the beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Id of the end-of-sequence token.
    pub eos_token_id: Option<u32>,
    /// Id of the unknown token.
    pub unknown_token_id: Option<u32>,
    /// Id of the padding token.
    pub padding_token_id: Option<u32>,
}

/// Sampling defaults that the model's authors published.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationDefaults {
    /// Generation ends at any of these.
    pub eos_token_ids: Vec<u32>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Number of candidates.
    pub top_k: Option<u32>,
    /// Least probability, relative to the most likely candidate.
    pub min_p: Option<f32>,
    /// Divisor of the logits of tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Whether the authors sample at all.
    pub do_sample: Option<bool>,
}

/// Everything about text that a checkpoint carries.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenizerFiles {
    /// The vocabulary.
    pub vocabulary: Vocabulary,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
    /// What whoever uses the template should be told of it.
    pub chat_template_remark: Option<String>,
    /// Text of the beginning-of-sequence token, as templates use it.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token, as templates use it.
    pub eos_token: Option<String>,
    /// Text of the other special tokens that templates may name, by the names of [`SPECIAL_TOKENS`].
    pub special_tokens: BTreeMap<String, String>,
    /// Id of the beginning-of-sequence token (`config.json`).
    pub bos_token_id: Option<u32>,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
}
