//! Who may do what, and who pays: the seam between the server and whatever sells it. Alone, [`StaticKeys`] implements it; the
//! platform implements it with accounts and a ledger.
//!
//! A request is authenticated, then admitted for the most it can cost; what comes back is a [`Reservation`], which is settled or
//! voided exactly once, whatever becomes of the request: success, error, a client that left, a server that drains. That is the
//! [`Settlement`]'s doing, not the handlers'.

mod settlement;
mod static_keys;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use bitnet_engine::{Priority, RequestEnd, TenantSalt, Usage};

use crate::error::ServerError;

pub use crate::ids::new_secret;
pub(crate) use settlement::Settlement;
pub use static_keys::{ApiKey, ApiKeyDigest, StaticKeys, credential};

/// A boxed future, as traits that are objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Account or key, for logs and for objects that belong to somebody.
    pub name: String,
    /// Keeps cached prefixes of callers apart.
    pub tenant: TenantSalt,
    /// The most urgent class that the caller may ask for; what the caller gets who asks for none, unless that is less urgent.
    pub priority_best: Priority,
    /// Which of the caller's keys it is, where admission tells them apart.
    pub api_key: Option<Arc<str>>,
}

/// What a request is for; a usage event names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Text from a conversation.
    Chat,
    /// Text from a prompt.
    Completion,
    /// Vectors.
    Embedding,
}

/// The most that a request can cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// The request's id: the server's own, of which there is no second, whatever the client calls its request.
    pub request_id: String,
    /// What it is for.
    pub operation: Operation,
    /// The route that it came by.
    pub route: Arc<str>,
    /// The model's name.
    pub model: String,
    /// Tokens of all its prompts.
    pub n_prompt_tokens: usize,
    /// Tokens that may be written, over all prompts and choices.
    pub n_completion_tokens_max: usize,
    /// Prompts or texts to embed.
    pub n_items: usize,
}

/// How much of its rate a caller has left, for `x-ratelimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests in a minute.
    pub limit_requests: u32,
    /// Of these, left.
    pub remaining_requests: u32,
    /// Until all of them are there again.
    pub reset_requests: Duration,
}

/// What a request used, once it is over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Used {
    /// All together.
    pub usage: Usage,
    /// Tokens of each of its prompts, with what was written to it.
    pub item_tokens: Vec<usize>,
    /// The worst end that one of them had.
    pub end: RequestEnd,
}

/// Why a request is not charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Voided {
    /// Its client asked for what cannot be, or left before anything was computed.
    ByClient,
    /// It was not served, by no fault of its client: there was no room, the server ends, something broke.
    ByServer,
}

/// What a request has produced so far, in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Produced {
    /// Tokens of its prompts that the cache had.
    pub n_cached_tokens: usize,
    /// Tokens written.
    pub n_completion_tokens: usize,
}

/// Record first: what a request has produced is durable before its client sees it, so that no crash loses what was delivered.
pub trait Recorder: Send + Sync {
    /// Notes what there is. Once the future is done it may be shown; an error ends the request.
    fn record(&self, produced: Produced) -> BoxFuture<'static, Result<(), ServerError>>;
}

/// What was reserved for one request.
pub trait Reservation: Send {
    /// Accounts for what was used. Runs on an engine's thread: it hands the work over and does not block.
    fn settle(self: Box<Self>, used: Used);
    /// Nothing is charged: gives everything back. Must not block either.
    fn void(self: Box<Self>, why: Voided);
    /// What the caller has left, if it is limited.
    fn rate_limits(&self) -> Option<RateLimits>;
    /// Through which the request's output goes; without one, it is shown as it comes.
    fn recorder(&self) -> Option<Arc<dyn Recorder>> {
        None
    }
}

/// Decides about callers and requests.
pub trait Admission: Send + Sync + 'static {
    /// Who calls a route, by the headers of a request.
    fn authenticate<'a>(&'a self, headers: &'a HeaderMap, route: &'a str) -> BoxFuture<'a, Result<Caller, ServerError>>;
    /// Hears of a caller who was turned away before anything was reserved, by no fault of its own.
    fn turned_away(&self, _caller: &Caller) {}
    /// Reserves the most that a request can cost, or refuses it.
    fn admit<'a>(&'a self, caller: &'a Caller, ceiling: Ceiling) -> BoxFuture<'a, Result<Box<dyn Reservation>, ServerError>>;
}
