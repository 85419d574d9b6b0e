//! Bounds of crate `server`. At a bound we refuse with a typed error; nothing here grows with what a client sends.

/// Longest request body, in bytes, unless the configuration says otherwise.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Longest body that is parsed where it is read, in bytes; longer ones would hold up other connections.
pub const INLINE_JSON_BYTES_MAX: usize = 64 << 10;
/// Longest uploaded file of batch lines, in bytes.
pub const FILE_BYTES_MAX: usize = 256 << 20;
/// Bytes of an upload's form beside the file.
pub const FORM_BYTES_MAX: usize = 64 << 10;
/// Bytes of an upload that must come in the time that any other body has in all.
pub const UPLOAD_BYTES_IN_TIME_MIN: usize = 64 << 10;
/// Bytes of a file that are read at a time.
pub const FILE_CHUNK_BYTES: usize = 64 << 10;
/// Lines of one batch, as OpenAI bounds them.
pub const N_BATCH_LINES_MAX: usize = 50_000;
/// Longest line of a batch file, in bytes.
pub const BATCH_LINE_BYTES_MAX: usize = BODY_BYTES_MAX;
/// Batch lines at work at once.
pub const N_BATCH_LINES_AT_ONCE: usize = 32;
/// Files kept.
pub const N_FILES_MAX: usize = 10_000;
/// Objects of one page of a list.
pub const N_LISTED_MAX: usize = 10_000;
/// Batches remembered; beyond it the oldest that has ended is forgotten.
pub const N_BATCHES_MAX: usize = 1_000;
/// Batches at work at once, each of which holds a thread; others wait.
pub const N_BATCHES_AT_ONCE: usize = 4;
/// Connections open at once, unless the configuration says otherwise.
pub const N_CONNECTIONS_MAX: usize = 16_384;
/// Longest request head over HTTP/1, in bytes, and longest header list over HTTP/2. hyper takes no less than 8 KiB.
pub const HEADER_BYTES_MAX: usize = 32 << 10;
/// Headers of one request.
pub const N_HEADERS_MAX: usize = 100;
/// Streams of one HTTP/2 connection.
pub const N_HTTP2_STREAMS_MAX: u32 = 256;
/// Bytes of written and unsent stream of one HTTP/2 stream.
pub const HTTP2_SEND_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Longest frame of server-sent events that is put together before it is handed to the connection, in bytes.
pub const SSE_FRAME_BYTES_MAX: usize = 8 << 10;
/// Events of a reply that are recorded as one before they are shown.
pub const N_EVENTS_RECORDED_AT_ONCE: usize = 256;
/// Prompts of one completion request.
pub const N_PROMPTS_MAX: usize = 128;
/// Inputs of one embedding request, as OpenAI bounds them.
pub const N_EMBEDDING_INPUTS_MAX: usize = 2048;
/// Embedding inputs of one request that the engine has at once.
pub const N_EMBEDDINGS_AT_ONCE: usize = 16;
/// Choices of one prompt (`n`).
pub const N_CHOICES_MAX: u32 = 32;
/// Most likely tokens reported beside each token.
pub const N_TOP_LOGPROBS_MAX: u32 = 20;
/// Tokens that a request may bias, as OpenAI bounds them.
pub const N_LOGIT_BIAS_MAX: usize = 300;
/// Tools of one request.
pub const N_TOOLS_MAX: usize = 128;
/// Longest name of a tool or of a schema, in bytes.
pub const TOOL_NAME_BYTES_MAX: usize = 64;
/// Messages of one request.
pub const N_MESSAGES_MAX: usize = bitnet_model::limits::N_MESSAGES_MAX;
/// Stop strings of one request.
pub const N_STOP_STRINGS_MAX: usize = 16;
/// Tokens that `/detokenize` takes.
pub const N_DETOKENIZE_TOKENS_MAX: usize = 1 << 20;
/// Bytes of all kept responses together.
pub const RESPONSES_BYTES_MAX: usize = 64 << 20;
/// Responses that one conversation may reach back.
pub const N_RESPONSE_ANCESTORS_MAX: usize = 256;
/// Bytes of one object's `metadata`: 16 pairs, keys of 64 and values of 512 characters, as OpenAI bounds them.
pub const N_METADATA_PAIRS_MAX: usize = 16;
/// Longest key of `metadata`, in characters.
pub const METADATA_KEY_CHARACTERS_MAX: usize = 64;
/// Longest value of `metadata`, in characters.
pub const METADATA_VALUE_CHARACTERS_MAX: usize = 512;
/// Longest `X-Request-Id` that is taken over from a client, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Longest credential that is looked at, in bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 512;
/// Bytes of prompts that are tokenised on the reactor, some ten microseconds of work; longer ones wait for a thread of their own.
pub const TEXT_BYTES_AT_ONCE_MAX: usize = 512;
/// Text work (templates, tokenising) that may wait for a thread.
pub const N_TEXT_JOBS_WAITING_MAX: usize = 4096;
/// Spans that wait to be sent; more are dropped.
pub const N_SPANS_WAITING_MAX: usize = 8192;
/// Longest answer of a receiver of traces that is read, in bytes.
pub const TRACE_ANSWER_BYTES_MAX: usize = 64 << 10;
/// Static API keys.
pub const N_API_KEYS_MAX: usize = 10_000;
