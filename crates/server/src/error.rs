//! Everything that can go wrong with a request, and the only place that knows what HTTP makes of it: status, type, code, the
//! parameter's name, `Retry-After`, in the notation of OpenAI or of Anthropic.
//!
//! A client can tell waiting from stopping: 429 `rate_limit_exceeded` and `slow_down` and 503 `server_is_overloaded` carry
//! `Retry-After`; 429 `insufficient_quota` does not. Messages hold names and numbers, never prompts and never secrets.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_engine::{RequestError, SubmitError};
use bitnet_model::RunnerError;
use bitnet_model::device::DeviceError;
use bitnet_model::sampler::SamplerError;
use bitnet_model::text::TextError;
use serde_json::{Value, json};
use thiserror::Error;

use crate::admission::Voided;
use crate::app::JobParams;

/// Why a request was refused or failed.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A parameter with a value that cannot be.
    #[error("`{param}`: {reason}")]
    InvalidParameter { param: String, reason: String },
    /// A parameter that is required.
    #[error("missing required parameter: `{param}`")]
    MissingParameter { param: String },
    /// A parameter that no version of this API has.
    #[error("unknown parameter: `{param}`")]
    UnknownParameter { param: String },
    /// A parameter of the upstream API that this server does not honour.
    #[error("unsupported parameter: `{param}`: {reason}")]
    UnsupportedParameter { param: String, reason: &'static str },
    /// The body is not JSON, or nests too deep.
    #[error("the body is not valid JSON: {reason}")]
    MalformedJson { reason: String },
    /// The body is of a type that the route does not read.
    #[error("content type {got:?} is not supported here; send {expected}")]
    MediaType { got: String, expected: &'static str },
    /// The body is longer than the bound.
    #[error("the body is longer than {limit} bytes")]
    BodyTooLarge { limit: usize },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} s", limit.as_secs())]
    BodyTooSlow { limit: Duration },
    /// The connection broke while the body arrived.
    #[error("the body ended early")]
    BodyBroken,
    /// The URL or the form is not what the route reads.
    #[error("the URL or the form cannot be read")]
    Unreadable,
    /// No such URL.
    #[error("unknown URL: {method} {path}")]
    UnknownRoute { method: String, path: String },
    /// The URL exists, the method does not.
    #[error("method {method} is not allowed on {path}")]
    Method { method: String, path: String },
    /// No such model, or not yet ready.
    #[error("the model `{model}` does not exist or you do not have access to it")]
    UnknownModel { model: String },
    /// The model cannot do what the route is for.
    #[error("the model `{model}` does not support this: {reason}")]
    ModelTask { model: String, reason: &'static str },
    /// An object that is gone or never was.
    #[error("no {kind} with id `{id}`")]
    UnknownObject { kind: &'static str, id: String },
    /// The object is in a state that forbids this.
    #[error("{kind} `{id}`: {reason}")]
    ObjectState { kind: &'static str, id: String, reason: String },
    /// No API key.
    #[error("no API key was given: send `Authorization: Bearer KEY`")]
    MissingKey,
    /// An API key that is not known.
    #[error("the API key is not valid")]
    InvalidKey,
    /// The key may not do this.
    #[error("not permitted: {reason}")]
    Forbidden { reason: String },
    /// The account has to be settled first.
    #[error("payment required: {reason}")]
    PaymentRequired { reason: String },
    /// The account's quota is used up: trying again does not help.
    #[error("the quota is used up: {reason}")]
    InsufficientQuota { reason: String },
    /// Too many requests of one caller.
    #[error("rate limit reached: {reason}; try again in {} s", retry_after_seconds(*retry_after))]
    RateLimited { reason: String, retry_after: Duration },
    /// One caller's share of the waiting room is used.
    #[error("too many requests at once: {reason}; try again in {} s", retry_after_seconds(*retry_after))]
    SlowDown { reason: String, retry_after: Duration },
    /// The server has as much work as it takes.
    #[error("the server is overloaded; try again in {} s", retry_after_seconds(*retry_after))]
    Overloaded { retry_after: Duration },
    /// What computes has broken down; only starting the server again helps.
    #[error("the model's engine has broken down and the server must be started again")]
    Broken,
    /// The server is about to end.
    #[error("the server is shutting down; try again in {} s", retry_after_seconds(*retry_after))]
    Draining { retry_after: Duration },
    /// The prompt and what is to be written do not fit the model's context. Clients tell this by OpenAI's wording, which is kept.
    #[error("this model's maximum context length is {limit} tokens, but the prompt has {got}")]
    PromptTooLong { got: usize, limit: usize, param: &'static str },
    /// The prompt could not become tokens.
    #[error("`{param}`: {source}")]
    Text { param: &'static str, source: TextError },
    /// Sampling parameters out of range.
    #[error(transparent)]
    Sampling(#[from] SamplerError),
    /// The engine gave a request up.
    #[error("the request failed: {0}")]
    Failed(RequestError),
    /// The deadline passed.
    #[error("the request took longer than its deadline")]
    Deadline,
    /// Reading or writing kept files failed.
    #[error("storage failed: {0}")]
    Storage(#[from] std::io::Error),
    /// A part of the server broke: a defect of ours.
    #[error("internal error: {reason}")]
    Internal { reason: String },
}

/// Which API a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error":{message,type,param,code}}`.
    OpenAi,
    /// `{"type":"error","error":{type,message},"request_id"}`.
    Anthropic,
}

impl Dialect {
    /// By the URL.
    pub fn of_path(path: &str) -> Self {
        if path == "/v1/messages" || path.starts_with("/v1/messages/") { Self::Anthropic } else { Self::OpenAi }
    }
}

/// What HTTP makes of an error.
struct Wire {
    status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    /// OpenAI's `code`.
    code: Option<&'static str>,
}

impl Wire {
    fn new(status: StatusCode, kind: &'static str, code: impl Into<Option<&'static str>>) -> Self {
        Self { status, kind, code: code.into() }
    }

    fn invalid(code: impl Into<Option<&'static str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code)
    }
}

impl ServerError {
    /// A parameter with a wrong value.
    pub(crate) fn invalid(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidParameter { param: param.into(), reason: reason.into() }
    }

    /// A parameter of the upstream API that is not honoured here.
    pub(crate) fn unsupported(param: impl Into<String>, reason: &'static str) -> Self {
        Self::UnsupportedParameter { param: param.into(), reason }
    }

    /// A defect of ours.
    pub(crate) fn internal(reason: impl Into<String>) -> Self {
        Self::Internal { reason: reason.into() }
    }

    /// What the engine's refusal means.
    pub(crate) fn of_submit(error: SubmitError, params: JobParams) -> Self {
        let param = params.prompt;
        match error {
            SubmitError::QueueFull { retry_after } => Self::Overloaded { retry_after },
            SubmitError::TenantShare { n_waiting, n_tenants, retry_after } => {
                Self::SlowDown { reason: format!("{n_waiting} of yours wait, your share among {n_tenants} callers"), retry_after }
            }
            SubmitError::Broken => Self::Broken,
            SubmitError::Draining => Self::Draining { retry_after: DRAIN_RETRY_AFTER },
            SubmitError::TooLong { got, limit } => Self::PromptTooLong { got, limit, param },
            SubmitError::EmptyPrompt => Self::invalid(param, "there is no text"),
            SubmitError::UnknownToken { .. } | SubmitError::Quarantined { .. } => Self::invalid(param, error.to_string()),
            SubmitError::TooMany { name, got, limit } => Self::invalid(name, format!("{got}, more than {limit}")),
            SubmitError::OutOfRange { name, got, expected } => Self::invalid(name, format!("{got} is not {expected}")),
            SubmitError::Sampling(error) => Self::Sampling(error),
            SubmitError::Text(source) => Self::Text { param: "stop", source },
            SubmitError::BadConstraint { reason } => Self::invalid(params.constraint, reason),
            SubmitError::UnknownModel { name } => Self::UnknownModel { model: name },
            SubmitError::NotGenerative | SubmitError::NoEmbeddings => Self::invalid("model", error.to_string()),
            SubmitError::NoTokenizer { what } => Self::invalid(what, "this model has no tokenizer"),
        }
    }

    /// What it means that there is no room for a request of which nothing is known yet.
    pub(crate) fn of_room(error: SubmitError) -> Self {
        Self::of_submit(error, JobParams { prompt: "prompt", constraint: "response_format" })
    }

    /// What the failure of an accepted request means.
    pub(crate) fn of_request(error: RequestError) -> Self {
        match error {
            RequestError::DeadlineExceeded => Self::Deadline,
            RequestError::Broken => Self::Broken,
            RequestError::Runner(RunnerError::Device(DeviceError::Lost { reason })) => {
                tracing::error!(reason, "the device of a model is lost");
                Self::Broken
            }
            RequestError::Shutdown => Self::Draining { retry_after: DRAIN_RETRY_AFTER },
            other => Self::Failed(other),
        }
    }

    /// Whose fault it is that a request is not served.
    pub(crate) fn fault(&self) -> Voided {
        match self {
            Self::Overloaded { .. } | Self::Broken | Self::Draining { .. } | Self::Failed(_) | Self::Deadline => Voided::ByServer,
            Self::Storage(_) | Self::Internal { .. } => Voided::ByServer,
            _ => Voided::ByClient,
        }
    }

    fn wire(&self) -> Wire {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidParameter { .. } | Self::Sampling(_) => Wire::invalid("invalid_value"),
            Self::MissingParameter { .. } => Wire::invalid("missing_required_parameter"),
            Self::UnknownParameter { .. } => Wire::invalid("unknown_parameter"),
            Self::UnsupportedParameter { .. } => Wire::invalid("unsupported_parameter"),
            Self::MalformedJson { .. } => Wire::invalid("invalid_json"),
            Self::MediaType { .. } => Wire::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type"),
            Self::BodyTooLarge { .. } => Wire::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large"),
            Self::BodyTooSlow { .. } => Wire::new(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout"),
            Self::Unreadable => Wire::invalid("invalid_request"),
            Self::BodyBroken => Wire::invalid("incomplete_body"),
            Self::UnknownRoute { .. } => Wire::new(StatusCode::NOT_FOUND, INVALID, "unknown_url"),
            Self::Method { .. } => Wire::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
            Self::UnknownModel { .. } => Wire::new(StatusCode::NOT_FOUND, INVALID, "model_not_found"),
            Self::ModelTask { .. } => Wire::invalid("model_not_supported"),
            Self::UnknownObject { .. } => Wire::new(StatusCode::NOT_FOUND, INVALID, "not_found"),
            Self::ObjectState { .. } => Wire::new(StatusCode::CONFLICT, INVALID, "conflict"),
            Self::MissingKey | Self::InvalidKey => Wire::new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key"),
            Self::Forbidden { .. } => Wire::new(StatusCode::FORBIDDEN, INVALID, "permission_denied"),
            Self::PaymentRequired { .. } => Wire::new(StatusCode::PAYMENT_REQUIRED, "billing_error", "billing_not_active"),
            Self::InsufficientQuota { .. } => Wire::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota"),
            Self::RateLimited { .. } => Wire::new(StatusCode::TOO_MANY_REQUESTS, "requests", "rate_limit_exceeded"),
            Self::SlowDown { .. } => Wire::new(StatusCode::TOO_MANY_REQUESTS, "requests", "slow_down"),
            Self::Broken => Wire::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "engine_broken"),
            Self::Overloaded { .. } | Self::Draining { .. } => {
                Wire::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", "server_is_overloaded")
            }
            Self::PromptTooLong { .. } => Wire::invalid("context_length_exceeded"),
            Self::Text { source, .. } if is_ours(source) => Wire::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
            Self::Text { .. } => Wire::invalid("invalid_value"),
            Self::Deadline => Wire::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "deadline_exceeded"),
            Self::Failed(_) | Self::Internal { .. } => Wire::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
            Self::Storage(_) => Wire::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "storage_failed"),
        }
    }

    /// The parameter at fault.
    fn param(&self) -> Option<&str> {
        match self {
            Self::InvalidParameter { param, .. }
            | Self::MissingParameter { param }
            | Self::UnknownParameter { param }
            | Self::UnsupportedParameter { param, .. } => Some(param),
            Self::PromptTooLong { param, .. } | Self::Text { param, .. } => Some(param),
            Self::Sampling(SamplerError::Parameter { name, .. }) => Some(name),
            Self::UnknownModel { .. } | Self::ModelTask { .. } => Some("model"),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::SlowDown { retry_after, .. }
            | Self::Overloaded { retry_after }
            | Self::Draining { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Anthropic's `type`, and its status where it differs.
    fn anthropic(&self) -> (StatusCode, &'static str) {
        let status = self.wire().status;
        match status {
            StatusCode::UNAUTHORIZED => (status, "authentication_error"),
            StatusCode::PAYMENT_REQUIRED => (status, "billing_error"),
            StatusCode::FORBIDDEN => (status, "permission_error"),
            StatusCode::NOT_FOUND => (status, "not_found_error"),
            StatusCode::PAYLOAD_TOO_LARGE => (status, "request_too_large"),
            StatusCode::TOO_MANY_REQUESTS => (status, "rate_limit_error"),
            StatusCode::GATEWAY_TIMEOUT => (status, "timeout_error"),
            _ if matches!(self, Self::Broken) => (status, "api_error"),
            StatusCode::SERVICE_UNAVAILABLE => (StatusCode::from_u16(529).unwrap_or(status), "overloaded_error"),
            _ if status.is_server_error() => (status, "api_error"),
            _ => (status, "invalid_request_error"),
        }
    }

    /// The status on the wire.
    pub fn status(&self, dialect: Dialect) -> StatusCode {
        match dialect {
            Dialect::OpenAi => self.wire().status,
            Dialect::Anthropic => self.anthropic().0,
        }
    }

    /// The JSON body, which is also what an error inside a stream says.
    pub fn body(&self, dialect: Dialect, request_id: Option<&str>) -> Value {
        let wire = self.wire();
        // What broke inside is for the log.
        let message = match self {
            Self::Internal { .. } | Self::Storage(_) => "the server had an internal error".to_string(),
            other => other.to_string(),
        };
        match dialect {
            Dialect::OpenAi => {
                json!({ "error": { "message": message, "type": wire.kind, "param": self.param(), "code": wire.code } })
            }
            Dialect::Anthropic => {
                json!({ "type": "error", "error": { "type": self.anthropic().1, "message": message }, "request_id": request_id })
            }
        }
    }

    /// Whether the server refused because it is about to end, or has to.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Broken)
    }

    /// The short name that metrics and logs use.
    pub(crate) fn code(&self) -> &'static str {
        let wire = self.wire();
        wire.code.unwrap_or(wire.kind)
    }
}

/// Whole seconds, at least one.
fn retry_after_seconds(duration: Duration) -> u64 {
    duration.as_secs_f64().ceil().max(1.0) as u64
}

/// How soon another replica, or this one started anew, will answer.
pub(crate) const DRAIN_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Whether a text error is the model file's fault and not the request's.
fn is_ours(error: &TextError) -> bool {
    match error {
        TextError::NoTokenizer
        | TextError::Checkpoint(_)
        | TextError::Malformed { .. }
        | TextError::Unsupported { .. }
        | TextError::TemplateTooLong { .. } => true,
        TextError::TextTooLong { .. }
        | TextError::PatternTooSlow { .. }
        | TextError::NoTokenFor { .. }
        | TextError::UnknownToken { .. }
        | TextError::Template { .. }
        | TextError::TemplateRefused { .. }
        | TextError::TemplateFuel { .. }
        | TextError::TemplateOutput { .. }
        | TextError::TooManyMessages { .. }
        | TextError::ReservedArgument { .. }
        | TextError::UnknownArgument { .. }
        | TextError::StopStrings { .. } => false,
    }
}

/// The error of a response, for the layer that knows the client's dialect and writes the log.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Arc<ServerError>);

impl ServerError {
    /// The response in one dialect.
    pub(crate) fn respond(self: &Arc<Self>, dialect: Dialect, request_id: Option<&str>) -> Response {
        let body = self.body(dialect, request_id).to_string();
        let mut response = (self.status(dialect), [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(retry_after) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(retry_after)));
        }
        if matches!(self.as_ref(), Self::MissingKey | Self::InvalidKey) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Refused(self.clone()));
        response
    }
}

impl IntoResponse for ServerError {
    fn into_response(self) -> Response {
        Arc::new(self).respond(Dialect::OpenAi, None)
    }
}
