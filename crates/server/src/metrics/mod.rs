//! What the server counts, and `/metrics` in Prometheus' text format. Names are our own (`bitnet_*`) and, beside them, those of
//! vLLM that the endpoint picker of Kubernetes' Gateway API scrapes (kubernetes-sigs/gateway-api-inference-extension), so that a
//! worker of ours is a drop-in there. Labels hold models, routes and statuses only, never anything that a client can invent.

mod exposition;
mod histogram;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitnet_engine::{FinishReason, RequestError, Usage};

pub(crate) use exposition::exposition;
use histogram::Histogram;

/// Counters of the whole server.
#[derive(Default)]
pub(crate) struct Metrics {
    models: Mutex<BTreeMap<String, Arc<ModelMetrics>>>,
    responses: Mutex<BTreeMap<String, BTreeMap<u16, u64>>>,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    n_connections: AtomicI64,
    n_connections_refused: AtomicU64,
}

/// Counters of one model.
pub(crate) struct ModelMetrics {
    n_succeeded: AtomicU64,
    n_failed: AtomicU64,
    n_cancelled: AtomicU64,
    n_stopped: AtomicU64,
    n_length: AtomicU64,
    first_token_seconds: Histogram,
    next_token_seconds: Histogram,
    request_seconds: Histogram,
    prompt_tokens: Histogram,
    completion_tokens: Histogram,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        Self {
            n_succeeded: AtomicU64::new(0),
            n_failed: AtomicU64::new(0),
            n_cancelled: AtomicU64::new(0),
            n_stopped: AtomicU64::new(0),
            n_length: AtomicU64::new(0),
            first_token_seconds: Histogram::new(histogram::SECONDS),
            next_token_seconds: Histogram::new(histogram::TOKEN_SECONDS),
            request_seconds: Histogram::new(histogram::SECONDS),
            prompt_tokens: Histogram::new(histogram::TOKENS),
            completion_tokens: Histogram::new(histogram::TOKENS),
        }
    }
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ModelMetrics {
    /// A generation's first token came this long after it was submitted.
    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token_seconds.observe(after.as_secs_f64());
    }

    /// Another token came this long after the one before.
    pub(crate) fn next_token(&self, after: Duration) {
        self.next_token_seconds.observe(after.as_secs_f64());
    }

    /// A text is complete.
    pub(crate) fn choice_finished(&self, reason: &FinishReason) {
        match reason {
            FinishReason::Length | FinishReason::ContextFull => one_more(&self.n_length),
            _ => one_more(&self.n_stopped),
        }
    }

    /// All that was asked for is there.
    pub(crate) fn succeeded(&self, after: Duration, usage: Usage) {
        one_more(&self.n_succeeded);
        self.request_seconds.observe(after.as_secs_f64());
        self.prompt_tokens.observe(usage.n_prompt_tokens as f64);
        self.completion_tokens.observe(usage.n_completion_tokens as f64);
    }

    /// The engine gave it up.
    pub(crate) fn failed(&self, error: &RequestError) {
        one_more(&self.n_failed);
        tracing::warn!(%error, "a request failed");
    }

    /// The client left.
    pub(crate) fn cancelled(&self) {
        one_more(&self.n_cancelled);
    }
}

impl Metrics {
    /// The counters of a model, which are there from its first request on.
    pub(crate) fn model(&self, name: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        match models.get(name) {
            Some(model) => model.clone(),
            None => models.entry(name.to_string()).or_default().clone(),
        }
    }

    /// A response was begun; `route` is the pattern in the router, not what the client wrote.
    pub(crate) fn responded(&self, route: &str, status: u16) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        let of_route = match responses.get_mut(route) {
            Some(of_route) => of_route,
            None => responses.entry(route.to_string()).or_default(),
        };
        *of_route.entry(status).or_default() += 1;
    }

    /// A request was refused.
    pub(crate) fn refused(&self, code: &'static str) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    /// A connection was opened.
    pub(crate) fn connected(&self) {
        self.n_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// And closed.
    pub(crate) fn disconnected(&self) {
        self.n_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections that are open.
    pub(crate) fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::Relaxed).max(0) as usize
    }

    /// A connection was one too many.
    pub(crate) fn connection_refused(&self) {
        one_more(&self.n_connections_refused);
    }
}
