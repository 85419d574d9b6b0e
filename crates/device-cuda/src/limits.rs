//! Bounds of crate `device-cuda`. At a bound we refuse with a typed error.

/// Longest block of kernel arguments, in words of 8 bytes.
pub(crate) const ARGUMENT_WORDS_MAX: usize = 16;
/// Oldest compute capability whose instructions the kernels use (cp.async, mma.sync with int8).
pub const CAPABILITY_MIN: u32 = 8;
/// Widest head.
pub const HEAD_DIM_MAX: usize = 256;
/// Most in features of an int8 product: one slot of a word adds up 64 · 2 · 127 for each fourth column in 32 bits.
pub const K_INT8_MAX: usize = 524_288;
/// Bytes of host data (token ids, positions, angles, block tables) of one step.
pub const STEP_BYTES_MAX: usize = 32 << 20;
/// Recorded steps that are kept as graphs; the oldest makes room.
pub const GRAPHS_MAX: usize = 64;
/// Launches of one recorded step; beyond it they are queued one by one.
pub const LAUNCHES_MAX: usize = 4096;
/// Positions whose attention scores one block holds.
pub const ATTENTION_WINDOW: usize = 2048;
/// Rows (a query head of a token and a split of its positions) whose attention several blocks share.
pub(crate) const SPLIT_ROWS_MAX: usize = 32_768;
/// Largest dense table that is on the GPU even where tables are to stay on the host.
pub const TABLE_BYTES_ON_GPU_MAX: usize = 64 << 20;
/// Tokens of one step that occupy a GPU while a prompt is read.
pub const STEP_TOKENS: usize = 2048;

const _: () = assert!(K_INT8_MAX / 4 * (64 * 2 * 127) < i32::MAX as usize);
