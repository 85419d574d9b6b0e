//! `/v1/organization/*`: usage by bucket and costs in OpenAI's shapes, invoices, how they are paid, webhooks; and `/v1/events`, which
//! takes usage from elsewhere. For admin keys, each of which sees its own account and nothing else. Everything is read from rollups and entries: what is shown here is what is billed.

mod audit_logs;
mod billing;
mod body;
mod costs;
mod events;
mod idempotency;
mod invoice;
mod listed;
mod people;
mod projects;
mod query;
mod service_level;
mod usage;
mod webhooks;

use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use bitnet_server::admission::credential;
use bitnet_server::{App, ServerError};

use crate::audit::By;
use crate::directory::{ApiKey, KeyAccess};
use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId};
use crate::ledger::AccountStatus;
use crate::organization::idempotency::once;
use crate::platform::Platform;
use crate::portal::Portal;
use crate::rights::guard;

/// The routes, all of them for admin keys.
pub(crate) fn routes(platform: Platform) -> Router<App> {
    let read = Router::new()
        .route("/v1/organization/usage/completions", get(usage::completions))
        .route("/v1/organization/usage/embeddings", get(usage::embeddings))
        .route("/v1/organization/costs", get(costs::costs))
        .route("/v1/organization/invoices/draft", get(invoice::draft))
        .route("/v1/organization/invoices/draft.html", get(invoice::page))
        .route("/v1/organization/invoices/draft/requests", get(invoice::requests))
        .route("/v1/organization/invoices", get(invoice::all))
        .route("/v1/organization/invoices/{id}", get(invoice::one))
        .route("/v1/organization/invoices/{id}/requests", get(invoice::issued_requests))
        .route("/v1/organization/service_level", get(service_level::months))
        .route("/v1/organization/audit_logs", get(audit_logs::all));
    let changed = Router::new()
        .route("/v1/organization/billing/profile", get(billing::profile).post(billing::set_profile))
        .route("/v1/organization/billing/coupons", post(billing::redeem))
        .route("/v1/organization/billing/payment_method", post(billing::set_method))
        .route("/v1/organization/webhooks/{id}/replay", post(webhooks::replay))
        .route("/v1/organization/projects", get(projects::list).post(projects::create))
        .route("/v1/organization/projects/{id}", get(projects::one).post(projects::rename))
        .route("/v1/organization/projects/{id}/api_keys", get(projects::project_keys))
        .route("/v1/organization/projects/{id}/api_keys/{key}", get(projects::project_key).delete(projects::delete_project_key))
        .route("/v1/organization/users", get(people::users))
        .route("/v1/organization/users/{id}", get(people::user).post(people::set_role).delete(people::remove))
        .route("/v1/organization/invites/{id}", get(people::invite).delete(people::delete_invite))
        .layer(from_fn_with_state(platform.clone(), once));
    // Their answers hold secrets, which are not kept.
    let secret = Router::new()
        .route("/v1/organization/billing/payment_setup", post(billing::begin_setup))
        .route("/v1/organization/admin_api_keys", get(projects::admin_keys).post(projects::create_admin_key))
        .route("/v1/organization/admin_api_keys/{id}", get(projects::admin_key).delete(projects::delete_admin_key))
        .route("/v1/organization/webhooks", get(webhooks::list).post(webhooks::create))
        .route("/v1/organization/webhooks/{id}", delete(webhooks::remove))
        .route("/v1/organization/webhooks/{id}/secret", post(webhooks::rotate))
        .route("/v1/organization/webhooks/{id}/deliveries", get(webhooks::deliveries));
    let managed = changed.merge(secret).layer(from_fn_with_state(platform.clone(), guard));
    // What was used, and what was paid, is heard of whatever the licence says.
    let always = Router::new()
        .route("/v1/organization/invoices/{id}/pay", post(billing::pay))
        .layer(from_fn_with_state(platform.clone(), once))
        .route("/v1/events", post(events::ingest))
        .route("/webhooks/stripe", post(billing::stripe));
    read.merge(managed).merge(always).with_state(platform)
}

/// Invitations, which go by the portal's mail.
pub(crate) fn invitation_routes(portal: Portal) -> Router<App> {
    let platform = portal.platform().clone();
    Router::new()
        .route("/v1/organization/invites", get(people::invites).post(people::create_invite))
        .layer(from_fn_with_state(platform.clone(), once))
        .layer(from_fn_with_state(platform, guard))
        .with_state(portal)
}

impl FromRef<Portal> for Platform {
    fn from_ref(portal: &Portal) -> Self {
        portal.platform().clone()
    }
}

/// Whoever administers an account.
pub(crate) struct Administrator {
    pub(crate) account: AccountId,
    /// With which key.
    key: ApiKeyId,
}

impl Administrator {
    /// For the audit log.
    fn acting(&self, platform: &Platform) -> By {
        By { actor: self.key.to_string(), address: String::new(), request_id: String::new(), at: platform.now() }
    }

    /// A suspended account is looked at and paid for; nothing is made in it and nobody joins.
    async fn check_active(&self, platform: &Platform) -> Result<(), ServerError> {
        let account = platform.store().account(self.account, platform.now()).await.map_err(as_server_error)?;
        let reason = || "the account is suspended".to_string();
        if account.status == AccountStatus::Active { Ok(()) } else { Err(ServerError::Forbidden { reason: reason() }) }
    }
}

/// The id of something, from a URL: one that is none is nothing's.
fn known<T: FromStr>(kind: &'static str, id: &str) -> Result<T, ServerError> {
    id.parse().map_err(|_| ServerError::UnknownObject { kind, id: id.chars().take(64).collect() })
}

impl<S: Send + Sync> FromRequestParts<S> for Administrator
where
    Platform: FromRef<S>,
{
    type Rejection = ServerError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ServerError> {
        let platform = Platform::from_ref(state);
        let key: Option<Arc<ApiKey>> = platform.directory().find(credential(&parts.headers)?, platform.now());
        let key = key.ok_or(ServerError::InvalidKey)?;
        if key.access != KeyAccess::Admin {
            return Err(ServerError::Forbidden { reason: "this takes an admin key".into() });
        }
        Ok(Self { account: key.owner.account, key: key.id })
    }
}

/// What an error of the platform is to a client of these routes: the database is away, or it is our fault.
pub(crate) fn as_server_error(error: PlatformError) -> ServerError {
    match error {
        PlatformError::Invalid { field, reason } => ServerError::InvalidParameter { param: field.into(), reason },
        PlatformError::Throttled { retry_after_s } => {
            ServerError::RateLimited { reason: "invitations".into(), retry_after: std::time::Duration::from_secs(retry_after_s) }
        }
        PlatformError::NotFound { what } => ServerError::UnknownObject { kind: what, id: String::new() },
        PlatformError::PlanLimit { .. } | PlatformError::ReadOnly { .. } => ServerError::Forbidden { reason: error.to_string() },
        PlatformError::Payment { source } if source.is_of_input() => {
            ServerError::InvalidParameter { param: "payment_method".into(), reason: source.to_string() }
        }
        PlatformError::Payment { source } => {
            tracing::warn!(error = %source, "payment is away");
            ServerError::Overloaded { retry_after: std::time::Duration::from_secs(10) }
        }
        error if error.is_transient() => {
            tracing::warn!(%error, "the database is away");
            ServerError::Overloaded { retry_after: std::time::Duration::from_secs(2) }
        }
        error => ServerError::Internal { reason: error.to_string() },
    }
}
