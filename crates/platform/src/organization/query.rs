//! The parameters that all buckets are asked for with, as OpenAI has them: a time from which on, a width, groups, filters, pages.
//! They are read from the query strictly: what is unknown or wrong is refused by name.

use axum::http::Uri;
use bitnet_server::ServerError;

use crate::ledger::projection::Grain;
use crate::limits::N_FILTERS_MAX;
use crate::time::Timestamp;

/// What may be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) groups: &'static [&'static str],
    pub(super) filters: &'static [&'static str],
    /// Widths, with the buckets of a page: by default, and at most.
    pub(super) widths: &'static [(&'static str, Grain, u64, u64)],
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BucketQuery {
    pub(super) grain: Grain,
    /// The first bucket of the page.
    pub(super) from: Timestamp,
    /// Before this.
    pub(super) until: Timestamp,
    pub(super) n_buckets: u64,
    pub(super) groups: Vec<&'static str>,
    /// Columns and the values that are wanted.
    pub(super) filters: Vec<(&'static str, Vec<String>)>,
}

fn wrong(param: &str, reason: impl Into<String>) -> ServerError {
    ServerError::InvalidParameter { param: param.into(), reason: reason.into() }
}

fn number(param: &str, text: &str) -> Result<i64, ServerError> {
    text.parse().map_err(|_| wrong(param, "expected a whole number"))
}

fn seconds(param: &str, text: &str) -> Result<Timestamp, ServerError> {
    let micros = number(param, text)?.checked_mul(1_000_000);
    micros.map(Timestamp).ok_or_else(|| wrong(param, "expected seconds since 1970"))
}

/// Pairs of names and values; lists come as `name=a&name=b`, `name[]=a` or `name=a,b`.
pub(super) fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, ServerError> {
    let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| wrong("query", error.to_string()))?;
    Ok(query.0.into_iter().map(|(name, value)| (name.strip_suffix("[]").unwrap_or(&name).to_string(), value)).collect())
}

impl BucketQuery {
    /// Reads it from a URL.
    pub(super) fn read(uri: &Uri, allowed: Allowed, now: Timestamp) -> Result<Self, ServerError> {
        let (mut start, mut end, mut limit, mut page) = (None, None, None, None);
        let mut width = allowed.widths.iter().find(|(name, ..)| *name == "1d").copied();
        let (mut groups, mut filters) = (Vec::new(), Vec::<(&'static str, Vec<String>)>::new());
        for (name, value) in pairs(uri)? {
            match name.as_str() {
                "start_time" => start = Some(seconds("start_time", &value)?),
                "end_time" => end = Some(seconds("end_time", &value)?),
                "limit" => limit = Some(number("limit", &value)?),
                "page" => page = Some(read_page(&value)?),
                "bucket_width" => width = allowed.widths.iter().find(|(name, ..)| *name == value).copied(),
                "group_by" => {
                    for group in value.split(',') {
                        let known = allowed.groups.iter().find(|known| **known == group);
                        groups.push(*known.ok_or_else(|| wrong("group_by", format!("one of {}", allowed.groups.join(", "))))?);
                    }
                }
                name => {
                    let filter = allowed.filters.iter().find(|filter| **filter == name);
                    let filter = filter.ok_or_else(|| ServerError::UnknownParameter { param: name.into() })?;
                    let values = value.split(',').map(str::to_string);
                    match filters.iter_mut().find(|(known, _)| known == filter) {
                        Some((_, known)) => known.extend(values),
                        None => filters.push((filter, values.collect())),
                    }
                }
            }
        }
        if filters.iter().any(|(_, values)| values.len() > N_FILTERS_MAX) {
            return Err(wrong("query", format!("at most {N_FILTERS_MAX} values for one filter")));
        }
        let names = || allowed.widths.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
        let (_, grain, n_default, n_max) = width.ok_or_else(|| wrong("bucket_width", format!("one of {}", names())))?;
        let n_buckets = match limit {
            None => n_default,
            Some(limit) => {
                u64::try_from(limit).ok().filter(|n| (1..=n_max).contains(n)).ok_or_else(|| wrong("limit", format!("1 to {n_max}")))?
            }
        };
        let start = start.ok_or_else(|| ServerError::MissingParameter { param: "start_time".into() })?;
        let until = end.unwrap_or(now);
        if until <= start {
            return Err(wrong("end_time", "it is not after `start_time`"));
        }
        Ok(Self { grain, from: grain.start_of(page.unwrap_or(start).max(start)), until, n_buckets, groups, filters })
    }

    /// The buckets of this page: when each begins.
    pub(super) fn starts(&self) -> Vec<Timestamp> {
        let starts = (0..self.n_buckets).map(|index| Timestamp(self.from.0.saturating_add(self.grain.micros() * index as i64)));
        starts.take_while(|start| *start < self.until).collect()
    }

    /// The next page, if there is one.
    pub(super) fn next_page(&self) -> Option<String> {
        let next = self.from.0.saturating_add(self.grain.micros().saturating_mul(self.n_buckets as i64));
        (next < self.until.0).then(|| format!("page_{next}"))
    }
}

fn read_page(text: &str) -> Result<Timestamp, ServerError> {
    let number = text.strip_prefix("page_").and_then(|number| number.parse().ok());
    number.map(Timestamp).ok_or_else(|| wrong("page", "expected what `next_page` said"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowed =
        Allowed { groups: &["model"], filters: &["models"], widths: &[("1h", Grain::Hour, 24, 168), ("1d", Grain::Day, 7, 31)] };

    fn read(query: &str) -> Result<BucketQuery, ServerError> {
        BucketQuery::read(&format!("/u?{query}").parse().expect("a URL"), ALLOWED, Timestamp(10 * 86_400_000_000))
    }

    #[test]
    fn pages_cover_the_time_once() {
        let mut query = read("start_time=3600&bucket_width=1h&limit=100&models=a&models[]=b,c").expect("valid");
        assert_eq!(query.filters, [("models", vec!["a".to_string(), "b".into(), "c".into()])]);
        let mut starts = query.starts();
        while let Some(page) = query.next_page() {
            query = read(&format!("start_time=3600&bucket_width=1h&limit=100&page={page}")).expect("valid");
            starts.extend(query.starts());
        }
        assert_eq!(starts.len(), 239);
        assert!(starts.windows(2).all(|pair| pair[1].0 - pair[0].0 == 3_600_000_000));
    }

    #[test]
    fn wrong_parameter_is_named() {
        let refused = |query| read(query).expect_err("refused").to_string();
        for (query, name) in [
            ("", "start_time"),
            ("start_time=x", "start_time"),
            ("start_time=9223372036854775807", "start_time"),
            ("start_time=1&end_time=1", "end_time"),
            ("start_time=1&limit=0", "limit"),
            ("start_time=1&limit=32", "limit"),
            ("start_time=1&bucket_width=2d", "bucket_width"),
            ("start_time=1&group_by=account", "group_by"),
            ("start_time=1&page=7", "page"),
            ("start_time=1&account_ids=a", "account_ids"),
        ] {
            assert!(refused(query).contains(name), "{query}: {}", refused(query));
        }
    }
}
