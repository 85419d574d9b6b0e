//! Sends notices that are due, one after another: each is claimed for a while, so that two programs on one database send none twice.
//! Who is no member any more, or has refused the topic meanwhile, gets none.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sqlx::any::AnyRow;

use super::Topic;
use super::text::{Told, written};
use crate::error::PlatformError;
use crate::identity::mail::{Courier, Mail, Undelivered};
use crate::ids::{AccountId, MessageId, PersonId};
use crate::limits::{N_NOTICES_AT_ONCE, NOTICE_AGE_MAX, NOTICE_POLL};
use crate::store::{Store, get, get_count, get_parsed, get_time};
use crate::time::{Clock, Timestamp};

/// Pauses after attempts; after the last of them, a notice is given up.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(24 * 3600),
];
/// How long a claim holds: longer than a mail server may take.
const CLAIM: Duration = Duration::from_secs(120);

const DUE: &str = "SELECT n.message_id, n.person_id, n.n_attempts, n.next_attempt_at, m.account_id, m.kind, m.payload, m.created_at, a.name AS account_name, p.email, b.role FROM notice n JOIN webhook_message m ON m.id = n.message_id JOIN account a ON a.id = m.account_id JOIN person p ON p.id = n.person_id LEFT JOIN member b ON b.account_id = m.account_id AND b.person_id = n.person_id WHERE n.next_attempt_at <= $1 ORDER BY n.next_attempt_at, n.message_id, n.person_id LIMIT $2";

/// See the module.
#[derive(Clone)]
pub(crate) struct Notices {
    store: Arc<Store>,
    courier: Courier,
    public_url: String,
}

struct Due {
    message: MessageId,
    person: PersonId,
    n_attempts: u64,
    next_attempt_at: Timestamp,
    account: AccountId,
    account_name: String,
    kind: String,
    data: Value,
    happened_at: Timestamp,
    email: String,
    role: Option<String>,
}

fn read_due(row: &AnyRow) -> Result<Due, PlatformError> {
    let corrupt = |error: serde_json::Error| PlatformError::Corrupt { what: "a message", reason: error.to_string() };
    let payload: Value = serde_json::from_str(&get::<String>(row, "payload")?).map_err(corrupt)?;
    Ok(Due {
        message: get_parsed(row, "message_id")?,
        person: get_parsed(row, "person_id")?,
        n_attempts: get_count(row, "n_attempts")?,
        next_attempt_at: get_time(row, "next_attempt_at")?,
        account: get_parsed(row, "account_id")?,
        account_name: get(row, "account_name")?,
        kind: get(row, "kind")?,
        data: payload["data"].clone(),
        happened_at: get_time(row, "created_at")?,
        email: get(row, "email")?,
        role: get(row, "role")?,
    })
}

/// How an attempt ended.
enum Outcome {
    Sent,
    Later(String),
    Never(String),
}

impl Notices {
    pub(crate) fn new(store: Arc<Store>, courier: Courier, public_url: String) -> Self {
        Self { store, courier, public_url }
    }

    /// Sends what is due now; says how many mails were taken.
    pub(crate) async fn send_due(&self, now: Timestamp) -> Result<usize, PlatformError> {
        let query = sqlx::query(DUE).bind(now.0).bind(N_NOTICES_AT_ONCE);
        let rows = query.fetch_all(self.store.pool()).await.map_err(PlatformError::database("reading mails to members"))?;
        let mut n_sent = 0;
        for row in &rows {
            let due = read_due(row)?;
            if !self.claim(&due, now).await? {
                continue;
            }
            let outcome = self.attempt(&due, now).await?;
            n_sent += usize::from(matches!(outcome, Outcome::Sent));
            self.note(&due, outcome, now).await?;
        }
        Ok(n_sent)
    }

    /// Takes a notice, unless somebody else has meanwhile.
    async fn claim(&self, due: &Due, now: Timestamp) -> Result<bool, PlatformError> {
        let mut write = self.store.begin().await?;
        let update =
            sqlx::query("UPDATE notice SET next_attempt_at = $1 WHERE message_id = $2 AND person_id = $3 AND next_attempt_at = $4");
        let update = update.bind(now.plus(CLAIM).0).bind(due.message.to_string()).bind(due.person.to_string());
        let update = update.bind(due.next_attempt_at.0);
        let updated = update.execute(&mut *write.transaction).await.map_err(PlatformError::database("claiming a mail"))?;
        write.commit("claiming a mail").await?;
        Ok(updated.rows_affected() == 1)
    }

    async fn attempt(&self, due: &Due, now: Timestamp) -> Result<Outcome, PlatformError> {
        let Some(role) = &due.role else { return Ok(Outcome::Never("no member any more".into())) };
        if now.since(due.happened_at) > NOTICE_AGE_MAX {
            return Ok(Outcome::Never("too old to be told".into()));
        }
        let refused = self.store.refused_topics(due.person).await?;
        if Topic::of(&due.kind).is_none_or(|topic| refused.iter().any(|other| other == topic.name())) {
            return Ok(Outcome::Never("refused".into()));
        }
        let key = if due.kind.starts_with("api_key.") { self.store.key_for_people(&due.data).await? } else { String::new() };
        let at = format!("{}/accounts/{}", self.public_url, due.account);
        let told = Told { kind: &due.kind, data: &due.data, account_name: &due.account_name, at: &at, key: &key };
        let Some((subject, text)) = written(&told) else { return Ok(Outcome::Never("nothing to tell".into())) };
        let text = format!(
            "Hello,\n\n{text}\n\nYou get this as {role} of “{}”. What you hear of is yours to choose: {}/profile\n",
            due.account_name, self.public_url
        );
        let mail = Mail { to: due.email.clone(), subject: format!("bitnet: {subject}"), text };
        // The same notice always has the same id.
        let id = format!("{}.{}", due.message, due.person);
        Ok(match self.courier.deliver(&mail, &id).await {
            Ok(()) => Outcome::Sent,
            Err(Undelivered::Refused { reason }) => Outcome::Never(reason),
            Err(Undelivered::Later { reason }) => Outcome::Later(reason),
        })
    }

    async fn note(&self, due: &Due, outcome: Outcome, now: Timestamp) -> Result<(), PlatformError> {
        let pause = PAUSES.get(usize::try_from(due.n_attempts).unwrap_or(usize::MAX));
        let (next, sent, said) = match outcome {
            Outcome::Sent => (None, Some(now.0), String::new()),
            Outcome::Never(reason) => (None, None, reason),
            Outcome::Later(reason) => (pause.map(|pause| now.plus(*pause).0), None, reason),
        };
        let mut write = self.store.begin().await?;
        let update = sqlx::query(
            "UPDATE notice SET n_attempts = n_attempts + 1, next_attempt_at = $1, sent_at = $2, outcome = $3 WHERE message_id = $4 AND person_id = $5",
        );
        let update = update.bind(next).bind(sent).bind(said).bind(due.message.to_string()).bind(due.person.to_string());
        update.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting a mail"))?;
        write.commit("noting a mail").await
    }

    /// Sends for ever.
    pub(crate) async fn run(self, now: Clock) {
        let mut is_failing = false;
        loop {
            match self.send_due(now()).await {
                Ok(_) => is_failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "mails to members cannot be sent");
                    }
                }
            }
            tokio::time::sleep(NOTICE_POLL).await;
        }
    }
}
