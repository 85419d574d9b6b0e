//! A histogram of fixed buckets on atomics: observing costs no lock and no allocation.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds for times of requests and first tokens, in seconds.
pub(super) const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Upper bounds for times between tokens, in seconds.
pub(super) const TOKEN_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];
/// Upper bounds for numbers of tokens.
pub(super) const TOKENS: &[f64] = &[1.0, 8.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0];

/// Fractions that the sum keeps.
const SUM_UNITS: f64 = 1e6;

/// See the module.
pub(super) struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// In millionths, so that it can be an integer.
    sum_micro: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, ascending.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum_micro: AtomicU64::new(0) }
    }

    /// Counts a value.
    pub(super) fn observe(&self, value: f64) {
        let place = self.bounds.partition_point(|&bound| bound < value);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_micro.fetch_add((value * SUM_UNITS) as u64, Ordering::Relaxed);
    }

    /// For each bound, how many values are not above it; then how many there are, and their sum.
    pub(super) fn read(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut total = 0;
        let mut cumulative = Vec::with_capacity(self.bounds.len());
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            if let Some(&bound) = self.bounds.get(index) {
                cumulative.push((bound, total));
            }
        }
        (cumulative, total, self.sum_micro.load(Ordering::Relaxed) as f64 / SUM_UNITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_and_between_bounds_are_counted_once() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.read(), (vec![(1.0, 2), (2.0, 4)], 5, 14.0));
    }
}
