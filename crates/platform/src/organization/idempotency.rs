//! `Idempotency-Key`, as Stripe has it: a request under a key is done once. Made again, it gets the first answer; another request under
//! the same key is a conflict, and so is the same one while it is being done. Keys are an account's own and kept for two days. What
//! was refused or failed has changed nothing and is forgotten, so that it can be tried again. Answers that hold secrets are on routes without this: no secret
//! stands in the database.

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bitnet_server::ServerError;

use crate::audit::hex;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::limits::{IDEMPOTENCY_KEPT, IDEMPOTENCY_UNDER_WAY_MAX, MANAGEMENT_BODY_BYTES_MAX, NAME_BYTES_MAX};
use crate::organization::body::Raw;
use crate::organization::{Administrator, as_server_error};
use crate::platform::Platform;
use crate::store::{Store, get};
use crate::time::Timestamp;

const DOING: &str = "looking up an idempotency key";

/// What is known of a key.
enum Known {
    /// It is new, and taken now.
    New,
    /// What was answered.
    Answered(u16, String),
    /// Another request has it.
    Other,
    /// It is being done.
    UnderWay,
}

impl Store {
    async fn take_key(&self, (account, key): (AccountId, &str), hash: [u8; 32], now: Timestamp) -> Result<Known, PlatformError> {
        let failed = || PlatformError::database(DOING);
        let mut write = self.begin().await?;
        // Who died while doing it answers nobody any more.
        let stale = sqlx::query("DELETE FROM idempotent_request WHERE account_id = $1 AND key = $2 AND status IS NULL AND begun_at < $3");
        let stale = stale.bind(account.to_string()).bind(key.to_string()).bind(now.minus(IDEMPOTENCY_UNDER_WAY_MAX).0);
        stale.execute(&mut *write.transaction).await.map_err(failed())?;
        let insert = sqlx::query(
            "INSERT INTO idempotent_request (account_id, key, request_hash, begun_at, status, answer) VALUES ($1, $2, $3, $4, NULL, '') ON CONFLICT (account_id, key) DO NOTHING",
        );
        let insert = insert.bind(account.to_string()).bind(key.to_string()).bind(hash.to_vec()).bind(now.0);
        if insert.execute(&mut *write.transaction).await.map_err(failed())?.rows_affected() == 1 {
            write.commit(DOING).await?;
            return Ok(Known::New);
        }
        let query = sqlx::query("SELECT request_hash, status, answer FROM idempotent_request WHERE account_id = $1 AND key = $2");
        let query = query.bind(account.to_string()).bind(key.to_string());
        let row = query.fetch_one(&mut *write.transaction).await.map_err(failed())?;
        if get::<Vec<u8>>(&row, "request_hash")? != hash {
            return Ok(Known::Other);
        }
        let status: Option<i64> = get(&row, "status")?;
        let Some(status) = status.and_then(|status| u16::try_from(status).ok()) else { return Ok(Known::UnderWay) };
        Ok(Known::Answered(status, get(&row, "answer")?))
    }

    /// Keeps what was answered; without an answer, forgets the key.
    async fn keep_answer(&self, (account, key): (AccountId, &str), answer: Option<(u16, String)>) -> Result<(), PlatformError> {
        let failed = || PlatformError::database("keeping an answer");
        let mut write = self.begin().await?;
        let query = match answer {
            Some((status, text)) => {
                sqlx::query("UPDATE idempotent_request SET status = $1, answer = $2 WHERE account_id = $3 AND key = $4")
                    .bind(i64::from(status))
                    .bind(text)
            }
            None => sqlx::query("DELETE FROM idempotent_request WHERE account_id = $1 AND key = $2"),
        };
        query.bind(account.to_string()).bind(key.to_string()).execute(&mut *write.transaction).await.map_err(failed())?;
        write.commit("keeping an answer").await
    }

    /// Forgets keys that are old.
    pub(crate) async fn forget_keys(&self, now: Timestamp) -> Result<u64, PlatformError> {
        let mut write = self.begin().await?;
        let delete = sqlx::query("DELETE FROM idempotent_request WHERE begun_at < $1").bind(now.minus(IDEMPOTENCY_KEPT).0);
        let deleted = delete.execute(&mut *write.transaction).await.map_err(PlatformError::database("forgetting old keys"))?;
        write.commit("forgetting old keys").await?;
        Ok(deleted.rows_affected())
    }

    /// When a key was taken; for tests of what is kept.
    #[cfg(test)]
    async fn key_taken_at(&self, account: AccountId, key: &str) -> Option<Timestamp> {
        let query = sqlx::query("SELECT begun_at FROM idempotent_request WHERE account_id = $1 AND key = $2");
        let row = query.bind(account.to_string()).bind(key.to_string()).fetch_optional(self.pool()).await.expect("it reads");
        row.map(|row| crate::store::get_time(&row, "begun_at").expect("a time"))
    }
}

/// Around routes that change something.
pub(crate) async fn once(State(platform): State<Platform>, request: Request, next: Next) -> Response {
    if *request.method() != Method::POST || !request.headers().contains_key("idempotency-key") {
        return next.run(request).await;
    }
    guarded(&platform, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn guarded(platform: &Platform, request: Request, next: Next) -> Result<Response, ServerError> {
    let (mut parts, body) = request.into_parts();
    let by = Administrator::from_request_parts(&mut parts, platform).await?;
    let wrong = |reason: String| ServerError::InvalidParameter { param: "Idempotency-Key".into(), reason };
    let key = parts.headers["idempotency-key"].to_str().map_err(|error| wrong(error.to_string()))?.to_string();
    if key.is_empty() || key.len() > NAME_BYTES_MAX {
        return Err(wrong(format!("expected 1 to {NAME_BYTES_MAX} characters")));
    }
    let Raw(bytes) = Raw::from_request(Request::new(body), platform).await?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(parts.uri.path().as_bytes()).update(&[0]).update(&bytes);
    let names = (by.account, key.as_str());
    let conflict = |reason: &str| ServerError::ObjectState { kind: "idempotency key", id: key.clone(), reason: reason.into() };
    match platform.store().take_key(names, *hasher.finalize().as_bytes(), platform.now()).await.map_err(as_server_error)? {
        Known::New => {}
        Known::Answered(status, text) => return Ok(answer(status, text)),
        Known::Other => return Err(conflict("another request was made under it")),
        Known::UnderWay => return Err(conflict("its request is being done: ask again in a moment")),
    }
    let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, MANAGEMENT_BODY_BYTES_MAX).await.map_err(|error| ServerError::Internal { reason: error.to_string() })?;
    let text = String::from_utf8(bytes.to_vec()).ok().filter(|_| parts.status.is_success());
    // Where it cannot be kept, the same request is one that is under way for a while.
    let kept = text.map(|text| (parts.status.as_u16(), text));
    if let Err(error) = platform.store().keep_answer(names, kept).await {
        tracing::warn!(%error, key = hex(blake3::hash(key.as_bytes()).as_bytes()), "an answer could not be kept");
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

fn answer(status: u16, text: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::By;
    use crate::directory::NewAccount;
    use crate::ledger::Overage;
    use crate::money::Micros;
    use crate::store::MIGRATIONS;

    #[tokio::test]
    async fn key_is_taken_once_and_forgotten_when_it_is_old() {
        let store = Store::connect("sqlite::memory:").await.expect("it opens");
        let now = Timestamp(1_767_225_600_000_000);
        store.migrate(MIGRATIONS, now).await.expect("it migrates");
        let new = NewAccount { name: "Ann".into(), plan: "free".into(), overage: Overage::Refuse, spending_cap: Micros::ZERO };
        let account = store.create_account(new, &By::operator("test", now)).await.expect("created");
        let take = async |hash: u8, now: Timestamp| store.take_key((account, "k"), [hash; 32], now).await.expect("looked up");
        assert!(matches!(take(1, now).await, Known::New) && matches!(take(1, now).await, Known::UnderWay));
        assert!(matches!(take(2, now).await, Known::Other));
        let later = now.plus(IDEMPOTENCY_UNDER_WAY_MAX).plus(IDEMPOTENCY_UNDER_WAY_MAX);
        assert!(matches!(take(1, later).await, Known::New), "whoever did it is gone");
        store.keep_answer((account, "k"), Some((200, "{}".into()))).await.expect("kept");
        assert!(matches!(take(1, later).await, Known::Answered(200, _)));
        assert_eq!(store.key_taken_at(account, "k").await, Some(later));
        assert_eq!(store.forget_keys(later.plus(IDEMPOTENCY_KEPT)).await.expect("forgotten"), 0);
        assert_eq!(store.forget_keys(Timestamp(later.plus(IDEMPOTENCY_KEPT).0 + 1)).await.expect("forgotten"), 1);
    }
}
