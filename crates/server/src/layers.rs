//! What happens around every handler: a request gets its id and its span, a panic becomes a 500, an error its dialect, and all of
//! it is counted. Logs name routes, statuses and times; never bodies, headers or query strings.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use tracing::{Instrument, info_span};

use crate::app::{App, ChosenBy, RequestIdentity};
use crate::error::{Dialect, Refused, ServerError};
use crate::ids::new_id;
use crate::limits;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What Anthropic calls it.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// The route of URLs that are unknown.
const NO_ROUTE: &str = "unknown";

/// The outermost layer.
pub(crate) async fn identify(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let dialect = Dialect::of_path(request.uri().path());
    let (id, chosen_by) = match client_request_id(request.headers()) {
        Some(id) => (id, ChosenBy::Client),
        None => (new_id("req_"), ChosenBy::Server),
    };
    let id: Arc<str> = id.into();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| NO_ROUTE.to_string(), |path| path.as_str().to_string());
    let of = (method.as_str(), route.as_str(), &*id);
    let trace = app.traces().map(|traces| traces.begin(of, request.headers())).unwrap_or_default();
    request.extensions_mut().insert(RequestIdentity { id: id.clone(), chosen_by, trace: trace.clone() });
    let span = info_span!("request", id = %id, %method, route, caller = tracing::field::Empty, booked_as = tracing::field::Empty);
    let response = next.run(request).instrument(span.clone()).await;
    let response = in_shape(response);
    let refused = response.extensions().get::<Refused>().cloned();
    let mut response = match (&refused, dialect) {
        (Some(refused), Dialect::Anthropic) => refused.0.respond(dialect, Some(&id)),
        _ => response,
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        if dialect == Dialect::Anthropic {
            response.headers_mut().insert(ANTHROPIC_REQUEST_ID, value.clone());
        }
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    app.metrics().responded(&route, status);
    let code = refused.as_ref().map(|refused| refused.0.code());
    if let Some(code) = code {
        app.metrics().refused(code);
    }
    trace.answered(status, code);
    let _in_span = span.enter();
    log(status, refused.as_ref().map(|refused| refused.0.as_ref()), began);
    response
}

/// A refusal of the framework's own (a URL or a form that it cannot read), which would be plain text, in the shape of all others.
fn in_shape(response: Response) -> Response {
    let is_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
    let is_foreign = response.status().is_client_error() && response.extensions().get::<Refused>().is_none() && !is_page;
    if is_foreign { ServerError::Unreadable.into_response() } else { response }
}

fn log(status: u16, error: Option<&ServerError>, began: Instant) {
    let first_byte_ms = began.elapsed().as_secs_f64() * 1e3;
    match error {
        // The text of a client's error may quote what the client sent, so only its code is logged.
        Some(error) if status < 500 => tracing::info!(status, first_byte_ms, code = error.code(), "refused"),
        Some(error) => tracing::error!(status, first_byte_ms, code = error.code(), %error, "failed"),
        None => tracing::info!(status, first_byte_ms, "answered"),
    }
}

/// A client's own id, if it is one that can go into a log.
fn client_request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    ((1..=limits::REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.chars().all(is_plain)).then(|| id.to_string())
}

/// What a panic in a handler becomes; its message is in the log, by the panic hook.
pub(crate) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ServerError::internal("a handler panicked").into_response()
}

/// Unknown URLs.
pub(crate) async fn unknown_route(method: Method, uri: Uri) -> ServerError {
    ServerError::UnknownRoute { method: method.to_string(), path: uri.path().chars().take(200).collect() }
}

/// Known URLs, other methods.
pub(crate) async fn unknown_method(method: Method, uri: Uri) -> ServerError {
    ServerError::Method { method: method.to_string(), path: uri.path().chars().take(200).collect() }
}

/// Which pages of other origins may call; none unless the configuration names some.
pub(crate) fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allow_origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let methods = AllowMethods::list([Method::GET, Method::POST, Method::DELETE]);
    let layer = CorsLayer::new().allow_origin(allow_origin).allow_methods(methods).allow_headers(AllowHeaders::mirror_request());
    Some(layer.expose_headers([REQUEST_ID, header::RETRY_AFTER]))
}
