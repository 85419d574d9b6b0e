//! Why a request was refused, and why an accepted one failed. A server maps each variant to one status.

use std::time::Duration;

use bitnet_model::sampler::SamplerError;
use bitnet_model::text::TextError;
use bitnet_model::{RunnerError, TokenId};
use thiserror::Error;

/// A request was refused before anything was computed.
#[derive(Debug, Error)]
pub enum SubmitError {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the prompt is {got} tokens long; at most {limit} fit")]
    TooLong { got: usize, limit: usize },
    #[error("token {token_id} is outside the vocabulary of {n_vocab}")]
    UnknownToken { token_id: TokenId, n_vocab: usize },
    #[error("`{name}` is {got}; at most {limit} are allowed")]
    TooMany { name: &'static str, got: usize, limit: usize },
    #[error("`{name}` is {got}, not {expected}")]
    OutOfRange { name: &'static str, got: String, expected: &'static str },
    #[error(transparent)]
    Sampling(#[from] SamplerError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("this model yields embeddings and no text")]
    NotGenerative,
    #[error("this model writes text and yields no embeddings")]
    NoEmbeddings,
    #[error("this model has no tokenizer, which {what} needs")]
    NoTokenizer { what: &'static str },
    #[error("the constraint cannot be used: {reason}")]
    BadConstraint { reason: String },
    #[error("computing this prompt panicked {n_panics} times: it is not tried again")]
    Quarantined { n_panics: usize },
    #[error("too many requests wait; try again in {} ms", retry_after.as_millis())]
    QueueFull { retry_after: Duration },
    #[error(
        "{n_waiting} requests of this tenant wait, its share while {n_tenants} tenants wait; try again in {} ms",
        retry_after.as_millis()
    )]
    TenantShare { n_waiting: usize, n_tenants: usize, retry_after: Duration },
    #[error("the engine takes no more requests: it is shutting down")]
    Draining,
    #[error("the engine has broken down and must be started again")]
    Broken,
    #[error("no model is called {name:?}")]
    UnknownModel { name: String },
}

/// An accepted request came to nothing, or not to its end.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RequestError {
    #[error("the request's deadline passed")]
    DeadlineExceeded,
    #[error("the engine was shut down")]
    Shutdown,
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error(transparent)]
    Sampling(#[from] SamplerError),
    #[error("the constraint could not be followed: {reason}")]
    Constraint { reason: String },
    #[error("computing this request panicked")]
    Panicked,
    #[error("the request could not be begun: {reason}")]
    Begin { reason: String },
    #[error("the engine broke down")]
    Broken,
}

/// A model could not be taken into a pool.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PoolError {
    #[error("a model called {name:?} is loaded already")]
    NameTaken { name: String },
    #[error("a model's name has {got} bytes, not 1..={limit}")]
    BadName { got: usize, limit: usize },
    #[error("{limit} models are loaded, and no more are allowed")]
    TooManyModels { limit: usize },
    #[error("no model is called {name:?}")]
    UnknownModel { name: String },
}

/// An engine could not be made of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartError {
    #[error("the draft model has {got} tokens, the model {expected}: drafts need the same vocabulary")]
    DraftVocabulary { expected: usize, got: usize },
    #[error("token {token_id} of the draft model is {got}, that of the model {expected}: drafts need the same vocabulary")]
    DraftToken { token_id: TokenId, expected: String, got: String },
    #[error("the options ask for a draft model, and there is none")]
    NoDraftModel,
    #[error("an embedding model cannot draft or be drafted for")]
    DraftPooling,
    #[error("option `{name}` is {got}, not in {expected}")]
    Option { name: &'static str, got: usize, expected: String },
    #[error("{got} replicas of a model, not 1..={limit}")]
    Replicas { got: usize, limit: usize },
    #[error("a replica has {got} of `{name}` and the first {expected}: replicas are of one model with one size of cache")]
    ReplicaDiffers { name: &'static str, expected: usize, got: usize },
    #[error("the tokenizer cannot constrain text: {reason}")]
    Tokenizer { reason: String },
    #[error("the engine's thread could not be started: {reason}")]
    Thread { reason: String },
}
