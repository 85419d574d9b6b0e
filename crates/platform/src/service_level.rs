//! Service levels: how requests of each account ended, counted as they end, by hour; and whether a month kept what its plan promised.
//! One that did not gives back a part of its fee on its invoice, by itself. What counts is what the server did: a request that it
//! refused for want of room, while it drained or with a broken engine, or that failed by its fault before anything was written or
//! after, is not served; one that its client left is, if anything was written for it, and is not counted otherwise.
//!
//! Counts are written every few seconds: a crash loses those, which are in nobody's disfavour by more than that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::billing::close::NewItem;
use crate::billing::covered::plan_fees;
use crate::billing::statement::{PARTS, part_of, prorated};
use crate::catalog::Catalog;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::projection::Grain;
use crate::limits::OUTCOMES_EVERY;
use crate::money::Micros;
use crate::store::{Store, as_i64, get, get_count};
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

const OBJECTIVES: &str = "SELECT o.* FROM service_objective o WHERE EXISTS (SELECT 1 FROM account_plan a WHERE a.account_id = $1 AND a.plan_id = o.plan_id AND a.valid_from < $2 AND (a.valid_until IS NULL OR a.valid_until > $3)) AND o.valid_from < $2 AND (o.valid_until IS NULL OR o.valid_until > $3) ORDER BY o.valid_from";

/// A promise, and the part of the month's fee that it was given for.
struct Promise {
    objective: Objective,
    fee: Micros,
}

fn failed() -> impl FnOnce(sqlx::Error) -> PlatformError {
    PlatformError::database("reading a service level")
}

impl Store {
    /// How a month of an account was, as far as it is written, against what the plan promised that it had last.
    pub async fn service_level(&self, account: AccountId, period: Period) -> Result<Level, PlatformError> {
        let catalog = self.catalog().await?;
        let mut snapshot = self.snapshot().await?;
        let counts = read_counts(&mut snapshot, (account, period)).await?;
        let promises = promises(&mut snapshot, (account, period), &catalog).await?;
        Ok(level(&counts, promises.into_iter().next_back().map(|promise| promise.objective)))
    }

    /// Gives back for a month what its plans promise for what was not kept; once. A month with several plans is measured against what
    /// each of them promises, and gives back a part of the fee of each.
    pub(crate) async fn add_service_credit(
        &self,
        (account, period): (AccountId, Period),
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<(), PlatformError> {
        let mut snapshot = self.snapshot().await?;
        let promises = promises(&mut snapshot, (account, period), catalog).await?;
        if promises.is_empty() {
            return Ok(());
        }
        let counts = read_counts(&mut snapshot, (account, period)).await?;
        drop(snapshot);
        let credit = |promise: &Promise| {
            let level = level(&counts, Some(promise.objective.clone()));
            (part_of(promise.fee, level.credit_part()), level)
        };
        let missed: Vec<(Micros, Level)> = promises.iter().map(credit).filter(|(amount, _)| *amount > Micros::ZERO).collect();
        let amount: Micros = missed.iter().map(|(amount, _)| *amount).sum();
        // All have the same requests; of what was in time, the strictest that was missed says it.
        let Some(level) = missed.iter().map(|(_, level)| level).min_by_key(|level| level.in_time()) else { return Ok(()) };
        let percent = |parts: u32| format!("{}.{:03}%", parts / 10_000, parts % 10_000 / 10);
        let (served, in_time) = (percent(level.availability()), percent(level.in_time()));
        let text = format!("service level of {period} not kept: {served} of requests served, {in_time} of them in time");
        let source = format!("service_level:{account}:{period}");
        let mut write = self.begin().await?;
        if self.add_item(&mut write, account, NewItem::new(source.clone(), text, Micros::ZERO.minus(amount)), now).await? {
            let data = json!({
                "period": period.to_string(),
                "availability_ppm": level.availability(),
                "in_time_ppm": level.in_time(),
                "credit_micros": amount.0,
            });
            self.note_happened(&mut write, Happened { account, source, kind: "service_level.missed", data }, now).await?;
        }
        write.commit("giving back for a service level").await
    }
}

/// What the plans of a month promised, each with the fee that is charged for it, in their order.
async fn promises(
    connection: &mut AnyConnection,
    (account, period): (AccountId, Period),
    catalog: &Catalog,
) -> Result<Vec<Promise>, PlatformError> {
    let month = (period.start(), period.next().start());
    let query = sqlx::query(OBJECTIVES).bind(account.to_string()).bind(month.1.0).bind(month.0.0);
    let rows = query.fetch_all(&mut *connection).await.map_err(failed())?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut promises = Vec::new();
    for fee in plan_fees(connection, (account, period), catalog).await? {
        // What holds when the fee's part of the month ends.
        let holds = |row: &&AnyRow| {
            let plan = get::<String>(row, "plan_id").is_ok_and(|plan| plan == fee.plan);
            let from = get::<i64>(row, "valid_from").is_ok_and(|from| from < fee.until.0);
            plan && from && get::<Option<i64>>(row, "valid_until").is_ok_and(|until| until.is_none_or(|until| until >= fee.until.0))
        };
        let Some(row) = rows.iter().rfind(holds) else { continue };
        let fee = prorated(fee.monthly_price, (fee.from, fee.until), month);
        promises.push(Promise { objective: read_objective(row)?, fee });
    }
    Ok(promises)
}

/// Requests of a month by how they ended.
async fn read_counts(connection: &mut AnyConnection, (account, period): (AccountId, Period)) -> Result<Vec<(String, u64)>, PlatformError> {
    let query = sqlx::query(
        "SELECT outcome, CAST(SUM(n) AS BIGINT) AS n FROM request_outcome WHERE account_id = $1 AND hour_start >= $2 AND hour_start < $3 GROUP BY outcome",
    );
    let query = query.bind(account.to_string()).bind(period.start().0).bind(period.next().start().0);
    let rows = query.fetch_all(&mut *connection).await.map_err(failed())?;
    rows.iter().map(|row| Ok((get(row, "outcome")?, get_count(row, "n")?))).collect()
}

fn level(counts: &[(String, u64)], objective: Option<Objective>) -> Level {
    let limit = objective.as_ref().map_or(u32::MAX, |objective| objective.latency_ms_max);
    let mut level = Level { objective, ..Level::default() };
    for (outcome, n) in counts {
        if outcome == FAILED {
            level.n_failed += n;
            continue;
        }
        level.n_served += n;
        if outcome.parse::<u32>().is_ok_and(|ms| ms <= limit) {
            level.n_in_time += n;
        }
    }
    level
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

    fn month(n_served: u64, n_in_time: u64, n_failed: u64) -> Level {
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
        let level = month;
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
