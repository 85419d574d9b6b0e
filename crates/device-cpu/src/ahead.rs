//! What a thread that waits may ask the memory for: the weights that the next product will read.
//!
//! One token's step is bound by memory, and memory rests while the caller alone norms and quantises a row. Products follow one
//! another in the same order in every step, so the first step shows which weights follow which (`Followers`), and from then on a
//! worker that has nothing to do fetches the first bytes of its share of them into its second-level cache.
//!
//! Addresses are only ever prefetched, which reads nothing and cannot fault: they may outlive the weights.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pool::share;

/// Most bytes that one thread asks for ahead: half of a small second-level cache.
const AHEAD_BYTES: usize = 256 << 10;
/// What a prefetch brings.
pub(crate) const LINE_BYTES: usize = 64;

/// Where weights lie, and how threads divide them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    address: usize,
    granule_bytes: usize,
    n_granules: usize,
}

impl Stretch {
    /// Of codes that hold `n_granules` granules, one after another.
    pub(crate) fn new(codes: &[u8], n_granules: usize) -> Self {
        Self { address: codes.as_ptr().addr(), granule_bytes: codes.len() / n_granules.max(1), n_granules }
    }

    /// Addresses of the first bytes of a thread's share.
    fn start_of_share(self, thread: usize, n_threads: usize) -> Range<usize> {
        let granules = share(self.n_granules, thread, n_threads);
        let first = self.address.wrapping_add(granules.start * self.granule_bytes);
        first..first.wrapping_add((granules.len() * self.granule_bytes).min(AHEAD_BYTES))
    }
}

/// Which weights were read after which.
#[derive(Default)]
pub(crate) struct Followers {
    by_address: HashMap<usize, Stretch>,
    previous: Option<usize>,
    n_weights: usize,
}

impl Followers {
    /// Makes room for one more, so that no step allocates.
    pub(crate) fn expect_another(&mut self) {
        self.n_weights += 1;
        self.by_address.reserve(self.n_weights);
    }

    /// Notes that a product reads `current` and says what was read after it the last time.
    pub(crate) fn after(&mut self, current: Stretch) -> Option<Stretch> {
        let previous = self.previous.replace(current.address);
        // A map may grow even for a key that it holds.
        if let Some(previous) = previous.filter(|previous| self.by_address.get(previous) != Some(&current)) {
            self.by_address.insert(previous, current);
        }
        self.by_address.get(&current.address).copied()
    }
}

/// Addresses that one worker may fetch, on a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
pub(crate) struct Wanted {
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Wanted {
    /// Replaces them by the start of the worker's share.
    pub(crate) fn set(&self, stretch: Option<Stretch>, thread: usize, n_threads: usize) {
        let range = stretch.map_or(0..0, |stretch| stretch.start_of_share(thread, n_threads));
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
    }

    /// The lines that are wanted, once.
    pub(crate) fn take(&self) -> impl Iterator<Item = usize> + use<> {
        let end = self.end.swap(0, Ordering::Relaxed);
        (self.start.load(Ordering::Relaxed)..end).step_by(LINE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_are_learnt_in_one_round() {
        let codes = [[0u8; 640]; 3];
        let [a, b, c] = codes.each_ref().map(|codes| Stretch::new(codes, 10));
        let mut followers = Followers::default();
        assert_eq!([a, b, c].map(|stretch| followers.after(stretch)), [None; 3]);
        assert_eq!([a, b, c, a].map(|stretch| followers.after(stretch)), [Some(b), Some(c), Some(a), Some(b)]);
    }

    #[test]
    fn each_thread_wants_the_start_of_its_share_once() {
        let codes = vec![0u8; 4 << 20];
        let (stretch, first) = (Stretch::new(&codes, 1 << 10), codes.as_ptr().addr());
        let wanted = Wanted::default();
        wanted.set(Some(stretch), 1, 2);
        let lines: Vec<_> = wanted.take().collect();
        assert_eq!((lines[0], lines.len()), (first + (2 << 20), AHEAD_BYTES / LINE_BYTES));
        assert_eq!(wanted.take().count(), 0);
        wanted.set(Some(Stretch::new(&codes[..100], 1)), 0, 2);
        assert_eq!(wanted.take().count(), 0, "one granule is the last thread's");
        wanted.set(None, 1, 2);
        assert_eq!(wanted.take().count(), 0);
    }
}
