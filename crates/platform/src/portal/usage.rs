//! What was used and what it cost, by day or hour and model: a table that needs no script, and the same as numbers for the charts.
//! Read from the rollups that invoices agree with.

use std::collections::BTreeMap;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::directory::ProjectRow;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::projection::Grain;
use crate::money::Micros;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, counted, dollars, grouped, show};
use crate::store::{Store, get, get_count, get_money, get_time};
use crate::time::Timestamp;

type Answer = Result<Response, PortalError>;

/// Ranges that can be asked for, in days; a day is shown by the hour.
const RANGES: [u64; 4] = [1, 7, 30, 90];

/// Sums of one model in one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sum {
    start: Timestamp,
    model: String,
    use_: Use,
}

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Use {
    pub(super) n_requests: u64,
    pub(super) n_input: u64,
    pub(super) n_cached: u64,
    pub(super) n_output: u64,
    pub(super) charge: Micros,
}

impl Use {
    fn plus(self, other: Self) -> Self {
        Self {
            n_requests: self.n_requests + other.n_requests,
            n_input: self.n_input + other.n_input,
            n_cached: self.n_cached + other.n_cached,
            n_output: self.n_output + other.n_output,
            charge: self.charge.plus(other.charge),
        }
    }

    pub(super) fn n_tokens(&self) -> u64 {
        self.n_input + self.n_cached + self.n_output
    }

    pub(super) fn requests(&self) -> String {
        grouped(self.n_requests)
    }

    pub(super) fn tokens(&self) -> String {
        grouped(self.n_tokens())
    }

    pub(super) fn cost(&self) -> String {
        dollars(self.charge)
    }
}

/// A bar of a small picture.
pub(super) struct Bar {
    pub(super) x: usize,
    pub(super) y: u64,
    pub(super) height: u64,
    pub(super) text: String,
    pub(super) day: String,
}

/// Usage of an account over a time, summed both ways.
pub(super) struct Table {
    pub(super) buckets: Vec<(Timestamp, Use)>,
    pub(super) models: Vec<(String, Use)>,
    pub(super) total: Use,
}

impl Table {
    /// Heights of bars, of a hundred, for a small picture without a script.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let most = self.buckets.iter().map(|(_, used)| used.n_requests).max().unwrap_or(0).max(1);
        let bar = |(index, (start, used)): (usize, &(Timestamp, Use))| {
            let height = (used.n_requests * 100).div_ceil(most);
            let date = start.to_date();
            Bar {
                x: index * 34,
                y: 100 - height,
                height,
                text: format!("{date}: {}", counted(used.n_requests, "request")),
                day: date[5..].to_string(),
            }
        };
        self.buckets.iter().enumerate().map(bar).collect()
    }
}

const USAGE: &str = "SELECT bucket_start, model, CAST(SUM(n_events) AS BIGINT) AS n_events, CAST(SUM(n_input) AS BIGINT) AS n_input, CAST(SUM(n_cached) AS BIGINT) AS n_cached, CAST(SUM(n_output) AS BIGINT) AS n_output, CAST(SUM(charge) AS BIGINT) AS charge FROM usage_rollup WHERE account_id = $1 AND grain = $2 AND bucket_start >= $3 AND (project_id = $4 OR $4 = '') GROUP BY bucket_start, model ORDER BY bucket_start, model";

impl Store {
    async fn usage_by_model(
        &self,
        account: AccountId,
        (grain, from): (Grain, Timestamp),
        project: &str,
    ) -> Result<Vec<Sum>, PlatformError> {
        let query = sqlx::query(USAGE).bind(account.to_string()).bind(grain.name()).bind(from.0).bind(project.to_string());
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading usage"))?;
        let read = |row: &sqlx::any::AnyRow| {
            let use_ = Use {
                n_requests: get_count(row, "n_events")?,
                n_input: get_count(row, "n_input")?,
                n_cached: get_count(row, "n_cached")?,
                n_output: get_count(row, "n_output")?,
                charge: get_money(row, "charge")?,
            };
            Ok(Sum { start: get_time(row, "bucket_start")?, model: get(row, "model")?, use_ })
        };
        rows.iter().map(read).collect()
    }
}

impl Store {
    /// Whether an account has used anything yet.
    pub(super) async fn has_usage(&self, account: AccountId) -> Result<bool, PlatformError> {
        let query = sqlx::query("SELECT account_id FROM usage_rollup WHERE account_id = $1 LIMIT 1").bind(account.to_string());
        let row = query.fetch_optional(self.pool()).await.map_err(PlatformError::database("reading usage"))?;
        Ok(row.is_some())
    }
}

fn grain_of(days: u64) -> Grain {
    if days == 1 { Grain::Hour } else { Grain::Day }
}

/// Usage of the last days, of a project or all; buckets without any are there, too.
pub(super) async fn table(portal: &Portal, account: AccountId, (days, project): (u64, &str)) -> Result<Table, PortalError> {
    let grain = grain_of(days);
    let n_buckets = if days == 1 { 24 } else { days };
    let last = grain.start_of(portal.now());
    let width = grain.micros();
    let first = Timestamp(last.0 - width * (i64::try_from(n_buckets).unwrap_or(1) - 1));
    let sums = portal.platform().store().usage_by_model(account, (grain, first), project).await?;
    let mut buckets: BTreeMap<Timestamp, Use> = BTreeMap::new();
    for index in 0..i64::try_from(n_buckets).unwrap_or(1) {
        buckets.insert(Timestamp(first.0 + width * index), Use::default());
    }
    let mut models: BTreeMap<String, Use> = BTreeMap::new();
    let mut total = Use::default();
    for sum in sums {
        let bucket = buckets.entry(sum.start).or_default();
        *bucket = bucket.plus(sum.use_);
        let model = models.entry(sum.model).or_default();
        *model = model.plus(sum.use_);
        total = total.plus(sum.use_);
    }
    let mut models: Vec<(String, Use)> = models.into_iter().collect();
    models.sort_by_key(|(_, used)| std::cmp::Reverse(used.n_tokens()));
    Ok(Table { buckets: buckets.into_iter().collect(), models, total })
}

fn asked(visit: &Visit) -> (u64, &str) {
    let days = visit.asked("days").parse().ok().filter(|days| RANGES.contains(days)).unwrap_or(30);
    (days, visit.asked("project"))
}

#[derive(Template)]
#[template(path = "portal/usage.html")]
struct UsagePage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    days: u64,
    ranges: [u64; 4],
    project: &'a str,
    projects: Vec<ProjectRow>,
    table: Table,
    /// The latest first.
    rows: Vec<(String, Use)>,
}

/// When a bucket begins, as its row says it.
fn label(start: Timestamp, days: u64) -> String {
    let text = start.to_rfc3339();
    if days == 1 { format!("{} {}", &text[5..10], &text[11..16]) } else { text[..10].to_string() }
}

/// The table, with charts where there is a script.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let (days, project) = asked(&visit);
    let table = table(&portal, account, (days, project)).await?;
    let projects = portal.platform().store().projects(Some(account)).await?;
    let rows = table.buckets.iter().rev().map(|(start, used)| (label(*start, days), *used)).collect();
    show(&UsagePage { shell: Shell::new(&visit, "Usage", "usage")?, account, days, ranges: RANGES, project, projects, table, rows })
}

/// The same as columns of numbers.
pub(super) async fn data(State(portal): State<Portal>, visit: Visit) -> Answer {
    let table = table(&portal, visit.account()?, asked(&visit)).await?;
    let column = |of: fn(&Use) -> u64| table.buckets.iter().map(|(_, used)| of(used)).collect::<Vec<_>>();
    let times: Vec<i64> = table.buckets.iter().map(|(start, _)| start.0 / 1_000_000).collect();
    let cost: Vec<f64> = table.buckets.iter().map(|(_, used)| used.charge.0 as f64 / 1e6).collect();
    Ok(Json(json!({
        "times": times,
        "requests": column(|used| used.n_requests),
        "input": column(|used| used.n_input),
        "cached": column(|used| used.n_cached),
        "output": column(|used| used.n_output),
        "cost": cost,
    }))
    .into_response())
}
