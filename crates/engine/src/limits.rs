//! Bounds of crate `engine`. At a bound we refuse with a typed error.

/// Most choices of one request.
pub const N_CHOICES_MAX: u32 = 128;
/// Most alternatives reported beside a token's own log-probability.
pub const N_LOGPROBS_MAX: u32 = 20;
/// Most stop tokens of one request.
pub const N_STOP_TOKENS_MAX: usize = 64;
/// Most entries of a logit bias.
pub const N_LOGIT_BIAS_MAX: usize = 1024;
/// Largest magnitude of a logit bias.
pub const LOGIT_BIAS_MAX: f32 = 100.0;
/// Most sequences that run at once, whatever the options say.
pub const N_RUNNING_MAX: usize = 256;
/// Most requests that wait, whatever the options say.
pub const N_WAITING_MAX: usize = 1 << 16;
/// Most events that wait in one stream before its sequences pause, whatever the options say.
pub const N_STREAM_EVENTS_MAX: usize = 1 << 16;
/// Prompt tokens of one step whose log-probabilities are asked for: each is a row of logits.
pub const N_SCORED_TOKENS_PER_STEP: usize = 64;
/// Longest draft of one sequence.
pub const N_DRAFT_MAX: usize = 16;
/// Drafted tokens of one step, over all sequences: each is a row of logits.
pub const N_DRAFT_TOKENS_PER_STEP: usize = 48;
/// Tenants whose share of service is remembered while they have nothing to do.
pub const N_IDLE_TENANTS_MAX: usize = 4096;
/// Panics after which a prompt is refused.
pub const N_PANICS_MAX: usize = 2;
/// Prompts that are remembered for having panicked.
pub const N_QUARANTINED_MAX: usize = 256;
/// Requests in turn at which a device may fail without a word of why before it is taken for lost.
pub const N_FAILED_IN_TURN_MAX: usize = 16;
/// Replicas of one model.
pub const N_REPLICAS_MAX: usize = 64;
/// Chunks of prompts of which it is remembered to which replica they went.
pub const N_DISPATCHED_CHUNKS_MAX: usize = 1 << 16;
/// Models in one pool.
pub const N_MODELS_MAX: usize = 64;
/// Longest name of a model, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 256;

/// Longest JSON schema, in bytes.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Longest expression, grammar or list of choices, in bytes.
pub const GRAMMAR_BYTES_MAX: usize = 16 << 10;
/// Deepest nesting of a constraint's source, in brackets. Compilers recurse along it.
pub const CONSTRAINT_DEPTH_MAX: usize = 64;
/// Work that a schema's values and properties may make: each value is one, and n properties of one object are n + n²/64 more. The
/// compiler takes up to 0.3 ms for a property, and more the more there are.
pub const SCHEMA_WORK_MAX: usize = 4096;
/// Largest magnitude of a numeric bound in a schema: it becomes an expression over its digits.
pub const SCHEMA_NUMBER_MAX: f64 = 1e19;
/// Names, literals and operators of a grammar: the compiler takes quadratic time for them.
pub const N_GRAMMAR_SYMBOLS_MAX: usize = 1024;
/// Steps in building a constraint's lexer.
pub const CONSTRAINT_LEXER_FUEL: u64 = 200_000;
/// Steps that one mask may take.
pub const CONSTRAINT_MASK_FUEL: u64 = 100_000;
/// Items of the parser that one mask may make.
pub const CONSTRAINT_MASK_ITEMS: usize = 50_000;
/// States of a constraint's lexer, about 1.5 KiB each.
pub const CONSTRAINT_LEXER_STATES: usize = 20_000;
/// Symbols in a compiled grammar.
pub const CONSTRAINT_GRAMMAR_SIZE: usize = 50_000;
/// Bytes of compiled constraints that are kept for one tenant.
pub const CONSTRAINT_CACHE_TENANT_BYTES: usize = 16 << 20;
/// Bytes of compiled constraints that are kept for all tenants.
pub const CONSTRAINT_CACHE_BYTES: usize = 128 << 20;
