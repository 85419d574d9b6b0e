//! Mails to members about what happened to their account: usage that nears its end, invoices, keys. They tell what webhooks tell, to
//! those whose role it concerns and who have not refused it; a notice is written in the transaction of what it tells of, and sent later,
//! again and again until the mail server has taken it or it is given up.
//!
//! What it deliberately does not do: promise that a mail arrives once. A program that dies between the mail server's yes and writing that
//! down sends it again, under the same message id, by which mail programs show it once.

mod delivery;
mod text;

use serde_json::{Value, json};

use crate::audit::By;
use crate::error::PlatformError;
use crate::identity::personal;
use crate::ids::{AccountId, MessageId, PersonId};
use crate::limits::{KEY_ENDS_SOON, KEY_LIFE_MIN, N_TOLD_PER_RUN};
use crate::store::{Store, Write, get, get_money, get_parsed, get_time};
use crate::time::Timestamp;
use crate::webhooks::Happened;

pub(crate) use delivery::Notices;

/// What somebody may hear of or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Four fifths, and then all, of what there is.
    Usage,
    /// Invoices and their payment.
    Invoices,
    /// Keys that are made, replaced, revoked or about to end.
    Keys,
    /// Objectives that were missed.
    Service,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Usage, Self::Invoices, Self::Keys, Self::Service];

    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Invoices => "invoices",
            Self::Keys => "keys",
            Self::Service => "service",
        }
    }

    /// For people, with whom it goes to.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Usage => "Usage: 80% and 100% of a plan or cap (owners, admins, billing)",
            Self::Invoices => "Invoices: issued, paid, overdue, payments that failed (owners, admins, billing)",
            Self::Keys => "Keys: made, rotated, revoked, about to end (owners, admins)",
            Self::Service => "Service levels that were missed (owners, admins)",
        }
    }

    /// What a kind of event is about.
    fn of(kind: &str) -> Option<Self> {
        match kind.split('.').next()? {
            "usage" => Some(Self::Usage),
            "invoice" | "credit_note" | "account" => Some(Self::Invoices),
            "api_key" => Some(Self::Keys),
            "service_level" => Some(Self::Service),
            _ => None,
        }
    }

    /// Who hears of it besides owners and admins.
    const fn further_role(self) -> &'static str {
        match self {
            Self::Usage | Self::Invoices => "billing",
            Self::Keys | Self::Service => "admin",
        }
    }
}

const INSERT: &str = "INSERT INTO notice (message_id, person_id, n_attempts, next_attempt_at, sent_at, outcome) SELECT $1, m.person_id, 0, $2, NULL, '' FROM member m JOIN person p ON p.id = m.person_id WHERE m.account_id = $3 AND p.verified_at IS NOT NULL AND m.role IN ('owner', 'admin', $4) AND NOT EXISTS (SELECT 1 FROM notice_refusal r WHERE r.person_id = m.person_id AND r.topic = $5)";
const OVERDUE: &str = "SELECT i.id, i.account_id, i.name, i.due_at, i.currency, i.total - i.credited - i.paid AS outstanding FROM invoice i WHERE i.kind = 'invoice' AND i.status = 'open' AND i.due_at <= $1 AND NOT EXISTS (SELECT 1 FROM webhook_message m WHERE m.source = 'invoice.overdue:' || i.id) ORDER BY i.due_at LIMIT $2";
const ENDING_KEYS: &str = "SELECT k.id, k.account_id, k.expires_at FROM api_key k WHERE k.revoked_at IS NULL AND k.expires_at > $1 AND k.expires_at <= $2 AND k.expires_at - k.created_at >= $3 AND NOT EXISTS (SELECT 1 FROM api_key n WHERE n.replaces = k.id) AND NOT EXISTS (SELECT 1 FROM webhook_message m WHERE m.source = 'api_key.expiring:' || k.id) ORDER BY k.expires_at LIMIT $4";

impl Store {
    /// Writes the mails about a message that is new.
    pub(crate) async fn note_notices(
        &self,
        write: &mut Write<'_>,
        (message, happened): (MessageId, (AccountId, &str)),
        now: Timestamp,
    ) -> Result<(), PlatformError> {
        let (account, kind) = happened;
        let Some(topic) = Topic::of(kind) else { return Ok(()) };
        let insert = sqlx::query(INSERT).bind(message.to_string()).bind(now.0).bind(account.to_string());
        let insert = insert.bind(topic.further_role()).bind(topic.name());
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting mails to members"))?;
        Ok(())
    }

    /// What somebody does not want to hear of.
    pub async fn refused_topics(&self, person: PersonId) -> Result<Vec<String>, PlatformError> {
        let query = sqlx::query("SELECT topic FROM notice_refusal WHERE person_id = $1").bind(person.to_string());
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading what is refused"))?;
        rows.iter().map(|row| get(row, "topic")).collect()
    }

    /// Somebody hears of these topics from now on, and of no others.
    pub async fn choose_topics(&self, person: PersonId, wanted: &[Topic], by: &By) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("choosing what to hear of");
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM notice_refusal WHERE person_id = $1").bind(person.to_string());
        delete.execute(&mut *write.transaction).await.map_err(failed())?;
        for topic in Topic::ALL.into_iter().filter(|topic| !wanted.contains(topic)) {
            let insert =
                sqlx::query("INSERT INTO notice_refusal (person_id, topic) VALUES ($1, $2) ON CONFLICT (person_id, topic) DO NOTHING");
            let insert = insert.bind(person.to_string()).bind(topic.name());
            insert.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let names: Vec<&str> = wanted.iter().map(|topic| topic.name()).collect();
        self.audit(&mut write, by, personal("person.topics_chosen", person, None, json!({ "topics": names }))).await?;
        write.commit("choosing what to hear of").await
    }

    /// Tells of invoices that should have been paid by now, and of keys that end soon: each once. Says how many.
    pub async fn note_what_is_due(&self, now: Timestamp) -> Result<usize, PlatformError> {
        let failed = || PlatformError::database("looking for what is due");
        let query = sqlx::query(OVERDUE).bind(now.0).bind(N_TOLD_PER_RUN);
        let mut found = Vec::new();
        for row in &query.fetch_all(self.pool()).await.map_err(failed())? {
            let (id, number, currency): (String, String, String) = (get(row, "id")?, get(row, "name")?, get(row, "currency")?);
            let data = json!({
                "id": id, "number": number, "currency": currency, "due_at": get_time(row, "due_at")?.to_rfc3339(),
                "outstanding_micros": get_money(row, "outstanding")?.0,
            });
            found.push((get_parsed(row, "account_id")?, format!("invoice.overdue:{id}"), "invoice.overdue", data));
        }
        let query = sqlx::query(ENDING_KEYS).bind(now.0).bind(now.plus(KEY_ENDS_SOON).0);
        let query = query.bind(i64::try_from(KEY_LIFE_MIN.as_micros()).unwrap_or(i64::MAX)).bind(N_TOLD_PER_RUN);
        for row in &query.fetch_all(self.pool()).await.map_err(failed())? {
            let id: String = get(row, "id")?;
            let data = json!({ "id": id, "expires_at": get_time(row, "expires_at")?.to_rfc3339() });
            found.push((get_parsed(row, "account_id")?, format!("api_key.expiring:{id}"), "api_key.expiring", data));
        }
        if found.is_empty() {
            return Ok(0);
        }
        let mut write = self.begin().await?;
        let mut n_new = 0;
        for (account, source, kind, data) in found {
            n_new += usize::from(self.note_happened(&mut write, Happened { account, source, kind, data }, now).await?);
        }
        write.commit("telling of what is due").await?;
        Ok(n_new)
    }

    /// The name of a key and how it begins, for a mail.
    async fn key_for_people(&self, data: &Value) -> Result<String, PlatformError> {
        let query = sqlx::query("SELECT name, prefix FROM api_key WHERE id = $1").bind(data["id"].as_str().unwrap_or_default().to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading a key"))?;
        let Some(row) = row else { return Ok("a key".into()) };
        Ok(format!("“{}” ({}…)", get::<String>(&row, "name")?, get::<String>(&row, "prefix")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_event_has_a_topic() {
        assert!(crate::webhooks::KINDS.iter().all(|kind| Topic::of(kind).is_some()));
        assert_eq!(Topic::of("other.kind"), None);
    }
}
