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
    /// Something read back is not what was written.
    #[error("{what} cannot be read back: {reason}")]
    Corrupt { what: &'static str, reason: String },
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
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {reason}")]
    Randomness { reason: String },
}

impl PlatformError {
    /// Says what the database was doing, for `map_err`.
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source }
    }

    /// Whether the same again may succeed, without anybody doing anything but wait.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database { .. })
    }
}
