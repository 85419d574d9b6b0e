//! Where accounts want to hear of events: made, listed, removed; their secrets changed; their messages sent again.

use axum::http::Uri;
use serde_json::{Value, json};
use sqlx::any::AnyRow;

use crate::audit::{By, Deed};
use crate::billing::invoice::from_json;
use crate::error::PlatformError;
use crate::ids::{AccountId, EndpointId, MessageId};
use crate::limits::{N_ENDPOINTS_MAX, N_MESSAGES_PER_PAGE, URL_BYTES_MAX};
use crate::outbound::Outbound;
use crate::store::{Store, Write, get, get_count, get_optional_time, get_parsed, get_time};
use crate::time::Timestamp;
use crate::webhooks::{Delivery, KINDS};

/// An endpoint to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEndpoint {
    /// Whose.
    pub account: AccountId,
    /// Where to.
    pub url: String,
    /// What it wants to hear of; without any, of all.
    pub kinds: Vec<String>,
}

/// An endpoint that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// Which.
    pub id: EndpointId,
    /// Whose.
    pub account: AccountId,
    /// Where to.
    pub url: String,
    /// What it wants to hear of; without any, of all.
    pub kinds: Vec<String>,
    /// Of its secret.
    pub secret_version: u64,
    /// Since when.
    pub created_at: Timestamp,
}

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database("changing a webhook")
}

impl Store {
    /// Makes an endpoint.
    pub async fn create_endpoint(&self, new: &NewEndpoint, outbound: &Outbound, by: &By) -> Result<EndpointRow, PlatformError> {
        let invalid = |field, reason: String| PlatformError::Invalid { field, reason };
        if new.url.len() > URL_BYTES_MAX {
            return Err(invalid("url", format!("at most {URL_BYTES_MAX} bytes")));
        }
        let url: Uri = new.url.parse().map_err(|_| invalid("url", "it cannot be read".into()))?;
        outbound.check(&url).map_err(|error| invalid("url", error.to_string()))?;
        if let Some(kind) = new.kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            return Err(invalid("kinds", format!("there is no {kind:?}; there are {}", KINDS.join(", "))));
        }
        let id = EndpointId::random()?;
        let mut write = self.begin().await?;
        let lock = sqlx::query("UPDATE account SET name = name WHERE id = $1").bind(new.account.to_string());
        if lock.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "account" });
        }
        let query = sqlx::query("SELECT COUNT(*) AS n FROM webhook_endpoint WHERE account_id = $1 AND removed_at IS NULL");
        let row = query.bind(new.account.to_string()).fetch_one(&mut *write.transaction).await.map_err(failed())?;
        if get::<i64>(&row, "n")? >= i64::from(N_ENDPOINTS_MAX) {
            return Err(PlatformError::PlanLimit { what: "webhooks", limit: N_ENDPOINTS_MAX });
        }
        let insert = sqlx::query(
            "INSERT INTO webhook_endpoint (id, account_id, url, kinds, secret_version, secret_since, created_at, removed_at) VALUES ($1, $2, $3, $4, 1, $5, $5, NULL)",
        );
        let insert = insert.bind(id.to_string()).bind(new.account.to_string()).bind(new.url.clone());
        let insert = insert.bind(json!(new.kinds).to_string()).bind(by.at.0);
        insert.execute(&mut *write.transaction).await.map_err(failed())?;
        let after = json!({ "url": new.url, "kinds": new.kinds });
        self.note_endpoint(&mut write, ("webhook.created", new.account, id), after, by).await?;
        write.commit("making a webhook").await?;
        let NewEndpoint { account, url, kinds } = new.clone();
        Ok(EndpointRow { id, account, url, kinds, secret_version: 1, created_at: by.at })
    }

    /// The endpoints of an account.
    pub async fn endpoints(&self, account: AccountId) -> Result<Vec<EndpointRow>, PlatformError> {
        let query = sqlx::query("SELECT * FROM webhook_endpoint WHERE account_id = $1 AND removed_at IS NULL ORDER BY created_at, id");
        let rows = query.bind(account.to_string()).fetch_all(self.pool()).await;
        rows.map_err(PlatformError::database("reading webhooks"))?.iter().map(read_endpoint).collect()
    }

    /// Removes one; what waits for it is not sent.
    pub async fn remove_endpoint(&self, (account, id): (AccountId, EndpointId), by: &By) -> Result<(), PlatformError> {
        let mut write = self.begin().await?;
        let update = sqlx::query("UPDATE webhook_endpoint SET removed_at = $1 WHERE id = $2 AND account_id = $3 AND removed_at IS NULL");
        let update = update.bind(by.at.0).bind(id.to_string()).bind(account.to_string());
        if update.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "webhook" });
        }
        let end = sqlx::query("UPDATE webhook_delivery SET next_attempt_at = NULL WHERE endpoint_id = $1").bind(id.to_string());
        end.execute(&mut *write.transaction).await.map_err(failed())?;
        self.note_endpoint(&mut write, ("webhook.removed", account, id), Value::Null, by).await?;
        write.commit("removing a webhook").await
    }

    /// Gives one a new secret; for a day the old one signs, too. Returns its version.
    pub async fn rotate_endpoint(&self, (account, id): (AccountId, EndpointId), by: &By) -> Result<u64, PlatformError> {
        let mut write = self.begin().await?;
        let update = sqlx::query(
            "UPDATE webhook_endpoint SET secret_version = secret_version + 1, secret_since = $1 WHERE id = $2 AND account_id = $3 AND removed_at IS NULL",
        );
        let update = update.bind(by.at.0).bind(id.to_string()).bind(account.to_string());
        if update.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 0 {
            return Err(PlatformError::NotFound { what: "webhook" });
        }
        let query = sqlx::query("SELECT secret_version FROM webhook_endpoint WHERE id = $1").bind(id.to_string());
        let version = get_count(&query.fetch_one(&mut *write.transaction).await.map_err(failed())?, "secret_version")?;
        self.note_endpoint(&mut write, ("webhook.secret_changed", account, id), json!({ "version": version }), by).await?;
        write.commit("changing a webhook's secret").await?;
        Ok(version)
    }

    async fn note_endpoint(
        &self,
        write: &mut Write<'_>,
        (action, account, id): (&'static str, AccountId, EndpointId),
        after: Value,
        by: &By,
    ) -> Result<(), PlatformError> {
        self.audit(write, by, Deed { action, account: Some(account), target: id.to_string(), before: Value::Null, after }).await
    }

    /// What was and will be sent to an endpoint, the newest first.
    pub async fn deliveries(&self, account: AccountId, id: EndpointId) -> Result<Vec<Delivery>, PlatformError> {
        let query = sqlx::query(
            "SELECT d.*, m.kind, m.payload, m.created_at FROM webhook_delivery d JOIN webhook_message m ON m.id = d.message_id WHERE d.endpoint_id = $1 AND m.account_id = $2 ORDER BY m.created_at DESC, m.id LIMIT $3",
        );
        let query = query.bind(id.to_string()).bind(account.to_string()).bind(N_MESSAGES_PER_PAGE);
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading webhooks"))?;
        let read = |row: &AnyRow| {
            Ok(Delivery {
                message: get_parsed(row, "message_id")?,
                endpoint: id,
                kind: get(row, "kind")?,
                payload: get(row, "payload")?,
                created_at: get_time(row, "created_at")?,
                n_attempts: get_count(row, "n_attempts")?,
                next_attempt_at: get_optional_time(row, "next_attempt_at")?,
                delivered_at: get_optional_time(row, "delivered_at")?,
                outcome: get(row, "outcome")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Sends a message again, whatever became of it, or all from a time on. Says how many that are.
    pub async fn replay(
        &self,
        (account, id): (AccountId, EndpointId),
        (message, since): (Option<MessageId>, Timestamp),
        now: Timestamp,
    ) -> Result<u64, PlatformError> {
        let query = sqlx::query("SELECT id FROM webhook_endpoint WHERE id = $1 AND account_id = $2 AND removed_at IS NULL");
        let query = query.bind(id.to_string()).bind(account.to_string());
        if query.fetch_optional(self.pool()).await.map_err(failed())?.is_none() {
            return Err(PlatformError::NotFound { what: "webhook" });
        }
        let mut write = self.begin().await?;
        let update = sqlx::query(
            "UPDATE webhook_delivery SET next_attempt_at = $1, n_attempts = 0, delivered_at = NULL WHERE endpoint_id = $2 AND (message_id = $3 OR ($3 = '' AND message_id IN (SELECT m.id FROM webhook_message m WHERE m.account_id = $4 AND m.created_at >= $5)))",
        );
        let update = update.bind(now.0).bind(id.to_string()).bind(message.map_or_else(String::new, |id| id.to_string()));
        let update = update.bind(account.to_string()).bind(since.0);
        let updated = update.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected();
        write.commit("sending again").await?;
        if message.is_some() && updated == 0 { Err(PlatformError::NotFound { what: "message" }) } else { Ok(updated) }
    }
}

fn read_endpoint(row: &AnyRow) -> Result<EndpointRow, PlatformError> {
    Ok(EndpointRow {
        id: get_parsed(row, "id")?,
        account: get_parsed(row, "account_id")?,
        url: get(row, "url")?,
        kinds: from_json(&get::<String>(row, "kinds")?, "kinds")?,
        secret_version: get_count(row, "secret_version")?,
        created_at: get_time(row, "created_at")?,
    })
}
