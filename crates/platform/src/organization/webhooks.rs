//! Endpoints of webhooks: made (the secret is told once), listed, removed; their secrets changed, their messages listed and sent again.

use axum::Json;
use axum::extract::{Path, State};
use bitnet_server::ServerError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::organization::body::Body;
use crate::organization::{Administrator, as_server_error, known};
use crate::platform::Platform;
use crate::time::Timestamp;
use crate::webhooks::{Delivery, EndpointRow, KINDS, NewEndpoint};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointBody {
    url: String,
    #[serde(default)]
    events: Vec<String>,
}

fn shown(endpoint: &EndpointRow) -> Value {
    json!({
        "object": "organization.webhook",
        "id": endpoint.id.to_string(),
        "url": endpoint.url,
        "events": endpoint.kinds,
        "created_at": endpoint.created_at.0 / 1_000_000,
    })
}

/// Makes one.
pub(super) async fn create(
    State(platform): State<Platform>,
    by: Administrator,
    Body(body): Body<EndpointBody>,
) -> Result<Json<Value>, ServerError> {
    let new = NewEndpoint { account: by.account, url: body.url, kinds: body.events };
    let webhooks = platform.webhooks();
    let made = platform.store().create_endpoint(&new, webhooks.outbound(), &by.acting(&platform)).await.map_err(as_server_error)?;
    let mut shown = shown(&made);
    shown["secret"] = webhooks.secrets().shown(made.id, made.secret_version).into();
    Ok(Json(shown))
}

/// All of the account.
pub(super) async fn list(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    let endpoints = platform.store().endpoints(by.account).await.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "list", "data": endpoints.iter().map(shown).collect::<Vec<_>>(), "kinds": KINDS })))
}

/// Removes one.
pub(super) async fn remove(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
) -> Result<Json<Value>, ServerError> {
    let endpoint = known("webhook", &id)?;
    platform.store().remove_endpoint((by.account, endpoint), &by.acting(&platform)).await.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "organization.webhook.deleted", "id": id, "deleted": true })))
}

/// Changes its secret.
pub(super) async fn rotate(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
) -> Result<Json<Value>, ServerError> {
    let endpoint = known("webhook", &id)?;
    let version = platform.store().rotate_endpoint((by.account, endpoint), &by.acting(&platform)).await.map_err(as_server_error)?;
    let secret = platform.webhooks().secrets().shown(endpoint, version);
    Ok(Json(json!({ "object": "organization.webhook", "id": id, "secret": secret })))
}

/// What was and will be sent to it.
pub(super) async fn deliveries(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
) -> Result<Json<Value>, ServerError> {
    let deliveries = platform.store().deliveries(by.account, known("webhook", &id)?).await.map_err(as_server_error)?;
    let one = |delivery: &Delivery| {
        json!({
            "object": "organization.webhook.delivery",
            "message_id": delivery.message.to_string(),
            "event": delivery.kind,
            "payload": serde_json::from_str::<Value>(&delivery.payload).unwrap_or_default(),
            "created_at": delivery.created_at.to_rfc3339(),
            "n_attempts": delivery.n_attempts,
            "next_attempt_at": delivery.next_attempt_at.map(Timestamp::to_rfc3339),
            "delivered_at": delivery.delivered_at.map(Timestamp::to_rfc3339),
            "outcome": delivery.outcome,
        })
    };
    Ok(Json(json!({ "object": "list", "data": deliveries.iter().map(one).collect::<Vec<_>>() })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayBody {
    #[serde(default)]
    message_id: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    since: Option<i64>,
}

/// Sends one message again, or all since a time.
pub(super) async fn replay(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
    Body(body): Body<ReplayBody>,
) -> Result<Json<Value>, ServerError> {
    let message = body.message_id.as_deref().map(|id| known("message", id)).transpose()?;
    if message.is_none() && body.since.is_none() {
        return Err(ServerError::MissingParameter { param: "message_id".into() });
    }
    let since = Timestamp(body.since.unwrap_or_default().saturating_mul(1_000_000));
    let names = (by.account, known("webhook", &id)?);
    let n_messages = platform.store().replay(names, (message, since), platform.now()).await.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "organization.webhook.replay", "id": id, "n_messages": n_messages })))
}
