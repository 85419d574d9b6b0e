//! Webhooks: accounts hear of what happened to them at URLs of theirs, signed as [standard-webhooks](https://www.standardwebhooks.com)
//! says. A message is written in the transaction of what it tells of, so that neither is there without the other; it is delivered
//! later, again and again with longer pauses, until somebody takes it or it is given up; and it can be sent again. The same message
//! always has the same id, by which receivers know it again.

mod delivery;
mod endpoints;
mod signature;

use serde_json::{Value, json};

use crate::error::PlatformError;
use crate::ids::{AccountId, MessageId};
use crate::store::{Store, Write, get};
use crate::time::Timestamp;

pub use delivery::{Delivery, Webhooks};
pub use endpoints::{EndpointRow, NewEndpoint};
pub use signature::{EndpointSecrets, signature, verify};

/// What can be heard of.
pub const KINDS: &[&str] = &[
    "invoice.issued",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.payment_disputed",
    "invoice.refunded",
    "invoice.overdue",
    "credit_note.issued",
    "account.restricted",
    "account.restored",
    "api_key.created",
    "api_key.rotated",
    "api_key.revoked",
    "api_key.expiring",
    "usage.threshold_reached",
    "service_level.missed",
];

/// Something that happened to an account.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Happened {
    pub(crate) account: AccountId,
    /// What made it: the same again is no second message.
    pub(crate) source: String,
    /// One of [`KINDS`].
    pub(crate) kind: &'static str,
    pub(crate) data: Value,
}

impl Store {
    /// Notes that something happened, for all endpoints of the account that want to hear of it, and for members by mail. Says whether it
    /// is new.
    pub(crate) async fn note_happened(&self, write: &mut Write<'_>, happened: Happened, now: Timestamp) -> Result<bool, PlatformError> {
        debug_assert!(KINDS.contains(&happened.kind), "{} is a kind that nobody can ask for", happened.kind);
        let failed = || PlatformError::database("noting what happened");
        let (id, account) = (MessageId::random()?, happened.account.to_string());
        let payload = json!({ "type": happened.kind, "timestamp": now.to_rfc3339(), "data": happened.data }).to_string();
        let insert = sqlx::query(
            "INSERT INTO webhook_message (id, account_id, source, kind, payload, created_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (source) DO NOTHING",
        );
        let insert = insert.bind(id.to_string()).bind(account.clone()).bind(happened.source).bind(happened.kind).bind(payload).bind(now.0);
        if insert.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Ok(false);
        }
        self.note_notices(write, (id, (happened.account, happened.kind)), now).await?;
        let query = sqlx::query("SELECT id, kinds FROM webhook_endpoint WHERE account_id = $1 AND removed_at IS NULL").bind(account);
        for row in query.fetch_all(&mut *write.transaction).await.map_err(failed())? {
            let kinds: Vec<String> = crate::billing::invoice::from_json(&get::<String>(&row, "kinds")?, "kinds")?;
            if !kinds.is_empty() && !kinds.iter().any(|kind| kind == happened.kind) {
                continue;
            }
            let insert = sqlx::query(
                "INSERT INTO webhook_delivery (message_id, endpoint_id, n_attempts, next_attempt_at, delivered_at, outcome) VALUES ($1, $2, 0, $3, NULL, '')",
            );
            let insert = insert.bind(id.to_string()).bind(get::<String>(&row, "id")?).bind(now.0);
            insert.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        Ok(true)
    }
}
