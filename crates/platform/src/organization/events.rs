//! `POST /v1/events`: usage that another system measured, as CloudEvents 1.0, one (`application/cloudevents+json`, or JSON) or a batch
//! (`application/cloudevents-batch+json`). `source` and `id` say which event it is: the same again is taken once, and something else
//! under its name is a conflict. What is answered is durable.
//!
//! An event is of type `ai.bitnet.usage.v1`; its `data` has `project_id`, `model`, `input_tokens`, `cached_tokens`, `output_tokens`, and
//! may have `operations` and `request_id`. The binary mode, in which attributes are headers, is not read.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_server::ServerError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::catalog::operations_of;
use crate::ids::{AccountId, ProjectId};
use crate::ledger::Ingested;
use crate::ledger::event::{Outcome, Owner, Purpose, UsageEvent};
use crate::limits::N_EVENTS_PER_BATCH;
use crate::money::TokenCounts;
use crate::organization::body::{Raw, read};
use crate::organization::{Administrator, as_server_error};
use crate::platform::Platform;
use crate::time::Timestamp;

const ONE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const KIND: &str = "ai.bitnet.usage.v1";

/// An event as it is sent. Extensions are allowed by the specification, and say nothing here.
#[derive(Debug, Deserialize)]
struct CloudEvent {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    time: Option<String>,
    #[serde(default)]
    datacontenttype: Option<String>,
    data: Data,
    #[serde(flatten)]
    extensions: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    project_id: String,
    model: String,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
    #[serde(default)]
    operations: Option<u64>,
    #[serde(default)]
    request_id: String,
}

/// Why an event is none.
struct Wrong {
    field: &'static str,
    reason: String,
}

fn wrong(field: &'static str, reason: impl Into<String>) -> Wrong {
    Wrong { field, reason: reason.into() }
}

impl CloudEvent {
    fn usage(self, account: AccountId, now: Timestamp) -> Result<UsageEvent, Wrong> {
        if self.specversion != "1.0" {
            return Err(wrong("specversion", format!("expected 1.0, got {:?}", self.specversion)));
        }
        if self.kind != KIND {
            return Err(wrong("type", format!("expected {KIND}")));
        }
        let is_json = |kind: &String| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !self.datacontenttype.as_ref().is_none_or(is_json) {
            return Err(wrong("datacontenttype", "expected application/json"));
        }
        if let Some(name) = self.extensions.keys().find(|name| !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())) {
            return Err(wrong("extensions", format!("{name:?} is no name of an attribute: letters and digits, in lower case")));
        }
        let occurred_at = match &self.time {
            None => now,
            Some(time) => Timestamp::from_rfc3339(time).ok_or_else(|| wrong("time", "expected a time as RFC 3339 has it"))?,
        };
        let project: ProjectId = self.data.project_id.parse().map_err(|_| wrong("project_id", "it is no id of a project"))?;
        let tokens = TokenCounts { n_input: self.data.input_tokens, n_cached: self.data.cached_tokens, n_output: self.data.output_tokens };
        Ok(UsageEvent {
            owner: Owner { account, project, api_key: None },
            source: self.source.into(),
            event_id: self.id.into(),
            request_id: self.data.request_id.into(),
            model: self.data.model.into(),
            purpose: Purpose::External,
            outcome: Outcome::Completed,
            occurred_at,
            n_operations: self.data.operations.unwrap_or_else(|| operations_of(tokens.total())),
            tokens,
        })
    }
}

/// Takes events. An event without a time is one of now, and so another one when it is sent again at another time: who repeats, says when.
pub(super) async fn ingest(
    State(platform): State<Platform>,
    by: Administrator,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, ServerError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (events, is_batch): (Vec<CloudEvent>, bool) = match kind.as_str() {
        ONE | "application/json" => (vec![read(&body)?], false),
        BATCH => (read(&body)?, true),
        got => return Err(ServerError::MediaType { got: got.into(), expected: "application/cloudevents+json or -batch+json" }),
    };
    if events.len() > N_EVENTS_PER_BATCH {
        let reason = format!("at most {N_EVENTS_PER_BATCH} events, got {}", events.len());
        return Err(ServerError::InvalidParameter { param: "body".into(), reason });
    }
    let results = take(&platform, by.account, events).await?;
    if !is_batch {
        let (status, result) = results.into_iter().next().unwrap_or((StatusCode::OK, json!({})));
        return single(status, result);
    }
    let status = if results.iter().all(|(status, _)| status.is_success()) { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    let data: Vec<Value> = results.into_iter().map(|(_, result)| result).collect();
    Ok((status, Json(json!({ "object": "list", "data": data }))).into_response())
}

/// The answer to one event: an error is an error's.
fn single(status: StatusCode, result: Value) -> Result<Response, ServerError> {
    let text = |field: &str| result[field].as_str().unwrap_or_default().to_string();
    match status {
        StatusCode::CONFLICT => {
            Err(ServerError::ObjectState { kind: "event", id: text("id"), reason: "another event has this source and id".into() })
        }
        status if status.is_success() => Ok((status, Json(result)).into_response()),
        _ => Err(ServerError::InvalidParameter { param: text("param"), reason: text("reason") }),
    }
}

/// Books what can be booked; a status and an answer for each, in their order.
async fn take(platform: &Platform, account: AccountId, events: Vec<CloudEvent>) -> Result<Vec<(StatusCode, Value)>, ServerError> {
    let now = platform.now();
    let projects = platform.store().projects(Some(account)).await.map_err(as_server_error)?;
    let mut results: Vec<Option<(StatusCode, Value)>> = Vec::with_capacity(events.len());
    let (mut usable, mut names) = (Vec::new(), Vec::new());
    for event in events {
        let name = (event.source.clone(), event.id.clone());
        let usage = event.usage(account, now).and_then(|usage| {
            let is_own = projects.iter().any(|project| project.id == usage.owner.project);
            if is_own { Ok(usage) } else { Err(wrong("project_id", "no such project")) }
        });
        match usage {
            Ok(usage) => {
                usable.push(usage);
                results.push(None);
            }
            Err(Wrong { field, reason }) => results.push(Some(refused(&name, field, &reason))),
        }
        names.push(name);
    }
    let ingested = platform.ledger().ingest(usable, now).await.map_err(as_server_error)?;
    let last = ingested.iter().filter_map(|ingested| match ingested {
        Ingested::Accepted(position) | Ingested::Duplicate(position) => Some(*position),
        _ => None,
    });
    if let Some(position) = last.max() {
        platform.ledger().until_durable(position).await.map_err(as_server_error)?;
    }
    let mut ingested = ingested.into_iter();
    let answer = |(result, name): (Option<(StatusCode, Value)>, (String, String))| match result {
        Some(result) => result,
        None => ingested.next().map_or_else(|| refused(&name, "body", "it was not looked at"), |ingested| answered(&name, ingested)),
    };
    Ok(results.into_iter().zip(names).map(answer).collect())
}

fn refused((source, id): &(String, String), param: &str, reason: &str) -> (StatusCode, Value) {
    (StatusCode::BAD_REQUEST, json!({ "source": source, "id": id, "status": "refused", "param": param, "reason": reason }))
}

fn answered(name: &(String, String), ingested: Ingested) -> (StatusCode, Value) {
    let (source, id) = name;
    match ingested {
        Ingested::Accepted(_) => (StatusCode::ACCEPTED, json!({ "source": source, "id": id, "status": "accepted" })),
        Ingested::Duplicate(_) => (StatusCode::OK, json!({ "source": source, "id": id, "status": "duplicate" })),
        Ingested::Conflict => (StatusCode::CONFLICT, json!({ "source": source, "id": id, "status": "conflict" })),
        Ingested::OutOfWindow => refused(name, "time", "it is more than 35 days ago, or more than 5 minutes ahead"),
        Ingested::NotRatable => refused(name, "model", "at that time the account had no plan, or the model no price"),
        Ingested::Malformed { field } => refused(name, field, "it is empty, too long or too much, or not to be used"),
    }
}
