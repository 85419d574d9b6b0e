//! Service levels: how requests of each account ended, counted as they end, by hour; and whether a month kept what its plan promised.
//! One that did not gives back a part of its fee on its invoice, by itself. What counts is what the server did: a request that it
//! refused for being overloaded, or that failed by its fault, is not served; one that its client left is.
//!
//! Counts are written every few seconds: a crash loses those, which are in nobody's disfavour by more than that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::billing::statement::{PARTS, part_of, prorated};
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::projection::Grain;
use crate::limits::OUTCOMES_EVERY;
use crate::money::Micros;
use crate::store::{Store, Write, as_i64, get, get_count};
use crate::time::{Period, Timestamp};
use crate::webhooks::Happened;

/// Within how many milliseconds a first token may be there; what is later is in none.
pub const LATENCIES_MS: [u32; 10] = [50, 100, 250, 500, 1000, 2000, 5000, 10_000, 20_000, 30_000];
const FAILED: &str = "failed";
const LATER: &str = "later";

/// How a request ended, for its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was served, and its first token was there after this.
    Served { first_token: Duration },
    /// It was our fault that it was not.
    Failed,
}

impl Ended {
    fn name(self) -> String {
        let Self::Served { first_token } = self else { return FAILED.into() };
        let within = LATENCIES_MS.into_iter().find(|ms| first_token <= Duration::from_millis(u64::from(*ms)));
        within.map_or_else(|| LATER.into(), |ms| ms.to_string())
    }
}

type Counts = HashMap<(AccountId, Timestamp, String), u64>;

/// Counts that are not written yet.
#[derive(Clone, Default)]
pub struct Outcomes(Arc<Mutex<Counts>>);

impl Outcomes {
    /// Counts a request that ended now.
    pub fn note(&self, account: AccountId, ended: Ended, now: Timestamp) {
        self.add((account, Grain::Hour.start_of(now), ended.name()), 1);
    }

    fn add(&self, key: (AccountId, Timestamp, String), n: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += n;
    }

    /// Writes what was counted. What cannot be written is counted on.
    pub async fn flush(&self, store: &Store) -> Result<(), PlatformError> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return Ok(());
        }
        let written = write_counts(store, &counts).await;
        if written.is_err() {
            counts.into_iter().for_each(|(key, n)| self.add(key, n));
        }
        written
    }

    /// Writes for ever.
    pub async fn run(self, store: Arc<Store>) {
        loop {
            tokio::time::sleep(OUTCOMES_EVERY).await;
            if let Err(error) = self.flush(&store).await {
                tracing::debug!(%error, "outcomes of requests wait to be written");
            }
        }
    }
}

async fn write_counts(store: &Store, counts: &Counts) -> Result<(), PlatformError> {
    let mut write = store.begin().await?;
    // In one order, so that two writers do not wait for each other.
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_unstable();
    for ((account, hour, outcome), n) in counts {
        let insert = sqlx::query(
            "INSERT INTO request_outcome (account_id, hour_start, outcome, n) VALUES ($1, $2, $3, $4) ON CONFLICT (account_id, hour_start, outcome) DO UPDATE SET n = request_outcome.n + excluded.n",
        );
        let insert = insert.bind(account.to_string()).bind(hour.0).bind(outcome.clone()).bind(as_i64(*n));
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database("noting outcomes"))?;
    }
    write.commit("noting outcomes").await
}

/// What a plan promises for a month. Parts in a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objective {
    /// Of which plan.
    pub plan: String,
    /// Requests that are served.
    pub availability: u32,
    /// Of those, the part whose first token is there within the next.
    pub latency_part: u32,
    /// In milliseconds; one of [`LATENCIES_MS`].
    pub latency_ms_max: u32,
    /// Of the fee, given back for each of the two that was not kept.
    pub credit_part: u32,
    /// Below this, more is given back.
    pub deep_availability: u32,
    /// How much.
    pub deep_credit_part: u32,
}

/// A month of an account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Level {
    /// Requests that were served.
    pub n_served: u64,
    /// Of those, with a first token in time, as the objective says.
    pub n_in_time: u64,
    /// Requests that were not served.
    pub n_failed: u64,
    /// What was promised, if anything.
    pub objective: Option<Objective>,
}

impl Level {
    /// In a million; all where nothing was asked.
    pub fn availability(&self) -> u32 {
        parts(self.n_served, self.n_served.saturating_add(self.n_failed))
    }

    /// In a million.
    pub fn in_time(&self) -> u32 {
        parts(self.n_in_time, self.n_served)
    }

    /// The part of the fee that is given back.
    pub fn credit_part(&self) -> u32 {
        let Some(objective) = &self.objective else { return 0 };
        let availability = match self.availability() {
            missed if missed < objective.deep_availability => objective.deep_credit_part,
            missed if missed < objective.availability => objective.credit_part,
            _ => 0,
        };
        let latency = if self.in_time() < objective.latency_part { objective.credit_part } else { 0 };
        (availability + latency).min(PARTS)
    }
}

/// Rounded down: what is not wholly kept is not kept.
fn parts(n: u64, of: u64) -> u32 {
    if of == 0 { PARTS } else { u32::try_from(u128::from(n) * u128::from(PARTS) / u128::from(of)).unwrap_or(PARTS) }
}

const OBJECTIVE: &str = "SELECT o.*, a.valid_from AS had_from, a.valid_until AS had_until, p.monthly_price AS monthly_price FROM account_plan a JOIN service_objective o ON o.plan_id = a.plan_id JOIN plan p ON p.id = a.plan_id WHERE a.account_id = $1 AND a.valid_from < $2 AND (a.valid_until IS NULL OR a.valid_until > $3) AND o.valid_from < $2 AND (o.valid_until IS NULL OR o.valid_until >= $2) AND p.valid_from < $2 AND (p.valid_until IS NULL OR p.valid_until >= $2) ORDER BY a.valid_from DESC LIMIT 1";

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database("reading a service level")
}

impl Store {
    /// How a month of an account was, as far as it is written.
    pub async fn service_level(&self, account: AccountId, period: Period) -> Result<Level, PlatformError> {
        let mut snapshot = self.snapshot().await?;
        read_level(&mut snapshot, (account, period)).await.map(|(level, _)| level)
    }

    /// Gives back for a month what its plan promises for what was not kept; once.
    pub(crate) async fn add_service_credit(
        &self,
        write: &mut Write<'_>,
        (account, period): (AccountId, Period),
        now: Timestamp,
    ) -> Result<(), PlatformError> {
        let (level, fee) = read_level(&mut write.transaction, (account, period)).await?;
        let amount = part_of(fee, level.credit_part());
        if amount == Micros::ZERO {
            return Ok(());
        }
        let percent = |parts: u32| format!("{}.{:03}%", parts / 10_000, parts % 10_000 / 10);
        let (served, in_time) = (percent(level.availability()), percent(level.in_time()));
        let text = format!("service level of {period} not kept: {served} of requests served, {in_time} of them in time");
        let source = format!("service_level:{account}:{period}");
        if self.add_item(write, account, (source.clone(), text, Micros::ZERO.minus(amount)), now).await? {
            let data = json!({
                "period": period.to_string(),
                "availability_ppm": level.availability(),
                "in_time_ppm": level.in_time(),
                "credit_micros": amount.0,
            });
            self.note_happened(write, Happened { account, source, kind: "service_level.missed", data }, now).await?;
        }
        Ok(())
    }
}

/// A month's level, and the fee that its objective's credit is a part of.
async fn read_level(connection: &mut AnyConnection, (account, period): (AccountId, Period)) -> Result<(Level, Micros), PlatformError> {
    let (start, end) = (period.start(), period.next().start());
    let query = sqlx::query(OBJECTIVE).bind(account.to_string()).bind(end.0).bind(start.0);
    let row = query.fetch_optional(&mut *connection).await.map_err(failed())?;
    let (objective, fee) = match &row {
        Some(row) => {
            let price = Micros(get(row, "monthly_price")?);
            let from = Timestamp(get(row, "had_from")?).max(start);
            let until = get::<Option<i64>>(row, "had_until")?.map_or(end, Timestamp).min(end);
            (Some(read_objective(row)?), prorated(price, (from, until), (start, end)))
        }
        None => (None, Micros::ZERO),
    };
    let query = sqlx::query(
        "SELECT outcome, CAST(SUM(n) AS BIGINT) AS n FROM request_outcome WHERE account_id = $1 AND hour_start >= $2 AND hour_start < $3 GROUP BY outcome",
    );
    let rows = query.bind(account.to_string()).bind(start.0).bind(end.0).fetch_all(&mut *connection).await.map_err(failed())?;
    let mut level = Level { objective, ..Level::default() };
    let limit = level.objective.as_ref().map_or(u32::MAX, |objective| objective.latency_ms_max);
    for row in &rows {
        let (outcome, n): (String, _) = (get(row, "outcome")?, get_count(row, "n")?);
        if outcome == FAILED {
            level.n_failed += n;
            continue;
        }
        level.n_served += n;
        if outcome.parse::<u32>().is_ok_and(|ms| ms <= limit) {
            level.n_in_time += n;
        }
    }
    Ok((level, fee))
}

fn read_objective(row: &AnyRow) -> Result<Objective, PlatformError> {
    let part = |column| Ok::<_, PlatformError>(u32::try_from(get_count(row, column)?).unwrap_or(PARTS));
    Ok(Objective {
        plan: get(row, "plan_id")?,
        availability: part("availability")?,
        latency_part: part("latency_part")?,
        latency_ms_max: part("latency_ms_max")?,
        credit_part: part("credit_part")?,
        deep_availability: part("deep_availability")?,
        deep_credit_part: part("deep_credit_part")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(n_served: u64, n_in_time: u64, n_failed: u64) -> Level {
        let objective = Objective {
            plan: "enterprise".into(),
            availability: 999_000,
            latency_part: 950_000,
            latency_ms_max: 5000,
            credit_part: 100_000,
            deep_availability: 990_000,
            deep_credit_part: 250_000,
        };
        Level { n_served, n_in_time, n_failed, objective: Some(objective) }
    }

    #[test]
    fn month_that_missed_its_objectives_gives_back() {
        assert_eq!(level(0, 0, 0).credit_part(), 0, "nothing was asked");
        assert_eq!(level(999, 999, 1).credit_part(), 0, "just kept");
        assert_eq!(level(9989, 9989, 11).credit_part(), 100_000);
        assert_eq!(level(989, 989, 11).credit_part(), 250_000);
        assert_eq!(level(1000, 949, 0).credit_part(), 100_000, "too slow");
        assert_eq!(level(989, 900, 11).credit_part(), 350_000, "both");
        assert_eq!(Level { objective: None, ..level(0, 0, 5) }.credit_part(), 0);
    }

    #[test]
    fn latency_is_counted_in_the_class_that_holds_it() {
        let name = |ms| Ended::Served { first_token: Duration::from_millis(ms) }.name();
        assert_eq!([0, 50, 51, 30_000, 30_001].map(name), ["50", "50", "100", "30000", "later"]);
    }
}
