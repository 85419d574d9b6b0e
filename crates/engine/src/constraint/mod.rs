//! Structured output: what a text must look like, compiled once by the llguidance crate and followed token by token. A constraint is
//! followed or refused, never dropped.

mod cache;
mod compiler;
mod source;
mod token_trie;

pub(crate) use compiler::ConstraintCompiler;

use std::sync::{Mutex, PoisonError};

use bitnet_model::TokenId;
use llguidance::Matcher;

use crate::constraint::source::refused;
use crate::error::{RequestError, SubmitError};

/// Where one text is in its constraint.
pub(crate) struct ConstraintState {
    matcher: Matcher,
}

/// A constraint as it was compiled, before any text. Requests that wait hold it together with the cache.
pub(crate) struct CompiledConstraint(Mutex<ConstraintState>);

impl CompiledConstraint {
    /// The state in which a text begins, sharing nothing with other texts.
    pub(crate) fn begin(&self) -> ConstraintState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).duplicate()
    }
}

impl ConstraintState {
    /// Refuses what no text fits, such as a schema that only refers to itself.
    fn check_satisfiable(&mut self) -> Result<(), SubmitError> {
        let first = self.matcher.compute_mask_or_eos().map_err(|error| refused(error.to_string()))?;
        if first.is_zero() { Err(refused("no text fits it")) } else { Ok(()) }
    }

    /// Sets the logits of tokens that cannot come next to −∞.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), RequestError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let words = allowed.as_slice();
        for (logits, index) in logits.chunks_mut(32).zip(0..) {
            // Rows of logits may be longer than the vocabulary.
            let word = words.get(index).copied().unwrap_or(0);
            let refused = logits.iter_mut().enumerate().filter(|(bit, _)| (word >> bit) & 1 == 0);
            refused.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
        Ok(())
    }

    /// Takes a token that `mask` allowed.
    pub(crate) fn accept(&mut self, token_id: TokenId) -> Result<(), RequestError> {
        self.matcher.consume_token(token_id.0).map_err(failed)
    }

    /// Whether the text is complete and nothing can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// The same state once more, sharing nothing.
    fn duplicate(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
    }

    /// The same state for another choice of the same request. They share what the lexer has built, which is most of a state's memory
    /// (a request may have many choices) and costs all of them its time once.
    pub(crate) fn fork(&self) -> Self {
        Self { matcher: self.matcher.clone() }
    }
}

fn failed(error: impl std::fmt::Display) -> RequestError {
    RequestError::Constraint { reason: error.to_string() }
}
