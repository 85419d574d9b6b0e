//! Bodies of requests to the platform's own routes: JSON of a bounded size, whose unknown fields are refused by name.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use bitnet_server::ServerError;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;

use crate::limits::{MANAGEMENT_BODY_BYTES_MAX, MANAGEMENT_BODY_TIME_MAX};

/// A body as it came.
pub(crate) struct Raw(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ServerError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ServerError> {
        let body = Limited::new(request.into_body(), MANAGEMENT_BODY_BYTES_MAX);
        match tokio::time::timeout(MANAGEMENT_BODY_TIME_MAX, body.collect()).await {
            Err(_) => Err(ServerError::BodyTooSlow { limit: MANAGEMENT_BODY_TIME_MAX }),
            Ok(Ok(body)) => Ok(Self(body.to_bytes())),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(ServerError::BodyTooLarge { limit: MANAGEMENT_BODY_BYTES_MAX })
            }
            Ok(Err(_)) => Err(ServerError::BodyBroken),
        }
    }
}

/// A body that is JSON of one form.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ServerError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ServerError> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        read(&bytes).map(Self)
    }
}

/// Reads JSON. What is syntactically wrong, what is unknown, and what is of a wrong type are told apart.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ServerError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = error.to_string();
        if !error.is_data() {
            return ServerError::MalformedJson { reason };
        }
        let field = |prefix: &str| reason.strip_prefix(prefix).and_then(|rest| rest.split('`').next()).map(str::to_string);
        if let Some(param) = field("unknown field `") {
            return ServerError::UnknownParameter { param };
        }
        match field("missing field `") {
            Some(param) => ServerError::MissingParameter { param },
            None => ServerError::InvalidParameter { param: "body".into(), reason },
        }
    })
}
