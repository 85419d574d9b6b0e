//! `/v1/organization/audit_logs`: an account's records in OpenAI's shape, the latest first, by time, kind, actor and object. Kinds that
//! OpenAI has are called as there, the others as here; each record has its hash, by which it is found in an export.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use bitnet_server::ServerError;
use serde_json::{Value, json};

use crate::audit::{AuditRecord, AuditSearch};
use crate::limits::N_FILTERS_MAX;
use crate::organization::listed::list;
use crate::organization::query::pairs;
use crate::organization::{Administrator, as_server_error};
use crate::platform::Platform;
use crate::time::Timestamp;

const N_DEFAULT: i64 = 20;
const N_MOST: i64 = 100;

/// Our names, and OpenAI's.
const KINDS: &[(&str, &str)] = &[
    ("api_key.created", "api_key.created"),
    ("api_key.revoked", "api_key.deleted"),
    ("invitation.created", "invite.sent"),
    ("invitation.accepted", "invite.accepted"),
    ("invitation.revoked", "invite.deleted"),
    ("member.added", "user.added"),
    ("member.role_changed", "user.updated"),
    ("member.removed", "user.deleted"),
    ("project.created", "project.created"),
    ("project.renamed", "project.updated"),
    ("account.renamed", "organization.updated"),
];

fn kind_of(action: &str) -> &str {
    KINDS.iter().find(|(ours, _)| *ours == action).map_or(action, |(_, theirs)| theirs)
}

fn action_of(kind: &str) -> String {
    KINDS.iter().find(|(_, theirs)| *theirs == kind).map_or(kind, |(ours, _)| ours).to_string()
}

fn shown(record: &AuditRecord, email: Option<&str>) -> Value {
    let state = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let kind = kind_of(&record.action);
    let actor = match record.actor.split('_').next() {
        Some("key") => json!({ "type": "api_key", "api_key": { "type": "service_account", "id": record.actor } }),
        _ => json!({ "type": "session", "session": { "ip_address": record.address, "user": { "id": record.actor, "email": email } } }),
    };
    let mut shown = json!({
        "object": "organization.audit_log",
        "id": format!("audit_log-{}", record.seq),
        "type": kind,
        "effective_at": record.at.0.div_euclid(1_000_000),
        "actor": actor,
        "request_id": record.request_id,
        "hash": crate::audit::hex(&record.hash),
    });
    shown[kind] = json!({ "id": record.target, "before": state(&record.before), "changes_requested": state(&record.after) });
    shown
}

fn wrong(param: &str, reason: impl Into<String>) -> ServerError {
    ServerError::InvalidParameter { param: param.into(), reason: reason.into() }
}

fn number(param: &str, text: &str) -> Result<i64, ServerError> {
    text.parse().map_err(|_| wrong(param, "expected a whole number"))
}

/// The number of a record from its id.
fn seq(param: &str, text: &str) -> Result<u64, ServerError> {
    let seq = text.strip_prefix("audit_log-").and_then(|seq| seq.parse().ok());
    seq.ok_or_else(|| wrong(param, "expected the id of a record"))
}

/// What is looked for.
fn search(uri: &Uri, by: &Administrator) -> Result<AuditSearch, ServerError> {
    let mut search = AuditSearch { account: Some(by.account), n_max: N_DEFAULT, ..AuditSearch::default() };
    for (name, value) in pairs(uri)? {
        let time = |shift: i64| {
            let micros = number(&name, &value)?.checked_add(shift).and_then(|seconds| seconds.checked_mul(1_000_000));
            micros.map(Timestamp).ok_or_else(|| wrong(&name, "expected seconds since 1970"))
        };
        let many = |into: &mut Vec<String>, map: fn(&str) -> String| {
            into.extend(value.split(',').map(map));
            if into.len() > N_FILTERS_MAX { Err(wrong(&name, format!("at most {N_FILTERS_MAX} values"))) } else { Ok(()) }
        };
        match name.as_str() {
            "limit" => {
                let limit = number("limit", &value)?;
                search.n_max = Some(limit).filter(|n| (1..=N_MOST).contains(n)).ok_or_else(|| wrong("limit", format!("1 to {N_MOST}")))?;
            }
            "after" => search.before_seq = seq("after", &value)?,
            "before" => search.after_seq = seq("before", &value)?,
            "effective_at[gte]" => search.from = time(0)?,
            "effective_at[gt]" => search.from = time(1)?,
            "effective_at[lt]" => search.until = time(0)?,
            "effective_at[lte]" => search.until = time(1)?,
            "event_types" => many(&mut search.actions, action_of)?,
            "actor_ids" => many(&mut search.actors, str::to_string)?,
            "resource_ids" | "project_ids" => many(&mut search.targets, str::to_string)?,
            _ => return Err(ServerError::UnknownParameter { param: name }),
        }
    }
    Ok(search)
}

/// Records.
pub(super) async fn all(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Result<Json<Value>, ServerError> {
    let search = search(&uri, &by)?;
    let asked = AuditSearch { n_max: search.n_max + 1, ..search.clone() };
    let mut records = platform.store().find_audit_records(&asked).await.map_err(as_server_error)?;
    let n_max = usize::try_from(search.n_max).unwrap_or_default();
    let has_more = records.len() > n_max;
    records.truncate(n_max);
    if search.after_seq > 0 && search.before_seq == u64::MAX {
        // The page before one is the one next to it, read towards the latest.
        records.reverse();
    }
    let range = |order: fn(u64, u64) -> u64| records.iter().map(|record| record.seq).reduce(order).unwrap_or_default();
    let emails = platform.store().emails_in_audit((range(u64::min), range(u64::max))).await.map_err(as_server_error)?;
    let members = platform.store().members(by.account).await.map_err(as_server_error)?;
    // Who is no member is somebody who operates the installation: their address is not the account's to know.
    let email = |id: &str| {
        let is_member = members.iter().any(|member| member.person.to_string() == id);
        emails.iter().find(|(person, _)| is_member && person == id).map(|(_, email)| email.as_str())
    };
    let data = records.iter().map(|record| shown(record, email(&record.actor))).collect();
    Ok(Json(list(data, has_more)))
}
