//! Traces of requests as OpenTelemetry has them: a span for each request, continuing its caller's trace (`traceparent`), and below it one
//! for each stage: admission, queue, prefill, decode, settle. They go to a receiver by OTLP over HTTP, in the background, and only if one
//! is configured. A receiver that is slow or gone costs spans, never a request: they wait in a bounded queue and are dropped when
//! it is full. Spans hold names, times and counts; no prompt, reply, header or key.
//!
//! The stages are known by the engine's clock after the fact, so spans are made with OpenTelemetry's own interface, which takes both
//! times, and not from `tracing`'s, which would also send every log line.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::http::uri::Scheme;
use axum::http::{HeaderMap, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::config::ConfigError;
use crate::limits;

/// Longest time that one delivery may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long spans are gathered before they are sent.
const DELIVERY_INTERVAL: Duration = Duration::from_secs(2);

/// Host and port of a receiver.
pub(crate) fn address_of(endpoint: &str) -> Result<String, String> {
    let uri = endpoint.parse::<Uri>().map_err(|error| format!("`{endpoint}` is no URL: {error}"))?;
    if uri.scheme() == Some(&Scheme::HTTPS) {
        return Err("traces are sent over plain HTTP only: put a collector on this machine before a receiver that wants TLS".into());
    }
    match (uri.scheme() == Some(&Scheme::HTTP), uri.host()) {
        (true, Some(host)) => Ok(format!("{host}:{}", uri.port_u16().unwrap_or(80))),
        _ => Err(format!("`{endpoint}` is no URL such as http://127.0.0.1:4318")),
    }
}

/// Where spans go.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends to `endpoint`. Runs inside a Tokio runtime, which carries the deliveries.
    pub(crate) fn start(endpoint: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError { name: "otlp_endpoint", reason };
        let address = address_of(endpoint).map_err(wrong)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Courier { address, runtime: Handle::current() })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(DELIVERY_TIMEOUT)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let batches =
            BatchConfigBuilder::default().with_max_queue_size(limits::N_SPANS_WAITING_MAX).with_scheduled_delay(DELIVERY_INTERVAL).build();
        let service = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "bitnet".into());
        let resource = Resource::builder().with_service_name(service).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
        let tracer = provider.tracer("bitnet_server");
        Ok(Self { provider, tracer })
    }

    /// A request's span; one whose caller does not record has none.
    pub(crate) fn begin(&self, (method, route, id): (&str, &str, &str), headers: &HeaderMap) -> RequestTrace {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        let attributes = [
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("http.route", route.to_string()),
            KeyValue::new("bitnet.request_id", id.to_string()),
        ];
        let builder = SpanBuilder::from_name(format!("{method} {route}")).with_kind(SpanKind::Server).with_attributes(attributes);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = parent.with_span(span);
        if !context.span().is_recording() {
            return RequestTrace::default();
        }
        let anchor = (Instant::now(), SystemTime::now());
        RequestTrace(Some(Arc::new(Open { tracer: self.tracer.clone(), context, anchor })))
    }

    /// Sends what is left. Blocks, but no longer than two deliveries.
    pub(crate) fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(2 * DELIVERY_TIMEOUT) {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

/// A stage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Whether and for how much it is let in.
    Admission,
    /// Waiting for the engine.
    Queue,
    /// Reading the prompt.
    Prefill,
    /// Writing.
    Decode,
    /// Booking what it used.
    Settle,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Settle => "settle",
        }
    }
}

/// The span of one request, which ends when the last who has it is done: the handler, the stream, the settlement.
#[derive(Clone, Default)]
pub(crate) struct RequestTrace(Option<Arc<Open>>);

struct Open {
    tracer: SdkTracer,
    context: Context,
    /// One moment by both clocks.
    anchor: (Instant, SystemTime),
}

impl Drop for Open {
    fn drop(&mut self) {
        self.context.span().end();
    }
}

impl std::fmt::Debug for RequestTrace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if self.0.is_some() { "RequestTrace(on)" } else { "RequestTrace(off)" })
    }
}

impl RequestTrace {
    /// A stage that took from `start` to `end`, with what it counted.
    pub(crate) fn stage(&self, stage: Stage, (start, end): (Instant, Instant), counts: &[(&'static str, usize)]) {
        let Some(open) = &self.0 else { return };
        let attributes = counts.iter().map(|&(name, count)| KeyValue::new(name, count as i64));
        let builder = SpanBuilder::from_name(stage.name()).with_start_time(open.time_of(start)).with_attributes(attributes);
        let span = open.tracer.build_with_context(builder, &open.context);
        open.context.with_span(span).span().end_with_timestamp(open.time_of(end));
    }

    /// How the request was answered; `code` is an error's.
    pub(crate) fn answered(&self, status: u16, code: Option<&'static str>) {
        let Some(open) = &self.0 else { return };
        let span = open.context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if let Some(code) = code {
            span.set_attribute(KeyValue::new("error.type", code));
        }
        if status >= 500 {
            span.set_status(Status::error(code.unwrap_or_default()));
        }
    }
}

impl Open {
    fn time_of(&self, moment: Instant) -> SystemTime {
        let (instant, time) = self.anchor;
        match moment.checked_duration_since(instant) {
            Some(later) => time + later,
            None => time - instant.duration_since(moment),
        }
    }
}

/// A request's headers as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// Carries spans to the receiver: a connection for each delivery, on the server's runtime.
#[derive(Debug)]
struct Courier {
    address: String,
    runtime: Handle,
}

type Delivery<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Courier {
    fn send_bytes<'a, 'async_trait>(&'a self, request: Request<Bytes>) -> Delivery<'async_trait>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        let address = self.address.clone();
        // The exporter's thread has no runtime: everything that needs one happens within the task.
        let delivery = self.runtime.spawn(async move { timeout(DELIVERY_TIMEOUT, deliver(address, request)).await });
        Box::pin(async move {
            let outcome = match delivery.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(elapsed)) => Err(elapsed.into()),
                Err(ended) => Err(ended.into()),
            };
            outcome.inspect_err(|error| tracing::debug!(%error, "traces were not delivered"))
        })
    }
}

async fn deliver(address: String, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let stream = TcpStream::connect(&address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    request.headers_mut().insert("host", address.parse()?);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse()?;
    *request.uri_mut() = path;
    let response = sender.send_request(request.map(Full::new)).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, limits::TRACE_ANSWER_BYTES_MAX).collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_that_cannot_be_reached_by_http_is_refused() {
        assert_eq!(address_of("http://localhost:4318"), Ok("localhost:4318".into()));
        assert_eq!(address_of("http://[::1]:4318/base/"), Ok("[::1]:4318".into()));
        assert_eq!(address_of("http://collector"), Ok("collector:80".into()));
        for wrong in ["", "localhost:4318", "/v1/traces", "ftp://a", "https://a:4318"] {
            assert!(address_of(wrong).is_err(), "{wrong}");
        }
        assert!(address_of("https://a").expect_err("refused").contains("plain HTTP"));
    }
}
