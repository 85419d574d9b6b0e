//! Every refusal: its status, its code, the parameter at fault, and whether to try again.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use bitnet_engine::{EngineOptions, SimulatedPace};
use bitnet_server::admission::{ApiKey, ApiKeyDigest};
use bitnet_server::{Config, ServerError};
use serde_json::{Value, json};

use crate::world::{Book, Bookkeeper, World, post};

fn chat(more: Value) -> Value {
    let mut request = json!({ "model": "sim", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 4 });
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

/// Refused parameters: the route, what is added to a valid request, and the name that the refusal must have.
fn wrong_parameters() -> Vec<(&'static str, Value, &'static str)> {
    const CHAT: &str = "/v1/chat/completions";
    const TEXT: &str = "/v1/completions";
    const ANSWER: &str = "/v1/responses";
    vec![
        (CHAT, json!({ "temprature": 1 }), "temprature"),
        (CHAT, json!({ "temperature": -1 }), "temperature"),
        (CHAT, json!({ "temperature": "hot" }), "temperature"),
        (CHAT, json!({ "temperature": 1e308 }), "temperature"),
        (CHAT, json!({ "top_p": 0 }), "top_p"),
        (CHAT, json!({ "min_p": 2 }), "min_p"),
        (CHAT, json!({ "top_k": -2 }), "top_k"),
        (CHAT, json!({ "presence_penalty": 3 }), "presence_penalty"),
        (CHAT, json!({ "frequency_penalty": -3 }), "frequency_penalty"),
        (CHAT, json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (CHAT, json!({ "n": 0 }), "n"),
        (CHAT, json!({ "n": 1000 }), "n"),
        (CHAT, json!({ "n": -1 }), "n"),
        (CHAT, json!({ "max_tokens": 0 }), "max_tokens"),
        (CHAT, json!({ "max_tokens": 1_000_000 }), "max_tokens"),
        (CHAT, json!({ "max_completion_tokens": 3 }), "max_tokens"),
        (CHAT, json!({ "seed": 1.5 }), "seed"),
        (CHAT, json!({ "stop": [""] }), "stop"),
        (CHAT, json!({ "stop": 5 }), "stop"),
        (CHAT, json!({ "stop": vec!["a"; 100] }), "stop"),
        (CHAT, json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (CHAT, json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (CHAT, json!({ "logit_bias": { "99999": 1 } }), "logit_bias"),
        (CHAT, json!({ "top_logprobs": 2 }), "top_logprobs"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (CHAT, json!({ "min_tokens": 9 }), "min_tokens"),
        (CHAT, json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (CHAT, json!({ "store": true }), "store"),
        (CHAT, json!({ "modalities": ["audio"] }), "modalities"),
        (CHAT, json!({ "audio": {} }), "audio"),
        (CHAT, json!({ "functions": [] }), "functions"),
        (CHAT, json!({ "reasoning_effort": "low" }), "reasoning_effort"),
        (CHAT, json!({ "service_tier": "scale" }), "service_tier"),
        (CHAT, json!({ "service_tier": "priority" }), "service_tier"),
        (CHAT, json!({ "metadata": { "k": "v".repeat(513) } }), "metadata"),
        (CHAT, json!({ "messages": [] }), "messages"),
        (CHAT, json!({ "messages": [{ "role": "robot", "content": "a" }] }), "messages[0].role"),
        (CHAT, json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "messages[0].content[0].type"),
        (CHAT, json!({ "messages": [{ "role": "tool", "content": "a" }] }), "messages[0].tool_call_id"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": "a", "tool_calls": [] }] }), "messages[0].tool_calls"),
        (CHAT, json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }), "tools[0].name"),
        (CHAT, json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        (CHAT, json!({ "tool_choice": "required" }), "tool_choice"),
        (CHAT, json!({ "tool_choice": "sometimes" }), "tool_choice"),
        (CHAT, json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
        (
            CHAT,
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": { "type": "nonsense" } } } }),
            "response_format",
        ),
        (CHAT, json!({ "structured_outputs": { "regex": "(" } }), "structured_outputs"),
        (CHAT, json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "nonsense" } } }] }), "tools"),
        (TEXT, json!({ "prompt": "a", "structured_outputs": { "regex": "(" } }), "structured_outputs"),
        (TEXT, json!({ "prompt": "a", "echo": true, "max_tokens": 0, "min_tokens": 1 }), "min_tokens"),
        (
            ANSWER,
            json!({ "input": "a", "text": { "format": { "type": "json_schema", "name": "a", "schema": { "type": "nonsense" } } } }),
            "text.format",
        ),
        (CHAT, json!({ "structured_outputs": {} }), "structured_outputs"),
        (CHAT, json!({ "chat_template_kwargs": { "messages": [] } }), "messages"),
        (TEXT, json!({ "prompt": "a", "suffix": "b" }), "suffix"),
        (TEXT, json!({ "prompt": "a", "best_of": 3 }), "best_of"),
        (TEXT, json!({ "prompt": [] }), "prompt"),
        (TEXT, json!({ "prompt": "" }), "prompt"),
        (TEXT, json!({ "prompt": [99999] }), "prompt"),
        (TEXT, json!({ "prompt": {} }), "prompt"),
        (TEXT, json!({ "prompt": "a", "logprobs": 99 }), "logprobs"),
        (ANSWER, json!({ "input": "a", "background": true }), "background"),
        (ANSWER, json!({ "input": "a", "truncation": "auto" }), "truncation"),
        (ANSWER, json!({ "input": "a", "include": ["x"] }), "include"),
        (ANSWER, json!({ "input": "a", "reasoning": {} }), "reasoning"),
        (ANSWER, json!({ "input": [{ "role": "user" }] }), "input[0].content"),
        (ANSWER, json!({ "input": [{ "role": "user", "content": [{ "type": "input_text" }] }] }), "input[0].content[0].text"),
    ]
}

#[test]
fn every_wrong_parameter_is_refused_by_name() {
    let world = World::plain();
    for (url, more, param) in wrong_parameters() {
        let base = if url == "/v1/chat/completions" { chat(json!({})) } else { json!({ "model": "sim" }) };
        let mut body = base;
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer = world.post(url, body);
        let error = &answer.json()["error"];
        assert_eq!(answer.status, 400, "{url} {more}: {}", answer.body);
        // A template's refusal names the parameter that holds what it refuses.
        assert_eq!(error["param"], param, "{url} {more}: {}", answer.body);
        assert!(error["message"].is_string() && error["type"] == "invalid_request_error", "{error}");
    }
    assert_eq!(world.app.lifecycle().n_in_flight(), 0);
}

fn refused(world: &World, request: Request<Body>) -> (u16, String, bool) {
    let answer = world.send(request);
    let code = answer.json()["error"]["code"].as_str().unwrap_or_default().to_string();
    let retries = !answer.header("retry-after").is_empty();
    (answer.status, code, retries)
}

#[test]
fn requests_that_are_none_have_each_their_status() {
    let world = World::new(Config { body_bytes_max: 1000, ..Config::default() });
    let plain = |method: Method, url: &str| Request::builder().method(method).uri(url).body(Body::empty()).expect("a request");
    let row = |status: u16, code: &str| (status, code.to_string(), false);
    assert_eq!(refused(&world, plain(Method::GET, "/v1/moderations")), row(404, "unknown_url"));
    assert_eq!(refused(&world, plain(Method::GET, "/v1/chat/completions")), row(405, "method_not_allowed"));
    assert_eq!(refused(&world, post("/v1/chat/completions", &chat(json!({ "model": "gpt-9" })))), row(404, "model_not_found"));
    assert_eq!(
        refused(&world, post("/v1/completions", &json!({ "model": "sim", "prompt": "x".repeat(2000) }))),
        row(413, "request_too_large")
    );
    let text = Request::post("/v1/completions").header("content-type", "text/plain").body(Body::from("{}")).expect("a request");
    assert_eq!(refused(&world, text), row(415, "unsupported_media_type"));
    let broken = Request::post("/v1/completions").header("content-type", "application/json").body(Body::from("{")).expect("a request");
    assert_eq!(refused(&world, broken), row(400, "invalid_json"));
    let world = World::plain();
    assert_eq!(refused(&world, plain(Method::GET, "/v1/files/%FF")), row(400, "invalid_request"), "the framework's own refusals too");
    let long = post("/v1/completions", &json!({ "model": "sim", "prompt": "x".repeat(3000) }));
    assert_eq!(refused(&world, long), row(400, "context_length_exceeded"));
}

#[test]
fn body_that_does_not_come_is_given_up() {
    let world = World::new(Config { body_timeout: Duration::from_millis(20), ..Config::default() });
    let never = Body::new(http_body_util::StreamBody::new(Never));
    let request = Request::post("/v1/completions").header("content-type", "application/json").body(never).expect("a request");
    assert_eq!(refused(&world, request), (408, "request_timeout".into(), false));
}

/// A body that is always about to come.
struct Never;

impl futures_core::Stream for Never {
    type Item = Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>;

    fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Pending
    }
}

#[test]
fn key_is_asked_for_on_every_route_but_health() {
    let key = ApiKey { name: "a".into(), digest: ApiKeyDigest::of_key("sk-1"), requests_per_minute: Some(2) };
    let world = World::new(Config { api_keys: vec![key], ..Config::default() });
    let paths = bitnet_server::openapi()["paths"].as_object().expect("paths").clone();
    for (path, methods) in &paths {
        let is_open = path.contains("health") || path.ends_with("/ready") || path == "/docs";
        for method in methods.as_object().expect("methods").keys().filter(|method| !is_open || *method == "get") {
            let url = path.replace("{id}", "x").replace("{model}", "x");
            let method = method.to_ascii_uppercase().parse::<Method>().expect("a method");
            let request = Request::builder().method(method).uri(&url).body(Body::empty()).expect("a request");
            let answer = world.send(request);
            assert_eq!(answer.status == 401, !is_open, "{url}: {}", answer.status);
        }
    }
    let with_key = |key: &str| {
        let mut request = post("/v1/chat/completions", &chat(json!({})));
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("a value"));
        request
    };
    assert_eq!(refused(&world, with_key("sk-2")), (401, "invalid_api_key".into(), false));
    let answer = world.send(with_key("sk-1"));
    assert_eq!((answer.status, answer.header("x-ratelimit-remaining-requests")), (200, "1"));
    assert_eq!(world.send(with_key("sk-1")).status, 200);
    assert_eq!(refused(&world, with_key("sk-1")), (429, "rate_limit_exceeded".into(), true));
}

#[test]
fn refusals_of_admission_tell_waiting_from_stopping() {
    type Row = (fn() -> ServerError, u16, &'static str, bool);
    const WAIT: Duration = Duration::from_secs(3);
    let rows: [Row; 6] = [
        (|| ServerError::Forbidden { reason: "r".into() }, 403, "permission_denied", false),
        (|| ServerError::PaymentRequired { reason: "r".into() }, 402, "billing_not_active", false),
        (|| ServerError::InsufficientQuota { reason: "r".into() }, 429, "insufficient_quota", false),
        (|| ServerError::RateLimited { reason: "r".into(), retry_after: WAIT }, 429, "rate_limit_exceeded", true),
        (|| ServerError::SlowDown { reason: "r".into(), retry_after: WAIT }, 429, "slow_down", true),
        (|| ServerError::Overloaded { retry_after: WAIT }, 503, "server_is_overloaded", true),
    ];
    for (refusal, status, code, retries) in rows {
        let admission = Box::new(Bookkeeper(Default::default(), Some(refusal)));
        let world = World::with(Config::default(), admission, SimulatedPace::default(), EngineOptions::default());
        assert_eq!(refused(&world, post("/v1/chat/completions", &chat(json!({})))), (status, code.into(), retries));
        let anthropic =
            world.post("/v1/messages", json!({ "model": "sim", "max_tokens": 1, "messages": [{ "role": "user", "content": "a" }] }));
        assert_eq!(anthropic.status, if status == 503 { 529 } else { status });
    }
}

#[test]
fn full_queue_and_draining_server_refuse_with_a_time() {
    let options = EngineOptions { n_running_max: 1, n_waiting_max: 1, ..EngineOptions::default() };
    let pace = SimulatedPace { per_step: Duration::from_millis(5), ..SimulatedPace::default() };
    let book = Book::default();
    let world = World::with(Config::default(), Box::new(Bookkeeper(book.clone(), None)), pace, options);
    let request = post("/v1/completions", &json!({ "model": "sim", "prompt": vec!["a"; 40], "max_tokens": 50 }));
    assert_eq!(refused(&world, request), (503, "server_is_overloaded".into(), true));
    world.settle();
    assert!(book.0.lock().unwrap().values().flatten().all(Option::is_none), "whoever is refused does not pay");
    world.app.lifecycle().drain();
    assert_eq!(refused(&world, post("/v1/chat/completions", &chat(json!({})))), (503, "server_is_overloaded".into(), true));
    assert_eq!(world.get("/health/ready").status, 503);
    assert_eq!(world.get("/health/live").status, 200);
    world.settle();
}

#[test]
fn tenant_beyond_its_share_of_the_waiting_room_is_told_to_slow_down() {
    let key = |name: &str| ApiKey { name: name.into(), digest: ApiKeyDigest::of_key(name), requests_per_minute: None };
    let config = Config { api_keys: vec![key("ann"), key("bob")], ..Config::default() };
    let keys = bitnet_server::admission::StaticKeys::new(config.api_keys.clone(), [1; 32]);
    let pace = SimulatedPace { per_step: Duration::from_millis(20), ..SimulatedPace::default() };
    let options = EngineOptions { n_running_max: 1, n_waiting_max: 4, ..EngineOptions::default() };
    let world = World::with(config, Box::new(keys), pace, options);
    let ask = |name: &str| {
        let mut request =
            post("/v1/completions", &json!({ "model": "sim", "prompt": "a", "max_tokens": 1000, "ignore_eos": true, "stream": true }));
        request.headers_mut().insert("authorization", format!("Bearer {name}").parse().expect("a header"));
        request
    };
    let engine = world.app.models().all().into_iter().find(|model| model.name == "sim").expect("there").engine.clone();
    world.block_on(async {
        let mut held = Vec::new();
        let mut hold = async |name: &str| {
            use tower::ServiceExt;
            let response = world.router.clone().oneshot(ask(name)).await.unwrap_or_else(|never| match never {});
            let status = response.status().as_u16();
            held.push(response);
            status
        };
        assert_eq!(hold("ann").await, 200);
        while engine.stats().n_running == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..4 {
            assert_eq!(hold("ann").await, 200);
        }
        assert_eq!((hold("bob").await, hold("bob").await), (200, 200), "the room is full of another's, and bob has his share");
        for name in ["ann", "bob"] {
            let answer = world.send_async(ask(name)).await;
            assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (429, Some("slow_down")), "{}", answer.body);
            assert!(answer.body.contains("your share among 2 callers") && !answer.header("retry-after").is_empty(), "{}", answer.body);
        }
        let counted = {
            let mut request = post("/tokenize", &json!({ "model": "sim", "prompt": "a" }));
            request.headers_mut().insert("authorization", "Bearer ann".parse().expect("a header"));
            world.send_async(request).await
        };
        assert_eq!(counted.status, 200, "what needs no engine is answered: {}", counted.body);
    });
}
