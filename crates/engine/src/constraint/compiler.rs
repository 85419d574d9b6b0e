//! Compiles constraints within a budget counted in steps, so that the same constraint is accepted or refused on any machine and
//! under any load.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use bitnet_model::TokenId;
use bitnet_model::text::Tokenizer;
use llguidance::api::ParserLimits;
use llguidance::{Matcher, ParserFactory};

use crate::constraint::cache::ConstraintCache;
use crate::constraint::source::{Source, refused};
use crate::constraint::token_trie::token_trie;
use crate::constraint::{CompiledConstraint, ConstraintState};
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
    pub(crate) fn compile(&self, tenant: TenantSalt, constraint: &Constraint) -> Result<Arc<CompiledConstraint>, SubmitError> {
        let source = Source::new(constraint)?;
        // A panic while the lock was held leaves a cache that is at worst too full.
        let found = self.cache.lock().unwrap_or_else(PoisonError::into_inner).find(tenant, &source);
        if let Some(compiled) = found {
            return Ok(compiled);
        }
        let grammar = source.grammar()?;
        let compiled = catch_unwind(AssertUnwindSafe(|| Matcher::new(self.factory.create_parser(grammar))));
        let matcher = compiled.map_err(|_| refused("compiling it panicked"))?;
        if let Some(error) = matcher.get_error() {
            return Err(refused(error));
        }
        let state = ConstraintState { matcher };
        // On a copy, so that what is kept has not grown the lexer states that a first mask takes.
        state.duplicate().check_satisfiable()?;
        let compiled = Arc::new(CompiledConstraint(Mutex::new(state)));
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant, source, Arc::clone(&compiled));
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compiler() -> ConstraintCompiler {
        compiler_with_eos(&[])
    }

    fn compiler_with_eos(eos: &[TokenId]) -> ConstraintCompiler {
        let vocabulary: serde_json::Map<_, _> = (b' '..=b'~').map(|byte| (char::from(byte).to_string(), (byte - b' ').into())).collect();
        let file = json!({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
        let tokenizer = Arc::new(Tokenizer::from_json(file.to_string().as_bytes()).expect("valid"));
        ConstraintCompiler::new(&tokenizer, eos).expect("a vocabulary")
    }

    fn n_bytes_of(compiler: &ConstraintCompiler, tenant: TenantSalt) -> usize {
        compiler.cache.lock().expect("whole").n_bytes_of(tenant)
    }

    #[test]
    fn constraints_of_one_tenant_are_kept_in_bounded_bytes_and_apart_from_others() {
        let compiler = compiler();
        let [busy, quiet] = [1, 2].map(|name| TenantSalt([name; 32]));
        let schema = |number: u32| Constraint::JsonSchema(json!({"const": number}));
        compiler.compile(quiet, &schema(0)).expect("sound");
        let n_quiet = n_bytes_of(&compiler, quiet);
        assert!(n_quiet > 0);
        for number in 0..600 {
            compiler.compile(busy, &schema(number)).expect("sound");
        }
        let n_busy = n_bytes_of(&compiler, busy);
        assert!(n_busy <= limits::CONSTRAINT_CACHE_TENANT_BYTES && n_busy > limits::CONSTRAINT_CACHE_TENANT_BYTES / 2);
        assert_eq!(n_bytes_of(&compiler, quiet), n_quiet, "a flood of one tenant costs the other nothing");
        let source = |number: u32| Source::new(&schema(number)).expect("sound");
        let mut cache = compiler.cache.lock().expect("whole");
        assert!(cache.find(busy, &source(599)).is_some() && cache.find(busy, &source(1)).is_none(), "the latest are kept");
        assert!(cache.find(quiet, &source(599)).is_none(), "another's are not found");
        assert!(cache.find(quiet, &source(0)).is_some(), "one's own are");
    }

    #[test]
    fn token_that_ends_a_text_is_no_part_of_one() {
        let tilde = TokenId(u32::from(b'~' - b' '));
        let tenant = TenantSalt([1; 32]);
        let of_tilde = Constraint::Regex("~".into());
        assert!(compiler().compile(tenant, &of_tilde).is_ok());
        assert!(compiler_with_eos(&[tilde]).compile(tenant, &of_tilde).is_err(), "it would end the text before it is complete");
    }

    #[test]
    fn cache_of_a_hundred_thousand_constraints_stays_within_its_bytes() {
        let compiler = compiler();
        let state = compiler.compile(TenantSalt([1; 32]), &Constraint::Regex("a".into())).expect("sound");
        let mut cache = ConstraintCache::default();
        for number in 0..100_000u32 {
            let tenant = TenantSalt([(number % 50) as u8; 32]);
            let source = Source::new(&Constraint::Regex(format!("a{number}"))).expect("sound");
            cache.insert(tenant, source, Arc::clone(&state));
            assert!(cache.n_bytes() <= limits::CONSTRAINT_CACHE_BYTES);
        }
    }
}
