//! Time as the ledger has it: microseconds since 1970, UTC, passed in by whoever calls; and the calendar months that quotas and caps
//! count in. No clock is read here but by [`Timestamp::now`], which is what is passed in outside of tests.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::PlatformError;

/// A point in time, in microseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// Tells the time.
pub type Clock = fn() -> Timestamp;

const MICROS_PER_DAY: i64 = 86_400_000_000;

impl Timestamp {
    /// Of the system's clock. Before 1970 there is nothing.
    pub fn of_system(time: SystemTime) -> Self {
        let micros = time.duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_micros());
        Self(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// By the system's clock, now.
    pub fn now() -> Self {
        Self::of_system(SystemTime::now())
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

    /// `2026-01-31T23:59:59.000000Z`.
    pub fn to_rfc3339(self) -> String {
        let (days, micros) = (self.0.div_euclid(MICROS_PER_DAY), self.0.rem_euclid(MICROS_PER_DAY));
        let period = Period::of_days(days);
        let (day, seconds) = (days - days_before_month(period.0) + 1, micros / 1_000_000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        format!("{period}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", micros % 1_000_000)
    }

    /// Reads `2026-01-31T23:59:59Z`, with a fraction of a second or without, and with any offset. What a fraction has behind
    /// microseconds is left out; a leap second is the one after it.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| {
            let digits = text.get(range)?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
        };
        let is = |index: usize, allowed: &[u8]| text.as_bytes().get(index).is_some_and(|byte| allowed.contains(byte));
        let separators = [(4, b"-" as &[u8]), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")];
        if !separators.into_iter().all(|(index, allowed)| is(index, allowed)) {
            return None;
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let period = Period(i32::try_from(year * 12 + month - 1).ok()?);
        let n_days = days_before_month(period.next().0) - days_before_month(period.0);
        if !(1..=12).contains(&month) || !(1..=n_days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let rest = text.get(19..)?;
        let n_fraction = rest.strip_prefix('.').map_or(0, |digits| 1 + digits.bytes().take_while(u8::is_ascii_digit).count());
        let fraction = if n_fraction > 1 { format!("{:0<6}", rest.get(1..n_fraction)?).get(..6)?.parse::<i64>().ok()? } else { 0 };
        if n_fraction == 1 {
            return None;
        }
        let offset = offset_minutes(rest.get(n_fraction..)?)?;
        let seconds = ((hour * 60 + minute - offset) * 60) + second;
        Some(Self((days_before_month(period.0) + day - 1) * MICROS_PER_DAY + seconds * 1_000_000 + fraction))
    }

    /// `2026-01-31`.
    pub fn to_date(self) -> String {
        self.to_rfc3339().chars().take_while(|c| *c != 'T').collect()
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

    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
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

/// `2026-01`.
impl fmt::Display for Period {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04}-{:02}", self.0.div_euclid(12), self.0.rem_euclid(12) + 1)
    }
}

impl FromStr for Period {
    type Err = PlatformError;

    /// A month such as `2026-01`.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Invalid { field: "month", reason: format!("expected one such as 2026-01, got {text:?}") };
        let (year, month) = text.split_once('-').ok_or_else(wrong)?;
        let number = |part: &str, len: usize| {
            let is_number = part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| part.parse::<i32>().ok()).flatten()
        };
        let year = number(year, 4).ok_or_else(wrong)?;
        let month = number(month, 2).filter(|month| (1..=12).contains(month)).ok_or_else(wrong)?;
        Ok(Self(year * 12 + month - 1))
    }
}

/// Minutes of `Z`, `+01:30` or `-08:00`.
fn offset_minutes(text: &str) -> Option<i64> {
    if text == "Z" || text == "z" {
        return Some(0);
    }
    let sign = match text.bytes().next()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let number = |part: &str| (part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse::<i64>().ok())?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
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
        assert_eq!(Timestamp(951_868_799_123_456).to_rfc3339(), "2000-02-29T23:59:59.123456Z");
        assert_eq!((Timestamp(-1).to_date(), month(2025, 12).to_string()), ("1969-12-31".into(), "2025-12".into()));
        assert_eq!(month(2025, 12).start(), Timestamp(1_764_547_200_000_000));
    }

    #[test]
    fn time_of_rfc_3339_is_read_with_its_offset() {
        let read = |text: &str| Timestamp::from_rfc3339(text).map(|time| time.to_rfc3339());
        assert_eq!(read("2000-02-29T23:59:59.1234567Z").as_deref(), Some("2000-02-29T23:59:59.123456Z"));
        assert_eq!(read("2026-01-01t00:30:00+01:00").as_deref(), Some("2025-12-31T23:30:00.000000Z"));
        assert_eq!(read("2025-12-31T23:59:60-00:30").as_deref(), Some("2026-01-01T00:30:00.000000Z"));
        for wrong in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+01:60",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Zx",
            "2026-01-0äT00:00:00Z",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn text_that_is_no_month_is_refused() {
        assert_eq!("2025-12".parse::<Period>().expect("a month"), month(2025, 12));
        for wrong in ["", "2025", "2025-13", "2025-00", "25-01", "2025-1", "2025-+1", "2025-01-01"] {
            assert!(wrong.parse::<Period>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn time_as_text_reads_back(micros in -30_000_000_000_000_000i64..200_000_000_000_000_000) {
            let time = Timestamp(micros);
            prop_assert_eq!(Timestamp::from_rfc3339(&time.to_rfc3339()), Some(time));
        }

        #[test]
        fn month_begins_at_its_start(number in 1000i32..120_000) {
            let start = Period(number).start();
            prop_assert_eq!(start.period(), Period(number));
            prop_assert_eq!(Timestamp(start.0 - 1).period(), Period(number - 1));
        }
    }
}
