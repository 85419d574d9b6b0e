//! Bounds of crate `device-cpu`. At a bound we refuse with a typed error.

/// Most threads of one device.
pub const THREADS_MAX: usize = 128;
/// Turns of the spin loop (some tens of microseconds) before a waiting worker parks.
pub const SPIN_TURNS: usize = 4_000;
