//! OpenAI- and Anthropic-compatible HTTP over the engine. Runs alone with static keys, or below a platform that sells it and
//! implements [`Admission`](admission::Admission).
//!
//! `router` names every URL; `app` starts every generation; `reply` reads what the model says, once for all APIs; `openai` and
//! `anthropic` write it down. Tokens, stop strings and constraints are the engine's; there is no tensor and no device here.
#![forbid(unsafe_code)]

pub mod admission;
mod anthropic;
mod app;
mod config;
mod connection;
mod conversation;
mod converse;
mod error;
mod extract;
mod files;
mod generation;
mod health;
mod ids;
mod layers;
mod lifecycle;
pub mod limits;
mod listing;
mod metrics;
mod models;
mod one_or_many;
mod openai;
mod openapi;
mod pages;
mod rate_headers;
mod reply;
mod router;
mod sampling;
mod serve;
mod sse;
pub mod telemetry;
mod text_pool;
mod tls;
mod tokens;
mod traces;

pub use app::{App, PeerAddress, request_id};
pub use config::{Config, ConfigError, LogFormat, OpenAccess, Presence, TlsFiles};
pub use error::{Dialect, ServerError};
pub use lifecycle::{InFlight, Lifecycle};
pub use models::{ModelTask, Models, ServedModel};
pub use openai::batch_runner::{BATCH_URLS, BatchEnd, BatchRunner, LineResult, ResultFile};
pub use router::{openapi, router, router_with};
pub use serve::Server;
