//! What can go wrong in the platform. What HTTP makes of it is the server's to say; a refused request is no error of this kind but
//! a [`Refusal`](crate::ledger::Refusal).

use thiserror::Error;

/// Why the platform could not do something.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// The database refused, failed or went away.
    #[error("the database failed while {doing}: {source}")]
    Database { doing: &'static str, source: sqlx::Error },
    /// The address of a database that is neither of the two kinds.
    #[error("expected a database URL that begins with sqlite: or postgres:, got one with {scheme:?}")]
    DatabaseUrl { scheme: String },
    /// The schema is of a later release, or was changed by hand.
    #[error("schema version {version} is `{got}` in the database and `{expected}` in this program")]
    Schema { version: i64, expected: String, got: String },
    /// Another process has taken the ledger over: this one may not write any more.
    #[error("the ledger belongs to writer {owner} now, this is writer {own}")]
    Fenced { own: u64, owner: u64 },
    /// The ledger takes nothing more: another process has taken it over, or its store refuses for good what it writes.
    #[error("the ledger has ended: another process has taken it over, or the database refuses what it writes")]
    Ended,
    /// A backup goes into an empty database only.
    #[error("the database is not empty: a backup is restored into a new one")]
    NotEmpty,
    /// Something read back is not what was written.
    #[error("{what} cannot be read back: {reason}")]
    Corrupt { what: &'static str, reason: String },
    /// Months of some accounts could not be closed; those of all others were.
    #[error("months of {n_accounts} accounts cannot be closed; of {account}: {source}")]
    NotClosed { n_accounts: usize, account: String, source: Box<PlatformError> },
    /// An identifier that is none.
    #[error("expected an identifier that begins with {expected}_ and has 32 hexadecimal digits")]
    MalformedId { expected: &'static str },
    /// There is no such thing, or it belongs to somebody else: nobody learns which.
    #[error("no such {what}")]
    NotFound { what: &'static str },
    /// A value that cannot be.
    #[error("`{field}`: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// The plan has no more of them.
    #[error("the plan allows {limit} {what}")]
    PlanLimit { what: &'static str, limit: u32 },
    /// The file of the installation's secret.
    #[error("the secret file {path} cannot be used: {reason}")]
    SecretFile { path: String, reason: String },
    /// A file that the platform reads or writes.
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    /// The database was set up with another secret: no key would be recognised.
    #[error("this is not the secret that the database was set up with: its fingerprint is {got}, expected {expected}")]
    WrongSecret { expected: String, got: String },
    /// The licence has ended, or does not cover this.
    #[error("{what} is read-only: {reason}")]
    ReadOnly { what: &'static str, reason: String },
    /// Stripe was not reached, or refused.
    #[error(transparent)]
    Payment { source: Box<crate::payment::StripeError> },
    /// The address is unknown, the password or the code is wrong, or the link is not valid any more: nobody learns which.
    #[error("that is not right, or not valid any more")]
    Credentials,
    /// Too many attempts.
    #[error("too many attempts: try again in {retry_after_s} s")]
    Throttled { retry_after_s: u64 },
    /// The password is right, and the address is not confirmed.
    #[error("the e-mail address is not confirmed yet")]
    Unconfirmed,
    /// No policy permits it.
    #[error("your role does not permit this")]
    Forbidden,
    /// A mail could not be written or sent.
    #[error("the mail could not be sent: {reason}")]
    Mail { reason: String },
    /// The policies or their schema; they come with the program, or from an operator.
    #[error("the policies cannot be used: {reason}")]
    Policy { reason: String },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {reason}")]
    Randomness { reason: String },
}

impl PlatformError {
    /// Says what the database was doing, for `map_err`.
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source }
    }

    /// Whether the same again may succeed later: the database is away, busy, or its disk is full. A statement that it refuses is
    /// refused for ever.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database { source, .. } => is_transient(source),
            Self::NotClosed { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}

fn is_transient(error: &sqlx::Error) -> bool {
    use sqlx::Error;
    match error {
        Error::Io(_) | Error::Tls(_) | Error::PoolTimedOut | Error::WorkerCrashed | Error::BeginFailed => true,
        // A connection whose transaction SQLite has rolled back by itself: it is closed, and the next one is another.
        Error::InvalidSavePointStatement => true,
        Error::Database(cause) => cause.code().is_some_and(|code| is_transient_code(&code)),
        _ => false,
    }
}

/// PostgreSQL's codes have five characters and SQLite's are numbers, whose lowest byte is what counts.
fn is_transient_code(code: &str) -> bool {
    /// Connection, rollback for concurrency, resources (a full disk among them), operator, system.
    const POSTGRES_CLASSES: [&str; 5] = ["08", "40", "53", "57", "58"];
    /// A read-only server, as one is that has just lost its role, and a lock that was not to be had.
    const POSTGRES_CODES: [&str; 2] = ["25006", "55P03"];
    /// Busy, locked, out of memory, read-only, input or output, full, cannot open, locking protocol.
    const SQLITE: [u32; 8] = [5, 6, 7, 8, 10, 13, 14, 15];
    if code.len() == 5 {
        return POSTGRES_CODES.contains(&code) || POSTGRES_CLASSES.iter().any(|class| code.starts_with(class));
    }
    code.parse::<u32>().is_ok_and(|code| SQLITE.contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        // Busy (recovery), a full disk, an I/O error of fsync; an administrator's shutdown, no more connections, a full disk.
        assert!(["5", "261", "13", "1034", "57P01", "53300", "53100", "40001", "08006"].into_iter().all(is_transient_code));
        // A table that is missing, a constraint, a file that is no database; a table that is missing, a unique key, a syntax error.
        assert!(!["1", "1555", "26", "42P01", "23505", "42601"].into_iter().any(is_transient_code));
        let failed = |source| PlatformError::Database { doing: "testing", source };
        assert!(failed(sqlx::Error::PoolTimedOut).is_transient() && !failed(sqlx::Error::RowNotFound).is_transient());
        assert!(!PlatformError::Fenced { own: 1, owner: 2 }.is_transient());
    }
}
