//! Admission without a platform: a list of API keys from the configuration, or none, in which case whoever can connect is the one
//! caller there is. Keys are kept and compared as keyed hashes; the comparison takes the same time wherever they differ
//! (CVE-2025-59425: byte by byte).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use bitnet_engine::{Priority, TenantSalt};

use crate::admission::{Admission, BoxFuture, Caller, Ceiling, RateLimits, Reservation, Used, Voided};
use crate::error::ServerError;
use crate::limits;

/// What is kept of a key: its BLAKE3 hash, which is also how a configuration file may give it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyDigest(blake3::Hash);

impl ApiKeyDigest {
    /// Of a key in plain text.
    pub fn of_key(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// Of 64 hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        blake3::Hash::from_hex(hex).ok().map(Self)
    }
}

impl fmt::Debug for ApiKeyDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiKeyDigest(…)")
    }
}

/// A key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Who has it, for logs.
    pub name: String,
    /// Its hash.
    pub digest: ApiKeyDigest,
    /// Requests that it may make in a minute; without it, any number.
    pub requests_per_minute: Option<u32>,
}

struct Entry {
    key: ApiKey,
    caller: Caller,
    bucket: Mutex<Bucket>,
}

/// Requests left: refilled steadily, never above a minute's worth.
struct Bucket {
    n_left: f64,
    refilled: Instant,
}

/// See the module.
pub struct StaticKeys {
    entries: Vec<Entry>,
    /// Where an entry is, by the hash of the hash under a key of this process: the place in the table tells nothing.
    places: HashMap<[u8; 32], usize>,
    place_key: [u8; 32],
    anyone: Caller,
}

impl StaticKeys {
    /// `secret` is random, of this process.
    pub fn new(keys: Vec<ApiKey>, secret: [u8; 32]) -> Self {
        let caller = |name: &str| {
            let tenant = TenantSalt(*blake3::keyed_hash(&secret, name.as_bytes()).as_bytes());
            Caller { name: name.to_string(), tenant, priority_best: Priority::Normal, api_key: None }
        };
        let now = Instant::now();
        let entry = |key: ApiKey| {
            let n_left = f64::from(key.requests_per_minute.unwrap_or(0));
            Entry { caller: caller(&key.name), bucket: Mutex::new(Bucket { n_left, refilled: now }), key }
        };
        let entries: Vec<Entry> = keys.into_iter().map(entry).collect();
        let place = |digest: &ApiKeyDigest| *blake3::keyed_hash(&secret, digest.0.as_bytes()).as_bytes();
        let places = entries.iter().enumerate().map(|(index, entry)| (place(&entry.key.digest), index)).collect();
        Self { entries, places, place_key: secret, anyone: caller("anyone") }
    }

    fn find(&self, headers: &HeaderMap) -> Result<Caller, ServerError> {
        if self.entries.is_empty() {
            return Ok(self.anyone.clone());
        }
        let key = credential(headers)?;
        let digest = ApiKeyDigest::of_key(key);
        let place = *blake3::keyed_hash(&self.place_key, digest.0.as_bytes()).as_bytes();
        let entry = self.places.get(&place).and_then(|&index| self.entries.get(index));
        // `blake3::Hash` compares in constant time.
        match entry {
            Some(entry) if entry.key.digest == digest => Ok(entry.caller.clone()),
            _ => Err(ServerError::InvalidKey),
        }
    }

    fn take(&self, caller: &Caller, now: Instant) -> Result<Option<RateLimits>, ServerError> {
        let Some(entry) = self.entries.iter().find(|entry| entry.caller.name == caller.name) else { return Ok(None) };
        let Some(limit_requests) = entry.key.requests_per_minute else { return Ok(None) };
        let mut bucket = entry.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (limit, per_second) = (f64::from(limit_requests), f64::from(limit_requests) / 60.0);
        let elapsed = now.saturating_duration_since(bucket.refilled).as_secs_f64();
        *bucket = Bucket { n_left: (bucket.n_left + elapsed * per_second).min(limit), refilled: now };
        if bucket.n_left < 1.0 {
            let retry_after = Duration::from_secs_f64((1.0 - bucket.n_left) / per_second);
            return Err(ServerError::RateLimited { reason: format!("{limit_requests} requests a minute"), retry_after });
        }
        bucket.n_left -= 1.0;
        let reset_requests = Duration::from_secs_f64((limit - bucket.n_left) / per_second);
        Ok(Some(RateLimits { limit_requests, remaining_requests: bucket.n_left as u32, reset_requests }))
    }
}

/// The key of a request: `Authorization: Bearer KEY`, or Anthropic's `X-Api-Key: KEY`.
pub fn credential(headers: &HeaderMap) -> Result<&str, ServerError> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let key = bearer.map(|(_, key)| key.trim()).or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()));
    match key {
        None | Some("") => Err(ServerError::MissingKey),
        Some(key) if key.len() > limits::CREDENTIAL_BYTES_MAX => Err(ServerError::InvalidKey),
        Some(key) => Ok(key),
    }
}

/// Nothing is paid for here; the request's place in the rate was taken when it was admitted.
struct Free(Option<RateLimits>);

impl Reservation for Free {
    fn settle(self: Box<Self>, _used: Used) {}

    fn void(self: Box<Self>, _why: Voided) {}

    fn rate_limits(&self) -> Option<RateLimits> {
        self.0
    }
}

impl Admission for StaticKeys {
    fn authenticate<'a>(&'a self, headers: &'a HeaderMap, _: &'a str) -> BoxFuture<'a, Result<Caller, ServerError>> {
        Box::pin(std::future::ready(self.find(headers)))
    }

    fn admit<'a>(&'a self, caller: &'a Caller, _ceiling: Ceiling) -> BoxFuture<'a, Result<Box<dyn Reservation>, ServerError>> {
        let taken = self.take(caller, Instant::now());
        Box::pin(std::future::ready(taken.map(|limits| Box::new(Free(limits)) as Box<dyn Reservation>)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> StaticKeys {
        let key = |name: &str, key: &str, requests_per_minute| ApiKey {
            name: name.into(),
            digest: ApiKeyDigest::of_key(key),
            requests_per_minute,
        };
        StaticKeys::new(vec![key("ann", "sk-ann", None), key("bob", "sk-bob", Some(2))], [7; 32])
    }

    fn find(keys: &StaticKeys, name: &'static str, value: &str) -> Result<Caller, ServerError> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header value"));
        keys.find(&headers)
    }

    #[test]
    fn key_in_either_header_names_its_caller() {
        let keys = keys();
        let ann = find(&keys, "authorization", "Bearer sk-ann").expect("known");
        let bob = find(&keys, "x-api-key", "sk-bob").expect("known");
        assert_eq!((ann.name.as_str(), bob.name.as_str()), ("ann", "bob"));
        assert_ne!(ann.tenant, bob.tenant, "their caches are apart");
    }

    #[test]
    fn unknown_or_absent_key_is_refused() {
        let keys = keys();
        assert!(matches!(keys.find(&HeaderMap::new()), Err(ServerError::MissingKey)));
        assert!(matches!(find(&keys, "authorization", "Basic sk-ann"), Err(ServerError::MissingKey)));
        for wrong in ["Bearer sk-an", "Bearer sk-annn", "Bearer ' OR 1=1 --"] {
            assert!(matches!(find(&keys, "authorization", wrong), Err(ServerError::InvalidKey)), "{wrong}");
        }
        let long = format!("Bearer {}", "k".repeat(5000));
        assert!(matches!(find(&keys, "authorization", &long), Err(ServerError::InvalidKey)));
    }

    #[test]
    fn rate_above_the_limit_is_refused_until_time_passes() {
        let keys = keys();
        let bob = find(&keys, "x-api-key", "sk-bob").expect("known");
        let now = Instant::now();
        assert_eq!(keys.take(&bob, now).expect("admitted").expect("limited").remaining_requests, 1);
        keys.take(&bob, now).expect("admitted");
        let refused = keys.take(&bob, now).expect_err("refused");
        assert!(matches!(refused, ServerError::RateLimited { retry_after, .. } if retry_after <= Duration::from_secs(30)));
        keys.take(&bob, now + Duration::from_secs(31)).expect("one is there again");
    }
}
