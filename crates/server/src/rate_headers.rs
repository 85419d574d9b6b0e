//! `x-ratelimit-*` headers, as OpenAI writes them: what the caller may do in a minute, what is left of it, and when all is there.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::admission::RateLimits;

/// Adds the headers of a caller that is limited.
pub(crate) fn insert(headers: &mut HeaderMap, rate_limits: Option<RateLimits>) {
    let Some(limits) = rate_limits else { return };
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    put("x-ratelimit-limit-requests", limits.limit_requests.to_string());
    put("x-ratelimit-remaining-requests", limits.remaining_requests.to_string());
    put("x-ratelimit-reset-requests", duration_text(limits.reset_requests));
}

/// A JSON response with the headers of a caller that is limited.
pub(crate) fn json(value: &impl Serialize, rate_limits: Option<RateLimits>) -> Response {
    let mut response = Json(value).into_response();
    insert(response.headers_mut(), rate_limits);
    response
}

/// `1m30s`, as OpenAI writes durations.
fn duration_text(duration: Duration) -> String {
    let (minutes, seconds) = (duration.as_secs() / 60, duration.as_secs_f64() % 60.0);
    if minutes > 0 { format!("{minutes}m{seconds:.0}s") } else { format!("{:.3}s", duration.as_secs_f64()) }
}
