//! Text in, token ids out, and back: the tokenizer, the chat template, the incremental detokeniser and the stop strings.
//!
//! Everything here may come from a stranger twice over: the model file (vocabulary, patterns, template) and the request (text).
//! So every step is linear in the text and bounded by [`limits`](crate::limits), and every refusal is a [`TextError`].
//!
//! The tokenizer reads the `tokenizer.json` format of huggingface/tokenizers and must give the same ids; that crate is the oracle
//! of the tests and not a dependency, because it panics on crafted files (huggingface/tokenizers#2094, #2151, #2198), takes
//! seconds to load a large vocabulary, and silently stops splitting where its backtracking expressions give up.

mod added_tokens;
mod byte_level;
mod chat_template;
mod decoder;
mod detokenizer;
mod error;
mod merges;
mod normalizer;
mod post_processor;
mod pre_tokenizer;
mod split_pattern;
mod stop_strings;
mod template_json;
mod template_tags;
mod template_time;
mod tokenizer;
mod tokenizer_file;
mod vocabulary;

pub use chat_template::{ChatTemplate, Message, RenderOptions};
pub use detokenizer::{Detokenizer, SpecialTokens};
pub use error::TextError;
pub use stop_strings::{StopOutcome, StopStrings};
pub use tokenizer::{AddSpecial, Tokenizer};
