//! Thresholds of usage: whoever has used four fifths, and then all, of a plan's operations or of a spending cap, hears of it once a
//! month and threshold.

use serde_json::json;
use sqlx::any::AnyRow;

use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::store::{Store, get, get_count, get_parsed};
use crate::time::Timestamp;
use crate::webhooks::Happened;

/// Hundredths of what there is.
const PERCENTS: [u64; 2] = [80, 100];

const USED: &str = "SELECT a.id AS id, a.spending_cap AS spending_cap, p.included_operations AS included, u.n_included AS n_included, u.due AS due FROM period_use u JOIN account a ON a.id = u.scope_id JOIN account_plan h ON h.account_id = a.id AND h.valid_from <= $2 AND (h.valid_until IS NULL OR h.valid_until > $2) JOIN plan p ON p.id = h.plan_id AND p.valid_from <= $2 AND (p.valid_until IS NULL OR p.valid_until > $2) WHERE u.scope_kind = 'account' AND u.period = $1";

impl Store {
    /// Tells of thresholds that were passed; says how many are new.
    pub async fn note_thresholds(&self, now: Timestamp) -> Result<usize, PlatformError> {
        let query = sqlx::query(USED).bind(i64::from(now.period().0)).bind(now.0);
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading what was used"))?;
        let passed = rows.iter().map(|row| passed(row, now)).collect::<Result<Vec<_>, _>>()?;
        let mut passed: Vec<Happened> = passed.into_iter().flatten().collect();
        // Most have been told before: these are looked for first, without a lock.
        let mut fresh = Vec::new();
        for happened in passed.drain(..) {
            let query = sqlx::query("SELECT id FROM webhook_message WHERE source = $1").bind(happened.source.clone());
            let known = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading messages"))?;
            if known.is_none() {
                fresh.push(happened);
            }
        }
        if fresh.is_empty() {
            return Ok(0);
        }
        let mut write = self.begin().await?;
        let mut n_new = 0;
        for happened in fresh {
            n_new += usize::from(self.note_happened(&mut write, happened, now).await?);
        }
        write.commit("noting thresholds").await?;
        Ok(n_new)
    }
}

fn passed(row: &AnyRow, now: Timestamp) -> Result<Vec<Happened>, PlatformError> {
    let account: AccountId = get_parsed(row, "id")?;
    let included = get::<Option<i64>>(row, "included")?.and_then(|included| u64::try_from(included).ok());
    let cap = get_count(row, "spending_cap")?;
    let due = u64::try_from(get::<i64>(row, "due")?).unwrap_or(0);
    let meters = [("operations", included, get_count(row, "n_included")?), ("spending", Some(cap), due)];
    let mut found = Vec::new();
    for (meter, most, used) in meters {
        let Some(most) = most.filter(|most| *most > 0) else { continue };
        for percent in PERCENTS.into_iter().filter(|percent| u128::from(used) * 100 >= u128::from(most) * u128::from(*percent)) {
            let period = now.period();
            let data = json!({ "meter": meter, "percent": percent, "used": used, "of": most, "period": period.to_string() });
            let source = format!("usage.threshold:{account}:{period}:{meter}:{percent}");
            found.push(Happened { account, source, kind: "usage.threshold_reached", data });
        }
    }
    Ok(found)
}
