//! Clients that leave: at every phase the work is gone within a step, nothing leaks, and what was used is settled once.

use std::time::Duration;

use axum::body::Body;
use bitnet_engine::{EngineOptions, SimulatedPace};
use bitnet_server::Config;
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use crate::world::{Book, Bookkeeper, World, post};

fn world(book: &Book) -> World {
    let pace = SimulatedPace { per_step: Duration::from_millis(1), ..SimulatedPace::default() };
    World::with(Config::default(), Box::new(Bookkeeper(book.clone(), None)), pace, EngineOptions::default())
}

fn request(stream: bool) -> axum::http::Request<Body> {
    let messages = json!([{ "role": "user", "content": "x".repeat(600) }]);
    post("/v1/chat/completions", &json!({ "model": "sim", "messages": messages, "max_tokens": 1000, "stream": stream, "ignore_eos": true }))
}

#[test]
fn stream_that_is_dropped_at_any_point_frees_everything() {
    let book = Book::default();
    let world = world(&book);
    for n_frames in [0, 1, 2, 3, 5, 20] {
        world.block_on(async {
            let response = world.router.clone().oneshot(request(true)).await.expect("never fails");
            let mut body = response.into_body();
            for _ in 0..n_frames {
                body.frame().await.expect("it goes on").expect("it does not break");
            }
        });
        world.settle();
    }
    let book = book.0.lock().unwrap();
    assert_eq!(book.len(), 6);
    for outcomes in book.values() {
        let [outcome] = outcomes[..] else { panic!("settled once: {outcomes:?}") };
        // Void where it left before its turn came.
        assert!(outcome.is_none_or(|usage| usage.n_completion_tokens < 1000), "{outcome:?}");
    }
}

#[test]
fn unstreamed_request_that_is_dropped_frees_everything() {
    let book = Book::default();
    let world = world(&book);
    for wait_ms in [0, 1, 3, 10, 30] {
        world.block_on(async {
            let answer = world.router.clone().oneshot(request(false));
            // The handler is dropped where it stands when the time is over.
            let _ = tokio::time::timeout(Duration::from_millis(wait_ms), answer).await;
        });
        world.settle();
    }
    for outcomes in book.0.lock().unwrap().values() {
        assert_eq!(outcomes.len(), 1, "settled or voided once");
    }
}

#[test]
fn refused_request_is_voided() {
    let book = Book::default();
    let world = world(&book);
    let refused = world.post(
        "/v1/chat/completions",
        json!({
            "model": "sim", "messages": [{ "role": "user", "content": "a" }], "structured_outputs": { "regex": "(" },
        }),
    );
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(book.0.lock().unwrap().values().cloned().collect::<Vec<_>>(), [vec![None]]);
}

#[test]
fn streamed_and_unstreamed_requests_settle_the_same_usage() {
    let book = Book::default();
    let world = world(&book);
    for stream in [false, true] {
        let messages = json!([{ "role": "user", "content": "price me" }]);
        let body = json!({ "model": "sim", "messages": messages, "max_tokens": 20, "stream": stream, "seed": 1, "n": 2 });
        assert_eq!(world.post("/v1/chat/completions", body).status, 200);
    }
    world.settle();
    let settled: Vec<_> = book.0.lock().unwrap().values().map(|outcomes| outcomes[0].expect("settled")).collect();
    assert_eq!(settled[0].n_completion_tokens, settled[1].n_completion_tokens);
    assert_eq!(settled[0].n_prompt_tokens, settled[1].n_prompt_tokens);
}
