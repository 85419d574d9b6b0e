//! The audit log: who did what to whom, from where, and what changed. A record is written in the transaction of the change itself,
//! so that there is no change without one, and holds the hash of the record before it. Signed checkpoints, kept outside of the
//! database too, say how far the chain was: an edit, a removal, another order or an older database put back are found by
//! [`verify`]. The domain bytes are those of RFC 6962: 0 before a record.

mod checkpoint;
pub mod verify;

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::limits::N_AUDIT_RECORDS_PER_PAGE;
use crate::store::{Store, Write, as_i64, get, get_count, get_time};
use crate::time::Timestamp;

pub use checkpoint::{Checkpoint, CheckpointFile, CheckpointKey};

/// Who does something, from where, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// A member, a key, or an operator at the command line.
    pub actor: String,
    /// Where from; empty if from this machine.
    pub address: String,
    /// In which request; empty if in none.
    pub request_id: String,
    /// When.
    pub at: Timestamp,
}

impl By {
    /// An operator at the command line of this machine.
    pub fn operator(user: &str, at: Timestamp) -> Self {
        Self { actor: format!("operator:{user}"), address: String::new(), request_id: String::new(), at }
    }

    /// A job that runs by itself.
    pub fn job(name: &str, at: Timestamp) -> Self {
        Self { actor: format!("job:{name}"), address: String::new(), request_id: String::new(), at }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deed {
    pub(crate) action: &'static str,
    pub(crate) account: Option<AccountId>,
    pub(crate) target: String,
    pub(crate) before: Value,
    pub(crate) after: Value,
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Its place, counted from 1 without a gap.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What, such as `api_key.revoked`.
    pub action: String,
    /// Whose; empty if nobody's or all of them.
    pub account: String,
    /// To what.
    pub target: String,
    /// JSON of what there was; empty for nothing.
    pub before: String,
    /// JSON of what there is; empty for nothing.
    pub after: String,
    /// From where.
    pub address: String,
    /// In which request.
    pub request_id: String,
    /// The hash of the record before it.
    pub previous_hash: [u8; 32],
    /// Its own.
    pub hash: [u8; 32],
}

/// Which records are looked for. Empty lists leave nothing out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSearch {
    /// Of one account.
    pub account: Option<AccountId>,
    /// Not before.
    pub from: Timestamp,
    /// Before.
    pub until: Timestamp,
    /// What was done.
    pub actions: Vec<String>,
    /// By whom.
    pub actors: Vec<String>,
    /// To what.
    pub targets: Vec<String>,
    /// Behind this record.
    pub after_seq: u64,
    /// Before this one.
    pub before_seq: u64,
    /// So many at most.
    pub n_max: i64,
}

impl Default for AuditSearch {
    fn default() -> Self {
        Self {
            account: None,
            from: Timestamp(i64::MIN),
            until: Timestamp(i64::MAX),
            actions: Vec::new(),
            actors: Vec::new(),
            targets: Vec::new(),
            after_seq: 0,
            before_seq: u64::MAX,
            n_max: N_AUDIT_RECORDS_PER_PAGE,
        }
    }
}

/// Before a record, in what is hashed.
const RECORD_DOMAIN: u8 = 0;
/// The hash before the first record.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

impl AuditRecord {
    /// What its hash must be. Every text is preceded by its length, so that nothing can move from one to the next.
    pub fn expected_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[RECORD_DOMAIN]).update(&self.previous_hash);
        hasher.update(&self.seq.to_le_bytes()).update(&self.at.0.to_le_bytes());
        let texts = [&self.actor, &self.action, &self.account, &self.target, &self.before, &self.after, &self.address, &self.request_id];
        for text in texts {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// As a message of syslog by RFC 5424: facility 13 (log audit), severity 5 (notice). What changed is its text.
    pub fn to_syslog(&self) -> String {
        let value = |text: &str| {
            let mut escaped = String::with_capacity(text.len());
            for character in text.chars() {
                if matches!(character, '"' | '\\' | ']') {
                    escaped.push('\\');
                }
                escaped.push(character);
            }
            escaped
        };
        let (seq, hash) = (self.seq.to_string(), hex(&self.hash));
        let pairs = [
            ("seq", seq.as_str()),
            ("actor", &self.actor),
            ("account", &self.account),
            ("target", &self.target),
            ("address", &self.address),
            ("request", &self.request_id),
            ("hash", &hash),
        ];
        let data: String = pairs.iter().map(|(name, text)| format!(" {name}=\"{}\"", value(text))).collect();
        let id: String = self.action.chars().filter(char::is_ascii_graphic).take(32).collect();
        let state = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        // One record is one line, whatever is in it: JSON has no line ends of its own.
        let text = json!({ "before": state(&self.before), "after": state(&self.after) });
        let data: String = data.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
        format!("<109>1 {} - bitnet - {} [bitnet@32473{data}] {text}", self.at.to_rfc3339(), if id.is_empty() { "-" } else { &id })
    }

    /// As a line of an export.
    pub fn to_json(&self) -> Value {
        let state = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        json!({
            "seq": self.seq,
            "at": self.at.to_rfc3339(),
            "at_micros": self.at.0,
            "actor": self.actor,
            "action": self.action,
            "account": self.account,
            "target": self.target,
            "before": state(&self.before),
            "after": state(&self.after),
            "address": self.address,
            "request_id": self.request_id,
            "previous_hash": hex(&self.previous_hash),
            "hash": hex(&self.hash),
        })
    }
}

/// Hexadecimal digits of a hash.
pub(crate) fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

const INSERT: &str = "INSERT INTO audit_record (seq, at, actor, action, account_id, target, before_state, after_state, address, request_id, previous_hash, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const N_RECORDS_PER_PAGE: i64 = 1000;

impl Store {
    /// Adds a record to the chain, within the transaction of what it tells of.
    pub(crate) async fn audit(&self, write: &mut Write<'_>, by: &By, deed: Deed) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("writing the audit log");
        // The row lock keeps others out until this one is committed.
        let lock = sqlx::query("UPDATE audit_head SET seq = seq + 1");
        lock.execute(&mut *write.transaction).await.map_err(failed())?;
        let head = sqlx::query("SELECT seq, hash FROM audit_head").fetch_one(&mut *write.transaction).await.map_err(failed())?;
        let state = |value: &Value| if value.is_null() { String::new() } else { value.to_string() };
        let mut record = AuditRecord {
            seq: get_count(&head, "seq")?,
            at: by.at,
            actor: by.actor.clone(),
            action: deed.action.to_string(),
            account: deed.account.map_or_else(String::new, |id| id.to_string()),
            target: deed.target,
            before: state(&deed.before),
            after: state(&deed.after),
            address: by.address.clone(),
            request_id: by.request_id.clone(),
            previous_hash: get_hash(&head, "hash")?,
            hash: GENESIS,
        };
        record.hash = record.expected_hash();
        let update = sqlx::query("UPDATE audit_head SET hash = $1").bind(record.hash.to_vec());
        update.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query(INSERT).bind(as_i64(record.seq)).bind(record.at.0).bind(record.actor).bind(record.action);
        let insert = insert.bind(record.account).bind(record.target).bind(record.before).bind(record.after);
        let insert = insert.bind(record.address).bind(record.request_id);
        let insert = insert.bind(record.previous_hash.to_vec()).bind(record.hash.to_vec());
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        Ok(())
    }

    /// Records behind one of them, in order, a page at a time; of one account, or of all.
    pub async fn audit_records(&self, after: u64, account: Option<AccountId>) -> Result<Vec<AuditRecord>, PlatformError> {
        let query = match account {
            Some(id) => sqlx::query("SELECT * FROM audit_record WHERE seq > $1 AND account_id = $3 ORDER BY seq LIMIT $2")
                .bind(as_i64(after))
                .bind(N_RECORDS_PER_PAGE)
                .bind(id.to_string()),
            None => {
                sqlx::query("SELECT * FROM audit_record WHERE seq > $1 ORDER BY seq LIMIT $2").bind(as_i64(after)).bind(N_RECORDS_PER_PAGE)
            }
        };
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading the audit log"))?;
        rows.iter().map(read).collect()
    }

    /// Records before one of them, the latest first, some at a time; of one account, or of all.
    pub(crate) async fn latest_audit_records(&self, before: u64, account: Option<AccountId>) -> Result<Vec<AuditRecord>, PlatformError> {
        let query = match account {
            Some(id) => sqlx::query("SELECT * FROM audit_record WHERE seq < $1 AND account_id = $3 ORDER BY seq DESC LIMIT $2")
                .bind(as_i64(before))
                .bind(N_AUDIT_RECORDS_PER_PAGE)
                .bind(id.to_string()),
            None => sqlx::query("SELECT * FROM audit_record WHERE seq < $1 ORDER BY seq DESC LIMIT $2")
                .bind(as_i64(before))
                .bind(N_AUDIT_RECORDS_PER_PAGE),
        };
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading the audit log"))?;
        rows.iter().map(read).collect()
    }

    /// Records that are looked for, the latest first; where it is said behind which one, those next to it, in order.
    pub async fn find_audit_records(&self, search: &AuditSearch) -> Result<Vec<AuditRecord>, PlatformError> {
        let mut text =
            "SELECT * FROM audit_record WHERE seq > $1 AND seq < $2 AND at >= $3 AND at < $4 AND ($5 = '' OR account_id = $5)".to_string();
        let mut n_bound = 6;
        let lists = [("action", &search.actions), ("actor", &search.actors), ("target", &search.targets)];
        for (column, values) in lists.iter().filter(|(_, values)| !values.is_empty()) {
            let places: Vec<String> = (n_bound + 1..).map(|place| format!("${place}")).take(values.len()).collect();
            n_bound += values.len();
            text.push_str(&format!(" AND {column} IN ({})", places.join(", ")));
        }
        let is_forward = search.after_seq > 0 && search.before_seq == u64::MAX;
        text.push_str(if is_forward { " ORDER BY seq LIMIT $6" } else { " ORDER BY seq DESC LIMIT $6" });
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(as_i64(search.after_seq)).bind(as_i64(search.before_seq));
        let query = query.bind(search.from.0).bind(search.until.0);
        let query = query.bind(search.account.map_or_else(String::new, |id| id.to_string())).bind(search.n_max);
        let values = lists.iter().flat_map(|(_, values)| values.iter());
        let query = values.fold(query, |query, value| query.bind(value.clone()));
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading the audit log"))?;
        rows.iter().map(read).collect()
    }

    /// The addresses of people whom records of a range name, by their ids.
    pub(crate) async fn emails_in_audit(&self, (first, last): (u64, u64)) -> Result<Vec<(String, String)>, PlatformError> {
        let query = sqlx::query(
            "SELECT p.id, p.email FROM person p WHERE p.id IN (SELECT actor FROM audit_record WHERE seq >= $1 AND seq <= $2) OR p.id IN (SELECT target FROM audit_record WHERE seq >= $1 AND seq <= $2)",
        );
        let query = query.bind(as_i64(first)).bind(as_i64(last));
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading people"))?;
        rows.iter().map(|row| Ok((get(row, "id")?, get(row, "email")?))).collect()
    }

    /// How far the chain is.
    pub(crate) async fn audit_head(&self) -> Result<(u64, [u8; 32]), PlatformError> {
        let query = sqlx::query("SELECT seq, hash FROM audit_head");
        let head = query.fetch_one(self.pool()).await.map_err(PlatformError::database("reading the audit log"))?;
        Ok((get_count(&head, "seq")?, get_hash(&head, "hash")?))
    }
}

fn read(row: &AnyRow) -> Result<AuditRecord, PlatformError> {
    Ok(AuditRecord {
        seq: get_count(row, "seq")?,
        at: get_time(row, "at")?,
        actor: get(row, "actor")?,
        action: get(row, "action")?,
        account: get(row, "account_id")?,
        target: get(row, "target")?,
        before: get(row, "before_state")?,
        after: get(row, "after_state")?,
        address: get(row, "address")?,
        request_id: get(row, "request_id")?,
        previous_hash: get_hash(row, "previous_hash")?,
        hash: get_hash(row, "hash")?,
    })
}

pub(crate) fn get_hash(row: &AnyRow, column: &'static str) -> Result<[u8; 32], PlatformError> {
    let bytes: Vec<u8> = get(row, column)?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| PlatformError::Corrupt { what: column, reason: format!("{length} bytes") })
}
