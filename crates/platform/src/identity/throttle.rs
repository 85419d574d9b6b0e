//! How often something may be tried: token buckets in memory, by what is tried and from where. Nothing is locked for good, and who
//! does not know a password learns nothing from being slowed down, since addresses that nobody has are counted, too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::PlatformError;
use crate::limits::N_THROTTLED_MAX;
use crate::time::Timestamp;

/// So many at once, and another one each time that this has passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) n_at_once: u32,
    pub(crate) every: Duration,
}

/// Attempts for one person from one place.
pub(crate) const BY_PERSON_AND_ADDRESS: Pace = Pace { n_at_once: 6, every: Duration::from_secs(20) };
/// Attempts for one person from anywhere.
pub(crate) const BY_PERSON: Pace = Pace { n_at_once: 30, every: Duration::from_secs(20) };
/// Attempts from one place for anybody.
pub(crate) const BY_ADDRESS: Pace = Pace { n_at_once: 60, every: Duration::from_secs(2) };
/// Codes of a second factor for one person, whose password was right: six digits are soon guessed.
pub(crate) const CODES: Pace = Pace { n_at_once: 10, every: Duration::from_secs(15 * 60) };
/// Invitations by one person, and into one account: they are mails to anybody.
pub(crate) const INVITATIONS: Pace = Pace { n_at_once: 30, every: Duration::from_secs(10 * 60) };
/// Mails to one address.
pub(crate) const MAILS: Pace = Pace { n_at_once: 4, every: Duration::from_secs(300) };

/// See the module.
#[derive(Default)]
pub(crate) struct Throttle {
    /// When each would be empty of attempts again.
    full_at: Mutex<HashMap<String, Timestamp>>,
}

impl Throttle {
    /// Counts an attempt, unless there were too many.
    pub(crate) fn count(&self, key: String, pace: Pace, now: Timestamp) -> Result<(), PlatformError> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let debt = full_at.get(&key).map_or(Duration::ZERO, |at| at.since(now));
        let debt_max = pace.every * pace.n_at_once.saturating_sub(1);
        if debt > debt_max {
            let retry_after_s = (debt - debt_max).as_secs_f64().ceil().max(1.0) as u64;
            return Err(PlatformError::Throttled { retry_after_s });
        }
        if full_at.len() >= N_THROTTLED_MAX && !full_at.contains_key(&key) {
            full_at.retain(|_, at| *at > now);
        }
        if full_at.len() >= N_THROTTLED_MAX && !full_at.contains_key(&key) {
            return Err(PlatformError::Throttled { retry_after_s: pace.every.as_secs().max(1) });
        }
        full_at.insert(key, now.plus(debt + pace.every));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_back_with_time() {
        let (throttle, pace) = (Throttle::default(), Pace { n_at_once: 3, every: Duration::from_secs(10) });
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        let try_at = |key: &str, seconds| throttle.count(key.into(), pace, at(seconds)).is_ok();
        assert!((0..3).all(|_| try_at("a", 0)) && !try_at("a", 0), "three at once");
        assert!(try_at("b", 0), "another is not slowed");
        assert!(try_at("a", 10) && !try_at("a", 10), "one for each ten seconds");
        let refused = throttle.count("a".into(), pace, at(13)).expect_err("too early");
        assert!(matches!(refused, PlatformError::Throttled { retry_after_s: 7 }), "{refused}");
        assert!((0..3).all(|_| try_at("a", 1000)) && !try_at("a", 1000), "never more than three");
    }
}
