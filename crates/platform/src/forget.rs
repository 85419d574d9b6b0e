//! What is old is deleted, a little at a time, so that no table grows for ever and nobody waits for it: answers under idempotency keys,
//! messages to webhooks, events of payment providers, usage by the minute, how requests ended. What money is made of (events, entries,
//! invoices, payments) and the audit log are never deleted.

use crate::error::PlatformError;
use crate::ledger::projection::Grain;
use crate::limits::{MESSAGES_KEPT, MINUTES_FORGOTTEN_PER_RUN, MINUTES_KEPT, N_FORGOTTEN_PER_RUN, OUTCOMES_KEPT, PROVIDER_EVENTS_KEPT};
use crate::store::{Store, get_time};
use crate::time::Timestamp;

const DOING: &str = "deleting what is old";
/// Each with how long its rows are kept; of what is older, some go at once.
const BY_AGE: &[(&str, std::time::Duration)] = &[
    (
        "DELETE FROM webhook_delivery WHERE message_id IN (SELECT id FROM webhook_message WHERE created_at < $1 ORDER BY created_at, id LIMIT $2)",
        MESSAGES_KEPT,
    ),
    (
        "DELETE FROM webhook_message WHERE id IN (SELECT id FROM webhook_message WHERE created_at < $1 ORDER BY created_at, id LIMIT $2)",
        MESSAGES_KEPT,
    ),
    (
        "DELETE FROM provider_event WHERE event_id IN (SELECT event_id FROM provider_event WHERE received_at < $1 ORDER BY received_at LIMIT $2) AND received_at < $1",
        PROVIDER_EVENTS_KEPT,
    ),
    (
        "DELETE FROM request_outcome WHERE hour_start IN (SELECT DISTINCT hour_start FROM request_outcome WHERE hour_start < $1 ORDER BY hour_start LIMIT $2)",
        OUTCOMES_KEPT,
    ),
];

impl Store {
    /// Deletes some of what is old. Says how many rows went.
    pub async fn forget_old(&self, now: Timestamp) -> Result<u64, PlatformError> {
        let failed = || PlatformError::database(DOING);
        let mut n_deleted = self.forget_keys(now).await?;
        let mut write = self.begin().await?;
        for (text, kept) in BY_AGE {
            let delete = sqlx::query(*text).bind(now.minus(*kept).0).bind(N_FORGOTTEN_PER_RUN);
            n_deleted += delete.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected();
        }
        write.commit(DOING).await?;
        Ok(n_deleted + self.forget_minutes(now).await?)
    }

    /// Moves on the time before which usage is not known by the minute, a day at a time.
    async fn forget_minutes(&self, now: Timestamp) -> Result<u64, PlatformError> {
        let failed = || PlatformError::database(DOING);
        let oldest = "SELECT MIN(bucket_start) AS oldest FROM usage_rollup WHERE grain = 'minute'";
        let row = sqlx::query(oldest).fetch_one(self.pool()).await.map_err(failed())?;
        let Some(oldest) = crate::store::get_optional_time(&row, "oldest")? else { return Ok(0) };
        // Whole days, so that what is asked by the hour or the day is never of two kinds.
        let before = Grain::Day.start_of(now.minus(MINUTES_KEPT)).min(Grain::Day.start_of(oldest.plus(MINUTES_FORGOTTEN_PER_RUN)));
        if oldest >= before {
            return Ok(0);
        }
        let mut write = self.begin().await?;
        // Nothing is projected meanwhile: the projector updates this row first.
        for text in [
            "UPDATE ledger_writer SET projected_row = projected_row",
            "UPDATE usage_rollup_horizon SET minutes_before = CASE WHEN minutes_before > $1 THEN minutes_before ELSE $1 END",
        ] {
            let update = sqlx::query(text);
            let update = if text.contains("$1") { update.bind(before.0) } else { update };
            update.execute(&mut *write.transaction).await.map_err(failed())?;
        }
        let delete = sqlx::query("DELETE FROM usage_rollup WHERE grain = 'minute' AND bucket_start < $1").bind(before.0);
        let n_deleted = delete.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected();
        write.commit(DOING).await?;
        Ok(n_deleted)
    }

    /// Before when usage is not known by the minute.
    pub(crate) async fn minutes_before(&self) -> Result<Timestamp, PlatformError> {
        let query = sqlx::query("SELECT minutes_before FROM usage_rollup_horizon");
        get_time(
            &query.fetch_one(self.pool()).await.map_err(PlatformError::database("reading what is known by the minute"))?,
            "minutes_before",
        )
    }
}
