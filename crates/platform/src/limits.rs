//! Bounds of crate `platform`. At a bound we refuse with a typed error.

use std::time::Duration;

/// Connections to the database.
pub const N_CONNECTIONS_MAX: u32 = 8;
/// How long to wait for a connection, or for SQLite's lock.
pub const DATABASE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Rows of one statement with a placeholder for each cell. SQLite works on a statement without a pause: what it takes of one is what a
/// request on the same core waits.
pub const N_ROWS_PER_STATEMENT: usize = 64;
/// Rows of one statement with an array for each column.
pub const N_ROWS_PER_ARRAY: usize = 2048;

/// Bytes of records that wait for the journal before requests are refused. What was admitted is always recorded.
pub const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// Bytes of records in one row of the journal; a batch ends with the record that passes it.
pub const JOURNAL_ROW_BYTES_MAX: usize = 4 << 20;
/// Rows of the journal that wait to be projected before requests are refused.
pub const N_JOURNAL_ROWS_MAX: u64 = 100_000;
/// Rows of the journal that one projection takes, while they hold fewer records than the next bound.
pub const N_JOURNAL_ROWS_PER_PROJECTION: usize = 64;
/// Bytes of journal after which one projection takes no further row.
pub const PROJECTION_BYTES_MAX: usize = 1 << 20;
/// How soon after the beginning of a commit the next one begins. Whoever comes meanwhile shares it: a commit for each of them would
/// take the processor from requests. The first one after a pause begins at once.
pub const COMMIT_EVERY: Duration = Duration::from_millis(2);
/// How long the database may be away before requests are refused; those that were admitted wait for it.
pub const STORE_AWAY_MAX: Duration = Duration::from_secs(5);
/// How long a request waits for what it produced to be durable before it is given up; one that has come to its end is waited for.
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

/// How long after its end a month is closed: requests that were in flight then are on its invoice.
pub const CLOSE_AFTER: Duration = Duration::from_secs(3600);
/// Months of an account that one run of the job closes.
pub const N_MONTHS_PER_RUN: usize = 120;
/// Longest address or other text of several lines in a billing profile, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Days until an invoice is due that a profile may say.
pub const NET_DAYS_MAX: u16 = 365;
/// Invoices of a list.
pub const N_INVOICES_PER_PAGE: i64 = 100;

/// How long a request to somebody else may take, from name to answer.
pub const OUTBOUND_TIME_MAX: Duration = Duration::from_secs(15);
/// Longest answer to it, in bytes.
pub const OUTBOUND_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest URL of a webhook, in bytes.
pub const URL_BYTES_MAX: usize = 2048;
/// Webhooks of an account.
pub const N_ENDPOINTS_MAX: u32 = 20;
/// Messages of a list.
pub const N_MESSAGES_PER_PAGE: i64 = 100;
/// Messages that are sent at once.
pub const N_DELIVERIES_AT_ONCE: usize = 64;
/// Of these, of one account.
pub const N_DELIVERIES_PER_ACCOUNT: usize = 4;
/// How long messages and their deliveries are kept.
pub const MESSAGES_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// How long events of payment providers are remembered; Stripe sends one again for three days.
pub const PROVIDER_EVENTS_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// How long usage is known by the minute; by the hour and the day it is known for ever. Longer than events may be late.
pub const MINUTES_KEPT: Duration = Duration::from_secs(100 * 86_400);
/// How long it is known how requests ended; longer than a month takes to be closed.
pub const OUTCOMES_KEPT: Duration = Duration::from_secs(400 * 86_400);
/// Of each of these, how much one run of the job deletes: rows, or what a time of it has.
pub const N_FORGOTTEN_PER_RUN: i64 = 1000;
/// Of usage by the minute, the time whose rows one run deletes.
pub const MINUTES_FORGOTTEN_PER_RUN: Duration = Duration::from_secs(86_400);
/// How often it is looked whether a message is due.
pub const WEBHOOK_POLL: Duration = Duration::from_secs(1);
/// Invoices that one run of dunning charges.
pub const N_COLLECTED_PER_RUN: i64 = 100;
/// How often it is looked whether an invoice is to be charged.
pub const COLLECT_EVERY: Duration = Duration::from_secs(30);

/// Longest body of a request to the platform's own routes, in bytes.
pub const MANAGEMENT_BODY_BYTES_MAX: usize = 4 << 20;
/// How long it may take to arrive.
pub const MANAGEMENT_BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// How often outcomes of requests are written.
pub const OUTCOMES_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether a month is to be closed, or a threshold was passed.
pub const BOOKS_EVERY: Duration = Duration::from_secs(60);
/// How often the licence and the clock are looked at.
pub const LICENCE_EVERY: Duration = Duration::from_secs(60);
/// How long before it holds a new rate card is written at least: all servers know of it then.
pub const RATE_CARD_NOTICE: Duration = Duration::from_secs(60);
/// How long a request under an idempotency key may be under way before the same may begin anew.
pub const IDEMPOTENCY_UNDER_WAY_MAX: Duration = Duration::from_secs(300);
/// How long idempotency keys are kept.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(2 * 86_400);

/// Longest e-mail address, in bytes, by RFC 5321.
pub const EMAIL_BYTES_MAX: usize = 254;
/// Shortest password, in characters.
pub const PASSWORD_CHARS_MIN: usize = 10;
/// Longest password, in bytes: hashing one takes no longer for being long.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Passwords that are hashed at once; each takes a core and 19 MiB for some hundredths of a second.
pub const N_PASSWORD_HASHES_MAX: usize = 2;
/// How long a password waits for its turn.
pub const PASSWORD_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a session lasts, whatever happens.
pub const SESSION_AGE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// How long a session lasts without a request.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// How long somebody may take between password and code.
pub const SECOND_FACTOR_WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// How exactly it is known when a session was last used.
pub const SESSION_SEEN_EVERY: Duration = Duration::from_secs(5 * 60);
/// How long a link to confirm an address is good.
pub const CONFIRM_LINK_AGE_MAX: Duration = Duration::from_secs(2 * 86_400);
/// How long a link to set a new password is good.
pub const RESET_LINK_AGE_MAX: Duration = Duration::from_secs(3600);
/// How long an invitation is good.
pub const INVITATION_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Invitations of an account that are open at once.
pub const N_INVITATIONS_MAX: i64 = 100;
/// Accounts that somebody may own.
pub const N_ACCOUNTS_OWNED_MAX: i64 = 10;
/// How long somebody is kept who has not confirmed the address.
pub const UNCONFIRMED_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Of these, how many are forgotten when somebody signs up.
pub const N_FORGOTTEN_AT_ONCE: i64 = 20;
/// Accounts or people on a page of the console.
pub const N_CONSOLE_ROWS_PER_PAGE: u32 = 50;
/// How long a form that was sent is remembered.
pub const SUBMISSION_AGE_MAX: Duration = Duration::from_secs(86_400);
/// Recovery codes of a second factor.
pub const N_RECOVERY_CODES: usize = 10;
/// Attempts that are counted at once, by address and person.
pub const N_THROTTLED_MAX: usize = 100_000;
/// Mails that wait to be sent; what comes then is refused.
pub const N_MAILS_WAITING_MAX: usize = 1000;
/// Mails that could not be sent and wait to be tried again; what comes on top is given up.
pub const N_MAILS_DEFERRED_MAX: usize = 1000;
/// Longest form, in bytes.
pub const FORM_BYTES_MAX: usize = 64 << 10;
/// Fields of a form.
pub const N_FORM_FIELDS_MAX: usize = 256;
/// Keys that the playground lends, of everybody together.
pub const N_LENT_KEYS_MAX: usize = 10_000;
/// How long one of these is good.
pub const LENT_KEY_AGE_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest text that a browser brings back from a passkey, in bytes.
pub const PASSKEY_BYTES_MAX: usize = 8 << 10;
/// Longest name that a device may give a credential, in bytes.
pub const CREDENTIAL_ID_BYTES_MAX: usize = 1023;
/// Passkeys of one person.
pub const N_PASSKEYS_MAX: i64 = 20;
/// How long a browser waits for whoever holds the device, in milliseconds.
pub const CHALLENGE_WAIT_MS: u64 = 240_000;
/// How long what a passkey is to sign may be signed.
pub const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(300);
/// Mails to members that one run sends.
pub const N_NOTICES_AT_ONCE: i64 = 20;
/// How often it is looked whether one is due.
pub const NOTICE_POLL: Duration = Duration::from_secs(2);
/// What is older is told to nobody by mail any more: the server was away.
pub const NOTICE_AGE_MAX: Duration = Duration::from_secs(3 * 86_400);
/// How long before its end it is said that a key ends.
pub const KEY_ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);
/// Keys that were made for less time end without a word.
pub const KEY_LIFE_MIN: Duration = Duration::from_secs(14 * 86_400);
/// Overdue invoices, and keys that end, that one run tells of.
pub const N_TOLD_PER_RUN: i64 = 100;
/// Records of the audit log on a page.
pub const N_AUDIT_RECORDS_PER_PAGE: i64 = 50;
