//! Delivering messages: what is due is claimed for a while, sent, and noted. Whoever dies in between leaves a claim that ends, and the
//! message is sent again: at least once, never silently not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use sqlx::any::AnyRow;
use tokio::task::JoinSet;

use crate::error::PlatformError;
use crate::ids::{AccountId, EndpointId, MessageId};
use crate::limits::{N_DELIVERIES_AT_ONCE, N_DELIVERIES_PER_ACCOUNT, OUTBOUND_TIME_MAX, WEBHOOK_POLL};
use crate::outbound::{Outbound, Outgoing};
use crate::store::{Store, get, get_count, get_parsed, get_time};
use crate::time::{Clock, Timestamp};
use crate::webhooks::signature::{EndpointSecrets, signature};

/// A message and what became of it at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Which message.
    pub message: MessageId,
    /// To where.
    pub endpoint: EndpointId,
    /// Of what kind.
    pub kind: String,
    /// What it says, as JSON.
    pub payload: String,
    /// When it happened.
    pub created_at: Timestamp,
    /// How often it was sent.
    pub n_attempts: u64,
    /// When it is sent next; nothing once it was taken or given up.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was taken.
    pub delivered_at: Option<Timestamp>,
    /// Of the last attempt: a status, or what went wrong.
    pub outcome: String,
}

/// Pauses after attempts; after the last of them, a message is given up.
const PAUSES: [Duration; 8] = [
    Duration::from_secs(5),
    Duration::from_secs(300),
    Duration::from_secs(1800),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(14 * 3600),
    Duration::from_secs(24 * 3600),
];
/// How long it takes at least until it is looked again what is due.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How long a claim holds.
const CLAIM: Duration = Duration::from_secs(2 * OUTBOUND_TIME_MAX.as_secs());
/// How long the secret before signs, too.
const SECRET_OVERLAP: Duration = Duration::from_secs(86_400);

/// Of each account no more than it may have under way: whoever has many waiting is in front of nobody.
const DUE: &str = "SELECT * FROM (SELECT d.message_id, d.endpoint_id, d.n_attempts, d.next_attempt_at, m.payload, e.account_id, e.url, e.secret_version, e.secret_since, ROW_NUMBER() OVER (PARTITION BY e.account_id ORDER BY d.next_attempt_at, d.message_id) AS place FROM webhook_delivery d JOIN webhook_message m ON m.id = d.message_id JOIN webhook_endpoint e ON e.id = d.endpoint_id WHERE d.next_attempt_at <= $1 AND e.removed_at IS NULL) AS k WHERE place <= $2 ORDER BY place, next_attempt_at, message_id LIMIT $3";

/// Sends what is due.
#[derive(Clone)]
pub struct Webhooks {
    store: Arc<Store>,
    outbound: Outbound,
    secrets: EndpointSecrets,
}

/// Deliveries under way, each by its task's name with whose it is.
type UnderWay = HashMap<tokio::task::Id, AccountId>;

struct Due {
    account: AccountId,
    message: MessageId,
    endpoint: EndpointId,
    n_attempts: u64,
    next_attempt_at: Timestamp,
    payload: String,
    url: String,
    secret_version: u64,
    secret_since: Timestamp,
}

impl Webhooks {
    /// Over a store.
    pub fn new(store: Arc<Store>, outbound: Outbound, secrets: EndpointSecrets) -> Self {
        Self { store, outbound, secrets }
    }

    /// Sends requests.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// Makes secrets of endpoints.
    pub fn secrets(&self) -> &EndpointSecrets {
        &self.secrets
    }

    /// Sends what is due now, and waits for all of it; says how many messages that were.
    pub async fn deliver_due(&self, now: Timestamp) -> Result<usize, PlatformError> {
        let (mut sending, mut under_way) = (JoinSet::new(), UnderWay::new());
        let mut n_sent = 0;
        loop {
            n_sent += self.begin_due((&mut sending, &mut under_way), now).await?;
            if sending.is_empty() {
                return Ok(n_sent);
            }
            while let Some(ended) = sending.join_next_with_id().await {
                take_end(ended, &mut under_way)?;
            }
        }
    }

    /// Begins to send what is due now, as far as there is room and its account has not enough under way; says how many messages that are.
    async fn begin_due(
        &self,
        (sending, under_way): (&mut JoinSet<Result<(), PlatformError>>, &mut UnderWay),
        now: Timestamp,
    ) -> Result<usize, PlatformError> {
        let query = sqlx::query(DUE).bind(now.0).bind(N_DELIVERIES_PER_ACCOUNT as i64).bind(N_DELIVERIES_AT_ONCE as i64);
        let rows = query.fetch_all(self.store.pool()).await.map_err(PlatformError::database("reading webhooks"))?;
        let mut n_begun = 0;
        for row in &rows {
            let due = match read_due(row) {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "a delivery cannot be read");
                    continue;
                }
            };
            let n_of_account = under_way.values().filter(|account| **account == due.account).count();
            if sending.len() >= N_DELIVERIES_AT_ONCE || n_of_account >= N_DELIVERIES_PER_ACCOUNT || !self.claim(&due, now).await? {
                continue;
            }
            let (own, account) = (self.clone(), due.account);
            let task = sending.spawn(async move {
                let outcome = own.send(&due, now).await;
                own.note(&due, outcome, now).await
            });
            under_way.insert(task.id(), account);
            n_begun += 1;
        }
        Ok(n_begun)
    }

    /// Takes a delivery, unless somebody else has meanwhile.
    async fn claim(&self, due: &Due, now: Timestamp) -> Result<bool, PlatformError> {
        let mut write = self.store.begin().await?;
        let update = sqlx::query(
            "UPDATE webhook_delivery SET next_attempt_at = $1 WHERE message_id = $2 AND endpoint_id = $3 AND next_attempt_at = $4",
        );
        let update = update.bind(now.plus(CLAIM).0).bind(due.message.to_string()).bind(due.endpoint.to_string());
        let update = update.bind(due.next_attempt_at.0);
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("claiming a delivery"))?;
        write.commit("claiming a delivery").await?;
        Ok(updated.rows_affected() == 1)
    }

    async fn send(&self, due: &Due, now: Timestamp) -> Result<StatusCode, String> {
        let (id, seconds) = (due.message.to_string(), now.0.div_euclid(1_000_000));
        let sign = |version| signature(&self.secrets.secret(due.endpoint, version), (&id, seconds), due.payload.as_bytes());
        let mut signatures = sign(due.secret_version);
        if due.secret_version > 1 && now.since(due.secret_since) < SECRET_OVERLAP {
            signatures = format!("{signatures} {}", sign(due.secret_version - 1));
        }
        let header = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
            Ok::<_, String>((HeaderName::from_static(name), value))
        };
        let outgoing = Outgoing {
            method: Method::POST,
            url: due.url.parse().map_err(|_| "the URL cannot be read".to_string())?,
            headers: vec![
                header("content-type", "application/json")?,
                header("webhook-id", &id)?,
                header("webhook-timestamp", &seconds.to_string())?,
                header("webhook-signature", &signatures)?,
            ],
            body: due.payload.clone().into_bytes(),
        };
        self.outbound.send(outgoing).await.map(|answered| answered.status).map_err(|error| error.to_string())
    }

    async fn note(&self, due: &Due, outcome: Result<StatusCode, String>, now: Timestamp) -> Result<(), PlatformError> {
        let is_taken = outcome.as_ref().is_ok_and(StatusCode::is_success);
        // It says that it will never take anything any more.
        let is_gone = outcome.as_ref().is_ok_and(|status| *status == StatusCode::GONE);
        let pause = PAUSES.get(usize::try_from(due.n_attempts).unwrap_or(usize::MAX));
        let next = pause.filter(|_| !is_taken && !is_gone).map(|pause| now.plus(*pause));
        let said = outcome.map_or_else(|reason| reason, |status| status.as_u16().to_string());
        let mut write = self.store.begin().await?;
        let update = sqlx::query(
            "UPDATE webhook_delivery SET n_attempts = n_attempts + 1, next_attempt_at = $1, delivered_at = $2, outcome = $3 WHERE message_id = $4 AND endpoint_id = $5",
        );
        let update = update.bind(next.map(|time| time.0)).bind(is_taken.then_some(now.0)).bind(said);
        let update = update.bind(due.message.to_string()).bind(due.endpoint.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting a delivery"))?;
        write.commit("noting a delivery").await
    }

    /// Delivers for ever. An endpoint that does not answer keeps its account's deliveries waiting, and nobody else's.
    pub async fn run(self, now: Clock) {
        let (mut sending, mut under_way) = (JoinSet::new(), UnderWay::new());
        let mut is_failing = false;
        loop {
            let mut failed = self.begin_due((&mut sending, &mut under_way), now()).await.err();
            // Whatever ends meanwhile makes room; without any end, it is looked again in a moment.
            let ended = tokio::time::timeout(WEBHOOK_POLL, async {
                match sending.join_next_with_id().await {
                    Some(ended) => ended,
                    None => std::future::pending().await,
                }
            });
            if let Ok(ended) = ended.await {
                failed = failed.or(take_end(ended, &mut under_way).err());
                // What ends together is looked for once.
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            while let Some(ended) = sending.try_join_next_with_id() {
                failed = failed.or(take_end(ended, &mut under_way).err());
            }
            match failed {
                None => is_failing = false,
                Some(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "webhooks cannot be delivered");
                    }
                    tokio::time::sleep(WEBHOOK_POLL).await;
                }
            }
        }
    }
}

/// A delivery that has ended: its account has room for another.
fn take_end(
    ended: Result<(tokio::task::Id, Result<(), PlatformError>), tokio::task::JoinError>,
    under_way: &mut UnderWay,
) -> Result<(), PlatformError> {
    match ended {
        Ok((id, noted)) => {
            under_way.remove(&id);
            noted
        }
        Err(error) => {
            under_way.remove(&error.id());
            Err(PlatformError::Corrupt { what: "a delivery", reason: error.to_string() })
        }
    }
}

fn read_due(row: &AnyRow) -> Result<Due, PlatformError> {
    Ok(Due {
        account: get_parsed(row, "account_id")?,
        message: get_parsed(row, "message_id")?,
        endpoint: get_parsed(row, "endpoint_id")?,
        n_attempts: get_count(row, "n_attempts")?,
        next_attempt_at: get_time(row, "next_attempt_at")?,
        payload: get(row, "payload")?,
        url: get(row, "url")?,
        secret_version: get_count(row, "secret_version")?,
        secret_since: get_time(row, "secret_since")?,
    })
}
