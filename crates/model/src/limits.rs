//! Bounds of crate `model`. At a bound we refuse with a typed error.

/// Tokens in one block of the paged KV cache.
pub const BLOCK_TOKENS: usize = 16;
/// Most tokens in one step, unless the caller asks for fewer.
pub const STEP_TOKENS_MAX: usize = 512;
