//! Invoices: the draft of the present month, those that were issued, as JSON, page and file, and the requests behind each line.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{Uri, header};
use axum::response::{Html, IntoResponse, Response};
use bitnet_server::ServerError;
use serde_json::{Value, json};

use crate::billing::{Invoice, LineId};
use crate::ids::InvoiceId;
use crate::money::Micros;
use crate::organization::query::pairs;
use crate::organization::{Administrator, as_server_error, known};
use crate::platform::{CURRENCY, Platform};

async fn drawn_up(platform: &Platform, by: &Administrator) -> Result<Invoice, ServerError> {
    let now = platform.now();
    platform.store().draft_invoice(by.account, now.period(), now).await.map_err(as_server_error)
}

async fn issued(platform: &Platform, by: &Administrator, id: &str) -> Result<Invoice, ServerError> {
    let parsed: InvoiceId = known("invoice", id)?;
    platform.store().invoice(parsed, Some(by.account)).await.map_err(as_server_error)
}

/// The draft as JSON.
pub(super) async fn draft(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    Ok(Json(drawn_up(&platform, &by).await?.to_json(CURRENCY)))
}

/// As a page.
pub(super) async fn page(State(platform): State<Platform>, by: Administrator) -> Result<Html<String>, ServerError> {
    drawn_up(&platform, &by).await?.to_html(CURRENCY).map(Html).map_err(as_server_error)
}

/// Which requests of a line are asked for: `?line=ID`, and `&after=SEQ` for those behind the last of a page.
fn line_asked(uri: &Uri) -> Result<(LineId, u64), ServerError> {
    let (mut line, mut after) = (None, 0);
    for (name, value) in pairs(uri)? {
        match name.as_str() {
            "line" => line = Some(value.parse().map_err(as_server_error)?),
            "after" => {
                let wrong = |_| ServerError::InvalidParameter { param: "after".into(), reason: "expected a whole number".into() };
                after = value.parse().map_err(wrong)?;
            }
            _ => return Err(ServerError::UnknownParameter { param: name }),
        }
    }
    Ok((line.ok_or_else(|| ServerError::MissingParameter { param: "line".into() })?, after))
}

fn list(requests: Vec<crate::billing::RequestLine>) -> Json<Value> {
    let last = requests.last().map(|request| request.seq);
    Json(json!({ "object": "list", "data": requests, "last_seq": last }))
}

/// Requests of a line of the draft.
pub(super) async fn requests(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Result<Json<Value>, ServerError> {
    let (line, after) = line_asked(&uri)?;
    let names = (by.account, platform.now().period());
    platform.store().line_requests(names, &line, after).await.map(list).map_err(as_server_error)
}

/// Requests of a line of an issued one.
pub(super) async fn issued_requests(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, ServerError> {
    let (line, after) = line_asked(&uri)?;
    let names = (by.account, known("invoice", &id)?);
    platform.store().issued_line_requests(names, &line, after).await.map(list).map_err(as_server_error)
}

/// All that were issued, without their lines, the newest first.
pub(super) async fn all(State(platform): State<Platform>, by: Administrator) -> Result<Json<Value>, ServerError> {
    let invoices = platform.store().invoices(Some(by.account)).await.map_err(as_server_error)?;
    let one = |(invoice, total): (Invoice, Micros)| {
        let mut value = invoice.to_json(CURRENCY);
        if let Some(fields) = value.as_object_mut() {
            fields.remove("lines");
        }
        let issued = invoice.issued.as_ref();
        let off = issued.map_or(Micros::ZERO, |issued| issued.credited.plus(issued.paid));
        value["total_micros"] = total.0.into();
        value["total"] = total.to_string().into();
        value["outstanding_micros"] = total.minus(off).or_zero().0.into();
        value
    };
    Ok(Json(json!({ "object": "list", "data": invoices.into_iter().map(one).collect::<Vec<_>>() })))
}

/// One that was issued; `ID.html` is its page and `ID.pdf` its file.
pub(super) async fn one(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Result<Response, ServerError> {
    if let Some(id) = id.strip_suffix(".html") {
        return issued(&platform, &by, id).await?.to_html(CURRENCY).map(|page| Html(page).into_response()).map_err(as_server_error);
    }
    if let Some(id) = id.strip_suffix(".pdf") {
        let file = issued(&platform, &by, id).await?.to_pdf(CURRENCY);
        return Ok(([(header::CONTENT_TYPE, "application/pdf")], file).into_response());
    }
    Ok(Json(issued(&platform, &by, &id).await?.to_json(CURRENCY)).into_response())
}
