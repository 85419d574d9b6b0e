//! Backups that either database reads back: every table, row by row, as lines of JSON, from one snapshot, with a header that says of
//! which schema it is and an end that says how much there must be and its hash. A file that is cut or changed is refused before
//! anything is written. Restoring fills an empty database in one transaction, also one of the other kind.

use std::io::{BufRead, BufReader, Read};
use std::pin::Pin;

use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, Row};

use crate::audit::hex;
use crate::error::PlatformError;
use crate::store::{Dialect, MIGRATIONS, Store, Write, get};
use crate::time::Timestamp;

/// All tables but the schema's own, those first that others refer to. A test compares it with the database.
pub const TABLES: &[&str] = &[
    "installation",
    "ledger_writer",
    "journal",
    "open_request",
    "usage_event",
    "ledger_entry",
    "credit_grant",
    "credit_draw",
    "period_use",
    "usage_rollup",
    "directory_revision",
    "directory_change",
    "account",
    "account_plan",
    "project",
    "api_key",
    "plan",
    "token_price",
    "model_class",
    "credit_order",
    "audit_head",
    "audit_record",
    "audit_checkpoint",
    "invoice_issuer",
    "billing_profile",
    "tax_rate",
    "commitment",
    "coupon",
    "coupon_redemption",
    "invoice_item",
    "invoice",
    "invoice_line",
    "closed_period",
    "payment",
    "refund",
    "dunning",
    "payment_customer",
    "provider_event",
    "webhook_endpoint",
    "webhook_message",
    "webhook_delivery",
    "request_outcome",
    "service_objective",
    "idempotent_request",
    "usage_rollup_horizon",
    "person",
    "recovery_code",
    "session",
    "mail_link",
    "member",
    "invitation",
    "submission",
    "notice_refusal",
    "notice",
    "passkey",
    "passkey_challenge",
];

const FORMAT: &str = "bitnet-backup-1";
/// Longest line of a backup, in bytes: a row of the journal is the longest there is.
const LINE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    schema_version: i64,
    taken_at_micros: i64,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    n_rows: u64,
    /// Of all lines before.
    blake3: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Line {
    Header(Header),
    /// The rows that follow are of this table, and have these columns.
    Table(String, Vec<String>),
    Row(Vec<Value>),
    End(End),
}

/// What a column holds; both databases spell it their own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Text,
    Bytes,
}

/// Where lines go, hashed.
struct Out<'a> {
    file: &'a mut dyn std::io::Write,
    hasher: blake3::Hasher,
    n_rows: u64,
}

impl Out<'_> {
    fn line(&mut self, line: &Line) -> Result<(), PlatformError> {
        let mut bytes = serde_json::to_vec(line).map_err(|error| failed(&error))?;
        bytes.push(b'\n');
        self.hasher.update(&bytes);
        self.file.write_all(&bytes).map_err(|error| failed(&error))
    }
}

fn failed(error: &dyn std::fmt::Display) -> PlatformError {
    PlatformError::File { path: "the backup".into(), reason: error.to_string() }
}

impl Store {
    /// Writes everything, as it is at one moment, while others go on; says how many rows that were.
    pub async fn backup(&self, file: &mut (dyn std::io::Write + Send), now: Timestamp) -> Result<u64, PlatformError> {
        self.check_schema(MIGRATIONS).await?;
        let mut out = Out { file, hasher: blake3::Hasher::new(), n_rows: 0 };
        let schema_version = MIGRATIONS.last().map_or(0, |migration| migration.version);
        out.line(&Line::Header(Header { format: FORMAT.into(), schema_version, taken_at_micros: now.0 }))?;
        let begin = match self.dialect() {
            Dialect::Sqlite => "BEGIN",
            Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        let mut snapshot = self.pool().begin_with(begin).await.map_err(PlatformError::database("beginning a backup"))?;
        for table in TABLES {
            let columns = self.columns(table).await?;
            let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
            out.line(&Line::Table(table.to_string(), names.iter().map(ToString::to_string).collect()))?;
            let text = format!("SELECT {} FROM {table}", names.join(", "));
            let mut rows = sqlx::query(AssertSqlSafe(text)).fetch(&mut *snapshot);
            while let Some(row) = std::future::poll_fn(|cx| Pin::new(&mut rows).poll_next(cx)).await {
                let row = row.map_err(PlatformError::database("reading for a backup"))?;
                out.line(&Line::Row(values(&row, &columns)?))?;
                out.n_rows += 1;
            }
        }
        let (n_rows, hash) = (out.n_rows, hex(out.hasher.finalize().as_bytes()));
        out.line(&Line::End(End { n_rows, blake3: hash }))?;
        out.file.flush().map_err(|error| failed(&error))?;
        Ok(n_rows)
    }

    /// Fills this database, which must be empty, from a backup. `open` opens the file from its beginning: it is read twice, the
    /// first time to see whether it is whole. Says how many rows that were.
    pub async fn restore<R: Read>(&self, open: impl Fn() -> std::io::Result<R>, now: Timestamp) -> Result<u64, PlatformError> {
        let mut hasher = blake3::Hasher::new();
        let mut reader = Lines::new(open().map_err(|error| failed(&error))?);
        let Some(Line::Header(header)) = reader.next(&mut hasher)? else { return Err(failed(&"it does not begin as a backup does")) };
        if header.format != FORMAT {
            return Err(failed(&format!("expected format {FORMAT}, got {:?}", header.format)));
        }
        check_whole(&mut reader, hasher)?;
        let last = MIGRATIONS.iter().position(|migration| migration.version == header.schema_version);
        let last = last.ok_or_else(|| failed(&format!("it is of schema version {}, which is later", header.schema_version)))?;
        // First the schema that it was of; then it is filled, then brought up to date.
        self.migrate(&MIGRATIONS[..=last], now).await?;
        let query =
            sqlx::query("SELECT (SELECT COUNT(*) FROM account) + (SELECT COUNT(*) FROM usage_event) + (SELECT COUNT(*) FROM journal) AS n");
        let row = query.fetch_one(self.pool()).await.map_err(PlatformError::database("looking whether it is empty"))?;
        if get::<i64>(&row, "n")? != 0 {
            return Err(PlatformError::NotEmpty);
        }
        let n_rows = self.fill(Lines::new(open().map_err(|error| failed(&error))?)).await?;
        self.migrate(MIGRATIONS, now).await?;
        Ok(n_rows)
    }

    async fn fill<R: Read>(&self, mut reader: Lines<R>) -> Result<u64, PlatformError> {
        let mut write = self.begin().await?;
        for table in TABLES.iter().rev() {
            // A backup of an older schema has not all of them.
            if !self.columns(table).await?.is_empty() {
                let delete = sqlx::query(AssertSqlSafe(format!("DELETE FROM {table}")));
                delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("emptying tables"))?;
            }
        }
        let (mut ignored, mut n_rows) = (blake3::Hasher::new(), 0);
        let mut into = (String::new(), Vec::new());
        while let Some(line) = reader.next(&mut ignored)? {
            match line {
                Line::Header(_) => {}
                Line::Table(table, names) => into = self.insertion(&table, &names).await?,
                Line::Row(row) => {
                    insert(&mut write, &into, row).await?;
                    n_rows += 1;
                }
                Line::End(_) => break,
            }
        }
        write.commit("restoring").await?;
        Ok(n_rows)
    }

    /// The statement that fills a table, and what its columns hold.
    async fn insertion(&self, table: &str, names: &[String]) -> Result<(String, Vec<Kind>), PlatformError> {
        let known = TABLES.iter().find(|known| **known == table).ok_or_else(|| failed(&format!("an unknown table {table:?}")))?;
        let columns = self.columns(known).await?;
        let kind = |name: &String| {
            let column = columns.iter().find(|(column, _)| column == name);
            column.map(|(_, kind)| *kind).ok_or_else(|| failed(&format!("an unknown column {name:?} of {table}")))
        };
        let kinds: Vec<Kind> = names.iter().map(kind).collect::<Result<_, _>>()?;
        let places: Vec<String> = (1..=names.len()).map(|place| format!("${place}")).collect();
        Ok((format!("INSERT INTO {known} ({}) VALUES ({})", names.join(", "), places.join(", ")), kinds))
    }

    /// A table's columns, in order.
    async fn columns(&self, table: &'static str) -> Result<Vec<(String, Kind)>, PlatformError> {
        let text = match self.dialect() {
            Dialect::Sqlite => "SELECT name, type AS kind FROM pragma_table_info($1) ORDER BY cid",
            Dialect::Postgres => {
                "SELECT CAST(column_name AS TEXT) AS name, CAST(data_type AS TEXT) AS kind FROM information_schema.columns WHERE table_name = $1 AND table_schema = current_schema() ORDER BY ordinal_position"
            }
        };
        let rows = sqlx::query(text).bind(table).fetch_all(self.pool()).await.map_err(PlatformError::database("reading the schema"))?;
        let column = |row: &AnyRow| {
            let (name, kind): (String, String) = (get(row, "name")?, get(row, "kind")?);
            let kind = match kind.to_ascii_lowercase().as_str() {
                "integer" | "bigint" => Kind::Int,
                "text" => Kind::Text,
                "blob" | "bytea" => Kind::Bytes,
                _ => return Err(PlatformError::Corrupt { what: "the schema", reason: format!("{table}.{name} is a {kind}") }),
            };
            Ok((name, kind))
        };
        rows.iter().map(column).collect()
    }
}

fn values(row: &AnyRow, columns: &[(String, Kind)]) -> Result<Vec<Value>, PlatformError> {
    let corrupt = |error: sqlx::Error| PlatformError::Corrupt { what: "a row", reason: error.to_string() };
    let value = |(index, (_, kind)): (usize, &(String, Kind))| match kind {
        Kind::Int => row.try_get::<Option<i64>, _>(index).map(Value::from),
        Kind::Text => row.try_get::<Option<String>, _>(index).map(Value::from),
        Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(index).map(|bytes| Value::from(bytes.map(|bytes| digits(&bytes)))),
    };
    columns.iter().enumerate().map(|column| value(column).map_err(corrupt)).collect()
}

async fn insert(write: &mut Write<'_>, (text, kinds): &(String, Vec<Kind>), row: Vec<Value>) -> Result<(), PlatformError> {
    if row.len() != kinds.len() {
        return Err(failed(&format!("expected a row of {} values, got {}", kinds.len(), row.len())));
    }
    let query = sqlx::query(AssertSqlSafe(text.clone()));
    let query = row.into_iter().zip(kinds).try_fold(query, |query, (value, kind)| bind(query, value, *kind))?;
    query.execute(&mut *write.transaction).await.map_err(PlatformError::database("restoring a row"))?;
    Ok(())
}

type Insert = Query<'static, Any, AnyArguments>;

fn bind(query: Insert, value: Value, kind: Kind) -> Result<Insert, PlatformError> {
    Ok(match (kind, value) {
        (Kind::Int, Value::Null) => query.bind(None::<i64>),
        (Kind::Text, Value::Null) => query.bind(None::<String>),
        (Kind::Bytes, Value::Null) => query.bind(None::<Vec<u8>>),
        (Kind::Int, Value::Number(number)) if number.is_i64() => query.bind(number.as_i64()),
        (Kind::Text, Value::String(text)) => query.bind(text),
        (Kind::Bytes, Value::String(text)) => query.bind(bytes(&text).ok_or_else(|| failed(&"bytes that are not hexadecimal digits"))?),
        (kind, _) => return Err(failed(&format!("a value that is no {kind:?}"))),
    })
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok()).collect()
}

/// Reads lines of a bounded length.
struct Lines<R>(BufReader<R>);

impl<R: Read> Lines<R> {
    fn new(file: R) -> Self {
        Self(BufReader::new(file))
    }

    fn next(&mut self, hasher: &mut blake3::Hasher) -> Result<Option<Line>, PlatformError> {
        let mut line = Vec::new();
        let n_bytes = self.0.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(|error| failed(&error))?;
        if n_bytes == 0 {
            return Ok(None);
        }
        let parsed: Line = serde_json::from_slice(&line).map_err(|error| failed(&error))?;
        // The end's hash is of what is before it.
        if !matches!(parsed, Line::End(_)) {
            hasher.update(&line);
        }
        Ok(Some(parsed))
    }
}

fn check_whole<R: Read>(reader: &mut Lines<R>, mut hasher: blake3::Hasher) -> Result<(), PlatformError> {
    let mut n_rows = 0;
    loop {
        match reader.next(&mut hasher)? {
            Some(Line::Row(_)) => n_rows += 1,
            Some(Line::Table(..)) => {}
            Some(Line::Header(_)) => return Err(failed(&"it has two beginnings")),
            None => return Err(failed(&"it is cut: it has no end")),
            Some(Line::End(end)) => {
                let got = hex(hasher.finalize().as_bytes());
                let is_whole = end.n_rows == n_rows && end.blake3 == got;
                return if is_whole { Ok(()) } else { Err(failed(&"it is not as it was written: its hash or number of rows differs")) };
            }
        }
    }
}
