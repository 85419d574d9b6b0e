//! Time as the ledger has it: microseconds since 1970, UTC, passed in by whoever calls; and the calendar months that quotas and caps
//! count in. No clock is read here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time, in microseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

const MICROS_PER_DAY: i64 = 86_400_000_000;

impl Timestamp {
    /// Of the system's clock. Before 1970 there is nothing.
    pub fn of_system(time: SystemTime) -> Self {
        let micros = time.duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_micros());
        Self(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Later by that much.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Earlier by that much.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// From an earlier time to this one; nothing if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The calendar month that it is in.
    pub fn period(self) -> Period {
        Period::of_days(self.0.div_euclid(MICROS_PER_DAY))
    }
}

/// A calendar month, UTC, as the number `year · 12 + month − 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Period(pub i32);

impl Period {
    /// That many months before.
    #[must_use]
    pub const fn minus_months(self, n_months: u16) -> Self {
        Self(self.0.saturating_sub(n_months as i32))
    }

    /// When it begins.
    pub fn start(self) -> Timestamp {
        Timestamp(days_before_month(self.0).saturating_mul(MICROS_PER_DAY))
    }

    /// The month of a day, counted from 1970-01-01: "civil from days" of Howard Hinnant's *chrono-compatible low-level date
    /// algorithms*, where a year begins in March so that the odd day is at its end.
    fn of_days(days: i64) -> Self {
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // 0 is March.
        let month = (5 * day_of_year + 2) / 153;
        // Months since March of year 0, and March is month 2 of its year.
        Self(i32::try_from((era * 400 + year_of_era) * 12 + month + 2).unwrap_or(i32::MAX))
    }
}

/// Days from 1970-01-01 to the first of a month: "days from civil" of the same source.
fn days_before_month(month_number: i32) -> i64 {
    let months_since_march = i64::from(month_number) - 2;
    let (year, month) = (months_since_march.div_euclid(12), months_since_march.rem_euclid(12));
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn month(year: i32, month: i32) -> Period {
        Period(year * 12 + month - 1)
    }

    #[test]
    fn month_of_known_times_is_right() {
        let period = |seconds: i64| Timestamp(seconds * 1_000_000).period();
        assert_eq!(period(0), month(1970, 1));
        assert_eq!(period(-1), month(1969, 12));
        assert_eq!((period(951_782_400 - 1), period(951_868_799), period(951_868_800)), (month(2000, 2), month(2000, 2), month(2000, 3)));
        assert_eq!((period(1_764_547_199), period(1_764_547_200)), (month(2025, 11), month(2025, 12)));
        assert_eq!(month(2025, 12).start(), Timestamp(1_764_547_200_000_000));
    }

    proptest! {
        #[test]
        fn month_begins_at_its_start(number in 1000i32..120_000) {
            let start = Period(number).start();
            prop_assert_eq!(start.period(), Period(number));
            prop_assert_eq!(Timestamp(start.0 - 1).period(), Period(number - 1));
        }
    }
}
