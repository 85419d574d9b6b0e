//! Traces as a receiver gets them: which spans, below which, and what is not in them. And that a receiver which is gone is no harm.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use bitnet_server::Config;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::sockets::{config, start};
use crate::world::{Answer, World};

/// What the caller's own span is called, and its trace.
const PARENT: &str = "00f067aa0ba902b7";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A receiver, and everything that it was sent.
async fn receiver() -> (String, Arc<Mutex<Vec<Bytes>>>) {
    let received = Arc::new(Mutex::new(Vec::new()));
    let take = async |State(received): State<Arc<Mutex<Vec<Bytes>>>>, body: Bytes| received.lock().unwrap().push(body);
    let router = Router::new().route("/v1/traces", post(take)).with_state(received.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, received)
}

fn spans(received: &Mutex<Vec<Bytes>>) -> Vec<Span> {
    let received = received.lock().unwrap();
    let requests = received.iter().map(|body| ExportTraceServiceRequest::decode(body.clone()).expect("an OTLP request"));
    requests.flat_map(|request| request.resource_spans).flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends a request with headers and reads all of the answer.
async fn ask(address: std::net::SocketAddr, headers: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[test]
fn stages_of_a_request_are_spans_below_its_callers() {
    let world = World::plain();
    world.block_on(async {
        let (endpoint, received) = receiver().await;
        let traced = World::detached(Config { otlp_endpoint: Some(endpoint), ..config() });
        let running = start(&traced).await;
        let caller = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
        let secret = json!({ "model": "sim", "prompt": "the secret prompt", "max_tokens": 5, "stream": true, "ignore_eos": true });
        let answer = ask(running.address, &caller, &secret).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let refused = json!({ "model": "sim", "prompt": "another secret", "max_tokens": -5 });
        ask(running.address, "authorization: Bearer sk-secret\r\n", &refused).await;
        let unsampled = format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n");
        ask(running.address, &unsampled, &secret).await;
        running.end.send(()).expect("it runs");
        running.server.await.expect("it ends in order");
        let spans = spans(&received);
        let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {spans:?}"));
        let root = named("POST /v1/completions");
        assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (TRACE.into(), PARENT.into()));
        for stage in ["admission", "queue", "prefill", "decode", "settle"] {
            let span = named(stage);
            assert_eq!((&span.trace_id, &span.parent_span_id), (&root.trace_id, &root.span_id), "{stage}");
            assert!(root.start_time_unix_nano <= span.start_time_unix_nano && span.start_time_unix_nano <= span.end_time_unix_nano);
            assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{stage} is within its request");
        }
        assert!(named("queue").end_time_unix_nano <= named("prefill").start_time_unix_nano);
        assert!(named("prefill").end_time_unix_nano <= named("decode").start_time_unix_nano);
        let roots: Vec<&Span> = spans.iter().filter(|span| span.name == root.name).collect();
        assert_eq!(roots.len(), 2, "a caller that does not record is not recorded");
        let own = roots.iter().find(|span| span.parent_span_id.is_empty()).expect("the refused one has no caller's trace");
        assert_ne!(own.trace_id, root.trace_id);
        let all = received.lock().unwrap().concat();
        let text = String::from_utf8_lossy(&all);
        assert!(text.contains("invalid_value") && text.contains("bitnet.completion_tokens"), "{text}");
        assert!(!text.contains("secret"), "neither prompts nor keys are in {text}");
    });
}

#[test]
fn receiver_that_is_gone_or_silent_delays_no_request() {
    let world = World::plain();
    world.block_on(async {
        // One port that nobody has, one where nobody answers.
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        for endpoint in [gone, silent.local_addr().expect("an address")] {
            let traced = World::detached(Config { otlp_endpoint: Some(format!("http://{endpoint}")), ..config() });
            let running = start(&traced).await;
            let mut longest = Duration::ZERO;
            for _ in 0..300 {
                let began = Instant::now();
                let answer = ask(running.address, "", &json!({ "model": "sim", "prompt": "a", "max_tokens": 2 })).await;
                longest = longest.max(began.elapsed());
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            println!("300 requests, the longest took {longest:?}");
            running.end.send(()).expect("it runs");
            let ended = tokio::time::timeout(Duration::from_secs(20), running.server).await;
            ended.expect("it does not wait for the receiver").expect("it ends in order");
        }
    });
}

#[test]
fn endpoint_that_is_no_url_is_refused_at_the_start() {
    let config = Config { otlp_endpoint: Some("localhost".into()), ..Config::default() };
    assert_eq!(config.validate().expect_err("refused").name, "otlp_endpoint");
    let answer: Answer = World::plain().post("/v1/completions", json!({ "model": "sim", "prompt": "a", "max_tokens": 1 }));
    assert_eq!(answer.status, 200, "without an endpoint there are no traces");
}
