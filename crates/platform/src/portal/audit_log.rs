//! The audit log of an account, or of all, the latest first; and an account's as lines of JSON to keep elsewhere.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use askama::Template;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use tokio::sync::mpsc;

use crate::audit::AuditRecord;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, moment, show};
use crate::store::Store;

type Answer = Result<Response, PortalError>;

struct RecordView {
    seq: u64,
    at: String,
    actor: String,
    action: String,
    target: String,
    before: String,
    after: String,
    address: String,
}

#[derive(Template)]
#[template(path = "portal/audit.html")]
struct AuditPage<'a> {
    shell: Shell<'a>,
    account: Option<AccountId>,
    records: Vec<RecordView>,
    older: Option<u64>,
}

async fn list(portal: &Portal, visit: &Visit, account: Option<AccountId>) -> Answer {
    let before = visit.asked("before").parse().unwrap_or(i64::MAX as u64);
    let store = portal.platform().store();
    let records = store.latest_audit_records(before, account).await?;
    let names: HashMap<String, String> = match account {
        Some(account) => store.members(account).await?.into_iter().map(|member| (member.person.to_string(), member.email)).collect(),
        None => {
            let range = (records.last().map_or(0, |record| record.seq), records.first().map_or(0, |record| record.seq));
            store.emails_in_audit(range).await?.into_iter().collect()
        }
    };
    let older =
        records.last().map(|record| record.seq).filter(|seq| *seq > 1 && records.len() as i64 == crate::limits::N_AUDIT_RECORDS_PER_PAGE);
    let named = |id: String| names.get(&id).cloned().unwrap_or(id);
    let view = |record: AuditRecord| RecordView {
        seq: record.seq,
        at: moment(record.at).trim_end_matches(" UTC").to_string(),
        actor: named(record.actor),
        action: record.action,
        target: named(record.target),
        before: record.before,
        after: record.after,
        address: record.address,
    };
    let records = records.into_iter().map(view).collect();
    let here = if account.is_some() { "audit" } else { "operator-audit" };
    show(&AuditPage { shell: Shell::new(visit, "Audit log", here)?, account, records, older })
}

/// An account's.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    list(&portal, &visit, Some(account)).await
}

/// Everybody's, for operators.
pub(super) async fn all(State(portal): State<Portal>, visit: Visit) -> Answer {
    list(&portal, &visit, None).await
}

/// Lines as they are read, a page of records after the other.
struct Pages(mpsc::Receiver<Result<String, PlatformError>>);

impl Stream for Pages {
    type Item = Result<String, PlatformError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Reads all records behind one, as far as somebody takes them. A database that fails breaks the download off, so that what came is not
/// taken for all.
async fn read_all(store: Arc<Store>, (mut after, account): (u64, AccountId), pages: mpsc::Sender<Result<String, PlatformError>>) {
    loop {
        let read = store.audit_records(after, Some(account)).await;
        let last = read.as_ref().ok().and_then(|records| records.last()).map(|record| record.seq);
        if matches!((&read, last), (Ok(_), None)) {
            return;
        }
        let is_over = read.is_err();
        let page = read.map(|records| records.iter().map(|record| format!("{}\n", record.to_json())).collect());
        if pages.send(page).await.is_err() || is_over {
            return;
        }
        after = last.unwrap_or(after);
    }
}

/// All of an account's, as lines of JSON; `?after=SEQ` begins behind that one.
pub(super) async fn export(State(portal): State<Portal>, visit: Visit) -> Answer {
    let (sender, pages) = mpsc::channel(1);
    let from = (visit.asked("after").parse().unwrap_or(0), visit.account()?);
    tokio::spawn(read_all(portal.platform().store().clone(), from, sender));
    let lines = Body::from_stream(Pages(pages));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"audit.jsonl\"")),
    ];
    Ok((headers, lines).into_response())
}
