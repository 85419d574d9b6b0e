//! A rate as a bucket that refills steadily and holds at most a minute's worth, in integers: the level is counted in sixty-millionths
//! of a unit, so that one microsecond refills exactly `limit` of them. Checking and taking are two steps, since a request must pass
//! all its buckets before it takes from any.

use std::time::Duration;

use crate::limits::RATE_PER_MINUTE_MAX;
use crate::time::Timestamp;

const MICROS_PER_MINUTE: i64 = 60_000_000;
const _: () = assert!((RATE_PER_MINUTE_MAX as i64).checked_mul(MICROS_PER_MINUTE).is_some());

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct RateBucket {
    per_minute: u32,
    level: i64,
    refilled: Timestamp,
}

/// Why a bucket gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dry {
    /// There will be enough after this.
    Until(Duration),
    /// A full bucket holds less.
    ForEver,
}

impl RateBucket {
    /// A full one.
    pub(crate) fn full(per_minute: u32, now: Timestamp) -> Self {
        let per_minute = per_minute.min(RATE_PER_MINUTE_MAX);
        Self { per_minute, level: i64::from(per_minute) * MICROS_PER_MINUTE, refilled: now }
    }

    pub(crate) fn per_minute(&self) -> u32 {
        self.per_minute
    }

    fn capacity(&self) -> i64 {
        i64::from(self.per_minute) * MICROS_PER_MINUTE
    }

    fn level_at(&self, now: Timestamp) -> i64 {
        // A clock that was set back refills nothing and takes nothing away.
        let elapsed = now.since(self.refilled).as_micros().min(MICROS_PER_MINUTE as u128) as i64;
        (self.level + elapsed * i64::from(self.per_minute)).min(self.capacity())
    }

    /// Whether there are `n`.
    pub(crate) fn check(&self, n: u64, now: Timestamp) -> Result<(), Dry> {
        let missing = cost(n) - i128::from(self.level_at(now));
        if missing <= 0 {
            return Ok(());
        }
        if cost(n) > i128::from(self.capacity()) {
            return Err(Dry::ForEver);
        }
        let micros = (missing as u64).div_ceil(u64::from(self.per_minute));
        Err(Dry::Until(Duration::from_micros(micros)))
    }

    /// Takes `n`, which were checked to be there.
    pub(crate) fn take(&mut self, n: u64, now: Timestamp) {
        let left = i128::from(self.level_at(now)) - cost(n);
        self.level = i64::try_from(left.max(0)).unwrap_or(0);
        self.refilled = self.refilled.max(now);
    }

    /// Puts back `n` that were taken and not used.
    pub(crate) fn put_back(&mut self, n: u64) {
        let level = i128::from(self.level) + cost(n);
        self.level = i64::try_from(level).unwrap_or(i64::MAX).min(self.capacity());
    }

    /// Whole units left, and the time until the bucket is full.
    pub(crate) fn state(&self, now: Timestamp) -> (u32, Duration) {
        let level = self.level_at(now);
        let missing = (self.capacity() - level) as u64;
        let left = u32::try_from(level / MICROS_PER_MINUTE).unwrap_or(u32::MAX);
        (left, Duration::from_micros(missing.div_ceil(u64::from(self.per_minute.max(1)))))
    }
}

fn cost(n: u64) -> i128 {
    i128::from(n) * i128::from(MICROS_PER_MINUTE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bucket_waits_exactly_until_there_is_enough() {
        let mut bucket = RateBucket::full(20, Timestamp(0));
        bucket.take(20, Timestamp(0));
        let Err(Dry::Until(wait)) = bucket.check(1, Timestamp(0)) else { panic!("it is empty") };
        assert_eq!(wait, Duration::from_secs(3));
        assert!(bucket.check(1, Timestamp(2_999_999)).is_err());
        assert_eq!(bucket.check(1, Timestamp(3_000_000)), Ok(()));
        assert_eq!(bucket.check(21, Timestamp(0)), Err(Dry::ForEver));
        assert_eq!(RateBucket::full(0, Timestamp(0)).check(1, Timestamp(0)), Err(Dry::ForEver));
    }

    proptest! {
        /// Whatever is asked, in any minute no more is given than a bucket and a minute's refill.
        #[test]
        fn bucket_never_gives_more_than_its_rate(steps in prop::collection::vec((1u64..50, 0i64..5_000_000), 1..200)) {
            let mut bucket = RateBucket::full(60, Timestamp(0));
            let (mut now, mut given) = (0, 0);
            for (n, pause) in steps {
                now += pause;
                if bucket.check(n, Timestamp(now)).is_ok() {
                    bucket.take(n, Timestamp(now));
                    given += n;
                }
                prop_assert!(given <= 60 + now as u64 / 1_000_000);
            }
        }
    }
}
