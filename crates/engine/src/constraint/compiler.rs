//! Compiles constraints within a budget counted in steps, so that the same constraint is accepted or refused on any machine and
//! under any load.

use std::sync::{Arc, Mutex, PoisonError};

use bitnet_model::TokenId;
use bitnet_model::text::Tokenizer;
use llguidance::api::ParserLimits;
use llguidance::{Matcher, ParserFactory};

use crate::constraint::ConstraintState;
use crate::constraint::cache::ConstraintCache;
use crate::constraint::source::{Source, refused};
use crate::constraint::token_trie::token_trie;
use crate::error::{StartError, SubmitError};
use crate::limits;
use crate::request::{Constraint, TenantSalt};

/// Compiles the constraints of one model's requests. Shared by the threads that submit them.
pub(crate) struct ConstraintCompiler {
    factory: ParserFactory,
    cache: Mutex<ConstraintCache>,
}

impl ConstraintCompiler {
    /// For texts of this tokenizer.
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>, eos: &[TokenId]) -> Result<Self, StartError> {
        let mut factory =
            ParserFactory::new_simple(&token_trie(tokenizer, eos)).map_err(|error| StartError::Tokenizer { reason: error.to_string() })?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: limits::CONSTRAINT_LEXER_FUEL,
            step_lexer_fuel: limits::CONSTRAINT_MASK_FUEL,
            step_max_items: limits::CONSTRAINT_MASK_ITEMS,
            max_lexer_states: limits::CONSTRAINT_LEXER_STATES,
            max_grammar_size: limits::CONSTRAINT_GRAMMAR_SIZE,
            // It would run the whole vocabulary through an expression before the first token: work that no budget bounds.
            precompute_large_lexemes: false,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, cache: Mutex::default() })
    }

    /// The beginning of a constraint. Takes up to some ten milliseconds the first time.
    pub(crate) fn compile(&self, tenant: TenantSalt, constraint: &Constraint) -> Result<ConstraintState, SubmitError> {
        let source = Source::new(constraint)?;
        // A panic while the lock was held leaves a cache that is at worst too full.
        let found = self.cache.lock().unwrap_or_else(PoisonError::into_inner).find(tenant, &source);
        if let Some(state) = found {
            return Ok(state);
        }
        let matcher = Matcher::new(self.factory.create_parser(source.grammar()?));
        if let Some(error) = matcher.get_error() {
            return Err(refused(error));
        }
        let state = ConstraintState { matcher };
        let kept = state.duplicate();
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant, source, kept);
        Ok(state)
    }
}
