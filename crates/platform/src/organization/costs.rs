//! `GET /v1/organization/costs`: what usage cost, by day. OpenAI's `amount.value` is a decimal number; `amount.micros` beside it is
//! the same, exactly. Fees of plans stand on the invoice.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use bitnet_server::ServerError;
use serde_json::{Value, json};

use crate::ledger::projection::Grain;
use crate::organization::query::{Allowed, BucketQuery};
use crate::organization::usage::{Sums, named, page};
use crate::organization::{Administrator, as_server_error};
use crate::platform::{CURRENCY, Platform};

const ALLOWED: Allowed = Allowed {
    groups: &["project_id", "line_item", "api_key_id"],
    filters: &["project_ids", "api_key_ids"],
    widths: &[("1d", Grain::Day, 7, 180)],
};

/// Costs by day.
pub(super) async fn costs(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Result<Json<Value>, ServerError> {
    let mut query = BucketQuery::read(&uri, ALLOWED, platform.now())?;
    // A line of usage is a model.
    query.groups.iter_mut().filter(|group| **group == "line_item").for_each(|group| *group = "model");
    let purposes = ["chat", "completion", "embedding", "external"];
    let sums = platform.store().usage(by.account, &query, &purposes).await.map_err(as_server_error)?;
    let result = |sums: &Sums| {
        json!({
            "object": "organization.costs.result",
            "amount": { "value": sums.charge as f64 / 1e6, "currency": CURRENCY, "micros": sums.charge },
            "line_item": named(&sums.model),
            "project_id": named(&sums.project),
            "api_key_id": named(&sums.api_key),
            "quantity": Value::Null,
        })
    };
    Ok(Json(page(&query, sums, result)))
}
