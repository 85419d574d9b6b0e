//! Bringing a schema up to date. Each migration is one transaction together with the note that it was applied, so that a process
//! killed at any statement leaves the schema of the version before, and two processes that start at once do not do it twice. A
//! migration that was published is never edited; its hash is checked.

use sqlx::Row;

use crate::error::PlatformError;
use crate::store::{Dialect, Store, get};
use crate::time::Timestamp;

/// One step, in both spellings.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Counted from 1.
    pub version: i64,
    /// For people.
    pub name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! both {
    ($file:literal) => {
        (include_str!(concat!("../../migrations/sqlite/", $file)), include_str!(concat!("../../migrations/postgres/", $file)))
    };
}

const fn migration(version: i64, name: &'static str, (sqlite, postgres): (&'static str, &'static str)) -> Migration {
    Migration { version, name, sqlite, postgres }
}

/// All of them, in order.
pub const MIGRATIONS: &[Migration] = &[
    migration(1, "ledger", both!("0001_ledger.sql")),
    migration(2, "directory", both!("0002_directory.sql")),
    migration(3, "rate cards", both!("0003_rate_cards.sql")),
    migration(4, "operation", both!("0004_operation.sql")),
    migration(5, "audit", both!("0005_audit.sql")),
    migration(6, "usage by purpose", both!("0006_usage_by_purpose.sql")),
    migration(10, "journal storage", both!("0010_journal_storage.sql")),
    migration(11, "invoices", both!("0011_invoices.sql")),
    migration(12, "webhooks", both!("0012_webhooks.sql")),
    migration(13, "service level", both!("0013_service_level.sql")),
    migration(14, "idempotency", both!("0014_idempotency.sql")),
    migration(20, "identity", both!("0020_identity.sql")),
    migration(21, "notices", both!("0021_notices.sql")),
    migration(22, "passkeys", both!("0022_passkeys.sql")),
    migration(23, "cards", both!("0023_cards.sql")),
];

const CREATE: &str = "CREATE TABLE IF NOT EXISTS schema_migration (version BIGINT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, applied_at BIGINT NOT NULL)";

impl Migration {
    fn statements(&self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Sqlite => self.sqlite,
            Dialect::Postgres => self.postgres,
        }
    }

    fn hash(&self, dialect: Dialect) -> String {
        blake3::hash(self.statements(dialect).as_bytes()).to_hex().to_string()
    }
}

impl Store {
    /// Applies what is missing, up to a version of [`MIGRATIONS`]; says how many that were.
    pub async fn migrate(&self, migrations: &[Migration], now: Timestamp) -> Result<usize, PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("migrating");
        if self.dialect() == Dialect::Postgres {
            // Two processes would both find the table missing.
            sqlx::raw_sql("SELECT pg_advisory_xact_lock(7075401219)").execute(&mut *write.transaction).await.map_err(failed())?;
        }
        sqlx::raw_sql(CREATE).execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit("migrating").await?;
        let mut n_applied = 0;
        for migration in migrations {
            n_applied += usize::from(self.apply(migration, now).await?);
        }
        self.check_schema(migrations).await?;
        Ok(n_applied)
    }

    /// Applies one, unless it is applied.
    async fn apply(&self, migration: &Migration, now: Timestamp) -> Result<bool, PlatformError> {
        let mut write = self.begin().await?;
        let failed = || PlatformError::database("migrating");
        if self.dialect() == Dialect::Postgres {
            sqlx::raw_sql("LOCK TABLE schema_migration").execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let query = sqlx::query("SELECT version FROM schema_migration WHERE version = $1").bind(migration.version);
        if query.fetch_optional(&mut *write.transaction).await.map_err(failed())?.is_some() {
            return Ok(false);
        }
        sqlx::raw_sql(migration.statements(self.dialect())).execute(&mut *write.transaction).await.map_err(failed())?;
        sqlx::query("INSERT INTO schema_migration (version, name, hash, applied_at) VALUES ($1, $2, $3, $4)")
            .bind(migration.version)
            .bind(migration.name)
            .bind(migration.hash(self.dialect()))
            .bind(now.0)
            .execute(&mut *write.transaction)
            .await
            .map_err(failed())?;
        write.commit("migrating").await?;
        Ok(true)
    }

    /// Whether the schema is exactly what these migrations make.
    pub async fn check_schema(&self, migrations: &[Migration]) -> Result<(), PlatformError> {
        let query = sqlx::query("SELECT version, hash FROM schema_migration ORDER BY version");
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading the schema's version"))?;
        let dialect = self.dialect();
        for index in 0..rows.len().max(migrations.len()) {
            let expected = migrations.get(index).map_or("nothing".to_string(), |migration| migration.hash(dialect));
            let got = rows.get(index).map(|row| get::<String>(row, "hash")).transpose()?.unwrap_or_else(|| "nothing".to_string());
            if expected != got {
                let version = rows.get(index).map_or(index as i64 + 1, |row| row.get("version"));
                return Err(PlatformError::Schema { version, expected, got });
            }
        }
        Ok(())
    }
}
