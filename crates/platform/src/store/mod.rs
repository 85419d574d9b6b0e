//! The database: SQLite in one file, or PostgreSQL by its URL, through one set of statements that both understand. What differs is
//! the schema's spelling of types (two sets of migrations), how a connection is set up, and how placeholders of long lists are
//! written; all of it is in this folder. Statements are constants or built of constants: values are always parameters.

mod backup;
mod bulk;
pub(crate) mod catalog;
#[cfg(test)]
mod full_disk;
mod ledger_store;
mod migrate;
mod rate_cards;

use std::future::Future;
use std::pin::Pin;

use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, ColumnIndex, Connection, Decode, Row, Transaction, Type};
use tokio::sync::{Mutex, MutexGuard};

use crate::error::PlatformError;
use crate::limits::{DATABASE_WAIT_MAX, N_CONNECTIONS_MAX};
use crate::money::Micros;
use crate::time::Timestamp;

pub use backup::TABLES;
pub use migrate::{MIGRATIONS, Migration};

/// A boxed future of the platform, as traits that are objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, PlatformError>> + Send + 'a>>;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A file, or memory.
    Sqlite,
    /// A server.
    Postgres,
}

/// An open database with the present schema.
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
    /// SQLite has one writer: they wait here in their order, rather than spin on its lock.
    writing: Mutex<()>,
}

/// A transaction that writes. Dropped without a commit, it has done nothing.
pub(crate) struct Write<'a> {
    pub(crate) transaction: Transaction<'static, Any>,
    _turn: Option<MutexGuard<'a, ()>>,
}

const SQLITE_SETUP: &[&str] =
    &["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON", "PRAGMA busy_timeout = 10000"];
/// A plan that is kept would be the one that was best when a table was young: PostgreSQL then looks for an event's key among all events of its
/// account.
const POSTGRES_SETUP: &[&str] = &["SET synchronous_commit TO on", "SET TIME ZONE 'UTC'", "SET plan_cache_mode TO force_custom_plan"];

impl Store {
    /// Opens `sqlite:PATH`, `sqlite::memory:` or `postgres://…`, creating what is missing. Migrates nothing.
    pub async fn connect(url: &str) -> Result<Self, PlatformError> {
        sqlx::any::install_default_drivers();
        let dialect = match url.split_once(':') {
            Some(("sqlite", _)) => Dialect::Sqlite,
            Some(("postgres" | "postgresql", _)) => Dialect::Postgres,
            other => return Err(PlatformError::DatabaseUrl { scheme: other.map_or("", |(scheme, _)| scheme).to_string() }),
        };
        // A database in memory is one connection's own.
        let n_connections = if url.contains(":memory:") { 1 } else { N_CONNECTIONS_MAX };
        let mut url = url.to_string();
        if dialect == Dialect::Sqlite && !url.contains(":memory:") && !url.contains("mode=") {
            url.push_str(if url.contains('?') { "&mode=rwc" } else { "?mode=rwc" });
        }
        let setup = if dialect == Dialect::Sqlite { SQLITE_SETUP } else { POSTGRES_SETUP };
        let options = AnyPoolOptions::new().max_connections(n_connections).acquire_timeout(DATABASE_WAIT_MAX);
        let options = if n_connections == 1 { options.idle_timeout(None).max_lifetime(None) } else { options };
        let options = options.after_connect(move |connection, _| {
            Box::pin(async move {
                for statement in setup {
                    sqlx::raw_sql(*statement).execute(&mut *connection).await?;
                }
                Ok(())
            })
        });
        let pool = options.connect(&url).await.map_err(PlatformError::database("connecting"))?;
        Ok(Self { pool, dialect, writing: Mutex::new(()) })
    }

    /// Which of the two it is.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(crate) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Begins a transaction that writes.
    pub(crate) async fn begin(&self) -> Result<Write<'_>, PlatformError> {
        let turn = match self.dialect {
            Dialect::Sqlite => Some(self.writing.lock().await),
            Dialect::Postgres => None,
        };
        let begin = match self.dialect {
            // Takes SQLite's lock now: a transaction that reads first and then writes could not be tried again.
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN",
        };
        Ok(Write { transaction: self.begin_with(begin).await?, _turn: turn })
    }

    async fn begin_with(&self, begin: &'static str) -> Result<Transaction<'static, Any>, PlatformError> {
        let begun = self.pool.begin_with(begin).await;
        if matches!(begun, Err(sqlx::Error::InvalidSavePointStatement)) {
            self.close_confused().await;
        }
        begun.map_err(PlatformError::database("beginning a transaction"))
    }

    /// SQLite rolls a transaction back by itself when its disk is full or fails. The connection then counts one that is not there any
    /// more, and begins none for ever: it is closed, and another takes its place.
    async fn close_confused(&self) {
        let mut idle: Vec<_> = std::iter::from_fn(|| self.pool.try_acquire()).take(N_CONNECTIONS_MAX as usize).collect();
        for connection in &mut idle {
            let is_confused = matches!(connection.begin_with("BEGIN").await, Err(sqlx::Error::InvalidSavePointStatement));
            if is_confused {
                connection.close_on_drop();
            }
        }
    }

    /// Begins a transaction that reads: all its answers are of one moment.
    pub(crate) async fn snapshot(&self) -> Result<Transaction<'static, Any>, PlatformError> {
        let begin = match self.dialect {
            Dialect::Sqlite => "BEGIN",
            Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        self.begin_with(begin).await
    }

    /// Whether the database's own structures are whole, as far as it can tell: SQLite checks its file and its references.
    pub async fn check_integrity(&self) -> Result<(), PlatformError> {
        if self.dialect == Dialect::Postgres {
            return Ok(());
        }
        let failed = || PlatformError::database("checking the file");
        let rows =
            sqlx::query("SELECT integrity_check AS found FROM pragma_integrity_check").fetch_all(&self.pool).await.map_err(failed())?;
        let found = rows.iter().map(|row| get::<String>(row, "found")).collect::<Result<Vec<_>, _>>()?;
        if found != ["ok"] {
            return Err(PlatformError::Corrupt { what: "the database file", reason: found.join("; ") });
        }
        let query = sqlx::query("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM pragma_foreign_key_check");
        match get::<i64>(&query.fetch_one(&self.pool).await.map_err(failed())?, "n")? {
            0 => Ok(()),
            n => Err(PlatformError::Corrupt { what: "the database file", reason: format!("{n} rows refer to rows that are not there") }),
        }
    }

    /// Closes all connections, waiting for those at work.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl Write<'_> {
    pub(crate) async fn commit(self, doing: &'static str) -> Result<(), PlatformError> {
        self.transaction.commit().await.map_err(PlatformError::database(doing))
    }
}

/// A column of a row.
pub(crate) fn get<'r, T>(row: &'r AnyRow, column: &'static str) -> Result<T, PlatformError>
where
    T: Decode<'r, Any> + Type<Any>,
    &'static str: ColumnIndex<AnyRow>,
{
    row.try_get(column).map_err(|error| PlatformError::Corrupt { what: column, reason: error.to_string() })
}

/// A column that counts something.
pub(crate) fn get_count(row: &AnyRow, column: &'static str) -> Result<u64, PlatformError> {
    let value: i64 = get(row, column)?;
    u64::try_from(value).map_err(|_| PlatformError::Corrupt { what: column, reason: format!("{value} is negative") })
}

/// A column that counts something, or nothing.
pub(crate) fn get_optional_u32(row: &AnyRow, column: &'static str) -> Result<Option<u32>, PlatformError> {
    let value: Option<i64> = get(row, column)?;
    let narrow = |value| u32::try_from(value).map_err(|_| PlatformError::Corrupt { what: column, reason: format!("{value}") });
    value.map(narrow).transpose()
}

/// A column of a time.
pub(crate) fn get_time(row: &AnyRow, column: &'static str) -> Result<Timestamp, PlatformError> {
    get(row, column).map(Timestamp)
}

/// A column of a time, or nothing.
pub(crate) fn get_optional_time(row: &AnyRow, column: &'static str) -> Result<Option<Timestamp>, PlatformError> {
    Ok(get::<Option<i64>>(row, column)?.map(Timestamp))
}

/// A column of money.
pub(crate) fn get_money(row: &AnyRow, column: &'static str) -> Result<Micros, PlatformError> {
    get(row, column).map(Micros)
}

/// A column of an id or another text that is parsed.
pub(crate) fn get_parsed<T: std::str::FromStr>(row: &AnyRow, column: &'static str) -> Result<T, PlatformError> {
    let text: String = get(row, column)?;
    text.parse().map_err(|_| PlatformError::Corrupt { what: column, reason: format!("{text:?}") })
}

/// A count as databases have it.
pub(crate) fn as_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
