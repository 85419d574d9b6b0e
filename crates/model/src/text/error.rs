//! Why text, a vocabulary or a chat template was refused. Whose fault it was can be read from the variant: a file's or a request's.

use bitnet_checkpoint::CheckpointError;
use thiserror::Error;

use crate::TokenId;

/// Text could not become tokens, or tokens text.
#[derive(Debug, Error)]
pub enum TextError {
    /// The checkpoint has no vocabulary.
    #[error("the checkpoint has no tokenizer: only token ids can be run")]
    NoTokenizer,
    /// A GGUF vocabulary that is wrong.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `tokenizer.json` is not what its format calls for.
    #[error("malformed tokenizer: {field}: {reason}")]
    Malformed { field: String, reason: String },
    /// `tokenizer.json` asks for something this version does not compute.
    #[error("unsupported tokenizer: {field}: {reason}")]
    Unsupported { field: String, reason: String },
    /// Text longer than the bound.
    #[error("text is {got} bytes long, more than {limit}")]
    TextTooLong { got: usize, limit: usize },
    /// The model's pre-tokenizer pattern needs more than linear time for this text.
    #[error("the tokenizer's pattern takes more than {limit} steps for {text_bytes} bytes of text")]
    PatternTooSlow { text_bytes: usize, limit: u64 },
    /// A character that the vocabulary cannot express.
    #[error("the vocabulary has no token for {character:?} and no unknown token")]
    NoTokenFor { character: char },
    /// An id outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {n_vocab}")]
    UnknownToken { token: TokenId, n_vocab: usize },
    /// The chat template's source is longer than the bound.
    #[error("chat template is {got} bytes long, more than {limit}")]
    TemplateTooLong { got: usize, limit: usize },
    /// The chat template is not valid Jinja, or does something that templates may not.
    #[error("chat template: {reason}")]
    Template { reason: String },
    /// The template itself refused the messages (`raise_exception`).
    #[error("the chat template refuses these messages: {reason}")]
    TemplateRefused { reason: String },
    /// The template did more work than the bound.
    #[error("chat template takes more than {limit} steps")]
    TemplateFuel { limit: u64 },
    /// The rendered prompt is longer than the bound.
    #[error("chat template writes more than {limit} bytes")]
    TemplateOutput { limit: usize },
    /// A chat of too many messages.
    #[error("{got} messages, more than {limit}")]
    TooManyMessages { got: usize, limit: usize },
    /// A template argument that would replace one of ours.
    #[error("template argument `{name}` is reserved")]
    ReservedArgument { name: String },
    /// A template argument that the template never reads: a typing error, or meant for another model.
    #[error("template argument `{name}` is not read by this model's chat template")]
    UnknownArgument { name: String },
    /// Stop strings that cannot be matched.
    #[error("stop strings: {reason}")]
    StopStrings { reason: String },
}

impl TextError {
    /// A field of `tokenizer.json` that is wrong.
    pub(super) fn malformed(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { field: field.into(), reason: reason.into() }
    }

    /// A field of `tokenizer.json` that is beyond this version.
    pub(super) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }
}
