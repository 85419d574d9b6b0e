//! The time of day, read in this one place and passed in everywhere else.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, UTC; nothing on a machine whose clock stands before that.
pub(crate) fn now_unix_seconds() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}
