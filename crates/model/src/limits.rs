//! Bounds of crate `model`. At a bound we refuse with a typed error.

/// Tokens in one block of the paged KV cache.
pub const BLOCK_TOKENS: usize = 16;
/// Most tokens in one step, unless the caller asks for fewer.
pub const STEP_TOKENS_MAX: usize = 512;

/// Longest text that is encoded at once, in bytes.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// Longest `tokenizer.json`, in bytes.
pub const TOKENIZER_JSON_BYTES_MAX: usize = 256 << 20;
/// Longest description of one component of a tokenizer (normalizer, pre-tokenizer, post-processor, decoder), in bytes.
pub const COMPONENT_JSON_BYTES_MAX: usize = 64 << 10;
/// Longest component sequence, nested ones counted.
pub const N_COMPONENTS_MAX: usize = 32;
/// Largest vocabulary.
pub const N_VOCAB_MAX: usize = 1 << 24;
/// Ids of a vocabulary that no token holds.
pub const N_VOCAB_HOLES_MAX: usize = 1 << 16;
/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Most tokens that are found in text before it is split into words (special and user-defined ones).
pub const N_ADDED_TOKENS_MAX: usize = 1 << 16;
/// Bytes of all those tokens together: their automaton grows with them.
pub const ADDED_TOKENS_BYTES_MAX: usize = 1 << 20;
/// Tokens that a post-processor puts before or after a text.
pub const N_TEMPLATE_TOKENS_MAX: usize = 64;
/// Longest replacement text in a normalizer or decoder, in bytes.
pub const REPLACEMENT_BYTES_MAX: usize = 64;
/// Longest pre-tokenizer pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 16 << 10;
/// Memory that one compiled pre-tokenizer pattern may take, in bytes.
pub const PATTERN_PROGRAM_BYTES_MAX: usize = 16 << 20;
/// Steps of a pattern's automaton for each byte of text, before the pattern is called pathological. Published patterns take
/// about two for each of their stages.
pub const PATTERN_STEPS_PER_BYTE_MAX: u64 = 64;

/// Longest source of a chat template, in bytes.
pub const TEMPLATE_SOURCE_BYTES_MAX: usize = 128 << 10;
/// Longest rendered prompt, in bytes.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = TEXT_BYTES_MAX;
/// Work that one rendering may do whatever its messages, in minijinja's units (an instruction or 64 bytes).
pub const TEMPLATE_FUEL: u64 = 100_000;
/// Further work for each message.
pub const TEMPLATE_FUEL_PER_MESSAGE: u64 = 2_000;
/// Further work for each byte of the messages.
pub const TEMPLATE_FUEL_PER_BYTE: u64 = 1;
/// Deepest nesting while rendering, in minijinja's units.
pub const TEMPLATE_RECURSION_MAX: usize = 100;
/// Most messages of a chat.
pub const N_MESSAGES_MAX: usize = 16 << 10;

/// Most stop strings of one request.
pub const N_STOP_STRINGS_MAX: usize = 64;
/// Longest stop string, in bytes.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
