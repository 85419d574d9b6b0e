//! `strftime_now` of chat templates: the conversions that published templates use, of a time the caller passes in, in UTC and in
//! English. transformers tells local time; we know no time zones, and the same request gives the same prompt wherever it is computed,
//! so for some hours of a day the date may differ from what transformers writes. Calendar arithmetic after Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.

const SECONDS_PER_DAY: i64 = 86_400;
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

/// A moment, in fields.
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    weekday: i64,
    day_of_year: i64,
    second_of_day: i64,
}

fn civil(unix_seconds: i64) -> Civil {
    let days = unix_seconds.div_euclid(SECONDS_PER_DAY);
    // Days since 1 March of year 0, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_from_march + 2) / 153;
    let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let day_of_year = if month > 2 { day_from_march + 60 + i64::from(is_leap) } else { day_from_march - 305 };
    Civil { year, month, day, weekday: (days + 4).rem_euclid(7), day_of_year, second_of_day: unix_seconds.rem_euclid(SECONDS_PER_DAY) }
}

/// Formats a moment as C's `strftime` does; nothing if the format has a conversion we do not know.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> Option<String> {
    let civil = civil(unix_seconds.clamp(-SECONDS_PER_DAY * 719_000, SECONDS_PER_DAY * 2_900_000));
    let mut formatted = String::with_capacity(format.len() + 16);
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            formatted.push(character);
            continue;
        }
        let conversion = characters.next()?;
        let (conversion, is_padded) = if conversion == '-' { (characters.next()?, false) } else { (conversion, true) };
        formatted.push_str(&convert(conversion, is_padded, &civil)?);
    }
    Some(formatted)
}

fn convert(conversion: char, is_padded: bool, civil: &Civil) -> Option<String> {
    let number = |value: i64, width: usize| if is_padded { format!("{value:0width$}") } else { value.to_string() };
    let name = |names: &[&str], index: i64| names.get(index as usize).map(|name| name.to_string());
    let short = |name: String| name.chars().take(3).collect::<String>();
    let (hour, minute, second) = (civil.second_of_day / 3600, civil.second_of_day / 60 % 60, civil.second_of_day % 60);
    let together = |format: &str| {
        let parts: Option<Vec<String>> =
            format.chars().map(|part| if part.is_alphabetic() { convert(part, true, civil) } else { Some(part.to_string()) }).collect();
        parts.map(|parts| parts.concat())
    };
    match conversion {
        'Y' => Some(civil.year.to_string()),
        'y' => Some(number(civil.year.rem_euclid(100), 2)),
        'm' => Some(number(civil.month, 2)),
        'd' => Some(number(civil.day, 2)),
        'e' => Some(format!("{:2}", civil.day)),
        'j' => Some(number(civil.day_of_year, 3)),
        'H' => Some(number(hour, 2)),
        'I' => Some(number((hour + 11) % 12 + 1, 2)),
        'M' => Some(number(minute, 2)),
        'S' => Some(number(second, 2)),
        'p' => Some(if hour < 12 { "AM" } else { "PM" }.to_string()),
        'A' => name(&DAYS, civil.weekday),
        'a' => name(&DAYS, civil.weekday).map(short),
        'B' => name(&MONTHS, civil.month - 1),
        'b' | 'h' => name(&MONTHS, civil.month - 1).map(short),
        'F' => together("Y-m-d"),
        'T' => together("H:M:S"),
        'D' => together("m/d/y"),
        'z' => Some("+0000".to_string()),
        'Z' => Some("UTC".to_string()),
        '%' => Some("%".to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_formats_known_moments() {
        // 29 February 2024, 13:05:09 UTC, a Thursday.
        let leap_day = 1_709_211_909;
        assert_eq!(strftime("%d %b %Y", leap_day).unwrap(), "29 Feb 2024");
        assert_eq!(strftime("%A, %B %-d, %Y %I:%M:%S %p %j", leap_day).unwrap(), "Thursday, February 29, 2024 01:05:09 PM 060");
        assert_eq!(strftime("%F %T", 0).unwrap(), "1970-01-01 00:00:00");
        assert_eq!(strftime("%F %a %j", 951_782_400 + 86_400).unwrap(), "2000-03-01 Wed 061");
        assert_eq!(strftime("%F %j", -1).unwrap(), "1969-12-31 365");
    }

    #[test]
    fn strftime_of_unknown_conversions_and_extreme_times_does_not_panic() {
        assert_eq!(strftime("%Q", 0), None);
        assert_eq!(strftime("100%", 0), None);
        assert!(strftime("%F %j", i64::MAX).is_some() && strftime("%F %j", i64::MIN).is_some());
    }
}
