//! Bounds of crate `platform`. At a bound we refuse with a typed error.

use std::time::Duration;

/// Connections to the database.
pub const N_CONNECTIONS_MAX: u32 = 8;
/// How long to wait for a connection, or for SQLite's lock.
pub const DATABASE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Rows of one INSERT statement.
pub const N_ROWS_PER_STATEMENT: usize = 256;
/// Keys looked up by one SELECT statement.
pub const N_KEYS_PER_STATEMENT: usize = 256;

/// Bytes of records that wait for the journal before requests are refused. What was admitted is always recorded.
pub const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// Bytes of records in one row of the journal; a batch ends with the record that passes it.
pub const JOURNAL_ROW_BYTES_MAX: usize = 4 << 20;
/// Rows of the journal that wait to be projected before requests are refused.
pub const N_JOURNAL_ROWS_MAX: u64 = 100_000;
/// Rows of the journal that one projection takes, while they hold fewer records than the next bound.
pub const N_JOURNAL_ROWS_PER_PROJECTION: usize = 64;
/// Bytes of journal after which one projection takes no further row.
pub const PROJECTION_BYTES_MAX: usize = 256 << 10;
/// How long the database may be away before requests are refused; those that were admitted wait for it.
pub const STORE_AWAY_MAX: Duration = Duration::from_secs(5);
/// How long a request waits for what it produced to be durable before it is given up.
pub const DURABLE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a request holds what it set aside without a sign of life.
pub const LEASE: Duration = Duration::from_secs(600);
/// Requests that are reserved for at once.
pub const N_HOLDS_MAX: usize = 1 << 20;
/// Months whose counters are kept in memory, besides the present one: late events reach back into these.
pub const N_PAST_PERIODS: u16 = 2;

/// How late an event may be.
pub const EVENT_AGE_MAX: Duration = Duration::from_secs(35 * 86_400);
/// How far ahead of our clock an event's may be.
pub const EVENT_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);
/// Events of one ingested batch.
pub const N_EVENTS_PER_BATCH: usize = 1000;
/// Tokens of one event: more is a mistake.
pub const N_TOKENS_PER_EVENT: u64 = 1 << 40;
/// Operations of one event.
pub const N_OPERATIONS_PER_EVENT: u64 = 1 << 32;
/// Longest source, event id, request id or model name, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Largest rate, in requests or tokens a minute: a bucket's level then fits an `i64`.
pub const RATE_PER_MINUTE_MAX: u32 = 1_000_000_000;

/// Longest licence file, in bytes.
pub const LICENCE_BYTES_MAX: u64 = 64 << 10;
/// Values of one filter of a question about usage.
pub const N_FILTERS_MAX: usize = 100;
/// Requests of an invoice's line that are told at once.
pub const N_REQUESTS_PER_PAGE: i64 = 1000;
/// Longest name of an account, project or key, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Models or routes that one key is limited to.
pub const N_KEY_SCOPES_MAX: usize = 64;
/// Rows of the change feed that are read at once.
pub const N_CHANGES_PER_POLL: i64 = 1000;
/// How often the directory asks what other processes changed: a key revoked elsewhere stops working within this and a query.
pub const CHANGE_POLL: Duration = Duration::from_millis(250);
