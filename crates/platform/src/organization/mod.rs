//! `/v1/organization/*` in OpenAI's shapes: usage by bucket, costs, and the draft invoice. For admin keys, each of which sees its own
//! account and nothing else. Everything is read from rollups and entries: what is shown here is what is billed.

mod costs;
mod invoice;
mod query;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::routing::get;
use bitnet_server::admission::credential;
use bitnet_server::{App, ServerError};

use crate::directory::{ApiKey, KeyAccess};
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::platform::Platform;

/// The routes, all of them for admin keys.
pub(crate) fn routes(platform: Platform) -> Router<App> {
    Router::new()
        .route("/v1/organization/usage/completions", get(usage::completions))
        .route("/v1/organization/usage/embeddings", get(usage::embeddings))
        .route("/v1/organization/costs", get(costs::costs))
        .route("/v1/organization/invoices/draft", get(invoice::draft))
        .route("/v1/organization/invoices/draft.html", get(invoice::page))
        .route("/v1/organization/invoices/draft/requests", get(invoice::requests))
        .with_state(platform)
}

/// Whoever administers an account.
pub(crate) struct Administrator {
    pub(crate) account: AccountId,
}

impl FromRequestParts<Platform> for Administrator {
    type Rejection = ServerError;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, ServerError> {
        let key: Option<Arc<ApiKey>> = platform.directory().find(credential(&parts.headers)?, platform.now());
        let key = key.ok_or(ServerError::InvalidKey)?;
        if key.access != KeyAccess::Admin {
            return Err(ServerError::Forbidden { reason: "this takes an admin key".into() });
        }
        Ok(Self { account: key.owner.account })
    }
}

/// What an error of the platform is to a client of these routes: the database is away, or it is our fault.
pub(crate) fn as_server_error(error: PlatformError) -> ServerError {
    match error {
        PlatformError::Invalid { field, reason } => ServerError::InvalidParameter { param: field.into(), reason },
        error if error.is_transient() => {
            tracing::warn!(%error, "the database is away");
            ServerError::Overloaded { retry_after: std::time::Duration::from_secs(2) }
        }
        error => ServerError::Internal { reason: error.to_string() },
    }
}
