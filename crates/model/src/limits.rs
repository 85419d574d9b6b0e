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

/// Longest source of a chat template, in bytes. Published ones reach about half of it.
pub const TEMPLATE_SOURCE_BYTES_MAX: usize = 64 << 10;
/// Stack on which a template is compiled: minijinja's compiler recurses along operator chains, once for each byte at worst, and takes
/// up to 500 bytes for it.
pub const TEMPLATE_COMPILE_STACK_BYTES: usize = TEMPLATE_SOURCE_BYTES_MAX * 1024;
/// Most arithmetic and logical operators in a template, the signs of its tags not counted: minijinja tries to fold every part of a
/// chain of them and takes quadratic time, about 100 ms for this many.
pub const N_TEMPLATE_OPERATORS_MAX: usize = 2048;
/// Most `~` in a template: for those, folding takes cubic time.
pub const N_TEMPLATE_CONCATENATIONS_MAX: usize = 512;
/// Longest rendered prompt, in bytes.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = TEXT_BYTES_MAX;
/// Work that one rendering may do whatever its messages, in minijinja's units (an instruction or 64 bytes).
pub const TEMPLATE_FUEL: u64 = 100_000;
/// Further work for each message.
pub const TEMPLATE_FUEL_PER_MESSAGE: u64 = 1_000;
/// Bytes of messages that allow one unit of further work: enough to go through them sixteen times.
pub const TEMPLATE_BYTES_PER_FUEL: u64 = 4;
/// Stack of a rendering: a template can nest values one in the other, one level for about ten units of work, and they are dropped
/// recursively at up to 300 bytes a level.
pub const TEMPLATE_STACK_BYTES_PER_FUEL: usize = 96;
/// Stack that every rendering has besides.
pub const TEMPLATE_STACK_BYTES: usize = 4 << 20;
/// Deepest nesting while rendering, in minijinja's units.
pub const TEMPLATE_RECURSION_MAX: usize = 100;
/// Most messages of a chat.
pub const N_MESSAGES_MAX: usize = 4096;

/// Most stop strings of one request.
pub const N_STOP_STRINGS_MAX: usize = 64;
/// Longest stop string, in bytes.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
