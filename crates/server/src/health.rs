//! Health routes, in our own spelling and in that of KServe's inference protocol. They look at flags only and never wait behind
//! inference; live ones need no key, since a supervisor has none.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ServerError;

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, `degraded` (a replica of a model has broken down, others serve), `starting`, `draining` or `broken`.
    pub status: &'static str,
    /// Models that can serve.
    pub models: usize,
    /// Requests at work.
    pub requests: usize,
}

/// Whether the process answers and its engines are alive.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Liveness {
    pub live: bool,
}

/// Whether requests are welcome.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Readiness {
    pub ready: bool,
}

/// Whether one model can serve.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelReadiness {
    pub name: String,
    pub ready: bool,
}

/// The process answers, and its engines are alive: where one has broken down, only a new process helps.
pub(crate) async fn live(State(app): State<App>) -> Response {
    let live = !app.is_broken();
    (status(live), Json(Liveness { live })).into_response()
}

/// Requests are welcome.
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let ready = app.is_ready();
    (status(ready), Json(Readiness { ready })).into_response()
}

/// The same, with what there is to know.
pub(crate) async fn health(State(app): State<App>) -> Response {
    let word = match (app.lifecycle().is_draining(), app.is_ready()) {
        _ if app.is_broken() => "broken",
        (true, _) => "draining",
        (false, true) if app.is_degraded() => "degraded",
        (false, true) => "ok",
        (false, false) => "starting",
    };
    let health = Health { status: word, models: app.models().all().len(), requests: app.lifecycle().n_in_flight() };
    (status(app.is_ready()), Json(health)).into_response()
}

/// Whether one model can serve.
pub(crate) async fn model_ready(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ServerError> {
    app.models().get(&name)?;
    let ready = app.is_ready();
    Ok((status(ready), Json(ModelReadiness { name, ready })).into_response())
}

fn status(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
