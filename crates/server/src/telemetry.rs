//! Logs: for people or as JSON lines, on standard error. Spans of a request's stages carry its id, so that an OpenTelemetry layer
//! finds them whole. Nothing here or above logs a prompt, a reply, a header or a key.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{ConfigError, LogFormat};

/// Starts logging, once in a process. `filter` is in the notation of tracing's `EnvFilter`, such as `info` or `bitnet_server=debug`.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| ConfigError { name: "log", reason: error.to_string() })?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    let started: Result<(), TryInitError> = match format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).finish().try_init(),
    };
    started.map_err(|error| ConfigError { name: "log", reason: error.to_string() })
}
