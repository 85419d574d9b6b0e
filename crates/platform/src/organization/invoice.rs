//! The draft invoice of the present month, its page, and the requests behind each of its lines.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Html;
use bitnet_server::ServerError;
use serde_json::{Value, json};

use crate::billing::Invoice;
use crate::organization::query::pairs;
use crate::organization::{Administrator, as_server_error};
use crate::platform::{CURRENCY, Platform};

async fn drawn_up(platform: &Platform, by: &Administrator) -> Result<Invoice, ServerError> {
    let now = platform.now();
    platform.store().draft_invoice(by.account, now.period(), now).await.map_err(as_server_error)
}

/// As JSON.
pub(super) async fn draft(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    Ok(Json(drawn_up(&platform, &by).await?.to_json(CURRENCY)))
}

/// As a page.
pub(super) async fn page(State(platform): State<Platform>, by: Administrator) -> Result<Html<String>, ServerError> {
    drawn_up(&platform, &by).await?.to_html(CURRENCY).map(Html).map_err(as_server_error)
}

/// Requests of a line: `?line=ID`, and `&after=SEQ` for those behind the last of a page.
pub(super) async fn requests(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Result<Json<Value>, ServerError> {
    let (mut line, mut after) = (None, 0);
    for (name, value) in pairs(&uri)? {
        match name.as_str() {
            "line" => line = Some(value.parse().map_err(as_server_error)?),
            "after" => {
                let wrong = |_| ServerError::InvalidParameter { param: "after".into(), reason: "expected a whole number".into() };
                after = value.parse().map_err(wrong)?;
            }
            _ => return Err(ServerError::UnknownParameter { param: name }),
        }
    }
    let line = line.ok_or_else(|| ServerError::MissingParameter { param: "line".into() })?;
    let names = (by.account, platform.now().period());
    let requests = platform.store().line_requests(names, &line, after).await.map_err(as_server_error)?;
    let last = requests.last().map(|request| request.seq);
    Ok(Json(json!({ "object": "list", "data": requests, "last_seq": last })))
}
