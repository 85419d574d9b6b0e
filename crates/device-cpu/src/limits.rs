//! Bounds of crate `device-cpu`. At a bound we refuse with a typed error.

/// Most threads of one device.
pub const THREADS_MAX: usize = 128;
/// Turns of the spin loop (some tens of microseconds) before a waiting worker parks.
pub const SPIN_TURNS: usize = 4_000;
/// A dense table of at most this many bytes is kept in memory, unless the caller says otherwise; larger ones stay where they are.
pub const RESIDENT_TABLE_BYTES_MAX: usize = 64 << 20;
/// Rows of a table that are read at once by one thread, in bytes: they are used while they are in its second-level cache.
pub const ROW_BUFFER_BYTES: usize = 256 << 10;
