//! Why no token could be drawn: parameters out of range, or logits that are no distribution.

use thiserror::Error;

use crate::TokenId;

/// A sampler refused its parameters or its logits.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SamplerError {
    /// A parameter out of range.
    #[error("sampling parameter `{name}` is {got}, not {expected}")]
    Parameter { name: &'static str, expected: &'static str, got: String },
    /// There are no logits.
    #[error("no logits to sample from")]
    NoLogits,
    /// The model computed something that is not a number.
    #[error("the logit of token {token} is {logit}")]
    NotFinite { token: TokenId, logit: f32 },
    /// Every token is masked.
    #[error("every token's logit is negative infinity")]
    NoCandidate,
}
