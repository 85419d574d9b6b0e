//! What a client asks for and what it hears back. Plain data: nothing here schedules or computes.

use std::num::NonZeroU32;
use std::time::Instant;

use bitnet_model::TokenId;
use bitnet_model::sampler::SamplingParams;

use crate::error::RequestError;

/// Names a request within one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Separates tenants: a keyed hash of the tenant that the server makes, never the client. Cached prefixes and compiled constraints
/// are shared within one salt only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantSalt(pub [u8; 32]);

/// How soon a request is served. A lower one is delayed by a bounded amount of service to others, never for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

/// One request.
pub struct Request {
    /// The prompt; not empty.
    pub prompt: Vec<TokenId>,
    /// What to do with it.
    pub task: Task,
    /// Whose it is.
    pub tenant: TenantSalt,
    /// How soon it is served.
    pub priority: Priority,
    /// When it is given up.
    pub deadline: Option<Instant>,
    /// Hears how much was used, once, whatever becomes of the request and of its stream.
    pub usage_sink: Option<Box<dyn UsageSink>>,
}

/// What to do with a prompt.
#[derive(Debug, Clone)]
pub enum Task {
    /// Write on.
    Generate(Box<Generate>),
    /// Embed it (embedding models).
    Embed,
}

/// How to write on.
#[derive(Debug, Clone)]
pub struct Generate {
    /// How tokens are drawn. Choice i uses seed + i.
    pub sampling: SamplingParams,
    /// How many texts; they share the prompt.
    pub n_choices: NonZeroU32,
    /// Most tokens of each.
    pub n_tokens_max: usize,
    /// Tokens before which neither an end of sequence nor a stop ends a text.
    pub n_tokens_min: usize,
    /// Texts that end a choice; they are not shown.
    pub stop_strings: Vec<String>,
    /// Tokens that end a choice; they are not shown.
    pub stop_token_ids: Vec<TokenId>,
    /// What the model's own end-of-sequence tokens do.
    pub end_of_sequence: EndOfSequence,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Report each token's log-probability, and those of this many most likely tokens.
    pub logprobs: Option<u32>,
    /// The same of the prompt's tokens. The prompt is then computed as a whole, never taken from the cache.
    pub prompt_logprobs: Option<u32>,
    /// What the text must look like.
    pub constraint: Option<Constraint>,
}

impl Generate {
    /// One text of at most `n_tokens_max` tokens, drawn by `sampling`, and nothing special.
    pub fn plain(sampling: SamplingParams, n_tokens_max: usize) -> Self {
        Self {
            sampling,
            n_choices: NonZeroU32::MIN,
            n_tokens_max,
            n_tokens_min: 0,
            stop_strings: Vec::new(),
            stop_token_ids: Vec::new(),
            end_of_sequence: EndOfSequence::Stop,
            logit_bias: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
        }
    }
}

/// What the model's own end-of-sequence tokens do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfSequence {
    /// They end the text.
    Stop,
    /// They are tokens like any other.
    Ignore,
}

/// What a text must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// JSON that this schema accepts.
    JsonSchema(serde_json::Value),
    /// Any JSON object.
    JsonObject,
    /// Text that this expression matches from beginning to end.
    Regex(String),
    /// Text of this grammar, in llguidance's variant of the Lark syntax.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// What a stream tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt is read.
    Started {
        /// Prompt tokens whose keys and values were in the cache.
        n_cached_tokens: usize,
        /// Of each prompt token, the first having none; if they were asked for.
        prompt_logprobs: Option<Vec<Option<TokenLogprob>>>,
    },
    /// A token was drawn that belongs to the text.
    Token {
        choice: u32,
        token_id: TokenId,
        /// Text that is now certain: whole characters, and no beginning of what may become a stop string.
        text: String,
        logprob: Option<TokenLogprob>,
    },
    /// A choice is complete.
    ChoiceFinished {
        choice: u32,
        reason: FinishReason,
        /// What was held back until now.
        text: String,
    },
    /// The embedding, of length 1.
    Embedding(Vec<f32>),
    /// The request failed; `Finished` follows.
    Failed(RequestError),
    /// Always the last event.
    Finished(Usage),
}

/// How likely a token was by the model alone: before bias, penalties, constraint and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub token_id: TokenId,
    /// Natural logarithm.
    pub logprob: f32,
    /// The most likely tokens, most likely first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or its constraint is complete.
    EndOfSequence,
    /// This stop string came.
    StopString(String),
    /// This stop token came.
    StopToken(TokenId),
    /// As many tokens as were asked for.
    Length,
    /// The model's context is full.
    ContextFull,
}

/// What a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt; none if the request ended before its turn came.
    pub n_prompt_tokens: usize,
    /// Of these, taken from the cache.
    pub n_cached_tokens: usize,
    /// Tokens drawn, over all choices; those that ended a choice are counted.
    pub n_completion_tokens: usize,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RequestEnd {
    /// As it should.
    #[default]
    Complete,
    /// Whoever read its stream left.
    Cancelled,
    /// It was given up.
    Failed,
}

/// Hears what a request used. Billing must not depend on somebody reading the stream.
pub trait UsageSink: Send {
    /// Called once, on the engine's thread, before the stream's last event can be seen. Must not block.
    fn finished(self: Box<Self>, id: RequestId, usage: Usage, end: RequestEnd);
}
