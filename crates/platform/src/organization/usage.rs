//! Usage by minute, hour or day: `GET /v1/organization/usage/completions` and `…/embeddings`.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use bitnet_server::ServerError;
use serde_json::{Map, Value, json};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::ledger::projection::Grain;
use crate::organization::query::{Allowed, BucketQuery};
use crate::organization::{Administrator, as_server_error};
use crate::platform::Platform;
use crate::store::{Store, get};

const ALLOWED: Allowed = Allowed {
    groups: &["project_id", "api_key_id", "model"],
    filters: &["project_ids", "api_key_ids", "models"],
    widths: &[("1m", Grain::Minute, 60, 1440), ("1h", Grain::Hour, 24, 168), ("1d", Grain::Day, 7, 31)],
};

/// The column of a filter.
pub(super) fn column(filter: &str) -> &'static str {
    match filter {
        "project_ids" => "project_id",
        "api_key_ids" => "api_key_id",
        _ => "model",
    }
}

/// Sums of one group in one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) start: i64,
    pub(super) project: String,
    pub(super) api_key: String,
    pub(super) model: String,
    pub(super) n_requests: i64,
    pub(super) n_input: i64,
    pub(super) n_cached: i64,
    pub(super) n_output: i64,
    pub(super) charge: i64,
}

impl Store {
    /// Sums of an account's rollups. `purposes` are those that count.
    pub(super) async fn usage(&self, account: AccountId, query: &BucketQuery, purposes: &[&str]) -> Result<Vec<Sums>, PlatformError> {
        let group = |name: &'static str| if query.groups.contains(&name) { name } else { "''" };
        let columns = [group("project_id"), group("api_key_id"), group("model")];
        let mut text = format!(
            "SELECT bucket_start, {} AS project, {} AS api_key, {} AS model_name, CAST(SUM(n_events) AS BIGINT) AS n_events, CAST(SUM(n_input) AS BIGINT) AS n_input, CAST(SUM(n_cached) AS BIGINT) AS n_cached, CAST(SUM(n_output) AS BIGINT) AS n_output, CAST(SUM(charge) AS BIGINT) AS charge FROM usage_rollup WHERE account_id = $1 AND grain = $2 AND bucket_start >= $3 AND bucket_start < $4",
            columns[0], columns[1], columns[2]
        );
        let purposes = ("purpose", purposes.iter().map(ToString::to_string).collect::<Vec<_>>());
        let filters = query.filters.iter().map(|(filter, values)| (column(filter), values.clone()));
        let lists: Vec<(&str, Vec<String>)> = filters.chain([purposes]).collect();
        let mut place = 4;
        for (column, values) in &lists {
            let places: Vec<String> = (1..=values.len()).map(|index| format!("${}", place + index)).collect();
            place += values.len();
            text.push_str(&format!(" AND {column} IN ({})", places.join(", ")));
        }
        text.push_str(" GROUP BY bucket_start");
        columns.iter().filter(|column| **column != "''").for_each(|column| text.push_str(&format!(", {column}")));
        text.push_str(" ORDER BY bucket_start, project, api_key, model_name");
        let last = query.starts().last().map_or(query.from.0, |start| start.0);
        let mut sql = sqlx::query(AssertSqlSafe(text)).bind(account.to_string()).bind(query.grain.name()).bind(query.from.0).bind(last + 1);
        for value in lists.into_iter().flat_map(|(_, values)| values) {
            sql = sql.bind(value);
        }
        let rows = sql.fetch_all(self.pool()).await.map_err(PlatformError::database("reading usage"))?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &AnyRow) -> Result<Sums, PlatformError> {
    Ok(Sums {
        start: get(row, "bucket_start")?,
        project: get(row, "project")?,
        api_key: get(row, "api_key")?,
        model: get(row, "model_name")?,
        n_requests: get(row, "n_events")?,
        n_input: get(row, "n_input")?,
        n_cached: get(row, "n_cached")?,
        n_output: get(row, "n_output")?,
        charge: get(row, "charge")?,
    })
}

/// A page of buckets, those without usage among them.
pub(super) fn page(query: &BucketQuery, sums: Vec<Sums>, result: impl Fn(&Sums) -> Value) -> Value {
    let mut results: HashMap<i64, Vec<Value>> = HashMap::new();
    for sums in &sums {
        results.entry(sums.start).or_default().push(result(sums));
    }
    let bucket = |start: i64| {
        let (from, until) = (start / 1_000_000, (start + query.grain.micros()) / 1_000_000);
        json!({ "object": "bucket", "start_time": from, "end_time": until, "results": results.remove(&start).unwrap_or_default() })
    };
    let data: Vec<Value> = query.starts().into_iter().map(|start| start.0).map(bucket).collect();
    let next_page = query.next_page();
    json!({ "object": "page", "data": data, "has_more": next_page.is_some(), "next_page": next_page })
}

/// A group's name, or nothing where it was not grouped by it.
pub(super) fn named(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

async fn answer(
    platform: &Platform,
    (account, uri): (AccountId, &Uri),
    purposes: &[&str],
    object: &'static str,
) -> Result<Json<Value>, ServerError> {
    let query = BucketQuery::read(uri, ALLOWED, platform.now())?;
    let sums = platform.store().usage(account, &query, purposes).await.map_err(as_server_error)?;
    let result = |sums: &Sums| {
        let mut result = Map::new();
        result.insert("object".into(), object.into());
        // OpenAI counts cached tokens among the input.
        result.insert("input_tokens".into(), (sums.n_input + sums.n_cached).into());
        if object.contains("completions") {
            result.insert("output_tokens".into(), sums.n_output.into());
            result.insert("input_cached_tokens".into(), sums.n_cached.into());
            result.insert("input_audio_tokens".into(), 0.into());
            result.insert("output_audio_tokens".into(), 0.into());
        }
        result.insert("num_model_requests".into(), sums.n_requests.into());
        let names = [("project_id", &sums.project), ("user_id", &String::new()), ("api_key_id", &sums.api_key), ("model", &sums.model)];
        names.into_iter().for_each(|(name, value)| drop(result.insert(name.into(), named(value))));
        Value::Object(result)
    };
    Ok(Json(page(&query, sums, result)))
}

/// Tokens and requests of chats and completions, those of other systems among them.
pub(super) async fn completions(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Result<Json<Value>, ServerError> {
    let purposes = ["chat", "completion", "external"];
    answer(&platform, (by.account, &uri), &purposes, "organization.usage.completions.result").await
}

/// Tokens and requests of embeddings.
pub(super) async fn embeddings(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Result<Json<Value>, ServerError> {
    answer(&platform, (by.account, &uri), &["embedding"], "organization.usage.embeddings.result").await
}
