//! `/v1/organization/*`: usage by bucket and costs in OpenAI's shapes, invoices, how they are paid, webhooks; and `/v1/events`, which
//! takes usage from elsewhere. For admin keys, each of which sees its own account and nothing else. Everything is read from rollups and entries: what is shown here is what is billed.

mod billing;
mod body;
mod costs;
mod events;
mod idempotency;
mod invoice;
mod query;
mod service_level;
mod usage;
mod webhooks;

use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use bitnet_server::admission::credential;
use bitnet_server::{App, ServerError};

use crate::audit::By;
use crate::directory::{ApiKey, KeyAccess};
use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId};
use crate::organization::idempotency::once;
use crate::platform::Platform;
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
        .route("/v1/organization/service_level", get(service_level::months));
    let changed = Router::new()
        .route("/v1/organization/billing/profile", get(billing::profile).post(billing::set_profile))
        .route("/v1/organization/billing/coupons", post(billing::redeem))
        .route("/v1/organization/billing/payment_method", post(billing::set_method))
        .route("/v1/organization/webhooks/{id}/replay", post(webhooks::replay))
        .layer(from_fn_with_state(platform.clone(), once));
    // Their answers hold secrets, which are not kept.
    let secret = Router::new()
        .route("/v1/organization/billing/payment_setup", post(billing::begin_setup))
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
}

/// The id of something, from a URL: one that is none is nothing's.
fn known<T: FromStr>(kind: &'static str, id: &str) -> Result<T, ServerError> {
    id.parse().map_err(|_| ServerError::UnknownObject { kind, id: id.chars().take(64).collect() })
}

impl FromRequestParts<Platform> for Administrator {
    type Rejection = ServerError;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, ServerError> {
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
